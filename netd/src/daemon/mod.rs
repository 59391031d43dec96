//! `netd run`: keeps the data plane in agreement with the file and the host.
//!
//! Events only wake the loop; state is always read anew. A lost event costs latency, never
//! correctness: a reading a minute is done without any.

pub mod control;
mod engine;
mod epoch;
mod file_watch;
mod kernel_nat;
mod lock;
mod migration;
mod nat_watch;

use std::future::pending;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

pub use engine::{engine_ports, recover_ids};
pub use lock::{Lock, LockError};

use netd_common::abi::NatPressure;

use crate::config::{Config, ConfigError, Loaded, last_good};
use crate::dataplane::migrate::{self, Previous, Refusal};
use crate::dataplane::{AttachMode, Kernel, LoadOptions, sizes};
use crate::host::{self, HostWatch, KernelFeatures, Wake};
use crate::logging::{self, Logging, RepeatedError};
use crate::run_state::{Fallbacks, RunFiles, RunState, SourceAddress, running_pid};
use control::{Answer, AskError, Command};
use engine::{Engine, summary};
use epoch::EpochKeeper;
use file_watch::FileWatch;
use nat_watch::{NatWatch, Pressure};

/// Default of `--state-dir`.
pub const STATE_DIR: &str = "/var/lib/netd";

/// Events within this time lead to one reading.
const COALESCE: Duration = Duration::from_millis(50);
/// So do forwarding entries that bridges learn and forget: only a container that could not be
/// asked is found by them.
const COALESCE_NEIGHBOURS: Duration = Duration::from_secs(1);
/// Without any event, for what sends none (port ranges).
const RESYNC: Duration = Duration::from_secs(60);
/// After a change: the Engine binds its sockets to published ports, and sockets of the host end, a
/// moment later, and neither tells.
const AFTER_A_CHANGE: Duration = Duration::from_secs(2);
/// How often idle flows are looked for.
const COLLECT: Duration = Duration::from_secs(10);
/// How long a running daemon may take to say that it leaves: it finishes what it is at.
const LEAVING: Duration = Duration::from_secs(10);
/// After a failure; doubled up to [`RESYNC`].
const RETRY: Duration = Duration::from_secs(1);

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The file.
    pub config: PathBuf,
    /// Instead of the file's `pin_dir`.
    pub pin_dir: Option<PathBuf>,
    /// Where the last good copy is.
    pub state_dir: PathBuf,
    /// Replace a daemon that runs.
    pub takeover: bool,
    /// Attach by clsact even where the kernel has tcx.
    pub no_tcx: bool,
    /// Checks to switch off; see [`LoadOptions::sabotage`].
    pub sabotage: u32,
}

/// Why the daemon could not start. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file is not valid, and there is no last good copy.
    #[error("{0}")]
    Config(ConfigError),
    /// It cannot run here.
    #[error("{0}")]
    Lock(#[from] LockError),
    /// What is in force is another version's.
    #[error("{0}")]
    Version(#[from] Refusal),
    /// The kernel or netd's privileges lack something.
    #[error("netd cannot run here:\n{0}")]
    Missing(String),
}

/// The file, or its last good copy with the reason why the file is not used.
struct Start {
    loaded: Loaded,
    instead: Option<ConfigError>,
}

fn start_config(options: &Options) -> Result<Start, StartError> {
    match Config::load(&options.config) {
        Ok(loaded) => Ok(Start {
            loaded,
            instead: None,
        }),
        Err(error) => match last_good::load(&options.state_dir) {
            Ok(Some(loaded)) => Ok(Start {
                loaded,
                instead: Some(error),
            }),
            _ => Err(StartError::Config(error)),
        },
    }
}

/// Runs until it is told to leave. The data plane stays when it does.
///
/// # Errors
/// A [`StartError`], or what went wrong while starting.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let start = start_config(options)?;
    let log = &start.loaded.config.log;
    let logging = logging::init(log.level, log.format)?;
    let pin_dir = options
        .pin_dir
        .clone()
        .unwrap_or_else(|| start.loaded.config.host.pin_dir.clone());
    let files = RunFiles::of(&pin_dir);
    // What can go wrong goes wrong before a running daemon is asked to leave.
    let previous = migrate::survey(&pin_dir).map_err(StartError::from)?;
    let features = host::kernel_features()?;
    let blockers: Vec<String> = features
        .blockers()
        .map(|missing| format!("- {}: {}", missing.what, missing.hint))
        .collect();
    if !blockers.is_empty() {
        return Err(StartError::Missing(blockers.join("\n")).into());
    }
    if options.takeover && running_pid(&files).is_some() {
        let config = &start.loaded.config;
        let load = load_options(
            config,
            &pin_dir,
            &features,
            options.no_tcx,
            options.sabotage,
        )?;
        Kernel::check(&load)?;
    }
    let lock = take_lock(&files, options.takeover)?;
    if pin_dir.starts_with(host::BPFFS_PATH) {
        host::ensure_bpffs(Path::new(host::BPFFS_PATH))?;
    }

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let place = Place {
        pin_dir,
        files,
        lock,
        previous,
    };
    runtime.block_on(serve(options, start, logging, &features, place))
}

