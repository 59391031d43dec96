//! Networks and the containers on them.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use netd_common::abi::{
    Endpoint, EndpointAddress, Network, Subnet, V4Addr, V6Addr, endpoint_flag, gateway_mode, map,
    network_flag,
};
use netd_common::wire::Address;
use serde::Serialize;

use super::{State, StateError, batch, ip};

/// A managed network as the maps have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetworkView {
    /// Its number, which flows and counters refer to.
    pub id: u16,
    /// Its name in the configuration, or that of its bridge where the name is not known.
    pub name: String,
    /// Its bridge; `None` where the interface is gone.
    pub bridge: Option<String>,
    /// ifindex of the bridge.
    pub bridge_ifindex: u32,
    /// Managed prefixes, `10.201.1.0/24`.
    pub subnets: Vec<String>,
    /// Gateway mode of IPv4.
    pub mode_v4: &'static str,
    /// Gateway mode of IPv6.
    pub mode_v6: &'static str,
    /// May its containers talk to each other?
    pub icc: bool,
    /// Does nothing enter or leave it?
    pub internal: bool,
    /// Which sources its containers may use: `nat`, `strict` or `off`.
    pub spoof: &'static str,
    /// Is the source of what leaves translated? IPv4.
    pub masquerade_v4: bool,
    /// The same for IPv6.
    pub masquerade_v6: bool,
    /// The bridge's own addresses.
    pub gateways: Vec<IpAddr>,
    /// Fixed masquerade addresses; empty: that of the interface a packet leaves by.
    pub masquerade_to: Vec<IpAddr>,
}

/// A container's interface on a bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointView {
    /// Host end of its veth; `None` where the interface is gone.
    pub interface: Option<String>,
    /// ifindex of that.
    pub ifindex: u32,
    /// Addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// MAC inside the container, `02:42:0a:c9:01:02`.
    pub mac: String,
    /// MTU of its interface.
    pub mtu: u16,
    /// Network id.
    pub network: u16,
    /// Is it reached by a redirect into its namespace (a veth, not a tap)?
    pub peer: bool,
}

impl EndpointView {
    /// How people tell it from others: its first address, or its interface.
    pub fn label(&self) -> String {
        match (self.addresses.first(), &self.interface) {
            (Some(address), _) => address.to_string(),
            (None, Some(interface)) => interface.clone(),
            (None, None) => format!("if{}", self.ifindex),
        }
    }
}

/// A network where something else refers to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetworkRef {
    /// Its number.
    pub id: u16,
    /// Its name; the number where the network is gone.
    pub name: String,
}

impl fmt::Display for NetworkRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A container where something else refers to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ContainerRef {
    /// Host end of its veth; `None` where it is not there (any more).
    pub interface: Option<String>,
    /// Its addresses, or the one that is referred to.
    pub addresses: Vec<IpAddr>,
}

impl fmt::Display for ContainerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.addresses.first(), &self.interface) {
            (Some(address), _) => write!(f, "{address}"),
            (None, Some(interface)) => f.write_str(interface),
            (None, None) => f.write_str("-"),
        }
    }
}

/// All networks and containers.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    /// Networks by id.
    pub networks: BTreeMap<u16, NetworkView>,
    /// Containers by the ifindex of their host veth.
    pub endpoints: BTreeMap<u32, EndpointView>,
    by_address: BTreeMap<IpAddr, (u32, u16)>,
}

impl Topology {
    pub(super) fn read(state: &State) -> Result<Self, StateError> {
        let mut topology = Self::default();
        state.for_each(map::NETWORKS, |id: u32, network: Network| {
            if network.flags & network_flag::ACTIVE != 0 {
                let view = network_view(state, id as u16, &network);
                topology.networks.insert(id as u16, view);
            }
        })?;
        topology.read_subnets::<V4Addr>(state, map::SUBNETS_V4)?;
        topology.read_subnets::<V6Addr>(state, map::SUBNETS_V6)?;
        state.for_each(map::ENDPOINTS, |ifindex: u32, endpoint: Endpoint| {
            let view = endpoint_view(state, ifindex, &endpoint);
            topology.endpoints.insert(ifindex, view);
        })?;
        topology.read_addresses::<V4Addr>(state, map::ADDRS_V4)?;
        topology.read_addresses::<V6Addr>(state, map::ADDRS_V6)?;
        topology.assign_addresses();
        Ok(topology)
    }

