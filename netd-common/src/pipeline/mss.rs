//! The maximum segment size in SYN and SYN-ACK, lowered to what both ways of the flow carry
//! (RFC 9293 §3.7.1, RFC 6691), so that a connection does not depend on path MTU discovery, whose
//! messages many networks drop.

use crate::{
    abi::flow_flag,
    answer::Buffer,
    checksum::Diff,
    flow::set_other_key,
    packet::{L4Checksum, Packet},
    room,
    tables::{Steps, Tables},
    wire::{ETH_LEN, Family, proto, tcp_flag},
};

use super::{DEVICE, PEER, Verdict};

/// Clamps the packet if it is a SYN that is sent on along a flow.
#[inline(always)]
pub(super) fn clamp_if_syn<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    verdict: Verdict,
) {
    if verdict.action() < PEER || verdict.action() > DEVICE {
        return;
    }
    let Some(scratch) = tables.scratch() else {
        return;
    };
    if scratch.parsed.tuple.proto == proto::TCP && scratch.parsed.tcp_flags & tcp_flag::SYN != 0 {
        tables.clamp_mss(packet);
    }
}

/// Lowers the MSS option of the packet in hand, if it has one, to what its flow's ways carry. 1: it
/// was changed.
#[inline(always)]
pub(super) fn clamp<F: Family, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T) -> u32 {
    let Some(scratch) = tables.scratch() else {
        return 0;
    };
    let Some(slot) = room::either::<F, T>(tables, &scratch.parsed.tuple) else {
        return 0;
    };
    let mut mtu = u32::from(slot.mtu());
    set_other_key(&mut scratch.reply_tuple, proto::TCP, &slot);
    let back = match room::either::<F, T>(tables, &scratch.reply_tuple) {
        Some(other) if other.out_ifindex() != 0 => u32::from(other.mtu()),
        // Replies are routed when the first comes; most leave where their question came in.
        _ => tables.uplink(slot.in_ifindex()).map_or(mtu, |u| u.mtu),
    };
    if back < mtu {
        mtu = back;
    }
    let headers = if F::VERSION == 4 { 40 } else { 60 };
    if mtu <= headers {
        return 0;
    }
    let mut l4 = scratch.parsed.l4;
    if scratch.parsed.l3 == 0 && slot.flags() & flow_flag::TO_ENDPOINT != 0 {
        // It came without an Ethernet header, and has one now.
        l4 += ETH_LEN;
    }
    let Some(options) = tables.answer_buffer() else {
        return 0;
    };
    lower(packet, l4, options, (mtu - headers) as u16, F::VERSION == 6)
}

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;

/// Options that contradict themselves are left alone, like all after the first MSS. They are walked
/// in a copy, byte by byte: the verifier would follow every way through a packet at offsets that the
/// packet itself tells.
#[inline(always)]
fn lower<P: Packet>(packet: &mut P, l4: u32, options: &mut Buffer, most: u16, ipv6: bool) -> u32 {
    const LONGEST: usize = 40;
    let Ok(offset) = packet.read::<u8>(l4 + 12) else {
        return 0;
    };
    let length = (usize::from(offset >> 4) * 4).wrapping_sub(20);
    if length > LONGEST || !packet.copy_to(l4 + 20, length as u32, options, 0) {
        return 0;
    }
    let mut skip = 0u8;
    for i in 0..LONGEST - 3 {
        if i + 4 > length {
            return 0;
        }
        if skip > 0 {
            skip -= 1;
            continue;
        }
        let (kind, size) = (options.byte(i), options.byte(i + 1));
        if kind == NOP {
            continue;
        }
        if kind == MSS && size == 4 {
            let old = [options.byte(i + 2), options.byte(i + 3)];
            return set(packet, l4, 20 + i as u32 + 2, old, most, ipv6);
        }
        if kind == END || kind == MSS || size < 2 {
            return 0;
        }
        skip = size - 1;
    }
    0
}

/// Sets the two bytes at this offset of the TCP header.
#[inline(always)]
fn set<P: Packet>(
    packet: &mut P,
    l4: u32,
    offset: u32,
    old: [u8; 2],
    most: u16,
    ipv6: bool,
) -> u32 {
    if u16::from_be_bytes(old) <= most {
        return 0;
    }
    let at = l4 + offset;
    if packet.read::<[u8; 2]>(at).is_err() && !packet.pull(at + 2) {
        return 0;
    }
    let new = most.to_be_bytes();
    // At an odd offset each byte falls into the other half of its 16-bit word (RFC 1071 §2(B)).
    let change = if offset & 1 == 0 {
        Diff::NONE.replace2(old, new)
    } else {
        Diff::NONE.replace2([old[1], old[0]], [new[1], new[0]])
    };
    let how = L4Checksum {
        pseudo_header: false,
        udp: false,
        ipv6,
    };
    let changed = packet.l4_checksum(l4 + 16, change, how).is_ok() && packet.write(at, new).is_ok();
    u32::from(changed)
}
