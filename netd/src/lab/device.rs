//! Network devices of a namespace: veth pairs, bridges, tunnels, and their state.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, Inet6IfaceFlags, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkLayerType, LinkMessage, MacVlanMode, State, VlanProtocol,
};
use rtnetlink::{
    LinkBridge, LinkBridgePort, LinkMacVlan, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVlan,
    LinkVxlan,
};

use super::error::{LabError, Result};
use super::namespace::{Namespace, raw_fd};

/// An Ethernet address, in wire order.
pub type Mac = [u8; 6];

/// One end of a veth pair.
#[derive(Clone, Debug)]
pub struct VethEnd<'a> {
    /// The namespace it is made in.
    pub namespace: &'a Namespace,
    /// The device's name, at most 15 bytes.
    pub name: &'a str,
    /// The address; None lets the kernel choose one at random.
    pub mac: Option<Mac>,
    /// The MTU; None is 1500.
    pub mtu: Option<u32>,
}

impl<'a> VethEnd<'a> {
    /// An end with a random address and the default MTU.
    pub fn new(namespace: &'a Namespace, name: &'a str) -> Self {
        Self {
            namespace,
            name,
            mac: None,
            mtu: None,
        }
    }

    /// The same with an Ethernet address.
    pub fn mac(self, mac: Mac) -> Self {
        Self {
            mac: Some(mac),
            ..self
        }
    }

    /// The same with an MTU.
    pub fn mtu(self, mtu: u32) -> Self {
        Self {
            mtu: Some(mtu),
            ..self
        }
    }

    fn attributes(&self) -> Vec<LinkAttribute> {
        let mut attributes = vec![LinkAttribute::IfName(self.name.to_owned())];
        attributes.extend(self.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        attributes.extend(self.mtu.map(LinkAttribute::Mtu));
        attributes
    }
}

/// Makes a veth pair with both ends down.
pub fn add_veth(a: &VethEnd<'_>, b: &VethEnd<'_>) -> Result<()> {
    let mut peer = LinkMessage::default();
    peer.attributes = b.attributes();
    peer.attributes
        .push(LinkAttribute::NetNsFd(raw_fd(b.namespace)));
    let mut message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
    for attribute in a.attributes() {
        message = message.append_extra_attribute(attribute);
    }
    let doing = format!(
        "add veth {} with peer {} in {}",
        a.name,
        b.name,
        b.namespace.role()
    );
    add_link(a.namespace, doing, message.build())
}

/// A VXLAN device to make, for [`Namespace::add_vxlan`].
#[derive(Clone, Debug)]
pub struct Vxlan<'a> {
    /// The device's name.
    pub name: &'a str,
    /// The VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// Own outer address.
    pub local: IpAddr,
    /// The far end's outer address.
    pub remote: IpAddr,
    /// UDP destination port; IANA's is 4789.
    pub port: u16,
    /// Whether outer datagrams carry a UDP checksum; with it on and transmit offload off, the receiver's inner
    /// packets are CHECKSUM_COMPLETE.
    pub udp_checksum: bool,
}

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The interface index in its namespace.
    pub ifindex: u32,
    /// The Ethernet address; None on an L3 device.
    pub mac: Option<Mac>,
    /// The MTU in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Whether frames start with an Ethernet header.
    pub ethernet: bool,
    /// Whether the device has a carrier and the kernel has taken note of it, for IPv6 too: until then neighbour
    /// solicitations are not answered, and a first packet waits a second.
    pub ready: bool,
    /// Whether the device resolves neighbours: lo and TUN devices do not.
    pub neighbours: bool,
}

impl Namespace {
    /// Makes a bridge, down, without spanning tree and with no forwarding delay.
    pub fn add_bridge(&self, name: &str, mac: Option<Mac>) -> Result<()> {
        let mut message = LinkBridge::new(name).forward_delay(0);
        if let Some(mac) = mac {
            message = message.address(mac.to_vec());
        }
        add_link(self, format!("add bridge {name}"), message.build())
    }

    /// Makes `port` a port of `bridge`.
    pub fn attach(&self, port: &str, bridge: &str) -> Result<()> {
        let controller = self.ifindex(bridge)?;
        self.change(port, &format!("attach {port} to {bridge}"), |link| {
            link.controller(controller)
        })
    }

    /// Takes `port` out of its bridge.
    pub fn detach(&self, port: &str) -> Result<()> {
        self.change(
            port,
            &format!("detach {port} from its bridge"),
            LinkMessageBuilder::nocontroller,
        )
    }

