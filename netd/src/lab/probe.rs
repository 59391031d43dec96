//! Single questions to a [`super::Server`], over TCP and UDP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::namespace::Namespace;
use super::outcome::{Answer, Outcome};
use super::server::{Noise, Report};

/// How a probe is made.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// Own address and port to bind to; port 0 is any.
    pub source: Option<SocketAddr>,
    /// Device to bind to (SO_BINDTODEVICE).
    pub device: Option<String>,
    /// For the whole probe. A probe that is expected to be dropped takes this long.
    pub timeout: Duration,
    /// Bytes to send and to get back; for UDP at most 65,000.
    pub payload: usize,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self {
            source: None,
            device: None,
            timeout: Duration::from_secs(1),
            payload: 32,
        }
    }
}

impl ProbeOptions {
    /// The same with an address and port to bind to.
    pub fn source(self, source: SocketAddr) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }

    /// The same with a timeout.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The same with a payload size.
    pub fn payload(self, payload: usize) -> Self {
        Self { payload, ..self }
    }
}

/// Connects from the namespace, sends a payload and reads it back.
pub fn tcp_probe(namespace: &Namespace, to: SocketAddr, options: &ProbeOptions) -> Outcome {
    let started = Instant::now();
    match Connection::open(namespace, to, options) {
        Ok(mut connection) => match connection.exchange(options.payload, options.timeout) {
            Outcome::Answered(answer) => Outcome::Answered(Answer {
                elapsed: started.elapsed(),
                ..answer
            }),
            other => other,
        },
        Err(outcome) => outcome,
    }
}

/// Sends one datagram from the namespace and waits for its answer.
pub fn udp_probe(namespace: &Namespace, to: SocketAddr, options: &ProbeOptions) -> Outcome {
    let started = Instant::now();
    let asked = namespace.run(|| -> std::io::Result<_> {
        let socket = UdpSocket::from(socket(to, Type::DGRAM, Protocol::UDP, options)?);
        socket.connect(to)?;
        socket.set_read_timeout(Some(options.timeout))?;
        let payload = payload(options.payload, socket.local_addr()?.port().into());
        socket.send(&payload)?;
        let mut buffer = vec![0; 65536];
        let length = socket.recv(&mut buffer)?;
        buffer.truncate(length);
        Ok((payload, buffer))
    });
    match asked {
        Ok((payload, answer)) => check_datagram(&answer, &payload, started.elapsed()),
        Err(error) => Outcome::from_error(&error),
    }
}

/// A TCP connection that stays open, to see whether an established flow lives on.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    exchanges: u64,
}

impl Connection {
    /// Connects from the namespace; the outcome says why not.
    pub fn open(
        namespace: &Namespace,
        to: SocketAddr,
        options: &ProbeOptions,
    ) -> Result<Self, Outcome> {
        let connected = namespace.run(|| {
            let socket = socket(to, Type::STREAM, Protocol::TCP, options)?;
            socket.connect_timeout(&to.into(), options.timeout)?;
            socket.set_tcp_nodelay(true)?;
            Ok(TcpStream::from(socket))
        });
        match connected {
            Ok(stream) => Ok(Self {
                stream: BufReader::new(stream),
                exchanges: 0,
            }),
            Err(error) => Err(Outcome::from_error(&error)),
        }
    }

    /// Sends `length` bytes and reads them back.
    pub fn exchange(&mut self, length: usize, timeout: Duration) -> Outcome {
        let started = Instant::now();
        self.exchanges += 1;
        let sent = payload(length, self.exchanges);
        match self.ask(&sent, timeout) {
            Ok((line, received)) => match line.parse::<Report>() {
                Err(what) => Outcome::Corrupt(what),
                Ok(_) if received != sent => Outcome::Corrupt(difference(&sent, &received)),
                Ok(report) => Outcome::Answered(Answer {
                    report: Some(report),
                    elapsed: started.elapsed(),
                }),
            },
            Err(error) => Outcome::from_error(&error),
        }
    }

    /// The client's own address.
    pub fn local(&self) -> std::io::Result<SocketAddr> {
        self.stream.get_ref().local_addr()
    }

    /// The stream, for another protocol than the server's.
    pub fn stream(&mut self) -> &mut TcpStream {
        self.stream.get_mut()
    }

    pub(super) fn reader(&mut self) -> &mut BufReader<TcpStream> {
        &mut self.stream
    }

    fn ask(&mut self, payload: &[u8], timeout: Duration) -> std::io::Result<(String, Vec<u8>)> {
        let deadline = Instant::now() + timeout;
        let stream = self.stream.get_mut();
        stream.set_write_timeout(Some(timeout))?;
        stream.set_read_timeout(Some(timeout))?;
        stream.write_all(format!("echo {}\n", payload.len()).as_bytes())?;
        stream.write_all(payload)?;
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let mut received = vec![0; payload.len()];
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        self.stream.get_mut().set_read_timeout(Some(left))?;
        self.stream.read_exact(&mut received)?;
        Ok((line, received))
    }
}

/// An unconnected socket with the probe's options.
pub(super) fn socket(
    to: SocketAddr,
    kind: Type,
    protocol: Protocol,
    options: &ProbeOptions,
) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), kind, Some(protocol))?;
    if let Some(device) = &options.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if let Some(source) = options.source {
        if kind == Type::STREAM {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&source.into())?;
    } else if kind == Type::DGRAM {
        let any = if to.is_ipv4() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        socket.bind(&SocketAddr::new(any, 0).into())?;
    }
    Ok(socket)
}

/// Compares the answer to a datagram with what was sent.
pub(super) fn check_datagram(answer: &[u8], sent: &[u8], elapsed: Duration) -> Outcome {
    let Some(end) = answer.iter().position(|&byte| byte == b'\n') else {
        return Outcome::Corrupt("the answer has no report line".to_owned());
    };
    let line = String::from_utf8_lossy(&answer[..end]);
    match line.parse::<Report>() {
        Err(what) => Outcome::Corrupt(what),
        Ok(_) if answer[end + 1..] != *sent => {
            Outcome::Corrupt(difference(sent, &answer[end + 1..]))
        }
        Ok(report) => Outcome::Answered(Answer {
            report: Some(report),
            elapsed,
        }),
    }
}

fn payload(length: usize, seed: u64) -> Vec<u8> {
    let mut payload = vec![0; length];
    Noise::new(seed).fill(&mut payload);
    payload
}

fn difference(sent: &[u8], received: &[u8]) -> String {
    match sent.iter().zip(received).position(|(a, b)| a != b) {
        Some(at) => format!("byte {at} of {} came back changed", sent.len()),
        None => format!("{} bytes came back of {}", received.len(), sent.len()),
    }
}
