//! Short flows in great number: a question and its answer, or a connection that opens and closes, each from a tuple of
//! its own. One thread asks, past its stack, and one answers at the other end, past that one's.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netd::lab::{Namespace, StandardHost};

use super::Stop;
use super::wire::{ACK, FIN, Port, SYN, Segment, Wire};

/// The addresses of the flows that are not the container's: 198.18.128.0/17, which the host routes to the client.
pub const POOL: Ipv4Addr = Ipv4Addr::new(198, 18, 128, 0);
/// Flows of each address of the pool, one per port.
const PORTS: u32 = 8000;
const FIRST_PORT: u16 = 1024;
/// Flows that may wait for their answers: less than every queue on the way has room for.
const WINDOW: usize = 512;
/// Port of containers that published ports lead to.
pub const INSIDE: u16 = 7000;
/// After this a question is asked again, as any client would.
const AGAIN: Duration = Duration::from_millis(500);
/// How often it is asked before the flow counts as failed.
const ATTEMPTS: u8 = 6;

/// Which way flows are opened, and what they are.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The container.
    pub container: Ipv4Addr,
    /// Address and port of the host, for flows to a published port; None: flows of the container to the pool.
    pub published: Option<(Ipv4Addr, u16)>,
    /// TCP connections, opened and closed; false: datagrams.
    pub tcp: bool,
}

/// What became of the flows.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many were answered.
    pub opened: u64,
    /// The first of those that never were.
    pub failed: Vec<u32>,
    /// How many never were.
    pub failures: u64,
    /// Questions that had to be asked again.
    pub again: u64,
    pub took: Duration,
}

impl Outcome {
    /// Flows per second.
    pub fn rate(&self) -> f64 {
        self.opened as f64 / self.took.as_secs_f64()
    }
}

