//! An IPv4 packet that is larger than the MTU of the uplink that it leaves by, and that nobody asked
//! to stay whole: sent in pieces, as a router sends it (RFC 791 §3.2, RFC 1812 §4.2.2.7).
//!
//! The kernel fragments what its own stack sends; what is redirected passes that by. So each piece is
//! made here: the packet keeps its headers, and its payload is cut, from a copy, to one piece after
//! the other. All but the last leave as copies of the packet.

use crate::{
    answer::{Buffer, QUOTE_ROOM},
    checksum::{Diff, sum_to_field},
    drop::DropReason,
    nat::translate,
    packet::Packet,
    parse::Kind,
    room,
    tables::{Scratch, Slot, Steps, Tables},
    wire::{ETH_LEN, Family, Ipv4Header, proto, tcp_flag},
};

use super::{DEVICE, Verdict, lead};

/// Where the header of the layer above begins: only packets without options are fragmented, for a
/// piece must not repeat all of them.
const L4: u32 = ETH_LEN + 20;
/// Word of the buffer where the payload begins.
const PAYLOAD: usize = 4;
/// Most pieces that a packet is cut into.
const PIECES: u32 = 4;
/// Largest payload that is cut: what the buffer holds.
const LARGEST: u32 = QUOTE_ROOM as u32 - 64;
const MORE: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// Sends the packet in hand along its flow in pieces; the verdict is of the last.
/// [`DropReason::CannotFragment`]: it is as it was.
#[inline(always)]
pub(super) fn fragment<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    ifindex: u32,
) -> Verdict {
    let refused = Verdict::drop(DropReason::CannotFragment);
    if F::VERSION != 4 {
        return refused;
    }
    let failed = Verdict::drop(DropReason::HelperFailed);
    let (Some(scratch), Some(buffer)) = (tables.scratch(), tables.answer_buffer()) else {
        return failed;
    };
    let Some(slot) = room::either::<F, T>(tables, &scratch.parsed.tuple) else {
        return refused;
    };
    let Ok(ip) = packet.read::<Ipv4Header>(ETH_LEN) else {
        return refused;
    };
    let total = u32::from(u16::from_be_bytes(ip.total_len));
    // Of a SYN the options are brought down to the MTU after this, in one piece.
    let unable = scratch.parsed.kind == Kind::IcmpError
        || scratch.parsed.l4 != L4
        || scratch.parsed.tcp_flags & tcp_flag::SYN != 0;
    if unable || total < 28 || packet.gso_size() != 0 {
        return refused;
    }
    let payload = total - 20;
    let chunk = u32::from(slot.mtu()).wrapping_sub(20) & 0xfff8;
    if payload > LARGEST || chunk < 8 || payload > chunk * PIECES {
        return refused;
    }
    // SCTP's CRC32c may be left to the device, and cannot be told from one that is not.
    let header = match scratch.parsed.tuple.proto {
        proto::TCP => 20,
        proto::SCTP => return refused,
        _ => 8,
    };
    if payload < header
        || !packet.copy_to(L4, payload, buffer, PAYLOAD)
        || !packet.truncate(L4 + header)
    {
        return refused;
    }
    if translate::<F>(packet, &scratch.parsed, &slot).is_err()
        || !packet.copy_to(L4, header, buffer, PAYLOAD)
    {
        return failed;
    }
    let field = u16::from_be_bytes(ip.fragment);
    if field & (MORE | OFFSET) == 0 {
        complete_checksum(packet, buffer, scratch.parsed.tuple.proto, payload);
    }
    slot.set_packets(slot.packets() + 1);
    slot.set_bytes(slot.bytes() + u64::from(total + ETH_LEN));
    slot.set_last_seen(tables.now());
    let Ok(verdict) = lead::<F, P>(packet, ETH_LEN, &slot, &mut scratch.hop) else {
        return failed;
    };
    if !packet.forget_offload(L4 + header) {
        return failed;
    }
    let copies =
        verdict.action() == DEVICE || resolve::<F, P, T>(packet, tables, scratch, &slot, ifindex);
    cut(
        packet,
        buffer,
        slot.out_ifindex(),
        field,
        payload,
        chunk,
        copies,
        verdict,
    )
}