fn take_lock(files: &RunFiles, takeover: bool) -> Result<Lock, LockError> {
    match Lock::take(files, Duration::ZERO) {
        Err(LockError::Taken { .. }) if takeover => {
            let why = match control::ask_within(&files.socket, Command::Leave, LEAVING) {
                Ok(answer) if !answer.ok => Some(answer.message),
                // It has left before it could answer, or it is on its way in or out: the lock tells.
                Ok(_) | Err(AskError::NotRunning(_)) => None,
                Err(error) => Some(error.to_string()),
            };
            match Lock::take(files, Duration::from_secs(5)) {
                Err(LockError::Taken { pid }) => Err(LockError::Stays { pid, why }),
                taken => taken,
            }
        }
        taken => taken,
    }
}

/// How to load, from the file, the kernel and the memory of the host.
///
/// # Errors
/// When the host's memory cannot be read.
pub fn load_options(
    config: &Config,
    pin_dir: &Path,
    features: &KernelFeatures,
    no_tcx: bool,
    sabotage: u32,
) -> anyhow::Result<LoadOptions> {
    Ok(LoadOptions {
        pin_dir: pin_dir.to_owned(),
        sizes: sizes(host::ram_bytes()?, possible_cpus(), &config.limits),
        features: features.into(),
        attach: if features.tcx && !no_tcx {
            AttachMode::Tcx
        } else {
            AttachMode::Clsact
        },
        sabotage,
    })
}

fn possible_cpus() -> u32 {
    aya::util::nr_cpus().map_or(1, |cpus| cpus as u32)
}

/// Where a daemon settles, and what it finds there.
struct Place {
    pin_dir: PathBuf,
    files: RunFiles,
    lock: Lock,
    /// What an earlier version left.
    previous: Option<Previous>,
}

