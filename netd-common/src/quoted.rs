//! The packet that an ICMP error quotes (RFC 792, RFC 4443 §2.4, RFC 1812 §4.3.2.3): found, and
//! translated.
//!
//! What is quoted is what somebody says that we sent. It is cut anywhere, and nothing in it is
//! believed that contradicts itself.

use crate::{
    abi::Tuple,
    checksum::Diff,
    drop::DropReason,
    packet::{MAX_OFFSET, Packet},
    parse::{Kind, Parsed, addr, follow_extensions, is_icmp_error, is_link_control},
    wire::{Family, Ipv4Header, Ipv6Header, proto},
};

/// A quoted packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Quoted<A> {
    /// As quoted: of a packet that went the other way than the error.
    pub tuple: Tuple<A>,
    /// Offset of its IP header.
    pub l3: u32,
    /// Offset of its L4 header, of which eight bytes are there at least.
    pub l4: u32,
    /// Offset of the first byte that is not of it.
    pub end: u32,
}

/// Finds what the ICMP error `parsed` is about. `false`: it cannot be told, because too little is
/// quoted or what is quoted contradicts itself; or it need not, because it is a later fragment, an
/// ICMP error itself or neighbour discovery.
///
/// Options are skipped, and so are as many extension headers as of a packet itself. Eight bytes
/// behind them must be there (RFC 792).
#[inline(always)]
pub fn find<F: Family>(
    packet: &mut impl Packet,
    parsed: &Parsed<F::Addr>,
    quoted: &mut Quoted<F::Addr>,
) -> bool {
    pull(packet);
    let Some(end) = end_of_message::<F>(packet, parsed.l3) else {
        return false;
    };
    quoted.l3 = parsed.l4 + 8;
    let headers = if F::VERSION == 4 {
        read_v4::<F>(packet, end, quoted)
    } else {
        read_v6::<F>(packet, end, quoted)
    };
    headers.is_ok() && quoted.l4 + 8 <= quoted.end && read_ports::<F>(packet, quoted)
}

/// Makes the packet directly readable as far as any packet is looked at: a device may hand over
/// as little as the IP header in one piece, and an ICMP error is two packets deep.
#[inline(always)]
fn pull(packet: &mut impl Packet) {
    let want = if packet.len() < MAX_OFFSET {
        packet.len()
    } else {
        MAX_OFFSET
    };
    packet.pull(want);
}

/// Offset behind the IP packet at `l3`. A frame may be longer: padding is no part of the message.
#[inline(always)]
fn end_of_message<F: Family>(packet: &impl Packet, l3: u32) -> Option<u32> {
    let at = if F::VERSION == 4 { 2 } else { 4 };
    let length: [u8; 2] = packet.read(l3 + at).ok()?;
    let length = u32::from(u16::from_be_bytes(length));
    let header = if F::VERSION == 4 { 0 } else { 40 };
    let end = l3 + header + length;
    // 0: a packet beyond 64 KiB.
    Some(if length == 0 || end > packet.len() {
        packet.len()
    } else {
        end
    })
}

/// Sets everything but the ports.
#[inline(always)]
fn read_v4<F: Family>(
    packet: &impl Packet,
    end: u32,
    quoted: &mut Quoted<F::Addr>,
) -> Result<(), DropReason> {
    let ip: Ipv4Header = packet.read(quoted.l3)?;
    let header = u32::from(ip.version_ihl & 0x0f) * 4;
    let total = u32::from(u16::from_be_bytes(ip.total_len));
    let later_fragment = u16::from_be_bytes(ip.fragment) & 0x1fff != 0;
    if ip.version_ihl >> 4 != 4 || header < 20 || later_fragment || total != 0 && total < header + 8
    {
        return Err(DropReason::IcmpQuote);
    }
    quoted.tuple.src = addr::<F>(&ip.src);
    quoted.tuple.dst = addr::<F>(&ip.dst);
    quoted.tuple.proto = ip.proto;
    quoted.l4 = quoted.l3 + header;
    quoted.end = nearer(end, quoted.l3, total);
    Ok(())
}

/// Sets everything but the ports.
#[inline(always)]
fn read_v6<F: Family>(
    packet: &impl Packet,
    end: u32,
    quoted: &mut Quoted<F::Addr>,
) -> Result<(), DropReason> {
    let ip: Ipv6Header = packet.read(quoted.l3)?;
    if ip.version_class_flow[0] >> 4 != 6 {
        return Err(DropReason::IcmpQuote);
    }
    let (mut next, mut l4) = (ip.next, quoted.l3 + 40);
    if follow_extensions(packet, &mut next, &mut l4)? == Kind::LaterFragment {
        return Err(DropReason::IcmpQuote);
    }
    let payload = u32::from(u16::from_be_bytes(ip.payload_len));
    if payload != 0 && quoted.l3 + 40 + payload < l4 + 8 {
        return Err(DropReason::IcmpQuote);
    }
    quoted.tuple.src = addr::<F>(&ip.src);
    quoted.tuple.dst = addr::<F>(&ip.dst);
    quoted.tuple.proto = next;
    quoted.l4 = l4;
    let total = if payload == 0 { 0 } else { payload + 40 };
    quoted.end = nearer(end, quoted.l3, total);
    Ok(())
}

