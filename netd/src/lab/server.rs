//! Servers in a namespace that answer with the peer address they saw.
//!
//! TCP: a client sends lines. `echo <length>` is followed by that many bytes and answered by the [report
//! line](Report) and the same bytes. `sink <length> <seed>` is followed by the bytes of [`Noise`] and answered by a
//! line that says whether they arrived unharmed. `source <length> <seed>` is answered by the line and those bytes. Any
//! other line is answered by the report line alone, so `nc` works by hand. UDP: a datagram is answered by the report
//! line followed by the datagram.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::{fmt, io};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;

use super::error::{LabError, Result};
use super::namespace::Namespace;

/// The longest payload of an `echo`, which is held in memory.
pub const MAX_ECHO: usize = 64 << 20;

/// Where a server listens.
#[derive(Clone, Debug)]
pub struct Listen {
    udp: bool,
    address: IpAddr,
    ports: RangeInclusive<u16>,
}

impl Listen {
    /// On one TCP port.
    pub fn tcp(address: SocketAddr) -> Self {
        Self::tcp_ports(address.ip(), address.port()..=address.port())
    }

    /// On a range of TCP ports.
    pub fn tcp_ports(address: IpAddr, ports: RangeInclusive<u16>) -> Self {
        Self {
            udp: false,
            address,
            ports,
        }
    }

    /// On one UDP port.
    pub fn udp(address: SocketAddr) -> Self {
        Self::udp_ports(address.ip(), address.port()..=address.port())
    }

    /// On a range of UDP ports.
    pub fn udp_ports(address: IpAddr, ports: RangeInclusive<u16>) -> Self {
        Self {
            udp: true,
            address,
            ports,
        }
    }