    /// Sets a bridge port's `isolated` flag: isolated ports do not reach each other.
    pub fn set_port_isolated(&self, port: &str, isolated: bool) -> Result<()> {
        let message = LinkBridgePort::new(self.ifindex(port)?)
            .isolated(isolated)
            .build();
        self.netlink(
            format!("set isolated {isolated} on {port}"),
            move |handle| async move { handle.link().change(message).execute().await },
        )
    }

    /// Brings a device up.
    pub fn set_up(&self, device: &str) -> Result<()> {
        self.change(
            device,
            &format!("bring {device} up"),
            LinkMessageBuilder::up,
        )
    }

    /// Takes a device down.
    pub fn set_down(&self, device: &str) -> Result<()> {
        self.change(
            device,
            &format!("take {device} down"),
            LinkMessageBuilder::down,
        )
    }

    /// Sets the MTU.
    pub fn set_mtu(&self, device: &str, mtu: u32) -> Result<()> {
        self.change(
            device,
            &format!("set the MTU of {device} to {mtu}"),
            |link| link.mtu(mtu),
        )
    }

    /// Sets the Ethernet address.
    pub fn set_mac(&self, device: &str, mac: Mac) -> Result<()> {
        self.change(device, &format!("set the address of {device}"), |link| {
            link.address(mac.to_vec())
        })
    }

    /// Sets or clears promiscuous mode.
    pub fn set_promiscuous(&self, device: &str, on: bool) -> Result<()> {
        self.change(
            device,
            &format!("set promiscuous {on} on {device}"),
            |link| link.promiscuous(on),
        )
    }

    /// Gives a device, which must be down, another name.
    pub fn rename(&self, device: &str, name: &str) -> Result<()> {
        self.change(device, &format!("rename {device} to {name}"), |link| {
            link.name(name)
        })
    }

    /// Moves a device to another namespace, keeping its name. It arrives down and without addresses.
    pub fn move_device(&self, device: &str, to: &Namespace) -> Result<()> {
        let fd = raw_fd(to);
        self.change(device, &format!("move {device} to {}", to.role()), |link| {
            link.setns_by_fd(fd)
        })
    }

    /// Deletes a device; of a veth pair, both ends.
    pub fn delete_device(&self, device: &str) -> Result<()> {
        let index = self.ifindex(device)?;
        self.netlink(format!("delete {device}"), move |handle| async move {
            handle.link().del(index).execute().await
        })
    }

    /// Makes a VLAN device on `parent`. Fails with [`LabError::is_unsupported`] where the kernel has no 802.1Q.
    pub fn add_vlan(&self, parent: &str, name: &str, id: u16, service_tag: bool) -> Result<()> {
        let protocol = if service_tag {
            VlanProtocol::Ieee8021Ad
        } else {
            VlanProtocol::Ieee8021Q
        };
        let message = LinkVlan::new(name, self.ifindex(parent)?, id)
            .protocol(protocol)
            .build();
        add_link(
            self,
            format!("add VLAN {id} device {name} on {parent}"),
            message,
        )
    }

    /// Makes a macvlan device in bridge mode on `parent` and puts it into `into`.
    pub fn add_macvlan(&self, parent: &str, name: &str, into: &Namespace) -> Result<()> {
        let message = LinkMacVlan::new(name, self.ifindex(parent)?, MacVlanMode::Bridge)
            .setns_by_fd(raw_fd(into))
            .build();
        add_link(
            self,
            format!("add macvlan {name} on {parent} for {}", into.role()),
            message,
        )
    }

