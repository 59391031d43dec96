//! The report: what was measured, on what, and whether the targets are met.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use crate::bpf::abi::FRAME;
use crate::machine::Machine;
use crate::pps::{Run, SAMPLE, Settings};
use crate::statistics::{Spread, median_interval};

/// A target: one backend against another.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The backend that is judged.
    pub of: &'static str,
    /// The one that it is compared with.
    pub to: &'static str,
    /// What the median of the paired ratios must reach; None: reported only.
    pub at_least: Option<f64>,
}

/// A backend that took part or was left out.
#[derive(Clone, Debug)]
pub struct Participant {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Why it was left out.
    pub skip: Option<String>,
}

/// Everything, as `--json` prints it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    schema: u32,
    /// Whether every row is.
    pub ok: bool,
    total: usize,
    failed: usize,
    skipped: usize,
    rows: Vec<Row>,
    scenario: &'static str,
    started: Timestamp,
    machine: Machine,
    settings: Settings,
    method: Method,
    backends: Vec<Summary>,
    ratios: Vec<Ratio>,
    runs: Vec<Run>,
}

/// A check.
#[derive(Clone, Debug, Serialize)]
struct Row {
    name: String,
    expected: String,
    got: String,
    ok: bool,
    skip: Option<String>,
}

/// What is the same for all backends.
#[derive(Clone, Copy, Debug, Serialize)]
struct Method {
    /// Bytes of a frame, with its FCS.
    frame_bytes: usize,
    generator: &'static str,
    offloads: &'static str,
    scheduling: &'static str,
    /// One of so many packets is checked.
    sample: u32,
}

#[derive(Clone, Debug, Serialize)]
struct Summary {
    name: &'static str,
    about: &'static str,
    skip: Option<String>,
    mpps: Option<Spread>,
    ns_per_packet: Option<Spread>,
    /// Part of the generated frames that arrived.
    delivered: Option<Spread>,
    /// The CPUs that softirqs ran on.
    softirq_cpus: Vec<usize>,
}

#[derive(Clone, Debug, Serialize)]
struct Ratio {
    of: &'static str,
    to: &'static str,
    target: Option<f64>,
    #[serde(flatten)]
    spread: Spread,
    /// Where the true median is with 95 % probability; None for fewer than six rounds.
    interval: Option<[f64; 2]>,
    /// Round by round.
    paired: Vec<f64>,
}

impl Report {
    /// Judges the runs.
    pub fn new(
        started: Timestamp,
        machine: Machine,
        settings: Settings,
        participants: &[Participant],
        targets: &[Target],
        runs: Vec<Run>,
    ) -> Self {
        let mut rows = Vec::new();
        let mut ratios = Vec::new();
        for target in targets {
            let ratio = Ratio::of(target, &runs);
            if let Some(least) = target.at_least {
                rows.push(target_row(target, least, ratio.as_ref(), participants));
            }
            ratios.extend(ratio);
        }
        for participant in participants.iter().filter(|p| p.skip.is_none()) {
            rows.push(intact_row(participant.name, &runs));
        }
        let failed = rows.iter().filter(|row| !row.ok).count();
        Self {
            schema: 1,
            ok: failed == 0,
            total: rows.len(),
            failed,
            skipped: rows.iter().filter(|row| row.skip.is_some()).count(),
            rows,
            scenario: "pps",
            started,
            machine,
            settings,
            method: Method {
                // The FCS is four bytes that no program sees.
                frame_bytes: FRAME + 4,
                generator: "XDP live frames (BPF_PROG_TEST_RUN) into the uplink's veth",
                offloads: "uplink: GRO on; everything else a veth's default",
                scheduling: "SCHED_FIFO",
                sample: SAMPLE,
            },
            backends: participants.iter().map(|p| Summary::of(p, &runs)).collect(),
            ratios,
            runs,
        }
    }

