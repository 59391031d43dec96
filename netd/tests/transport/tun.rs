//! A plain TUN device as an uplink: packets begin with the IP header, and the other end is this test.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netd::lab::{
    Capture, DATAGRAM, Decoded, Direction, Frame, HOST_SERVICE, LeakGuard, ProbeOptions,
    StandardHost, StandardHostOptions, Tcp, Tun, TunKind, WEB, Want, bulk_transfer,
    frame::tcp_flags, ip, net, ping, tcp_probe,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::path::{Path, addresses};
use crate::world::{LONG, World, at, by, need_root};

/// The host's own addresses on the device, and those of the other end.
const ENDS: [[&str; 2]; 2] = [["100.64.1.1", "100.64.1.2"], ["fd64:1::1", "fd64:1::2"]];
/// Of every packet that the other end sends.
const TTL: u8 = 64;

struct Uplink {
    world: World,
    tun: Tun,
    guard: LeakGuard,
}

impl Uplink {
    fn new() -> Self {
        let mut tun = None;
        let world = World::new(
            StandardHostOptions::default(),
            |host| {
                tun = Some(Tun::create(&host.host, "tun0", TunKind::Tun).expect("TUN"));
                for ([own, _], bits) in ENDS.into_iter().zip([24, 64]) {
                    host.host
                        .add_address("tun0", net(&format!("{own}/{bits}")))
                        .expect("address");
                }
                host.host.set_up("tun0").expect("up");
            },
            |toml| toml,
        );
        let subnets = StandardHost::masqueraded_subnets();
        let guard = LeakGuard::watch(&world.host.host, "tun0", &subnets).expect("leak guard");
        Self {
            world,
            tun: tun.expect("made above"),
            guard,
        }
    }

    /// Sends one packet, and returns the first that leaves and is wanted.
    fn exchange(&self, packet: &Frame, wanted: impl Fn(&Decoded) -> bool) -> Option<Decoded> {
        self.tun.send(&packet.build()).expect("send");
        next(&self.tun, wanted)
    }

    fn end(self) {
        match self.guard.finish() {
            Ok(seen) => self.world.check("guard", "packets", seen, seen > 0),
            Err(leak) => self.world.check("guard", "no leak", leak, false),
        }
        self.world.end();
    }
}

