//! Uplinks: tunnels that verify checksums, devices with short heads, strict reverse paths, and interfaces, addresses
//! and routes that come and go.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use netd::lab::{
    CLIENT, CLIENT_EXTRA, DATAGRAM, Decoded, Frame, HOST, HOST_EXTRA, LabError, LeakGuard,
    Namespace, ProbeOptions, Question, Route, StandardHost, StandardHostOptions, Tcp, Tun, TunKind,
    UdpStream, VethEnd, WEB, Want, Way, add_veth, frame, ip, net, ping, tcp_probe, udp_probe,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::world::{LONG, World, add_verified_tunnel, at, by, need_root};

/// The far end verifies the outer checksum, so the inner packets are CHECKSUM_COMPLETE: the kernel keeps a sum over
/// the whole packet, which every rewrite must bring up to date.
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
        },
        |toml| toml,
    );
    let subnets = StandardHost::masqueraded_subnets();
    let guard = LeakGuard::watch(&world.host.host, "vx0", &subnets).expect("leak guard");
    let (own4, own6) = (ip("100.64.0.1"), ip("fd77::1"));
    let (peer4, peer6) = (ip("100.64.0.2"), ip("fd77::2"));
    let n2b = &world.host.container("n2b").namespace;
    for size in [8, 300, 1200] {
        let options = ProbeOptions::default().timeout(LONG).payload(size);
        for (host, peer) in [(own4, peer4), (own6, peer6)] {
            let got = udp_probe(&world.host.client, at(host, 8084), &options);
            world.outcome(&format!("{size} bytes to {host}"), by("n2b", peer), got);
            let got = udp_probe(n2b, at(peer, DATAGRAM), &options);
            world.outcome(&format!("{size} bytes to {peer}"), by("client", host), got);
            let got = tcp_probe(n2b, at(peer, WEB), &options);
            world.outcome(
                &format!("{size} bytes over TCP to {peer}"),
                by("client", host),
                got,
            );
            world.outcome(
                &format!("echo of {size} bytes to {peer}"),
                Want::Reply,
                ping(n2b, peer, &options),
            );
        }
        let got = tcp_probe(&world.host.client, at(own6, 8085), &options);
        world.outcome(
            &format!("{size} bytes over TCP to {own6}"),
            by("n2a", peer6),
            got,
        );
        let got = tcp_probe(&world.host.client, at(own4, 8081), &options);
        world.outcome(
            &format!("{size} bytes over TCP to {own4}"),
            by("c0", peer4),
            got,
        );
    }
    if let Err(leak) = guard.finish() {
        world.check("vx0", "no leak", leak, false);
    }
    world.end();
}

