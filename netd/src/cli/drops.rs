//! `netd drops`: what was dropped, and why.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    time::{Duration, Instant},
};

use jiff::SignedDuration;
use netd_common::abi::{DROP_EVENTS_PER_SECOND, DropKey};
use nix::poll::PollTimeout;
use serde::Serialize;

use super::{Global, output, read};
use crate::state::{
    State, StateError,
    drops::{self, DropSum, DropView, LONGEST_WINDOW, PacketView},
    events::{self, DropEventView, Events},
    network::Topology,
};

/// Arguments of `netd drops`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Count only the last seconds or minutes: 30s, 1m, up to 10m. The counters have slots of ten
    /// seconds, so up to that much more is covered. Without it: all since the maps were made.
    #[arg(long, value_name = "DURATION", conflicts_with = "follow")]
    pub last: Option<String>,
    /// Print dropped packets as they come: a sample of at most 100 per second and CPU.
    #[arg(long)]
    pub follow: bool,
    /// Say what each reason means.
    #[arg(long, conflicts_with = "follow")]
    pub explain: bool,
    /// Print JSON; with --follow one object per line.
    #[arg(long)]
    pub json: bool,
}

/// Drops by kind and place.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    schema: u32,
    /// The window that was asked for; `None`: since the maps were made.
    window_seconds: Option<u32>,
    /// Drops in it.
    total: u64,
    drops: Vec<DropView>,
}

impl Report {
    /// Reads the counters.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn read(state: &State, window_seconds: Option<u32>) -> Result<Self, StateError> {
        let drops = drops::drops(state, &state.topology()?, window_seconds)?;
        let total = drops.iter().map(|d| d.count).sum();
        Ok(Self {
            schema: 1,
            window_seconds,
            total,
            drops,
        })
    }
}

/// Runs the verb.
///
/// # Errors
/// Where standard output cannot be written.
pub fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let window = match args.last.as_deref().map(window).transpose() {
        Ok(window) => window,
        Err(message) => return Ok(read::refuse(message)),
    };
    let state = match read::open(&global.pin_dir()) {
        Ok(state) => state,
        Err(code) => return Ok(code),
    };
    if args.follow {
        return follow(&state, args.json);
    }
    match Report::read(&state, window) {
        Ok(report) => output::answer(args.json, &report, |r| render(r, args.explain)),
        Err(error) => Ok(read::cannot_read(error)),
    }
}

/// Seconds of `--last`.
fn window(text: &str) -> Result<u32, String> {
    let duration: SignedDuration = text
        .parse()
        .map_err(|_| format!("--last {text}: write a time like 30s, 1m or 10m"))?;
    match u32::try_from(duration.as_secs()) {
        Ok(seconds @ 1..=LONGEST_WINDOW) => Ok(seconds),
        Ok(0) | Err(_) if duration.as_secs() <= 0 => {
            Err(format!("--last {text}: at least one second, please"))
        }
        _ => Err(format!(
            "--last {text}: drops are remembered for {} minutes. Ask for less, or leave --last \
             out to count since the data plane was loaded",
            LONGEST_WINDOW / 60
        )),
    }
}

/// The answer for people.
pub fn render(report: &Report, explain: bool) -> String {
    let when = match report.window_seconds {
        None => "since the data plane was loaded".to_owned(),
        Some(seconds) => format!("in the last {}", output::seconds(seconds)),
    };
    if report.drops.is_empty() {
        return format!("Nothing was dropped {when}.\n");
    }
    let headers = [
        "REASON",
        "DIRECTION",
        "CONTAINER",
        "NETWORK",
        "COUNT",
        "LAST SEEN",
        "LAST PACKET",
    ];
    let headers: Vec<&str> = headers
        .into_iter()
        .chain(explain.then_some("MEANING"))
        .collect();
    let mut table = output::table(&headers, &["COUNT"]);
    for drop in &report.drops {
        let mut row = vec![
            drop.reason.clone(),
            drop.direction.to_owned(),
            place(drop.container.as_ref(), drop.interface.as_deref()),
            output::or_dash(drop.network.as_ref()),
            drop.count.to_string(),
            drop.last_seen.to_string(),
            output::or_dash(drop.last.as_ref().map(packet)),
        ];
        if explain {
            row.push(drop.explain.to_owned());
        }
        table.add_row(row);
    }
    format!("{}{} dropped {when}\n", output::lines(&table), report.total)
}

