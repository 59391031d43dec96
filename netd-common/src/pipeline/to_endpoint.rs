//! What the stack or the bridge still delivers to a container: the fail-closed net under the fast
//! path. Where a packet came from is read from its ingress interface, which no sender can forge.

use crate::{
    abi::network_flag,
    drop::DropReason,
    packet::Packet,
    sabotage::{Check, enforced},
    tables::{Steps, Tables},
    wire::{ETH_LEN, Eth, Ipv6Header, V4, V6, ethertype, proto},
};

use super::{Meta, Verdict, host_socket, kernel_forwards, steps::TRANSLATED, yields};

/// tcx egress of a container's host veth.
#[inline(always)]
pub fn to_endpoint<P: Packet, T: Steps<V4> + Steps<V6>>(
    packet: &mut P,
    tables: &T,
    meta: &Meta,
) -> Verdict {
    let Some(endpoint) = <T as Tables<V4>>::endpoint(tables, meta.ifindex) else {
        return Verdict::PASSED;
    };
    let Ok(eth) = packet.read::<Eth>(0) else {
        return Verdict::drop(DropReason::Malformed);
    };
    let family = match eth.ethertype {
        ethertype::IPV4 => 4,
        ethertype::IPV6 => 6,
        _ => 0,
    };
    let drop = |reason| Verdict::drop(reason).of(family, endpoint.network);
    // Flooded because the bridge forgot where the MAC is: not this container's, whoever sent it.
    if eth.dst[0] & 1 == 0 && eth.dst != endpoint.mac && enforced(Check::MacFirst) {
        return drop(DropReason::Flooded);
    }
    if meta.ingress_ifindex == 0 {
        let bound_to = host_socket::bound_to(packet, tables, &eth);
        return if bound_to != 0 && bound_to != meta.ifindex {
            drop(DropReason::StaleHostSocket)
        } else {
            Verdict::PASSED
        };
    }
    let Some(config) = <T as Tables<V4>>::config(tables) else {
        return drop(DropReason::HelperFailed);
    };
    // Nothing comes back to the port that it was sent from, but netd's own answer to it.
    if meta.ingress_ifindex == meta.ifindex {
        return Verdict::PASSED;
    }
    match <T as Tables<V4>>::endpoint(tables, meta.ingress_ifindex) {
        Some(sender) if sender.network != endpoint.network && enforced(Check::Isolation) => {
            drop(DropReason::Isolation)
        }
        Some(_) => {
            let network = <T as Tables<V4>>::network(tables, endpoint.network);
            let icc = network.is_some_and(|n| n.flags & network_flag::ICC != 0);
            if icc || !enforced(Check::Icc) || is_address_resolution(packet, &eth) {
                Verdict::PASSED
            } else {
                drop(DropReason::IccDisabled)
            }
        }
        None if yields(config) || !enforced(Check::Forwarded) => Verdict::PASSED,
        None if kernel_forwards(packet, tables, family, TRANSLATED) => Verdict::PASSED,
        None => drop(DropReason::ForwardedByStack),
    }
}

/// ARP and neighbour solicitation or advertisement. A published port is reached from a neighbour
/// also with `icc = false`, and its reply needs the neighbour's MAC.
#[inline(always)]
fn is_address_resolution(packet: &mut impl Packet, eth: &Eth) -> bool {
    if eth.ethertype == ethertype::ARP {
        return true;
    }
    if eth.ethertype != ethertype::IPV6 {
        return false;
    }
    let Ok(ip) = packet.read::<Ipv6Header>(ETH_LEN) else {
        return false;
    };
    if ip.next != proto::ICMPV6 || ip.hop_limit != 255 {
        return false;
    }
    if packet.read::<u8>(ETH_LEN + 40).is_err() {
        packet.pull(ETH_LEN + 44);
    }
    matches!(packet.read::<u8>(ETH_LEN + 40), Ok(135 | 136))
}
