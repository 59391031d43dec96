//! From bytes to a summary of the headers.

use crate::{
    abi::Tuple,
    drop::DropReason,
    packet::Packet,
    wire::{Address, Family, Ipv4Header, Ipv6Header, proto},
};

/// What kind of packet this is, for conntrack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// TCP, UDP, SCTP or echo: the tuple is complete and can be translated.
    Ports,
    /// The first fragment of a packet; see [`SLOW`]. It is the last value that has ports.
    FirstFragment,
    /// Any other protocol: addresses only.
    Portless,
    /// A fragment that does not begin the packet: it has no ports of its own.
    LaterFragment,
    /// An ICMP error; what it is about is in its payload.
    IcmpError,
    /// Neighbour discovery, router discovery or multicast listener discovery.
    LinkControl,
}

/// [`Tuple::reserved`] of a packet that the fast path is not to take, a fragment or SCTP: no flow has
/// such a key, so that the fast path, which asks for nothing but the key, finds none. The slow path
/// begins by taking it away.
pub const SLOW: [u8; 3] = [1, 0, 0];

/// Summary of a packet's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Parsed<A> {
    /// Addresses, ports, protocol.
    pub tuple: Tuple<A>,
    /// Offset of the IP header.
    pub l3: u32,
    /// Offset of the L4 header.
    pub l4: u32,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TCP flags, else 0.
    pub tcp_flags: u8,
    /// ICMP type, else 0.
    pub icmp_type: u8,
    /// Kind of packet.
    pub kind: Kind,
}

/// [`crate::tables::RouteQuery::tos`] of the packet at `l3`; 0 where that cannot be read.
#[inline(always)]
pub fn service_class<F: Family>(packet: &impl Packet, l3: u32) -> u8 {
    let [first, second]: [u8; 2] = packet.read(l3).unwrap_or_default();
    let class = if F::VERSION == 4 {
        second
    } else {
        first << 4 | second >> 4
    };
    class & 0xfc
}

/// Directly readable bytes that every packet is expected to have: Ethernet, an IP header with some
/// options or extensions, a TCP header.
const PULL: u32 = 14 + 60 + 20;

/// Parses the IP packet at `l3`; if its head is not in one piece, pulls it together and tries again.
///
/// # Errors
/// [`DropReason::Malformed`], [`DropReason::ExtensionHeaders`].
#[inline(always)]
pub fn parse<F: Family>(packet: &mut impl Packet, l3: u32) -> Result<Parsed<F::Addr>, DropReason> {
    match parse_once::<F>(packet, l3) {
        Err(DropReason::Malformed) => {
            let want = if packet.len() < PULL {
                packet.len()
            } else {
                PULL
            };
            if !packet.pull(want) {
                return Err(DropReason::Malformed);
            }
            parse_once::<F>(packet, l3)
        }
        result => result,
    }
}

#[inline(always)]
fn parse_once<F: Family>(packet: &impl Packet, l3: u32) -> Result<Parsed<F::Addr>, DropReason> {
    let mut parsed = if F::VERSION == 4 {
        parse_v4::<F>(packet, l3)?
    } else {
        parse_v6::<F>(packet, l3)?
    };
    match parsed.kind {
        Kind::LaterFragment => parsed.tuple.reserved = SLOW,
        Kind::FirstFragment => {
            parse_first::<F>(packet, &mut parsed)?;
            parsed.kind = Kind::FirstFragment;
            parsed.tuple.reserved = SLOW;
        }
        _ => parse_l4::<F>(packet, &mut parsed)?,
    }
    Ok(parsed)
}

/// From one family's own address type to the family's that the code is instantiated for. They are
/// the same wherever this runs.
#[inline(always)]
pub(crate) fn addr<F: Family>(addr: &impl Address) -> F::Addr {
    F::Addr::from_padded(&addr.padded())
}

