//! From a container to the world.

use crate::{
    abi::{Config, Uplink, flow_kind, local_kind, uplink_flag},
    drop::DropReason,
    sabotage::{Check, enforced},
    tables::{Route, Scratch, Tables},
    wire::{Address, Family, proto, tcp_flag},
};

use super::{Action, Origin, TOS, kernel_may_own, masquerades, own_address};

/// Decides about a flow to the world: [`super::Way::Egress`].
///
/// # Errors
/// The reason to drop the packet.
#[inline(always)]
pub fn egress<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    scratch: &mut Scratch<F::Addr>,
    origin: &Origin,
    tcp_flags: u8,
) -> Result<Action, DropReason> {
    let network = tables
        .network(origin.network)
        .ok_or(DropReason::UnknownEndpoint)?;
    let tuple = &scratch.tuple;
    if tuple.src.is_link_local() && F::VERSION == 6 {
        return Err(DropReason::LinkLocalSource);
    }
    if tuple.dst.is_loopback() || tuple.dst.is_unspecified() {
        return Err(DropReason::LoopbackDestination);
    }
    if kernel_may_own(config, tuple.proto, tcp_flags) {
        return Ok(Action::Pass);
    }
    // A published port's server in the middle of a connection that nobody knows, or no more: as a flow
    // of its own it would come from another port, and its client would reset it. The client's next
    // segment makes the flow anew.
    if tuple.proto == proto::TCP
        && tcp_flags & tcp_flag::SYN == 0
        && tables.exposed(tuple.proto, &tuple.src, tuple.sport)
    {
        return Err(DropReason::FlowEnded);
    }
    // spoof = "off" lets foreign sources through. A managed network's addresses never leave as they
    // are, whichever of its own or a neighbour's containers forwards them.
    let source_network = tables.subnet(&tuple.src);
    let masquerade = if source_network == origin.network {
        masquerades::<F>(network)
    } else {
        if enforced(Check::Martian)
            && (tuple.src.is_martian_source() || tables.local(&tuple.src) != local_kind::NONE)
        {
            return Err(DropReason::MartianSource);
        }
        tables.network(source_network).is_some_and(masquerades::<F>)
    };
    let masquerade = masquerade && enforced(Check::Masquerade);
    let has_ports =
        matches!(tuple.proto, proto::TCP | proto::UDP | proto::SCTP) || tuple.proto == F::ICMP;
    if masquerade && !has_ports {
        return Err(DropReason::UnsupportedProtocol);
    }
    let query = &mut scratch.query;
    query.ask(network.bridge, tuple.src, tuple.dst, tuple.proto);
    query.between(tuple.sport, tuple.dport);
    query.tos = scratch.tos;
    tables.route()?;
    let uplink = egress_uplink::<F, T>(tables, &mut scratch.route)?;

    let d = &mut scratch.decision;
    d.clear();
    d.kind = flow_kind::DIRECT;
    d.dst = scratch.tuple.dst;
    d.dport = scratch.tuple.dport;
    d.outgoing = 1;
    d.owner = origin.ifindex;
    let client = tables
        .endpoint(origin.ifindex)
        .ok_or(DropReason::UnknownEndpoint)?;
    d.forward.in_ifindex = origin.ifindex;
    d.forward.in_mac = network.bridge_mac;
    d.forward.lead_to_uplink(&scratch.route, &uplink);
    d.reply.in_ifindex = scratch.route.oif;
    d.reply.lead_to_endpoint(origin.ifindex, &client, network);
    d.reply.via[TOS] = scratch.tos;
    if masquerade {
        d.kind = flow_kind::MASQUERADE;
        d.snat = 1;
        d.nat = own_address::<F>(network.nat_v4, network.nat_v6);
        if d.nat.is_unspecified() {
            d.nat = own_address::<F>(uplink.addr_v4, uplink.addr_v6);
            if may_leave::<F, T>(tables, &scratch.route.src, d.nat.is_unspecified()) {
                d.nat = scratch.route.src;
            }
        }
        if d.nat.is_unspecified() {
            return Err(DropReason::NoMasqueradeAddress);
        }
    }
    Ok(Action::Forward)
}

/// May a flow be masqueraded with the source that the kernel would choose?
///
/// For an interface without an address (`unnumbered`) the kernel borrows one, and takes that of a
/// bridge or of another uplink as well: only the loopback's is for all. A container's network never
/// lends one: its addresses do not leave.
#[inline(always)]
fn may_leave<F: Family, T: Tables<F>>(tables: &T, source: &F::Addr, unnumbered: bool) -> bool {
    const LOOPBACK: u32 = 1;
    if source.is_unspecified() || tables.subnet(source) != 0 {
        return false;
    }
    !unnumbered
        || tables
            .uplink(LOOPBACK)
            .is_some_and(|lo| own_address::<F>(lo.addr_v4, lo.addr_v6) == *source)
}

/// The uplink that a route leads to, if netd can send there; completes the route's MTU.
///
/// # Errors
/// [`DropReason::UnmanagedEgress`].
#[inline(always)]
pub fn egress_uplink<F: Family, T: Tables<F>>(
    tables: &T,
    route: &mut Route<F::Addr>,
) -> Result<Uplink, DropReason> {
    let uplink = tables
        .uplink(route.oif)
        .ok_or(DropReason::UnmanagedEgress)?;
    if uplink.flags & uplink_flag::LOOPBACK != 0 {
        return Err(DropReason::UnmanagedEgress);
    }
    if route.mtu < 68 {
        route.mtu = uplink.mtu;
    }
    Ok(uplink)
}
