//! Addresses of this node's pods.
//!
//! The pool keeps no file of its own. Who has an address is written in the record of the endpoint that has it, so the
//! two can never disagree; the pool is filled again from those records when the agent starts.
//!
//! Addresses are given in turn, not the lowest free one first: an address should come back as late as possible, because
//! other nodes, resolvers and peers remember it. The quarantine is only the floor of that.

mod range;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnetwork::IpNetwork;

use crate::status::PoolStatus;
use range::Range;

/// Why there is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    #[error("this node has no range of pod addresses; give its Node object spec.podCIDRs, or set podCIDRs")]
    NoRange,
    #[error(
        "no {family} address is left in {ranges}: {used} in use, {quarantined} resting; delete pods or add a range to podCIDRs"
    )]
    Exhausted {
        family: &'static str,
        ranges: String,
        used: usize,
        quarantined: usize,
    },
    #[error("{0} is not in a range of this node's pod addresses ({1}); ask for one that is")]
    Foreign(IpAddr, String),
    #[error("{0} is reserved in its range; ask for another one")]
    Reserved(IpAddr),
    #[error("{0} belongs to endpoint {1}; delete that one first or ask for another address")]
    Taken(IpAddr, u32),
    #[error("more than one {0} address was asked for; an endpoint has at most one")]
    Several(&'static str),
}

/// The addresses of one node.
#[derive(Debug, Default)]
pub struct Pool {
    ranges: Vec<Range>,
    used: BTreeMap<IpAddr, u32>,
    /// Given back; free again at that moment.
    resting: BTreeMap<IpAddr, Instant>,
    quarantine: Duration,
    /// The address given last, one a family.
    last: [Option<IpAddr>; 2],
}

impl Pool {
    pub fn new(quarantine: Duration) -> Self {
        Self {
            quarantine,
            ..Self::default()
        }
    }

    /// Sets the ranges. Addresses outside of them stay with whoever has them.
    pub fn set_ranges(&mut self, ranges: &[IpNetwork]) {
        let ranges: Vec<Range> = ranges.iter().copied().map(Range::new).collect();
        if ranges != self.ranges {
            self.ranges = ranges;
        }
    }

