//! Tables, chains and rules of nf_tables, among them what `iptables-nft` makes.

use std::{fmt, io};

use super::{Change, Netfilter, attribute, attributes, big_endian, find, name, nested, text};

/// `NFNL_SUBSYS_NFTABLES`
pub(in crate::kernel) const SUBSYSTEM: u8 = 10;
const NEW_TABLE: u8 = 0;
const GET_TABLE: u8 = 1;
const DELETE_TABLE: u8 = 2;
const NEW_CHAIN: u8 = 3;
const GET_CHAIN: u8 = 4;
const DELETE_CHAIN: u8 = 5;
const NEW_RULE: u8 = 6;
const GET_RULE: u8 = 7;
const DELETE_RULE: u8 = 8;

/// `NFPROTO_...`: whose packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::kernel) struct Family(u8);

impl Family {
    pub(in crate::kernel) const V4: Self = Self(2);
    pub(in crate::kernel) const V6: Self = Self(10);
    pub(in crate::kernel) const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            1 => "inet",
            2 => "ip",
            7 => "bridge",
            10 => "ip6",
            _ => "other",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::kernel) struct Table {
    pub(in crate::kernel) family: Family,
    pub(in crate::kernel) name: String,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::kernel) struct Chain {
    pub(in crate::kernel) table: Table,
    pub(in crate::kernel) name: String,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.table, self.name)
    }
}

/// A chain that the kernel calls itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernel) struct Hook {
    pub(in crate::kernel) number: u32,
    /// What no rule accepts.
    pub(in crate::kernel) drops: bool,
}

/// A rule that leads to another chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::kernel) struct Jump {
    pub(in crate::kernel) from: Chain,
    pub(in crate::kernel) to: String,
    handle: [u8; 8],
}

fn message_kind(kind: u8) -> u16 {
    u16::from(SUBSYSTEM) << 8 | u16::from(kind)
}

/// All tables of all families.
pub(in crate::kernel) fn tables(netfilter: &mut Netfilter) -> io::Result<Vec<Table>> {
    let mut tables = Vec::new();
    netfilter.dump(message_kind(GET_TABLE), 0, &[], |family, attributes| {
        tables.extend(find(attributes, 1).map(|name| Table {
            family: Family(family),
            name: text(name),
        }));
    })?;
    Ok(tables)
}

/// All chains of all families.
pub(in crate::kernel) fn chains(netfilter: &mut Netfilter) -> io::Result<Vec<(Chain, Option<Hook>)>> {
    let mut chains = Vec::new();
    netfilter.dump(message_kind(GET_CHAIN), 0, &[], |family, attributes| {
        chains.extend(chain(Family(family), attributes));
    })?;
    Ok(chains)
}

fn chain(family: Family, bytes: &[u8]) -> Option<(Chain, Option<Hook>)> {
    const NF_DROP: u32 = 0;
    let chain = Chain {
        table: Table {
            family,
            name: text(find(bytes, 1)?),
        },
        name: text(find(bytes, 3)?),
    };
    // NFTA_CHAIN_HOOK, in it NFTA_HOOK_HOOKNUM; NFTA_CHAIN_POLICY
    let number = find(bytes, 4).and_then(|hook| big_endian(find(hook, 1)?));
    let drops = find(bytes, 5).and_then(big_endian) == Some(NF_DROP);
    Some((chain, number.map(|number| Hook { number, drops })))
}

/// The rules of a table that lead to other chains.
pub(in crate::kernel) fn jumps(netfilter: &mut Netfilter, table: &Table) -> io::Result<Vec<Jump>> {
    let mut jumps = Vec::new();
    let only = name(1, &table.name);
    netfilter.dump(message_kind(GET_RULE), table.family.0, &only, |_, attributes| {
        jumps.extend(jump(table, attributes));
    })?;
    Ok(jumps)
}

/// A rule ends with its verdict: an `immediate` expression that names the chain.
fn jump(table: &Table, bytes: &[u8]) -> Option<Jump> {
    let to = attributes(find(bytes, 4)?).find_map(|(_, expression)| {
        let is_immediate = text(find(expression, 1)?) == "immediate";
        // NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT, NFTA_VERDICT_CHAIN
        let verdict = find(find(find(expression, 2)?, 2)?, 2)?;
        is_immediate.then(|| find(verdict, 2).map(text)).flatten()
    })?;
    Some(Jump {
        from: Chain {
            table: table.clone(),
            name: text(find(bytes, 2)?),
        },
        to,
        handle: find(bytes, 3)?.try_into().ok()?,
    })
}

