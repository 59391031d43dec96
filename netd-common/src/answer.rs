//! ICMP errors that netd itself sends: time exceeded, too big, unreachable, prohibited.
//!
//! They are made from the packet in hand, before anything of it was translated, and take its place:
//! to the sender's stack they look as if a router had sent them. They never pass the host's own
//! stack, whose raw and conntrack rules might drop them.

use crate::{
    abi::local_kind,
    checksum::sum_to_field,
    drop::DropReason,
    packet::Packet,
    parse::{Kind, Parsed, is_icmp_error},
    tables::Tables,
    wire::{Address, ETH_LEN, Family, Ipv4Header, Ipv6Header},
};

/// Most of the packet that is quoted, in bytes: an answer over IPv4 has 576 in all (RFC 1812
/// §4.3.2.3), over IPv6 1280 (RFC 4443 §2.4(c)).
const fn most_quoted<F: Family>() -> u32 {
    if F::VERSION == 4 {
        576 - 20 - ICMP_LEN
    } else {
        1280 - 40 - ICMP_LEN
    }
}

/// An ICMP header.
const ICMP_LEN: u32 = 8;
/// Word of [`Buffer`] where the IP header begins.
const IP: usize = 4;
/// Where a frame with an Ethernet header begins in [`Buffer`], in bytes.
const ETH_AT: u32 = IP as u32 * 4 - ETH_LEN;
/// Room for what is quoted, in bytes.
pub const QUOTE_ROOM: usize = 2048;
/// Words before what is quoted, at most: over IPv6.
const QUOTE: usize = IP + 10 + 2;

/// Where an answer is built, and TCP options are looked at: too large for the stack. In words, as they lie in memory; the IP header
/// begins at a multiple of four, as nothing in a frame would.
#[repr(C, align(8))]
pub struct Buffer {
    /// Ethernet header from byte 2 on, IP header from byte 16 on, ICMP header, quoted packet. Twice the
    /// room: the verifier adds the largest offset of a piece to its largest length.
    pub words: [u32; QUOTE + 2 * QUOTE_ROOM / 4],
}

impl Default for Buffer {
    fn default() -> Self {
        Self {
            words: [0; QUOTE + 2 * QUOTE_ROOM / 4],
        }
    }
}

impl Buffer {
    /// Writes the Ethernet header.
    #[inline(always)]
    pub fn set_ethernet<F: Family>(&mut self, to: [u8; 6], from: [u8; 6]) {
        let w = &mut self.words;
        w[0] = u32::from_ne_bytes([0, 0, to[0], to[1]]);
        w[1] = u32::from_ne_bytes([to[2], to[3], to[4], to[5]]);
        w[2] = u32::from_ne_bytes([from[0], from[1], from[2], from[3]]);
        w[3] = u32::from_ne_bytes([from[4], from[5], F::ETHERTYPE[0], F::ETHERTYPE[1]]);
    }

    /// Writes the source address.
    #[inline(always)]
    pub fn set_source<F: Family>(&mut self, from: &F::Addr) {
        let first = IP + F::SRC_OFFSET as usize / 4;
        self.set_address::<F>(first, from);
    }

    /// The `i`-th byte.
    #[must_use]
    #[inline(always)]
    pub fn byte(&self, i: usize) -> u8 {
        (u32::from_le(self.words[i / 4]) >> (i % 4 * 8)) as u8
    }

    #[inline(always)]
    fn set_address<F: Family>(&mut self, first: usize, addr: &F::Addr) {
        let a = addr.padded();
        for i in 0..F::ADDR_LEN as usize / 4 {
            self.words[first + i] =
                u32::from_ne_bytes([a[i * 4], a[i * 4 + 1], a[i * 4 + 2], a[i * 4 + 3]]);
        }
    }
}

/// Type and code, and the second word of the ICMP header as a number: the MTU of the next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// RFC 1191 §4, RFC 4443 §3.2; else 0.
    pub mtu: u16,
}

impl Message {
    /// What to say about a packet that is dropped for this reason; `None`: nothing. That there is no
    /// route is told as "host unreachable", which is what the kernel says of an unreachable route.
    #[must_use]
    #[inline(always)]
    pub fn about<F: Family>(reason: DropReason, mtu: u16) -> Option<Self> {
        let v4 = F::VERSION == 4;
        let (kind, code, mtu) = match reason {
            DropReason::TtlExpired if v4 => (11, 0, 0),
            DropReason::TtlExpired => (3, 0, 0),
            DropReason::TooBig | DropReason::CannotFragment if v4 => (3, 4, mtu),
            DropReason::TooBig | DropReason::CannotFragment => (2, 0, mtu),
            DropReason::NoRoute if v4 => (3, 1, 0),
            DropReason::NoRoute => (1, 0, 0),
            DropReason::Prohibited if v4 => (3, 13, 0),
            DropReason::Prohibited => (1, 1, 0),
            _ => return None,
        };
        Some(Self { kind, code, mtu })
    }
}

