//! The suites `tests` (every unit, integration and documentation test), `survival` and `transport`, one row per test.
//!
//! Each test runs in a process of its own, as under nextest: namespace tests change the process
//! they run in, and a test that hangs is killed alone. Unlike nextest and libtest this keeps what
//! a passing test says about being skipped: a line `skipped: why`.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::cargo::cargo;
use crate::suite::Row;
use crate::{process, target_dir};

/// For one test; the longest (differential, namespaces) take a minute here.
const TEST_LIMIT: Duration = Duration::from_secs(5 * 60);
const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);

/// The target of the suite [`survival`], which is not run by [`tests`] as well.
const SURVIVAL: &str = "netd::survival";
/// The target of the suite [`transport`], which is not run by [`tests`] as well.
const TRANSPORT: &str = "netd::transport";

/// Builds and runs them; a build that fails is a row, not an error.
pub(super) fn tests(name: &str) -> anyhow::Result<Vec<Row>> {
    let built = build(name, &["test", "--no-run"])?;
    if !built.success() {
        return Ok(vec![Row::new(name, "builds", built.describe(), false)]);
    }
    let queue = queue_of(&built, |binary| {
        ![SURVIVAL, TRANSPORT].contains(&binary.id.as_str())
    })?;
    let mut rows = run_all(queue, workers());
    rows.push(doc_tests(&format!("{name} doc"))?);
    Ok(rows)
}

/// What happens to traffic while the daemon is killed, replaced or gone (`netd/tests/survival`), one test at a time:
/// each needs the whole machine. The tests find a second build of netd in `NETD_SECOND_BUILD`: the same source and the
/// same ABI with other programs.
pub(super) fn survival(name: &str) -> anyhow::Result<Vec<Row>> {
    // In this order: what cargo leaves as target/debug/netd is what the tests call netd.
    let second = build(
        &format!("{name} second"),
        &["build", "--bin", "netd", "--features", "netd/bpf-log"],
    )?;
    if !second.success() {
        return Ok(vec![Row::new(name, "builds", second.describe(), false)]);
    }
    let netd = second
        .stdout
        .lines()
        .find_map(executable_of_netd)
        .with_context(|| format!("cargo built no netd: see {}", second.log.display()))?;
    let directory = target_dir().join("second");
    let copy = directory.join("netd");
    fs::create_dir_all(&directory)
        // Another inode: the old one may be running.
        .and_then(|()| fs::copy(&netd, directory.join("netd.new")))
        .and_then(|_| fs::rename(directory.join("netd.new"), &copy))
        .with_context(|| format!("cannot copy {} to {}", netd.display(), copy.display()))?;
    let built = build(name, &["test", "--no-run", "--test", "survival"])?;
    if !built.success() {
        return Ok(vec![Row::new(name, "builds", built.describe(), false)]);
    }
    let mut queue = queue_of(&built, |binary| binary.id == SURVIVAL)?;
    for test in &mut queue {
        test.environment
            .push(("NETD_SECOND_BUILD", copy.clone().into_os_string()));
    }
    Ok(run_all(queue, 1))
}

/// ICMP errors, fragments, MTU, tunnels and routes (`netd/tests/transport`), as many tests at a time as there are
/// processors.
pub(super) fn transport(name: &str) -> anyhow::Result<Vec<Row>> {
    let built = build(name, &["test", "--no-run", "--test", "transport"])?;
    if !built.success() {
        return Ok(vec![Row::new(name, "builds", built.describe(), false)]);
    }
    let queue = queue_of(&built, |binary| binary.id == TRANSPORT)?;
    Ok(run_all(queue, workers()))
}

/// How many tests run at a time.
fn workers() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Runs cargo over the whole workspace, so that every suite shares what the others have built.
fn build(name: &str, verb: &[&str]) -> anyhow::Result<process::Outcome> {
    let mut build = cargo();
    build
        .args(verb)
        .args(["--workspace", "--exclude", "netd-ebpf"])
        .args(["--message-format", "json-render-diagnostics"]);
    let built = process::run(&format!("{name} build"), &mut build, BUILD_LIMIT)?;
    if !built.success() {
        eprint!("{}", built.stderr());
    }
    Ok(built)
}

