//! Random tables, and random changes of them.

use std::net::Ipv6Addr;

use netd_common::abi::{
    Endpoint, Network, Uplink, config_flag, endpoint_flag, local_kind, map, network_flag,
    uplink_flag,
};
use netd_common::model::{EndpointSpec, Model, ModelFamily, NetworkSpec, PublishSpec};
use netd_common::wire::{V4, V4Addr, V6, V6Addr, proto};

use super::programs::{EMBRYOS, FLOWS, Rows, raw};
use super::random::Random;
use super::test_host::{BRIDGES, Device, LISTENERS, TestHost, VETHS};
use super::traffic::Shot;

/// A container.
#[derive(Clone, Debug)]
pub struct Container {
    pub device: Device,
    pub mac: [u8; 6],
    pub bridge: Device,
    pub v4: V4Addr,
    pub v6: V6Addr,
}

/// A host with random tables.
pub struct Scenario {
    pub model: Model,
    pub containers: Vec<Container>,
    pub publishes_v4: Vec<PublishSpec<V4Addr>>,
    pub publishes_v6: Vec<PublishSpec<V6Addr>>,
    /// Fragments that are under way.
    pub fragments: Vec<Shot>,
}

/// What differs between the families in a scenario.
pub trait LabFamily: ModelFamily {
    const FLOWS: &'static str;
    const EMBRYOS: &'static str;
    const FRAGMENTS: &'static str;
    /// Addresses of the host; the first two of its uplinks.
    fn host() -> Vec<Self::Addr>;
    /// Where containers may send, and from where clients come.
    fn world() -> Vec<Self::Addr>;
    /// Addresses that need care.
    fn odd() -> Vec<Self::Addr>;
    /// Addresses that only count on one link.
    fn link_local() -> Vec<Self::Addr>;
    fn container(container: &Container) -> Self::Addr;
    fn publishes(scenario: &mut Scenario) -> &mut Vec<PublishSpec<Self::Addr>>;
}

pub fn v6(text: &str) -> V6Addr {
    text.parse::<Ipv6Addr>().expect("an address").into()
}

impl LabFamily for V4 {
    const FLOWS: &'static str = map::FLOWS_V4;
    const EMBRYOS: &'static str = map::EMBRYOS_V4;
    const FRAGMENTS: &'static str = map::FRAGMENTS_V4;
    fn host() -> Vec<V4Addr> {
        [[198, 18, 0, 1], [198, 18, 1, 1], [198, 18, 50, 7]]
            .map(V4Addr)
            .to_vec()
    }
    fn world() -> Vec<V4Addr> {
        [
            [198, 18, 0, 2],
            [198, 18, 0, 3],
            [198, 18, 1, 2],
            [100, 64, 0, 9],
            [100, 127, 0, 9],
            [100, 65, 0, 1],
            [100, 66, 0, 1],
            [100, 67, 0, 1],
            [100, 68, 0, 1],
            [100, 69, 0, 1],
        ]
        .map(V4Addr)
        .to_vec()
    }
    fn odd() -> Vec<V4Addr> {
        [
            [0, 0, 0, 0],
            [127, 0, 0, 1],
            [224, 0, 0, 251],
            [255, 255, 255, 255],
            [198, 18, 0, 255],
            [10, 200, 0, 255],
            [10, 200, 0, 99],
            [10, 201, 0, 99],
            [169, 254, 169, 254],
            [240, 0, 0, 1],
        ]
        .map(V4Addr)
        .to_vec()
    }
    fn link_local() -> Vec<V4Addr> {
        vec![V4Addr([169, 254, 0, 7])]
    }
    fn container(container: &Container) -> V4Addr {
        container.v4
    }
    fn publishes(scenario: &mut Scenario) -> &mut Vec<PublishSpec<V4Addr>> {
        &mut scenario.publishes_v4
    }
}

impl LabFamily for V6 {
    const FLOWS: &'static str = map::FLOWS_V6;
    const EMBRYOS: &'static str = map::EMBRYOS_V6;
    const FRAGMENTS: &'static str = map::FRAGMENTS_V6;
    fn host() -> Vec<V6Addr> {
        ["fd99::1", "fd99:1::1", "fd50::7"].map(v6).to_vec()
    }
    fn world() -> Vec<V6Addr> {
        [
            "fd99::2",
            "fd99::3",
            "fd99:1::2",
            "fd64:0::9",
            "fd77::9",
            "fd65:0::1",
            "fd66:0::1",
            "fd67:0::1",
            "fd68:0::1",
            "fd69:0::1",
        ]
        .map(v6)
        .to_vec()
    }
    fn odd() -> Vec<V6Addr> {
        [
            "::",
            "::1",
            "ff02::fb",
            "fe80::1",
            "fe80::99",
            "fd00:200::99",
            "fd00:201::99",
            "::ffff:1.2.3.4",
            "64:ff9b::1",
        ]
        .map(v6)
        .to_vec()
    }
    fn link_local() -> Vec<V6Addr> {
        vec![v6("fe80::42")]
    }
    fn container(container: &Container) -> V6Addr {
        container.v6
    }
    fn publishes(scenario: &mut Scenario) -> &mut Vec<PublishSpec<V6Addr>> {
        &mut scenario.publishes_v6
    }
}

