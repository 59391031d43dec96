//! When a route that was looked up before may no longer hold.
//!
//! [`HostWatch`](super::HostWatch) hears the same notifications, and more of them, but its reader
//! may be busy reading the host anew, for a hundred milliseconds on a large one. This one does
//! nothing but listen, so that flows are told at once.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use netlink_sys::Socket;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::HostError;
use super::containers::{NDMSG, Neighbour, decode_neighbour};
use super::link::MacAddr;
use super::netlink::{Message, Netlink, u16_at};
use super::watch::{NOTIFICATION_BYTES, RTNLGRP_NEXTHOP, Wake, drain, listen, own_wake};

/// The groups of which a message can mean another way.
const GROUPS: [u32; 11] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV4_NETCONF,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_IPV6_NETCONF,
    RTNLGRP_NEXTHOP,
];

/// Bridges whose neighbours are containers; shared with whoever knows them.
#[derive(Clone, Debug, Default)]
pub struct ContainerBridges(Arc<Mutex<BTreeSet<u32>>>);

impl ContainerBridges {
    /// These are they from now on.
    pub fn set(&self, bridges: BTreeSet<u32>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = bridges;
    }
}

/// The kernel's notifications about one network namespace, reduced to one question.
pub struct RouteWatch {
    socket: Socket,
    neighbours: Neighbours,
    bridges: ContainerBridges,
    buffer: Vec<u8>,
}

impl RouteWatch {
    /// Starts to watch the calling thread's network namespace.
    ///
    /// # Errors
    /// When there are no notifications, or the neighbours cannot be listed.
    pub fn open(bridges: ContainerBridges) -> Result<Self, HostError> {
        let failed = |source| HostError::Open {
            family: "notifications",
            source,
        };
        let socket = listen(libc::NETLINK_ROUTE, &GROUPS).map_err(failed)?;
        // After the subscription: what changes meanwhile is told.
        let mut route = Netlink::open(libc::NETLINK_ROUTE as isize).map_err(failed)?;
        let what = "the neighbours";
        let list = route.dump(what, libc::RTM_GETNEIGH, &[0; NDMSG], |found, body| {
            found.extend(decode(body));
        })?;
        let mut neighbours = Neighbours::default();
        for (neighbour, state) in list {
            neighbours.told(&neighbour, state);
        }
        Ok(Self {
            socket,
            neighbours,
            bridges,
            buffer: vec![0; NOTIFICATION_BYTES],
        })
    }

    /// Waits until something happens, `stop` can be read, or the time is over. True if a route may
    /// no longer hold; also when notifications were lost.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn changed(&mut self, stop: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<bool> {
        let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
            // Rounded up, or the caller would come back too early and spin.
            let milliseconds = timeout.as_micros().div_ceil(1000);
            PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
        });
        // SAFETY: the socket owns its descriptor, and lives as long as this borrow of it.
        let socket =
            unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&self.socket)) };
        let mut ready = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop, PollFlags::POLLIN),
        ];
        match poll(&mut ready, timeout) {
            Ok(0) | Err(Errno::EINTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let bridges = self.bridges.0.lock();
        let bridges = bridges.unwrap_or_else(PoisonError::into_inner);
        let neighbours = &mut self.neighbours;
        let mut changed = false;
        let (wake, _) = drain(&self.socket, &mut self.buffer, |message, _| {
            changed |= is_another_way(message, neighbours, &bridges);
            Wake::empty()
        })?;
        Ok(changed || wake.affects_routing())
    }
}

/// May this message mean that a route that was looked up before no longer holds?
fn is_another_way(
    message: &Message<'_>,
    neighbours: &mut Neighbours,
    bridges: &BTreeSet<u32>,
) -> bool {
    match message.kind {
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
            let Some((neighbour, state)) = decode(message.body) else {
                return false;
            };
            // Containers come and go with events of their own.
            if bridges.contains(&neighbour.ifindex) {
                return false;
            }
            if message.kind == libc::RTM_NEWNEIGH {
                neighbours.told(&neighbour, state)
            } else {
                neighbours.forgotten(&neighbour, state)
            }
        }
        // A port of a bridge: its state there is no matter of routes.
        libc::RTM_NEWLINK if message.body.first() == Some(&(libc::AF_BRIDGE as u8)) => false,
        _ => own_wake(message, None, None).affects_routing(),
    }
}

/// A neighbour that has an IP address, and its state.
fn decode(body: &[u8]) -> Option<(Neighbour, u16)> {
    let neighbour = decode_neighbour(body).filter(|entry| entry.address.is_some())?;
    Some((neighbour, u16_at(body, 8)?))
}

/// What was last heard of each neighbour.
///
/// The programs hand packets to the kernel's neighbour table (bpf_redirect_neigh), which knows the
/// Ethernet address at any time. Only two things about a neighbour can change a way: whether it is
/// there at all (of several next hops IPv6 prefers one that answers, and IPv4 does with
/// `fib_multipath_use_neigh`), and its Ethernet address where a flow answers to that one
/// (`return_path = "symmetric"`). Everything else, such as the going and coming of an unused
/// entry, is none.
#[derive(Debug, Default)]
struct Neighbours(HashMap<(u32, IpAddr), Heard>);

