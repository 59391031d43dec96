//! What ought to be in force: a pure function of the file and of what the host is like.

mod ids;
mod ipsec;
mod nat_ports;
mod ports;
mod suppressed;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netd_common::abi::{
    self, Backend, Endpoint, EndpointAddress, LocalAddress, Network as NetworkRow,
    NetworkInterface, PortPrefix, Subnet, Uplink, V4Addr, V6Addr, backend_flag, config_flag,
    endpoint_flag, gateway_mode, local_kind, network_flag, port_prefix_base, port_word,
    uplink_flag,
};

use crate::config::{
    Config, ContainersAccess, Family, GatewayMode, HostAddresses, Mode, Network, PortRange,
    Protocol, Publish, ReturnPath, Spoof,
};
use crate::dataplane::{Attachment, Hook, Prefix, ROOT_CGROUP, Row, Tables};
use crate::host::{
    AddressScope, Container, HostFacts, Link, LinkKind, ListenerProtocol, LocalKind, PortSpan,
    RpFilter,
};

pub use ids::{Ids, MAX_NETWORKS, TooManyNetworks};
pub use nat_ports::{NatSpan, nat_span, reserved_list, reserved_text};
pub use ports::port_prefixes;
use ports::uniform;

/// `net.ipv4.ip_local_reserved_ports`, as a path below /proc/sys.
pub const RESERVED_PORTS: &str = "net/ipv4/ip_local_reserved_ports";

/// What ought to be in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Flags and source ports; epoch, seed and times are zero here and stay as they are.
    pub config: abi::Config,
    /// Every row.
    pub tables: Tables,
    /// Every program, with the name of its interface.
    pub attachments: BTreeMap<Attachment, String>,
    /// Kernel settings, by their path below /proc/sys.
    pub sysctls: BTreeMap<String, String>,
    /// Ports that `sysctls` adds to those that the kernel never gives to sockets.
    pub reserved: Option<PortSpan>,
    /// What the user should know, one sentence each.
    pub warnings: Vec<String>,
}

/// True for the bridges of the file's networks: what [`crate::host::HostReader::read`] is to look
/// behind.
pub fn is_managed(config: &Config, link: &Link) -> bool {
    link.kind == LinkKind::Bridge
        && config
            .networks
            .iter()
            .any(|network| network.bridge.as_str() == link.name)
}

/// The settings of the host that [`desired`] may want to change, as they are.
pub fn current_sysctls(config: &Config, facts: &HostFacts) -> BTreeMap<String, String> {
    let mut now = BTreeMap::new();
    for link in facts.links.iter().filter(|link| is_managed(config, link)) {
        for (name, on) in forwarding(link) {
            now.insert(name, on.to_owned());
        }
    }
    now.insert(
        RESERVED_PORTS.to_owned(),
        reserved_text(&reserved_list(&facts.settings.reserved_ports, None, None)),
    );
    now
}

fn forwarding(link: &Link) -> [(String, &'static str); 2] {
    let value = |on| if on { "1" } else { "0" };
    [
        (
            format!("net/ipv4/conf/{}/forwarding", link.name),
            value(link.forwarding_v4),
        ),
        (
            format!("net/ipv6/conf/{}/forwarding", link.name),
            value(link.forwarding_v6),
        ),
    ]
}

/// What ought to be in force on this host with this file. A network without an id in `ids` is left
/// out: see [`Ids::assign`].
pub fn desired(config: &Config, facts: &HostFacts, ids: &Ids) -> Desired {
    let mut out = Desired::default();
    let networks: Vec<Managed<'_>> = config
        .networks
        .iter()
        .filter_map(|network| {
            Some(Managed {
                network,
                id: ids.of(&network.name)?,
                bridge: facts
                    .link_named(network.bridge.as_str())
                    .filter(|link| link.kind == LinkKind::Bridge),
            })
        })
        .collect();

    configuration(config, facts, &mut out);
    host_access(facts, &mut out);
    for managed in &networks {
        network_rows(config, facts, managed, &mut out);
    }
    let containers = endpoint_rows(facts, &networks, &mut out);
    uplink_rows(config, facts, &networks, &mut out);
    local_rows(facts, &mut out);
    ipsec::rows(facts, &mut out);
    suppressed::rows(facts, &networks, &mut out);
    publish_rows(config, facts, &networks, &containers, &mut out);
    out
}

/// A network of the file, its id and its bridge, when that exists.
struct Managed<'a> {
    network: &'a Network,
    id: u16,
    bridge: Option<&'a Link>,
}

