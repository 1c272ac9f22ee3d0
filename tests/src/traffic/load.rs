//! Traffic of several kinds at once, while something else happens.

use std::net::{IpAddr, SocketAddr};

use super::{Echo, Steady};
use crate::netns::Namespace;

/// Who is dialled by each kind of traffic.
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    /// A TCP connection that lasts.
    pub lasting: SocketAddr,
    /// TCP connections one after the other.
    pub new: SocketAddr,
    /// A UDP socket that lasts.
    pub datagrams: SocketAddr,
}

/// Everything that goes on between some networks, by name.
#[derive(Debug, Default)]
pub struct Load {
    flows: Vec<(String, Steady)>,
    servers: Vec<Echo>,
}

impl Load {
    /// Adds each kind of traffic to servers that are there.
    #[track_caller]
    pub fn towards(&mut self, from: &Namespace, to: Targets) {
        for (kind, to, begun) in [
            ("a connection", to.lasting, Steady::tcp(from, to.lasting)),
            ("new connections", to.new, Steady::connections(from, to.new)),
            ("datagrams", to.datagrams, Steady::udp(from, to.datagrams)),
        ] {
            let name = format!("{kind} from {} to {to}", from.name());
            match begun {
                Ok(steady) => self.flows.push((name, steady)),
                Err(error) => panic!("{name}: {error:#}"),
            }
        }
    }

    /// The same to servers of its own in another network.
    #[track_caller]
    pub fn between(&mut self, from: &Namespace, there: &Namespace, ip: IpAddr) {
        let servers = [Echo::tcp(there, ip, 0), Echo::udp(there, ip, 0)];
        let [tcp, udp] =
            servers.map(|server| server.unwrap_or_else(|error| panic!("serving at {ip}: {error:#}")));
        let targets = Targets {
            lasting: tcp.address,
            new: tcp.address,
            datagrams: udp.address,
        };
        self.servers.extend([tcp, udp]);
        self.towards(from, targets);
    }

    /// Waits until each kind has had so many more exchanges.
    #[track_caller]
    pub fn goes_on(&self, exchanges: u64) {
        for (name, steady) in &self.flows {
            let before = steady.exchanges();
            steady.wait_for(exchanges);
            let more = steady.exchanges() - before;
            assert!(
                more >= exchanges,
                "{name}: ended after {more} more exchanges: {:?}",
                steady.failures()
            );
        }
    }

    /// What was lost.
    pub fn end(self) -> Vec<String> {
        let ends = self.flows.into_iter().map(|(name, steady)| (name, steady.stop()));
        let failures = ends.flat_map(|(name, tally)| {
            eprintln!("{name}: {} exchanges", tally.exchanges);
            let failures = tally.failures.into_iter();
            failures.map(move |failure| format!("{name}: {failure}"))
        });
        failures.collect()
    }
}
