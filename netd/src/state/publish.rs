//! Published ports. A range of host ports is stored as prefixes, which are folded back here into
//! the entry that somebody wrote.

use std::{borrow::Cow, collections::BTreeMap, fmt, net::IpAddr};

use netd_common::{
    abi::{Backend, PortPrefix, V4Addr, V6Addr, backend_flag, map, port_prefix_base},
    wire::Address,
};
use serde::Serialize;

use super::{
    State, StateError, batch, ip,
    network::{NetworkRef, Topology},
    protocol_name,
};

/// Host ports of one address that lead to a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PublishView {
    /// Network of the container.
    pub network: Option<NetworkRef>,
    /// `tcp`, `udp`, `sctp`.
    pub protocol: Cow<'static, str>,
    /// Host address; unspecified: every address of its family.
    pub host: IpAddr,
    /// Host ports, ends included.
    pub host_ports: Ports,
    /// Container address.
    pub container: IpAddr,
    /// Container ports, as many.
    pub container_ports: Ports,
    /// Is the container there? Where it is not, packets are dropped.
    pub backend_present: bool,
    /// Host end of the container's veth.
    pub interface: Option<String>,
    /// Does it take the ports even from a program that listens on the host?
    #[serde(rename = "override")]
    pub overrides: bool,
}

/// A range of ports, ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Ports {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// Reads every published port, ordered by network, protocol, host address and port.
///
/// # Errors
/// What the kernel says.
pub fn publishes(state: &State, topology: &Topology) -> Result<Vec<PublishView>, StateError> {
    let mut views = read::<V4Addr>(state, topology, map::PUBLISH_V4)?;
    views.extend(read::<V6Addr>(state, topology, map::PUBLISH_V6)?);
    views.sort_by(|a, b| order(a).cmp(&order(b)));
    Ok(views)
}

fn order(view: &PublishView) -> (u16, &str, IpAddr, Ports) {
    let network = view.network.as_ref().map_or(0, |n| n.id);
    (network, &view.protocol, view.host, view.host_ports)
}

fn read<A: Address + Ord>(
    state: &State,
    topology: &Topology,
    name: &str,
) -> Result<Vec<PublishView>, StateError>
where
    PortPrefix<A>: netd_common::wire::Wire,
    Backend<A>: netd_common::wire::Wire,
{
    let mut entries = Vec::new();
    let map = state.map(name)?;
    let walked = batch::for_each_prefix(&map, |bits, key: PortPrefix<A>, backend: Backend<A>| {
        entries.push((bits, key, backend));
    });
    state.read(name, walked)?;
    Ok(fold(entries, topology))
}

/// Joins the prefixes that belong to one range, wherever they touch.
fn fold<A: Address + Ord>(
    entries: impl IntoIterator<Item = (u32, PortPrefix<A>, Backend<A>)>,
    topology: &Topology,
) -> Vec<PublishView> {
    // By everything that must be equal, then by the first port.
    let mut prefixes = BTreeMap::new();
    for (bits, key, backend) in entries {
        let port_bits = bits.saturating_sub(port_prefix_base::<A>()).min(16);
        let first = u16::from_be_bytes(key.port);
        let last = first | u16::MAX.checked_shr(port_bits).unwrap_or(0);
        let group = (
            key.proto,
            key.addr,
            backend.addr,
            backend.host_first,
            backend.container_first,
            backend.network,
            backend.flags,
        );
        prefixes
            .entry(group)
            .or_insert_with(|| (backend, BTreeMap::new()))
            .1
            .insert(first, last);
    }
    let mut views = Vec::new();
    for ((proto, host, ..), (backend, ports)) in prefixes {
        let mut ranges: Vec<Ports> = Vec::new();
        for (first, last) in ports {
            match ranges.last_mut() {
                Some(range) if range.last.checked_add(1) == Some(first) => range.last = last,
                _ => ranges.push(Ports { first, last }),
            }
        }
        views.extend(
            ranges
                .into_iter()
                .map(|range| view(topology, proto, host, &backend, range)),
        );
    }
    views
}

