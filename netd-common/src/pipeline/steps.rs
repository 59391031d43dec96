//! The slow path in steps, each with numbers for arguments and result: the bodies behind
//! [`crate::tables::Steps`].

use crate::{
    abi::{Config, config_flag},
    conntrack::tcp_flags_valid,
    crc32c,
    decide::{self, Action, Origin, Way},
    drop::DropReason,
    flow::{self, initial_state},
    fragment::role,
    ipsec, kernel_flow,
    packet::Packet,
    parse::{Kind, Parsed, parse},
    quoted, room,
    sabotage::{Check, enforced},
    tables::{Scratch, Steps, Tables},
    wire::{ETH_LEN, Family, proto, tcp_flag},
};

use super::{
    DROP as DROP_ACTION, PASS as PASS_ACTION, PEER as PEER_ACTION, Verdict, continuing, deliver,
    fragmenting, fragments, icmp_error as about, mss, refusal, symmetric, way, yields,
};

/// The actions of a [`Verdict`], as they stand in one.
const PASSED: u64 = PASS_ACTION << 32;
const DROPPED: u64 = DROP_ACTION << 32;
const TO_PEER: u64 = PEER_ACTION << 32;
/// No [`Verdict`] has this action: judge the packet as one without a flow.
pub(super) const OPEN: u64 = 0x70 << 32;
/// No [`Verdict`] has this action: the packet belongs to a flow.
const PROCEED: u64 = 0x71 << 32;
/// No [`Verdict`] has this action: decide about the flow in `scratch.tuple` again, which was opened
/// on the interface in the low half, and proceed with the answer.
const DECIDE: u64 = 0x72 << 32;
/// No [`Verdict`] has this action: the flow was confirmed; promote it and send the packet.
pub(super) const PROMOTE: u64 = 0x73 << 32;
/// No [`Verdict`] has this action: translate the ICMP error and send it.
pub(super) const SEND_ERROR: u64 = 0x74 << 32;
/// No [`Verdict`] has this action: the packet's way has to be looked up first.
pub(super) const REROUTE: u64 = 0x75 << 32;
/// No [`Verdict`] has this action: it was, and the packet may go on.
pub(super) const REROUTED: u64 = 0x76 << 32;
/// Beside a [`Verdict`]: the packet is an ICMP error, and this holds only if it is about no flow of
/// netd's. In the place of the family, which is 4 or 6.
const ABOUT_A_FLOW: u64 = 1 << 46;
/// The bits that tell.
pub(super) const ACTION: u64 = 0x7f << 32;

/// What the first step of the slow path makes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Final.
    Verdict(Verdict),
    /// It bears the key of a flow and may use it.
    Proceed,
    /// It has none.
    Open,
}

impl Judgement {
    #[inline(always)]
    pub(super) fn encode(result: Result<Self, DropReason>, family: u8, network: u16) -> u64 {
        match result {
            Ok(Self::Verdict(verdict)) => verdict.of(family, network).0,
            Ok(Self::Proceed) => PROCEED | u64::from(network),
            Ok(Self::Open) => OPEN | u64::from(network),
            Err(reason) => Verdict::drop(reason).of(family, network).0,
        }
    }
}

/// The rest of the slow path. The steps stand side by side, not one inside the other: the stack of
/// nested BPF functions adds up.
#[inline(always)]
pub(super) fn finish<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    ifindex: u32,
    judgement: u64,
) -> Verdict {
    let verdict = carry_out::<F, P, T>(packet, tables, ifindex, judgement);
    let mut verdict = refusal::in_pieces::<F, P, T>(packet, tables, ifindex, verdict);
    let Some(scratch) = tables.scratch() else {
        return verdict;
    };
    if scratch.parsed.tuple.proto == proto::SCTP && verdict.redirects() {
        verdict = Verdict(tables.sum_sctp(packet, verdict.0));
    }
    if scratch.fragment.role & role::NEWS != 0 {
        tables.remember(verdict.0);
    }
    verdict
}

