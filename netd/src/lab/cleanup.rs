//! What a lab leaves on the machine is removed however the process ends.
//!
//! Every namespace and child process is entered here when it is made. Drop takes it out again; a thread waiting for
//! SIGINT and SIGTERM removes what is left and then ends the process with the signal's default action. What SIGKILL
//! leaves is recognised by its name, which carries the creator's pid and start time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, Once};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::error::{LabError, Result};
use super::namespace::NETNS_DIR;
use crate::host::BPFFS_PATH;
use crate::run_state;

/// Of namespaces.
const PREFIX: &str = "nd-";
/// Of the directories of a [`super::Daemon`]; its run files have it somewhere in their names.
pub(super) const DAEMON_PREFIX: &str = "netd-lab-";

/// Removes what labs of dead processes left: namespaces under /run/netns, and the pins, run files and directories of
/// daemons. Returns the paths. Called by the first namespace that a process creates. A process in another PID namespace
/// counts as dead here: labs of two containers that share /run/netns must not run side by side.
pub fn sweep_stale() -> Vec<PathBuf> {
    let mut removed = Vec::new();
    for name in names_in(Path::new(NETNS_DIR)) {
        if creator(&name).is_some_and(is_dead) {
            unbind(&name);
            removed.push(Path::new(NETNS_DIR).join(name));
        }
    }
    // Programs that are attached by filters and not by links go with their namespace, above.
    let daemons = [
        Path::new(BPFFS_PATH),
        &std::env::temp_dir(),
        Path::new(run_state::DIRECTORY),
    ];
    for directory in daemons {
        for name in names_in(directory) {
            let Some((_, unique)) = name.split_once(DAEMON_PREFIX) else {
                continue;
            };
            if !parse_unique(unique).is_some_and(is_dead) {
                continue;
            }
            let path = directory.join(&name);
            let gone = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            match gone {
                Ok(()) => removed.push(path),
                // Another process may sweep at the same time.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove what a lab left");
                }
            }
        }
    }
    removed
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn is_dead((pid, started): (u32, u64)) -> bool {
    start_time(pid) != Some(started)
}

/// Runs `hook` before the namespaces are removed when the process is interrupted by SIGINT or SIGTERM; not at a
/// normal end. The hook is forgotten when the guard is dropped.
pub fn on_interrupt(hook: impl FnOnce() + Send + 'static) -> InterruptHook {
    let mut live = live();
    live.next_hook += 1;
    let id = live.next_hook;
    live.hooks.insert(id, Box::new(hook));
    InterruptHook(id)
}

/// Keeps a hook of [`on_interrupt`] registered.
#[derive(Debug)]
pub struct InterruptHook(u64);

impl Drop for InterruptHook {
    fn drop(&mut self) {
        // The hook may hold the last handle on a namespace, whose end takes the lock as well: the lock is given back
        // before the hook goes.
        let hook = live().hooks.remove(&self.0);
        drop(hook);
    }
}

#[derive(Default)]
struct Live {
    namespaces: BTreeSet<String>,
    children: BTreeSet<u32>,
    hooks: BTreeMap<u64, Box<dyn FnOnce() + Send>>,
    next_hook: u64,
}

static LIVE: LazyLock<Mutex<Live>> = LazyLock::new(Mutex::default);

fn live() -> MutexGuard<'static, Live> {
    LIVE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Makes /run/netns what `ip netns add` makes of it, sweeps what dead processes left and begins to listen for
/// signals; all once per process.
pub(super) fn prepare() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(LabError::io(
            "create a network namespace (run as root)",
            nix::errno::Errno::EPERM,
        ));
    }
    share_netns_dir()?;
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        sweep_stale();
        if let Err(error) = listen_for_signals() {
            tracing::warn!(%error, "cannot catch SIGINT and SIGTERM: an interrupted lab is removed by the next one");
        }
    });
    Ok(())
}

pub(super) fn unique_name(role: &str) -> Result<String> {
    Ok(format!("{PREFIX}{}-{role}", unique()?))
}

/// `<pid>-<start time>-<eight random digits>`, by which [`sweep_stale`] knows what a dead process left.
pub(super) fn unique() -> Result<String> {
    let pid = std::process::id();
    let started = start_time(pid)
        .ok_or_else(|| LabError::Invalid("read /proc/self/stat: mount /proc".to_owned()))?;
    let mut random = [0; 4];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .map_err(|e| LabError::io("read /dev/urandom", e))?;
    Ok(format!(
        "{pid}-{started}-{:08x}",
        u32::from_ne_bytes(random)
    ))
}

