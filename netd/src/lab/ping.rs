//! Echo requests through a raw socket (RFC 792, RFC 4443).

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::decode::Decoded;
use super::frame::{Frame, protocol};
use super::namespace::Namespace;
use super::outcome::{Answer, Outcome};
use super::probe::ProbeOptions;

/// Sends one echo request from the namespace and waits for its reply, or for an ICMP error about it.
pub fn ping(namespace: &Namespace, to: IpAddr, options: &ProbeOptions) -> Outcome {
    match namespace.run(|| ask(to, options)) {
        Ok(outcome) => outcome,
        Err(error) => Outcome::from_error(&error),
    }
}

fn ask(to: IpAddr, options: &ProbeOptions) -> io::Result<Outcome> {
    // Unique in the process, which is enough: each lab has namespaces of its own.
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let identifier =
        NEXT.fetch_add(1, Ordering::Relaxed) ^ (std::process::id() as u16).rotate_left(8);
    let protocol = if to.is_ipv4() {
        Protocol::ICMPV4
    } else {
        Protocol::ICMPV6
    };
    let target = SocketAddr::new(to, 0);
    let socket = Socket::new(Domain::for_address(target), Type::RAW, Some(protocol))?;
    if let Some(device) = &options.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if let Some(source) = options.source {
        socket.bind(&SocketAddr::new(source.ip(), 0).into())?;
    }
    let payload = vec![0x5a; options.payload];
    let request = echo_request(to, identifier, &payload);
    let started = Instant::now();
    let deadline = started + options.timeout;
    socket.send_to(&request, &target.into())?;
    let mut buffer = vec![MaybeUninit::uninit(); 65536];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Outcome::Timeout);
        }
        socket.set_read_timeout(Some(left))?;
        let (length, from) = socket.recv_from(&mut buffer)?;
        // SAFETY: recv_from initialised the first `length` bytes.
        let bytes: Vec<u8> = buffer[..length]
            .iter()
            .map(|byte| unsafe { byte.assume_init() })
            .collect();
        let message = if to.is_ipv4() {
            after_ipv4_header(&bytes)
        } else {
            &bytes[..]
        };
        let from = from.as_socket().map(|address| address.ip());
        if let Some(outcome) = judge(message, to, from, identifier, &payload) {
            return Ok(match outcome {
                Outcome::Answered(answer) => Outcome::Answered(Answer {
                    elapsed: started.elapsed(),
                    ..answer
                }),
                other => other,
            });
        }
    }
}

/// The ICMP message of an echo request; the kernel sums ICMPv6 itself.
fn echo_request(to: IpAddr, identifier: u16, payload: &[u8]) -> Vec<u8> {
    let packet = Frame::bare()
        .ip(to, to)
        .echo_request(identifier, 1)
        .payload(payload)
        .build();
    packet[if to.is_ipv4() { 20 } else { 40 }..].to_vec()
}

fn after_ipv4_header(packet: &[u8]) -> &[u8] {
    let length = packet.first().map_or(0, |byte| usize::from(byte & 15) * 4);
    packet.get(length..).unwrap_or_default()
}

/// What an ICMP message means for the request; None if it is about something else.
fn judge(
    message: &[u8],
    to: IpAddr,
    from: Option<IpAddr>,
    identifier: u16,
    payload: &[u8],
) -> Option<Outcome> {
    let (reply, errors): (u8, &[u8]) = if to.is_ipv4() {
        (0, &[3, 11])
    } else {
        (129, &[1, 2, 3])
    };
    let (&kind, &code) = (message.first()?, message.get(1)?);
    if kind == reply {
        if message.get(4..6)? != identifier.to_be_bytes() {
            return None;
        }
        if message.get(8..)? != payload {
            return Some(Outcome::Corrupt(
                "the echo's payload came back changed".to_owned(),
            ));
        }
        if from != Some(to) {
            return Some(Outcome::Corrupt(format!(
                "the echo of {to} came from {from:?}"
            )));
        }
        return Some(Outcome::Answered(Answer {
            report: None,
            elapsed: Default::default(),
        }));
    }
    if !errors.contains(&kind) {
        return None;
    }
    let embedded = Decoded::read(message.get(8..)?, false);
    let request = [protocol::ICMP, protocol::ICMPV6].contains(&embedded.protocol?)
        && embedded.destination? == to;
    let embedded_header = if to.is_ipv4() {
        after_ipv4_header(message.get(8..)?)
    } else {
        message.get(48..)?
    };
    if !request || embedded_header.get(4..6)? != identifier.to_be_bytes() {
        return None;
    }
    Some(Outcome::Unreachable(match (to.is_ipv4(), kind, code) {
        (true, 3, 0) | (false, 1, 0) => Errno::ENETUNREACH,
        (true, 3, 2) => Errno::ENOPROTOOPT,
        (true, 3, 4) | (false, 2, _) => Errno::EMSGSIZE,
        (false, 1, 1) => Errno::EACCES,
        _ => Errno::EHOSTUNREACH,
    }))
}
