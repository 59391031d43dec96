//! Two hosts, each with netd and containers, and a real WireGuard tunnel between them.
//!
//! ```text
//!  containers ── host a ── wan 100.90.0.1, fd90::1 ─────────── 100.90.0.2, fd90::2 wan ── host b ── containers
//!                      ╚══ wg0 100.99.0.1, fd77::1 ═══════════ 100.99.0.2, fd77::2 wg0 ══╝
//! ```
//!
//! Host a sends everything through the tunnel, as `wg-quick` has it: a mark on what is encrypted, a table of its own for
//! all else, and the main table only for what is more special than its default route, which leads to host b in the
//! clear. There, beyond the tunnel and beyond the wire alike, a service listens on 100.98.0.9 and fd98:9::9: what leaks
//! is answered.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use netd::lab::{
    Capture, Captured, Connection, IpNet, IptablesBackend, LeakGuard, Listen, Namespace, Outcome,
    ProbeOptions, Route, RouteType, Rule, RuleSet, Server, StandardHost, StandardHostOptions,
    VethEnd, Want, WireGuard, WireGuardKey, WireGuardOptions, add_veth, find_program,
    frame::protocol, ip, net, ping, tcp_probe, udp_probe,
};
use socket2::{Domain, Protocol, Socket};

use crate::world::{LONG, World, at, by, need_root};

const WAN: &str = "wan";
const WG: &str = "wg0";
const PORT: u16 = 51820;
/// TCP and UDP port of the service beyond.
const SERVICE: u16 = 9100;
/// The mark and the table of wg-quick.
const MARK: u32 = 51820;
const MAIN: u32 = 254;
/// As wg-quick sets it for an outer MTU of 1500.
const MTU: u32 = 1420;
/// How long a probe waits that should not be answered.
const SHORT: Duration = Duration::from_millis(700);

/// One family of what is in the picture above.
#[derive(Clone, Copy)]
struct Family {
    /// On [`WAN`], of host a and b.
    wan: [IpAddr; 2],
    /// On [`WG`].
    wg: [IpAddr; 2],
    service: IpAddr,
    bits: u8,
}

fn families() -> [Family; 2] {
    let pair = |texts: [&str; 2]| texts.map(ip);
    [
        Family {
            wan: pair(["100.90.0.1", "100.90.0.2"]),
            wg: pair(["100.99.0.1", "100.99.0.2"]),
            service: ip("100.98.0.9"),
            bits: 24,
        },
        Family {
            wan: pair(["fd90::1", "fd90::2"]),
            wg: pair(["fd77::1", "fd77::2"]),
            service: ip("fd98:9::9"),
            bits: 64,
        },
    ]
}

/// `boringtun-cli` of `cargo xtask setup`, which lies beside the built tests, or of PATH.
fn program() -> Option<PathBuf> {
    let test = std::env::current_exe().ok()?;
    let own = test.ancestors().nth(3)?.join("tools/bin/boringtun-cli");
    let own = own.is_file().then_some(own);
    own.or_else(|| find_program(&["boringtun-cli".to_owned()]))
}

/// Ends the test with a word when it cannot run here.
macro_rules! need_wireguard {
    () => {{
        need_root!();
        match program() {
            Some(program) => program,
            None => {
                println!("skipped: no boringtun-cli: `cargo xtask setup` builds it");
                return;
            }
        }
    }};
}

struct Hosts {
    a: World,
    b: World,
    /// The tunnel's end on host a.
    near: WireGuard,
    _far: WireGuard,
    /// Of host b.
    service: Server,
    guards: Vec<LeakGuard>,
}