async fn serve(
    options: &Options,
    start: Start,
    logging: Logging,
    features: &KernelFeatures,
    place: Place,
) -> anyhow::Result<()> {
    let Place {
        pin_dir,
        files,
        lock,
        previous,
    } = place;
    let began = Instant::now();
    // Before the first reading: what changes after it wakes.
    let mut watch = HostWatch::open()?;
    let mut file_watch = FileWatch::open(&options.config)
        .inspect_err(|error| {
            let path = options.config.display();
            tracing::warn!("cannot watch {path}: {error}; changes need `netd reload`");
        })
        .ok();
    let mut commands = control::listen(&files.socket)
        .with_context(|| format!("cannot listen at {}", files.socket.display()))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;

    let Start { loaded, instead } = start;
    let mut load = load_options(
        &loaded.config,
        &pin_dir,
        features,
        options.no_tcx,
        options.sabotage,
    )?;
    if let Some(previous) = &previous {
        migration::prepare(previous, &mut load);
    }
    let before = RunState::load(&files.state);
    let attached_before = before.as_ref().map(|before| before.fallbacks.attach);
    let state = initial_state(options, &loaded, &load, features, before, instead.is_some());
    let kernel = Kernel::load(&load, state.qdiscs.clone())?;
    #[cfg(feature = "bpf-log")]
    let kernel = {
        let mut kernel = kernel;
        kernel.forward_log()?;
        kernel
    };
    give_memory_back();
    for note in kernel.notes() {
        tracing::warn!("{note}");
    }
    let epoch = EpochKeeper::start(kernel.epoch())?;
    let engine = Engine::new(loaded.config.clone(), kernel, state, files.state.clone())?;
    let mut daemon = Daemon {
        options,
        logging,
        pin_dir,
        engine,
        epoch,
        text: loaded.text,
        refusal: None,
        previous: None,
        sync_at: None,
        synced: None,
        watch_at: None,
        file_at: None,
        nat_at: None,
        pressure: Pressure::default(),
        retry: RETRY,
        sync_errors: RepeatedError::default(),
        collect_errors: RepeatedError::default(),
        watch_errors: RepeatedError::default(),
    };
    match instead {
        Some(error) => {
            let message = format!(
                "{} cannot be used; the last good copy is in force instead. {error}",
                options.config.display()
            );
            tracing::error!("{message}");
            daemon.engine.alarm(Some(message.clone()));
            daemon.refusal = Some(message);
        }
        None => daemon.keep_good_copy(),
    }
    // Who starts netd wants it to take flows.
    if let Err(error) = daemon.engine.end_draining() {
        tracing::warn!("{error}: no new flows are taken; `netd run --takeover` tries again");
    }
    if let Some(previous) = &previous {
        daemon.engine.adopt(previous)?;
    }
    daemon.previous = previous;
    daemon.sync(&mut watch);
    if attached_before.is_some_and(|before| before != load.attach) {
        daemon.engine.detach_other(load.attach, &daemon.pin_dir);
    }
    tracing::info!(
        "netd {} runs: {} networks, {} publishes, mode {}, {:?}, ready in {:.0} ms",
        env!("CARGO_PKG_VERSION"),
        daemon.engine.config.networks.len(),
        daemon.engine.config.publishes.len(),
        daemon.engine.config.host.mode,
        load.attach,
        began.elapsed().as_secs_f64() * 1e3,
    );

    let mut nat_watch = NatWatch::open(&daemon.engine.kernel.maps_directory())
        .inspect_err(|error| tracing::warn!("cannot watch for scarce source ports: {error}"))
        .ok();
    let mut collect = interval(COLLECT);
    collect.set_missed_tick_behavior(MissedTickBehavior::Delay);
    collect.tick().await;
    let answer: Option<oneshot::Sender<Answer>> = loop {
        tokio::select! {
            biased;
            woken = changed(&mut watch, daemon.watch_at) => {
                if woken.is_err() {
                    daemon.watch_at = Some(Instant::now() + RETRY);
                    // The old one goes on being asked, if there can be no new one.
                    if let Ok(new) = HostWatch::open() {
                        watch = new;
                    }
                } else {
                    daemon.watch_at = None;
                }
                daemon.woken(woken);
            }
            () = until(daemon.sync_at) => daemon.sync(&mut watch),
            Some((command, answer)) = commands.recv() => match command {
                // The client may have gone.
                Command::Reload => { let _ = answer.send(daemon.reload(&mut watch)); }
                Command::Leave => break Some(answer),
                Command::Drain => { let _ = answer.send(daemon.drain(true)); }
                Command::EndDraining => { let _ = answer.send(daemon.drain(false)); }
            },
            changed = file_changed(&mut file_watch) => {
                if let Err(error) = changed {
                    tracing::warn!("no longer watching the file: {error}");
                    file_watch = None;
                }
                // Half-written files are common; the end of writing is one more event.
                daemon.file_at = Some(Instant::now() + COALESCE);
            }
            () = until(daemon.file_at) => daemon.file_changed(&mut watch),
            told = told(&mut nat_watch) => match told {
                Ok(events) => daemon.nat_at = Some(daemon.pressure.add(events)),
                Err(error) => {
                    tracing::warn!("no longer watching for scarce source ports: {error}");
                    nat_watch = None;
                }
            },
            () = until(daemon.nat_at) => daemon.collect(),
            _ = hangup.recv() => drop(daemon.reload(&mut watch)),
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            _ = collect.tick() => daemon.collect(),
        }
    };
    daemon.engine.state.stopped_at = Some(Timestamp::now());
    daemon.engine.save();
    tracing::info!("netd leaves; the data plane stays in force as it is");
    // While the lock is held: the next daemon makes its own, and is the only one to write.
    drop(daemon.epoch);
    let _ = std::fs::remove_file(&files.socket);
    drop(lock);
    if let Some(answer) = answer {
        let _ = answer.send(Answer::done("left; the data plane stays as it is"));
        // Let the answer get out before the runtime ends.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => pending().await,
    }
}

/// The next change of the host; not before `pause`, so that a watch that fails does not spin.
async fn changed(watch: &mut HostWatch, pause: Option<Instant>) -> std::io::Result<Wake> {
    if let Some(pause) = pause {
        sleep_until(pause.into()).await;
    }
    watch.changed().await
}

