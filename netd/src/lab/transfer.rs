//! Longer traffic: bulk TCP with every byte checked, and a numbered UDP stream that counts its losses.

use std::fmt;
use std::io::{BufRead, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Protocol, Type};

use super::error::{LabError, Result};
use super::namespace::Namespace;
use super::outcome::Outcome;
use super::probe::{Connection, ProbeOptions, socket};
use super::server::{NOISE_BLOCK, Noise};

/// Which way the bytes of a [`bulk_transfer`] go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the server.
    Upload,
    /// From the server.
    Download,
}

/// A finished bulk transfer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transfer {
    /// Bytes that arrived unharmed.
    pub bytes: u64,
    /// From the request to the last byte.
    pub elapsed: Duration,
}

impl Transfer {
    /// Gigabits per second of payload.
    pub fn gigabits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64() / 1e9
    }
}

/// Moves `bytes` over one TCP connection to a [`super::Server`]; both ends know the bytes, and the receiver compares
/// each. `options.timeout` is for the connection and for every pause in the stream. The error is the outcome of a
/// probe: a changed byte is [`Outcome::Corrupt`].
pub fn bulk_transfer(
    namespace: &Namespace,
    to: SocketAddr,
    bytes: u64,
    direction: Direction,
    options: &ProbeOptions,
) -> std::result::Result<Transfer, Outcome> {
    let mut connection = Connection::open(namespace, to, options)?;
    let started = Instant::now();
    let seed = bytes ^ 0x6e65_7464;
    let moved = match direction {
        Direction::Upload => upload(&mut connection, bytes, seed, options.timeout),
        Direction::Download => download(&mut connection, bytes, seed, options.timeout),
    };
    match moved {
        Ok(None) => Ok(Transfer {
            bytes,
            elapsed: started.elapsed(),
        }),
        Ok(Some(what)) => Err(Outcome::Corrupt(what)),
        Err(error) => Err(Outcome::from_error(&error)),
    }
}

fn upload(
    connection: &mut Connection,
    bytes: u64,
    seed: u64,
    timeout: Duration,
) -> std::io::Result<Option<String>> {
    let stream = connection.stream();
    stream.set_write_timeout(Some(timeout))?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(format!("sink {bytes} {seed}\n").as_bytes())?;
    let (mut noise, mut offset, mut block) = (Noise::new(seed), 0, vec![0; NOISE_BLOCK]);
    while offset < bytes {
        let step = NOISE_BLOCK.min((bytes - offset) as usize);
        noise.fill(&mut block[..step]);
        stream.write_all(&block[..step])?;
        offset += step as u64;
    }
    let mut line = String::new();
    connection.reader().read_line(&mut line)?;
    let line = line.trim_end();
    Ok((!line.ends_with(" unharmed")).then(|| format!("upload of {bytes} bytes: {line:?}")))
}

fn download(
    connection: &mut Connection,
    bytes: u64,
    seed: u64,
    timeout: Duration,
) -> std::io::Result<Option<String>> {
    let stream = connection.stream();
    stream.set_write_timeout(Some(timeout))?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(format!("source {bytes} {seed}\n").as_bytes())?;
    let reader = connection.reader();
    reader.read_line(&mut String::new())?;
    let (mut noise, mut offset) = (Noise::new(seed), 0);
    let (mut got, mut expected) = (vec![0; NOISE_BLOCK], vec![0; NOISE_BLOCK]);
    while offset < bytes {
        let step = NOISE_BLOCK.min((bytes - offset) as usize);
        reader.read_exact(&mut got[..step])?;
        noise.fill(&mut expected[..step]);
        if got[..step] != expected[..step] {
            return Ok(Some(format!(
                "download of {bytes} bytes: changed after byte {offset}"
            )));
        }
        offset += step as u64;
    }
    Ok(None)
}