pub(super) fn register_namespace(name: &str) {
    live().namespaces.insert(name.to_owned());
}

/// Unbinds the namespace. A name that is not registered (any more) is left alone.
pub(super) fn remove_namespace(name: &str) {
    if live().namespaces.remove(name) {
        unbind(name);
    }
}

pub(super) fn register_child(pid: u32) {
    live().children.insert(pid);
}

pub(super) fn forget_child(pid: u32) {
    live().children.remove(&pid);
}

fn unbind(name: &str) {
    let path = Path::new(NETNS_DIR).join(name);
    // MNT_DETACH: another tool may have it open; EINVAL: never bound.
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    if let Err(error) = fs::remove_file(&path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove the namespace's file");
    }
}

/// `ip netns add` makes the directory a shared mount, so that an unmount reaches other mount namespaces; if a lab
/// bound namespaces first, ip would bind the directory over them and hide the mounts below.
fn share_netns_dir() -> Result<()> {
    let failed = |doing: &str, e: std::io::Error| LabError::io(format!("{doing} {NETNS_DIR}"), e);
    fs::create_dir_all(NETNS_DIR).map_err(|e| failed("create", e))?;
    let dir = File::open(NETNS_DIR).map_err(|e| failed("open", e))?;
    let _lock =
        Flock::lock(dir, FlockArg::LockExclusive).map_err(|(_, e)| failed("lock", e.into()))?;
    let share = || {
        mount(
            None::<&str>,
            NETNS_DIR,
            None::<&str>,
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            None::<&str>,
        )
    };
    if share().is_err() {
        mount(
            Some(NETNS_DIR),
            NETNS_DIR,
            None::<&str>,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            None::<&str>,
        )
        .map_err(|e| failed("bind", e.into()))?;
        share().map_err(|e| failed("share", e.into()))?;
    }
    Ok(())
}

fn listen_for_signals() -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])
        .map_err(|e| LabError::io("register for SIGINT and SIGTERM", e))?;
    std::thread::Builder::new()
        .name("lab signals".to_owned())
        .spawn(move || {
            if let Some(signal) = signals.forever().next() {
                remove_everything();
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        })
        .map_err(|e| LabError::io("start the signal thread", e))?;
    Ok(())
}

fn remove_everything() {
    // The lock is not kept while hooks run: they may drop namespaces.
    let hooks = std::mem::take(&mut live().hooks);
    for hook in hooks.into_values() {
        hook();
    }
    let (children, namespaces) = {
        let mut live = live();
        (
            std::mem::take(&mut live.children),
            std::mem::take(&mut live.namespaces),
        )
    };
    for pid in children {
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    }
    for name in namespaces {
        unbind(&name);
    }
}

/// Pid and start time in a name that [`unique_name`] made.
pub(super) fn creator(name: &str) -> Option<(u32, u64)> {
    let unique = name.strip_prefix(PREFIX)?;
    (unique.split('-').count() >= 4).then(|| parse_unique(unique))?
}

/// Pid and start time of what begins as [`unique`] made it.
fn parse_unique(text: &str) -> Option<(u32, u64)> {
    let mut parts = text.splitn(4, '-');
    let pid = parts.next()?.parse().ok()?;
    let started = parts.next()?.parse().ok()?;
    (parts.next()?.len() == 8).then_some((pid, started))
}

/// When the process started, in clock ticks after boot: field 22 of /proc/PID/stat (proc_pid_stat(5)).
pub(super) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may itself hold spaces and parentheses.
    let after_name = &stat[stat.rfind(')')? + 1..];
    after_name
        .split_ascii_whitespace()
        .nth(22 - 3)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_their_creator() {
        let name = unique_name("client").expect("name");
        let (pid, started) = creator(&name).expect("parse");
        assert_eq!(pid, std::process::id());
        assert_eq!(Some(started), start_time(pid));
        assert_ne!(name, unique_name("client").expect("name"));
    }

    #[test]
    fn foreign_names_are_not_ours() {
        for name in [
            "nd-",
            "nd-1-2-zz-x",
            "blue",
            "nd-1-x-00000000-a",
            "cni-1234-55-00000000-a",
        ] {
            assert_eq!(creator(name), None, "{name}");
        }
    }
}
