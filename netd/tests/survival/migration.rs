//! Another ABI: flows of the previous one are carried over, and what cannot be is said before anything is done.
//!
//! No binary of the previous version is kept. So a netd of this version is brought back to what the previous one would
//! have left: maps of its shape with the same flows, its links pinned where it pinned them. The programs in the links
//! go on with this version's maps, which have no names any more. A real binary of the previous version can be named by
//! the variable NETD_V1.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, MapData};
use aya::programs::links::{FdLink, PinnedLink};
use netd::dataplane::Attachment;
use netd::lab::{
    CLIENT, Connection, DATAGRAM, Daemon, HOST, ProbeOptions, StandardHost, StandardHostOptions,
    WEB, ip,
};
use netd::state::batch::for_each;
use netd_common::abi;
use netd_common::wire::Wire;
use nix::sys::signal::Signal;

use crate::kernel_nat::{Udp, json};
use crate::programs::{need_root, netd};
use crate::world::{LONG, at, config};

/// Real connections of one kind and direction.
const CONNECTIONS: usize = 10;

struct World {
    daemon: Daemon,
    host: StandardHost,
    tcp: Vec<Connection>,
    udp: Vec<(Udp, std::net::SocketAddr)>,
}

impl World {
    /// A host with connections in and out of both families, which this program carries.
    fn new(program: &Path, arguments: &[&str]) -> Self {
        let host = StandardHost::build(StandardHostOptions {
            networks: &["def", "n2"],
            ..StandardHostOptions::default()
        })
        .expect("the standard host");
        let mut daemon = Daemon::prepare(program, &host.host, &config(&host, "")).expect("a file");
        daemon.run(arguments).unwrap_or_else(|e| panic!("{e}"));
        let mut world = Self {
            daemon,
            host,
            tcp: Vec::new(),
            udp: Vec::new(),
        };
        let options = ProbeOptions::default().timeout(LONG);
        let (client, c0, n2a) = ("client", "c0", "n2a");
        for (from, to) in [
            (client, at(HOST, 8081)),
            (client, at(ip("fd99::1"), 8085)),
            (c0, at(CLIENT, WEB)),
            (n2a, at(ip("fd99::2"), WEB)),
        ] {
            for _ in 0..CONNECTIONS {
                let opened = Connection::open(world.host.namespace(from), to, &options);
                world
                    .tcp
                    .push(opened.unwrap_or_else(|e| panic!("{from} to {to}: {e}")));
            }
        }
        for (from, to) in [
            (client, at(HOST, 8084)),
            (c0, at(CLIENT, DATAGRAM)),
            (n2a, at(ip("fd99::2"), DATAGRAM)),
        ] {
            for _ in 0..CONNECTIONS {
                let socket = Udp::open(world.host.namespace(from), to);
                let peer = socket.ask().expect("an answer").peer;
                world.udp.push((socket, peer));
            }
        }
        world.alive("at first");
        world
    }

    /// Every connection answers, and its far end sees what it saw.
    fn alive(&mut self, when: &str) {
        for (n, connection) in self.tcp.iter_mut().enumerate() {
            let outcome = connection.exchange(100, LONG);
            assert!(
                outcome.answered(),
                "{when}: TCP {n}: {outcome}\n{}",
                self.daemon.log()
            );
        }
        for (n, (socket, peer)) in self.udp.iter().enumerate() {
            let report = socket
                .ask()
                .unwrap_or_else(|e| panic!("{when}: UDP {n}: {e}"));
            assert_eq!(report.peer, *peer, "{when}: UDP {n}");
        }
    }

    fn total(&self) -> u64 {
        json(&self.daemon, &["flows"])["total"]
            .as_u64()
            .expect("a number")
    }

    fn pins(&self, version: u32) -> PathBuf {
        self.daemon.pin_dir().join(format!("v{version}"))
    }

    /// Id and program of every link to an interface, by the name of its pin: ABI 1 had none to a cgroup.
    fn links(&self, version: u32) -> BTreeMap<String, (u32, u32)> {
        let pins = fs::read_dir(self.pins(version).join("links")).expect("links");
        pins.filter_map(|pin| {
            let path = pin.expect("a pin").path();
            let name = path.file_name()?.to_string_lossy().into_owned();
            if Attachment::from_pin_name(&name)?.hook.is_cgroup() {
                return None;
            }
            let info = FdLink::from(PinnedLink::from_pin(&path).expect("a link")).info();
            let info = info.expect("its information");
            Some((name, (info.id(), info.program_id())))
        })
        .collect()
    }