/// The container, else the interface of the hook in brackets.
fn place(container: Option<&impl ToString>, interface: Option<&str>) -> String {
    match (container, interface) {
        (Some(container), _) => container.to_string(),
        (None, Some(interface)) => format!("({interface})"),
        (None, None) => "-".to_owned(),
    }
}

fn packet(packet: &PacketView) -> String {
    format!("{} {}", packet.protocol, output::tuple(&packet.tuple))
}

/// One line of `--follow` from the ring buffer.
#[derive(Debug, Serialize)]
struct EventLine {
    schema: u32,
    /// `packet`
    kind: &'static str,
    #[serde(flatten)]
    event: DropEventView,
}

/// One line of `--follow` from the counters.
#[derive(Debug, Serialize)]
struct CountLine {
    schema: u32,
    /// `count`: `count` packets since the line before.
    kind: &'static str,
    #[serde(flatten)]
    drop: DropView,
}

fn follow(state: &State, json: bool) -> anyhow::Result<ExitCode> {
    match Events::open(state) {
        Ok(Some(events)) => follow_events(state, events, json),
        Ok(None) => {
            eprintln!(
                "note: another `netd drops --follow` reads the packets themselves; \
                 this one shows the counters, once a second"
            );
            follow_counters(state, json)
        }
        Err(error) => Ok(read::cannot_read(error)),
    }
}

/// How long a reading of networks and containers serves: they may come and go meanwhile.
const TOPOLOGY_LIFETIME: Duration = Duration::from_secs(2);

fn follow_events(state: &State, mut events: Events, json: bool) -> anyhow::Result<ExitCode> {
    if !json {
        output::print(&format!(
            "following dropped packets (a sample: at most {DROP_EVENTS_PER_SECOND} per second \
             and CPU; `netd drops` counts all)\n"
        ))?;
    }
    let mut state = state.clone();
    let mut read_at: Option<Instant> = None;
    let mut topology = Topology::default();
    loop {
        let Some(event) = events.next(PollTimeout::NONE)? else {
            continue;
        };
        if read_at.is_none_or(|t| t.elapsed() > TOPOLOGY_LIFETIME) {
            state.refresh();
            topology = match state.topology() {
                Ok(topology) => topology,
                Err(error) => return Ok(read::cannot_read(error)),
            };
            read_at = Some(Instant::now());
        }
        let view = events::view(&state, &topology, &event);
        let line = if json {
            serde_json::to_string(&EventLine {
                schema: 1,
                kind: "packet",
                event: view,
            })?
        } else {
            event_text(&view)
        };
        output::print(&(line + "\n"))?;
    }
}

fn event_text(event: &DropEventView) -> String {
    let packet = event
        .packet
        .as_ref()
        .map_or_else(|| "no IP header".to_owned(), packet);
    format!(
        "{}  {:<22} {:<14} {:<16} {packet}, {} bytes",
        event.seen,
        event.reason,
        event.direction,
        place(event.container.as_ref(), event.interface.as_deref()),
        event.length
    )
}