async fn file_changed(watch: &mut Option<FileWatch>) -> std::io::Result<()> {
    match watch {
        Some(watch) => watch.changed().await,
        None => pending().await,
    }
}

async fn told(watch: &mut Option<NatWatch>) -> std::io::Result<Vec<NatPressure>> {
    match watch {
        Some(watch) => watch.told().await,
        None => pending().await,
    }
}

/// Reading the kernel's BTF takes tens of megabytes for a moment.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: glibc's own function, without preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn initial_state(
    options: &Options,
    loaded: &Loaded,
    load: &LoadOptions,
    features: &KernelFeatures,
    before: Option<RunState>,
    last_good: bool,
) -> RunState {
    let config = std::path::absolute(&options.config).unwrap_or_else(|_| options.config.clone());
    let mut state = RunState {
        schema: 1,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started: Timestamp::now(),
        stopped_at: None,
        mode: loaded.config.host.mode.to_string(),
        config,
        last_good,
        synced_at: None,
        fallbacks: Fallbacks {
            attach: load.attach,
            source_address: if features.fib_source {
                SourceAddress::FibLookup
            } else {
                SourceAddress::UplinkMap
            },
            host_access: host::supports_socket_hooks() && host::cgroup2_root().is_some(),
        },
        alarm: None,
        scarce_ports: Vec::new(),
        warnings: Vec::new(),
        networks: Default::default(),
        sysctls: Default::default(),
        reserved_ports: None,
        qdiscs: Default::default(),
        kernel_nat: Default::default(),
    };
    // What an earlier daemon left to undo, and the ids that rows and flows refer to.
    if let Some(before) = before {
        state.networks = before.networks;
        state.sysctls = before.sysctls;
        state.reserved_ports = before.reserved_ports;
        state.qdiscs = before.qdiscs;
        state.kernel_nat = before.kernel_nat;
    }
    state
}

struct Daemon<'a> {
    options: &'a Options,
    logging: Logging,
    pin_dir: PathBuf,
    engine: Engine,
    /// Tells flows of changed routes before the next synchronisation does.
    epoch: EpochKeeper,
    /// The text of the file that was read last, valid or not.
    text: String,
    /// Why the file that is there now is not in force.
    refusal: Option<String>,
    /// What an earlier ABI left, until the first synchronisation has put everything in its place.
    previous: Option<Previous>,
    sync_at: Option<Instant>,
    synced: Option<Instant>,
    /// The host's changes are not asked for before.
    watch_at: Option<Instant>,
    /// The file may have changed; it is read then.
    file_at: Option<Instant>,
    /// Scarce source ports are looked into then.
    nat_at: Option<Instant>,
    pressure: Pressure,
    retry: Duration,
    sync_errors: RepeatedError,
    collect_errors: RepeatedError,
    watch_errors: RepeatedError,
}