impl Hosts {
    fn new(program: &std::path::Path, rules: Vec<RuleSet>) -> Self {
        let world = || {
            World::standard(StandardHostOptions {
                networks: &["def", "n2"],
                ..Default::default()
            })
        };
        let (a, b) = (world(), world());
        for rules in rules {
            a.host
                .host
                .load_rules(&rules, IptablesBackend::Default)
                .expect("rules");
        }
        let hosts = [&a.host.host, &b.host.host];
        add_veth(&VethEnd::new(hosts[0], WAN), &VethEnd::new(hosts[1], WAN)).expect("veth");
        for (index, host) in hosts.into_iter().enumerate() {
            for family in families() {
                host.add_address(WAN, prefix(family.wan[index], family.bits))
                    .expect("address");
            }
            host.set_up(WAN).expect("up");
        }
        for host in hosts {
            host.wait_ready(WAN).expect("ready");
        }
        let any = [net("0.0.0.0/0"), net("::/0")];
        let own: Vec<_> = families().iter().map(|f| single(f.wg[0])).collect();
        // It must listen before the other speaks: a lost first handshake is repeated after five seconds.
        let far = tunnel(program, hosts[1], WireGuardKey::Bob, &own);
        let near = tunnel(program, hosts[0], WireGuardKey::Alice, &any);
        for family in families() {
            hosts[1]
                .add_address("lo", single(family.service))
                .expect("address");
            hosts[0]
                .add_route(&Route::default_via(family.wan[1]))
                .expect("route");
        }
        wg_quick(hosts[0]);
        // With an address of its own, which is then that of its answers.
        let listens = families().map(|family| {
            let at = at(family.service, SERVICE);
            [Listen::tcp(at), Listen::udp(at)]
        });
        let service = Server::start(hosts[1], "service", &listens.concat()).expect("server");
        for world in [&a, &b] {
            world.daemon.settle().expect("settle");
        }
        let subnets = StandardHost::masqueraded_subnets();
        let guards = hosts
            .into_iter()
            .flat_map(|host| [(host, WAN), (host, WG)])
            .map(|(host, device)| LeakGuard::watch(host, device, &subnets).expect("leak guard"))
            .collect();
        Self {
            a,
            b,
            near,
            _far: far,
            service,
            guards,
        }
    }

    fn end(self) {
        for guard in self.guards {
            if let Err(leak) = guard.finish() {
                self.a.check("guard", "no leak", leak, false);
            }
        }
        self.a.end();
        // Its tunnel and its probes were of the other's.
        self.b.check("host b", "unloads", "unloads", true);
        self.b.end();
    }
}

/// One end, with its addresses, up.
fn tunnel(
    program: &std::path::Path,
    host: &Namespace,
    key: WireGuardKey,
    allowed: &[IpNet],
) -> WireGuard {
    let [v4, _] = families();
    let (index, other) = match key {
        WireGuardKey::Alice => (0, 1),
        WireGuardKey::Bob => (1, 0),
    };
    let options = WireGuardOptions {
        key,
        port: PORT,
        mark: (index == 0).then_some(MARK),
        endpoint: at(v4.wan[other], PORT),
        allowed,
    };
    let tunnel = WireGuard::start(program, host, WG, &options).expect("WireGuard");
    host.set_mtu(WG, MTU).expect("MTU");
    for family in families() {
        host.add_address(WG, prefix(family.wg[index], family.bits))
            .expect("address");
    }
    host.set_up(WG).expect("up");
    tunnel
}

/// What `wg-quick up` does for AllowedIPs of everything.
fn wg_quick(host: &Namespace) {
    host.set_sysctl("net/ipv4/conf/all/src_valid_mark", 1)
        .expect("sysctl");
    for (any, rule) in [
        ("0.0.0.0/0", Rule::v4 as fn(u32, u32) -> Rule),
        ("::/0", Rule::v6),
    ] {
        host.add_route(&Route::to(net(any)).device(WG).table(MARK))
            .expect("route");
        host.add_rule(&rule(32_765, MARK).mark(MARK, u32::MAX).invert())
            .expect("rule");
        host.add_rule(&rule(32_764, MAIN).suppress_prefix_length(0))
            .expect("rule");
    }
}

fn prefix(address: IpAddr, bits: u8) -> IpNet {
    net(&format!("{address}/{bits}"))
}

fn single(address: IpAddr) -> IpNet {
    prefix(address, if address.is_ipv4() { 32 } else { 128 })
}

#[test]
fn published_ports_masquerade_and_containers_of_two_hosts() {
    let program = need_wireguard!();
    two_hosts(&program, Vec::new());
}

/// With its protection of the tunnel's address, its marks and an ACCEPT that nothing must need.
#[test]
fn beside_the_rules_of_wg_quick() {
    let program = need_wireguard!();
    let [v4, _] = families();
    let rules = RuleSet::wg_quick();
    let own = rules.text().replace("10.66.0.2", &v4.wg[0].to_string());
    assert_ne!(own, rules.text(), "the rules have another address now");
    two_hosts(
        &program,
        vec![RuleSet::new("wg-quick", &own), RuleSet::forward_drop()],
    );
}