/// RFC 791. A total length of 0 is a GSO packet beyond 64 KiB (BIG TCP).
#[inline(always)]
fn parse_v4<F: Family>(packet: &impl Packet, l3: u32) -> Result<Parsed<F::Addr>, DropReason> {
    let ip: Ipv4Header = packet.read(l3)?;
    let header_len = u32::from(ip.version_ihl & 0x0f) * 4;
    let total_len = u32::from(u16::from_be_bytes(ip.total_len));
    if ip.version_ihl >> 4 != 4
        || header_len < 20
        || total_len != 0 && (total_len < header_len || l3 + total_len > packet.len())
    {
        return Err(DropReason::Malformed);
    }
    let kind = match u16::from_be_bytes(ip.fragment) & 0x3fff {
        0 => Kind::Portless,
        0x2000 => Kind::FirstFragment,
        _ => Kind::LaterFragment,
    };
    Ok(Parsed {
        tuple: Tuple {
            src: addr::<F>(&ip.src),
            dst: addr::<F>(&ip.dst),
            proto: ip.proto,
            ..Tuple::default()
        },
        l3,
        l4: l3 + header_len,
        ttl: ip.ttl,
        tcp_flags: 0,
        icmp_type: 0,
        kind,
    })
}

pub(crate) mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const DESTINATION: u8 = 60;
    /// How many headers are followed.
    pub const MAX: u32 = 4;
}

/// RFC 8200. A payload length of 0 is a jumbogram (BIG TCP).
#[inline(always)]
fn parse_v6<F: Family>(packet: &impl Packet, l3: u32) -> Result<Parsed<F::Addr>, DropReason> {
    let ip: Ipv6Header = packet.read(l3)?;
    let payload_len = u32::from(u16::from_be_bytes(ip.payload_len));
    if ip.version_class_flow[0] >> 4 != 6 || l3 + 40 + payload_len > packet.len() {
        return Err(DropReason::Malformed);
    }
    let (mut next, mut l4) = (ip.next, l3 + 40);
    let kind = follow_extensions(packet, &mut next, &mut l4)?;
    Ok(Parsed {
        tuple: Tuple {
            src: addr::<F>(&ip.src),
            dst: addr::<F>(&ip.dst),
            proto: next,
            ..Tuple::default()
        },
        l3,
        l4,
        ttl: ip.hop_limit,
        tcp_flags: 0,
        icmp_type: 0,
        kind,
    })
}

/// Follows extension headers (RFC 8200 §4). `next` and `l4`: the number and the offset of the first
/// header behind the fixed one; then of the L4 header.
///
/// # Errors
/// [`DropReason::Malformed`], [`DropReason::ExtensionHeaders`].
#[inline(always)]
pub(crate) fn follow_extensions(
    packet: &impl Packet,
    next: &mut u8,
    l4: &mut u32,
) -> Result<Kind, DropReason> {
    let mut kind = Kind::Portless;
    let mut followed = 0;
    loop {
        match *next {
            extension::HOP_BY_HOP | extension::DESTINATION | extension::ROUTING => {
                let header: [u8; 4] = packet.read(*l4)?;
                // RFC 5095: a type 0 routing header must not be followed.
                if *next == extension::ROUTING && header[2] == 0
                    || *next == extension::HOP_BY_HOP && followed != 0
                {
                    return Err(DropReason::ExtensionHeaders);
                }
                *next = header[0];
                *l4 += (u32::from(header[1]) + 1) * 8;
            }
            extension::FRAGMENT => {
                let header: [u8; 8] = packet.read(*l4)?;
                *next = header[0];
                *l4 += 8;
                // An atomic fragment (RFC 6946) is a whole packet.
                match u16::from_be_bytes([header[2], header[3]]) & 0xfff9 {
                    0 => {}
                    // One packet is cut once: a fragment within a fragment is nobody's.
                    _ if kind == Kind::FirstFragment => return Err(DropReason::ExtensionHeaders),
                    1 => kind = Kind::FirstFragment,
                    _ => {
                        kind = Kind::LaterFragment;
                        break;
                    }
                }
            }
            _ => break,
        }
        followed += 1;
        if followed == extension::MAX {
            match *next {
                extension::HOP_BY_HOP
                | extension::DESTINATION
                | extension::ROUTING
                | extension::FRAGMENT => {
                    return Err(DropReason::ExtensionHeaders);
                }
                _ => break,
            }
        }
    }
    Ok(kind)
}