pub(in crate::kernel) fn delete_table(table: &Table) -> Change {
    change(DELETE_TABLE, table, name(1, &table.name))
}

pub(in crate::kernel) fn delete_chain(chain: &Chain) -> Change {
    let attributes = [name(1, &chain.table.name), name(3, &chain.name)];
    change(DELETE_CHAIN, &chain.table, attributes.concat())
}

/// Deletes all rules of a chain.
pub(in crate::kernel) fn flush(chain: &Chain) -> Change {
    let attributes = [name(1, &chain.table.name), name(2, &chain.name)];
    change(DELETE_RULE, &chain.table, attributes.concat())
}

pub(in crate::kernel) fn delete_jump(jump: &Jump) -> Change {
    let Chain { table, name: chain } = &jump.from;
    let attributes = [name(1, &table.name), name(2, chain), attribute(3, &jump.handle)];
    change(DELETE_RULE, table, attributes.concat())
}

fn change(kind: u8, table: &Table, attributes: Vec<u8>) -> Change {
    Change {
        kind,
        creates: false,
        family: table.family.0,
        attributes,
    }
}

/// A table that does nothing to packets, and yet has the kernel go on tracking and translating connections: it does so as long as
/// there is a rule that asks for the state of one, and a chain of type `nat`. One that is there stays.
pub(in crate::kernel) fn hold_connections(table: &Table) -> [Change; 3] {
    const CHAIN: &str = "hold";
    const HOOK_POSTROUTING: u32 = 4;
    const PRIORITY: u32 = 100;
    /// `NFT_REG32_00` and `NFT_CT_STATE`
    const REGISTER: u32 = 8;
    const STATE: u32 = 0;
    let number = |kind, value: u32| attribute(kind, &value.to_be_bytes());
    let create = |kind, attributes: &[Vec<u8>]| Change {
        creates: true,
        ..change(kind, table, attributes.concat())
    };
    let hook = nested(4, &[number(1, HOOK_POSTROUTING), number(2, PRIORITY)]);
    let state = nested(2, &[number(1, REGISTER), number(2, STATE)]);
    let expression = nested(1, &[name(1, "ct"), state]);
    [
        create(NEW_TABLE, &[name(1, &table.name)]),
        create(
            NEW_CHAIN,
            &[name(1, &table.name), name(3, CHAIN), hook, name(7, "nat")],
        ),
        create(
            NEW_RULE,
            &[name(1, &table.name), name(2, CHAIN), nested(4, &[expression])],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_lead_elsewhere_are_told_from_others() {
        let table = Table {
            family: Family::V4,
            name: "nat".into(),
        };
        let verdict = |code: i32, chain: Option<&str>| {
            let mut parts = vec![attribute(1, &code.to_be_bytes())];
            parts.extend(chain.map(|chain| name(2, chain)));
            let data = nested(2, &[nested(2, &parts)]);
            nested(
                1,
                &[name(1, "immediate"), nested(2, &[attribute(1, &[0; 4]), data])],
            )
        };
        let counter = nested(1, &[name(1, "counter"), nested(2, &[attribute(1, &[0; 8])])]);
        let rule = |end: Vec<u8>| {
            let expressions = nested(4, &[counter.clone(), end]);
            [
                name(1, "nat"),
                name(2, "OUTPUT"),
                attribute(3, &[0, 0, 0, 0, 0, 0, 0, 9]),
                expressions,
            ]
            .concat()
        };
        let found = jump(&table, &rule(verdict(-3, Some("KUBE-SERVICES")))).unwrap();
        assert_eq!(
            (found.from.name.as_str(), found.to.as_str()),
            ("OUTPUT", "KUBE-SERVICES")
        );
        assert_eq!(found.handle[7], 9);
        assert_eq!(jump(&table, &rule(verdict(1, None))), None);
        assert_eq!(jump(&table, &rule(counter.clone())), None);
    }

    #[test]
    fn cut_attributes_are_no_panic() {
        let bytes: Vec<u8> = (0..64).collect();
        let table = Table {
            family: Family::V6,
            name: String::new(),
        };
        for end in 0..bytes.len() {
            let _ = chain(Family::V4, &bytes[..end]);
            let _ = jump(&table, &bytes[..end]);
        }
    }
}