fn two_hosts(program: &std::path::Path, rules: Vec<RuleSet>) {
    let hosts = Hosts::new(program, rules);
    let (a, b) = (&hosts.a, &hosts.b);
    for family in families() {
        let [own, peer] = family.wg;
        let (port, server) = if own.is_ipv4() {
            (8081, "c0")
        } else {
            (8085, "n2a")
        };
        // Containers of `def` have no IPv6.
        let container = if own.is_ipv4() { "c0" } else { "n2b" };
        for payload in [32, 200_000] {
            let options = ProbeOptions::default().timeout(LONG).payload(payload);
            let part = |what: &str| format!("{what} over {own}, {payload} bytes");
            // From host b's own sockets, with its real address.
            let got = tcp_probe(&b.host.host, at(own, port), &options);
            a.outcome(&part("published"), by(server, peer), got);
            // To a service of host b, with the tunnel's address.
            let inside = &a.host.container(container).namespace;
            let got = tcp_probe(inside, at(family.service, SERVICE), &options);
            a.outcome(&part("masquerade"), by("service", own), got);
            // From a container to a container, both ways: masqueraded there, published here.
            for (from, to, [own, peer]) in [(a, b, [own, peer]), (b, a, [peer, own])] {
                let before = to.host.container(server).server.requests();
                let inside = &from.host.container(container).namespace;
                let got = tcp_probe(inside, at(peer, port), &options);
                a.outcome(&part("container to container"), by(server, own), got);
                let served = to.host.container(server).server.requests() - before;
                a.check(&part("requests of the other host"), 1, served, served == 1);
            }
        }
        for payload in [32, 1300] {
            let options = ProbeOptions::default().timeout(LONG).payload(payload);
            let part = |what: &str| format!("{what} over {own}, {payload} bytes");
            let got = udp_probe(&b.host.host, at(own, 8084), &options);
            a.outcome(&part("UDP, published"), by("n2b", peer), got);
            let inside = &a.host.container("n2b").namespace;
            let got = udp_probe(inside, at(family.service, SERVICE), &options);
            a.outcome(&part("UDP, masquerade"), by("service", own), got);
            let got = ping(inside, family.service, &options);
            a.outcome(&part("echo"), Want::Reply, got);
        }
    }
    hosts.end();
}

/// What goes in the clear by an uplink of host a: everything but neighbour discovery, the tunnel itself, and the host's
/// word that nobody listens at the tunnel's port any more.
fn in_the_clear(frame: &Captured) -> bool {
    let decoded = &frame.decoded;
    let tunnel = decoded.protocol == Some(protocol::UDP) && decoded.ports == Some((PORT, PORT));
    let link = decoded.protocol == Some(protocol::ICMPV6)
        && decoded
            .icmp
            .is_none_or(|(kind, _)| matches!(kind, 130..=137 | 143));
    // It quotes what came: an IPv4 header without options, and the ports.
    let quoted = &decoded.payload;
    let port = PORT.to_be_bytes();
    let closed = decoded.icmp == Some((3, 3))
        && quoted.get(9) == Some(&protocol::UDP)
        && quoted.get(20..24) == Some(&[port, port].concat()[..]);
    decoded.protocol.is_some() && !tunnel && !link && !closed && frame.info.outgoing()
}

/// What becomes of the tunnel.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// The program is gone, the device and its routes are not.
    Silent,
    /// The device is down.
    Down,
    /// Not even the device is left.
    Gone,
}

/// Nothing of a container goes by another uplink while the route says the tunnel, whatever becomes of that, at no time;
/// and what had been masqueraded to the tunnel's address never leaves by another device.
#[test]
fn the_kill_switch_holds_when_the_program_dies() {
    let program = need_wireguard!();
    the_kill_switch_holds(&program, Change::Silent);
}

#[test]
fn the_kill_switch_holds_when_the_device_goes_down() {
    let program = need_wireguard!();
    the_kill_switch_holds(&program, Change::Down);
}

#[test]
fn the_kill_switch_holds_when_the_device_is_deleted() {
    let program = need_wireguard!();
    the_kill_switch_holds(&program, Change::Gone);
}

