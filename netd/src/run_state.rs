//! What the daemon leaves for others to read: which process it is, what it runs with, and what it
//! has to undo.
//!
//! One JSON file per pin directory, below [`DIRECTORY`], replaced as a whole. It is there while
//! netd is in force, whether the daemon runs or not; `netd unload` removes it, and so does a
//! reboot.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::DEFAULT_PIN_DIR;
use crate::dataplane::AttachMode;
use crate::desired::Ids;
use crate::host::{PortSpan, SysctlChange};
use crate::nat_use::PortUse;

/// Where run files are.
pub const DIRECTORY: &str = "/run/netd";

/// The files of one daemon: its lock, its socket, its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFiles {
    /// Held locked (flock) while a daemon runs; holds its pid.
    pub lock: PathBuf,
    /// Unix socket that takes commands.
    pub socket: PathBuf,
    /// [`RunState`] as JSON.
    pub state: PathBuf,
}

impl RunFiles {
    /// The files of the daemon that pins in `pin_dir`. Another pin directory is another daemon.
    pub fn of(pin_dir: &Path) -> Self {
        let name = if pin_dir == Path::new(DEFAULT_PIN_DIR) {
            "netd".to_owned()
        } else {
            let path = pin_dir.to_string_lossy();
            let name: String = path
                .trim_matches('/')
                .chars()
                .map(|c| {
                    if c.is_ascii_alphanumeric() || c == '-' {
                        c
                    } else {
                        '_'
                    }
                })
                .collect();
            // Two paths that read alike must not meet: FNV-1a over the path tells them apart. And
            // a socket's path is limited to 107 bytes.
            let hash = path.bytes().fold(0x811c_9dc5u32, |hash, byte| {
                (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
            });
            let tail: String = name.chars().skip(name.len().saturating_sub(48)).collect();
            format!("{tail}-{hash:08x}")
        };
        let file = |extension| Path::new(DIRECTORY).join(format!("{name}.{extension}"));
        Self {
            lock: file("pid"),
            socket: file("sock"),
            state: file("json"),
        }
    }
}

/// What the daemon last said of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// 1.
    pub schema: u32,
    /// Version of netd.
    pub version: String,
    /// Process id of the daemon, which may be gone: see [`RunState::is_alive`].
    pub pid: u32,
    /// When it started.
    pub started: Timestamp,
    /// When it left in good order; `None` while it runs, and after a crash.
    pub stopped_at: Option<Timestamp>,
    /// `replace` or `accelerate`.
    pub mode: String,
    /// The file it was configured from.
    pub config: PathBuf,
    /// The file could not be used at start: this is the last good copy instead.
    pub last_good: bool,
    /// When the data plane last agreed with the file and the host.
    pub synced_at: Option<Timestamp>,
    /// What was chosen at start, by what the kernel has.
    pub fallbacks: Fallbacks,
    /// What is wrong now; `None` when all is well.
    pub alarm: Option<Alarm>,
    /// Destinations towards which few source ports are left.
    #[serde(default)]
    pub scarce_ports: Vec<PortUse>,
    /// What the user should know, one sentence each; nothing is wrong.
    pub warnings: Vec<String>,
    /// Ids of the networks.
    pub networks: Ids,
    /// Kernel settings that were changed, to be restored by `netd unload`.
    pub sysctls: BTreeMap<String, SysctlChange>,
    /// Ports put into `ip_local_reserved_ports`, to be taken out by `netd unload`.
    pub reserved_ports: Option<PortSpan>,
    /// Interfaces that got a clsact qdisc from netd.
    pub qdiscs: BTreeSet<u32>,
    /// Flows that the kernel's NAT owned when netd came.
    #[serde(default)]
    pub kernel_nat: KernelNat,
}

/// What was read from the kernel's conntrack when netd came, or when its mode changed last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelNat {
    /// Flows that were left to the kernel.
    pub flows: usize,
    /// Flows that did not fit into the map: netd takes their packets for new flows.
    pub left_out: usize,
}

/// How netd does what newer kernels have a better way for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallbacks {
    /// tcx links (6.6), or filters at a clsact qdisc.
    pub attach: AttachMode,
    /// Where the masquerade source comes from.
    pub source_address: SourceAddress,
    /// The host's own programs reach published ports (cgroup2 and CONFIG_CGROUP_BPF are there).
    #[serde(default)]
    pub host_access: bool,
}

/// Where the masquerade source comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceAddress {
    /// The kernel's route lookup names it (6.7).
    FibLookup,
    /// The primary address of the egress interface, from netd's map.
    UplinkMap,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    /// Since when.
    pub since: Timestamp,
    /// What, and what to do.
    pub message: String,
}

/// The state could not be written.
#[derive(Debug, Error)]
#[error("cannot write {}: {source}", .path.display())]
pub struct SaveError {
    path: PathBuf,
    source: io::Error,
}

impl RunState {
    /// Reads the state; `None` where there is none, or one that this version cannot read.
    pub fn load(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let state: Self = serde_json::from_str(&text).ok()?;
        (state.schema == 1).then_some(state)
    }

    /// Replaces the file as a whole; whoever reads it finds the old or the new state.
    pub fn save(&self, path: &Path) -> Result<(), SaveError> {
        let failed = |source| SaveError {
            path: path.to_owned(),
            source,
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        let mut text = serde_json::to_string_pretty(self).map_err(|e| failed(e.into()))?;
        text.push('\n');
        let temporary = path.with_extension("json.new");
        fs::File::create(&temporary)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&temporary, path))
            .map_err(failed)
    }

    /// Whether the process that wrote this still runs: judged by the lock, which the kernel gives
    /// back when the process ends, however it ends.
    pub fn is_alive(files: &RunFiles) -> bool {
        running_pid(files).is_some()
    }
}

/// The pid of the daemon that holds the lock. To see whether one does, the lock is held for a
/// moment, shared with others that look.
pub fn running_pid(files: &RunFiles) -> Option<u32> {
    /// A daemon that has just taken the lock writes its pid after that.
    const LOOKS: u32 = 5;
    for look in 1..=LOOKS {
        let file = fs::File::open(&files.lock).ok()?;
        match file.try_lock_shared() {
            Ok(()) | Err(fs::TryLockError::Error(_)) => return None,
            Err(fs::TryLockError::WouldBlock) => {}
        }
        let text = fs::read_to_string(&files.lock).ok()?;
        match text.trim().parse() {
            Ok(pid) => return Some(pid),
            Err(_) if look < LOOKS => std::thread::sleep(std::time::Duration::from_millis(10)),
            Err(_) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_directory_has_its_own_files() {
        let of = |path: &str| RunFiles::of(Path::new(path));
        assert_eq!(of(DEFAULT_PIN_DIR).lock, Path::new("/run/netd/netd.pid"));
        let paths = [
            "/sys/fs/bpf/a",
            "/sys/fs/bpf/b",
            "/sys/fs/bpf-a",
            "/sys/fs/bpf_a",
        ];
        for (i, a) in paths.iter().enumerate() {
            for b in &paths[i + 1..] {
                assert_ne!(of(a), of(b));
            }
            assert!(of(a).socket.starts_with(DIRECTORY));
        }
        let long = of(&format!("/sys/fs/bpf/{}", "x".repeat(300)));
        assert!(long.socket.as_os_str().len() <= 107);
    }
}
