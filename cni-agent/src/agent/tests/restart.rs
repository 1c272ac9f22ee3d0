//! Beginning, ending, and what happened in between.

use super::*;

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
    let harmless = |change: &Change| {
        matches!(
            change,
            Change::Load(_) | Change::Attach { .. } | Change::CarryOver
        )
    };
    assert!(kernel.log.iter().all(harmless), "{:?}", kernel.log);
}

#[tokio::test(flavor = "multi_thread")]
async fn rel_31_a_deletion_that_was_queued_while_nobody_ran_is_carried_out_first() {
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
    // Nothing answers while it starts, so only a look tells when it is through.
    let done = async {
        while machine.pods_in_kernel() != pods
            || !queue::list(&machine.config.paths.state).unwrap().is_empty()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), done)
        .await
        .unwrap_or_else(|_| panic!("{:?} instead of {pods:?}", machine.pods_in_kernel()));
}

#[tokio::test(flavor = "multi_thread")]
async fn cni_08_what_a_plugin_has_begun_that_died_with_the_agent_is_taken_back_and_what_goes_on_is_kept() {
    let mut machine = Machine::new();
    machine.start().await;
    for (i, container) in ["complete", "dead", "dies", "goes-on"].into_iter().enumerate() {
        machine.add(container, 50 + i as u32).await.unwrap();
    }
    let state = machine.config.paths.state.clone();
    let begin = |container: &str| Underway::begin(&state, &Attachment::new(container, "eth0")).unwrap();
    drop(begin("dead"));
    let (dies, goes_on) = (begin("dies"), begin("goes-on"));
    machine.kill().await;
    let handle = machine.start().await;
    let left = |status: &Arc<Status>| -> Vec<String> {
        let endpoints = status.endpoints.iter();
        endpoints
            .map(|endpoint| endpoint.attachment.container_id.clone())
            .collect()
    };
    assert_eq!(left(&handle.status.borrow()), ["complete", "dies", "goes-on"]);
    goes_on.end().unwrap();
    drop(dies);
    until(&handle, |status| left(status) == ["complete", "goes-on"]).await;
    assert_eq!(machine.pods_in_kernel().len(), 4);
    assert_eq!(machine.kernel.lock().veths.len(), 2);
    let noted = std::fs::read_dir(underway::folder(&state)).unwrap();
    assert_eq!(noted.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rel_29_an_add_of_a_plugin_that_notes_none_is_not_judged_by_what_another_has_left() {
    let mut machine = Machine::new();
    machine.start().await;
    let state = machine.config.paths.state.clone();
    drop(Underway::begin(&state, &Attachment::new("a", "eth0")).unwrap());
    machine.add("a", 50).await.unwrap();
    machine.kill().await;
    let handle = machine.start().await;
    assert_eq!(handle.status.borrow().endpoints.len(), 1);
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
async fn a_device_that_disappears_takes_its_endpoint_with_it() {
    let mut machine = Machine::new();
    let handle = machine.start().await;
    let allocated = machine.add("a", 50).await.unwrap();
    let mut devices = Machine::devices();
    devices.push(FakeKernel::device(&allocated.host_ifname, 50, &[]));
    handle.events.send(Event::Devices(devices)).await.unwrap();
    machine.kernel.remove_veth(&allocated.host_ifname);
    let devices = Machine::devices();
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
    let beyond = kernel.routes.values().filter_map(HostRoute::ifindex);
    assert_eq!(
        beyond.collect::<Vec<_>>(),
        [crate::kernel::fake::TUNNEL_IFINDEX; 2]
    );
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
    let refused = machine
        .plugin(|client| client.status(StatusRequest::default()))
        .await;
    assert_eq!(refused.unwrap_err().code, code::NOT_AVAILABLE);
    machine.kernel.lock().faults.clear();
    until(&handle, |status| status.ready && status.problems.is_empty()).await;
    machine.add("a", 50).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rel_43_pods_that_a_refusing_kernel_may_impair_are_said_to_be() {
    let mut machine = Machine::new();
    machine.start().await;
    machine.add("a", 50).await.unwrap();
    machine.kill().await;
    machine.kernel.lock().faults.push("load the programs".into());
    let handle = machine.start_deaf().await;
    let devices = Machine::devices();
    handle.events.send(Event::Devices(devices)).await.unwrap();
    handle.events.send(Event::Synced(Source::Devices)).await.unwrap();
    until(&handle, |status| {
        status.problems.iter().any(|problem| problem.contains("injected"))
    })
    .await;
    let refused = machine
        .plugin(|client| client.status(StatusRequest::default()))
        .await;
    assert_eq!(refused.unwrap_err().code, code::NOT_AVAILABLE_IMPAIRED);
}

#[tokio::test(flavor = "multi_thread")]
async fn rel_43_a_device_that_one_look_overlooks_costs_no_pod() {
    let mut machine = Machine::new();
    let handle = machine.start().await;
    let allocated = machine.add("a", 50).await.unwrap();
    machine
        .kernel
        .lock()
        .overlooked
        .push(allocated.host_ifname.clone());
    let rounds = handle.status.borrow().reconcile.rounds;
    let mut devices = Machine::devices();
    devices[0].mtu = 1400;
    handle.events.send(Event::Devices(devices)).await.unwrap();
    until(&handle, |status| status.reconcile.rounds > rounds).await;
    assert!(machine.kernel.lock().overlooked.is_empty());
    assert_eq!(handle.status.borrow().endpoints.len(), 1);
    assert_eq!(machine.pods_in_kernel().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_is_refused_and_the_first_one_goes_on() {
    let mut machine = Machine::new();
    machine.start().await;
    let (second, _handle) = Agent::new(machine.config.clone(), FakeKernel::default()).unwrap();
    let error = second.run(std::future::pending()).await.unwrap_err().to_string();
    assert!(error.contains("another agent"), "{error}");
    machine.add("a", 50).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_the_add_and_leaves_nothing() {
    let mut machine = Machine::new();
    let handle = machine.start().await;
    // Nothing can be written where a file is in the folder's place.
    let folder = machine.config.paths.state.join("endpoints");
    std::fs::remove_dir(&folder).unwrap();
    std::fs::write(&folder, "").unwrap();
    let error = machine.add("a", 50).await.unwrap_err();
    assert_eq!(error.code, code::IO);
    until(&handle, |status| status.endpoints.is_empty()).await;
    assert!(machine.pods_in_kernel().is_empty());
    std::fs::remove_file(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
    machine.add("a", 51).await.unwrap();
}
