//! `cargo xtask test`: everything that has to hold before a change is merged.

mod lints;
mod runner;

use std::process::ExitCode;

use crate::setup::plan::Need;
use crate::suite::{MaySkip, Report, Row};
use crate::{exit, setup, workspace};

/// What to run and how to tell.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Only this suite (may be repeated); `--list` names them.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
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
    let chosen: Vec<_> = SUITES
        .iter()
        .filter(|suite| args.only.is_empty() || args.only.iter().any(|name| name == suite.name))
        .collect();
    // All needs first: an installation in the middle would spoil the times of the rest.
    let needs: Vec<_> = chosen.iter().flat_map(|s| s.needs).copied().collect();
    setup::ensure(&needs)?;

    let may_skip = MaySkip::read(&workspace().join("netd/tests/may-skip.txt"))?;
    let mut rows = Vec::new();
    for suite in chosen {
        eprintln!("running  {}", suite.name);
        // One suite that cannot be started must not hide what the others say.
        rows.extend((suite.run)(suite.name).unwrap_or_else(|error| {
            vec![Row::new(suite.name, "runs", format!("{error:#}"), false)]
        }));
    }
    let report = Report::new(rows, &may_skip);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.text());
    }
    Ok(exit::answer(report.ok))
}
