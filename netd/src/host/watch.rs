//! When to read the host again: the kernel's notifications, reduced to what kind of thing changed.
//!
//! What they say is not used, only that they came: state is always read anew, so a notification
//! that was lost costs nothing but is itself a reason to read.

use std::collections::BTreeSet;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};

use bitflags::bitflags;
use netlink_sys::Socket;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, NetlinkAddr, recvmsg, setsockopt, sockopt};
use tokio::io::unix::AsyncFd;

use super::HostError;
use super::containers::decode_neighbour;
use super::netlink::{Message, Messages};

bitflags! {
    /// What changed, as far as a notification tells.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Wake: u16 {
        /// An interface came, went or changed.
        const LINKS = 1 << 0;
        /// An address of the host.
        const ADDRESSES = 1 << 1;
        /// A route, a routing rule or a next hop of the host.
        const ROUTES = 1 << 2;
        /// A forwarding or neighbour entry of a watched bridge.
        const NEIGHBOURS = 1 << 3;
        /// An interface or an address inside another namespace, such as a container's, or the
        /// namespace itself. Never a reason to look up a host route again.
        const CONTAINERS = 1 << 4;
        /// Forwarding or the reverse path filter of an interface.
        const SETTINGS = 1 << 5;
        /// An IPsec policy.
        const IPSEC = 1 << 6;
        /// Notifications were lost: the queue was full. Comes with all others set.
        const LOST = 1 << 7;
    }
}

impl Wake {
    /// Whether a route that was looked up before may no longer hold.
    pub fn affects_routing(self) -> bool {
        self.intersects(Self::LINKS | Self::ADDRESSES | Self::ROUTES | Self::SETTINGS | Self::LOST)
    }
}

/// The kernel's notifications about one network namespace and those that it has ids for.
///
/// Settings that belong to no interface (port ranges, br_netfilter) send none.
pub struct HostWatch {
    /// The namespace's own events.
    own: AsyncFd<Socket>,
    /// Those of namespaces with an id here. A second socket, because a listener on all
    /// namespaces gets every group of theirs: a container's neighbour and route events would
    /// wake netd for nothing.
    others: AsyncFd<Socket>,
    /// `None` where the kernel has no XFRM.
    ipsec: Option<AsyncFd<Socket>>,
    bridges: Option<BTreeSet<u32>>,
    buffer: Vec<u8>,
}

/// `RTNLGRP_NEXTHOP`; not in libc.
pub(super) const RTNLGRP_NEXTHOP: u32 = 32;
const XFRMNLGRP_POLICY: u32 = 4;
const OWN_GROUPS: [u32; 12] = [
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
    libc::RTNLGRP_NSID,
    RTNLGRP_NEXTHOP,
];
const OTHERS_GROUPS: [u32; 3] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
];

/// Room for a burst (a network of hundreds of containers going down); taken only while used.
const QUEUE_BYTES: usize = 1 << 20;
/// One notification; the largest, of an interface, has a few KiB.
pub(super) const NOTIFICATION_BYTES: usize = 32 * 1024;
/// Notifications that one wake takes at most, so that a flood does not hold up the caller.
const BATCH: usize = 1024;

impl HostWatch {
    /// Starts to watch the calling thread's network namespace. Begin before the first reading,
    /// or a change between the two is missed. Needs a tokio runtime with I/O.
    pub fn open() -> Result<Self, HostError> {
        let rtnetlink = |groups, all| subscribe(libc::NETLINK_ROUTE, groups, all);
        let open = |family, opened: io::Result<_>| {
            opened.map_err(|source| HostError::Open { family, source })
        };
        let ipsec = match subscribe(libc::NETLINK_XFRM, &[XFRMNLGRP_POLICY], false) {
            Err(source) if source.raw_os_error() == Some(libc::EPROTONOSUPPORT) => None,
            opened => Some(open("XFRM notifications", opened)?),
        };
        Ok(Self {
            own: open("notifications", rtnetlink(&OWN_GROUPS, false))?,
            others: open(
                "notifications of other namespaces; needs CAP_NET_BROADCAST",
                rtnetlink(&OTHERS_GROUPS, true),
            )?,
            ipsec,
            bridges: None,
            buffer: vec![0; NOTIFICATION_BYTES],
        })
    }

    /// Limits [`Wake::NEIGHBOURS`] to these bridges; before the first call every one counts.
    pub fn set_bridges(&mut self, bridges: BTreeSet<u32>) {
        self.bridges = Some(bridges);
    }

