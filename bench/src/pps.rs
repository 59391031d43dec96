//! The scenario `pps`: 64-byte UDP datagrams through a published port, as fast as one CPU can.
//!
//! Every backend has a topology of its own, and they take turns, so that what the machine does
//! meanwhile befalls all of them. Before each turn every flow gets an answer, which is checked to
//! the byte: the measured packets belong to established flows, and a backend that does not
//! translate replies is not measured at all.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;

use crate::backend::{Backend, Installed};
use crate::bpf;
use crate::generator::Generator;
use crate::sink::{Arrival, Sink, Tally};
use crate::topology::{
    CLIENT, CLIENT_DEVICE, CLIENT_PORT, CONTAINER, CONTAINER_DEVICE, CONTAINER_PORT, HOST,
    HOST_PORT, TTL, Topology,
};

/// One of so many packets is checked.
pub const SAMPLE: u32 = 1000;
/// Frames of a turn that is not counted: it warms caches, and tells how many frames a turn needs.
const WARM_UP: u32 = 200_000;
/// No turn has more frames, whatever the last one promised.
const MAX_FRAMES: u32 = 20_000_000;
/// Long enough for a daemon to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for the answers to one burst.
const ANSWER: Duration = Duration::from_millis(200);

/// How it is run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Settings {
    /// Number of flows.
    pub flows: u16,
    /// Turns of every backend.
    pub rounds: u32,
    /// Seconds of one turn, about: the number of frames is chosen by the turn before.
    pub seconds: f64,
    /// The CPU of generator, forwarding and sink.
    pub cpu: usize,
}

/// One turn of one backend.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Number of the round, from 1.
    pub round: u32,
    /// Name of the backend.
    pub backend: &'static str,
    /// Frames that the generator made.
    pub sent: u32,
    /// Millions of packets per second that arrived in the container, by the sink's clock.
    pub mpps: f64,
    /// Nanoseconds per packet that arrived, the generator's and the sink's own included.
    pub ns_per_packet: f64,
    /// What the sink saw.
    pub sink: Tally,
}

/// A backend in its place.
struct Lane<'a> {
    backend: &'a dyn Backend,
    // Dropped before the topology that it works in.
    installed: Box<dyn Installed>,
    generator: Generator,
    topology: Topology,
    /// Frames of the next turn.
    frames: u32,
}

/// Runs it. `progress` hears of every turn.
pub fn run(
    backends: &[&dyn Backend],
    settings: &Settings,
    mut progress: impl FnMut(&Run),
) -> anyhow::Result<Vec<Run>> {
    let mut lanes = Vec::new();
    for backend in backends {
        let lane = Lane::build(*backend, settings)
            .with_context(|| format!("cannot set {} up", backend.name()))?;
        lanes.push(lane);
    }
    for lane in &mut lanes {
        lane.turn(0, settings)
            .with_context(|| format!("cannot warm {} up", lane.backend.name()))?;
    }
    let mut runs = Vec::new();
    for round in 1..=settings.rounds {
        for lane in &mut lanes {
            let run = lane
                .turn(round, settings)
                .with_context(|| format!("round {round} of {}", lane.backend.name()))?;
            progress(&run);
            runs.push(run);
        }
    }
    for lane in lanes {
        let name = lane.backend.name();
        lane.installed
            .remove()
            .with_context(|| format!("cannot remove {name}"))?;
    }
    Ok(runs)
}

impl<'a> Lane<'a> {
    fn build(backend: &'a dyn Backend, settings: &Settings) -> anyhow::Result<Self> {
        let topology = Topology::build()?;
        let generator = Generator::new(&topology, settings.flows)?;
        let installed = backend.install(&topology)?;
        Ok(Self {
            backend,
            installed,
            generator,
            topology,
            frames: WARM_UP,
        })
    }

    /// Establishes the flows, then measures.
    fn turn(&mut self, round: u32, settings: &Settings) -> anyhow::Result<Run> {
        let patience = if round == 0 { PATIENCE } else { ANSWER * 5 };
        if self.backend.translates() {
            self.establish(settings, patience)?;
        }
        let sink = Sink::attach(
            &self.topology.container,
            CONTAINER_DEVICE,
            &self.arrival(settings),
            SAMPLE,
        )?;
        let sent = self.frames;
        self.generator.send(&self.topology, settings.cpu, sent)?;
        let sink = sink.tally()?;
        ensure!(
            sink.checked > 1,
            "of {sent} frames {} arrived",
            sink.datagrams
        );
        let rate = sink.counted as f64 / sink.seconds;
        self.frames = ((rate * settings.seconds) as u32).clamp(WARM_UP, MAX_FRAMES);
        Ok(Run {
            round,
            backend: self.backend.name(),
            sent,
            mpps: rate / 1e6,
            ns_per_packet: 1e9 / rate,
            sink,
        })
    }

    /// What the container must see.
    fn arrival(&self, settings: &Settings) -> Arrival {
        let (destination, ttl) = if self.backend.translates() {
            ((CONTAINER, CONTAINER_PORT, 1), TTL - 1)
        } else {
            ((HOST, HOST_PORT, 1), TTL)
        };
        Arrival {
            source: (CLIENT, CLIENT_PORT, settings.flows),
            destination,
            mac: self.topology.container_mac,
            ttl,
        }
    }

    /// Has every flow answered by the container once, and checks every answer at the client.
    fn establish(&mut self, settings: &Settings, patience: Duration) -> anyhow::Result<()> {
        let flows = settings.flows;
        let mut reflector = bpf::object()?;
        bpf::attach(
            &mut reflector,
            "reflector",
            &self.topology.container,
            CONTAINER_DEVICE,
        )?;
        // The reflector turns the packet round as it is: its second way takes one hop more.
        let answer = Arrival {
            source: (HOST, HOST_PORT, 1),
            destination: (CLIENT, CLIENT_PORT, flows),
            mac: self.topology.client_mac,
            ttl: TTL - 2,
        };
        let deadline = Instant::now() + patience;
        loop {
            let answers = Sink::attach(&self.topology.client, CLIENT_DEVICE, &answer, 1)?;
            self.generator
                .send(&self.topology, settings.cpu, flows.into())?;
            let tally = wait_for(&answers, u64::from(flows))?;
            if tally.datagrams == u64::from(flows) && tally.wrong() == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let complaint = self.installed.complaint().unwrap_or_default();
                bail!(
                    "{} of {flows} flows were answered, {} wrongly, within {} s: {tally:?}. {complaint}",
                    tally.datagrams,
                    tally.wrong(),
                    patience.as_secs_f64(),
                );
            }
        }
    }
}

/// Waits until so many datagrams came, but not for ever.
fn wait_for(sink: &Sink, datagrams: u64) -> anyhow::Result<Tally> {
    let deadline = Instant::now() + ANSWER;
    loop {
        let tally = sink.tally()?;
        if tally.datagrams >= datagrams || Instant::now() >= deadline {
            return Ok(tally);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
