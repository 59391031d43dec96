//! One daemon per pin directory: a locked file that holds its pid.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::run_state::{DIRECTORY, RunFiles};

/// Who only looks whether a daemon runs holds the lock for a moment.
const PATIENCE: Duration = Duration::from_millis(200);

/// The lock; given back when dropped, or when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why there is no lock.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another daemon has it.
    #[error(
        "another netd runs with the same pin directory, as process {pid}: \
         stop it, or let this one replace it with --takeover"
    )]
    Taken {
        /// Its pid.
        pid: String,
    },
    /// It was asked to leave, but stays.
    #[error(
        "netd runs with the same pin directory as process {pid}, and does not leave{}. Nothing was \
         changed. If it hangs, end it with `kill -9 {pid}` (the data plane goes on without it) and \
         start netd again", because(.why)
    )]
    Stays {
        /// Its pid.
        pid: String,
        /// What it answered, if not that it leaves.
        why: Option<String>,
    },
    /// The file system refused.
    #[error("{}: cannot lock it: {source}; netd needs to write to {DIRECTORY}", .path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn because(why: &Option<String>) -> String {
    why.as_ref()
        .map(|why| format!(": {why}"))
        .unwrap_or_default()
}

impl Lock {
    /// Takes the lock, or waits up to `wait` for it.
    ///
    /// # Errors
    /// [`LockError::Taken`] with the pid of the daemon that has it.
    pub fn take(files: &RunFiles, wait: Duration) -> Result<Self, LockError> {
        let path = &files.lock;
        let failed = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(path.parent().unwrap_or(Path::new(DIRECTORY))).map_err(failed)?;
        let until = Instant::now() + wait.max(PATIENCE);
        loop {
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(path)
                .map_err(failed)?;
            match file.try_lock() {
                // The file may have been removed between opening and locking it (`unload`): a lock
                // on a file that has no name protects nothing.
                Ok(()) if is_at(&file, path) => {
                    file.set_len(0)
                        .and_then(|()| writeln!(file, "{}", std::process::id()))
                        .map_err(failed)?;
                    return Ok(Self { _file: file });
                }
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    let pid = fs::read_to_string(path).unwrap_or_default();
                    let pid = pid.trim().to_owned();
                    return Err(LockError::Taken { pid });
                }
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(own), Ok(there)) => (own.dev(), own.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_the_pid_of_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let files = RunFiles {
            lock: directory.path().join("x.pid"),
            socket: directory.path().join("x.sock"),
            state: directory.path().join("x.json"),
        };
        let first = Lock::take(&files, Duration::ZERO).unwrap();
        let error = Lock::take(&files, Duration::ZERO).unwrap_err();
        let pid = std::process::id().to_string();
        assert!(error.to_string().contains(&pid), "{error}");
        assert_eq!(
            crate::run_state::running_pid(&files),
            Some(std::process::id())
        );
        drop(first);
        assert_eq!(crate::run_state::running_pid(&files), None);
        Lock::take(&files, Duration::ZERO).unwrap();
    }
}
