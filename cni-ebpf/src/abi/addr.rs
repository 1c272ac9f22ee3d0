//! Addresses, ports and prefixes.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Plain;

crate::abi! {
    /// An address in memory order: two words, because comparing two words is two instructions and comparing sixteen
    /// bytes is a hundred. IPv4 is mapped (`::ffff:a.b.c.d`).
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
    pub struct Addr: 16 {
        pub hi: u64,
        pub lo: u64,
    }
}

/// The first four of the last eight bytes of a mapped IPv4 address.
const MAPPED: [u8; 4] = [0, 0, 0xff, 0xff];

impl Addr {
    pub const UNSPECIFIED: Self = Self { hi: 0, lo: 0 };

    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        let [m0, m1, m2, m3] = MAPPED;
        Self {
            hi: 0,
            lo: u64::from_ne_bytes([m0, m1, m2, m3, a, b, c, d]),
        }
    }

    /// Makes it [`Addr::UNSPECIFIED`].
    #[inline(always)]
    pub fn clear(&mut self) {
        super::put(&mut self.hi, 0);
        super::put(&mut self.lo, 0);
    }

    /// From the four bytes as they stand on the wire, read as one native word.
    #[inline(always)]
    pub const fn v4_word(word: u32) -> Self {
        Self::v4(word.to_ne_bytes())
    }

    #[inline(always)]
    pub const fn v6(octets: [u8; 16]) -> Self {
        let [a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7] = octets;
        Self {
            hi: u64::from_ne_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            lo: u64::from_ne_bytes([b0, b1, b2, b3, b4, b5, b6, b7]),
        }
    }

    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        let [a0, a1, a2, a3, a4, a5, a6, a7] = self.hi.to_ne_bytes();
        let [b0, b1, b2, b3, b4, b5, b6, b7] = self.lo.to_ne_bytes();
        [a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7]
    }

    /// The address as four words in memory order.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        let [a, b, c, d, e, f, g, h] = self.hi.to_ne_bytes();
        let [i, j, k, l, m, n, o, p] = self.lo.to_ne_bytes();
        [
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ]
    }

    /// The four bytes of an IPv4 address as one native word in memory order; meaningless for IPv6.
    #[inline(always)]
    pub const fn word_v4(self) -> u32 {
        self.words()[3]
    }

    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.hi == 0 && self.words()[2] == u32::from_ne_bytes(MAPPED)
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::v4(v4.octets()),
            IpAddr::V6(v6) => Self::v6(v6.octets()),
        }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        Self::v4(ip.octets())
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Self {
        Self::v6(ip.octets())
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        let v6 = Ipv6Addr::from(addr.octets());
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
    }
}

impl core::fmt::Display for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

/// A port in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Port(u16);

// SAFETY: transparent over `u16`.
unsafe impl Plain for Port {}

impl Port {
    pub const ZERO: Self = Self(0);

    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// From two bytes as they stand on the wire, read as one native word.
    #[inline(always)]
    pub const fn from_wire(word: u16) -> Self {
        Self(word)
    }

    /// The native word whose bytes in memory are those of the wire.
    #[inline(always)]
    pub const fn wire(self) -> u16 {
        self.0
    }

    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

impl core::fmt::Debug for Port {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.get().fmt(f)
    }
}

impl core::fmt::Display for Port {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.get().fmt(f)
    }
}

crate::abi! {
    /// The key of a longest-prefix map over addresses. Words of four bytes, because the kernel wants the data right
    /// behind the length.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub struct Prefix: 20 {
        /// Bits that count, of 128: an IPv4 prefix counts 96 more.
        pub len: u32,
        pub words: [u32; 4],
    }
}

impl Prefix {
    /// The prefix of one address.
    #[inline(always)]
    pub const fn host(addr: Addr) -> Self {
        Self {
            len: 128,
            words: addr.words(),
        }
    }

    /// `len` counts in the address's own family. `None` if it is too long for that family or has bits set behind
    /// the length.
    pub fn new(ip: IpAddr, len: u8) -> Option<Self> {
        let (bits, base) = if ip.is_ipv4() { (32, 96) } else { (128, 0) };
        if len > bits {
            return None;
        }
        let len = u32::from(len) + base;
        let addr = u128::from_be_bytes(Addr::from(ip).octets());
        let behind = if len == 0 {
            u128::MAX
        } else {
            u128::MAX.checked_shr(len).unwrap_or(0)
        };
        (addr & behind == 0).then(|| Self {
            len,
            words: Addr::from(ip).words(),
        })
    }

    /// The address and the length in the address's own family.
    pub fn parts(self) -> (IpAddr, u8) {
        let mut octets = [0; 16];
        for (out, word) in octets.chunks_exact_mut(4).zip(self.words) {
            out.copy_from_slice(&word.to_ne_bytes());
        }
        let addr = Addr::v6(octets);
        let v4 = self.len >= 96 && addr.is_v4();
        let len = if v4 { self.len - 96 } else { self.len };
        // The mapped range itself is IPv4's /0.
        let ip = if v4 {
            IpAddr::from(addr)
        } else {
            IpAddr::V6(octets.into())
        };
        (ip, u8::try_from(len).unwrap_or(u8::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_their_family() {
        for text in [
            "10.0.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "::",
            "::1",
            "fd00::1",
            "ff02::1",
        ] {
            let ip: IpAddr = text.parse().unwrap();
            let addr = Addr::from(ip);
            assert_eq!(IpAddr::from(addr), ip);
            assert_eq!(addr.is_v4(), ip.is_ipv4(), "{text}");
        }
        assert_eq!(Addr::v4([10, 0, 0, 1]).word_v4().to_ne_bytes(), [10, 0, 0, 1]);
        assert_eq!(
            Addr::v4_word(u32::from_ne_bytes([10, 0, 0, 1])),
            Addr::v4([10, 0, 0, 1])
        );
    }

    #[test]
    fn ports_are_in_network_order() {
        assert_eq!(Port::new(0x1234).wire().to_ne_bytes(), [0x12, 0x34]);
        assert_eq!(Port::from_wire(u16::from_ne_bytes([0, 80])).get(), 80);
    }

    #[test]
    fn prefixes_round_trip_and_refuse_host_bits() {
        for (text, len) in [
            ("10.1.0.0", 16),
            ("0.0.0.0", 0),
            ("10.1.2.3", 32),
            ("::", 0),
            ("fd00:1::", 64),
        ] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(Prefix::new(ip, len).unwrap().parts(), (ip, len));
        }
        assert_eq!(Prefix::new("10.1.2.3".parse().unwrap(), 24), None);
        assert_eq!(Prefix::new("10.0.0.0".parse().unwrap(), 33), None);
        assert_eq!(Prefix::new("fd00::1".parse().unwrap(), 64), None);
    }
}