impl Scenario {
    /// New tables.
    pub fn random(random: &mut Random, host: &TestHost) -> Self {
        let mut model = Model::default();
        model.v4.route = Box::new(host.route_v4());
        model.v6.route = Box::new(host.route_v6());
        configure(random, &mut model);
        host_addresses(random, &mut model, host);
        let mut containers = Vec::new();
        let networks = random.between(2, BRIDGES as u64) as usize;
        for number in 0..networks {
            // The bridge that does not forward, now and then.
            let number = if random.chance(12) {
                BRIDGES - 1
            } else {
                number.min(BRIDGES - 2)
            };
            let bridge = host.bridges[number];
            if model.networks.iter().any(|n| n.bridge == bridge.ifindex) {
                continue;
            }
            let id = model.add_network(&network(random, number as u8, bridge));
            if random.chance(15) {
                model.networks[usize::from(id)].nat_v4 = [198, 18, 0, 77];
                model.networks[usize::from(id)].nat_v6 = v6("fd99::77").0;
            }
            if random.chance(30) {
                model.trusted.insert((id, host.up0.ifindex));
            }
            for member in 0..random.between(2, 3) as u8 {
                let Some(device) = host.veths.get(containers.len()).copied() else {
                    break;
                };
                let container = Container {
                    device,
                    mac: [2, 0x42, 0xac, 0, number as u8, member + 2],
                    bridge,
                    v4: V4Addr([10, 200 + number as u8, 0, member + 2]),
                    v6: v6(&format!("fd00:{}::{}", 200 + number, member + 2)),
                };
                add(random, &mut model, &container, id);
                containers.push(container);
            }
        }
        debug_assert!(containers.len() <= VETHS);
        let mut scenario = Self {
            model,
            containers,
            publishes_v4: Vec::new(),
            publishes_v6: Vec::new(),
            fragments: Vec::new(),
        };
        for _ in 0..random.between(4, 12) {
            scenario.publish::<V4>(random);
            scenario.publish::<V6>(random);
        }
        if random.chance(20) {
            scenario.change_ipsec(random);
        }
        scenario
    }

    /// These tables, and nobody to change them.
    pub fn of(model: Model) -> Self {
        Self {
            model,
            containers: Vec::new(),
            publishes_v4: Vec::new(),
            publishes_v6: Vec::new(),
            fragments: Vec::new(),
        }
    }

    fn publish<F: LabFamily>(&mut self, random: &mut Random) {
        let container = random.pick(&self.containers).clone();
        let proto = *random.pick(&[proto::TCP, proto::TCP, proto::UDP, proto::SCTP]);
        let first = random.between(8080, 8090) as u16;
        let last = if random.chance(15) { first + 40 } else { first };
        let host = match random.below(10) {
            0..6 => F::Addr::default(),
            6 => F::odd()[1],
            _ => *random.pick(&F::host()),
        };
        // Now and then nobody has the address.
        let to = if random.chance(8) {
            F::odd()[6]
        } else {
            F::container(&container)
        };
        let spec = PublishSpec {
            proto,
            host,
            host_ports: (first, last),
            container: to,
            // SCTP's port is changed, or not.
            container_port: if proto == proto::SCTP && random.chance(40) {
                first
            } else {
                80
            },
            network: self.network_of(&container),
            overrides: random.chance(30),
        };
        self.model.publish::<F>(&spec);
        F::publishes(self).push(spec);
    }

    fn network_of(&self, container: &Container) -> u16 {
        let is_its = |n: &Network| n.bridge == container.bridge.ifindex;
        self.model.networks.iter().position(is_its).unwrap_or(0) as u16
    }

    fn unpublish<F: LabFamily>(&mut self, random: &mut Random) {
        let count = F::publishes(self).len() as u64;
        if count > 3 {
            let spec = F::publishes(self).swap_remove(random.below(count) as usize);
            self.model.unpublish::<F>(&spec);
        }
    }

