//! `return_path = "symmetric"`: replies leave by the uplink that the question came in by.
//!
//! No rule and no route need say so: a host with two providers and one default route answers on
//! both. Nothing then tells the next hop, so it is learnt: the frame that opened the flow came from
//! its Ethernet address, be that a router or the client itself. On an uplink without Ethernet header
//! there is nothing to learn. A blackhole or prohibit route to the client is still honoured; that
//! there is none, or that it leads elsewhere, is not asked.
//!
//! What is learnt stands in the reply's entry ([`flow_flag::LINK`]), and is learnt anew by the first
//! question after every change of routes, links or neighbours.

use crate::{
    abi::{Uplink, flow_flag, uplink_flag},
    decide::Leg,
    drop::DropReason,
    flow::ROUTE_LIFETIME,
    tables::{Scratch, Slot, Tables},
    wire::Family,
};

/// Has the replies of the flow that is about to be made led back to whence it came, if its uplink is
/// symmetric: [`Scratch::decision`] is about a new flow, [`Scratch::sender`] opened it.
#[inline(always)]
pub(super) fn learn<F: Family, T: Tables<F>>(tables: &T, scratch: &mut Scratch<F::Addr>) {
    let leg = &mut scratch.decision.reply;
    if leg.out_ifindex != 0 {
        return;
    }
    if let Some(uplink) = tables.uplink(scratch.decision.forward.in_ifindex)
        && learns(&uplink, scratch.sender)
    {
        leg.flags |= flow_flag::LINK;
        leg.via = frame_to(scratch.sender, &uplink);
    }
}

/// The same for a flow that goes on: its opener's packet is in hand, `question` is that one's entry,
/// and `answer` the entry of the replies.
#[inline(always)]
pub(super) fn learn_again<F: Family, T: Tables<F>>(
    tables: &T,
    scratch: &Scratch<F::Addr>,
    question: &Slot<F::Addr>,
    answer: &Slot<F::Addr>,
) {
    if answer.flags() & flow_flag::TO_ENDPOINT != 0 {
        return;
    }
    let Some(uplink) = tables.uplink(question.in_ifindex()) else {
        return;
    };
    if !learns(&uplink, scratch.sender) {
        return;
    }
    let via = frame_to(scratch.sender, &uplink);
    if answer.flags() & flow_flag::LINK == 0 || answer.via() != via {
        answer.set_via(via);
        answer.set_flags(answer.flags() & !(flow_flag::HOP | flow_flag::HOP_V6) | flow_flag::LINK);
    }
    // The reply's next packet finds out by which interface.
    answer.set_routed_at(tables.now().wrapping_sub(ROUTE_LIFETIME + 1));
}

/// Leads the replies back, if that is how their uplink answers; [`Scratch::query`] asks about them.
/// `answer` is their entry, and `came_in` where the questions arrive. `false`: the routes decide.
///
/// # Errors
/// [`DropReason::Blackhole`], [`DropReason::Prohibited`].
#[inline(always)]
pub(super) fn lead_back<F: Family, T: Tables<F>>(
    tables: &T,
    scratch: &mut Scratch<F::Addr>,
    answer: &Slot<F::Addr>,
    came_in: u32,
) -> Result<bool, DropReason> {
    let Some(uplink) = tables.uplink(came_in) else {
        return Ok(false);
    };
    let tunnel = uplink.flags & uplink_flag::L3 != 0;
    let learnt = answer.flags() & flow_flag::LINK != 0;
    if uplink.flags & uplink_flag::SYMMETRIC == 0 || !tunnel && !learnt {
        return Ok(false);
    }
    scratch.route.oif = 0;
    match tables.route() {
        Err(reason @ (DropReason::Blackhole | DropReason::Prohibited)) => return Err(reason),
        // Whether there is another way does not matter, only how large a packet may be on this.
        Ok(()) if scratch.route.oif == came_in && scratch.route.mtu >= 68 => {}
        _ => scratch.route.mtu = uplink.mtu,
    }
    let leg = &mut scratch.decision.reply;
    lead(leg, came_in, scratch.route.mtu);
    if !tunnel {
        leg.flags = flow_flag::LINK;
    }
    leg.via = answer.via();
    Ok(true)
}

#[inline(always)]
fn lead(leg: &mut Leg, ifindex: u32, mtu: u32) {
    leg.out_ifindex = ifindex;
    leg.mtu = if mtu > 0xffff { 0xffff } else { mtu as u16 };
    leg.flags = 0;
}

/// Is the uplink symmetric, and this the address of someone on it?
#[inline(always)]
fn learns(uplink: &Uplink, sender: [u8; 6]) -> bool {
    // A group address would make one reply many; no station has it, nor none at all.
    let is_station = sender[0] & 1 == 0 && sender != [0; 6];
    uplink.flags & (uplink_flag::SYMMETRIC | uplink_flag::L3) == uplink_flag::SYMMETRIC
        && is_station
}

/// [`crate::abi::Flow::via`] of a frame to this station.
#[inline(always)]
fn frame_to(d: [u8; 6], uplink: &Uplink) -> [u8; 16] {
    let s = uplink.mac;
    [
        d[0], d[1], d[2], d[3], d[4], d[5], s[0], s[1], s[2], s[3], s[4], s[5], 0, 0, 0, 0,
    ]
}
