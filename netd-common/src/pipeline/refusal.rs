//! A drop that the sender is told of, as a router would.

use crate::{
    abi::{answer_event, answer_kind, endpoint_flag, local_kind},
    answer::{self, Buffer, Message},
    decide::own_address,
    drop::DropReason,
    packet::Packet,
    room,
    tables::{Scratch, Steps, Tables},
    wire::{Address, Eth, Family},
};

use super::{ANSWER_BACK, ANSWER_PEER, DROP, Verdict};

/// Reasons that the sender is told of, one bit each. A blackhole is silent (RFC 1812 §5.2.7.1).
const TOLD: u64 = 1 << DropReason::NoRoute as u32
    | 1 << DropReason::Prohibited as u32
    | 1 << DropReason::TtlExpired as u32
    | 1 << DropReason::TooBig as u32
    | 1 << DropReason::CannotFragment as u32;

/// A packet that is only too large for its way is sent in pieces; `verdict` says whether it is.
#[inline(always)]
pub(super) fn in_pieces<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    ifindex: u32,
    verdict: Verdict,
) -> Verdict {
    if F::VERSION != 4
        || verdict.action() != DROP
        || verdict.argument() != DropReason::CannotFragment as u32
    {
        return verdict;
    }
    Verdict(tables.fragment(packet, ifindex))
        .of(F::VERSION, verdict.network())
        .slow()
}

/// Puts an answer in the place of a packet that is dropped, where one is due.
#[inline(always)]
pub(super) fn tell<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    ifindex: u32,
    verdict: Verdict,
) -> Verdict {
    let reason = verdict.argument();
    if verdict.action() != DROP || reason > 63 || TOLD >> reason & 1 == 0 {
        return verdict;
    }
    Verdict(tables.answer(packet, ifindex, verdict.0))
}

/// The body of [`super::steps::answer`]. The packet is as it arrived: what is refused is refused
/// before anything of it is written.
#[inline(always)]
pub(super) fn answer<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    ifindex: u32,
    verdict: Verdict,
) -> Verdict {
    let (Some(scratch), Some(buffer)) = (tables.scratch(), tables.answer_buffer()) else {
        return verdict;
    };
    let Some(reason) = DropReason::from_number(verdict.argument() as u16) else {
        return verdict;
    };
    let kind = match reason {
        DropReason::TtlExpired => answer_kind::TIME_EXCEEDED,
        DropReason::NoRoute => answer_kind::UNREACHABLE,
        DropReason::Prohibited => answer_kind::PROHIBITED,
        _ => answer_kind::TOO_BIG,
    };
    let flow = room::either::<F, T>(tables, &scratch.parsed.tuple);
    let mtu = flow.map_or(0, |flow| flow.mtu());
    let Some(message) = Message::about::<F>(reason, mtu) else {
        return verdict;
    };
    let egress = flow.map_or(0, |flow| flow.out_ifindex());
    let silent = kind == answer_kind::TOO_BIG && mtu == 0
        || !answer::may_be_answered::<F, P, T>(packet, tables, &scratch.parsed);
    let action = if silent {
        DROP
    } else {
        way_back::<F, P, T>(packet, tables, scratch, buffer, ifindex, egress)
    };
    if action == DROP {
        tables.count_answer(kind, answer_event::SILENT);
        return verdict;
    }
    if !tables.may_answer(kind) {
        tables.count_answer(kind, answer_event::LIMITED);
        return verdict;
    }
    if !answer::replace::<F, P>(packet, buffer, &scratch.parsed, &message) {
        return verdict;
    }
    tables.count_answer(kind, answer_event::SENT);
    Verdict(verdict.0 & !super::ACTION | action << 32)
}

/// Writes source and Ethernet addresses of the answer to the packet in hand; returns what to do with
/// it, [`DROP`] where there is no address to answer from.
#[inline(always)]
fn way_back<F: Family, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    scratch: &Scratch<F::Addr>,
    buffer: &mut Buffer,
    ifindex: u32,
    egress: u32,
) -> u64 {
    let action;
    let mut source = F::Addr::default();
    let mut asked = ifindex;
    if let Some(endpoint) = tables.endpoint(ifindex) {
        let Some(network) = tables.network(endpoint.network) else {
            return DROP;
        };
        source = own_address::<F>(network.gateway_v4, network.gateway_v6);
        asked = egress;
        buffer.set_ethernet::<F>(endpoint.mac, network.bridge_mac);
        action = if endpoint.flags & endpoint_flag::PEER != 0 {
            ANSWER_PEER
        } else {
            ANSWER_BACK
        };
    } else {
        // RFC 1812 §4.3.2.4 asks for the address of the interface; who wrote to a published port
        // knows the host by the address that it wrote to, and no other need be reachable.
        let dst = &scratch.parsed.tuple.dst;
        if tables.local(dst) == local_kind::UNICAST {
            source = *dst;
        }
        if scratch.parsed.l3 != 0 {
            let Ok(eth) = packet.read::<Eth>(0) else {
                return DROP;
            };
            buffer.set_ethernet::<F>(eth.src, eth.dst);
        }
        action = ANSWER_BACK;
    }
    if source.is_unspecified()
        && let Some(uplink) = tables.uplink(asked)
    {
        source = own_address::<F>(uplink.addr_v4, uplink.addr_v6);
    }
    buffer.set_source::<F>(&source);
    if source.is_unspecified() {
        DROP
    } else {
        action
    }
}
