//! Room in the flow tables: who makes place when a new flow needs it, and who is counted for it.
//!
//! A hash map has no order that a program could walk, so each flow table has a ring of seats beside
//! it, one per flow that it has room for, and a hand that goes round (the CLOCK algorithm of page
//! replacement). A flow that comes in looks at the next few seats and takes the best: one that is
//! free or whose flow has expired, else one whose flow can be spared. So expired flows are
//! collected in bounded steps also while no daemon runs, and a full table degrades in this order:
//!
//! | who makes room | among | when |
//! |---|---|---|
//! | expired flows | both tables | idle beyond the lifetime of their state |
//! | embryos, the longest idle of those looked at | embryos | a new embryo finds no free seat |
//! | closing connections | flows | closed by both sides, or half closed and silent for [`QUIET_CLOSING`] |
//! | flows without a connection, the longest idle first | flows | no stream, or silent for [`QUIET_STREAM`] |
//! | either, if they found no room there | embryos | as above, and no embryo was seen |
//! | nobody: the flow stays among the embryos | flows | only live flows were seen |
//! | nobody: the flow is refused | embryos | only live confirmed flows were seen |
//!
//! A live established flow never makes room. A container that has its share of a table (a quarter)
//! makes room for itself in the same order, or is refused.

use crate::{
    abi::{Config, Flow, Seat, Tuple, flow_flag, flow_table, table_event},
    conntrack::{State, idle},
    flow::set_other_key,
    tables::{Scratch, Slot, Steps, Tables},
    wire::{Address, Family},
};

/// Seats that a new embryo looks at.
pub const EMBRYO_PROBES: u32 = 4;
/// Seats that a confirmed flow looks at.
pub const FLOW_PROBES: u32 = 16;
/// A container may have this part of the seats of a table: one in four.
pub const SHARE: u32 = 4;
/// Seconds of silence after which a half-closed connection may make room.
pub const QUIET_CLOSING: u32 = 10;
/// Seconds after which a flow without a connection counts as a stream, if it still has packets then
/// (the kernel's ASSURED: net/netfilter/nf_conntrack_proto_udp.c). A question and its answer make
/// room whenever there is need, a stream only after silence.
pub const STREAM: u32 = 2;
/// Seconds of silence after which a stream may make room (nf_conntrack_udp_timeout).
pub const QUIET_STREAM: u32 = 30;
/// Seats that are looked at for a flow of a container that has its share. One in four is its own.
pub const OWN_PROBES: u32 = 96;

/// Number of the family's table of confirmed flows, or of embryos.
#[must_use]
#[inline(always)]
pub const fn table<F: Family>(confirmed: bool) -> usize {
    match (F::VERSION, confirmed) {
        (4, false) => flow_table::EMBRYOS_V4,
        (4, true) => flow_table::FLOWS_V4,
        (_, false) => flow_table::EMBRYOS_V6,
        (_, true) => flow_table::FLOWS_V6,
    }
}

/// What a seat is worth to one who looks for room: the higher the better.
pub mod worth {
    /// Its flow stays.
    pub const NOTHING: u32 = 0;
    /// A flow that found no room among the confirmed ones, and could make room there.
    pub const GUEST: u32 = 1;
    /// An embryo; plus the seconds that it was idle.
    pub const EMBRYO: u32 = 2;
    /// A flow without a connection; plus the seconds that it was idle.
    pub const IDLE: u32 = 0x2000_0000;
    /// A closing connection; plus the seconds that it was idle.
    pub const CLOSING: u32 = 0x4000_0000;
    /// A flow that has expired.
    pub const EXPIRED: u32 = 0x6000_0000;
    /// Nobody's.
    pub const FREE: u32 = 0x7000_0000;
}

/// What [`claim`] returns.
pub mod claimed {
    /// A seat was emptied, its index is the rest of the number.
    pub const SEAT: u64 = 1 << 32;
    /// The container has its share, and none of its flows could make room.
    pub const SHARE: u64 = 2 << 32;
    /// The table is full, and nobody could make room.
    pub const FULL: u64 = 3 << 32;
}