    /// Whether a target could not be judged at all.
    pub fn has_skipped_target(&self) -> bool {
        self.skipped > 0
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "pps: UDP, {} bytes, {} flow(s), through one published port; {} rounds of {} s on CPU {}\n\
             {}, {} × {}, Linux {}\n\n",
            self.method.frame_bytes,
            self.settings.flows,
            self.settings.rounds,
            self.settings.seconds,
            self.settings.cpu,
            self.started.strftime("%Y-%m-%d %H:%M UTC"),
            self.machine.cores,
            self.machine.cpu,
            self.machine.kernel,
        );
        text += &lines(&self.backend_table());
        text.push('\n');
        text += &lines(&self.ratio_table());
        text.push('\n');
        for row in &self.rows {
            let mark = match (&row.skip, row.ok) {
                (Some(_), _) => "skipped",
                (None, true) => "ok",
                (None, false) => "FAILED",
            };
            let _ = writeln!(
                text,
                "{mark:8}{}: expected {}, got {}{}",
                row.name,
                row.expected,
                row.got,
                row.skip
                    .as_ref()
                    .map(|why| format!(": {why}"))
                    .unwrap_or_default(),
            );
        }
        text
    }

    fn backend_table(&self) -> Table {
        let mut table = table(&[
            "backend",
            "Mpps",
            "min",
            "max",
            "ns/packet",
            "delivered",
            "CPU",
            "what",
        ]);
        for backend in &self.backends {
            let (Some(mpps), Some(ns), Some(delivered)) =
                (backend.mpps, backend.ns_per_packet, backend.delivered)
            else {
                let why = backend.skip.as_deref().unwrap_or("no runs");
                table.add_row([
                    backend.name,
                    "-",
                    "-",
                    "-",
                    "-",
                    "-",
                    "-",
                    &format!("skipped: {why}"),
                ]);
                continue;
            };
            let cpus: Vec<String> = backend.softirq_cpus.iter().map(usize::to_string).collect();
            table.add_row([
                backend.name,
                &format!("{:.3}", mpps.median),
                &format!("{:.3}", mpps.min),
                &format!("{:.3}", mpps.max),
                &format!("{:.0}", ns.median),
                &format!("{:.1} %", delivered.median * 100.0),
                &cpus.join(","),
                backend.about,
            ]);
        }
        table
    }

    fn ratio_table(&self) -> Table {
        let mut table = table(&["paired ratio", "median", "95 %", "min", "max", "target"]);
        for ratio in &self.ratios {
            table.add_row([
                format!("{} / {}", ratio.of, ratio.to),
                format!("{:.2}", ratio.spread.median),
                ratio
                    .interval
                    .map_or_else(String::new, |[low, high]| format!("{low:.2} to {high:.2}")),
                format!("{:.2}", ratio.spread.min),
                format!("{:.2}", ratio.spread.max),
                ratio
                    .target
                    .map_or_else(String::new, |target| format!("≥ {target}")),
            ]);
        }
        table
    }
}

impl Ratio {
    /// None if one of the two did not run.
    fn of(target: &Target, runs: &[Run]) -> Option<Self> {
        let of = |name| runs.iter().filter(move |run| run.backend == name);
        let paired: Vec<f64> = of(target.of)
            .filter_map(|one| {
                let other = of(target.to).find(|run| run.round == one.round)?;
                Some(one.mpps / other.mpps)
            })
            .collect();
        Some(Self {
            of: target.of,
            to: target.to,
            target: target.at_least,
            spread: Spread::of(paired.iter().copied())?,
            interval: median_interval(&paired),
            paired,
        })
    }
}

impl Summary {
    fn of(participant: &Participant, runs: &[Run]) -> Self {
        let own = || runs.iter().filter(|run| run.backend == participant.name);
        let mut softirq_cpus: Vec<usize> = own().flat_map(|run| run.sink.cpus.clone()).collect();
        softirq_cpus.sort_unstable();
        softirq_cpus.dedup();
        Self {
            name: participant.name,
            about: participant.about,
            skip: participant.skip.clone(),
            mpps: Spread::of(own().map(|run| run.mpps)),
            ns_per_packet: Spread::of(own().map(|run| run.ns_per_packet)),
            delivered: Spread::of(own().map(|run| run.sink.datagrams as f64 / f64::from(run.sent))),
            softirq_cpus,
        }
    }
}

