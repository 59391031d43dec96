//! To a port published on a host address: from the network, or from a container (hairpin).

use crate::{
    abi::{Backend, Config, Tuple, backend_flag, flow_flag, flow_kind},
    drop::DropReason,
    sabotage::{Check, enforced},
    tables::{Scratch, Tables},
    wire::{Address, Family},
};

use super::{
    Action, Origin, Way, check_source, into_endpoint, kernel_may_own, own_address, published,
};

/// May the port be asked for like this at all?
#[inline(always)]
pub(super) fn admit<F: Family>(
    config: &Config,
    tuple: &Tuple<F::Addr>,
    origin: &Origin,
    backend: &Backend<F::Addr>,
    tcp_flags: u8,
) -> Result<Way, DropReason> {
    if tuple.dst.is_loopback() && enforced(Check::Loopback) {
        return Err(DropReason::LoopbackDestination);
    }
    if tuple.src.is_link_local() && F::VERSION == 6 {
        return Err(DropReason::LinkLocalSource);
    }
    if kernel_may_own(config, tuple.proto, tcp_flags) {
        return Ok(Way::Pass);
    }
    if origin.fresh != 0 && backend.flags & backend_flag::OVERRIDE == 0 {
        return Ok(Way::PublishedUnlessHeard);
    }
    Ok(Way::Published)
}

/// Decides about a flow to a published port: [`Way::Published`].
///
/// # Errors
/// The reason to drop the packet.
#[inline(always)]
pub fn publish<F: Family, T: Tables<F>>(
    tables: &T,
    scratch: &mut Scratch<F::Addr>,
    origin: &Origin,
) -> Result<Action, DropReason> {
    let from_container = origin.network != 0;
    let Some(backend) = published::<F, T>(tables, &scratch.tuple) else {
        return Ok(Action::Pass);
    };
    let target = tables
        .endpoint_of(&backend.addr)
        .ok_or(DropReason::NoBackend)?;
    let endpoint = tables
        .endpoint(target.ifindex)
        .ok_or(DropReason::NoBackend)?;
    let network = tables
        .network(target.network)
        .ok_or(DropReason::NoBackend)?;
    if !from_container {
        check_source::<F, T>(tables, scratch, origin.ifindex, network.bridge)?;
    }

    let offset = u16::from_be_bytes(scratch.tuple.dport)
        .wrapping_sub(u16::from_be_bytes(backend.host_first));
    let d = &mut scratch.decision;
    d.clear();
    d.dst = backend.addr;
    d.dport = u16::from_be_bytes(backend.container_first)
        .wrapping_add(offset)
        .to_be_bytes();
    into_endpoint::<F, T>(tables, d, origin, target.ifindex, &endpoint, network)?;
    if !from_container {
        d.kind = flow_kind::PUBLISH;
        return Ok(Action::Forward);
    }
    d.kind = flow_kind::HAIRPIN;
    if target.ifindex == origin.ifindex {
        // To itself: it would answer itself without us, so the gateway steps between.
        d.snat = 1;
        d.nat = own_address::<F>(network.gateway_v4, network.gateway_v6);
        if d.nat.is_unspecified() {
            return Err(DropReason::NoMasqueradeAddress);
        }
        d.reply.in_mac = network.bridge_mac;
    } else if target.network == origin.network {
        d.reply.flags |= flow_flag::SAME_BRIDGE;
    }
    Ok(Action::Forward)
}
