//! What the DaemonSet asks for is what was measured.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use cni_agent::{
    config::{self, MapSizes},
    kernel::{
        Kernel, Linux,
        maps::{self, Map},
    },
    reconcile::Change,
};
use cni_ebpf::abi::{Config, MAPS};
use serde_json::Value;

use crate::namespace::{block_on, on_host};

/// What the chart's comment speaks of: 10,000 Services of ten endpoints with a port each, and 50,000 pods of other nodes.
const ROWS: [(&str, u32); 4] = [
    ("services", 20_000),
    ("service_slots", 100_000),
    ("backends", 100_000),
    ("peers", 50_000),
];
/// Of what was measured: the least and the most that is asked for.
const ROOM: [f64; 2] = [1.1, 1.33];

fn deploy(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file);
    fs::read_to_string(path).unwrap()
}

/// A figure of the comment, in millions of bytes.
fn said(what: &str) -> f64 {
    let values = deploy("helm/millrace/values.yaml");
    let start = format!("#   {what}: ");
    let line = values.lines().find_map(|line| line.strip_prefix(&start)).unwrap();
    line.split_once(' ').unwrap().0.parse().unwrap()
}

/// What the pods ask for, in millions of bytes.
fn requested() -> f64 {
    let daemonset: Value = serde_saphyr::from_str(&deploy("base/daemonset.yaml")).unwrap();
    let containers = &daemonset["spec"]["template"]["spec"]["containers"];
    let memory = containers[0]["resources"]["requests"]["memory"].as_str().unwrap();
    let mebibytes: f64 = memory.strip_suffix("Mi").unwrap().parse().unwrap();
    mebibytes * f64::from(1 << 20) / 1e6
}

/// As the kernel counts it.
fn bytes(map: &Map) -> u64 {
    let info = format!("/proc/thread-self/fdinfo/{}", map.as_fd().as_raw_fd());
    let info = fs::read_to_string(info).unwrap();
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("memlock:"))
        .unwrap();
    line.trim().parse().unwrap()
}

fn fill(map: &Map, rows: u32) {
    let spec = maps::spec(map.name()).unwrap();
    let key = |number: u32| {
        let mut key = number.to_le_bytes().to_vec();
        key.resize(spec.key, 0);
        key
    };
    let keys: Vec<u8> = (0..rows).flat_map(key).collect();
    map.put_packed(&keys, &vec![0; spec.value * rows as usize])
        .unwrap();
}

#[test]
fn the_request_for_memory_is_what_maps_and_agent_take_and_some_room() {
    on_host(|host| {
        let config = config::Config {
            maps: MapSizes::default(),
            ..host.config.clone()
        };
        let mut linux = Linux::open(&config).unwrap();
        block_on(linux.apply(&Change::Load(Config::DEFAULT))).unwrap();
        let all = MAPS
            .iter()
            .map(|spec| maps::open_existing(&host.pins(), spec.name).unwrap());
        let all: Vec<Map> = all.collect();
        let of = |name: &str| all.iter().find(|map| map.name() == name).unwrap();
        for (name, rows) in ROWS {
            fill(of(name), rows);
        }
        let measured = all.iter().map(bytes).sum::<u64>() as f64 / 1e6;
        // Kernels before 6.4 count keys and values of all places alone.
        let conntrack = of("conntrack");
        let spec = maps::spec("conntrack").unwrap();
        let raw = u64::from(conntrack.capacity()) * (spec.key + spec.value) as u64;
        if bytes(conntrack) > raw + raw / 20 {
            let said = said("maps");
            assert!(
                (measured / said - 1.0).abs() < 0.03,
                "maps take {measured:.0} MB, values.yaml says {said}: write what it is, and mind the request"
            );
        }
        let (sum, requested) = (said("maps") + said("resident"), requested());
        assert!(
            (ROOM[0] * sum..ROOM[1] * sum).contains(&requested),
            "{requested:.0} MB are asked for and {sum} MB needed: change resources.requests.memory of values.yaml, \
             then `cargo xtask manifests`"
        );
    });
}