fn target_row(
    target: &Target,
    least: f64,
    ratio: Option<&Ratio>,
    participants: &[Participant],
) -> Row {
    let name = format!("pps {} / {}", target.of, target.to);
    let expected = format!("≥ {least}");
    match ratio {
        // A ratio that is no number (nothing arrived) is no success.
        Some(ratio) => Row {
            name,
            expected,
            got: format!("{:.2}", ratio.spread.median),
            ok: ratio.spread.median >= least,
            skip: None,
        },
        None => {
            let why: Vec<String> = [target.of, target.to]
                .into_iter()
                .map(|side| match participants.iter().find(|p| p.name == side) {
                    Some(Participant {
                        skip: Some(why), ..
                    }) => format!("{side}: {why}"),
                    Some(_) => format!("{side}: ran"),
                    None => format!("{side}: not asked for"),
                })
                .collect();
            Row {
                name,
                expected,
                got: "skipped".to_owned(),
                ok: false,
                skip: Some(why.join("; ")),
            }
        }
    }
}

/// The sampled packets of every run were as they should be, and every run had some.
fn intact_row(name: &str, runs: &[Run]) -> Row {
    let own = || runs.iter().filter(|run| run.backend == name);
    let checked: u64 = own().map(|run| run.sink.checked).sum();
    let wrong: u64 = own().map(|run| run.sink.wrong()).sum();
    Row {
        name: format!("pps {name} intact"),
        expected: "every checked packet has the right addresses, ports, TTL and checksums"
            .to_owned(),
        got: format!("{checked} checked, {wrong} complaints"),
        ok: wrong == 0 && own().count() > 0 && own().all(|run| run.sink.checked > 0),
        skip: None,
    }
}

fn table(headers: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(headers);
    for (header, column) in headers.iter().zip(table.column_iter_mut()) {
        column.set_padding((0, 2));
        if !matches!(*header, "backend" | "paired ratio" | "what") {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn lines(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::Tally;

    const SETTINGS: Settings = Settings {
        flows: 1,
        rounds: 3,
        seconds: 1.0,
        cpu: 0,
    };

    fn run(round: u32, backend: &'static str, mpps: f64, wrong_checksum: u64) -> Run {
        Run {
            round,
            backend,
            sent: 1000,
            mpps,
            ns_per_packet: 1e3 / mpps,
            sink: Tally {
                datagrams: 1000,
                cpus: vec![0],
                checked: 1,
                wrong_checksum,
                ..Tally::default()
            },
        }
    }

    fn report(runs: Vec<Run>) -> Report {
        let participant = |name| Participant {
            name,
            about: "",
            skip: None,
        };
        let target = Target {
            of: "new",
            to: "old",
            at_least: Some(2.5),
        };
        Report::new(
            Timestamp::UNIX_EPOCH,
            Machine::read(),
            SETTINGS,
            &[participant("old"), participant("new")],
            &[target],
            runs,
        )
    }

    fn rounds(new: [f64; 3], wrong: u64) -> Vec<Run> {
        (1u32..)
            .zip(new)
            .flat_map(|(round, mpps)| {
                // The machine gets slower from round to round; the ratio does not.
                let pace = 1.0 / f64::from(round);
                [
                    run(round, "old", pace, 0),
                    run(round, "new", mpps * pace, wrong),
                ]
            })
            .collect()
    }

    #[test]
    fn ratios_are_paired_by_round() {
        let report = report(rounds([3.0, 2.6, 2.4], 0));
        assert!(report.ok);
        let spread = report.ratios[0].spread;
        assert!((spread.median - 2.6).abs() < 1e-9, "{spread:?}");
        assert!((spread.min - 2.4).abs() < 1e-9, "{spread:?}");
    }

    #[test]
    fn a_median_below_the_target_fails() {
        let report = report(rounds([3.0, 2.4, 2.4], 0));
        assert!(!report.ok);
        assert_eq!((report.total, report.failed, report.skipped), (3, 1, 0));
    }

    #[test]
    fn a_damaged_packet_fails_whatever_the_speed() {
        assert!(!report(rounds([9.0, 9.0, 9.0], 1)).ok);
    }

    #[test]
    fn a_target_without_runs_is_skipped_and_not_met() {
        let only_new = rounds([3.0; 3], 0)
            .into_iter()
            .filter(|run| run.backend == "new")
            .collect();
        let report = report(only_new);
        assert!(!report.ok);
        assert!(report.has_skipped_target());
    }
}
