//! The agent's role: no rule too many, none too few.

use std::{collections::BTreeSet, fs};

use cni_tests::lab::{
    ControlPlane, Families, Lab, Node, Plan, Routing, Signal,
    control_plane::{ACCOUNT, ROLE, node, pod},
};
use serde_json::{Value, json};

use crate::{
    control_plane::{complains, is_content},
    eventually,
    flow::Flow,
    needs_control_plane,
};

/// `verb resource.group`, as [`ControlPlane::requests`] writes it.
fn rights(role: &Value) -> BTreeSet<String> {
    let texts = |list: &Value| -> Vec<String> {
        let list = list.as_array().unwrap().iter();
        list.map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let mut rights = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        for group in texts(&rule["apiGroups"]) {
            let group = if group.is_empty() {
                group
            } else {
                format!(".{group}")
            };
            for resource in texts(&rule["resources"]) {
                rights.extend(
                    texts(&rule["verbs"])
                        .iter()
                        .map(|verb| format!("{verb} {resource}{group}")),
                );
            }
        }
    }
    rights
}

pub(crate) fn role(control: &ControlPlane) -> Value {
    let text = control
        .kubectl(&["get", "clusterrole", ROLE, "-o", "json"])
        .unwrap();
    let mut role: Value = serde_json::from_str(&text).unwrap();
    role["metadata"] = json!({ "name": ROLE });
    role
}

/// Brings about whatever the agent asks a server for, beside its watches.
fn provoke(control: &ControlPlane, plan: &Plan) {
    let mut own = node(plan, 0);
    own["spec"]["taints"] = json!([{ "key": "millrace.dev/agent-not-ready", "effect": "NoExecute" }]);
    own["status"]["conditions"] = json!([{
        "type": "NetworkUnavailable", "status": "True", "reason": "a", "message": "a",
    }]);
    control.apply(std::slice::from_ref(&own)).unwrap();
    control.set_status(&own).unwrap();
    // Another object: its status says nothing yet.
    let _ = control.kubectl(&["delete", "millraceconfig", "default", "--ignore-not-found"]);
    control
        .apply(&[json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "MillraceConfig",
            "metadata": { "name": "default" }, "spec": { "mtu": 1400 },
        })])
        .unwrap();
}

fn restart(node: &Node) {
    node.end_agent(Signal::SIGKILL).unwrap();
    node.start_agent().unwrap();
}

/// A server that streams no lists, so that they are asked for in pages too.
fn without_streams() -> (ControlPlane, Lab) {
    // Serving Services takes the most rights.
    let config = json!({ "services": { "proxy": "millrace" } });
    let plan = Plan::new(Routing::Direct, Families::Dual).nodes(1).config(config);
    let (mut control, lab) = Lab::start_with_control_plane(plan).unwrap();
    control.arguments = vec!["--feature-gates=WatchList=false".to_owned()];
    let server = control.addresses[0];
    control.kill_server(server).unwrap();
    control.start_server(server).unwrap();
    (control, lab)
}

#[test]
fn rel_15_every_right_is_used_and_no_other_is_asked_for() {
    needs_control_plane!();
    let (control, lab) = without_streams();
    let node = &lab.nodes[0];
    provoke(&control, &lab.plan);
    restart(node);
    node.wait_until_ready().unwrap();
    let wanted = rights(&role(&control));
    eventually(|| {
        let asked = control.requests().unwrap();
        let unused: Vec<_> = wanted.difference(&asked).collect();
        (!unused.is_empty()).then(|| format!("never asked for: {unused:?}"))
    });
    let asked = control.requests().unwrap();
    assert_eq!(
        asked.difference(&wanted).collect::<Vec<_>>(),
        Vec::<&String>::new()
    );
}

#[test]
fn rel_15_each_right_that_is_taken_away_is_missed_by_name() {
    needs_control_plane!();
    let (control, lab) = without_streams();
    let node = &lab.nodes[0];
    let whole = role(&control);
    let flow = Flow::begin(node);
    for right in rights(&whole) {
        let (verb, resource) = right.split_once(' ').unwrap();
        let resource = resource.split('.').next().unwrap();
        let mut role = whole.clone();
        for rule in role["rules"].as_array_mut().unwrap() {
            let concerned = rule["resources"]
                .as_array()
                .unwrap()
                .iter()
                .any(|name| name == resource);
            if !concerned {
                continue;
            }
            // A rule of several resources is divided.
            let verbs = rule["verbs"].as_array_mut().unwrap();
            verbs.retain(|known| known != verb);
        }
        let rules = role["rules"].as_array_mut().unwrap();
        rules.retain(|rule| rule["verbs"] != json!([]));
        control.apply(std::slice::from_ref(&role)).unwrap();
        provoke(&control, &lab.plan);
        restart(node);
        complains(node, &["403", verb, resource, "ClusterRole millrace"]);
        flow.goes_on();
    }
    control.apply(std::slice::from_ref(&whole)).unwrap();
    is_content(node);
    flow.end(node);
}

#[test]
fn rel_15_an_agents_token_changes_no_node_but_its_own() {
    needs_control_plane!();
    let (control, _lab) = Lab::start_with_control_plane(Plan::new(Routing::Direct, Families::V4)).unwrap();
    let policy = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../cni-agent/deploy/base/admission.yaml"
    );
    control.kubectl(&["apply", "-f", policy]).unwrap();
    // As the kubelet asks for one: it is bound to the agent's pod, and so to its node.
    let mut agent = pod("agent", "node0", &[]);
    agent["metadata"]["namespace"] = json!("kube-system");
    agent["spec"]["serviceAccountName"] = json!(ACCOUNT);
    control.apply(&[agent]).unwrap();
    let token = control
        .kubectl(&[
            "create",
            "token",
            ACCOUNT,
            "--namespace=kube-system",
            "--bound-object-kind=Pod",
            "--bound-object-name=agent",
        ])
        .unwrap();
    let admin = fs::read_to_string(control.folder().join("admin.kubeconfig")).unwrap();
    let mut access: Value = serde_json::from_str(&admin).unwrap();
    access["users"][0]["user"] = json!({ "token": token.trim() });
    let kubeconfig = control.folder().join("agent.kubeconfig");
    fs::write(&kubeconfig, access.to_string()).unwrap();
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    let change = |words: &[&str], node: &str| {
        let status = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": node },
            "status": { "conditions": [{ "type": "NetworkUnavailable", "status": "True" }] },
        });
        let words = words
            .iter()
            .map(|word| if *word == "NODE" { node } else { *word });
        let words: Vec<&str> = words.chain([kubeconfig.as_str()]).collect();
        control.feed(&words, &status.to_string())
    };
    for words in [
        &["annotate", "--overwrite", "node", "NODE", "a=b"][..],
        // A patch of a status is preceded by a look at it, which an agent never takes.
        &[
            "apply",
            "--server-side",
            "--validate=false",
            "--force-conflicts",
            "--subresource=status",
            "-f",
            "-",
        ],
    ] {
        // A policy has its effect some time after it was made.
        eventually(|| match change(words, "node1") {
            Ok(()) => Some(format!("{words:?}: it changed another node")),
            Err(error) => {
                let text = error.to_string();
                (!text.contains("changes no node but its own")).then_some(text)
            }
        });
        change(words, "node0").unwrap();
    }
}