/// What was last heard of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// It has this Ethernet address; `None` on a device without.
    At(Option<MacAddr>),
    /// It was there, and does not answer any more.
    Lost,
}

/// More neighbours than a kernel keeps by default (gc_thresh3 is 1024).
const MOST_NEIGHBOURS: usize = 16 * 1024;

impl Neighbours {
    /// RTM_NEWNEIGH. Is it another way?
    fn told(&mut self, neighbour: &Neighbour, state: u16) -> bool {
        let Some(address) = neighbour.address else {
            return false;
        };
        let key = (neighbour.ifindex, address);
        let before = self.0.get(&key).copied();
        if state & libc::NUD_FAILED != 0 {
            // Who never was there (a scan of unused addresses) is no loss.
            let lost = matches!(before, Some(Heard::At(_)));
            if lost {
                self.0.insert(key, Heard::Lost);
            }
            return lost;
        }
        if state & (libc::NUD_NONE | libc::NUD_INCOMPLETE) != 0 || state == 0 {
            return false;
        }
        let now = Heard::At(neighbour.mac);
        if before.is_some() || self.0.len() < MOST_NEIGHBOURS {
            self.0.insert(key, now);
        }
        before.is_some_and(|before| before != now)
    }

    /// RTM_DELNEIGH. Is it another way? A stale entry was merely unused.
    fn forgotten(&mut self, neighbour: &Neighbour, state: u16) -> bool {
        let Some(address) = neighbour.address else {
            return false;
        };
        let before = self.0.remove(&(neighbour.ifindex, address));
        matches!(before, Some(Heard::At(_))) && state & (libc::NUD_STALE | libc::NUD_FAILED) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::push_attribute;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];

    /// A message about 198.18.0.2 on interface 4.
    fn body(family: i32, state: u16, mac: Option<[u8; 6]>) -> Vec<u8> {
        let mut body = vec![0; NDMSG];
        body[0] = family as u8;
        body[4] = 4;
        body[8..10].copy_from_slice(&state.to_ne_bytes());
        push_attribute(&mut body, libc::NDA_DST, &[198, 18, 0, 2]);
        if let Some(mac) = mac {
            push_attribute(&mut body, libc::NDA_LLADDR, &mac);
        }
        body
    }

    fn is_change(heard: &mut Neighbours, kind: u16, state: u16, mac: Option<[u8; 6]>) -> bool {
        let message = Message {
            kind,
            flags: 0,
            sequence: 0,
            body: &body(libc::AF_INET, state, mac),
        };
        is_another_way(&message, heard, &BTreeSet::from([9]))
    }

    #[test]
    fn only_loss_return_and_another_address_of_a_neighbour_are_another_way() {
        const NEW: u16 = libc::RTM_NEWNEIGH;
        const GONE: u16 = libc::RTM_DELNEIGH;
        let mut heard = Neighbours::default();
        for (name, kind, state, mac, expected) in [
            ("asked for", NEW, libc::NUD_INCOMPLETE, None, false),
            ("never there", NEW, libc::NUD_FAILED, None, false),
            ("found", NEW, libc::NUD_REACHABLE, Some(MAC), false),
            ("aged", NEW, libc::NUD_STALE, Some(MAC), false),
            ("asked again", NEW, libc::NUD_PROBE, Some(MAC), false),
            ("moved", NEW, libc::NUD_REACHABLE, Some(OTHER), true),
            ("lost", NEW, libc::NUD_FAILED, None, true),
            ("still lost", NEW, libc::NUD_FAILED, None, false),
            ("asked for again", NEW, libc::NUD_INCOMPLETE, None, false),
            ("back", NEW, libc::NUD_REACHABLE, Some(OTHER), true),
            ("stale", NEW, libc::NUD_STALE, Some(OTHER), false),
            ("collected", GONE, libc::NUD_STALE, Some(OTHER), false),
            (
                "found once more",
                NEW,
                libc::NUD_REACHABLE,
                Some(MAC),
                false,
            ),
            ("taken away", GONE, libc::NUD_REACHABLE, Some(MAC), true),
            (
                "taken away twice",
                GONE,
                libc::NUD_REACHABLE,
                Some(MAC),
                false,
            ),
        ] {
            assert_eq!(is_change(&mut heard, kind, state, mac), expected, "{name}");
        }
    }

    #[test]
    fn containers_and_ports_of_bridges_are_no_matter_of_routes() {
        let mut heard = Neighbours::default();
        let bridges = BTreeSet::from([4]);
        for (mac, state) in [(MAC, libc::NUD_REACHABLE), (OTHER, libc::NUD_REACHABLE)] {
            let message = Message {
                kind: libc::RTM_NEWNEIGH,
                flags: 0,
                sequence: 0,
                body: &body(libc::AF_INET, state, Some(mac)),
            };
            assert!(!is_another_way(&message, &mut heard, &bridges));
        }
        for (family, expected) in [(libc::AF_BRIDGE, false), (libc::AF_UNSPEC, true)] {
            let link = Message {
                kind: libc::RTM_NEWLINK,
                flags: 0,
                sequence: 0,
                body: &[family as u8, 0, 0, 0],
            };
            assert_eq!(is_another_way(&link, &mut heard, &bridges), expected);
        }
    }
}
