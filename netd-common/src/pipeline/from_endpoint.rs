//! What a container sends.
//!
//! The destination MAC is looked at before the address: only a frame to the bridge's own MAC asks
//! to be routed. A frame to another MAC is the bridge's business, also when its IP destination is
//! far away: that is how a container works whose gateway is another container.

use crate::{
    abi::{Config, Endpoint, Network, flow_flag, local_kind, network_flag},
    decide::masquerades,
    drop::DropReason,
    packet::Packet,
    parse::{Kind, Parsed, parse, service_class},
    room,
    sabotage::{Check, enforced},
    tables::{Scratch, Slot, Steps, Tables},
    wire::{Address, Arp, ETH_LEN, Eth, Family, V4, V4Addr, V6, ethertype},
};

use super::{
    Meta, PEER, Verdict, deliver, established, fragments, mss, refusal,
    steps::{self, Judgement},
    yields,
};

/// tcx ingress of a container's host veth.
#[inline(always)]
pub fn from_endpoint<P: Packet, T: Steps<V4> + Steps<V6>>(
    packet: &mut P,
    tables: &T,
    meta: &Meta,
) -> Verdict {
    let eth: Eth = match packet.read(0) {
        Ok(eth) => eth,
        Err(reason) => return Verdict::drop(reason),
    };
    let tagged =
        meta.vlan != 0 || eth.ethertype == ethertype::VLAN || eth.ethertype == ethertype::QINQ;
    if tagged && enforced(Check::Vlan) {
        return Verdict::drop(DropReason::VlanTag);
    }
    match eth.ethertype {
        ethertype::IPV4 => ip::<V4, P, T>(packet, tables, meta, &eth),
        ethertype::IPV6 => ip::<V6, P, T>(packet, tables, meta, &eth),
        ethertype::ARP => arp(packet, tables, meta, &eth),
        _ if tagged => Verdict::PASSED,
        _ => Verdict::drop(DropReason::EtherType),
    }
}

#[inline(always)]
fn ip<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    meta: &Meta,
    eth: &Eth,
) -> Verdict {
    let (Some(config), Some(scratch)) = (tables.config(), tables.scratch()) else {
        return Verdict::drop(DropReason::HelperFailed);
    };
    scratch.parsed = match parse::<F>(packet, ETH_LEN) {
        Ok(parsed) => parsed,
        Err(reason) => return Verdict::drop(reason).of(F::VERSION, 0),
    };
    let now = tables.now();
    if let Some(slot) =
        established::<F, T>(tables, config, now, &scratch.parsed, meta.ifindex, eth.dst)
    {
        return match deliver::<F, P>(
            packet,
            now,
            ETH_LEN,
            &scratch.parsed,
            &slot,
            &mut scratch.hop,
        ) {
            Ok(verdict) => verdict,
            Err(reason) => {
                let verdict = Verdict::drop(reason).of(F::VERSION, 0);
                let verdict = refusal::in_pieces::<F, P, T>(packet, tables, meta.ifindex, verdict);
                refusal::tell::<F, P, T>(packet, tables, meta.ifindex, verdict)
            }
        };
    }
    fragments::look_up::<F, P, T>(packet, tables, scratch, meta.ifindex);
    let judgement = tables.from_endpoint(packet, meta.ifindex);
    let verdict = steps::finish::<F, P, T>(packet, tables, meta.ifindex, judgement);
    mss::clamp_if_syn::<F, P, T>(packet, tables, verdict);
    refusal::tell::<F, P, T>(packet, tables, meta.ifindex, verdict)
}

/// Everything but the fast path.
#[inline(always)]
pub(super) fn slow<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    ifindex: u32,
) -> u64 {
    let (Some(config), Some(scratch)) = (tables.config(), tables.scratch()) else {
        return Verdict::drop(DropReason::HelperFailed).0;
    };
    let known = tables
        .endpoint(ifindex)
        .and_then(|e| tables.network(e.network).map(|n| (e, n)));
    let Some((endpoint, network)) = known else {
        let verdict = if yields(config) {
            Verdict::PASSED
        } else {
            Verdict::drop(DropReason::UnknownEndpoint)
        };
        return verdict.of(F::VERSION, 0).0;
    };
    scratch.tos = service_class::<F>(packet, scratch.parsed.l3);
    let judgement = judge::<F, P, T>(packet, tables, config, ifindex, scratch, &endpoint, network);
    let judgement = Judgement::encode(judgement, F::VERSION, endpoint.network);
    if scratch.parsed.kind == Kind::IcmpError {
        return steps::judged_error(judgement);
    }
    judgement
}