/// May this packet be answered at all? Not an ICMP error, nothing that was sent to many, nothing
/// whose source is not one host, no fragment but the first: RFC 1122 §3.2.2, RFC 1812 §4.3.2.7,
/// RFC 4443 §2.4(e). (What RFC 4443 allows for multicast does not arise: netd forwards none.)
#[inline(always)]
pub fn may_be_answered<F: Family, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    parsed: &Parsed<F::Addr>,
) -> bool {
    const REDIRECT_V6: u8 = 137;
    let tuple = &parsed.tuple;
    if parsed.kind == Kind::IcmpError {
        return false;
    }
    // The first fragment of one is `Kind::Portless`.
    if tuple.proto == F::ICMP
        && (is_icmp_error::<F>(parsed.icmp_type)
            || F::VERSION == 6 && parsed.icmp_type == REDIRECT_V6)
    {
        return false;
    }
    if parsed.l3 != 0 && !packet.read::<u8>(0).is_ok_and(|first| first & 1 == 0) {
        return false;
    }
    if tuple.src.is_martian_source()
        || tuple.src.is_loopback()
        || tables.local(&tuple.src) != local_kind::NONE
    {
        return false;
    }
    let limited_broadcast = F::VERSION == 4 && tuple.dst.fold() == u32::MAX;
    let local = tables.local(&tuple.dst);
    if tuple.dst.is_multicast()
        || limited_broadcast
        || local == local_kind::BROADCAST
        || local == local_kind::OTHER
    {
        return false;
    }
    !is_later_fragment::<F>(packet, parsed)
}

/// Does the packet begin in the middle of a datagram? What cannot be told is taken for one that does.
#[inline(always)]
fn is_later_fragment<F: Family>(packet: &impl Packet, parsed: &Parsed<F::Addr>) -> bool {
    if F::VERSION == 4 {
        let Ok(ip) = packet.read::<Ipv4Header>(parsed.l3) else {
            return true;
        };
        return u16::from_be_bytes(ip.fragment) & 0x1fff != 0;
    }
    const FRAGMENT: u8 = 44;
    let Ok(ip) = packet.read::<Ipv6Header>(parsed.l3) else {
        return true;
    };
    let (mut next, mut at) = (ip.next, parsed.l3 + 40);
    // As many as the parser follows.
    for _ in 0..4 {
        if at >= parsed.l4 {
            return false;
        }
        let Ok(header) = packet.read::<[u8; 4]>(at) else {
            return true;
        };
        if next == FRAGMENT {
            return u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0;
        }
        next = header[0];
        at += (u32::from(header[1]) + 1) * 8;
    }
    false
}

/// Builds the answer to the packet at `parsed.l3`, from the source that the buffer names, and puts it
/// in the packet's place; with the Ethernet header that the buffer names where the packet has one.
/// `false`: it could not be done.
#[inline(always)]
pub fn replace<F: Family, P: Packet>(
    packet: &mut P,
    buffer: &mut Buffer,
    parsed: &Parsed<F::Addr>,
    message: &Message,
) -> bool {
    let Some(quoted) = quoted_length::<F>(packet, parsed.l3) else {
        return false;
    };
    let header = if F::VERSION == 4 { 5 } else { 10 };
    let quote = IP + header + ICMP_LEN as usize / 4;
    let words = (quoted as usize).div_ceil(4);
    if !packet.copy_to(parsed.l3, quoted, buffer, quote) {
        return false;
    }
    let message_len = ICMP_LEN + quoted;
    ip::<F>(buffer, &parsed.tuple.src, message_len);
    let icmp = IP + header;
    buffer.words[icmp] = u32::from_ne_bytes([message.kind, message.code, 0, 0]);
    buffer.words[icmp + 1] = u32::from(message.mtu).to_be();
    let mut sum = pseudo_header::<F>(buffer, message_len);
    for i in 0..most_quoted::<F>() as usize / 4 + 2 {
        if i >= words + 2 {
            break;
        }
        sum += u64::from(buffer.words[icmp + i]);
    }
    let field = sum_to_field(sum);
    buffer.words[icmp] = u32::from_ne_bytes([message.kind, message.code, field[0], field[1]]);
    let start = if parsed.l3 == 0 {
        ETH_AT + ETH_LEN
    } else {
        ETH_AT
    };
    let length = parsed.l3 + header as u32 * 4 + message_len;
    packet.replace(buffer, start, length)
}

