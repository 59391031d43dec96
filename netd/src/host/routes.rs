//! The local table and the default routes (rtnetlink).

use std::collections::BTreeSet;
use std::io;

use ipnet::IpNet;
use libc::{
    RTA_DST, RTA_GATEWAY, RTA_MULTIPATH, RTA_OIF, RTA_PREFSRC, RTA_PRIORITY, RTA_TABLE, RTA_VIA,
};

use super::HostError;
use super::facts::*;
use super::netlink::{Attributes, Netlink, any_prefix, ifindex_of, ip_of, push_attribute, u32_at};

/// Length of `struct rtmsg`.
const RTMSG: usize = 12;
/// Length of `struct rtnexthop`.
const RTNEXTHOP: usize = 8;
const TABLE_LOCAL: u32 = libc::RT_TABLE_LOCAL as u32;
const FAMILIES: [u8; 2] = [libc::AF_INET as u8, libc::AF_INET6 as u8];

/// The parts of a route that netd reads.
struct Route {
    destination: IpNet,
    table: u32,
    kind: u8,
    metric: u32,
    preferred_source: Option<std::net::IpAddr>,
    next_hops: Vec<NextHop>,
}

#[derive(Clone, Copy, Default)]
struct NextHop {
    ifindex: Option<u32>,
    gateway: Option<std::net::IpAddr>,
}

