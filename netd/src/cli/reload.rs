//! `netd reload`

use std::process::ExitCode;

use super::{Exit, Global, print_json};
use crate::daemon::control::{self, AskError, Command};
use crate::run_state::RunFiles;

/// Arguments of `netd reload`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

/// Asks the daemon and waits for its answer.
pub fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let files = RunFiles::of(&global.pin_dir());
    let answer = match control::ask(&files.socket, Command::Reload) {
        Ok(answer) => answer,
        Err(error @ AskError::NotRunning(_)) => {
            eprintln!("error: {error}");
            return Ok(Exit::CannotRun.into());
        }
        Err(error) => return Err(error.into()),
    };
    if args.json {
        print_json(&serde_json::to_value(&answer)?);
    } else if answer.ok {
        println!("{}", answer.message);
    } else {
        eprintln!("{}", answer.message.trim_end());
    }
    Ok(match (answer.ok, answer.refused) {
        (true, _) => Exit::Done,
        (false, true) => Exit::BadInput,
        (false, false) => Exit::InPart,
    }
    .into())
}