fn view<A: Address>(
    topology: &Topology,
    proto: u8,
    host: A,
    backend: &Backend<A>,
    host_ports: Ports,
) -> PublishView {
    let container = ip(backend.addr);
    let to_container = |port: u16| {
        u16::from_be_bytes(backend.container_first)
            .wrapping_add(port.wrapping_sub(u16::from_be_bytes(backend.host_first)))
    };
    let endpoint = topology.endpoint_at(container);
    PublishView {
        network: topology.network_ref(backend.network),
        protocol: protocol_name(proto),
        host: ip(host),
        host_ports,
        container,
        container_ports: Ports {
            first: to_container(host_ports.first),
            last: to_container(host_ports.last),
        },
        backend_present: endpoint.is_some(),
        interface: endpoint.and_then(|e| e.interface.clone()),
        overrides: backend.flags & backend_flag::OVERRIDE != 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::network::tests::topology, *};

    fn backend(host_first: u16, container_first: u16) -> Backend<V4Addr> {
        Backend {
            addr: V4Addr([10, 201, 1, 2]),
            host_first: host_first.to_be_bytes(),
            container_first: container_first.to_be_bytes(),
            network: 1,
            flags: 0,
        }
    }

    /// The range as prefixes, in the order in which they are cut off.
    fn cut(
        first: u16,
        last: u16,
        backend: Backend<V4Addr>,
    ) -> Vec<(u32, PortPrefix<V4Addr>, Backend<V4Addr>)> {
        let mut out = Vec::new();
        let mut at = u32::from(first);
        while at <= u32::from(last) {
            let room = u32::from(last) - at + 1;
            let size: u32 = (1 << at.trailing_zeros().min(16)).min(1 << room.ilog2());
            let key = PortPrefix {
                proto: 6,
                reserved: [0; 3],
                addr: V4Addr::default(),
                port: (at as u16).to_be_bytes(),
                tail: [0; 2],
            };
            out.push((
                port_prefix_base::<V4Addr>() + 16 - size.ilog2(),
                key,
                backend,
            ));
            at += size;
        }
        out
    }

    proptest! {
        #[test]
        fn prefixes_of_one_range_become_one_entry(a: u16, b: u16, seed: u64, shift in 0u16..1000) {
            let (first, last) = (a.min(b), a.max(b));
            let mut prefixes = cut(first, last, backend(first, first.wrapping_add(shift)));
            let turn = seed as usize % prefixes.len();
            prefixes.rotate_left(turn);
            let views = fold(prefixes, &topology());
            prop_assert_eq!(views.len(), 1);
            prop_assert_eq!(views[0].host_ports, Ports { first, last });
            let container = Ports {
                first: first.wrapping_add(shift),
                last: last.wrapping_add(shift),
            };
            prop_assert_eq!(views[0].container_ports, container);
        }
    }

    #[test]
    fn neighbours_that_lead_elsewhere_stay_apart() {
        let mut entries = cut(8000, 8001, backend(8000, 80));
        entries.extend(cut(8002, 8003, backend(8002, 80)));
        let views = fold(entries, &topology());
        let ports: Vec<String> = views
            .iter()
            .map(|v| format!("{} -> {}", v.host_ports, v.container_ports))
            .collect();
        assert_eq!(ports, ["8000-8001 -> 80-81", "8002-8003 -> 80-81"]);
    }

    #[test]
    fn a_missing_prefix_shows_as_a_gap() {
        // 8000-8003 and 8008: what is between is not published, whoever removed it.
        let mut entries = cut(8000, 8003, backend(8000, 80));
        entries.extend(cut(8008, 8008, backend(8000, 80)));
        let views = fold(entries, &topology());
        assert_eq!(views.len(), 2);
        assert_eq!(
            views[1].container_ports,
            Ports {
                first: 88,
                last: 88
            }
        );
    }

    #[test]
    fn a_backend_without_a_container_is_absent() {
        let mut gone = backend(80, 80);
        gone.addr = V4Addr([10, 201, 1, 9]);
        gone.flags = backend_flag::OVERRIDE;
        let views = fold(cut(80, 80, gone), &topology());
        assert!(!views[0].backend_present && views[0].overrides);
        let views = fold(cut(80, 80, backend(80, 80)), &topology());
        assert!(views[0].backend_present && !views[0].overrides);
        assert_eq!(views[0].interface.as_deref(), Some("vethA"));
        assert_eq!(views[0].network.as_ref().unwrap().name, "web");
    }
}