    /// Makes a point-to-point VXLAN device, with an MTU for an outer one of 1500.
    pub fn add_vxlan(&self, vxlan: &Vxlan<'_>) -> Result<()> {
        let message = LinkVxlan::new(vxlan.name, vxlan.vni)
            .port(vxlan.port)
            .udp_csum(vxlan.udp_checksum);
        let message = match (vxlan.local, vxlan.remote) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                message.local(local).remote(remote).mtu(1450)
            }
            (IpAddr::V6(local), IpAddr::V6(remote)) => {
                message.local6(local).remote6(remote).mtu(1430)
            }
            (local, remote) => {
                return Err(LabError::Invalid(format!(
                    "VXLAN {}: {local} and {remote} differ in family",
                    vxlan.name
                )));
            }
        };
        // Over IPv6 the flags speak of zero checksums instead.
        let message = match vxlan.local {
            IpAddr::V6(_) => message
                .udp_zero_csum6_tx(!vxlan.udp_checksum)
                .udp_zero_csum6_rx(!vxlan.udp_checksum),
            IpAddr::V4(_) => message,
        };
        add_link(self, format!("add VXLAN {}", vxlan.name), message.build())
    }

    /// The interface index.
    pub fn ifindex(&self, device: &str) -> Result<u32> {
        Ok(self.device(device)?.ifindex)
    }

    /// Index, address, MTU and kind of a device.
    pub fn device(&self, device: &str) -> Result<DeviceInfo> {
        let name = device.to_owned();
        let found = self.netlink(format!("look for {device}"), move |handle| async move {
            handle
                .link()
                .get()
                .match_name(name)
                .execute()
                .try_next()
                .await
        })?;
        let link = found.ok_or_else(|| {
            LabError::io(
                format!("look for {device} in {}", self.role()),
                nix::errno::Errno::ENODEV,
            )
        })?;
        let mut info = DeviceInfo {
            ifindex: link.header.index,
            mac: None,
            mtu: 0,
            ethernet: matches!(
                link.header.link_layer_type,
                LinkLayerType::Ether | LinkLayerType::Loopback
            ),
            ready: true,
            neighbours: !link
                .header
                .flags
                .intersects(LinkFlags::Noarp | LinkFlags::Loopback),
        };
        let mut port = false;
        let mut ipv6_ready = true;
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::Address(bytes) => info.mac = bytes.try_into().ok(),
                LinkAttribute::Mtu(mtu) => info.mtu = mtu,
                LinkAttribute::OperState(state) => {
                    // Unknown is what a TUN device says when it is up.
                    info.ready = matches!(state, State::Up | State::Unknown);
                }
                // A bridge port has no IPv6 of its own.
                LinkAttribute::Controller(index) => port = index != 0,
                LinkAttribute::AfSpecUnspec(families) => {
                    for family in families {
                        let AfSpecUnspec::Inet6(items) = family else {
                            continue;
                        };
                        for item in items {
                            if let AfSpecInet6::Flags(flags) = item {
                                ipv6_ready = flags.contains(Inet6IfaceFlags::Ready);
                            }
                        }
                    }
                }
                _ => {}
            }
        }
        info.ready &= port || ipv6_ready;
        Ok(info)
    }

    /// Waits until the device, which must be up with its peer, is [`DeviceInfo::ready`] and answers neighbour
    /// solicitations for every address it has.
    pub fn wait_ready(&self, device: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let DeviceInfo {
                ready, neighbours, ..
            } = self.device(device)?;
            if ready && (!neighbours || self.unanswered_solicitations(device)?.is_none()) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let why = match self.unanswered_solicitations(device)? {
                    Some(address) if ready => format!("has not joined the group of {address}"),
                    _ => "has no carrier (is its peer up?)".to_owned(),
                };
                return Err(LabError::Invalid(format!(
                    "{device} in {} {why} after 5 s",
                    self.role()
                )));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// An IPv6 address whose solicited-node group (RFC 4291 section 2.7.1) the device has not joined yet. The kernel
    /// joins in a work queue after the address was added, and ignores neighbour solicitations until then.
    fn unanswered_solicitations(&self, device: &str) -> Result<Option<Ipv6Addr>> {
        let read = |file: &str| {
            let path = format!("/proc/thread-self/net/{file}");
            std::fs::read_to_string(&path).map_err(|e| (path, e))
        };
        let tables = self.run(|| Ok((read("if_inet6")?, read("igmp6")?)));
        let (addresses, groups) = match tables {
            Ok(tables) => tables,
            Err((_, e)) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err((path, e)) => {
                return Err(LabError::io(format!("read {path} in {}", self.role()), e));
            }
        };
        let joined = table_addresses(&groups, 1, 2, device);
        Ok(table_addresses(&addresses, 5, 0, device)
            .into_iter()
            .find(|address| {
                let [.., a, b, c] = address.octets();
                let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
                !joined.contains(&group)
            }))
    }

    /// The Ethernet address of a device.
    pub fn mac(&self, device: &str) -> Result<Mac> {
        self.device(device)?.mac.ok_or_else(|| {
            LabError::Invalid(format!(
                "{device} in {} has no Ethernet address",
                self.role()
            ))
        })
    }

    fn change(
        &self,
        device: &str,
        doing: &str,
        set: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<()> {
        let message = set(LinkUnspec::new_with_index(self.ifindex(device)?)).build();
        self.netlink(doing.to_owned(), move |handle| async move {
            handle.link().change(message).execute().await
        })
    }
}

/// The hexadecimal addresses in column `address` of the lines of a /proc/net table that name `device`.
fn table_addresses(table: &str, name: usize, address: usize, device: &str) -> Vec<Ipv6Addr> {
    table
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            (*words.get(name)? == device).then_some(())?;
            Some(u128::from_str_radix(words.get(address)?, 16).ok()?.into())
        })
        .collect()
}

fn add_link(namespace: &Namespace, doing: String, message: LinkMessage) -> Result<()> {
    namespace.netlink(doing, move |handle| async move {
        handle.link().add(message).execute().await
    })
}
