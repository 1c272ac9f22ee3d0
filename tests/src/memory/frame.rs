//! A packet in memory: the second implementation of [`Packet`].

use cni_ebpf::abi::*;
use cni_ebpf::datapath::checksum::{add, change, fold, mangled, replace4};
use cni_ebpf::datapath::{Fib, Hop, NotRewritten, Packet, Wire};

/// A packet as a program gets it.
#[derive(Clone, Debug)]
pub struct Frame {
    pub bytes: Vec<u8>,
    pub ifindex: u32,
    pub ingress_ifindex: u32,
    pub mark: u32,
    pub segment_size: u32,
    /// How often it was handed over between the programs of two loads.
    pub handed_over: u32,
    pub tunnel: Option<(Addr, u32)>,
    /// A VLAN tag stands beside the packet.
    pub vlan: bool,
    /// `skb->csum` of a packet that the device summed up from the network header on (CHECKSUM_COMPLETE).
    pub complete: Option<u32>,
    /// The kernel's routes, by destination and length.
    pub fib: fn(&Addr, u32) -> Fib,
    /// Tuples that sockets of the host receive.
    pub sockets: Vec<Tuple>,
    /// It was said to be for this host, whatever link address it bears.
    pub claimed: bool,
    /// The kernel refuses to change it.
    pub fixed: bool,
    /// Whether the kernel knows a neighbour's link address.
    pub neighbours: fn(&Addr) -> bool,
}

impl Frame {
    pub fn new(bytes: Vec<u8>, ifindex: u32) -> Self {
        Self {
            bytes,
            ifindex,
            ingress_ifindex: ifindex,
            mark: 0,
            segment_size: 0,
            handed_over: 0,
            tunnel: None,
            vlan: false,
            complete: None,
            fib: |_, _| Fib::Unroutable,
            sockets: Vec::new(),
            claimed: false,
            fixed: false,
            neighbours: |_| false,
        }
    }

    fn sum_at(&mut self, offset: u32, change: impl FnOnce(u16) -> u16) -> Result<(), NotRewritten> {
        if self.fixed {
            return Err(NotRewritten);
        }
        let at = offset as usize;
        let bytes = self.bytes.get_mut(at..at + 2).ok_or(NotRewritten)?;
        let old = u16::from_ne_bytes([bytes[0], bytes[1]]);
        bytes.copy_from_slice(&change(old).to_ne_bytes());
        Ok(())
    }
}

impl Frame {
    /// The sum over the packet from its network header on, as a device gives it with CHECKSUM_COMPLETE.
    pub fn sum(&self) -> u32 {
        let packet = self.bytes.get(14..).unwrap_or_default();
        packet.chunks(2).fold(0, |sum, pair| {
            let word = u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
            add(sum, u32::from(word))
        })
    }

    /// Whether the device's sum is still that of the packet.
    pub fn complete_holds(&self) -> bool {
        self.complete
            .is_none_or(|sum| matches!(fold(add(sum, !self.sum())), 0 | 0xffff))
    }

    /// What `inet_proto_csum_replace4` and `inet_proto_csum_replace_by_diff` do to the device's sum: a word of the
    /// pseudo header changed, and they take it that a header checksum moved against it, which is so in IPv4 only.
    fn pseudo_changes(&mut self, pseudo: bool, difference: u32) {
        if let Some(complete) = &mut self.complete
            && pseudo
        {
            *complete = !add(!*complete, difference);
        }
    }
}

impl Packet for Frame {
    fn length(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn ingress_ifindex(&self) -> u32 {
        self.ingress_ifindex
    }

    fn mark(&self) -> u32 {
        self.mark
    }

    fn vlan(&self) -> bool {
        self.vlan
    }

    fn handed_over(&self, _: u8) -> u32 {
        self.handed_over
    }

    fn segment_size(&self) -> u32 {
        self.segment_size
    }

    fn tunnel_source(&self) -> Option<(Addr, u32)> {
        self.tunnel
    }

    fn load<T: Plain + Copy>(&self, offset: u32) -> Option<T> {
        if offset > 0x3ff {
            return None;
        }
        let at = offset as usize;
        from_bytes(self.bytes.get(at..at + size_of::<T>())?)
    }

    fn write<T: Plain + Copy>(&mut self, offset: u32, value: &T) -> Result<(), NotRewritten> {
        self.store(offset, value, false)
    }

    fn changed(&mut self, from: u16, to: u16) {
        if let Some(complete) = &mut self.complete {
            *complete = add(add(*complete, u32::from(!from)), u32::from(to));
        }
    }

    fn store<T: Plain>(&mut self, offset: u32, value: &T, checksum: bool) -> Result<(), NotRewritten> {
        if self.fixed {
            return Err(NotRewritten);
        }
        let (at, bytes) = (offset as usize, as_bytes(value));
        let before = self.sum();
        self.bytes
            .get_mut(at..at + bytes.len())
            .ok_or(NotRewritten)?
            .copy_from_slice(bytes);
        let after = self.sum();
        if let Some(complete) = &mut self.complete
            && checksum
        {
            *complete = add(add(*complete, !before), after);
        }
        Ok(())
    }

    fn replace_l3_checksum(
        &mut self,
        offset: u32,
        from: u32,
        to: u32,
        size: u32,
    ) -> Result<(), NotRewritten> {
        if size != 4 {
            return Err(NotRewritten);
        }
        self.sum_at(offset, |sum| replace4(sum, from, to))
    }

    fn replace_l4_checksum(
        &mut self,
        offset: u32,
        from: u32,
        to: u32,
        _: u32,
        pseudo: bool,
        zero_is_none: bool,
    ) -> Result<(), NotRewritten> {
        self.pseudo_changes(pseudo, add(!from, to));
        self.sum_at(offset, |sum| mangled(sum, zero_is_none, replace4(sum, from, to)))
    }

    fn add_l4_checksum(
        &mut self,
        offset: u32,
        diff: u32,
        pseudo: bool,
        zero_is_none: bool,
    ) -> Result<(), NotRewritten> {
        self.pseudo_changes(pseudo, diff);
        self.sum_at(offset, |sum| mangled(sum, zero_is_none, change(sum, diff)))
    }

    fn cut(&mut self, length: u32) -> Result<(), NotRewritten> {
        if self.fixed {
            return Err(NotRewritten);
        }
        self.bytes.truncate(length as usize);
        self.segment_size = 0;
        self.complete = None;
        Ok(())
    }

    fn widen(&mut self, bytes: u32) -> Result<(), NotRewritten> {
        if self.fixed {
            return Err(NotRewritten);
        }
        self.bytes.splice(14..14, std::iter::repeat_n(0, bytes as usize));
        Ok(())
    }

    fn fib(&self, _: &Addr, dst: &Addr, length: u32) -> Fib {
        (self.fib)(dst, length)
    }

    fn claim(&mut self) {
        self.claimed = true;
    }

    fn socket(&self, tuple: &Tuple) -> bool {
        self.sockets.contains(tuple)
    }
}

impl Frame {
    /// The link header of what leaves: to whom, from whom.
    pub const LINK: [[u8; 6]; 2] = [[2, 0, 0, 0, 2, 1], [2, 0, 0, 0, 1, 20]];
}

impl Wire for Frame {
    fn hop(&self, _: &Addr, dst: &Addr, length: u32) -> Option<Hop> {
        match (self.fib)(dst, length) {
            Fib::Device { ifindex, gateway } if (self.neighbours)(&gateway) => Some(Hop {
                ifindex,
                gateway,
                link: from_bytes(&Self::LINK.concat())?,
            }),
            _ => None,
        }
    }
}