#[inline(always)]
fn parse_l4<F: Family>(
    packet: &impl Packet,
    parsed: &mut Parsed<F::Addr>,
) -> Result<(), DropReason> {
    match parsed.tuple.proto {
        proto::TCP => {
            let header: [u8; 14] = packet.read(parsed.l4)?;
            if header[12] >> 4 < 5 {
                return Err(DropReason::Malformed);
            }
            parsed.tcp_flags = header[13];
            set_ports(parsed, [header[0], header[1]], [header[2], header[3]]);
        }
        proto::UDP => {
            let header: [u8; 8] = packet.read(parsed.l4)?;
            set_ports(parsed, [header[0], header[1]], [header[2], header[3]]);
        }
        proto::SCTP => {
            let header: [u8; 8] = packet.read(parsed.l4)?;
            set_ports(parsed, [header[0], header[1]], [header[2], header[3]]);
            parsed.tuple.reserved = SLOW;
        }
        p if p == F::ICMP => {
            let header: [u8; 8] = packet.read(parsed.l4)?;
            parsed.icmp_type = header[0];
            let id = [header[4], header[5]];
            if header[0] == F::ECHO_REQUEST {
                set_ports(parsed, id, [0, 0]);
            } else if header[0] == F::ECHO_REPLY {
                set_ports(parsed, [0, 0], id);
            } else if is_icmp_error::<F>(header[0]) {
                // No flow has such a tuple, so no flow is taken for the error's own.
                set_ports(parsed, [0xff, 0xff], [0xff, header[0]]);
                parsed.kind = Kind::IcmpError;
            } else if is_link_control::<F>(header[0]) {
                parsed.kind = Kind::LinkControl;
            }
        }
        _ => {}
    }
    Ok(())
}

/// As [`parse_l4`], but of TCP no more than the ports: eight bytes are all that a first fragment must
/// have, and what is wrong with one that has no more is not said here.
#[inline(always)]
fn parse_first<F: Family>(
    packet: &impl Packet,
    parsed: &mut Parsed<F::Addr>,
) -> Result<(), DropReason> {
    if parsed.tuple.proto != proto::TCP {
        return parse_l4::<F>(packet, parsed);
    }
    let header: [u8; 8] = packet.read(parsed.l4)?;
    set_ports(parsed, [header[0], header[1]], [header[2], header[3]]);
    Ok(())
}

#[inline(always)]
fn set_ports<A>(parsed: &mut Parsed<A>, sport: [u8; 2], dport: [u8; 2]) {
    parsed.tuple.sport = sport;
    parsed.tuple.dport = dport;
    parsed.kind = Kind::Ports;
}

/// Destination unreachable, source quench, redirect, time exceeded, parameter problem (RFC 792);
/// types 0–127 of ICMPv6 (RFC 4443 §2.1).
#[inline(always)]
pub(crate) fn is_icmp_error<F: Family>(icmp_type: u8) -> bool {
    if F::VERSION == 4 {
        matches!(icmp_type, 3 | 4 | 5 | 11 | 12)
    } else {
        icmp_type < 128
    }
}

/// Multicast listener discovery, router and neighbour discovery, and their like, which never leave
/// a link.
#[inline(always)]
pub(crate) fn is_link_control<F: Family>(icmp_type: u8) -> bool {
    F::VERSION == 6 && matches!(icmp_type, 130..=137 | 143 | 151..=153)
}
