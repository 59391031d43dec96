//! `cargo xtask verifier`: what the verifiers of several kernels say about every program, against
//! the ceilings that the project keeps.

mod ceilings;

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::cargo::build_release;
use crate::setup::plan::Need;
use crate::suite::{MaySkip, Report, Row};
use crate::system::{Machine, System as _};
use crate::{exit, process, setup, vm};
use ceilings::Ceilings;

/// Booting and loading takes ten seconds; a busy machine may need much longer.
const LIMIT: Duration = Duration::from_secs(300);

/// The oldest kernel that netd runs on, and the one of the current Debian.
pub const OTHER_KERNELS: &[&str] = &["6.1", "6.12"];

/// A kernel to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    Running,
    Series(String),
}

/// What to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// `running`, a series such as 6.1 or 6.12, or `all`: these three.
    #[arg(long, value_name = "KERNEL", default_value = "all")]
    kernel: String,
    /// Writes ceilings 15 % above what is measured.
    #[arg(long)]
    bless: bool,
    /// Why ceilings may rise; kept in the file.
    #[arg(long, requires = "bless")]
    reason: Option<String>,
    /// Prints the result as JSON.
    #[arg(long)]
    json: bool,
}

/// What `netd verifier-stats --json` prints, as far as it is needed here.
#[derive(Clone, Debug, Deserialize)]
struct Stats {
    kernel: String,
    programs: Vec<ProgramStats>,
}

/// One program.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
struct ProgramStats {
    name: String,
    verified_instructions: u64,
    stack: u64,
    translated_bytes: u64,
    jited_bytes: u64,
    error: Option<String>,
}

/// The verb.
///
/// # Errors
/// A kernel that cannot be asked, a ceiling that would rise without a reason.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let choices = match args.kernel.as_str() {
        "all" => all(),
        "running" => vec![Choice::Running],
        series if series.starts_with(|c: char| c.is_ascii_digit()) => {
            vec![Choice::Series(series.to_owned())]
        }
        other => {
            eprintln!("error: `{other}` is no kernel: give running, all, or a series such as 6.1");
            return Ok(exit::bad_input());
        }
    };
    let mut ceilings = Ceilings::read()?;
    let mut rows = Vec::new();
    for choice in choices {
        let stats = ask(&choice)?;
        let series = series_of(&stats.kernel);
        if !args.json {
            print(&stats);
        }
        if args.bless {
            refuse_rejected(&stats)?;
            ceilings.bless(&series, &stats.programs, args.reason.as_deref())?;
        }
        rows.extend(judge("verifier", &stats, &ceilings));
    }
    if args.bless {
        ceilings.write()?;
    }
    let report = Report::new(rows, &MaySkip::default());
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.text());
    }
    Ok(exit::answer(report.ok))
}

/// The rows for `cargo xtask test`; a kernel that cannot be had is a skipped row.
///
/// # Errors
/// A file of ceilings that cannot be read.
pub fn rows(name: &str) -> anyhow::Result<Vec<Row>> {
    let ceilings = Ceilings::read()?;
    let mut rows = Vec::new();
    for choice in all() {
        let label = match &choice {
            Choice::Running => format!("{name} running"),
            Choice::Series(series) => format!("{name} {series}"),
        };
        match ask(&choice) {
            Ok(stats) => rows.extend(judge(name, &stats, &ceilings)),
            Err(e) if e.is::<exit::Cannot>() => {
                rows.push(Row::skipped(&label, "accepted", format!("{e:#}")));
            }
            Err(e) => rows.push(Row::new(&label, "accepted", format!("{e:#}"), false)),
        }
    }
    Ok(rows)
}

fn all() -> Vec<Choice> {
    let others = OTHER_KERNELS
        .iter()
        .map(|series| Choice::Series((*series).to_owned()));
    std::iter::once(Choice::Running).chain(others).collect()
}

/// Runs `netd verifier-stats --json` on that kernel.
fn ask(choice: &Choice) -> anyhow::Result<Stats> {
    const VERB: [&str; 2] = ["verifier-stats", "--json"];
    let (stdout, how) = match choice {
        Choice::Running => {
            if !Machine.is_root() {
                return Err(exit::Cannot("loading BPF programs needs root".into()).into());
            }
            setup::ensure(&[Need::Build])?;
            let mut netd = Command::new(build_release("netd")?);
            let outcome = process::run("verifier-stats", netd.args(VERB), LIMIT)?;
            let how = format!("{}\n{}", outcome.describe(), outcome.stderr());
            (outcome.stdout, how)
        }
        Choice::Series(series) => {
            let output = vm::netd(series, &VERB, LIMIT)?;
            let how = format!("exit code {}\n{}", output.code, output.stderr);
            (output.stdout, how)
        }
    };
    serde_json::from_str(&stdout)
        .with_context(|| format!("netd verifier-stats printed no statistics: {}", how.trim()))
}

