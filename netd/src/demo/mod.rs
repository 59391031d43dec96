//! `netd demo`: what a host full of other people's firewall rules does to containers, and what it does to them under
//! netd.
//!
//! A client, a host with two bridges and four containers are built in namespaces of their own. The host gets Docker's
//! own rules, and around them what breaks them in the field: FORWARD policy DROP, Oracle Cloud's REJECT, UFW's, and
//! Tailscale's chains; also `br_netfilter`, which shows bridged packets to all of them. The same probes run without
//! netd and with it: this very program, started as `netd run` inside the host's namespace.

mod probes;
mod report;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use nix::mount::umount;

use crate::host::{BPFFS_PATH, Bpffs, ensure_bpffs};
use crate::lab::{
    Counters, Daemon, Direction, HOST, IptablesBackend, LabError, LeakGuard, Movement, Outcome,
    ProbeOptions, Question, RuleSet, StandardHost, StandardHostOptions, Transfer, bulk_transfer,
};
use crate::run_state;
pub use report::{Report, Row};

/// How long a probe waits for its answer. What is dropped takes this long, all at once.
const PATIENCE: Duration = Duration::from_millis(1200);
/// Emulated machines are slow, and what should be answered costs its patience only when it fails.
const LONG_PATIENCE: Duration = Duration::from_secs(8);
/// Moved through a published port with every byte compared.
const BULK: u64 = 8 << 20;

/// Why the demonstration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// It needs namespaces, and BPF.
    #[error("the demonstration builds network namespaces and loads BPF programs: run it as root")]
    NotRoot,
    /// The laboratory, or netd itself.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The BPF file system.
    #[error(transparent)]
    Host(#[from] crate::host::HostError),
    /// What to start as the daemon is not known.
    #[error("cannot find this program's own file: {0}")]
    OwnFile(std::io::Error),
}

/// Builds everything, probes twice, and cleans up.
///
/// # Errors
/// [`DemoError`]: it cannot be made here. A probe that fails is a row, not an error.
pub fn run() -> Result<Report, DemoError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(DemoError::NotRoot);
    }
    let program = std::env::current_exe().map_err(DemoError::OwnFile)?;
    let _surroundings = Surroundings::prepare()?;
    let demo = Demo::build()?;

    let without = demo.round(false)?;
    let bulk_without = demo.bulk(PATIENCE);
    let daemon = Daemon::start(
        &program,
        &demo.host.host,
        &demo.host.netd_toml("replace", "/sys/fs/bpf/netd"),
    )?;
    let guards = demo.host.leak_guards()?;
    let with = demo.round(true)?;
    let bulk_with = demo.bulk(LONG_PATIENCE);
    let mut rows = demo.rules.clone();
    for ((probe, before), after) in demo
        .of_containers
        .iter()
        .chain(&demo.of_host)
        .zip(&without.outcomes)
        .zip(&with.outcomes)
    {
        rows.push(Row::probe(probe, before, after));
    }
    rows.push(bulk_row(bulk_without, bulk_with));
    rows.push(demo.counters_row(&without, &with));
    rows.push(leak_row(guards));
    rows.push(unload_row(daemon));
    Ok(Report::new(rows))
}

/// The host and what is asked of it.
struct Demo {
    host: StandardHost,
    of_containers: Vec<Question>,
    of_host: Vec<Question>,
    /// One row for each rule set, loaded or not.
    rules: Vec<Row>,
    /// Whether there are counters to be read.
    counted: bool,
}

/// All probes once.
struct Round {
    outcomes: Vec<Outcome>,
    /// What FORWARD, nat and raw counted meanwhile.
    moved: Option<Vec<Movement>>,
}

impl Demo {
    fn build() -> Result<Self, DemoError> {
        let host = StandardHost::build(StandardHostOptions {
            forwarding: true,
            networks: &["n1", "n2"],
            ..Default::default()
        })?;
        // Bridged IPv4 meets iptables; IPv6's neighbour discovery stays what the bridge makes of it.
        if Path::new("/proc/sys/net/bridge").exists() {
            host.host
                .set_sysctl("net/bridge/bridge-nf-call-iptables", 1)?;
        }
        // In the order of a host on which the firewall came up before Docker: first come, first served.
        let sets = [
            RuleSet::oracle_cloud(),
            RuleSet::ufw(),
            RuleSet::docker_29(),
            RuleSet::tailscale(),
            RuleSet::forward_drop(),
            RuleSet::forward_drop().ipv6(),
        ];
        let rules: Vec<Row> = sets
            .iter()
            .map(|set| Row::rules(set, host.host.load_rules(set, IptablesBackend::Default)))
            .collect();
        let counted = rules.iter().any(|row| row.skip.is_none());
        // Oracle's INPUT ends with REJECT.
        let guarded = rules[0].skip.is_none();
        let (of_containers, of_host) = (
            probes::of_containers(&host),
            probes::of_host(&host, guarded),
        );
        Ok(Self {
            host,
            of_containers,
            of_host,
            rules,
            counted,
        })
    }

