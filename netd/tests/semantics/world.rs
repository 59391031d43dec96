//! A host with a daemon, questions to it, and what went wrong.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use netd::lab::{
    CLIENT, Capture, Captured, Daemon, Frame, HOST, LabError, LeakGuard, Namespace, Outcome,
    Question, StandardHost, StandardHostOptions, Vxlan, Want, inject, net,
};

/// A dropped probe takes this long.
const SHORT: Duration = Duration::from_millis(700);
/// An answered one may take this long on a busy machine.
pub const LONG: Duration = Duration::from_secs(5);

/// Ends the test with a word when it cannot run here.
macro_rules! need_root {
    () => {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
    };
}
pub(crate) use need_root;

/// The program under test: `cargo xtask sabotage` puts another build in its place.
pub fn program() -> String {
    std::env::var("NETD_TEST_PROGRAM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_netd").to_owned())
}

/// The same tests are built twice, as `semantics` and as `semantics_tx_off`.
const TX_OFF: bool = matches!(env!("CARGO_CRATE_NAME").as_bytes(), b"semantics_tx_off");

/// A standard host on which netd runs.
pub struct World {
    pub host: StandardHost,
    pub daemon: Daemon,
    guards: RefCell<Vec<LeakGuard>>,
    wrong: RefCell<Vec<String>>,
    asked: Cell<usize>,
    /// Something else asks the servers meanwhile.
    pub busy: Cell<bool>,
}

impl World {
    /// Builds the host, prepares it, and starts netd with the standard file, or what `toml` makes of it.
    pub fn new(
        mut options: StandardHostOptions,
        prepare: impl FnOnce(&StandardHost),
        toml: impl FnOnce(Toml) -> Toml,
    ) -> Self {
        options.tx_offload &= !TX_OFF;
        let host = StandardHost::build(options).expect("the standard host");
        prepare(&host);
        let toml = toml(Toml::standard(&host));
        let daemon = Daemon::start(Path::new(&program()), &host.host, &toml.to_string())
            .unwrap_or_else(|e| panic!("{e}\n{toml}"));
        let world = Self {
            host,
            daemon,
            guards: RefCell::default(),
            wrong: RefCell::default(),
            asked: Cell::default(),
            busy: Cell::default(),
        };
        world.guard(&[]);
        world
    }

    /// A standard host with the standard file.
    pub fn standard(options: StandardHostOptions) -> Self {
        Self::new(options, |_| {}, |toml| toml)
    }

    /// Has netd read another file.
    pub fn reload(&self, toml: &Toml) {
        let answer = self.daemon.reload(&toml.to_string()).expect("reload");
        assert_eq!(answer.code, 0, "{}\n{toml}", answer.stderr);
    }

    /// Watches the uplinks from now on for all subnets but those of the networks named, whose addresses may be seen.
    pub fn guard(&self, open: &[&str]) {
        self.end_guards();
        let closed = StandardHost::networks()
            .into_iter()
            .filter(|n| !open.contains(&n.name));
        let subnets: Vec<_> = closed
            .flat_map(|n| [Some(n.subnet), n.subnet6])
            .flatten()
            .collect();
        let mut guards = self.guards.borrow_mut();
        for device in ["up0", "up1"] {
            if device == "up0" || self.host.extra_client.is_some() {
                guards
                    .push(LeakGuard::watch(&self.host.host, device, &subnets).expect("leak guard"));
            }
        }
    }

    fn end_guards(&self) {
        for guard in self.guards.borrow_mut().drain(..) {
            if let Err(leak) = guard.finish() {
                self.wrong.borrow_mut().push(leak);
            }
        }
    }

    /// Asks, and compares what the servers saw with what the clients got.
    pub fn ask(&self, part: &str, questions: &[Question]) {
        let before = self.requests();
        let outcomes = self.host.ask(questions, SHORT, LONG, false);
        let mut answers = 0;
        for (question, outcome) in questions.iter().zip(&outcomes) {
            let known = outcome.report().is_some_and(|r| self.serves(&r.server));
            answers += u64::from(known);
            self.check(
                &format!("{part}: {}", question.name),
                &question.want,
                outcome,
                question.want.matches(outcome),
            );
        }
        if self.busy.get() {
            return;
        }
        let served = self.requests() - before;
        self.check(
            &format!("{part}: requests that reached a server"),
            answers,
            served,
            served == answers,
        );
    }

