//! Source ports that run out: events of the programs, and what is known of them.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use aya::maps::{Map, MapData, RingBuf};
use netd_common::abi::{NatPressure, map};
use tokio::io::unix::AsyncFd;

use super::engine::Engine;
use crate::nat_use::PortUse;
use crate::state::sys;

/// Counting walks all flows: no more often than this.
const PAUSE: Duration = Duration::from_secs(1);
/// Destinations that are watched at once. Each needs many flows to become scarce.
const MOST: usize = 64;

/// Waits for the programs to tell of flows that found many ports taken.
pub(super) struct NatWatch {
    events: AsyncFd<RingBuf<MapData>>,
}

impl NatWatch {
    /// Opens the pinned ring buffer below `maps`.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn open(maps: &Path) -> io::Result<Self> {
        let data = MapData::from_pin(maps.join(map::NAT_EVENTS)).map_err(io::Error::other)?;
        let map = Map::from_map_data(data).map_err(io::Error::other)?;
        let ring = RingBuf::try_from(map).map_err(io::Error::other)?;
        // SAFETY: the ring buffer keeps its descriptor open as long as it lives, and it lives as
        // long as the `AsyncFd` that owns it.
        let events = unsafe { AsyncFd::register(ring)? };
        Ok(Self { events })
    }

    /// The next events, at least one.
    pub(super) async fn told(&mut self) -> io::Result<Vec<NatPressure>> {
        loop {
            let mut guard = self.events.readable_mut().await?;
            let ring = guard.get_inner_mut();
            let mut events = Vec::new();
            while let Some(item) = ring.next() {
                // A shorter sample is not of this ABI.
                if let Some(bytes) = item.get(..size_of::<NatPressure>())
                    && let event = sys::read::<NatPressure>(bytes)
                    && events.len() < MOST
                    && !events.contains(&event)
                {
                    events.push(event);
                }
            }
            guard.clear_ready();
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}

/// Destinations whose source ports are scarce.
#[derive(Default)]
pub(super) struct Pressure {
    /// Events that were not looked into yet, and those of destinations that were found scarce.
    watched: Vec<NatPressure>,
    looked: Option<Instant>,
    scarce: Vec<PortUse>,
}

impl Pressure {
    /// Takes note; when to look into it.
    pub(super) fn add(&mut self, events: Vec<NatPressure>) -> Instant {
        for event in events {
            let known = |other: &NatPressure| same_destination(other, &event);
            if !self.watched.iter().any(known) && self.watched.len() < MOST {
                self.watched.push(event);
            }
        }
        let now = Instant::now();
        self.looked.map_or(now, |looked| (looked + PAUSE).max(now))
    }

    /// Is there anything to look into?
    pub(super) fn is_any(&self) -> bool {
        !self.watched.is_empty()
    }

    /// Counts the ports of the destinations that were told of, after the expired flows have been
    /// collected. Says so when one becomes scarce, and when it is no longer.
    pub(super) fn look(&mut self, engine: &mut Engine) -> anyhow::Result<()> {
        self.looked = Some(Instant::now());
        let config = engine.kernel.config()?;
        let of = u32::from(config.nat_last.saturating_sub(config.nat_first)) + 1;
        let scarce: Vec<PortUse> = engine
            .kernel
            .ports_in_use(&self.watched)?
            .into_iter()
            .map(|(towards, in_use)| PortUse {
                towards,
                in_use,
                of,
            })
            .filter(PortUse::is_scarce)
            .collect();
        for port_use in &scarce {
            if !self.knows(port_use) {
                tracing::warn!(
                    "{port_use}. New flows there are refused when there is none left: widen \
                     [nat] ports, or give the network an address of its own (masquerade_to)"
                );
            }
        }
        for port_use in &self.scarce {
            if !scarce.iter().any(|other| other.towards == port_use.towards) {
                tracing::info!("there are source ports again towards {}", port_use.towards);
            }
        }
        self.watched.retain(|event| {
            let towards = crate::nat_use::pressed(event);
            scarce.iter().any(|port_use| port_use.towards == towards)
        });
        if scarce != self.scarce {
            engine.state.scarce_ports.clone_from(&scarce);
            engine.save();
            self.scarce = scarce;
        }
        Ok(())
    }

    fn knows(&self, port_use: &PortUse) -> bool {
        self.scarce
            .iter()
            .any(|other| other.towards == port_use.towards)
    }
}

fn same_destination(a: &NatPressure, b: &NatPressure) -> bool {
    crate::nat_use::pressed(a) == crate::nat_use::pressed(b)
}
