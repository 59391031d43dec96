//! The standard host with a daemon, what the tests publish on it, and what they read from it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::time::Duration;

use aya::maps::{MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use netd::lab::{Container, Daemon, Question, StandardHost, StandardHostOptions, Want, ip};
use nix::sys::signal::Signal;

use crate::programs::netd;

/// The host's IPv6 address on the uplink.
pub const HOST_V6: &str = "fd99::1";
/// The client's.
pub const CLIENT_V6: &str = "fd99::2";

/// A dropped probe takes this long.
pub const SHORT: Duration = Duration::from_millis(700);
/// An answered one may take this long on a busy machine.
pub const LONG: Duration = Duration::from_secs(5);

/// A standard host on which netd runs in replace mode.
pub struct World {
    /// Goes first: it needs the namespaces for its unload.
    pub daemon: Daemon,
    pub host: StandardHost,
}

/// The number behind a word in a file of /proc.
fn number(path: &str, word: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let line = text.lines().find_map(|line| line.strip_prefix(word));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{path} has no {word}"))
}

/// A pinned link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub id: u32,
    /// Id of its program.
    pub program: u32,
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

    /// Asks, and expects what is wanted; no server may have answered anything else meanwhile.
    pub fn ask(&self, part: &str, questions: &[Question]) {
        let before = self.requests();
        let outcomes = self.host.ask(questions, SHORT, LONG, false);
        let mut wrong: Vec<String> = Vec::new();
        let mut answers = 0;
        for (question, outcome) in questions.iter().zip(&outcomes) {
            answers += u64::from(outcome.report().is_some());
            if !question.want.matches(outcome) {
                let (name, want) = (&question.name, &question.want);
                wrong.push(format!("{name}: expected {want}, got {outcome}"));
            }
        }
        let served = self.requests() - before;
        if served != answers {
            wrong.push(format!(
                "{answers} answers, but {served} requests reached a server"
            ));
        }
        assert!(
            wrong.is_empty(),
            "{part}:\n  {}\n{:?}\n{}",
            wrong.join("\n  "),
            self.drops(),
            self.daemon.log()
        );
    }

    fn requests(&self) -> u64 {
        let containers = self.host.containers.iter().map(|c| c.server.requests());
        let others = self.host.servers.iter().map(|server| server.requests());
        containers.chain(others).sum()
    }

    /// The daemon dies without a word.
    pub fn kill(&mut self) {
        let status = self.daemon.stop(Signal::SIGKILL).expect("kill");
        assert!(status.is_some(), "it was not running");
    }

    /// The daemon is started again, and has nothing to do any more.
    pub fn start_again(&mut self) {
        self.daemon.run(&[]).unwrap_or_else(|e| panic!("{e}"));
    }

    /// The links that are pinned, by the names of their pins.
    pub fn links(&self) -> BTreeMap<String, Link> {
        let directory = self.pins().join("links");
        let pins = std::fs::read_dir(directory).expect("links");
        pins.map(|pin| {
            let path = pin.expect("a pin").path();
            let link = FdLink::from(PinnedLink::from_pin(&path).expect("a link"));
            let info = link.info().expect("its information");
            let name = path.file_name().expect("a name").to_string_lossy();
            let link = Link {
                id: info.id(),
                program: info.program_id(),
            };
            (name.into_owned(), link)
        })
        .collect()
    }

    /// Ids of the pinned maps, by name.
    pub fn maps(&self) -> BTreeMap<String, u32> {
        let pins = std::fs::read_dir(self.pins().join("maps")).expect("maps");
        pins.map(|pin| {
            let path = pin.expect("a pin").path();
            let info = MapInfo::from_pin(&path).expect("a map");
            let name = path.file_name().expect("a name").to_string_lossy();
            (name.into_owned(), info.id())
        })
        .collect()
    }

    /// Bytes of kernel memory that the pinned maps take.
    pub fn map_memory(&self) -> u64 {
        let pins = std::fs::read_dir(self.pins().join("maps")).expect("maps");
        let memory = pins.map(|pin| {
            let map = MapData::from_pin(pin.expect("a pin").path()).expect("a map");
            let fd = map.fd().as_fd().as_raw_fd();
            number(&format!("/proc/self/fdinfo/{fd}"), "memlock:")
        });
        memory.sum()
    }

    /// Bytes of memory that the daemon has in use.
    pub fn daemon_memory(&self) -> u64 {
        let pid = self.daemon.pid().expect("it runs");
        number(&format!("/proc/{pid}/status"), "VmRSS:") << 10
    }

    /// Where the objects of this ABI are pinned.
    pub fn pins(&self) -> PathBuf {
        let version = format!("v{}", netd_common::abi::VERSION);
        self.daemon.pin_dir().join(version)
    }

    /// Nothing is left to do, and everything can be removed again.
    pub fn end(self) {
        let plan = self.daemon.verb(&["plan", "--exit-code"]).expect("plan");
        assert_eq!(plan.code, 0, "{}{}", plan.stdout, plan.stderr);
        self.daemon.unload().unwrap_or_else(|e| panic!("{e}"));
    }
}

/// This server answers and saw this client.
pub fn by(server: &str, peer: impl Into<IpAddr>) -> Want {
    Want::Answer(server.to_owned(), peer.into())
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
