//! Kernel modules: which ones a test needs, what those need, in the order of loading.

use std::collections::{BTreeMap, BTreeSet};

/// What the programs, the tests and their peers use, as far as a kernel has it as a module.
pub(crate) const WANTED: &[&str] = &[
    "8021q",
    "act_bpf",
    "act_mirred",
    "bonding",
    "br_netfilter",
    "bridge",
    "cls_bpf",
    "crc32c_generic",
    "dummy",
    "ifb",
    "igb",
    "ip6_tables",
    "ip6table_filter",
    "ip_tables",
    "ipvlan",
    "iptable_filter",
    "iptable_nat",
    "macvlan",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nf_tables",
    "nft_chain_nat",
    "nft_compat",
    "nft_ct",
    "nft_masq",
    "overlay",
    "sch_fq",
    "sch_ingress",
    "sch_tbf",
    "sctp",
    "sctp_diag",
    "tun",
    "veth",
    "virtio_net",
    "virtio_pci",
    "vrf",
    "vxlan",
    "xt_MASQUERADE",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_mark",
    "xt_tcpudp",
];

/// `modules.dep` of one kernel.
#[derive(Debug)]
pub(crate) struct Dependencies<'a> {
    needs: BTreeMap<&'a str, Vec<&'a str>>,
}

impl<'a> Dependencies<'a> {
    pub(crate) fn parse(text: &'a str) -> Self {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let needs = lines.map(|(module, needs)| (module.trim(), needs.split_whitespace().collect()));
        Self {
            needs: needs.collect(),
        }
    }

    /// The files of the named modules and of all they need, each after what it needs. Unknown names are built into the
    /// kernel, or too new for it.
    pub(crate) fn in_order(&self, names: &[&str]) -> Vec<&'a str> {
        let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
        for file in self
            .needs
            .keys()
            .filter(|file| names.contains(&module_name(file)))
        {
            self.visit(file, &mut order, &mut seen);
        }
        order
    }

    fn visit(&self, file: &'a str, order: &mut Vec<&'a str>, seen: &mut BTreeSet<&'a str>) {
        if !seen.insert(file) {
            return;
        }
        for needed in self.needs.get(file).into_iter().flatten() {
            self.visit(needed, order, seen);
        }
        order.push(file);
    }
}

/// `veth` of `kernel/drivers/net/veth.ko.xz`. Files may have a dash where the module has an underscore.
fn module_name(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/net/vxlan.ko: kernel/net/udp_tunnel.ko kernel/net/ip6_udp_tunnel.ko\n\
        kernel/net/udp_tunnel.ko:\nkernel/net/ip6_udp_tunnel.ko: kernel/net/udp_tunnel.ko\n\
        kernel/net/veth.ko.xz:\nkernel/net/other.ko: kernel/net/veth.ko.xz\n";

    #[test]
    fn what_a_module_needs_comes_before_it_and_the_rest_stays_out() {
        let order = Dependencies::parse(DEP).in_order(&["veth", "vxlan", "not-there"]);
        let expected = [
            "kernel/net/veth.ko.xz",
            "kernel/net/udp_tunnel.ko",
            "kernel/net/ip6_udp_tunnel.ko",
            "kernel/net/vxlan.ko",
        ];
        assert_eq!(order, expected);
    }
}
