//! The kernel's switch for quick grace periods: a file stands in for it, for nobody sees how long the real one was on.

use std::{fs, os::unix::process::ExitStatusExt, path::PathBuf, time::SystemTime};

use cni_tests::{
    lab::{Families, Lab, Node, Plan, Routing, Signal},
    netns::Namespace,
    traffic,
};
use serde_json::json;

use crate::{eventually, needs_root};

struct Switch {
    _folder: tempfile::TempDir,
    file: PathBuf,
}

impl Switch {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rcu_expedited");
        fs::write(&file, "0\n").unwrap();
        Self {
            _folder: folder,
            file,
        }
    }

    fn lab(&self, attach: &str) -> Lab {
        let plan = Plan::new(Routing::Direct, Families::Dual)
            .nodes(1)
            .agent_arguments(&[
                "--attach",
                attach,
                "--rcu-expedited",
                &self.file.display().to_string(),
            ]);
        Lab::start(plan).unwrap()
    }

    fn value(&self) -> String {
        fs::read_to_string(&self.file).unwrap()
    }

    fn turned(&self) -> SystemTime {
        fs::metadata(&self.file).unwrap().modified().unwrap()
    }
}

#[test]
fn attachments_by_tcx_turn_it_on_and_off_and_filters_do_not() {
    needs_root!();
    for (attach, turns) in [("tcx", true), ("clsact", false)] {
        let switch = Switch::new();
        let lab = switch.lab(attach);
        let node = &lab.nodes[0];
        let before = switch.turned();
        let (a, b) = (node.add_pod("a").unwrap(), node.add_pod("b").unwrap());
        traffic::ping(&a.namespace, b.ip(true), 56).unwrap();
        assert_eq!(switch.turned() > before, turns, "{attach}");
        assert_eq!(switch.value(), "0\n", "{attach}");
    }
}

/// A plugin that looks at the same switch.
fn call(node: &Node, verb: &str, guest: &Namespace, switch: &Switch) -> Result<(), String> {
    let more = json!({ "rcuExpedited": switch.file });
    let done = node.cni(verb, guest.name(), &guest.path(), &more);
    done.map(drop).map_err(|error| format!("{error:#}"))
}

/// A pod of the first node.
fn added(lab: &Lab, switch: &Switch) -> Namespace {
    let guest = Namespace::create(&format!("{}-guest", lab.name())).unwrap();
    call(&lab.nodes[0], "ADD", &guest, switch).unwrap();
    guest
}

/// Exchanges the programs under its links, as every agent does when it starts, and does not live to see the end.
fn start_and_die(node: &Node, switch: &Switch) {
    node.start_agent_with(&[("MILLRACE_DIE_EXPEDITED", "1")]).unwrap();
    eventually(|| (!node.agent_is_gone().unwrap()).then(|| "the agent lives on".to_owned()));
    assert_eq!(switch.value(), "1\n");
}

#[test]
fn a_switch_that_a_killed_agent_left_on_is_turned_off() {
    needs_root!();
    let switch = Switch::new();
    let lab = switch.lab("tcx");
    let node = &lab.nodes[0];
    let empty = node.intent().unwrap();
    let guest = added(&lab, &switch);
    node.end_agent(Signal::SIGKILL).unwrap();
    // By the plugin that takes the pod away, before there is an agent again.
    start_and_die(node, &switch);
    call(node, "DEL", &guest, &switch).unwrap();
    assert_eq!(switch.value(), "0\n");
    // By the next agent.
    start_and_die(node, &switch);
    node.start_agent().unwrap();
    node.wait_until_ready().unwrap();
    assert_eq!(switch.value(), "0\n");
    crate::runtimes::nothing_is_left(node, &empty);
    node.end_agent(Signal::SIGTERM).unwrap();
    start_and_die(node, &switch);
    node.uninstall().unwrap();
    assert_eq!(switch.value(), "0\n");
}

#[test]
fn cni_08_a_switch_that_a_killed_plugin_left_on_is_turned_off_by_the_next() {
    needs_root!();
    let switch = Switch::new();
    let lab = switch.lab("tcx");
    let node = &lab.nodes[0];
    let empty = node.intent().unwrap();
    let guest = added(&lab, &switch);
    let mut killed = node.cni_command("DEL", guest.name(), &guest.path());
    killed.env("MILLRACE_CNI_FAIL_AT", "expedited:kill");
    let output = node
        .feed(killed, &json!({ "rcuExpedited": switch.file }))
        .unwrap();
    assert_eq!(output.status.signal(), Some(9), "{output:?}");
    assert_eq!(switch.value(), "1\n");
    call(node, "DEL", &guest, &switch).unwrap();
    assert_eq!(switch.value(), "0\n");
    crate::runtimes::nothing_is_left(node, &empty);
}
