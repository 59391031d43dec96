//! Ports that programs of the host hold (sock_diag).

use std::net::IpAddr;

use serde::Serialize;

use super::netlink::{Attributes, any_prefix, ip_of, u32_at};
use super::{HostError, IpFamily, open};

/// A socket that takes packets from anyone: TCP or SCTP that listens, UDP that is bound and not
/// connected.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct LocalListener {
    /// Its protocol.
    pub protocol: ListenerProtocol,
    /// The address that it is bound to; unspecified is any.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Bound to `::` it takes IPv4 too.
    pub dual_stack: bool,
    /// The interface that it is bound to.
    pub ifindex: Option<u32>,
    /// Owner of the socket.
    pub uid: u32,
    /// The socket's inode, which /proc/PID/fd names too.
    pub inode: u32,
}

/// Protocol of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum ListenerProtocol {
    Tcp,
    Udp,
    Sctp,
}

impl LocalListener {
    /// Whether a packet to that address could reach it, if the port is right.
    pub fn takes(&self, address: IpAddr) -> bool {
        if self.address.is_unspecified() {
            self.address.is_ipv4() == address.is_ipv4() || (self.dual_stack && address.is_ipv4())
        } else {
            self.address == address
        }
    }
}

// linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_SKV6ONLY: u16 = 11;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;
/// `struct inet_diag_req_v2`: 8 bytes, then an all-zero `struct inet_diag_sockid`.
const REQUEST: usize = 8 + 48;
/// `struct inet_diag_msg`.
const ANSWER: usize = 72;

/// Every listener of the calling thread's network namespace, sorted. Fails where the kernel cannot
/// list TCP or UDP (their modules are tcp_diag and udp_diag): none would be the wrong answer. A
/// kernel that cannot list SCTP has none of it.
pub fn local_listeners() -> Result<Vec<LocalListener>, HostError> {
    let mut diag = open(libc::NETLINK_SOCK_DIAG, "sock_diag")?;
    let mut all = Vec::new();
    for (protocol, number, state) in [
        (ListenerProtocol::Tcp, libc::IPPROTO_TCP, TCP_LISTEN),
        (ListenerProtocol::Udp, libc::IPPROTO_UDP, TCP_CLOSE),
        (ListenerProtocol::Sctp, libc::IPPROTO_SCTP, TCP_LISTEN),
    ] {
        for family in [IpFamily::V4, IpFamily::V6] {
            let mut request = [0; REQUEST];
            request[0] = family.number();
            request[1] = number as u8;
            request[4..8].copy_from_slice(&(1u32 << state).to_ne_bytes());
            let what = "the host's listeners (modules tcp_diag, udp_diag)";
            let found = diag.dump(what, SOCK_DIAG_BY_FAMILY, &request, |found, body| {
                found.extend(decode(protocol, body));
            });
            match found {
                Err(HostError::Netlink { source, .. })
                    if protocol == ListenerProtocol::Sctp
                        && matches!(
                            source.raw_os_error(),
                            Some(libc::ENOENT | libc::EPROTONOSUPPORT)
                        ) => {}
                found => all.extend(found?),
            }
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// Reads `struct inet_diag_msg`: family, state, timer, retransmits; then the socket id: ports
/// (big endian), source and destination (16 bytes each), interface, cookie (8 bytes); then
/// expires, the two queues, uid, inode.
fn decode(protocol: ListenerProtocol, body: &[u8]) -> Option<LocalListener> {
    let family = *body.first()?;
    let port = u16::from_be_bytes(*body.get(4..)?.first_chunk()?);
    let length = if any_prefix(family)?.addr().is_ipv4() {
        4
    } else {
        16
    };
    let address = ip_of(body.get(8..8 + length)?)?;
    let v6_only = Attributes::after(body, ANSWER)
        .find(|(kind, _)| *kind == INET_DIAG_SKV6ONLY)
        .is_some_and(|(_, value)| value.first().is_some_and(|only| *only != 0));
    // A UDP socket that was never bound has port 0 and is not hashed; kernels differ in listing.
    (port != 0).then_some(LocalListener {
        protocol,
        address,
        port,
        dual_stack: address.is_ipv6() && address.is_unspecified() && !v6_only,
        ifindex: u32_at(body, 40).filter(|ifindex| *ifindex != 0),
        uid: u32_at(body, 64)?,
        inode: u32_at(body, 68)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_take_their_family_and_dual_stack_takes_both() {
        let listener = |address: &str, dual_stack| LocalListener {
            protocol: ListenerProtocol::Tcp,
            address: address.parse().unwrap(),
            port: 80,
            dual_stack,
            ifindex: None,
            uid: 0,
            inode: 1,
        };
        for (bound, dual_stack, to, expected) in [
            ("0.0.0.0", false, "198.18.0.1", true),
            ("0.0.0.0", false, "fd00::1", false),
            ("::", true, "198.18.0.1", true),
            ("::", false, "198.18.0.1", false),
            ("::", false, "fd00::1", true),
            ("127.0.0.1", false, "198.18.0.1", false),
            ("198.18.0.1", false, "198.18.0.1", true),
        ] {
            let takes = listener(bound, dual_stack).takes(to.parse().unwrap());
            assert_eq!(takes, expected, "{bound} dual_stack={dual_stack} ← {to}");
        }
    }
}
