//! The hops on the way to an address, found as traceroute finds them: with probes of a growing TTL or hop limit.
//!
//! The errors are read from the sockets' error queues (IP_RECVERR, ip(7)): one is counted only if the namespace's own
//! stack knew its inner packet for the socket's, with its real addresses, ports and identifier.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::error::{LabError, Result};
use super::namespace::Namespace;

/// What probes are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// Datagrams to this port, where nobody listens.
    Udp(u16),
    /// Echo requests.
    Echo,
}

/// What came back of one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// A router's word that the probe's time was over.
    Expired(IpAddr),
    /// An echo reply, or the destination's word that nobody listens at the port.
    Arrived(IpAddr),
    /// Another ICMP error, by type and code.
    Error(IpAddr, u8, u8),
    /// Nothing.
    Silence,
}

/// Asks with TTL 1, 2… until something has arrived, or an error says that nothing will, or `limit` hops were asked;
/// the answers in their order. Each probe waits at most `patience`.
pub fn trace(
    namespace: &Namespace,
    to: IpAddr,
    with: Trace,
    limit: u8,
    patience: Duration,
) -> Result<Vec<Hop>> {
    if with == Trace::Echo {
        // For sockets of kind "ping" (icmp(7)): the only ones that have an identifier of their own.
        namespace.set_sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
    }
    let mut hops = Vec::new();
    for ttl in 1..=limit {
        let hop = namespace
            .run(|| probe(to, with, ttl, patience))
            .map_err(|e| {
                LabError::io(
                    format!("probe {to} with TTL {ttl} in {}", namespace.role()),
                    e,
                )
            })?;
        hops.push(hop);
        if matches!(hop, Hop::Arrived(_) | Hop::Error(..)) {
            break;
        }
    }
    Ok(hops)
}

fn probe(to: IpAddr, with: Trace, ttl: u8, patience: Duration) -> io::Result<Hop> {
    let (protocol, port) = match (with, to) {
        (Trace::Udp(port), _) => (Protocol::UDP, port),
        (Trace::Echo, IpAddr::V4(_)) => (Protocol::ICMPV4, 0),
        (Trace::Echo, IpAddr::V6(_)) => (Protocol::ICMPV6, 0),
    };
    let target = SocketAddr::new(to, port);
    let socket = Socket::new(Domain::for_address(target), Type::DGRAM, Some(protocol))?;
    if to.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        socket.set_ttl_v4(ttl.into())?;
    } else {
        setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
        socket.set_unicast_hops_v6(ttl.into())?;
    }
    socket.connect(&target.into())?;
    socket.set_nonblocking(true)?;
    let mut request = vec![if to.is_ipv4() { 8u8 } else { 128 }, 0, 0, 0, 0, 0, 0, ttl];
    request.extend_from_slice(b"where is everybody");
    socket.send(&request)?;
    let deadline = Instant::now() + patience;
    loop {
        if let Some(hop) = error_of(&socket, to)? {
            return Ok(hop);
        }
        let mut answer = [MaybeUninit::uninit(); 2048];
        match socket.recv(&mut answer) {
            Ok(_) => return Ok(Hop::Arrived(to)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // An error is reported here too; its queue is read next.
            Err(_) => continue,
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Hop::Silence);
        }
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, wait)?;
    }
}

/// The next entry of the socket's error queue.
fn error_of(socket: &Socket, to: IpAddr) -> io::Result<Option<Hop>> {
    let mut payload = [0; 2048];
    let mut parts = [IoSliceMut::new(&mut payload)];
    let mut space = cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let message = match recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
    ) {
        Ok(message) => message,
        Err(nix::errno::Errno::EAGAIN) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    for control in message.cmsgs()? {
        let (error, from) = match control {
            ControlMessageOwned::Ipv4RecvErr(error, Some(from)) => {
                let address = std::net::Ipv4Addr::from(u32::from_be(from.sin_addr.s_addr));
                (error, IpAddr::from(address))
            }
            ControlMessageOwned::Ipv6RecvErr(error, Some(from)) => {
                (error, IpAddr::from(from.sin6_addr.s6_addr))
            }
            _ => continue,
        };
        let (kind, code) = (error.ee_type, error.ee_code);
        return Ok(Some(match (to.is_ipv4(), kind, code) {
            _ if ![libc::SO_EE_ORIGIN_ICMP, libc::SO_EE_ORIGIN_ICMP6]
                .contains(&error.ee_origin) =>
            {
                return Err(io::Error::from_raw_os_error(error.ee_errno.cast_signed()));
            }
            (true, 11, 0) | (false, 3, 0) => Hop::Expired(from),
            // Port unreachable, from where the probe was to go.
            (true, 3, 3) | (false, 1, 4) if from == to => Hop::Arrived(from),
            _ => Hop::Error(from, kind, code),
        }));
    }
    Ok(None)
}