    /// Notes whether something is as expected.
    pub fn check(&self, name: &str, expected: impl fmt::Display, got: impl fmt::Display, ok: bool) {
        self.asked.set(self.asked.get() + 1);
        if !ok {
            let line = format!("{name}: expected {expected}, got {got}");
            eprintln!("WRONG {line}");
            self.wrong.borrow_mut().push(line);
        }
    }

    /// Checks one outcome.
    pub fn outcome(&self, name: &str, want: Want, got: Outcome) {
        let ok = want.matches(&got);
        self.check(name, want, got, ok);
    }

    /// Sends frames from a device, and says which of them were seen at another. Frames are told apart by their
    /// payload, which is their name; the last one is a control that must arrive.
    pub fn seen(
        &self,
        from: (&Namespace, &str),
        at: (&Namespace, &str),
        frames: &[(&str, Frame)],
    ) -> BTreeSet<String> {
        let capture =
            Capture::filtered(at.0, at.1, |frame| !frame.info.outgoing()).expect("capture");
        let named: Vec<_> = frames
            .iter()
            .map(|(name, frame)| frame.clone().payload(name.as_bytes()).build())
            .collect();
        inject(from.0, from.1, &named).expect("inject");
        let (control, _) = frames.last().expect("a control");
        // Of a frame with a type alone, the payload follows the Ethernet header.
        let is = |frame: &Captured, name: &str| {
            frame.decoded.payload == name.as_bytes()
                || frame.bytes.get(14..) == Some(name.as_bytes())
        };
        capture.wait_for(LONG, |frame| is(frame, control));
        std::thread::sleep(Duration::from_millis(150));
        let seen = capture.stop();
        frames
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .filter(|name| seen.iter().any(|frame| is(frame, name)))
            .collect()
    }

    /// Of the frames only those named `expected` may be seen; see [`World::seen`].
    pub fn frames(
        &self,
        part: &str,
        from: (&Namespace, &str),
        at: (&Namespace, &str),
        frames: &[(&str, Frame)],
        expected: &[&str],
    ) {
        let seen = self.seen(from, at, frames);
        for (name, _) in frames {
            let (wanted, came) = (expected.contains(name), seen.contains(*name));
            let word = |seen: bool| if seen { "seen" } else { "not seen" };
            self.check(
                &format!("{part}: {name}"),
                word(wanted),
                word(came),
                wanted == came,
            );
        }
    }

    fn serves(&self, name: &str) -> bool {
        let hosts = self.host.servers.iter().any(|s| s.name() == name);
        hosts || self.host.containers.iter().any(|c| c.server.name() == name)
    }

    fn requests(&self) -> u64 {
        let containers = self.host.containers.iter().map(|c| c.server.requests());
        let others = self.host.servers.iter().map(|s| s.requests());
        containers.chain(others).sum()
    }

    /// Everything is over: nothing leaked, unload leaves nothing, and nothing was wrong.
    pub fn end(self) {
        self.end_guards();
        let drops = self.daemon.verb(&["drops"]).map(|answer| answer.stdout);
        let log = self.daemon.log();
        if let Err(LabError::Invalid(error)) = self.daemon.unload() {
            self.wrong.borrow_mut().push(error);
        }
        let wrong = self.wrong.into_inner();
        let asked = self.asked.get();
        assert!(asked > 0, "nothing was asked");
        assert!(
            wrong.is_empty(),
            "{} of {asked} were wrong:\n  {}\n{}\n{log}",
            wrong.len(),
            wrong.join("\n  "),
            drops.unwrap_or_default(),
        );
        println!("{asked} as expected");
    }
}

