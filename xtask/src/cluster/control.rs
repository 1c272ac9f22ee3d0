//! The control plane: etcd, the API server, the controller-manager and the scheduler, in the fabric's namespace.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::daemon::Daemon;
use super::keys::API_PORT;
use super::namespace::inside;
use super::place::Place;
use super::plan::Plan;
use super::programs::program;
use crate::process::{command, output};

/// `kubectl` with the administrator's rights.
pub(crate) fn kubectl(place: &Place) -> Command {
    let mut kubectl = command(program("kubectl"));
    kubectl.arg("--kubeconfig").arg(place.kubeconfig());
    kubectl
}

/// Creates or changes objects.
pub(crate) fn apply(place: &Place, objects: &serde_json::Value) -> Result<()> {
    let mut apply = kubectl(place);
    // To check them kubectl would fetch megabytes of schema, which takes a busy machine longer than kubectl waits.
    apply.args(["apply", "--server-side", "--validate=false", "--filename=-"]);
    let mut child = apply
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start kubectl")?;
    if let Some(mut input) = child.stdin.take() {
        // If it ends before it has read all, its own words tell why.
        let _ = input.write_all(objects.to_string().as_bytes());
    }
    let output = child.wait_with_output().context("waiting for kubectl")?;
    if !output.status.success() {
        bail!(
            "kubectl apply: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Starts etcd and the API server; give them time with [`ready`].
pub(crate) fn start_api(place: &Place, plan: &Plan) -> Result<Daemon> {
    start(place, "etcd", etcd(place))?;
    start(place, "kube-apiserver", api_server(place, plan))
}

/// Waits until the API server says that it is.
pub(crate) fn ready(place: &Place, api: &mut Daemon) -> Result<()> {
    // A program's start is dear: first see that somebody listens.
    let listens = || {
        let mut look = inside(&place.fabric(), "ss");
        let port = format!("sport = :{API_PORT}");
        output(look.args(["--listening", "--tcp", "--no-header", &port])).is_ok_and(|text| !text.is_empty())
    };
    api.wait(listens)?;
    api.wait(|| output(kubectl(place).args(["get", "--raw", "/readyz"])).is_ok())
}

pub(crate) fn start_controller_manager(place: &Place, plan: &Plan) -> Result<()> {
    start(place, "kube-controller-manager", controller_manager(place, plan)).map(drop)
}

pub(crate) fn start_scheduler(place: &Place) -> Result<()> {
    start(place, "kube-scheduler", scheduler(place)).map(drop)
}

fn start(place: &Place, name: &str, arguments: Vec<String>) -> Result<Daemon> {
    let mut command = inside(&place.fabric(), program(name));
    command.args(arguments);
    Daemon::start(place, name, command)
}

const ETCD_CLIENTS: &str = "http://127.0.0.1:2379";
const ETCD_PEERS: &str = "http://127.0.0.1:2380";

fn etcd(place: &Place) -> Vec<String> {
    let folder = place.folder().join("etcd");
    vec![
        "--name=millrace".to_owned(),
        format!("--data-dir={}", folder.display()),
        format!("--listen-client-urls={ETCD_CLIENTS}"),
        format!("--advertise-client-urls={ETCD_CLIENTS}"),
        format!("--listen-peer-urls={ETCD_PEERS}"),
        format!("--initial-advertise-peer-urls={ETCD_PEERS}"),
        format!("--initial-cluster=millrace={ETCD_PEERS}"),
        // Nothing here outlives the machine's power.
        "--unsafe-no-fsync".to_owned(),
    ]
}

fn api_server(place: &Place, plan: &Plan) -> Vec<String> {
    let key = |file: &str| place.keys().join(file).display().to_string();
    vec![
        format!("--etcd-servers={ETCD_CLIENTS}"),
        format!("--advertise-address={}", plan.first().api),
        // Both families, whichever the cluster has: the gateway calls the loopback's IPv4 address.
        "--bind-address=::".to_owned(),
        format!("--secure-port={API_PORT}"),
        format!(
            "--service-cluster-ip-range={}",
            plan.list(|layout| layout.services.to_owned())
        ),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        // The API server is no node: Service addresses lead nowhere from here, pods can be reached.
        "--enable-aggregator-routing=true".to_owned(),
        format!("--client-ca-file={}", key("ca.crt")),
        format!("--tls-cert-file={}", key("apiserver.crt")),
        format!("--tls-private-key-file={}", key("apiserver.key")),
        format!("--kubelet-certificate-authority={}", key("ca.crt")),
        format!("--kubelet-client-certificate={}", key("apiserver-kubelet.crt")),
        format!("--kubelet-client-key={}", key("apiserver-kubelet.key")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!("--service-account-key-file={}", key("accounts.pub")),
        format!("--service-account-signing-key-file={}", key("accounts.key")),
        format!("--requestheader-client-ca-file={}", key("front-ca.crt")),
        "--requestheader-allowed-names=front-proxy-client".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        format!("--proxy-client-cert-file={}", key("front-proxy.crt")),
        format!("--proxy-client-key-file={}", key("front-proxy.key")),
    ]
}

fn controller_manager(place: &Place, plan: &Plan) -> Vec<String> {
    let key = |file: &str| place.keys().join(file).display().to_string();
    let mut arguments = component(place, "controller-manager");
    arguments.extend([
        // With the defaults the first ServiceAccount is five seconds late.
        "--kube-api-qps=200".to_owned(),
        "--kube-api-burst=400".to_owned(),
        "--allocate-node-cidrs=true".to_owned(),
        format!("--cluster-cidr={}", plan.list(|layout| layout.pods.to_owned())),
        format!(
            "--service-cluster-ip-range={}",
            plan.list(|layout| layout.services.to_owned())
        ),
        "--use-service-account-credentials=true".to_owned(),
        format!("--root-ca-file={}", key("ca.crt")),
        format!("--service-account-private-key-file={}", key("accounts.key")),
        format!("--cluster-signing-cert-file={}", key("ca.crt")),
        format!("--cluster-signing-key-file={}", key("ca.key")),
    ]);
    // The option without a family is refused in a dual cluster, those with one in a single cluster.
    match plan.layouts() {
        [only] => arguments.push(format!("--node-cidr-mask-size={}", only.node_pods)),
        both => arguments.extend(both.iter().map(|layout| {
            format!(
                "--node-cidr-mask-size-{}={}",
                layout.node_pods_option, layout.node_pods
            )
        })),
    }
    arguments
}

fn scheduler(place: &Place) -> Vec<String> {
    component(place, "scheduler")
}

/// What the controller-manager and the scheduler have in common.
fn component(place: &Place, name: &str) -> Vec<String> {
    let kubeconfig = place.keys().join(name).with_extension("kubeconfig");
    let kubeconfig = kubeconfig.display();
    vec![
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        "--bind-address=127.0.0.1".to_owned(),
        "--leader-elect=false".to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::plan::Family;

    fn place() -> Place {
        "test".parse().unwrap()
    }

    #[test]
    fn one_family_has_one_mask_and_two_have_two() {
        let masks = |family| {
            let arguments = controller_manager(&place(), &Plan::without_nodes(family));
            let masks = arguments
                .into_iter()
                .filter(|argument| argument.contains("mask-size"));
            masks.collect::<Vec<_>>()
        };
        assert_eq!(masks(Family::V6), ["--node-cidr-mask-size=64"]);
        assert_eq!(
            masks(Family::Dual),
            ["--node-cidr-mask-size-ipv4=24", "--node-cidr-mask-size-ipv6=64"]
        );
    }

    #[test]
    fn the_api_server_gives_services_addresses_of_the_chosen_families() {
        let arguments = api_server(&place(), &Plan::without_nodes(Family::V4));
        assert!(arguments.contains(&"--service-cluster-ip-range=10.96.0.0/16".to_owned()));
        assert!(arguments.contains(&"--advertise-address=192.168.77.1".to_owned()));
    }
}