    fn read_subnets<A: Address>(&mut self, state: &State, name: &str) -> Result<(), StateError> {
        let map = state.map(name)?;
        let walked = batch::for_each_prefix(&map, |bits, prefix: A, subnet: Subnet| {
            if let Some(network) = self.networks.get_mut(&subnet.network) {
                network.subnets.push(format!("{}/{bits}", ip(prefix)));
            }
        });
        state.read(name, walked)
    }

    fn read_addresses<A: Address>(&mut self, state: &State, name: &str) -> Result<(), StateError> {
        state.for_each(name, |address: A, owner: EndpointAddress| {
            self.by_address
                .insert(ip(address), (owner.ifindex, owner.network));
        })
    }

    fn assign_addresses(&mut self) {
        // IpAddr orders IPv4 before IPv6.
        for (address, (ifindex, _)) in &self.by_address {
            if let Some(endpoint) = self.endpoints.get_mut(ifindex) {
                endpoint.addresses.push(*address);
            }
        }
    }

    /// The container with this address.
    pub fn endpoint_at(&self, address: IpAddr) -> Option<&EndpointView> {
        let (ifindex, _) = self.by_address.get(&address)?;
        self.endpoints.get(ifindex)
    }

    /// The container behind this host interface.
    pub fn endpoint_named(&self, interface: &str) -> Option<&EndpointView> {
        self.endpoints
            .values()
            .find(|e| e.interface.as_deref() == Some(interface))
    }

    /// A reference to the network with this id, gone or not; `None` for 0.
    pub fn network_ref(&self, id: u16) -> Option<NetworkRef> {
        (id != 0).then(|| NetworkRef {
            id,
            name: self
                .networks
                .get(&id)
                .map_or_else(|| id.to_string(), |n| n.name.clone()),
        })
    }

    /// The network with this name, bridge or number.
    pub fn network_called(&self, name: &str) -> Option<&NetworkView> {
        let by_name = |n: &&NetworkView| n.name == name || n.bridge.as_deref() == Some(name);
        self.networks
            .values()
            .find(by_name)
            .or_else(|| self.networks.get(&name.parse().ok()?))
    }
}

impl From<&EndpointView> for ContainerRef {
    fn from(endpoint: &EndpointView) -> Self {
        Self {
            interface: endpoint.interface.clone(),
            addresses: endpoint.addresses.clone(),
        }
    }
}

fn network_view(state: &State, id: u16, network: &Network) -> NetworkView {
    let has = |flag| network.flags & flag != 0;
    let bridge = state.interface(network.bridge).map(str::to_owned);
    NetworkView {
        id,
        name: state
            .network_names
            .get(&id)
            .or(bridge.as_ref())
            .cloned()
            .unwrap_or_else(|| id.to_string()),
        bridge,
        bridge_ifindex: network.bridge,
        subnets: Vec::new(),
        mode_v4: mode_name(network.mode_v4),
        mode_v6: mode_name(network.mode_v6),
        icc: has(network_flag::ICC),
        internal: has(network_flag::INTERNAL),
        spoof: match (
            has(network_flag::SPOOF_STRICT),
            has(network_flag::SPOOF_OFF),
        ) {
            (true, _) => "strict",
            (false, true) => "off",
            (false, false) => "nat",
        },
        masquerade_v4: has(network_flag::MASQUERADE_V4),
        masquerade_v6: has(network_flag::MASQUERADE_V6),
        gateways: specified(network.gateway_v4, network.gateway_v6),
        masquerade_to: specified(network.nat_v4, network.nat_v6),
    }
}