/// How much of the IP packet at `l3` is quoted.
#[inline(always)]
fn quoted_length<F: Family>(packet: &impl Packet, l3: u32) -> Option<u32> {
    let mut length = packet.len().checked_sub(l3)?;
    // A frame may be padded (IEEE 802.3 §3.2.8); 0 stands for a length beyond the field.
    let told = if F::VERSION == 4 {
        let ip: Ipv4Header = packet.read(l3).ok()?;
        u32::from(u16::from_be_bytes(ip.total_len))
    } else {
        let ip: Ipv6Header = packet.read(l3).ok()?;
        match u32::from(u16::from_be_bytes(ip.payload_len)) {
            0 => 0,
            payload => 40 + payload,
        }
    };
    if told != 0 && told < length {
        length = told;
    }
    let most = most_quoted::<F>();
    Some(if length > most { most } else { length })
}

/// A TTL or hop limit that reaches everyone (RFC 1700: 64).
const TTL: u8 = 64;

/// The IP header but for the source. Precedence "internetwork control" (RFC 1812 §4.3.2.5), as the
/// kernel's own errors have it; "don't fragment", and so no identification is needed (RFC 6864 §4.1).
#[inline(always)]
fn ip<F: Family>(buffer: &mut Buffer, to: &F::Addr, payload: u32) {
    let destination = IP + (F::SRC_OFFSET + F::ADDR_LEN) as usize / 4;
    buffer.set_address::<F>(destination, to);
    let w = &mut buffer.words;
    if F::VERSION == 4 {
        let length = (20 + payload as u16).to_be_bytes();
        w[IP] = u32::from_ne_bytes([0x45, 0xc0, length[0], length[1]]);
        w[IP + 1] = u32::from_ne_bytes([0, 0, 0x40, 0]);
        w[IP + 2] = u32::from_ne_bytes([TTL, F::ICMP, 0, 0]);
        let mut sum = 0;
        for i in 0..5 {
            sum += u64::from(w[IP + i]);
        }
        let field = sum_to_field(sum);
        w[IP + 2] = u32::from_ne_bytes([TTL, F::ICMP, field[0], field[1]]);
    } else {
        let length = (payload as u16).to_be_bytes();
        w[IP] = u32::from_ne_bytes([0x60, 0, 0, 0]);
        w[IP + 1] = u32::from_ne_bytes([length[0], length[1], F::ICMP, TTL]);
    }
}

/// Sum of what ICMPv6's checksum covers beside the message (RFC 8200 §8.1); nothing for ICMP.
#[inline(always)]
fn pseudo_header<F: Family>(buffer: &Buffer, message_len: u32) -> u64 {
    if !F::ICMP_PSEUDO_HEADER {
        return 0;
    }
    let mut sum = u64::from(message_len.to_be()) + u64::from(u32::from(F::ICMP).to_be());
    for i in 2..10 {
        sum += u64::from(buffer.words[IP + i]);
    }
    sum
}

/// Answers per second that a CPU sends, on average (RFC 4443 §2.4(f), RFC 1812 §4.3.2.8): the
/// kernel's `net.ipv4.icmp_msgs_per_sec`.
pub const ANSWERS_PER_SECOND: u64 = 1000;
/// Answers that it sends at once: the kernel's `net.ipv4.icmp_msgs_burst`.
pub const ANSWERS_AT_ONCE: u64 = 50;

/// A token bucket as one number: when the bucket is full again (the generic cell rate algorithm,
/// ITU-T I.371).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Nanoseconds of the clock that [`Pace::take`] is given.
    pub full_at: u64,
}

impl Pace {
    /// Takes a token at `now`, in nanoseconds; `false`: there is none.
    #[must_use]
    #[inline(always)]
    pub fn take(&mut self, now: u64) -> bool {
        const INTERVAL: u64 = 1_000_000_000 / ANSWERS_PER_SECOND;
        if self.full_at < now {
            self.full_at = now;
        }
        if self.full_at - now > (ANSWERS_AT_ONCE - 1) * INTERVAL {
            return false;
        }
        self.full_at += INTERVAL;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let second = 1_000_000_000;
        let mut pace = Pace::default();
        let mut take = |at: u64| (0..10_000).filter(|_| pace.take(at)).count() as u64;
        assert_eq!(take(5 * second), ANSWERS_AT_ONCE);
        assert_eq!(take(5 * second), 0);
        assert_eq!(take(5 * second + second / 100), ANSWERS_PER_SECOND / 100);
        assert_eq!(
            take(60 * second),
            ANSWERS_AT_ONCE,
            "no more than a full bucket"
        );
        let mut pace = Pace::default();
        let sent = (0..100_000u64).filter(|i| pace.take(second + i * 50_000));
        let sent = sent.count() as u64;
        assert!(
            sent.abs_diff(5 * ANSWERS_PER_SECOND + ANSWERS_AT_ONCE) < 5,
            "{sent} in 5 s"
        );
    }

    #[test]
    fn blackholes_are_silent() {
        use crate::wire::{V4, V6};
        assert_eq!(Message::about::<V4>(DropReason::Blackhole, 0), None);
        assert_eq!(Message::about::<V6>(DropReason::Blackhole, 0), None);
    }
}
