//! Protocol headers and the two address families.

/// Plain data that any bytes may fill.
///
/// # Safety
/// `repr(C)` or a byte array, no padding, no invalid bit pattern.
pub unsafe trait Wire: Copy + 'static {}

// SAFETY: any byte is a valid u8, and arrays have no padding.
unsafe impl Wire for u8 {}
// SAFETY: as above.
unsafe impl<const N: usize> Wire for [u8; N] {}
// SAFETY: any four bytes are a valid u32.
unsafe impl Wire for u32 {}
// SAFETY: any eight bytes are a valid u64.
unsafe impl Wire for u64 {}

/// Reads from memory, though it was read before. What LLVM keeps in a register the verifier follows
/// along each way that comparisons open, and a few such values are too many ways.
#[must_use]
#[inline(always)]
pub fn reread(value: &u32) -> u32 {
    // SAFETY: a reference can be read through.
    unsafe { core::ptr::read_volatile(value) }
}

/// An IPv4 address in wire order. Aligned, so that BPF moves it as a word.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct V4Addr(pub [u8; 4]);

/// An IPv6 address in wire order. Aligned, so that BPF moves it as words.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, Hash, PartialOrd, Ord)]
#[expect(
    clippy::derived_hash_with_manual_eq,
    reason = "PartialEq compares the same bytes, by words"
)]
pub struct V6Addr(pub [u8; 16]);

impl V4Addr {
    /// As the number that the bytes are in memory.
    #[must_use]
    #[inline(always)]
    pub const fn word(&self) -> u32 {
        u32::from_ne_bytes(self.0)
    }
}

impl V6Addr {
    /// The `i`-th of four words, as it is in memory.
    #[must_use]
    #[inline(always)]
    pub const fn word(&self, i: usize) -> u32 {
        word(&self.0, i)
    }

    /// The IPv4 address that `::ffff:a.b.c.d` stands for.
    #[must_use]
    #[inline(always)]
    pub fn unmapped(&self) -> Option<V4Addr> {
        let is_mapped = self.word(0) | self.word(1) == 0 && self.word(2) == u32::from_be(0xffff);
        is_mapped.then(|| V4Addr(self.word(3).to_ne_bytes()))
    }
}

// Word by word: comparing the arrays would call bcmp, which BPF does byte by byte.
impl PartialEq for V6Addr {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let d = |i| self.word(i) ^ other.word(i);
        d(0) | d(1) | d(2) | d(3) == 0
    }
}
impl Eq for V6Addr {}

impl From<[u8; 4]> for V4Addr {
    fn from(octets: [u8; 4]) -> Self {
        Self(octets)
    }
}
impl From<core::net::Ipv4Addr> for V4Addr {
    fn from(addr: core::net::Ipv4Addr) -> Self {
        Self(addr.octets())
    }
}
impl From<V4Addr> for core::net::Ipv4Addr {
    fn from(addr: V4Addr) -> Self {
        addr.0.into()
    }
}
impl From<V4Addr> for core::net::IpAddr {
    fn from(addr: V4Addr) -> Self {
        addr.0.into()
    }
}
impl From<V6Addr> for core::net::IpAddr {
    fn from(addr: V6Addr) -> Self {
        addr.0.into()
    }
}
impl From<[u8; 16]> for V6Addr {
    fn from(octets: [u8; 16]) -> Self {
        Self(octets)
    }
}
impl From<core::net::Ipv6Addr> for V6Addr {
    fn from(addr: core::net::Ipv6Addr) -> Self {
        Self(addr.octets())
    }
}
impl From<V6Addr> for core::net::Ipv6Addr {
    fn from(addr: V6Addr) -> Self {
        addr.0.into()
    }
}

/// Length of an Ethernet header.
pub const ETH_LEN: u32 = 14;

/// EtherTypes, wire order (IEEE 802 numbers).
pub mod ethertype {
    /// IPv4.
    pub const IPV4: [u8; 2] = [0x08, 0x00];
    /// ARP.
    pub const ARP: [u8; 2] = [0x08, 0x06];
    /// IPv6.
    pub const IPV6: [u8; 2] = [0x86, 0xdd];
    /// 802.1Q tag.
    pub const VLAN: [u8; 2] = [0x81, 0x00];
    /// 802.1ad tag.
    pub const QINQ: [u8; 2] = [0x88, 0xa8];
}

