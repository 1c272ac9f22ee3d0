//! [`Packet`] over a socket buffer: the one place that reads and writes packet memory.

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, BPF_F_TUNINFO_IPV6, bpf_tunnel_key,
};
use aya_ebpf::helpers::generated as helper;
use cni_ebpf::abi::{Addr, Plain, Tuple};
use cni_ebpf::datapath::stage::Stage;
use cni_ebpf::datapath::{Fib, GSO_BY_FRAGS, NotRewritten, Packet, Tables, Work};

use super::handover::handed_over;
use super::kernel::{cleared, gateway, look_up, mtu, receives};

/// Bytes that must be readable without asking, if the packet has them.
const LINEAR: u32 = 128;
/// Reads happen in the first kilobyte; a constant mask lets the verifier bound the offset.
pub(super) const REACH: u32 = 0x3ff;
const PACKET_HOST: u32 = 0;
/// `BPF_SKB_TSTAMP_DELIVERY_MONO`
const DELIVERY_MONO: u32 = 1;
/// `BPF_F_MARK_MANGLED_0`: a UDP checksum of zero means "none" and stays so.
const MARK_MANGLED_0: u64 = 1 << 5;
/// Up to here the structure is the same on every kernel from 6.1 on.
const TUNNEL_KEY: u32 = core::mem::offset_of!(bpf_tunnel_key, __bindgen_anon_2) as u32;

pub(super) struct Skb {
    skb: *mut __sk_buff,
}

impl Skb {
    /// Takes a program's context whose headers can be read already.
    #[inline(always)]
    pub(super) fn over(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    /// Takes the program's context, and makes the headers readable where they stand in pages.
    #[inline(always)]
    pub(super) fn new(skb: *mut __sk_buff) -> Self {
        let this = Self { skb };
        let linear = (this.data_end() - this.data()) as u32;
        // Of a list of segments the first part has all headers, and pulling would merge segments into it.
        if linear < LINEAR && linear < this.length() && this.segment_size() != GSO_BY_FRAGS {
            // SAFETY: the context is valid. On failure reads find the packet too short.
            unsafe { helper::bpf_skb_pull_data(skb, LINEAR) };
        }
        this
    }

    #[inline(always)]
    fn data(&self) -> usize {
        // SAFETY: the context is valid. Volatile: each use must reload it after helpers that move the packet.
        unsafe { (&raw const (*self.skb).data).read_volatile() as usize }
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        // SAFETY: as in `data`.
        unsafe { (&raw const (*self.skb).data_end).read_volatile() as usize }
    }

    #[inline(always)]
    pub(super) fn set_mark(&self, mark: u32, mask: u32) {
        // SAFETY: the context is valid; the mark may be written.
        unsafe { (*self.skb).mark = ((*self.skb).mark & !mask) | mark };
    }

    /// Has the queueing discipline hold the packet back until then. A monotonic time of this kind outlives redirection and
    /// encapsulation.
    #[inline(always)]
    pub(super) fn depart_at(&self, time: u64) -> Result<(), NotRewritten> {
        // SAFETY: the context is valid.
        done(unsafe { helper::bpf_skb_set_tstamp(self.skb, time, DELIVERY_MONO) })
    }

    /// Names the tunnel's remote end for the tunnel device.
    #[inline(always)]
    pub(super) fn set_tunnel(&self, remote: &Addr, number: u32) -> Result<(), NotRewritten> {
        let mut key: bpf_tunnel_key = cleared();
        key.tunnel_id = number;
        key.tunnel_ttl = 64;
        let flags = if remote.is_v4() {
            key.__bindgen_anon_1.remote_ipv4 = u32::from_be(remote.word_v4());
            0
        } else {
            key.__bindgen_anon_1.remote_ipv6 = remote.words();
            u64::from(BPF_F_TUNINFO_IPV6)
        };
        // SAFETY: `key` is at least `TUNNEL_KEY` bytes.
        let failed = unsafe { helper::bpf_skb_set_tunnel_key(self.skb, &raw mut key, TUNNEL_KEY, flags) };
        if failed == 0 { Ok(()) } else { Err(NotRewritten) }
    }
}

#[inline(always)]
fn done(failed: i64) -> Result<(), NotRewritten> {
    if failed == 0 { Ok(()) } else { Err(NotRewritten) }
}

impl Packet for Skb {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the context is valid.
        unsafe { (*self.skb).len }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid.
        unsafe { (*self.skb).ifindex }
    }

