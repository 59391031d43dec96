//! ICMP errors that others send about netd's flows, with real sockets: what a container and a client learn of closed
//! ports, of routers on the way, and of links that are too small.
//!
//! The world beyond the uplink, where packets larger than 1280 bytes do not pass between the routers:
//!
//! ```text
//!  host 198.18.0.1 ── 198.18.0.2 client 100.64.8.1 ──(1280)── 100.64.8.2 middle 100.64.9.1 ── 100.64.9.2 far
//!       fd99::1       fd99::2           fd64:8::1            fd64:8::2          fd64:9::1      fd64:9::2
//! ```

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use netd::lab::{
    Capture, Connection, DATAGRAM, Decoded, Frame, Hop, Listen, Namespace, ProbeOptions, Route,
    Server, StandardHost, StandardHostOptions, Trace, Tun, TunKind, VethEnd, WEB, Want, add_veth,
    ip, net, trace, udp_probe,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::world::{LONG, Toml, World, add_verified_tunnel, at, by, need_root};

/// Nothing listens there, in a container or elsewhere.
const CLOSED: u16 = 4999;
/// Published, and leads to [`CLOSED`] of n2b.
const TO_CLOSED: u16 = 8099;
/// Published, and leads to [`LARGE`] of n2b.
const TO_LARGE: u16 = 8098;
/// Answers with datagrams that are too large for the way.
const LARGE: u16 = 5001;
/// The smallest link on the way.
const SMALL: u32 = 1280;

const FAR: [&str; 2] = ["100.64.9.2", "fd64:9::2"];

/// The namespaces beyond the client.
struct Beyond {
    _middle: Namespace,
    far: Namespace,
    _server: Server,
}

fn beyond(host: &StandardHost) -> Beyond {
    let middle = Namespace::create("middle").expect("namespace");
    let far = Namespace::create("far").expect("namespace");
    let client = &host.client;
    add_veth(
        &VethEnd::new(client, "small").mtu(SMALL),
        &VethEnd::new(&middle, "small").mtu(SMALL),
    )
    .expect("veth");
    add_veth(&VethEnd::new(&middle, "eth1"), &VethEnd::new(&far, "eth0")).expect("veth");
    for (namespace, device, v4, v6) in [
        (client, "small", "100.64.8.1/24", "fd64:8::1/64"),
        (&middle, "small", "100.64.8.2/24", "fd64:8::2/64"),
        (&middle, "eth1", "100.64.9.1/24", "fd64:9::1/64"),
        (&far, "eth0", "100.64.9.2/24", "fd64:9::2/64"),
    ] {
        namespace.add_address(device, net(v4)).expect("address");
        namespace.add_address(device, net(v6)).expect("address");
        namespace.set_up(device).expect("up");
    }
    for (namespace, device) in [(client, "small"), (&middle, "eth1"), (&far, "eth0")] {
        namespace.wait_ready(device).expect("ready");
    }
    for router in [client, &middle] {
        router.set_sysctl("net/ipv4/ip_forward", 1).expect("sysctl");
        router
            .set_sysctl("net/ipv6/conf/all/forwarding", 1)
            .expect("sysctl");
    }
    for namespace in [client, &middle, &far] {
        talk_freely(namespace);
    }
    let route = |namespace: &Namespace, to: &str, via: &str| {
        namespace
            .add_route(&Route::to(net(to)).via(ip(via)))
            .expect("route");
    };
    for (to, via) in [("100.64.8.0/23", "198.18.0.2"), ("fd64:8::/31", "fd99::2")] {
        route(&host.host, to, via);
    }
    route(client, "100.64.9.0/24", "100.64.8.2");
    route(client, "fd64:9::/64", "fd64:8::2");
    for (namespace, v4, v6) in [
        (&middle, "100.64.8.1", "fd64:8::1"),
        (&far, "100.64.9.1", "fd64:9::1"),
    ] {
        route(namespace, "198.18.0.0/24", v4);
        route(namespace, "fd99::/64", v6);
    }
    route(&far, "100.64.8.0/24", "100.64.9.1");
    route(&far, "fd64:8::/64", "fd64:9::1");
    let listens = [Listen::tcp_any(WEB), Listen::udp_any(DATAGRAM)].concat();
    let server = Server::start(&far, "far", &listens).expect("server");
    Beyond {
        _middle: middle,
        far,
        _server: server,
    }
}

/// Errors are counted here, not rationed.
fn talk_freely(namespace: &Namespace) {
    for key in ["net/ipv4/icmp_ratelimit", "net/ipv6/icmp/ratelimit"] {
        namespace.set_sysctl(key, 0).expect("sysctl");
    }
}

fn world(mode: &str) -> (World, Beyond) {
    let mut beyond_it = None;
    let world = World::new(
        StandardHostOptions::default(),
        |host| beyond_it = Some(prepared(host)),
        |toml| publishes(toml).host("mode", &format!("{mode:?}")),
    );
    (world, beyond_it.expect("prepared"))
}

fn prepared(host: &StandardHost) -> Beyond {
    for container in &host.containers {
        talk_freely(&container.namespace);
    }
    beyond(host)
}

fn publishes(toml: Toml) -> Toml {
    let (closed, large) = (CLOSED.to_string(), LARGE.to_string());
    let mut toml = toml;
    for (container, any) in [("10.201.2.3", "\"0.0.0.0\""), ("fd00:201:2::3", "\"::\"")] {
        for (port, to) in [(TO_CLOSED, &closed), (TO_LARGE, &large)] {
            let port = port.to_string();
            toml = toml.publish("n2", ip(container), "udp", any, (&port, to), "");
        }
    }
    toml
}

fn patient(size: usize) -> ProbeOptions {
    ProbeOptions::default().timeout(LONG).payload(size)
}

fn of_family(address: IpAddr, v4: &str, v6: &str) -> IpAddr {
    ip(if address.is_ipv4() { v4 } else { v6 })
}

/// The error that the client sees about a datagram to a closed port inside, and what it must be. `offload`: what the
/// container quotes has only half a checksum, which its device would have completed.
fn refusal_is_the_hosts(world: &World, device: &str, host: IpAddr, size: usize, offload: bool) {
    let client = &world.host.client;
    let errors = Capture::filtered(client, device, |frame| {
        !frame.info.outgoing() && matches!(frame.decoded.icmp, Some((3, 3) | (1, 4)))
    })
    .expect("capture");
    let name = format!("{size} bytes to {host}:{TO_CLOSED}");
    let got = udp_probe(client, at(host, TO_CLOSED), &patient(size));
    world.outcome(&name, Want::Refused, got);
    errors.wait_for(LONG, |_| true);
    let errors = errors.stop();
    let right = errors.first().is_some_and(|error| {
        let quoted = Decoded::read(&error.decoded.payload, false);
        error.decoded.source == Some(host)
            && error.decoded.checksum == Some(true)
            && error.decoded.ip_checksum != Some(false)
            && quoted.destination == Some(host)
            && quoted.source == error.decoded.destination
            && quoted.ports.is_some_and(|(_, port)| port == TO_CLOSED)
            && quoted.ip_checksum != Some(false)
            && (offload || quoted.checksum != Some(false))
    });
    world.check(
        &name,
        "one error, of the host, about what was sent to the host",
        format!("{errors:?}"),
        right && errors.len() == 1,
    );
}

/// Closed ports, there and here, through each kind of flow.
fn closed_ports(mode: &str) {
    let (world, _beyond) = world(mode);
    let n2b = &world.host.container("n2b").namespace;
    for (own, client) in [
        (ip("198.18.0.1"), ip("198.18.0.2")),
        (ip("fd99::1"), ip("fd99::2")),
    ] {
        let far = of_family(own, FAR[0], FAR[1]);
        for size in [8, 600] {
            for (target, server) in [(client, "client"), (far, "far")] {
                let name = format!("{size} bytes to {target}");
                let got = udp_probe(n2b, at(target, CLOSED), &patient(size));
                world.outcome(&format!("{name}, closed"), Want::Refused, got);
                let got = udp_probe(n2b, at(target, DATAGRAM), &patient(size));
                world.outcome(&name, by(server, own), got);
            }
            refusal_is_the_hosts(&world, "eth0", own, size, true);
            let got = udp_probe(&world.host.client, at(own, 8084), &patient(size));
            world.outcome(&format!("{size} bytes to {own}"), by("n2b", client), got);
        }
        // By the host's address: itself, a neighbour, another network.
        for name in ["n2b", "n2a", "c0", "n1a"] {
            let container = world.host.container(name);
            if own.is_ipv6() && container.v6.is_none() {
                continue;
            }
            let got = udp_probe(&container.namespace, at(own, TO_CLOSED), &patient(8));
            world.outcome(&format!("{name} to {own}, closed"), Want::Refused, got);
        }
    }
    world.end();
}

#[test]
fn closed_ports_are_told_of() {
    need_root!();
    closed_ports("replace");
}

#[test]
fn closed_ports_are_told_of_in_accelerate_mode() {
    need_root!();
    closed_ports("accelerate");
}

/// Sets a socket option that is an integer.
fn set(socket: &impl AsRawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value is an integer, and its size is passed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What the kernel knows of the way of a connected socket (IP_MTU, IPV6_MTU).
fn path_mtu(socket: &impl AsRawFd, peer: IpAddr) -> io::Result<u32> {
    let (level, name) = if peer.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU)
    };
    let mut value = 0i32;
    let mut length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the kernel writes an integer, whose size is passed.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(value as u32)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A datagram socket that never fragments (IP_PMTUDISC_DO).
fn whole(socket: &UdpSocket, peer: IpAddr) -> io::Result<()> {
    let (level, name) = if peer.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    };
    set(socket, level, name, libc::IP_PMTUDISC_DO)
}

