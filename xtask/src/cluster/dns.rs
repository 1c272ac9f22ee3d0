//! CoreDNS as the cluster's DNS, deployed as kubeadm does it.

use anyhow::Result;
use serde_json::{Value, json};

use super::control::apply;
use super::place::Place;
use super::plan::Plan;

pub(crate) const IMAGE: &str = "localhost/coredns:1";
const NAMESPACE: &str = "kube-system";
const NAME: &str = "coredns";
/// The label by which everybody, upstream's specs among them, finds it.
const LABEL: &str = "kube-dns";

const COREFILE: &str = "\
.:53 {
    errors
    health {
        lameduck 1s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf
    cache 30
    reload 2s 1s
    loadbalance
}
";

/// Does not wait: it runs once there is a network.
pub(crate) fn deploy(place: &Place, plan: &Plan) -> Result<()> {
    apply(place, &objects(plan))
}

fn objects(plan: &Plan) -> Value {
    let named = json!({"name": NAME, "namespace": NAMESPACE});
    let role = "system:coredns";
    let addresses: Vec<_> = plan.layouts().iter().map(|layout| layout.dns_service).collect();
    let ports = |key: &str| {
        json!([
            {"name": "dns", key: 53, "protocol": "UDP"},
            {"name": "dns-tcp", key: 53, "protocol": "TCP"},
            {"name": "metrics", key: 9153, "protocol": "TCP"},
        ])
    };
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": role}, "rules": [
            {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ]},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}]},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": named, "data": {"Corefile": COREFILE}},
        {"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": NAMESPACE, "labels": {"k8s-app": LABEL}},
            "spec": {
                "selector": {"k8s-app": LABEL},
                "clusterIP": addresses.first(), "clusterIPs": addresses,
                "ipFamilyPolicy": if addresses.len() > 1 { "RequireDualStack" } else { "SingleStack" },
                "ports": ports("port"),
            }},
        {"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"k8s-app": LABEL}},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": {"k8s-app": LABEL}},
                "strategy": {"rollingUpdate": {"maxUnavailable": 1}},
                "template": {"metadata": {"labels": {"k8s-app": LABEL}}, "spec": pod(&ports("containerPort"))},
            }},
    ]})
}

fn pod(ports: &Value) -> Value {
    json!({
        "serviceAccountName": NAME,
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 100,
            "podAffinityTerm": {
                "topologyKey": "kubernetes.io/hostname",
                "labelSelector": {"matchLabels": {"k8s-app": LABEL}},
            },
        }]}},
        "containers": [{
            "name": NAME,
            "image": IMAGE,
            "imagePullPolicy": "Never",
            "args": ["-conf", "/etc/coredns/Corefile"],
            "volumeMounts": [{"name": "config-volume", "mountPath": "/etc/coredns", "readOnly": true}],
            "ports": ports,
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
            "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}, "initialDelaySeconds": 60},
            "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"memory": "170Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]},
                "readOnlyRootFilesystem": true,
            },
        }],
        "volumes": [{
            "name": "config-volume",
            "configMap": {"name": NAME, "items": [{"key": "Corefile", "path": "Corefile"}]},
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::plan::Family;

    #[test]
    fn the_service_has_an_address_of_every_family() {
        let of = |family| objects(&Plan::without_nodes(family))["items"][4]["spec"].clone();
        assert_eq!(
            of(Family::Dual)["clusterIPs"],
            json!(["10.96.0.10", "fd00:10:96::a"])
        );
        assert_eq!(of(Family::V6)["clusterIP"], "fd00:10:96::a");
        assert_eq!(of(Family::V4)["ipFamilyPolicy"], "SingleStack");
    }

    #[test]
    fn the_selector_finds_the_pods() {
        let objects = objects(&Plan::without_nodes(Family::Dual));
        let (service, deployment) = (&objects["items"][4], &objects["items"][5]);
        assert_eq!(
            service["spec"]["selector"],
            deployment["spec"]["template"]["metadata"]["labels"]
        );
    }
}
