//! `cargo xtask vm`: any verb of `netd` on another kernel; and what the other verbs run there.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use crate::cargo::build_release;
use crate::kernel_vm::kernel::Kernel;
use crate::kernel_vm::{KernelVm, Output};
use crate::setup;
use crate::setup::plan::Need;

/// What to run, and where.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The kernel's series: 6.1, 6.12, or another that the package sources have.
    #[arg(long, value_name = "SERIES", default_value = "6.1")]
    kernel: String,
    /// Stop the machine after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    limit: u64,
    /// Run this shell script instead; `netd` is in its PATH.
    #[arg(long, value_name = "SCRIPT", conflicts_with = "args")]
    sh: Option<String>,
    /// Arguments for `netd` in the guest.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// The verb: prints what the guest printed and ends with its exit code.
///
/// # Errors
/// A machine that cannot be made or does not reach its command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut words = match &args.sh {
        Some(script) => vec!["sh", "-c", script],
        None => vec!["netd"],
    };
    for arg in &args.args {
        words.push(arg.to_str().context("an argument that is not UTF-8")?);
    }
    let output = command(&args.kernel, &words, Duration::from_secs(args.limit))?;
    std::io::stderr().write_all(output.stderr.as_bytes())?;
    std::io::stdout().write_all(output.stdout.as_bytes())?;
    eprintln!(
        "exit code {} after {:.1} s; the kernel's messages are in {}",
        output.code,
        output.took.as_secs_f32(),
        output.console.display()
    );
    Ok(u8::try_from(output.code).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Runs the release build of `netd` with `args` on the newest kernel of `series`.
///
/// # Errors
/// [`Cannot`](crate::exit::Cannot) where that kernel or the emulator cannot be had; else what
/// went wrong.
pub fn netd(series: &str, args: &[&str], limit: Duration) -> anyhow::Result<Output> {
    command(series, &[&["netd"], args].concat(), limit)
}

fn command(series: &str, argv: &[&str], limit: Duration) -> anyhow::Result<Output> {
    setup::ensure(&[Need::Build, Need::Network, Need::KernelVm])?;
    let netd = build_release("netd")?;
    let mut vm = KernelVm::new(Kernel::fetch(series)?)?;
    vm.add_program(&netd)?;
    vm.add_file(&netd, "/usr/local/bin/netd", 0o755)?;
    // The first two words name the files that are left: netd-verifier-stats, sh--c.
    let name = argv.iter().take(2).copied().collect::<Vec<_>>().join(" ");
    vm.run(&name, argv, limit)
}
