//! Ending connected sockets of the host (SOCK_DESTROY of sock_diag).

use std::collections::BTreeMap;

use super::netlink::Netlink;
use super::{HostError, IpFamily, open};

// linux/sock_diag.h, linux/inet_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const SOCKET_ID: usize = 48;
/// Where it begins in `struct inet_diag_msg`: family, state, timer and retransmits come first.
const ID_IN_ANSWER: usize = 4;
/// Where the cookie is in it: two native words, the lower one first.
const COOKIE_IN_ID: usize = 40;
/// All states but TIME_WAIT and LISTEN: a socket that is, or is about to be, connected.
const CONNECTED_STATES: u32 = !(1 << 6 | 1 << 10);

/// A socket as sock_diag names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSocket {
    /// The kernel's cookie (SO_COOKIE).
    pub cookie: u64,
    /// IP protocol.
    pub protocol: u8,
    /// Port of its peer; 0: not connected.
    pub peer_port: u16,
    /// Address of its peer: 16 bytes, IPv4 in the first four unless the socket is an IPv6 one.
    pub peer: [u8; 16],
    /// AF_INET or AF_INET6.
    family: u8,
    id: [u8; SOCKET_ID],
}

/// The TCP and UDP sockets of the calling thread's network namespace, by cookie.
///
/// # Errors
/// Where the kernel cannot list them (modules tcp_diag and udp_diag).
pub fn open_sockets() -> Result<BTreeMap<u64, OpenSocket>, HostError> {
    let mut diag = open(libc::NETLINK_SOCK_DIAG, "sock_diag")?;
    let mut all = BTreeMap::new();
    for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
        for family in [IpFamily::V4, IpFamily::V6] {
            let request = request(family.number(), protocol as u8, &[0; SOCKET_ID]);
            let what = "the host's sockets (modules tcp_diag, udp_diag)";
            let found = diag.dump(what, SOCK_DIAG_BY_FAMILY, &request, |found, body| {
                found.extend(decode(protocol as u8, body));
            })?;
            all.extend(
                found
                    .into_iter()
                    .map(|socket: OpenSocket| (socket.cookie, socket)),
            );
        }
    }
    Ok(all)
}

/// Ends sockets, exactly these: the kernel compares the cookie. Their programs get ECONNABORTED. A
/// socket that is gone already is no error.
pub struct SocketEnder(Netlink);

impl SocketEnder {
    /// Opens the netlink socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open() -> Result<Self, HostError> {
        open(libc::NETLINK_SOCK_DIAG, "sock_diag").map(Self)
    }

    /// Ends one.
    ///
    /// # Errors
    /// EOPNOTSUPP where the kernel is built without CONFIG_INET_DIAG_DESTROY.
    pub fn end(&mut self, socket: &OpenSocket) -> Result<(), HostError> {
        let request = request(socket.family, socket.protocol, &socket.id);
        let what = "whether a socket ended (CONFIG_INET_DIAG_DESTROY)";
        match self.0.get(what, SOCK_DESTROY, &request, |_| None::<()>) {
            Err(HostError::Netlink { source, .. })
                if source.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(())
            }
            result => result.map(drop),
        }
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, protocol: u8, id: &[u8; SOCKET_ID]) -> Vec<u8> {
    let mut request = vec![family, protocol, 0, 0];
    request.extend_from_slice(&CONNECTED_STATES.to_ne_bytes());
    request.extend_from_slice(id);
    request
}

fn decode(protocol: u8, body: &[u8]) -> Option<OpenSocket> {
    let id: [u8; SOCKET_ID] = *body.get(ID_IN_ANSWER..)?.first_chunk()?;
    let word = |at: usize| u32::from_ne_bytes([id[at], id[at + 1], id[at + 2], id[at + 3]]);
    let mut peer = [0; 16];
    peer.copy_from_slice(&id[20..36]);
    Some(OpenSocket {
        cookie: u64::from(word(COOKIE_IN_ID)) | u64::from(word(COOKIE_IN_ID + 4)) << 32,
        protocol,
        peer_port: u16::from_be_bytes([id[2], id[3]]),
        peer,
        family: *body.first()?,
        id,
    })
}

impl OpenSocket {
    /// Is it connected to this address (IPv4 as `::ffff:a.b.c.d`) and port?
    pub fn is_connected_to(&self, address: [u8; 16], port: u16) -> bool {
        let mut peer = self.peer;
        if self.family == libc::AF_INET as u8 {
            peer = [0; 16];
            peer[10..12].fill(0xff);
            peer[12..].copy_from_slice(&self.peer[..4]);
        }
        self.peer_port == port && peer == address
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_message_is_read_as_the_kernel_writes_it() {
        let mut body = vec![libc::AF_INET as u8, 1, 0, 0];
        body.extend(40000u16.to_be_bytes());
        body.extend(80u16.to_be_bytes());
        body.extend([198, 18, 0, 1].iter().chain(&[0; 12]));
        body.extend([10, 200, 0, 2].iter().chain(&[0; 12]));
        body.extend(0u32.to_ne_bytes());
        body.extend(7u32.to_ne_bytes());
        body.extend(1u32.to_ne_bytes());
        body.extend([0; 20]);
        let socket = decode(6, &body).unwrap();
        assert_eq!(socket.cookie, 1 << 32 | 7);
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 200, 0, 2];
        assert!(socket.is_connected_to(mapped, 80));
        assert!(!socket.is_connected_to(mapped, 81));
        assert_eq!(decode(6, &body[..40]), None);
    }

    /// Connected within loopback, by the kernel's own word: the cookies are those of SO_COOKIE.
    #[test]
    fn own_sockets_are_found_by_their_cookies() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let stream = TcpStream::connect(to).unwrap();
        let cookie = socket2::SockRef::from(&stream).cookie().unwrap();
        let found = match open_sockets() {
            Ok(all) => all[&cookie].clone(),
            Err(error) => {
                println!("skipped: {error}");
                return;
            }
        };
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];
        assert!(found.is_connected_to(mapped, to.port()));
    }
}
