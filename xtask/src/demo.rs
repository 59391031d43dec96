//! `cargo xtask demo`: the demonstration of the release binary, with nothing installed before.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::cargo::{become_program, build_release};
use crate::setup;
use crate::setup::plan::Need;

/// Runs `netd demo` with `args`; its exit code is ours.
///
/// # Errors
/// A set-up or a build that fails.
pub fn run(args: &[OsString]) -> anyhow::Result<ExitCode> {
    setup::ensure(&[Need::Build, Need::Network])?;
    let netd = build_release("netd")?;
    become_program(&netd, [OsString::from("demo")].iter().chain(args))
}
