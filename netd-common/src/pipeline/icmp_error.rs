//! ICMP errors that others send about netd's flows: translated, outside and inside, and sent the
//! flow's way (RFC 5508 §4, RFC 5382 REQ-10, RFC 4787 REQ-12).
//!
//! An error is about a packet that went the other way. Reversed, that packet's tuple is the key of
//! the entry for packets that go the error's way, and this entry says all: the quoted packet becomes
//! what the error's receiver sent, and the error itself is given the source or destination that any
//! packet of this direction gets. So an error from within shows the published or the masquerade
//! address, whoever inside sent it, and one from the network keeps the router's own.
//!
//! An error is no traffic of the flow: nothing in its entries is refreshed but the way that it goes
//! itself, if that is out of date. Nor does it end a flow that a new decision refuses: the flow's next
//! packet does (see [`super::continuing`]).

use crate::{
    abi::{Config, flow_flag},
    checksum::Diff,
    conntrack::{State, idle},
    decide::{check_source, masquerades},
    drop::DropReason,
    flow::{ROUTE_LIFETIME, set_other_key},
    kernel_flow,
    nat::decrement_ttl,
    packet::{L4Checksum, Packet},
    parse::Parsed,
    quoted::{self, Quoted},
    room,
    sabotage::{Check, enforced},
    tables::{Scratch, Slot, Steps, Tables},
    wire::{Address, Eth, Family},
};

use super::{
    Verdict,
    continuing::{ask, is_same_flow, is_uplink_side},
    lead, steps,
};

/// Leaves with a drop; see [`super::continuing`].
macro_rules! or_drop {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(reason) => return Verdict::drop(reason).0,
        }
    };
}

/// Where an error comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct From {
    /// The hook's interface.
    pub ifindex: u32,
    /// Network of the container that sent it; 0: an uplink.
    pub network: u16,
}

/// Finds the flow that an error is about, by what `scratch.quoted` says, and judges whether it may go that
/// flow's way. Returns what [`steps::icmp_error`] does.
///
/// `scratch.parsed.tuple` becomes the key of that flow's entry, and stays so: drops are shown with
/// the flow that they are about.
#[inline(always)]
pub(super) fn icmp_error<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    config: &Config,
    scratch: &mut Scratch<F::Addr>,
    from: From,
    decision: u32,
) -> u64 {
    scratch.parsed.tuple = scratch.quoted.tuple.reversed();
    // A frame to a neighbour is the bridge's business, unless its flow says otherwise.
    let mut to_neighbour = false;
    let mut frame_to = [0; 6];
    if from.network != 0 {
        let Some(network) = tables.network(from.network) else {
            return Verdict::drop(DropReason::UnknownEndpoint).0;
        };
        frame_to = or_drop!(packet.read::<Eth>(0)).dst;
        to_neighbour = frame_to != network.bridge_mac && enforced(Check::MacFirst);
    }
    let to: F::Addr = or_drop!(packet.read(scratch.parsed.l3 + F::SRC_OFFSET + F::ADDR_LEN));
    let to_sender = to == scratch.parsed.tuple.dst;
    let Some(slot) = room::surely::<F, T>(tables, &scratch.parsed.tuple) else {
        // What does not go to who sent what it quotes is no error of that flow's to nf_conntrack
        // (nf_conntrack_inet_error), which would not translate it.
        let kernels = !to_neighbour
            && to_sender
            && kernel_flow::any(config)
            && kernel_flow::owns_forwarded::<F, T>(
                tables,
                &scratch.parsed.tuple,
                &mut scratch.socket,
            );
        return if kernels {
            Verdict::PASSED.0
        } else {
            steps::OPEN
        };
    };
    if to_neighbour && (slot.in_ifindex() != from.ifindex || slot.in_mac() != frame_to) {
        return steps::OPEN;
    }
    if !is_translated_type::<F>(scratch.parsed.icmp_type) {
        return Verdict::drop(DropReason::IcmpType).0;
    }
    // It must come from where the flow's packets come, and go to who sent what it quotes.
    let fits = if from.network == 0 {
        is_uplink_side(&slot)
    } else {
        slot.in_ifindex() == from.ifindex && !is_uplink_side(&slot)
    };
    if !fits || !to_sender {
        return Verdict::drop(DropReason::IcmpQuote).0;
    }
    set_other_key(&mut scratch.reply_tuple, scratch.parsed.tuple.proto, &slot);
    let Some(other) = room::surely::<F, T>(tables, &scratch.reply_tuple) else {
        return Verdict::drop(DropReason::FlowEnded).0;
    };
    let now = tables.now();
    let state = State::from_number(slot.state()).unwrap_or(State::OtherNew);
    let silence = idle(now, slot.last_seen()).min(idle(now, other.last_seen()));
    if other.generation() != slot.generation() || silence > state.lifetime() {
        return Verdict::drop(DropReason::FlowEnded).0;
    }
    if decision < steps::ROUTED {
        if !or_drop!(is_same_flow::<F, T>(
            tables, scratch, &slot, &other, decision
        )) {
            return Verdict::drop(DropReason::FlowEnded).0;
        }
        // Its epoch stays: the flow's next packet is still to be decided about.
    } else if decision == steps::UNDECIDED {
        or_drop!(check_sender::<F, P, T>(
            packet, tables, scratch, &slot, from
        ));
        if slot.epoch() != config.epoch {
            return decide_again::<F, T>(tables, scratch, &slot, &other);
        }
    }
    let to_uplink = slot.flags() & flow_flag::TO_ENDPOINT == 0;
    if to_uplink && decision != steps::ROUTED && now.wrapping_sub(slot.routed_at()) > ROUTE_LIFETIME
    {
        return steps::REROUTE;
    }
    steps::SEND_ERROR
}

