//! Many connections that are alive: each is asked once a second, and has to answer within one.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netd::lab::{Namespace, Report};

use super::Stop;

/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Connections that one thread keeps alive.
pub struct Live {
    thread: JoinHandle<Outcome>,
}

/// What became of them.
#[derive(Debug, Default)]
pub struct Outcome {
    pub connections: usize,
    /// Answers that came in time.
    pub answers: u64,
    /// How often each was asked.
    pub rounds: u64,
    /// The longest time to an answer.
    pub slowest: Duration,
    /// What was wrong, the first of each connection.
    pub failed: Vec<String>,
}

impl Live {
    /// Opens `count` connections to a [`netd::lab::Server`], all before this returns.
    pub fn open(from: &Namespace, to: SocketAddr, count: usize, stop: Stop) -> Self {
        let connect = || TcpStream::connect_timeout(&to, 5 * PATIENCE);
        let streams: Vec<TcpStream> = from.run(|| {
            (0..count)
                .map(|n| connect().unwrap_or_else(|e| panic!("connection {n} to {to}: {e}")))
                .collect()
        });
        let mut streams: Vec<_> = streams.into_iter().map(BufReader::new).collect();
        // Every flow is established before anything else happens.
        ask(&mut streams, &mut Outcome::default());
        let thread = from
            .spawn_thread("live", move || keep(streams, &stop))
            .expect("a thread");
        Self { thread }
    }

    /// The result, once they are stopped.
    pub fn finish(self) -> Outcome {
        self.thread.join().expect("the live connections")
    }
}

fn keep(mut streams: Vec<BufReader<TcpStream>>, stop: &Stop) -> Outcome {
    let mut outcome = Outcome {
        connections: streams.len(),
        ..Outcome::default()
    };
    while !stop.told() {
        let began = Instant::now();
        ask(&mut streams, &mut outcome);
        outcome.rounds += 1;
        std::thread::sleep(PATIENCE.saturating_sub(began.elapsed()));
    }
    outcome
}

/// Asks all, then takes all answers: the time to each is measured from its own question.
fn ask(streams: &mut Vec<BufReader<TcpStream>>, outcome: &mut Outcome) {
    let mut asked = Vec::with_capacity(streams.len());
    for stream in streams.iter_mut() {
        asked.push(Instant::now());
        // What cannot be sent is not answered either.
        let _ = stream.get_mut().write_all(b"who\n");
    }
    let mut asked = asked.into_iter();
    streams.retain_mut(|stream| {
        let asked = asked.next().expect("one for each");
        let answer = answer(stream, asked + PATIENCE);
        let took = asked.elapsed();
        match answer {
            Ok(()) if took <= PATIENCE => {
                outcome.answers += 1;
                outcome.slowest = outcome.slowest.max(took);
                true
            }
            Ok(()) => {
                outcome.failed.push(format!("an answer after {took:?}"));
                false
            }
            Err(error) => {
                outcome
                    .failed
                    .push(format!("no answer after {took:?}: {error}"));
                false
            }
        }
    });
}

fn answer(stream: &mut BufReader<TcpStream>, until: Instant) -> std::io::Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    let left = left.max(Duration::from_millis(1));
    stream.get_ref().set_read_timeout(Some(left))?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    line.parse::<Report>()
        .map(drop)
        .map_err(std::io::Error::other)
}
