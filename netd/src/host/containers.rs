//! Containers behind a bridge, found without asking any container engine.
//!
//! A veth on the host names its other end by interface number and namespace id
//! (`IFLA_LINK`, `IFLA_LINK_NETNSID`). rtnetlink answers questions about a namespace that has
//! such an id (`IFLA_TARGET_NETNSID`, since 4.20), so a container's own view is read without
//! entering it: one request for the interface and one dump for its addresses.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::HostError;
use super::facts::*;
use super::interfaces::{read_foreign_addresses, read_foreign_link};
use super::link::*;
use super::netlink::{Attributes, Netlink, ifindex_of, ip_of, push_attribute, u16_at, u32_at};

/// Length of `struct ndmsg`.
pub(super) const NDMSG: usize = 12;
// linux/neighbour.h
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_MASTER: u16 = 9;
const NDA_IFINDEX: u16 = 8;
const NUD_PERMANENT: u16 = 0x80;
/// Entries of these states name no one: incomplete, failed, not asked for (multicast).
const NUD_WITHOUT_OWNER: u16 = 0x01 | 0x20 | 0x40;

/// The containers on the given bridges, by host interface.
pub(super) fn discover(
    route: &mut Netlink,
    links: &[Link],
    addresses: &[Address],
    is_managed: impl Fn(&Link) -> bool,
) -> Result<Vec<Container>, HostError> {
    let by_index: BTreeMap<u32, &Link> = links.iter().map(|link| (link.ifindex, link)).collect();
    let mut seen = Neighbourhoods::default();
    let mut found = Vec::new();
    for port in links {
        let (LinkKind::Veth, Some(bridge), Some(peer)) = (&port.kind, port.master, port.lower)
        else {
            continue;
        };
        let managed = by_index.get(&bridge).filter(|link| is_managed(link));
        let Some(bridge) = managed.filter(|link| link.kind == LinkKind::Bridge) else {
            continue;
        };
        let container = match peer.netnsid {
            None => by_index
                .get(&peer.ifindex)
                .filter(|inside| is_other_end(inside.lower, port))
                .map(|inside| {
                    let own = addresses.iter().filter(|own| own.ifindex == peer.ifindex);
                    of_namespace(
                        port,
                        bridge,
                        peer,
                        &inside.name,
                        inside.mac,
                        inside.mtu,
                        own,
                    )
                }),
            Some(netnsid) => match ask_namespace(route, port, bridge, peer, netnsid) {
                Ok(answer) => answer,
                Err(refused) if is_refusal(&refused) => {
                    tracing::debug!(port = port.name, %refused, "asking the neighbour tables");
                    Some(seen.container(route, port, bridge, peer)?)
                }
                Err(error) => return Err(error),
            },
        };
        found.extend(container);
    }
    Ok(found)
}