/// A device that hands packets over in pieces: programs see only their first bytes directly.
#[test]
fn packets_with_short_heads() {
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
                host.host
                    .add_address("tap0", net("100.65.0.1/24"))
                    .expect("address");
                host.host
                    .add_address("tap0", net("fd65::1/64"))
                    .expect("address");
                host.host.set_up("tap0").expect("up");
                host.host
                    .set_neighbour("tap0", PEER.into(), peer_mac)
                    .expect("neighbour");
                host.host
                    .set_neighbour("tap0", ip("fd65::2"), peer_mac)
                    .expect("neighbour");
                tap = Some(device);
            }
            Err(error) => missing = Some(error),
        },
        |toml| toml,
    );
    let Some(tap) = tap else {
        let error: LabError = missing.expect("an error");
        println!("skipped: no TAP device in pieces here: {error}");
        return;
    };
    let mac = world.host.host.mac("tap0").expect("MAC");
    let eth = Frame::ethernet(peer_mac, mac);

    // In: published UDP and TCP. The answer is read whole, with its checksums.
    for size in [8usize, 300, 1200] {
        let payload = vec![0x33; size];
        for (peer, own) in [
            (IpAddr::from(PEER), IpAddr::from(OWN)),
            (ip("fd65::2"), ip("fd65::1")),
        ] {
            let request = eth
                .clone()
                .ip(peer, own)
                .udp(4000 + size as u16, 8084)
                .payload(&payload)
                .build();
            send_in_pieces(&tap, &request);
            let answer = next_frame(&tap, |f| f.ports == Some((8084, 4000 + size as u16)));
            let right = answer.as_ref().is_some_and(|f| {
                f.checksum == Some(true) && f.source == Some(own) && f.payload.ends_with(&payload)
            });
            world.check(
                &format!("{size} bytes from {peer}"),
                "the answer",
                format!("{answer:?}"),
                right,
            );
        }
    }
    let syn = eth
        .clone()
        .ip(PEER, OWN)
        .tcp(Tcp::new(4001, 8081, frame::tcp_flags::SYN).mss(1460))
        .build();
    send_in_pieces(&tap, &syn);
    let answer = next_frame(&tap, |f| f.ports == Some((8081, 4001)));
    let right = answer.as_ref().is_some_and(|f| {
        f.checksum == Some(true)
            && f.tcp_flags == Some(frame::tcp_flags::SYN | frame::tcp_flags::ACK)
    });
    world.check("SYN", "SYN and ACK", format!("{answer:?}"), right);

    // Out: echo requests are masqueraded; their replies come back in pieces.
    let stop = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let stopping = Arc::clone(&stop);
        let (tap, eth) = (&tap, &eth);
        scope.spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                let Some(request) = next_frame(tap, |f| matches!(f.icmp, Some((8 | 128, 0))))
                else {
                    continue;
                };
                // Of this host, with a right checksum, or it gets no answer.
                let own = [IpAddr::from(OWN), ip("fd65::1")];
                let (Some(source), Some(destination)) = (request.source, request.destination)
                else {
                    continue;
                };
                if !own.contains(&source) || request.checksum != Some(true) {
                    continue;
                }
                let (identifier, sequence) = request.echo.expect("an echo request");
                let reply = eth
                    .clone()
                    .ip(destination, source)
                    .echo_reply(identifier, sequence)
                    .payload(&request.payload)
                    .build();
                send_in_pieces(tap, &reply);
            }
        });
        for size in [8, 900] {
            let options = ProbeOptions::default().timeout(LONG).payload(size);
            for peer in [IpAddr::from(PEER), ip("fd65::2")] {
                let got = ping(&world.host.container("n2b").namespace, peer, &options);
                world.outcome(&format!("echo of {size} bytes to {peer}"), Want::Reply, got);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    world.end();
}

/// In three pieces, each of which becomes a part of its own: the kernel pulls what it needs and no more.
fn send_in_pieces(tap: &Tun, frame: &[u8]) {
    let (head, rest) = frame.split_at(frame.len().min(64));
    let (body, tail) = rest.split_at(rest.len().min(128));
    let pieces: Vec<&[u8]> = [head, body, tail]
        .into_iter()
        .filter(|piece| !piece.is_empty())
        .collect();
    tap.send_pieces(&pieces).expect("send");
}

fn next_frame(tap: &Tun, wanted: impl Fn(&Decoded) -> bool) -> Option<Decoded> {
    use std::os::fd::AsFd;
    let mut buffer = vec![0; 65536];
    let until = std::time::Instant::now() + Duration::from_secs(2);
    while std::time::Instant::now() < until {
        let mut fds = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(50u16)).unwrap_or(0) == 0 {
            continue;
        }
        let length = tap.receive(&mut buffer).expect("receive");
        let decoded = Decoded::read(&buffer[..length], true);
        if wanted(&decoded) {
            return Some(decoded);
        }
    }
    None
}

#[test]
fn strict_reverse_paths() {
    need_root!();
    let options = StandardHostOptions {
        extra_uplink: true,
        ..Default::default()
    };
    let world = World::standard(options);
    let (client, host) = (&world.host.client, &world.host.host);
    let eth = Frame::ethernet(
        client.mac("eth0").expect("MAC"),
        host.mac("up0").expect("MAC"),
    );
    let n2b = &world.host.container("n2b").namespace;
    let from = |source: &str, port| eth.clone().ip(ip(source), HOST).udp(port, 8084);
    // 198.19.0.0/24 lies behind the other uplink.
    let frames = |first| {
        [
            ("of the other uplink", from("198.19.0.9", first)),
            ("of this one", from("198.18.0.9", first + 1)),
        ]
    };
    world.frames(
        "rp_filter = 0",
        (client, "eth0"),
        (n2b, "eth0"),
        &frames(4001),
        &["of the other uplink", "of this one"],
    );
    host.set_sysctl("net/ipv4/conf/up0/rp_filter", 1)
        .expect("sysctl");
    // Sysctls send no event: a reload reads them again.
    world.reload(&super::world::Toml::standard(&world.host));
    world.frames(
        "rp_filter = 1",
        (client, "eth0"),
        (n2b, "eth0"),
        &frames(4011),
        &["of this one"],
    );
    let q = Question::new;
    world.ask(
        "rp_filter = 1",
        &[
            q("client", Way::Tcp, at(HOST, 8081), by("c0", CLIENT)),
            q(
                "extra",
                Way::Tcp,
                at(HOST_EXTRA, 8081),
                by("c0", CLIENT_EXTRA),
            ),
            q("c0", Way::Tcp, at(CLIENT, WEB), by("client", HOST)),
        ],
    );
    world.end();
}

