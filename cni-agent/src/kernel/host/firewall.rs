//! Firewalls that drop by default.
//!
//! The base chains of nf_tables, which show what `iptables-nft` made too, and the built-in chains of the legacy `iptables`,
//! which nf_tables does not know. Rules are not interpreted: a chain that drops what no rule accepts is a reason to look,
//! not proof that something is dropped.

use std::io;

use super::{
    super::netfilter::{Netfilter, legacy, nftables, or_absent},
    Check, State,
};

/// A chain that the kernel calls itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    /// As its own tool calls it.
    name: String,
    hook: u32,
    drops: bool,
    /// The program that changes it.
    remedy: &'static str,
}

const HOOK_INPUT: u32 = 1;
const HOOK_FORWARD: u32 = 2;

/// `vxlan`: the port that must be open for other nodes.
pub(super) fn checks(vxlan: Option<u16>) -> Vec<Check> {
    match chains() {
        Ok(chains) => [Some(forward(&chains)), vxlan.map(|port| input(&chains, port))]
            .into_iter()
            .flatten()
            .collect(),
        Err(error) => vec![Check::new(
            "firewall",
            State::Warning,
            format!("the packet filters cannot be asked: {error}"),
            "run as root with CAP_NET_ADMIN",
        )],
    }
}

fn chains() -> io::Result<Vec<Chain>> {
    let mut chains = or_absent(Netfilter::open().and_then(|mut netfilter| of_nftables(&mut netfilter)))?;
    for table in legacy::tables("filter")? {
        let hooks = [("INPUT", HOOK_INPUT), ("FORWARD", HOOK_FORWARD)];
        chains.extend(hooks.map(|(name, hook)| Chain {
            name: format!("{} {name}", table.tool()),
            hook,
            drops: table.drops(hook),
            remedy: table.tool(),
        }));
    }
    Ok(chains)
}

fn of_nftables(netfilter: &mut Netfilter) -> io::Result<Vec<Chain>> {
    let chains = nftables::chains(netfilter)?.into_iter();
    let base = chains.filter_map(|(chain, hook)| {
        let hook = hook?;
        Some(Chain {
            name: chain.to_string(),
            hook: hook.number,
            drops: hook.drops,
            remedy: if chain.table.family == nftables::Family::V6 {
                "ip6tables"
            } else {
                "iptables"
            },
        })
    });
    Ok(base.collect())
}

fn dropping(chains: &[Chain], hook: u32) -> Vec<&Chain> {
    let found = chains.iter().filter(|chain| chain.hook == hook && chain.drops);
    found.collect()
}

fn names(chains: &[&Chain]) -> String {
    let names: Vec<&str> = chains.iter().map(|chain| chain.name.as_str()).collect();
    format!("policy drop in {}", names.join(", "))
}

fn forward(chains: &[Chain]) -> Check {
    const NAME: &str = "firewall-forward";
    let dropping = dropping(chains, HOOK_FORWARD);
    if dropping.is_empty() {
        return Check::ok(NAME, "nothing drops forwarded packets by default");
    }
    let mut tools: Vec<&str> = dropping.iter().map(|chain| chain.remedy).collect();
    tools.sort_unstable();
    tools.dedup();
    let accept = tools
        .iter()
        .map(|tool| format!("`{tool} -I FORWARD -i mr+ -j ACCEPT; {tool} -I FORWARD -o mr+ -j ACCEPT`"));
    Check::new(
        NAME,
        State::Warning,
        names(&dropping),
        format!(
            "pods with a chained plugin, and Services of another proxy, pass the host's stack: accept what comes from \
             and goes to `mr*` there ({})",
            accept.collect::<Vec<_>>().join(", ")
        ),
    )
}

fn input(chains: &[Chain], port: u16) -> Check {
    const NAME: &str = "firewall-vxlan";
    let dropping = dropping(chains, HOOK_INPUT);
    if dropping.is_empty() {
        return Check::ok(NAME, format!("nothing drops UDP port {port} by default"));
    }
    Check::new(
        NAME,
        State::Warning,
        names(&dropping),
        format!("make sure that a rule accepts UDP port {port} from the other nodes"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_that_drop_by_default_are_named_with_their_tools() {
        let chain = |name: &str, hook, drops, remedy| Chain {
            name: name.into(),
            hook,
            drops,
            remedy,
        };
        let chains = [
            chain("ip filter X", HOOK_FORWARD, true, "iptables"),
            chain("ip6tables-legacy FORWARD", HOOK_FORWARD, true, "ip6tables-legacy"),
            chain("ip filter Y", HOOK_INPUT, false, "iptables"),
        ];
        let check = forward(&chains);
        assert_eq!(check.state, State::Warning);
        assert_eq!(
            check.detail,
            "policy drop in ip filter X, ip6tables-legacy FORWARD"
        );
        assert!(
            check.remedy.contains("ip6tables-legacy -I FORWARD -i mr+"),
            "{check:?}"
        );
        assert_eq!(input(&chains, 4789).state, State::Ok);
        let dropping = [chain("ip filter Y", HOOK_INPUT, true, "iptables")];
        assert_eq!(input(&dropping, 4789).state, State::Warning);
    }
}
