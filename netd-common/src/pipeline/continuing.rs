//! A packet of a known flow that the fast path would not take: an embryo's, one that changes the
//! TCP state, or the first after a change of configuration or routes.

use crate::{
    abi::{Config, flow_flag, network_flag},
    conntrack::{Direction, State, datagram_next, idle, reopens, tcp_flags_valid, tcp_next},
    decide::{Action, Leg, TOS},
    drop::DropReason,
    flow::{ROUTE_LIFETIME, set_other_key},
    packet::Packet,
    parse::Kind,
    room,
    tables::{Scratch, Slot, Steps},
    wire::{Family, proto, tcp_flag},
};

use super::{Verdict, deliver, steps, symmetric};

/// Leaves the function with a drop. What is returned is a number from the start: LLVM would store
/// the undefined payload of an enum's other variants, and the verifier refuses to read that.
macro_rules! or_drop {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(reason) => return Verdict::drop(reason).0,
        }
    };
}

/// Sends a packet along the flow whose key it bears, after bringing the flow up to date. Returns
/// what [`steps::proceed`] does.
#[inline(always)]
pub(super) fn proceed<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    config: &Config,
    scratch: &mut Scratch<F::Addr>,
    decision: u32,
) -> u64 {
    let Some(slot) = room::surely::<F, T>(tables, &scratch.parsed.tuple) else {
        return steps::OPEN;
    };
    let proto = scratch.parsed.tuple.proto;
    let reply = slot.flags() & flow_flag::REPLY != 0;
    let state = State::from_number(slot.state()).unwrap_or(State::OtherNew);
    set_other_key(&mut scratch.reply_tuple, proto, &slot);
    if proto == proto::TCP && !reply && reopens(state, scratch.parsed.tcp_flags) {
        tables.end(slot.generation());
        return steps::OPEN;
    }
    let now = tables.now();
    let Some(other) = room::surely::<F, T>(tables, &scratch.reply_tuple) else {
        if reply && idle(now, slot.created()) < room::SETTLED {
            // Another CPU is still making the flow: the half of the replies comes first.
            return Verdict::drop(DropReason::FlowEnded).0;
        }
        // What is left of a flow is of no use.
        return ended::<F, T>(tables, scratch, &slot);
    };
    let silence = idle(now, slot.last_seen()).min(idle(now, other.last_seen()));
    if other.generation() != slot.generation() || silence > state.lifetime() {
        return ended::<F, T>(tables, scratch, &slot);
    }
    if decision < steps::ROUTED {
        if !or_drop!(is_same_flow::<F, T>(
            tables, scratch, &slot, &other, decision
        )) {
            return ended::<F, T>(tables, scratch, &slot);
        }
        slot.set_epoch(config.epoch);
    } else if decision == steps::UNDECIDED && slot.epoch() != config.epoch {
        return ask::<F, T>(tables, scratch, &slot, &other);
    }
    let to_uplink = slot.flags() & flow_flag::TO_ENDPOINT == 0;
    if to_uplink
        && decision != steps::ROUTED
        && tables.now().wrapping_sub(slot.routed_at()) > ROUTE_LIFETIME
    {
        return steps::REROUTE;
    }
    let next = advance::<F>(scratch, &slot, &other, state, reply);
    if next != state {
        slot.set_state(next as u8);
        other.set_state(next as u8);
    }
    if next.is_confirmed() && tables.embryo(&scratch.parsed.tuple).is_some() {
        return steps::PROMOTE;
    }
    or_drop!(deliver::<F, P>(
        packet,
        now,
        scratch.parsed.l3,
        &scratch.parsed,
        &slot,
        &mut scratch.hop
    ))
    .0
}

/// Takes the flow away. A packet of the side that opened it may open another.
#[inline(always)]
pub(super) fn ended<F: Family, T: Steps<F>>(
    tables: &T,
    scratch: &Scratch<F::Addr>,
    slot: &Slot<F::Addr>,
) -> u64 {
    let reply = slot.flags() & flow_flag::REPLY != 0;
    end::<F, T>(tables, scratch, slot);
    if reply {
        Verdict::drop(DropReason::FlowEnded).0
    } else {
        steps::OPEN
    }
}

/// Ends the flow, unless what is in hand is but an ICMP error about it: anyone may have made that up
/// (RFC 5508 REQ-6).
#[inline(always)]
fn end<F: Family, T: Steps<F>>(tables: &T, scratch: &Scratch<F::Addr>, slot: &Slot<F::Addr>) {
    if scratch.parsed.kind != Kind::IcmpError {
        tables.end(slot.generation());
    }
}

