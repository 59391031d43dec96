//! What the build asks of the machine, as a trait, so that decisions can be tested on machines
//! that do not exist here.

#[cfg(test)]
pub(crate) mod fake;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Read-only questions to the machine.
pub trait System {
    /// Standard output of `program args`, if it could be started and ended with 0.
    fn output(&self, program: &Path, args: &[&str]) -> Option<String>;
    /// Whether `path` is a file (links followed).
    fn is_file(&self, path: &Path) -> bool;
    /// The paths in the directory `path`, sorted; empty if it cannot be read.
    fn entries(&self, path: &Path) -> Vec<PathBuf>;
    /// An environment variable.
    fn var(&self, name: &str) -> Option<OsString>;
    /// Whether this process may install packages: effective user id 0.
    fn is_root(&self) -> bool;

    /// The first file called `program` in `PATH`.
    fn in_path(&self, program: &str) -> Option<PathBuf> {
        // sbin is missing from the PATH of ordinary users, and iptables lives there.
        let path = self.var("PATH").unwrap_or_default();
        env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .map(|dir| dir.join(program))
            .find(|file| self.is_file(file))
    }
}

/// The machine this process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine;

impl System for Machine {
    fn output(&self, program: &Path, args: &[&str]) -> Option<String> {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null());
        // apt's field names are translated otherwise.
        command.env("LC_ALL", "C.UTF-8");
        // A rustup proxy must answer for its default, not for the toolchain that runs us.
        command.env_remove("RUSTUP_TOOLCHAIN");
        let output = command.output().ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn is_file(&self, path: &Path) -> bool {
        path.is_file()
    }

    fn entries(&self, path: &Path) -> Vec<PathBuf> {
        let mut paths: Vec<_> = fs::read_dir(path)
            .map(|dir| dir.filter_map(Result::ok).map(|e| e.path()).collect())
            .unwrap_or_default();
        paths.sort();
        paths
    }

    fn var(&self, name: &str) -> Option<OsString> {
        env::var_os(name)
    }

    fn is_root(&self) -> bool {
        // The owner of /proc/self is the effective user; std has no geteuid.
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
        }
        #[cfg(not(unix))]
        false
    }
}