/// Of host a, running when this returns.
fn clear_captures(hosts: &Hosts) -> [Capture; 2] {
    [WAN, "up0"]
        .map(|device| Capture::filtered(&hosts.a.host.host, device, in_the_clear).expect("capture"))
}

/// What is behind the tunnel's route, for the routes of a device go with it.
fn behind(any: &str) -> Route {
    let route = Route::to(net(any)).kind(RouteType::BlackHole);
    route.table(MARK).metric(4_000_000)
}

const ANY: [&str; 2] = ["0.0.0.0/0", "::/0"];

fn the_kill_switch_holds(program: &std::path::Path, change: Change) {
    let mut hosts = Hosts::new(program, Vec::new());
    for any in ANY {
        hosts.a.host.host.add_route(&behind(any)).expect("route");
    }
    hosts.a.daemon.settle().expect("settle");
    let targets = families().map(|family| at(family.service, SERVICE));
    let mut open = Vec::new();
    for (target, family) in targets.into_iter().zip(families()) {
        let inside = &hosts.a.host.container("n2b").namespace;
        let options = ProbeOptions::default().timeout(LONG);
        let mut connection =
            Connection::open(inside, target, &options).expect("through the tunnel");
        let got = connection.exchange(32, LONG);
        hosts.a.outcome("up", by("service", family.wg[0]), got);
        open.push(connection);
    }
    // From before the change until after the last look at it, and so do containers send.
    let captures = clear_captures(&hosts);
    let traffic = Traffic::start(&hosts, &mut open);
    let inside = Capture::filtered(&hosts.a.host.container("n2b").namespace, "eth0", |frame| {
        frame.info.outgoing()
    })
    .expect("capture");
    std::thread::sleep(SHORT);
    let seen = captures.iter().map(|c| c.frames().len()).sum::<usize>();
    hosts.a.check("up: in the clear", 0, seen, seen == 0);
    match change {
        Change::Silent => hosts.near.silence().expect("kill"),
        Change::Down => hosts.a.host.host.set_down(WG).expect("down"),
        Change::Gone => hosts.a.host.host.delete_device(WG).expect("delete"),
    }
    let sent_before = inside.seen();
    std::thread::sleep(SHORT);
    hosts.a.daemon.settle().expect("settle");
    let sent = inside.seen() - sent_before;
    hosts.a.check("sent by then", "many", sent, sent > 100);
    // A capture ends when nothing is left to read: the traffic first.
    traffic.stop(&hosts.a);
    drop(inside);
    nothing_leaks(&hosts, &format!("{change:?}"), captures, &mut open);

    // The control: with no route to the tunnel and none behind it new flows go in the clear, as the host's own would, and
    // the same capture sees the same traffic. Old flows do not move.
    let captures = clear_captures(&hosts);
    for any in ANY {
        if matches!(change, Change::Silent) {
            let route = Route::to(net(any)).device(WG).table(MARK);
            hosts.a.host.host.delete_route(&route).expect("route");
        }
        hosts.a.host.host.delete_route(&behind(any)).expect("route");
    }
    hosts.a.daemon.settle().expect("settle");
    let traffic = Traffic::start(&hosts, &mut open);
    std::thread::sleep(SHORT);
    traffic.stop(&hosts.a);
    for (connection, (target, family)) in open.iter_mut().zip(targets.into_iter().zip(families())) {
        let got = connection.exchange(32, SHORT);
        hosts
            .a
            .check("an old flow", "no answer", &got, !got.answered());
        let inside = &hosts.a.host.container("n2b").namespace;
        let got = tcp_probe(inside, target, &ProbeOptions::default().timeout(LONG));
        hosts
            .a
            .outcome("no kill switch", by("service", family.wan[0]), got);
    }
    let seen = captures.map(Capture::stop).concat();
    for family in families() {
        for kind in [protocol::TCP, protocol::UDP] {
            let of_it = |frame: &&Captured| {
                frame.decoded.source == Some(family.wan[0]) && frame.decoded.protocol == Some(kind)
            };
            let count = seen.iter().filter(of_it).count();
            let name = format!("the control: protocol {kind} from {}", family.wan[0]);
            hosts.a.check(&name, "many", count, count > 20);
        }
    }
    let old: Vec<_> = seen
        .iter()
        .filter(|frame| {
            families()
                .iter()
                .any(|f| frame.decoded.source == Some(f.wg[0]))
        })
        .map(|frame| frame.decoded.to_string())
        .collect();
    hosts.a.check(
        "with the tunnel's address",
        "none",
        old.join("; "),
        old.is_empty(),
    );
    if matches!(change, Change::Gone) {
        // With the device went what its guard watched.
        hosts.guards.clear();
    }
    hosts.end();
}