    /// Leaves what the previous version would have left.
    fn bring_back(&mut self) {
        self.daemon.stop(Signal::SIGKILL).expect("killed");
        let (now, old) = (self.pins(abi::VERSION), self.pins(1));
        for directory in ["maps", "links"] {
            fs::create_dir_all(old.join(directory)).expect("a directory on bpffs");
        }
        let maps = (now.join("maps"), old.join("maps"));
        for name in ["FLOWS_V4", "EMBRYOS_V4"] {
            bring_back_flows::<16, 88>(&maps, name);
        }
        for name in ["FLOWS_V6", "EMBRYOS_V6"] {
            bring_back_flows::<40, 112>(&maps, name);
        }
        let mut config = [0; 32];
        walk::<u32, [u8; size_of::<abi::Config>()]>(&maps.0.join("CONFIG"), |_, value| {
            // epoch, flags, source ports, seed, synced_at: as they are now.
            config[..20].copy_from_slice(&value[..20]);
        });
        let mut map = Array::<_, [u8; 32]>::create(1, 0).expect("a map");
        map.set(0, config, 0).expect("its element");
        map.pin(maps.1.join("CONFIG")).expect("a pin");
        for name in self.links(abi::VERSION).into_keys() {
            let (from, to) = (now.join("links").join(&name), old.join("links").join(&name));
            fs::rename(from, to).expect("on one file system");
        }
        fs::remove_dir_all(&now).expect("the pins of this version");
    }
}

/// A flow table as ABI 1 had it: four reserved bytes where the flow's beginning is now, no flag that says who opened
/// it. ABI 1 had LRU maps for embryos; only keys and values matter.
fn bring_back_flows<const KEY: usize, const VALUE: usize>(maps: &(PathBuf, PathBuf), name: &str) {
    let mut map = HashMap::<_, [u8; KEY], [u8; VALUE]>::create(4096, 0).expect("a map");
    walk::<[u8; KEY], [u8; VALUE]>(&maps.0.join(name), |key, mut value| {
        value[VALUE - 4..].fill(0);
        // Two counters of 8 bytes, seven numbers of 4, then the flags.
        let flags = u16::from_ne_bytes([value[44], value[45]]) & !abi::flow_flag::OUTGOING;
        value[44..46].copy_from_slice(&flags.to_ne_bytes());
        map.insert(key, value, 0).expect("an entry");
    });
    map.pin(maps.1.join(name)).expect("a pin");
}

fn walk<K: Wire, V: Wire>(pin: &Path, visit: impl FnMut(K, V)) {
    let map = MapData::from_pin(pin).unwrap_or_else(|e| panic!("{}: {e}", pin.display()));
    for_each(&map, visit).unwrap_or_else(|e| panic!("{}: {e}", pin.display()));
}

#[test]
fn flows_of_the_previous_abi_live_on() {
    need_root!();
    let mut world = World::new(netd(), &[]);
    let (flows, links) = (world.total(), world.links(abi::VERSION));
    assert!(flows >= 7 * CONNECTIONS as u64, "{flows}");
    world.bring_back();
    world.alive("while nothing but the links of the previous version is there");
    world.daemon.run(&[]).unwrap_or_else(|e| panic!("{e}"));
    world.carried_over(flows, &links);
}

/// Filters at a clsact qdisc have no pins that could move: each is replaced where it is.
#[test]
fn flows_of_the_previous_abi_live_on_without_tcx() {
    need_root!();
    let mut world = World::new(netd(), &["--no-tcx"]);
    let flows = world.total();
    world.bring_back();
    world.alive("while nothing but the filters of the previous version is there");
    world
        .daemon
        .run(&["--no-tcx"])
        .unwrap_or_else(|e| panic!("{e}"));
    world.alive("after the upgrade");
    assert_eq!(world.total(), flows, "no flow began anew");
    assert!(!world.pins(1).exists());
    world.daemon.unload().unwrap_or_else(|e| panic!("{e}"));
}

