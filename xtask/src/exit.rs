//! Exit codes, the same for every verb and for `netd` itself.

use std::fmt;
use std::process::ExitCode;

/// 1: the answer is no. A test failed, a ceiling was passed.
pub fn no() -> ExitCode {
    ExitCode::from(1)
}

/// 0 or 1.
pub fn answer(yes: bool) -> ExitCode {
    if yes { ExitCode::SUCCESS } else { no() }
}

/// 2: the input is wrong; nothing was changed.
pub fn bad_input() -> ExitCode {
    ExitCode::from(2)
}

/// 3: cannot run on this machine; what is missing was printed.
pub fn cannot_run() -> ExitCode {
    ExitCode::from(3)
}

/// The error that ends with exit code 3.
#[derive(Debug)]
pub struct Cannot(pub String);

impl fmt::Display for Cannot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Cannot {}