/// A container that sends all the time, in both families: datagrams and SYNs of new flows, datagrams of an old one,
/// and over connections that are open.
struct Traffic {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<u64>>,
    /// Whose sockets do not block meanwhile.
    streams: Vec<TcpStream>,
}

impl Traffic {
    fn start(hosts: &Hosts, open: &mut [Connection]) -> Self {
        let clone = |connection: &mut Connection| {
            let stream = connection.stream().try_clone()?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        let streams: std::io::Result<Vec<_>> = open.iter_mut().map(clone).collect();
        let streams = streams.expect("clones");
        let living = streams.iter().map(TcpStream::try_clone);
        let living: std::io::Result<Vec<_>> = living.collect();
        let living = living.expect("clones");
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let inside = &hosts.a.host.container("n2b").namespace;
        let thread = inside.spawn_thread("traffic", move || send_until(&stopping, living));
        Self {
            stop,
            thread: thread.expect("a thread"),
            streams,
        }
    }

    fn stop(self, world: &World) {
        self.stop.store(true, Ordering::Relaxed);
        let rounds = self.thread.join().expect("the traffic");
        let text = format!("{rounds:?}");
        let many = rounds.is_ok_and(|rounds| rounds > 50);
        world.check("rounds of traffic", "many", text, many);
        for stream in self.streams {
            stream.set_nonblocking(false).expect("blocks");
        }
    }
}

/// Returns how many rounds there were. What the kernel refuses to send is not an error: routes come and go.
fn send_until(stop: &AtomicBool, mut living: Vec<TcpStream>) -> std::io::Result<u64> {
    let udp = |target: SocketAddr| -> std::io::Result<UdpSocket> {
        let any = if target.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(any)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let targets = families().map(|family| at(family.service, SERVICE));
    let old = [udp(targets[0])?, udp(targets[1])?];
    let mut buffer = [0; 4096];
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        for (index, target) in targets.into_iter().enumerate() {
            let _ = old[index].send_to(b"old", target);
            let _ = udp(target)?.send_to(b"new", target);
            let kind = socket2::Type::STREAM.nonblocking();
            let socket = Socket::new(Domain::for_address(target), kind, Some(Protocol::TCP))?;
            let _ = socket.connect(&target.into());
        }
        for stream in &mut living {
            let _ = stream.write(b"echo 4\nabcd");
            let _ = stream.read(&mut buffer);
        }
        rounds += 1;
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(rounds)
}

/// Asks by every way, over old connections and new, and looks at the uplinks.
fn nothing_leaks(hosts: &Hosts, part: &str, captures: [Capture; 2], open: &mut [Connection]) {
    let inside = &hosts.a.host.container("n2b").namespace;
    let before = hosts.service.requests();
    let check = |name: &str, got: Outcome| {
        let ok = Want::Nothing.matches(&got);
        hosts
            .a
            .check(&format!("{part}: {name}"), Want::Nothing, got, ok);
    };
    for connection in open {
        let got = connection.exchange(32, SHORT);
        hosts.a.check(
            &format!("{part}: an old flow"),
            "no answer",
            &got,
            !got.answered(),
        );
    }
    for family in families() {
        let options = ProbeOptions::default().timeout(SHORT);
        let target = at(family.service, SERVICE);
        check(
            &format!("TCP to {target}"),
            tcp_probe(inside, target, &options),
        );
        check(
            &format!("UDP to {target}"),
            udp_probe(inside, target, &options),
        );
        check(
            &format!("echo of {target}"),
            ping(inside, family.service, &options),
        );
    }
    let served = hosts.service.requests() - before;
    hosts.a.check(
        &format!("{part}: requests of the other host"),
        0,
        served,
        served == 0,
    );
    let seen = captures.map(Capture::stop).concat();
    let list: Vec<_> = seen.iter().map(|f| f.decoded.to_string()).collect();
    hosts.a.check(
        &format!("{part}: in the clear"),
        "nothing",
        list.join("; "),
        list.is_empty(),
    );
}