/// Finds a seat for a new flow, and empties it. It is the flow's when [`take`] says so; until then
/// another may find it too. `owner` is whose share is looked at; [`ANYONE`]: nobody's. See
/// [`claimed`].
#[inline(always)]
pub fn claim<F: Family, T: Steps<F>>(
    tables: &T,
    config: &Config,
    confirmed: bool,
    owner: u32,
) -> u64 {
    let table = table::<F>(confirmed);
    let seats = config.seats[table];
    if seats == 0 {
        return claimed::FULL;
    }
    if owner != ANYONE && tables.holding(owner, table) >= share(seats) {
        // Its flows may be anywhere, so the seats are looked at in no order.
        return search::<F, T>(tables, confirmed, owner, seats, OWN_PROBES, claimed::SHARE);
    }
    let probes = if confirmed {
        FLOW_PROBES
    } else {
        EMBRYO_PROBES
    };
    search::<F, T>(tables, confirmed, ANYONE, seats, probes, claimed::FULL)
}

#[inline(always)]
fn search<F: Family, T: Steps<F>>(
    tables: &T,
    confirmed: bool,
    owner: u32,
    seats: u32,
    probes: u32,
    otherwise: u64,
) -> u64 {
    let table = table::<F>(confirmed);
    let Some(scratch) = tables.scratch() else {
        return otherwise;
    };
    scratch.candidate = Candidate::default();
    let mut best = worth::NOTHING;
    // The hand is everyone's: turned by those who look for their own, it would come to the youngest
    // flows, and find the table full where most of it is free.
    let start = place_of::<F, T>(tables);
    // The best of a few is worth a look; of its own, which are rare, the first will do.
    let enough = match (owner == ANYONE, confirmed) {
        (true, _) => worth::EXPIRED,
        (false, true) => worth::IDLE,
        (false, false) => worth::EMBRYO,
    };
    let mut probe = 0;
    while probe < probes && best < enough {
        let index = if owner == ANYONE {
            tables.next_seat(table)
        } else {
            scatter(start.wrapping_add(probe))
        } % seats;
        best = tables.probe_seat(u32::from(confirmed), index, owner);
        probe += 1;
    }
    if best == worth::NOTHING {
        let refused = if owner == ANYONE {
            table_event::REFUSED_FULL
        } else {
            table_event::REFUSED_SHARE
        };
        // A confirmed flow is not refused for want of room.
        if !(confirmed && owner == ANYONE) {
            tables.count(table, refused);
        }
        return otherwise;
    }
    let at = scratch.candidate.index;
    if tables.vacate_seat(u32::from(confirmed), at) == 0 {
        // Another CPU had the same thought.
        return otherwise;
    }
    if best != worth::FREE {
        tables.count(table, event(best));
    }
    claimed::SEAT | u64::from(at)
}

/// Where the search for one's own begins: elsewhere for every flow, and for one flow in every second.
#[inline(always)]
fn place_of<F: Family, T: Tables<F>>(tables: &T) -> u32 {
    let Some(scratch) = tables.scratch() else {
        return 0;
    };
    let tuple = &scratch.parsed.tuple;
    let ports = u32::from(u16::from_be_bytes(tuple.sport)) << 16
        | u32::from(u16::from_be_bytes(tuple.dport));
    let addresses = scatter(tuple.src.fold()).wrapping_add(tuple.dst.fold());
    scatter(addresses.wrapping_add(scatter(ports ^ tables.now())))
}

/// May the container `owner` have one more confirmed flow? One that has its share makes one of its
/// own flows leave, if it can.
#[inline(always)]
pub fn is_within_share<F: Family, T: Steps<F>>(tables: &T, config: &Config, owner: u32) -> bool {
    let table = table::<F>(true);
    tables.holding(owner, table) < share(config.seats[table])
        || tables.claim_seat(1, owner) & !0xffff_ffff == claimed::SEAT
}

