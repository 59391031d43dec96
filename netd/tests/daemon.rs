//! The daemon as a process, on hosts that are network namespaces: what is in the maps and at the
//! hooks while it runs, after it was killed, after it was started again, and after `netd unload`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use aya::programs::links::{FdLink, PinnedLink};
use netd::config::Limits;
use netd::dataplane::{Actual, AttachMode, Attached, Hook, Pinned, Tables, sizes};
use netd::host::{HostFacts, HostReader};
use netd::lab::{Answered, Daemon, Namespace, VethEnd, add_veth, net};
use netd::run_state::{RunFiles, RunState};
use nix::sys::signal::Signal::{self, SIGKILL, SIGTERM};

/// Long enough for a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(20);

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// A host with one bridge and one container, and a daemon with its file; all gone when dropped.
struct Host {
    daemon: Daemon,
    host: Namespace,
    container: Namespace,
}

const WEB: &str = r#"
version = 1
[[network]]
name = "web"
bridge = "br-web"
subnets = ["10.201.1.0/24", "fd00:201:1::/64"]
[[publish]]
network = "web"
container = "10.201.1.2"
host_ports = "8000-8099"
container_ports = "8000-8099"
"#;

impl Host {
    fn new() -> Self {
        let host = Namespace::create("host").unwrap();
        let container = Namespace::create("container").unwrap();
        host.set_up("lo").unwrap();
        host.add_bridge("br-web", None).unwrap();
        host.add_address("br-web", net("10.201.1.1/24")).unwrap();
        host.set_up("br-web").unwrap();
        let daemon = Daemon::prepare(Path::new(env!("CARGO_BIN_EXE_netd")), &host, WEB).unwrap();
        let host = Self {
            daemon,
            host,
            container,
        };
        host.plug("veth1", "eth0", "10.201.1.2/24");
        host
    }

    fn plug(&self, outer: &str, inner: &str, address: &str) {
        add_veth(
            &VethEnd::new(&self.host, outer),
            &VethEnd::new(&self.container, inner),
        )
        .unwrap();
        self.host.attach(outer, "br-web").unwrap();
        self.host.set_up(outer).unwrap();
        self.container.add_address(inner, net(address)).unwrap();
        self.container.set_up(inner).unwrap();
    }

    fn write(&self, text: &str) {
        self.daemon.write_config(text).unwrap();
    }

    fn files(&self) -> RunFiles {
        self.daemon.files()
    }

    fn pin_dir(&self) -> &Path {
        self.daemon.pin_dir()
    }

    /// Runs a verb to its end.
    fn verb(&self, arguments: &[&str]) -> Answered {
        self.daemon.verb(arguments).unwrap()
    }

    fn exit(&self, arguments: &[&str]) -> i32 {
        let answer = self.verb(arguments);
        print!("{}", answer.stdout);
        eprint!("{}", answer.stderr);
        answer.code
    }

    /// Starts the daemon and waits until it is in agreement. Returns its pid.
    fn start(&mut self, arguments: &[&str]) -> u32 {
        self.daemon.launch(arguments).unwrap();
        self.daemon.pid().unwrap()
    }

