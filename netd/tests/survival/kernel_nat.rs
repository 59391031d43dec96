//! Acceptance 2: flows that the kernel's NAT opened under Docker's own rules live on when netd comes, in both modes, in
//! both directions, with the translation that they have; new ones are netd's.
//!
//! Two hundred thousand UDP flows are opened by frames; some hundreds of TCP and UDP connections and echoes are real
//! sockets. The far end's view of each is compared before and after: a flow that netd took over by mistake would go on
//! answering, but from another port.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use netd::lab::{
    CLIENT, Capture, Captured, Connection, DATAGRAM, Daemon, Frame, HOST, Mac, Namespace, Outcome,
    ProbeOptions, Report, RuleSet, StandardHost, StandardHostOptions, WEB, inject, ip, net,
    tcp_probe, udp_probe,
};
use serde_json::Value;

use crate::programs::{need_root, netd};
use crate::world::at;
use socket2::{Domain, Protocol, Socket, Type};

/// Flows opened by frames: half to a published port, half masqueraded.
const FLOWS: usize = 200_000;
/// Of them, how many are asked again after netd has come, spread over all.
const SAMPLE: usize = 4_000;
/// Real TCP connections and UDP sockets, of each direction and family.
const SOCKETS: usize = 100;
const ECHOES: usize = 20;

/// First source port of the masqueraded flows: beyond netd's own ports, so that a flow that netd translates shows.
const INSIDE_PORT: u16 = 40_000;
/// Source ports of the masqueraded flows; each leads to many ports of the client.
const INSIDE_PORTS: usize = 10;
/// First of the client's ports in injected flows.
const OUTSIDE_PORT: u16 = 1_100;
/// The client's ports per address in published flows.
const PORTS_PER_ADDRESS: usize = 50_000;
/// Last part of the client's address in masqueraded flows; published ones have the next.
const FIRST_ADDRESS: usize = 8;
/// The published UDP port, which leads to n2b.
const PUBLISHED: u16 = 8084;

const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn the_kernels_flows_live_on_in_accelerate_mode() {
    live_on("accelerate");
}

#[test]
fn the_kernels_flows_live_on_in_replace_mode() {
    live_on("replace");
}

fn live_on(mode: &str) {
    need_root!();
    let host = build();
    let flows = fitting(&host.host);
    let mut sockets = Sockets::open(&host);
    let before = sockets.ask();
    let injected = Injected::open(&host, flows);
    let translated = injected.ask(&host);
    assert_eq!(translated.len(), injected.sample().count() * 4);

    let config = host.netd_toml(mode, "/sys/fs/bpf/overruled");
    let began = Instant::now();
    let daemon = Daemon::start(netd(), &host.host, &config).unwrap_or_else(|e| panic!("{e}"));
    println!(
        "{flows} flows; netd in {mode} mode after {:?}",
        began.elapsed()
    );
    for line in daemon
        .log()
        .lines()
        .filter(|line| line.contains("stay with it"))
    {
        println!("{line}");
    }

    let after = sockets.ask();
    let broken: Vec<_> = before
        .iter()
        .filter(|(name, seen)| after.get(*name) != Some(seen))
        .collect();
    assert!(
        broken.is_empty(),
        "{mode}: {} of {} real connections are not what they were, such as {:?}, now {:?}\n{}",
        broken.len(),
        before.len(),
        broken[0],
        after.get(broken[0].0),
        explain(&daemon)
    );
    let still = injected.ask(&host);
    let lost: Vec<_> = translated.difference(&still).collect();
    assert!(
        lost.is_empty(),
        "{mode}: {} of {} packets of injected flows did not arrive as before, such as {:?}\n{}",
        lost.len(),
        translated.len(),
        lost[0],
        explain(&daemon)
    );
    // Twice: what was counted as traffic of a flow must not end it.
    assert_eq!(sockets.ask(), after);

    let status = json(&daemon, &["status"]);
    let kernel = &status["data_plane"]["kernel_flows"];
    assert!(kernel.as_u64() >= Some(flows as u64), "{status:#}");
    assert_eq!(
        json(&daemon, &["flows"])["total"],
        0,
        "nothing is netd's yet"
    );
    new_flows_are_netds(&host, &daemon);
    assert_eq!(sockets.ask(), after);
    drop(sockets);
    daemon.unload().unwrap_or_else(|e| panic!("{e}"));
}

