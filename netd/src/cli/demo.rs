//! `netd demo`

use std::io::IsTerminal as _;
use std::process::ExitCode;

use super::Exit;
use super::output::{answer, lines, table};
use crate::demo::{self, DemoError, Report, Row};

/// Arguments of `netd demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Exit codes, for the help.
pub const EXIT_CODES: &str = "Everything happens in network namespaces of its own; nothing is left.\n\n\
    Exit codes: 0 every row is as expected, 1 one is not, 3 it cannot run here.";

/// Runs the demonstration.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let report = match demo::run() {
        Ok(report) => report,
        Err(error @ DemoError::NotRoot) => {
            eprintln!("error: {error}");
            return Ok(Exit::CannotRun.into());
        }
        Err(error) => return Err(error.into()),
    };
    answer(args.json, &report, text)?;
    Ok(if report.ok { Exit::Done } else { Exit::No }.into())
}

const TOPOLOGY: &str = "\
client 198.18.0.2, fd99::2 ── host 198.18.0.1, fd99::1 ─┬─ n1 10.201.1.0/24, icc = false        n1a  n1b
                                                        └─ n2 10.201.2.0/24, fd00:201:2::/64    n2a  n2b
";

fn text(report: &Report) -> String {
    let mut table = table(&["", "PROBE", "WITHOUT NETD", "WITH NETD", "MS"], &["MS"]);
    for row in &report.rows {
        let ms = row.ms.map_or_else(String::new, |ms| format!("{ms:.1}"));
        let dash = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
        table.add_row([
            mark(row).to_owned(),
            row.name.clone(),
            dash(&row.without),
            dash(&row.got),
            ms,
        ]);
    }
    let mut text = format!("{TOPOLOGY}\n{}\n", lines(&table));
    for row in &report.rows {
        if let Some(why) = &row.skip {
            text.push_str(&format!("skipped: {}: {why}\n", row.name));
        } else if !row.ok {
            text.push_str(&format!(
                "FAILED: {}: expected {}, got {}\n",
                row.name, row.expected, row.got
            ));
            for line in &row.detail {
                text.push_str(&format!("  {line}\n"));
            }
        }
    }
    text.push_str(&format!(
        "{} of {} as expected, {} skipped\n",
        report.total - report.failed - report.skipped,
        report.total,
        report.skipped
    ));
    text
}

fn mark(row: &Row) -> &'static str {
    let plain = !std::io::stdout().is_terminal();
    match (row.ok, row.skip.is_some(), plain) {
        (_, true, _) => "–",
        (true, _, true) => "✓",
        (false, _, true) => "✗",
        (true, _, false) => "\u{1b}[32m✓\u{1b}[0m",
        (false, _, false) => "\u{1b}[31m✗\u{1b}[0m",
    }
}
