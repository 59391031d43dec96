//! `netd unload --drain`: waiting until netd carries nothing any more.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use jiff::SignedDuration;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::config::Limits;
use crate::daemon::Lock;
use crate::daemon::control::{self, AskError, Command};
use crate::dataplane::{AttachMode, Pinned, migrate, sizes};
use crate::run_state::{RunFiles, running_pid};

/// Flows are counted so often.
const COUNT: Duration = Duration::from_millis(250);
/// Progress is told at most so often.
const TELL: Duration = Duration::from_secs(2);
/// Without a daemon nobody else removes what has expired.
const COLLECT: Duration = Duration::from_secs(10);
/// The longest established connection lives for five days without a packet.
const LONGEST: Duration = Duration::from_secs(5 * 24 * 3600);

/// How waiting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drained {
    /// No flow is left.
    Empty,
    /// The time is over, and so many flows are left.
    Left(usize),
    /// A signal came.
    GivenUp {
        /// So many flows were left.
        left: usize,
        /// The daemon takes new flows again; without one, netd stays drained.
        resumed: bool,
    },
}

/// The value of `--drain`.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let duration: SignedDuration = text
        .parse()
        .map_err(|_| "write a time like 30s, 10m or 2h".to_owned())?;
    match Duration::try_from(duration) {
        Ok(time) if time < Duration::from_secs(1) => Err("at least one second, please".to_owned()),
        Ok(time) if time > LONGEST => Err("at most 120h: no idle flow lives longer".to_owned()),
        Ok(time) => Ok(time),
        Err(_) => Err("a time to wait is not negative".to_owned()),
    }
}

/// Has netd take no new flows, and waits until none is left or the time is over. Progress goes to
/// standard error.
///
/// A signal (Ctrl-C) gives it up: the daemon takes new flows again, and leaves those that began
/// meanwhile to the kernel. Without a daemon, or should this process be killed, netd stays drained
/// until one is started or `netd unload` is asked again.
pub(super) fn drain(pin_dir: &Path, files: &RunFiles, limit: Duration) -> anyhow::Result<Drained> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, stop.clone()).context("cannot catch signals")?;
    }
    // Sizes that depend on memory are not compared; nothing is attached or detached.
    let sizes = sizes(0, 1, &Limits::default());
    let Some(mut pinned) = Pinned::open(pin_dir, &sizes, AttachMode::Tcx, Default::default())?
    else {
        if let Some(other) = migrate::survey(pin_dir)? {
            bail!(
                "{} is of another version of netd, which alone can drain it: `netd run --takeover` \
                 carries its flows over, and then this works; or use the older netd",
                other.path().display()
            );
        }
        return Ok(Drained::Empty);
    };
    let began = Instant::now();
    let (mut told, mut collected) = (None, began);
    loop {
        // A daemon that was started meanwhile takes flows: that was not the last word.
        if !pinned.is_draining()? {
            start(files, &mut pinned)?;
        }
        let left = pinned.live_flows()?;
        if left == 0 {
            tell("no flow is left");
            return Ok(Drained::Empty);
        }
        if stop.load(Ordering::Relaxed) {
            let resumed = match control::ask(&files.socket, Command::EndDraining) {
                Ok(answer) if answer.ok => true,
                Ok(answer) => bail!("the daemon stays drained: {}", answer.message),
                Err(AskError::NotRunning(_)) => false,
                Err(error) => return Err(error.into()),
            };
            return Ok(Drained::GivenUp { left, resumed });
        }
        if began.elapsed() >= limit {
            return Ok(Drained::Left(left));
        }
        if told.is_none_or(|(at, flows): (Instant, usize)| flows != left && at.elapsed() >= TELL) {
            let time = limit.saturating_sub(began.elapsed()).as_secs();
            tell(&format!("draining: {left} flows left, {time} s to go"));
            told = Some((Instant::now(), left));
        }
        if collected.elapsed() >= COLLECT && running_pid(files).is_none() {
            pinned.collect()?;
            collected = Instant::now();
        }
        std::thread::sleep(COUNT);
    }
}

/// Nobody may be there to read it: no reason to leave netd half-way.
fn tell(progress: &str) {
    let _ = writeln!(std::io::stderr(), "{progress}");
}

/// Through the daemon, which writes to the same place; without one, directly.
fn start(files: &RunFiles, pinned: &mut Pinned) -> anyhow::Result<()> {
    match control::ask(&files.socket, Command::Drain) {
        Ok(answer) if answer.ok => Ok(()),
        Ok(answer) => bail!("the daemon does not drain: {}", answer.message),
        Err(AskError::NotRunning(_)) => {
            // For the moment of writing no daemon begins.
            let _lock = Lock::take(files, Duration::ZERO)?;
            Ok(pinned.set_draining(true)?)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_wait() {
        assert_eq!(time("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(time("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(time("120h"), Ok(LONGEST));
        for nonsense in [
            "",
            "soon",
            "10",
            "-5m",
            "0s",
            "10ms",
            "121h",
            "99999999999999h",
        ] {
            assert!(time(nonsense).is_err(), "{nonsense}");
        }
    }
}
