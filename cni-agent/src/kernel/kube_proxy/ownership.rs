//! Which chains of iptables are kube-proxy's. The kubelet has chains of its own (`KUBE-FIREWALL`, `KUBE-KUBELET-CANARY`,
//! `KUBE-IPTABLES-HINT`), which stay.

/// The tables in which it has any.
pub(super) const TABLES: [&str; 3] = ["nat", "filter", "mangle"];

const CANARY: &str = "KUBE-PROXY-CANARY";
const MARK: &str = "KUBE-MARK-MASQ";
const POSTROUTING: &str = "KUBE-POSTROUTING";

/// The last two are of the mode ipvs.
const NAT: [&str; 6] = [
    "KUBE-SERVICES",
    "KUBE-NODEPORTS",
    POSTROUTING,
    MARK,
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
];

/// The last four are of the mode ipvs.
const FILTER: [&str; 9] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FORWARD",
    "KUBE-NODEPORTS",
    "KUBE-PROXY-FIREWALL",
    "KUBE-NODE-PORT",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];

/// One for each port of a Service, and for each of its endpoints.
const PREFIXES: [&str; 5] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-"];

pub(super) fn owns(table: &str, chain: &str) -> bool {
    match table {
        "nat" => chain == CANARY || NAT.contains(&chain) || is_of_a_service(chain),
        "filter" => chain == CANARY || FILTER.contains(&chain),
        "mangle" => chain == CANARY,
        _ => false,
    }
}

fn is_of_a_service(chain: &str) -> bool {
    PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// Whether it leads to the chain from the kernel's own ones.
pub(super) fn is_entry(chain: &str) -> bool {
    chain != MARK && chain != CANARY && !is_of_a_service(chain)
}

/// Whether there was a kube-proxy if there is this chain: kubelets before 1.28 made the two others.
pub(super) fn is_trace(chain: &str) -> bool {
    chain != MARK && chain != POSTROUTING
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kubelet_and_others_make_is_theirs() {
        for (table, chain) in [
            ("filter", "KUBE-FIREWALL"),
            ("mangle", "KUBE-IPTABLES-HINT"),
            ("mangle", "KUBE-KUBELET-CANARY"),
            ("nat", "KUBE-KUBELET-CANARY"),
            ("nat", "KUBE-MARK-DROP"),
            ("nat", "KUBE-ROUTER-SERVICES"),
            ("filter", "KUBE-SVC-ABCDEFGHIJKLMNOP"),
            ("raw", "KUBE-SERVICES"),
            ("nat", "CNI-HOSTPORT-DNAT"),
        ] {
            assert!(!owns(table, chain), "{table} {chain}");
        }
        for (table, chain) in [
            ("nat", "KUBE-SVC-ABCDEFGHIJKLMNOP"),
            ("nat", "KUBE-POSTROUTING"),
            ("filter", "KUBE-PROXY-FIREWALL"),
            ("mangle", "KUBE-PROXY-CANARY"),
        ] {
            assert!(owns(table, chain), "{table} {chain}");
        }
    }
}
