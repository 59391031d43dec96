//! `cargo xtask sabotage`: switches off one check of the data plane at a time, and expects the semantics tests (or those of
//! transport) to notice. A suite that stays green then would prove nothing.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, bail};
use netd_common::sabotage::Check;
use serde::Deserialize;

use crate::cargo::cargo;
use crate::setup::plan::Need;
use crate::suite::{MaySkip, Report, Row};
use crate::{exit, process, setup, target_dir};

/// For one test of the semantics suite.
const TEST_LIMIT: Duration = Duration::from_secs(180);
const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Which test must notice that a check is gone. Those of the modules in [`TRANSPORT`] are of that suite, the others of the
/// semantics.
#[rustfmt::skip]
const NOTICED_BY: &[(&str, &str)] = &[
    ("icc", "networks::containers_of_one_bridge"),
    ("isolation", "publish::a_container_of_two_networks"),
    ("internal", "networks::internal_networks"),
    ("spoof", "spoof::foreign_sources"),
    ("direct-routing", "networks::who_may_come_in_directly"),
    ("guard", "spoof::the_guard_of_the_bridge"),
    ("loopback", "publish::loopback_and_link_local_are_not_the_networks"),
    ("martian", "layer2::sources_that_cannot_be"),
    ("reverse-path", "uplinks::strict_reverse_paths"),
    ("vlan", "layer2::tags_from_containers"),
    ("mac-first", "layer2::frames_to_another_mac_are_the_bridges"),
    ("other-host", "layer2::frames_on_the_uplink"),
    ("masquerade", "networks::masquerade"),
    ("host-listener", "publish::ranges_and_programs_of_the_host"),
    ("forwarded", "spoof::what_the_stack_forwards"),
    ("ipsec", "ipsec::what_a_policy_covers_never_leaves_in_clear"),
];

/// Modules of the transport suite.
const TRANSPORT: &[&str] = &["ipsec"];

/// What to switch off.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Only this check (may be repeated); `--list` names them.
    #[arg(long, value_name = "CHECK")]
    only: Vec<String>,
    /// Names the checks and the tests that must notice, and ends.
    #[arg(long)]
    list: bool,
    /// Prints the result as JSON; progress goes to standard error.
    #[arg(long)]
    json: bool,
}

/// The verb.
///
/// # Errors
/// A build that fails.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.list {
        for (check, test) in NOTICED_BY {
            println!("{check:16} {test}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let known = |name: &String| Check::ALL.iter().any(|(own, _)| own == name);
    if let Some(unknown) = args.only.iter().find(|name| !known(name)) {
        eprintln!("error: there is no check `{unknown}`; `cargo xtask sabotage --list` names them");
        return Ok(exit::bad_input());
    }
    setup::ensure(&[Need::Build, Need::Network])?;
    let suite = Suite::build()?;
    let mut rows = Vec::new();
    for (name, check) in Check::ALL {
        if !args.only.is_empty() && !args.only.iter().any(|only| only == name) {
            continue;
        }
        let test = NOTICED_BY.iter().find(|(own, _)| own == name);
        let Some((_, test)) = test else {
            rows.push(Row::new(
                name,
                "a test that notices",
                "none is named in xtask/src/sabotage.rs",
                false,
            ));
            continue;
        };
        eprintln!("running  {test} without {name}");
        rows.push(suite.untouched(name, test)?);
        rows.push(suite.without(name, *check, test)?);
    }
    let report = Report::new(rows, &MaySkip::default());
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.text());
    }
    Ok(exit::answer(report.ok))
}

/// The tests, and the netd that can be sabotaged.
struct Suite {
    semantics: PathBuf,
    transport: PathBuf,
    netd: PathBuf,
}

/// The parts of cargo's messages that are read here.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

impl Suite {
    fn build() -> anyhow::Result<Self> {
        let tests = |name| {
            let mut tests = cargo();
            tests.args(["test", "--package", "netd", "--test", name, "--no-run"]);
            executable("sabotage tests", &mut tests, name)
        };
        let (semantics, transport) = (tests("semantics")?, tests("transport")?);
        // A directory of its own: it must never be taken for the netd that is shipped.
        let mut netd = cargo();
        netd.args(["build", "--package", "netd", "--features", "sabotage"])
            .arg("--target-dir")
            .arg(target_dir().join("sabotage"));
        let netd = executable("sabotage netd", &mut netd, "netd")?;
        Ok(Self {
            semantics,
            transport,
            netd,
        })
    }

    /// The control: with every check in force the test is green.
    fn untouched(&self, name: &str, test: &str) -> anyhow::Result<Row> {
        let outcome = self.test(&format!("{name} in force"), test, 0)?;
        let ok = outcome.success() && outcome.stdout.contains("1 passed");
        let row = format!("{name} in force");
        Ok(Row::new(&row, "green", outcome.describe(), ok))
    }

    /// With the check gone it must be red, and say what is wrong: a daemon that did not start is no proof.
    fn without(&self, name: &str, check: Check, test: &str) -> anyhow::Result<Row> {
        let outcome = self.test(&format!("without {name}"), test, check as u32)?;
        let stderr = outcome.stderr();
        let wrong = stderr
            .lines()
            .chain(outcome.stdout.lines())
            .find_map(|line| line.split_once("WRONG ").map(|(_, wrong)| wrong.to_owned()));
        // What the guards on the uplinks saw is told at the end.
        let leak = stderr.contains("were wrong:") && stderr.contains("packets with a source in");
        let got = match (outcome.success(), wrong) {
            (true, _) => "green: nobody noticed".to_owned(),
            (false, Some(wrong)) => wrong,
            (false, None) if leak => "packets that leaked".to_owned(),
            (false, None) => outcome.describe(),
        };
        let ok = !outcome.success() && (leak || !got.starts_with("exit code"));
        Ok(Row::new(
            &format!("without {name}"),
            "red",
            got,
            ok && !outcome.late,
        ))
    }

    fn test(&self, name: &str, test: &str, mask: u32) -> anyhow::Result<process::Outcome> {
        let module = test.split("::").next().unwrap_or_default();
        let mut command = Command::new(if TRANSPORT.contains(&module) {
            &self.transport
        } else {
            &self.semantics
        });
        command
            .args(["--exact", test, "--nocapture"])
            .env("NETD_TEST_PROGRAM", &self.netd)
            .env("NETD_SABOTAGE", mask.to_string())
            .env("RUST_BACKTRACE", "0");
        process::run(&format!("sabotage {name}"), &mut command, TEST_LIMIT)
    }
}

/// Builds, and says where the executable of this name is.
fn executable(doing: &str, command: &mut Command, name: &str) -> anyhow::Result<PathBuf> {
    command.args(["--message-format", "json-render-diagnostics"]);
    let built = process::run(doing, command, BUILD_LIMIT)?;
    if !built.success() {
        eprint!("{}", built.stderr());
        bail!("{doing}: the build failed ({})", built.describe());
    }
    let mut messages = built.stdout.lines();
    let found = messages.find_map(|line| {
        let message: Message = serde_json::from_str(line).ok()?;
        (message.target?.name == name).then_some(message.executable?)
    });
    found.context("cargo names no executable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_a_test_that_notices() {
        let named: Vec<_> = NOTICED_BY.iter().map(|(check, _)| *check).collect();
        let all: Vec<_> = Check::ALL.iter().map(|(name, _)| *name).collect();
        assert_eq!(named, all);
    }
}