#[inline(always)]
fn carry_out<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    ifindex: u32,
    judgement: u64,
) -> Verdict {
    if judgement & ABOUT_A_FLOW != 0 {
        let otherwise = Verdict(judgement & !ABOUT_A_FLOW);
        return about_a_flow::<F, P, T>(packet, tables, ifindex, otherwise).slow();
    }
    if judgement & ACTION != PROCEED && judgement & ACTION != OPEN {
        return Verdict(judgement).slow();
    }
    let network = judgement as u16;
    if judgement & ACTION == PROCEED {
        let mut verdict = tables.proceed(packet, UNDECIDED);
        if verdict & ACTION == DECIDE {
            let opened_on = verdict as u32;
            let network = (verdict >> 48) as u32;
            let decision = decide::<F, T>(tables, opened_on, network, AGAIN);
            verdict = tables.proceed(packet, decision);
        }
        if verdict & ACTION == REROUTE {
            verdict = tables.reroute(packet, ifindex);
            if verdict & ACTION == REROUTED {
                verdict = tables.proceed(packet, ROUTED);
            } else if verdict & ACTION == DECIDE {
                let opened_on = verdict as u32;
                let network = (verdict >> 48) as u32;
                let decision = decide::<F, T>(tables, opened_on, network, AGAIN);
                verdict = tables.proceed(packet, decision);
            }
        }
        if verdict & ACTION == PROMOTE {
            verdict = match decode(tables.promote()) {
                Ok(_) => tables.send(packet),
                Err(reason) => Verdict::drop(reason).0,
            };
        }
        if verdict & ACTION != OPEN {
            return Verdict(verdict).of(F::VERSION, network).slow();
        }
    }
    open::<F, P, T>(packet, tables, ifindex, network)
        .of(F::VERSION, network)
        .slow()
}

/// What was judged of an ICMP error as of any packet. That is final if it must not be here at all.
#[inline(always)]
pub(super) fn judged_error(judgement: u64) -> u64 {
    let reason = judgement as u32;
    let open = match judgement & ACTION {
        DROPPED => {
            reason == DropReason::IcmpError as u32 || reason == DropReason::IccDisabled as u32
        }
        action => action == PASSED || action == TO_PEER,
    };
    if open {
        judgement | ABOUT_A_FLOW
    } else {
        judgement
    }
}

/// An ICMP error, which goes the way of the flow that it is about.
#[inline(always)]
fn about_a_flow<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    ifindex: u32,
    otherwise: Verdict,
) -> Verdict {
    let network = otherwise.network();
    if tables.read_quoted(packet) == 0 {
        let refused = Verdict::drop(DropReason::IcmpError).of(F::VERSION, network);
        return if otherwise == refused {
            Verdict::drop(DropReason::IcmpQuote).of(F::VERSION, network)
        } else {
            otherwise
        };
    }
    let mut verdict = tables.icmp_error(packet, ifindex, u32::from(network), UNDECIDED);
    if verdict & ACTION == DECIDE {
        let opened_on = verdict as u32;
        let opener = (verdict >> 48) as u32;
        let decision = decide::<F, T>(tables, opened_on, opener, AGAIN);
        verdict = tables.icmp_error(packet, ifindex, u32::from(network), decision);
    }
    if verdict & ACTION == OPEN {
        return otherwise;
    }
    if verdict & ACTION == REROUTE {
        verdict = tables.reroute(packet, ifindex);
        let mut decision = ROUTED;
        if verdict & ACTION == DECIDE {
            let opened_on = verdict as u32;
            let opener = (verdict >> 48) as u32;
            decision = decide::<F, T>(tables, opened_on, opener, AGAIN);
        }
        if verdict & ACTION == DECIDE || verdict & ACTION == REROUTED {
            verdict = tables.icmp_error(packet, ifindex, u32::from(network), decision);
        }
        if verdict & ACTION == OPEN {
            // The flow has ended meanwhile.
            verdict = Verdict::drop(DropReason::FlowEnded).0;
        }
    }
    if verdict & ACTION == SEND_ERROR {
        verdict = tables.send_error(packet);
    }
    Verdict(verdict).of(F::VERSION, network)
}

/// A packet without a flow: decides and, if it may go, opens a flow and sends it.
#[inline(always)]
fn open<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    ifindex: u32,
    network: u16,
) -> Verdict {
    match decode(decide::<F, T>(tables, ifindex, u32::from(network), FRESH)) {
        Ok(Action::Forward) => {}
        Ok(Action::Pass) => return Verdict::PASSED,
        Err(reason) => return Verdict::drop(reason),
    }
    if let Err(reason) = decode(tables.prepare()) {
        return Verdict::drop(reason);
    }
    match decode(tables.reserve()) {
        Ok(Action::Forward) => {}
        // Another CPU has made the flow meanwhile.
        Ok(Action::Pass) => return Verdict(tables.send(packet)),
        Err(reason) => return Verdict::drop(reason),
    }
    match decode(tables.commit()) {
        Ok(_) => Verdict(tables.send(packet)),
        Err(reason) => Verdict::drop(reason),
    }
}