fn configuration(config: &Config, facts: &HostFacts, out: &mut Desired) {
    let span = nat_span(config.nat.ports, facts.settings.local_ports);
    out.config.nat_first = span.ports.first;
    out.config.nat_last = span.ports.last;
    if config.host.mode == Mode::Accelerate {
        out.config.flags |= config_flag::ACCELERATE;
    }
    if config.host.allow_direct_routing {
        out.config.flags |= config_flag::ALLOW_DIRECT_ROUTING;
    }
    if span.reserve {
        let list = reserved_list(&facts.settings.reserved_ports, Some(span.ports), None);
        out.sysctls
            .insert(RESERVED_PORTS.to_owned(), reserved_text(&list));
        out.reserved = Some(span.ports);
    }
}

/// The hooks of the host's own sockets.
fn host_access(facts: &HostFacts, out: &mut Desired) {
    out.config.netns_cookie = facts.netns_cookie;
    if !facts.socket_hooks {
        out.warnings.push(
            "the host's own programs do not reach published ports through netd: cgroup2 is not \
             mounted, or the kernel is built without CONFIG_CGROUP_BPF; `mount -t cgroup2 none \
             /sys/fs/cgroup/unified` helps with the former"
                .to_owned(),
        );
        return;
    }
    for hook in Hook::ALL.into_iter().filter(|hook| hook.is_cgroup()) {
        let attachment = Attachment { hook, ifindex: 0 };
        out.attachments.insert(attachment, ROOT_CGROUP.to_owned());
    }
}

fn network_rows(config: &Config, facts: &HostFacts, managed: &Managed<'_>, out: &mut Desired) {
    let Managed {
        network,
        id,
        bridge,
    } = managed;
    let mut row = NetworkRow {
        flags: network_flags(network),
        mode_v4: mode_number(network.mode.ipv4),
        mode_v6: mode_number(network.mode.ipv6),
        nat_v4: network.masquerade_to.ipv4.map_or([0; 4], |a| a.octets()),
        nat_v6: network.masquerade_to.ipv6.map_or([0; 16], |a| a.octets()),
        ..NetworkRow::default()
    };
    match bridge {
        Some(bridge) => {
            row.bridge = bridge.ifindex;
            row.bridge_mac = bridge.mac.map_or([0; 6], |mac| mac.0);
            for address in facts.addresses_on(bridge.ifindex) {
                let own = address.network.addr();
                if address.scope != AddressScope::Global || network.subnet_of(own).is_none() {
                    continue;
                }
                match own {
                    IpAddr::V4(own) if row.gateway_v4 == [0; 4] => row.gateway_v4 = own.octets(),
                    IpAddr::V6(own) if row.gateway_v6 == [0; 16] => row.gateway_v6 = own.octets(),
                    _ => {}
                }
            }
            // What the host sends is led out of the bridge in both modes.
            let guards: &[Hook] = match config.host.mode {
                Mode::Replace => &[Hook::BridgeIn, Hook::BridgeOut],
                Mode::Accelerate => &[Hook::BridgeOut],
            };
            for hook in guards.iter().copied() {
                let attachment = Attachment { hook, ifindex: bridge.ifindex };
                out.attachments.insert(attachment, bridge.name.clone());
            }
            for (name, _) in forwarding(bridge) {
                // An IPv6 setting exists only where IPv6 does.
                if !name.starts_with("net/ipv6") || has_ipv6(facts) {
                    out.sysctls.insert(name, "1".to_owned());
                }
            }
        }
        None => out.warnings.push(match facts.link_named(network.bridge.as_str()) {
            None => format!(
                "network {}: there is no bridge {}; its containers have no connection until it exists",
                network.name, network.bridge
            ),
            Some(link) => format!(
                "network {}: {} is not a bridge but of kind {}; name the network's bridge",
                network.name, network.bridge, link.kind
            ),
        }),
    }
    out.tables.networks.insert(u32::from(*id), row);
    for subnet in &network.subnets {
        let value = Subnet {
            network: *id,
            reserved: 0,
        };
        match prefix(*subnet) {
            AnyPrefix::V4(key) => out.tables.subnets_v4.insert(key, value),
            AnyPrefix::V6(key) => out.tables.subnets_v6.insert(key, value),
        };
    }
    for name in &network.trusted_interfaces {
        if let Some(link) = facts.link_named(name.as_str()) {
            let key = NetworkInterface {
                network: u32::from(*id),
                ifindex: link.ifindex,
            };
            out.tables.trusted.insert(key, 1);
        }
    }
}