/// The tests of what cargo built.
fn queue_of(
    built: &process::Outcome,
    wanted: impl Fn(&Binary) -> bool,
) -> anyhow::Result<VecDeque<Test>> {
    let mut queue = VecDeque::new();
    let binaries = built.stdout.lines().filter_map(Binary::from_message);
    for binary in binaries.filter(wanted) {
        queue.extend(binary.list()?);
    }
    if queue.is_empty() {
        bail!("cargo built no tests: see {}", built.log.display());
    }
    Ok(queue)
}

/// From a line of `cargo build --message-format json`, if it is about netd's program.
fn executable_of_netd(line: &str) -> Option<PathBuf> {
    let message: Message = serde_json::from_str(line).ok()?;
    let target = message.target?;
    let is_netd = target.name == "netd" && target.kind.iter().any(|kind| kind == "bin");
    message.executable.filter(|_| is_netd)
}

fn doc_tests(name: &str) -> anyhow::Result<Row> {
    let mut command = cargo();
    command.args(["test", "--doc", "--workspace", "--exclude", "netd-ebpf"]);
    let outcome = process::run(name, &mut command, BUILD_LIMIT)?;
    if !outcome.success() {
        eprint!("{}{}", outcome.stderr(), outcome.stdout);
    }
    Ok(Row::new(
        name,
        "exit code 0",
        outcome.describe(),
        outcome.success(),
    ))
}

/// A program with tests in it.
#[derive(Debug, PartialEq, Eq)]
struct Binary {
    /// As nextest calls it: `netd`, `netd::bin/netd`, `netd::lab`.
    id: String,
    executable: PathBuf,
    /// Where cargo would run it.
    directory: PathBuf,
}

/// The parts of cargo's messages that are read here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

impl Binary {
    /// From a line of `cargo test --message-format json`, if it is about such a program.
    fn from_message(line: &str) -> Option<Self> {
        let message: Message = serde_json::from_str(line).ok()?;
        let is_test = message.profile.is_some_and(|profile| profile.test);
        if message.reason != "compiler-artifact" || !is_test {
            return None;
        }
        let directory = message.manifest_path?.parent()?.to_path_buf();
        let package = directory.file_name()?.to_str()?.to_owned();
        // The one package whose name differs from its directory.
        let package = if package == "bench" {
            "netd-bench".to_owned()
        } else {
            package
        };
        let target = message.target?;
        let id = match target.kind.first()?.as_str() {
            "lib" | "proc-macro" => package,
            "test" => format!("{package}::{}", target.name),
            kind => format!("{package}::{kind}/{}", target.name),
        };
        Some(Self {
            id,
            executable: message.executable?,
            directory,
        })
    }

    /// Its tests, in the order of their names.
    fn list(&self) -> anyhow::Result<Vec<Test>> {
        let ignored = self.names(&["--list", "--format", "terse", "--ignored"])?;
        let tests = self.names(&["--list", "--format", "terse"])?;
        Ok(tests
            .into_iter()
            .map(|name| Test {
                row: format!("{} {name}", self.id),
                ignored: ignored.contains(&name),
                executable: self.executable.clone(),
                directory: self.directory.clone(),
                environment: Vec::new(),
                name,
            })
            .collect())
    }