/// In both directions, over each protocol: `netd flows` shows them.
fn new_flows_are_netds(host: &StandardHost, daemon: &Daemon) {
    let (client, c0) = (&host.client, &host.container("c0").namespace);
    let options = ProbeOptions::default().timeout(PATIENCE);
    let outcomes = [
        tcp_probe(client, at(HOST, 8081), &options),
        udp_probe(client, at(HOST, PUBLISHED), &options),
        tcp_probe(c0, at(CLIENT, WEB), &options),
        udp_probe(c0, at(CLIENT, DATAGRAM), &options),
        netd::lab::ping(c0, CLIENT.into(), &options),
    ];
    for outcome in &outcomes {
        assert!(outcome.answered(), "{outcome}\n{}", explain(daemon));
    }
    let flows = json(daemon, &["flows"]);
    let kinds: BTreeMap<(String, String), usize> = flows["flows"]
        .as_array()
        .expect("rows")
        .iter()
        .map(|flow| (text(&flow["protocol"]), text(&flow["kind"])))
        .fold(BTreeMap::new(), |mut kinds, kind| {
            *kinds.entry(kind).or_default() += 1;
            kinds
        });
    for (protocol, kind) in [
        ("tcp", "publish"),
        ("udp", "publish"),
        ("tcp", "masquerade"),
        ("udp", "masquerade"),
        ("icmp", "masquerade"),
    ] {
        let count = kinds.get(&(protocol.to_owned(), kind.to_owned()));
        assert_eq!(count, Some(&1), "{protocol} {kind}: {flows:#}");
    }
}

