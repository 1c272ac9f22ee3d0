//! What kube-proxy makes on a node, and the end of it: what `kube-proxy --cleanup` removes, and nothing else.
//!
//! Established connections are translated by the kernel's tracking as long as some rule asks for it. kube-proxy's own
//! cleanup takes the last such rule away, on many nodes, and cuts them; here a table stays for them that does nothing else.

mod ownership;
mod process;

use std::{collections::BTreeSet, fmt, io};

use super::netfilter::{
    Change, Netfilter, connections, legacy,
    nftables::{self, Chain, Family, Hook, Jump, Table},
    or_absent,
};
pub use process::{OURS, running};

/// Of the mode nftables.
const TABLE: &str = "kube-proxy";
/// Ours, for connections that kube-proxy has translated.
const HOLD: &str = "millrace-connections";
/// Of the mode ipvs.
const IPVS: &str = "kube-ipvs0";
/// Changes at a time: a batch must fit into the socket's buffer.
const BATCH: usize = 1000;

/// What a kube-proxy has left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    tables: Vec<Table>,
    chains: Vec<Chain>,
    /// Rules in chains of the kernel's that lead to kube-proxy's.
    jumps: Vec<Jump>,
    /// Chains of kube-proxy's to which rules of somebody else lead: they stay.
    shared: Vec<Chain>,
    /// What only `kube-proxy --cleanup` can remove.
    foreign: Vec<String>,
    /// Our tables for its connections.
    holds: Vec<Table>,
    /// Connections that live and have another destination than was dialled.
    pub connections: usize,
}

/// Something that was found, as it is called by those who know nftables and iptables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Table(String),
    Chain(String),
    Rule(String),
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(name) => write!(f, "table {name}"),
            Self::Chain(name) => write!(f, "chain {name}"),
            Self::Rule(name) => write!(f, "rule {name}"),
        }
    }
}

impl Leftovers {
    pub fn find() -> io::Result<Self> {
        let mut found = or_absent(Netfilter::open().and_then(|mut netfilter| of_nftables(&mut netfilter)))?;
        found.foreign = foreign()?;
        Ok(found)
    }

    /// Nothing that [`remove`](Self::remove) could do, and nothing that it could not.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.chains.is_empty() && self.foreign.is_empty()
    }

    /// What is removed.
    pub fn removable(&self) -> impl Iterator<Item = Found> {
        let tables = self.tables.iter().map(|table| Found::Table(table.to_string()));
        let jumps = self
            .jumps
            .iter()
            .map(|jump| Found::Rule(format!("{} -> {}", jump.from, jump.to)));
        let chains = self.chains.iter().map(|chain| Found::Chain(chain.to_string()));
        tables.chain(jumps).chain(chains)
    }

    /// kube-proxy's chains that stay, because rules of somebody else lead to them.
    pub fn shared(&self) -> impl Iterator<Item = String> {
        self.shared.iter().map(ToString::to_string)
    }

    /// What is not removed, because only `kube-proxy --cleanup` can.
    pub fn foreign(&self) -> &[String] {
        &self.foreign
    }

    /// Whether a table of ours lets connections live on.
    pub fn is_held(&self) -> bool {
        !self.holds.is_empty()
    }

    /// Removes what is removable. `hold`: connections that it has translated live on. Packets see all rules or none.
    pub fn remove(&self, hold: bool) -> io::Result<()> {
        let mut netfilter = Netfilter::open()?;
        let mut first = Vec::new();
        if hold {
            let wanted: Vec<Table> = self.families().into_iter().map(hold_table).collect();
            let missing = wanted.iter().filter(|table| !self.holds.contains(table));
            first.extend(missing.flat_map(nftables::hold_connections));
        } else {
            first.extend(self.holds.iter().map(nftables::delete_table));
        }
        first.extend(self.tables.iter().map(nftables::delete_table));
        first.extend(self.jumps.iter().map(nftables::delete_jump));
        netfilter.commit(nftables::SUBSYSTEM, &first)?;
        // Nobody gets there any more.
        let flushes: Vec<Change> = self.chains.iter().map(nftables::flush).collect();
        let deletions: Vec<Change> = self.chains.iter().map(nftables::delete_chain).collect();
        let batches = flushes.chunks(BATCH).chain(deletions.chunks(BATCH));
        for batch in batches {
            netfilter.commit(nftables::SUBSYSTEM, batch)?;
        }
        Ok(())
    }

    fn families(&self) -> BTreeSet<Family> {
        let of_chains = self.chains.iter().map(|chain| &chain.table);
        self.tables
            .iter()
            .chain(of_chains)
            .map(|table| table.family)
            .collect()
    }
}