/// How many of a table's seats one container may have.
#[must_use]
#[inline(always)]
pub const fn share(seats: u32) -> i64 {
    // That of a table of three would be none at all.
    let share = if seats < SHARE { 1 } else { seats / SHARE };
    share as i64
}

/// A number far from that of its neighbour (the finaliser of MurmurHash3).
#[inline(always)]
const fn scatter(number: u32) -> u32 {
    let mut n = number;
    n = (n ^ n >> 16).wrapping_mul(0x85eb_ca6b);
    n = (n ^ n >> 13).wrapping_mul(0xc2b2_ae35);
    n ^ n >> 16
}

/// What happened when a flow worth this was made to leave.
#[inline(always)]
const fn event(worth: u32) -> usize {
    if worth >= worth::EXPIRED {
        table_event::EXPIRED
    } else if worth >= worth::CLOSING {
        table_event::EVICTED_CLOSING
    } else if worth >= worth::IDLE || worth == worth::GUEST {
        table_event::EVICTED_IDLE
    } else {
        table_event::EVICTED_EMBRYO
    }
}

/// Seats the flow with this key; `false`: another CPU has taken the seat meanwhile.
#[inline(always)]
pub fn take<F: Family, T: Tables<F>>(
    tables: &T,
    confirmed: bool,
    index: u32,
    key: &Tuple<F::Addr>,
    flow: &Flow<F::Addr>,
) -> bool {
    let Some(seat) = tables.seat(confirmed, index) else {
        return false;
    };
    // Who looks for its own embryos finds those that are counted for it.
    let owner = if confirmed || is_counted_embryo(flow.flags) {
        flow.owner
    } else {
        ANYONE
    };
    // The key is not part of what is swapped: until it is written, nobody may read it.
    if !tables.swap_seat(seat, 0, Seat::<F::Addr>::BEING_TAKEN) {
        return false;
    }
    seat.tuple = *key;
    let state = Seat::<F::Addr>::state(flow.generation, owner);
    tables.swap_seat(seat, Seat::<F::Addr>::BEING_TAKEN, state)
}

/// In place of a container: whoever it is.
pub const ANYONE: u32 = 0;

/// The best seat that a search has found so far.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Candidate {
    /// [`Seat::state`] when it was looked at.
    pub state: u64,
    /// Which seat.
    pub index: u32,
    /// See [`worth`].
    pub worth: u32,
}

/// Looks at a seat, and remembers it in `scratch.candidate` if it is better than what is there.
/// Returns what the best is worth. (What a loop would remember itself, the verifier would follow.)
#[inline(always)]
pub fn probe_seat<F: Family, T: Tables<F>>(
    tables: &T,
    confirmed: bool,
    index: u32,
    owner: u32,
) -> u32 {
    let (Some(seat), Some(scratch)) = (tables.seat(confirmed, index), tables.scratch()) else {
        return worth::NOTHING;
    };
    let state = tables.seat_state(seat);
    let worth = worth_of::<F, T>(tables, scratch, confirmed, seat, state, owner);
    let best = &mut scratch.candidate;
    if worth > best.worth {
        best.state = state;
        best.index = index;
        best.worth = worth;
    }
    best.worth
}

