//! What the daemon learns from the kernel: plain, comparable data, read by netlink.
//!
//! [`HostFacts`] holds it; the decisions made from it live elsewhere and are pure.

mod facts;

pub use facts::*;