/// A container as its own namespace shows it; `None` when it goes away at this moment.
fn ask_namespace(
    route: &mut Netlink,
    port: &Link,
    bridge: &Link,
    peer: LowerLink,
    netnsid: i32,
) -> Result<Option<Container>, HostError> {
    let inside = match read_foreign_link(route, netnsid, peer.ifindex) {
        Err(HostError::Netlink { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {
            return Ok(None);
        }
        inside => inside?,
    };
    // The number can belong to another interface by now.
    let Some(inside) = inside.filter(|inside| is_other_end(inside.lower, port)) else {
        return Ok(None);
    };
    let addresses = match read_foreign_addresses(route, netnsid, peer.ifindex) {
        Err(HostError::Netlink { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {
            return Ok(None);
        }
        addresses => addresses?,
    };
    let own = addresses.iter();
    let (name, mac, mtu) = (&inside.name, inside.mac, inside.mtu);
    Ok(Some(of_namespace(port, bridge, peer, name, mac, mtu, own)))
}

fn of_namespace<'a>(
    port: &Link,
    bridge: &Link,
    peer: LowerLink,
    name: &str,
    mac: Option<MacAddr>,
    mtu: u32,
    addresses: impl Iterator<Item = &'a Address>,
) -> Container {
    let mut addresses: Vec<_> = addresses
        .filter(|address| address.valid && !address.duplicate)
        .filter(|address| address.scope != AddressScope::Host)
        .map(|address| address.network)
        .collect();
    addresses.sort();
    addresses.dedup();
    Container {
        host_ifindex: port.ifindex,
        host_name: port.name.clone(),
        bridge_ifindex: bridge.ifindex,
        netnsid: peer.netnsid,
        if_name: Some(name.to_owned()),
        if_index: peer.ifindex,
        mac,
        mtu,
        addresses,
        found_by: FoundBy::Namespace,
    }
}

/// Whether an interface with that lower link is the other end of a veth on the host.
fn is_other_end(lower: Option<LowerLink>, port: &Link) -> bool {
    lower.is_some_and(|lower| lower.ifindex == port.ifindex)
}

/// The kernel will not speak of that namespace: not allowed, or not known to it.
fn is_refusal(error: &HostError) -> bool {
    match error {
        HostError::Netlink { source, .. } => {
            source.kind() == io::ErrorKind::PermissionDenied
                || matches!(source.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
        }
        _ => false,
    }
}

/// What each bridge has seen on the wire, read when the first container needs it.
#[derive(Default)]
struct Neighbourhoods(BTreeMap<u32, Neighbourhood>);

struct Neighbourhood {
    /// Who was heard behind a port (forwarding table).
    stations: Vec<(u32, MacAddr)>,
    /// Which address a station answered for (neighbour table).
    addresses: Vec<(MacAddr, IpAddr)>,
}

impl Neighbourhoods {
    fn container(
        &mut self,
        route: &mut Netlink,
        port: &Link,
        bridge: &Link,
        peer: LowerLink,
    ) -> Result<Container, HostError> {
        let seen = match self.0.entry(bridge.ifindex) {
            Entry::Occupied(seen) => seen.into_mut(),
            Entry::Vacant(unread) => unread.insert(Neighbourhood {
                stations: read_stations(route, bridge.ifindex)?,
                addresses: read_neighbours(route, bridge.ifindex)?,
            }),
        };
        Ok(seen.container(port, bridge, peer))
    }
}

impl Neighbourhood {
    fn container(&self, port: &Link, bridge: &Link, peer: LowerLink) -> Container {
        let behind = |station: &&(u32, MacAddr)| station.0 == port.ifindex;
        let mac = self.stations.iter().find(behind).map(|(_, mac)| *mac);
        let mut addresses: Vec<_> = self
            .addresses
            .iter()
            .filter(|(owner, _)| Some(*owner) == mac)
            .map(|(_, address)| IpNet::from(*address))
            .collect();
        addresses.sort();
        addresses.dedup();
        Container {
            host_ifindex: port.ifindex,
            host_name: port.name.clone(),
            bridge_ifindex: bridge.ifindex,
            netnsid: peer.netnsid,
            if_name: None,
            if_index: peer.ifindex,
            mac,
            mtu: port.mtu,
            addresses,
            found_by: FoundBy::Neighbours,
        }
    }
}

/// The bridge's forwarding table without the ports' own addresses, sorted.
fn read_stations(route: &mut Netlink, bridge: u32) -> Result<Vec<(u32, MacAddr)>, HostError> {
    let request = neighbour_request(libc::AF_BRIDGE, NDA_MASTER, bridge);
    let what = "a bridge's forwarding table";
    let mut found = route.dump(what, libc::RTM_GETNEIGH, &request, |found, body| {
        if u16_at(body, 8).is_some_and(|state| state & NUD_PERMANENT == 0) {
            let station = decode_neighbour(body).filter(|entry| entry.master == Some(bridge));
            found.extend(station.and_then(|entry| Some((entry.ifindex, entry.mac?))));
        }
    })?;
    found.sort();
    Ok(found)
}

/// The neighbours that the host itself knows on the bridge, sorted.
fn read_neighbours(route: &mut Netlink, bridge: u32) -> Result<Vec<(MacAddr, IpAddr)>, HostError> {
    let request = neighbour_request(libc::AF_UNSPEC, NDA_IFINDEX, bridge);
    let what = "a bridge's neighbours";
    let mut found = route.dump(what, libc::RTM_GETNEIGH, &request, |found, body| {
        if u16_at(body, 8).is_some_and(|state| state & NUD_WITHOUT_OWNER == 0) {
            let neighbour = decode_neighbour(body).filter(|entry| entry.ifindex == bridge);
            found.extend(neighbour.and_then(|entry| Some((entry.mac?, entry.address?))));
        }
    })?;
    found.sort();
    Ok(found)
}

/// A dump request: `struct ndmsg`, limited to a bridge.
fn neighbour_request(family: i32, limit: u16, bridge: u32) -> Vec<u8> {
    let mut request = vec![0; NDMSG];
    request[0] = family as u8;
    push_attribute(&mut request, limit, &bridge.to_ne_bytes());
    request
}

/// An entry of a forwarding or neighbour table.
pub(super) struct Neighbour {
    /// The port (forwarding table) or the interface (neighbour table).
    pub(super) ifindex: u32,
    /// The bridge, in a forwarding table.
    pub(super) master: Option<u32>,
    pub(super) mac: Option<MacAddr>,
    pub(super) address: Option<IpAddr>,
}

/// Reads `struct ndmsg`: family, padding to 4, ifindex, state (2 bytes), flags, type.
pub(super) fn decode_neighbour(body: &[u8]) -> Option<Neighbour> {
    let mut entry = Neighbour {
        ifindex: u32_at(body, 4)?,
        master: None,
        mac: None,
        address: None,
    };
    for (kind, value) in Attributes::after(body, NDMSG) {
        match kind {
            NDA_DST => entry.address = ip_of(value),
            NDA_LLADDR => entry.mac = value.try_into().ok().map(MacAddr),
            NDA_MASTER => entry.master = ifindex_of(value),
            _ => {}
        }
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::HostReader;
    use std::process::Command;

    #[test]
    fn only_a_refusal_leads_to_the_neighbour_tables() {
        for (code, expected) in [
            (libc::EPERM, true),
            (libc::EINVAL, true),
            (libc::EOPNOTSUPP, true),
            (libc::ENODEV, false),
            (libc::ENOBUFS, false),
        ] {
            let error = HostError::Netlink {
                what: "a container's interface",
                source: io::Error::from_raw_os_error(code),
                kernel_says: None,
            };
            assert_eq!(is_refusal(&error), expected, "{error}");
        }
    }

    /// In an unnamed namespace that ends with its thread.
    #[test]
    fn the_neighbour_tables_name_a_container_too() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let test = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            for command in [
                "ip link add br0 type bridge",
                "ip link set br0 up",
                "ip link add ve0 type veth peer name eth0",
                "ip link set ve0 master br0 up",
                "bridge fdb add 02:42:0a:c9:01:02 dev ve0 master static",
                "ip neighbour add 10.201.1.2 lladdr 02:42:0a:c9:01:02 dev br0",
                "ip neighbour add fd00:201:1::2 lladdr 02:42:0a:c9:01:02 dev br0",
                // Someone else's, and no one's.
                "ip neighbour add 10.201.1.3 lladdr 02:42:0a:c9:01:03 dev br0",
                "ip neighbour add 10.201.1.4 lladdr 02:42:0a:c9:01:02 nud failed dev br0",
            ] {
                let words: Vec<_> = command.split(' ').collect();
                let done = Command::new(words[0]).args(&words[1..]).status().unwrap();
                assert!(done.success(), "{command}");
            }
            let mut reader = HostReader::open().unwrap();
            let facts = reader.read(|_| true).unwrap();
            let (port, bridge) = (facts.link_named("ve0"), facts.link_named("br0"));
            let (port, bridge) = (port.unwrap(), bridge.unwrap());
            let peer = port.lower.unwrap();
            let mut seen = Neighbourhoods::default();
            let found = seen
                .container(&mut reader.route, port, bridge, peer)
                .unwrap();
            assert_eq!(found.found_by, FoundBy::Neighbours);
            assert_eq!(found.mac, Some(MacAddr([2, 0x42, 10, 201, 1, 2])));
            let expected = ["10.201.1.2/32", "fd00:201:1::2/128"];
            assert_eq!(found.addresses, expected.map(|net| net.parse().unwrap()));
            assert_eq!(found.if_name, None);
        };
        std::thread::spawn(test).join().unwrap();
    }
}
