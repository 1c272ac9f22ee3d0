//! Where Millrace and the real kube-proxy differ, or both from what is wanted: each with its reason.

/// How cases go that do not go as wanted with both.
#[derive(Debug)]
pub(super) struct Deviation {
    pub(super) cases: &'static [&'static str],
    pub(super) millrace: &'static str,
    pub(super) kube_proxy: &'static str,
    pub(super) reason: &'static str,
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
    },
    Deviation {
        cases: &["2: a Service labelled headless"],
        millrace: "fabric sees node0",
        kube_proxy: "a sees node0",
        reason: LABELS,
    },
    Deviation {
        cases: &["2: its ClusterIP"],
        millrace: "silence",
        kube_proxy: "a sees client",
        reason: LABELS,
    },
    Deviation {
        cases: &["3: a slice with such a label"],
        millrace: "a sees client",
        kube_proxy: "a sees client, b sees client",
        reason: LABELS,
    },
    Deviation {
        cases: &["10: a range of one family"],
        millrace: "Tcp4 Udp4: a sees node0; Tcp6 Udp6: silence",
        kube_proxy: "a sees node0",
        reason: "who names the clients of one family lets in none of the other; an event says so",
    },
    Deviation {
        cases: &["54: none was ready, a process"],
        millrace: "refused, a, a",
        kube_proxy: "silence, a, a",
        reason: TOLD,
    },
    Deviation {
        cases: &[
            "55: it serves no longer, a process",
            "55: it serves others still, a process",
        ],
        millrace: "a, ended",
        kube_proxy: "a, b, b",
        reason: "a connected socket of the host is connected to the endpoint: it ends, so that its owner dials anew",
    },
    Deviation {
        cases: &["22: two Services from one port, a pod"],
        millrace: "Tcp4 Tcp6: Cannot assign requested address (os error 99), a sees client; Udp4 Udp6: a sees client",
        kube_proxy: "a sees client",
        reason: "sockets of one port that are connected to one endpoint are the same to the kernel",
    },
    Deviation {
        cases: &["22: two Services from one port, a process"],
        millrace: "Tcp4 Tcp6: Cannot assign requested address (os error 99), a sees node0; Udp4 Udp6: a sees node0, silence",
        kube_proxy: "a sees node0",
        reason: "sockets of one port that are connected to one endpoint are the same to the kernel",
    },
    Deviation {
        cases: &["23: a pod itself"],
        millrace: "Tcp4 Tcp6: a sees a; Udp4 Udp6: a sees node0",
        kube_proxy: "a sees node0",
        reason: "a pod's stream is connected to its own address and never leaves it: no answer can go astray",
    },
    Deviation {
        cases: &["39: captured", "40: and for pods", "42: a pod"],
        millrace: "Tcp4 Tcp6: a sees client; Udp4 Udp6: a sees node0",
        kube_proxy: "a sees node0",
        reason: CONNECTED,
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
    },
];

/// One that is not connected too, which hears nothing of the stack's refusals.
const TOLD: &str =
    "a socket of the host is told at once of what would be dropped, instead of waiting in vain";
/// It used to have one selector for all that it watched.
const LABELS: &str = "labels keep us from Services and slices alike, as they did earlier kube-proxies; 1.36 looks for each at one kind";
const CONNECTED: &str =
    "a pod's stream is connected to the endpoint, as to any other pod: there is nothing to translate";
