//! The life of a flow: created as an embryo, promoted when its other side answers, healed when a
//! half is missing, ended.
//!
//! A flow is two entries, one per direction, each keyed by the tuple that its packets bear when
//! they arrive. The reply's entry is inserted first and only if its key is free: that insertion *is*
//! the reservation of the source port. Tuples are unique over both maps (embryos and flows), so the
//! flows are looked at before and after the insertion. Who makes room for whom: see [`crate::room`].
//!
//! Races, and their worst outcomes:
//! - Two CPUs create the same flow at once: the second finds its reply tuple free only under another
//!   port; its original entry is refused, its reply entry taken back, and it follows the first.
//! - A reply comes to a flow that has only this half yet: it is dropped, and the half stays.
//! - A flow is made to leave while its packet is under way: both halves go, and the packet finds one
//!   or none; what is left of the flow is taken away, and its opener may open another.
//! - Two CPUs promote at once: the second insertion finds the entry there and goes on. Only who
//!   inserted the original half seats and counts the flow.
//! - An embryo is promoted between another flow's two looks at the flows: it is among the flows
//!   before it leaves the embryos, so the insertion or the second look sees it.

use crate::{
    abi::{Config, Flow, Tuple, flow_flag, table_event},
    conntrack::State,
    decide::Leg,
    drop::DropReason,
    kernel_flow,
    nat::{PORT_ATTEMPTS, PRESSURE_ATTEMPTS, RANDOM_ATTEMPTS, source_port},
    parse::Parsed,
    room,
    tables::{InsertError, Scratch, Slot, Steps, Tables},
    wire::{Family, proto, tcp_flag},
};

/// A stored next hop that is older than this many seconds is looked up again, so that a dead
/// daemon, which bumps no epoch, cannot freeze routing. The clock counts whole seconds: "older than
/// four" is true after four to five seconds, and never later.
pub const ROUTE_LIFETIME: u32 = 4;

/// State of a flow that begins with this packet.
#[must_use]
#[inline(always)]
pub fn initial_state<F: Family>(parsed: &Parsed<F::Addr>) -> State {
    match parsed.tuple.proto {
        proto::TCP if parsed.tcp_flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN => {
            State::SynSent
        }
        proto::TCP => State::PickedUp,
        proto::UDP => State::UdpNew,
        p if p == F::ICMP => State::EchoNew,
        _ => State::OtherNew,
    }
}

/// Sets `key` to that of the entry that belongs to `flow`'s other direction.
#[inline(always)]
pub fn set_other_key<A: Copy>(key: &mut Tuple<A>, proto: u8, flow: &Slot<A>) {
    key.src = flow.dst();
    key.dst = flow.src();
    key.sport = flow.dport();
    key.dport = flow.sport();
    key.proto = proto;
    key.reserved = [0; 3];
}

// Entries are written in place, field by field: a value on its way would cost BPF stack.
#[inline(always)]
fn apply_leg<A>(flow: &mut Flow<A>, leg: &Leg, config: &Config, now: u32) {
    flow.in_ifindex = leg.in_ifindex;
    flow.out_ifindex = leg.out_ifindex;
    flow.mtu = leg.mtu;
    flow.flags = leg.flags;
    flow.via = leg.via;
    flow.in_mac = leg.in_mac;
    flow.epoch = config.epoch;
    // A leg without a target is routed at its first packet.
    flow.routed_at = if leg.out_ifindex == 0 {
        now.wrapping_sub(ROUTE_LIFETIME + 1)
    } else {
        now
    };
}

/// Fills `scratch.original` and `scratch.reply` from the decision, all but a source port to be
/// chosen.
#[inline(always)]
fn build<F: Family>(
    config: &Config,
    scratch: &mut Scratch<F::Addr>,
    state: State,
    now: u32,
    generation: u32,
) {
    let Scratch {
        tuple,
        decision,
        original,
        reply,
        ..
    } = scratch;
    original.clear();
    reply.clear();
    apply_leg(original, &decision.forward, config, now);
    apply_leg(reply, &decision.reply, config, now);
    reply.flags |= flow_flag::REPLY;

    original.src = tuple.src;
    original.sport = tuple.sport;
    original.dst = decision.dst;
    original.dport = decision.dport;
    reply.src = tuple.dst;
    reply.sport = tuple.dport;
    reply.dst = tuple.src;
    reply.dport = tuple.sport;
    if decision.snat != 0 {
        original.src = decision.nat;
        original.flags |= flow_flag::REWRITE_SRC;
        reply.flags |= flow_flag::REWRITE_DST;
    }
    if decision.dst != tuple.dst || decision.dport != tuple.dport {
        original.flags |= flow_flag::REWRITE_DST;
        reply.flags |= flow_flag::REWRITE_SRC;
    }
    let outgoing = if decision.outgoing != 0 {
        flow_flag::OUTGOING
    } else {
        0
    };
    for entry in [original, reply] {
        entry.flags |= outgoing;
        entry.last_seen = now;
        entry.created = now;
        entry.generation = generation;
        entry.owner = decision.owner;
        entry.kind = decision.kind;
        entry.state = state as u8;
    }
}