/// IP protocol numbers (IANA).
pub mod proto {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;

    /// Name for people and JSON, `None` where the number must do.
    #[must_use]
    pub const fn name(proto: u8) -> Option<&'static str> {
        Some(match proto {
            ICMP => "icmp",
            TCP => "tcp",
            UDP => "udp",
            ICMPV6 => "icmpv6",
            SCTP => "sctp",
            _ => return None,
        })
    }
}

/// TCP flag bits (RFC 9293 §3.1).
pub mod tcp_flag {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronise.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// Acknowledgement is valid.
    pub const ACK: u8 = 16;
}

/// Ethernet header.
#[repr(C, align(2))]
#[derive(Clone, Copy, Debug)]
pub struct Eth {
    /// Destination MAC.
    pub dst: [u8; 6],
    /// Source MAC.
    pub src: [u8; 6],
    /// EtherType, wire order.
    pub ethertype: [u8; 2],
}

/// IPv4 header without options (RFC 791 §3.1).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ipv4Header {
    /// Version and header length in 32-bit words.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Total length, wire order.
    pub total_len: [u8; 2],
    /// Identification.
    pub id: [u8; 2],
    /// Flags and fragment offset.
    pub fragment: [u8; 2],
    /// Time to live.
    pub ttl: u8,
    /// Protocol.
    pub proto: u8,
    /// Header checksum.
    pub checksum: [u8; 2],
    /// Source.
    pub src: V4Addr,
    /// Destination.
    pub dst: V4Addr,
}

/// IPv6 header (RFC 8200 §3).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ipv6Header {
    /// Version, traffic class, flow label.
    pub version_class_flow: [u8; 4],
    /// Payload length, wire order.
    pub payload_len: [u8; 2],
    /// Next header.
    pub next: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source.
    pub src: V6Addr,
    /// Destination.
    pub dst: V6Addr,
}

/// ARP for IPv4 over Ethernet (RFC 826).
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug)]
pub struct Arp {
    /// Hardware type, protocol type, lengths: 0001 0800 06 04.
    pub kind: [u8; 6],
    /// 1 request, 2 reply.
    pub operation: [u8; 2],
    /// Sender MAC.
    pub sender_mac: [u8; 6],
    /// Sender IPv4 address.
    pub sender_ip: [u8; 4],
    /// Target MAC.
    pub target_mac: [u8; 6],
    /// Target IPv4 address.
    pub target_ip: [u8; 4],
}

macro_rules! wire {
    ($($t:ty = $size:expr),+ $(,)?) => { $(
        // SAFETY: `repr(C)`, bytes only, no padding: size asserted.
        unsafe impl Wire for $t {}
        const _: () = assert!(size_of::<$t>() == $size);
    )+ };
}
wire!(
    Eth = 14,
    Ipv4Header = 20,
    Ipv6Header = 40,
    Arp = 28,
    V4Addr = 4,
    V6Addr = 16
);

/// An address family, as a type parameter: IPv4 and IPv6 are two instances of one code.
pub trait Family: Copy + 'static {
    /// An address in wire order.
    type Addr: Address;
    /// 4 or 6.
    const VERSION: u8;
    /// EtherType.
    const ETHERTYPE: [u8; 2];
    /// AF_INET or AF_INET6.
    const AF: u8;
    /// Length of an address in bytes.
    const ADDR_LEN: u32;
    /// The family's ICMP.
    const ICMP: u8;
    /// ICMP type of an echo request.
    const ECHO_REQUEST: u8;
    /// ICMP type of an echo reply.
    const ECHO_REPLY: u8;
    /// Offset of the source address in the IP header; the destination follows it.
    const SRC_OFFSET: u32;
    /// Offset of the TTL or hop limit in the IP header.
    const TTL_OFFSET: u32;
    /// Is the checksum of the family's ICMP computed over a pseudo header?
    const ICMP_PSEUDO_HEADER: bool;
}