const PASS: Judgement = Judgement::Verdict(Verdict::PASSED);

#[inline(always)]
fn judge<F: Family, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    config: &Config,
    ifindex: u32,
    scratch: &mut Scratch<F::Addr>,
    endpoint: &Endpoint,
    network: &Network,
) -> Result<Judgement, DropReason> {
    let eth: Eth = packet.read(0)?;
    let tuple = &scratch.parsed.tuple;
    let owns_source = tables
        .endpoint_of(&tuple.src)
        .is_some_and(|e| e.ifindex == ifindex);
    if network.flags & network_flag::SPOOF_STRICT != 0 && enforced(Check::Spoof) {
        strict::<F, P>(packet, &scratch.parsed, &eth, endpoint, owns_source)?;
    }
    if eth.dst[0] & 1 != 0 {
        return Ok(PASS);
    }
    let to_bridge = eth.dst == network.bridge_mac || !enforced(Check::MacFirst);
    if !to_bridge {
        let judgement = to_neighbour::<F, T>(tables, ifindex, scratch, endpoint, network, &eth)?;
        if judgement != Judgement::Proceed {
            // Nor is what else comes of its packet.
            scratch.fragment.clear();
        }
        return Ok(judgement);
    }
    let local = tables.local(&tuple.dst);
    if tuple.dst.is_multicast()
        || scratch.parsed.kind == Kind::LinkControl
        || F::VERSION == 6 && tuple.dst.is_link_local()
    {
        return Ok(PASS);
    }
    if F::VERSION == 6 && tuple.src.is_link_local() {
        return if local != local_kind::NONE {
            Ok(PASS)
        } else {
            Err(DropReason::LinkLocalSource)
        };
    }
    if !owns_source && network.flags & network_flag::SPOOF_OFF == 0 && enforced(Check::Spoof) {
        return Err(DropReason::SpoofedAddress);
    }
    match scratch.parsed.kind {
        Kind::LaterFragment => {
            let to_host = local != local_kind::NONE;
            let may_leave = to_host || yields(config);
            return fragments::later::<F, T>(tables, scratch, ifindex, may_leave, to_host);
        }
        Kind::IcmpError
            if local != local_kind::NONE || !masquerades::<F>(network) && yields(config) =>
        {
            return Ok(PASS);
        }
        Kind::IcmpError => return Err(DropReason::IcmpError),
        _ => {}
    }
    if let Some(slot) = room::either::<F, T>(tables, &scratch.parsed.tuple)
        && slot.in_ifindex() == ifindex
    {
        fragments::may_use(scratch, &slot)?;
        return Ok(Judgement::Proceed);
    }
    Ok(Judgement::Open)
}

/// A unicast frame to another MAC than the bridge's. It is never routed and never translated, but
/// for one case: the reply of a published port to a neighbour, which the server sends directly.
#[inline(always)]
fn to_neighbour<F: Family, T: Tables<F>>(
    tables: &T,
    ifindex: u32,
    scratch: &Scratch<F::Addr>,
    endpoint: &Endpoint,
    network: &Network,
    eth: &Eth,
) -> Result<Judgement, DropReason> {
    let tuple = &scratch.parsed.tuple;
    if let Some(slot) = room::either::<F, T>(tables, &scratch.parsed.tuple)
        && is_neighbour_reply(&slot, ifindex, eth)
        && fragments::is_its_flow(&scratch.fragment, &slot)
    {
        fragments::may_use(scratch, &slot)?;
        return Ok(Judgement::Proceed);
    }
    if scratch.parsed.kind == Kind::LinkControl {
        return Ok(PASS);
    }
    if network.flags & network_flag::ICC == 0 && enforced(Check::Icc) {
        return Err(DropReason::IccDisabled);
    }
    let Some(target) = tables.endpoint_of(&tuple.dst) else {
        return Ok(PASS);
    };
    let Some(neighbour) = tables.endpoint(target.ifindex) else {
        return Ok(PASS);
    };
    let is_it = neighbour.mac == eth.dst && neighbour.network == endpoint.network;
    // The bridge would do the same, but br_netfilter hands bridged packets to FORWARD.
    if is_it && neighbour.flags & crate::abi::endpoint_flag::PEER != 0 {
        return Ok(Judgement::Verdict(Verdict::new(PEER, target.ifindex)));
    }
    Ok(PASS)
}

