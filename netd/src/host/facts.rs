//! The host as data: what one reading of the kernel found, in a deterministic order.
//!
//! Two readings of an unchanged host are equal, so nothing here counts, ages or names a moment:
//! an address says that it is valid, not for how many seconds.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::link::{Link, MacAddr, RpFilter};
use super::listeners::ListenerProtocol;

/// Everything netd decides from, as one network namespace of the host shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// Every interface, by ifindex.
    pub links: Vec<Link>,
    /// Every address of the host, by ifindex, then address.
    pub addresses: Vec<Address>,
    /// What the host answers to: the local table, by prefix. A lookup takes the longest match.
    pub local: Vec<LocalPrefix>,
    /// Default routes of every table, by table, family and metric.
    pub default_routes: Vec<DefaultRoute>,
    /// Policy rules of IPv6, in the order in which the kernel asks them.
    pub rules_v6: Vec<super::PolicyRule>,
    /// Containers found behind the bridges that were asked for, by host interface.
    pub containers: Vec<Container>,
    /// IPsec policies for outgoing packets; empty too where the kernel has no XFRM.
    pub ipsec_out: Vec<IpsecPolicy>,
    /// Settings of the whole namespace.
    pub settings: Settings,
    /// Programs for the host's own sockets can be attached: cgroup2 is mounted, and the kernel
    /// has them.
    pub socket_hooks: bool,
    /// The kernel's cookie of the namespace; 0 where it tells none.
    pub netns_cookie: u64,
    /// Ports whose only listeners are the Engine's proxies or placeholders. Filled by
    /// [`super::EngineSockets`], which is told what is published.
    pub engine_ports: BTreeSet<(ListenerProtocol, u16)>,
}

/// An address of the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Address {
    /// The interface that it is on.
    pub ifindex: u32,
    /// The address with the length of its on-link prefix (of the peer's, where there is a peer).
    pub network: IpNet,
    /// The other end, on a point-to-point interface.
    pub peer: Option<IpAddr>,
    /// How far it is valid.
    pub scope: AddressScope,
    /// IPv4 broadcast address, when one is set.
    pub broadcast: Option<Ipv4Addr>,
    /// Duplicate detection is still running (IPv6): not usable yet.
    pub tentative: bool,
    /// Duplicate detection found another owner (IPv6): never usable.
    pub duplicate: bool,
    /// Its preferred lifetime is over: not for new connections.
    pub deprecated: bool,
    /// IPv4: secondary in its prefix. IPv6: a temporary (privacy) address.
    pub secondary: bool,
    /// Its valid lifetime is not over.
    pub valid: bool,
}

/// Scope of an address (`rtnetlink(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressScope {
    /// Anywhere.
    Global,
    /// Inside the site (deprecated by RFC 3879, still found), or a number without a name.
    Site,
    /// On this link only.
    Link,
    /// On this host only.
    Host,
    /// Nowhere.
    Nowhere,
}

/// A prefix of the local table: the host takes such packets itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LocalPrefix {
    /// The prefix; an AnyIP route has more than one address.
    pub prefix: IpNet,
    /// The table: 255 (local), or a VRF's.
    pub table: u32,
    /// What is at the prefix.
    pub kind: LocalKind,
    /// The interface that the route names.
    pub ifindex: Option<u32>,
}

/// Type of a route in the local table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalKind {
    /// Delivered to sockets.
    Local,
    /// Taken as broadcast.
    Broadcast,
    /// Taken as anycast.
    Anycast,
    /// Taken as multicast.
    Multicast,
}

/// A default route, one per next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct DefaultRoute {
    /// The routing table; 254 is main.
    pub table: u32,
    /// True for `::/0`.
    pub ipv6: bool,
    /// Lower is preferred.
    pub metric: u32,
    /// The interface packets leave by.
    pub ifindex: Option<u32>,
    /// The next hop; `None` means that all is on-link.
    pub gateway: Option<IpAddr>,
    /// Source address that the route asks for.
    pub preferred_source: Option<IpAddr>,
}

/// A container, as the bridge port and the namespace behind it show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Container {
    /// The host end of its veth.
    pub host_ifindex: u32,
    /// The host end's name.
    pub host_name: String,
    /// The bridge it is a port of.
    pub bridge_ifindex: u32,
    /// Its namespace, as the host's namespace numbers it; `None` is the host's own.
    pub netnsid: Option<i32>,
    /// The interface's name inside; unknown when found by neighbours.
    pub if_name: Option<String>,
    /// The interface's number inside.
    pub if_index: u32,
    /// Its Ethernet address; unknown until it sent a frame when found by neighbours.
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes; that of the host end when found by neighbours.
    pub mtu: u32,
    /// Its addresses with their on-link prefix (full length when found by neighbours), sorted.
    /// Link-local and tentative ones are in it, duplicates are not.
    pub addresses: Vec<IpNet>,
    /// How it was found.
    pub found_by: FoundBy,
}

