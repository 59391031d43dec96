//! The benchmark harness: netd against what it replaces.
//!
//! Figures of one machine mean little; ratios between variants that took turns in one run do. Exit
//! codes: 0 every target is met, 1 one is not, 2 wrong arguments, 3 it cannot run here.

mod backend;
mod bpf;
mod generator;
mod machine;
mod pps;
mod report;
mod sink;
mod statistics;
mod topology;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use jiff::Timestamp;

use crate::backend::{Backend, LEGACY, NFT};
use crate::machine::Machine;
use crate::report::{Participant, Report, Target};

/// Measures netd against what it replaces, in network namespaces of its own.
#[derive(Debug, Parser)]
#[command(name = "netd-bench", version)]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Small UDP datagrams through a published port, as fast as one CPU can forward them.
    Pps(Pps),
}

#[derive(Args, Debug)]
struct Pps {
    /// Turns of every backend.
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds of one turn.
    #[arg(long, default_value_t = 0.25, value_parser = seconds)]
    seconds: f64,
    /// Flows, told apart by the client's port.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(topology::MAX_FLOWS)))]
    flows: u16,
    /// The CPU that does all the work [default: the last].
    #[arg(long)]
    cpu: Option<usize>,
    /// Only these backends, by name; may be given several times.
    #[arg(long = "backend", value_name = "NAME")]
    backends: Vec<String>,
    /// What netd must reach against iptables-legacy, in the median of the paired ratios [default:
    /// 2.5 with one flow, 2.0 with more].
    #[arg(long)]
    target: Option<f64>,
    /// The program `netd` to measure [default: the one beside this program].
    #[arg(long, value_name = "FILE")]
    netd: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let Scenario::Pps(arguments) = Cli::parse().scenario;
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("netd-bench: {error:#}");
            ExitCode::from(3)
        }
    }
}

fn run(arguments: &Pps) -> anyhow::Result<ExitCode> {
    let netd = match &arguments.netd {
        Some(path) => path.clone(),
        None => std::env::current_exe()
            .context("cannot find this program's own directory: use --netd")?
            .with_file_name("netd"),
    };
    let backends = backend::all(&netd);
    if let Some(unknown) = unknown(&arguments.backends, &backends) {
        eprintln!("netd-bench: {unknown}");
        return Ok(ExitCode::from(2));
    }
    let cpu = arguments.cpu.unwrap_or(machine::cores() - 1);
    let settings = pps::Settings {
        flows: arguments.flows,
        rounds: arguments.rounds,
        seconds: arguments.seconds,
        cpu,
    };

    let started = Timestamp::now();
    let machine = Machine::read();
    let mut participants = Vec::new();
    let mut able: Vec<&dyn Backend> = Vec::new();
    for backend in &backends {
        if !asked_for(backend.name(), &arguments.backends) {
            continue;
        }
        let probed = backend.probe();
        if probed.is_ok() {
            able.push(backend.as_ref());
        }
        participants.push(Participant {
            name: backend.name(),
            about: backend.about(),
            skip: probed.err(),
        });
    }

    let runs = pps::run(&able, &settings, |run| {
        eprintln!(
            "round {} {:16} {:.3} Mpps",
            run.round, run.backend, run.mpps
        );
    })?;
    // Many flows cost the CPU's caches as much as the kernel: the gain is smaller.
    let least = arguments
        .target
        .unwrap_or(if settings.flows == 1 { 2.5 } else { 2.0 });
    let targets =
        [(LEGACY, Some(least)), (NFT, None), ("bare", None)].map(|(to, at_least)| Target {
            of: "netd",
            to,
            at_least,
        });
    let report = Report::new(started, machine, settings, &participants, &targets, runs);
    let text = if arguments.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        report.text()
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(if report.ok {
        ExitCode::SUCCESS
    } else if report.has_skipped_target() {
        ExitCode::from(3)
    } else {
        ExitCode::from(1)
    })
}

fn asked_for(name: &str, names: &[String]) -> bool {
    names.is_empty() || names.iter().any(|asked| asked == name)
}

fn unknown(names: &[String], backends: &[Box<dyn Backend>]) -> Option<String> {
    let known: Vec<&str> = backends.iter().map(|backend| backend.name()).collect();
    let name = names.iter().find(|name| !known.contains(&name.as_str()))?;
    Some(format!(
        "there is no backend {name}: choose from {}",
        known.join(", ")
    ))
}

/// A turn that is shorter measures its own beginning; a longer one keeps a CPU from everyone.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|e| format!("{e}"))?;
    if (0.1..=3.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("choose between 0.1 and 3 seconds".to_owned())
    }
}
