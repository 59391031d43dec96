//! Interfaces and their addresses (rtnetlink).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use libc::{
    IFA_ADDRESS, IFA_BROADCAST, IFA_CACHEINFO, IFA_FLAGS, IFA_LOCAL, IFLA_ADDRESS, IFLA_EXT_MASK,
    IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_INFO_SLAVE_DATA, IFLA_INFO_SLAVE_KIND,
    IFLA_LINK, IFLA_LINK_NETNSID, IFLA_LINKINFO, IFLA_MASTER, IFLA_MTU, IFLA_TARGET_NETNSID,
};

use super::HostError;
use super::facts::*;
use super::link::*;
use super::netlink::{
    Attributes, Netlink, i32_at, ifindex_of, ip_of, push_attribute, text_of, u16_at, u32_at,
};

// Not in libc; linux/if_link.h, linux/if_addr.h, linux/rtnetlink.h.
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BR_NF_CALL_IPTABLES: u16 = 36;
const IFLA_BR_NF_CALL_IP6TABLES: u16 = 37;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_VRF_TABLE: u16 = 1;
const IFA_TARGET_NETNSID: u16 = 10;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

/// Length of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;
/// Length of `struct ifaddrmsg`.
const IFADDRMSG: usize = 8;
/// Masters are followed to a VRF so far: port → bond → bridge → VRF is the longest in use.
const MASTER_DEPTH: usize = 4;

/// An interface, with what the rest of it needs: a VRF says its table only about itself.
pub(super) struct ReadLink {
    pub(super) link: Link,
    vrf_table: Option<u32>,
}

/// An interface inside another namespace.
pub(super) struct ForeignLink {
    pub(super) lower: Option<LowerLink>,
    pub(super) name: String,
    pub(super) mac: Option<MacAddr>,
    pub(super) mtu: u32,
}

/// Every interface of the socket's namespace, by ifindex. What other tables say of them
/// (addresses, forwarding) is not filled in yet.
pub(super) fn read_links(route: &mut Netlink) -> Result<Vec<Link>, HostError> {
    let mut request = vec![0; IFINFOMSG];
    let mask = RTEXT_FILTER_SKIP_STATS.to_ne_bytes();
    push_attribute(&mut request, IFLA_EXT_MASK, &mask);
    let mut links = route.dump("interfaces", libc::RTM_GETLINK, &request, |found, body| {
        found.extend(decode_link(body));
    })?;
    links.sort_by_key(|read: &ReadLink| read.link.ifindex);
    links.dedup_by_key(|read| read.link.ifindex);
    for at in 0..links.len() {
        links[at].link.vrf = vrf_of(&links, at);
    }
    Ok(links.into_iter().map(|read| read.link).collect())
}

