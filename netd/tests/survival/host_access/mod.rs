//! Acceptance 6: the host's own programs and published ports. Sockets are opened inside the host's
//! namespace as a program would open them, and the server says which container it is.

mod attached;
mod ended;
mod listeners;
mod matrix;
mod sockets;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use netd::lab::{Daemon, StandardHost, StandardHostOptions};

/// Ends the test with a word when it cannot run here.
macro_rules! need_root {
    () => {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
    };
}
use need_root;

/// Published on every address.
const ANY: u16 = 7001;
/// Published on the host's address on the uplink alone.
const ONE: u16 = 7002;
/// Published on 127.0.0.1 and `::1` alone.
const LOOPBACK: u16 = 7003;

/// A standard host, and netd with the ports above in front of n2a.
struct World {
    daemon: Daemon,
    host: StandardHost,
}

impl World {
    fn new(mode: &str) -> Self {
        Self::with(mode, |_| {}, "")
    }

    /// With more in the file; `prepare` runs before netd does.
    fn with(mode: &str, prepare: impl FnOnce(&StandardHost), more: &str) -> Self {
        let host = StandardHost::build(StandardHostOptions::default()).expect("the standard host");
        prepare(&host);
        let toml = Self::toml(&host, mode, &[ANY, ONE, LOOPBACK]) + more;
        let daemon = Daemon::start(Path::new(env!("CARGO_BIN_EXE_netd")), &host.host, &toml)
            .unwrap_or_else(|error| panic!("{error}\n{toml}"));
        Self { daemon, host }
    }

    /// The standard file with these ports in front of n2a.
    fn toml(host: &StandardHost, mode: &str, ports: &[u16]) -> String {
        let mut toml = host.netd_toml(mode, "/sys/fs/bpf/netd");
        for port in ports {
            let hosts = match *port {
                ANY => ["0.0.0.0", "::"],
                ONE => ["198.18.0.1", "fd99::1"],
                _ => ["127.0.0.1", "::1"],
            };
            for address in hosts {
                toml += &published(host, address, *port, "");
            }
        }
        toml
    }

    /// Everything is over: `unload` leaves nothing.
    fn end(self) {
        self.daemon.unload().expect("unload");
    }
}

/// `[[publish]]` of a port of both protocols, in front of n2a.
fn published(host: &StandardHost, address: &str, port: u16, more: &str) -> String {
    let n2a = host.container("n2a");
    let container = if address.contains(':') {
        n2a.v6.expect("n2a has IPv6")
    } else {
        n2a.v4
    };
    [("tcp", 80), ("udp", 5000)]
        .map(|(protocol, to)| {
            format!(
                "\n[[publish]]\nnetwork = \"n2\"\ncontainer = \"{container}\"\nprotocol = \
                 {protocol:?}\nhost = {address:?}\nhost_ports = {port}\ncontainer_ports = {to}\n{more}"
            )
        })
        .concat()
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}

fn ip(address: &str) -> IpAddr {
    address.parse().expect("an address")
}