/// IPv6 is not switched off altogether: then even loopback has no address.
fn has_ipv6(facts: &HostFacts) -> bool {
    facts
        .addresses
        .iter()
        .any(|address| address.network.addr().is_ipv6())
}

fn network_flags(network: &Network) -> u16 {
    let mut flags = network_flag::ACTIVE;
    let mut set = |on: bool, flag: u16| {
        if on {
            flags |= flag;
        }
    };
    set(network.icc, network_flag::ICC);
    set(network.internal, network_flag::INTERNAL);
    set(network.spoof == Spoof::Strict, network_flag::SPOOF_STRICT);
    set(network.spoof == Spoof::Off, network_flag::SPOOF_OFF);
    set(network.masquerades(Family::V4), network_flag::MASQUERADE_V4);
    set(network.masquerades(Family::V6), network_flag::MASQUERADE_V6);
    flags
}

fn mode_number(mode: GatewayMode) -> u8 {
    match mode {
        GatewayMode::Nat => gateway_mode::NAT,
        GatewayMode::NatUnprotected => gateway_mode::NAT_UNPROTECTED,
        GatewayMode::Routed => gateway_mode::ROUTED,
        GatewayMode::Isolated => gateway_mode::ISOLATED,
    }
}

/// Containers by address, with those of their addresses that lie in their network.
type Containers<'a> = HashMap<IpAddr, &'a [IpNet]>;

fn endpoint_rows<'a>(
    facts: &'a HostFacts,
    networks: &[Managed<'_>],
    out: &mut Desired,
) -> Containers<'a> {
    let by_bridge: HashMap<u32, &Managed<'_>> = networks
        .iter()
        .filter_map(|managed| Some((managed.bridge?.ifindex, managed)))
        .collect();

    // Every port gets its programs, known or not: what they do not know, they drop.
    for link in &facts.links {
        let Some(managed) = link.master.and_then(|master| by_bridge.get(&master)) else {
            continue;
        };
        if !matches!(link.kind, LinkKind::Veth | LinkKind::Tap | LinkKind::Netkit) {
            out.warnings.push(format!(
                "network {}: {} is a port of {} but of kind {}, not a container's; netd leaves it alone",
                managed.network.name, link.name, managed.network.bridge, link.kind
            ));
            continue;
        }
        for hook in [Hook::ToEndpoint, Hook::FromEndpoint] {
            let attachment = Attachment {
                hook,
                ifindex: link.ifindex,
            };
            out.attachments.insert(attachment, link.name.clone());
        }
    }

    let mut containers = Containers::new();
    for container in &facts.containers {
        let Some(managed) = by_bridge.get(&container.bridge_ifindex) else {
            continue;
        };
        let Some(mac) = container.mac else {
            continue;
        };
        out.tables.endpoints.insert(
            container.host_ifindex,
            Endpoint {
                mac: mac.0,
                network: managed.id,
                mtu: u16::try_from(container.mtu).unwrap_or(u16::MAX),
                flags: if container.netnsid.is_some() {
                    endpoint_flag::PEER
                } else {
                    0
                },
            },
        );
        address_rows(container, managed, out, &mut containers);
    }
    containers
}

