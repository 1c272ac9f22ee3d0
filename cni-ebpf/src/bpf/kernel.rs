//! What the kernel is asked about a packet, whether it has a socket buffer or not.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::{bpf_fib_lookup as FibParams, bpf_redir_neigh, bpf_sock_tuple, bpf_tunnel_key};
use aya_ebpf::helpers::generated as helper;
use cni_ebpf::abi::{Addr, Tuple};
use cni_ebpf::datapath::headers::proto;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Asks the kernel's routing table, for the packet behind a program's context: the helper's result, and what it filled in.
#[inline(always)]
pub(super) fn look_up(
    context: *mut c_void,
    ifindex: u32,
    src: &Addr,
    dst: &Addr,
    length: u32,
) -> (i64, FibParams) {
    let mut params: FibParams = cleared();
    params.ifindex = ifindex;
    params.__bindgen_anon_1.tot_len = length as u16;
    if dst.is_v4() {
        params.family = AF_INET;
        params.__bindgen_anon_3.ipv4_src = src.word_v4();
        params.__bindgen_anon_4.ipv4_dst = dst.word_v4();
    } else {
        params.family = AF_INET6;
        params.__bindgen_anon_3.ipv6_src = src.words();
        params.__bindgen_anon_4.ipv6_dst = dst.words();
    }
    // SAFETY: the context is the program's; `params` is a whole structure of the size given.
    let result =
        unsafe { helper::bpf_fib_lookup(context, &raw mut params, size_of::<FibParams>() as i32, 0) };
    (result, params)
}

/// The next hop of a route that was found: the gateway, or the destination itself.
#[inline(always)]
pub(super) fn gateway(params: &FibParams) -> Addr {
    // SAFETY: the helper left it in the half of the family.
    unsafe {
        if params.family == AF_INET {
            Addr::v4_word(params.__bindgen_anon_4.ipv4_dst)
        } else {
            let [a, b, c, d] = params.__bindgen_anon_4.ipv6_dst;
            Addr {
                hi: u64::from(a) | u64::from(b) << 32,
                lo: u64::from(c) | u64::from(d) << 32,
            }
        }
    }
}

/// The largest packet that the way carries, of a look-up that found the packet larger.
#[inline(always)]
pub(super) fn mtu(params: &FibParams) -> u32 {
    // SAFETY: the helper has exchanged the length for it.
    u32::from(unsafe { params.__bindgen_anon_1.mtu_result })
}

/// Whether a socket of this host receives the tuple.
#[inline(always)]
pub(super) fn receives(context: *mut c_void, tuple: &Tuple) -> bool {
    // Only what the kernel reads is written: clearing the rest becomes a call, and a frame of the stack.
    let mut key = MaybeUninit::<bpf_sock_tuple>::uninit();
    let v4 = tuple.src.is_v4();
    // SAFETY: the fields are written in place, through a pointer to the whole.
    let size = unsafe {
        let key = key.as_mut_ptr();
        if v4 {
            (*key).__bindgen_anon_1.ipv4.saddr = tuple.src.word_v4();
            (*key).__bindgen_anon_1.ipv4.daddr = tuple.dst.word_v4();
            (*key).__bindgen_anon_1.ipv4.sport = tuple.src_port.wire();
            (*key).__bindgen_anon_1.ipv4.dport = tuple.dst_port.wire();
            12
        } else {
            (*key).__bindgen_anon_1.ipv6.saddr = tuple.src.words();
            (*key).__bindgen_anon_1.ipv6.daddr = tuple.dst.words();
            (*key).__bindgen_anon_1.ipv6.sport = tuple.src_port.wire();
            (*key).__bindgen_anon_1.ipv6.dport = tuple.dst_port.wire();
            36
        }
    };
    let key = key.as_mut_ptr();
    const CURRENT_NETNS: u64 = u64::MAX;
    // SAFETY: the context is the program's; `key` holds at least `size` bytes.
    let socket = unsafe {
        match tuple.proto {
            proto::TCP => helper::bpf_skc_lookup_tcp(context, key, size, CURRENT_NETNS, 0).cast(),
            proto::UDP => helper::bpf_sk_lookup_udp(context, key, size, CURRENT_NETNS, 0),
            _ => return false,
        }
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: a socket that a look-up gave must be released, once.
    unsafe { helper::bpf_sk_release(socket.cast()) };
    true
}

/// Structures of the kernel's interface that are made of integers.
pub(super) trait Parameters {}
impl Parameters for FibParams {}
impl Parameters for bpf_tunnel_key {}
impl Parameters for bpf_redir_neigh {}

/// A structure of zeros, word by word: clearing it as a whole becomes a call.
#[inline(always)]
pub(super) fn cleared<T: Parameters>() -> T {
    let mut value = MaybeUninit::<T>::uninit();
    let words = value.as_mut_ptr().cast::<u32>();
    for word in 0..size_of::<T>() / 4 {
        // SAFETY: inside of `value`, whose size is a multiple of four.
        unsafe { words.add(word).write_volatile(0) };
    }
    // SAFETY: every word is written, and zero is a value of every integer.
    unsafe { value.assume_init() }
}
