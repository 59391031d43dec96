//! What can go wrong while a lab is built.

use std::io;

use nix::errno::Errno;

/// Shorthand of this module's results.
pub type Result<T, E = LabError> = std::result::Result<T, E>;

/// An error of the lab: what was being done, where, and why it failed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A system call or file operation failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, with the namespace and device concerned.
        doing: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The kernel refused a netlink request.
    #[error("{doing}: {source}")]
    Netlink {
        /// What was being done, with the namespace and device concerned.
        doing: String,
        /// The kernel's answer.
        source: Box<rtnetlink::Error>,
    },
    /// An argument that no kernel needs to see to be refused.
    #[error("{0}")]
    Invalid(String),
    /// An external program ended with an error.
    #[error("{program} ended with {status}: {stderr}")]
    Program {
        /// The program, with its arguments.
        program: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it wrote to standard error.
        stderr: String,
    },
    /// None of the programs that could do it is installed.
    #[error("none of {tried} is installed: install the package {package}")]
    NoProgram {
        /// The names looked for in PATH and the sbin directories.
        tried: String,
        /// The distribution package that has them.
        package: &'static str,
    },
    /// The worker thread of a namespace is gone.
    #[error("the worker thread of namespace {0} has ended")]
    WorkerGone(String),
}

impl LabError {
    /// An I/O error with what was being done.
    pub fn io(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            doing: doing.into(),
            source: source.into(),
        }
    }

    /// The errno behind the error, if the kernel gave one.
    pub fn errno(&self) -> Option<Errno> {
        let raw = match self {
            Self::Io { source, .. } => source.raw_os_error()?,
            Self::Netlink { source, .. } => match source.as_ref() {
                rtnetlink::Error::NetlinkError(message) => -message.raw_code(),
                _ => return None,
            },
            _ => return None,
        };
        Some(Errno::from_raw(raw))
    }

    /// Whether the kernel was built without what was asked for (a link kind, an ioctl, a device node): a reason
    /// to skip, not to fail.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self.errno(),
            Some(Errno::EOPNOTSUPP | Errno::ENODEV | Errno::ENXIO | Errno::EAFNOSUPPORT)
        )
    }
}
