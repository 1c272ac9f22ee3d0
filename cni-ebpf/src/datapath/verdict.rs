//! What becomes of a packet.

use super::{NotRewritten, Work};
use crate::abi::{Addr, Reason};

/// Where a packet goes, as [`Work::way`] holds it. Stages say it in the scratch and return a scalar: a fat enum in
/// registers is merged by the compiler in ways that the verifier refuses.
pub mod way {
    pub const PASS: u8 = 0;
    pub const HANDLED: u8 = 1;
    pub const PEER: u8 = 2;
    pub const NEIGHBOUR: u8 = 3;
    pub const TUNNEL: u8 = 4;
    pub const TUNNEL_KEY: u8 = 5;
    /// To a receiver in the host's stack.
    pub const LOCAL: u8 = 6;
    /// Passed, and remembered as one that came by a device.
    pub const ARRIVED: u8 = 7;
    /// Back to the pod that sent it, as an error; never a run's end.
    pub const TOO_BIG: u8 = 8;
    /// An answer: out by the device by which the packet came, or into the host that was to send it by this device.
    pub const BACK: u8 = 9;
}

/// What becomes of a packet that is not dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// On to whatever comes next on this hook, and then the stack.
    Pass,
    /// The same for a packet that is complete: marked, so that no later hook of ours judges or translates it again.
    Handled,
    /// On, marked as one that came by a device: what the stack makes of it may not show that any more.
    Arrived,
    /// Into the pod behind this host-side device.
    Peer { ifindex: u32 },
    /// Out through a device, to a neighbour.
    Neighbour { ifindex: u32, gateway: Addr },
    /// Out by the device by which it came: it is an answer to itself.
    Back { ifindex: u32 },
    /// Into the tunnel, to the node with this address.
    Tunnel { remote: Addr },
    /// On, with this tunnel key: the packet is already on the tunnel device.
    TunnelKey { remote: Addr },
}

/// A run's end: the verdict stands in the [`Work`], or the packet is dropped for a reason.
pub type Outcome = Result<(), Reason>;

impl Work {
    /// What the run decided, after it ended with `Ok`.
    #[inline(always)]
    pub fn verdict(&self) -> Verdict {
        match self.way {
            way::HANDLED => Verdict::Handled,
            way::PEER => Verdict::Peer {
                ifindex: self.to_ifindex,
            },
            way::NEIGHBOUR => Verdict::Neighbour {
                ifindex: self.to_ifindex,
                gateway: self.gateway,
            },
            way::TUNNEL => Verdict::Tunnel { remote: self.gateway },
            way::TUNNEL_KEY => Verdict::TunnelKey { remote: self.gateway },
            way::ARRIVED => Verdict::Arrived,
            way::BACK => Verdict::Back {
                ifindex: self.to_ifindex,
            },
            _ => Verdict::Pass,
        }
    }

    #[inline(always)]
    pub(super) fn pass(&mut self) -> Outcome {
        self.way = way::PASS;
        Ok(())
    }

    #[inline(always)]
    pub(super) fn neighbour(&mut self, ifindex: u32, gateway: Addr) {
        self.way = way::NEIGHBOUR;
        self.to_ifindex = ifindex;
        self.gateway = gateway;
    }
}

impl From<NotRewritten> for Reason {
    fn from(_: NotRewritten) -> Self {
        Self::Rewrite
    }
}