/// The switch from accelerate to replace, and a daemon that dies in between: what is the kernel's stays so.
#[test]
fn a_change_of_mode_and_a_crash_break_nothing() {
    need_root!();
    let host = build();
    let mut sockets = Sockets::open(&host);
    let before = sockets.ask();
    let config = |mode| host.netd_toml(mode, "/sys/fs/bpf/overruled");
    let mut daemon =
        Daemon::start(netd(), &host.host, &config("accelerate")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(sockets.ask(), before, "in accelerate mode");
    let mut own = Sockets::open(&host);
    let own_before = own.ask();
    let flows = || {
        json(&daemon, &["flows"])["total"]
            .as_u64()
            .expect("a number")
    };
    let owned = flows();
    assert_eq!(owned, own_before.len() as u64);
    let answer = daemon.reload(&config("replace")).expect("reload");
    assert_eq!(answer.code, 0, "{answer:?}");
    assert_eq!(json(&daemon, &["status"])["data_plane"]["mode"], "replace");
    assert_eq!(
        sockets.ask(),
        before,
        "in replace mode\n{}",
        explain(&daemon)
    );
    assert_eq!(own.ask(), own_before);
    assert_eq!(flows(), owned);
    daemon
        .stop(nix::sys::signal::Signal::SIGKILL)
        .expect("killed");
    assert_eq!(sockets.ask(), before, "without a daemon");
    daemon.run(&[]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(sockets.ask(), before, "after a crash");
    assert_eq!(own.ask(), own_before);
    daemon.unload().unwrap_or_else(|e| panic!("{e}"));
}

/// A publish that is removed takes the kernel's flows with it too (replace mode), and no others.
#[test]
fn the_kernels_flows_end_with_their_publish() {
    need_root!();
    let host = build();
    let options = ProbeOptions::default().timeout(PATIENCE);
    let open = |to| Connection::open(&host.client, to, &options).expect("a connection");
    let (mut removed, mut kept) = (open(at(HOST, 8081)), open(at(HOST, 8083)));
    let config = host.netd_toml("replace", "/sys/fs/bpf/overruled");
    let daemon = Daemon::start(netd(), &host.host, &config).unwrap_or_else(|e| panic!("{e}"));
    for connection in [&mut removed, &mut kept] {
        assert!(connection.exchange(64, PATIENCE).answered());
    }
    let without = config
        .split("\n[[publish]]")
        .filter(|part| !part.contains("host_ports = 8081"))
        .collect::<Vec<_>>()
        .join("\n[[publish]]");
    assert!(without.len() < config.len());
    let answer = daemon.reload(&without).expect("reload");
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(
        kept.exchange(64, PATIENCE).answered(),
        "{}",
        explain(&daemon)
    );
    let outcome = removed.exchange(64, Duration::from_secs(2));
    assert!(!outcome.answered(), "{outcome}");
    assert!(kept.exchange(64, PATIENCE).answered());
    daemon.unload().unwrap_or_else(|e| panic!("{e}"));
}

/// Idle flows of the kernel's are forgotten, and then the programs do not ask for them any more.
#[test]
fn the_kernels_flows_are_forgotten_when_they_are_over() {
    need_root!();
    let host = build();
    for name in ["udp_timeout", "udp_timeout_stream"] {
        let name = format!("net/netfilter/nf_conntrack_{name}");
        host.host.set_sysctl(&name, 12).expect("its own setting");
    }
    let n2b = &host.container("n2b").namespace;
    let idle = Udp::open(n2b, at(CLIENT, DATAGRAM));
    let busy = Udp::open(n2b, at(CLIENT, DATAGRAM));
    idle.ask().expect("an answer");
    let as_before = busy.ask().expect("an answer");
    let config = host.netd_toml("replace", "/sys/fs/bpf/overruled");
    let daemon = Daemon::start(netd(), &host.host, &config).unwrap_or_else(|e| panic!("{e}"));
    let count = || json(&daemon, &["status"])["data_plane"]["kernel_flows"].clone();
    assert!(count().as_u64() >= Some(2), "{}", count());
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(40) && count().as_u64() > Some(1) {
        assert_eq!(busy.ask().expect("an answer").peer, as_before.peer);
        std::thread::sleep(Duration::from_secs(1));
    }
    assert_eq!(count(), 1, "the idle one is over, the busy one is not");
    assert_eq!(busy.ask().expect("an answer").peer, as_before.peer);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(40) && count() != 0 {
        std::thread::sleep(Duration::from_secs(1));
    }
    assert_eq!(count(), 0);
    // The same socket: a new flow, and netd's.
    assert_ne!(busy.ask().expect("an answer").peer, as_before.peer);
    assert_eq!(json(&daemon, &["flows"])["total"], 1);
    daemon.unload().unwrap_or_else(|e| panic!("{e}"));
}

/// A host on which Docker's rules serve two networks, and rules of their kind n2's IPv6.
fn build() -> StandardHost {
    let host = StandardHost::build(StandardHostOptions {
        forwarding: true,
        rules: vec![RuleSet::docker_29()],
        networks: &["def", "n2"],
        ..StandardHostOptions::default()
    })
    .expect("the standard host");
    let n2a = host.container("n2a").v6.expect("n2 has IPv6");
    let rules = format!(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         -A PREROUTING -d fd99::1 -p tcp -m tcp --dport 8085 -j DNAT --to-destination [{n2a}]:80\n\
         -A POSTROUTING -s fd00:201:2::/64 ! -o br-n2 -j MASQUERADE\nCOMMIT\n"
    );
    host.host
        .load_rules(
            &RuleSet::new("n2-v6", &rules).ipv6(),
            netd::lab::IptablesBackend::Default,
        )
        .expect("ip6tables");
    // A slow machine must not outlive the flows before netd comes.
    for (name, seconds) in [
        ("udp_timeout", 600),
        ("udp_timeout_stream", 600),
        ("icmp_timeout", 600),
    ] {
        let name = format!("net/netfilter/nf_conntrack_{name}");
        host.host
            .set_sysctl(&name, seconds)
            .expect("its own setting");
    }
    host
}

/// As many flows as the kernel's own table takes here, at most [`FLOWS`].
fn fitting(host: &Namespace) -> usize {
    let number = |name: &str| -> usize {
        let text = host.sysctl(&format!("net/netfilter/{name}")).expect(name);
        text.trim().parse().expect("a number")
    };
    let (max, buckets) = (number("nf_conntrack_max"), number("nf_conntrack_buckets"));
    println!("nf_conntrack_max {max}, nf_conntrack_buckets {buckets}");
    // The largest of all namespaces' is set in the first; a test leaves it alone.
    let flows = FLOWS.min(max - 5_000) / 1_000 * 1_000;
    assert!(flows >= 20_000, "room for {max} flows only");
    if flows < FLOWS {
        println!("only {flows} flows instead of {FLOWS}: nf_conntrack_max is {max} here");
    }
    flows
}

/// Real sockets, with a name each.
struct Sockets {
    tcp: Vec<(String, Connection)>,
    udp: Vec<(String, Udp)>,
    echo: Vec<(String, Echo)>,
}

impl Sockets {
    fn open(host: &StandardHost) -> Self {
        let (client, c0, n2a) = (
            &host.client,
            &host.container("c0").namespace,
            &host.container("n2a").namespace,
        );
        let options = ProbeOptions::default().timeout(PATIENCE);
        let mut sockets = Self {
            tcp: Vec::new(),
            udp: Vec::new(),
            echo: Vec::new(),
        };
        for (name, from, to) in [
            ("in, IPv4", client, at(HOST, 8081)),
            ("in, IPv6", client, at(ip("fd99::1"), 8085)),
            ("out, IPv4", c0, at(CLIENT, WEB)),
            ("out, IPv6", n2a, at(ip("fd99::2"), WEB)),
        ] {
            for n in 0..SOCKETS {
                let connection = Connection::open(from, to, &options)
                    .unwrap_or_else(|outcome| panic!("TCP {name} {n}: {outcome}"));
                sockets.tcp.push((format!("TCP {name} {n}"), connection));
            }
        }
        for (name, from, to) in [
            ("in, IPv4", client, at(HOST, PUBLISHED)),
            ("out, IPv4", c0, at(CLIENT, DATAGRAM)),
            ("out, IPv6", n2a, at(ip("fd99::2"), DATAGRAM)),
        ] {
            for n in 0..SOCKETS {
                sockets
                    .udp
                    .push((format!("UDP {name} {n}"), Udp::open(from, to)));
            }
        }
        c0.set_sysctl("net/ipv4/ping_group_range", "0 2147483647")
            .expect("its own setting");
        for n in 0..ECHOES {
            sockets
                .echo
                .push((format!("echo {n}"), Echo::open(c0, CLIENT.into())));
        }
        sockets
    }

    /// What the far end of each sees, or what is wrong.
    fn ask(&mut self) -> BTreeMap<String, String> {
        let mut seen = BTreeMap::new();
        for (name, connection) in &mut self.tcp {
            let answer = match connection.exchange(64, PATIENCE) {
                Outcome::Answered(answer) => {
                    let report = answer.report.expect("a report");
                    format!("{} at {} sees {}", report.server, report.local, report.peer)
                }
                other => other.to_string(),
            };
            seen.insert(name.clone(), answer);
        }
        for (name, socket) in &self.udp {
            let answer = match socket.ask() {
                Ok(report) => format!("{} at {} sees {}", report.server, report.local, report.peer),
                Err(error) => error.to_string(),
            };
            seen.insert(name.clone(), answer);
        }
        for (name, echo) in &self.echo {
            let answer = echo
                .ask()
                .map_or_else(|e| e.to_string(), |()| "a reply".to_owned());
            seen.insert(name.clone(), answer);
        }
        let right = |answer: &String| answer.contains(" sees ") || answer == "a reply";
        let wrong: Vec<_> = seen.iter().filter(|(_, answer)| !right(answer)).collect();
        assert!(
            wrong.is_empty(),
            "{} without an answer: {:?}",
            wrong.len(),
            wrong[0]
        );
        seen
    }
}

/// A UDP socket that keeps its port.
pub struct Udp(UdpSocket);

impl Udp {
    pub fn open(from: &Namespace, to: SocketAddr) -> Self {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = from.run(|| {
            let socket = UdpSocket::bind(any)?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            io::Result::Ok(socket)
        });
        Self(socket.expect("a socket"))
    }

    pub fn ask(&self) -> io::Result<Report> {
        self.0.send(b"?")?;
        let mut buffer = [0; 512];
        let length = self.0.recv(&mut buffer)?;
        let line = String::from_utf8_lossy(&buffer[..length]);
        let line = line.lines().next().unwrap_or_default();
        line.parse().map_err(|e: String| io::Error::other(e))
    }
}

/// A socket for echo requests, all with one identifier (ping_group_range).
struct Echo(Socket);

impl Echo {
    fn open(from: &Namespace, to: IpAddr) -> Self {
        let socket = from.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4))?;
            socket.connect(&SocketAddr::new(to, 0).into())?;
            socket.set_read_timeout(Some(PATIENCE))?;
            io::Result::Ok(socket)
        });
        Self(socket.expect("a socket for echo requests"))
    }

    fn ask(&self) -> io::Result<()> {
        // Type 8; the kernel fills in the identifier and the checksum.
        self.0.send(&[8, 0, 0, 0, 0, 0, 0, 1, b'?'])?;
        let mut buffer = [std::mem::MaybeUninit::uninit(); 64];
        self.0.recv(&mut buffer).map(drop)
    }
}

