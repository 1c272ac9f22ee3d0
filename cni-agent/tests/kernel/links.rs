//! Programs on devices, both ways.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use cni_agent::{
    desired::{Desired, LinkKey, LinkOwner, LinkState, Observed, Program},
    kernel::{Kernel, Linux, Scope, bpf, links, links::Attachment},
    reconcile::Change,
};
use cni_ebpf::abi::Config;

use crate::namespace::{Host, block_on, cable, ifindex, ip, on_host, run, tree};

/// Loading takes the verifier a second or two.
const EXCHANGES: usize = 5;

const BOTH: [Attachment; 2] = [Attachment::Tcx, Attachment::Clsact];

fn key(device: &str, program: Program) -> LinkKey {
    LinkKey {
        owner: LinkOwner::Netdev(device.to_owned()),
        program,
    }
}

fn observe(linux: &mut Linux) -> Observed {
    block_on(linux.observe(&Desired::default(), Scope::Whole)).unwrap()
}

fn loaded(host: &Host, attachment: Attachment, config: Config) -> Linux {
    let mut linux = host.linux(Some(attachment));
    block_on(linux.apply(&Change::Load(config))).unwrap();
    linux
}

fn attach(linux: &mut Linux, link: LinkKey, ifindex: u32) {
    block_on(linux.apply(&Change::Attach { link, ifindex })).unwrap();
}

#[test]
fn links_outlive_the_agent_and_are_exchanged_in_place() {
    for attachment in BOTH {
        on_host(move |host| {
            cable("eth0");
            let eth0 = ifindex("eth0");
            let mut linux = loaded(host, attachment, Config::DEFAULT);
            let keys = [
                key("eth0", Program::FromNetdev),
                key("eth0", Program::ToNetdev),
                LinkKey {
                    owner: LinkOwner::Endpoint(7),
                    program: Program::FromPod,
                },
            ];
            cable("mr0123456789a");
            let pod = ifindex("mr0123456789a");
            attach(&mut linux, keys[0].clone(), eth0);
            attach(&mut linux, keys[1].clone(), eth0);
            attach(&mut linux, keys[2].clone(), pod);
            let current: BTreeMap<LinkKey, LinkState> = keys
                .iter()
                .zip([eth0, eth0, pod])
                .map(|(key, ifindex)| {
                    (
                        key.clone(),
                        LinkState {
                            ifindex,
                            current: true,
                        },
                    )
                })
                .collect();
            assert_eq!(observe(&mut linux).links, current, "{attachment:?}");
            drop(linux);

            // Another agent, another configuration: what runs is the old agent's until it is exchanged.
            let mut linux = loaded(
                host,
                attachment,
                Config {
                    tunnel: 1,
                    ..Config::DEFAULT
                },
            );
            let links = observe(&mut linux).links;
            assert!(
                links.values().all(|link| !link.current && link.ifindex != 0),
                "{attachment:?} {links:?}"
            );
            for (key, state) in &current {
                attach(&mut linux, key.clone(), state.ifindex);
            }
            assert_eq!(observe(&mut linux).links, current, "{attachment:?}");
            let mut wanted = Desired::default();
            wanted.links.insert(keys[2].clone(), pod);
            let found = block_on(linux.observe(&wanted, Scope::Keys)).unwrap().links;
            assert_eq!(found.len(), 1, "{attachment:?}");
            assert_eq!(found.get(&keys[2]), current.get(&keys[2]));

            for key in &keys {
                block_on(linux.apply(&Change::Detach(key.clone()))).unwrap();
                block_on(linux.apply(&Change::Detach(key.clone()))).unwrap();
            }
            assert!(observe(&mut linux).links.is_empty(), "{attachment:?}");
            assert_eq!(run("tc", "qdisc show dev eth0").matches("clsact").count(), 0);
            assert!(tree(&host.pins().endpoint_links()).is_empty());
        });
    }
}

#[test]
fn rel_01_rel_30_a_device_is_never_without_a_program_while_programs_are_exchanged() {
    on_host(|host| {
        cable("eth0");
        let eth0 = ifindex("eth0");
        let mut linux = loaded(host, Attachment::Tcx, Config::DEFAULT);
        attach(&mut linux, key("eth0", Program::FromNetdev), eth0);
        let done = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&done);
        // A new thread is in the namespaces of the one that starts it.
        let witness = std::thread::spawn(move || {
            let mut looks = 0;
            while !over.load(Ordering::Relaxed) || looks == 0 {
                let programs = bpf::attached_programs(eth0, bpf::AttachPoint::Ingress).unwrap();
                assert_eq!(programs.len(), 1, "after {looks} looks");
                looks += 1;
            }
        });
        let mut ids = BTreeSet::new();
        for _ in 0..EXCHANGES {
            block_on(linux.apply(&Change::Load(Config::DEFAULT))).unwrap();
            attach(&mut linux, key("eth0", Program::FromNetdev), eth0);
            ids.extend(bpf::attached_programs(eth0, bpf::AttachPoint::Ingress).unwrap());
        }
        done.store(true, Ordering::Relaxed);
        witness.join().unwrap();
        assert_eq!(ids.len(), EXCHANGES);
    });
}