/// Argument of [`classify`]: the packet in hand has no flow yet.
pub const FRESH: u32 = 1;
/// Argument of [`classify`]: about the flow whose opening tuple is `scratch.tuple`, again.
pub const AGAIN: u32 = 0;

/// A parsed packet of a container that the fast path did not take.
#[inline(always)]
pub fn from_endpoint<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    ifindex: u32,
) -> u64 {
    super::from_endpoint::slow::<F, P, T>(packet, tables, ifindex)
}

/// A parsed packet of an uplink that the fast path did not take.
#[inline(always)]
pub fn from_uplink<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    ifindex: u32,
) -> u64 {
    super::from_uplink::slow::<F, P, T>(packet, tables, ifindex)
}

/// A fragment, before it is judged: looks up its packet in `FRAGMENTS_*`.
#[inline(always)]
pub fn track<F: Family, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, ifindex: u32) {
    fragments::track::<F, P, T>(packet, tables, ifindex);
}

/// An SCTP packet that is on its way, after this [`Verdict`]: its checksum follows the change of its
/// ports. Returns the verdict, or another.
#[inline(always)]
pub fn sum_sctp<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    verdict: u64,
) -> u64 {
    let Some(scratch) = tables.scratch() else {
        return Verdict::drop(DropReason::HelperFailed).0;
    };
    let parsed = &scratch.parsed;
    if parsed.kind != Kind::Ports {
        // A first fragment's ports are not changed; an ICMP error has the tuple of its flow.
        return verdict;
    }
    let (mut l3, mut l4) = (parsed.l3, parsed.l4);
    if l3 == 0 && Verdict(verdict).action() == PEER_ACTION {
        // It has got an Ethernet header meanwhile.
        l3 += ETH_LEN;
        l4 += ETH_LEN;
    }
    let tuple = &parsed.tuple;
    let old = [
        tuple.sport[0],
        tuple.sport[1],
        tuple.dport[0],
        tuple.dport[1],
    ];
    let summed = packet.read::<[u8; 4]>(l4).and_then(|new| {
        match u32::from_le_bytes(old) ^ u32::from_le_bytes(new) {
            0 => Ok(()),
            change => crc32c::update(packet, l3, l4, F::VERSION, change),
        }
    });
    match summed {
        Ok(()) => verdict,
        Err(_) => {
            let verdict = Verdict(verdict);
            let (family, network) = (verdict.family(), verdict.network());
            let dropped = Verdict::drop(DropReason::HelperFailed);
            dropped.of(family, network).slow().0
        }
    }
}

/// A fragment of which something is to be remembered, after this [`Verdict`] about it.
#[inline(always)]
pub fn remember<F: Family, T: Tables<F>>(tables: &T, verdict: u64) {
    fragments::remember::<F, T>(tables, Verdict(verdict));
}

/// A packet of a known flow. `decision` is what was decided of it, or [`UNDECIDED`]. Returns a
/// [`Verdict`], or asks for a decision, or asks to judge the packet as one without a flow.
#[inline(always)]
pub fn proceed<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    decision: u32,
) -> u64 {
    let (Some(config), Some(scratch)) = (tables.config(), tables.scratch()) else {
        return Verdict::drop(DropReason::HelperFailed).0;
    };
    continuing::proceed::<F, P, T>(packet, tables, config, scratch, decision)
}

/// [`quoted::find`] what the ICMP error in hand is about, for `scratch.quoted`. 1: found.
#[inline(always)]
pub fn read_quoted<F: Family, P: Packet, T: Steps<F>>(packet: &mut P, tables: &T) -> u32 {
    let Some(scratch) = tables.scratch() else {
        return 0;
    };
    u32::from(quoted::find::<F>(
        packet,
        &scratch.parsed,
        &mut scratch.quoted,
    ))
}

