//! What the packet path needs of its host: looked at, and where it is not so, said with what to do.
//!
//! The settings that the agent sets itself (forwarding, `rp_filter` of its own devices) are part of what it reconciles;
//! here they are looked at once more, because a container may have a read-only `/proc/sys`. Nothing here changes
//! anything.

mod daemon;
mod firewall;
pub mod kube_proxy;

use std::{fs, io, path::Path};

use cni_plugin::expedite::RCU_EXPEDITED;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol},
};
use nix::unistd::AccessFlags;
use serde::{Deserialize, Serialize};

use super::{Pins, devices::is_pod_device, linux::read_sysctl, netlink::Netlink, pins, sockets};
use crate::{
    config::{Config, Proxy, Routing, SocketLb},
    desired::SocketProgram,
};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    /// Some traffic may not pass, or may stop to.
    Warning,
    /// Pods have no network.
    Failed,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub state: State,
    pub detail: String,
    /// What to do; empty if nothing has to be done.
    pub remedy: String,
}

impl Check {
    fn new(name: &str, state: State, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            state,
            detail: detail.into(),
            remedy: remedy.into(),
        }
    }

    fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, State::Ok, detail, "")
    }

    /// As one of the agent's problems.
    pub fn problem(&self) -> String {
        format!("{}: {}; {}", self.name, self.detail, self.remedy)
    }
}

/// Looks at everything.
pub fn checks(config: &Config) -> Vec<Check> {
    let mut checks = vec![
        bpffs(&Pins::new(&config.paths.bpffs)),
        proc_sys(&config.paths.proc_sys),
    ];
    checks.extend(grace_periods(&config.paths.rcu_expedited));
    if config.families.v4() {
        checks.push(forwarding("net/ipv4/ip_forward"));
    }
    if config.families.v6() {
        checks.push(forwarding("net/ipv6/conf/all/forwarding"));
        checks.push(accept_ra());
    }
    checks.push(rp_filter(config));
    checks.extend(services_of_sockets(config));
    checks.extend(kube_proxy::check(config));
    checks.extend(daemon::checks(Path::new("/"), &config.vxlan.device));
    let port = (config.routing == Routing::Vxlan).then_some(config.vxlan.port);
    checks.extend(firewall::checks(port));
    checks
}

fn bpffs(pins: &Pins) -> Check {
    const NAME: &str = "bpf-filesystem";
    let root = pins.root().display();
    match pins::on_bpffs(pins.root()) {
        Ok(true) => Check::ok(NAME, format!("{root} is on one")),
        Ok(false) => Check::new(
            NAME,
            State::Failed,
            format!("{root} is not on one"),
            "`mount -t bpf bpf /sys/fs/bpf` on the host, or set paths.bpffs",
        ),
        Err(error) => Check::new(NAME, State::Failed, format!("{root}: {error}"), "run as root"),
    }
}

/// Whether Services are there for processes of the host.
fn services_of_sockets(config: &Config) -> Option<Check> {
    const NAME: &str = "services-of-sockets";
    let services = &config.services;
    if services.proxy != Proxy::Millrace {
        return None;
    }
    if services.socket_lb == SocketLb::Off {
        let remedy = "set services.socketLb to host or all if they should";
        let detail = "processes of the host reach none";
        return Some(Check::new(NAME, State::Warning, detail, remedy));
    }
    let (pins, cgroup) = (Pins::new(&config.paths.bpffs), &config.paths.cgroup);
    let remedy = "see the agent's log; name the root of the host's cgroups by paths.cgroup or --cgroup";
    Some(match sockets::running(&pins, cgroup) {
        Ok(running) if running.len() == SocketProgram::ALL.len() => {
            Check::ok(NAME, format!("programs run for {}", cgroup.display()))
        }
        Ok(running) => {
            let (running, all) = (running.len(), SocketProgram::ALL.len());
            let detail = format!("{running} of {all} programs run for {}", cgroup.display());
            Check::new(NAME, State::Warning, detail, remedy)
        }
        Err(error) => Check::new(
            NAME,
            State::Warning,
            format!("{}: {error}", cgroup.display()),
            remedy,
        ),
    })
}

fn proc_sys(root: &Path) -> Check {
    const NAME: &str = "proc-sys-writable";
    let folder = root.join("net");
    let path = folder.display();
    match nix::sys::statvfs::statvfs(&folder) {
        Ok(stat) if stat.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY) => Check::new(
            NAME,
            State::Warning,
            format!("{path} is read-only here"),
            "set net.ipv4.ip_forward=1, net.ipv6.conf.all.forwarding=1 and net.ipv4.conf.default.rp_filter=0 in \
             /etc/sysctl.d on the host, or mount the host's /proc/sys/net and name it by paths.procSys",
        ),
        Ok(_) => Check::ok(NAME, format!("{path} can be written")),
        Err(error) => Check::new(NAME, State::Warning, format!("{path}: {error}"), "mount /proc"),
    }
}

