//! Building the workspace's own programs.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};

use crate::{target_dir, workspace};

/// The cargo that runs us, in the workspace.
pub fn cargo() -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(workspace());
    command
}

/// Builds the program `package` optimised, with its messages shown, and says where it is.
///
/// # Errors
/// A build that fails.
pub fn build_release(package: &str) -> anyhow::Result<PathBuf> {
    let status = cargo()
        .args(["build", "--release", "--package", package])
        .arg("--target-dir")
        .arg(target_dir())
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("{package} does not build: see the compiler's messages above");
    }
    Ok(target_dir().join("release").join(package))
}

/// Replaces this process by `program`, so that signals and the exit code are its own.
///
/// # Errors
/// A program that cannot be started; there is no other return.
pub fn become_program(
    program: &Path,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> anyhow::Result<ExitCode> {
    let error = Command::new(program).args(args).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}
