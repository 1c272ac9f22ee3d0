#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on panics"
)]
//! Every program under every configuration, through the verifier of the kernel this runs on.
//!
//! The counts of verified instructions are kept in `fixtures/verified-instructions.txt` and compared: they do not
//! jitter, so a change of one percent is a change of the code. `MILLRACE_BLESS=1` writes them anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
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

fn kernel() -> String {
    let release = nix::sys::utsname::uname()
        .unwrap()
        .release()
        .to_string_lossy()
        .into_owned();
    release.split('.').take(2).collect::<Vec<_>>().join(".")
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

fn bless(mut all: Counts, measured: &Counts, kernel: &str) {
    all.retain(|key, _| key.0 != kernel);
    all.extend(measured.clone());
    let mut text = String::from(
        "# kernel  configuration  program  verified instructions (MILLRACE_BLESS=1 writes this file)\n",
    );
    for ((kernel, configuration, program), count) in &all {
        writeln!(text, "{kernel:<6} {configuration:<24} {program:<12} {count}").unwrap();
    }
    std::fs::write(fixture(), text).unwrap();
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
            println!("{kernel} {name} {program} {count}");
            measured.insert((kernel.clone(), name.clone(), program.to_owned()), count);
        }
    }
    let before = recorded();
    if std::env::var_os("MILLRACE_BLESS").is_some() {
        return bless(before, &measured, &kernel);
    }
    for (key, count) in &measured {
        let (_, name, program) = key;
        assert!(
            *count <= MOST,
            "{program} under {name}: {count} verified instructions, more than {MOST}"
        );
        // A kernel that the file does not know is held to the bound above only.
        if let Some(expected) = before.get(key) {
            let room = expected / 50 + 16;
            assert!(
                count.abs_diff(*expected) <= room,
                "{program} under {name} on {kernel}: {count} verified instructions, recorded are {expected}; \
                 if that is meant, run with MILLRACE_BLESS=1"
            );
        }
    }
}