    #[inline(always)]
    fn ingress_ifindex(&self) -> u32 {
        // SAFETY: the context is valid.
        unsafe { (*self.skb).ingress_ifindex }
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        // SAFETY: the context is valid.
        unsafe { (*self.skb).mark }
    }

    #[inline(always)]
    fn vlan(&self) -> bool {
        // SAFETY: the context is valid.
        unsafe { (*self.skb).vlan_present != 0 }
    }

    #[inline(always)]
    fn handed_over(&self, hook: u8) -> u32 {
        handed_over(self.skb, hook)
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        // SAFETY: the context is valid.
        unsafe { (*self.skb).gso_size }
    }

    #[inline(always)]
    fn tunnel_source(&self) -> Option<(Addr, u32)> {
        let mut key: bpf_tunnel_key = cleared();
        // SAFETY: `key` is at least `TUNNEL_KEY` bytes; the helper writes no more.
        let failed = unsafe { helper::bpf_skb_get_tunnel_key(self.skb, &raw mut key, TUNNEL_KEY, 0) };
        if failed == 0 {
            // SAFETY: without the IPv6 flag the helper fills the IPv4 half.
            let word = unsafe { key.__bindgen_anon_1.remote_ipv4 };
            return Some((Addr::v4_word(word.to_be()), key.tunnel_id));
        }
        let v6 = u64::from(BPF_F_TUNINFO_IPV6);
        // SAFETY: as above.
        let failed = unsafe { helper::bpf_skb_get_tunnel_key(self.skb, &raw mut key, TUNNEL_KEY, v6) };
        if failed != 0 {
            return None;
        }
        // SAFETY: with the flag it fills the IPv6 half.
        let [a, b, c, d] = unsafe { key.__bindgen_anon_1.remote_ipv6 };
        let hi = u64::from(a) | u64::from(b) << 32;
        let lo = u64::from(c) | u64::from(d) << 32;
        Some((Addr { hi, lo }, key.tunnel_id))
    }

    #[inline(always)]
    fn apart<T: Tables>(&mut self, stage: Stage, _: &T, work: &mut Work) -> u32 {
        // The stage finds the scratch by itself. Both sides of the call are opaque to the compiler, so that it keeps no
        // field of `work` in a register across it.
        let mut work: *mut Work = work;
        core::hint::black_box(&mut work);
        let result = super::stages::call(stage, self.skb);
        core::hint::black_box(&mut work);
        result
    }

    #[inline(always)]
    fn load<T: Plain + Copy>(&self, offset: u32) -> Option<T> {
        // The compiler turns `start + 1 > end` into `start >= end`, of which the verifier learns nothing.
        const { assert!(size_of::<T>() >= 2) };
        let start = self.data() + (offset & REACH) as usize;
        if offset > REACH || start + size_of::<T>() > self.data_end() {
            return None;
        }
        // SAFETY: the bytes lie inside of the packet (checked), `T` takes any bit pattern. BPF loads need no alignment on
        // the architectures that are served.
        Some(unsafe { *(start as *const T) })
    }

    #[inline(always)]
    fn store<T: Plain>(&mut self, offset: u32, value: &T, checksum: bool) -> Result<(), NotRewritten> {
        let flags = if checksum {
            u64::from(BPF_F_RECOMPUTE_CSUM)
        } else {
            0
        };
        let from = core::ptr::from_ref(value).cast::<c_void>();
        // SAFETY: `value` is `size_of::<T>()` initialised bytes.
        done(unsafe { helper::bpf_skb_store_bytes(self.skb, offset, from, size_of::<T>() as u32, flags) })
    }

