//! Millrace on the cluster, as a user installs it: the image's archive on every node, then `kubectl apply` of an overlay of
//! `cni-agent/deploy`.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::control::kubectl;
use super::keys::server;
use super::node::CGROUP;
use super::place::{Place, write};
use super::plan::{Plan, Proxy, Routing};
use crate::image::Image;
use crate::process::output;
use crate::workspace;

const DEPLOY: &str = "cni-agent/deploy";

/// Compiles what is installed.
pub(crate) fn build() -> Result<()> {
    Image::default().run()
}

pub(crate) fn deploy(place: &Place, plan: &Plan) -> Result<()> {
    let folder = place.folder().join("millrace");
    write(&folder.join("kustomization.yaml"), overlay(&folder)?.to_string())?;
    write(&folder.join("config.yaml"), settings(plan).to_string())?;
    let mut apply = kubectl(place);
    // As in `control::apply`; and definitions are too big for an annotation.
    apply.args(["apply", "--server-side", "--validate=false", "--kustomize"]);
    output(apply.arg(folder))?;
    Ok(())
}

/// The base with this cluster's settings. Kustomize takes no absolute path.
fn overlay(folder: &Path) -> Result<Value> {
    let inside = folder
        .strip_prefix(workspace::root())
        .context("the cluster's folder is not in this tree")?;
    let up: String = inside.components().map(|_| "../").collect();
    Ok(json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [format!("{up}{DEPLOY}/base")],
        "patches": [{
            "target": {"kind": "DaemonSet", "name": "millrace"},
            "patch": json!({
                "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "millrace"},
                "spec": {"template": {"spec": {"volumes": [{"name": "cgroup", "hostPath": {"path": CGROUP}}]}}},
            }).to_string(),
        }],
        "configMapGenerator": [{
            "name": "millrace-config", "namespace": "kube-system", "behavior": "merge", "files": ["config.yaml"],
        }],
    }))
}

/// What differs from the agent's defaults.
fn settings(plan: &Plan) -> Value {
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    let proxy = if plan.proxy() == Proxy::Millrace {
        "millrace"
    } else {
        "stack"
    };
    json!({
        "families": plan.family,
        "routing": plan.routing.unwrap_or(Routing::Vxlan),
        // Nobody serves the address of the Service `kubernetes` before there is a network.
        "kubernetes": {"apiServers": [server(plan)]},
        // External addresses as kube-proxy serves them always; beside it they are its business, and no setting of ours.
        "services": {"proxy": proxy, "externalIPs": proxy == "millrace"},
        // hostPorts go the way of Services: through the host's stack.
        "cni": {"chained": Vec::from_iter(plan.proxy().is_kube_proxy().then_some(portmap))},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::plan::Family;

    #[test]
    fn the_overlay_finds_the_base_from_the_clusters_folder() {
        let place: Place = "test".parse().unwrap();
        let folder = place.folder().join("millrace");
        let overlay = overlay(&folder).unwrap();
        let base = folder.join(overlay["resources"][0].as_str().unwrap());
        assert!(base.ends_with("target/cluster/test/millrace/../../../../cni-agent/deploy/base"));
    }

    #[test]
    fn settings_are_the_plans() {
        let plan = Plan {
            proxy: Some(Proxy::KubeProxyNft),
            family: Family::V6,
            routing: Some(Routing::Direct),
            ..Plan::default()
        };
        let settings = settings(&plan);
        assert_eq!(settings["families"], "v6");
        assert_eq!(settings["routing"], "direct");
        assert_eq!(
            settings["kubernetes"]["apiServers"][0],
            "https://[fd00:77::1]:6443"
        );
        assert_eq!(settings["cni"]["chained"][0]["type"], "portmap");
        assert_eq!(
            settings["services"],
            json!({"proxy": "stack", "externalIPs": false})
        );
    }
}
