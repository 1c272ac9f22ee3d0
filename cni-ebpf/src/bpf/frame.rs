//! [`Packet`] over a frame that no socket buffer holds yet (XDP): nobody else corrects what is changed here.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated as helper;
use cni_ebpf::abi::{Addr, Plain, Tuple};
use cni_ebpf::datapath::checksum::{change, mangled, replace4};
use cni_ebpf::datapath::stage::Stage;
use cni_ebpf::datapath::{Fib, Hop, NotRewritten, Packet, Tables, Wire, Work};

use super::kernel::{gateway, look_up, receives};
use super::packet::REACH;

pub(super) struct Frame {
    xdp: *mut xdp_md,
}

impl Frame {
    #[inline(always)]
    pub(super) fn over(xdp: *mut xdp_md) -> Self {
        Self { xdp }
    }

    #[inline(always)]
    fn data(&self) -> usize {
        // SAFETY: the context is valid. Volatile, as with a socket buffer: see `Skb`.
        unsafe { (&raw const (*self.xdp).data).read_volatile() as usize }
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        // SAFETY: as in `data`.
        unsafe { (&raw const (*self.xdp).data_end).read_volatile() as usize }
    }

    /// Where a value stands.
    #[inline(always)]
    fn place<T: Plain>(&self, offset: u32) -> Option<*mut T> {
        // As in `Skb::load`.
        const { assert!(size_of::<T>() >= 2) };
        let start = self.data() + (offset & REACH) as usize;
        if offset > REACH || start + size_of::<T>() > self.data_end() {
            return None;
        }
        Some(start as *mut T)
    }

    #[inline(always)]
    fn correct(&mut self, offset: u32, new: impl FnOnce(u16) -> u16) -> Result<(), NotRewritten> {
        let place = self.place::<u16>(offset).ok_or(NotRewritten)?;
        // SAFETY: two bytes inside of the frame, which is the program's own.
        unsafe { *place = new(*place) };
        Ok(())
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the context is valid. What a frame has in more pieces than one counts too.
        unsafe { helper::bpf_xdp_get_buff_len(self.xdp) as u32 }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid.
        unsafe { (*self.xdp).ingress_ifindex }
    }

    #[inline(always)]
    fn ingress_ifindex(&self) -> u32 {
        self.ifindex()
    }

    /// Nothing is beside a frame.
    #[inline(always)]
    fn mark(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn vlan(&self) -> bool {
        false
    }

    /// Frames are handed to nobody: what their program does not know passes on.
    #[inline(always)]
    fn handed_over(&self, _: u8) -> u32 {
        0
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn tunnel_source(&self) -> Option<(Addr, u32)> {
        None
    }

    #[inline(always)]
    fn apart<T: Tables>(&mut self, stage: Stage, _: &T, work: &mut Work) -> u32 {
        super::stages::wire(stage, self.xdp, work)
    }

    #[inline(always)]
    fn load<T: Plain + Copy>(&self, offset: u32) -> Option<T> {
        let place = self.place::<T>(offset)?;
        // SAFETY: the bytes lie inside of the frame, `T` takes any bit pattern; of alignment see `Skb::load`.
        Some(unsafe { *place })
    }

    #[inline(always)]
    fn store<T: Plain>(&mut self, offset: u32, value: &T, _: bool) -> Result<(), NotRewritten> {
        let place = self.place::<T>(offset).ok_or(NotRewritten)?;
        // SAFETY: as many bytes as `T` has, inside of the frame. `T` is plain: nothing is dropped.
        unsafe { core::ptr::copy_nonoverlapping(value, place, 1) };
        Ok(())
    }

    #[inline(always)]
    fn write<T: Plain + Copy>(&mut self, offset: u32, value: &T) -> Result<(), NotRewritten> {
        let place = self.place::<T>(offset).ok_or(NotRewritten)?;
        // SAFETY: as in `store`.
        unsafe { *place = *value };
        Ok(())
    }

    /// What a device has summed up is not known to anybody yet.
    #[inline(always)]
    fn changed(&mut self, _: u16, _: u16) {}

    #[inline(always)]
    fn replace_l3_checksum(&mut self, offset: u32, from: u32, to: u32, _: u32) -> Result<(), NotRewritten> {
        self.correct(
            offset,
            #[inline(always)]
            |sum| replace4(sum, from, to),
        )
    }

    #[inline(always)]
    fn replace_l4_checksum(
        &mut self,
        offset: u32,
        from: u32,
        to: u32,
        _: u32,
        _: bool,
        zero_is_none: bool,
    ) -> Result<(), NotRewritten> {
        self.correct(
            offset,
            #[inline(always)]
            |sum| mangled(sum, zero_is_none, replace4(sum, from, to)),
        )
    }

    #[inline(always)]
    fn add_l4_checksum(
        &mut self,
        offset: u32,
        sum: u32,
        _: bool,
        zero_is_none: bool,
    ) -> Result<(), NotRewritten> {
        self.correct(
            offset,
            #[inline(always)]
            |before| mangled(before, zero_is_none, change(before, sum)),
        )
    }

    /// Answers are made behind.
    #[inline(always)]
    fn cut(&mut self, _: u32) -> Result<(), NotRewritten> {
        Err(NotRewritten)
    }

    #[inline(always)]
    fn widen(&mut self, _: u32) -> Result<(), NotRewritten> {
        Err(NotRewritten)
    }

    /// [`Wire::hop`] is what a frame leaves by.
    #[inline(always)]
    fn fib(&self, _: &Addr, _: &Addr, _: u32) -> Fib {
        Fib::Stack
    }

    /// Nobody has said yet whose it is.
    #[inline(always)]
    fn claim(&mut self) {}

    #[inline(always)]
    fn socket(&self, tuple: &Tuple) -> bool {
        receives(self.xdp.cast(), tuple)
    }
}

impl Wire for Frame {
    #[inline(always)]
    fn hop(&self, src: &Addr, dst: &Addr, length: u32) -> Option<Hop> {
        let (result, params) = look_up(self.xdp.cast(), self.ifindex(), src, dst, length);
        if result != 0 {
            return None;
        }
        let ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]) = (params.dmac, params.smac);
        Some(Hop {
            ifindex: params.ifindex,
            gateway: gateway(&params),
            link: [[d0, d1], [d2, d3], [d4, d5], [s0, s1], [s2, s3], [s4, s5]].map(u16::from_ne_bytes),
        })
    }
}
