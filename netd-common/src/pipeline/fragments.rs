//! Fragments: the first tells the ports, the others find its flow by it.
//!
//! 1. [`track`] looks the packet up before the hook judges the fragment, and gives a later fragment
//!    the tuple that its first one had. From there on it is judged as a whole packet is.
//! 2. The hook's judge asks [`objection`] before a fragment may use a flow, and [`later`] about one
//!    that has none.
//! 3. [`remember`] writes down what became of a first fragment.
//!
//! What comes before its first fragment leads nowhere: it has no ports, and cannot be held. To the
//! host's own addresses it is passed, for it may be the host's (its stack reassembles); anywhere
//! else it is dropped, so that no container's address leaks. Both are remembered, and when the
//! first fragment comes and turns out to be netd's, it is dropped as well: its packet can never be
//! whole at the far end.
//!
//! Races: two CPUs with fragments of one packet may miss each other's, and an overlap among those
//! two; a fragment that overtakes its first one on another CPU counts as having come before it.

use crate::{
    abi::{Config, Fragments, Tuple, fragments_flag, local_kind},
    conntrack::idle,
    drop::DropReason,
    fragment::{self, Fragment, SAME_PACKET, covered, lifetime, role},
    packet::Packet,
    parse::{Kind, SLOW, is_icmp_error, is_link_control},
    room,
    tables::{Scratch, Slot, Steps, Tables},
    wire::{Family, proto},
};

use super::{DROP, PASS, Verdict, steps::Judgement, yields};

/// Bytes of a TCP header without options.
const TCP_HEADER: u32 = 20;
/// Bytes of SCTP's common header (RFC 9260 §3.1).
const SCTP_HEADER: u32 = 12;
/// Bytes of a header of UDP, or of ICMP as far as a flow is told by it.
const UDP_HEADER: u32 = 8;

/// Before the hook judges the packet in hand: looks it up if it is a fragment.
#[inline(always)]
pub(super) fn look_up<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch<F::Addr>,
    ifindex: u32,
) {
    match scratch.parsed.kind {
        Kind::FirstFragment | Kind::LaterFragment => tables.track(packet, ifindex),
        _ => {
            scratch.fragment.clear();
            scratch.parsed.tuple.reserved = [0; 3];
        }
    }
}

/// Looks up the packet that the fragment in hand belongs to. The answer is in `scratch.fragment`,
/// and in `scratch.parsed`: what the fragment would be if it were whole.
#[inline(always)]
pub(super) fn track<F: Family, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, ifindex: u32) {
    let Some(scratch) = tables.scratch() else {
        return;
    };
    let Scratch {
        parsed, fragment, ..
    } = scratch;
    let mut valid = fragment::locate::<F>(packet, parsed, fragment);
    fragment.key.ifindex = ifindex;
    fragment.objection = 0;
    fragment.generation = 0;
    let is_first = parsed.kind == Kind::FirstFragment;
    if is_first {
        valid &= read_first::<F, P>(packet, scratch);
        scratch.fragment.role = role::FIRST;
    } else {
        parsed.tuple.reserved = SLOW;
        fragment.role = role::STRAY;
    }
    let fragment = &mut scratch.fragment;
    if is_first && !valid {
        fragment.objection = DropReason::FragmentInvalid as u32;
        return;
    }
    let Some(row) = tables.fragments(&fragment.key) else {
        return;
    };
    let age = idle(tables.now(), row.began);
    let is_part = if is_first {
        is_repeated(fragment, row, age)
    } else {
        is_followed::<F>(scratch, row, age)
    };
    if !is_part {
        return;
    }
    let fragment = &mut scratch.fragment;
    let said = if valid {
        fragment::cover(row, fragment.start, fragment.end, fragment.last != 0)
    } else {
        covered::NO_ROOM
    };
    match said {
        covered::NEW => {}
        covered::COMPLETE => tables.remove_fragments(&fragment.key),
        covered::DUPLICATE => fragment.objection = DropReason::FragmentOverlap as u32,
        covered::OVERLAP => {
            row.refused = DropReason::FragmentOverlap as u16;
            fragment.objection = DropReason::FragmentOverlap as u32;
        }
        _ => {
            row.refused = DropReason::FragmentInvalid as u16;
            fragment.objection = DropReason::FragmentInvalid as u32;
        }
    }
}

