//! `SOCKETS`: the host's own sockets that were led to containers, and their end.
//!
//! The map is LRU: whoever floods it evicts what was idle longest, and a socket without its entry
//! is one that may send where it likes. So entries of closed sockets do not stay to crowd it.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::{HashMap, MapData};
use netd_common::abi::{
    Backend, EndpointAddress, PortPrefix, SocketKey, SocketPeer, map, port_prefix_base,
};

use super::DataplaneError;
use super::maps::{pinned, unreadable};
use super::pod::Pod;
use super::tables::{Prefix, Tables};
use crate::host::{self, SocketEnder};
use crate::state::batch::for_each;

/// The map, opened.
pub(super) struct SocketTable {
    /// For walking it: aya's typed map does not show its own.
    data: MapData,
    map: HashMap<MapData, Pod<SocketKey>, Pod<SocketPeer>>,
    capacity: usize,
}

/// Seconds after which a connect() that has written an entry has come to its end. Before, its
/// socket may not be listed yet, or not as connected; and without the entry it would go where it
/// likes.
const SETTLED: u32 = 2;

impl SocketTable {
    pub(super) fn open(directory: &Path) -> Result<Self, DataplaneError> {
        let name = map::SOCKETS;
        let data = MapData::from_pin(directory.join(name)).map_err(|e| unreadable(name, e))?;
        let map = pinned(directory, name, HashMap::try_from)?;
        let info = data.info().map_err(|e| unreadable(name, e))?;
        Ok(Self {
            data,
            map,
            capacity: info.max_entries() as usize,
        })
    }

    fn entries(&self) -> Result<Vec<(SocketKey, SocketPeer)>, DataplaneError> {
        let mut entries = Vec::new();
        for_each(&self.data, |key, peer| entries.push((key, peer))).map_err(|source| {
            DataplaneError::ReadMap {
                map: map::SOCKETS,
                source,
            }
        })?;
        Ok(entries)
    }

    /// The LRU may have removed it meanwhile.
    fn remove(&mut self, key: &SocketKey) {
        let _ = self.map.remove(&Pod(*key));
    }
}

/// What [`end_stale`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Sockets that were ended, and entries of unconnected ones that were forgotten.
    pub sockets: usize,
    /// Calls that were about to end; to be looked at again.
    pub unsettled: usize,
}

/// Ends the connected sockets whose container or publish is not in `tables` any more, and forgets
/// what unconnected ones were led to: their next datagram is led anew. `now` is CLOCK_MONOTONIC in
/// seconds.
///
/// A socket that cannot be ended stays in the map, and the packet hooks go on dropping what it
/// sends to the address's next owner.
pub(super) fn end_stale(
    sockets: &mut SocketTable,
    tables: &Tables,
    now: u32,
) -> Result<Ended, DataplaneError> {
    let mut stale = sockets.entries()?;
    stale.retain(|(key, peer)| !is_in_force(tables, key, peer));
    if stale.is_empty() {
        return Ok(Ended::default());
    }
    let open = host::open_sockets()?;
    let mut ender = SocketEnder::open()?;
    let mut ended = Ended::default();
    let mut failed = None;
    for (key, peer) in &stale {
        let port = u16::from_be_bytes(key.port);
        let connected = open
            .get(&key.cookie)
            .filter(|socket| socket.protocol == key.proto)
            .filter(|socket| socket.is_connected_to(key.addr.0, port));
        match connected.map(|socket| ender.end(socket)) {
            None if !is_settled(peer, now) => ended.unsettled += 1,
            None | Some(Ok(())) => {
                sockets.remove(key);
                ended.sockets += 1;
            }
            Some(Err(error)) => failed = Some(error),
        }
    }
    failed.map_or(Ok(ended), |error| Err(error.into()))
}

/// Forgets closed sockets, once the map is a quarter full. `now` is CLOCK_MONOTONIC in seconds.
/// Returns how many entries went.
pub(super) fn forget_closed(sockets: &mut SocketTable, now: u32) -> Result<usize, DataplaneError> {
    let entries = sockets.entries()?;
    if entries.len() < sockets.capacity / 4 {
        return Ok(0);
    }
    let open = host::open_sockets()?;
    let closed = closed(&entries, now, |cookie| open.contains_key(&cookie));
    for key in &closed {
        sockets.remove(key);
    }
    Ok(closed.len())
}

fn closed(
    entries: &[(SocketKey, SocketPeer)],
    now: u32,
    is_open: impl Fn(u64) -> bool,
) -> Vec<SocketKey> {
    entries
        .iter()
        .filter(|(key, peer)| is_settled(peer, now) && !is_open(key.cookie))
        .map(|(key, _)| *key)
        .collect()
}

fn is_settled(peer: &SocketPeer, now: u32) -> bool {
    now.saturating_sub(peer.seen) > SETTLED
}

/// Does what the program asked for still lead to where its socket was led?
fn is_in_force(tables: &Tables, key: &SocketKey, peer: &SocketPeer) -> bool {
    match (peer.addr.unmapped(), key.addr.unmapped()) {
        (Some(asked), Some(backend)) => {
            leads(&tables.publish_v4, key.proto, asked, peer.port) == Some((backend, key.port))
                && is_at(&tables.addrs_v4, &backend, peer.ifindex)
        }
        (None, None) => {
            leads(&tables.publish_v6, key.proto, peer.addr, peer.port) == Some((key.addr, key.port))
                && is_at(&tables.addrs_v6, &key.addr, peer.ifindex)
        }
        _ => false,
    }
}

