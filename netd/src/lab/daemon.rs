//! `netd run` inside a lab's host, as a process of its own with its own pin directory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::cleanup::{self, DAEMON_PREFIX, InterruptHook};
use super::error::{LabError, Result};
use super::namespace::Namespace;
use super::process::Process;
use crate::host::BPFFS_PATH;
use crate::run_state::{RunFiles, RunState};

/// Long enough for an emulated machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a daemon may take to leave.
const GRACE: Duration = Duration::from_secs(10);

/// A daemon, its file and its directories. When this is dropped the daemon leaves, everything it put into the kernel
/// is removed, and so are the directories.
#[derive(Debug)]
pub struct Daemon {
    seat: Seat,
    process: Option<Process>,
    environment: Vec<(String, String)>,
    _on_interrupt: InterruptHook,
}

/// Where the daemon runs, and where its files are: enough to run any verb.
#[derive(Clone, Debug)]
struct Seat {
    program: PathBuf,
    host: Namespace,
    directory: PathBuf,
    pin_dir: PathBuf,
}

/// What a verb of netd printed, and its exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The exit code; -1 if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Daemon {
    /// Prepares a daemon of the binary `program` for the namespace `host`, with this configuration; nothing is started
    /// and nothing is loaded. Its pin directory is `/sys/fs/bpf/netd-lab-<pid>-<start time>-<random>`, or what the file says is
    /// overruled by it.
    pub fn prepare(program: &Path, host: &Namespace, config: &str) -> Result<Self> {
        let name = format!("{DAEMON_PREFIX}{}", cleanup::unique()?);
        let seat = Seat {
            program: program.to_owned(),
            host: host.clone(),
            directory: std::env::temp_dir().join(&name),
            pin_dir: Path::new(BPFFS_PATH).join(&name),
        };
        fs::create_dir(&seat.directory)
            .map_err(|e| LabError::io(format!("create {}", seat.directory.display()), e))?;
        let hook = {
            let seat = seat.clone();
            cleanup::on_interrupt(move || seat.clear())
        };
        let daemon = Self {
            seat,
            process: None,
            environment: Vec::new(),
            _on_interrupt: hook,
        };
        daemon.write_config(config)?;
        Ok(daemon)
    }

    /// [`Daemon::prepare`] and [`Daemon::run`].
    pub fn start(program: &Path, host: &Namespace, config: &str) -> Result<Self> {
        let mut daemon = Self::prepare(program, host, config)?;
        daemon.run(&[])?;
        Ok(daemon)
    }

    /// Sets a variable of the environment of the daemons started from now on.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Takes another binary for all that is started from now on.
    pub fn set_program(&mut self, program: &Path) {
        self.seat.program = program.to_owned();
    }

    /// [`Daemon::launch`], and waits until nothing is left to do.
    pub fn run(&mut self, arguments: &[&str]) -> Result<()> {
        self.launch(arguments)?;
        self.settle()
    }

    /// Starts `netd run` with more arguments, and waits until it was in agreement once. With `--takeover` the daemon
    /// that ran before leaves meanwhile; it has to leave with exit code 0.
    pub fn launch(&mut self, arguments: &[&str]) -> Result<()> {
        let before = self.process.take();
        self.spawn(arguments)?;
        let Some(mut before) = before else {
            return Ok(());
        };
        match before.wait_timeout(GRACE)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.failed(format!("was left with {status}"))),
            None => Err(self.failed("does not leave for another".to_owned())),
        }
    }

    fn spawn(&mut self, arguments: &[&str]) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .map_err(|e| LabError::io(format!("open {}", self.log_file().display()), e))?;
        let mut command = self.seat.command(&[&["run"], arguments].concat());
        command
            .stdout(Stdio::null())
            .stderr(log)
            .envs(self.environment.iter().cloned());
        let process = self.process.insert(self.seat.host.spawn(command)?);
        let pid = process.pid();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = RunState::load(&self.files().state);
            if state.is_some_and(|state| state.pid == pid && state.synced_at.is_some()) {
                break;
            }
            let ended = self
                .process
                .as_mut()
                .map(|process| process.wait_timeout(Duration::from_millis(10)))
                .transpose()?
                .flatten();
            if let Some(status) = ended {
                self.process = None;
                return Err(self.failed(format!("ended with {status}")));
            }
            if Instant::now() >= deadline {
                return Err(self.failed("is not ready".to_owned()));
            }
        }
        Ok(())
    }

    /// Waits until `netd plan` finds nothing to do: what the host is and what the file says are in force.
    pub fn settle(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let plan = self.verb(&["plan", "--exit-code"])?;
            if plan.code == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.failed(format!("still has to do: {}{}", plan.stdout, plan.stderr)));
            }
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Writes another configuration and has the daemon read it. The answer is that of `netd reload`.
    pub fn reload(&self, config: &str) -> Result<Answered> {
        self.write_config(config)?;
        let answer = self.verb(&["reload"])?;
        if answer.code == 0 {
            self.settle()?;
        }
        Ok(answer)
    }

    /// Replaces the file; a running daemon takes note of it by itself.
    pub fn write_config(&self, config: &str) -> Result<()> {
        let path = self.seat.config();
        // At once as a whole: the daemon watches it.
        let new = path.with_extension("new");
        fs::write(&new, config)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|e| LabError::io(format!("write {}", path.display()), e))
    }

    /// Runs a verb of netd to its end in the host's namespace, with the daemon's directories.
    pub fn verb(&self, arguments: &[&str]) -> Result<Answered> {
        self.seat.verb(arguments)
    }

    /// Sends the daemon a signal and waits for its end; its data plane stays. None if it was not running.
    pub fn stop(&mut self, signal: Signal) -> Result<Option<ExitStatus>> {
        let Some(mut process) = self.process.take() else {
            return Ok(None);
        };
        process.signal(signal)?;
        match process.wait_timeout(GRACE)? {
            Some(status) => Ok(Some(status)),
            None => Err(self.failed(format!("does not leave after {signal}"))),
        }
    }

    /// Ends the daemon and removes everything. The error says what `netd unload --force` left.
    pub fn unload(mut self) -> Result<()> {
        self.stop(Signal::SIGTERM)?;
        let unload = self.verb(&["unload", "--force"])?;
        if unload.code == 0 && !self.seat.pin_dir.exists() {
            return Ok(());
        }
        Err(self.failed(format!(
            "does not unload (exit code {}): {}{}",
            unload.code, unload.stdout, unload.stderr
        )))
    }

    /// The daemon's pid, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Its pin directory.
    pub fn pin_dir(&self) -> &Path {
        &self.seat.pin_dir
    }

    /// Its directory: the file `netd.toml`, the state directory and the log.
    pub fn directory(&self) -> &Path {
        &self.seat.directory
    }

    /// Its run files.
    pub fn files(&self) -> RunFiles {
        RunFiles::of(&self.seat.pin_dir)
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.seat.directory.join("log")
    }

    fn failed(&self, how: String) -> LabError {
        LabError::Invalid(format!("netd {how}; its log:\n{}", self.log().trim_end()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The daemon leaves by itself when `unload` asks; should it not answer, dropping kills it.
        self.process = None;
        self.seat.clear();
    }
}

impl Seat {
    fn config(&self) -> PathBuf {
        self.directory.join("netd.toml")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.host.command(&self.program);
        command
            .args(arguments)
            .arg("--config")
            .arg(self.config())
            .arg("--pin-dir")
            .arg(&self.pin_dir)
            .arg("--state-dir")
            .arg(self.directory.join("state"))
            .stdin(Stdio::null());
        command
    }

    fn verb(&self, arguments: &[&str]) -> Result<Answered> {
        let output = self.command(arguments).output().map_err(|e| {
            LabError::io(
                format!("run {} {}", self.program.display(), arguments.join(" ")),
                e,
            )
        })?;
        Ok(Answered {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Removes everything, as far as that goes.
    fn clear(&self) {
        let files = RunFiles::of(&self.pin_dir);
        if self.pin_dir.exists() || files.state.exists() || files.lock.exists() {
            let _ = self.verb(&["unload", "--force"]);
        }
        let _ = fs::remove_dir_all(&self.pin_dir);
        for file in [&files.lock, &files.socket, &files.state] {
            let _ = fs::remove_file(file);
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}
