//! The pod's end of the pair: addresses, gateways that need no neighbour discovery, routes.

use super::{failed, inspect, message, namespace::Namespace, netlink::Netlink, sysctl};
use cni_plugin::{CniError, code, rpc::Allocated};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkMessage};
use nix::libc;
use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

/// A container's namespace with a netlink socket in it.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: Namespace,
    pub(crate) netlink: Netlink,
}

impl Pod {
    pub(crate) fn open(netns: &str) -> Result<Self, CniError> {
        let namespace = Namespace::open(netns)?;
        let netlink = namespace.run(Netlink::open)??;
        Ok(Self { namespace, netlink })
    }

    /// The interface of that name, if there is one.
    pub(crate) fn link(&mut self, ifname: &str) -> Result<Option<LinkMessage>, CniError> {
        match self.netlink.get(message::get_link(ifname)) {
            Ok(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link)),
            Ok(_) => Err(failed(
                format!("cannot look {ifname} up in the container"),
                "unexpected answer",
            )),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(failed(format!("cannot look {ifname} up in the container"), error)),
        }
    }

    /// Configures the pod's end. It comes up here, because routes need that, but carries nothing while the host's
    /// end is down.
    pub(crate) fn configure(&mut self, ifname: &str, endpoint: &Allocated) -> Result<(), CniError> {
        let link = self.link(ifname)?.ok_or_else(|| {
            CniError::new(
                code::TRY_AGAIN_LATER,
                format!("{ifname} has gone from the container"),
            )
            .with_details("an agent that begins anew removes what is not complete")
        })?;
        let ifindex = link.header.index;
        let has_ipv6 = endpoint.addresses.iter().any(|address| address.is_ipv6());
        self.namespace.run(|| sysctl::prepare_ipv6(ifname, has_ipv6))??;
        let mut changes = vec![message::no_link_local(ifindex)];
        changes.extend(
            endpoint
                .addresses
                .iter()
                .map(|address| message::add_address(ifindex, *address)),
        );
        changes.push(message::set_up(ifindex));
        for gateway in &endpoint.gateways {
            changes.push(message::permanent_neighbour(ifindex, *gateway, endpoint.host_mac));
            changes.push(message::link_route(ifindex, *gateway));
        }
        for route in &endpoint.routes {
            let gateway = gateway_for(endpoint, route.dst.ip())?;
            changes.push(message::gateway_route(ifindex, route, gateway));
        }
        self.netlink.apply(changes)
    }

    /// Waits until the kernel sends what the pod gives to its end, now that the host's is up.
    ///
    /// The pod's end came up before it had a peer to send to, and so without a queue. It gets one when a worker of the kernel
    /// has noticed the peer (`net/core/link_watch.c`); until then what the pod sends is dropped without a word. From Linux
    /// 6.5 on the question itself has that done.
    pub(crate) fn wait_until_it_sends(&mut self, ifname: &str) -> Result<(), CniError> {
        const PAUSE: Duration = Duration::from_millis(1);
        const PATIENCE: Duration = Duration::from_secs(5);
        let begun = Instant::now();
        loop {
            let sends = self.link(ifname)?.as_ref().is_some_and(inspect::has_queue);
            if sends {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(CniError::new(
                    code::TRY_AGAIN_LATER,
                    format!("the kernel does not begin to send what {ifname} is given"),
                )
                .with_details("its end of the pair has no queue, although both ends are up"));
            }
            thread::sleep(PAUSE);
        }
    }
}

/// The gateway of the address's family.
pub(crate) fn gateway_for(endpoint: &Allocated, address: IpAddr) -> Result<IpAddr, CniError> {
    endpoint
        .gateways
        .iter()
        .copied()
        .find(|gateway| gateway.is_ipv4() == address.is_ipv4())
        .ok_or_else(|| {
            CniError::new(
                code::PROTOCOL,
                "the Millrace agent gave a route without a gateway",
            )
            .with_details(format!("no gateway of the family of {address}"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::host;
    use cni_plugin::Mac;
    use nix::sched::{CloneFlags, unshare};
    use std::{fs, net::UdpSocket, sync::mpsc};

    /// Enough for a kernel that takes its time to be seen: without the wait it did for 28 of them.
    const PAIRS: u8 = 100;

    fn endpoint(number: u8) -> Allocated {
        Allocated {
            endpoint_id: 1,
            host_ifname: format!("host{number}"),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            host_mac: Mac([2, 0, 0, 0, 0, 2]),
            addresses: vec!["10.77.0.2/32".parse().unwrap()],
            gateways: vec![cni_plugin::GATEWAY_V4.into()],
            mtu: 1500,
            routes: Vec::new(),
        }
    }

    fn received(host_ifname: &str) -> String {
        let devices = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let line = devices
            .lines()
            .find_map(|line| line.trim().strip_prefix(host_ifname)?.strip_prefix(':'));
        line.unwrap().split_whitespace().nth(1).unwrap().to_owned()
    }

    /// Attaches a pod and has it send; gives how many packets came.
    fn attach_and_send(path: &str, netlink: &mut Netlink, number: u8) -> String {
        let mut pod = Pod::open(path).unwrap();
        let endpoint = endpoint(number);
        let index = host::create_pair(netlink, &pod.namespace, "eth0", &endpoint).unwrap();
        pod.configure("eth0", &endpoint).unwrap();
        let socket = pod
            .namespace
            .run(|| UdpSocket::bind("10.77.0.2:0"))
            .unwrap()
            .unwrap();
        host::bring_up(netlink, index, &endpoint).unwrap();
        pod.wait_until_it_sends("eth0").unwrap();
        socket.send_to(b"first", (cni_plugin::GATEWAY_V4, 9)).unwrap();
        let received = received(&endpoint.host_ifname);
        host::remove_pair(&endpoint.host_ifname).unwrap();
        received
    }

    #[test]
    fn what_a_pod_sends_first_is_sent() {
        if !nix::unistd::geteuid().is_root() {
            let why = "NOT RUN: what_a_pod_sends_first_is_sent: needs root, for namespaces";
            assert!(std::env::var_os("CI").is_none(), "{why}");
            eprintln!("{why}");
            return;
        }
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let container = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let thread = nix::unistd::gettid();
            tell.send(format!("/proc/self/task/{thread}/ns/net")).unwrap();
            let _ = ended.recv();
        });
        let path = told.recv().unwrap();
        let node = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let mut netlink = Netlink::open().unwrap();
            (0..PAIRS)
                .map(|number| attach_and_send(&path, &mut netlink, number))
                .collect::<Vec<_>>()
        });
        let received = node.join().unwrap();
        drop(end);
        container.join().unwrap();
        assert_eq!(received, vec!["1"; usize::from(PAIRS)]);
    }
}