    pub fn has_ranges(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// One address of each family that has a range; `wanted` names addresses that must be the ones.
    pub fn allocate(
        &mut self,
        owner: u32,
        wanted: &[IpAddr],
        now: Instant,
    ) -> Result<Vec<IpAddr>, IpamError> {
        if self.ranges.is_empty() {
            return Err(IpamError::NoRange);
        }
        let mut addresses = Vec::new();
        for v4 in [true, false] {
            let mut of_family = wanted.iter().filter(|ip| ip.is_ipv4() == v4);
            let first = of_family.next();
            if of_family.next().is_some() {
                return Err(IpamError::Several(family(v4)));
            }
            if let Some(ip) = first {
                self.may_take(*ip)?;
                addresses.push(*ip);
            } else if self.ranges.iter().any(|range| range.is_v4() == v4) {
                addresses.push(self.find(v4, now)?);
            }
        }
        // Nothing is taken before everything was found.
        for ip in &addresses {
            self.take(*ip, owner);
            if !wanted.contains(ip) {
                self.last[usize::from(ip.is_ipv4())] = Some(*ip);
            }
        }
        Ok(addresses)
    }

    /// Notes that `owner` has `ip`, wherever it comes from: a record on disk, another IPAM plugin.
    pub fn claim(&mut self, ip: IpAddr, owner: u32) -> Result<(), IpamError> {
        match self.used.get(&ip) {
            Some(other) if *other != owner => Err(IpamError::Taken(ip, *other)),
            _ => {
                self.take(ip, owner);
                Ok(())
            }
        }
    }

    /// Gives back whatever `owner` has of these; it rests before it is given again.
    pub fn release(&mut self, owner: u32, addresses: &[IpAddr], now: Instant) {
        for ip in addresses {
            if self.used.get(ip) == Some(&owner) {
                self.used.remove(ip);
                self.rest(*ip, now);
            }
        }
    }

    /// Gives back what nobody ever used.
    pub fn abandon(&mut self, owner: u32, addresses: &[IpAddr]) {
        for ip in addresses {
            if self.used.get(ip) == Some(&owner) {
                self.used.remove(ip);
            }
        }
    }

    /// Starts the quarantine of an address that was given back before the agent began. The clock of that time is not
    /// ours, so the whole quarantine counts again.
    pub fn rest(&mut self, ip: IpAddr, now: Instant) {
        if !self.quarantine.is_zero() && !self.used.contains_key(&ip) {
            self.resting.insert(ip, now + self.quarantine);
        }
    }

    /// Ends what has rested enough, and says what that was.
    pub fn wake(&mut self, now: Instant) -> Vec<IpAddr> {
        let awake: Vec<IpAddr> = self
            .resting
            .iter()
            .filter(|(_, end)| **end <= now)
            .map(|(ip, _)| *ip)
            .collect();
        for ip in &awake {
            self.resting.remove(ip);
        }
        awake
    }

    pub fn is_resting(&self, ip: IpAddr) -> bool {
        self.resting.contains_key(&ip)
    }

    /// When [`Pool::wake`] will have something to do.
    pub fn next_wake(&self) -> Option<Instant> {
        self.resting.values().min().copied()
    }

    pub fn status(&self) -> Vec<PoolStatus> {
        self.ranges
            .iter()
            .map(|range| {
                let within = |ip: &&IpAddr| range.gives(**ip);
                let used = self.used.keys().filter(within).count() as u64;
                let quarantined = self.resting.keys().filter(within).count() as u64;
                PoolStatus {
                    range: range.network(),
                    used,
                    quarantined,
                    free: range.size().saturating_sub(used).saturating_sub(quarantined),
                }
            })
            .collect()
    }

    /// An address that was asked for by name may be one that rests: whoever asks for it knows why.
    fn may_take(&self, ip: IpAddr) -> Result<(), IpamError> {
        let Some(range) = self.ranges.iter().find(|range| range.network().contains(ip)) else {
            return Err(IpamError::Foreign(ip, self.names(ip.is_ipv4())));
        };
        if !range.gives(ip) {
            return Err(IpamError::Reserved(ip));
        }
        match self.used.get(&ip) {
            Some(owner) => Err(IpamError::Taken(ip, *owner)),
            None => Ok(()),
        }
    }

    fn take(&mut self, ip: IpAddr, owner: u32) {
        self.resting.remove(&ip);
        self.used.insert(ip, owner);
    }

    fn find(&self, v4: bool, now: Instant) -> Result<IpAddr, IpamError> {
        let ranges: Vec<&Range> = self.ranges.iter().filter(|range| range.is_v4() == v4).collect();
        let last = self.last[usize::from(v4)];
        let start = last
            .and_then(|ip| ranges.iter().position(|range| range.gives(ip)))
            .unwrap_or(0);
        // The range of the last address from behind it, the others, and at the end that range's beginning.
        for turn in 0..=ranges.len() {
            let Some(range) = ranges.get((start + turn) % ranges.len().max(1)) else {
                break;
            };
            let after = if turn == 0 {
                last.filter(|ip| range.gives(*ip))
            } else {
                None
            };
            if let Some(ip) = self.free_in(range, after, now) {
                return Ok(ip);
            }
        }
        Err(IpamError::Exhausted {
            family: family(v4),
            ranges: self.names(v4),
            used: self.used.keys().filter(|ip| ip.is_ipv4() == v4).count(),
            quarantined: self.resting.keys().filter(|ip| ip.is_ipv4() == v4).count(),
        })
    }

    /// The first free address of a range behind `after`. The walk is over addresses that are not free, so it ends
    /// after as many steps as there are of those, however large the range.
    fn free_in(&self, range: &Range, after: Option<IpAddr>, now: Instant) -> Option<IpAddr> {
        let mut candidate = match after {
            Some(ip) => range.next(ip)?,
            None => range.first(),
        };
        loop {
            let resting = self.resting.get(&candidate).is_some_and(|end| *end > now);
            if !resting && !self.used.contains_key(&candidate) {
                return Some(candidate);
            }
            candidate = range.next(candidate)?;
        }
    }

    fn names(&self, v4: bool) -> String {
        let names: Vec<String> = self
            .ranges
            .iter()
            .filter(|range| range.is_v4() == v4)
            .map(|range| range.network().to_string())
            .collect();
        if names.is_empty() {
            format!("none of {}", family(v4))
        } else {
            names.join(", ")
        }
    }
}

fn family(v4: bool) -> &'static str {
    if v4 { "IPv4" } else { "IPv6" }
}

#[cfg(test)]
mod tests;
