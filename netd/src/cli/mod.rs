//! The `netd` command: one module per verb.

mod check;
mod demo;
mod drain;
pub mod drops;
pub mod flows;
mod output;
mod plan;
pub mod ports;
mod read;
mod reload;
mod run;
pub mod shell;
pub mod status;
mod unload;
mod verifier_stats;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::config::{Config, ConfigError, DEFAULT_PATH, DEFAULT_PIN_DIR};
use crate::daemon::STATE_DIR;

/// How a command ended. The numbers are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, or healthy.
    Done = 0,
    /// The answer is no.
    No = 1,
    /// Bad input; nothing was changed.
    BadInput = 2,
    /// It cannot run here.
    CannotRun = 3,
    /// Done in part; the list was printed.
    InPart = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Container networking without iptables: an eBPF data plane for Docker hosts.
#[derive(Debug, Parser)]
#[command(
    name = "netd",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Options of every verb.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// Where maps and links are pinned [default: what the file says, or /sys/fs/bpf/netd].
    #[arg(long, global = true, value_name = "DIR")]
    pub pin_dir: Option<PathBuf>,
    /// Where the last good copy of the file is kept.
    #[arg(long, global = true, value_name = "DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,
}

impl Global {
    /// The pin directory: the option, or the file's, or the default where the file cannot be read.
    /// For verbs that must work without a valid file.
    pub fn pin_dir(&self) -> PathBuf {
        if let Some(pin_dir) = &self.pin_dir {
            return pin_dir.clone();
        }
        match Config::load(&self.config) {
            Ok(loaded) => loaded.config.host.pin_dir,
            Err(_) => match crate::config::last_good::load(&self.state_dir) {
                Ok(Some(loaded)) => loaded.config.host.pin_dir,
                _ => Path::new(DEFAULT_PIN_DIR).to_owned(),
            },
        }
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Put the file in force and keep it so, until stopped; the data plane outlives the process.
    Run(run::Args),
    /// Read and validate the file; with --host, see what it would need and do here.
    Check(check::Args),
    /// Show what would be changed to put the file in force.
    Plan(plan::Args),
    /// Show whether the daemon runs and what the data plane enforces.
    #[command(after_help = status::EXIT_CODES)]
    Status(status::Args),
    /// Show published ports and where they lead.
    Ports(ports::Args),
    /// Show flows, the busiest first. Filters combine.
    Flows(flows::Args),
    /// Show dropped packets: why, where, how many, and the last of each.
    Drops(drops::Args),
    /// Have the running daemon read the file again, and wait for its answer.
    Reload(reload::Args),
    /// Remove everything that netd put into the kernel.
    Unload(unload::Args),
    /// Show what netd does on a host full of other firewalls: in namespaces of its own, nothing is left.
    #[command(after_help = demo::EXIT_CODES)]
    Demo(demo::Args),
    /// What this kernel's verifier says about every program.
    #[command(hide = true)]
    VerifierStats {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a shell's completion script.
    Completions(shell::CompletionsArgs),
    /// Write the man pages into a directory.
    #[command(hide = true)]
    Man(shell::ManArgs),
}

/// Runs the command that the arguments name; prints its answer, or why there is none.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, anything else is bad input.
            let exit = if error.use_stderr() {
                Exit::BadInput
            } else {
                Exit::Done
            };
            let _ = error.print();
            return exit.into();
        }
    };
    let global = &cli.global;
    let ended = match &cli.verb {
        Verb::Run(args) => run::run(global, args),
        Verb::Check(args) => check::run(global, args),
        Verb::Plan(args) => plan::run(global, args),
        Verb::Status(args) => status::run(global, args),
        Verb::Ports(args) => ports::run(global, args),
        Verb::Flows(args) => flows::run(global, args),
        Verb::Drops(args) => drops::run(global, args),
        Verb::Reload(args) => reload::run(global, args),
        Verb::Unload(args) => unload::run(global, args),
        Verb::Demo(args) => demo::run(args),
        Verb::VerifierStats { json } => verifier_stats::run(*json),
        Verb::Completions(args) => shell::completions(Cli::command(), args),
        Verb::Man(args) => shell::man(&Cli::command(), args),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        Exit::CannotRun.into()
    })
}

/// Prints why there is no configuration.
fn refuse(error: &ConfigError) -> ExitCode {
    use std::io::IsTerminal as _;
    let text = error.render(std::io::stderr().is_terminal());
    eprint!("{text}");
    Exit::BadInput.into()
}

/// Prints a JSON answer.
fn print_json(value: &serde_json::Value) {
    println!("{value:#}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