    /// What leads to the host itself moves counters rightly, so it is asked first, and the rest is counted.
    fn round(&self, with_netd: bool) -> Result<Round, DemoError> {
        let ask = |questions: &[Question]| {
            self.host
                .ask(questions, PATIENCE, LONG_PATIENCE, !with_netd)
        };
        let mut outcomes = ask(&self.of_host);
        // The last segments of closed connections.
        std::thread::sleep(Duration::from_millis(100));
        let before = self.counters()?;
        outcomes.splice(..0, ask(&self.of_containers));
        let moved = match (before, self.counters()?) {
            (Some(before), Some(after)) => Some(after.forwarding_moved_since(&before)),
            _ => None,
        };
        Ok(Round { outcomes, moved })
    }

    fn counters(&self) -> Result<Option<Counters>, DemoError> {
        if !self.counted {
            return Ok(None);
        }
        Ok(Some(self.host.host.counters()?))
    }

    fn bulk(&self, patience: Duration) -> Result<Transfer, Outcome> {
        let options = ProbeOptions::default().timeout(patience);
        let to = SocketAddr::new(HOST.into(), 8083);
        bulk_transfer(&self.host.client, to, BULK, Direction::Download, &options)
    }

    fn counters_row(&self, without: &Round, with: &Round) -> Row {
        let count = |moved: &Option<Vec<Movement>>| {
            moved
                .as_ref()
                .map(|moved| moved.iter().map(|movement| movement.packets).sum::<u64>())
        };
        let packets = |n: u64| format!("{n} packets");
        let mut row = Row {
            name: "what FORWARD, nat and raw saw of all this".to_owned(),
            expected: "0 packets".to_owned(),
            without: count(&without.moved).map_or_else(|| "-".to_owned(), packets),
            ..Row::default()
        };
        match (count(&without.moved), count(&with.moved)) {
            // Counters that stood still without netd as well would prove nothing.
            (Some(before), Some(after)) => {
                row.got = packets(after);
                row.ok = after == 0 && before > 0;
                for movement in with.moved.iter().flatten() {
                    row.detail.push(movement.to_string());
                }
            }
            _ => row.skip("no rule set could be loaded"),
        }
        row
    }
}

fn bulk_row(without: Result<Transfer, Outcome>, with: Result<Transfer, Outcome>) -> Row {
    let describe = |moved: &Result<Transfer, Outcome>| match moved {
        Ok(transfer) => format!("ok, {:.1} Gbit/s", transfer.gigabits_per_second()),
        Err(outcome) => outcome.to_string(),
    };
    Row {
        name: format!("client ← host:8083, {} MiB compared", BULK >> 20),
        expected: "ok".to_owned(),
        got: describe(&with),
        ok: with.as_ref().is_ok_and(|transfer| transfer.bytes == BULK),
        without: describe(&without),
        ms: with
            .ok()
            .map(|transfer| transfer.elapsed.as_secs_f64() * 1e3),
        ..Row::default()
    }
}

/// No container's address may leave by the uplink.
fn leak_row(guards: Vec<LeakGuard>) -> Row {
    let mut row = Row {
        name: "packets on the uplink with a container's source".to_owned(),
        expected: "none".to_owned(),
        ok: true,
        ..Row::default()
    };
    let mut seen = 0;
    for guard in guards {
        match guard.finish() {
            Ok(frames) => seen += frames,
            Err(list) => {
                row.ok = false;
                row.detail.push(list);
            }
        }
    }
    // A guard that saw no frame at all proves nothing.
    row.ok &= seen > 0;
    row.got = if row.ok {
        format!("none of {seen}")
    } else {
        "some, or nothing was seen".to_owned()
    };
    row
}

fn unload_row(daemon: Daemon) -> Row {
    let mut row = Row {
        name: "netd unload leaves nothing".to_owned(),
        expected: "nothing".to_owned(),
        ..Row::default()
    };
    match daemon.unload() {
        Ok(()) => {
            row.ok = true;
            row.got = "nothing".to_owned();
        }
        Err(error) => {
            row.got = "something".to_owned();
            row.detail.push(error.to_string());
        }
    }
    row
}

/// What the daemon and the laboratory make on a bare machine beside their own files; taken away at the end.
struct Surroundings {
    bpffs: Bpffs,
    had_netns: bool,
    had_run: bool,
}

impl Surroundings {
    fn prepare() -> Result<Self, DemoError> {
        let had_netns = Path::new(crate::lab::NETNS_DIR).exists();
        let had_run = Path::new(run_state::DIRECTORY).exists();
        Ok(Self {
            bpffs: ensure_bpffs(Path::new(BPFFS_PATH))?,
            had_netns,
            had_run,
        })
    }
}

impl Drop for Surroundings {
    fn drop(&mut self) {
        // None of it goes while others use it: a mount is busy, a directory not empty.
        if self.bpffs == Bpffs::Mounted {
            let _ = umount(BPFFS_PATH);
        }
        if !self.had_run {
            let _ = fs::remove_dir(run_state::DIRECTORY);
        }
        if !self.had_netns
            && fs::read_dir(crate::lab::NETNS_DIR).is_ok_and(|mut dir| dir.next().is_none())
        {
            let _ = umount(crate::lab::NETNS_DIR);
            let _ = fs::remove_dir(crate::lab::NETNS_DIR);
        }
    }
}