/// With a real binary of ABI 1, as it runs and after it was killed.
#[test]
fn a_real_daemon_of_the_previous_abi_is_replaced() {
    need_root!();
    let Some(previous) = std::env::var_os("NETD_V1").map(PathBuf::from) else {
        println!("skipped: NETD_V1 names no binary of ABI 1");
        return;
    };
    for kill in [false, true] {
        let mut world = World::new(&previous, &[]);
        let links = world.links(1);
        if kill {
            world.daemon.stop(Signal::SIGKILL).expect("killed");
        }
        world.daemon.set_program(netd());
        world
            .daemon
            .run(&["--takeover"])
            .unwrap_or_else(|e| panic!("{e}"));
        world.carried_over(7 * CONNECTIONS as u64, &links);
    }
}

impl World {
    /// What must be so after this version has started on the previous one.
    fn carried_over(mut self, flows: u64, before: &BTreeMap<String, (u32, u32)>) {
        // It says that it is ready a moment before.
        let until = Instant::now() + LONG;
        while self.pins(1).exists() {
            let log = self.daemon.log();
            assert!(
                Instant::now() < until,
                "the previous version's pins stay\n{log}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        let after = self.links(abi::VERSION);
        assert_eq!(
            before.keys().collect::<Vec<_>>(),
            after.keys().collect::<Vec<_>>()
        );
        for (name, (link, program)) in before {
            assert_eq!(after[name].0, *link, "{name} is the same link");
            assert_ne!(after[name].1, *program, "{name} has another program");
        }
        assert_eq!(self.total(), flows, "{}", self.daemon.log());
        self.alive("after the upgrade");
        assert_eq!(self.total(), flows, "no flow began anew");
        let flows = json(&self.daemon, &["flows"]);
        let dropped = json(&self.daemon, &["drops"]);
        assert_eq!(
            dropped["drops"].as_array().map(Vec::len),
            Some(0),
            "{dropped:#}"
        );
        let states: BTreeMap<_, usize> = flows["flows"].as_array().expect("rows").iter().fold(
            BTreeMap::new(),
            |mut states, flow| {
                *states.entry(flow["state"].to_string()).or_default() += 1;
                states
            },
        );
        assert_eq!(
            states.get("\"established\""),
            Some(&(4 * CONNECTIONS)),
            "{states:?}"
        );
        // Every confirmed flow has a seat, and its container's share counts it.
        assert_eq!(self.seats(), self.total() as usize);
        // And it is a daemon like any other.
        self.daemon.stop(Signal::SIGKILL).expect("killed");
        self.daemon.run(&[]).unwrap_or_else(|e| panic!("{e}"));
        self.alive("after another restart");
        self.daemon.unload().unwrap_or_else(|e| panic!("{e}"));
    }

    fn seats(&self) -> usize {
        let maps = self.pins(abi::VERSION).join("maps");
        let mut seats = 0;
        walk::<u32, abi::Seat<abi::V4Addr>>(&maps.join("FLOW_RING_V4"), |_, seat| {
            seats += usize::from(seat.generation != 0);
        });
        walk::<u32, abi::Seat<abi::V6Addr>>(&maps.join("FLOW_RING_V6"), |_, seat| {
            seats += usize::from(seat.generation != 0);
        });
        seats
    }
}

/// Said before anything is done: a newer version, one that is too old, one that is not what it says.
#[test]
fn what_cannot_be_carried_over_is_refused() {
    need_root!();
    let mut world = World::new(netd(), &[]);
    let pin_dir = world.daemon.pin_dir().to_owned();
    let before = world.links(abi::VERSION);
    for (name, says) in [
        (format!("v{}", abi::VERSION + 1), "a newer netd"),
        ("v0".to_owned(), "cannot carry over"),
        ("v1".to_owned(), "CONFIG"),
    ] {
        let maps = pin_dir.join(&name).join("maps");
        fs::create_dir_all(&maps).expect("a directory on bpffs");
        let map = Array::<_, u64>::create(1, 0).expect("a map");
        map.pin(maps.join("CONFIG")).expect("a pin");
        // The daemon that runs is not even asked to leave.
        let answer = world.daemon.verb(&["run", "--takeover"]).expect("netd");
        assert_eq!(answer.code, 3, "{name}: {answer:?}");
        assert!(answer.stderr.contains(says), "{name}: {}", answer.stderr);
        assert!(
            answer.stderr.contains("othing was changed"),
            "{}",
            answer.stderr
        );
        assert_eq!(json(&world.daemon, &["status"])["daemon"]["running"], true);
        assert_eq!(world.links(abi::VERSION), before);
        fs::remove_dir_all(pin_dir.join(&name)).expect("removed");
    }
    world.alive("after three refusals");
    world.daemon.unload().unwrap_or_else(|e| panic!("{e}"));
}
