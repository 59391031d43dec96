//! `cargo xtask test`: everything that has to hold before a change is merged.

mod lints;
mod runner;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;

use crate::setup::plan::Need;
use crate::suite::{MaySkip, Report, Row};
use crate::{exit, setup, verifier, vm, workspace};

/// The demonstration takes some fifteen seconds, and an emulated machine is ten times slower.
const DEMO_LIMIT: Duration = Duration::from_secs(900);

/// What to run and how to tell.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Only this suite (may be repeated); `--list` names them.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Only the demonstration, in a virtual machine with this kernel (6.1, 6.12; may be repeated).
    #[arg(long, value_name = "SERIES", conflicts_with = "only")]
    kernel: Vec<String>,
    /// Names the suites and ends.
    #[arg(long)]
    list: bool,
    /// Prints the result as JSON; progress goes to standard error.
    #[arg(long)]
    json: bool,
}

/// A part of the run; it makes one row or many.
struct Suite {
    name: &'static str,
    needs: &'static [Need],
    run: fn(&str) -> anyhow::Result<Vec<Row>>,
}

#[rustfmt::skip]
const SUITES: &[Suite] = &[
    Suite { name: "fmt", needs: &[], run: lints::fmt },
    Suite { name: "clippy", needs: &[Need::Build], run: lints::clippy },
    Suite { name: "clippy-bpf", needs: &[Need::Build, Need::Lint], run: lints::clippy_bpf },
    Suite { name: "doc", needs: &[Need::Build], run: lints::doc },
    Suite { name: "aarch64", needs: &[Need::Build], run: lints::aarch64 },
    Suite { name: "tests", needs: &[Need::Build, Need::Network], run: runner::tests },
    Suite { name: "survival", needs: &[Need::Build, Need::Network], run: runner::survival },
    Suite { name: "transport", needs: &[Need::Build, Need::Network, Need::Tunnel], run: runner::transport },
    Suite { name: "verifier", needs: &[Need::Build, Need::Network, Need::KernelVm], run: verifier::rows },
];

/// The verb.
///
/// # Errors
/// A suite that could not even be started, or a name that no suite has.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.list {
        SUITES.iter().for_each(|suite| println!("{}", suite.name));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = args
        .only
        .iter()
        .find(|name| !SUITES.iter().any(|suite| suite.name == **name))
    {
        eprintln!("error: there is no suite `{unknown}`; `cargo xtask test --list` names them");
        return Ok(exit::bad_input());
    }
    let may_skip = MaySkip::read(&workspace().join("netd/tests/may-skip.txt"))?;
    let rows = if args.kernel.is_empty() {
        run_suites(&args.only)?
    } else {
        args.kernel
            .iter()
            .flat_map(|series| demo_on(series))
            .collect()
    };
    let report = Report::new(rows, &may_skip);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.text());
    }
    Ok(exit::answer(report.ok))
}

/// Runs the named suites, or all.
fn run_suites(only: &[String]) -> anyhow::Result<Vec<Row>> {
    let chosen: Vec<_> = SUITES
        .iter()
        .filter(|suite| only.is_empty() || only.iter().any(|name| name == suite.name))
        .collect();
    // All needs first: an installation in the middle would spoil the times of the rest.
    let needs: Vec<_> = chosen.iter().flat_map(|s| s.needs).copied().collect();
    setup::ensure(&needs)?;

    let mut rows = Vec::new();
    for suite in chosen {
        eprintln!("running  {}", suite.name);
        // One suite that cannot be started must not hide what the others say.
        rows.extend(
            (suite.run)(suite.name).unwrap_or_else(|error| vec![failure(suite.name, &error)]),
        );
    }
    Ok(rows)
}

/// `netd demo --json` on another kernel: its rows, with the kernel before their names.
fn demo_on(series: &str) -> Vec<Row> {
    let name = format!("demo {series}");
    eprintln!("running  {name}");
    let rows = || -> anyhow::Result<Vec<Row>> {
        let output = vm::netd(series, &["demo", "--json"], DEMO_LIMIT)?;
        let demo: Demo = serde_json::from_str(&output.stdout).with_context(|| {
            format!(
                "netd demo printed no result (exit code {}): {}",
                output.code, output.stderr
            )
        })?;
        let mut rows = demo.rows;
        // The rows may all be right and the run not, when something was left behind.
        let got = format!("{} rows, exit code {}", rows.len(), output.code);
        let ok = demo.ok && output.code == 0 && !rows.is_empty();
        rows.insert(0, Row::new("result", "ok, exit code 0", got, ok));
        for row in &mut rows {
            row.name = format!("{name} {}", row.name);
        }
        Ok(rows)
    };
    rows().unwrap_or_else(|error| vec![failure(&name, &error)])
}

/// What `netd demo --json` prints, as far as it is needed here.
#[derive(Deserialize)]
struct Demo {
    ok: bool,
    rows: Vec<Row>,
}

/// A suite that did not get as far as its checks.
fn failure(name: &str, error: &anyhow::Error) -> Row {
    if error.is::<exit::Cannot>() {
        Row::skipped(name, "runs", format!("{error:#}"))
    } else {
        Row::new(name, "runs", format!("{error:#}"), false)
    }
}
