//! Times in the maps as times of day.

use std::time::Duration;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// The clocks at one moment, to translate the CLOCK_MONOTONIC seconds that the programs write.
///
/// CLOCK_MONOTONIC stands still while the machine sleeps: times from before a suspend come out too
/// late by its length.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    now: Timestamp,
    monotonic: u32,
    boot: u32,
}

impl Clock {
    /// Reads the clocks.
    pub fn now() -> Self {
        Self {
            now: Timestamp::now(),
            monotonic: seconds(ClockId::CLOCK_MONOTONIC),
            boot: seconds(ClockId::CLOCK_BOOTTIME),
        }
    }

    /// A moment of one's own, for tests.
    pub fn at(now: Timestamp, monotonic: u32) -> Self {
        Self {
            now,
            monotonic,
            boot: monotonic,
        }
    }

    /// CLOCK_MONOTONIC seconds.
    pub fn monotonic(&self) -> u32 {
        self.monotonic
    }

    /// Seconds since `seen` (CLOCK_MONOTONIC); a packet of this very second may be ahead.
    pub fn idle(&self, seen: u32) -> u32 {
        self.monotonic.saturating_sub(seen)
    }

    /// The time of day of CLOCK_MONOTONIC seconds.
    pub fn time_of(&self, seen: u32) -> Timestamp {
        self.back(self.idle(seen))
    }

    /// The time of day of CLOCK_MONOTONIC seconds that may lie after this moment.
    pub fn time_of_event(&self, seen: u32) -> Timestamp {
        let ahead = seen.saturating_sub(self.monotonic);
        self.time_of(seen) + Duration::from_secs(ahead.into())
    }

    /// The time of day of CLOCK_BOOTTIME seconds.
    pub fn time_of_boot(&self, seen: u32) -> Timestamp {
        self.back(self.boot.saturating_sub(seen))
    }

    fn back(&self, seconds: u32) -> Timestamp {
        let then = self.now - Duration::from_secs(seconds.into());
        // The maps know whole seconds: no digits that mean nothing.
        Timestamp::from_second(then.as_second()).unwrap_or(then)
    }
}

fn seconds(clock: ClockId) -> u32 {
    // Neither clock can fail on a Linux that runs netd's programs.
    clock_gettime(clock).map_or(0, |t| t.tv_sec() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_become_a_time_of_day() {
        let now: Timestamp = "2026-11-21T10:00:00.5Z".parse().unwrap();
        let clock = Clock::at(now, 1000);
        assert_eq!(clock.time_of(940).to_string(), "2026-11-21T09:59:00Z");
        assert_eq!(clock.time_of(1001).to_string(), "2026-11-21T10:00:00Z");
        assert_eq!(
            clock.time_of_event(1060).to_string(),
            "2026-11-21T10:01:00Z"
        );
        assert_eq!(clock.time_of_event(940), clock.time_of(940));
        assert_eq!(clock.idle(940), 60);
        assert_eq!(clock.idle(1001), 0);
    }
}