/// Answers at one end until it is dropped.
pub struct Reflector {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Reflector {
    fn start(namespace: &Namespace, mut wire: Wire) -> Self {
        let stop = Stop::default();
        let told = stop.clone();
        let work = move || {
            while !told.told() {
                let came = wire.receive(Duration::from_millis(20)).expect("receive");
                for segment in came {
                    let answer = match segment.tcp {
                        None => None,
                        Some(SYN) => Some(SYN | ACK),
                        Some(flags) if flags & FIN != 0 => Some(FIN | ACK),
                        Some(_) => continue,
                    };
                    wire.push(&segment.answer(answer)).expect("send");
                }
                wire.flush().expect("send");
            }
        };
        let thread = namespace.spawn_thread("reflector", work).expect("a thread");
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Reflector {
    fn drop(&mut self) {
        self.stop.now();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Opens the flows of these numbers, and answers them at the other end. No number may be used twice for one kind.
///
/// The container's own stack must not answer: see [`deafen`].
pub fn open(host: &StandardHost, name: &str, kind: Kind, numbers: Range<u32>) -> Outcome {
    let container = host.container(name);
    let bridge = StandardHost::network(container.network).bridge;
    let gateway = host.host.mac(bridge).expect("the bridge's MAC");
    let uplink = host.host.mac("up0").expect("the uplink's MAC");
    let client = &host.client;
    let (asker, wire, _reflector) = match kind.published {
        Some((_, port)) => {
            let (inside, outside) = (
                Wire::open(
                    &container.namespace,
                    "eth0",
                    gateway,
                    Port::Destination(INSIDE),
                ),
                Wire::open(client, "eth0", uplink, Port::Source(port)),
            );
            let inside = inside.expect("a packet socket");
            (
                client,
                outside,
                Reflector::start(&container.namespace, inside),
            )
        }
        None => {
            let port = service(kind);
            let (inside, outside) = (
                Wire::open(&container.namespace, "eth0", gateway, Port::Source(port)),
                Wire::open(client, "eth0", uplink, Port::Destination(port)),
            );
            let outside = outside.expect("a packet socket");
            (
                &container.namespace,
                inside,
                Reflector::start(client, outside),
            )
        }
    };
    let mut wire = wire.expect("a packet socket");
    asker.run(|| ask(&mut wire, kind, numbers))
}

/// Takes the container's address from its stack, so that nothing there answers what a [`Reflector`] answers. netd and the
/// bridge need no stack there; its own servers hear nothing from then on.
pub fn deafen(host: &StandardHost, name: &str) {
    let container = host.container(name);
    let mut command = container.namespace.command("ip");
    command.args(["route", "del", "table", "local", "local"]);
    let status = command.arg(container.v4.to_string()).status();
    assert!(status.expect("ip of iproute2").success());
}

fn ask(wire: &mut Wire, kind: Kind, numbers: Range<u32>) -> Outcome {
    let began = Instant::now();
    let mut outcome = Outcome::default();
    let first = numbers.start;
    let mut answered = vec![false; numbers.len()];
    // In the order in which they were asked last.
    let mut waiting: VecDeque<(Instant, u32, u8)> = VecDeque::new();
    let mut left = 0;
    let mut fresh = numbers.clone();
    let mut now = began;
    loop {
        while left < WINDOW {
            let Some(number) = fresh.next() else { break };
            wire.push(&question(kind, number, SYN)).expect("send");
            waiting.push_back((now, number, 1));
            left += 1;
        }
        wire.flush().expect("send");
        let patience = if left < WINDOW && !fresh.is_empty() {
            Duration::ZERO
        } else {
            Duration::from_millis(1)
        };
        for segment in wire.receive(patience).expect("receive") {
            let Some(number) = number_of(kind, &segment).filter(|n| numbers.contains(n)) else {
                continue;
            };
            let is_new = !std::mem::replace(&mut answered[(number - first) as usize], true);
            if is_new {
                left -= 1;
                outcome.opened += 1;
            }
            match segment.tcp {
                Some(flags) if flags == SYN | ACK && is_new => {
                    wire.push(&question(kind, number, ACK)).expect("send");
                    wire.push(&question(kind, number, FIN | ACK)).expect("send");
                }
                Some(flags) if flags & FIN != 0 => {
                    wire.push(&question(kind, number, ACK)).expect("send");
                }
                _ => {}
            }
        }
        now = Instant::now();
        while let Some(&(asked, number, attempts)) = waiting.front() {
            let is_answered = answered[(number - first) as usize];
            if !is_answered && now < asked + AGAIN {
                break;
            }
            waiting.pop_front();
            if is_answered {
                continue;
            }
            if attempts == ATTEMPTS {
                outcome.failures += 1;
                left -= 1;
                if outcome.failed.len() < 10 {
                    outcome.failed.push(number);
                }
                continue;
            }
            outcome.again += 1;
            wire.push(&question(kind, number, SYN)).expect("send");
            waiting.push_back((now, number, attempts + 1));
        }
        if waiting.is_empty() && fresh.is_empty() {
            break;
        }
    }
    wire.flush().expect("send");
    outcome.took = began.elapsed();
    outcome
}

/// Port of the pool that containers ask.
fn service(kind: Kind) -> u16 {
    if kind.tcp { 8 } else { 7 }
}

fn question(kind: Kind, number: u32, flags: u8) -> Segment {
    let far = Ipv4Addr::from(u32::from(POOL) + number / PORTS);
    let port = FIRST_PORT + (number % PORTS) as u16;
    let tcp = kind.tcp.then_some(flags);
    match kind.published {
        Some(published) => Segment {
            source: (far, port),
            destination: published,
            tcp,
        },
        None => Segment {
            source: (kind.container, port),
            destination: (far, service(kind)),
            tcp,
        },
    }
}

/// Which flow this is the answer of, if it is one that arrived where it should.
fn number_of(kind: Kind, answer: &Segment) -> Option<u32> {
    let far = match kind.published {
        Some(published) => {
            if answer.source != published {
                return None;
            }
            answer.destination.0
        }
        None => {
            if answer.destination.0 != kind.container || answer.source.1 != service(kind) {
                return None;
            }
            answer.source.0
        }
    };
    let address = u32::from(far).checked_sub(u32::from(POOL))?;
    let port = u32::from(answer.destination.1.checked_sub(FIRST_PORT)?);
    (port < PORTS).then(|| address * PORTS + port)
}
