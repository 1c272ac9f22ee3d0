//! The programs of the cgroup root: sockets that connect, send and receive.
//!
//! They run in the process's context, where the programs of packets may interrupt them at any moment: nothing of theirs
//! stands in the scratch.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated as helper;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use cni_ebpf::abi::{Addr, Port, Reason};
use cni_ebpf::datapath::socket::{self, Socket};

use super::tables::Maps;

const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

struct SockAddr<const V6: bool>(*mut bpf_sock_addr);

impl<const V6: bool> Socket for SockAddr<V6> {
    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context is valid.
        unsafe { helper::bpf_get_socket_cookie(self.0.cast()) }
    }

    #[inline(always)]
    fn netns(&self) -> u64 {
        // SAFETY: the context is valid.
        unsafe { helper::bpf_get_netns_cookie(self.0.cast()) }
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        // SAFETY: the context is valid.
        unsafe { (&raw const (*self.0).protocol).read_volatile() as u8 }
    }

    #[inline(always)]
    fn peer(&self) -> (Addr, Port) {
        // SAFETY: the context is valid. Volatile: the verifier knows its fields as words, one by one.
        unsafe {
            let port = Port::from_wire((&raw const (*self.0).user_port).read_volatile() as u16);
            if !V6 {
                let word = (&raw const (*self.0).user_ip4).read_volatile();
                return (Addr::v4_word(word), port);
            }
            let words = (&raw const (*self.0).user_ip6).cast::<u32>();
            let word = |at: usize| u64::from(words.add(at).read_volatile());
            let addr = Addr {
                hi: word(0) | word(1) << 32,
                lo: word(2) | word(3) << 32,
            };
            (addr, port)
        }
    }

    #[inline(always)]
    fn set_peer(&mut self, addr: &Addr, port: Port) {
        // SAFETY: as in `peer`; these fields may be written.
        unsafe {
            (&raw mut (*self.0).user_port).write_volatile(u32::from(port.wire()));
            if !V6 {
                (&raw mut (*self.0).user_ip4).write_volatile(addr.word_v4());
                return;
            }
            let words = (&raw mut (*self.0).user_ip6).cast::<u32>();
            let [a, b, c, d] = addr.words();
            words.write_volatile(a);
            words.add(1).write_volatile(b);
            words.add(2).write_volatile(c);
            words.add(3).write_volatile(d);
        }
    }
}

#[inline(always)]
fn sock_addr<const V6: bool>(context: &SockAddrContext) -> SockAddr<V6> {
    SockAddr(context.as_ptr().cast())
}

/// 1: it goes on. What is refused is told as a packet's refusal would be.
#[inline(always)]
fn verdict(outcome: Result<(), Reason>) -> i32 {
    let error = match outcome {
        Ok(()) => return 1,
        Err(Reason::ServiceNoBackend) => ECONNREFUSED,
        Err(_) => EHOSTUNREACH,
    };
    // SAFETY: a negative error number.
    unsafe { helper::bpf_set_retval(-error) };
    0
}

macro_rules! programs {
    ($($name:ident, $hook:ident, $v6:literal, $socket:ident => $run:expr;)*) => {
        $(
            #[cgroup_sock_addr($hook)]
            pub(crate) fn $name(context: SockAddrContext) -> i32 {
                let $socket = &mut sock_addr::<$v6>(&context);
                $run
            }
        )*
    };
}

/// Whatever comes of it, the peer is shown.
#[inline(always)]
fn shown<const V6: bool>(socket: &mut SockAddr<V6>) -> i32 {
    socket::show(&Maps, socket);
    1
}

programs! {
    sock_connect4, connect4, false, socket => verdict(socket::connect(&Maps, socket));
    sock_connect6, connect6, true, socket => verdict(socket::connect(&Maps, socket));
    sock_sendmsg4, sendmsg4, false, socket => verdict(socket::send(&Maps, socket));
    sock_sendmsg6, sendmsg6, true, socket => verdict(socket::send(&Maps, socket));
    sock_recvmsg4, recvmsg4, false, socket => shown(socket);
    sock_recvmsg6, recvmsg6, true, socket => shown(socket);
    sock_peername4, getpeername4, false, socket => shown(socket);
    sock_peername6, getpeername6, true, socket => shown(socket);
}
