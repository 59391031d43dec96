//! Logs: to standard error, as text or as JSON lines, by `tracing`.
//!
//! The daemon calls [`init`] once, before anything that may log, and keeps the [`Logging`] to apply
//! a changed `[log] level` on reload. Verbs that only read do not call it: their answer is on
//! standard output and an error is printed by `main`.
//!
//! What may fail again and again (a netlink listing, a map write, an interface that refuses a
//! program) is logged through a [`RepeatedError`] kept next to the thing that fails:
//!
//! ```
//! use std::time::Instant;
//! use netd::logging::RepeatedError;
//!
//! let mut listing = RepeatedError::default();
//! for outcome in [Err("no buffer space"), Err("no buffer space"), Ok(())] {
//!     match outcome {
//!         Ok(()) => {
//!             if let Some(report) = listing.recovered() {
//!                 tracing::info!(failures = report.count, "routes are listed again");
//!             }
//!         }
//!         Err(error) => {
//!             if let Some(report) = listing.failed(&error, Instant::now()) {
//!                 tracing::warn!("cannot list routes: {error}{report}");
//!             }
//!         }
//!     }
//! }
//! ```

use std::{
    fmt,
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, filter::ParseError, layer::SubscriberExt as _, reload,
    util::SubscriberInitExt as _,
};

use crate::config::{LogFormat, LogLevel};

/// Environment variable that overrides `[log] level`, in the syntax of
/// [`tracing_subscriber::EnvFilter`]: `debug`, `netd::host=trace,info`.
pub const LEVEL_VARIABLE: &str = "NETD_LOG";

/// Why logging could not be set up. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// [`LEVEL_VARIABLE`] does not parse.
    #[error(
        "{LEVEL_VARIABLE}: {0}; write a level (error, warn, info, debug, trace) or module=level,…"
    )]
    Filter(#[from] ParseError),
    /// Another subscriber is in place.
    #[error("logging was set up before")]
    Twice,
}

/// The logging of this process, to change its level later.
#[derive(Debug)]
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
    overridden: bool,
}

impl Logging {
    /// Applies another level, unless [`LEVEL_VARIABLE`] decides.
    pub fn set_level(&self, level: LogLevel) {
        if !self.overridden {
            // The handle outlives the subscriber only while the process exits.
            let _ = self
                .filter
                .reload(EnvFilter::default().add_directive(level_filter(level).into()));
        }
    }
}

/// Starts logging to standard error.
///
/// # Errors
/// A bad [`LEVEL_VARIABLE`], or a second call in one process.
pub fn init(level: LogLevel, format: LogFormat) -> Result<Logging, LoggingError> {
    let overriding = std::env::var(LEVEL_VARIABLE).ok().filter(|v| !v.is_empty());
    let filter = filter(overriding.as_deref(), level)?;
    let (filter, handle) = reload::Layer::new(filter);
    let output = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let output = match format {
        LogFormat::Text => output
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .boxed(),
        LogFormat::Json => output.json().flatten_event(true).boxed(),
    };
    Registry::default()
        .with(filter)
        .with(output)
        .try_init()
        .map_err(|_| LoggingError::Twice)?;
    Ok(Logging {
        filter: handle,
        overridden: overriding.is_some(),
    })
}

fn filter(overriding: Option<&str>, level: LogLevel) -> Result<EnvFilter, ParseError> {
    match overriding {
        Some(directives) => EnvFilter::builder().parse(directives),
        None => Ok(EnvFilter::default().add_directive(level_filter(level).into())),
    }
}

fn level_filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// How long a repeated error stays silent.
pub const REPEAT_INTERVAL: Duration = Duration::from_secs(600);

/// Decides which occurrences of an error that repeats are logged: the first at once, then one
/// every [`REPEAT_INTERVAL`] with the number of those in between. Another text is another error.
#[derive(Debug, Default)]
pub struct RepeatedError {
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    text: String,
    reported: Instant,
    unreported: u64,
    total: u64,
}

/// An occurrence that is to be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Occurrences since the last report, this one included; in all, for
    /// [`RepeatedError::recovered`].
    pub count: u64,
}

impl fmt::Display for Report {
    /// Nothing for a single occurrence, else ` (12 times)`: to append to the message.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            0 | 1 => Ok(()),
            count => write!(f, " ({count} times)"),
        }
    }
}

impl RepeatedError {
    /// Notes a failure; what it returns is to be logged.
    pub fn failed(&mut self, error: &impl fmt::Display, now: Instant) -> Option<Report> {
        let text = error.to_string();
        match &mut self.current {
            Some(current) if current.text == text => {
                current.total += 1;
                current.unreported += 1;
                if now.saturating_duration_since(current.reported) < REPEAT_INTERVAL {
                    return None;
                }
                current.reported = now;
                Some(Report {
                    count: std::mem::take(&mut current.unreported),
                })
            }
            current => {
                *current = Some(Current {
                    text,
                    reported: now,
                    unreported: 0,
                    total: 1,
                });
                Some(Report { count: 1 })
            }
        }
    }

    /// Notes a success: a report if there were failures before, with their number.
    pub fn recovered(&mut self) -> Option<Report> {
        self.current.take().map(|current| Report {
            count: current.total,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_at_once_then_every_ten_minutes_with_its_count() {
        let mut error = RepeatedError::default();
        let start = Instant::now();
        let mut logged = Vec::new();
        for second in 0..=1800 {
            if let Some(report) = error.failed(&"no route", start + Duration::from_secs(second)) {
                logged.push((second, report.count));
            }
        }
        assert_eq!(logged, [(0, 1), (600, 600), (1200, 600), (1800, 600)]);
        assert_eq!(error.recovered(), Some(Report { count: 1801 }));
        assert_eq!(error.recovered(), None);
        assert!(error.failed(&"no route", start).is_some());
    }

    #[test]
    fn another_text_is_another_error() {
        let mut error = RepeatedError::default();
        let now = Instant::now();
        assert!(error.failed(&"a", now).is_some());
        assert!(error.failed(&"a", now).is_none());
        assert!(error.failed(&"b", now).is_some());
    }

    #[test]
    fn a_count_is_written_only_when_there_is_one() {
        assert_eq!(Report { count: 1 }.to_string(), "");
        assert_eq!(Report { count: 7 }.to_string(), " (7 times)");
    }

    #[test]
    fn the_variable_overrides_the_file() {
        let of = |v, l| filter(v, l).unwrap().to_string();
        assert_eq!(of(None, LogLevel::Warn), "warn");
        assert_eq!(of(Some("debug"), LogLevel::Warn), "debug");
        assert!(filter(Some("netd=loud"), LogLevel::Info).is_err());
    }
}