/// One interface of another namespace.
pub(super) fn read_foreign_link(
    route: &mut Netlink,
    netnsid: i32,
    ifindex: u32,
) -> Result<Option<ForeignLink>, HostError> {
    let mut request = vec![0; IFINFOMSG];
    request[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    push_attribute(&mut request, IFLA_TARGET_NETNSID, &netnsid.to_ne_bytes());
    let mask = RTEXT_FILTER_SKIP_STATS.to_ne_bytes();
    push_attribute(&mut request, IFLA_EXT_MASK, &mask);
    let what = "a container's interface";
    let read = route.get(what, libc::RTM_GETLINK, &request, decode_link)?;
    Ok(read.map(|ReadLink { link, .. }| ForeignLink {
        lower: link.lower,
        name: link.name,
        mac: link.mac,
        mtu: link.mtu,
    }))
}

/// Every address of the socket's namespace, in the kernel's order.
pub(super) fn read_addresses(route: &mut Netlink) -> Result<Vec<Address>, HostError> {
    let request = [0; IFADDRMSG];
    route.dump("addresses", libc::RTM_GETADDR, &request, |found, body| {
        found.extend(decode_address(body));
    })
}

/// Every address on one interface of another namespace, in the kernel's order.
pub(super) fn read_foreign_addresses(
    route: &mut Netlink,
    netnsid: i32,
    ifindex: u32,
) -> Result<Vec<Address>, HostError> {
    let mut request = vec![0; IFADDRMSG];
    request[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    push_attribute(&mut request, IFA_TARGET_NETNSID, &netnsid.to_ne_bytes());
    let what = "a container's addresses";
    route.dump(what, libc::RTM_GETADDR, &request, |found, body| {
        found.extend(decode_address(body).filter(|address| address.ifindex == ifindex));
    })
}

/// Puts into every link the address that it would send from. `addresses` must be in the
/// kernel's order, for the kernel too takes the first that fits.
pub(super) fn fill_primary_addresses(links: &mut [Link], addresses: &[Address]) {
    for link in links {
        let usable = || {
            addresses.iter().filter(|address| {
                address.ifindex == link.ifindex
                    && address.usable()
                    && address.scope == AddressScope::Global
            })
        };
        link.primary_v4 = usable()
            .filter(|address| !address.secondary)
            .find_map(|address| match address.network.addr() {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            });
        // A masquerade address has to last as long as the flow: stable before temporary. Global
        // before unique-local, for it serves every destination.
        link.primary_v6 = usable()
            .filter_map(|address| match address.network.addr() {
                IpAddr::V4(_) => None,
                IpAddr::V6(v6) => Some((address.deprecated, address.secondary, v6)),
            })
            .min_by_key(|(deprecated, temporary, v6)| {
                (*deprecated, *temporary, v6.is_unique_local())
            })
            .map(|(_, _, v6): (_, _, Ipv6Addr)| v6);
    }
}

/// `dev_is_mac_header_xmit` of include/linux/if_arp.h: what `bpf_redirect` takes the Ethernet header
/// off for.
const HEADERLESS: [u16; 9] = [
    libc::ARPHRD_TUNNEL,
    libc::ARPHRD_TUNNEL6,
    libc::ARPHRD_SIT,
    libc::ARPHRD_IPGRE,
    823, // ARPHRD_IP6GRE; not in libc
    libc::ARPHRD_VOID,
    libc::ARPHRD_NONE,
    519, // ARPHRD_RAWIP; not in libc
    libc::ARPHRD_PPP,
];

fn decode_link(body: &[u8]) -> Option<ReadLink> {
    let hardware = u16_at(body, 2)?;
    let ifindex = u32_at(body, 4)?;
    let flags = u32_at(body, 8)?;
    let loopback = flags & libc::IFF_LOOPBACK as u32 != 0;
    let ethernet = hardware == libc::ARPHRD_ETHER || hardware == libc::ARPHRD_LOOPBACK;

    let headerless = HEADERLESS.contains(&hardware);

    let mut link = Link {
        ifindex,
        name: String::new(),
        kind: if loopback {
            LinkKind::Loopback
        } else {
            LinkKind::Physical
        },
        mac: None,
        mtu: 0,
        up: flags & libc::IFF_UP as u32 != 0,
        carrier: flags & libc::IFF_LOWER_UP as u32 != 0,
        ethernet,
        headerless,
        master: None,
        lower: None,
        vrf: None,
        bridge: None,
        port: None,
        primary_v4: None,
        primary_v6: None,
        forwarding_v4: false,
        forwarding_v6: false,
        rp_filter: RpFilter::Off,
    };
    let mut vrf_table = None;
    let mut lower = None;
    let mut netnsid = None;
    for (kind, value) in Attributes::after(body, IFINFOMSG) {
        match kind {
            IFLA_IFNAME => link.name = text_of(value),
            IFLA_ADDRESS if ethernet => link.mac = value.try_into().ok().map(MacAddr),
            IFLA_MTU => link.mtu = u32_at(value, 0).unwrap_or_default(),
            IFLA_MASTER => link.master = ifindex_of(value),
            IFLA_LINK => lower = ifindex_of(value),
            IFLA_LINK_NETNSID => netnsid = i32_at(value, 0),
            IFLA_LINKINFO => vrf_table = decode_link_info(&mut link, value),
            _ => {}
        }
    }
    link.lower = lower.map(|ifindex| LowerLink { ifindex, netnsid });
    Some(ReadLink { link, vrf_table })
}

/// The driver's part. Returns the table of a VRF.
fn decode_link_info(link: &mut Link, info: &[u8]) -> Option<u32> {
    let find =
        |wanted| Attributes(info).find_map(|(kind, value)| (kind == wanted).then_some(value));
    let flag = |value: &[u8]| value.first().is_some_and(|byte| *byte != 0);

    if let Some(driver) = find(IFLA_INFO_KIND) {
        link.kind = match text_of(driver).as_str() {
            "tun" if link.ethernet => LinkKind::Tap,
            driver => LinkKind::from(driver),
        };
    }
    if find(IFLA_INFO_SLAVE_KIND).is_some_and(|driver| text_of(driver) == "bridge") {
        let mut port = BridgePort::default();
        for (kind, value) in Attributes(find(IFLA_INFO_SLAVE_DATA).unwrap_or_default()) {
            match kind {
                IFLA_BRPORT_MODE => port.hairpin = flag(value),
                IFLA_BRPORT_ISOLATED => port.isolated = flag(value),
                _ => {}
            }
        }
        link.port = Some(port);
    }
    let data = find(IFLA_INFO_DATA).unwrap_or_default();
    match link.kind {
        LinkKind::Bridge => {
            let mut bridge = BridgeState::default();
            for (kind, value) in Attributes(data) {
                match kind {
                    IFLA_BR_VLAN_FILTERING => bridge.vlan_filtering = flag(value),
                    IFLA_BR_NF_CALL_IPTABLES => bridge.nf_call_iptables = flag(value),
                    IFLA_BR_NF_CALL_IP6TABLES => bridge.nf_call_ip6tables = flag(value),
                    _ => {}
                }
            }
            link.bridge = Some(bridge);
            None
        }
        LinkKind::Vrf => Attributes(data)
            .find(|(kind, _)| *kind == IFLA_VRF_TABLE)
            .and_then(|(_, value)| u32_at(value, 0)),
        _ => None,
    }
}

fn vrf_of(links: &[ReadLink], at: usize) -> Option<Vrf> {
    let mut at = at;
    for _ in 0..MASTER_DEPTH {
        let master = links[at].link.master?;
        at = links
            .binary_search_by_key(&master, |read| read.link.ifindex)
            .ok()?;
        if let Some(table) = links[at].vrf_table {
            return Some(Vrf {
                ifindex: master,
                table,
            });
        }
    }
    None
}

fn decode_address(body: &[u8]) -> Option<Address> {
    let [family, prefix_len, short_flags, scope] = *body.first_chunk::<4>()?;
    let mut flags = u32::from(short_flags);
    let (mut address, mut local, mut broadcast, mut valid) = (None, None, None, true);
    for (kind, value) in Attributes::after(body, IFADDRMSG) {
        match kind {
            IFA_ADDRESS => address = ip_of(value),
            IFA_LOCAL => local = ip_of(value),
            IFA_BROADCAST => {
                broadcast = <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from);
            }
            IFA_FLAGS => flags = u32_at(value, 0)?,
            // struct ifa_cacheinfo: preferred, then valid lifetime in seconds.
            IFA_CACHEINFO => valid = u32_at(value, 4)? != 0,
            _ => {}
        }
    }
    // IFA_ADDRESS is the peer's address where IFA_LOCAL differs from it.
    let own = local.or(address)?;
    let flag = |bit: u32| flags & bit != 0;
    let ipv6 = i32::from(family) == libc::AF_INET6;
    Some(Address {
        ifindex: u32_at(body, 4)?,
        network: IpNet::new(own, prefix_len).ok()?,
        peer: address.filter(|address| *address != own),
        scope: match scope {
            libc::RT_SCOPE_UNIVERSE => AddressScope::Global,
            libc::RT_SCOPE_LINK => AddressScope::Link,
            libc::RT_SCOPE_HOST => AddressScope::Host,
            libc::RT_SCOPE_NOWHERE => AddressScope::Nowhere,
            _ => AddressScope::Site,
        },
        broadcast,
        // An optimistic address (RFC 4429) is tentative, and usable.
        tentative: ipv6 && flag(libc::IFA_F_TENTATIVE) && !flag(libc::IFA_F_OPTIMISTIC),
        duplicate: flag(libc::IFA_F_DADFAILED),
        deprecated: flag(libc::IFA_F_DEPRECATED),
        secondary: flag(libc::IFA_F_SECONDARY),
        valid,
    })
}