impl Daemon<'_> {
    fn woken(&mut self, woken: std::io::Result<Wake>) {
        let wake = match woken {
            Ok(wake) => wake,
            Err(error) => {
                if let Some(report) = self.watch_errors.failed(&error, Instant::now()) {
                    tracing::warn!("cannot watch the host: {error}{report}");
                }
                Wake::all()
            }
        };
        tracing::debug!(?wake, "woken");
        let now = Instant::now();
        let at = if wake == Wake::NEIGHBOURS {
            now + COALESCE_NEIGHBOURS
        } else if wake.contains(Wake::LINKS) {
            // A container's new port is open to its neighbours until it has its programs: the
            // first one at once.
            self.synced
                .map_or(now, |synced| (synced + COALESCE).max(now))
        } else {
            now + COALESCE
        };
        self.sync_at = Some(self.sync_at.map_or(at, |planned| planned.min(at)));
    }

    fn sync(&mut self, watch: &mut HostWatch) {
        let began = Instant::now();
        let result = self.engine.sync();
        self.synced = Some(Instant::now());
        let error = match result {
            Ok(synced) => {
                self.epoch.set_bridges(synced.bridges.clone());
                watch.set_bridges(synced.bridges);
                if let Some(report) = self.sync_errors.recovered() {
                    tracing::info!(failures = report.count, "synchronised again");
                }
                if !synced.steps.is_empty() {
                    tracing::info!("{}", summary(&synced.steps, began));
                    for step in &synced.steps {
                        tracing::trace!("{step}");
                    }
                }
                if let Some(previous) = self.previous.take() {
                    self.engine.complete(&previous);
                }
                self.retry = RETRY;
                let pause = if synced.steps.is_empty() && synced.settled {
                    RESYNC
                } else {
                    AFTER_A_CHANGE
                };
                self.sync_at = Some(Instant::now() + pause);
                None
            }
            Err(error) => {
                if let Some(report) = self.sync_errors.failed(&error, Instant::now()) {
                    tracing::error!("{error}{report}; trying again");
                }
                self.sync_at = Some(Instant::now() + self.retry);
                self.retry = (self.retry * 2).min(RESYNC);
                Some(error.to_string())
            }
        };
        self.engine.alarm(error.or_else(|| self.refusal.clone()));
    }

    /// Reads the file and puts it in force, or refuses it and leaves everything as it is.
    fn reload(&mut self, watch: &mut HostWatch) -> Answer {
        match Config::load(&self.options.config) {
            Ok(loaded) => self.adopt(loaded, watch),
            Err(error) => {
                self.text = std::fs::read_to_string(&self.options.config).unwrap_or_default();
                self.refuse(error.to_string())
            }
        }
    }

    fn file_changed(&mut self, watch: &mut HostWatch) {
        self.file_at = None;
        // Removed for a moment, or touched: nothing to do until there is another text.
        match std::fs::read_to_string(&self.options.config) {
            Ok(text) if text != self.text => drop(self.reload(watch)),
            _ => {}
        }
    }

    fn adopt(&mut self, loaded: Loaded, watch: &mut HostWatch) -> Answer {
        self.text.clone_from(&loaded.text);
        let new = loaded.config;
        let old = &self.engine.config;
        if self.options.pin_dir.is_none() && new.host.pin_dir != self.pin_dir {
            return self.refuse(format!(
                "pin_dir cannot change while netd runs (it is {}): `netd unload`, then `netd run`",
                self.pin_dir.display()
            ));
        }
        if new.limits != old.limits {
            tracing::warn!("[limits] takes effect after `netd unload` and `netd run`");
        }
        let log = (new.log.level, new.log.format != old.log.format);
        self.logging.set_level(log.0);
        if log.1 {
            tracing::warn!("[log] format takes effect when netd is started again");
        }
        let changed = new != *old;
        self.engine.config = new;
        self.engine.state.mode = self.engine.config.host.mode.to_string();
        self.engine.state.last_good = false;
        self.refusal = None;
        self.keep_good_copy();
        self.sync(watch);
        match &self.engine.state.alarm {
            None if changed => Answer::done("the file is in force"),
            None => Answer::done("the file is in force; it says what it said before"),
            Some(alarm) => Answer::failed(format!(
                "the file is valid, but not everything is in force yet: {}",
                alarm.message
            )),
        }
    }

    fn drain(&mut self, on: bool) -> Answer {
        let done = if on {
            self.engine.drain()
        } else {
            self.engine.end_draining()
        };
        match done {
            Ok(()) if on => {
                tracing::info!("draining: no new flows are taken");
                Answer::done("no new flows are taken")
            }
            Ok(()) => {
                tracing::info!("draining was given up: new flows are taken again");
                Answer::done("new flows are taken again")
            }
            Err(error) => Answer::failed(error.to_string()),
        }
    }

    fn refuse(&mut self, why: String) -> Answer {
        let path = self.options.config.display();
        tracing::error!("{path} is refused, and what was in force stays:\n{why}");
        let message = format!("{path} is refused, and what was in force before stays. {why}");
        self.refusal = Some(message.clone());
        self.engine.alarm(Some(message));
        Answer::refused(why)
    }

    fn keep_good_copy(&self) {
        if let Err(error) = last_good::save(&self.options.state_dir, &self.text) {
            tracing::warn!("{error}");
        }
    }

    fn collect(&mut self) {
        self.engine.collect_kernel_flows();
        self.nat_at = None;
        match self.engine.kernel.collect() {
            Ok(collected) => {
                self.collect_errors.recovered();
                if collected.removed > 0 {
                    tracing::debug!(?collected, "idle flows removed");
                }
            }
            Err(error) => {
                if let Some(report) = self.collect_errors.failed(&error, Instant::now()) {
                    tracing::warn!("cannot collect idle flows: {error}{report}");
                }
            }
        }
        if let Err(error) = self.engine.kernel.forget_closed_sockets() {
            tracing::debug!("cannot forget closed sockets of the host: {error}");
        }
        if self.pressure.is_any()
            && let Err(error) = self.pressure.look(&mut self.engine)
        {
            tracing::debug!("cannot count source ports: {error}");
        }
    }
}
