//! `netd status`: does the daemon run, and what does the data plane enforce?

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf, process::ExitCode};

use jiff::Timestamp;
use netd_common::abi::{self, answer_event, answer_kind, config_flag, hook};
use serde::Serialize;

use super::{Exit, Global, output, read};
use crate::{
    dataplane::AttachMode,
    nat_use::PortUse,
    run_state::{Alarm, Fallbacks, RunFiles, RunState, SourceAddress, running_pid},
    state::{
        State, StateError,
        attachment::{self, AttachmentView},
        drops,
        flow::{self, Usage},
        kernel_flow,
        network::NetworkView,
        publish,
    },
};

pub(super) const EXIT_CODES: &str = "\
Exit codes: 0 the daemon runs and nothing is wrong; 1 it is stopped, or something is wrong \
(printed first); 3 nothing is loaded.";

/// Arguments of `netd status`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// The daemon and the data plane.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    schema: u32,
    /// Is the daemon running and nothing wrong?
    pub healthy: bool,
    /// What is wrong, one sentence each.
    pub problems: Vec<String>,
    daemon: Daemon,
    data_plane: DataPlane,
    /// Release of the kernel.
    kernel: String,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Daemon {
    running: bool,
    pid: Option<u32>,
    /// When it was started, running or not.
    started: Option<Timestamp>,
    /// When it left in good order.
    stopped_at: Option<Timestamp>,
    /// Its version of netd.
    version: Option<String>,
    config: Option<PathBuf>,
    /// Is the last good copy in force instead of the file?
    last_good: bool,
    fallbacks: Option<Fallbacks>,
    alarm: Option<Alarm>,
    /// Destinations towards which few source ports are left.
    scarce_ports: Vec<PortUse>,
    warnings: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct DataPlane {
    abi_version: u32,
    pinned: PathBuf,
    mode: &'static str,
    allow_direct_routing: bool,
    /// When the daemon last brought it in line with the file and the host.
    synced_at: Option<Timestamp>,
    /// Source ports of masqueraded flows.
    nat_ports: publish::Ports,
    networks: Vec<NetworkView>,
    endpoints: usize,
    publishes: usize,
    flows_v4: Usage,
    flows_v6: Usage,
    /// Flows that the kernel's NAT owned when netd came, and still does.
    kernel_flows: usize,
    /// No new flow is taken: `netd unload --drain` is waiting for the flows that there are.
    draining: bool,
    drops: u64,
    verdicts: Vec<HookVerdicts>,
    /// ICMP errors that netd itself sent to who sent what it had to drop.
    answers: Vec<AnswerView>,
    attachments: Vec<AttachmentView>,
}

#[derive(Clone, Debug, Serialize)]
struct HookVerdicts {
    hook: &'static str,
    passed: u64,
    forwarded: u64,
    decided: u64,
    dropped: u64,
}

/// Answers of one kind.
#[derive(Clone, Debug, Serialize)]
struct AnswerView {
    kind: &'static str,
    sent: u64,
    /// Not sent: more than a CPU sends in a second.
    limited: u64,
    /// Not sent: such a packet gets no answer, or there is no address to answer from.
    silent: u64,
}

impl Report {
    /// Reads maps, links and what the daemon left.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn read(state: &State, files: &RunFiles) -> Result<Self, StateError> {
        let run = RunState::load(&files.state);
        let daemon = Daemon::of(running_pid(files), run);
        let how = daemon.fallbacks.map_or(AttachMode::Tcx, |f| f.attach);
        let data_plane = DataPlane::read(state, how)?;
        let problems = problems(&daemon, &data_plane);
        Ok(Self {
            schema: 1,
            healthy: problems.is_empty(),
            problems,
            daemon,
            data_plane,
            kernel: kernel_release(),
        })
    }
}

impl Daemon {
    fn of(pid: Option<u32>, run: Option<RunState>) -> Self {
        let running = pid.is_some();
        let Some(run) = run else {
            return Self {
                running,
                pid,
                ..Self::default()
            };
        };
        Self {
            running,
            pid,
            started: Some(run.started),
            stopped_at: run.stopped_at.filter(|_| !running),
            version: Some(run.version),
            config: Some(run.config),
            last_good: run.last_good,
            fallbacks: Some(run.fallbacks),
            alarm: run.alarm,
            scarce_ports: run.scarce_ports,
            warnings: run.warnings,
        }
    }
}