    fn names(&self, args: &[&str]) -> anyhow::Result<Vec<String>> {
        let output = Command::new(&self.executable)
            .args(args)
            .current_dir(&self.directory)
            .output()
            .with_context(|| format!("cannot start {}", self.executable.display()))?;
        if !output.status.success() {
            bail!("{} does not list its tests ({})", self.id, output.status);
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
        Ok(names.map(str::to_owned).collect())
    }
}

/// One test.
#[derive(Debug)]
struct Test {
    row: String,
    name: String,
    ignored: bool,
    executable: PathBuf,
    directory: PathBuf,
    environment: Vec<(&'static str, OsString)>,
}

impl Test {
    fn run(&self) -> Row {
        const EXPECTED: &str = "passes";
        if self.ignored {
            return Row::skipped(&self.row, EXPECTED, "marked #[ignore]");
        }
        let mut command = Command::new(&self.executable);
        command
            .args(["--exact", &self.name, "--nocapture"])
            .current_dir(&self.directory)
            // What cargo sets for tests, and some read at run time.
            .env("CARGO_MANIFEST_DIR", &self.directory)
            .envs(self.environment.iter().cloned());
        let outcome = match process::run(&self.row, &mut command, TEST_LIMIT) {
            Ok(outcome) => outcome,
            Err(error) => return Row::new(&self.row, EXPECTED, format!("{error:#}"), false),
        };
        let stderr = outcome.stderr();
        if !outcome.success() {
            eprintln!("FAILED   {}\n{}{stderr}", self.row, outcome.stdout);
            return Row::new(&self.row, EXPECTED, outcome.describe(), false);
        }
        // `--exact` with a name that nothing has would succeed too.
        if !outcome.stdout.contains("1 passed") {
            return Row::new(&self.row, EXPECTED, "did not run", false);
        }
        match skip_reason(&outcome.stdout).or_else(|| skip_reason(&stderr)) {
            Some(why) => Row::skipped(&self.row, EXPECTED, why),
            None => Row::new(&self.row, EXPECTED, EXPECTED, true),
        }
    }
}

/// `skipped: why`, at the start of a line or after libtest's `test NAME ... `.
fn skip_reason(output: &str) -> Option<String> {
    output.lines().find_map(|line| {
        let line = match line.strip_prefix("test ") {
            Some(tail) => tail.split_once(" ... ")?.1,
            None => line,
        };
        line.strip_prefix("skipped: ").map(str::to_owned)
    })
}

/// Runs all tests, `workers` of them at a time; the rows come back in the order of the queue.
fn run_all(tests: VecDeque<Test>, workers: usize) -> Vec<Row> {
    let total = tests.len();
    let queue = Mutex::new(tests.into_iter().enumerate());
    let rows = Mutex::new(Vec::with_capacity(total));
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    // Taken in a statement of its own, so that the lock is not held while it runs.
                    let next = queue.lock().expect("no test panics in here").next();
                    let Some((index, test)) = next else { break };
                    let row = test.run();
                    rows.lock()
                        .expect("no test panics in here")
                        .push((index, row));
                }
            });
        }
    });
    let mut rows = rows.into_inner().expect("no test panics in here");
    rows.sort_by_key(|(index, _)| *index);
    rows.into_iter().map(|(_, row)| row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: &str, name: &str, test: bool) -> String {
        serde_json::json!({
            "reason": "compiler-artifact",
            "manifest_path": "/src/netd/Cargo.toml",
            "target": {"kind": [kind], "name": name},
            "profile": {"test": test},
            "executable": "/src/target/debug/deps/x"
        })
        .to_string()
    }

    #[test]
    fn programs_are_named_as_nextest_names_them() {
        let id = |kind, name| Binary::from_message(&message(kind, name, true)).map(|b| b.id);
        assert_eq!(id("lib", "netd").as_deref(), Some("netd"));
        assert_eq!(id("test", "lab").as_deref(), Some("netd::lab"));
        assert_eq!(id("bin", "netd").as_deref(), Some("netd::bin/netd"));
    }

    #[test]
    fn what_is_not_a_test_program_is_passed_over() {
        assert_eq!(Binary::from_message(&message("bin", "netd", false)), None);
        assert_eq!(Binary::from_message(r#"{"reason":"build-finished"}"#), None);
        assert_eq!(Binary::from_message("not json"), None);
    }

    #[test]
    fn the_second_build_is_the_program_and_not_its_library() {
        let netd = |kind, name| executable_of_netd(&message(kind, name, false));
        assert_eq!(netd("bin", "netd"), Some("/src/target/debug/deps/x".into()));
        assert_eq!(netd("lib", "netd"), None);
        assert_eq!(netd("bin", "xtask"), None);
    }

    #[test]
    fn the_reason_of_a_skip_is_found_where_libtest_leaves_it() {
        let own_line = "running 1 test\nskipped: needs root\ntest a ... ok\n";
        assert_eq!(skip_reason(own_line).as_deref(), Some("needs root"));
        let behind_the_name = "test a ... skipped: needs root\nok\n";
        assert_eq!(skip_reason(behind_the_name).as_deref(), Some("needs root"));
        assert_eq!(
            skip_reason("test a ... ok\n2 packets skipped: fine\n"),
            None
        );
    }
}