/// Asks to decide about the flow again, as if it began now.
#[inline(always)]
pub(super) fn ask<F: Family, T: Steps<F>>(
    tables: &T,
    scratch: &mut Scratch<F::Addr>,
    slot: &Slot<F::Addr>,
    other: &Slot<F::Addr>,
) -> u64 {
    let reply = slot.flags() & flow_flag::REPLY != 0;
    let original = if reply { other } else { slot };
    let opened_on = original.in_ifindex();
    scratch.tuple = if reply {
        scratch.reply_tuple
    } else {
        scratch.parsed.tuple
    };
    if is_uplink_side(original) {
        scratch.tos = 0;
        return steps::ask(opened_on, 0);
    }
    let replies = if reply { slot } else { other };
    scratch.tos = if replies.flags() & flow_flag::TO_ENDPOINT != 0 {
        replies.via()[TOS]
    } else {
        0
    };
    // The container may be gone, or its address another's.
    let network = tables.endpoint(opened_on).map_or(0, |e| e.network);
    let owner = tables
        .endpoint_of(&scratch.tuple.src)
        .map_or(0, |e| e.ifindex);
    let may_send = owner == opened_on
        || tables
            .network(network)
            .is_some_and(|n| n.flags & network_flag::SPOOF_OFF != 0);
    if network == 0 || !may_send {
        return ended::<F, T>(tables, scratch, slot);
    }
    steps::ask(opened_on, network)
}

/// Compares a new decision with the flow, and takes over its way. `false`: it would not be the
/// same flow.
///
/// # Errors
/// The reason why it may not go on; the flow is ended unless it is a matter of routes alone.
#[inline(always)]
pub(super) fn is_same_flow<F: Family, T: Steps<F>>(
    tables: &T,
    scratch: &Scratch<F::Addr>,
    slot: &Slot<F::Addr>,
    other: &Slot<F::Addr>,
    decision: u32,
) -> Result<bool, DropReason> {
    match steps::decode(decision) {
        Ok(Action::Forward) => {}
        Ok(Action::Pass) => return Ok(false),
        Err(reason @ (DropReason::NoRoute | DropReason::Blackhole | DropReason::Prohibited)) => {
            return Err(reason);
        }
        Err(reason) => {
            end::<F, T>(tables, scratch, slot);
            return Err(reason);
        }
    }
    let reply = slot.flags() & flow_flag::REPLY != 0;
    let original = if reply { other } else { slot };
    let d = &scratch.decision;
    let source = if d.snat != 0 {
        d.nat
    } else {
        scratch.tuple.src
    };
    if d.dst != original.dst() || d.dport != original.dport() || source != original.src() {
        return Ok(false);
    }
    refresh_leg(
        slot,
        if reply { &d.reply } else { &d.forward },
        tables.now(),
    );
    // An error may come from anyone on its opener's way, not only from the opener.
    if !reply && scratch.parsed.kind != Kind::IcmpError {
        symmetric::learn_again::<F, T>(tables, scratch, slot, other);
    }
    Ok(true)
}

/// The flow's state after this packet.
#[inline(always)]
fn advance<F: Family>(
    scratch: &Scratch<F::Addr>,
    slot: &Slot<F::Addr>,
    other: &Slot<F::Addr>,
    state: State,
    reply: bool,
) -> State {
    let direction = if reply {
        Direction::Reply
    } else {
        Direction::Original
    };
    if scratch.parsed.tuple.proto != proto::TCP {
        return datagram_next(state, direction);
    }
    let flags = scratch.parsed.tcp_flags;
    if !tcp_flags_valid(flags) {
        return state;
    }
    let fin_other = other.flags() & flow_flag::FIN != 0;
    let next = tcp_next(state, direction, flags, fin_other);
    if flags & tcp_flag::FIN != 0 {
        slot.set_flags(slot.flags() | flow_flag::FIN);
    }
    next
}

/// Takes over the way of a leg; one that leads nowhere yet is to be routed.
#[inline(always)]
pub(super) fn refresh_leg<A: Copy>(slot: &Slot<A>, leg: &Leg, now: u32) {
    const LEG_FLAGS: u16 = flow_flag::TO_ENDPOINT
        | flow_flag::HOP
        | flow_flag::HOP_V6
        | flow_flag::SAME_BRIDGE
        | flow_flag::LINK;
    if leg.out_ifindex == 0 {
        slot.set_routed_at(now.wrapping_sub(ROUTE_LIFETIME + 1));
        return;
    }
    slot.set_out_ifindex(leg.out_ifindex);
    slot.set_mtu(leg.mtu);
    slot.set_via(leg.via);
    slot.set_in_mac(leg.in_mac);
    slot.set_flags(slot.flags() & !LEG_FLAGS | leg.flags);
    slot.set_routed_at(now);
}

/// Was this entry made for packets that arrive on an uplink?
#[inline(always)]
pub(super) fn is_uplink_side<A: Copy>(slot: &Slot<A>) -> bool {
    slot.in_mac() == [0; 6]
}
