//! netd as it is shipped: the release binary, started by `netd run` with a file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ::netd::lab::{InterruptHook, Namespace, Process, on_interrupt};
use anyhow::{Context as _, bail};
use tempfile::TempDir;

use super::{Backend, Installed};
use crate::topology::{BRIDGE, CONTAINER, CONTAINER_PORT, HOST_PORT, Topology};

/// netd's tc programs.
pub struct Netd {
    binary: PathBuf,
}

/// A running daemon.
struct Daemon {
    process: Process,
    place: Place,
    removed: bool,
    _hook: InterruptHook,
}

/// Where the daemon is and what it was told; enough to remove it.
#[derive(Clone)]
struct Place {
    binary: PathBuf,
    host: Namespace,
    directory: std::sync::Arc<TempDir>,
    pin_dir: PathBuf,
}

impl Netd {
    /// The given program.
    pub fn new(binary: &Path) -> Self {
        Self {
            binary: binary.to_path_buf(),
        }
    }
}

impl Backend for Netd {
    fn name(&self) -> &'static str {
        "netd"
    }

    fn about(&self) -> &'static str {
        "netd run, tc programs, all defaults"
    }

    fn probe(&self) -> Result<(), String> {
        match fs::metadata(&self.binary) {
            Ok(_) => Ok(()),
            Err(e) => Err(format!(
                "{}: {e}: build it (cargo build --release) or name it by --netd",
                self.binary.display()
            )),
        }
    }

    fn install(&self, topology: &Topology) -> anyhow::Result<Box<dyn Installed>> {
        let directory = tempfile::tempdir().context("cannot make a directory for netd's file")?;
        let unique = directory.path().file_name().unwrap_or_default();
        let pin_dir = PathBuf::from(format!(
            "/sys/fs/bpf/netd-bench-{}-{}",
            std::process::id(),
            unique.to_string_lossy().trim_start_matches('.')
        ));
        let place = Place {
            binary: self.binary.clone(),
            host: topology.host.clone(),
            directory: directory.into(),
            pin_dir,
        };
        fs::write(place.file(), configuration()).context("cannot write netd's file")?;
        let log = File::create(place.log()).context("cannot make netd's log")?;
        let mut command = place.command(&["run"]);
        command.stdout(Stdio::null()).stderr(log);
        let left = place.clone();
        let hook = on_interrupt(move || {
            let _ = left.unload();
            let _ = fs::remove_dir_all(left.directory.path());
        });
        let process = topology.host.spawn(command)?;
        Ok(Box::new(Daemon {
            process,
            place,
            removed: false,
            _hook: hook,
        }))
    }
}

/// The network and the port of the topology, and nothing else: the defaults are measured.
fn configuration() -> String {
    format!(
        r#"version = 1

[[network]]
name = "bench"
bridge = "{BRIDGE}"
subnets = ["10.200.0.0/24"]

[[publish]]
network = "bench"
container = "{CONTAINER}"
protocol = "udp"
host_ports = {HOST_PORT}
container_ports = {CONTAINER_PORT}
"#
    )
}

impl Place {
    fn file(&self) -> PathBuf {
        self.directory.path().join("netd.toml")
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn command(&self, verb: &[&str]) -> Command {
        let mut command = self.host.command(&self.binary);
        command
            .args(verb)
            .arg("--config")
            .arg(self.file())
            .arg("--pin-dir")
            .arg(&self.pin_dir)
            .arg("--state-dir")
            .arg(self.directory.path().join("state"))
            .stdin(Stdio::null());
        command
    }

    /// Removes what a stopped daemon left.
    fn unload(&self) -> anyhow::Result<()> {
        let output = self
            .command(&["unload", "--force"])
            .output()
            .context("cannot start netd unload")?;
        // What is left of the pins after a failure would stay for ever.
        if self.pin_dir.exists() {
            fs::remove_dir_all(&self.pin_dir)
                .with_context(|| format!("cannot remove {}", self.pin_dir.display()))?;
        }
        if !output.status.success() {
            bail!(
                "netd unload ended with {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }
}

impl Daemon {
    fn stop(&mut self) -> anyhow::Result<()> {
        if self.removed {
            return Ok(());
        }
        self.removed = true;
        let stopped = self.process.stop(Duration::from_secs(5));
        let unloaded = self.place.unload();
        let status = stopped.context("cannot stop netd")?;
        unloaded?;
        if !status.success() {
            bail!("netd run ended with {status}");
        }
        Ok(())
    }
}

impl Installed for Daemon {
    fn complaint(&mut self) -> Option<String> {
        let log = fs::read_to_string(self.place.log()).unwrap_or_default();
        let ended = match self.process.wait_timeout(Duration::ZERO) {
            Ok(Some(status)) => format!("netd run ended with {status}; "),
            _ => String::new(),
        };
        Some(format!("{ended}its log:\n{}", log.trim_end()))
    }

    fn remove(mut self: Box<Self>) -> anyhow::Result<()> {
        self.stop()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("netd-bench: {error:#}");
        }
    }
}
