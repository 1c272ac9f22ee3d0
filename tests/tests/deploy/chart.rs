//! The chart through the real helm.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

/// The folder `cni-agent/deploy`.
pub(crate) fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cni-agent/deploy")
}

fn chart() -> PathBuf {
    deploy().join("helm/millrace")
}

fn helm(arguments: &[&str]) -> Output {
    let mut helm = Command::new("helm");
    helm.arg(arguments[0]).args(&arguments[1..]);
    helm.arg(chart()).args(["--namespace", "kube-system"]);
    helm.output().expect("helm; `cargo xtask setup` installs it")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What the chart gives for these values.
pub(crate) fn render(values: &[&str]) -> Result<Vec<Value>, String> {
    let mut arguments = vec!["template", "millrace"];
    for value in values {
        arguments.extend(["--set", value]);
    }
    let output = helm(&arguments);
    if !output.status.success() {
        return Err(said(&output));
    }
    let text = String::from_utf8(output.stdout).unwrap();
    Ok(serde_saphyr::from_multiple(&text).unwrap())
}

pub(crate) fn kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let object = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "one {kind} is expected");
    object
}

#[test]
fn helm_finds_no_fault() {
    let output = helm(&["lint", "--strict"]);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn values_that_make_no_sense_are_refused_by_name() {
    for (value, names) in [
        ("imagee.tag=1", "imagee"),
        ("image.tag=a b", "/image/tag"),
        ("image.repository=localhost/millrace:1", "/image/repository"),
        ("image.digest=sha256:12", "/image/digest"),
        ("http.port=0", "/http/port"),
        ("http.host=localhost", "/http/host"),
        ("maxUnavailable=0", "/maxUnavailable"),
        ("maxUnavailable=0%", "/maxUnavailable"),
        ("cni.binDir=opt/cni/bin", "/cni/binDir"),
        ("config.nodeName=a", "/config/nodeName"),
        ("config.paths.state=/x", "/config/paths"),
        ("metrics.podMonitor.enabled=true", "http.host"),
    ] {
        let refusal = render(&[value]).expect_err(value);
        // helm spells a path with dots or with slashes, by release.
        let refusal = refusal.replace('.', "/");
        assert!(refusal.contains(&names.replace('.', "/")), "{value}: {refusal}");
    }
}

#[test]
fn settings_reach_the_agent_and_roll_its_pods() {
    let default = render(&[]).unwrap();
    let changed = render(&["config.routing=direct", "config.masquerade.enabled=false"]).unwrap();
    let text = |objects: &[Value]| {
        let data = &kind(objects, "ConfigMap")["data"]["config.yaml"];
        data.as_str().unwrap().to_owned()
    };
    let config: Value = serde_saphyr::from_str(&text(&changed)).unwrap();
    assert_eq!(
        config,
        serde_json::json!({"routing": "direct", "masquerade": {"enabled": false}})
    );
    let template = |objects: &[Value]| kind(objects, "DaemonSet")["spec"]["template"].clone();
    assert_ne!(template(&default), template(&changed));
    assert_eq!(template(&changed), {
        template(&render(&["config.masquerade.enabled=false", "config.routing=direct"]).unwrap())
    });
}

#[test]
fn an_image_is_named_by_tag_or_digest() {
    let image = |values: &[&str]| {
        let objects = render(values).unwrap();
        kind(&objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]["image"].clone()
    };
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(image(&[]), format!("localhost/millrace:{version}"));
    assert_eq!(
        image(&["image.repository=r.example:5000/net/millrace", "image.tag=v2"]),
        "r.example:5000/net/millrace:v2"
    );
    let digest = format!("sha256:{}", "a".repeat(64));
    assert_eq!(
        image(&[&format!("image.digest={digest}"), "image.tag=v2"]),
        format!("localhost/millrace@{digest}")
    );
}

#[test]
fn probes_follow_the_address_that_is_served() {
    for (host, served, probed) in [
        ("127.0.0.1", "127.0.0.1:9765", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0:9765", "127.0.0.1"),
        ("::", "[::]:9765", "::1"),
    ] {
        let objects = render(&[&format!("http.host={host}")]).unwrap();
        let agent = &kind(&objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0];
        let variables = agent["env"].as_array().unwrap();
        assert!(variables.contains(&serde_json::json!({"name": "MILLRACE_HTTP", "value": served})));
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert_eq!(agent[probe]["httpGet"]["host"], probed, "{probe}");
        }
    }
}

#[test]
fn prometheus_finds_the_pods() {
    let objects = render(&["metrics.podMonitor.enabled=true", "http.host=0.0.0.0"]).unwrap();
    let monitor = &kind(&objects, "PodMonitor")["spec"];
    let template = &kind(&objects, "DaemonSet")["spec"]["template"];
    let wanted = monitor["selector"]["matchLabels"].as_object().unwrap();
    for (label, value) in wanted {
        assert_eq!(&template["metadata"]["labels"][label], value);
    }
    let ports = template["spec"]["containers"][0]["ports"].as_array().unwrap();
    let port = &monitor["podMetricsEndpoints"][0]["port"];
    assert!(ports.iter().any(|declared| &declared["name"] == port));
}

#[test]
fn the_dashboard_is_handed_to_grafana_as_it_is() {
    let objects = render(&["metrics.dashboard.enabled=true"]).unwrap();
    let mut maps = objects
        .iter()
        .filter(|object| object["metadata"]["name"] == "millrace-dashboard");
    let handed = maps.next().unwrap()["data"]["millrace.json"].as_str().unwrap();
    let handed: Value = serde_json::from_str(handed).unwrap();
    let file: Value =
        serde_json::from_str(&fs::read_to_string(chart().join("dashboard.json")).unwrap()).unwrap();
    assert_eq!(handed, file);
    let panels = file["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
}

#[test]
fn the_chart_is_of_this_release() {
    let text = fs::read_to_string(chart().join("Chart.yaml")).unwrap();
    let description: Value = serde_saphyr::from_str(&text).unwrap();
    for key in ["version", "appVersion"] {
        assert_eq!(description[key], env!("CARGO_PKG_VERSION"), "{key}");
    }
}