/// Sends what is too large, until the kernel has learnt so.
fn learn(socket: &UdpSocket, peer: IpAddr) -> io::Result<u32> {
    let until = Instant::now() + LONG;
    loop {
        let known = path_mtu(socket, peer)?;
        if known < 1500 || Instant::now() > until {
            return Ok(known);
        }
        match socket.send(&[0; 1400]) {
            Err(error) if error.raw_os_error() != Some(libc::EMSGSIZE) => return Err(error),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn any_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "0.0.0.0" } else { "::" }
}

/// A router on the way has a smaller link: whoever sends learns its MTU, and what is sent arrives.
fn small_links(mode: &str) {
    let (world, beyond) = world(mode);
    let n2b = &world.host.container("n2b").namespace;
    let told = format!("an MTU of {SMALL}");
    for far in FAR.map(ip) {
        let own = of_family(far, "198.18.0.1", "fd99::1");
        // A container that sends far away.
        let learnt = n2b.run(|| {
            let socket = UdpSocket::bind((any_of(far), 0))?;
            whole(&socket, far)?;
            socket.connect((far, DATAGRAM))?;
            learn(&socket, far)
        });
        let name = format!("datagrams to {far}");
        let right = matches!(learnt, Ok(SMALL));
        world.check(&name, &told, format!("{learnt:?}"), right);
        // A container that answers from far away: the error is about the reply of a published port.
        let learnt = answer_too_large(n2b, &beyond.far, own, far);
        let name = format!("answers to {far}");
        let right = matches!(learnt, Ok(SMALL));
        world.check(&name, &told, format!("{learnt:?}"), right);
        // TCP both ways, with more than a window: a black hole would end it.
        let other = world.host.container("n2a");
        let mut connection = match Connection::open(&other.namespace, at(far, WEB), &patient(0)) {
            Ok(connection) => connection,
            Err(outcome) => panic!("connect to {far}: {outcome}"),
        };
        let got = connection.exchange(300_000, LONG);
        world.outcome(&format!("300 kB to {far} and back"), by("far", own), got);
        let learnt = path_mtu(connection.stream(), far);
        let right = matches!(learnt, Ok(SMALL));
        world.check(
            &format!("TCP to {far}"),
            &told,
            format!("{learnt:?}"),
            right,
        );
        let port = if far.is_ipv4() { 8083 } else { 8085 };
        let got = netd::lab::tcp_probe(&beyond.far, at(own, port), &patient(300_000));
        world.outcome(&format!("300 kB from {far} and back"), by("n2a", far), got);
    }
    world.end();
}

/// A datagram from `far` to a published port, whose server answers with more than passes. What the server learns.
fn answer_too_large(
    server: &Namespace,
    client: &Namespace,
    own: IpAddr,
    far: IpAddr,
) -> io::Result<u32> {
    let (ready, wait) = mpsc::channel();
    std::thread::scope(|scope| {
        let serving = scope.spawn(move || {
            server.run(move || {
                let socket = UdpSocket::bind((any_of(far), LARGE))?;
                socket.set_read_timeout(Some(LONG))?;
                whole(&socket, far)?;
                ready.send(()).expect("the client waits");
                let (_, peer) = socket.recv_from(&mut [0; 100])?;
                socket.connect(peer)?;
                learn(&socket, far)
            })
        });
        wait.recv_timeout(LONG).map_err(io::Error::other)?;
        client.run(move || {
            let socket = UdpSocket::bind((any_of(far), 0))?;
            socket.send_to(b"?", SocketAddr::new(own, TO_LARGE))
        })?;
        serving.join().expect("the server's thread")
    })
}

#[test]
fn small_links_are_told_of() {
    need_root!();
    small_links("replace");
}

#[test]
fn small_links_are_told_of_in_accelerate_mode() {
    need_root!();
    small_links("accelerate");
}

/// Like traceroute: every router beyond the host says so in its own name, and the end too.
#[test]
fn every_hop_is_seen_in_accelerate_mode() {
    need_root!();
    let (world, _beyond) = world("accelerate");
    let n2b = &world.host.container("n2b").namespace;
    for far in FAR.map(ip) {
        let hops = [
            Hop::Expired(of_family(far, "198.18.0.2", "fd99::2")),
            Hop::Expired(of_family(far, "100.64.8.2", "fd64:8::2")),
            Hop::Arrived(far),
        ];
        for with in [Trace::Udp(33_434), Trace::Echo] {
            let got = trace(n2b, far, with, 5, LONG).expect("probes");
            // The first hop is the host itself.
            world.check(
                &format!("{with:?} to {far}"),
                format!("{hops:?}"),
                format!("{got:?}"),
                got.get(1..) == Some(&hops),
            );
        }
    }
    world.end();
}

/// A tunnel whose far end verifies the outer checksum: errors arrive with a sum over the whole packet
/// (CHECKSUM_COMPLETE), which the rewriting of both their packets must keep right.
#[test]
fn a_tunnel_with_verified_checksums() {
    need_root!();
    let options = StandardHostOptions {
        tx_offload: false,
        ..Default::default()
    };
    let world = World::new(
        options,
        |host| {
            add_verified_tunnel(host);
            talk_freely(&host.host);
            talk_freely(&host.client);
            for container in &host.containers {
                talk_freely(&container.namespace);
            }
        },
        publishes,
    );
    let n2b = &world.host.container("n2b").namespace;
    for (own, peer) in [("100.64.0.1", "100.64.0.2"), ("fd77::1", "fd77::2")] {
        let (own, peer) = (ip(own), ip(peer));
        for size in [8, 301, 1200] {
            let got = udp_probe(n2b, at(peer, CLOSED), &patient(size));
            world.outcome(
                &format!("{size} bytes to {peer}, closed"),
                Want::Refused,
                got,
            );
            let got = udp_probe(n2b, at(peer, DATAGRAM), &patient(size));
            world.outcome(&format!("{size} bytes to {peer}"), by("client", own), got);
            refusal_is_the_hosts(&world, "vx0", own, size, false);
        }
    }
    world.end();
}

/// A device that hands packets over in pieces: the quoted packet lies beyond what programs see directly.
#[test]
fn errors_in_pieces() {
    need_root!();
    const OWN: Ipv4Addr = Ipv4Addr::new(100, 65, 0, 1);
    const PEER: Ipv4Addr = Ipv4Addr::new(100, 65, 0, 2);
    let peer_mac = [0x02, 0, 0, 0, 0x65, 0x02];
    let mut tap = None;
    let mut missing = None;
    let world = World::new(
        StandardHostOptions::default(),
        |host| match Tun::create(&host.host, "tap0", TunKind::TapFragments) {
            Ok(device) => {
                for address in ["100.65.0.1/24", "fd65::1/64"] {
                    host.host
                        .add_address("tap0", net(address))
                        .expect("address");
                }
                host.host.set_up("tap0").expect("up");
                for address in [IpAddr::from(PEER), ip("fd65::2")] {
                    host.host
                        .set_neighbour("tap0", address, peer_mac)
                        .expect("neighbour");
                }
                tap = Some(device);
            }
            Err(error) => missing = Some(error),
        },
        |toml| toml,
    );
    let Some(tap) = tap else {
        println!("skipped: no TAP device in pieces here: {missing:?}");
        return;
    };
    let mac = world.host.host.mac("tap0").expect("MAC");
    let n2b = &world.host.container("n2b").namespace;
    for (peer, own) in [
        (IpAddr::from(PEER), IpAddr::from(OWN)),
        (ip("fd65::2"), ip("fd65::1")),
    ] {
        for size in [8, 500, 1100] {
            // The control: an error with a wrong checksum is none.
            for right in [true, false] {
                let got = std::thread::scope(|scope| {
                    let options = if right {
                        patient(size)
                    } else {
                        ProbeOptions::default().payload(size)
                    };
                    let asking = scope.spawn(move || udp_probe(n2b, at(peer, CLOSED), &options));
                    let datagram = next_datagram(&tap, peer);
                    if let Some(datagram) = &datagram {
                        let (kind, code) = if peer.is_ipv4() { (3, 3) } else { (1, 4) };
                        let mut error = Frame::ethernet(peer_mac, mac)
                            .ip(peer, own)
                            .icmp(kind, code, [0; 4])
                            .payload(&datagram[14..]);
                        if !right {
                            error = error.broken_checksum();
                        }
                        send_in_pieces(&tap, &error.build());
                    }
                    world.check(
                        &format!("{size} bytes to {peer}"),
                        "sent",
                        format!("{datagram:02x?}"),
                        datagram.is_some(),
                    );
                    asking.join().expect("the asking thread")
                });
                let want = if right { Want::Refused } else { Want::Nothing };
                let name = format!("{size} bytes to {peer}, checksum right: {right}");
                world.outcome(&name, want, got);
            }
        }
    }
    world.end();
}

fn send_in_pieces(tap: &Tun, frame: &[u8]) {
    let (head, rest) = frame.split_at(frame.len().min(64));
    let (body, tail) = rest.split_at(rest.len().min(128));
    let pieces: Vec<&[u8]> = [head, body, tail]
        .into_iter()
        .filter(|piece| !piece.is_empty())
        .collect();
    tap.send_pieces(&pieces).expect("send");
}

/// The next datagram to [`CLOSED`] of this address that leaves by the device.
fn next_datagram(tap: &Tun, to: IpAddr) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 65536];
    let until = Instant::now() + LONG;
    while Instant::now() < until {
        let mut fds = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(50u16)).unwrap_or(0) == 0 {
            continue;
        }
        let length = tap.receive(&mut buffer).expect("receive");
        let decoded = Decoded::read(&buffer[..length], true);
        let wanted = decoded.ports.is_some_and(|(_, port)| port == CLOSED);
        if wanted && decoded.destination == Some(to) {
            return Some(buffer[..length].to_vec());
        }
    }
    None
}
