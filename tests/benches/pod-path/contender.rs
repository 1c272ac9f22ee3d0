//! Who is compared, each with two ends that talk.

use anyhow::Result;
use cni_tests::bench::load::Ends;
use cni_tests::bench::reference::Reference;
use cni_tests::lab::{Lab, Pod};
use cni_tests::netns::Namespace;

pub(crate) const MILLRACE: &str = "millrace";
pub(crate) const VETH: &str = "veth pair";
pub(crate) const BRIDGE: &str = "bridge plugin";
pub(crate) const DIRECT: &str = "millrace, direct";
pub(crate) const ROUTING: &str = "kernel routing";
pub(crate) const VXLAN: &str = "millrace, VXLAN";
pub(crate) const VXLAN_BRIDGE: &str = "kernel VXLAN bridge";

/// What must live as long as a contender does.
#[expect(dead_code, reason = "held for their ends, which clean up")]
pub(crate) enum Keeper {
    Nobody,
    Lab(Box<Lab>, Vec<Pod>),
    Bridge(Reference),
}

pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) ends: Ends,
    pub(crate) keeper: Keeper,
}

impl Contender {
    /// Between two pods of a lab, with IPv4: the peers' plugins do no more.
    pub(crate) fn pods(name: &'static str, lab: Lab, client: Pod, server: Pod) -> Result<Self> {
        let ends = Ends {
            client: client.namespace.duplicate()?,
            server: server.namespace.duplicate()?,
            ip: server.ip(true),
        };
        Ok(Self {
            name,
            ends,
            keeper: Keeper::Lab(Box::new(lab), vec![client, server]),
        })
    }
}

/// A name that no other process uses.
pub(crate) fn fresh(what: &str) -> String {
    format!("mrbench-{}-{what}", std::process::id())
}

pub(crate) fn namespace(what: &str) -> Result<Namespace> {
    Namespace::create(&fresh(what))
}