    /// Waits until something changed, and says what; never empty. Takes all that is queued, but
    /// does not wait for more: a burst gives several wakes, and to gather them is the caller's.
    /// Dropping the future loses nothing.
    pub async fn changed(&mut self) -> io::Result<Wake> {
        loop {
            let ipsec_ready = async {
                match &self.ipsec {
                    Some(ipsec) => ipsec.readable().await,
                    None => std::future::pending().await,
                }
            };
            let bridges = self.bridges.as_ref();
            let buffer = &mut self.buffer;
            let (mut ready, read): (_, fn(&Message<'_>, _, _) -> Wake) = tokio::select! {
                ready = self.own.readable() => (ready?, own_wake),
                ready = self.others.readable() => (ready?, others_wake),
                ready = ipsec_ready => (ready?, |_, _, _| Wake::IPSEC),
            };
            let (wake, drained) = drain(ready.get_inner(), buffer, |message, netnsid| {
                read(message, netnsid, bridges)
            })?;
            if drained {
                ready.clear_ready();
            }
            if !wake.is_empty() {
                return Ok(wake);
            }
        }
    }
}

fn subscribe(protocol: i32, groups: &[u32], all: bool) -> io::Result<AsyncFd<Socket>> {
    let socket = open(protocol, groups, all)?;
    // SAFETY: the socket owns its descriptor and closes it when dropped; nothing here takes the
    // descriptor out of it or clones it.
    let registered = unsafe { AsyncFd::register(socket) };
    Ok(registered?)
}

/// A socket that hears these groups, for a thread without a runtime. Reading does not block.
pub(super) fn listen(protocol: i32, groups: &[u32]) -> io::Result<Socket> {
    open(protocol, groups, false)
}

fn open(protocol: i32, groups: &[u32], all: bool) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol as isize)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    // Beyond rmem_max only with CAP_NET_ADMIN in the first user namespace; less is no error,
    // for a lost notification is noticed.
    if setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &QUEUE_BYTES).is_err() {
        socket.set_rx_buf_sz(QUEUE_BYTES as libc::c_int)?;
    }
    if all {
        socket.set_listen_all_namespaces(true)?;
    }
    for group in groups {
        match socket.add_membership(*group) {
            // A group that this kernel does not know sends nothing.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            joined => joined?,
        }
    }
    Ok(socket)
}

/// Reads what is queued. True when nothing is left.
pub(super) fn drain(
    socket: &Socket,
    buffer: &mut [u8],
    mut read: impl FnMut(&Message<'_>, Option<i32>) -> Wake,
) -> io::Result<(Wake, bool)> {
    let mut wake = Wake::empty();
    let mut control = nix::cmsg_space!(i32);
    for _ in 0..BATCH {
        let mut into = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let fd = socket.as_raw_fd();
        match recvmsg::<NetlinkAddr>(fd, &mut into, Some(&mut control), flags) {
            Err(Errno::EAGAIN) => return Ok((wake, true)),
            Err(Errno::EINTR) => {}
            // The kernel could not queue a notification; the ones queued follow.
            Err(Errno::ENOBUFS) => wake = Wake::all(),
            Err(error) => return Err(error.into()),
            Ok(received) => {
                // Processes can send to netlink groups too.
                if received.address.is_some_and(|sender| sender.pid() != 0) {
                    continue;
                }
                let netnsid = received.cmsgs()?.find_map(netnsid_of);
                if received.flags.contains(MsgFlags::MSG_TRUNC) {
                    wake = Wake::all();
                }
                let length = received.bytes;
                for message in Messages(&buffer[..length]) {
                    wake |= read(&message, netnsid);
                }
            }
        }
    }
    Ok((wake, false))
}

/// The namespace that a notification is about, when it is not the socket's own.
fn netnsid_of(control: ControlMessageOwned) -> Option<i32> {
    let ControlMessageOwned::Unknown(control) = control else {
        return None;
    };
    let header = control.cmsg_header;
    if header.cmsg_level != libc::SOL_NETLINK || header.cmsg_type != libc::NETLINK_LISTEN_ALL_NSID {
        return None;
    }
    let id = control.data_bytes.first_chunk()?;
    Some(i32::from_ne_bytes(*id))
}

pub(super) fn own_wake(
    message: &Message<'_>,
    _: Option<i32>,
    bridges: Option<&BTreeSet<u32>>,
) -> Wake {
    // linux/rtnetlink.h; not all of them are in libc.
    match message.kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => Wake::LINKS,
        libc::RTM_NEWADDR | libc::RTM_DELADDR => Wake::ADDRESSES,
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE | libc::RTM_NEWRULE | libc::RTM_DELRULE => {
            Wake::ROUTES
        }
        104 | 105 => Wake::ROUTES, // RTM_NEWNEXTHOP, RTM_DELNEXTHOP
        80 | 81 => Wake::SETTINGS, // RTM_NEWNETCONF, RTM_DELNETCONF
        libc::RTM_NEWNSID | libc::RTM_DELNSID => Wake::CONTAINERS,
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
            // On a bridge's port the bridge is the master; on the bridge, the interface.
            let watched = decode_neighbour(message.body).is_some_and(|entry| {
                bridges
                    .is_none_or(|bridges| bridges.contains(&entry.master.unwrap_or(entry.ifindex)))
            });
            if watched {
                Wake::NEIGHBOURS
            } else {
                Wake::empty()
            }
        }
        _ => Wake::empty(),
    }
}

fn others_wake(_: &Message<'_>, netnsid: Option<i32>, _: Option<&BTreeSet<u32>>) -> Wake {
    // Without an id it is the namespace's own event, which the other socket has got too.
    match netnsid {
        Some(_) => Wake::CONTAINERS,
        None => Wake::empty(),
    }
}