/// An ICMP error, parsed, and what it quotes too: may it go the way of the flow that it is about?
/// `network`: that of the container that sent it, 0 for an uplink. `decision`: as of [`proceed`].
/// Returns a [`Verdict`], asks to send it or to decide about the flow, or says that there is no such
/// flow of netd's.
#[inline(always)]
pub fn icmp_error<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    ifindex: u32,
    network: u32,
    decision: u32,
) -> u64 {
    let (Some(config), Some(scratch)) = (tables.config(), tables.scratch()) else {
        return Verdict::drop(DropReason::HelperFailed).0;
    };
    let from = about::From {
        ifindex,
        network: network as u16,
    };
    about::icmp_error::<F, P, T>(packet, tables, config, scratch, from, decision)
}

/// Sends an ICMP error that [`icmp_error`] has judged. Returns a [`Verdict`].
#[inline(always)]
pub fn send_error<F: Family, P: Packet, T: Steps<F>>(packet: &mut P, tables: &T) -> u64 {
    let Some(scratch) = tables.scratch() else {
        return Verdict::drop(DropReason::HelperFailed).0;
    };
    match about::send::<F, P, T>(packet, tables, scratch) {
        Ok(verdict) => verdict.0,
        Err(reason) => Verdict::drop(reason).0,
    }
}

/// Asks for a decision about `scratch.tuple`.
#[inline(always)]
pub(super) fn ask(opened_on: u32, network: u16) -> u64 {
    DECIDE | u64::from(opened_on) | u64::from(network) << 48
}

/// Argument of [`proceed`]: nothing was decided about the flow this time.
pub const UNDECIDED: u32 = u32::MAX;
/// Argument of [`proceed`]: [`reroute`] has just looked up the packet's way.
pub const ROUTED: u32 = u32::MAX - 1;

/// Looks up the way of a known flow's packet. Returns what [`proceed`] does, or that it may go on.
#[inline(always)]
pub fn reroute<F: Family, P: Packet, T: Steps<F>>(packet: &mut P, tables: &T, ifindex: u32) -> u64 {
    let Some(scratch) = tables.scratch() else {
        return Verdict::drop(DropReason::HelperFailed).0;
    };
    way::reroute::<F, P, T>(packet, tables, ifindex, scratch)
}

/// Sends the packet along the flow that was just created for it, or promoted by it. Returns a
/// [`Verdict`].
#[inline(always)]
pub fn send<F: Family, P: Packet, T: Steps<F>>(packet: &mut P, tables: &T) -> u64 {
    let Some(scratch) = tables.scratch() else {
        return Verdict::drop(DropReason::HelperFailed).0;
    };
    let Some(slot) = room::either::<F, T>(tables, &scratch.parsed.tuple) else {
        // It has already made room for another.
        return Verdict::drop(DropReason::FlowTableFull).0;
    };
    match deliver::<F, P>(
        packet,
        tables.now(),
        scratch.parsed.l3,
        &scratch.parsed,
        &slot,
        &mut scratch.hop,
    ) {
        Ok(verdict) => verdict.0,
        Err(reason) => Verdict::drop(reason).0,
    }
}

/// Decides about `scratch.tuple`, or the packet in hand, in steps side by side. Returns a code for
/// [`decode`].
#[inline(always)]
fn decide<F: Family, T: Steps<F>>(tables: &T, ifindex: u32, network: u32, fresh: u32) -> u32 {
    let mut way = tables.classify(ifindex, network, fresh);
    if way == PUBLISHED_UNLESS_HEARD {
        let heard = tables
            .scratch()
            .is_none_or(|scratch| tables.host_listens(&scratch.tuple));
        if heard && enforced(Check::HostListener) {
            return PASS;
        }
        way = PUBLISHED;
    }
    let decided = match way {
        PUBLISHED => tables.publish(ifindex, network, fresh),
        DIRECT => tables.direct(ifindex, network, fresh),
        EGRESS => tables.egress(ifindex, network, fresh),
        _ => way,
    };
    if decided == FORWARD_UNLESS_IPSEC {
        return tables.ipsec();
    }
    decided
}

/// Is what was decided left to IPsec? Returns a code for [`decode`]; `Forward`: it is not.
#[inline(always)]
pub fn ipsec<F: Family, T: Steps<F>>(tables: &T) -> u32 {
    let (Some(config), Some(scratch)) = (tables.config(), tables.scratch()) else {
        return encode(DropReason::HelperFailed);
    };
    let mut side = 0;
    while side < ipsec::SIDES {
        if ipsec::concerns(&scratch.decision, side) && tables.ipsec_covers(side) != 0 {
            return if yields(config) {
                PASS
            } else {
                encode(DropReason::IpsecPolicy)
            };
        }
        side += 1;
    }
    FORWARD
}

