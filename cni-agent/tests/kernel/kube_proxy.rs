//! What is taken for a kube-proxy's and what is not, by chains that iptables makes. The real kube-proxy's are met where an API
//! server is: in the layer `kubernetes`.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use cni_agent::{
    config::Proxy,
    kernel::{
        host::{State, kube_proxy::check},
        kube_proxy::Leftovers,
    },
};

use crate::namespace::{on_host, run};

/// What a kubelet makes.
const KUBELET: &str = "\
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*nat
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP
COMMIT
";
/// What a kubelet before 1.28 made beside that.
const OLD_KUBELET: &str = "\
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
COMMIT
";
const PROXY: &str = "\
*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.7/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-SVC-AAAAAAAAAAAAAAAA -j KUBE-SEP-AAAAAAAAAAAAAAAA
-A KUBE-SEP-AAAAAAAAAAAAAAAA -j KUBE-MARK-MASQ
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-SVC-NOT-ITS-TABLE - [0:0]
-A FORWARD -j KUBE-FORWARD
-A KUBE-FORWARD -j ACCEPT
COMMIT
";
/// A plugin that has its packets marked by kube-proxy's chain.
const OTHERS: &str = "\
*nat
:CNI-HOSTPORT-SETMARK - [0:0]
-A PREROUTING -j CNI-HOSTPORT-SETMARK
-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ
COMMIT
";

fn restore(tool: &str, rules: &str) -> bool {
    let mut child = Command::new(format!("{tool}-restore"))
        .arg("--noflush")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    child.wait().unwrap().success()
}

fn ruleset() -> String {
    run("nft", "--stateless list ruleset")
}

#[test]
fn what_a_kubelet_makes_is_no_trace_of_a_kube_proxy() {
    on_host(|host| {
        let mut config = host.config.clone();
        assert_eq!(check(&config), None, "Services are the stack's business");
        config.services.proxy = Proxy::Millrace;
        assert!(restore("iptables-nft", KUBELET));
        assert!(restore("iptables-nft", OLD_KUBELET));
        assert!(Leftovers::find().unwrap().is_empty());
        assert_eq!(check(&config).unwrap().state, State::Ok);
        let before = ruleset();
        assert!(restore("iptables-nft", PROXY));
        let said = check(&config).unwrap();
        assert_eq!(said.state, State::Warning);
        assert_eq!(said.remedy, "`millrace kube-proxy cleanup`");
        assert!(
            said.detail.contains("ip nat PREROUTING -> KUBE-SERVICES"),
            "{said:?}"
        );
        Leftovers::find().unwrap().remove(false).unwrap();
        assert!(Leftovers::find().unwrap().is_empty());
        let after = ruleset();
        assert!(
            after.contains("KUBE-FIREWALL") && after.contains("KUBE-SVC-NOT-ITS-TABLE"),
            "{after}"
        );
        let gone = [
            "KUBE-SERVICES",
            "KUBE-SEP",
            "KUBE-MARK-MASQ",
            "KUBE-FORWARD",
            "KUBE-PROXY-CANARY",
        ];
        assert!(gone.iter().all(|name| !after.contains(name)), "{after}");
        assert!(before.contains("KUBE-MARK-MASQ"));
    });
}

#[test]
fn a_chain_that_somebody_else_uses_stays_as_it_is() {
    on_host(|_| {
        for rules in [KUBELET, OLD_KUBELET, PROXY, OTHERS] {
            assert!(restore("iptables-nft", rules));
        }
        let found = Leftovers::find().unwrap();
        assert_eq!(found.shared().collect::<Vec<_>>(), ["ip nat KUBE-MARK-MASQ"]);
        found.remove(false).unwrap();
        let after = ruleset();
        assert!(after.contains("jump KUBE-MARK-MASQ"), "{after}");
        assert!(
            after.contains("0x4000") || after.contains("0x00004000"),
            "{after}"
        );
        assert!(!after.contains("KUBE-SERVICES"), "{after}");
        assert!(Leftovers::find().unwrap().is_empty());
    });
}

#[test]
fn what_the_legacy_tables_have_is_left_to_kube_proxy_and_said() {
    on_host(|host| {
        let works = Command::new("iptables-legacy").args(["-t", "nat", "-S"]).output();
        if !works.is_ok_and(|output| output.status.success()) {
            eprintln!("not run: iptables-legacy does not work here");
            return;
        }
        assert!(restore("iptables-legacy", KUBELET));
        let mut config = host.config.clone();
        config.services.proxy = Proxy::Millrace;
        assert_eq!(check(&config).unwrap().state, State::Ok);
        assert!(restore("iptables-legacy", OLD_KUBELET));
        assert!(restore("iptables-legacy", PROXY));
        let said = check(&config).unwrap();
        assert_eq!(said.state, State::Warning);
        assert!(said.remedy.contains("kube-proxy --cleanup"), "{said:?}");
        assert!(
            said.detail.contains("3 chains of iptables-legacy in table nat"),
            "{said:?}"
        );
        assert_eq!(Leftovers::find().unwrap().removable().count(), 0);
    });
}

/// The kernel of a machine without IPVS has no device of that kind, but another may have its name.
#[test]
fn what_ipvs_needs_is_left_to_kube_proxy_and_said() {
    on_host(|_| {
        crate::namespace::cable("kube-ipvs0");
        let found = Leftovers::find().unwrap();
        assert!(found.foreign()[0].contains("kube-ipvs0"), "{found:?}");
    });
}