/// The next packet that leaves and is wanted.
fn next(tun: &Tun, wanted: impl Fn(&Decoded) -> bool) -> Option<Decoded> {
    let mut buffer = vec![0; 65536];
    let until = Instant::now() + LONG;
    while Instant::now() < until {
        let mut fds = [PollFd::new(tun.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(50u16)).unwrap_or(0) == 0 {
            continue;
        }
        let length = tun.receive(&mut buffer).expect("receive");
        let decoded = Decoded::read(&buffer[..length], false);
        if wanted(&decoded) {
            return Some(decoded);
        }
    }
    None
}

fn families() -> [[IpAddr; 2]; 2] {
    ENDS.map(|pair| pair.map(ip))
}

#[test]
fn what_comes_in_gets_an_ethernet_header() {
    need_root!();
    let uplink = Uplink::new();
    let (host, world) = (&uplink.world.host, &uplink.world);
    let n2b = host.container("n2b");
    let bridge = host.host.mac("br-n2").expect("MAC");
    for (own, peer) in families().map(|[own, peer]| (own, peer)) {
        for (number, size) in [8usize, 301, 1200].into_iter().enumerate() {
            let capture = Capture::filtered(&n2b.namespace, "eth0", |frame| {
                !frame.info.outgoing() && frame.decoded.ports.is_some()
            })
            .expect("capture");
            let part = format!("{size} bytes from {peer}");
            let payload = vec![0x33; size];
            let port = 4000 + number as u16;
            let request = Frame::bare()
                .ip(peer, own)
                .ttl(TTL)
                .udp(port, 8084)
                .payload(&payload);
            let answer = uplink.exchange(&request, |f| f.ports == Some((8084, port)));
            let right = answer.as_ref().is_some_and(|f| {
                f.source == Some(own)
                    && f.destination == Some(peer)
                    && f.checksum == Some(true)
                    && f.ip_checksum != Some(false)
                    && f.payload.ends_with(&payload)
            });
            world.check(&part, "the answer", format!("{answer:?}"), right);
            let frames = capture.stop();
            let frame = frames
                .iter()
                .find(|f| f.decoded.ports == Some((port, DATAGRAM)));
            let right = frame.is_some_and(|f| {
                f.decoded.ethernet == Some((bridge, n2b.mac))
                    && f.decoded.source == Some(peer)
                    && f.decoded.ttl == Some(TTL - 1)
                    && f.decoded.checksum == Some(true)
                    && f.decoded.ip_checksum != Some(false)
                    && f.decoded.payload == payload
            });
            world.check(
                &format!("{part}: in the container"),
                "from the bridge's MAC to the container's, with right checksums",
                format!("{:?}", frame.map(|f| &f.decoded)),
                right,
            );
        }
        // TCP, whose handshake the real stack answers.
        let (port, at_port) = (4100, if own.is_ipv4() { 8081 } else { 8085 });
        let syn = Frame::bare()
            .ip(peer, own)
            .tcp(Tcp::new(port, at_port, tcp_flags::SYN).mss(1200));
        let answer = uplink.exchange(&syn, |f| f.ports == Some((at_port, port)));
        let right = answer.as_ref().is_some_and(|f| {
            f.checksum == Some(true)
                && f.source == Some(own)
                && f.tcp_flags == Some(tcp_flags::SYN | tcp_flags::ACK)
        });
        world.check(
            &format!("SYN from {peer}"),
            "SYN and ACK",
            format!("{answer:?}"),
            right,
        );
    }
    uplink.end();
}

#[test]
fn what_goes_out_is_masqueraded_to_the_tunnels_address() {
    need_root!();
    let uplink = Uplink::new();
    let world = &uplink.world;
    let n2b = &world.host.container("n2b").namespace;
    for [own, peer] in families() {
        for size in [8usize, 301, 1200] {
            let part = format!("{size} bytes to {peer}");
            let payload = vec![0x44; size];
            let any = if own.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = n2b
                .run(|| {
                    let socket = UdpSocket::bind(any)?;
                    socket.connect(SocketAddr::new(peer, 7))?;
                    socket.set_read_timeout(Some(LONG))?;
                    Ok::<_, std::io::Error>(socket)
                })
                .expect("socket");
            let sent = TTL - 1;
            socket.send(&payload).expect("send");
            let request = next(&uplink.tun, |f| f.ports.is_some_and(|(_, to)| to == 7));
            let right = request.as_ref().is_some_and(|f| {
                f.source == Some(own)
                    && f.destination == Some(peer)
                    && f.ttl == Some(sent)
                    && f.checksum == Some(true)
                    && f.ip_checksum != Some(false)
                    && f.payload == payload
            });
            world.check(
                &part,
                "from the tunnel's address",
                format!("{request:?}"),
                right,
            );
            let Some((port, _)) = request.and_then(|f| f.ports) else {
                continue;
            };
            let reply = Frame::bare().ip(peer, own).udp(7, port).payload(b"reply");
            uplink.tun.send(&reply.build()).expect("send");
            let mut answer = [0; 64];
            let got = socket
                .recv(&mut answer)
                .map(|length| answer[..length].to_vec());
            world.check(
                &format!("{part}: reply"),
                "reply",
                format!("{got:?}"),
                got.is_ok_and(|bytes| bytes == b"reply"),
            );
        }
        // Echo, answered by this test.
        std::thread::scope(|scope| {
            let tun = &uplink.tun;
            scope.spawn(move || {
                let request = next(tun, |f| matches!(f.icmp, Some((8 | 128, 0))))?;
                let (identifier, sequence) = request.echo?;
                let (from, to) = (request.source?, request.destination?);
                if from == own && request.checksum == Some(true) {
                    let reply = Frame::bare()
                        .ip(to, from)
                        .echo_reply(identifier, sequence)
                        .payload(&request.payload);
                    tun.send(&reply.build()).expect("send");
                }
                Some(())
            });
            let got = ping(
                n2b,
                peer,
                &ProbeOptions::default().timeout(LONG).payload(700),
            );
            world.outcome(&format!("echo of {peer}"), Want::Reply, got);
        });
    }
    uplink.end();
}

#[test]
fn the_hosts_own_services_are_untouched() {
    need_root!();
    let uplink = Uplink::new();
    let world = &uplink.world;
    for [own, peer] in families() {
        let request = Frame::bare()
            .ip(peer, own)
            .udp(4001, HOST_SERVICE)
            .payload(b"q");
        let answer = uplink.exchange(&request, |f| f.ports == Some((HOST_SERVICE, 4001)));
        let report = format!("server=host peer={}", SocketAddr::new(peer, 4001));
        let right = answer.as_ref().is_some_and(|f| {
            f.checksum == Some(true) && String::from_utf8_lossy(&f.payload).starts_with(&report)
        });
        world.check(
            &format!("a service of {own}"),
            &report,
            format!("{answer:?}"),
            right,
        );

        let syn = |to| {
            Frame::bare()
                .ip(peer, own)
                .tcp(Tcp::new(4002, to, tcp_flags::SYN))
        };
        for (port, flags) in [
            (HOST_SERVICE, tcp_flags::SYN | tcp_flags::ACK),
            (HOST_SERVICE + 1, tcp_flags::RST | tcp_flags::ACK),
        ] {
            let answer = uplink.exchange(&syn(port), |f| f.ports == Some((port, 4002)));
            let got = answer.and_then(|f| f.tcp_flags);
            world.check(
                &format!("SYN to port {port} of {own}"),
                flags,
                format!("{got:?}"),
                got == Some(flags),
            );
        }
        let echo = Frame::bare()
            .ip(peer, own)
            .echo_request(7, 1)
            .payload(b"echo");
        let answer = uplink.exchange(&echo, |f| matches!(f.icmp, Some((0 | 129, 0))));
        world.check(
            &format!("echo of {own}"),
            "a reply",
            format!("{answer:?}"),
            answer
                .as_ref()
                .is_some_and(|f| f.payload == b"echo" && f.checksum == Some(true)),
        );

        // Straight to a container: dropped, as on any uplink. The control has the host's address.
        let n2b = world.host.container("n2b");
        let inside = if own.is_ipv4() {
            n2b.v4
        } else {
            n2b.v6.expect("n2 has IPv6")
        };
        let capture = Capture::filtered(&n2b.namespace, "eth0", |frame| {
            !frame.info.outgoing() && frame.decoded.ports.is_some()
        })
        .expect("capture");
        let straight = Frame::bare().ip(peer, inside).udp(4003, DATAGRAM);
        let control = Frame::bare().ip(peer, own).udp(4004, 8084);
        uplink.tun.send(&straight.build()).expect("send");
        let answer = uplink.exchange(&control, |f| f.ports == Some((8084, 4004)));
        world.check(
            "control",
            "answered",
            format!("{answer:?}"),
            answer.is_some(),
        );
        let came: Vec<_> = capture
            .stop()
            .iter()
            .filter_map(|f| f.decoded.ports.map(|(from, _)| from))
            .collect();
        world.check(
            &format!("straight to {inside}"),
            "the control alone",
            format!("{came:?}"),
            came == [4004],
        );
    }
    uplink.end();
}

#[test]
fn bulk_with_transmit_offload() {
    need_root!();
    bulk(true);
}

#[test]
fn bulk_without_transmit_offload() {
    need_root!();
    bulk(false);
}

/// Real stacks at both ends, and segments of many sizes both ways: a checksum that is left to hardware that is not there
/// would stop it.
fn bulk(tx_offload: bool) {
    const BYTES: u64 = 8 << 20;
    let options = StandardHostOptions {
        tx_offload,
        ..Default::default()
    };
    let mut path = None;
    let world = World::new(
        options,
        |host| path = Some(Path::by_tunnel(host, 1500).expect("the path")),
        |toml| toml,
    );
    let path = path.expect("built above");
    let n2b = &world.host.container("n2b").namespace;
    let options = ProbeOptions::default().timeout(Duration::from_secs(10));
    for addresses in addresses() {
        let (own, far) = (addresses.host, addresses.far);
        let (port, server) = if own.is_ipv4() {
            (8081, "c0")
        } else {
            (8085, "n2a")
        };
        for direction in [Direction::Upload, Direction::Download] {
            for (from, to) in [(n2b, at(far, WEB)), (&path.far, at(own, port))] {
                let moved = bulk_transfer(from, to, BYTES, direction, &options);
                world.check(
                    &format!("{direction:?}, {} → {to}", from.role()),
                    BYTES,
                    format!("{moved:?}"),
                    moved.as_ref().is_ok_and(|moved| moved.bytes == BYTES),
                );
            }
        }
        for payload in [1, 1000, 70_001] {
            let options = ProbeOptions::default().timeout(LONG).payload(payload);
            let part = |from: &str| format!("{payload} bytes, {from}");
            let got = tcp_probe(n2b, at(far, WEB), &options);
            world.outcome(&part("out"), by("far", own), got);
            let got = tcp_probe(&path.far, at(own, port), &options);
            world.outcome(&part("in"), by(server, far), got);
        }
    }
    world.end();
}
