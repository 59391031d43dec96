//! The machine: memory, this boot, and the kernel's clocks.

use std::fs;
use std::io;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

use super::HostError;

/// The machine's memory in bytes (`MemTotal`), whatever limit a control group sets.
pub fn ram_bytes() -> Result<u64, HostError> {
    const FILE: &str = "/proc/meminfo";
    let text = read(FILE)?;
    parse_mem_total(&text).ok_or_else(|| HostError::ReadFile {
        file: FILE,
        source: io::Error::new(io::ErrorKind::InvalidData, "no MemTotal in it"),
    })
}

/// A random id of this boot: what was pinned or noted under another one is of the past.
pub fn boot_id() -> Result<String, HostError> {
    let text = read("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().to_owned())
}

/// Turns the kernel's times into times of day.
///
/// The distance between the clocks is taken once; after the clock was set, take another.
#[derive(Clone, Copy, Debug)]
pub struct KernelClock {
    /// Real time minus monotonic time, in nanoseconds.
    monotonic_to_real: i128,
    /// Real time minus boot time, in nanoseconds.
    boottime_to_real: i128,
}

impl KernelClock {
    /// Compares the clocks now.
    pub fn now() -> Self {
        let real = clock_nanoseconds(ClockId::CLOCK_REALTIME);
        Self {
            monotonic_to_real: real - clock_nanoseconds(ClockId::CLOCK_MONOTONIC),
            boottime_to_real: real - clock_nanoseconds(ClockId::CLOCK_BOOTTIME),
        }
    }

    /// The time of a `bpf_ktime_get_ns` (CLOCK_MONOTONIC), to the millisecond. `None` when it
    /// is no time at all: centuries from now. Serialised as RFC 3339 in UTC.
    pub fn at_monotonic(&self, nanoseconds: u64) -> Option<Timestamp> {
        timestamp(self.monotonic_to_real + i128::from(nanoseconds))
    }

    /// The time of a `bpf_ktime_get_boot_ns` (CLOCK_BOOTTIME, which counts sleep too).
    pub fn at_boottime(&self, nanoseconds: u64) -> Option<Timestamp> {
        timestamp(self.boottime_to_real + i128::from(nanoseconds))
    }
}

/// What `bpf_ktime_get_ns` would give now.
pub fn monotonic_nanoseconds() -> u64 {
    clock_nanoseconds(ClockId::CLOCK_MONOTONIC) as u64
}

/// What `bpf_ktime_get_boot_ns` would give now.
pub fn boottime_nanoseconds() -> u64 {
    clock_nanoseconds(ClockId::CLOCK_BOOTTIME) as u64
}

fn timestamp(nanoseconds: i128) -> Option<Timestamp> {
    let milliseconds = i64::try_from(nanoseconds.div_euclid(1_000_000)).ok()?;
    Timestamp::from_millisecond(milliseconds).ok()
}

fn clock_nanoseconds(clock: ClockId) -> i128 {
    let now = clock_gettime(clock).expect("every Linux since 2.6.39 has these clocks");
    i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec())
}

fn parse_mem_total(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn read(file: &'static str) -> Result<String, HostError> {
    fs::read_to_string(file).map_err(|source| HostError::ReadFile { file, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:        1014536 kB\nMemFree:           66012 kB\n";
        assert_eq!(parse_mem_total(text), Some(1_014_536 * 1024));
        assert_eq!(parse_mem_total("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn kernel_times_become_times_of_day_in_utc() {
        let clock = KernelClock {
            monotonic_to_real: 1_795_219_200_000_000_000,
            boottime_to_real: 1_795_219_100_000_000_000,
        };
        let shown = |time: Option<Timestamp>| serde_json::to_value(time).unwrap();
        assert_eq!(shown(clock.at_monotonic(0)), "2026-11-21T00:00:00Z");
        let later = clock.at_monotonic(1_500_999_999);
        assert_eq!(shown(later), "2026-11-21T00:00:01.5Z");
        assert_eq!(
            shown(clock.at_boottime(100_000_000_000)),
            "2026-11-21T00:00:00Z"
        );
        assert_eq!(clock.at_monotonic(u64::MAX).map(|_| ()), Some(()));
    }

    #[test]
    fn now_is_now_by_every_clock() {
        let clock = KernelClock::now();
        for time in [
            clock.at_monotonic(monotonic_nanoseconds()),
            clock.at_boottime(boottime_nanoseconds()),
        ] {
            let off = time.unwrap().as_millisecond() - Timestamp::now().as_millisecond();
            assert!(off.abs() < 2000, "{off} ms off");
        }
    }
}
