//! Link headers that the kernel loses between XDP and tc.
//!
//! Where a driver has no XDP, the kernel runs the program over the packet itself, and where that is short of room in front,
//! over a copy. Since Linux 6.9 a copy's `mac_len` is 0 (`skb_cow_data_for_xdp` in `net/core/skbuff.c`): programs behind
//! have the network header where the link header should be. The kernel still knows where that is.

use core::ffi::c_void;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_MAC;
use aya_ebpf::helpers::generated as helper;

/// A link header in half words.
type Header = [u16; 7];

/// Has the data begin with the link header, before anything else is done with the packet.
#[inline(always)]
pub(super) fn put_back(skb: *mut __sk_buff) {
    let (mut header, mut front): (Header, Header) = ([0; 7], [0; 7]);
    let length = size_of::<Header>() as u32;
    let there = (&raw mut header).cast::<c_void>();
    let here = (&raw mut front).cast::<c_void>();
    // SAFETY: the context is the program's; both have room for what is written, and `header` is initialised when it is read.
    // Where a helper fails nothing is changed: the packet is then too short, or of no protocol, for whoever reads it.
    unsafe {
        let loaded = helper::bpf_skb_load_bytes_relative(skb.cast(), 0, there, length, BPF_HDR_START_MAC)
            == 0
            && helper::bpf_skb_load_bytes(skb.cast(), 0, here, length) == 0;
        if loaded && header != front && helper::bpf_skb_change_head(skb, length, 0) == 0 {
            let _ = helper::bpf_skb_store_bytes(skb.cast(), 0, there, length, 0);
        }
    }
}
