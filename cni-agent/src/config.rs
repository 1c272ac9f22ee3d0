//! The agent's settings: one YAML file, then the environment and the command line on top of it.

mod check;
mod cluster;
mod cni;
mod kubernetes;
mod load;
mod services;

use std::{fmt, net::IpAddr, net::SocketAddr, path::PathBuf};

use cni_plugin::{
    AGENT_SOCKET, STATE_DIR,
    expedite::{Expedite, RCU_EXPEDITED},
};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

pub use check::Problem;
pub(crate) use check::overlap;
pub use cni::{CniConfig, OnExit};
pub use kubernetes::{KubernetesConfig, KubernetesMode, service_address};
pub use load::ConfigError;
pub use services::{Algorithm, Mode, NodePortAddresses, Proxy, ServicesConfig, SocketLb, Xdp};

/// Where the file is unless somebody says otherwise.
pub const CONFIG_FILE: &str = "/etc/millrace/config.yaml";

/// The whole of the settings. Every key may be left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// The name of this node's Node object. Empty: the host's name.
    pub node_name: String,
    pub families: Families,
    pub routing: Routing,
    /// Ranges that this node's pods get their addresses from. Empty: those of its Node object.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNetwork>,
    /// The node's devices. Empty: found by their kind, addresses and default routes.
    pub devices: Vec<String>,
    /// The MTU of pods. 0: worked out from the devices and the tunnel.
    pub mtu: u32,
    pub masquerade: Masquerade,
    pub vxlan: VxlanConfig,
    pub snat_ports: PortRange,
    pub ipam: IpamConfig,
    pub services: ServicesConfig,
    pub kubernetes: KubernetesConfig,
    pub cni: CniConfig,
    pub maps: MapSizes,
    pub paths: Paths,
    /// Health, readiness and metrics.
    pub http: SocketAddr,
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            families: Families::default(),
            routing: Routing::default(),
            pod_cidrs: Vec::new(),
            devices: Vec::new(),
            mtu: 0,
            masquerade: Masquerade::default(),
            vxlan: VxlanConfig::default(),
            snat_ports: PortRange::default(),
            ipam: IpamConfig::default(),
            services: ServicesConfig::default(),
            kubernetes: KubernetesConfig::default(),
            cni: CniConfig::default(),
            maps: MapSizes::default(),
            paths: Paths::default(),
            http: SocketAddr::from(([127, 0, 0, 1], 9765)),
            log: LogConfig::default(),
        }
    }
}

/// The address families that pods have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Families {
    #[default]
    Dual,
    V4,
    V6,
}

impl Families {
    pub fn v4(self) -> bool {
        self != Self::V6
    }

    pub fn v6(self) -> bool {
        self != Self::V4
    }

    pub fn has(self, ip: IpAddr) -> bool {
        if ip.is_ipv4() { self.v4() } else { self.v6() }
    }
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dual => "dual",
            Self::V4 => "v4",
            Self::V6 => "v6",
        })
    }
}

/// How pods of other nodes are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Routing {
    /// By the network between the nodes: it is one link, or it knows the pod ranges.
    Direct,
    /// Through a tunnel between the nodes.
    #[default]
    Vxlan,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Masquerade {
    /// What pods send to the outside of the cluster gets the node's address.
    pub enabled: bool,
    /// Destinations that see the pod's own address. The pod ranges and addresses of all nodes always do.
    #[serde(rename = "nonMasqueradeCIDRs")]
    pub non_masquerade_cidrs: Vec<IpNetwork>,
}

