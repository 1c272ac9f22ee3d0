//! The devices, routes and neighbours of the world in the kernel.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::content::{NARROW, NEIGHBOURS};
use super::ifindex;
use crate::memory::Frame;

fn ip_command(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .context("ip (iproute2)")?;
    ensure!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The devices of the calling thread's namespace, with the indices of [`ifindex`].
pub(super) fn devices() -> Result<()> {
    for index in [
        ifindex::POD_A,
        ifindex::POD_B,
        ifindex::POD_STACK,
        ifindex::POD_RULES,
        ifindex::POD_LIMIT,
        ifindex::POD_PACED,
        ifindex::NETDEV,
        ifindex::TUNNEL,
    ] {
        ip_command(&format!(
            "link add d{index} index {index} type veth peer name p{index}"
        ))?;
        // It says nothing by itself, not even that it listens to a multicast group (RFC 3590): an attached program would run,
        // and write over what the last run left.
        std::fs::write(format!("/proc/sys/net/ipv6/conf/p{index}/disable_ipv6"), "1")?;
        ip_command(&format!("link set p{index} up"))?;
        ip_command(&format!("link set d{index} up"))?;
    }
    ip_command("link set lo up")?;
    let device = format!("d{}", ifindex::NETDEV);
    ip_command(&format!("link set {device} address {}", text(Frame::LINK[1])))?;
    ip_command(&format!("addr add 192.0.2.1/24 dev {device}"))?;
    ip_command(&format!("addr add 2001:db8::1/64 dev {device} nodad"))?;
    for family in ["ipv4", "ipv6"] {
        std::fs::write(format!("/proc/sys/net/{family}/conf/all/forwarding"), "1")?;
    }
    ip_command(&format!("route add default via 192.0.2.254 dev {device}"))?;
    ip_command(&format!("route add default via 2001:db8::fe dev {device}"))?;
    for neighbour in NEIGHBOURS {
        let mac = text(Frame::LINK[0]);
        ip_command(&format!(
            "neigh add {neighbour} lladdr {mac} dev {device} nud permanent"
        ))?;
    }
    for (destination, gateway) in [
        ("198.51.100.77", "192.0.2.254"),
        ("2001:db8:5::/48", "2001:db8::fe"),
    ] {
        ip_command(&format!(
            "route add {destination} via {gateway} dev {device} mtu lock {NARROW}"
        ))?;
    }
    ip_command("route add unreachable 203.0.113.0/24")?;
    ip_command("route add unreachable 2001:db8:dead::/48")?;
    ip_command("rule add from 192.0.2.1 to 198.51.100.9 prohibit")?;
    ip_command("-6 rule add from 2001:db8::1 to 2001:db8:beef::9 prohibit")
}