/// IPv4.
#[derive(Clone, Copy, Debug)]
pub struct V4;
/// IPv6.
#[derive(Clone, Copy, Debug)]
pub struct V6;

impl Family for V4 {
    type Addr = V4Addr;
    const VERSION: u8 = 4;
    const ETHERTYPE: [u8; 2] = ethertype::IPV4;
    const AF: u8 = 2;
    const ADDR_LEN: u32 = 4;
    const ICMP: u8 = proto::ICMP;
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;
    const SRC_OFFSET: u32 = 12;
    const TTL_OFFSET: u32 = 8;
    const ICMP_PSEUDO_HEADER: bool = false;
}

impl Family for V6 {
    type Addr = V6Addr;
    const VERSION: u8 = 6;
    const ETHERTYPE: [u8; 2] = ethertype::IPV6;
    const AF: u8 = 10;
    const ADDR_LEN: u32 = 16;
    const ICMP: u8 = proto::ICMPV6;
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;
    const SRC_OFFSET: u32 = 8;
    const TTL_OFFSET: u32 = 7;
    const ICMP_PSEUDO_HEADER: bool = true;
}

/// What the engine needs to know of an address.
pub trait Address: Wire + Default + Eq + core::fmt::Debug {
    /// 0.0.0.0 or `::`.
    fn is_unspecified(&self) -> bool;
    /// 127/8 or `::1`.
    fn is_loopback(&self) -> bool;
    /// 224/4 or ff00::/8.
    fn is_multicast(&self) -> bool;
    /// 169.254/16 or fe80::/10.
    fn is_link_local(&self) -> bool;
    /// A source that no packet from the network may bear: unspecified, loopback, multicast,
    /// limited broadcast, 0/8 and 240/4 (RFC 1812 §5.3.7), `::/96` and `::ffff:0:0/96`.
    fn is_martian_source(&self) -> bool;
    /// Equal to `prefix` in the bits that are set in `mask`?
    fn is_within(&self, prefix: &Self, mask: &Self) -> bool;
    /// The address in the first bytes of a 16-byte field.
    fn padded(&self) -> [u8; 16];
    /// The inverse of [`Address::padded`].
    fn from_padded(bytes: &[u8; 16]) -> Self;
    /// As an IPv6 address; IPv4 as `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2).
    fn mapped(&self) -> V6Addr;
    /// 127.0.0.1 or `::1`.
    const LOOPBACK: Self;
    /// The address as 32-bit words for hashing; IPv4 has one.
    fn fold(&self) -> u32;
}