impl Default for Masquerade {
    fn default() -> Self {
        Self {
            enabled: true,
            non_masquerade_cidrs: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct VxlanConfig {
    pub device: String,
    pub port: u16,
    pub vni: u32,
}

impl Default for VxlanConfig {
    fn default() -> Self {
        Self {
            device: "millrace.vx".to_owned(),
            port: 4789,
            vni: 19794,
        }
    }
}

/// Both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl Default for PortRange {
    fn default() -> Self {
        Self {
            first: 32768,
            last: 65535,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct IpamConfig {
    /// For so long an address that was given back is not given again.
    pub quarantine_seconds: u32,
    /// The annotation `millrace.dev/addresses` of a pod is honoured. Otherwise it is ignored: whoever may write pods
    /// could take any address.
    pub static_addresses: bool,
}

impl Default for IpamConfig {
    fn default() -> Self {
        Self {
            quarantine_seconds: 60,
            static_addresses: false,
        }
    }
}

/// Entries of maps; 0: the default of the layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct MapSizes {
    pub endpoints: u32,
    pub peers: u32,
    pub routes: u32,
    /// Connections, and the translations that belong to them.
    pub conntrack: u32,
    /// Connections that only their originator has been heard of.
    pub conntrack_new: u32,
    pub fragments: u32,
    /// Frontends: a ClusterIP's port is one, and one more each ClusterIP; each external address's port is two.
    pub services: u32,
    /// One for each endpoint of each Service's port, two where there is a local policy, and some to grow. As many rows for those of
    /// Services with affinity.
    pub service_slots: u32,
    /// Endpoints.
    pub backends: u32,
    pub service_ranges: u32,
    /// What sockets dialled that `services.socketLb` connected to an endpoint; the latest are kept.
    pub sockets: u32,
    /// Parts of 64 places of the tables of Services whose algorithm is Maglev. Half of them are for tables in use, the other
    /// half for those that take their place.
    pub maglev: u32,
    /// Bytes of the event ring; a power of two.
    pub events: u32,
}

/// Everything that stands in a file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Paths {
    pub bpffs: PathBuf,
    /// The root of the node's cgroups, of version 2 or with one in its folder `unified`.
    pub cgroup: PathBuf,
    /// Where kernel settings are written: a container's own `/proc/sys` is read-only.
    pub proc_sys: PathBuf,
    /// The kernel's switch for quick grace periods, used for the moment in which programs are attached. Empty: it is
    /// not touched.
    pub rcu_expedited: PathBuf,
    /// By whom the node resolves names: no Service takes over such an address.
    pub resolv_conf: PathBuf,
    pub manifests: PathBuf,
    pub state: PathBuf,
    pub agent_socket: PathBuf,
    pub admin_socket: PathBuf,
}

impl Paths {
    pub fn expedite(&self) -> Expedite {
        Expedite::new(&self.rcu_expedited, &self.agent_socket)
    }
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            bpffs: "/sys/fs/bpf/millrace".into(),
            cgroup: "/sys/fs/cgroup".into(),
            proc_sys: "/proc/sys".into(),
            rcu_expedited: RCU_EXPEDITED.into(),
            resolv_conf: "/etc/resolv.conf".into(),
            manifests: "/etc/millrace/manifests".into(),
            state: STATE_DIR.into(),
            agent_socket: AGENT_SOCKET.into(),
            admin_socket: "/run/millrace/admin.sock".into(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct LogConfig {
    pub format: LogFormat,
    /// As `tracing` filters are written: `info`, `debug`, `info,cni_agent=trace`.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::default(),
            filter: "info".to_owned(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// What the environment and the command line say. `None` and empty: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    pub node_name: Option<String>,
    pub families: Option<Families>,
    pub routing: Option<Routing>,
    pub pod_cidrs: Vec<IpNetwork>,
    pub devices: Vec<String>,
    pub mtu: Option<u32>,
    pub masquerade: Option<bool>,
    pub kubernetes: Option<KubernetesMode>,
    pub kubeconfig: Option<PathBuf>,
    pub api_servers: Vec<String>,
    pub bpffs: Option<PathBuf>,
    pub cgroup: Option<PathBuf>,
    pub proc_sys: Option<PathBuf>,
    pub rcu_expedited: Option<PathBuf>,
    pub manifests: Option<PathBuf>,
    pub state: Option<PathBuf>,
    pub agent_socket: Option<PathBuf>,
    pub admin_socket: Option<PathBuf>,
    pub http: Option<SocketAddr>,
    pub log_format: Option<LogFormat>,
    pub log_filter: Option<String>,
}

#[cfg(test)]
mod tests;