/// A packet as it arrived: the place, source and destination.
type Arrived = (&'static str, SocketAddr, SocketAddr);

/// UDP flows that frames opened.
struct Injected {
    published: usize,
    masqueraded: usize,
    client: Side,
    c0: Side,
}

/// Where frames are sent.
struct Side {
    namespace: Namespace,
    from: Mac,
    to: Mac,
    address: IpAddr,
}

impl Side {
    fn inject(&self, frames: &[Vec<u8>]) {
        inject(&self.namespace, "eth0", frames).expect("frames");
    }

    fn udp(&self, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
        Frame::ethernet(self.from, self.to)
            .ip(from.ip(), to.ip())
            .udp(from.port(), to.port())
            .payload(b"?")
            .build()
    }
}

impl Injected {
    /// Opens that many flows, all of them answered.
    fn open(host: &StandardHost, flows: usize) -> Self {
        let c0 = host.container("c0");
        let mac = |namespace: &Namespace, device| namespace.mac(device).expect("a MAC");
        let injected = Self {
            published: flows / 2,
            masqueraded: flows - flows / 2,
            client: Side {
                namespace: host.client.clone(),
                from: mac(&host.client, "eth0"),
                to: mac(&host.host, "up0"),
                address: ip(&format!("198.18.0.{FIRST_ADDRESS}")),
            },
            c0: Side {
                namespace: c0.namespace.clone(),
                from: c0.mac,
                to: mac(&host.host, "br-def"),
                address: c0.v4,
            },
        };
        // Addresses of their own: no real socket's flow may be one of these.
        for n in 0..=injected.published.div_ceil(PORTS_PER_ADDRESS) {
            let address = net(&format!("198.18.0.{}/24", FIRST_ADDRESS + n));
            host.client
                .add_address("eth0", address)
                .expect("an address");
        }
        // No socket waits for these packets; the captures see them before the filter does.
        let rules = "*raw\n:PREROUTING ACCEPT [0:0]\n\
             -A PREROUTING -p udp -d 198.18.0.8/29 -j DROP\n\
             -A PREROUTING -p udp -s 198.18.0.8/29 -j DROP\nCOMMIT\n";
        for namespace in [&host.client, &c0.namespace] {
            namespace
                .load_rules(
                    &RuleSet::new("quiet", rules),
                    netd::lab::IptablesBackend::Default,
                )
                .expect("iptables");
        }
        let began = Instant::now();
        let server = &host.container("n2b").server;
        for chunk in chunks(injected.published) {
            let want = server.requests() + chunk.len() as u64;
            let frames: Vec<_> = chunk.map(|n| injected.ask_published(n)).collect();
            injected.client.inject(&frames);
            // The server is slower than the frames.
            let until = Instant::now() + PATIENCE;
            while server.requests() < want && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(server.requests() >= want, "the server answers no more");
        }
        for chunk in chunks(injected.masqueraded) {
            let there: Vec<_> = chunk.clone().map(|n| injected.ask_outside(n)).collect();
            injected.c0.inject(&there);
            let back: Vec<_> = chunk.map(|n| injected.answer_inside(n)).collect();
            injected.client.inject(&back);
        }
        let count = host
            .host
            .sysctl("net/netfilter/nf_conntrack_count")
            .expect("a count");
        let count: usize = count.trim().parse().expect("a number");
        println!(
            "{count} flows in the kernel's conntrack after {:?}",
            began.elapsed()
        );
        assert!(count >= flows, "{count} flows instead of {flows}");
        injected
    }

    /// The flows that are asked again.
    fn sample(&self) -> impl Iterator<Item = usize> {
        let step = self.published * 2 / SAMPLE;
        (0..self.published.min(self.masqueraded)).step_by(step.max(1))
    }

    /// The client's end of a published flow.
    fn outside(&self, n: usize) -> SocketAddr {
        let address = ip(&format!(
            "198.18.0.{}",
            FIRST_ADDRESS + 1 + n / PORTS_PER_ADDRESS
        ));
        SocketAddr::new(address, OUTSIDE_PORT + (n % PORTS_PER_ADDRESS) as u16)
    }

    /// Container's and client's end of a masqueraded flow.
    fn pair(&self, n: usize) -> (SocketAddr, SocketAddr) {
        let inside = SocketAddr::new(self.c0.address, INSIDE_PORT + (n % INSIDE_PORTS) as u16);
        let outside = SocketAddr::new(
            self.client.address,
            OUTSIDE_PORT + (n / INSIDE_PORTS) as u16,
        );
        (inside, outside)
    }

    fn ask_published(&self, n: usize) -> Vec<u8> {
        self.client.udp(self.outside(n), at(HOST, PUBLISHED))
    }

    fn ask_outside(&self, n: usize) -> Vec<u8> {
        let (inside, outside) = self.pair(n);
        self.c0.udp(inside, outside)
    }

    /// The kernel keeps a source port that is free, and all of them are.
    fn answer_inside(&self, n: usize) -> Vec<u8> {
        let (inside, outside) = self.pair(n);
        self.client.udp(outside, at(HOST, inside.port()))
    }

    /// A packet of each side of each flow of the sample, as they arrive at the other side. A server answers the
    /// published flows, frames of the client the others.
    fn ask(&self, host: &StandardHost) -> BTreeSet<Arrived> {
        let incoming = |namespace: &Namespace| {
            Capture::filtered(namespace, "eth0", |frame: &Captured| {
                !frame.info.outgoing() && frame.decoded.protocol == Some(17)
            })
            .expect("a capture")
        };
        let captures = [
            ("client", incoming(&host.client)),
            ("n2b", incoming(&host.container("n2b").namespace)),
            ("c0", incoming(&host.container("c0").namespace)),
        ];
        let sample: Vec<usize> = self.sample().collect();
        for chunk in sample.chunks(100) {
            let frames: Vec<_> = chunk.iter().map(|n| self.ask_published(*n)).collect();
            self.client.inject(&frames);
            let frames: Vec<_> = chunk.iter().map(|n| self.ask_outside(*n)).collect();
            self.c0.inject(&frames);
            let frames: Vec<_> = chunk.iter().map(|n| self.answer_inside(*n)).collect();
            self.client.inject(&frames);
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(500));
        let mut arrived = BTreeSet::new();
        for (place, capture) in captures {
            assert_eq!(capture.dropped(), 0, "the capture at {place} was blind");
            for frame in capture.stop() {
                let decoded = frame.decoded;
                if let (Some(src), Some(dst), Some((sport, dport))) =
                    (decoded.source, decoded.destination, decoded.ports)
                {
                    let ends = (SocketAddr::new(src, sport), SocketAddr::new(dst, dport));
                    arrived.insert((place, ends.0, ends.1));
                }
            }
        }
        arrived
    }
}

fn chunks(count: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    const CHUNK: usize = 200;
    (0..count)
        .step_by(CHUNK)
        .map(move |n| n..(n + CHUNK).min(count))
}

pub fn json(daemon: &Daemon, verb: &[&str]) -> Value {
    let answer = daemon
        .verb(&[verb, &["--json"]].concat())
        .expect("netd runs");
    serde_json::from_str(&answer.stdout).unwrap_or_else(|e| panic!("{verb:?}: {e}: {answer:?}"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn explain(daemon: &Daemon) -> String {
    let drops = daemon.verb(&["drops"]).expect("netd runs").stdout;
    format!("{drops}\n{}", daemon.log())
}
