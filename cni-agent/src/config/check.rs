//! What is wrong with settings that could be read.

use std::{fmt, path::Path};

use ipnetwork::IpNetwork;

use super::{Config, Families, Mode, Routing};

/// A setting that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, as it stands in the file.
    pub key: String,
    pub text: String,
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.key, self.text, self.remedy)
    }
}

/// The least that IPv6 works with, and IPv4's own least.
const LEAST_MTU_V6: u32 = 1280;
const LEAST_MTU_V4: u32 = 576;

pub(super) struct Problems(Vec<Problem>);

impl Problems {
    pub(super) fn add(&mut self, key: impl Into<String>, text: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Problem {
            key: key.into(),
            text: text.into(),
            remedy: remedy.into(),
        });
    }
}

impl Config {
    /// Everything that is wrong, not only the first thing.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Problems(Vec::new());
        self.check_node(&mut problems);
        self.check_ranges(&mut problems);
        self.check_numbers(&mut problems);
        self.check_mode(&mut problems);
        self.check_paths(&mut problems);
        self.kubernetes.check(&mut problems);
        self.cni.check(&mut problems);
        self.services.check(&mut problems);
        problems.0
    }

    fn check_node(&self, problems: &mut Problems) {
        if self.node_name.is_empty() {
            problems.add(
                "nodeName",
                "the host has no name to take",
                "set it to the name of this node's Node object",
            );
        }
        for name in self.devices.iter().chain(std::iter::once(&self.vxlan.device)) {
            let key = if *name == self.vxlan.device {
                "vxlan.device"
            } else {
                "devices"
            };
            if !is_device_name(name) {
                problems.add(
                    key,
                    format!("`{name}` cannot be a device's name"),
                    "use 1 to 15 characters without spaces and slashes",
                );
            }
        }
    }

    fn check_ranges(&self, problems: &mut Problems) {
        let lists = [
            ("podCIDRs", &self.pod_cidrs),
            (
                "masquerade.nonMasqueradeCIDRs",
                &self.masquerade.non_masquerade_cidrs,
            ),
            ("services.cidrs", &self.services.cidrs),
            ("services.viaStackCIDRs", &self.services.via_stack_cidrs),
        ];
        for (key, list) in lists {
            for range in list {
                if range.ip() != range.network() {
                    problems.add(
                        key,
                        format!("{range} has bits set behind its prefix"),
                        format!("write {}/{}", range.network(), range.prefix()),
                    );
                }
            }
        }
        for (i, range) in self.pod_cidrs.iter().enumerate() {
            if !self.families.has(range.ip()) {
                problems.add(
                    "podCIDRs",
                    format!("{range} is of a family that `families` switches off"),
                    "take it out, or set families: dual",
                );
            }
            if let Some(other) = self.pod_cidrs[..i].iter().find(|other| overlap(other, range)) {
                problems.add(
                    "podCIDRs",
                    format!("{range} and {other} overlap"),
                    "take one of them out",
                );
            }
        }
        let missing = |v4: bool| !self.pod_cidrs.iter().any(|range| range.is_ipv4() == v4);
        if !self.pod_cidrs.is_empty() && self.families == Families::Dual && (missing(true) || missing(false))
        {
            problems.add(
                "podCIDRs",
                "families is dual but there are ranges of one family only",
                "add a range of the other family, or set families to v4 or v6",
            );
        }
    }

    fn check_numbers(&self, problems: &mut Problems) {
        let least = if self.families.v6() {
            LEAST_MTU_V6
        } else {
            LEAST_MTU_V4
        };
        if self.mtu != 0 && !(least..=65535).contains(&self.mtu) {
            problems.add(
                "mtu",
                format!("{} is out of range", self.mtu),
                format!("use {least} to 65535, or 0 to have it worked out"),
            );
        }
        if self.snat_ports.first > self.snat_ports.last || self.snat_ports.first < 1024 {
            problems.add(
                "snatPorts",
                format!(
                    "{} to {} is no range",
                    self.snat_ports.first, self.snat_ports.last
                ),
                "first must be at least 1024 and not above last",
            );
        }
        if self.routing == Routing::Vxlan && self.vxlan.port == 0 {
            problems.add("vxlan.port", "0 is no port", "leave it out for 4789");
        }
        if self.vxlan.vni == 0 || self.vxlan.vni >= 1 << 24 {
            problems.add(
                "vxlan.vni",
                format!("{} does not fit", self.vxlan.vni),
                "use 1 to 16777215, the same on every node",
            );
        }
        if self.maps.events != 0 && (!self.maps.events.is_power_of_two() || self.maps.events < 4096) {
            problems.add(
                "maps.events",
                format!("{} is not a size that the kernel takes", self.maps.events),
                "use a power of two, at least 4096",
            );
        }
    }

    fn check_mode(&self, problems: &mut Problems) {
        if self.services.mode == Mode::Dsr && self.routing == Routing::Direct {
            problems.add(
                "services.mode",
                "dsr needs the tunnel, inside of which a packet names its endpoint, and routing is direct",
                "set routing to vxlan, or mode to snat",
            );
        }
    }

    fn check_paths(&self, problems: &mut Problems) {
        let paths = &self.paths;
        let all: [(&str, &Path); 8] = [
            ("paths.bpffs", &paths.bpffs),
            ("paths.cgroup", &paths.cgroup),
            ("paths.procSys", &paths.proc_sys),
            ("paths.resolvConf", &paths.resolv_conf),
            ("paths.manifests", &paths.manifests),
            ("paths.state", &paths.state),
            ("paths.agentSocket", &paths.agent_socket),
            ("paths.adminSocket", &paths.admin_socket),
        ];
        // Empty, it names nothing.
        let switch = Some(("paths.rcuExpedited", &*paths.rcu_expedited));
        let switch = switch.filter(|(_, path)| !path.as_os_str().is_empty());
        for (key, path) in all.into_iter().chain(switch) {
            if !path.is_absolute() {
                problems.add(
                    key,
                    format!("{} is relative", path.display()),
                    "begin it with a slash",
                );
            }
        }
        // sun_path has 108 bytes, its end included.
        for (key, path) in &all[6..] {
            if path.as_os_str().len() > 107 {
                problems.add(
                    *key,
                    "a socket's path has 107 characters at most",
                    "choose a shorter one",
                );
            }
        }
        if paths.agent_socket == paths.admin_socket {
            problems.add(
                "paths.adminSocket",
                "is the agent's socket too",
                "give each its own path",
            );
        }
    }
}

fn is_device_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name
            .chars()
            .any(|c| c.is_whitespace() || c == '/' || c == ':' || c.is_control())
}

pub(crate) fn overlap(a: &IpNetwork, b: &IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}