/// What the seat is worth; see [`worth`]. Nothing, if it is not `owner`'s, unless that is
/// [`ANYONE`].
#[inline(always)]
fn worth_of<F: Family, T: Tables<F>>(
    tables: &T,
    scratch: &mut Scratch<F::Addr>,
    confirmed: bool,
    seat: &Seat<F::Addr>,
    state: u64,
    owner: u32,
) -> u32 {
    if state == Seat::<F::Addr>::BEING_TAKEN {
        return worth::NOTHING;
    }
    let generation = state as u32;
    let free = if owner == ANYONE {
        worth::FREE
    } else {
        worth::NOTHING
    };
    if generation == 0 || owner != ANYONE && (state >> 32) as u32 != owner {
        return free;
    }
    scratch.victim = seat.tuple;
    let slot = match lookup::<F, T>(tables, confirmed, &scratch.victim) {
        Some(slot) if slot.generation() == generation => slot,
        // Ended, or promoted.
        _ => return free,
    };
    let now = tables.now();
    let state = State::from_number(slot.state()).unwrap_or(State::OtherNew);
    let mut silence = idle(now, slot.last_seen());
    if confirmed && state as u8 == State::Established as u8 && silence <= state.lifetime() {
        return worth::NOTHING;
    }
    set_other_key(&mut scratch.victim_other, scratch.victim.proto, &slot);
    if let Some(other) = either::<F, T>(tables, &scratch.victim_other)
        && other.generation() == generation
    {
        let others = idle(now, other.last_seen());
        if others < silence {
            silence = others;
        }
    }
    if silence > state.lifetime() {
        return worth::EXPIRED;
    }
    if !confirmed && !state.is_confirmed() {
        return worth::EMBRYO + silence;
    }
    let worth = match state {
        State::TimeWait | State::Reset => worth::CLOSING + silence,
        State::Closing if silence >= QUIET_CLOSING => worth::CLOSING + silence,
        State::UdpReplied | State::EchoReplied | State::OtherReplied
            if silence >= QUIET_STREAM || !is_stream(now, silence, &slot) =>
        {
            worth::IDLE + silence
        }
        _ => worth::NOTHING,
    };
    // What found no room among the flows can be spared no less here, but after the embryos.
    if !confirmed && worth != worth::NOTHING {
        return worth::GUEST;
    }
    worth
}

/// Has it had packets for longer than a question and its answer take?
#[inline(always)]
fn is_stream<A: Copy>(now: u32, silence: u32, slot: &Slot<A>) -> bool {
    idle(now, slot.created()) >= silence + STREAM
}

/// Empties this seat, if it still is `scratch.candidate`, and ends the flow that has it. `false`: the
/// seat is another's already.
#[inline(always)]
pub fn vacate_seat<F: Family, T: Tables<F>>(tables: &T, confirmed: bool, index: u32) -> bool {
    let (Some(seat), Some(scratch)) = (tables.seat(confirmed, index), tables.scratch()) else {
        return false;
    };
    let state = scratch.candidate.state;
    let generation = state as u32;
    scratch.victim = seat.tuple;
    // What was probed and what is there now may be different flows, but a state is never used again.
    if !tables.swap_seat(seat, state, 0) {
        return false;
    }
    let Some(slot) = lookup::<F, T>(tables, confirmed, &scratch.victim) else {
        return true;
    };
    if slot.generation() != generation {
        return true;
    }
    set_other_key(&mut scratch.victim_other, scratch.victim.proto, &slot);
    // From this table only: an embryo may be on its way to the flows, and half of it be there.
    if confirmed {
        remove_flow::<F, T>(tables, &scratch.victim_other, generation);
        remove_flow::<F, T>(tables, &scratch.victim, generation);
    } else {
        remove_embryo::<F, T>(tables, &scratch.victim_other, generation);
        remove_embryo::<F, T>(tables, &scratch.victim, generation);
    }
    true
}

/// Seconds that half a flow must be left alone before it counts as left over, and a closed
/// connection before its port is taken: a flow that is just being made has one half for a moment,
/// and the last segments of a connection may still be under way.
pub const SETTLED: u32 = 2;

