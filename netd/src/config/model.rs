//! What the file says, as types: every value of [`Config`] is validated.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::words::{
    ContainersAccess, GatewayMode, LogFormat, LogLevel, Mode, Protocol, ReturnPath, Spoof,
};
use super::{InterfaceName, NamePattern, PortRange};

/// The file [`Config::load`] is given when the caller names none.
pub const DEFAULT_PATH: &str = "/etc/netd/netd.toml";

/// Where maps, links and programs are pinned by default.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/netd";

/// A whole, valid configuration. Serializes into the shape of the file, with every default filled
/// in and `trust` merged into `uplink`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Config {
    /// `[host]`
    pub host: Host,
    /// `[[uplink]]`, and one entry for each name of `host.trust`, in the order of the file.
    #[serde(rename = "uplink")]
    pub uplinks: Vec<Uplink>,
    /// `[limits]`
    pub limits: Limits,
    /// `[nat]`
    pub nat: Nat,
    /// `[log]`
    pub log: Log,
    /// `[[network]]`, in the order of the file; names and bridges are unique.
    #[serde(rename = "network")]
    pub networks: Vec<Network>,
    /// `[[publish]]`, in the order of the file; no two claim the same host port.
    #[serde(rename = "publish")]
    pub publishes: Vec<Publish>,
}

/// `[host]`: what holds for the whole host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Which interfaces are uplinks.
    pub uplinks: UplinkSelection,
    /// Packets addressed to container addresses are accepted from every uplink, as Docker's
    /// `allow-direct-routing` does.
    pub allow_direct_routing: bool,
    /// Whether the Engine's own rules are off or on.
    pub mode: Mode,
    /// An absolute path on a BPF file system.
    pub pin_dir: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            uplinks: UplinkSelection::Auto,
            allow_direct_routing: false,
            mode: Mode::Replace,
            pin_dir: DEFAULT_PIN_DIR.into(),
        }
    }
}

/// Which interfaces are uplinks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UplinkSelection {
    /// Every L3 interface that is neither a managed bridge nor a port of one.
    #[default]
    Auto,
    /// Of those, the ones that match. Never empty.
    Matching(Vec<NamePattern>),
}

impl UplinkSelection {
    /// True if the selection admits an interface of this name. Whether it *can* be an uplink (L3,
    /// not a managed bridge, not a port of one) is for the caller to know.
    pub fn admits(&self, name: &str) -> bool {
        match self {
            Self::Auto => true,
            Self::Matching(patterns) => patterns.iter().any(|pattern| pattern.matches(name)),
        }
    }
}

impl Serialize for UplinkSelection {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Matching(patterns) => patterns.serialize(serializer),
        }
    }
}

/// `[[uplink]]`: what an uplink may do. A key the entry leaves out is `None`, so that a less
/// specific entry can decide it: see [`Config::uplink_policy`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Uplink {
    /// The interfaces this entry is about.
    pub name: NamePattern,
    /// Which packets addressed to container addresses are accepted.
    pub containers: Option<ContainersAccess>,
    /// Which way replies leave.
    pub return_path: Option<ReturnPath>,
}

/// What holds for one uplink, after all `[[uplink]]` entries were considered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct UplinkPolicy {
    /// Which packets addressed to container addresses are accepted.
    pub containers: ContainersAccess,
    /// Which way replies leave.
    pub return_path: ReturnPath,
}

/// `[limits]`: sizes of the flow tables in flows. `None`: derived from the host's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// IPv4 flows, 1 to 16 Mi.
    pub flows_v4: Option<u32>,
    /// IPv6 flows, 1 to 16 Mi.
    pub flows_v6: Option<u32>,
}

/// `[nat]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Nat {
    /// The source ports that masqueraded flows get.
    pub ports: NatPorts,
}

/// Which source ports masqueraded flows get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NatPorts {
    /// Those outside `net.ipv4.ip_local_port_range`, or a reserved range where that leaves too few.
    #[default]
    Auto,
    /// Exactly these: at least 64 ports, none below 1024.
    Range(PortRange),
}

impl Serialize for NatPorts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Range(range) => range.serialize(serializer),
        }
    }
}

/// `[log]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Log {
    /// The lowest level that is written.
    pub level: LogLevel,
    /// How a line is written.
    pub format: LogFormat,
}

/// `[[network]]`: one bridge and the containers on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Letters, digits, `_`, `.` and `-`; unique.
    pub name: String,
    /// The bridge device; unique.
    pub bridge: InterfaceName,
    /// At least one; without host bits; no overlap with any other subnet of the file.
    pub subnets: Vec<IpNet>,
    /// The gateway mode of each address family.
    pub mode: GatewayModes,
    /// Containers of this network may talk to each other directly.
    pub icc: bool,
    /// Nothing in from, and nothing out to, anything outside the network.
    pub internal: bool,
    /// Egress takes a host address as its source, where the gateway mode has NAT.
    pub masquerade: bool,
    /// The address that masquerading uses instead of the egress interface's own.
    pub masquerade_to: MasqueradeTo,
    /// Host interfaces from which published container ports can be reached directly.
    pub trusted_interfaces: Vec<InterfaceName>,
    /// How source addresses of the containers are checked.
    pub spoof: Spoof,
}

