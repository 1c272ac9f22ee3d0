#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on panics"
)]
//! Every program under every configuration, through the verifier of the kernel this runs on.
//!
//! The counts of verified instructions are kept in `fixtures/verified-instructions.txt` by the kernel's release. They do not
//! jitter, and the object is the same to the byte in whatever folder it is built, so on a kernel that is in the record any
//! difference is a change of the programs, or of the compiler: the record is of Debian's. Debian's kernels and people's
//! own are updated without us; on those not in the record the counts may grow by what [`leeway`] allows. `cargo
//! xtask vm record` writes the record anew, for this kernel and for those of all virtual machines; it sets
//! `MILLRACE_RECORD` and reads what this test prints.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cni_ebpf::abi::{Config, socket_lb};
use cni_tests::object;

/// What the kernel allows is a million; we promise ourselves an eighth.
const MOST: u32 = 125_000;

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
                    tunnel_port: if tunnel == 1 { 4789 } else { 0 },
                    masquerade: on,
                    events: on,
                    services: on,
                    policy: on,
                    bandwidth: on,
                    socket_lb: if on == 1 { socket_lb::ALL } else { socket_lb::OFF },
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

/// How much more than the record, in percent, this kernel may verify: nothing if it is in there; a patch of the verifier may
/// move every count a little; and another series more, against the largest recorded.
fn leeway(recorded: &Counts, kernel: &str) -> u32 {
    let mut releases = recorded.keys().map(|(release, ..)| release.as_str());
    if releases.clone().any(|release| release == kernel) {
        0
    } else if releases.any(|release| series(release) == series(kernel)) {
        5
    } else {
        25
    }
}

/// The first two numbers of a release.
fn series(release: &str) -> Vec<&str> {
    release.split(['.', '-', '+']).take(2).collect()
}

/// The count to compare with: the largest of those releases that are as near to the kernel as the leeway says.
fn expected(recorded: &Counts, kernel: &str, leeway: u32, name: &str, program: &str) -> Option<u32> {
    let near = |release: &str| match leeway {
        0 => release == kernel,
        5 => series(release) == series(kernel),
        _ => true,
    };
    let counts = recorded
        .iter()
        .filter(|((release, configuration, of), _)| near(release) && configuration == name && of == program);
    counts.map(|(_, count)| *count).max()
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
        let loaded = object::load_xdp(&mut ebpf, object::XDP_PROGRAM)
            .unwrap_or_else(|error| panic!("{} under {name} on {kernel}: {error:?}", object::XDP_PROGRAM));
        let count = loaded.info().unwrap().verified_instruction_count().unwrap_or(0);
        println!("verified: {kernel} {name} {} {count}", object::XDP_PROGRAM);
        measured.insert(
            (kernel.clone(), name.clone(), object::XDP_PROGRAM.to_owned()),
            count,
        );
        for program in object::SOCKET_PROGRAMS {
            let loaded = object::load_socket(&mut ebpf, program)
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
    let leeway = leeway(&before, &kernel);
    if leeway != 0 {
        println!("Linux {kernel} is not in the record, {leeway} % more are allowed: `cargo xtask vm record`");
    }
    let mut moved = Vec::new();
    for ((_, name, program), count) in &measured {
        assert!(
            *count <= MOST,
            "{program} under {name}: {count} verified instructions, more than {MOST}"
        );
        let expected = expected(&before, &kernel, leeway, name, program);
        let expected = expected.unwrap_or_else(|| panic!("{program} under {name} is in no record"));
        if *count > expected + expected * leeway / 100 || (leeway == 0 && *count != expected) {
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