    /// On a TCP port of every address of both families.
    pub fn tcp_any(port: u16) -> [Self; 2] {
        [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
            .map(|any| Self::tcp_ports(any, port..=port))
    }

    /// On a UDP port of every address of both families.
    pub fn udp_any(port: u16) -> [Self; 2] {
        [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
            .map(|any| Self::udp_ports(any, port..=port))
    }
}

/// A running server; it stops when dropped, and closes its connections then.
#[derive(Debug)]
pub struct Server {
    name: String,
    requests: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a server with a name, which it puts into its answers; it listens when this returns.
    pub fn start(namespace: &Namespace, name: &str, listens: &[Listen]) -> Result<Self> {
        let requests = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = mpsc::channel();
        let identity = Arc::new(Identity {
            name: name.to_owned(),
            requests: Arc::clone(&requests),
        });
        let listens = listens.to_vec();
        let thread = namespace.spawn_thread(&format!("server {name}"), move || {
            let runtime = match tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
            {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            runtime.block_on(async {
                match start_listeners(&identity, &listens) {
                    Ok(()) => {
                        let _ = ready.send(Ok(()));
                        let _ = stopped.await;
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                    }
                }
            });
        })?;
        started
            .recv()
            .map_err(|_| LabError::WorkerGone(namespace.name().to_owned()))?
            .map_err(|e| LabError::io(format!("start server {name} in {}", namespace.role()), e))?;
        Ok(Self {
            name: name.to_owned(),
            requests,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// The server's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many requests and datagrams it has answered: what a dropped probe must not raise.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Stops the server and closes its connections.
    pub fn stop(self) {}
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The line a server answers with: `server=NAME peer=ADDRESS local=ADDRESS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Which server answered.
    pub server: String,
    /// The client's address as the server saw it.
    pub peer: SocketAddr,
    /// The server's address as the client's packets were delivered to it.
    pub local: SocketAddr,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "server={} peer={} local={}",
            self.server, self.peer, self.local
        )
    }
}

impl FromStr for Report {
    type Err = String;

    fn from_str(line: &str) -> std::result::Result<Self, String> {
        let field = |name: &str| {
            line.split_ascii_whitespace()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
                .ok_or_else(|| format!("no {name} in the answer {line:?}"))
        };
        let address = |name| {
            field(name)?
                .parse()
                .map_err(|_| format!("{name} is no address in the answer {line:?}"))
        };
        Ok(Self {
            server: field("server")?.to_owned(),
            peer: address("peer")?,
            local: address("local")?,
        })
    }
}

/// A reproducible byte stream (xorshift64*), so that both ends can check every byte without keeping it.
#[derive(Clone, Debug)]
pub struct Noise {
    state: u64,
}

impl Noise {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        // Zero would be a fixed point.
        Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    /// Writes the next bytes of the stream; all calls but the last must ask for a multiple of eight.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.state ^= self.state >> 12;
            self.state ^= self.state << 25;
            self.state ^= self.state >> 27;
            let word = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// The unit in which [`Noise`] is made and compared.
pub(super) const NOISE_BLOCK: usize = 64 << 10;

struct Identity {
    name: String,
    requests: Arc<AtomicU64>,
}

impl Identity {
    fn report(&self, peer: SocketAddr, local: SocketAddr) -> String {
        self.requests.fetch_add(1, Ordering::Relaxed);
        Report {
            server: self.name.clone(),
            peer,
            local,
        }
        .to_string()
    }
}

fn start_listeners(identity: &Arc<Identity>, listens: &[Listen]) -> io::Result<()> {
    for listen in listens {
        for port in listen.ports.clone() {
            let address = SocketAddr::new(listen.address, port);
            let with_address =
                |e: io::Error| io::Error::new(e.kind(), format!("listen on {address}: {e}"));
            if listen.udp {
                let socket = bind(address, Type::DGRAM, Protocol::UDP).map_err(with_address)?;
                let socket = UdpSocket::from_std(socket.into()).map_err(with_address)?;
                tokio::spawn(answer_datagrams(Arc::clone(identity), socket));
            } else {
                let socket = bind(address, Type::STREAM, Protocol::TCP).map_err(with_address)?;
                socket.listen(1024).map_err(with_address)?;
                let listener = TcpListener::from_std(socket.into()).map_err(with_address)?;
                tokio::spawn(accept(Arc::clone(identity), listener));
            }
        }
    }
    Ok(())
}

fn bind(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        kind.nonblocking(),
        Some(protocol),
    )?;
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

async fn accept(identity: Arc<Identity>, listener: TcpListener) {
    loop {
        if let Ok((stream, peer)) = listener.accept().await {
            tokio::spawn(answer_stream(Arc::clone(&identity), stream, peer));
        }
    }
}

async fn answer_stream(
    identity: Arc<Identity>,
    stream: TcpStream,
    peer: SocketAddr,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
        match (words.first().copied(), number(1), number(2)) {
            (Some("echo"), Some(length), _) if length <= MAX_ECHO as u64 => {
                let mut payload = vec![0; length as usize];
                stream.read_exact(&mut payload).await?;
                let report = identity.report(peer, local);
                stream.write_all(format!("{report}\n").as_bytes()).await?;
                stream.write_all(&payload).await?;
            }
            (Some("sink"), Some(length), Some(seed)) => {
                let harmed = sink(&mut stream, length, seed).await?;
                let state = harmed.map_or("unharmed".to_owned(), |at| format!("harmed={at}"));
                let report = identity.report(peer, local);
                stream
                    .write_all(format!("{report} {state}\n").as_bytes())
                    .await?;
            }
            (Some("source"), Some(length), Some(seed)) => {
                let report = identity.report(peer, local);
                stream.write_all(format!("{report}\n").as_bytes()).await?;
                source(&mut stream, length, seed).await?;
            }
            _ => {
                let report = identity.report(peer, local);
                stream.write_all(format!("{report}\n").as_bytes()).await?;
            }
        }
        stream.flush().await?;
    }
}

/// Reads the stream of `seed`; the offset of the first block that differs, if one does.
async fn sink(
    stream: &mut BufReader<TcpStream>,
    length: u64,
    seed: u64,
) -> io::Result<Option<u64>> {
    let (mut noise, mut harmed, mut offset) = (Noise::new(seed), None, 0);
    let (mut got, mut expected) = (vec![0; NOISE_BLOCK], vec![0; NOISE_BLOCK]);
    while offset < length {
        let step = NOISE_BLOCK.min((length - offset) as usize);
        stream.read_exact(&mut got[..step]).await?;
        noise.fill(&mut expected[..step]);
        if harmed.is_none() && got[..step] != expected[..step] {
            harmed = Some(offset);
        }
        offset += step as u64;
    }
    Ok(harmed)
}

async fn source(stream: &mut BufReader<TcpStream>, length: u64, seed: u64) -> io::Result<()> {
    let (mut noise, mut offset, mut block) = (Noise::new(seed), 0, vec![0; NOISE_BLOCK]);
    while offset < length {
        let step = NOISE_BLOCK.min((length - offset) as usize);
        noise.fill(&mut block[..step]);
        stream.write_all(&block[..step]).await?;
        offset += step as u64;
    }
    Ok(())
}

async fn answer_datagrams(identity: Arc<Identity>, socket: UdpSocket) {
    let mut buffer = vec![0; 65536];
    let Ok(bound) = socket.local_addr() else {
        return;
    };
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let local = SocketAddr::new(local_address_for(bound, peer), bound.port());
        let mut answer = identity.report(peer, local).into_bytes();
        answer.push(b'\n');
        answer.extend_from_slice(&buffer[..length]);
        // Too long with the report in front: the report alone still says who asked.
        if socket.send_to(&answer, peer).await.is_err() {
            let line_end = answer.len() - length;
            let _ = socket.send_to(&answer[..line_end], peer).await;
        }
    }
}

/// The address that an answer of a socket bound to the wildcard leaves with.
fn local_address_for(bound: SocketAddr, peer: SocketAddr) -> IpAddr {
    if !bound.ip().is_unspecified() {
        return bound.ip();
    }
    let routed = || {
        let socket = StdUdpSocket::bind(SocketAddr::new(bound.ip(), 0))?;
        socket.connect(peer)?;
        socket.local_addr()
    };
    routed().map_or(bound.ip(), |address: SocketAddr| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_survive_their_text() {
        let report = Report {
            server: "c0".to_owned(),
            peer: "198.18.0.2:4242".parse().expect("address"),
            local: "[fd00::1]:80".parse().expect("address"),
        };
        assert_eq!(report.to_string().parse(), Ok(report));
        assert!("server=x peer=1.2.3.4".parse::<Report>().is_err());
    }

    #[test]
    fn noise_is_the_same_in_any_division() {
        let (mut whole, mut parts) = ([0; 64], [0; 64]);
        Noise::new(7).fill(&mut whole);
        let mut noise = Noise::new(7);
        noise.fill(&mut parts[..40]);
        noise.fill(&mut parts[40..]);
        assert_eq!(whole, parts);
        let mut other = [0; 64];
        Noise::new(8).fill(&mut other);
        assert_ne!(whole, other);
    }
}
