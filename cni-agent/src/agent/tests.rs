use std::{collections::BTreeSet, net::IpAddr, path::Path};

use cni_plugin::{
    Attachment, CniError, code, host_ifname,
    rpc::{Allocate, Allocated, Check, Client, Gc, Program, Release, Status as StatusRequest},
};
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle};

use super::*;
use crate::{config::Routing, kernel::fake::FakeKernel, model::Device};

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
            })?;
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
            .endpoints
            .keys()
            .map(|addr| IpAddr::from(*addr))
            .collect()
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

#[tokio::test(flavor = "multi_thread")]
async fn rel_31_add_returns_when_the_endpoint_is_in_the_kernel_and_del_when_it_is_not() {
    let mut machine = Machine::new();
    machine.start().await;
    let allocated = machine.add("a", 50).await.unwrap();
    assert_eq!(allocated.addresses.len(), 2);
    assert_eq!(allocated.mtu, 1500);
    assert_eq!(
        machine.pods_in_kernel(),
        allocated.addresses.iter().map(|net| net.ip()).collect()
    );
    {
        let kernel = machine.kernel.lock();
        assert!(kernel.veths[&allocated.host_ifname].up);
        assert_eq!(
            kernel
                .links
                .values()
                .filter(|link| link.ifindex == 50 && link.current)
                .count(),
            2
        );
        assert_eq!(
            kernel.routes.values().filter(|route| route.ifindex == 50).count(),
            2
        );
    }
    machine.del("a").await.unwrap();
    assert!(machine.pods_in_kernel().is_empty());
    assert!(machine.kernel.lock().veths.is_empty());
    machine.del("a").await.unwrap();
    machine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_changed_before_every_source_has_spoken_and_an_early_add_waits() {
    let mut machine = Machine::new();
    machine.start().await;
    let first = machine.add("a", 50).await.unwrap();
    machine.kill().await;
    machine.kernel.lock().log.clear();
    let handle = machine.start_deaf().await;
    until(&handle, |status| {
        status
            .sources
            .get(&Source::Files)
            .is_some_and(|source| source.synced)
    })
    .await;
    let error = machine
        .plugin(|client| client.status(StatusRequest::default()))
        .await
        .unwrap_err();
    assert_eq!(error.code, code::NOT_AVAILABLE);
    assert!(error.details.contains("devices"), "{error}");
    assert_eq!(machine.kernel.lock().log, []);
    let (early, ()) = tokio::join!(machine.add("b", 51), async {
        handle
            .events
            .send(Event::Devices(Machine::devices()))
            .await
            .unwrap();
        handle.events.send(Event::Synced(Source::Devices)).await.unwrap();
    });
    let second = early.unwrap();
    let wanted = first
        .addresses
        .iter()
        .chain(&second.addresses)
        .map(|net| net.ip())
        .collect();
    assert_eq!(machine.pods_in_kernel(), wanted);
    machine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rel_28_a_killed_agent_comes_back_and_deletes_nothing() {
    let mut machine = Machine::new();
    machine.start().await;
    for (i, container) in ["a", "b", "c"].into_iter().enumerate() {
        machine.add(container, 50 + i as u32).await.unwrap();
    }
    let tables = machine.kernel.lock().tables.clone();
    let routes = machine.kernel.lock().routes.clone();
    machine.kill().await;
    machine.kernel.lock().log.clear();
    machine.start().await;
    let kernel = machine.kernel.lock();
    assert_eq!(kernel.tables, tables);
    assert_eq!(kernel.routes, routes);
    use crate::reconcile::Change;
    let harmless = |change: &Change| matches!(change, Change::Load(_) | Change::Attach { .. });
    assert!(kernel.log.iter().all(harmless), "{:?}", kernel.log);
}

#[tokio::test(flavor = "multi_thread")]
async fn cni_08_a_plugin_that_dies_between_allocate_and_program_leaves_nothing() {
    let mut machine = Machine::new();
    let handle = machine.start().await;
    let kernel = machine.kernel.clone();
    machine
        .plugin(move |client| {
            let allocated = client.allocate(allocate("a"))?;
            kernel.add_veth(&allocated.host_ifname, 50);
            Ok(())
        })
        .await
        .unwrap();
    until(&handle, |status| {
        status.endpoints.is_empty() && status.pools.iter().all(|pool| pool.used == 0)
    })
    .await;
    machine.add("b", 51).await.unwrap();
    assert_eq!(
        machine.kernel.lock().veths.keys().collect::<Vec<_>>(),
        [&host_ifname("b", "eth0")]
    );
    machine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_was_queued_while_nobody_ran_is_carried_out_first() {
    let mut machine = Machine::new();
    machine.start().await;
    machine.add("a", 50).await.unwrap();
    let kept = machine.add("b", 51).await.unwrap();
    machine.kill().await;
    queue::push(&machine.config.paths.state, &release("a")).unwrap();
    machine.start_deaf().await;
    // Before any source has spoken.
    let pods: BTreeSet<IpAddr> = kept.addresses.iter().map(|net| net.ip()).collect();
    machine
        .plugin(|client| client.status(StatusRequest::default()))
        .await
        .unwrap_err();
    assert_eq!(machine.pods_in_kernel(), pods);
    assert!(queue::list(&machine.config.paths.state).unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn rel_33_after_a_reboot_no_address_is_leaked_or_given_at_once() {
    let mut machine = Machine::new();
    machine.config.pod_cidrs = vec!["10.9.0.0/29".parse().unwrap()];
    machine.config.families = crate::config::Families::V4;
    machine.start().await;
    let before = machine.add("a", 50).await.unwrap();
    machine.kill().await;
    // Everything that the kernel held is gone.
    *machine.kernel.lock() = Default::default();
    let handle = machine.start().await;
    until(&handle, |status| status.endpoints.is_empty()).await;
    let pools = handle.status.borrow().pools.clone();
    assert_eq!((pools[0].used, pools[0].quarantined), (0, 1));
    let mut given = BTreeSet::new();
    for i in 0..4 {
        given.extend(machine.add(&format!("n{i}"), 60 + i).await.unwrap().addresses);
    }
    assert!(!given.contains(&before.addresses[0]));
    let error = machine.add("one-too-many", 70).await.unwrap_err();
    assert_eq!(error.code, code::NO_ADDRESS);
    let error = machine
        .plugin(|client| client.status(StatusRequest::default()))
        .await
        .unwrap_err();
    assert_eq!(error.code, code::NOT_AVAILABLE);
    assert!(
        handle
            .status
            .borrow()
            .problems
            .iter()
            .any(|problem| problem.contains("no address is left"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rel_43_a_storm_of_110_parallel_adds_and_dels_leaves_nothing() {
    let mut machine = Machine::new();
    let handle = machine.start().await;
    let machine = Arc::new(machine);
    let mut adds = tokio::task::JoinSet::new();
    for i in 0..110u32 {
        let machine = Arc::clone(&machine);
        adds.spawn(async move { machine.add(&format!("storm-{i}"), 100 + i).await });
    }
    let added: Vec<Allocated> = adds.join_all().await.into_iter().map(Result::unwrap).collect();
    let addresses: BTreeSet<IpAddr> = added
        .iter()
        .flat_map(|allocated| allocated.addresses.iter().map(|net| net.ip()))
        .collect();
    assert_eq!(addresses.len(), 220);
    assert_eq!(machine.pods_in_kernel(), addresses);
    let mut dels = tokio::task::JoinSet::new();
    for i in 0..110u32 {
        let machine = Arc::clone(&machine);
        dels.spawn(async move { machine.del(&format!("storm-{i}")).await });
    }
    assert!(dels.join_all().await.iter().all(Result::is_ok));
    until(&handle, |status| status.endpoints.is_empty()).await;
    assert!(machine.pods_in_kernel().is_empty());
    assert!(machine.kernel.lock().veths.is_empty());
    let left = std::fs::read_dir(machine.config.paths.state.join("endpoints"))
        .unwrap()
        .count();
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_disappears_takes_its_endpoint_with_it() {
    let mut machine = Machine::new();
    let handle = machine.start().await;
    let allocated = machine.add("a", 50).await.unwrap();
    machine.kernel.remove_veth(&allocated.host_ifname);
    // Any event leads to a look.
    let mut devices = Machine::devices();
    devices[0].mtu = 1400;
    handle.events.send(Event::Devices(devices)).await.unwrap();
    until(&handle, |status| status.endpoints.is_empty()).await;
    machine.stop().await;
    assert!(machine.pods_in_kernel().is_empty());
    assert!(
        machine
            .kernel
            .lock()
            .links
            .keys()
            .all(|key| matches!(key.owner, crate::desired::LinkOwner::Netdev(_)))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_what_is_missing_and_gc_collects_what_is_not_listed() {
    let mut machine = Machine::new();
    machine.start().await;
    let a = machine.add("a", 50).await.unwrap();
    machine.add("b", 51).await.unwrap();
    let check = |container: &str| {
        let check = Check {
            network: "net".into(),
            container_id: container.into(),
            ifname: "eth0".into(),
            ..Check::default()
        };
        machine.plugin(move |client| client.check(check))
    };
    assert_eq!(check("a").await.unwrap().addresses, a.addresses);
    assert_eq!(check("x").await.unwrap_err().code, code::UNKNOWN_CONTAINER);
    machine.kernel.lock().tables.peers.clear();
    let error = check("a").await.unwrap_err();
    assert_eq!(error.code, code::CHECK_FAILED);
    assert!(error.details.contains("peers"), "{error}");
    let gc = |network: &str| {
        let gc = Gc {
            network: network.into(),
            valid: vec![Attachment::new("a", "eth0")],
        };
        machine.plugin(move |client| client.gc(gc))
    };
    assert_eq!(gc("another").await.unwrap().released, []);
    assert_eq!(gc("net").await.unwrap().released, [Attachment::new("b", "eth0")]);
    assert_eq!(
        machine.pods_in_kernel(),
        a.addresses.iter().map(|net| net.ip()).collect()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_cannot_be_programmed_fails_alone_and_can_be_tried_again() {
    let mut machine = Machine::new();
    machine.start().await;
    machine.kernel.lock().faults.push("attach endpoint/1/".into());
    let error = machine.add("a", 50).await.unwrap_err();
    assert_eq!(error.code, code::TRY_AGAIN_LATER);
    assert!(error.details.contains("injected"), "{error}");
    machine.add("b", 51).await.unwrap();
    machine.kernel.lock().faults.clear();
    machine.add("a", 52).await.unwrap();
    assert_eq!(machine.pods_in_kernel().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn rel_20_an_annotation_is_ignored_unless_it_is_allowed() {
    let pod = "
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: n, annotations: {millrace.dev/addresses: '10.1.0.99'}}
spec: {nodeName: one}
";
    for (allowed, wanted) in [(false, "10.1.0.2/32"), (true, "10.1.0.99/32")] {
        let mut machine = Machine::new();
        machine.config.ipam.static_addresses = allowed;
        std::fs::write(machine.folder.path().join("manifests/pod.yaml"), pod).unwrap();
        machine.start().await;
        let mut request = allocate("a");
        request.pod = Some(cni_plugin::rpc::Pod {
            namespace: "n".into(),
            name: "p".into(),
            ..Default::default()
        });
        let allocated = machine
            .plugin(move |client| client.allocate(request))
            .await
            .unwrap();
        assert_eq!(allocated.addresses[0].to_string(), wanted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn delegated_addresses_are_used_as_they_are_and_given_back_to_nobody() {
    let mut machine = Machine::new();
    let handle = machine.start().await;
    let mut request = allocate("a");
    request.delegated_ips = vec!["172.30.0.5/16".parse().unwrap()];
    let kernel = machine.kernel.clone();
    let allocated = machine
        .plugin(move |client| {
            let allocated = client.allocate(request)?;
            kernel.add_veth(&allocated.host_ifname, 50);
            client.program(Program {
                endpoint_id: allocated.endpoint_id,
                host_ifindex: 50,
            })?;
            Ok(allocated)
        })
        .await
        .unwrap();
    assert_eq!(allocated.addresses, ["172.30.0.5/32".parse().unwrap()]);
    assert_eq!(allocated.gateways.len(), 1);
    machine.del("a").await.unwrap();
    until(&handle, |status| status.endpoints.is_empty()).await;
    assert!(
        handle
            .status
            .borrow()
            .pools
            .iter()
            .all(|pool| pool.used + pool.quarantined == 0)
    );
    let resting = std::fs::read_dir(machine.config.paths.state.join("addresses"))
        .unwrap()
        .count();
    assert_eq!(resting, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rel_14_the_socket_is_roots_alone() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let mut machine = Machine::new();
    machine.start().await;
    let metadata = std::fs::metadata(machine.socket()).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_tunnel_mode_the_device_comes_first_and_everything_else_when_it_is_there() {
    let mut machine = Machine::new();
    machine.config.routing = Routing::Vxlan;
    let handle = machine.start_deaf().await;
    handle
        .events
        .send(Event::Devices(Machine::devices()))
        .await
        .unwrap();
    handle.events.send(Event::Synced(Source::Devices)).await.unwrap();
    until(&handle, |status| status.reconcile.rounds > 0).await;
    assert!(!handle.status.borrow().ready);
    assert_eq!(machine.kernel.lock().vxlan.as_ref().unwrap().mtu, 1450);
    assert!(machine.kernel.lock().config.is_none());
    let mut devices = Machine::devices();
    devices.push(FakeKernel::tunnel_device());
    handle.events.send(Event::Devices(devices)).await.unwrap();
    until(&handle, |status| status.ready).await;
    let kernel = machine.kernel.lock();
    assert_eq!(
        kernel.config.unwrap().tunnel_ifindex,
        crate::kernel::fake::TUNNEL_IFINDEX
    );
    assert_eq!(kernel.routes.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_do_not_load_are_said_so_and_refuse_adds_at_once() {
    let mut machine = Machine::new();
    machine.kernel.lock().faults.push("load the programs".into());
    let handle = machine.start_deaf().await;
    handle
        .events
        .send(Event::Devices(Machine::devices()))
        .await
        .unwrap();
    handle.events.send(Event::Synced(Source::Devices)).await.unwrap();
    until(&handle, |status| {
        status.problems.iter().any(|problem| problem.contains("injected"))
    })
    .await;
    let error = machine.add("a", 50).await.unwrap_err();
    assert!(error.details.contains("injected"), "{error}");
    machine.kernel.lock().faults.clear();
    until(&handle, |status| status.ready && status.problems.is_empty()).await;
    machine.add("a", 50).await.unwrap();
}
