//! Filling a [`Model`] the way the daemon fills the maps.

use super::{Model, ModelFamily};
use crate::{
    abi::{
        Backend, Endpoint, EndpointAddress, LocalAddress, Network, PortPrefix, Subnet, Uplink,
        V4Addr, V6Addr, backend_flag, endpoint_flag, local_kind, network_flag, port_prefix_base,
        port_word,
    },
    wire::{Address, Family, V4, V6},
};

/// A managed network. Flags and modes as in [`Network`].
#[derive(Clone, Debug, Default)]
pub struct NetworkSpec {
    /// ifindex of the bridge.
    pub bridge: u32,
    /// Its MAC.
    pub mac: [u8; 6],
    /// [`network_flag`] bits; `ACTIVE` is added.
    pub flags: u16,
    /// Gateway mode of both families.
    pub mode: u8,
    /// IPv4: the gateway (0.0.0.0: none) and the prefix it lies in.
    pub v4: Option<([u8; 4], [u8; 4], u32)>,
    /// IPv6: the same.
    pub v6: Option<([u8; 16], [u8; 16], u32)>,
}

/// A container's interface.
#[derive(Clone, Debug, Default)]
pub struct EndpointSpec {
    /// ifindex of the host veth.
    pub ifindex: u32,
    /// Network id.
    pub network: u16,
    /// MAC of the container.
    pub mac: [u8; 6],
    /// IPv4 address.
    pub v4: Option<[u8; 4]>,
    /// IPv6 address.
    pub v6: Option<[u8; 16]>,
}

/// A published range of ports.
#[derive(Clone, Copy, Debug)]
pub struct PublishSpec<A> {
    /// IP protocol.
    pub proto: u8,
    /// Host address; unspecified: any.
    pub host: A,
    /// First and last host port.
    pub host_ports: (u16, u16),
    /// Container address.
    pub container: A,
    /// Container port that the first host port leads to.
    pub container_port: u16,
    /// Network id.
    pub network: u16,
    /// A host listener does not win.
    pub overrides: bool,
}

impl Model {
    /// Adds a network with its subnets, its gateways and their broadcast addresses; returns its id.
    pub fn add_network(&mut self, spec: &NetworkSpec) -> u16 {
        let id = self.networks.len() as u16;
        let mut network = Network {
            bridge: spec.bridge,
            bridge_mac: spec.mac,
            flags: spec.flags | network_flag::ACTIVE,
            mode_v4: spec.mode,
            mode_v6: spec.mode,
            ..Network::default()
        };
        let subnet = Subnet {
            network: id,
            reserved: 0,
        };
        if let Some((gateway, prefix, bits)) = spec.v4 {
            network.gateway_v4 = gateway;
            self.v4.subnets.insert(bits, V4Addr(prefix), subnet);
            if gateway != [0; 4] {
                self.add_local::<V4>(V4Addr(gateway), 32, local_kind::UNICAST);
                let last = u32::from_be_bytes(prefix) | u32::MAX.checked_shr(bits).unwrap_or(0);
                self.add_local::<V4>(V4Addr(last.to_be_bytes()), 32, local_kind::BROADCAST);
            }
        }
        if let Some((gateway, prefix, bits)) = spec.v6 {
            network.gateway_v6 = gateway;
            self.v6.subnets.insert(bits, V6Addr(prefix), subnet);
            if gateway != [0; 16] {
                self.add_local::<V6>(V6Addr(gateway), 128, local_kind::UNICAST);
            }
        }
        self.networks.push(network);
        id
    }

    /// Adds a container's interface with a peer in another namespace and an MTU of 1500.
    pub fn add_endpoint(&mut self, spec: &EndpointSpec) {
        let endpoint = Endpoint {
            mac: spec.mac,
            network: spec.network,
            mtu: 1500,
            flags: endpoint_flag::PEER,
        };
        self.endpoints.insert(spec.ifindex, endpoint);
        let owner = EndpointAddress {
            ifindex: spec.ifindex,
            network: spec.network,
            reserved: 0,
        };
        if let Some(addr) = spec.v4 {
            self.v4.addresses.insert(V4Addr(addr), owner);
        }
        if let Some(addr) = spec.v6 {
            self.v6.addresses.insert(V6Addr(addr), owner);
        }
    }

