//! `cargo xtask`: set-up, build, tests, demo and benchmarks; one entry for people and CI.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{exit, setup};

#[derive(Parser)]
#[command(name = "cargo xtask", about)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Find what building and testing need, and install what is missing.
    Setup,
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup => setup::run(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        if error.is::<exit::Cannot>() {
            exit::cannot_run()
        } else {
            exit::no()
        }
    })
}
