//! Settings that an agent takes from its surroundings, or cannot change there.

use std::fs;

use cni_tests::{
    lab::{Families, Lab, Plan, Routing},
    traffic,
};
use serde_json::Value;

use crate::{eventually, needs_root};

const FORWARDING: [(&str, &str); 2] = [
    ("net/ipv4/ip_forward", "net.ipv4.ip_forward=1"),
    ("net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding=1"),
];

/// A container's `/proc/sys` is read-only: the agent says what it could not set and what to do, and serves its pods. When
/// somebody else has done it, it has nothing more to say.
#[test]
fn what_a_read_only_proc_sys_keeps_from_the_agent_is_said_and_pods_are_served() {
    needs_root!();
    let plan = Plan::new(Routing::Direct, Families::Dual).nodes(1);
    let name = format!("mrlab-fixed-{}", std::process::id());
    let lab = Lab::prepare(plan, &name).unwrap();
    let node = &lab.nodes[0];
    for (setting, _) in FORWARDING {
        node.namespace.set(setting, "0").unwrap();
    }
    node.start_agent_with_fixed_settings().unwrap();
    node.wait_until_ready().unwrap();
    let (a, b) = (node.add_pod("a").unwrap(), node.add_pod("b").unwrap());
    for v4 in [true, false] {
        traffic::ping(&a.namespace, b.ip(v4), 56).unwrap();
        traffic::ping(&a.namespace, node.address(v4), 56).unwrap();
    }
    let problems = || {
        let status = node.ask(["status"]).unwrap();
        let checks = status["checks"].as_array().unwrap().clone();
        let problems = checks.into_iter().filter(|check| check["name"] == "problem");
        problems.map(|problem| problem.to_string()).collect::<Vec<_>>()
    };
    for (setting, remedy) in FORWARDING {
        assert_eq!(
            node.namespace.read(&format!("/proc/sys/{setting}")).unwrap(),
            "0\n"
        );
        eventually(|| {
            let (said, log) = (problems().join("\n"), node.log());
            let told = |text: &str| {
                [setting, "/proc/sys is read-only here", remedy, "paths.procSys"]
                    .iter()
                    .all(|word| text.contains(word))
            };
            (!(told(&said) && told(&log))).then(|| format!("{said}\n{log}"))
        });
    }
    for (setting, _) in FORWARDING {
        node.namespace.set(setting, "1").unwrap();
    }
    eventually(|| {
        let left = problems();
        let about_forwarding = left.iter().any(|problem| problem.contains("forward"));
        about_forwarding.then(|| left.join("\n"))
    });
}

/// One object in each line, with what collectors of logs look for.
#[test]
fn logs_are_json_where_that_is_asked_for() {
    needs_root!();
    let plan = Plan::new(Routing::Direct, Families::V4).nodes(1);
    let lab = Lab::start(plan.agent_arguments(&["--log-format", "json"])).unwrap();
    let node = &lab.nodes[0];
    let log = fs::read_to_string(node.folder().join("agent.log")).unwrap();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let begins = &lines[0];
    assert_eq!(begins["level"], "INFO");
    assert_eq!(begins["target"], "cni_agent::cli::agent");
    assert_eq!(begins["fields"]["message"], "the agent begins");
    assert_eq!(begins["fields"]["node"], "node0");
    for line in &lines {
        for key in ["timestamp", "level", "target"] {
            assert!(line[key].is_string(), "{key}: {line}");
        }
        assert!(line["fields"]["message"].is_string(), "{line}");
    }
}