impl DataPlane {
    fn read(state: &State, how: AttachMode) -> Result<Self, StateError> {
        let config = state.config()?;
        let topology = state.topology()?;
        let [flows_v4, flows_v6] = flow::usage(state)?;
        let verdicts = state.verdicts()?;
        let mode = if config.flags & config_flag::ACCELERATE == 0 {
            "replace"
        } else {
            "accelerate"
        };
        Ok(Self {
            abi_version: abi::VERSION,
            pinned: state.directory().to_owned(),
            mode,
            allow_direct_routing: config.flags & config_flag::ALLOW_DIRECT_ROUTING != 0,
            synced_at: (config.synced_at != 0)
                .then(|| state.clock().time_of_boot(config.synced_at)),
            nat_ports: publish::Ports {
                first: config.nat_first,
                last: config.nat_last,
            },
            endpoints: topology.endpoints.len(),
            publishes: publish::publishes(state, &topology)?.len(),
            flows_v4,
            flows_v6,
            kernel_flows: kernel_flow::count(state, &config)?,
            draining: config.flags & config_flag::DRAIN != 0,
            drops: drops::sums(state, None)?.iter().map(|sum| sum.count).sum(),
            verdicts: (0..hook::COUNT)
                .zip(verdicts)
                .map(|(number, v)| HookVerdicts {
                    hook: hook::name(number),
                    passed: v.passed,
                    forwarded: v.forwarded,
                    decided: v.decided,
                    dropped: v.dropped,
                })
                .collect(),
            answers: (0..)
                .zip(state.answers()?)
                .map(|(kind, answers)| AnswerView {
                    kind: answer_kind::name(kind),
                    sent: answers.count[answer_event::SENT],
                    limited: answers.count[answer_event::LIMITED],
                    silent: answers.count[answer_event::SILENT],
                })
                .collect(),
            attachments: attachment::attachments(state, how)?,
            networks: topology.networks.into_values().collect(),
        })
    }
}

/// Runs the verb.
///
/// # Errors
/// Where standard output cannot be written.
pub fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let pin_dir = global.pin_dir();
    let report = match read::open(&pin_dir) {
        Ok(state) => Report::read(&state, &RunFiles::of(&pin_dir)).map_err(read::cannot_read),
        Err(code) => Err(code),
    };
    let report = match report {
        Ok(report) => report,
        Err(code) => return Ok(code),
    };
    output::answer(args.json, &report, render)?;
    Ok(if report.healthy { Exit::Done } else { Exit::No }.into())
}

fn problems(daemon: &Daemon, data_plane: &DataPlane) -> Vec<String> {
    let mut problems = Vec::new();
    if !daemon.running {
        problems.push(stopped(daemon, data_plane));
    }
    if data_plane.draining {
        problems.push(
            "netd is drained: new connections are left to the kernel's own rules. `netd unload` \
             ends that for good, `netd run --takeover` (or `netd run`) takes them again"
                .to_owned(),
        );
    }
    if let Some(alarm) = &daemon.alarm {
        problems.push(format!("{} (since {})", alarm.message, alarm.since));
    }
    for port_use in daemon.scarce_ports.iter().filter(|_| daemon.running) {
        problems.push(format!(
            "{port_use}. New flows there are refused when there is none left: widen [nat] ports, \
             or give the network an address of its own (masquerade_to)"
        ));
    }
    if daemon.last_good {
        problems.push(
            "the configuration file cannot be used; the last good copy is in force. \
             `netd check` says what is wrong with the file"
                .to_owned(),
        );
    }
    // While the daemon runs it removes the pins of interfaces that are gone.
    for lost in data_plane.attachments.iter().filter(|a| !a.attached) {
        let interface = lost
            .interface
            .clone()
            .unwrap_or_else(|| format!("if{}", lost.ifindex));
        problems.push(format!(
            "{} is no longer attached to {interface}",
            lost.hook
        ));
    }
    for (name, usage) in [
        ("IPv4", &data_plane.flows_v4),
        ("IPv6", &data_plane.flows_v6),
    ] {
        if is_nearly_full(usage) {
            problems.push(format!(
                "the {name} flow table is nearly full: {} of {}. Raise [limits] in the file",
                usage.flows, usage.limit
            ));
        }
    }
    problems
}