fn specified(v4: [u8; 4], v6: [u8; 16]) -> Vec<IpAddr> {
    [ip(V4Addr(v4)), ip(V6Addr(v6))]
        .into_iter()
        .filter(|a| !a.is_unspecified())
        .collect()
}

fn mode_name(mode: u8) -> &'static str {
    match mode {
        gateway_mode::NAT => "nat",
        gateway_mode::NAT_UNPROTECTED => "nat-unprotected",
        gateway_mode::ROUTED => "routed",
        gateway_mode::ISOLATED => "isolated",
        _ => "unknown",
    }
}

fn endpoint_view(state: &State, ifindex: u32, endpoint: &Endpoint) -> EndpointView {
    EndpointView {
        interface: state.interface(ifindex).map(str::to_owned),
        ifindex,
        addresses: Vec::new(),
        mac: mac(&endpoint.mac),
        mtu: endpoint.mtu,
        network: endpoint.network,
        peer: endpoint.flags & endpoint_flag::PEER != 0,
    }
}

fn mac(bytes: &[u8; 6]) -> String {
    bytes.map(|b| format!("{b:02x}")).join(":")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Network 1 on br-web with 10.201.1.2 and fd00:201:1::2 behind vethA, network 2 on br-db with
    /// 10.201.2.2 behind vethB.
    pub fn topology() -> Topology {
        let mut topology = Topology::default();
        for (id, bridge) in [(1, "br-web"), (2, "br-db")] {
            topology.networks.insert(
                id,
                NetworkView {
                    id,
                    name: bridge.trim_start_matches("br-").into(),
                    bridge: Some(bridge.into()),
                    bridge_ifindex: 100 + u32::from(id),
                    subnets: vec![format!("10.201.{id}.0/24")],
                    mode_v4: "nat",
                    mode_v6: "nat",
                    icc: true,
                    internal: false,
                    spoof: "nat",
                    masquerade_v4: true,
                    masquerade_v6: true,
                    gateways: vec![format!("10.201.{id}.1").parse().unwrap()],
                    masquerade_to: vec![],
                },
            );
        }
        for (ifindex, name, network) in [(11, "vethA", 1), (12, "vethB", 2)] {
            topology.endpoints.insert(
                ifindex,
                EndpointView {
                    interface: Some(name.into()),
                    ifindex,
                    addresses: vec![],
                    mac: mac(&[2, 0, 0, 0, 0, ifindex as u8]),
                    mtu: 1500,
                    network,
                    peer: true,
                },
            );
        }
        for (address, ifindex, network) in [
            ("10.201.1.2", 11, 1),
            ("fd00:201:1::2", 11, 1),
            ("10.201.2.2", 12, 2),
        ] {
            topology
                .by_address
                .insert(address.parse().unwrap(), (ifindex, network));
        }
        topology.assign_addresses();
        topology
    }

    #[test]
    fn containers_are_found_by_address_and_interface() {
        let t = topology();
        let a = t.endpoint_at("fd00:201:1::2".parse().unwrap()).unwrap();
        assert_eq!(a.label(), "10.201.1.2");
        assert_eq!(a.addresses.len(), 2);
        assert_eq!(t.endpoint_named("vethB").unwrap().ifindex, 12);
        assert!(t.endpoint_at("10.201.1.3".parse().unwrap()).is_none());
    }

    #[test]
    fn networks_are_found_by_name_bridge_and_number() {
        let t = topology();
        for name in ["web", "br-web", "1"] {
            assert_eq!(t.network_called(name).unwrap().id, 1, "{name}");
        }
        assert!(t.network_called("3").is_none());
        assert_eq!(t.network_ref(0), None);
        assert_eq!(t.network_ref(9).unwrap().name, "9");
    }

    #[test]
    fn a_mac_has_two_digits_each() {
        assert_eq!(mac(&[2, 0x42, 10, 0xc9, 1, 2]), "02:42:0a:c9:01:02");
    }
}
