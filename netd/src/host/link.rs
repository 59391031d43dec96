//! Network interfaces as data.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Its number in the host's namespace.
    pub ifindex: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// What kind of device it is.
    pub kind: LinkKind,
    /// Its Ethernet address; `None` on interfaces without one.
    pub mac: Option<MacAddr>,
    /// Largest packet it takes, in bytes, without the link header.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// Its carrier is there (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// Whether its frames start with an Ethernet header. False for tun, WireGuard, ppp, ipip…
    /// Loopback frames carry one (all zero), so it is true there.
    pub ethernet: bool,
    /// Packets begin with the IP header (tun, WireGuard, PPP, tunnels). What is neither has a header
    /// that netd does not know (InfiniBand).
    pub headerless: bool,
    /// The bridge, bond or VRF that it is a port of.
    pub master: Option<u32>,
    /// What lies below or at the other end (`IFLA_LINK`).
    pub lower: Option<LowerLink>,
    /// Present when it is a member of a VRF, directly or through its master.
    pub vrf: Option<Vrf>,
    /// Present on bridges.
    pub bridge: Option<BridgeState>,
    /// Present on ports of a bridge.
    pub port: Option<BridgePort>,
    /// IPv4 address that it would take as source: primary, global, first in the kernel's order.
    pub primary_v4: Option<Ipv4Addr>,
    /// The same for IPv6: stable, global or unique-local, past duplicate detection.
    pub primary_v6: Option<Ipv6Addr>,
    /// Whether the stack forwards IPv4 packets that arrive here.
    pub forwarding_v4: bool,
    /// Whether the stack forwards IPv6 packets that arrive here.
    pub forwarding_v6: bool,
    /// Reverse path filter in force here: the stricter of its own setting and `all`.
    pub rp_filter: RpFilter,
}

/// Where `IFLA_LINK` points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LowerLink {
    /// The other interface, counted in its own namespace.
    pub ifindex: u32,
    /// That namespace, as the host's namespace numbers it, negative if it has no number;
    /// `None` is the host's own.
    pub netnsid: Option<i32>,
}

/// Kind of an interface, by the driver's name (`IFLA_INFO_KIND`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the kernel's")]
pub enum LinkKind {
    Loopback,
    /// No driver name: real network cards, and virtio or ENA ones that look like it.
    Physical,
    Bond,
    Bridge,
    Dummy,
    Geneve,
    Ifb,
    Ipvlan,
    Macvlan,
    Macvtap,
    Netkit,
    Team,
    /// TUN: L3 packets, no Ethernet header.
    Tun,
    /// TAP: the same driver with an Ethernet header (virtual machines).
    Tap,
    Veth,
    Vlan,
    Vrf,
    Vxlan,
    Wireguard,
    Xfrm,
    /// Any other driver, by its name.
    Other(String),
}

/// The VRF that an interface belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Vrf {
    /// The VRF device.
    pub ifindex: u32,
    /// Its routing table.
    pub table: u32,
}

/// A bridge's own settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BridgeState {
    /// Whether it keeps VLANs apart.
    pub vlan_filtering: bool,
    /// Whether bridged IPv4 packets pass iptables here, whatever the global switch says.
    pub nf_call_iptables: bool,
    /// The same for IPv6.
    pub nf_call_ip6tables: bool,
}

/// A bridge port's settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BridgePort {
    /// It exchanges frames only with ports that are not isolated.
    pub isolated: bool,
    /// Frames may leave by the port that they came in on.
    pub hairpin: bool,
}

/// Reverse path filter, from lax to strict (RFC 3704).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RpFilter {
    /// 0: none.
    #[default]
    Off,
    /// 2: the source must be reachable by any interface.
    Loose,
    /// 1: the source must be reachable by the interface it came in on.
    Strict,
}

/// An Ethernet address, in wire order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl Link {
    /// Whether packets to and from it have no Ethernet header.
    pub fn is_l3_only(&self) -> bool {
        self.headerless
    }
}