/// What a first fragment's own header says, and whether it says enough: an overlapping one could
/// supply the rest (RFC 1858 §3, RFC 3128, RFC 7112). What lies behind the IP packet in its frame is
/// no part of the header: a later fragment has the true one.
#[inline(always)]
fn read_first<F: Family, P: Packet>(packet: &mut P, scratch: &mut Scratch<F::Addr>) -> bool {
    let Scratch {
        parsed, fragment, ..
    } = scratch;
    parsed.tuple.reserved = [0; 3];
    let header = match parsed.tuple.proto {
        proto::TCP => TCP_HEADER,
        proto::SCTP => SCTP_HEADER,
        p if p == proto::UDP || p == F::ICMP => UDP_HEADER,
        _ => 0,
    };
    // Beyond that it is less than nothing.
    if fragment.l4_len < header || fragment.l4_len > 0xffff {
        return false;
    }
    match parsed.tuple.proto {
        proto::TCP => {
            if packet.read::<[u8; 18]>(parsed.l4).is_err() {
                packet.pull(parsed.l4 + TCP_HEADER);
            }
            // Up to the end of the checksum, which is going to be changed.
            let Ok(header) = packet.read::<[u8; 18]>(parsed.l4) else {
                return false;
            };
            parsed.tcp_flags = header[13];
            header[12] >> 4 >= 5
        }
        proto::UDP | proto::SCTP => true,
        p if p == F::ICMP => {
            let kind = parsed.icmp_type;
            if is_icmp_error::<F>(kind) {
                // Nobody has to send an error in fragments; it is short enough by definition.
                parsed.kind = Kind::Portless;
                fragment.objection = DropReason::Fragment as u32;
            } else if is_link_control::<F>(kind) {
                parsed.kind = Kind::LinkControl;
            } else if kind != F::ECHO_REQUEST && kind != F::ECHO_REPLY {
                parsed.kind = Kind::Portless;
            }
            true
        }
        _ => {
            parsed.kind = Kind::Portless;
            true
        }
    }
}

/// Has the packet of this first fragment, whose row was found, already begun, and is its flow netd's?
#[inline(always)]
fn is_repeated<A>(fragment: &mut Fragment<A>, row: &Fragments<A>, age: u32) -> bool {
    if age > SAME_PACKET {
        return false;
    }
    if row.refused != 0 {
        fragment.objection = u32::from(row.refused);
        return false;
    }
    if row.flags & fragments_flag::HEADLESS != 0 {
        fragment.objection = DropReason::FragmentOrder as u32;
        return false;
    }
    row.generation != 0
}

/// Does this later fragment, whose packet's row was found, go the way of its first one? Then it has
/// the tuple of that from now on.
#[inline(always)]
fn is_followed<F: Family>(
    scratch: &mut Scratch<F::Addr>,
    row: &Fragments<F::Addr>,
    age: u32,
) -> bool {
    let Scratch {
        parsed, fragment, ..
    } = scratch;
    let expired = age > lifetime::<F>();
    if row.flags & fragments_flag::HEADLESS != 0 {
        if !expired {
            fragment.role = role::HEADLESS;
        }
        return false;
    }
    if expired {
        // Identifications come round: it may be of another packet, which may be the host's.
        fragment.objection = DropReason::FragmentExpired as u32;
        return false;
    }
    copy(&mut parsed.tuple, &row.tuple);
    if row.generation == 0 {
        fragment.role = role::LEFT;
        return false;
    }
    fragment.role = role::LATER;
    fragment.generation = row.generation;
    fragment.objection = u32::from(row.refused);
    fragment.objection == 0
}

/// Field by field: BPF copies larger things byte by byte.
#[inline(always)]
fn copy<A: Copy>(to: &mut Tuple<A>, from: &Tuple<A>) {
    to.src = from.src;
    to.dst = from.dst;
    to.sport = from.sport;
    to.dport = from.dport;
    to.proto = from.proto;
    to.reserved = [0; 3];
}

/// May the packet in hand use a flow?
///
/// # Errors
/// Why not.
#[inline(always)]
fn objection<A>(fragment: &Fragment<A>) -> Result<(), DropReason> {
    match fragment.objection {
        0 => Ok(()),
        reason => Err(DropReason::from_number(reason as u16).unwrap_or(DropReason::Fragment)),
    }
}