/// How a container's addresses became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FoundBy {
    /// Its namespace was asked: exact.
    Namespace,
    /// The bridge's forwarding and neighbour tables: only what was seen on the wire.
    Neighbours,
}

/// An outgoing IPsec policy: packets that match are the kernel's to encrypt (or to block).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct IpsecPolicy {
    /// Source selector.
    pub source: IpNet,
    /// Destination selector.
    pub destination: IpNet,
    /// Source port selector.
    pub source_port: PortMask,
    /// Destination port selector.
    pub destination_port: PortMask,
    /// IP protocol; `None` is any.
    pub protocol: Option<u8>,
    /// Interface that it is limited to.
    pub ifindex: Option<u32>,
    /// Limited to packets of the XFRM interface with this id.
    pub if_id: Option<u32>,
    /// Lower wins where several match.
    pub priority: u32,
    /// What happens to packets that match.
    pub action: IpsecAction,
}

/// Ports of which some bits count; all zero: every port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PortMask {
    /// The port.
    pub port: u16,
    /// The bits of it that count.
    pub mask: u16,
}

/// What an IPsec policy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IpsecAction {
    /// Encrypted (or authenticated) by the policy's templates.
    Transform,
    /// Sent as it is: a policy without templates, usually an exception from a wider one.
    Bypass,
    /// Dropped.
    Block,
}

/// Settings of the network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// `net.ipv4.ip_forward`.
    pub ip_forward: bool,
    /// `net.ipv6.conf.all.forwarding`.
    pub ipv6_forwarding: bool,
    /// `net.ipv4.conf.all.rp_filter`.
    pub rp_filter_all: RpFilter,
    /// `net.ipv4.conf.all.src_valid_mark`: the reverse lookup uses the packet's mark.
    pub src_valid_mark: bool,
    /// `net.ipv4.ip_local_port_range`: what the kernel gives to sockets by itself.
    pub local_ports: PortSpan,
    /// `net.ipv4.ip_local_reserved_ports`: what it never gives, by first port.
    pub reserved_ports: Vec<PortSpan>,
    /// `net.bridge.bridge-nf-call-iptables`; `None` while br_netfilter is not loaded.
    pub bridge_nf_call_iptables: Option<bool>,
    /// The same for IPv6.
    pub bridge_nf_call_ip6tables: Option<bool>,
}

/// Ports from `first` to `last`, both included.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct PortSpan {
    /// Lowest port.
    pub first: u16,
    /// Highest port, at least `first`.
    pub last: u16,
}

impl HostFacts {
    /// The interface with that number.
    pub fn link(&self, ifindex: u32) -> Option<&Link> {
        let at = self
            .links
            .binary_search_by_key(&ifindex, |link| link.ifindex);
        at.ok().map(|at| &self.links[at])
    }

    /// The interface of that name.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The ports of a bridge, bond or VRF.
    pub fn ports(&self, master: u32) -> impl Iterator<Item = &Link> {
        self.links
            .iter()
            .filter(move |link| link.master == Some(master))
    }

    /// The addresses on an interface.
    pub fn addresses_on(&self, ifindex: u32) -> impl Iterator<Item = &Address> {
        self.addresses
            .iter()
            .filter(move |address| address.ifindex == ifindex)
    }

    /// What the host's local table (not a VRF's) says of an address: the longest match.
    pub fn local_match(&self, address: IpAddr) -> Option<&LocalPrefix> {
        const TABLE_LOCAL: u32 = libc::RT_TABLE_LOCAL as u32;
        self.local
            .iter()
            .filter(|local| local.table == TABLE_LOCAL && local.prefix.contains(&address))
            .max_by_key(|local| local.prefix.prefix_len())
    }
}

impl Address {
    /// Whether the host may send from it now.
    pub fn usable(&self) -> bool {
        self.valid && !self.tentative && !self.duplicate
    }
}

impl PortSpan {
    /// Whether the port lies in it.
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for PortSpan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(out, "{}", self.first)
        } else {
            write!(out, "{}-{}", self.first, self.last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_local_prefix_wins() {
        let local = |prefix: &str, kind, table| LocalPrefix {
            prefix: prefix.parse().unwrap(),
            table,
            kind,
            ifindex: Some(1),
        };
        let facts = HostFacts {
            local: vec![
                local("198.19.0.0/24", LocalKind::Local, 255),
                local("198.19.0.255/32", LocalKind::Broadcast, 255),
                local("198.19.1.0/24", LocalKind::Local, 100),
            ],
            ..HostFacts::default()
        };
        let kind = |address: &str| facts.local_match(address.parse().unwrap()).map(|l| l.kind);
        assert_eq!(kind("198.19.0.7"), Some(LocalKind::Local));
        assert_eq!(kind("198.19.0.255"), Some(LocalKind::Broadcast));
        assert_eq!(kind("198.19.1.7"), None, "a VRF's table is not the host's");
        assert_eq!(kind("fd00::1"), None);
    }
}
