//! `netd run`

use std::process::ExitCode;

use super::{Exit, Global, refuse};
use crate::daemon::{self, Options, StartError};

/// Arguments of `netd run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Replace a daemon that runs with the same pin directory; no packet is lost.
    #[arg(long)]
    takeover: bool,
    /// Attach programs by clsact filters, as on kernels before 6.6.
    #[arg(long, hide = true)]
    no_tcx: bool,
}

/// Environment variable with the mask of checks to switch off; for `cargo xtask sabotage`.
#[cfg(feature = "sabotage")]
const SABOTAGE: &str = "NETD_SABOTAGE";

#[cfg(feature = "sabotage")]
fn sabotage() -> u32 {
    let mask = std::env::var(SABOTAGE).ok();
    mask.and_then(|mask| mask.parse().ok()).unwrap_or(0)
}

#[cfg(not(feature = "sabotage"))]
fn sabotage() -> u32 {
    0
}

/// Runs until told to leave.
pub fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let options = Options {
        config: global.config.clone(),
        pin_dir: global.pin_dir.clone(),
        state_dir: global.state_dir.clone(),
        takeover: args.takeover,
        no_tcx: args.no_tcx,
        sabotage: sabotage(),
    };
    match daemon::run(&options) {
        Ok(()) => Ok(Exit::Done.into()),
        Err(error) => match error.downcast_ref::<StartError>() {
            Some(StartError::Config(error)) => Ok(refuse(error)),
            _ => Err(error),
        },
    }
}
