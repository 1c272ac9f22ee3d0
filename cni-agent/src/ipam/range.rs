//! One range of addresses, and which of them pods can have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// A range as numbers, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    network: IpNetwork,
    first: u128,
    last: u128,
}

impl Range {
    /// Left out, as everybody who shares such a range expects it: the network's own address, the first one, which is a
    /// gateway's by custom, and IPv4's broadcast address. Ranges of one or two addresses are used whole.
    pub(super) fn new(network: IpNetwork) -> Self {
        let bits = if network.is_ipv4() { 32 } else { 128 };
        let host_bits = bits - u32::from(network.prefix());
        let base = number(network.network());
        let size_less_one = 1u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1);
        let end = base.saturating_add(size_less_one);
        let (first, last) = match host_bits {
            0 | 1 => (base, end),
            _ if network.is_ipv4() => (base + 2, end - 1),
            _ => (base + 2, end),
        };
        Self { network, first, last }
    }

    pub(super) fn network(&self) -> IpNetwork {
        self.network
    }

    pub(super) fn is_v4(&self) -> bool {
        self.network.is_ipv4()
    }

    pub(super) fn first(&self) -> IpAddr {
        self.address(self.first)
    }

    /// The one behind `ip`, if there is one.
    pub(super) fn next(&self, ip: IpAddr) -> Option<IpAddr> {
        let next = number(ip).checked_add(1)?;
        (next <= self.last).then(|| self.address(next))
    }

    /// Whether pods get this address.
    pub(super) fn gives(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.is_v4() && (self.first..=self.last).contains(&number(ip))
    }

    pub(super) fn size(&self) -> u64 {
        u64::try_from(self.last - self.first).map_or(u64::MAX, |size| size.saturating_add(1))
    }

    fn address(&self, number: u128) -> IpAddr {
        if self.is_v4() {
            // A number of an IPv4 range came from 32 bits.
            IpAddr::V4(Ipv4Addr::from_bits(number as u32))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits(number))
        }
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}
