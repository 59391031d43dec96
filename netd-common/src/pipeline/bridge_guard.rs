//! The guard on a managed bridge. In replace mode nothing is forwarded to or from a container that
//! netd does not know yet, whatever the stack's own rules say. In both modes the host's sockets
//! reach the container that they were led to, or none.

use crate::{
    drop::DropReason,
    packet::Packet,
    sabotage::{Check, enforced},
    tables::{Steps, Tables},
    wire::{Address, ETH_LEN, Eth, Family, V4, V6, ethertype},
};

use super::{
    ENDPOINT, Meta, Verdict, host_socket, kernel_forwards,
    steps::{ARRIVING, TRANSLATED},
    yields,
};

/// tcx ingress of a managed bridge: what the stack would take from it. What known containers send
/// beyond the host was redirected before it came here, so only packets for the host itself are
/// left.
#[inline(always)]
pub fn bridge_guard_in<P: Packet, T: Steps<V4> + Steps<V6>>(
    packet: &mut P,
    tables: &T,
    meta: &Meta,
) -> Verdict {
    let _ = meta;
    judge(packet, tables, ARRIVING, |packet, family| match family {
        4 => is_for_host::<V4, P, T>(packet, tables),
        _ => is_for_host::<V6, P, T>(packet, tables),
    })
}

/// tcx egress of a managed bridge: what the stack sends into it. What the host itself sends passes,
/// or goes straight to the container that its socket was led to: the bridge would give it to
/// whoever has the address now. So does what was forwarded to a known container, where
/// [`super::to_endpoint`] judges it; in accelerate mode that is left to the Engine's rules.
#[inline(always)]
pub fn bridge_guard_out<P: Packet, T: Steps<V4> + Steps<V6>>(
    packet: &mut P,
    tables: &T,
    meta: &Meta,
) -> Verdict {
    if meta.ingress_ifindex == 0 {
        return from_host(packet, tables);
    }
    if <T as Tables<V4>>::config(tables).is_none_or(yields) {
        return Verdict::PASSED;
    }
    let mut owner = 0;
    let verdict = judge(packet, tables, TRANSLATED, |packet, family| {
        owner = match family {
            4 => owner_of_destination::<V4, P, T>(packet, tables)?,
            _ => owner_of_destination::<V6, P, T>(packet, tables)?,
        };
        Some(owner != 0)
    });
    if verdict != Verdict::PASSED || owner == 0 || !enforced(Check::Guard) {
        return verdict;
    }
    match <T as Tables<V4>>::endpoint(tables, owner) {
        Some(_) => Verdict::new(ENDPOINT, owner),
        None => Verdict::drop(DropReason::UnknownEndpoint),
    }
}

#[inline(always)]
fn from_host<P: Packet, T: Tables<V4> + Tables<V6>>(packet: &mut P, tables: &T) -> Verdict {
    let Ok(eth) = packet.read::<Eth>(0) else {
        return Verdict::PASSED;
    };
    let bound_to = host_socket::bound_to(packet, tables, &eth);
    if bound_to == 0 {
        return Verdict::PASSED;
    }
    match <T as Tables<V4>>::endpoint(tables, bound_to) {
        Some(_) => Verdict::new(ENDPOINT, bound_to),
        None => {
            let family = if eth.ethertype == ethertype::IPV4 {
                4
            } else {
                6
            };
            Verdict::drop(DropReason::StaleHostSocket).of(family, 0)
        }
    }
}

#[inline(always)]
fn judge<P: Packet, T: Steps<V4> + Steps<V6>>(
    packet: &mut P,
    tables: &T,
    translated: u32,
    mut allowed: impl FnMut(&P, u8) -> Option<bool>,
) -> Verdict {
    let Ok(eth) = packet.read::<Eth>(0) else {
        return Verdict::drop(DropReason::Malformed);
    };
    let family = match eth.ethertype {
        ethertype::IPV4 => 4,
        ethertype::IPV6 => 6,
        _ => return Verdict::PASSED,
    };
    match allowed(packet, family) {
        _ if !enforced(Check::Guard) => Verdict::PASSED,
        Some(true) => Verdict::PASSED,
        Some(false) if leaves_to_kernel(packet, tables, family, translated) => Verdict::PASSED,
        Some(false) => Verdict::drop(DropReason::UnknownEndpoint).of(family, 0),
        None => Verdict::drop(DropReason::Malformed).of(family, 0),
    }
}

/// netd is drained, or the kernel's NAT owned the flow before netd came.
#[inline(always)]
fn leaves_to_kernel<P: Packet, T: Steps<V4> + Steps<V6>>(
    packet: &mut P,
    tables: &T,
    family: u8,
    translated: u32,
) -> bool {
    <T as Tables<V4>>::config(tables).is_some_and(yields)
        || kernel_forwards(packet, tables, family, translated)
}

#[inline(always)]
fn destination<F: Family>(packet: &impl Packet) -> Option<F::Addr> {
    packet.read(ETH_LEN + F::SRC_OFFSET + F::ADDR_LEN).ok()
}

#[inline(always)]
fn is_for_host<F: Family, P: Packet, T: Tables<F>>(packet: &P, tables: &T) -> Option<bool> {
    let dst = destination::<F>(packet)?;
    let limited_broadcast = F::VERSION == 4 && dst.padded()[..4] == [255; 4];
    let link_scope =
        dst.is_multicast() || limited_broadcast || F::VERSION == 6 && dst.is_link_local();
    Some(link_scope || tables.local(&dst) != crate::abi::local_kind::NONE)
}

/// Host veth of the container that has the destination address; 0: none.
#[inline(always)]
fn owner_of_destination<F: Family, P: Packet, T: Tables<F>>(packet: &P, tables: &T) -> Option<u32> {
    let owner = tables.endpoint_of(&destination::<F>(packet)?);
    Some(owner.map_or(0, |owner| owner.ifindex))
}
