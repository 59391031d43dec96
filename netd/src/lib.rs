//! netd: an eBPF data plane that replaces Docker's iptables rules.

pub mod apply;
pub mod cli;
pub mod collect;
pub mod config;
pub mod daemon;
pub mod dataplane;
pub mod demo;
pub mod desired;
pub mod host;
pub mod lab;
pub mod logging;
pub mod nat_use;
pub mod plan;
pub mod run_state;
pub mod state;
pub mod teardown;