/// Behind the quoted packet's own length, 0 for one beyond 64 KiB, or behind what is quoted of it.
/// Extensions (RFC 4884) may follow.
#[inline(always)]
fn nearer(end: u32, l3: u32, total: u32) -> u32 {
    if total != 0 && l3 + total < end {
        l3 + total
    } else {
        end
    }
}

#[inline(always)]
fn read_ports<F: Family>(packet: &impl Packet, quoted: &mut Quoted<F::Addr>) -> bool {
    let Ok(l4) = packet.read::<[u8; 8]>(quoted.l4) else {
        return false;
    };
    let (mut sport, mut dport) = ([0; 2], [0; 2]);
    match quoted.tuple.proto {
        proto::TCP | proto::UDP | proto::SCTP => {
            (sport, dport) = ([l4[0], l4[1]], [l4[2], l4[3]]);
        }
        p if p == F::ICMP => {
            if is_icmp_error::<F>(l4[0]) || is_link_control::<F>(l4[0]) {
                return false;
            }
            if l4[0] == F::ECHO_REQUEST {
                sport = [l4[4], l4[5]];
            } else if l4[0] == F::ECHO_REPLY {
                dport = [l4[4], l4[5]];
            }
        }
        _ => {}
    }
    quoted.tuple.sport = sport;
    quoted.tuple.dport = dport;
    quoted.tuple.reserved = [0; 3];
    true
}

/// Writes another tuple of the same protocol into the quoted packet, and returns the change of its
/// bytes: the ICMP checksum covers them. Its own checksums follow as far as they are quoted, by
/// difference: one that was wrong stays wrong. SCTP's CRC is left as it is: whoever receives an
/// error has no whole packet to compute it over.
///
/// # Errors
/// [`DropReason::HelperFailed`].
#[inline(always)]
pub fn translate<F: Family>(
    packet: &mut impl Packet,
    quoted: &Quoted<F::Addr>,
    (src, sport): (F::Addr, [u8; 2]),
    (dst, dport): (F::Addr, [u8; 2]),
) -> Result<Diff, DropReason> {
    let old = &quoted.tuple;
    let addresses = Diff::NONE
        .replace_address(old.src, src)
        .replace_address(old.dst, dst);
    packet.write(quoted.l3 + F::SRC_OFFSET, src)?;
    packet.write(quoted.l3 + F::SRC_OFFSET + F::ADDR_LEN, dst)?;
    let mut change = addresses;
    if F::VERSION == 4 {
        change = replace_checksum(packet, quoted.l3 + 10, addresses, change)?;
    }
    let mut ports = Diff::NONE;
    let mut covers_addresses = true;
    let field = match old.proto {
        proto::TCP | proto::UDP | proto::SCTP => {
            packet.write(quoted.l4, [sport[0], sport[1], dport[0], dport[1]])?;
            ports = ports.replace2(old.sport, sport).replace2(old.dport, dport);
            match old.proto {
                proto::TCP => 16,
                proto::UDP => 6,
                _ => 0,
            }
        }
        p if p == F::ICMP => {
            let kind: u8 = packet.read(quoted.l4)?;
            if kind == F::ECHO_REQUEST {
                packet.write(quoted.l4 + 4, sport)?;
                ports = ports.replace2(old.sport, sport);
            } else if kind == F::ECHO_REPLY {
                packet.write(quoted.l4 + 4, dport)?;
                ports = ports.replace2(old.dport, dport);
            }
            covers_addresses = F::ICMP_PSEUDO_HEADER;
            2
        }
        _ => 0,
    };
    change = change.plus(ports);
    let at = quoted.l4 + field;
    if field == 0 || at + 2 > quoted.end {
        return Ok(change);
    }
    let covered = if covers_addresses {
        ports.plus(addresses)
    } else {
        ports
    };
    if old.proto == proto::UDP {
        let sum: [u8; 2] = packet.read(at)?;
        // None was computed; and none may be written that says so (RFC 768).
        if sum == [0, 0] {
            return Ok(change);
        }
        let mut new = covered.apply(sum);
        if new == [0, 0] {
            new = [0xff, 0xff];
        }
        packet.write(at, new)?;
        return Ok(change.replace2(sum, new));
    }
    replace_checksum(packet, at, covered, change)
}

/// Updates the checksum field at `at` for `covered`, and adds its own change to `change`.
#[inline(always)]
fn replace_checksum(
    packet: &mut impl Packet,
    at: u32,
    covered: Diff,
    change: Diff,
) -> Result<Diff, DropReason> {
    let old: [u8; 2] = packet.read(at)?;
    let new = covered.apply(old);
    packet.write(at, new)?;
    Ok(change.replace2(old, new))
}