    /// Changes something, as the daemon would, with a new epoch.
    pub fn change(&mut self, random: &mut Random, host: &TestHost) {
        self.model.config.epoch += 1;
        let container = random.pick(&self.containers).clone();
        match random.below(10) {
            0 => self.unpublish::<V4>(random),
            1 => self.unpublish::<V6>(random),
            2 => self.publish::<V4>(random),
            3 => self.publish::<V6>(random),
            4 => self.model.remove_endpoint(container.device.ifindex),
            5 => {
                let known = self.model.endpoints.contains_key(&container.device.ifindex);
                if !known {
                    let id = self.network_of(&container);
                    add(random, &mut self.model, &container, id);
                }
            }
            6 => {
                let id = random.below(self.model.networks.len() as u64) as usize;
                if id != 0 {
                    self.model.networks[id].flags ^= network_flag::ICC;
                }
            }
            8 if random.chance(30) => self.change_ipsec(random),
            7 => {
                let uplink = self.model.uplinks.get_mut(&host.up0.ifindex);
                if let Some(uplink) = uplink {
                    uplink.flags ^=
                        *random.pick(&[uplink_flag::CONTAINERS_PUBLISHED, uplink_flag::SYMMETRIC]);
                }
            }
            _ => {}
        }
    }

    /// The tables but for flows, as map contents.
    pub fn rows(&self) -> Vec<(&'static str, Rows)> {
        let m = &self.model;
        let mut tables = vec![
            (map::CONFIG, one(&0u32, &m.config)),
            (map::ENDPOINTS, rows(m.endpoints.iter())),
            (map::NETWORKS, array(&m.networks)),
            (
                map::TRUSTED,
                m.trusted
                    .iter()
                    .map(|(id, ifindex)| {
                        ([raw(&u32::from(*id)), raw(ifindex)].concat(), raw(&1u32))
                    })
                    .collect(),
            ),
            (map::UPLINKS, rows(m.uplinks.iter())),
            (
                map::PORTS,
                (0u32..)
                    .zip(&m.ports)
                    .filter(|(_, word)| **word != 0)
                    .map(|(i, word)| (raw(&i), raw(word)))
                    .collect(),
            ),
        ];
        tables.extend([
            (map::ADDRS_V4, rows(m.v4.addresses.iter())),
            (map::SUBNETS_V4, prefixes(m.v4.subnets.iter())),
            (map::LOCAL_V4, prefixes(m.v4.local.iter())),
            (map::PUBLISH_V4, prefixes(m.v4.publish.iter())),
            (map::EXPOSED_V4, prefixes(m.v4.exposed.iter())),
            (map::ADDRS_V6, rows(m.v6.addresses.iter())),
            (map::SUBNETS_V6, prefixes(m.v6.subnets.iter())),
            (map::LOCAL_V6, prefixes(m.v6.local.iter())),
            (map::PUBLISH_V6, prefixes(m.v6.publish.iter())),
            (map::EXPOSED_V6, prefixes(m.v6.exposed.iter())),
            (map::IPSEC_V4, array(&m.v4.ipsec)),
            (map::IPSEC_V6, array(&m.v6.ipsec)),
        ]);
        tables
    }
}

fn one<K: Copy, V: Copy>(key: &K, value: &V) -> Rows {
    Rows::from([(raw(key), raw(value))])
}

fn rows<'a, K: Copy + 'a, V: Copy + 'a>(rows: impl Iterator<Item = (&'a K, &'a V)>) -> Rows {
    rows.map(|(key, value)| (raw(key), raw(value))).collect()
}

fn array<V: Copy>(values: &[V]) -> Rows {
    (0u32..)
        .zip(values)
        .map(|(index, value)| (raw(&index), raw(value)))
        .collect()
}

fn prefixes<'a, K: Copy + 'a, V: Copy + 'a>(rows: impl Iterator<Item = &'a (u32, K, V)>) -> Rows {
    rows.map(|(bits, key, value)| ([raw(bits), raw(key)].concat(), raw(value)))
        .collect()
}

fn configure(random: &mut Random, model: &mut Model) {
    // Small tables are full soon.
    let seats = *random.pick(&[2, 2, 8, 24, 64]);
    for confirmed in [false, true] {
        model.set_seats::<V4>(confirmed, seats);
        model.set_seats::<V6>(confirmed, seats);
    }
    model.v4.flows.set_capacity(FLOWS as usize);
    model.v6.flows.set_capacity(FLOWS as usize);
    model.v4.embryos.set_capacity(EMBRYOS as usize);
    model.v6.embryos.set_capacity(EMBRYOS as usize);
    let config = &mut model.config;
    config.seed = random.next() as u32;
    config.flags |= if random.chance(25) {
        config_flag::ACCELERATE
    } else {
        0
    };
    config.flags |= if random.chance(20) {
        config_flag::ALLOW_DIRECT_ROUTING
    } else {
        0
    };
    // Now and then so few that they run out.
    (config.nat_first, config.nat_last) = match random.below(8) {
        0..3 => (61001, 61001),
        3 => (61002, 61004),
        _ => (61000, 65535),
    };
}