#[test]
fn interfaces_and_routes_come_and_go() {
    need_root!();
    let world = World::standard(StandardHostOptions::default());
    let host = &world.host.host;
    let q = Question::new;
    let late = Namespace::create("late").expect("namespace");
    let stream = UdpStream::start(
        &world.host.client,
        at(HOST, 8084),
        Duration::from_millis(5),
        &ProbeOptions::default(),
    )
    .expect("stream");
    world.busy.set(true);

    add_veth(&VethEnd::new(host, "up9"), &VethEnd::new(&late, "eth0")).expect("veth");
    for (namespace, device, last) in [(host, "up9", 1), (&late, "eth0", 2)] {
        namespace
            .add_address(device, net(&format!("100.66.0.{last}/24")))
            .expect("address");
        namespace
            .add_address(device, net(&format!("fd66::{last}/64")))
            .expect("address");
        namespace.set_up(device).expect("up");
    }
    late.wait_ready("eth0").expect("ready");
    host.wait_ready("up9").expect("ready");
    world.daemon.settle().expect("settle");
    let guard =
        LeakGuard::watch(host, "up9", &StandardHost::masqueraded_subnets()).expect("leak guard");
    let _server = netd::lab::Server::start(
        &late,
        "late",
        &[
            netd::lab::Listen::tcp_any(WEB),
            netd::lab::Listen::udp_any(DATAGRAM),
        ]
        .concat(),
    )
    .expect("server");
    let options = ProbeOptions::default().timeout(LONG);
    world.outcome(
        "in by a new uplink",
        by("c0", ip("100.66.0.2")),
        tcp_probe(&late, at(ip("100.66.0.1"), 8081), &options),
    );
    world.outcome(
        "in by a new uplink, IPv6",
        by("n2a", ip("fd66::2")),
        tcp_probe(&late, at(ip("fd66::1"), 8085), &options),
    );
    let c0 = &world.host.container("c0").namespace;
    world.outcome(
        "out by a new uplink",
        by("late", ip("100.66.0.1")),
        tcp_probe(c0, at(ip("100.66.0.2"), WEB), &options),
    );

    // A prefix that both have: the route decides, and what it decides can change.
    let target = ip("100.67.0.7");
    let prefix = net("100.67.0.0/24");
    for namespace in [&world.host.client, &late] {
        namespace
            .add_address("lo", net("100.67.0.7/32"))
            .expect("address");
    }
    let to = at(target, WEB);
    world.ask("no route", &[q("c0", Way::Tcp, to, Want::Nothing)]);
    host.add_route(&Route::to(prefix).via(CLIENT.into()))
        .expect("route");
    world.ask("a route", &[q("c0", Way::Tcp, to, by("client", HOST))]);
    host.replace_route(&Route::to(prefix).via(ip("100.66.0.2")))
        .expect("route");
    std::thread::sleep(Duration::from_millis(300));
    world.outcome(
        "another route",
        by("late", ip("100.66.0.1")),
        tcp_probe(c0, to, &options),
    );
    host.replace_route(&Route::to(prefix).kind(netd::lab::RouteType::BlackHole))
        .expect("route");
    std::thread::sleep(Duration::from_millis(300));
    world.ask(
        "a blackhole",
        &[
            q("c0", Way::Tcp, to, Want::Nothing),
            q("c0", Way::Tcp, at(CLIENT, WEB), by("client", HOST)),
        ],
    );

    if let Err(leak) = guard.finish() {
        world.check("up9", "no leak", leak, false);
    }
    host.delete_device("up9").expect("delete");
    world.daemon.settle().expect("settle");
    world.ask(
        "gone",
        &[
            q("c0", Way::Tcp, at(ip("100.66.0.2"), WEB), Want::Nothing),
            q("client", Way::Tcp, at(HOST, 8081), by("c0", CLIENT)),
        ],
    );

    // The stream has seen all of it.
    let report = stream.stop();
    let whole = report.lost() == 0 && report.refused == 0 && report.sent > 100;
    world.check(
        "a stream of another uplink meanwhile",
        "no loss",
        report,
        whole,
    );
    world.end();
}