/// [`ipsec::covered`]; 1: yes.
#[inline(always)]
pub fn ipsec_covers<F: Family, T: Steps<F>>(tables: &T, side: u32) -> u32 {
    let Some(scratch) = tables.scratch() else {
        return 1;
    };
    u32::from(ipsec::covered::<F, T>(tables, scratch, side))
}

/// [`ipsec::weight`].
#[inline(always)]
pub fn ipsec_weight<F: Family, T: Steps<F>>(tables: &T, index: u32, side: u32) -> u64 {
    match tables.scratch() {
        Some(scratch) => ipsec::weight::<F, T>(tables, scratch, index, side),
        None => 0,
    }
}

/// [`decide::classify`]. Returns `PUBLISHED`, `PUBLISHED_UNLESS_HEARD`, `DIRECT`, `EGRESS`, or
/// a code for [`decode`].
#[inline(always)]
pub fn classify<F: Family, T: Steps<F>>(tables: &T, ifindex: u32, network: u32, fresh: u32) -> u32 {
    let (Some(config), Some(scratch)) = (tables.config(), tables.scratch()) else {
        return encode(DropReason::HelperFailed);
    };
    if fresh == FRESH {
        if scratch.parsed.kind == Kind::LaterFragment {
            // Only a first fragment begins a flow.
            return encode(DropReason::FlowEnded);
        }
        scratch.tuple = scratch.parsed.tuple;
    }
    let flags = opening_flags(&scratch.parsed, fresh);
    let origin = Origin::new(ifindex, network, fresh);
    match decide::classify::<F, T>(tables, config, scratch, &origin, flags) {
        Ok(Way::Pass)
            if fresh == FRESH
                && fragments::stops_at_the_guard::<F, T>(tables, config, scratch, network) =>
        {
            encode(DropReason::Fragment)
        }
        Ok(Way::Pass) => PASS,
        Ok(Way::Published) => PUBLISHED,
        Ok(Way::PublishedUnlessHeard) => PUBLISHED_UNLESS_HEARD,
        Ok(Way::Direct) => DIRECT,
        Ok(Way::Egress) => EGRESS,
        Err(reason) => encode(reason),
    }
}

/// [`decide::publish()`]. Returns a code for [`decode`].
#[inline(always)]
pub fn publish<F: Family, T: Steps<F>>(tables: &T, ifindex: u32, network: u32, fresh: u32) -> u32 {
    let (Some(config), Some(scratch)) = (tables.config(), tables.scratch()) else {
        return encode(DropReason::HelperFailed);
    };
    let origin = Origin::new(ifindex, network, fresh);
    let decided = decide::publish::<F, T>(tables, scratch, &origin);
    conclude::<F>(config, scratch, fresh, decided)
}

/// [`decide::direct()`]. Returns a code for [`decode`].
#[inline(always)]
pub fn direct<F: Family, T: Steps<F>>(tables: &T, ifindex: u32, network: u32, fresh: u32) -> u32 {
    let (Some(config), Some(scratch)) = (tables.config(), tables.scratch()) else {
        return encode(DropReason::HelperFailed);
    };
    let origin = Origin::new(ifindex, network, fresh);
    let flags = opening_flags(&scratch.parsed, fresh);
    let decided = decide::direct::<F, T>(tables, config, scratch, &origin, flags);
    conclude::<F>(config, scratch, fresh, decided)
}

/// [`decide::egress()`]. Returns a code for [`decode`].
#[inline(always)]
pub fn egress<F: Family, T: Steps<F>>(tables: &T, ifindex: u32, network: u32, fresh: u32) -> u32 {
    let (Some(config), Some(scratch)) = (tables.config(), tables.scratch()) else {
        return encode(DropReason::HelperFailed);
    };
    let origin = Origin::new(ifindex, network, fresh);
    let flags = opening_flags(&scratch.parsed, fresh);
    let decided = decide::egress::<F, T>(tables, config, scratch, &origin, flags);
    conclude::<F>(config, scratch, fresh, decided)
}

/// The TCP flags that a flow is judged by. One that is decided again began before: the kernel did
/// not own it then, and does not now.
#[inline(always)]
fn opening_flags<A>(parsed: &Parsed<A>, fresh: u32) -> u8 {
    if fresh == FRESH {
        parsed.tcp_flags
    } else {
        tcp_flag::SYN
    }
}

