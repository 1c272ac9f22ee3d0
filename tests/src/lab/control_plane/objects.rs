//! Objects that a lab's cluster begins with, and those that tests make.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{ControlPlane, ISSUER, keys};
use crate::lab::Plan;

/// The ServiceAccount that agents act as, in `kube-system`, and its ClusterRole.
pub const ACCOUNT: &str = "millrace";
pub const ROLE: &str = "millrace";

impl ControlPlane {
    /// The Node objects of a lab, the agent's role and account as they are deployed, and a token of it.
    pub(in crate::lab) fn register(&self, plan: &Plan) -> Result<()> {
        let nodes: Vec<Value> = (0..plan.nodes).map(|number| node(plan, number)).collect();
        self.apply(&nodes)?;
        nodes.iter().try_for_each(|node| self.set_status(node))?;
        let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/../cni-agent/deploy/base/rbac.yaml");
        self.apply(&[json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": ACCOUNT, "namespace": "kube-system" },
        })])?;
        self.kubectl(&["apply", "-f", rules])?;
        self.define_kinds()?;
        self.renew_token()
    }

    /// Our own kinds, as they are deployed, whoever changed them.
    pub fn define_kinds(&self) -> Result<()> {
        let kinds = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../cni-agent/deploy/crds/millrace.dev.yaml"
        );
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", kinds])?;
        self.kubectl(&[
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "-f",
            kinds,
        ])
        .map(drop)
    }

    /// Writes a fresh token of the agent's account.
    pub fn renew_token(&self) -> Result<()> {
        let token = self.kubectl(&["create", "token", ACCOUNT, "-n", "kube-system"])?;
        fs::write(self.token_file(), token.trim()).context("write the token")
    }

    /// Writes a token of the agent's account that was good until an hour ago.
    pub fn write_expired_token(&self) -> Result<()> {
        let uid = [
            "get",
            "serviceaccount",
            ACCOUNT,
            "-n",
            "kube-system",
            "-o",
            "jsonpath={.metadata.uid}",
        ];
        let uid = self.kubectl(&uid)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let claims = json!({
            "iss": ISSUER, "aud": [ISSUER], "sub": format!("system:serviceaccount:kube-system:{ACCOUNT}"),
            "iat": now - 7_200, "nbf": now - 7_200, "exp": now - 3_600,
            "kubernetes.io": { "namespace": "kube-system", "serviceaccount": { "name": ACCOUNT, "uid": uid } },
        });
        fs::write(self.token_file(), keys::token(&self.folder, &claims)?).context("write the token")
    }

    /// A pod with its addresses, as a kubelet would have made and reported it.
    pub fn run_pod(&self, pod: &Value) -> Result<()> {
        self.apply(std::slice::from_ref(pod))?;
        self.set_status(pod)
    }
}

/// The Node object of a lab's node.
pub fn node(plan: &Plan, number: usize) -> Value {
    let addresses = plan
        .families
        .each()
        .map(|v4| json!({ "type": "InternalIP", "address": plan.node_address(number, v4) }));
    let ranges: Vec<String> = plan.families.each().map(|v4| plan.pod_cidr(number, v4)).collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": format!("node{number}") },
        "spec": { "podCIDR": ranges.first(), "podCIDRs": ranges },
        "status": { "addresses": addresses.collect::<Vec<_>>() },
    })
}

/// A running pod.
pub fn pod(name: &str, node: &str, addresses: &[&str]) -> Value {
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "labels": { "app": name } },
        "spec": { "nodeName": node, "containers": [{ "name": "a", "image": "a" }] },
        "status": { "phase": "Running", "podIP": addresses.first(), "podIPs": ips },
    })
}
