//! Telling flows that their routes may have changed, at once.
//!
//! The main loop gathers events and reads the host anew, which takes time. A flow must not leave by
//! the old way meanwhile, so a thread of its own hears the kernel's notifications and raises the
//! epoch with the first: every flow looks up its route again at its next packet. When the maps have
//! caught up (a new uplink's address, a local prefix), the plan of that reading raises it again.
//!
//! A storm (a routing protocol that flaps) does not make every flow decide a thousand times a
//! second: [`BURST`] at once, then one each [`INTERVAL`], the last one always after the last event.

use std::collections::BTreeSet;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd as _;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::dataplane::Epoch;
use crate::host::{ContainerBridges, RouteWatch};

/// Raised at once this often, before the interval is kept.
const BURST: u32 = 10;
/// Then once in this time.
const INTERVAL: Duration = Duration::from_millis(100);
/// After the watch has failed.
const REOPEN_MS: u16 = 1000;

/// The thread; it ends when this is dropped.
pub(super) struct EpochKeeper {
    /// Closing it is the word to stop.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
    bridges: ContainerBridges,
}

impl EpochKeeper {
    /// Starts to watch the calling thread's network namespace.
    pub(super) fn start(epoch: Epoch) -> anyhow::Result<Self> {
        let bridges = ContainerBridges::default();
        let watch = RouteWatch::open(bridges.clone())?;
        let (stopped, stop) = io::pipe().context("cannot make a pipe")?;
        let keeper = Keeper {
            epoch,
            watch,
            bridges: bridges.clone(),
            stopped,
            pace: Pace::default(),
        };
        let thread = std::thread::Builder::new()
            .name("epoch".to_owned())
            .spawn(move || keeper.run())
            .context("cannot start the thread that follows routes")?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
            bridges,
        })
    }

    /// The bridges whose neighbours are containers, and no matter of routes.
    pub(super) fn set_bridges(&self, bridges: BTreeSet<u32>) {
        self.bridges.set(bridges);
    }
}

impl Drop for EpochKeeper {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Keeper {
    epoch: Epoch,
    watch: RouteWatch,
    bridges: ContainerBridges,
    stopped: PipeReader,
    pace: Pace,
}

impl Keeper {
    fn run(mut self) {
        let mut owed = false;
        while !self.is_told_to_stop(PollTimeout::ZERO) {
            let wait = owed.then(|| self.pace.wait(Instant::now()));
            match self.watch.changed(self.stopped.as_fd(), wait) {
                Ok(changed) => owed |= changed,
                Err(error) => {
                    self.reopen(&error);
                    owed = true;
                }
            }
            if owed && self.pace.take(Instant::now()) {
                owed = match self.epoch.bump() {
                    Ok(()) => false,
                    Err(error) => {
                        tracing::debug!("{error}");
                        true
                    }
                };
            }
        }
    }

    fn is_told_to_stop(&self, within: PollTimeout) -> bool {
        // What is never written to is ready when its other end is closed.
        let mut ready = [PollFd::new(self.stopped.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, within).is_ok_and(|ready| ready > 0)
    }

    /// What the kernel would have told meanwhile is made up for by one bump.
    fn reopen(&mut self, error: &io::Error) {
        tracing::warn!("cannot follow the host's routes: {error}; trying again");
        if self.is_told_to_stop(REOPEN_MS.into()) {
            return;
        }
        match RouteWatch::open(self.bridges.clone()) {
            Ok(watch) => self.watch = watch,
            Err(error) => tracing::debug!("{error}"),
        }
    }
}

/// A token bucket, as the time at which it will be full again.
#[derive(Debug, Default)]
struct Pace {
    full_at: Option<Instant>,
}

impl Pace {
    /// Takes a token, if there is one.
    fn take(&mut self, now: Instant) -> bool {
        let ready = self.wait(now).is_zero();
        if ready {
            let full_at = self.full_at.map_or(now, |full_at| full_at.max(now));
            self.full_at = Some(full_at + INTERVAL);
        }
        ready
    }

    /// How long until there is one.
    fn wait(&self, now: Instant) -> Duration {
        let until_full = self.full_at.map_or(Duration::ZERO, |full_at| {
            full_at.saturating_duration_since(now)
        });
        until_full.saturating_sub(INTERVAL * (BURST - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_paced_and_its_last_event_is_not_lost() {
        let begin = Instant::now();
        let mut pace = Pace::default();
        let mut bumps = Vec::new();
        let mut owed = false;
        // A thousand events in a second, then silence.
        for millisecond in 0..2000u64 {
            let now = begin + Duration::from_millis(millisecond);
            owed |= millisecond < 1000;
            if owed && pace.take(now) {
                owed = false;
                bumps.push(millisecond);
            }
        }
        assert!(!owed);
        assert_eq!(bumps[0], 0, "the first at once");
        assert_eq!(bumps[9], 9, "and nine more");
        assert_eq!(bumps.len(), 20, "{bumps:?}");
        assert!(bumps.iter().any(|at| *at >= 999), "the last: {bumps:?}");
        assert!(
            bumps[10..].windows(2).all(|pair| pair[1] - pair[0] >= 100),
            "{bumps:?}"
        );
        // Rested, it takes another burst.
        let later = begin + Duration::from_secs(10);
        assert_eq!((0..20).filter(|_| pace.take(later)).count(), 10);
    }

    #[test]
    fn the_wait_is_until_the_next_token() {
        let begin = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.wait(begin), Duration::ZERO);
        while pace.take(begin) {}
        assert_eq!(pace.wait(begin), INTERVAL);
        assert!(!pace.take(begin + INTERVAL - Duration::from_millis(1)));
        assert!(pace.take(begin + INTERVAL));
    }
}