fn address_rows<'a>(
    container: &'a Container,
    managed: &Managed<'_>,
    out: &mut Desired,
    containers: &mut Containers<'a>,
) {
    let value = EndpointAddress {
        ifindex: container.host_ifindex,
        network: managed.id,
        reserved: 0,
    };
    for address in &container.addresses {
        let address = address.addr();
        // Link-local and foreign addresses are not the network's to translate or to protect.
        if managed.network.subnet_of(address).is_none() {
            continue;
        }
        let owner = match address {
            IpAddr::V4(v4) => out.tables.addrs_v4.entry(v4.into()).or_insert(value),
            IpAddr::V6(v6) => out.tables.addrs_v6.entry(v6.into()).or_insert(value),
        };
        if owner.ifindex == container.host_ifindex {
            containers.insert(address, &container.addresses);
        } else {
            out.warnings.push(format!(
                "network {}: {address} is in use by the containers at {} and at interface {}; the latter is served",
                managed.network.name, container.host_name, owner.ifindex
            ));
        }
    }
}

fn uplink_rows(config: &Config, facts: &HostFacts, networks: &[Managed<'_>], out: &mut Desired) {
    for link in &facts.links {
        let loopback = link.kind == LinkKind::Loopback;
        if !loopback && (!is_l3(facts, link) || !config.host.uplinks.admits(&link.name)) {
            continue;
        }
        let managed = |m: &Managed<'_>| m.network.bridge.as_str() == link.name;
        if networks.iter().any(managed) || link.kind == LinkKind::Vrf {
            continue;
        }
        if let Some(vrf) = link.vrf {
            let name = facts.link(vrf.ifindex).map_or("?", |vrf| vrf.name.as_str());
            out.warnings.push(format!(
                "{} belongs to the VRF {name} (table {}), and netd serves no VRF: nothing that arrives there is \
                 translated, and what a route leads out of it is dropped (unmanaged-egress); \
                 `ip link set {} nomaster` takes it out, and `uplinks` of [host] without it says that this is meant",
                link.name, vrf.table, link.name
            ));
            continue;
        }
        if !link.ethernet && !link.headerless {
            out.warnings.push(format!(
                "{} is neither an Ethernet interface nor one without a link header, and netd leaves it alone: what a \
                 route leads out of it is dropped (unmanaged-egress); `uplinks` of [host] without it says that this is \
                 meant",
                link.name
            ));
            continue;
        }
        let policy = config.uplink_policy(&link.name);
        let mut flags = match policy.containers {
            ContainersAccess::None => 0,
            ContainersAccess::Published => uplink_flag::CONTAINERS_PUBLISHED,
            ContainersAccess::All => uplink_flag::CONTAINERS_ALL,
        };
        let mut set = |on: bool, flag: u16| {
            if on {
                flags |= flag;
            }
        };
        set(link.is_l3_only(), uplink_flag::L3);
        set(
            link.rp_filter == RpFilter::Strict,
            uplink_flag::STRICT_RP_FILTER,
        );
        let symmetric = policy.return_path == ReturnPath::Symmetric;
        set(symmetric, uplink_flag::SYMMETRIC);
        if symmetric && link.rp_filter == RpFilter::Strict {
            out.warnings.push(format!(
                "{}: `return_path = \"symmetric\"` answers whom no route leads to, but rp_filter is strict there and \
                 refuses them first; `sysctl net.ipv4.conf.{}.rp_filter=2` (and the same of `all`, unless it is 0) lets them in",
                link.name, link.name
            ));
        }
        set(loopback, uplink_flag::LOOPBACK);
        out.tables.uplinks.insert(
            link.ifindex,
            Uplink {
                mtu: link.mtu,
                flags,
                mac: link.mac.map_or([0; 6], |mac| mac.0),
                addr_v4: link.primary_v4.map_or([0; 4], |a: Ipv4Addr| a.octets()),
                addr_v6: link.primary_v6.map_or([0; 16], |a: Ipv6Addr| a.octets()),
            },
        );
        if !loopback {
            let attachment = Attachment {
                hook: if link.is_l3_only() {
                    Hook::FromTunnel
                } else {
                    Hook::FromUplink
                },
                ifindex: link.ifindex,
            };
            out.attachments.insert(attachment, link.name.clone());
        }
    }
}

/// Packets of the interface reach the IP layer as its own: it is not a port of a bridge, bond or
/// team, which take them first. A VRF's members are L3 interfaces, but of a table of their own.
fn is_l3(facts: &HostFacts, link: &Link) -> bool {
    let port = link.master.is_some_and(|master| {
        facts
            .link(master)
            .is_none_or(|master| master.kind != LinkKind::Vrf)
    });
    // An ifb device gets copies of packets that were seen on their own interface.
    !port && link.kind != LinkKind::Ifb
}

fn local_rows(facts: &HostFacts, out: &mut Desired) {
    let loopback = LocalAddress {
        kind: local_kind::UNICAST,
        reserved: 0,
    };
    // Even while lo is down, nothing from outside may claim these.
    let v4 = Prefix {
        bits: 8,
        data: V4Addr([127, 0, 0, 0]),
    };
    let v6 = Prefix {
        bits: 128,
        data: Ipv6Addr::LOCALHOST.into(),
    };
    out.tables.local_v4.insert(v4, loopback);
    out.tables.local_v6.insert(v6, loopback);
    for local in &facts.local {
        let kind = match local.kind {
            LocalKind::Local => local_kind::UNICAST,
            LocalKind::Broadcast => local_kind::BROADCAST,
            LocalKind::Anycast | LocalKind::Multicast => local_kind::OTHER,
        };
        let new = LocalAddress { kind, reserved: 0 };
        // The same prefix can be in several tables (VRF), or twice (anycast and local): unicast
        // has the lowest number and wins.
        let keep = |now: &mut LocalAddress| now.kind = now.kind.min(kind);
        match prefix(local.prefix) {
            AnyPrefix::V4(key) => {
                out.tables
                    .local_v4
                    .entry(key)
                    .and_modify(keep)
                    .or_insert(new);
            }
            AnyPrefix::V6(key) => {
                out.tables
                    .local_v6
                    .entry(key)
                    .and_modify(keep)
                    .or_insert(new);
            }
        }
    }
}

fn publish_rows(
    config: &Config,
    facts: &HostFacts,
    networks: &[Managed<'_>],
    containers: &Containers<'_>,
    out: &mut Desired,
) {
    let by_name: HashMap<&str, &Managed<'_>> = networks
        .iter()
        .map(|managed| (managed.network.name.as_str(), managed))
        .collect();
    let mut explicit = Vec::new();
    for publish in &config.publishes {
        let Some(&managed) = by_name.get(publish.network.as_str()) else {
            continue;
        };
        // "any" means both families; what the container has in the other one is known only once
        // it runs. An entry that names the other family wins over this one: it comes later.
        if publish.host == HostAddresses::Any
            && let Some(addresses) = containers.get(&publish.container)
            && let Some(other) = addresses.iter().map(IpNet::addr).find(|address| {
                address.is_ipv4() != publish.container.is_ipv4()
                    && managed.network.subnet_of(*address).is_some()
            })
            && managed.network.mode.of(Family::of(other)) != GatewayMode::Isolated
        {
            publish_one(
                facts,
                managed,
                publish,
                other,
                &[Family::of(other).unspecified()],
                out,
            );
        }
        explicit.push((managed, publish));
    }
    for (managed, publish) in explicit {
        publish_one(
            facts,
            managed,
            publish,
            publish.container,
            &publish.host_addresses(),
            out,
        );
    }
}

fn publish_one(
    facts: &HostFacts,
    managed: &Managed<'_>,
    publish: &Publish,
    container: IpAddr,
    hosts: &[IpAddr],
    out: &mut Desired,
) {
    let proto = publish.protocol.number();
    let ranged = |range: PortRange| port_prefixes(range.first(), range.last());
    for (port, bits) in ranged(publish.container_ports) {
        let row = match container {
            IpAddr::V4(a) => Row::ExposedV4(port_key(proto, a.into(), port, bits), 1),
            IpAddr::V6(a) => Row::ExposedV6(port_key(proto, a.into(), port, bits), 1),
        };
        out.tables.put(row);
    }
    // A routed network has no host ports: its containers are addressed directly.
    if managed.network.mode.of(Family::of(container)) == GatewayMode::Routed {
        return;
    }
    let host_first = publish.host_ports.first().to_be_bytes();
    let container_first = publish.container_ports.first().to_be_bytes();
    let network = managed.id;
    let protocol = listener_protocol(publish.protocol);
    // Which ports the publish takes from a program of the host that holds them.
    let overrides =
        |port: u16| publish.override_listener || facts.engine_ports.contains(&(protocol, port));
    for (port, bits, overrides) in uniform(ranged(publish.host_ports), overrides) {
        let flags = if overrides { backend_flag::OVERRIDE } else { 0 };
        for host in hosts {
            let row = match (*host, container) {
                (IpAddr::V4(host), IpAddr::V4(a)) => Row::PublishV4(
                    port_key(proto, host.into(), port, bits),
                    Backend {
                        addr: a.into(),
                        host_first,
                        container_first,
                        network,
                        flags,
                    },
                ),
                (IpAddr::V6(host), IpAddr::V6(a)) => Row::PublishV6(
                    port_key(proto, host.into(), port, bits),
                    Backend {
                        addr: a.into(),
                        host_first,
                        container_first,
                        network,
                        flags,
                    },
                ),
                // The file's validation refuses an address of the other family.
                _ => continue,
            };
            out.tables.put(row);
        }
    }
    let (first, last) = (publish.host_ports.first(), publish.host_ports.last());
    for word in first / 64..=last / 64 {
        let low = u32::from(first.saturating_sub(word * 64));
        let high = u32::from((last - word * 64).min(63));
        let bits = (u64::MAX >> (63 - high)) & (u64::MAX << low);
        if let Some(index) = port_word(proto, word * 64) {
            *out.tables.ports.entry(index).or_default() |= bits;
        }
    }
}

/// The protocol of a publish, as listeners are told by.
pub(crate) fn listener_protocol(protocol: Protocol) -> ListenerProtocol {
    match protocol {
        Protocol::Tcp => ListenerProtocol::Tcp,
        Protocol::Udp => ListenerProtocol::Udp,
        Protocol::Sctp => ListenerProtocol::Sctp,
    }
}

fn port_key<A>(proto: u8, addr: A, port: u16, bits: u32) -> Prefix<PortPrefix<A>> {
    Prefix {
        bits: port_prefix_base::<A>() + bits,
        data: PortPrefix {
            proto,
            reserved: [0; 3],
            addr,
            port: port.to_be_bytes(),
            tail: [0; 2],
        },
    }
}

enum AnyPrefix {
    V4(Prefix<V4Addr>),
    V6(Prefix<V6Addr>),
}

fn prefix(net: IpNet) -> AnyPrefix {
    match net.trunc() {
        IpNet::V4(net) => AnyPrefix::V4(Prefix {
            bits: u32::from(net.prefix_len()),
            data: net.addr().into(),
        }),
        IpNet::V6(net) => AnyPrefix::V6(Prefix {
            bits: u32::from(net.prefix_len()),
            data: net.addr().into(),
        }),
    }
}

#[cfg(test)]
pub(crate) mod tests;