/// What became of a stream of numbered datagrams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamReport {
    /// Datagrams sent.
    pub sent: u64,
    /// Different datagrams whose answer came back.
    pub received: u64,
    /// Answers that came more than once.
    pub duplicated: u64,
    /// Answers that came after a later one.
    pub reordered: u64,
    /// Sends that the own kernel refused, counted as sent: ICMP errors arrive this way.
    pub refused: u64,
    /// The longest time without an answer, from the first send to the end.
    pub longest_gap: Duration,
}

impl StreamReport {
    /// Datagrams without an answer.
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

impl fmt::Display for StreamReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sent, {} lost, {} duplicated, {} reordered, longest gap {} ms",
            self.sent,
            self.lost(),
            self.duplicated,
            self.reordered,
            self.longest_gap.as_millis()
        )
    }
}

/// A stream of numbered datagrams to a [`super::Server`] that runs until it is stopped: for what must go on while
/// something else happens.
#[derive(Debug)]
pub struct UdpStream {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<StreamReport>>,
}

impl UdpStream {
    /// Starts sending one datagram per `interval`.
    pub fn start(
        namespace: &Namespace,
        to: SocketAddr,
        interval: Duration,
        options: &ProbeOptions,
    ) -> Result<Self> {
        let failed = |e: std::io::Error| {
            LabError::io(format!("stream to {to} from {}", namespace.role()), e)
        };
        let socket = namespace.run(|| {
            let socket = UdpSocket::from(socket(to, Type::DGRAM, Protocol::UDP, options)?);
            socket.connect(to)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        let socket = socket.map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let grace = options.timeout;
        let thread =
            namespace.spawn_thread("stream", move || stream(&socket, interval, grace, &stopped))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Stops sending, waits for late answers (at most the timeout given at the start) and reports.
    pub fn stop(mut self) -> StreamReport {
        self.join().unwrap_or_default()
    }

    fn join(&mut self) -> Option<StreamReport> {
        self.stop.store(true, Ordering::Release);
        self.thread.take()?.join().ok()
    }
}

impl Drop for UdpStream {
    fn drop(&mut self) {
        self.join();
    }
}

fn stream(
    socket: &UdpSocket,
    interval: Duration,
    grace: Duration,
    stop: &AtomicBool,
) -> StreamReport {
    let mut report = StreamReport::default();
    let mut answered: Vec<bool> = Vec::new();
    let mut latest = 0;
    let started = Instant::now();
    let (mut last_answer, mut next_send) = (started, started);
    let mut deadline = None;
    let mut buffer = vec![0; 2048];
    loop {
        let now = Instant::now();
        if deadline.is_none() && stop.load(Ordering::Acquire) {
            deadline = Some(now + grace);
        }
        if deadline.is_none() && now >= next_send {
            let number = report.sent.to_be_bytes();
            if socket.send(&number).is_err() {
                report.refused += 1;
            }
            report.sent += 1;
            answered.push(false);
            next_send += interval;
        }
        while let Ok(length) = socket.recv(&mut buffer) {
            let Some(number) = number_in(&buffer[..length]).filter(|&number| number < report.sent)
            else {
                continue;
            };
            let now = Instant::now();
            report.longest_gap = report.longest_gap.max(now - last_answer);
            last_answer = now;
            if std::mem::replace(&mut answered[number as usize], true) {
                report.duplicated += 1;
                continue;
            }
            report.received += 1;
            if number < latest {
                report.reordered += 1;
            }
            latest = latest.max(number);
        }
        if deadline
            .is_some_and(|deadline| report.received == report.sent || Instant::now() >= deadline)
        {
            if report.received < report.sent {
                report.longest_gap = report.longest_gap.max(last_answer.elapsed());
            }
            return report;
        }
        std::thread::sleep(interval.min(Duration::from_millis(1)) / 2);
    }
}

/// The number behind a server's report line.
fn number_in(answer: &[u8]) -> Option<u64> {
    let end = answer.iter().position(|&byte| byte == b'\n')?;
    Some(u64::from_be_bytes(answer.get(end + 1..)?.try_into().ok()?))
}
