//! The life of a flow: created as an embryo, promoted when its other side answers, healed when a
//! half is missing, ended.
//!
//! A flow is two entries, one per direction, each keyed by the tuple that its packets bear when
//! they arrive. The reply's entry is inserted first and only if its key is free: that insertion *is*
//! the reservation of the source port. Tuples are unique over both maps (embryos and flows), so the
//! flows are looked at before and after the insertion.
//!
//! Races, and their worst outcomes:
//! - Two CPUs create the same flow at once: the second finds its reply tuple free only under another
//!   port; its original entry is refused, its reply entry taken back, and it follows the first.
//! - The LRU evicts one half of an embryo: the next packet of the other half puts it back, or, if
//!   the tuple has gone to another flow meanwhile, ends this one.
//! - Two CPUs promote at once: the second insertion finds the entry there and goes on.
//! - An embryo is promoted between another flow's two looks at the flows: the second look sees it.

use crate::{
    abi::{Config, Flow, Tuple, flow_flag},
    conntrack::State,
    decide::Leg,
    drop::DropReason,
    kernel_flow,
    nat::{PORT_ATTEMPTS, source_port},
    parse::Parsed,
    tables::{InsertError, Scratch, Slot, Steps, Tables},
    wire::{Family, proto, tcp_flag},
};

/// Seconds after which a stored next hop is looked up again, so that a dead daemon, which bumps no
/// epoch, cannot freeze routing.
pub const ROUTE_LIFETIME: u32 = 5;

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
    for entry in [original, reply] {
        entry.last_seen = now;
        entry.created = now;
        entry.generation = generation;
        entry.owner = decision.owner;
        entry.kind = decision.kind;
        entry.state = state as u8;
    }
}

/// Is a tuple owned by a flow of either map?
#[inline(always)]
fn is_taken<F: Family, T: Tables<F>>(tables: &T, key: &Tuple<F::Addr>) -> bool {
    tables.flow(key).is_some()
}

/// Inserts the entry of the replies under `scratch.reply_tuple`, if that is free in both maps.
#[inline(always)]
fn reserve<F: Family, T: Tables<F>>(
    tables: &T,
    scratch: &Scratch<F::Addr>,
) -> Result<(), InsertError> {
    if is_taken::<F, T>(tables, &scratch.reply_tuple) {
        return Err(InsertError::Exists);
    }
    tables.insert_embryo(&scratch.reply_tuple, &scratch.reply)?;
    if is_taken::<F, T>(tables, &scratch.reply_tuple) {
        tables.remove_embryo(&scratch.reply_tuple);
        return Err(InsertError::Exists);
    }
    Ok(())
}

/// Creates the flow that `scratch.decision` describes, under `scratch.tuple`.
///
/// # Errors
/// [`DropReason::SourcePortsExhausted`], [`DropReason::TupleConflict`],
/// [`DropReason::FlowTableFull`].
#[inline(always)]
pub fn create<F: Family, T: Steps<F>>(
    tables: &T,
    config: &Config,
    scratch: &mut Scratch<F::Addr>,
    state: State,
) -> Result<(), DropReason> {
    let now = tables.now();
    build::<F>(config, scratch, state, now, tables.generation());
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
    if scratch.decision.snat == 0 {
        match reserve::<F, T>(tables, scratch) {
            Ok(()) => {}
            Err(InsertError::Exists) if is_orphan::<F, T>(tables, scratch) => {
                tables.remove_embryo(&scratch.reply_tuple);
                if reserve::<F, T>(tables, scratch).is_err() {
                    return Err(DropReason::TupleConflict);
                }
            }
            Err(InsertError::Exists) => {
                return follow_or::<F, T>(tables, scratch, DropReason::TupleConflict);
            }
            Err(InsertError::Full) => return Err(DropReason::FlowTableFull),
        }
    } else {
        reserve_source_port::<F, T>(tables)?;
    }
    match tables.insert_embryo(&scratch.tuple, &scratch.original) {
        Ok(()) => Ok(()),
        Err(InsertError::Exists) => {
            tables.remove_embryo(&scratch.reply_tuple);
            follow_or::<F, T>(tables, scratch, DropReason::TupleConflict)
        }
        Err(InsertError::Full) => {
            tables.remove_embryo(&scratch.reply_tuple);
            Err(DropReason::FlowTableFull)
        }
    }
}