/// Inserts the entry of the replies under `scratch.reply_tuple`, if that is free in both maps.
#[inline(always)]
fn insert_reply<F: Family, T: Tables<F>>(
    tables: &T,
    scratch: &Scratch<F::Addr>,
) -> Result<(), InsertError> {
    if tables.flow(&scratch.reply_tuple).is_some() {
        return Err(InsertError::Exists);
    }
    tables.insert_embryo(&scratch.reply_tuple, &scratch.reply)?;
    if tables.flow(&scratch.reply_tuple).is_some() {
        tables.remove_embryo(&scratch.reply_tuple);
        return Err(InsertError::Exists);
    }
    Ok(())
}

/// Begins the flow that `scratch.decision` describes, under `scratch.tuple`: finds it a seat and
/// writes its entries into [`Scratch`]. [`reserve`] and [`commit`] follow.
///
/// # Errors
/// [`DropReason::FlowTableFull`], [`DropReason::FlowShareExhausted`].
#[inline(always)]
pub fn prepare<F: Family, T: Steps<F>>(
    tables: &T,
    config: &Config,
    scratch: &mut Scratch<F::Addr>,
    state: State,
) -> Result<(), DropReason> {
    let owner = scratch.decision.owner;
    if !room::is_within_share::<F, T>(tables, config, owner) {
        return Err(DropReason::FlowShareExhausted);
    }
    // What others open towards a container is not counted while it is unconfirmed.
    let counted = if scratch.decision.outgoing != 0 {
        owner
    } else {
        room::ANYONE
    };
    scratch.seat = claim_seat::<F, T>(tables, false, counted)?;
    build::<F>(config, scratch, state, tables.now(), tables.generation());
    let Scratch {
        tuple,
        original,
        reply_tuple,
        ..
    } = scratch;
    reply_tuple.src = original.dst;
    reply_tuple.dst = original.src;
    reply_tuple.sport = original.dport;
    reply_tuple.dport = original.sport;
    reply_tuple.proto = tuple.proto;
    reply_tuple.reserved = [0; 3];
    Ok(())
}

/// Inserts the entry of the replies, with a source port where one has to be chosen. `Ok(false)`:
/// another CPU has made the flow meanwhile.
///
/// # Errors
/// [`DropReason::SourcePortsExhausted`], [`DropReason::TupleConflict`],
/// [`DropReason::FlowTableFull`].
#[inline(always)]
pub fn reserve<F: Family, T: Steps<F>>(
    tables: &T,
    scratch: &mut Scratch<F::Addr>,
) -> Result<bool, DropReason> {
    if scratch.decision.snat == 0 {
        reserve_own_tuple::<F, T>(tables, scratch)
    } else {
        reserve_source_port::<F, T>(tables).map(|()| true)
    }
}

/// Inserts the entry of the original direction and seats the flow.
///
/// # Errors
/// [`DropReason::TupleConflict`], [`DropReason::FlowTableFull`].
#[inline(always)]
pub fn commit<F: Family, T: Steps<F>>(
    tables: &T,
    scratch: &Scratch<F::Addr>,
) -> Result<(), DropReason> {
    let generation = scratch.original.generation;
    match tables.insert_embryo(&scratch.tuple, &scratch.original) {
        Ok(()) => {}
        Err(InsertError::Exists) => {
            room::remove_embryo::<F, T>(tables, &scratch.reply_tuple, generation);
            return if is_made_already::<F, T>(tables, scratch) {
                Ok(())
            } else {
                Err(DropReason::TupleConflict)
            };
        }
        Err(InsertError::Full) => {
            room::remove_embryo::<F, T>(tables, &scratch.reply_tuple, generation);
            return Err(DropReason::FlowTableFull);
        }
    }
    if scratch.decision.outgoing != 0 {
        tables.hold(scratch.decision.owner, room::table::<F>(false), 1);
    }
    if let Some(flow) = tables.flow(&scratch.tuple)
        && flow.generation() != generation
    {
        // It left the embryos for the flows while we did not find it here or there.
        room::remove_embryo::<F, T>(tables, &scratch.tuple, generation);
        room::remove_embryo::<F, T>(tables, &scratch.reply_tuple, generation);
        return Ok(());
    }
    let (key, entry) = (&scratch.tuple, &scratch.original);
    if !room::take::<F, T>(tables, false, scratch.seat, key, entry) {
        // A flow without a seat would never be found by those who look for room.
        room::remove_embryo::<F, T>(tables, &scratch.reply_tuple, generation);
        room::remove_embryo::<F, T>(tables, key, generation);
        return Err(DropReason::FlowTableFull);
    }
    Ok(())
}

