//! The `netd` command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use netd::cli::verifier_stats;

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// What this kernel's verifier says about every program.
    #[command(hide = true)]
    VerifierStats {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().verb {
        Verb::VerifierStats { json } => verifier_stats::run(json),
    }
}
