//! What users apply, as a real API server takes it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use cni_tests::lab::{ControlPlane, Families, Lab, Plan, Routing};
use serde_json::json;

use crate::{eventually, needs_control_plane};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cni-agent/deploy")
}

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

/// What the chart gives for these values.
fn chart(values: &[&str]) -> String {
    let mut helm = Command::new("helm");
    helm.args(["template", "millrace"])
        .arg(deploy().join("helm/millrace"));
    helm.args(["--namespace", "kube-system", "--include-crds"]);
    said(helm.args(values.iter().flat_map(|value| ["--set", *value])))
}

/// With every field looked at: one that the server does not know would be dropped without a word otherwise.
fn strictly(control: &ControlPlane, objects: &str) -> anyhow::Result<()> {
    let words = [
        "apply",
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
        "-f",
        "-",
    ];
    control.feed(&words, objects)
}

/// A kind of the Prometheus operator, which is not here.
fn define_pod_monitors(control: &ControlPlane) {
    let anything = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let schema = json!({ "openAPIV3Schema": { "type": "object", "properties": { "spec": anything } } });
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": "podmonitors.monitoring.coreos.com",
            "annotations": { "api-approved.kubernetes.io": "unapproved, of a test" },
        },
        "spec": {
            "group": "monitoring.coreos.com", "scope": "Namespaced",
            "names": { "kind": "PodMonitor", "plural": "podmonitors", "singular": "podmonitor" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": schema }],
        },
    });
    control.apply(&[definition]).unwrap();
    eventually(|| {
        let found = control.kubectl(&["get", "podmonitors"]);
        found.err().map(|error| error.to_string())
    });
}

#[test]
fn the_chart_is_taken_by_the_api_server_with_every_field() {
    needs_control_plane!();
    let (control, _lab) =
        Lab::start_with_control_plane(Plan::new(Routing::Direct, Families::Dual).nodes(1)).unwrap();
    define_pod_monitors(&control);
    for values in [
        &[][..],
        &["config.services.proxy=millrace", "config.routing=direct"],
        &["http.host=0.0.0.0", "metrics.podMonitor.enabled=true"],
        &["metrics.dashboard.enabled=true", "rcuExpedited=false"],
        &[
            "image.repository=registry.example/net/millrace",
            "image.pullSecrets[0]=key",
            "podLabels.a=b",
            "nodeSelector.a=b",
            "serviceAccount.name=other",
            "maxUnavailable=1",
        ],
    ] {
        if let Err(error) = strictly(&control, &chart(values)) {
            panic!("{values:?}: {error}");
        }
    }
    // The server does look.
    let misspelt = chart(&[]).replace("hostNetwork:", "hostNetwrok:");
    let error = strictly(&control, &misspelt).unwrap_err().to_string();
    assert!(error.contains("hostNetwrok"), "{error}");
}

#[test]
fn every_overlay_is_taken_by_the_api_server_with_every_field() {
    needs_control_plane!();
    let (control, lab) =
        Lab::start_with_control_plane(Plan::new(Routing::Direct, Families::Dual).nodes(1)).unwrap();
    // The way off, as the README has a user make it; kustomize takes no absolute path.
    let off = Path::new(env!("CARGO_TARGET_TMPDIR")).join(lab.name());
    let up = "../../../cni-agent/deploy";
    let overlay = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": [format!("{up}/base")], "components": [format!("{up}/components/uninstall")],
    });
    fs::create_dir_all(&off).unwrap();
    fs::write(off.join("kustomization.yaml"), overlay.to_string()).unwrap();
    let overlays = fs::read_dir(deploy().join("overlays")).unwrap();
    let mut folders: Vec<PathBuf> = overlays.map(|entry| entry.unwrap().path()).collect();
    assert!(!folders.is_empty());
    folders.extend([deploy().join("crds"), deploy().join("base"), off.clone()]);
    for folder in folders {
        let objects = control.kubectl(&["kustomize", folder.to_str().unwrap()]).unwrap();
        if let Err(error) = strictly(&control, &objects) {
            panic!("{}: {error}", folder.display());
        }
    }
    fs::remove_dir_all(off).unwrap();
}