#[inline(always)]
fn claim_seat<F: Family, T: Steps<F>>(
    tables: &T,
    confirmed: bool,
    owner: u32,
) -> Result<u32, DropReason> {
    let claimed = tables.claim_seat(u32::from(confirmed), owner);
    match claimed & !0xffff_ffff {
        room::claimed::SEAT => Ok(claimed as u32),
        room::claimed::SHARE => Err(DropReason::FlowShareExhausted),
        _ => Err(DropReason::FlowTableFull),
    }
}

/// Reserves the replies' tuple of a flow whose source is not translated.
#[inline(always)]
fn reserve_own_tuple<F: Family, T: Steps<F>>(
    tables: &T,
    scratch: &Scratch<F::Addr>,
) -> Result<bool, DropReason> {
    match insert_reply::<F, T>(tables, scratch) {
        Ok(()) => return Ok(true),
        Err(InsertError::Full) => return Err(DropReason::FlowTableFull),
        Err(InsertError::Exists) => {}
    }
    if tables.reclaim(0) != 0 && insert_reply::<F, T>(tables, scratch).is_ok() {
        return Ok(true);
    }
    if is_made_already::<F, T>(tables, scratch) {
        Ok(false)
    } else {
        Err(DropReason::TupleConflict)
    }
}

/// Has another CPU just made a flow for the same tuple?
#[inline(always)]
fn is_made_already<F: Family, T: Tables<F>>(tables: &T, scratch: &Scratch<F::Addr>) -> bool {
    tables
        .embryo(&scratch.tuple)
        .is_some_and(|slot| slot.flags() & flow_flag::REPLY == 0)
}

#[inline(always)]
fn reserve_source_port<F: Family, T: Steps<F>>(tables: &T) -> Result<(), DropReason> {
    let mut attempt = 0;
    let mut reserved = false;
    while attempt <= PORT_ATTEMPTS {
        match tables.try_source_port(attempt) {
            attempt::TAKEN => {}
            attempt::RESERVED => {
                reserved = true;
                break;
            }
            attempt::FULL => return Err(DropReason::FlowTableFull),
            _ => break,
        }
        attempt += 1;
    }
    if !reserved || attempt >= PRESSURE_ATTEMPTS {
        tables.nat_pressure(attempt, !reserved);
    }
    if reserved {
        Ok(())
    } else {
        Err(DropReason::SourcePortsExhausted)
    }
}

/// What [`try_source_port`] returns.
pub mod attempt {
    /// The port is in use; try the next.
    pub const TAKEN: u32 = 0;
    /// The port is the flow's.
    pub const RESERVED: u32 = 1;
    /// There is no room for the flow.
    pub const FULL: u32 = 2;
    /// There are no more ports to try.
    pub const NONE_LEFT: u32 = 3;
}

/// Tries to reserve the `number`-th source port for the flow in `scratch`; see [`attempt`].
#[inline(always)]
pub fn try_source_port<F: Family, T: Steps<F>>(
    tables: &T,
    config: &Config,
    scratch: &mut Scratch<F::Addr>,
    number: u32,
) -> u32 {
    let Some(port) = source_port(config, &scratch.tuple, number) else {
        return attempt::NONE_LEFT;
    };
    scratch.original.sport = port;
    scratch.reply_tuple.dport = port;
    if kernel_flow::reserves::<F, T>(tables, config, &scratch.reply_tuple) {
        return attempt::TAKEN;
    }
    // Free, or made free: nobody is asked to leave before the random tries have failed.
    if tables.reclaim(u32::from(number >= RANDOM_ATTEMPTS)) == 0 {
        return attempt::TAKEN;
    }
    let echo = scratch.tuple.proto == F::ICMP;
    if !echo
        && (tables.port_published(scratch.tuple.proto, port)
            || tables.host_listens(&scratch.reply_tuple))
    {
        return attempt::TAKEN;
    }
    match insert_reply::<F, T>(tables, scratch) {
        Ok(()) => attempt::RESERVED,
        Err(InsertError::Exists) => attempt::TAKEN,
        Err(InsertError::Full) => attempt::FULL,
    }
}

