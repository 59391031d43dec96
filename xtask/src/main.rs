//! `cargo xtask`: set-up, build, tests, demo and benchmarks; one entry for people and CI.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{bench, demo, exit, sabotage, setup, test, verifier, vm};

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
    /// Build netd and run its demonstration; arguments are passed to `netd demo`.
    Demo {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Check format, lints, documentation, and run every test.
    Test(test::Args),
    /// Switch off one check of the data plane at a time, and see that the tests notice.
    Sabotage(sabotage::Args),
    /// Ask the verifiers of several kernels about every BPF program, and compare with ceilings.
    Verifier(verifier::Args),
    /// Run a verb of netd in a virtual machine with another kernel.
    Vm(vm::Args),
    /// Build netd and measure it; arguments are passed to `netd-bench`.
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup => setup::run(),
        Verb::Demo { args } => demo::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Sabotage(args) => sabotage::run(&args),
        Verb::Verifier(args) => verifier::run(&args),
        Verb::Vm(args) => vm::run(&args),
        Verb::Bench { args } => bench::run(&args),
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
