//! Writes that fail, and rows that somebody else writes.

use super::*;

/// Whether Services could not be written.
fn says_so(status: &Arc<Status>) -> bool {
    let mut problems = status.problems.iter();
    problems.any(|problem| problem.contains("Services: "))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_is_said_and_tried_again_and_nothing_behind_it_is_written() {
    let (mut machine, handle) = begun(&["10.2.0.5"]).await;
    machine
        .kernel
        .lock()
        .faults
        .push("write entries to map backends".into());
    write(&machine, &["10.2.0.6"]);
    until(&handle, says_so).await;
    assert_eq!(
        behind(&machine.kernel.lock().tables),
        ["10.2.0.5"],
        "the old one is in force"
    );
    machine.kernel.lock().faults.clear();
    becomes(&machine, &["10.2.0.6"]).await;
    until(&handle, |status| !says_so(status)).await;
    machine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn svc_48_who_waits_for_the_kernel_is_behind_without_having_failed() {
    let (mut machine, handle) = begun(&["10.2.0.5"]).await;
    let later = || Instant::now() + Duration::from_secs(61);
    let alive = async |wanted| {
        let is = comes_true(|| handle.health.borrow().is_alive(later()) == wanted).await;
        assert!(is, "not {wanted}: {:?}", handle.health.borrow());
    };
    alive(true).await;
    // It hangs until the channel is closed.
    let kernel = machine.kernel.clone();
    let (goes_on, hangs) = std::sync::mpsc::channel::<()>();
    let hanging = std::thread::spawn(move || {
        let _state = kernel.lock();
        _ = hangs.recv();
    });
    write(&machine, &["10.2.0.6"]);
    alive(false).await;
    drop(goes_on);
    hanging.join().unwrap();
    becomes(&machine, &["10.2.0.6"]).await;
    alive(true).await;
    // One that refuses says so.
    let fault = "write entries to map backends".to_owned();
    machine.kernel.lock().faults.push(fault);
    write(&machine, &["10.2.0.7"]);
    alive(false).await;
    machine.kernel.lock().faults.clear();
    alive(true).await;
    machine.stop().await;
}

/// A frontend that could not be switched still names the places that its Service has left in the book.
#[tokio::test(flavor = "multi_thread")]
async fn places_that_a_frontend_names_are_nobody_elses_though_others_can_be_written() {
    let (mut machine, handle) = begun(&["10.2.0.5"]).await;
    let stands = async |endpoint: &str| {
        let has_slot = || {
            let slots = machine.kernel.lock().tables.service_slots.clone();
            slots.values().any(|slot| slot.addr.to_string() == endpoint)
        };
        assert!(comes_true(has_slot).await, "{endpoint} has no slot");
    };
    // Behind its place is somebody else's, so that it has to move to grow.
    write_file(
        &machine,
        "others",
        &service("others", 81, &["10.2.0.5", "10.2.0.6"]),
    );
    stands("10.2.0.6").await;
    let fault = "write entries to map services".to_owned();
    machine.kernel.lock().faults.push(fault);
    write(&machine, &["10.2.0.5", "10.2.0.7"]);
    until(&handle, says_so).await;
    // These need no frontend.
    write_file(
        &machine,
        "others",
        &service("others", 81, &["10.2.0.5", "10.2.0.8"]),
    );
    stands("10.2.0.8").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    write_file(&machine, "third", &service("third", 82, &["10.2.0.9"]));
    stands("10.2.0.9").await;
    assert_eq!(behind(&machine.kernel.lock().tables), ["10.2.0.5"]);
    machine.kernel.lock().faults.clear();
    becomes(&machine, &["10.2.0.5", "10.2.0.7"]).await;
    machine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_somebody_changes_are_put_right() {
    let (mut machine, handle) = begun(&["10.2.0.5"]).await;
    let foreign = ServiceKey {
        addr: Addr::v4([10, 96, 9, 9]),
        ..*machine.kernel.lock().tables.services.keys().next().unwrap()
    };
    {
        let mut kernel = machine.kernel.lock();
        kernel
            .tables
            .services
            .insert(foreign, cni_ebpf::abi::Service::default());
        kernel.tables.backends.clear();
    }
    handle.events.send(Event::Disturbed).await.unwrap();
    settles(&machine, 1).await;
    becomes(&machine, &["10.2.0.5"]).await;
    assert!(!machine.kernel.lock().tables.services.contains_key(&foreign));
    machine.stop().await;
}

/// They would be in the way of our own for ever.
#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_rows_that_fill_a_map_go_before_ours_are_written() {
    let mut machine = serving();
    machine.config.maps.backends = 2;
    write(&machine, &["10.2.0.5"]);
    let handle = machine.start().await;
    becomes(&machine, &["10.2.0.5"]).await;
    {
        let mut kernel = machine.kernel.lock();
        let foreign = std::mem::take(&mut kernel.tables.backends);
        let foreign = foreign
            .into_iter()
            .flat_map(|(number, row)| [(number + 100, row), (number + 200, row)]);
        kernel.tables.backends = foreign.collect();
        kernel.log.clear();
    }
    handle.events.send(Event::Disturbed).await.unwrap();
    settles(&machine, 1).await;
    becomes(&machine, &["10.2.0.5"]).await;
    let backends = |change: &Change| match change {
        Change::PutAll { table, .. } if table.name() == "backends" => Some("put"),
        Change::DeleteAll { table, .. } if table.name() == "backends" => Some("delete"),
        _ => None,
    };
    let log: Vec<&str> = machine.kernel.lock().log.iter().filter_map(backends).collect();
    assert_eq!(log, ["delete", "put"]);
    machine.stop().await;
}
