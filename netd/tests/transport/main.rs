//! Transport correctness on hosts that are network namespaces: the built `netd run`, real sockets, tunnels of MTU 1280,
//! WireGuard, two uplinks. One module per subject; each test in a process of its own
//! (`cargo xtask test --only transport`).
//!
//! `world` is that of the semantics: a standard host with a daemon, a guard against leaks on every uplink, and an
//! unload at the end that must leave nothing.

mod answers;
mod epoch;
mod fork;
mod fragments;
mod icmp_errors;
mod ipsec;
mod moving;
mod mtu;
mod mtu_tunnel;
mod path;
mod routing;
mod symmetric;
mod traceroute;
mod tun;
mod two_uplinks;
mod wireguard;
#[allow(
    dead_code,
    reason = "shared with the semantics, which use more of it than these tests"
)]
#[path = "../semantics/world.rs"]
mod world;
