//! Flows that are IPsec's: what the kernel's policies for outgoing packets (XFRM) cover.
//!
//! A redirect skips XFRM. What a policy would have encrypted, or blocked, must therefore never be
//! redirected: only the kernel can do it justice. A decision is held against the policies before a
//! flow is made and, after any change of them, again.

use crate::{
    abi::{IPSEC_POLICIES, flow_flag, ipsec_action},
    decide::{Decision, Leg},
    tables::{Scratch, Steps, Tables},
    wire::{Address, Family, proto},
};

/// Which of a flow's packets are asked about: the four kinds of source and destination that bear
/// on the wire or inside the host. Argument of [`covered`].
pub const SIDES: u32 = 4;

/// Does the kernel look policies up for these packets? It does so where it forwards (ip_forward), by
/// then with the destination translated, and once more with the source translated (nf_xfrm_me_harder).
/// What is on its way into a container has no other form.
#[must_use]
#[inline(always)]
pub fn concerns<A>(decision: &Decision<A>, side: u32) -> bool {
    let leaves = |leg: &Leg| leg.flags & flow_flag::TO_ENDPOINT == 0;
    match side {
        AS_SENT => leaves(&decision.forward),
        AS_REPLIED => leaves(&decision.reply),
        _ => true,
    }
}

/// What the opening side sends.
const AS_SENT: u32 = 0;
/// What the answering side sends.
const AS_REPLIED: u32 = TRANSLATED | REPLY;
/// Bit of a side: as translated.
const TRANSLATED: u32 = 1;
/// Bit of a side: as replied to.
const REPLY: u32 = 2;

/// Is what was decided about `scratch.tuple` the business of a policy? `side` below [`SIDES`]. The
/// policy with the lowest priority that matches decides; among equals, the one that refuses.
#[must_use]
#[inline(always)]
pub fn covered<F: Family, T: Steps<F>>(
    tables: &T,
    scratch: &mut Scratch<F::Addr>,
    side: u32,
) -> bool {
    let d = &scratch.decision;
    let key = &mut scratch.socket;
    *key = scratch.tuple;
    if side & TRANSLATED != 0 {
        key.dst = d.dst;
        key.dport = d.dport;
        if d.snat != 0 {
            key.src = d.nat;
        }
    }
    if side & REPLY != 0 {
        *key = key.reversed();
    }
    let mut best = UNCONCERNED;
    let mut index = 0;
    while index < IPSEC_POLICIES {
        let weight = tables.ipsec_weight(index, side);
        if weight < best {
            best = weight;
        }
        index += 1;
    }
    best & 1 == 0
}

/// The [`weight`] of a policy that does not match.
const UNCONCERNED: u64 = u64::MAX;

/// What a policy weighs for the packet `scratch.socket`: its priority, and below it whether it lets
/// through; the least decides. One number, so that the verifier need not follow how it came about.
///
/// The port of a source that is still to be translated is not known yet, and ICMP has none: a
/// policy that asks for one covers it, an exception from a policy does not.
#[must_use]
#[inline(always)]
pub fn weight<F: Family, T: Tables<F>>(
    tables: &T,
    scratch: &Scratch<F::Addr>,
    index: u32,
    side: u32,
) -> u64 {
    let Some(policy) = tables.ipsec_policy(index) else {
        return UNCONCERNED;
    };
    if policy.action == ipsec_action::FREE {
        return UNCONCERNED;
    }
    let refuses = policy.action == ipsec_action::REFUSE;
    let (d, key) = (&scratch.decision, &scratch.socket);
    let oif = if side & REPLY != 0 {
        d.reply.out_ifindex
    } else {
        d.forward.out_ifindex
    };
    let icmp = key.proto == proto::ICMP || key.proto == F::ICMP;
    let translated_port = side & TRANSLATED != 0 && d.snat != 0;
    let sport_known = !(icmp || translated_port && side & REPLY == 0);
    let dport_known = !(icmp || translated_port && side & REPLY != 0);
    let port = |selector: [u8; 2], mask: [u8; 2], port: [u8; 2], known: bool| {
        if mask == [0; 2] || known {
            (selector[0] ^ port[0]) & mask[0] | (selector[1] ^ port[1]) & mask[1] == 0
        } else {
            refuses
        }
    };
    // `xfrm_selector_match`.
    let matches = (policy.proto == 0 || policy.proto == key.proto)
        && (policy.ifindex == 0 || policy.ifindex == oif || oif == 0 && refuses)
        && key.src.is_within(&policy.src, &policy.src_mask)
        && key.dst.is_within(&policy.dst, &policy.dst_mask)
        && port(policy.sport, policy.sport_mask, key.sport, sport_known)
        && port(policy.dport, policy.dport_mask, key.dport, dport_known);
    if matches {
        u64::from(policy.priority) << 1 | u64::from(!refuses)
    } else {
        UNCONCERNED
    }
}