/// The prefixes of the local table and of the given VRF tables, sorted.
///
/// The kernel filters by table, so a full routing table in main costs nothing here.
pub(super) fn read_local(
    route: &mut Netlink,
    vrf_tables: &BTreeSet<u32>,
) -> Result<Vec<LocalPrefix>, HostError> {
    let mut all = Vec::new();
    for table in vrf_tables.iter().copied().chain([TABLE_LOCAL]) {
        for family in FAMILIES {
            let request = request(family, libc::RTN_UNSPEC, Some(table));
            let what = "the local routes";
            let found = route.dump(what, libc::RTM_GETROUTE, &request, |found, body| {
                // The table again: IPv6 switched off answers with every family's routes.
                let here = |read: &Route| read.table == table && is_family(body, family);
                found.extend(decode(body).filter(here).and_then(local_prefix));
            });
            match found {
                // No such table: nothing was ever put into it.
                Err(HostError::Netlink { source, .. })
                    if source.kind() == io::ErrorKind::NotFound => {}
                found => all.extend(found?),
            }
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// The default routes of every table, sorted.
pub(super) fn read_defaults(route: &mut Netlink) -> Result<Vec<DefaultRoute>, HostError> {
    let mut all = Vec::new();
    for family in FAMILIES {
        let request = request(family, libc::RTN_UNICAST, None);
        let what = "the default routes";
        all.extend(
            route.dump(what, libc::RTM_GETROUTE, &request, |found, body| {
                // A prefix length of 0 is the second byte; the rest of a long table is skipped
                // before anything is decoded.
                if body.get(1) == Some(&0) && is_family(body, family) {
                    found.extend(decode(body).into_iter().flat_map(default_routes));
                }
            })?,
        );
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// A dump request: a `struct rtmsg` and the table.
fn request(family: u8, kind: u8, table: Option<u32>) -> Vec<u8> {
    let mut request = vec![0; RTMSG];
    request[0] = family;
    request[7] = kind;
    if let Some(table) = table {
        push_attribute(&mut request, RTA_TABLE, &table.to_ne_bytes());
    }
    request
}

fn is_family(body: &[u8], family: u8) -> bool {
    body.first() == Some(&family)
}

fn decode(body: &[u8]) -> Option<Route> {
    // family, dst_len, src_len, tos, table, protocol, scope, type
    let [family, prefix_len, _, _, short_table, _, _, kind] = *body.first_chunk::<8>()?;
    let mut destination = any_prefix(family)?.addr();
    let mut table = u32::from(short_table);
    let (mut metric, mut preferred_source) = (0, None);
    let mut single = NextHop::default();
    let mut several = Vec::new();
    for (attribute, value) in Attributes::after(body, RTMSG) {
        match attribute {
            RTA_DST => destination = ip_of(value)?,
            RTA_TABLE => table = u32_at(value, 0)?,
            RTA_PRIORITY => metric = u32_at(value, 0)?,
            RTA_PREFSRC => preferred_source = ip_of(value),
            RTA_MULTIPATH => several = next_hops(value),
            _ => single.read(attribute, value),
        }
    }
    Some(Route {
        destination: IpNet::new(destination, prefix_len).ok()?,
        table,
        kind,
        metric,
        preferred_source,
        next_hops: if several.is_empty() {
            vec![single]
        } else {
            several
        },
    })
}

impl NextHop {
    fn read(&mut self, attribute: u16, value: &[u8]) {
        match attribute {
            RTA_OIF => self.ifindex = ifindex_of(value),
            RTA_GATEWAY => self.gateway = ip_of(value),
            // A next hop of the other family: struct rtvia, family (2 bytes) and address.
            RTA_VIA => self.gateway = value.get(2..).and_then(ip_of),
            _ => {}
        }
    }
}

/// The entries of `RTA_MULTIPATH`: struct rtnexthop (length, flags, hops, ifindex), attributes.
fn next_hops(mut data: &[u8]) -> Vec<NextHop> {
    let mut found = Vec::new();
    while let Some(length) = super::netlink::u16_at(data, 0) {
        let length = usize::from(length);
        let Some(entry) = data.get(..length).filter(|entry| entry.len() >= RTNEXTHOP) else {
            break;
        };
        let mut hop = NextHop {
            ifindex: entry.get(4..8).and_then(ifindex_of),
            gateway: None,
        };
        for (attribute, value) in Attributes::after(entry, RTNEXTHOP) {
            hop.read(attribute, value);
        }
        found.push(hop);
        data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn local_prefix(route: Route) -> Option<LocalPrefix> {
    Some(LocalPrefix {
        prefix: route.destination,
        table: route.table,
        kind: match route.kind {
            libc::RTN_LOCAL => LocalKind::Local,
            libc::RTN_BROADCAST => LocalKind::Broadcast,
            libc::RTN_ANYCAST => LocalKind::Anycast,
            libc::RTN_MULTICAST => LocalKind::Multicast,
            _ => return None,
        },
        ifindex: route.next_hops.first().and_then(|hop| hop.ifindex),
    })
}

fn default_routes(route: Route) -> Vec<DefaultRoute> {
    if route.kind != libc::RTN_UNICAST || route.destination.prefix_len() != 0 {
        return Vec::new();
    }
    let entry = |hop: &NextHop| DefaultRoute {
        table: route.table,
        ipv6: route.destination.addr().is_ipv6(),
        metric: route.metric,
        ifindex: hop.ifindex,
        gateway: hop.gateway,
        preferred_source: route.preferred_source,
    };
    route.next_hops.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_multipath_default_is_one_entry_per_next_hop() {
        let mut body = vec![0; RTMSG];
        body[0] = libc::AF_INET as u8;
        body[4] = 254;
        body[7] = libc::RTN_UNICAST;
        let mut hops = Vec::new();
        for (ifindex, gateway) in [(2u32, [198, 18, 0, 1]), (3, [198, 18, 1, 1])] {
            hops.extend_from_slice(&16u16.to_ne_bytes());
            hops.extend_from_slice(&[0, 0]);
            hops.extend_from_slice(&ifindex.to_ne_bytes());
            push_attribute(&mut hops, RTA_GATEWAY, &gateway);
        }
        push_attribute(&mut body, RTA_MULTIPATH, &hops);
        let found: Vec<_> = default_routes(decode(&body).unwrap())
            .into_iter()
            .map(|route| {
                (
                    route.table,
                    route.ifindex,
                    route.gateway.unwrap().to_string(),
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                (254, Some(2), "198.18.0.1".to_owned()),
                (254, Some(3), "198.18.1.1".to_owned()),
            ]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            if let Some(route) = decode(&bytes) {
                default_routes(route);
            }
            prop_assert!(next_hops(&bytes).len() <= bytes.len());
        }
    }
}