/// A VXLAN between the host and its client, 100.64.0.1 and .2, fd77::1 and ::2, which verifies the outer checksum: what
/// arrives by it bears a sum over the whole packet (CHECKSUM_COMPLETE), which every rewrite must bring up to date.
pub fn add_verified_tunnel(host: &StandardHost) {
    for (namespace, own, peer, last) in [
        (&host.host, HOST, CLIENT, 1),
        (&host.client, CLIENT, HOST, 2),
    ] {
        let vxlan = Vxlan {
            name: "vx0",
            vni: 7,
            local: own.into(),
            remote: peer.into(),
            port: 4789,
            udp_checksum: true,
        };
        namespace.add_vxlan(&vxlan).expect("VXLAN");
        namespace.set_tx_offload("vx0", false).expect("offload");
        for address in [format!("100.64.0.{last}/24"), format!("fd77::{last}/64")] {
            namespace
                .add_address("vx0", net(&address))
                .expect("address");
        }
        namespace.set_up("vx0").expect("up");
    }
    host.host.wait_ready("vx0").expect("ready");
    host.client.wait_ready("vx0").expect("ready");
}

/// A port of an address.
pub fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// This server answers and saw this client.
pub fn by(server: &str, peer: impl Into<IpAddr>) -> Want {
    Want::Answer(server.to_owned(), peer.into())
}

/// A configuration file, in pieces that a test may change.
#[derive(Clone, Debug, Default)]
pub struct Toml {
    host: BTreeMap<String, String>,
    networks: BTreeMap<String, BTreeMap<String, String>>,
    publishes: Vec<(u16, String)>,
    more: String,
}

impl Toml {
    /// What [`StandardHost::netd_toml`] has.
    pub fn standard(host: &StandardHost) -> Self {
        let text = host.netd_toml("replace", "/sys/fs/bpf/netd");
        let document: toml::Table = text.parse().expect("TOML");
        let mut own = Self::default();
        let array = |key: &str| document[key].as_array().expect("an array").clone();
        for network in array("network") {
            let keys = network.as_table().expect("a table").iter();
            let keys: BTreeMap<_, _> = keys.map(|(k, v)| (k.clone(), v.to_string())).collect();
            own.networks
                .insert(network["name"].as_str().expect("a name").to_owned(), keys);
        }
        for publish in array("publish") {
            let port = publish["host_ports"].as_integer().expect("a port");
            let keys = publish.as_table().expect("a table").to_string();
            own.publishes.push((port as u16, keys));
        }
        own
    }

    /// Sets a key of `[host]`; the value is TOML.
    pub fn host(mut self, key: &str, value: &str) -> Self {
        self.host.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets a key of a network; the value is TOML.
    pub fn network(mut self, network: &str, key: &str, value: &str) -> Self {
        let keys = self
            .networks
            .get_mut(network)
            .expect("a network of the standard host");
        keys.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Takes a key of a network away.
    pub fn without(mut self, network: &str, key: &str) -> Self {
        self.networks
            .get_mut(network)
            .expect("a network of the standard host")
            .remove(key);
        self
    }

    /// Adds a publish: network, container, protocol, TOML of `host`, host port, container port, and more keys.
    pub fn publish(
        mut self,
        network: &str,
        container: IpAddr,
        protocol: &str,
        host: &str,
        ports: (&str, &str),
        more: &str,
    ) -> Self {
        let (outer, inner) = ports;
        let first = outer
            .split('-')
            .next()
            .and_then(|port| port.parse().ok())
            .expect("a port");
        self.publishes.push((
            first,
            format!(
                "network = {network:?}\ncontainer = \"{container}\"\nprotocol = {protocol:?}\nhost = {host}\n\
                 host_ports = {outer:?}\ncontainer_ports = {inner:?}\n{more}"
            ),
        ));
        self
    }

    /// Takes away what is published at this port.
    pub fn unpublish(mut self, port: u16) -> Self {
        self.publishes.retain(|(own, _)| *own != port);
        self
    }

    /// Appends text.
    pub fn more(mut self, text: &str) -> Self {
        self.more.push_str(text);
        self
    }
}

impl fmt::Display for Toml {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "version = 1\n[host]")?;
        for (key, value) in &self.host {
            writeln!(f, "{key} = {value}")?;
        }
        for keys in self.networks.values() {
            writeln!(f, "[[network]]")?;
            for (key, value) in keys {
                writeln!(f, "{key} = {value}")?;
            }
        }
        for (_, publish) in &self.publishes {
            writeln!(f, "[[publish]]\n{publish}")?;
        }
        writeln!(f, "{}", self.more)
    }
}