/// Has the LRU evicted the other half of this embryo?
#[inline(always)]
fn is_orphan<F: Family, T: Tables<F>>(tables: &T, scratch: &mut Scratch<F::Addr>) -> bool {
    let Some(slot) = tables.embryo(&scratch.reply_tuple) else {
        return false;
    };
    set_other_key(&mut scratch.socket, scratch.tuple.proto, &slot);
    tables.embryo(&scratch.socket).is_none() && tables.flow(&scratch.socket).is_none()
}

/// Fine, if another CPU has just created a flow for the same tuple.
#[inline(always)]
fn follow_or<F: Family, T: Tables<F>>(
    tables: &T,
    scratch: &Scratch<F::Addr>,
    otherwise: DropReason,
) -> Result<(), DropReason> {
    match tables.embryo(&scratch.tuple) {
        Some(slot) if slot.flags() & flow_flag::REPLY == 0 => Ok(()),
        _ => Err(otherwise),
    }
}

#[inline(always)]
fn reserve_source_port<F: Family, T: Steps<F>>(tables: &T) -> Result<(), DropReason> {
    let mut attempt = 0;
    while attempt <= PORT_ATTEMPTS {
        match tables.try_source_port(attempt) {
            attempt::TAKEN => {}
            attempt::RESERVED => return Ok(()),
            attempt::FULL => return Err(DropReason::FlowTableFull),
            _ => break,
        }
        attempt += 1;
    }
    Err(DropReason::SourcePortsExhausted)
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
pub fn try_source_port<F: Family, T: Tables<F>>(
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
    let echo = scratch.tuple.proto == F::ICMP;
    if !echo
        && (tables.port_published(scratch.tuple.proto, port)
            || tables.host_listens(&scratch.reply_tuple))
    {
        return attempt::TAKEN;
    }
    match reserve::<F, T>(tables, scratch) {
        Ok(()) => attempt::RESERVED,
        Err(InsertError::Exists) => attempt::TAKEN,
        Err(InsertError::Full) => attempt::FULL,
    }
}

/// Moves a confirmed embryo, the flow of the packet in hand, to the flows. When the flows are full
/// it stays an embryo: a live flow is not refused for that. `scratch.reply_tuple` is the key of
/// `other`.
///
/// # Errors
/// [`DropReason::TupleConflict`].
#[inline(always)]
pub fn promote<F: Family, T: Tables<F>>(
    tables: &T,
    scratch: &mut Scratch<F::Addr>,
    slot: &Slot<F::Addr>,
    other: &Slot<F::Addr>,
) -> Result<(), DropReason> {
    scratch.original = slot.load();
    scratch.reply = other.load();
    let (key, other_key) = (&scratch.parsed.tuple, &scratch.reply_tuple);
    match tables.insert_flow(other_key, &scratch.reply) {
        Ok(()) => {}
        Err(InsertError::Exists) => {
            let owned = tables
                .flow(other_key)
                .is_some_and(|f| f.generation() == scratch.original.generation);
            if !owned {
                return Err(DropReason::TupleConflict);
            }
        }
        Err(InsertError::Full) => return Ok(()),
    }
    match tables.insert_flow(key, &scratch.original) {
        Ok(()) | Err(InsertError::Exists) => {}
        Err(InsertError::Full) => {
            tables.remove_flow(other_key);
            return Ok(());
        }
    }
    tables.remove_embryo(key);
    tables.remove_embryo(other_key);
    Ok(())
}

/// Ends the flow of the packet in hand: both entries leave both maps. `scratch.reply_tuple` is the
/// key of the other one.
#[inline(always)]
pub fn end<F: Family, T: Tables<F>>(tables: &T, scratch: &Scratch<F::Addr>, slot: &Slot<F::Addr>) {
    let (key, other) = (&scratch.parsed.tuple, &scratch.reply_tuple);
    let generation = slot.generation();
    tables.remove_flow(key);
    tables.remove_embryo(key);
    // The tuple may have gone to another flow.
    if tables
        .flow(other)
        .is_some_and(|f| f.generation() == generation)
    {
        tables.remove_flow(other);
    }
    if tables
        .embryo(other)
        .is_some_and(|f| f.generation() == generation)
    {
        tables.remove_embryo(other);
    }
}