/// Whether pods start without waiting for the kernel's clock. No traffic depends on it.
fn grace_periods(switch: &Path) -> Option<Check> {
    const NAME: &str = "grace-periods";
    if switch.as_os_str().is_empty() || !Path::new(RCU_EXPEDITED).exists() {
        return None;
    }
    let slow = |detail: String, remedy: &str| {
        let detail = format!("pods start some 20 ms later: {detail}");
        Check::new(NAME, State::Ok, detail, remedy)
    };
    let normal = fs::read_to_string("/sys/kernel/rcu_normal");
    if normal.is_ok_and(|value| value.trim() == "1") {
        return Some(slow("the kernel takes its time (rcu_normal)".to_owned(), ""));
    }
    Some(match nix::unistd::access(switch, AccessFlags::W_OK) {
        Ok(()) => Check::ok(NAME, "expedited while programs are attached"),
        Err(errno) => slow(
            format!("{}: {}", switch.display(), errno.desc()),
            "mount the host's /sys/kernel/rcu_expedited and name it by paths.rcuExpedited",
        ),
    })
}

fn forwarding(path: &str) -> Check {
    let name = path.replace('/', ".");
    match read_sysctl(path) {
        Ok(Some(value)) if value != "0" => Check::ok(&name, "packets are forwarded"),
        Ok(Some(_)) => Check::new(
            &name,
            State::Failed,
            "the host forwards no packets",
            format!("`sysctl -w {name}=1`, and in /etc/sysctl.d; the agent sets it when it runs"),
        ),
        Ok(None) => Check::new(
            &name,
            State::Failed,
            "the kernel lacks this family",
            "set `families` accordingly",
        ),
        Err(error) => Check::new(&name, State::Warning, error.to_string(), "run as root"),
    }
}

/// The stricter of a device's own setting and that for all devices holds. Pods' host sides and the tunnel device hand
/// over packets whose way back is another device: a strict check drops them.
fn rp_filter(config: &Config) -> Check {
    const NAME: &str = "rp_filter";
    let value = |device: &str| -> u8 {
        let path = format!("net/ipv4/conf/{device}/rp_filter");
        read_sysctl(&path)
            .ok()
            .flatten()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    };
    let all = value("all");
    let names = pins::names(Path::new("/proc/sys/net/ipv4/conf")).unwrap_or_default();
    let strict: Vec<String> = names
        .into_iter()
        .filter(|name| is_pod_device(name) || *name == config.vxlan.device)
        .filter(|name| all.max(value(name)) == 1)
        .collect();
    if strict.is_empty() {
        return Check::ok(NAME, "not strict on Millrace's devices");
    }
    Check::new(
        NAME,
        State::Failed,
        format!("strict on {}", strict.join(", ")),
        "set net.ipv4.conf.all.rp_filter to 0 or 2 in /etc/sysctl.d: what it says for all devices cannot be undone for one",
    )
}

/// A host that forwards ignores router advertisements unless told otherwise, and so loses its default route when it
/// expires.
fn accept_ra() -> Check {
    const NAME: &str = "accept_ra";
    let devices = match advertised_default_routes() {
        Ok(devices) => devices,
        Err(error) => {
            return Check::new(
                NAME,
                State::Warning,
                format!("routes cannot be read: {error}"),
                "",
            );
        }
    };
    let deaf: Vec<String> = devices
        .into_iter()
        .filter(|device| {
            let path = format!("net/ipv6/conf/{device}/accept_ra");
            read_sysctl(&path).ok().flatten().as_deref() == Some("1")
        })
        .collect();
    if deaf.is_empty() {
        return Check::ok(NAME, "no default route hangs on it");
    }
    let settings: Vec<String> = deaf
        .iter()
        .map(|device| format!("net.ipv6.conf.{device}.accept_ra=2"))
        .collect();
    Check::new(
        NAME,
        State::Warning,
        format!(
            "the default route of {} was advertised and will expire",
            deaf.join(", ")
        ),
        format!("set {} in /etc/sysctl.d", settings.join(", ")),
    )
}

fn advertised_default_routes() -> io::Result<Vec<String>> {
    let mut query = RouteMessage::default();
    query.header = RouteHeader {
        address_family: AddressFamily::Inet6,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Ra,
        ..RouteHeader::default()
    };
    let mut devices = Vec::new();
    for answer in Netlink::open()?.dump(RouteNetlinkMessage::GetRoute(query))? {
        let RouteNetlinkMessage::NewRoute(route) = answer else {
            continue;
        };
        if route.header.destination_prefix_length != 0 {
            continue;
        }
        for attribute in &route.attributes {
            if let RouteAttribute::Oif(ifindex) = attribute
                && let Ok(name) = nix::net::if_::if_indextoname(*ifindex)
            {
                devices.push(name.to_string_lossy().into_owned());
            }
        }
    }
    devices.sort();
    devices.dedup();
    Ok(devices)
}
