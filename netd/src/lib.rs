//! netd: an eBPF data plane that replaces Docker's iptables rules.

pub mod lab;