    #[inline(always)]
    fn write<T: Plain + Copy>(&mut self, offset: u32, value: &T) -> Result<(), NotRewritten> {
        const { assert!(size_of::<T>() >= 2) };
        let start = self.data() + (offset & REACH) as usize;
        if offset > REACH || start + size_of::<T>() > self.data_end() {
            return Err(NotRewritten);
        }
        // SAFETY: as in `load`; the kernel makes the packet's head this program's own before it begins.
        unsafe { *(start as *mut T) = *value };
        Ok(())
    }

    #[inline(always)]
    fn changed(&mut self, from: u16, to: u16) {
        // SAFETY: the context is valid. It fails where no device has summed up anything.
        unsafe { helper::bpf_csum_update(self.skb, u32::from(!from) + u32::from(to)) };
    }

    #[inline(always)]
    fn replace_l3_checksum(
        &mut self,
        offset: u32,
        from: u32,
        to: u32,
        size: u32,
    ) -> Result<(), NotRewritten> {
        // SAFETY: the context is valid.
        done(unsafe {
            helper::bpf_l3_csum_replace(self.skb, offset, u64::from(from), u64::from(to), u64::from(size))
        })
    }

    #[inline(always)]
    fn replace_l4_checksum(
        &mut self,
        offset: u32,
        from: u32,
        to: u32,
        size: u32,
        pseudo: bool,
        zero_is_none: bool,
    ) -> Result<(), NotRewritten> {
        let flags = u64::from(size) | flags(pseudo, zero_is_none);
        // SAFETY: the context is valid.
        done(unsafe { helper::bpf_l4_csum_replace(self.skb, offset, u64::from(from), u64::from(to), flags) })
    }

    #[inline(always)]
    fn add_l4_checksum(
        &mut self,
        offset: u32,
        sum: u32,
        pseudo: bool,
        zero_is_none: bool,
    ) -> Result<(), NotRewritten> {
        let flags = flags(pseudo, zero_is_none);
        // SAFETY: the context is valid; a size of 0 takes the sum as it is.
        done(unsafe { helper::bpf_l4_csum_replace(self.skb, offset, 0, u64::from(sum), flags) })
    }

    #[inline(always)]
    fn fib(&self, src: &Addr, dst: &Addr, length: u32) -> Fib {
        match look_up(self.skb.cast(), self.ifindex(), src, dst, length) {
            // Found, with or without a neighbour entry.
            (0 | 7, params) => Fib::Device {
                ifindex: params.ifindex,
                gateway: gateway(&params),
            },
            // Blackhole, unreachable and prohibited routes, forwarding off: the stack says it properly. Not forwarded: a
            // local or multicast destination, or no route at all. Or a route that encapsulates.
            (1..=6, _) => Fib::Stack,
            (8, params) => Fib::TooBig { mtu: mtu(&params) },
            _ => Fib::Unroutable,
        }
    }

    #[inline(always)]
    fn cut(&mut self, length: u32) -> Result<(), NotRewritten> {
        if length >= self.length() {
            return Ok(());
        }
        // SAFETY: the context is valid. Every use of the packet's memory asks for its place anew.
        done(unsafe { helper::bpf_skb_change_tail(self.skb, length, 0) })
    }

    #[inline(always)]
    fn widen(&mut self, bytes: u32) -> Result<(), NotRewritten> {
        // SAFETY: as in `cut`.
        done(unsafe { helper::bpf_skb_adjust_room(self.skb, bytes as i32, BPF_ADJ_ROOM_MAC, 0) })
    }

    #[inline(always)]
    fn claim(&mut self) {
        // SAFETY: the context is valid. It fails for kinds that no frame from a device is of.
        unsafe { helper::bpf_skb_change_type(self.skb, PACKET_HOST) };
    }

    #[inline(always)]
    fn socket(&self, tuple: &Tuple) -> bool {
        receives(self.skb.cast(), tuple)
    }
}

#[inline(always)]
fn flags(pseudo: bool, zero_is_none: bool) -> u64 {
    let pseudo = if pseudo { u64::from(BPF_F_PSEUDO_HDR) } else { 0 };
    pseudo | if zero_is_none { MARK_MANGLED_0 } else { 0 }
}