/// Above nine tenths.
fn is_nearly_full(usage: &Usage) -> bool {
    u64::from(usage.flows) * 10 > u64::from(usage.limit) * 9
}

/// The data plane without its daemon: nothing opens, nothing new is found.
fn stopped(daemon: &Daemon, data_plane: &DataPlane) -> String {
    let since = match (daemon.stopped_at, data_plane.synced_at) {
        (Some(at), _) => format!("since {at}"),
        (None, Some(at)) => format!("and did not leave in good order; it was last active at {at}"),
        (None, None) => "and nothing is known of it".to_owned(),
    };
    format!(
        "the daemon is stopped {since}. The data plane goes on with the state below; changes of \
         containers and of the file wait for `netd run`"
    )
}

/// The answer for people.
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    let (daemon, plane) = (&report.daemon, &report.data_plane);
    for problem in &report.problems {
        let _ = writeln!(text, "! {problem}");
    }
    for warning in &daemon.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    if !text.is_empty() {
        text.push('\n');
    }
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<14}{value}");
    };
    line("daemon", daemon_text(daemon));
    if let Some(config) = &daemon.config {
        line("file", config.display().to_string());
    }
    line("mode", plane.mode.to_owned());
    line("synchronised", output::or_dash(plane.synced_at));
    line(
        "kernel",
        format!("{}; {}", report.kernel, fallbacks_text(daemon.fallbacks)),
    );
    line(
        "pinned",
        format!("{} (ABI {})", plane.pinned.display(), plane.abi_version),
    );
    line("source ports", plane.nat_ports.to_string());
    line("containers", plane.endpoints.to_string());
    line(
        "publishes",
        format!("{} (see `netd ports`)", plane.publishes),
    );
    line("flows IPv4", usage_text(&plane.flows_v4));
    line("flows IPv6", usage_text(&plane.flows_v6));
    if plane.kernel_flows > 0 {
        line(
            "flows kernel",
            format!(
                "{} of its own NAT, from before netd came",
                plane.kernel_flows
            ),
        );
    }
    if plane.draining {
        let left = [&plane.flows_v4, &plane.flows_v6];
        let left: u32 = left.iter().map(|u| u.flows + u.embryos).sum();
        line(
            "draining",
            format!("{left} flows left, no new ones are taken"),
        );
    }
    line("drops", format!("{} (see `netd drops`)", plane.drops));
    if let Some(answers) = answers_text(&plane.answers) {
        line("answers", answers);
    }
    text.push('\n');
    text.push_str(&networks_table(&plane.networks));
    text.push('\n');
    text.push_str(&hooks_table(plane));
    text
}

/// ICMP errors sent, by kind; `None`: none was, and none was held back.
fn answers_text(answers: &[AnswerView]) -> Option<String> {
    let sent: Vec<_> = answers
        .iter()
        .filter(|a| a.sent + a.limited > 0)
        .map(|a| {
            let held = match a.limited {
                0 => String::new(),
                limited => format!(" ({limited} held back)"),
            };
            format!("{} {}{held}", a.sent, a.kind)
        })
        .collect();
    (!sent.is_empty()).then(|| sent.join(", "))
}

fn daemon_text(daemon: &Daemon) -> String {
    let Some(pid) = daemon.pid else {
        return daemon
            .stopped_at
            .map_or("stopped".to_owned(), |at| format!("stopped since {at}"));
    };
    match daemon.started {
        Some(at) => format!("running since {at}, pid {pid}"),
        None => format!("running, pid {pid}"),
    }
}

