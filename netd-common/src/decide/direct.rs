//! To a container's own address: from outside, or from another container by the gateway.

use crate::{
    abi::{
        Config, Network, Tuple, config_flag, flow_kind, gateway_mode, network_flag, uplink_flag,
    },
    drop::DropReason,
    sabotage::{Check, enforced},
    tables::{Scratch, Tables},
    wire::Family,
};

use super::{Action, Origin, check_source, into_endpoint, kernel_may_own, mode};

/// Decides about a flow to a container's address: [`super::Way::Direct`].
///
/// # Errors
/// The reason to drop the packet.
#[inline(always)]
pub fn direct<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    scratch: &mut Scratch<F::Addr>,
    origin: &Origin,
    tcp_flags: u8,
) -> Result<Action, DropReason> {
    let tuple = &scratch.tuple;
    let from_container = origin.network != 0;
    let yields = config.flags & config_flag::YIELDS != 0;
    let Some(target) = tables.endpoint_of(&tuple.dst) else {
        return if yields {
            Ok(Action::Pass)
        } else {
            Err(DropReason::UnknownEndpoint)
        };
    };
    let network = tables
        .network(tables.subnet(&tuple.dst))
        .ok_or(DropReason::UnknownEndpoint)?;
    if from_container && origin.network == target.network {
        if network.flags & network_flag::ICC == 0 && enforced(Check::Icc) {
            return Err(DropReason::IccDisabled);
        }
    } else {
        let refused = if from_container {
            DropReason::Isolation
        } else {
            DropReason::DirectRouting
        };
        let check = if from_container {
            Check::Isolation
        } else {
            Check::DirectRouting
        };
        if enforced(check)
            && !open_to::<F, T>(tables, config, tuple, network, target.network, origin)
        {
            let internal = network.flags & network_flag::INTERNAL != 0 && !from_container;
            return Err(if internal {
                DropReason::Internal
            } else {
                refused
            });
        }
    }
    if kernel_may_own(config, tuple.proto, tcp_flags) {
        return Ok(Action::Pass);
    }
    if !from_container {
        check_source::<F, T>(tables, scratch, origin.ifindex, network.bridge)?;
    }
    let endpoint = tables
        .endpoint(target.ifindex)
        .ok_or(DropReason::UnknownEndpoint)?;
    let d = &mut scratch.decision;
    d.clear();
    d.kind = flow_kind::DIRECT;
    d.dst = scratch.tuple.dst;
    d.dport = scratch.tuple.dport;
    into_endpoint::<F, T>(tables, d, origin, target.ifindex, &endpoint, network)?;
    Ok(Action::Forward)
}

/// Is this container port open to packets from another interface that bear its own address?
#[inline(always)]
fn open_to<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    tuple: &Tuple<F::Addr>,
    network: &Network,
    network_id: u16,
    origin: &Origin,
) -> bool {
    if network.flags & network_flag::INTERNAL != 0 {
        return false;
    }
    let mode = mode::<F>(network);
    if mode == gateway_mode::NAT_UNPROTECTED {
        return true;
    }
    let mut published_open = mode == gateway_mode::ROUTED;
    if origin.network == 0 {
        let flags = tables.uplink(origin.ifindex).map_or(0, |u| u.flags);
        if flags & uplink_flag::CONTAINERS_ALL != 0 {
            return true;
        }
        published_open |= flags & uplink_flag::CONTAINERS_PUBLISHED != 0
            || config.flags & config_flag::ALLOW_DIRECT_ROUTING != 0
            || tables.trusted(network_id, origin.ifindex);
    }
    mode == gateway_mode::ROUTED && tuple.proto == F::ICMP
        || published_open && tables.exposed(tuple.proto, &tuple.dst, tuple.dport)
}
