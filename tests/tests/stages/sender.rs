//! A pod sends as itself, whatever it says it is.

use std::net::IpAddr;

use cni_ebpf::abi::{Addr, Reason};
use cni_tests::frames::{self, Ends};
use cni_tests::memory::Memory;
use cni_tests::world::{self, Hook, ifindex, ip, mac, pod};
use proptest::prelude::*;

/// Whose address, or MAC, a packet bears.
#[derive(Clone, Copy, Debug)]
enum Claim {
    Own,
    /// That of the pod with this number.
    Of(u8),
    /// The own one but for this bit.
    Bit(u8),
    Random([u8; 16]),
}

fn any_claim() -> impl Strategy<Value = Claim> {
    prop_oneof![
        3 => Just(Claim::Own),
        1 => (2..=5u8).prop_map(Claim::Of),
        1 => any::<u8>().prop_map(Claim::Bit),
        1 => any::<[u8; 16]>().prop_map(Claim::Random),
    ]
}

fn device(number: u8) -> u32 {
    ifindex::POD_A + u32::from(number) - 2
}

fn flip<const N: usize>(mut octets: [u8; N], bit: u8) -> [u8; N] {
    octets[usize::from(bit / 8) % N] ^= 1 << (bit % 8);
    octets
}

fn address(claim: Claim, number: u8, v6: bool) -> IpAddr {
    match (claim, pod(number, v6)) {
        (Claim::Own, own) => own,
        (Claim::Of(other), _) => pod(other, v6),
        (Claim::Bit(bit), IpAddr::V4(own)) => flip(own.octets(), bit).into(),
        (Claim::Bit(bit), IpAddr::V6(own)) => flip(own.octets(), bit).into(),
        (Claim::Random([a, b, c, d, ..]), IpAddr::V4(_)) => [a, b, c, d].into(),
        (Claim::Random(octets), IpAddr::V6(_)) => octets.into(),
    }
}

fn link_address(claim: Claim, number: u8) -> [u8; 6] {
    match claim {
        Claim::Own => mac(device(number)),
        Claim::Of(other) => mac(device(other)),
        Claim::Bit(bit) => flip(mac(device(number)), bit),
        Claim::Random([a, b, c, d, e, f, ..]) => [a, b, c, d, e, f],
    }
}

/// How many entries there are of everything that a packet may leave behind.
fn traces(memory: &Memory) -> [usize; 5] {
    let [flows, new] = &memory.flows;
    let [aliases, new_aliases] = &memory.aliases;
    [
        flows.len(),
        new.len(),
        aliases.len(),
        new_aliases.len(),
        memory.fragments.len(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Also in the midst of a connection of the one whose name it bears, and in pieces.
    #[test]
    fn rel_49_only_the_own_address_and_mac_pass(
        number in 2..=5u8, v6: bool, claims in (any_claim(), any_claim()), to_pod: bool, tcp: bool,
        cut: bool, known: bool,
    ) {
        let (src, src_mac) = (address(claims.0, number, v6), link_address(claims.1, number));
        prop_assume!(!Addr::from(src).is_v4() || !v6);
        let outside = ip(if v6 { "2620:fe::9" } else { "9.9.9.9" });
        let dst = if to_pod { pod(if number == 3 { 2 } else { 3 }, v6) } else { outside };
        let packet = |ends: Ends| {
            let whole = if tcp { ends.tcp(super::SYN, &[1; 64]) } else { ends.udp(&[1; 64]) };
            if cut { frames::fragments(&whole, 32, 7)[0].clone() } else { whole }
        };
        let mut memory = world::memory();
        let claimed = Ends { src_mac, ..super::ends(device(number), src, dst) };
        // The owner of the address has sent the same before.
        let owner = (2..=5).find(|other| known && pod(*other, v6) == src);
        if let Some(owner) = owner {
            let genuine = Ends { src_mac: mac(device(owner)), ..claimed };
            let mut frame = world::frame(packet(genuine), device(owner));
            super::pass(&mut memory, Hook::FromPod, &mut frame).0.ok();
        }
        let before = traces(&memory);
        let mut frame = world::frame(packet(claimed), device(number));
        let (outcome, _) = super::pass(&mut memory, Hook::FromPod, &mut frame);
        let expected = if src != pod(number, v6) {
            Some(Reason::SourceAddress)
        } else if src_mac != mac(device(number)) {
            Some(Reason::SourceMac)
        } else {
            None
        };
        match expected {
            Some(reason) => {
                prop_assert_eq!(outcome, Err(reason));
                prop_assert_eq!(traces(&memory), before, "what is forged leaves no trace and takes none away");
            }
            None => prop_assert!(
                !matches!(outcome, Err(Reason::SourceAddress | Reason::SourceMac)),
                "{outcome:?}"
            ),
        }
    }
}

/// A pod that may forge frames ends nobody's connection by an answer or a first packet in his name.
#[test]
fn rel_49_a_forged_packet_takes_no_connection_away() {
    for (v6, flags) in [
        (false, super::SYN_ACK),
        (true, super::SYN_ACK),
        (false, super::SYN),
        (true, super::SYN),
    ] {
        let mut memory = world::memory();
        let genuine = super::ends(ifindex::POD_A, pod(2, v6), pod(3, v6));
        let answer = super::ends(ifindex::POD_B, pod(3, v6), pod(2, v6));
        let answer = Ends {
            src_port: genuine.dst_port,
            dst_port: genuine.src_port,
            ..answer
        };
        for (ends, flags) in [(genuine, super::SYN), (answer, super::SYN_ACK), (genuine, 16)] {
            let mut frame = world::frame(
                ends.tcp(flags, b""),
                if ends.src == genuine.src {
                    ifindex::POD_A
                } else {
                    ifindex::POD_B
                },
            );
            assert!(super::pass(&mut memory, Hook::FromPod, &mut frame).0.is_ok());
        }
        let before = traces(&memory);
        let mut frame = world::frame(genuine.tcp(flags, b""), ifindex::POD_STACK);
        assert_eq!(
            super::pass(&mut memory, Hook::FromPod, &mut frame).0,
            Err(Reason::SourceAddress)
        );
        assert_eq!(traces(&memory), before, "flags {flags}, IPv6 {v6}");
    }
}