fn refuse_rejected(stats: &Stats) -> anyhow::Result<()> {
    for program in &stats.programs {
        if let Some(error) = &program.error {
            bail!("{} is refused by {}: {error}", program.name, stats.kernel);
        }
    }
    Ok(())
}

/// `6.12.117+deb12-cloud-amd64` → `6.12`.
fn series_of(release: &str) -> String {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().unwrap_or("0");
    format!("{}.{}", next(), next())
}

/// One row per program, and one per ceiling whose program is gone.
fn judge(name: &str, stats: &Stats, ceilings: &Ceilings) -> Vec<Row> {
    let series = series_of(&stats.kernel);
    let of_series = ceilings.of(&series);
    let mut rows: Vec<_> = stats
        .programs
        .iter()
        .map(|program| {
            let label = format!("{name} {series} {}", program.name);
            let got = format!(
                "{} instructions, stack {}, translated {}, JIT {}",
                program.verified_instructions,
                program.stack,
                program.translated_bytes,
                program.jited_bytes
            );
            if let Some(error) = &program.error {
                return Row::new(&label, "accepted", error, false);
            }
            if of_series.is_none() && !OTHER_KERNELS.contains(&series.as_str()) {
                // A developer's kernel, which the project keeps no ceilings for.
                return Row::new(&label, "accepted", got, true);
            }
            let ceiling = of_series.and_then(|of_series| of_series.get(&program.name));
            match ceiling.map(|ceiling| ceiling.complaints(program)) {
                None => Row::new(&label, "a ceiling", "none is kept: use --bless", false),
                Some(wrong) if wrong.is_empty() => Row::new(&label, "below its ceiling", got, true),
                Some(wrong) => Row::new(&label, "below its ceiling", wrong.join(", "), false),
            }
        })
        .collect();
    let gone = of_series
        .into_iter()
        .flat_map(|of_series| of_series.keys())
        .filter(|name| !stats.programs.iter().any(|program| program.name == **name));
    rows.extend(gone.map(|program| {
        let label = format!("{name} {series} {program}");
        Row::new(
            &label,
            "a program",
            "gone, but has a ceiling: use --bless",
            false,
        )
    }));
    rows
}

fn print(stats: &Stats) {
    println!("Linux {}", stats.kernel);
    println!(
        "  {:<24}{:>12}{:>8}{:>12}{:>8}",
        "program", "verified", "stack", "translated", "JIT"
    );
    for p in &stats.programs {
        match &p.error {
            None => println!(
                "  {:<24}{:>12}{:>8}{:>12}{:>8}",
                p.name, p.verified_instructions, p.stack, p.translated_bytes, p.jited_bytes
            ),
            Some(error) => println!("  {:<24}refused: {error}", p.name),
        }
    }
    println!(
        "  stack: bytes of all functions together; the kernel limits the deepest chain to 512"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(name: &str, error: Option<&str>) -> ProgramStats {
        ProgramStats {
            name: name.to_owned(),
            verified_instructions: 100,
            stack: 0,
            translated_bytes: 10,
            jited_bytes: 10,
            error: error.map(str::to_owned),
        }
    }

    fn stats(programs: &[ProgramStats]) -> Stats {
        Stats {
            kernel: "6.12.117+deb12-cloud-amd64".to_owned(),
            programs: programs.to_vec(),
        }
    }

    #[test]
    fn the_series_is_read_from_the_release() {
        assert_eq!(series_of("6.12.117+deb12-cloud-amd64"), "6.12");
        assert_eq!(series_of("6.1.0-56-cloud-amd64"), "6.1");
    }

    #[test]
    fn every_program_needs_a_ceiling_and_every_ceiling_a_program() {
        let mut ceilings = Ceilings::default();
        ceilings
            .bless("6.12", &[program("old", None)], None)
            .unwrap();
        let rows = judge("verifier", &stats(&[program("new", None)]), &ceilings);
        let bad: Vec<_> = rows
            .iter()
            .filter(|row| !row.ok)
            .map(|row| row.name.as_str())
            .collect();
        assert_eq!(bad, ["verifier 6.12 new", "verifier 6.12 old"]);
    }

    #[test]
    fn a_refused_program_fails_on_any_kernel() {
        let rows = judge(
            "v",
            &stats(&[program("p", Some("invalid"))]),
            &Ceilings::default(),
        );
        assert!(!rows[0].ok);
    }

    #[test]
    fn only_a_kernel_of_the_project_must_have_ceilings() {
        let mut stats = stats(&[program("p", None)]);
        assert!(!judge("v", &stats, &Ceilings::default())[0].ok);
        stats.kernel = "7.3.1-custom".to_owned();
        assert!(judge("v", &stats, &Ceilings::default())[0].ok);
    }
}