    /// Removes a container's interface and its addresses.
    pub fn remove_endpoint(&mut self, ifindex: u32) {
        self.endpoints.remove(&ifindex);
        self.v4
            .addresses
            .retain(|_, owner| owner.ifindex != ifindex);
        self.v6
            .addresses
            .retain(|_, owner| owner.ifindex != ifindex);
    }

    /// Adds an uplink. Its addresses become local too.
    pub fn add_uplink(&mut self, ifindex: u32, uplink: Uplink) {
        self.uplinks.insert(ifindex, uplink);
        if uplink.addr_v4 != [0; 4] {
            self.add_local::<V4>(V4Addr(uplink.addr_v4), 32, local_kind::UNICAST);
        }
        if uplink.addr_v6 != [0; 16] {
            self.add_local::<V6>(V6Addr(uplink.addr_v6), 128, local_kind::UNICAST);
        }
    }

    /// Adds a prefix of the host's `local` table.
    pub fn add_local<F: ModelFamily>(&mut self, prefix: F::Addr, bits: u32, kind: u16) {
        let value = LocalAddress { kind, reserved: 0 };
        F::tables_mut(self).local.insert(bits, prefix, value);
    }

    /// Publishes ports, and opens the container's ports to direct routing where that is allowed.
    pub fn publish<F: ModelFamily>(&mut self, spec: &PublishSpec<F::Addr>) {
        let (first, last) = spec.host_ports;
        for port in first..=last {
            if let Some(word) = port_word(spec.proto, port) {
                self.ports[word as usize] |= 1 << (port % 64);
            }
        }
        let backend = Backend {
            addr: spec.container,
            host_first: first.to_be_bytes(),
            container_first: spec.container_port.to_be_bytes(),
            network: spec.network,
            flags: if spec.overrides {
                backend_flag::OVERRIDE
            } else {
                0
            },
        };
        let tables = F::tables_mut(self);
        for (port, bits) in port_prefixes(first, last) {
            let key = prefix::<F>(spec.proto, spec.host, port);
            let bits = port_prefix_base::<F::Addr>() + bits;
            tables.publish.insert(bits, key, backend);
        }
        let exposed_last = spec.container_port + (last - first);
        for (port, bits) in port_prefixes(spec.container_port, exposed_last) {
            let key = prefix::<F>(spec.proto, spec.container, port);
            let bits = port_prefix_base::<F::Addr>() + bits;
            tables.exposed.insert(bits, key, 1);
        }
    }

    /// Takes a publish back. What another one uses as well must be published again.
    pub fn unpublish<F: ModelFamily>(&mut self, spec: &PublishSpec<F::Addr>) {
        let (first, last) = spec.host_ports;
        for port in first..=last {
            if let Some(word) = port_word(spec.proto, port) {
                self.ports[word as usize] &= !(1 << (port % 64));
            }
        }
        let tables = F::tables_mut(self);
        for (port, bits) in port_prefixes(first, last) {
            let key = prefix::<F>(spec.proto, spec.host, port);
            let bits = port_prefix_base::<F::Addr>() + bits;
            tables.publish.remove(bits, &key);
        }
        let exposed_last = spec.container_port + (last - first);
        for (port, bits) in port_prefixes(spec.container_port, exposed_last) {
            let key = prefix::<F>(spec.proto, spec.container, port);
            let bits = port_prefix_base::<F::Addr>() + bits;
            tables.exposed.remove(bits, &key);
        }
    }
}

fn prefix<F: Family>(proto: u8, addr: F::Addr, port: u16) -> PortPrefix<F::Addr>
where
    F::Addr: Address,
{
    PortPrefix {
        proto,
        reserved: [0; 3],
        addr,
        port: port.to_be_bytes(),
        tail: [0; 2],
    }
}

/// The fewest prefixes that make up a range of ports: first port and number of leading bits.
#[must_use]
pub fn port_prefixes(first: u16, last: u16) -> Vec<(u16, u32)> {
    let mut prefixes = Vec::new();
    let (mut next, end) = (u32::from(first), u32::from(last) + 1);
    while next < end {
        let mut size = 1;
        while next % (size * 2) == 0 && next + size * 2 <= end && size < 0x1_0000 {
            size *= 2;
        }
        prefixes.push((next as u16, 16 - size.trailing_zeros()));
        next += size;
    }
    prefixes
}
