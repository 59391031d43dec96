//! The maximum segment size in SYN and SYN-ACK, lowered to what both ways of the flow carry
//! (RFC 9293 §3.7.1, RFC 6691), so that a connection does not depend on path MTU discovery, whose
//! messages many networks drop.

use crate::{
    abi::flow_flag,
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
    lower(packet, l4, (mtu - headers) as u16, F::VERSION == 6)
}

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;

/// Options that contradict themselves are left alone, like all after the first MSS.
#[inline(always)]
fn lower<P: Packet>(packet: &mut P, l4: u32, most: u16, ipv6: bool) -> u32 {
    let Ok(offset) = packet.read::<u8>(l4 + 12) else {
        return 0;
    };
    let end = l4 + u32::from(offset >> 4) * 4;
    if packet.read::<u8>(end - 1).is_err() && !(end <= packet.len() && packet.pull(end)) {
        return 0;
    }
    let mut at = l4 + 20;
    for _ in 0..40 {
        if at + 2 > end {
            return 0;
        }
        let Ok([kind, length]) = packet.read::<[u8; 2]>(at) else {
            return 0;
        };
        if kind == NOP {
            at += 1;
            continue;
        }
        if kind == MSS && length == 4 && at + 4 <= end {
            return set(packet, l4, at + 2, most, ipv6);
        }
        if kind == END || kind == MSS || length < 2 {
            return 0;
        }
        at += u32::from(length);
    }
    0
}

#[inline(always)]
fn set<P: Packet>(packet: &mut P, l4: u32, at: u32, most: u16, ipv6: bool) -> u32 {
    let Ok(old) = packet.read::<[u8; 2]>(at) else {
        return 0;
    };
    if u16::from_be_bytes(old) <= most {
        return 0;
    }
    let new = most.to_be_bytes();
    // At an odd offset each byte falls into the other half of its 16-bit word (RFC 1071 §2(B)).
    let change = if (at - l4) & 1 == 0 {
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