impl Network {
    /// The subnet that holds `address`.
    pub fn subnet_of(&self, address: IpAddr) -> Option<IpNet> {
        self.subnets
            .iter()
            .find(|subnet| subnet.contains(&address))
            .copied()
    }

    /// True if packets of this family that leave by an uplink get a host address as their source.
    pub fn masquerades(&self, family: Family) -> bool {
        self.masquerade && !self.internal && self.mode.of(family).has_nat()
    }
}

/// The gateway mode of each address family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct GatewayModes {
    /// For IPv4.
    pub ipv4: GatewayMode,
    /// For IPv6.
    pub ipv6: GatewayMode,
}

impl GatewayModes {
    /// The mode of one family.
    pub fn of(self, family: Family) -> GatewayMode {
        match family {
            Family::V4 => self.ipv4,
            Family::V6 => self.ipv6,
        }
    }
}

/// Fixed masquerade addresses, at most one per family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct MasqueradeTo {
    /// For IPv4.
    pub ipv4: Option<Ipv4Addr>,
    /// For IPv6.
    pub ipv6: Option<Ipv6Addr>,
}

impl MasqueradeTo {
    /// The address for one family.
    pub fn of(self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.ipv4.map(IpAddr::V4),
            Family::V6 => self.ipv6.map(IpAddr::V6),
        }
    }
}

/// `[[publish]]`: host ports that lead to a container. Host and container ports are paired in
/// order; both ranges have the same length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Publish {
    /// The name of a network of the same file, neither internal nor isolated.
    pub network: String,
    /// An address in one of that network's subnets.
    pub container: IpAddr,
    /// The protocol of the ports.
    pub protocol: Protocol,
    /// The host addresses that are matched.
    pub host: HostAddresses,
    /// The ports on the host; ignored where the network is routed.
    pub host_ports: PortRange,
    /// The ports of the container.
    pub container_ports: PortRange,
    /// Take the ports even from a program that listens on the host.
    #[serde(rename = "override")]
    pub override_listener: bool,
}

impl Publish {
    /// The container's address family, which is that of every address in
    /// [`host_addresses`](Self::host_addresses).
    pub fn family(&self) -> Family {
        Family::of(self.container)
    }

    /// The host addresses of the container's family; the unspecified address (`0.0.0.0`, `::`)
    /// means any, and is then the only one.
    pub fn host_addresses(&self) -> Vec<IpAddr> {
        match &self.host {
            HostAddresses::Any => vec![self.family().unspecified()],
            HostAddresses::List(list) => list.clone(),
        }
    }

    /// The container port that belongs to `host_port`, if this entry publishes that one.
    pub fn container_port(&self, host_port: u16) -> Option<u16> {
        let offset = host_port.checked_sub(self.host_ports.first())?;
        self.host_ports
            .contains(host_port)
            .then(|| self.container_ports.first() + offset)
    }
}

/// The host addresses of a [`Publish`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum HostAddresses {
    /// Every address of the host, of both families. A container of one family takes its own; the
    /// other one is left to Docker's proxy.
    #[default]
    Any,
    /// These, all of the container's family, none twice and never empty; `0.0.0.0` or `::` stands
    /// alone and means every address of that family.
    List(Vec<IpAddr>),
}

impl Serialize for HostAddresses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Any => serializer.serialize_str("any"),
            Self::List(list) => list.serialize(serializer),
        }
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    /// `0.0.0.0` or `::`.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// `IPv4` or `IPv6`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl Config {
    /// What holds for the interface `name`: for each key, the most specific entry that matches
    /// and sets the key decides. An exact name is above every pattern, a longer pattern above a
    /// shorter one (counting characters besides `*`), and of equals the first in the file.
    pub fn uplink_policy(&self, name: &str) -> UplinkPolicy {
        let mut matching: Vec<&Uplink> = self
            .uplinks
            .iter()
            .filter(|uplink| uplink.name.matches(name))
            .collect();
        matching.sort_by_key(|uplink| std::cmp::Reverse(uplink.name.specificity()));
        UplinkPolicy {
            containers: matching
                .iter()
                .find_map(|uplink| uplink.containers)
                .unwrap_or_default(),
            return_path: matching
                .iter()
                .find_map(|uplink| uplink.return_path)
                .unwrap_or_default(),
        }
    }

    /// The network of this name.
    pub fn network(&self, name: &str) -> Option<&Network> {
        self.networks.iter().find(|network| network.name == name)
    }

    /// The configuration with every default filled in, as the answer of `netd check --json`: the
    /// keys of the file, beside `"schema": 1`. A range of ports is `{"first", "last"}`, a limit
    /// that is derived from memory `null`.
    pub fn to_normalized_json(&self) -> serde_json::Value {
        let mut value = serde_json::json!({ "schema": 1, "version": 1 });
        let config = serde_json::to_value(self).expect("strings, numbers and lists serialize");
        if let (Some(all), serde_json::Value::Object(parts)) = (value.as_object_mut(), config) {
            all.extend(parts);
        }
        value
    }
}