/// Ends the flow that owns `scratch.reply_tuple`, if it has expired or is what is left of a flow
/// that lost its other half; where the need is `pressing` also if both sides have closed it (RFC
/// 6191: a new connection may take the tuple of one in TIME-WAIT). Is the tuple free now?
#[inline(always)]
pub fn reclaim<F: Family, T: Tables<F>>(tables: &T, pressing: bool) -> bool {
    let Some(scratch) = tables.scratch() else {
        return false;
    };
    let Some(slot) = either::<F, T>(tables, &scratch.reply_tuple) else {
        return true;
    };
    let now = tables.now();
    let generation = slot.generation();
    let state = State::from_number(slot.state()).unwrap_or(State::OtherNew);
    let mut silence = idle(now, slot.last_seen());
    set_other_key(&mut scratch.victim, scratch.reply_tuple.proto, &slot);
    let mut whole = false;
    if let Some(other) = either::<F, T>(tables, &scratch.victim)
        && other.generation() == generation
    {
        whole = true;
        let others = idle(now, other.last_seen());
        if others < silence {
            silence = others;
        }
    }
    let left_over = !whole && silence >= SETTLED;
    let closed = pressing && state.is_closed() && silence >= SETTLED;
    if !left_over && !closed && silence <= state.lifetime() {
        return false;
    }
    if closed {
        let table = table::<F>(true);
        tables.count(table, table_event::PORT_REUSED);
    }
    remove::<F, T>(tables, &scratch.victim, generation);
    remove::<F, T>(tables, &scratch.reply_tuple, generation);
    true
}

/// Removes an entry of this generation from both tables, and takes its flow off its container's
/// count. Counted is the half of the original direction, so a flow counts once however it ends.
#[inline(always)]
pub fn remove<F: Family, T: Tables<F>>(tables: &T, key: &Tuple<F::Addr>, generation: u32) {
    remove_flow::<F, T>(tables, key, generation);
    remove_embryo::<F, T>(tables, key, generation);
}

/// [`remove`], from the flows only.
#[inline(always)]
pub fn remove_flow<F: Family, T: Tables<F>>(tables: &T, key: &Tuple<F::Addr>, generation: u32) {
    let Some(slot) = tables.flow(key) else {
        return;
    };
    let (owner, flags) = (slot.owner(), slot.flags());
    if slot.generation() == generation && tables.remove_flow(key) && flags & flow_flag::REPLY == 0 {
        tables.hold(owner, table::<F>(true), -1);
    }
}

/// [`remove`], from the embryos only.
#[inline(always)]
pub fn remove_embryo<F: Family, T: Tables<F>>(tables: &T, key: &Tuple<F::Addr>, generation: u32) {
    let Some(slot) = tables.embryo(key) else {
        return;
    };
    let (owner, flags) = (slot.owner(), slot.flags());
    if slot.generation() == generation && tables.remove_embryo(key) && is_counted_embryo(flags) {
        tables.hold(owner, table::<F>(false), -1);
    }
}

/// Is an embryo with these flags counted for its owner? Only what a container opened is: those who
/// flood its published ports must not use up its share.
#[must_use]
#[inline(always)]
pub const fn is_counted_embryo(flags: u16) -> bool {
    flags & (flow_flag::REPLY | flow_flag::OUTGOING) == flow_flag::OUTGOING
}

#[inline(always)]
fn lookup<F: Family, T: Tables<F>>(
    tables: &T,
    confirmed: bool,
    key: &Tuple<F::Addr>,
) -> Option<Slot<F::Addr>> {
    if confirmed {
        tables.flow(key)
    } else {
        tables.embryo(key)
    }
}

/// Looks in both tables for a flow that is known to be in one. It may leave the embryos for the
/// flows between the two looks, and then a third one finds it.
#[inline(always)]
pub fn surely<F: Family, T: Tables<F>>(tables: &T, key: &Tuple<F::Addr>) -> Option<Slot<F::Addr>> {
    either::<F, T>(tables, key).or_else(|| tables.flow(key))
}

/// Looks in both tables.
#[inline(always)]
pub fn either<F: Family, T: Tables<F>>(tables: &T, key: &Tuple<F::Addr>) -> Option<Slot<F::Addr>> {
    tables.flow(key).or_else(|| tables.embryo(key))
}
