//! The `netd` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    netd::cli::main()
}
