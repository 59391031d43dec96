//! A drop that the sender is told of, as a router would.

use crate::{
    abi::{answer_event, answer_kind, endpoint_flag, local_kind},
    answer::{self, Message},
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
    let Some((source, macs, action)) =
        way_back::<F, P, T>(packet, tables, scratch, ifindex, egress).filter(|_| !silent)
    else {
        tables.count_answer(kind, answer_event::SILENT);
        return verdict;
    };
    if !tables.may_answer() {
        tables.count_answer(kind, answer_event::LIMITED);
        return verdict;
    }
    if !answer::replace::<F, P>(packet, buffer, &scratch.parsed, &message, &source, &macs) {
        return verdict;
    }
    tables.count_answer(kind, answer_event::SENT);
    Verdict(verdict.0 & !super::ACTION | action << 32)
}

/// Source, Ethernet addresses and action of the answer to the packet in hand; `None`: there is no
/// address to answer from.
#[inline(always)]
fn way_back<F: Family, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    scratch: &Scratch<F::Addr>,
    ifindex: u32,
    egress: u32,
) -> Option<(F::Addr, answer::Macs, u64)> {
    let address_of = |ifindex| {
        tables.uplink(ifindex).map_or(F::Addr::default(), |u| {
            own_address::<F>(u.addr_v4, u.addr_v6)
        })
    };
    let (source, macs, action);
    if let Some(endpoint) = tables.endpoint(ifindex) {
        let network = tables.network(endpoint.network)?;
        let gateway = own_address::<F>(network.gateway_v4, network.gateway_v6);
        source = if gateway.is_unspecified() {
            address_of(egress)
        } else {
            gateway
        };
        macs = (endpoint.mac, network.bridge_mac);
        action = if endpoint.flags & endpoint_flag::PEER != 0 {
            ANSWER_PEER
        } else {
            ANSWER_BACK
        };
    } else {
        // RFC 1812 §4.3.2.4 asks for the address of the interface; who wrote to a published port
        // knows the host by the address that it wrote to, and no other need be reachable.
        let dst = scratch.parsed.tuple.dst;
        source = if tables.local(&dst) == local_kind::UNICAST {
            dst
        } else {
            address_of(ifindex)
        };
        macs = if scratch.parsed.l3 == 0 {
            ([0; 6], [0; 6])
        } else {
            let eth: Eth = packet.read(0).ok()?;
            (eth.src, eth.dst)
        };
        action = ANSWER_BACK;
    }
    (!source.is_unspecified()).then_some((source, macs, action))
}
