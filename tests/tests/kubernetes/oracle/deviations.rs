//! Where Millrace and the real kube-proxy differ, or both from what is wanted: each with its reason.

/// How cases go that do not go as wanted with both.
#[derive(Debug)]
pub(super) struct Deviation {
    pub(super) cases: &'static [&'static str],
    pub(super) millrace: &'static str,
    pub(super) kube_proxy: &'static str,
    pub(super) reason: &'static str,
    /// The words of the README that say so.
    said: &'static str,
}

pub(super) const DEVIATIONS: &[Deviation] = &[
    Deviation {
        cases: &[
            "26: endpoints elsewhere, a process",
            "29: an unallocated address, a process",
            "40: not within it, a process",
            "41: another node",
        ],
        millrace: "unreachable",
        kube_proxy: "silence",
        reason: TOLD,
        said: "Processes of the node are told at once",
    },
    Deviation {
        cases: &["2: a Service labelled headless"],
        millrace: "fabric sees node0",
        kube_proxy: "a sees node0",
        reason: LABELS,
        said: "The label `service.kubernetes.io/headless` keeps Millrace from Services",
    },
    Deviation {
        cases: &["2: its ClusterIP"],
        millrace: "silence",
        kube_proxy: "a sees client",
        reason: LABELS,
        said: "The label `service.kubernetes.io/headless` keeps Millrace from Services",
    },
    Deviation {
        cases: &["10: a range of one family"],
        millrace: "Tcp4 Udp4: a sees node0; Tcp6 Udp6: silence",
        kube_proxy: "a sees node0",
        reason: "who names the clients of one family lets in none of the other; an event says so",
        said: "without any range of a family let nobody in",
    },
    Deviation {
        cases: &["54: none was ready, a process"],
        millrace: "refused, a, a",
        kube_proxy: "silence, a, a",
        reason: TOLD,
        said: "Processes of the node are told at once",
    },
    Deviation {
        cases: &[
            "55: it serves no longer, a process",
            "55: it serves others still, a process",
        ],
        millrace: "a, ended",
        kube_proxy: "a, b, b",
        reason: "a connected socket of the host is connected to the endpoint: it ends, so that its owner dials anew",
        said: "A connected datagram socket of the host whose endpoint is gone is ended",
    },
    Deviation {
        cases: &["22: two Services from one port, a pod"],
        millrace: "Tcp4 Tcp6: Cannot assign requested address (os error 99), a sees client; Udp4 Udp6: a sees client",
        kube_proxy: "a sees client",
        reason: "sockets of one port that are connected to one endpoint are the same to the kernel",
        said: "so are streams of a pod with `socketLb: all`",
    },
    Deviation {
        cases: &["22: two Services from one port, a process"],
        millrace: "Tcp4 Tcp6: Cannot assign requested address (os error 99), a sees node0; Udp4 Udp6: a sees node0, silence",
        kube_proxy: "a sees node0",
        reason: "sockets of one port that are connected to one endpoint are the same to the kernel",
        said: "Two sockets of the host on one port",
    },
    Deviation {
        cases: &["23: a pod itself"],
        millrace: "Tcp4 Tcp6: a sees a; Udp4 Udp6: a sees node0",
        kube_proxy: "a sees node0",
        reason: "a pod's stream is connected to its own address and never leaves it: no answer can go astray",
        said: "A pod's stream is connected to the endpoint",
    },
    Deviation {
        cases: &["39: captured", "40: and for pods", "42: a pod"],
        millrace: "Tcp4 Tcp6: a sees client; Udp4 Udp6: a sees node0",
        kube_proxy: "a sees node0",
        reason: CONNECTED,
        said: "A pod's stream is connected to the endpoint",
    },
    Deviation {
        cases: &[
            "27: a load balancer, a pod",
            "27: a node port, a pod",
            "43: a pod",
        ],
        millrace: "Tcp4 Tcp6: b sees client; Udp4 Udp6: b sees node0",
        kube_proxy: "b sees node0",
        reason: CONNECTED,
        said: "A pod's stream is connected to the endpoint",
    },
];

/// One that is not connected too, which hears nothing of the stack's refusals.
const TOLD: &str =
    "a socket of the host is told at once of what would be dropped, instead of waiting in vain";
/// It used to have one selector for all that it watched.
const LABELS: &str = "the label keeps us from Services as from slices, as it did earlier kube-proxies";
const CONNECTED: &str =
    "a pod's stream is connected to the endpoint, as to any other pod: there is nothing to translate";

#[test]
fn whatever_differs_from_kube_proxy_is_in_the_readme() {
    let readme = include_str!("../../../../README.md");
    let words = readme.split_whitespace().collect::<Vec<_>>().join(" ");
    for deviation in DEVIATIONS {
        assert!(
            words.contains(deviation.said),
            "{:?}: {}",
            deviation.cases,
            deviation.said
        );
    }
}
