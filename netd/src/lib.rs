//! netd: an eBPF data plane that replaces Docker's iptables rules.

pub mod config;
pub mod logging;
pub mod state;
