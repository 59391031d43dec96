//! What the daemon learns from the kernel: plain, comparable data, read by netlink.
//!
//! [`HostFacts`] holds it; the decisions made from it live elsewhere and are pure.

mod facts;
mod links;
mod netlink;

use std::io;

pub use facts::*;

/// Why the host could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A netlink socket could not be opened.
    #[error("cannot open a netlink socket ({family}): {source}")]
    Open {
        /// The netlink family.
        family: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused a request, or its answer made no sense.
    #[error("cannot read {what} by netlink: {source}{}", kernel_words(.kernel_says))]
    Netlink {
        /// What was asked for.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
        /// The kernel's explanation, where it gives one.
        kernel_says: Option<String>,
    },
}

fn kernel_words(says: &Option<String>) -> String {
    says.as_ref()
        .map(|says| format!(" (the kernel says: {says})"))
        .unwrap_or_default()
}