impl Address for V4Addr {
    #[inline(always)]
    fn is_unspecified(&self) -> bool {
        self.word() == 0
    }
    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self.0[0] == 127
    }
    #[inline(always)]
    fn is_multicast(&self) -> bool {
        self.0[0] & 0xf0 == 0xe0
    }
    #[inline(always)]
    fn is_link_local(&self) -> bool {
        self.0[0] == 169 && self.0[1] == 254
    }
    #[inline(always)]
    fn is_martian_source(&self) -> bool {
        self.0[0] == 0 || self.0[0] == 127 || self.0[0] >= 224
    }
    #[inline(always)]
    fn is_within(&self, prefix: &Self, mask: &Self) -> bool {
        (self.word() ^ prefix.word()) & mask.word() == 0
    }
    #[inline(always)]
    fn padded(&self) -> [u8; 16] {
        let mut out = [0; 16];
        out[0] = self.0[0];
        out[1] = self.0[1];
        out[2] = self.0[2];
        out[3] = self.0[3];
        out
    }
    #[inline(always)]
    fn from_padded(b: &[u8; 16]) -> Self {
        Self([b[0], b[1], b[2], b[3]])
    }
    #[inline(always)]
    fn mapped(&self) -> V6Addr {
        let [a, b, c, d] = self.0;
        V6Addr([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }
    const LOOPBACK: Self = Self([127, 0, 0, 1]);
    #[inline(always)]
    fn fold(&self) -> u32 {
        self.word()
    }
}

#[inline(always)]
pub(crate) const fn word(b: &[u8; 16], i: usize) -> u32 {
    u32::from_ne_bytes([b[i * 4], b[i * 4 + 1], b[i * 4 + 2], b[i * 4 + 3]])
}

impl Address for V6Addr {
    #[inline(always)]
    fn is_unspecified(&self) -> bool {
        self.word(0) | self.word(1) | self.word(2) | self.word(3) == 0
    }
    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self.word(0) | self.word(1) | self.word(2) == 0 && self.word(3) == u32::from_be(1)
    }
    #[inline(always)]
    fn is_multicast(&self) -> bool {
        self.0[0] == 0xff
    }
    #[inline(always)]
    fn is_link_local(&self) -> bool {
        self.0[0] == 0xfe && self.0[1] & 0xc0 == 0x80
    }
    #[inline(always)]
    fn is_martian_source(&self) -> bool {
        let embeds_v4 = self.word(0) | self.word(1) == 0
            && (self.word(2) == 0 || self.word(2) == u32::from_be(0xffff));
        embeds_v4 || self.is_multicast()
    }
    #[inline(always)]
    fn is_within(&self, prefix: &Self, mask: &Self) -> bool {
        let d = |i| (self.word(i) ^ prefix.word(i)) & mask.word(i);
        d(0) | d(1) | d(2) | d(3) == 0
    }
    #[inline(always)]
    fn padded(&self) -> [u8; 16] {
        self.0
    }
    #[inline(always)]
    fn from_padded(b: &[u8; 16]) -> Self {
        Self(*b)
    }
    #[inline(always)]
    fn mapped(&self) -> V6Addr {
        *self
    }
    const LOOPBACK: Self = Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    #[inline(always)]
    fn fold(&self) -> u32 {
        self.word(0)
            ^ self.word(1).rotate_left(7)
            ^ self.word(2).rotate_left(13)
            ^ self.word(3).rotate_left(19)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv6Addr;

    fn v6(s: &str) -> V6Addr {
        s.parse::<Ipv6Addr>().unwrap().into()
    }

    #[test]
    fn v4_classes() {
        assert!(V4Addr([127, 1, 2, 3]).is_loopback() && !V4Addr([128, 0, 0, 1]).is_loopback());
        assert!(
            V4Addr([224, 0, 0, 1]).is_multicast() && !V4Addr([223, 255, 255, 255]).is_multicast()
        );
        assert!(
            V4Addr([169, 254, 1, 1]).is_link_local() && !V4Addr([169, 253, 1, 1]).is_link_local()
        );
        for martian in [
            [0, 1, 2, 3],
            [127, 0, 0, 1],
            [224, 0, 0, 1],
            [240, 0, 0, 1],
            [255; 4],
        ] {
            assert!(V4Addr(martian).is_martian_source(), "{martian:?}");
        }
        for fine in [
            [1, 0, 0, 0],
            [126, 0, 0, 1],
            [128, 0, 0, 1],
            [223, 255, 255, 255],
        ] {
            assert!(!V4Addr(fine).is_martian_source(), "{fine:?}");
        }
    }

    #[test]
    fn v6_classes() {
        assert!(v6("::1").is_loopback() && !v6("::2").is_loopback());
        assert!(v6("::").is_unspecified() && !v6("::1").is_unspecified());
        assert!(v6("fe80::1").is_link_local() && v6("febf::1").is_link_local());
        assert!(!v6("fec0::1").is_link_local() && !v6("fe00::1").is_link_local());
        for martian in ["::", "::1", "::1.2.3.4", "::ffff:1.2.3.4", "ff02::1"] {
            assert!(v6(martian).is_martian_source(), "{martian}");
        }
        for fine in ["fd00::1", "2001:db8::1", "64:ff9b::1.2.3.4"] {
            assert!(!v6(fine).is_martian_source(), "{fine}");
        }
    }

    #[test]
    fn padding_round_trips() {
        assert_eq!(
            V4Addr::from_padded(&V4Addr([1, 2, 3, 4]).padded()),
            V4Addr([1, 2, 3, 4])
        );
        assert_eq!(V6Addr::from_padded(&v6("fd00::7").padded()), v6("fd00::7"));
    }
}
