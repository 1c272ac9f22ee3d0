//! The dashboard against what an agent really says.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use cni_tests::{
    lab::{Families, Lab, Plan, Routing, ServiceManifest, cluster_ip},
    patience, require,
    traffic::{Echo, tcp},
};
use serde_json::{Value, json};

use crate::chart::deploy;

/// The names that an expression asks for.
fn asked(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|word| word.starts_with("millrace_"))
        .map(str::to_owned)
        .collect()
}

/// The names of the series in an exposition.
fn exposed(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names = types.filter_map(|declaration| declaration.split_once(' '));
    names
        .map(|(name, kind)| match kind.trim() {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            "histogram" => format!("{name}_bucket"),
            _ => name.to_owned(),
        })
        .collect()
}

/// What a node exposes with a Service through which somebody has connected: what counts nothing is left out.
fn in_use(lab: &Lab) -> BTreeSet<String> {
    let node = &lab.nodes[0];
    let pod = node.add_pod("a").unwrap();
    let _echo = Echo::tcp(&pod.namespace, pod.ip(true), 8080).unwrap();
    let service = ServiceManifest::new(1).endpoint(&pod, 8080);
    node.write_manifest(&service.file(), &service.objects()).unwrap();
    let vip = SocketAddr::new(cluster_ip(1, true), 80);
    let deadline = Instant::now() + patience(Duration::from_secs(60));
    loop {
        let connected = node.with_sockets(|| tcp(&node.namespace, vip, 10));
        let names = exposed(&node.http("/metrics").unwrap());
        if names.contains("millrace_service_connections_total") {
            return names;
        }
        assert!(Instant::now() < deadline, "{connected:?}: {names:#?}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn every_metric_of_the_dashboard_is_served() {
    require!(nix::unistd::geteuid().is_root(), "an agent needs root");
    let services = json!({ "proxy": "millrace", "cidrs": ["10.96.0.0/16", "fd00:10:96::/112"] });
    let plan = Plan::new(Routing::Direct, Families::Dual).nodes(1);
    let lab = Lab::start(plan.config(json!({ "services": services }))).unwrap();
    let exposed = in_use(&lab);
    let text = fs::read_to_string(deploy().join("helm/millrace/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut expressions: Vec<_> = targets
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    expressions.extend(
        variables
            .iter()
            .filter_map(|variable| variable["query"].as_str().map(str::to_owned)),
    );
    for expression in expressions {
        let missing: Vec<_> = asked(&expression).difference(&exposed).cloned().collect();
        assert!(missing.is_empty(), "{expression}: no {missing:?} in {exposed:#?}");
    }
}

#[test]
fn names_are_read_from_expressions_and_expositions() {
    let expression = r#"sum by (map) (rate(millrace_a_total{node=~"$node"}[5m]) / millrace_b)"#;
    assert_eq!(
        asked(expression),
        ["millrace_a_total", "millrace_b"].map(str::to_owned).into()
    );
    let text = "# HELP millrace_a x.\n# TYPE millrace_a counter\n# TYPE millrace_b gauge\nmillrace_b 1\n# TYPE millrace_c info\n\
                # TYPE millrace_d histogram\n";
    assert_eq!(
        exposed(text),
        [
            "millrace_a_total",
            "millrace_b",
            "millrace_c_info",
            "millrace_d_bucket"
        ]
        .map(str::to_owned)
        .into()
    );
}
