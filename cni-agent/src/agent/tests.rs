use std::{collections::BTreeSet, net::IpAddr, path::Path};

use cni_plugin::{
    Attachment, CniError, code, host_ifname,
    rpc::{Allocate, Allocated, Check, Client, Gc, Program, Release, Status as StatusRequest},
    underway::{self, Underway},
};
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle};

use super::*;
use crate::{
    config::{KubernetesMode, Routing},
    desired::{HostRoute, NeighbourKey, RouteKey},
    kernel::fake::FakeKernel,
    model::Device,
};

const NODES: &str = "
apiVersion: v1
kind: Node
metadata: {name: one}
spec: {podCIDRs: [10.1.0.0/24, 'fd00:1::/64']}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: 2001:db8::1}]}
---
apiVersion: v1
kind: Node
metadata: {name: two}
spec: {podCIDRs: [10.2.0.0/24, 'fd00:2::/64']}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}, {type: InternalIP, address: 2001:db8::2}]}
";

/// One machine: its disk, its kernel, and whichever agent runs on it.
struct Machine {
    folder: TempDir,
    kernel: FakeKernel,
    config: Config,
    running: Option<Running>,
}

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), AgentError>>,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut config = Config {
            node_name: "one".into(),
            routing: Routing::Direct,
            ..Config::default()
        };
        config.kubernetes.mode = KubernetesMode::Disabled;
        config.paths.manifests = path("manifests");
        config.paths.state = path("state");
        config.paths.agent_socket = path("agent.sock");
        std::fs::create_dir(path("manifests")).unwrap();
        std::fs::write(path("manifests/nodes.yaml"), NODES).unwrap();
        Self {
            folder,
            kernel: FakeKernel::default(),
            config,
            running: None,
        }
    }

    fn devices() -> Vec<Device> {
        vec![FakeKernel::device("eth0", 2, &["192.0.2.1/24", "2001:db8::1/64"])]
    }

    /// Starts an agent that has not heard of the devices.
    async fn start_deaf(&mut self) -> Handle {
        let (agent, handle) = Agent::new(self.config.clone(), self.kernel.clone()).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(agent.run(async {
            let _ = stopped.await;
        }));
        self.running = Some(Running { stop, task });
        handle
    }

    async fn start(&mut self) -> Handle {
        let handle = self.start_deaf().await;
        handle.events.send(Event::Devices(Self::devices())).await.unwrap();
        handle.events.send(Event::Synced(Source::Devices)).await.unwrap();
        until(&handle, |status| status.ready).await;
        handle
    }

    /// As SIGKILL does it: nothing is said to anybody.
    async fn kill(&mut self) {
        let running = self.running.take().unwrap();
        running.task.abort();
        let _ = running.task.await;
        // The tasks of a process that was killed are gone at once; these take a moment.
        while std::os::unix::net::UnixStream::connect(self.socket()).is_ok() {
            tokio::task::yield_now().await;
        }
        self.kernel.restart();
    }

    async fn stop(&mut self) {
        let running = self.running.take().unwrap();
        running.stop.send(()).unwrap();
        running.task.await.unwrap().unwrap();
        self.kernel.restart();
    }

    fn socket(&self) -> &Path {
        &self.config.paths.agent_socket
    }

    /// The plugin's side of the conversation.
    async fn plugin<T: Send + 'static>(
        &self,
        talk: impl FnOnce(&mut Client) -> Result<T, CniError> + Send + 'static,
    ) -> Result<T, CniError> {
        let socket = self.socket().to_owned();
        tokio::task::spawn_blocking(move || talk(&mut Client::connect(&socket, Duration::from_secs(20))?))
            .await
            .unwrap()
    }

    /// ADD as the plugin does it, its veth included.
    async fn add(&self, container: &str, ifindex: u32) -> Result<Allocated, CniError> {
        let (request, kernel) = (allocate(container), self.kernel.clone());
        self.plugin(move |client| {
            let allocated = client.allocate(request)?;
            kernel.add_veth(&allocated.host_ifname, ifindex);
            client.program(Program {
                endpoint_id: allocated.endpoint_id,
                host_ifindex: ifindex,
                finishes: false,
            })?;
            bring_up(&kernel, &allocated, ifindex);
            Ok(allocated)
        })
        .await
    }

    async fn del(&self, container: &str) -> Result<(), CniError> {
        let request = release(container);
        self.plugin(move |client| client.release(request)).await
    }

    fn pods_in_kernel(&self) -> BTreeSet<IpAddr> {
        self.kernel
            .lock()
            .tables
            .addresses
            .keys()
            .map(|addr| IpAddr::from(*addr))
            .collect()
    }
}

/// What the plugin does when its endpoint is programmed.
fn bring_up(kernel: &FakeKernel, allocated: &Allocated, ifindex: u32) {
    let mut kernel = kernel.lock();
    if let Some(veth) = kernel.veths.get_mut(&allocated.host_ifname) {
        veth.up = true;
    }
    for address in &allocated.addresses {
        let route = HostRoute::on_link(ifindex);
        kernel.routes.insert(
            RouteKey {
                destination: *address,
            },
            route,
        );
        kernel.neighbours.insert(
            NeighbourKey {
                ifindex,
                ip: address.ip(),
            },
            allocated.mac.0,
        );
    }
}

fn allocate(container: &str) -> Allocate {
    Allocate {
        network: "net".into(),
        container_id: container.into(),
        ifname: "eth0".into(),
        netns: "/run/netns/x".into(),
        ..Allocate::default()
    }
}

fn release(container: &str) -> Release {
    Release {
        network: "net".into(),
        container_id: container.into(),
        ifname: "eth0".into(),
    }
}

async fn until(handle: &Handle, wanted: impl FnMut(&Arc<Status>) -> bool) {
    let mut status = handle.status.clone();
    let wait = status.wait_for(wanted);
    if tokio::time::timeout(Duration::from_secs(20), wait).await.is_err() {
        panic!("the status never came to be: {:#?}", handle.status.borrow());
    }
}

/// Whether it comes to be. Nobody tells of what is asked here.
async fn comes_true(mut is: impl FnMut() -> bool) -> bool {
    for _ in 0..2000 {
        if is() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

mod attachment;
mod pods;
mod restart;
mod services;
