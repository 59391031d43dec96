//! Sockets as programs of the host open them, and what they see.

use std::io::{self, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use netd::lab::Report;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// How a program talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// TCP.
    Tcp,
    /// UDP, connected first.
    Connected,
    /// UDP, every datagram with an address.
    Unconnected,
}

/// What it binds its socket to first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    No,
    Address(SocketAddr),
    Device(&'static str),
}

/// What it saw of the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who answered, and whom that saw.
    pub report: Report,
    /// The peer that the program was shown: by getpeername, and by recvmsg of UDP.
    pub shown: Vec<SocketAddr>,
}

/// Asks a server, in the network namespace of the calling thread.
pub fn ask(way: Way, bound: &Bound, to: SocketAddr, patience: Duration) -> io::Result<Answer> {
    let socket = open(way, bound, to)?;
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(patience))?;
    match way {
        Way::Tcp => {
            socket.connect_timeout(&to.into(), patience)?;
            let report = ask_stream(&mut TcpStream::from(socket.try_clone()?))?;
            let shown = vec![shown(&socket)?];
            Ok(Answer { report, shown })
        }
        Way::Connected => {
            socket.connect(&to.into())?;
            socket.send(b"?")?;
            let (report, from) = receive(&socket)?;
            let shown = vec![shown(&socket)?, from];
            Ok(Answer { report, shown })
        }
        Way::Unconnected => {
            socket.send_to(b"?", &to.into())?;
            let (report, from) = receive(&socket)?;
            let shown = vec![from];
            Ok(Answer { report, shown })
        }
    }
}

/// A socket of the family of `to`, bound.
pub fn open(way: Way, bound: &Bound, to: SocketAddr) -> io::Result<Socket> {
    let (kind, protocol) = match way {
        Way::Tcp => (Type::STREAM, Protocol::TCP),
        _ => (Type::DGRAM, Protocol::UDP),
    };
    let socket = Socket::new(Domain::for_address(to), kind, Some(protocol))?;
    match bound {
        Bound::No => {}
        Bound::Address(address) => socket.bind(&(*address).into())?,
        Bound::Device(device) => socket.bind_device(Some(device.as_bytes()))?,
    }
    Ok(socket)
}

/// One question over a connection, and who answered it.
pub fn ask_stream(stream: &mut TcpStream) -> io::Result<Report> {
    stream.write_all(b"who\n")?;
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != [b'\n'] {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    parse(&line)
}

/// One question over a connected UDP socket.
pub fn ask_datagram(socket: &UdpSocket) -> io::Result<Report> {
    socket.send(b"?")?;
    let mut buffer = [0; 1024];
    let length = socket.recv(&mut buffer)?;
    parse(&buffer[..length])
}

/// One datagram, and the address that it is shown to come from.
pub fn receive(socket: &Socket) -> io::Result<(Report, SocketAddr)> {
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let (length, from) = socket.recv_from(&mut buffer)?;
    // SAFETY: the kernel has written `length` bytes.
    let bytes: Vec<u8> = buffer[..length]
        .iter()
        .map(|byte| unsafe { byte.assume_init() })
        .collect();
    Ok((parse(&bytes)?, address(&from)?))
}

/// What getpeername says.
pub fn shown(socket: &Socket) -> io::Result<SocketAddr> {
    address(&socket.peer_addr()?)
}

fn address(address: &SockAddr) -> io::Result<SocketAddr> {
    address
        .as_socket()
        .ok_or_else(|| io::Error::other("not an IP address"))
}

fn parse(answer: &[u8]) -> io::Result<Report> {
    let line = String::from_utf8_lossy(answer);
    let line = line.lines().next().unwrap_or_default();
    line.parse().map_err(io::Error::other)
}
