//! Real datagrams from a pod, and from a host behind the kernel's own masquerade, to one place: each answered, each from
//! another port.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use cni_tests::bench::series::Samples;
use cni_tests::lab::{Families, Lab, Plan, Pod, Routing};
use cni_tests::netns::Namespace;

use super::{MILLRACE, ports};

pub(crate) const KERNEL: &str = "kernel masquerade";
pub(crate) const BEFORE: &str = "datagrams to one place, ports given before one is refused";
const ALL: &str = "datagrams to one place, ports given";
/// What takes longer is lost.
const LOST: Duration = Duration::from_millis(50);
/// After so many that were lost the rest is, too.
const ENOUGH: usize = 100;

/// Our pods, and a server that knows nothing of them.
struct Ours {
    lab: Lab,
    client: Pod,
}

/// A client, a router that masquerades, a server.
struct Theirs {
    client: Namespace,
    _router: Namespace,
    server: Namespace,
}

impl Theirs {
    fn new(round: usize) -> Result<Self> {
        let inside = |what| Namespace::create(&format!("mrbench-{}-{what}{round}", std::process::id()));
        let (client, router, server) = (inside("client")?, inside("router")?, inside("server")?);
        for (end, port, net) in [(&client, "inner", 1), (&server, "outer", 2)] {
            router.ip(&format!("link add {port} type veth peer name tmp0"))?;
            router.ip(&format!("link set tmp0 netns {} name eth0", end.name()))?;
            router.ip(&format!(
                "address add 10.98.{net}.1/24 dev {port}\nlink set {port} up"
            ))?;
            end.ip(&format!(
                "address add 10.98.{net}.2/24 dev eth0\nlink set eth0 up"
            ))?;
        }
        client.ip("route add default via 10.98.1.1")?;
        router.set("net/ipv4/ip_forward", "1")?;
        let rules = "add table ip nat; add chain ip nat out { type nat hook postrouting priority 100 ; }; \
                     add rule ip nat out oifname outer meta l4proto udp masquerade to :32768-65535";
        let output = router.command("nft").arg(rules).output().context("nft")?;
        ensure!(
            output.status.success(),
            "nft: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Self {
            client,
            _router: router,
            server,
        })
    }
}

/// Sends from one port after the other; notes how many others the server saw.
fn fill(
    name: &str,
    client: &Namespace,
    from: IpAddr,
    server: &UdpSocket,
    samples: &mut Samples,
) -> Result<()> {
    let to = server.local_addr()?;
    server.set_read_timeout(Some(LOST))?;
    let (mut seen, mut first_lost, mut lost) = (BTreeSet::new(), None, 0);
    client.run(|| -> Result<()> {
        for port in (1024..).take(ports() as usize * 101 / 100) {
            let socket = UdpSocket::bind((from, port))?;
            socket.send_to(b"q", to)?;
            let mut buffer = [0; 1];
            match server.recv_from(&mut buffer) {
                Ok((_, peer)) => {
                    ensure!(seen.insert(peer), "{peer} was given twice");
                    server.send_to(b"a", peer)?;
                    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
                    socket.recv(&mut buffer).context("the answer")?;
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    first_lost.get_or_insert(seen.len());
                    lost += 1;
                    if lost >= ENOUGH {
                        break;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    })?;
    let percent = |number: usize| number as f64 / f64::from(ports()) * 100.0;
    samples.add(name, BEFORE, "%", percent(first_lost.unwrap_or(seen.len())));
    samples.add(name, ALL, "%", percent(seen.len()));
    Ok(())
}

pub(crate) fn measure(rounds: usize, samples: &mut Samples) -> Result<()> {
    let lab = Lab::start(Plan::new(Routing::Direct, Families::V4).nodes(1))?;
    let client = lab.nodes[0].add_pod("client")?;
    let ours = Ours { lab, client };
    for round in 0..rounds {
        // Four rounds fill the table, which then gives up connections of this one: their ports are given again.
        let flushed = ours.lab.nodes[0]
            .millrace(["conntrack", "flush", "--all"])
            .output()?;
        ensure!(flushed.status.success(), "millrace conntrack flush: {flushed:?}");
        let there = SocketAddr::new(ours.lab.outside_address(true), 0);
        // Another port is another place.
        let server = ours.lab.outside.run(|| UdpSocket::bind(there))?;
        fill(
            MILLRACE,
            &ours.client.namespace,
            ours.client.ip(true),
            &server,
            samples,
        )?;
        let theirs = Theirs::new(round)?;
        let server = theirs.server.run(|| UdpSocket::bind("10.98.2.2:0"))?;
        fill(KERNEL, &theirs.client, [10, 98, 1, 2].into(), &server, samples)?;
    }
    Ok(())
}