fn is_at<A: Ord>(addresses: &BTreeMap<A, EndpointAddress>, address: &A, ifindex: u32) -> bool {
    addresses
        .get(address)
        .is_some_and(|owner| owner.ifindex == ifindex)
}

/// Container address and port that a host address and port lead to: of the exact address, else of
/// any.
fn leads<A: Copy + Ord + Default>(
    publish: &BTreeMap<Prefix<PortPrefix<A>>, Backend<A>>,
    proto: u8,
    host: A,
    port: [u8; 2],
) -> Option<(A, [u8; 2])> {
    let number = u16::from_be_bytes(port);
    let of = |addr: A| {
        // The longest prefix first, as the trie finds it.
        (0..=16u32).find_map(|free| {
            publish.get(&Prefix {
                bits: port_prefix_base::<A>() + 16 - free,
                data: PortPrefix {
                    proto,
                    reserved: [0; 3],
                    addr,
                    port: ((u32::from(number) >> free << free) as u16).to_be_bytes(),
                    tail: [0; 2],
                },
            })
        })
    };
    let backend = of(host).or_else(|| of(A::default()))?;
    let offset = number.wrapping_sub(u16::from_be_bytes(backend.host_first));
    let to = u16::from_be_bytes(backend.container_first).wrapping_add(offset);
    Some((backend.addr, to.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use netd_common::abi::{V4Addr, V6Addr};
    use netd_common::wire::{Address as _, proto};

    use super::*;

    const HOST: V4Addr = V4Addr([198, 18, 0, 1]);
    const CONTAINER: V4Addr = V4Addr([10, 200, 0, 2]);

    fn tables() -> Tables {
        let mut tables = Tables::default();
        let row = |addr, port: u16, bits| Prefix {
            bits: port_prefix_base::<V4Addr>() + bits,
            data: PortPrefix {
                proto: proto::TCP,
                reserved: [0; 3],
                addr,
                port: port.to_be_bytes(),
                tail: [0; 2],
            },
        };
        let backend = |addr, first: u16, to: u16| Backend {
            addr,
            host_first: first.to_be_bytes(),
            container_first: to.to_be_bytes(),
            network: 1,
            flags: 0,
        };
        let any = V4Addr::default();
        tables
            .publish_v4
            .insert(row(any, 8000, 12), backend(CONTAINER, 8000, 80));
        let other = V4Addr([10, 200, 0, 3]);
        tables
            .publish_v4
            .insert(row(HOST, 8002, 16), backend(other, 8002, 80));
        for (address, ifindex) in [(CONTAINER, 7), (other, 8)] {
            tables.addrs_v4.insert(
                address,
                EndpointAddress {
                    ifindex,
                    network: 1,
                    reserved: 0,
                },
            );
        }
        tables
    }

    fn entry(asked: (V4Addr, u16), got: (V4Addr, u16), ifindex: u32) -> (SocketKey, SocketPeer) {
        (
            SocketKey {
                cookie: 1,
                addr: got.0.mapped(),
                port: got.1.to_be_bytes(),
                proto: proto::TCP,
                reserved: [0; 5],
            },
            SocketPeer {
                addr: asked.0.mapped(),
                port: asked.1.to_be_bytes(),
                reserved: [0; 2],
                ifindex,
                seen: 0,
            },
        )
    }

    #[test]
    fn a_socket_is_in_force_while_its_publish_leads_to_the_same_container() {
        let loopback = V4Addr([127, 0, 0, 1]);
        let other = V4Addr([10, 200, 0, 3]);
        for (asked, got, ifindex, expected) in [
            ((loopback, 8000), (CONTAINER, 80), 7, true),
            ((loopback, 8015), (CONTAINER, 95), 7, true),
            ((loopback, 8016), (CONTAINER, 96), 7, false),
            ((loopback, 8015), (CONTAINER, 80), 7, false),
            // Another container has the address now.
            ((loopback, 8000), (CONTAINER, 80), 9, false),
            // The exact address comes before any.
            ((HOST, 8002), (other, 80), 8, true),
            ((HOST, 8002), (CONTAINER, 82), 7, false),
            ((loopback, 8002), (CONTAINER, 82), 7, true),
        ] {
            let (key, peer) = entry(asked, got, ifindex);
            assert_eq!(
                is_in_force(&tables(), &key, &peer),
                expected,
                "{asked:?} → {got:?} at {ifindex}"
            );
        }
        let (key, peer) = entry((loopback, 8000), (CONTAINER, 80), 7);
        let udp = SocketKey {
            proto: proto::UDP,
            ..key
        };
        assert!(!is_in_force(&tables(), &udp, &peer));
        let v6 = SocketKey {
            addr: V6Addr([0xfd; 16]),
            ..key
        };
        assert!(!is_in_force(&tables(), &v6, &peer), "families do not mix");
    }
    #[test]
    fn closed_sockets_are_forgotten_once_they_must_have_been_seen_open() {
        let of = |cookie, seen| {
            let (key, peer) = entry((HOST, 8000), (CONTAINER, 80), 7);
            (SocketKey { cookie, ..key }, SocketPeer { seen, ..peer })
        };
        let entries = [of(1, 100), of(2, 100), of(3, 110), of(4, 300)];
        let cookies = |now| {
            let closed = closed(&entries, now, |cookie| cookie == 1);
            closed.iter().map(|key| key.cookie).collect::<Vec<_>>()
        };
        assert_eq!(cookies(102), [0; 0]);
        assert_eq!(cookies(103), [2]);
        // The last was seen after the clock was read.
        assert_eq!(cookies(120), [2, 3]);
    }
}
