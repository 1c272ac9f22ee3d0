use std::collections::BTreeMap;

use cni_ebpf::abi::{Addr, ClassBits, ClassKey, Config, Peer, Prefix, Route, RuleSet, route_action};
use proptest::prelude::*;

use super::*;
use crate::{
    desired::{HostRoute, LinkKey, LinkOwner, Program, RouteKey, Table, Veth},
    kernel::fake::FakeKernel,
};

fn address(n: u8) -> Addr {
    Addr::v4([10, 0, 0, n])
}

/// An endpoint-like set of things, one for each bit of `which`.
fn desired(which: u16) -> Desired {
    let mut desired = Desired {
        config: Some(Config::DEFAULT),
        sockets: which & 1 != 0,
        ..Desired::default()
    };
    for n in (0..8u8).filter(|n| which & (1 << n) != 0) {
        let ifindex = u32::from(n) + 10;
        desired.tables.peers.insert(
            address(n),
            Peer {
                flags: which.into(),
                ..Peer::default()
            },
        );
        desired.tables.routes.insert(
            Prefix::host(address(n)),
            Route {
                action: 1,
                ..Route::default()
            },
        );
        desired.tables.rule_sets.insert(
            n.into(),
            RuleSet {
                generation: which.into(),
                flags: 1,
            },
        );
        let class = ClassKey {
            class: n.into(),
            word: 0,
        };
        desired.tables.classes.insert(class, ClassBits::default());
        desired.tables.cidrs.insert(Prefix::host(address(n)), n.into());
        let name = format!("mr{n:011x}");
        desired.veths.insert(name, Veth::Up { ifindex });
        let owner = LinkOwner::Endpoint(n.into());
        desired.links.insert(
            LinkKey {
                owner,
                program: Program::FromPod,
            },
            ifindex,
        );
        let destination = std::net::IpAddr::from(address(n)).into();
        let route = HostRoute::on_link(ifindex);
        desired.routes.insert(RouteKey { destination }, route);
    }
    desired
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

async fn whole(reconciler: &mut Reconciler<FakeKernel>, desired: &Desired, removals: Removals) -> Outcome {
    let observed = reconciler.observe(desired, Scope::Whole).await.unwrap();
    reconciler.converge(desired, &observed, removals).await
}

fn with_veths(kernel: &FakeKernel, desired: &Desired) {
    for (name, veth) in &desired.veths {
        if let Veth::Up { ifindex } = veth
            && !kernel.lock().veths.contains_key(name)
        {
            kernel.add_veth(name, *ifindex);
        }
    }
}

#[test]
fn nothing_is_deleted_while_removals_are_held() {
    let kernel = FakeKernel::default();
    let mut reconciler = Reconciler::new(kernel.clone());
    let full = desired(0b111);
    with_veths(&kernel, &full);
    run(async {
        assert!(whole(&mut reconciler, &full, Removals::Held).await.is_complete());
        let before = kernel.lock().tables.clone();
        assert_eq!(
            whole(&mut reconciler, &Desired::default(), Removals::Held)
                .await
                .applied,
            0
        );
        assert_eq!(kernel.lock().tables, before);
        assert!(
            whole(&mut reconciler, &Desired::default(), Removals::Allowed)
                .await
                .is_complete()
        );
    });
    assert!(kernel.is_empty());
}

#[test]
fn a_second_round_has_nothing_to_do_and_a_restart_only_exchanges_programs() {
    let kernel = FakeKernel::default();
    let full = desired(0b1011);
    with_veths(&kernel, &full);
    run(async {
        let mut reconciler = Reconciler::new(kernel.clone());
        whole(&mut reconciler, &full, Removals::Allowed).await;
        assert_eq!(
            whole(&mut reconciler, &full, Removals::Allowed).await,
            Outcome::default()
        );
        kernel.restart();
        kernel.lock().log.clear();
        let mut reconciler = Reconciler::new(kernel.clone());
        whole(&mut reconciler, &full, Removals::Allowed).await;
    });
    let log = kernel.lock().log.clone();
    let steps: String = log
        .iter()
        .map(|change| match change {
            Change::Load(_) => 'l',
            Change::Attach { .. } => 'a',
            Change::AttachSockets => 's',
            Change::CarryOver => 'c',
            _ => '?',
        })
        .collect();
    // Nothing lies between the exchanges and the copying of what old programs have written to the last.
    assert_eq!(steps.replace("aa", "a").replace("aa", "a"), "lcacsc", "{log:?}");
}

#[test]
fn rel_29_no_program_is_exchanged_unless_it_knows_what_the_old_one_has_let_through() {
    let kernel = FakeKernel::default();
    let full = desired(0b1011);
    with_veths(&kernel, &full);
    run(async {
        whole(&mut Reconciler::new(kernel.clone()), &full, Removals::Allowed).await;
        assert!(
            !kernel.lock().log.contains(&Change::CarryOver),
            "nothing is exchanged"
        );
        kernel.restart();
        kernel.lock().faults.push("carry over".into());
        whole(&mut Reconciler::new(kernel.clone()), &full, Removals::Allowed).await;
        assert!(kernel.lock().links.values().all(|link| !link.current));
        kernel.lock().faults.clear();
        whole(&mut Reconciler::new(kernel.clone()), &full, Removals::Allowed).await;
        assert!(kernel.lock().links.values().all(|link| link.current));
    });
}

#[test]
fn svc_53_the_program_that_answers_need_is_exchanged_before_those_that_lead_to_endpoints() {
    let kernel = FakeKernel::default();
    let mut full = desired(0b1011);
    for program in [Program::FromNetdev, Program::ToNetdev] {
        let owner = LinkOwner::Netdev("eth0".to_owned());
        full.links.insert(LinkKey { owner, program }, 2);
    }
    with_veths(&kernel, &full);
    run(whole(
        &mut Reconciler::new(kernel.clone()),
        &full,
        Removals::Allowed,
    ));
    let log = kernel.lock().log.clone();
    let attached = log.iter().filter_map(|change| match change {
        Change::Attach { link, .. } => Some(link.program),
        _ => None,
    });
    let attached: Vec<_> = attached.collect();
    assert_eq!((attached[0], attached.len()), (Program::ToNetdev, 5));
}

#[test]
fn a_way_through_the_tunnel_is_there_only_while_programs_know_it() {
    let routed = |action| {
        let mut desired = desired(0b1);
        desired
            .tables
            .routes
            .values_mut()
            .for_each(|route| route.action = action);
        desired
    };
    let (direct, tunnelled) = (routed(route_action::DIRECT), routed(route_action::TUNNEL));
    for (from, to, links_first) in [(&direct, &tunnelled, true), (&tunnelled, &direct, false)] {
        let kernel = FakeKernel::default();
        with_veths(&kernel, from);
        run(async {
            let mut reconciler = Reconciler::new(kernel.clone());
            whole(&mut reconciler, from, Removals::Allowed).await;
            // The next agent, with another setting.
            kernel.restart();
            kernel.lock().log.clear();
            whole(&mut Reconciler::new(kernel.clone()), to, Removals::Allowed).await;
        });
        let log = kernel.lock().log.clone();
        let at = |wanted: fn(&Change) -> bool| log.iter().position(wanted).unwrap();
        let links = at(|change| matches!(change, Change::Attach { .. }));
        let ways = at(|change| {
            matches!(
                change,
                Change::Put {
                    table: Table::Routes,
                    ..
                }
            )
        });
        assert_eq!(links < ways, links_first, "{log:?}");
    }
}

#[test]
fn a_pod_without_its_program_stays_down_and_only_that_pod() {
    let kernel = FakeKernel::default();
    kernel.lock().faults.push("attach endpoint/1/".into());
    let full = desired(0b110);
    with_veths(&kernel, &full);
    let mut reconciler = Reconciler::new(kernel.clone());
    let outcome = run(whole(&mut reconciler, &full, Removals::Allowed));
    // Its route cannot be set through a device that is down either.
    assert!(
        outcome
            .failures
            .iter()
            .any(|failure| failure.error.contains("injected"))
    );
    assert!(!kernel.lock().veths["mr00000000001"].up);
    assert!(kernel.lock().veths["mr00000000002"].up);
    assert!(reconciler.retry().next().is_some());
    kernel.lock().faults.clear();
    // What somebody waits for does not wait for the back-off.
    assert!(run(reconciler.converge_keys(&full)).unwrap().is_complete());
    assert!(kernel.lock().veths["mr00000000001"].up);
    assert_eq!(reconciler.retry().errors().count(), 0);
}

#[test]
fn rel_40_what_names_a_failed_entry_is_not_written_and_what_it_replaces_not_deleted() {
    let kernel = FakeKernel::default();
    let mut reconciler = Reconciler::new(kernel.clone());
    let (first, second) = (desired(0b01), desired(0b10));
    with_veths(&kernel, &first);
    with_veths(&kernel, &second);
    run(whole(&mut reconciler, &first, Removals::Allowed));
    kernel.lock().faults.push("write to map classes".into());
    let outcome = run(whole(&mut reconciler, &second, Removals::Allowed));
    assert_eq!(outcome.failures.len(), 1);
    let state = kernel.lock();
    assert_eq!(state.tables.cidrs, first.tables.cidrs);
    assert_eq!(state.tables.rule_sets, first.tables.rule_sets);
    assert_eq!(state.tables.peers, second.tables.peers, "others go on");
}

#[test]
fn a_removal_touches_its_keys_only_and_spares_what_is_kept() {
    let kernel = FakeKernel::default();
    let mut reconciler = Reconciler::new(kernel.clone());
    let full = desired(0b111);
    with_veths(&kernel, &full);
    run(whole(&mut reconciler, &full, Removals::Allowed));
    let looks = kernel.lock().whole_looks;
    let one = desired(0b010);
    run(reconciler.remove_keys(&one, &Desired::default())).unwrap();
    let state = kernel.lock();
    assert_eq!(state.whole_looks, looks);
    assert_eq!(
        state.tables.peers.keys().copied().collect::<Vec<_>>(),
        [address(0), address(2)]
    );
    assert_eq!(state.links.len(), 2);
    assert_eq!(state.config, Some(Config::DEFAULT));
}

/// After every single change: who names something names something that is there.
fn consistent(log: &[Change]) {
    let mut there: BTreeMap<Table, Vec<Vec<u8>>> = BTreeMap::new();
    for change in log {
        match change {
            Change::Put { table, key, .. } => there.entry(*table).or_default().push(key.clone()),
            Change::Delete { table, key } => there.entry(*table).or_default().retain(|other| other != key),
            _ => {}
        }
        let count = |table| {
            there.get(&table).map_or(0, |keys: &Vec<Vec<u8>>| {
                keys.iter().collect::<BTreeSet<_>>().len()
            })
        };
        assert!(count(Table::RuleSets) <= count(Table::Cidrs));
        assert!(count(Table::Cidrs) <= count(Table::Classes));
    }
}

proptest! {
    /// From anything to anything: the kernel ends as desired, in an order that never leaves a dangling reference,
    /// whatever fails in between.
    #[test]
    fn converges_from_anything_to_anything(sequence in proptest::collection::vec((0u16..256, 0u8..4), 1..6)) {
        let kernel = FakeKernel::default();
        let mut reconciler = Reconciler::new(kernel.clone());
        for (which, fault) in sequence {
            let wanted = desired(which);
            with_veths(&kernel, &wanted);
            let fault = ["", "write to map cidrs", "attach endpoint/3", "delete from map peers"][usize::from(fault)];
            if !fault.is_empty() { kernel.lock().faults.push(fault.into()); }
            run(whole(&mut reconciler, &wanted, Removals::Allowed));
            kernel.lock().faults.clear();
            // A new process, so no back-off either.
            reconciler = Reconciler::new(kernel.clone());
            prop_assert!(run(whole(&mut reconciler, &wanted, Removals::Allowed)).is_complete());
            prop_assert_eq!(&kernel.lock().tables, &wanted.tables);
            prop_assert_eq!(&kernel.lock().routes, &wanted.routes);
            prop_assert_eq!(kernel.lock().veths.len(), wanted.veths.len());
            prop_assert_eq!(run(whole(&mut reconciler, &wanted, Removals::Allowed)), Outcome::default());
        }
        consistent(&kernel.lock().log);
    }
}