/// Moves a confirmed embryo, the flow of the packet in hand, to the flows. When there is no room it
/// stays an embryo: a live flow is not refused for that, and does not make room for others.
/// `scratch.reply_tuple` is the key of the other half.
///
/// # Errors
/// [`DropReason::TupleConflict`], [`DropReason::FlowShareExhausted`].
#[inline(always)]
pub fn promote<F: Family, T: Steps<F>>(
    tables: &T,
    scratch: &mut Scratch<F::Addr>,
) -> Result<(), DropReason> {
    let (Some(slot), Some(other)) = (
        tables.embryo(&scratch.parsed.tuple),
        tables.embryo(&scratch.reply_tuple),
    ) else {
        // Another CPU is at it.
        return Ok(());
    };
    let (owner, generation) = (slot.owner(), slot.generation());
    let reply = slot.flags() & flow_flag::REPLY != 0;
    let seat = match claim_seat::<F, T>(tables, true, owner) {
        Ok(seat) => seat,
        Err(DropReason::FlowTableFull) => {
            tables.count(room::table::<F>(true), table_event::OVERFLOWED);
            return Ok(());
        }
        Err(reason) => {
            // As an established embryo it would make room for nobody.
            end::<F, T>(tables, generation);
            return Err(reason);
        }
    };
    // `original` and `reply` of the flow, whichever way this packet goes.
    let (original_slot, reply_slot) = if reply { (other, slot) } else { (slot, other) };
    let (original_key, reply_key) = if reply {
        (&scratch.reply_tuple, &scratch.parsed.tuple)
    } else {
        (&scratch.parsed.tuple, &scratch.reply_tuple)
    };
    scratch.original = original_slot.load();
    scratch.reply = reply_slot.load();
    // Whoever was made to leave meanwhile has given its memory to another flow, and that is what
    // was loaded. Both are still theirs if their generation is (it comes again after seconds only).
    let are_theirs = [original_key, reply_key].into_iter().all(|key| {
        tables
            .embryo(key)
            .is_some_and(|slot| slot.generation() == generation)
    });
    if !are_theirs {
        return Ok(());
    }
    match tables.insert_flow(reply_key, &scratch.reply) {
        Ok(()) => {}
        Err(InsertError::Exists) => {
            let owned = tables
                .flow(reply_key)
                .is_some_and(|f| f.generation() == generation);
            if !owned {
                return Err(DropReason::TupleConflict);
            }
        }
        Err(InsertError::Full) => return Ok(()),
    }
    match tables.insert_flow(original_key, &scratch.original) {
        Ok(()) => {
            tables.hold(owner, room::table::<F>(true), 1);
            if !room::take::<F, T>(tables, true, seat, original_key, &scratch.original) {
                // It stays an embryo, which has a seat, and tries again with its next packet.
                room::remove_flow::<F, T>(tables, reply_key, generation);
                room::remove_flow::<F, T>(tables, original_key, generation);
                return Ok(());
            }
        }
        Err(InsertError::Exists) => {}
        Err(InsertError::Full) => {
            tables.remove_flow(reply_key);
            return Ok(());
        }
    }
    let counted = room::is_counted_embryo(scratch.original.flags);
    if tables.remove_embryo(original_key) && counted {
        tables.hold(owner, room::table::<F>(false), -1);
    }
    tables.remove_embryo(reply_key);
    Ok(())
}

/// Ends the flow of the packet in hand, if it still is of this generation: both entries leave both
/// maps. `scratch.reply_tuple` is the key of the other one.
#[inline(always)]
pub fn end<F: Family, T: Tables<F>>(tables: &T, generation: u32) {
    let Some(scratch) = tables.scratch() else {
        return;
    };
    // Where the other key's tuple has gone to another flow, that one stays.
    room::remove::<F, T>(tables, &scratch.parsed.tuple, generation);
    room::remove::<F, T>(tables, &scratch.reply_tuple, generation);
}