fn hold_table(family: Family) -> Table {
    Table {
        family,
        name: HOLD.to_owned(),
    }
}

fn is_hold(table: &Table) -> bool {
    Family::BOTH.contains(&table.family) && table.name == HOLD
}

/// Removes the tables that let connections live on. True if there were any.
pub fn let_go() -> io::Result<bool> {
    let tables = or_absent(Netfilter::open().and_then(|mut netfilter| nftables::tables(&mut netfilter)))?;
    let changes: Vec<Change> = tables
        .iter()
        .filter(|table| is_hold(table))
        .map(nftables::delete_table)
        .collect();
    if changes.is_empty() {
        return Ok(false);
    }
    Netfilter::open()?.commit(nftables::SUBSYSTEM, &changes)?;
    Ok(true)
}

fn of_nftables(netfilter: &mut Netfilter) -> io::Result<Leftovers> {
    let mut found = Leftovers::default();
    for table in nftables::tables(netfilter)? {
        if is_hold(&table) {
            found.holds.push(table);
        } else if Family::BOTH.contains(&table.family) && table.name == TABLE {
            found.tables.push(table);
        }
    }
    let chains = nftables::chains(netfilter)?;
    let owned: Vec<&Chain> = chains
        .iter()
        .map(|(chain, _)| chain)
        .filter(|chain| is_owned(chain))
        .collect();
    // An old kubelet makes a few of these too.
    if owned.iter().any(|chain| ownership::is_trace(&chain.name)) {
        let within: BTreeSet<&Table> = owned.iter().map(|chain| &chain.table).collect();
        let mut jumps = Vec::new();
        for table in within {
            jumps.extend(nftables::jumps(netfilter, table)?);
        }
        found.sort(&owned, jumps, &chains);
    }
    if !found.tables.is_empty() || !found.chains.is_empty() || found.is_held() {
        found.connections = connections::translated(netfilter)?;
    }
    Ok(found)
}

fn is_owned(chain: &Chain) -> bool {
    Family::BOTH.contains(&chain.table.family) && ownership::owns(&chain.table.name, &chain.name)
}

impl Leftovers {
    fn sort(&mut self, owned: &[&Chain], jumps: Vec<Jump>, chains: &[(Chain, Option<Hook>)]) {
        let bases: BTreeSet<&Chain> = chains
            .iter()
            .filter(|(_, hook)| hook.is_some())
            .map(|(chain, _)| chain)
            .collect();
        let target = |jump: &Jump| Chain {
            table: jump.from.table.clone(),
            name: jump.to.clone(),
        };
        let to_owned = jumps.into_iter().filter(|jump| is_owned(&target(jump)));
        let (inside, outside): (Vec<_>, Vec<_>) = to_owned.partition(|jump| is_owned(&jump.from));
        let mut shared = BTreeSet::new();
        for jump in outside {
            if bases.contains(&jump.from) && ownership::is_entry(&jump.to) {
                self.jumps.push(jump);
            } else {
                shared.insert(target(&jump));
            }
        }
        // And where those lead.
        loop {
            let more = inside
                .iter()
                .filter(|jump| shared.contains(&jump.from))
                .map(target);
            let more: Vec<Chain> = more.filter(|chain| !shared.contains(chain)).collect();
            if more.is_empty() {
                break;
            }
            shared.extend(more);
        }
        let gone = owned.iter().filter(|chain| !shared.contains(**chain));
        self.chains = gone.map(|chain| (*chain).clone()).collect();
        self.shared = shared.into_iter().collect();
    }
}

fn foreign() -> io::Result<Vec<String>> {
    let mut foreign = Vec::new();
    for name in ownership::TABLES {
        for table in legacy::tables(name)? {
            let of_proxy = |chain: &String| ownership::owns(name, chain) && ownership::is_trace(chain);
            let count = table.chains().filter(of_proxy).count();
            if count > 0 {
                foreign.push(format!("{count} chains of {} in table {name}", table.tool()));
            }
        }
    }
    if nix::net::if_::if_nametoindex(IPVS).is_ok() {
        foreign.push(format!("device {IPVS} and virtual servers of IPVS"));
    }
    Ok(foreign)
}
