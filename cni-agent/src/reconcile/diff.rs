//! What has to change, in the order in which it may.
//!
//! Additions come first, referenced before referrer; removals after them, the other way round. So at no moment does
//! anything in the kernel name something that is not there, and at no moment is there less than before and after.

use cni_ebpf::abi::{self, Route, route_action};

use super::Change;
use crate::desired::{Desired, Observed, Program, SocketPrograms, Table, Veth};

/// Whether anything may be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removals {
    /// A source has not said all it knows: what looks superfluous may be what it has not said yet.
    Held,
    Allowed,
}

pub fn diff(desired: &Desired, observed: &Observed, removals: Removals) -> Vec<Change> {
    let mut changes = Vec::new();
    add_base(desired, observed, &mut changes);
    for table in Table::ALL.iter().filter(|table| table.is_compared()) {
        add_entries(desired, observed, *table, Turn::First, &mut changes);
    }
    add_links(desired, observed, &mut changes);
    add_entries(desired, observed, Table::Routes, Turn::BehindLinks, &mut changes);
    add_routes(desired, observed, &mut changes);
    if removals == Removals::Allowed {
        remove(desired, observed, &mut changes);
    }
    changes
}

fn add_base(desired: &Desired, observed: &Observed, changes: &mut Vec<Change>) {
    for (path, value) in &desired.sysctls {
        // Those of a pod's device are set before it goes up, in any case before anything arrives there.
        if observed.sysctls.get(path) != Some(value) {
            changes.push(Change::SetSysctl {
                path: path.clone(),
                value: value.clone(),
            });
        }
    }
    let pacing = desired.pacing.difference(&observed.pacing);
    changes.extend(pacing.map(|ifindex| Change::Pace(*ifindex)));
    if let Some(vxlan) = &desired.vxlan
        && observed.vxlan.as_ref() != Some(vxlan)
    {
        changes.push(Change::SetVxlan(vxlan.clone()));
    }
    if let Some(config) = desired.config
        && observed.config != Some(config)
    {
        changes.push(Change::Load(config));
    }
}

/// When an entry may come. Programs that were loaded for direct routing know no tunnel, and drop what is sent into it:
/// such a way waits for those that do. The other way round a direct way comes before the tunnel is given up. So a change
/// of routing loses no packet on the node that changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    First,
    BehindLinks,
}

impl Turn {
    fn of(table: Table, value: &[u8]) -> Self {
        let tunnelled = |route: Route| route.action == route_action::TUNNEL;
        if table == Table::Routes && abi::from_bytes(value).is_some_and(tunnelled) {
            Self::BehindLinks
        } else {
            Self::First
        }
    }
}

fn add_entries(desired: &Desired, observed: &Observed, table: Table, turn: Turn, changes: &mut Vec<Change>) {
    desired.tables.differences(table, &observed.tables, |key, value| {
        if Turn::of(table, value) == turn {
            let (key, value) = (key.to_vec(), value.to_vec());
            changes.push(Change::Put { table, key, value });
        }
    });
}

fn add_links(desired: &Desired, observed: &Observed, changes: &mut Vec<Change>) {
    let reload = desired.config != observed.config;
    let mut links: Vec<_> = desired.links.iter().collect();
    // An answer that the stack carries bears the Service's address by `to_netdev` alone: where Services become ours it is
    // there before anybody leads a packet to an endpoint.
    links.sort_by_key(|(key, _)| key.program != Program::ToNetdev);
    links.retain(|(key, ifindex)| {
        let found = observed.links.get(key);
        reload || found.is_none_or(|link| link.ifindex != **ifindex || !link.current)
    });
    // Where old programs run. What they write on maps that are being replaced follows them as closely as can be.
    let exchange = links.iter().any(|(key, _)| observed.links.contains_key(key));
    changes.extend(exchange.then_some(Change::CarryOver));
    changes.extend(links.into_iter().map(|(key, ifindex)| Change::Attach {
        link: key.clone(),
        ifindex: *ifindex,
    }));
    changes.extend(exchange.then_some(Change::CarryOver));
    if desired.sockets && (observed.sockets != SocketPrograms::Current || reload) {
        changes.push(Change::AttachSockets);
        let exchange = observed.sockets == SocketPrograms::Partial;
        changes.extend(exchange.then_some(Change::CarryOver));
    }
}

fn add_routes(desired: &Desired, observed: &Observed, changes: &mut Vec<Change>) {
    // A route through a device that is down is refused, so this comes before it; and after the programs.
    for (name, veth) in &desired.veths {
        if let (Veth::Up { ifindex }, Some(found)) = (veth, observed.veths.get(name))
            && found.ifindex == *ifindex
            && !found.up
        {
            changes.push(Change::RaiseVeth {
                name: name.clone(),
                ifindex: *ifindex,
            });
        }
    }
    for (key, mac) in &desired.neighbours {
        if observed.neighbours.get(key) != Some(mac) {
            changes.push(Change::SetNeighbour { key: *key, mac: *mac });
        }
    }
    for (key, route) in &desired.routes {
        if observed.routes.get(key) != Some(route) {
            changes.push(Change::SetRoute {
                key: *key,
                route: *route,
            });
        }
    }
}

fn remove(desired: &Desired, observed: &Observed, changes: &mut Vec<Change>) {
    for key in observed
        .routes
        .keys()
        .filter(|key| !desired.routes.contains_key(key))
    {
        changes.push(Change::RemoveRoute(*key));
    }
    // The device before its entries and programs: a pod that is being taken away must not send unfiltered.
    for name in observed
        .veths
        .keys()
        .filter(|name| !desired.veths.contains_key(*name))
    {
        changes.push(Change::RemoveVeth(name.clone()));
    }
    for table in Table::ALL.iter().rev().filter(|table| table.is_compared()) {
        observed.tables.superfluous(*table, &desired.tables, |key| {
            let (table, key) = (*table, key.to_vec());
            changes.push(Change::Delete { table, key });
        });
    }
    for key in observed
        .links
        .keys()
        .filter(|key| !desired.links.contains_key(key))
    {
        changes.push(Change::Detach(key.clone()));
    }
    if !desired.sockets && observed.sockets != SocketPrograms::Absent {
        changes.push(Change::DetachSockets);
    }
    if let (None, Some(vxlan)) = (&desired.vxlan, &observed.vxlan) {
        changes.push(Change::RemoveVxlan(vxlan.name.clone()));
    }
}
