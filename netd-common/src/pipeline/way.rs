//! The way of a flow's packets to an uplink, looked up again: it is older than [`ROUTE_LIFETIME`],
//! or was never looked up, as that of a published port's replies.
//!
//! [`ROUTE_LIFETIME`]: crate::flow::ROUTE_LIFETIME

use crate::{
    abi::{flow_flag, uplink_flag},
    decide::{TOS, egress_uplink},
    drop::DropReason,
    flow::set_other_key,
    packet::Packet,
    parse::service_class,
    room,
    tables::{Scratch, Slot, Steps, Tables},
    wire::{Address, Family},
};

use super::{Verdict, continuing, steps, symmetric};

/// Looks up the way of the packet in hand, which a container sends. Returns [`steps::REROUTED`], or
/// what [`steps::proceed`] does.
#[inline(always)]
pub(super) fn reroute<F: Family, P: Packet, T: Steps<F>>(
    packet: &P,
    tables: &T,
    ifindex: u32,
    scratch: &mut Scratch<F::Addr>,
) -> u64 {
    let Some(slot) = room::surely::<F, T>(tables, &scratch.parsed.tuple) else {
        return steps::OPEN;
    };
    set_other_key(&mut scratch.reply_tuple, scratch.parsed.tuple.proto, &slot);
    let Some(other) = room::surely::<F, T>(tables, &scratch.reply_tuple) else {
        return continuing::ended::<F, T>(tables, scratch, &slot);
    };
    let reply = slot.flags() & flow_flag::REPLY != 0;
    scratch.tos = if reply {
        service_class::<F>(packet, scratch.parsed.l3)
    } else {
        other.via()[TOS]
    };
    match look_up::<F, T>(tables, scratch, &slot, &other, ifindex) {
        Ok(true) => steps::REROUTED,
        Ok(false) => continuing::ask::<F, T>(tables, scratch, &slot, &other),
        Err(DropReason::FlowEnded) => continuing::ended::<F, T>(tables, scratch, &slot),
        Err(reason) => Verdict::drop(reason).0,
    }
}

/// `false`: the packets would leave by another interface, under an address that may not be its own,
/// or the interface may have another address by now.
///
/// # Errors
/// What the route says, or what is wrong with the interface it leads to.
#[inline(always)]
fn look_up<F: Family, T: Tables<F>>(
    tables: &T,
    scratch: &mut Scratch<F::Addr>,
    slot: &Slot<F::Addr>,
    other: &Slot<F::Addr>,
    ifindex: u32,
) -> Result<bool, DropReason> {
    let bridge = tables
        .endpoint(ifindex)
        .and_then(|endpoint| tables.network(endpoint.network))
        .ok_or(DropReason::UnknownEndpoint)?
        .bridge;
    let reply = slot.flags() & flow_flag::REPLY != 0;
    let Scratch {
        query,
        parsed,
        decision,
        tos,
        ..
    } = scratch;
    if reply {
        // It leaves under its translated source: `ip rule from` then finds the right uplink.
        query.ask(bridge, slot.src(), slot.dst(), parsed.tuple.proto);
        query.between(slot.sport(), slot.dport());
    } else {
        query.ask(bridge, parsed.tuple.src, slot.dst(), parsed.tuple.proto);
        query.between(parsed.tuple.sport, parsed.tuple.dport);
    }
    query.tos = *tos;
    decision.reply.in_mac = slot.in_mac();
    if reply && symmetric::lead_back::<F, T>(tables, scratch, slot, other.in_ifindex())? {
        continuing::refresh_leg(slot, &scratch.decision.reply, tables.now());
        return Ok(true);
    }
    tables.route()?;
    let uplink = egress_uplink::<F, T>(tables, &mut scratch.route)?;
    let route = &scratch.route;
    let masqueraded = !reply && slot.flags() & flow_flag::REWRITE_SRC != 0;
    let other_source = !route.src.is_unspecified() && route.src != slot.src();
    if masqueraded && (route.oif != slot.out_ifindex() || other_source) {
        return Ok(false);
    }
    // What came by a tunnel is not answered beside it, nor the other way round.
    let led = slot.out_ifindex() != 0 && slot.flags() & flow_flag::TO_ENDPOINT == 0;
    let was_headerless = slot.flags() & (flow_flag::HOP | flow_flag::LINK) == 0;
    let is_headerless = uplink.flags & uplink_flag::L3 != 0;
    if reply && led && route.oif != slot.out_ifindex() && (was_headerless || is_headerless) {
        return Err(DropReason::FlowEnded);
    }
    let leg = &mut scratch.decision.reply;
    leg.lead_to_uplink(&scratch.route, &uplink);
    continuing::refresh_leg(slot, leg, tables.now());
    Ok(true)
}