#[inline(always)]
fn conclude<F: Family>(
    config: &Config,
    scratch: &Scratch<F::Addr>,
    fresh: u32,
    decided: Result<Action, DropReason>,
) -> u32 {
    match decided {
        Ok(Action::Forward) if fresh == FRESH && scratch.fragment.objection != 0 => {
            REASON + scratch.fragment.objection
        }
        Ok(Action::Forward) if fresh == FRESH && fragments::needs_the_whole(scratch) => {
            encode(DropReason::Fragment)
        }
        // What netd would refuse it refuses to its end.
        Ok(Action::Forward) if fresh == FRESH && config.flags & config_flag::DRAIN != 0 => PASS,
        Ok(Action::Forward)
            if scratch.tuple.proto == proto::TCP
                && !may_begin(opening_flags(&scratch.parsed, fresh)) =>
        {
            encode(DropReason::InvalidTcpFlags)
        }
        // Nobody asked, or whoever did is the kernel's.
        Ok(Action::Forward) if fresh == FRESH && is_echo_reply::<F>(&scratch.parsed) => {
            if yields(config) {
                PASS
            } else {
                encode(DropReason::UnsolicitedReply)
            }
        }
        Ok(Action::Forward) if config.flags & config_flag::IPSEC != 0 && enforced(Check::Ipsec) => {
            FORWARD_UNLESS_IPSEC
        }
        Ok(Action::Forward) => FORWARD,
        Ok(Action::Pass) => PASS,
        Err(reason) => encode(reason),
    }
}

#[inline(always)]
fn is_echo_reply<F: Family>(parsed: &Parsed<F::Addr>) -> bool {
    parsed.tuple.proto == F::ICMP && parsed.icmp_type == F::ECHO_REPLY && parsed.kind == Kind::Ports
}

/// May a flow, new or picked up, begin with this segment?
#[inline(always)]
const fn may_begin(flags: u8) -> bool {
    tcp_flags_valid(flags) && flags & tcp_flag::RST == 0
}

/// [`flow::prepare`]. Returns a code for [`decode`]; `Forward` is success.
#[inline(always)]
pub fn prepare<F: Family, T: Steps<F>>(tables: &T) -> u32 {
    let (Some(config), Some(scratch)) = (tables.config(), tables.scratch()) else {
        return encode(DropReason::HelperFailed);
    };
    symmetric::learn::<F, T>(tables, scratch);
    let state = initial_state::<F>(&scratch.parsed);
    match flow::prepare::<F, T>(tables, config, scratch, state) {
        Ok(()) => FORWARD,
        Err(reason) => encode(reason),
    }
}

/// [`flow::reserve`]. Returns a code for [`decode`]; `Forward` is success, `Pass` that the flow is
/// there already.
#[inline(always)]
pub fn reserve<F: Family, T: Steps<F>>(tables: &T) -> u32 {
    let Some(scratch) = tables.scratch() else {
        return encode(DropReason::HelperFailed);
    };
    match flow::reserve::<F, T>(tables, scratch) {
        Ok(true) => FORWARD,
        Ok(false) => PASS,
        Err(reason) => encode(reason),
    }
}

/// [`flow::commit`]. Returns a code for [`decode`]; `Forward` is success.
#[inline(always)]
pub fn commit<F: Family, T: Steps<F>>(tables: &T) -> u32 {
    let Some(scratch) = tables.scratch() else {
        return encode(DropReason::HelperFailed);
    };
    match flow::commit::<F, T>(tables, scratch) {
        Ok(()) => FORWARD,
        Err(reason) => encode(reason),
    }
}

/// [`flow::promote`], the flow of the packet in hand. Returns a code for [`decode`]; `Forward` is
/// success.
#[inline(always)]
pub fn promote<F: Family, T: Steps<F>>(tables: &T) -> u32 {
    let Some(scratch) = tables.scratch() else {
        return encode(DropReason::HelperFailed);
    };
    match flow::promote::<F, T>(tables, scratch) {
        Ok(()) => FORWARD,
        Err(reason) => encode(reason),
    }
}

/// Puts the answer to the packet that `verdict` drops in its place. Returns the [`Verdict`] that
/// sends it, or `verdict` where none is due.
#[inline(always)]
pub fn answer<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    ifindex: u32,
    verdict: u64,
) -> u64 {
    refusal::answer::<F, P, T>(packet, tables, ifindex, Verdict(verdict)).0
}

