//! Link headers that the kernel loses between XDP and tc.
//!
//! Where a driver has no XDP, the kernel runs the program over the packet itself, and where that is short of room in front,
//! over a copy. Since Linux 6.9 a copy's `mac_len` is 0 (`skb_cow_data_for_xdp` in `net/core/skbuff.c`): programs behind
//! would take the network header for the link header. So the program leaves a mark in front of each frame that it passes
//! on, as metadata, which go with the packet to tc. Metadata end where data begin: who finds the end of a link header there
//! instead of the mark's has data without one, and puts it back.

use core::ffi::c_void;

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::helpers::generated as helper;

/// Not the end of any link header.
const MARK: u64 = u64::MAX;
/// The mark's, a multiple of four as the kernel wants it, and as long as a link header at least.
const LENGTH: usize = 16;
/// A link header in half words.
const WORDS: usize = 7;
/// Where it begins, if it stands in the mark's place.
const BEGIN: usize = LENGTH - 2 * WORDS;

/// Of a frame that is passed on. Native drivers that have no metadata lose no link headers either.
#[inline(always)]
pub(super) fn mark(xdp: *mut xdp_md) {
    // SAFETY: the context is the program's.
    if unsafe { helper::bpf_xdp_adjust_meta(xdp, -(LENGTH as i32)) } != 0 {
        return;
    }
    // SAFETY: as before. Volatile: the helper has moved them.
    let (meta, data) = unsafe {
        (
            (&raw const (*xdp).data_meta).read_volatile() as usize,
            (&raw const (*xdp).data).read_volatile() as usize,
        )
    };
    if meta + LENGTH > data {
        return;
    }
    let place = meta as *mut u64;
    // SAFETY: `LENGTH` bytes in front of the data; this processor does not care for alignment.
    unsafe {
        place.write_unaligned(MARK);
        place.add(1).write_unaligned(MARK);
    }
}

/// Before anything else is done with the packet.
#[inline(always)]
pub(super) fn put_back(skb: *mut __sk_buff) {
    // SAFETY: the context is the program's.
    let (meta, data, protocol) = unsafe {
        (
            (&raw const (*skb).data_meta).read_volatile() as usize,
            (&raw const (*skb).data).read_volatile() as usize,
            (*skb).protocol,
        )
    };
    if meta + LENGTH > data {
        return;
    }
    // SAFETY: these bytes lie in front of the data.
    let header = unsafe { ((meta + BEGIN) as *const [u16; WORDS]).read_unaligned() };
    if u32::from(header[WORDS - 1]) != protocol {
        return;
    }
    let from = (&raw const header).cast::<c_void>();
    // SAFETY: `header` is that many initialised bytes. Where there is no room nothing is changed: the packet is then too
    // short, or of no protocol, for whoever reads it.
    unsafe {
        if helper::bpf_skb_change_head(skb, size_of_val(&header) as u32, 0) == 0 {
            let _ = helper::bpf_skb_store_bytes(skb.cast(), 0, from, size_of_val(&header) as u32, 0);
        }
    }
}