fn host_addresses(random: &mut Random, model: &mut Model, host: &TestHost) {
    let mut uplink = |device: &Device, mtu, flags, addresses: Option<(V4Addr, V6Addr)>| {
        let (v4, v6) = addresses.unwrap_or_default();
        let uplink = Uplink {
            mtu,
            flags,
            mac: device.mac,
            addr_v4: v4.0,
            addr_v6: v6.0,
        };
        model.add_uplink(device.ifindex, uplink);
    };
    let open = match random.below(6) {
        0 => uplink_flag::CONTAINERS_PUBLISHED,
        1 => uplink_flag::CONTAINERS_ALL,
        _ => 0,
    };
    let (h4, h6) = (V4::host(), V6::host());
    let symmetric = |random: &mut Random| {
        if random.chance(40) {
            uplink_flag::SYMMETRIC
        } else {
            0
        }
    };
    let (first, second) = (symmetric(random), symmetric(random));
    uplink(&host.up0, 1500, open | first, Some((h4[0], h6[0])));
    let strict = uplink_flag::STRICT_RP_FILTER;
    uplink(&host.up1, 1400, strict | second, Some((h4[1], h6[1])));
    uplink(&host.tunnel, 1500, uplink_flag::L3, None);
    let local = |model: &mut Model, addr, bits, kind| model.add_local::<V4>(addr, bits, kind);
    local(model, V4Addr([127, 0, 0, 0]), 8, local_kind::UNICAST);
    local(model, V4Addr([198, 18, 50, 0]), 24, local_kind::UNICAST);
    for network in [0, 1] {
        let broadcast = V4Addr([198, 18, network, 255]);
        local(model, broadcast, 32, local_kind::BROADCAST);
    }
    model.add_local::<V6>(v6("::1"), 128, local_kind::UNICAST);
    model.add_local::<V6>(v6("fd50::"), 64, local_kind::UNICAST);
    for (protocol, address, port) in LISTENERS {
        let v4 = address.map_or(V4Addr::default(), V4Addr::from);
        model.v4.listeners.insert((protocol, v4, port));
        if address.is_none() {
            model
                .v6
                .listeners
                .insert((protocol, V6Addr::default(), port));
        }
    }
}

fn network(random: &mut Random, number: u8, bridge: Device) -> NetworkSpec {
    let mut flags = 0;
    for (flag, percent) in [
        (network_flag::ICC, 65),
        (network_flag::INTERNAL, 15),
        (network_flag::MASQUERADE_V4, 80),
        (network_flag::MASQUERADE_V6, 80),
    ] {
        if random.chance(percent) {
            flags |= flag;
        }
    }
    flags |= match random.below(10) {
        0..3 => network_flag::SPOOF_STRICT,
        3 => network_flag::SPOOF_OFF,
        _ => 0,
    };
    // Without a gateway a container cannot reach itself through the host.
    let gateway = !random.chance(40);
    let last = u8::from(gateway);
    let prefix_v6 = v6(&format!("fd00:{}::", 200 + u16::from(number))).0;
    let mut gateway_v6 = prefix_v6;
    gateway_v6[15] = last;
    NetworkSpec {
        bridge: bridge.ifindex,
        mac: bridge.mac,
        flags,
        mode: *random.pick(&[0, 0, 0, 1, 2, 2, 3]),
        v4: Some((
            if gateway {
                [10, 200 + number, 0, 1]
            } else {
                [0; 4]
            },
            [10, 200 + number, 0, 0],
            24,
        )),
        v6: Some((if gateway { gateway_v6 } else { [0; 16] }, prefix_v6, 64)),
    }
}

fn add(random: &mut Random, model: &mut Model, container: &Container, network: u16) {
    model.add_endpoint(&EndpointSpec {
        ifindex: container.device.ifindex,
        network,
        mac: container.mac,
        v4: Some(container.v4.0),
        v6: Some(container.v6.0),
    });
    let endpoint = Endpoint {
        mtu: *random.pick(&[1500, 1500, 1400, 600]),
        flags: if random.chance(90) {
            endpoint_flag::PEER
        } else {
            0
        },
        ..model.endpoints[&container.device.ifindex]
    };
    model.endpoints.insert(container.device.ifindex, endpoint);
}
