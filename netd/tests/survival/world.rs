//! The standard host with a daemon, what the tests publish on it, and what they read from it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use netd::lab::{Container, Daemon, StandardHost, StandardHostOptions, ip};

use crate::programs::netd;

/// The host's IPv6 address on the uplink.
pub const HOST_V6: &str = "fd99::1";
/// The client's.
pub const CLIENT_V6: &str = "fd99::2";

/// A standard host on which netd runs in replace mode.
pub struct World {
    /// Goes first: it needs the namespaces for its unload.
    pub daemon: Daemon,
    pub host: StandardHost,
}

/// A port of an address.
pub fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// A port of an address that is written.
pub fn to(address: &str, port: u16) -> SocketAddr {
    at(ip(address), port)
}

impl World {
    /// Builds the host and starts netd with the standard file and what `more` adds.
    pub fn new(options: StandardHostOptions, more: impl FnOnce(&StandardHost) -> String) -> Self {
        let host = StandardHost::build(options).expect("the standard host");
        let config = config(&host, &more(&host));
        let daemon = Daemon::start(netd(), &host.host, &config).unwrap_or_else(|e| panic!("{e}"));
        Self { daemon, host }
    }

    /// A container by its name.
    pub fn container(&self, name: &str) -> &Container {
        self.host.container(name)
    }

    /// What `netd VERB --json` prints.
    pub fn json(&self, verb: &[&str]) -> serde_json::Value {
        let answer = self.daemon.verb(&[verb, &["--json"]].concat());
        let answer = answer.expect("netd runs");
        serde_json::from_str(&answer.stdout)
            .unwrap_or_else(|e| panic!("netd {verb:?}: {e}: {answer:?}"))
    }

    /// Dropped packets since the maps were made, by reason.
    pub fn drops(&self) -> BTreeMap<String, u64> {
        let mut drops = BTreeMap::new();
        for row in self.json(&["drops"])["drops"].as_array().expect("rows") {
            let reason = row["reason"].as_str().expect("a reason").to_owned();
            *drops.entry(reason).or_default() += row["count"].as_u64().expect("a count");
        }
        drops
    }

    /// Nothing is left to do, and everything can be removed again.
    pub fn end(self) {
        let plan = self.daemon.verb(&["plan", "--exit-code"]).expect("plan");
        assert_eq!(plan.code, 0, "{}{}", plan.stdout, plan.stderr);
        self.daemon.unload().unwrap_or_else(|e| panic!("{e}"));
    }
}

/// The standard file and what a test adds.
pub fn config(host: &StandardHost, more: &str) -> String {
    host.netd_toml("replace", "/sys/fs/bpf/overruled") + more
}

/// A `[[publish]]` of one port.
pub fn publish(
    network: &str,
    container: IpAddr,
    protocol: &str,
    host_port: u16,
    container_port: u16,
) -> String {
    let host = if container.is_ipv6() { "::" } else { "0.0.0.0" };
    format!(
        "\n[[publish]]\nnetwork = {network:?}\ncontainer = \"{container}\"\nprotocol = {protocol:?}\nhost = {host:?}\n\
         host_ports = {host_port}\ncontainer_ports = {container_port}\n"
    )
}