/// Finds out the Ethernet addresses of the next hop and writes them, for the copies: bpf_clone_redirect
/// resolves nothing. `false`: they are not known yet. Then only the last piece is sent, which makes
/// the kernel resolve them, and the datagram is lost, as the first to a new neighbour may be.
#[inline(always)]
fn resolve<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<F::Addr>,
    slot: &Slot<F::Addr>,
    ifindex: u32,
) -> bool {
    let network = tables.endpoint(ifindex).map_or(0, |e| e.network);
    let Some(network) = tables.network(network) else {
        return false;
    };
    let reply = slot.flags() & crate::abi::flow_flag::REPLY != 0;
    let src = if reply {
        slot.src()
    } else {
        scratch.parsed.tuple.src
    };
    let proto = scratch.parsed.tuple.proto;
    scratch.query.ask(network.bridge, src, slot.dst(), proto);
    let Some(macs) = tables.neighbour(slot.out_ifindex()) else {
        return false;
    };
    packet.write(0, macs).is_ok()
}

/// Sends piece after piece.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "one call, of numbers")]
fn cut<P: Packet>(
    packet: &mut P,
    buffer: &Buffer,
    oif: u32,
    field: u16,
    payload: u32,
    chunk: u32,
    copies: bool,
    verdict: Verdict,
) -> Verdict {
    let failed = Verdict::drop(DropReason::HelperFailed);
    let mut at = 0;
    // One after the other, not a loop: LLVM lets the end of this one fall through into its beginning,
    // and the verifier of Linux 6.1 takes no such way back ("back-edge").
    macro_rules! piece {
        () => {
            let left = payload - at;
            let last = left <= chunk;
            let length = if last { left } else { chunk };
            if last || copies {
                let more = if last { field & MORE } else { MORE };
                let offset = (field & OFFSET) + (at / 8) as u16;
                if !packet.set_payload(L4, buffer, PAYLOAD as u32 * 4 + at, length)
                    || !set_header(packet, 20 + length as u16, field & 0x8000 | more | offset)
                {
                    return failed;
                }
            }
            if last {
                return verdict;
            }
            if copies && !packet.send_copy(oif) {
                return failed;
            }
            at += chunk;
        };
    }
    const { assert!(PIECES == 4) };
    piece!();
    piece!();
    piece!();
    piece!();
    let _ = at;
    failed
}

/// Writes total length and fragment field, and brings the header's checksum up to date.
#[inline(always)]
fn set_header(packet: &mut impl Packet, total: u16, field: u16) -> bool {
    let Ok(ip) = packet.read::<Ipv4Header>(ETH_LEN) else {
        return false;
    };
    let (total, field) = (total.to_be_bytes(), field.to_be_bytes());
    let change = Diff::NONE
        .replace2(ip.total_len, total)
        .replace2(ip.fragment, field);
    let checksum = change.apply(ip.checksum);
    packet.write(ETH_LEN + 2, total).is_ok()
        && packet.write(ETH_LEN + 6, field).is_ok()
        && packet.write(ETH_LEN + 10, checksum).is_ok()
}

/// A packet of a container may have left its checksum to the device (CHECKSUM_PARTIAL), and no device
/// sums over pieces. Then the field holds the sum of the pseudo header; what holds anything else is
/// whole already, or none, or as wrong as it was sent.
#[inline(always)]
fn complete_checksum(packet: &impl Packet, buffer: &mut Buffer, protocol: u8, payload: u32) {
    // The word that the field lies in, and in which half: TCP's at 16, UDP's at 6.
    let (word, shift) = match protocol {
        proto::TCP => (4, 0),
        proto::UDP => (1, 16),
        _ => return,
    };
    let Ok(ip) = packet.read::<Ipv4Header>(ETH_LEN) else {
        return;
    };
    let length = (payload as u16).to_be_bytes();
    let pseudo = u64::from(ip.src.word())
        + u64::from(ip.dst.word())
        + u64::from(u32::from_ne_bytes([0, protocol, length[0], length[1]]));
    let there = u32::from_le(buffer.words[PAYLOAD + word]);
    let field = ((there >> shift) as u16).to_le_bytes();
    let [a, b] = sum_to_field(pseudo);
    if field != [!a, !b] {
        return;
    }
    buffer.words[PAYLOAD + word] = (there & !(0xffff << shift)).to_le();
    let mut sum = pseudo;
    for i in 0..QUOTE_ROOM / 4 {
        if i as u32 >= payload.div_ceil(4) {
            break;
        }
        sum += u64::from(buffer.words[PAYLOAD + i]);
    }
    let mut checksum = sum_to_field(sum);
    if protocol == proto::UDP && checksum == [0, 0] {
        checksum = [0xff, 0xff];
    }
    let value = u32::from(u16::from_le_bytes(checksum)) << shift;
    buffer.words[PAYLOAD + word] = (there & !(0xffff << shift) | value).to_le();
}
