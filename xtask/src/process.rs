//! Running a program with a time limit, its output kept in a file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::target_dir;

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its exit code; `None` if it was killed, by a signal or for being late.
    pub code: Option<i32>,
    /// Whether it was killed for being late.
    pub late: bool,
    /// How long it ran.
    pub took: Duration,
    /// Its standard output.
    pub stdout: String,
    /// The file with its standard error.
    pub log: PathBuf,
}

impl Outcome {
    /// Whether it ended with 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// How it ended and where its messages are, in words.
    pub fn describe(&self) -> String {
        let end = match (self.late, self.code) {
            (true, _) => format!("killed after {} s", self.took.as_secs()),
            (false, Some(code)) => format!("exit code {code}"),
            (false, None) => "killed by a signal".to_owned(),
        };
        if self.success() {
            end
        } else {
            format!("{end}, see {}", self.log.display())
        }
    }

    /// What it wrote to standard error.
    pub fn stderr(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Runs `command` for at most `limit`; its output goes to `target/xtask/NAME.{out,log}`.
///
/// Files, not pipes: a grandchild that outlives a killed child would hold a pipe open.
///
/// # Errors
/// A program that cannot be started, a file that cannot be written.
pub fn run(name: &str, command: &mut Command, limit: Duration) -> anyhow::Result<Outcome> {
    let dir = target_dir().join("xtask");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let stem: String = name
        .chars()
        .map(|c| {
            if c.is_alphanumeric() || c == '.' {
                c
            } else {
                '-'
            }
        })
        .collect();
    let out = dir.join(format!("{stem}.out"));
    let log = dir.join(format!("{stem}.log"));
    let create = |path: &Path| {
        File::create(path).with_context(|| format!("cannot write {}", path.display()))
    };
    command
        .stdin(Stdio::null())
        .stdout(create(&out)?)
        .stderr(create(&log)?);
    let start = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let mut late = false;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > limit && !late {
            late = true;
            child.kill()?;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let stdout = fs::read(&out).with_context(|| format!("cannot read {}", out.display()))?;
    Ok(Outcome {
        code: status.code(),
        late,
        took: start.elapsed(),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        log,
    })
}
