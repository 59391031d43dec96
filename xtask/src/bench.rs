//! `cargo xtask bench`: the benchmark harness over the release binary.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::cargo::{become_program, build_release};
use crate::setup;
use crate::setup::plan::Need;

/// Runs `netd-bench` with `args`; its exit code is ours. It finds `netd` beside itself.
///
/// # Errors
/// A set-up or a build that fails.
pub fn run(args: &[OsString]) -> anyhow::Result<ExitCode> {
    setup::ensure(&[Need::Build, Need::Network])?;
    // What is measured is what is shipped: default features, the release profile.
    build_release("netd")?;
    let bench = build_release("netd-bench")?;
    become_program(&bench, args)
}
