#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on panics"
)]
//! Every program under every configuration, through the verifier of the kernel this runs on.
//!
//! The counts of verified instructions are kept in `fixtures/verified-instructions.txt` by the kernel's release and
//! compared exactly: they do not jitter, so any difference is a change of the programs. `cargo xtask vm record` writes
//! them anew, for this kernel and for those of all virtual machines; it sets `MILLRACE_RECORD` and reads what this test
//! prints.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cni_ebpf::abi::Config;
use cni_tests::object;

/// What the kernel allows is a million; we promise ourselves a fraction.
const MOST: u32 = 100_000;

fn configurations() -> Vec<(String, Config)> {
    let mut all = Vec::new();
    for (families, ipv4, ipv6) in [("dual", 1, 1), ("v4", 1, 0), ("v6", 0, 1)] {
        for (mode, tunnel) in [("direct", 0), ("vxlan", 1)] {
            for (options, on) in [("everything", 1), ("bare", 0)] {
                let config = Config {
                    ipv4,
                    ipv6,
                    tunnel,
                    tunnel_ifindex: if tunnel == 1 { 7 } else { 0 },
                    masquerade: on,
                    events: on,
                    services: on,
                    policy: on,
                    bandwidth: on,
                    ..Config::DEFAULT
                };
                all.push((format!("{families}-{mode}-{options}"), config));
            }
        }
    }
    all
}

/// The whole release: a patch of the verifier may move every count.
fn kernel() -> String {
    let name = nix::sys::utsname::uname().unwrap();
    name.release().to_string_lossy().into_owned()
}

fn fixture() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/verified-instructions.txt"
    ))
}

type Counts = BTreeMap<(String, String, String), u32>;

fn recorded() -> Counts {
    let text = std::fs::read_to_string(fixture()).unwrap_or_default();
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            Some((
                (words.next()?, words.next()?, words.next()?),
                words.next()?.parse().ok()?,
            ))
        })
        .collect()
}

#[test]
fn every_program_verifies_under_every_configuration() {
    let root = nix::unistd::geteuid().is_root();
    cni_tests::require!(root, "loading programs needs root");
    let bytes = object::bytes().unwrap();
    let kernel = kernel();
    let mut measured = Counts::new();
    for (name, config) in configurations() {
        let mut ebpf = object::open(&bytes, &config).unwrap();
        for program in object::PROGRAMS {
            let loaded = object::load(&mut ebpf, program)
                .unwrap_or_else(|error| panic!("{program} under {name} on {kernel}: {error:?}"));
            let count = loaded.info().unwrap().verified_instruction_count().unwrap_or(0);
            println!("verified: {kernel} {name} {program} {count}");
            measured.insert((kernel.clone(), name.clone(), program.to_owned()), count);
        }
    }
    if std::env::var_os("MILLRACE_RECORD").is_some() {
        return;
    }
    let before = recorded();
    if !before.keys().any(|(release, ..)| *release == kernel) {
        println!(
            "Linux {kernel} is not in the record, only the bound of {MOST} holds: `cargo xtask vm record`"
        );
    }
    let mut moved = Vec::new();
    for (key, count) in &measured {
        let (_, name, program) = key;
        assert!(
            *count <= MOST,
            "{program} under {name}: {count} verified instructions, more than {MOST}"
        );
        if let Some(expected) = before.get(key).filter(|expected| *expected != count) {
            moved.push(format!(
                "{program} under {name}: {count}, recorded are {expected}"
            ));
        }
    }
    assert!(
        moved.is_empty(),
        "verified instructions on {kernel} have moved; if that is meant, `cargo xtask vm record`:\n{}",
        moved.join("\n")
    );
}