fn fallbacks_text(fallbacks: Option<Fallbacks>) -> String {
    let Some(fallbacks) = fallbacks else {
        return "fallbacks not known".to_owned();
    };
    let attach = match fallbacks.attach {
        AttachMode::Tcx => "tcx links",
        AttachMode::Clsact => "clsact filters (tcx: Linux 6.6)",
    };
    let source = match fallbacks.source_address {
        SourceAddress::FibLookup => "source address by route lookup",
        SourceAddress::UplinkMap => "source address by interface (route lookup: Linux 6.7)",
    };
    let host_access = if fallbacks.host_access {
        "host access by cgroup hooks"
    } else {
        "no host access (needs cgroup2 mounted, CONFIG_CGROUP_BPF)"
    };
    format!("{attach}, {source}, {host_access}")
}

fn usage_text(usage: &Usage) -> String {
    let mut text = format!(
        "{} of {}, and {} without a reply of {}",
        usage.flows, usage.limit, usage.embryos, usage.embryo_limit
    );
    let events = &usage.events;
    for (count, what) in [
        (events.evicted_embryo, "unreplied made room"),
        (events.evicted_closing, "closing made room"),
        (events.evicted_idle, "idle made room"),
        (events.refused_full, "refused, the table being full"),
        (
            events.refused_share,
            "refused, their container having its share",
        ),
        (
            events.port_reused,
            "source ports taken from closed connections",
        ),
    ] {
        if count > 0 {
            let _ = write!(text, "; {count} {what}");
        }
    }
    text
}

fn networks_table(networks: &[NetworkView]) -> String {
    if networks.is_empty() {
        return "No networks.\n".to_owned();
    }
    let mut table = output::table(&["NETWORK", "BRIDGE", "SUBNETS", "MODE", "NOTES"], &[]);
    for network in networks {
        let mode = if network.mode_v4 == network.mode_v6 {
            network.mode_v4.to_owned()
        } else {
            format!("{} / {}", network.mode_v4, network.mode_v6)
        };
        let notes = [
            (network.internal, "internal".to_owned()),
            (!network.icc, "no icc".to_owned()),
            (network.spoof != "nat", format!("spoof {}", network.spoof)),
        ];
        let notes: Vec<String> = notes
            .into_iter()
            .filter_map(|(is, note)| is.then_some(note))
            .collect();
        table.add_row([
            network.name.clone(),
            network.bridge.clone().unwrap_or_else(|| "gone".to_owned()),
            network.subnets.join(", "),
            mode,
            notes.join(", "),
        ]);
    }
    output::lines(&table)
}

fn hooks_table(plane: &DataPlane) -> String {
    let mut interfaces: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for attachment in &plane.attachments {
        let name = attachment
            .interface
            .clone()
            .unwrap_or_else(|| format!("if{}", attachment.ifindex));
        let lost = if attachment.attached {
            ""
        } else {
            " (detached)"
        };
        interfaces
            .entry(attachment.hook)
            .or_default()
            .push(name + lost);
    }
    let headers = [
        "HOOK",
        "PASSED",
        "FORWARDED",
        "DECIDED",
        "DROPPED",
        "INTERFACES",
    ];
    let mut table = output::table(&headers, &headers[1..5]);
    for v in &plane.verdicts {
        table.add_row([
            v.hook.to_owned(),
            output::count(v.passed),
            output::count(v.forwarded),
            output::count(v.decided),
            output::count(v.dropped),
            interfaces
                .get(v.hook)
                .map_or_else(|| "-".to_owned(), |names| names.join(", ")),
        ]);
    }
    output::lines(&table)
}

fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").map_or_else(
        |_| "unknown".to_owned(),
        |release| release.trim().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::flow::RoomEvents;

    fn plane() -> DataPlane {
        let usage = Usage {
            flows: 3,
            limit: 131_072,
            embryos: 1,
            embryo_limit: 32_768,
            events: RoomEvents::default(),
        };
        DataPlane {
            abi_version: 2,
            pinned: "/sys/fs/bpf/netd/v2".into(),
            mode: "replace",
            allow_direct_routing: false,
            synced_at: Some("2026-11-21T10:00:05Z".parse().unwrap()),
            nat_ports: publish::Ports {
                first: 16384,
                last: 32767,
            },
            networks: vec![],
            endpoints: 4,
            publishes: 2,
            flows_v4: usage,
            flows_v6: Usage { flows: 0, ..usage },
            kernel_flows: 0,
            draining: false,
            drops: 7,
            verdicts: vec![HookVerdicts {
                hook: "from_uplink",
                passed: 5,
                forwarded: 2_500_000,
                decided: 3,
                dropped: 7,
            }],
            answers: vec![AnswerView {
                kind: "too-big",
                sent: 12,
                limited: 1,
                silent: 0,
            }],
            attachments: vec![AttachmentView {
                interface: Some("eth0".into()),
                ifindex: 2,
                hook: "from_uplink",
                attached: true,
            }],
        }
    }

    fn running() -> Daemon {
        Daemon {
            running: true,
            pid: Some(4711),
            started: Some("2026-11-21T10:00:00Z".parse().unwrap()),
            config: Some("/etc/netd/netd.toml".into()),
            fallbacks: Some(Fallbacks {
                attach: AttachMode::Tcx,
                source_address: SourceAddress::FibLookup,
                host_access: true,
            }),
            ..Daemon::default()
        }
    }

    fn report(daemon: Daemon, data_plane: DataPlane) -> Report {
        let problems = problems(&daemon, &data_plane);
        Report {
            schema: 1,
            healthy: problems.is_empty(),
            problems,
            daemon,
            data_plane,
            kernel: "6.18.0".into(),
        }
    }

    #[test]
    fn a_healthy_page() {
        let report = report(running(), plane());
        assert!(report.healthy);
        assert_eq!(
            render(&report),
            "\
daemon        running since 2026-11-21T10:00:00Z, pid 4711
file          /etc/netd/netd.toml
mode          replace
synchronised  2026-11-21T10:00:05Z
kernel        6.18.0; tcx links, source address by route lookup, host access by cgroup hooks
pinned        /sys/fs/bpf/netd/v2 (ABI 2)
source ports  16384-32767
containers    4
publishes     2 (see `netd ports`)
flows IPv4    3 of 131072, and 1 without a reply of 32768
flows IPv6    0 of 131072, and 1 without a reply of 32768
drops         7 (see `netd drops`)
answers       12 too-big (1 held back)

No networks.

HOOK         PASSED  FORWARDED  DECIDED  DROPPED  INTERFACES
from_uplink       5      2.5 M        3        7  eth0
"
        );
    }

    #[test]
    fn a_stopped_daemon_is_said_with_the_time() {
        let mut daemon = running();
        (daemon.running, daemon.pid) = (false, None);
        daemon.stopped_at = Some("2026-11-21T11:00:00Z".parse().unwrap());
        let clean = report(daemon.clone(), plane());
        assert!(!clean.healthy);
        assert!(clean.problems[0].contains("stopped since 2026-11-21T11:00:00Z"));
        daemon.stopped_at = None;
        let crashed = report(daemon, plane());
        assert!(crashed.problems[0].contains("last active at 2026-11-21T10:00:05Z"));
    }

    #[test]
    fn each_problem_is_found_alone() {
        let mut full = plane();
        full.flows_v6.flows = full.flows_v6.limit - 1;
        let mut lost = plane();
        lost.attachments[0].attached = false;
        let alarm = Alarm {
            since: "2026-11-21T10:30:00Z".parse().unwrap(),
            message: "cannot list routes".into(),
        };
        for (daemon, plane, words) in [
            (running(), full, "IPv6 flow table"),
            (running(), lost, "no longer attached to eth0"),
            (
                Daemon {
                    alarm: Some(alarm),
                    ..running()
                },
                plane(),
                "cannot list routes",
            ),
            (
                Daemon {
                    last_good: true,
                    ..running()
                },
                plane(),
                "last good copy",
            ),
        ] {
            let report = report(daemon, plane);
            assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
            assert!(report.problems[0].contains(words), "{:?}", report.problems);
            assert!(render(&report).starts_with("! "));
        }
    }
}
