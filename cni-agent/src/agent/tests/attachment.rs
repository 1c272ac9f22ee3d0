//! What the plugin asks for, over the socket.

use super::*;

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
        assert_eq!(
            kernel
                .links
                .values()
                .filter(|link| link.ifindex == 50 && link.current)
                .count(),
            2
        );
        assert_eq!(
            kernel
                .routes
                .values()
                .filter(|route| route.ifindex() == Some(50))
                .count(),
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
async fn rel_43_a_storm_of_110_parallel_adds_and_dels_leaves_nothing() {
    let mut machine = Machine::new();
    let handle = machine.start().await;
    let machine = Arc::new(machine);
    let mut adds = JoinSet::new();
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
    let mut dels = JoinSet::new();
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
                finishes: false,
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
