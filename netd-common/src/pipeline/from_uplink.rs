//! What arrives on an interface that is neither a managed bridge nor one of its ports.
//!
//! netd takes what is addressed to a published port or to a container, and the replies of flows
//! that it owns. Everything else is the host's, and passes untouched.

use crate::{
    abi::{Config, flow_flag, local_kind},
    decide::check_source,
    drop::DropReason,
    packet::Packet,
    parse::{Kind, parse, service_class},
    room,
    sabotage::{Check, enforced},
    tables::{Scratch, Steps, Tables},
    wire::{ETH_LEN, Eth, Family, V4, V6, ethertype},
};

use super::{
    Meta, Verdict, continuing, deliver, established, fragments, mss, refusal,
    steps::{self, Judgement},
    yields,
};

/// tcx ingress of an interface with an Ethernet header.
#[inline(always)]
pub fn from_uplink<P: Packet, T: Steps<V4> + Steps<V6>>(
    packet: &mut P,
    tables: &T,
    meta: &Meta,
) -> Verdict {
    // A VLAN's packets arrive once more on the VLAN's own interface.
    if meta.vlan != 0 || meta.to_host == 0 && enforced(Check::OtherHost) {
        return Verdict::PASSED;
    }
    let Ok(eth) = packet.read::<Eth>(0) else {
        return Verdict::PASSED;
    };
    match eth.ethertype {
        ethertype::IPV4 => ip::<V4, P, T>(packet, tables, meta, ETH_LEN),
        ethertype::IPV6 => ip::<V6, P, T>(packet, tables, meta, ETH_LEN),
        _ => Verdict::PASSED,
    }
}

/// tcx ingress of an interface without one (tun, WireGuard): packets begin with the IP header.
#[inline(always)]
pub fn from_tunnel<P: Packet, T: Steps<V4> + Steps<V6>>(
    packet: &mut P,
    tables: &T,
    meta: &Meta,
) -> Verdict {
    if packet.read::<u8>(0).is_err() {
        packet.pull(1);
    }
    match packet.read::<u8>(0).unwrap_or(0) >> 4 {
        4 => ip::<V4, P, T>(packet, tables, meta, 0),
        6 => ip::<V6, P, T>(packet, tables, meta, 0),
        _ => Verdict::PASSED,
    }
}

#[inline(always)]
fn ip<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    meta: &Meta,
    l3: u32,
) -> Verdict {
    let (Some(config), Some(scratch)) = (tables.config(), tables.scratch()) else {
        return Verdict::PASSED;
    };
    scratch.parsed = match parse::<F>(packet, l3) {
        Ok(parsed) => parsed,
        // What netd cannot read it cannot own; the stack will refuse it by itself.
        Err(_) => return Verdict::PASSED,
    };
    let now = tables.now();
    if let Some(slot) =
        established::<F, T>(tables, config, now, &scratch.parsed, meta.ifindex, [0; 6])
    {
        return match deliver::<F, P>(packet, now, l3, &scratch.parsed, &slot, &mut scratch.hop) {
            Ok(verdict) => verdict,
            Err(reason) => {
                let verdict = Verdict::drop(reason).of(F::VERSION, 0);
                let verdict = refusal::in_pieces::<F, P, T>(packet, tables, meta.ifindex, verdict);
                refusal::tell::<F, P, T>(packet, tables, meta.ifindex, verdict)
            }
        };
    }
    fragments::look_up::<F, P, T>(packet, tables, scratch, meta.ifindex);
    let judgement = tables.from_uplink(packet, meta.ifindex);
    let verdict = steps::finish::<F, P, T>(packet, tables, meta.ifindex, judgement);
    mss::clamp_if_syn::<F, P, T>(packet, tables, verdict);
    refusal::tell::<F, P, T>(packet, tables, meta.ifindex, verdict)
}

/// Everything but the fast path.
#[inline(always)]
pub(super) fn slow<F: Family, P: Packet, T: Steps<F>>(packet: &P, tables: &T, ifindex: u32) -> u64 {
    let (Some(config), Some(scratch)) = (tables.config(), tables.scratch()) else {
        return Verdict::PASSED.0;
    };
    scratch.tos = service_class::<F>(packet, scratch.parsed.l3);
    scratch.sender = [0; 6];
    if scratch.parsed.l3 == ETH_LEN {
        scratch.sender = packet.read::<Eth>(0).map_or([0; 6], |eth| eth.src);
    }
    let judgement = Judgement::encode(
        judge::<F, T>(tables, config, ifindex, scratch),
        F::VERSION,
        0,
    );
    if scratch.parsed.kind == Kind::IcmpError {
        return steps::judged_error(judgement);
    }
    judgement
}

const PASS: Judgement = Judgement::Verdict(Verdict::PASSED);

#[inline(always)]
fn judge<F: Family, T: Steps<F>>(
    tables: &T,
    config: &Config,
    ifindex: u32,
    scratch: &mut Scratch<F::Addr>,
) -> Result<Judgement, DropReason> {
    match scratch.parsed.kind {
        Kind::LinkControl => return Ok(PASS),
        Kind::IcmpError => return icmp_error::<F, T>(tables, config, &scratch.parsed.tuple.dst),
        Kind::LaterFragment => {
            let dst = &scratch.parsed.tuple.dst;
            let may_stray =
                tables.local(dst) != local_kind::NONE || tables.subnet(dst) == 0 || yields(config);
            return fragments::later::<F, T>(tables, scratch, ifindex, true, may_stray);
        }
        _ => {}
    }
    if let Some(slot) = room::either::<F, T>(tables, &scratch.parsed.tuple)
        && continuing::is_uplink_side(&slot)
    {
        if slot.in_ifindex() != ifindex {
            // The peer's way to us has changed: judged as a source new to this interface.
            scratch.tuple = scratch.parsed.tuple;
            let network = tables
                .endpoint(slot.out_ifindex())
                .and_then(|e| tables.network(e.network));
            check_source::<F, T>(tables, scratch, ifindex, network.map_or(0, |n| n.bridge))?;
            slot.set_in_ifindex(ifindex);
            if slot.flags() & flow_flag::REPLY == 0 {
                // By the rules of this interface, and with its way back.
                slot.set_epoch(config.epoch.wrapping_sub(1));
            }
        }
        fragments::may_use(scratch, &slot)?;
        return Ok(Judgement::Proceed);
    }
    Ok(Judgement::Open)
}

/// What becomes of an error about no flow of netd's: the host's own are the host's business.
#[inline(always)]
fn icmp_error<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    dst: &F::Addr,
) -> Result<Judgement, DropReason> {
    if tables.subnet(dst) != 0 && tables.local(dst) == local_kind::NONE && !yields(config) {
        return Err(DropReason::IcmpError);
    }
    Ok(PASS)
}