impl LinkKind {
    /// The driver's name; `loopback` and `physical` where there is none.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Loopback => "loopback",
            Self::Physical => "physical",
            Self::Bond => "bond",
            Self::Bridge => "bridge",
            Self::Dummy => "dummy",
            Self::Geneve => "geneve",
            Self::Ifb => "ifb",
            Self::Ipvlan => "ipvlan",
            Self::Macvlan => "macvlan",
            Self::Macvtap => "macvtap",
            Self::Netkit => "netkit",
            Self::Team => "team",
            Self::Tun => "tun",
            Self::Tap => "tap",
            Self::Veth => "veth",
            Self::Vlan => "vlan",
            Self::Vrf => "vrf",
            Self::Vxlan => "vxlan",
            Self::Wireguard => "wireguard",
            Self::Xfrm => "xfrm",
            Self::Other(name) => name,
        }
    }
}

impl From<&str> for LinkKind {
    fn from(driver: &str) -> Self {
        match driver {
            "bond" => Self::Bond,
            "bridge" => Self::Bridge,
            "dummy" => Self::Dummy,
            "geneve" => Self::Geneve,
            "ifb" => Self::Ifb,
            "ipvlan" => Self::Ipvlan,
            "macvlan" => Self::Macvlan,
            "macvtap" => Self::Macvtap,
            "netkit" => Self::Netkit,
            "team" => Self::Team,
            "tun" => Self::Tun,
            "veth" => Self::Veth,
            "vlan" => Self::Vlan,
            "vrf" => Self::Vrf,
            "vxlan" => Self::Vxlan,
            "wireguard" => Self::Wireguard,
            "xfrm" => Self::Xfrm,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl Serialize for LinkKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl RpFilter {
    /// From the number in the sysctl; unknown numbers count as strict.
    pub fn from_sysctl(value: u32) -> Self {
        match value {
            0 => Self::Off,
            2 => Self::Loose,
            _ => Self::Strict,
        }
    }

    /// What the kernel applies on an interface: the larger *number* of `all` and its own
    /// (`IN_DEV_RPFILTER`, include/linux/inetdevice.h), so loose (2) wins over strict (1).
    pub fn in_force(all: Self, own: Self) -> Self {
        let number = |filter| match filter {
            Self::Off => 0,
            Self::Strict => 1,
            Self::Loose => 2,
        };
        if number(all) > number(own) { all } else { own }
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// The text is not six hexadecimal bytes with colons between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an Ethernet address: expected six bytes like 02:42:0a:c8:00:02")]
pub struct NotAMacAddr;

impl FromStr for MacAddr {
    type Err = NotAMacAddr;

    fn from_str(text: &str) -> Result<Self, NotAMacAddr> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2);
            let part = part
                .filter(|part| !part.starts_with('+'))
                .ok_or(NotAMacAddr)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| NotAMacAddr)?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(NotAMacAddr),
        }
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_round_trip() {
        let mac: MacAddr = "02:42:0a:c8:00:02".parse().unwrap();
        assert_eq!(mac, MacAddr([2, 0x42, 10, 200, 0, 2]));
        assert_eq!(mac.to_string(), "02:42:0a:c8:00:02");
        for bad in [
            "",
            "02:42:0a:c8:00",
            "02:42:0a:c8:00:02:03",
            "2:42:a:c8:0:2",
            "+2:42:0a:c8:00:02",
        ] {
            assert_eq!(bad.parse::<MacAddr>(), Err(NotAMacAddr), "{bad:?}");
        }
    }

    #[test]
    fn the_larger_rp_filter_number_wins() {
        use RpFilter::*;
        for (all, own, expected) in [
            (Off, Off, Off),
            (Off, Strict, Strict),
            (Strict, Off, Strict),
            (Strict, Loose, Loose),
            (Loose, Strict, Loose),
        ] {
            assert_eq!(
                RpFilter::in_force(all, own),
                expected,
                "all {all:?}, own {own:?}"
            );
        }
    }
}