/// May the packet in hand use this flow?
///
/// # Errors
/// Why not.
#[inline(always)]
pub(super) fn may_use<A: Copy>(scratch: &Scratch<A>, slot: &Slot<A>) -> Result<(), DropReason> {
    objection(&scratch.fragment)?;
    let tuple = &scratch.parsed.tuple;
    let keeps_ports = slot.sport() == tuple.sport && slot.dport() == tuple.dport;
    if is_first_of_sctp(scratch) && !keeps_ports {
        return Err(DropReason::Fragment);
    }
    Ok(())
}

/// SCTP's checksum can follow its ports only if the length of the whole is known, which the first
/// fragment does not say. `scratch.decision` was just made for it.
#[inline(always)]
pub(super) fn needs_the_whole<A>(scratch: &Scratch<A>) -> bool {
    let (decision, tuple) = (&scratch.decision, &scratch.parsed.tuple);
    is_first_of_sctp(scratch) && (decision.snat != 0 || decision.dport != tuple.dport)
}

#[inline(always)]
fn is_first_of_sctp<A>(scratch: &Scratch<A>) -> bool {
    scratch.fragment.role == role::FIRST && scratch.parsed.tuple.proto == proto::SCTP
}

/// Is this the flow that the first fragment of the packet in hand used?
#[inline(always)]
pub(super) fn is_its_flow<A: Copy>(fragment: &Fragment<A>, slot: &Slot<A>) -> bool {
    fragment.role != role::LATER || fragment.generation == slot.generation()
}

/// What to do with a later fragment. `may_leave`: if the first one was left to the kernel, so is
/// this; `may_stray`: it is passed though its first one has not come.
#[inline(always)]
pub(super) fn later<F: Family, T: Tables<F>>(
    tables: &T,
    scratch: &Scratch<F::Addr>,
    ifindex: u32,
    may_leave: bool,
    may_stray: bool,
) -> Result<Judgement, DropReason> {
    let fragment = &scratch.fragment;
    if fragment.role == role::LATER {
        objection(fragment)?;
        if let Some(slot) = room::either::<F, T>(tables, &scratch.parsed.tuple)
            && slot.in_ifindex() == ifindex
            && is_its_flow(fragment, &slot)
        {
            return Ok(Judgement::Proceed);
        }
        return Err(DropReason::FlowEnded);
    }
    if fragment.role == role::LEFT && may_leave || fragment.role != role::LEFT && may_stray {
        return Ok(Judgement::Verdict(Verdict::PASSED));
    }
    // One that came too late is not held against the host.
    objection(fragment)?;
    Err(DropReason::FragmentOrder)
}

/// Would the guards stop what is left to the kernel here? `scratch.tuple` is a new flow's, and
/// `network` the container's that opens it. A flow that the kernel owned before netd came is known by
/// its ports: the later fragments have none, nor has any row those that the kernel gives the others.
#[inline(always)]
pub(super) fn stops_at_the_guard<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    scratch: &Scratch<F::Addr>,
    network: u32,
) -> bool {
    scratch.fragment.role == role::FIRST
        && network != 0
        && !yields(config)
        && tables.local(&scratch.tuple.dst) == local_kind::NONE
}

/// After the packet in hand was dealt with: writes down what its other fragments need.
#[inline(always)]
pub(super) fn remember<F: Family, T: Tables<F>>(tables: &T, verdict: Verdict) {
    let Some(scratch) = tables.scratch() else {
        return;
    };
    let dropped = verdict.action() == DROP;
    let reason = verdict.argument();
    let out_of_order = dropped
        && (reason == DropReason::FragmentOrder as u32
            || reason == DropReason::FragmentExpired as u32);
    let Scratch {
        parsed, fragment, ..
    } = scratch;
    if fragment.role == role::FIRST && dropped {
        if out_of_order && let Some(row) = tables.fragments(&fragment.key) {
            row.refused = DropReason::FragmentOrder as u16;
            row.flags &= !fragments_flag::HEADLESS;
            row.generation = u32::MAX;
            copy(&mut row.tuple, &parsed.tuple);
        }
        return;
    }
    if fragment.role == role::STRAY && dropped && !out_of_order {
        return;
    }
    fragment::begin(&mut fragment.row, fragment.end, tables.now());
    copy(&mut fragment.row.tuple, &parsed.tuple);
    if fragment.role == role::STRAY {
        fragment.row.flags = fragments_flag::HEADLESS;
    } else if verdict.action() != PASS {
        let Some(slot) = room::either::<F, T>(tables, &parsed.tuple) else {
            // The flow has already made room for another.
            return;
        };
        fragment.row.generation = slot.generation();
    }
    tables.put_fragments(&fragment.key, &fragment.row);
}
