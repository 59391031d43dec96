//! Numbered datagrams, each echoed: a number that does not come back, or comes back twice, is counted at the end where
//! it got lost.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netd::lab::Namespace;
use socket2::{Domain, Socket, Type};

use super::Stop;

/// Longer than any answer takes, and no part of the measurement: late answers end it early.
const GRACE: Duration = Duration::from_secs(3);
/// Bytes for datagrams that wait for their reader: room for seconds of it.
const RECEIVE_BUFFER: usize = 16 << 20;

/// A stream of numbered datagrams from one namespace to an echo in another.
pub struct Stream {
    sender: JoinHandle<Sent>,
    echo: JoinHandle<Echoed>,
    echo_stop: Stop,
}

/// What became of a stream.
#[derive(Debug)]
pub struct Outcome {
    /// Datagrams sent.
    pub sent: u64,
    /// Numbers that never reached the echo.
    pub lost_there: u64,
    /// Numbers that reached the echo and did not come back.
    pub lost_back: u64,
    /// Datagrams that arrived once more, there or back.
    pub duplicated: u64,
    /// Addresses from which the echo got them.
    pub sources: BTreeSet<IpAddr>,
    /// Datagrams that the receiving sockets had no room for: they are lost, but netd delivered them.
    pub overflowed: u64,
    /// Sends that the kernel refused.
    pub refused: u64,
    /// The first numbers that got lost.
    pub first_lost: Vec<u64>,
}

impl Outcome {
    /// Every number arrived and came back exactly once, and all came from this address.
    pub fn is_whole(&self, source: IpAddr) -> bool {
        self.lost_there + self.lost_back + self.duplicated + self.refused == 0
            && self.sources == BTreeSet::from([source])
    }
}

#[derive(Default)]
struct Sent {
    answered: Vec<u8>,
    duplicated: u64,
    overflowed: u64,
    refused: u64,
}

#[derive(Default)]
struct Echoed {
    seen: Vec<u8>,
    sources: BTreeSet<IpAddr>,
    duplicated: u64,
    overflowed: u64,
    refused: u64,
}

impl Stream {
    /// An echo at `port` of `server`, and `per_millisecond` datagrams from `client` to `to`: until `stop` is told, and
    /// in any case until `at_least` are sent.
    pub fn start(
        (client, to): (&Namespace, SocketAddr),
        (server, port): (&Namespace, u16),
        per_millisecond: u32,
        at_least: u64,
        stop: Stop,
    ) -> Self {
        let any = |port| match to {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
        };
        let listener = socket(server, any(port));
        let socket = socket(client, any(0));
        client.run(|| socket.connect(to)).expect("connect");
        let echo_stop = Stop::default();
        let told = echo_stop.clone();
        let echo = server
            .spawn_thread("echo", move || echo(&listener, &told))
            .expect("a thread");
        let sender = client
            .spawn_thread("stream", move || {
                send(&socket, per_millisecond, at_least, &stop)
            })
            .expect("a thread");
        Self {
            sender,
            echo,
            echo_stop,
        }
    }

    /// Waits until the sender has stopped and late answers have come.
    pub fn finish(self) -> Outcome {
        let sent = self.sender.join().expect("the sender");
        self.echo_stop.now();
        let echoed = self.echo.join().expect("the echo");
        let mut outcome = Outcome {
            sent: sent.answered.len() as u64,
            lost_there: 0,
            lost_back: 0,
            duplicated: sent.duplicated + echoed.duplicated,
            sources: echoed.sources,
            overflowed: sent.overflowed + echoed.overflowed,
            refused: sent.refused + echoed.refused,
            first_lost: Vec::new(),
        };
        for (number, answered) in sent.answered.iter().enumerate() {
            if *answered > 0 {
                continue;
            }
            match echoed.seen.get(number) {
                Some(1..) => outcome.lost_back += 1,
                _ => outcome.lost_there += 1,
            }
            if outcome.first_lost.len() < 20 {
                outcome.first_lost.push(number as u64);
            }
        }
        outcome
    }
}

fn socket(namespace: &Namespace, at: SocketAddr) -> UdpSocket {
    let socket = namespace.run(|| {
        let socket = Socket::new(Domain::for_address(at), Type::DGRAM, None)?;
        if at.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&at.into())?;
        std::io::Result::Ok(socket)
    });
    let socket = socket.unwrap_or_else(|e| panic!("bind {at} in {namespace:?}: {e}"));
    let size = RECEIVE_BUFFER as libc::c_int;
    for (option, value) in [(libc::SO_RCVBUFFORCE, size), (libc::SO_SNDBUFFORCE, size)] {
        // SAFETY: the value is an int, and lives until the call returns.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as u32,
            )
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
    socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .expect("a timeout");
    socket.into()
}

/// Notes a number; whether it is new.
fn note(seen: &mut Vec<u8>, number: u64) -> bool {
    let number = number as usize;
    if seen.len() <= number {
        seen.resize(number + 1, 0);
    }
    seen[number] = seen[number].saturating_add(1);
    seen[number] == 1
}

fn echo(socket: &UdpSocket, stop: &Stop) -> Echoed {
    let mut echoed = Echoed::default();
    let mut buffer = [0; 64];
    while !stop.told() {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let Some(number) = number_in(&buffer[..length]) else {
            continue;
        };
        if !note(&mut echoed.seen, number) {
            echoed.duplicated += 1;
        }
        echoed.sources.insert(from.ip());
        if socket.send_to(&buffer[..length], from).is_err() {
            echoed.refused += 1;
        }
    }
    echoed.overflowed = overflowed(socket);
    echoed
}

fn send(socket: &UdpSocket, per_millisecond: u32, at_least: u64, stop: &Stop) -> Sent {
    const TICK: Duration = Duration::from_millis(1);
    let mut sent = Sent::default();
    socket.set_nonblocking(true).expect("nonblocking");
    let mut next = Instant::now();
    loop {
        if stop.told() && sent.answered.len() as u64 >= at_least {
            break;
        }
        for _ in 0..per_millisecond {
            let number = sent.answered.len() as u64;
            sent.answered.push(0);
            if socket.send(&number.to_be_bytes()).is_err() {
                sent.refused += 1;
            }
        }
        receive(socket, &mut sent);
        // Behind, on a busy machine: goes on at its pace and does not make up for it in a burst.
        next = (next + TICK).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let deadline = Instant::now() + GRACE;
    while sent.answered.contains(&0) && Instant::now() < deadline {
        std::thread::sleep(TICK);
        receive(socket, &mut sent);
    }
    sent.overflowed = overflowed(socket);
    sent
}

fn receive(socket: &UdpSocket, sent: &mut Sent) {
    let mut buffer = [0; 64];
    while let Ok(length) = socket.recv(&mut buffer) {
        let Some(number) = number_in(&buffer[..length]) else {
            continue;
        };
        if !note(&mut sent.answered, number) {
            sent.duplicated += 1;
        }
    }
}

fn number_in(datagram: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(datagram.try_into().ok()?))
}

/// Datagrams that this socket had no room for (SO_MEMINFO).
fn overflowed(socket: &UdpSocket) -> u64 {
    // SK_MEMINFO_DROPS of include/uapi/linux/sock_diag.h.
    const DROPS: usize = 8;
    let mut numbers = [0u32; 16];
    let mut length = size_of_val(&numbers) as libc::socklen_t;
    // SAFETY: the buffer is as long as said.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            numbers.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    numbers[DROPS].into()
}