#[test]
fn a_device_that_is_gone_leaves_a_dead_link_that_can_be_removed_or_revived() {
    on_host(|host| {
        cable("eth0");
        let mut linux = loaded(host, Attachment::Tcx, Config::DEFAULT);
        attach(&mut linux, key("eth0", Program::FromNetdev), ifindex("eth0"));
        ip("link del eth0");
        let links = observe(&mut linux).links;
        assert_eq!(links.values().map(|link| link.ifindex).collect::<Vec<_>>(), [0]);
        cable("eth0");
        attach(&mut linux, key("eth0", Program::FromNetdev), ifindex("eth0"));
        assert!(observe(&mut linux).links.values().all(|link| link.current));
        ip("link del eth0");
        block_on(linux.apply(&Change::Detach(key("eth0", Program::FromNetdev)))).unwrap();
        assert!(tree(&host.pins().netdev_links()).is_empty());
    });
}

#[test]
fn a_renamed_device_keeps_its_link() {
    for attachment in BOTH {
        on_host(move |host| {
            cable("eth0");
            let index = ifindex("eth0");
            let mut linux = loaded(host, attachment, Config::DEFAULT);
            attach(&mut linux, key("eth0", Program::FromNetdev), index);
            ip("link set eth0 name eth0.7");
            attach(&mut linux, key("eth0.7", Program::FromNetdev), index);
            block_on(linux.apply(&Change::Detach(key("eth0", Program::FromNetdev)))).unwrap();
            let links = observe(&mut linux).links;
            assert_eq!(
                links.keys().collect::<Vec<_>>(),
                [&key("eth0.7", Program::FromNetdev)],
                "{attachment:?}"
            );
            assert!(links.values().all(|link| link.current && link.ifindex == index));
        });
    }
}

#[test]
fn rel_34_a_filter_that_somebody_deleted_is_noticed() {
    on_host(|host| {
        cable("eth0");
        let mut linux = loaded(host, Attachment::Clsact, Config::DEFAULT);
        attach(&mut linux, key("eth0", Program::FromNetdev), ifindex("eth0"));
        run("tc", "filter del dev eth0 ingress");
        assert!(observe(&mut linux).links.is_empty());
    });
}

#[test]
fn rel_34_a_foreign_program_stays_behind_ours() {
    on_host(|host| {
        cable("eth0");
        let bystander = bpf::load_bystander().unwrap();
        let point = bpf::AttachPoint::Ingress;
        let _foreign = bpf::create_link(&bystander, ifindex("eth0"), point).unwrap();
        let mut linux = loaded(host, Attachment::Tcx, Config::DEFAULT);
        attach(&mut linux, key("eth0", Program::FromNetdev), ifindex("eth0"));
        assert!(links::overtaken(&host.pins()).unwrap().is_empty());
        let other = bpf::load_bystander().unwrap();
        let _first = bpf::create_link(&other, ifindex("eth0"), point).unwrap();
        assert_eq!(
            links::overtaken(&host.pins()).unwrap(),
            [key("eth0", Program::FromNetdev)]
        );
    });
}

#[test]
fn rel_35_clsact_left_by_an_older_kernel_is_taken_over_by_tcx() {
    on_host(|host| {
        cable("eth0");
        let mut linux = loaded(host, Attachment::Clsact, Config::DEFAULT);
        attach(&mut linux, key("eth0", Program::FromNetdev), ifindex("eth0"));
        drop(linux);
        assert_eq!(
            links::probe().unwrap(),
            Attachment::Tcx,
            "these tests need Linux 6.6"
        );
        let mut linux = loaded(host, Attachment::Tcx, Config::DEFAULT);
        attach(&mut linux, key("eth0", Program::FromNetdev), ifindex("eth0"));
        assert!(!run("tc", "qdisc show dev eth0").contains("clsact"));
        assert!(observe(&mut linux).links.values().all(|link| link.current));
    });
}

#[test]
fn rel_35_a_refused_program_leaves_the_old_one_attached() {
    on_host(|host| {
        cable("eth0");
        let mut linux = loaded(host, Attachment::Tcx, Config::DEFAULT);
        attach(&mut linux, key("eth0", Program::FromNetdev), ifindex("eth0"));
        let mut broken = host
            .linux(Some(Attachment::Tcx))
            .with_object(b"no ELF file at all");
        let error = block_on(broken.apply(&Change::Load(Config::DEFAULT))).unwrap_err();
        assert!(error.to_string().contains("load the object file"), "{error}");
        let links = observe(&mut linux).links;
        assert!(links.values().all(|link| link.current), "{links:?}");
    });
}