fn follow_counters(state: &State, json: bool) -> anyhow::Result<ExitCode> {
    let mut state = state.clone();
    let mut before: Option<BTreeMap<DropKey, u64>> = None;
    loop {
        state.refresh();
        let (sums, topology) = match (drops::sums(&state, None), state.topology()) {
            (Ok(sums), Ok(topology)) => (sums, topology),
            (Err(error), _) | (_, Err(error)) => return Ok(read::cannot_read(error)),
        };
        if let Some(before) = &before {
            for sum in since(before, &sums) {
                let drop = drops::view(&state, &topology, &sum);
                let line = if json {
                    serde_json::to_string(&CountLine {
                        schema: 1,
                        kind: "count",
                        drop,
                    })?
                } else {
                    count_text(&drop)
                };
                output::print(&(line + "\n"))?;
            }
        }
        before = Some(sums.iter().map(|s| (s.key, s.count)).collect());
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// What was counted since then. A counter that the LRU has evicted begins again at zero.
fn since(before: &BTreeMap<DropKey, u64>, now: &[DropSum]) -> Vec<DropSum> {
    now.iter()
        .filter_map(|sum| {
            let old = before.get(&sum.key).copied().unwrap_or(0);
            let count = sum.count.checked_sub(old).unwrap_or(sum.count);
            (count > 0).then(|| DropSum {
                count,
                ..sum.clone()
            })
        })
        .collect()
}

fn count_text(drop: &DropView) -> String {
    format!(
        "{}  {:<22} {:<14} {:<16} {} more, last {}",
        drop.last_seen,
        drop.reason,
        drop.direction,
        place(drop.container.as_ref(), drop.interface.as_deref()),
        drop.count,
        output::or_dash(drop.last.as_ref().map(packet))
    )
}

#[cfg(test)]
mod tests {
    use netd_common::{abi::AnyTuple, drop::DropReason};

    use super::*;
    use crate::state::{
        flow::TupleView,
        network::{ContainerRef, NetworkRef},
    };

    fn view() -> DropView {
        DropView {
            reason: "isolation".into(),
            explain: DropReason::Isolation.explain(),
            hook: "from_endpoint",
            direction: "from-container",
            family: Some(4),
            interface: Some("vethA".into()),
            container: Some(ContainerRef {
                interface: Some("vethA".into()),
                addresses: vec!["10.201.1.2".parse().unwrap()],
            }),
            network: Some(NetworkRef {
                id: 1,
                name: "web".into(),
            }),
            count: 12,
            last: Some(PacketView {
                protocol: "tcp".into(),
                tuple: TupleView {
                    src: "10.201.1.2".parse().unwrap(),
                    src_port: Some(40000),
                    dst: "10.201.2.2".parse().unwrap(),
                    dst_port: Some(80),
                    icmp_id: None,
                },
            }),
            last_seen: "2026-11-21T10:00:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn windows() {
        for (text, seconds) in [
            ("1m", 60),
            ("30s", 30),
            ("10m", 600),
            ("1m30s", 90),
            ("600s", 600),
        ] {
            assert_eq!(window(text), Ok(seconds), "{text}");
        }
        for text in ["11m", "601s", "1h", "200h"] {
            assert!(window(text).unwrap_err().contains("10 minutes"), "{text}");
        }
        for text in ["0s", "-1m", "-1s", "100ms"] {
            assert!(window(text).unwrap_err().contains("at least"), "{text}");
        }
        for text in ["", "1", "soon", "60 parsecs"] {
            assert!(window(text).unwrap_err().contains("30s, 1m"), "{text}");
        }
    }

    #[test]
    fn people_see_a_table() {
        let report = Report {
            schema: 1,
            window_seconds: Some(60),
            total: 12,
            drops: vec![view()],
        };
        assert_eq!(
            render(&report, true),
            "\
REASON     DIRECTION       CONTAINER   NETWORK  COUNT  LAST SEEN             LAST PACKET                           MEANING
isolation  from-container  10.201.1.2  web         12  2026-11-21T10:00:00Z  tcp 10.201.1.2:40000 → 10.201.2.2:80  The destination is a container of another network.
12 dropped in the last 1m00s
"
        );
        assert!(!render(&report, false).contains("MEANING"));
        let none = Report {
            schema: 1,
            window_seconds: None,
            total: 0,
            drops: vec![],
        };
        assert_eq!(
            render(&none, false),
            "Nothing was dropped since the data plane was loaded.\n"
        );
    }

    #[test]
    fn a_line_of_json_is_one_object_with_its_schema() {
        let line = CountLine {
            schema: 1,
            kind: "count",
            drop: view(),
        };
        let text = serde_json::to_string(&line).unwrap();
        assert!(!text.contains('\n'));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["last"]["dst_port"], 80);
        assert_eq!(json["last_seen"], "2026-11-21T10:00:00Z");
    }

    #[test]
    fn only_what_is_new_is_shown() {
        let sum = |reason, count| DropSum {
            key: DropKey {
                reason,
                ..DropKey::default()
            },
            count,
            last_seen: 1,
            last: AnyTuple::default(),
        };
        let before = [sum(1, 5), sum(2, 7), sum(4, 9)]
            .map(|s| (s.key, s.count))
            .into();
        let counts: Vec<(u16, u64)> = since(&before, &[sum(1, 5), sum(2, 9), sum(3, 4), sum(4, 2)])
            .iter()
            .map(|s| (s.key.reason, s.count))
            .collect();
        assert_eq!(counts, [(2, 2), (3, 4), (4, 2)]);
    }

    #[test]
    fn a_drop_without_a_container_names_the_interface() {
        let none: Option<&String> = None;
        assert_eq!(place(none, Some("eth0")), "(eth0)");
        assert_eq!(place(none, None), "-");
    }
}