#[inline(always)]
fn is_neighbour_reply<A: Copy>(slot: &Slot<A>, ifindex: u32, eth: &Eth) -> bool {
    slot.in_ifindex() == ifindex && slot.flags() & flow_flag::REPLY != 0 && slot.in_mac() == eth.dst
}

/// `spoof = "strict"`: every source is the container's own, also in what neighbours believe.
#[inline(always)]
fn strict<F: Family, P: Packet>(
    packet: &P,
    parsed: &Parsed<F::Addr>,
    eth: &Eth,
    endpoint: &Endpoint,
    owns_source: bool,
) -> Result<(), DropReason> {
    const ROUTER_ADVERTISEMENT: u8 = 134;
    const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    if eth.src != endpoint.mac {
        return Err(DropReason::SpoofedMac);
    }
    let src = parsed.tuple.src;
    // DHCP and duplicate address detection come from no address yet.
    let link_local = F::VERSION == 6 && src.is_link_local();
    if !owns_source && !src.is_unspecified() && !link_local {
        return Err(DropReason::SpoofedAddress);
    }
    if parsed.kind != Kind::LinkControl {
        return Ok(());
    }
    match parsed.icmp_type {
        ROUTER_ADVERTISEMENT => Err(DropReason::RouterAdvertisement),
        NEIGHBOUR_ADVERTISEMENT => {
            // RFC 4861 §4.4: the target follows 8 bytes of header. What is advertised must be the
            // sender's own: its source, or any link-local address.
            let target: F::Addr = packet.read(parsed.l4 + 8)?;
            if target == src || target.is_link_local() {
                Ok(())
            } else {
                Err(DropReason::SpoofedNeighbour)
            }
        }
        _ => Ok(()),
    }
}

/// ARP stays in the bridge. With `spoof = "strict"` the sender must be the container itself.
#[inline(always)]
fn arp<P: Packet, T: Tables<V4>>(packet: &mut P, tables: &T, meta: &Meta, eth: &Eth) -> Verdict {
    let known = tables
        .endpoint(meta.ifindex)
        .and_then(|e| tables.network(e.network).map(|n| (e, n)));
    let Some((endpoint, network)) = known else {
        return Verdict::PASSED;
    };
    if network.flags & network_flag::SPOOF_STRICT == 0 || !enforced(Check::Spoof) {
        return Verdict::PASSED;
    }
    let drop = |reason| Verdict::drop(reason).of(4, endpoint.network).slow();
    let arp: Arp = match packet.read(ETH_LEN) {
        Ok(arp) => arp,
        Err(_) if packet.pull(ETH_LEN + size_of::<Arp>() as u32) => match packet.read(ETH_LEN) {
            Ok(arp) => arp,
            Err(reason) => return drop(reason),
        },
        Err(reason) => return drop(reason),
    };
    if eth.src != endpoint.mac || arp.sender_mac != endpoint.mac {
        return drop(DropReason::SpoofedMac);
    }
    let sender = V4Addr(arp.sender_ip);
    let owner = <T as Tables<V4>>::endpoint_of(tables, &sender);
    // An ARP probe (RFC 5227) asks from no address.
    if sender.is_unspecified() || owner.is_some_and(|e| e.ifindex == meta.ifindex) {
        Verdict::PASSED.slow()
    } else {
        drop(DropReason::SpoofedNeighbour)
    }
}
