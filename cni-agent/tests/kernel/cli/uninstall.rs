//! A host that was in use and is given back.

use std::{
    fs,
    io::Write,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use super::Node;
use crate::namespace::{cable, ip, on_host, run, tree};

/// The kernel tells a device of its cable up to a second later.
fn wait_for_carriers() {
    let end = Instant::now() + Duration::from_secs(10);
    while ip("-o link show up").contains("NO-CARRIER") {
        assert!(Instant::now() < end, "a cable has no carrier");
        thread::sleep(Duration::from_millis(10));
    }
}

/// What of the host Millrace could leave something in.
fn host_state(node: &Node) -> Vec<String> {
    let mut state = tree(Path::new("/sys/fs/bpf"));
    state.extend(tree(&node.path("run")));
    state.extend(tree(&node.path("state")));
    for what in [
        "-o link show",
        "-o addr show scope global",
        "route show table all proto 77",
        "neigh show",
    ] {
        state.extend(
            ip(what)
                .lines()
                .filter(|line| !line.contains("REACHABLE"))
                .map(str::to_owned),
        );
    }
    state.push(run("tc", "qdisc show"));
    state
}

#[test]
fn uninstall_leaves_the_host_as_it_was() {
    for attach in ["tcx", "clsact"] {
        on_host(move |host| {
            let mut node = Node::new(host);
            let uninstall = format!(
                "uninstall --yes --cni-config {} --cni-plugin {}",
                node.path("05-millrace.conflist").display(),
                node.path("millrace-cni").display()
            );
            wait_for_carriers();
            let before = host_state(&node);
            // What the agent was told on its command line, uninstall may be told too.
            let elsewhere = node.path("elsewhere");
            node.start(&format!("--attach {attach} --state {}", elsewhere.display()));
            assert!(elsewhere.exists());
            assert_ne!(host_state(&node), before);
            let refused = node.run(&uninstall);
            assert!(!refused.status.success(), "an agent runs");
            assert!(String::from_utf8_lossy(&refused.stderr).contains("stop it first"));
            node.stop(nix::sys::signal::Signal::SIGKILL);
            fs::write(node.path("05-millrace.conflist"), "{}").unwrap();
            cable("mr0123456789a");
            let asked = node.command("uninstall").stdin(Stdio::null()).output().unwrap();
            assert!(!asked.status.success(), "nobody confirmed");
            let output = node
                .command(&uninstall)
                .env("MILLRACE_STATE", &elsewhere)
                .output();
            let output = output.unwrap();
            assert!(output.status.success(), "{output:?}");
            assert!(!elsewhere.exists(), "{output:?}");
            // The folder `run` itself was there for us to make.
            let mut after = host_state(&node);
            after.retain(|line| !line.ends_with("/run"));
            assert_eq!(after, before, "{attach}");
            assert!(!node.path("05-millrace.conflist").exists());
            assert!(node.run(&uninstall).status.success(), "twice is fine");
        });
    }
}

#[test]
fn uninstall_finds_the_runtimes_configuration_by_its_setting_and_gives_other_networks_theirs_back() {
    on_host(|host| {
        let mut node = Node::new(host);
        let runtime = node.path("net.d");
        fs::create_dir(&runtime).unwrap();
        fs::write(runtime.join("00-other.conflist"), "{}").unwrap();
        let mut config = fs::OpenOptions::new()
            .append(true)
            .open(node.path("config.yaml"))
            .unwrap();
        let ours = runtime.join("20-ours.conflist");
        writeln!(
            config,
            "cni: {{install: true, moveOthersAside: true, conflist: {}}}",
            ours.display()
        )
        .unwrap();
        node.start("");
        let end = Instant::now() + Duration::from_secs(60);
        while !runtime.join("00-other.conflist.millrace-aside").exists() {
            assert!(Instant::now() < end, "the other network is still in the way");
            thread::sleep(Duration::from_millis(20));
        }
        node.stop(nix::sys::signal::Signal::SIGTERM);
        let plugin = node.path("millrace-cni");
        let report = node.json(&format!(
            "--json uninstall --yes --cni-plugin {}",
            plugin.display()
        ));
        let other = runtime.join("00-other.conflist");
        assert_eq!(
            report["restored"],
            serde_json::json!([other.display().to_string()]),
            "{report}"
        );
        assert_eq!(report["failed"], serde_json::json!([]));
        assert_eq!(tree(&runtime), [other.display().to_string()]);
    });
}