/// Sends the packet in hand along its flow in pieces. Returns the [`Verdict`] of the last.
#[inline(always)]
pub fn fragment<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    ifindex: u32,
) -> u64 {
    fragmenting::fragment::<F, P, T>(packet, tables, ifindex).0
}

/// Lowers the MSS of the SYN in hand to what its flow carries. 1: it was changed.
#[inline(always)]
pub fn clamp_mss<F: Family, P: Packet, T: Steps<F>>(packet: &mut P, tables: &T) -> u32 {
    mss::clamp::<F, P, T>(packet, tables)
}

/// [`room::claim`], and returns what it does.
#[inline(always)]
pub fn claim_seat<F: Family, T: Steps<F>>(tables: &T, confirmed: u32, owner: u32) -> u64 {
    let Some(config) = tables.config() else {
        return room::claimed::FULL;
    };
    room::claim::<F, T>(tables, config, confirmed != 0, owner)
}

/// [`flow::try_source_port`]. Returns a [`flow::attempt`].
#[inline(always)]
pub fn try_source_port<F: Family, T: Steps<F>>(tables: &T, attempt: u32) -> u32 {
    let (Some(config), Some(scratch)) = (tables.config(), tables.scratch()) else {
        return flow::attempt::FULL;
    };
    flow::try_source_port::<F, T>(tables, config, scratch, attempt)
}

/// Argument of [`kernel_forwards`]: the packet is as it arrived.
pub const ARRIVING: u32 = 0;
/// Argument of [`kernel_forwards`]: the kernel has translated the packet.
pub const TRANSLATED: u32 = 1;

/// Argument of [`kernel_forwards`], beside the others: the packet is an ICMP error, and
/// [`read_quoted`] has found what it is about.
pub const QUOTED: u32 = 2;
/// What [`kernel_forwards`] says of an ICMP error, until it is asked with [`QUOTED`].
pub const ASK_OF_QUOTED: u32 = 2;

/// Does this packet, which no program of netd's redirected, belong to a flow that the kernel's NAT
/// owned before netd came? An ICMP error belongs to the flow that it is about. 1: yes.
///
/// The kernel reassembles what it translates, and may send it on in fragments: those bear no ports
/// to tell by, and the answer is no.
#[inline(always)]
pub fn kernel_forwards<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    how: u32,
) -> u32 {
    let (Some(config), Some(scratch)) = (tables.config(), tables.scratch()) else {
        return 0;
    };
    if !kernel_flow::any(config) {
        return 0;
    }
    if how & QUOTED != 0 {
        // Else it is no error of that flow's to nf_conntrack (nf_conntrack_inet_error), which would
        // not translate it.
        if scratch.parsed.tuple.dst != scratch.quoted.tuple.src {
            return 0;
        }
        // As the kernel's flow knows what goes the error's way.
        scratch.tuple = scratch.quoted.tuple.reversed();
    } else {
        let Ok(parsed) = parse::<F>(packet, ETH_LEN) else {
            return 0;
        };
        scratch.parsed = parsed;
        scratch.parsed.tuple.reserved = [0; 3];
        match scratch.parsed.kind {
            Kind::IcmpError => return ASK_OF_QUOTED,
            Kind::Ports | Kind::Portless => scratch.tuple = scratch.parsed.tuple,
            _ => return 0,
        }
    }
    if how & TRANSLATED != 0 {
        scratch.tuple = scratch.tuple.reversed();
    }
    u32::from(kernel_flow::owns_forwarded::<F, T>(
        tables,
        &scratch.tuple,
        &mut scratch.socket,
    ))
}

const PASS: u32 = 0;
const FORWARD: u32 = 1;
const PUBLISHED: u32 = 2;
const PUBLISHED_UNLESS_HEARD: u32 = 3;
const DIRECT: u32 = 4;
const EGRESS: u32 = 5;
const FORWARD_UNLESS_IPSEC: u32 = 6;
const REASON: u32 = 0x100;

#[inline(always)]
const fn encode(reason: DropReason) -> u32 {
    REASON + reason as u32
}

/// What the steps say.
///
/// # Errors
/// The reason to drop the packet.
#[inline(always)]
pub fn decode(code: u32) -> Result<Action, DropReason> {
    match code {
        PASS => Ok(Action::Pass),
        FORWARD => Ok(Action::Forward),
        _ => Err(DropReason::from_number(code.wrapping_sub(REASON) as u16)
            .unwrap_or(DropReason::HelperFailed)),
    }
}
