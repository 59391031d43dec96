//! Throw-away hosts in network namespaces: for `netd demo`, the namespace tests and the benchmark.
//!
//! Everything is built by netlink and system calls, so an installed netd needs no other program for it; only firewall
//! rule sets go through the host's own iptables and nft. All calls block; none needs an async runtime, and all may be
//! used from inside one.

mod bpf_objects;
mod capture;
mod cleanup;
mod daemon;
mod decode;
mod device;
mod error;
mod firewall;
pub mod frame;
mod host;
mod ipv6_rules;
mod leftovers;
mod namespace;
mod offload;
mod outcome;
mod packet_socket;
mod ping;
mod probe;
mod process;
mod question;
mod routing;
mod server;
mod trace;
mod transfer;
mod tun;
mod tun_link;
mod wireguard;

pub use capture::{Capture, Captured, FrameInfo, LeakGuard, inject};
pub use cleanup::{InterruptHook, on_interrupt, sweep_stale};
pub use daemon::{Answered, Daemon};
pub use decode::{Decoded, display_mac};
pub use device::{DeviceInfo, Mac, VethEnd, Vxlan, add_veth};
pub use error::{LabError, Result};
pub use firewall::{Count, Counters, IptablesBackend, Movement, RuleSet, find_program};
pub use frame::{Frame, Tcp};
pub use host::{
    CLIENT, CLIENT_EXTRA, CONTAINERS, Container, DATAGRAM, HOST, HOST_EXTRA, HOST_SERVICE, Network,
    StandardHost, StandardHostOptions, WEB,
};
pub use ipnet::IpNet;
pub use leftovers::{Leftovers, Scope};
pub use namespace::{NETNS_DIR, Namespace};
pub use offload::Offload;
pub use outcome::{Answer, Expect, Outcome};
pub use ping::ping;
pub use probe::{Connection, ProbeOptions, tcp_probe, udp_probe};
pub use process::Process;
pub use question::{Question, Want, Way};
pub use routing::{Route, Rule};
pub use rtnetlink::packet_route::route::RouteType;
pub use rtnetlink::packet_route::rule::RuleAction;
pub use server::{Listen, MAX_ECHO, Noise, Report, Server};
pub use trace::{Hop, Trace, trace};
pub use transfer::{Direction, StreamReport, Transfer, UdpStream, bulk_transfer};
pub use tun::{Tun, TunKind};
pub use tun_link::TunLink;
pub use wireguard::{WireGuard, WireGuardKey, WireGuardOptions};

/// Parses an address with its prefix length, such as `10.200.0.2/24`.
///
/// # Panics
/// If it is none: for addresses written in the source.
pub fn net(text: &str) -> IpNet {
    text.parse()
        .unwrap_or_else(|e| panic!("{text:?} is no address with a prefix length: {e}"))
}

/// Parses an address.
///
/// # Panics
/// If it is none: for addresses written in the source.
pub fn ip(text: &str) -> std::net::IpAddr {
    text.parse()
        .unwrap_or_else(|e| panic!("{text:?} is no IP address: {e}"))
}
