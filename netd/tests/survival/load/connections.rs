//! New TCP connections at a steady pace, each with a question and its answer.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netd::lab::{Namespace, Report};
use socket2::SockRef;

use super::Stop;

/// Less than the second after which TCP sends a SYN again: one lost packet is a failure.
const PATIENCE: Duration = Duration::from_millis(950);

/// Connections that one thread opens one after the other.
pub struct Connections {
    thread: JoinHandle<Opened>,
}

/// What became of them.
#[derive(Debug, Default)]
pub struct Opened {
    /// How many were answered.
    pub answered: u64,
    /// How each that was not ended.
    pub failed: Vec<String>,
    /// The longest time to an answer.
    pub slowest: Duration,
    /// From the first to the last.
    pub took: Duration,
}

impl Opened {
    /// Answered connections per second.
    pub fn rate(&self) -> f64 {
        self.answered as f64 / self.took.as_secs_f64().max(1e-3)
    }
}

impl Connections {
    /// A connection every `interval` from `from`, to each of `to` in turn: a [`netd::lab::Server`] and its name.
    /// As fast as possible if the interval is zero. A connection that is late is made up for.
    pub fn start(
        from: &Namespace,
        to: Vec<(SocketAddr, String)>,
        interval: Duration,
        stop: Stop,
    ) -> Self {
        let thread = from
            .spawn_thread("connections", move || open(&to, interval, &stop))
            .expect("a thread");
        Self { thread }
    }

    /// The result, once they are stopped.
    pub fn finish(self) -> Opened {
        self.thread.join().expect("the connections")
    }
}

fn open(to: &[(SocketAddr, String)], interval: Duration, stop: &Stop) -> Opened {
    let mut opened = Opened::default();
    let began = Instant::now();
    let mut next = began;
    for (address, server) in to.iter().cycle() {
        if stop.told() {
            break;
        }
        let started = Instant::now();
        match ask(*address) {
            Ok(report) if report.server == *server => opened.answered += 1,
            Ok(report) => opened.failed.push(format!("{address}: {report}")),
            Err(error) => opened.failed.push(format!(
                "{address}, {:?} after the start: {error} after {:?}",
                started - began,
                started.elapsed()
            )),
        }
        opened.slowest = opened.slowest.max(started.elapsed());
        next += interval;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    opened.took = began.elapsed();
    opened
}

fn ask(to: SocketAddr) -> std::io::Result<Report> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"who\n")?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    // No TIME_WAIT: the ports of one address would not last.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    line.parse().map_err(std::io::Error::other)
}
