//! What survives what: traffic through restarts, crashes and upgrades of the daemon, a data plane without one, and
//! floods of packets and flows. One module per acceptance, one process per test, one test at a time
//! (`cargo xtask test --only survival`): each wants the machine for itself.

mod daemon_dead;
mod drain;
mod host_access;
mod kernel_nat;
mod load;
mod migration;
mod nat_exhaustion;
mod programs;
mod restart;
mod short_flows;
mod syn_flood;
mod takeover;
mod world;
