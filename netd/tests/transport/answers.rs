//! ICMP errors that netd itself sends, as they are on the wire, and what the senders' kernels make of them.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use netd::lab::{
    CLIENT, Capture, Captured, DATAGRAM, HOST, Namespace, Outcome, ProbeOptions, Route, RouteType,
    StandardHost, StandardHostOptions, WEB, frame::protocol, ip, net, tcp_probe, udp_probe,
};
use nix::errno::Errno;
use socket2::SockRef;

use crate::world::{LONG, World, at, by, need_root};

const SHORT: Duration = Duration::from_millis(700);
const CLIENT6: &str = "fd99::2";
const HOST6: &str = "fd99::1";

/// Whether devices compute checksums, which they must not do in an answer.
fn with_offload(tx_offload: bool) -> StandardHostOptions {
    StandardHostOptions {
        tx_offload,
        ..Default::default()
    }
}

/// A connected UDP socket whose packets live for so many hops.
fn short_lived(namespace: &Namespace, to: SocketAddr, hops: u32) -> io::Result<UdpSocket> {
    namespace.run(|| {
        let any: IpAddr = if to.is_ipv4() {
            ip("0.0.0.0")
        } else {
            ip("::")
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        if to.is_ipv4() {
            socket.set_ttl(hops)?;
        } else {
            SockRef::from(&socket).set_unicast_hops_v6(hops)?;
        }
        Ok(socket)
    })
}

fn is_icmp(frame: &Captured) -> bool {
    matches!(
        frame.decoded.protocol,
        Some(protocol::ICMP | protocol::ICMPV6)
    ) && !frame.info.outgoing()
        && frame
            .decoded
            .icmp
            .is_some_and(|(kind, _)| !matches!(kind, 133..=136 | 143))
}

/// The packet in a captured frame, as IP's length gives it.
fn packet(frame: &Captured) -> &[u8] {
    &frame.bytes[14..]
}

/// Sends `payload` where it dies at once; the answer that arrives, and what was sent.
fn dies(
    (namespace, device): (&Namespace, &str),
    to: SocketAddr,
    payload: &[u8],
) -> (Option<Captured>, Vec<Captured>) {
    let answers = Capture::filtered(namespace, device, is_icmp).expect("capture");
    let sent = Capture::filtered(namespace, device, |frame| {
        frame.info.outgoing() && frame.decoded.protocol == Some(protocol::UDP)
    })
    .expect("capture");
    let socket = short_lived(namespace, to, 1).expect("a socket");
    socket.send(payload).expect("send");
    let answer = answers.wait_for(LONG, |_| true);
    (answer, sent.stop())
}

/// Time exceeded: the right source, right checksums, and the packet quoted as it was sent.
fn tells_of_death(
    world: &World,
    name: &str,
    from: (&Namespace, &str),
    to: SocketAddr,
    source: IpAddr,
    payload: &[u8],
) {
    let (answer, sent) = dies(from, to, payload);
    let Some(answer) = answer else {
        world.check(name, "an answer", "none", false);
        return;
    };
    let d = &answer.decoded;
    let kind = if to.is_ipv4() { (11, 0) } else { (3, 0) };
    world.check(
        name,
        format!("{kind:?}"),
        format!("{:?}", d.icmp),
        d.icmp == Some(kind),
    );
    let told_by = d.source == Some(source);
    world.check(name, source, format!("{:?}", d.source), told_by);
    // A veth carries what the sender left to it: only whole checksums are right here.
    world.check(
        name,
        "right checksums",
        &answer.decoded,
        d.checksum == Some(true),
    );
    let whole = d.ip_checksum != Some(false) && !answer.info.checksum_partial;
    world.check(name, "nothing left to a device", &answer.decoded, whole);
    let sent = sent.first().map(packet).unwrap_or_default();
    let most = if to.is_ipv4() { 576 - 28 } else { 1280 - 48 };
    let quoted = &d.payload[..];
    let expected = &sent[..sent.len().min(most)];
    // The L4 checksum of what was sent may have been left to the device: both say the same.
    world.check(
        &format!("{name}: quoted"),
        hex(expected),
        hex(quoted),
        !expected.is_empty() && quoted == expected,
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn time_exceeded(tx_offload: bool) {
    let world = World::standard(with_offload(tx_offload));
    let n2b = world.host.container("n2b");
    let inside = (&n2b.namespace, "eth0");
    let network = StandardHost::network("n2");
    let outside = (&world.host.client, "eth0");
    for length in [0, 1, 500, 1400] {
        let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
        for (far, gateway) in [
            (IpAddr::from(CLIENT), network.gateway()),
            (ip(CLIENT6), network.gateway6().expect("n2 has IPv6")),
        ] {
            let name = format!("{length} bytes to {far}");
            tells_of_death(&world, &name, inside, at(far, DATAGRAM), gateway, &payload);
        }
        // To a published port.
        for host in [IpAddr::from(HOST), ip(HOST6)] {
            let name = format!("{length} bytes to the published port of {host}");
            tells_of_death(&world, &name, outside, at(host, 8084), host, &payload);
        }
    }
    // Controls: one hop more, and somebody answers.
    let options = ProbeOptions::default().timeout(LONG);
    for (far, host) in [
        (IpAddr::from(CLIENT), HOST.into()),
        (ip(CLIENT6), ip(HOST6)),
    ] {
        let got = udp_probe(&n2b.namespace, at(far, DATAGRAM), &options);
        world.outcome("the world", by("client", host), got);
        let got = udp_probe(&world.host.client, at(host, 8084), &options);
        world.outcome("the published port", by("n2b", far), got);
    }
    let answers = answers(&world, "time-exceeded");
    world.check("netd status", 16, answers, answers == 16);
    world.end();
}

/// What `netd status` says was sent of a kind.
fn answers(world: &World, kind: &str) -> u64 {
    let status = world.daemon.verb(&["status", "--json"]).expect("status");
    let status: serde_json::Value = serde_json::from_str(&status.stdout).expect("JSON");
    let answers = status["data_plane"]["answers"].as_array().expect("answers");
    let of_kind = answers.iter().find(|a| a["kind"] == kind);
    of_kind.and_then(|a| a["sent"].as_u64()).expect("a count")
}

#[test]
fn time_exceeded_is_told() {
    need_root!();
    time_exceeded(true);
}

#[test]
fn time_exceeded_is_told_without_offload() {
    need_root!();
    time_exceeded(false);
}

/// A segment of a container is CHECKSUM_PARTIAL: the device that sends its answer must not write a checksum into it.
#[test]
fn tcp_learns_that_there_is_no_way() {
    need_root!();
    let routes = [
        (RouteType::Unreachable, "100.65.0.0/24", "fd65::/64"),
        (RouteType::Prohibit, "100.66.0.0/24", "fd66::/64"),
        (RouteType::BlackHole, "100.67.0.0/24", "fd67::/64"),
    ];
    let world = World::new(
        StandardHostOptions::default(),
        |host| {
            for (kind, v4, v6) in routes {
                for destination in [v4, v6] {
                    host.host
                        .add_route(&Route::to(net(destination)).kind(kind))
                        .expect("route");
                }
            }
            for gateway in [CLIENT.into(), ip(CLIENT6)] {
                host.host
                    .add_route(&Route::default_via(gateway))
                    .expect("route");
            }
        },
        |toml| toml,
    );
    let n2b = &world.host.container("n2b").namespace;
    // What Linux makes of the codes (icmp_err_convert, icmpv6_err_convert).
    let expected = [
        ("100.65.0.1", Some(Errno::EHOSTUNREACH)),
        ("fd65::1", Some(Errno::ENETUNREACH)),
        ("100.66.0.1", Some(Errno::EHOSTUNREACH)),
        ("fd66::1", Some(Errno::EACCES)),
        ("100.67.0.1", None),
        ("fd67::1", None),
    ];
    for (to, errno) in expected {
        let started = Instant::now();
        let timeout = if errno.is_some() { LONG } else { SHORT };
        let options = ProbeOptions::default().timeout(timeout);
        let got = tcp_probe(n2b, at(ip(to), WEB), &options);
        let ok = match errno {
            Some(errno) => got == Outcome::Unreachable(errno) && started.elapsed() < LONG,
            None => got == Outcome::Timeout,
        };
        world.check(to, format!("{errno:?}"), &got, ok);
    }
    let options = ProbeOptions::default().timeout(LONG);
    let got = tcp_probe(n2b, at(CLIENT, WEB), &options);
    world.outcome("another way", by("client", HOST), got);
    world.end();
}

/// However much dies: no more answers than a CPU sends, and some all the same.
#[test]
fn answers_are_rationed() {
    need_root!();
    const SENT: usize = 20_000;
    let world = World::standard(StandardHostOptions::default());
    let c0 = &world.host.container("c0").namespace;
    let capture = Capture::filtered(c0, "eth0", is_icmp).expect("capture");
    let socket = short_lived(c0, at(CLIENT, DATAGRAM), 1).expect("a socket");
    let started = Instant::now();
    for _ in 0..SENT {
        // An error that is pending is told here.
        let _ = socket.send(b"dead");
    }
    let elapsed = started.elapsed();
    std::thread::sleep(Duration::from_millis(200));
    let came = capture.stop().len() as u64;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let most = cpus * (50 + 1000 * (elapsed.as_millis() as u64 + 1000) / 1000);
    println!(
        "{came} answers in {} ms to {SENT} packets",
        elapsed.as_millis()
    );
    world.check("answers", format!("at most {most}"), came, came <= most);
    world.check("answers", "at least a burst", came, came >= 50);
    world.check(
        "answers",
        "fewer than packets",
        came,
        came < SENT as u64 / 2,
    );
    world.end();
}