/// Translates an error that [`icmp_error`] has judged, and sends it.
///
/// # Errors
/// [`DropReason::FlowEnded`], [`DropReason::TooBig`], [`DropReason::TtlExpired`],
/// [`DropReason::HelperFailed`].
#[inline(always)]
pub(super) fn send<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<F::Addr>,
) -> Result<Verdict, DropReason> {
    let Some(slot) = room::surely::<F, T>(tables, &scratch.parsed.tuple) else {
        return Err(DropReason::FlowEnded);
    };
    if packet.len() - scratch.parsed.l3 > u32::from(slot.mtu()) {
        return Err(DropReason::TooBig);
    }
    translate::<F>(packet, &scratch.parsed, &scratch.quoted, &slot)?;
    lead::<F, P>(packet, scratch.parsed.l3, &slot, &mut scratch.hop)
}

/// Errors that a host may believe: destination unreachable, time exceeded and parameter problem,
/// and packet too big of ICMPv6. Redirects count on one link only, source quench is obsolete
/// (RFC 6633).
#[inline(always)]
fn is_translated_type<F: Family>(icmp_type: u8) -> bool {
    if F::VERSION == 4 {
        matches!(icmp_type, 3 | 11 | 12)
    } else {
        matches!(icmp_type, 1..=4)
    }
}

/// [`ask`], whose answer for a flow that is gone is of no use to an error.
#[inline(always)]
fn decide_again<F: Family, T: Steps<F>>(
    tables: &T,
    scratch: &mut Scratch<F::Addr>,
    slot: &Slot<F::Addr>,
    other: &Slot<F::Addr>,
) -> u64 {
    let asked = ask::<F, T>(tables, scratch, slot, other);
    if asked & steps::ACTION == steps::OPEN {
        return Verdict::drop(DropReason::FlowEnded).0;
    }
    asked
}

/// The error's own source, which need not be an end of the flow: one that the stack would refuse is
/// refused, and none that must not leave leaves.
#[inline(always)]
fn check_sender<F: Family, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch<F::Addr>,
    slot: &Slot<F::Addr>,
    from: From,
) -> Result<(), DropReason> {
    scratch.tuple.src = packet.read(scratch.parsed.l3 + F::SRC_OFFSET)?;
    let src = &scratch.tuple.src;
    if F::VERSION == 6 && src.is_link_local() {
        return Err(DropReason::LinkLocalSource);
    }
    if from.network == 0 {
        scratch.tuple.dst = scratch.parsed.tuple.dst;
        scratch.tuple.proto = F::ICMP;
        let network = tables
            .endpoint(slot.out_ifindex())
            .and_then(|e| tables.network(e.network));
        return check_source::<F, T>(
            tables,
            scratch,
            from.ifindex,
            network.map_or(0, |n| n.bridge),
        );
    }
    // With spoof = "off" it may be anyone's.
    let leaves_as_it_is = slot.flags() & (flow_flag::TO_ENDPOINT | flow_flag::REWRITE_SRC) == 0;
    if leaves_as_it_is && *src != scratch.parsed.tuple.src && enforced(Check::Martian) {
        let masqueraded = tables
            .network(tables.subnet(src))
            .is_some_and(masquerades::<F>);
        if masqueraded
            || src.is_martian_source()
            || tables.local(src) != crate::abi::local_kind::NONE
        {
            return Err(DropReason::MartianSource);
        }
    }
    Ok(())
}

/// Rewrites the error and what it quotes, and decrements its TTL.
///
/// # Errors
/// [`DropReason::TtlExpired`], [`DropReason::HelperFailed`].
#[inline(always)]
fn translate<F: Family>(
    packet: &mut impl Packet,
    parsed: &Parsed<F::Addr>,
    quoted: &Quoted<F::Addr>,
    slot: &Slot<F::Addr>,
) -> Result<(), DropReason> {
    if parsed.ttl <= 1 {
        return Err(DropReason::TtlExpired);
    }
    let flags = slot.flags();
    let mut addresses = Diff::NONE;
    if flags & (flow_flag::REWRITE_SRC | flow_flag::REWRITE_DST) != 0 {
        let checksum = |pseudo_header| L4Checksum {
            pseudo_header,
            udp: false,
            ipv6: F::VERSION == 6,
        };
        // It went the other way.
        let sender = (slot.dst(), slot.dport());
        let receiver = (slot.src(), slot.sport());
        let change = quoted::translate::<F>(packet, quoted, sender, receiver)?;
        packet.l4_checksum(parsed.l4 + 2, change, checksum(false))?;
        if flags & flow_flag::REWRITE_SRC != 0 {
            let at = parsed.l3 + F::SRC_OFFSET;
            addresses = addresses.replace_address(packet.read(at)?, slot.src());
            packet.write(at, slot.src())?;
        }
        if flags & flow_flag::REWRITE_DST != 0 {
            let at = parsed.l3 + F::SRC_OFFSET + F::ADDR_LEN;
            addresses = addresses.replace_address(packet.read(at)?, slot.dst());
            packet.write(at, slot.dst())?;
        }
        if F::ICMP_PSEUDO_HEADER {
            packet.l4_checksum(parsed.l4 + 2, addresses, checksum(true))?;
        }
    }
    decrement_ttl::<F>(packet, parsed, addresses)
}
