//! What is looked at on the host, and the privileges that are needed.

use cni_agent::{
    capabilities::NEEDED,
    kernel::{
        Kernel,
        host::{self, Check, State},
    },
    reconcile::Change,
};
use cni_ebpf::abi::Config;

use crate::namespace::{Host, attach_to, block_on, cable, ip, on_host, run};

fn find(host: &Host, name: &str) -> Check {
    let checks = host::checks(&host.config);
    checks
        .into_iter()
        .find(|check| check.name == name)
        .unwrap_or_else(|| panic!("no check {name}"))
}

#[test]
fn settings_of_the_host_are_judged() {
    on_host(|host| {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let forward = find(host, "net.ipv4.ip_forward");
        assert_eq!(forward.state, State::Failed);
        assert!(
            forward.remedy.contains("sysctl -w net.ipv4.ip_forward=1"),
            "{forward:?}"
        );
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        assert_eq!(find(host, "net.ipv4.ip_forward").state, State::Ok);
        assert_eq!(find(host, "bpf-filesystem").state, State::Ok);
        assert_eq!(find(host, "accept_ra").state, State::Ok);

        cable("mr0123456789a");
        std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0").unwrap();
        std::fs::write("/proc/sys/net/ipv4/conf/mr0123456789a/rp_filter", "0").unwrap();
        assert_eq!(find(host, "rp_filter").state, State::Ok);
        std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap();
        let strict = find(host, "rp_filter");
        assert_eq!(
            (strict.state, strict.detail.contains("mr0123456789a")),
            (State::Failed, true)
        );
    });
}

#[test]
fn a_default_route_that_was_advertised_needs_accept_ra_2() {
    on_host(|host| {
        cable("eth0");
        ip("link set eth0 up");
        ip("addr add fd00::1/64 dev eth0 nodad");
        ip("-6 route add default via fd00::2 dev eth0 proto ra");
        std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "1").unwrap();
        let check = find(host, "accept_ra");
        assert!(
            check.remedy.contains("net.ipv6.conf.eth0.accept_ra=2"),
            "{check:?}"
        );
        std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "2").unwrap();
        assert_eq!(find(host, "accept_ra").state, State::Ok);
    });
}

#[test]
fn firewalls_that_drop_by_default_are_found() {
    on_host(|host| {
        assert_eq!(find(host, "firewall-forward").state, State::Ok);
        run("nft", "add table inet filter");
        for hook in ["forward", "input"] {
            run(
                "nft",
                &format!(
                    "add chain inet filter {hook} {{ type filter hook {hook} priority 0 ; policy drop ; }}"
                ),
            );
        }
        let forward = find(host, "firewall-forward");
        assert_eq!(forward.state, State::Warning);
        assert!(forward.detail.contains("inet filter forward"), "{forward:?}");
        assert!(find(host, "firewall-vxlan").remedy.contains("UDP port 4789"));
    });
}

#[test]
fn rel_51_each_named_capability_is_needed_and_no_other() {
    use caps::{CapSet, CapsHashSet};
    for missing in [None, Some(NEEDED[0]), Some(NEEDED[1]), Some(NEEDED[2])] {
        on_host(move |host| {
            cable("eth0");
            let mut linux = host.linux(None);
            let held: CapsHashSet = NEEDED
                .into_iter()
                .filter(|capability| Some(*capability) != missing)
                .collect();
            caps::set(None, CapSet::Effective, &held).unwrap();
            caps::set(None, CapSet::Permitted, &held).unwrap();
            let attach = attach_to("eth0");
            let done = block_on(async {
                linux.apply(&Change::Load(Config::DEFAULT)).await?;
                linux.apply(&attach).await
            });
            assert_eq!(done.is_ok(), missing.is_none(), "without {missing:?}: {done:?}");
        });
    }
}