    fn wait(&self, what: &str, mut until: impl FnMut(&Self) -> bool) {
        let began = Instant::now();
        while !until(self) {
            assert!(
                began.elapsed() < PATIENCE,
                "not in time: {what}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until nothing is left to do: interfaces get IPv6 addresses a while after they came up.
    fn settle(&self) {
        self.daemon.settle().unwrap();
    }

    fn log(&self) -> String {
        self.daemon.log()
    }

    fn facts(&self) -> HostFacts {
        self.host.run(|| {
            let managed = |link: &netd::host::Link| link.name == "br-web";
            HostReader::open().unwrap().read(managed).unwrap()
        })
    }

    /// What is in force, read from the pins.
    fn actual(&self, attach: AttachMode) -> Option<Actual> {
        self.host.run(|| {
            let facts = HostReader::open().unwrap().read(|_| false).unwrap();
            let sizes = sizes(1 << 33, 1, &Limits::default());
            Pinned::open(self.pin_dir(), &sizes, attach, BTreeSet::new())
                .unwrap()
                .map(|pinned| pinned.read(&facts).unwrap())
        })
    }

    fn stop(&mut self, signal: Signal) -> Option<i32> {
        self.daemon.stop(signal).unwrap().unwrap().code()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "log:\n{}", self.log());
        }
    }
}

/// Programs at interfaces.
fn at_interfaces(actual: &Actual) -> usize {
    let at = actual.attachments.keys();
    at.filter(|attachment| !attachment.hook.is_cgroup()).count()
}

/// Those at interfaces, with their states.
fn hooks(actual: &Actual) -> Vec<(Hook, Attached)> {
    actual
        .attachments
        .iter()
        .filter(|(attachment, _)| !attachment.hook.is_cgroup())
        .map(|(attachment, state)| (attachment.hook, *state))
        .collect()
}

/// The rows, but for local addresses: link-local ones come some time after their interface.
fn decided(actual: &Actual) -> Tables {
    let mut tables = actual.tables.clone();
    tables.local_v6.clear();
    tables
}

#[test]
fn run_kill_start_again_unload() {
    if !is_root() {
        return;
    }
    let mut host = Host::new();
    assert_eq!(host.exit(&["plan", "--exit-code"]), 1);
    assert_eq!(host.exit(&["check", "--host"]), 0);
    assert!(!host.pin_dir().exists(), "check and plan change nothing");

    host.start(&[]);
    host.wait("the container is known", |host| {
        host.actual(AttachMode::Tcx).is_some_and(|actual| {
            actual
                .tables
                .addrs_v4
                .contains_key(&netd_common::abi::V4Addr([10, 201, 1, 2]))
        })
    });
    host.settle();
    let actual = host.actual(AttachMode::Tcx).unwrap();
    let expected = [
        Hook::BridgeIn,
        Hook::BridgeOut,
        Hook::ToEndpoint,
        Hook::FromEndpoint,
    ];
    assert_eq!(
        hooks(&actual),
        expected.map(|hook| (hook, Attached::Current))
    );
    assert_eq!(
        actual.tables.publish_v4.len(),
        3,
        "8000-8099 is three prefixes"
    );
    assert_ne!(actual.config.seed, 0);
    host.settle();
    assert_eq!(
        host.host.sysctl("net/ipv4/conf/br-web/forwarding").unwrap(),
        "1"
    );
    assert_eq!(host.host.sysctl("net/ipv4/ip_forward").unwrap(), "0");

    let second = host.verb(&["run"]);
    assert_eq!(second.code, 3);
    let pid = host.daemon.pid().unwrap().to_string();
    assert!(second.stderr.contains(&pid));

    host.stop(SIGKILL);
    let after = host.actual(AttachMode::Tcx).unwrap();
    assert_eq!(
        after.attachments, actual.attachments,
        "the data plane outlives the daemon"
    );
    assert_eq!(
        RunState::load(&host.files().state).unwrap().stopped_at,
        None
    );
    assert!(!RunState::is_alive(&host.files()));
    assert_eq!(host.exit(&["reload"]), 3);

    host.start(&[]);
    host.settle();
    let again = host.actual(AttachMode::Tcx).unwrap();
    assert_eq!(decided(&again), decided(&actual));
    assert_eq!(
        again.config.seed, actual.config.seed,
        "source ports stay predictable to us alone"
    );
    assert_ne!(
        again.config.epoch, actual.config.epoch,
        "routes are looked up again"
    );

    assert_eq!(host.stop(SIGTERM), Some(0));
    assert!(
        RunState::load(&host.files().state)
            .unwrap()
            .stopped_at
            .is_some()
    );

    assert_eq!(host.exit(&["unload"]), 1, "containers would be open");
    assert!(host.pin_dir().exists());
    assert_eq!(host.exit(&["unload", "--force"]), 0);
    assert!(!host.pin_dir().exists());
    assert_eq!(
        host.host.sysctl("net/ipv4/conf/br-web/forwarding").unwrap(),
        "0"
    );
    let files = host.files();
    for path in [&files.lock, &files.socket, &files.state] {
        assert!(!path.exists(), "{}", path.display());
    }
    assert_eq!(host.exit(&["unload"]), 0, "nothing is there any more");
}

#[test]
fn containers_come_and_go() {
    if !is_root() {
        return;
    }
    let mut host = Host::new();
    host.start(&[]);
    host.plug("veth2", "eth1", "10.201.1.3/24");
    let known = |host: &Host, address: [u8; 4]| {
        let actual = host.actual(AttachMode::Tcx).unwrap();
        actual
            .tables
            .addrs_v4
            .contains_key(&netd_common::abi::V4Addr(address))
    };
    host.wait("the second container is known", |h| {
        known(h, [10, 201, 1, 3])
    });
    host.container
        .add_address("eth1", net("10.201.1.4/24"))
        .unwrap();
    host.wait("its second address too", |h| known(h, [10, 201, 1, 4]));
    let pins = || {
        fs::read_dir(host.pin_dir().join("v2/links"))
            .unwrap()
            .filter(|pin| {
                let name = pin.as_ref().unwrap().file_name();
                // Links to the root control group.
                !name.to_string_lossy().ends_with("-0")
            })
            .count()
    };
    assert_eq!(pins(), 2 + 2 * 2);
    let epoch = host.actual(AttachMode::Tcx).unwrap().config.epoch;
    host.host.delete_device("veth2").unwrap();
    host.wait("it is forgotten", |h| !known(h, [10, 201, 1, 3]));
    host.wait("its pins are gone", |_| pins() == 2 + 2);
    assert_ne!(host.actual(AttachMode::Tcx).unwrap().config.epoch, epoch);
    host.settle();
}

#[test]
fn a_device_that_moves_away_loses_its_program() {
    if !is_root() {
        return;
    }
    let mut host = Host::new();
    host.host.add_bridge("up0", None).unwrap();
    let elsewhere = Namespace::create("elsewhere").unwrap();
    add_veth(
        &VethEnd::new(&host.host, "up1"),
        &VethEnd::new(&elsewhere, "far"),
    )
    .unwrap();
    let ifindex = host.host.ifindex("up1").unwrap();
    host.start(&[]);
    let pin = host
        .pin_dir()
        .join(format!("v2/links/from_uplink-{ifindex}"));
    host.wait("the uplink has its program", |_| pin.exists());
    host.host.move_device("up1", &elsewhere).unwrap();
    host.wait("the pin is gone", |_| !pin.exists());
    let links = elsewhere.run(|| netd::dataplane::sys::tcx_links(ifindex, false).unwrap());
    assert_eq!(
        links, [0u32; 0],
        "nothing of netd stays in another namespace"
    );
}

#[test]
fn a_bad_file_is_refused_and_the_last_good_one_is_used_at_start() {
    if !is_root() {
        return;
    }
    let mut host = Host::new();
    host.start(&[]);
    host.settle();
    let before = decided(&host.actual(AttachMode::Tcx).unwrap());
    host.write(&WEB.replace("host_ports", "host_prots"));
    host.wait("the alarm is raised", |host| {
        RunState::load(&host.files().state).is_some_and(|state| state.alarm.is_some())
    });
    let refused = host.verb(&["reload"]);
    assert_eq!(refused.code, 2);
    let text = refused.stderr;
    assert!(
        text.contains("netd.toml:") && text.contains("host_prots"),
        "{text}"
    );
    assert_eq!(decided(&host.actual(AttachMode::Tcx).unwrap()), before);

    host.stop(SIGTERM);
    host.start(&[]);
    let state = RunState::load(&host.files().state).unwrap();
    assert!(state.last_good && state.alarm.is_some());
    assert_eq!(decided(&host.actual(AttachMode::Tcx).unwrap()), before);

    // A good file is taken without being asked.
    host.write(&WEB.replace("8000-8099", "9000-9099"));
    host.wait("the new ports are published", |host| {
        let tables = host.actual(AttachMode::Tcx).unwrap().tables;
        tables.publish_v4.keys().all(|key| key.data.port[0] >= 0x23)
    });
    host.wait("the alarm is gone", |host| {
        RunState::load(&host.files().state)
            .is_some_and(|state| state.alarm.is_none() && !state.last_good)
    });
    assert_eq!(host.exit(&["reload"]), 0);
    host.settle();
}

#[test]
fn taking_over_detaches_nothing() {
    if !is_root() {
        return;
    }
    let mut host = Host::new();
    host.start(&[]);
    let ids = |host: &Host| -> BTreeSet<u32> {
        let actual = host.actual(AttachMode::Tcx).unwrap();
        let links = actual.attachments.keys().flat_map(|attachment| {
            host.host.run(|| {
                netd::dataplane::sys::tcx_links(attachment.ifindex, attachment.hook.is_egress())
                    .unwrap()
            })
        });
        let sockets = actual.attachments.keys().filter(|at| at.hook.is_cgroup());
        let sockets = sockets.map(|attachment| {
            let pin = host.pin_dir().join("v2/links").join(attachment.pin_name());
            let link = FdLink::from(PinnedLink::from_pin(pin).unwrap());
            link.info().unwrap().id()
        });
        links.chain(sockets).collect()
    };
    let before = ids(&host);
    let second = host.start(&["--takeover"]);
    assert_eq!(ids(&host), before, "the same links, with other programs");
    assert_eq!(netd::run_state::running_pid(&host.files()), Some(second));
}

#[test]
fn without_tcx_filters_do_it() {
    if !is_root() {
        return;
    }
    let mut host = Host::new();
    host.start(&["--no-tcx"]);
    let clsact = |host: &Host| host.actual(AttachMode::Clsact).unwrap();
    host.wait("the container is known", |h| {
        !clsact(h).tables.addrs_v4.is_empty()
    });
    assert_eq!(at_interfaces(&clsact(&host)), 4);
    assert_eq!(at_interfaces(&host.actual(AttachMode::Tcx).unwrap()), 0);
    host.settle();
    host.stop(SIGKILL);
    assert_eq!(at_interfaces(&clsact(&host)), 4, "they outlive the daemon");
    host.start(&["--no-tcx"]);
    assert_eq!(at_interfaces(&clsact(&host)), 4, "replaced in place");
    let qdiscs = RunState::load(&host.files().state).unwrap().qdiscs;
    assert_eq!(qdiscs.len(), 2, "br-web and veth1");

    let unloaded = |host: &Host| {
        assert_eq!(host.exit(&["unload", "--force"]), 0);
        let show = |dev| tc(host, &format!("qdisc show dev {dev}"));
        (
            show("veth1").contains("clsact"),
            show("br-web").contains("clsact"),
        )
    };
    assert_eq!(unloaded(&host), (false, false), "the qdiscs were netd's");

    // One that was there before stays.
    tc(&host, "qdisc add dev br-web clsact");
    host.start(&["--no-tcx"]);
    assert_eq!(at_interfaces(&clsact(&host)), 4);
    assert_eq!(unloaded(&host), (false, true));
    assert_eq!(tc(&host, "filter show dev br-web ingress"), "");
}

fn tc(host: &Host, arguments: &str) -> String {
    let mut command = host.host.command("tc");
    let output = command
        .args(arguments.split(' '))
        .output()
        .expect("tc of iproute2");
    assert!(output.status.success(), "tc {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_pinned_map_of_another_shape_is_refused() {
    if !is_root() {
        return;
    }
    let mut host = Host::new();
    host.start(&[]);
    host.stop(SIGTERM);
    let maps = host.pin_dir().join("v2/maps");
    let uplinks = maps.join("UPLINKS");
    fs::remove_file(&uplinks).unwrap();
    fs::rename(maps.join("ADDRS_V4"), &uplinks).unwrap();
    let run = host.verb(&["run"]);
    assert_eq!(run.code, 3);
    let text = run.stderr;
    assert!(
        text.contains("UPLINKS") && text.contains("netd unload --force"),
        "{text}"
    );
    assert!(text.contains("value size 8 instead of 32"), "{text}");
    assert_eq!(host.exit(&["plan"]), 3);
    assert_eq!(
        host.exit(&["unload"]),
        1,
        "nobody can tell what is in force"
    );
    assert_eq!(host.exit(&["unload", "--force"]), 0);
    assert!(!host.pin_dir().exists());
    host.start(&[]);
}

#[test]
fn ten_thousand_publishes_from_a_cold_start() {
    if !is_root() {
        return;
    }
    let mut host = Host::new();
    let mut text = WEB.replace("8000-8099", "8000");
    for port in 10_000..20_000 {
        text.push_str(&format!(
            "[[publish]]\nnetwork = \"web\"\ncontainer = \"10.201.1.2\"\nhost_ports = {port}\ncontainer_ports = 80\n"
        ));
    }
    host.write(&text);
    let began = Instant::now();
    host.start(&[]);
    let took = began.elapsed();
    let actual = host.actual(AttachMode::Tcx).unwrap();
    assert_eq!(actual.tables.publish_v4.len(), 10_001);
    eprintln!("10,001 publishes in {took:?}; {}", host.log());
    // Bounded generously: debug builds on shared machines. A quadratic step would take minutes.
    assert!(took < Duration::from_secs(10), "{took:?}");
    host.settle();
}

#[test]
fn ids_stay_when_networks_go() {
    if !is_root() {
        return;
    }
    let mut host = Host::new();
    host.host.add_bridge("br-db", None).unwrap();
    let second = "[[network]]\nname = \"db\"\nbridge = \"br-db\"\nsubnets = [\"10.201.2.0/24\"]\n";
    host.write(&format!("{WEB}{second}"));
    host.start(&[]);
    let db = host.facts().link_named("br-db").unwrap().ifindex;
    let id = |host: &Host| {
        let tables = host.actual(AttachMode::Tcx).unwrap().tables;
        tables
            .networks
            .iter()
            .find(|(_, row)| row.bridge == db)
            .map(|(id, _)| *id)
    };
    let before = id(&host).unwrap();
    host.write(&format!("version = 1\n{second}"));
    assert_eq!(host.exit(&["reload"]), 0);
    assert_eq!(id(&host), Some(before));
    // Even when the state file is lost: the maps tell.
    host.stop(SIGTERM);
    fs::remove_file(&host.files().state).unwrap();
    host.start(&[]);
    assert_eq!(id(&host), Some(before));
    assert!(host.pin_dir().exists());
}

/// The flow table, as bytes: a key of 16 and a value of 88.
fn flow_table(
    host: &Host,
    name: &str,
) -> aya::maps::HashMap<aya::maps::MapData, [u8; 16], [u8; 88]> {
    let data = aya::maps::MapData::from_pin(host.pin_dir().join("v2/maps").join(name)).unwrap();
    let map = aya::maps::Map::from_map_data(data).unwrap();
    map.try_into().unwrap()
}

/// Both halves of a connection from a client's port to 198.18.0.1:8080, which leads to
/// 10.201.1.2:`inside`.
fn connection(client_port: u16, inside: u16, last_seen: u32) -> [([u8; 16], [u8; 88]); 2] {
    use netd_common::abi::{Flow, Tuple, V4Addr, flow_flag, flow_kind};
    use netd_common::conntrack::State;

    let (client, address) = (V4Addr([198, 18, 0, 2]), V4Addr([198, 18, 0, 1]));
    let container = V4Addr([10, 201, 1, 2]);
    let tuple = |src, sport: u16, dst, dport: u16| Tuple {
        src,
        dst,
        sport: sport.to_be_bytes(),
        dport: dport.to_be_bytes(),
        proto: 6,
        reserved: [0; 3],
    };
    let flow = |to: Tuple<V4Addr>, flags| Flow {
        src: to.src,
        dst: to.dst,
        sport: to.sport,
        dport: to.dport,
        flags,
        last_seen,
        generation: u32::from(client_port),
        state: State::Established as u8,
        kind: flow_kind::PUBLISH,
        ..Flow::default()
    };
    let original = tuple(client, client_port, address, 8080);
    let inner = tuple(client, client_port, container, inside);
    let entry = |key: Tuple<V4Addr>, value: Flow<V4Addr>| {
        // SAFETY: both are plain data without padding, of exactly these sizes.
        unsafe {
            (
                std::mem::transmute::<Tuple<V4Addr>, [u8; 16]>(key),
                std::mem::transmute::<Flow<V4Addr>, [u8; 88]>(value),
            )
        }
    };
    [
        entry(original, flow(inner, flow_flag::REWRITE_DST)),
        entry(
            inner.reversed(),
            flow(
                original.reversed(),
                flow_flag::REWRITE_SRC | flow_flag::REPLY,
            ),
        ),
    ]
}

#[test]
fn flows_end_when_idle_and_with_their_publish() {
    if !is_root() {
        return;
    }
    let mut host = Host::new();
    let publish = |ports: &str| WEB.replace("\"8000-8099\"", ports);
    host.write(&publish("8080"));
    host.start(&[]);
    let now = (netd::host::monotonic_nanoseconds() / 1_000_000_000) as u32;
    let mut table = flow_table(&host, "FLOWS_V4");
    let alive = connection(40000, 8080, now);
    // A boot may be younger than a connection's lifetime (5 days): an unknown state has none.
    let mut idle = connection(40001, 8080, 0);
    for (_, value) in &mut idle {
        let state = std::mem::offset_of!(netd_common::abi::Flow<netd_common::abi::V4Addr>, state);
        value[state] = 0;
    }
    for (key, value) in alive.iter().chain(&idle) {
        table.insert(key, value, 0).unwrap();
    }
    let there = |entries: &[([u8; 16], [u8; 88])]| {
        let table = flow_table(&host, "FLOWS_V4");
        entries
            .iter()
            .filter(|(key, _)| table.get(key, 0).is_ok())
            .count()
    };
    host.wait("the idle connection is collected", |_| there(&idle) == 0);
    assert_eq!(there(&alive), 2);

    // Another port is published: nothing of this one changes.
    host.write(&format!("{}{}", publish("8080"), "[[publish]]\nnetwork = \"web\"\ncontainer = \"10.201.1.2\"\nhost_ports = 8081\ncontainer_ports = 81\n"));
    assert_eq!(host.exit(&["reload"]), 0);
    assert_eq!(there(&alive), 2);
    host.write(&publish("8081"));
    assert_eq!(host.exit(&["reload"]), 0);
    assert_eq!(
        there(&alive),
        0,
        "the mapping is gone, and its connections with it"
    );
}

#[test]
fn ways_of_attaching_do_not_pile_up() {
    if !is_root() {
        return;
    }
    let mut host = Host::new();
    let attached = |host: &Host| {
        [AttachMode::Tcx, AttachMode::Clsact].map(|mode| at_interfaces(&host.actual(mode).unwrap()))
    };
    // The hooks of the host's sockets are links in both ways.
    let sockets = |host: &Host| {
        [AttachMode::Tcx, AttachMode::Clsact].map(|mode| {
            let actual = host.actual(mode).unwrap();
            actual.attachments.len() - at_interfaces(&actual)
        })
    };
    let hooks = if netd::host::cgroup2_root().is_some() {
        8
    } else {
        println!("no cgroup2 is mounted here");
        0
    };
    host.start(&["--no-tcx"]);
    assert_eq!(attached(&host), [0, 4]);
    assert_eq!(sockets(&host), [hooks; 2]);
    host.stop(SIGTERM);
    host.start(&[]);
    host.wait("only links are left", |host| attached(host) == [4, 0]);
    assert_eq!(sockets(&host), [hooks; 2]);
    host.stop(SIGTERM);
    host.start(&["--no-tcx"]);
    host.wait("only filters are left", |host| attached(host) == [0, 4]);
    assert_eq!(sockets(&host), [hooks; 2]);
}
