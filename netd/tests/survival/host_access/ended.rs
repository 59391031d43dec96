//! The container or the publish goes: sockets of the host end, and their packets reach nobody else.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use netd::lab::{
    Capture, Captured, DATAGRAM, Listen, Namespace, ProbeOptions, Server, StandardHost, VethEnd,
    WEB, add_veth, net, ping,
};
use nix::sys::signal::Signal;
use socket2::Socket;

use super::sockets::{Bound, Way, ask, ask_datagram, ask_stream, open, receive, shown};
use super::{ANY, LOOPBACK, ONE, World, at, need_root};

const LONG: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(600);

/// Connections of the host that are in use, to addresses of every form.
struct Open {
    streams: Vec<(SocketAddr, TcpStream)>,
    datagrams: Vec<(SocketAddr, UdpSocket)>,
}

impl Open {
    fn to(host: &Namespace, to: &[SocketAddr]) -> Self {
        host.run(|| {
            let connect = |way, to: &SocketAddr| {
                let socket = open(way, &Bound::No, *to).expect("a socket");
                socket.set_read_timeout(Some(LONG)).expect("a timeout");
                socket.connect(&(*to).into()).expect("a connection");
                socket
            };
            let streams = to.iter().map(|to| (*to, connect(Way::Tcp, to).into()));
            let streams = streams.collect();
            let datagrams = to
                .iter()
                .map(|to| (*to, connect(Way::Connected, to).into()));
            let datagrams = datagrams.collect();
            Self { streams, datagrams }
        })
    }

    /// Every one is answered by this server.
    fn are_answered_by(&mut self, server: &str) {
        for (to, stream) in &mut self.streams {
            let report = ask_stream(stream).unwrap_or_else(|error| panic!("TCP {to}: {error}"));
            assert_eq!(report.server, server, "TCP {to}");
        }
        for (to, socket) in &self.datagrams {
            let report = ask_datagram(socket).unwrap_or_else(|error| panic!("UDP {to}: {error}"));
            assert_eq!(report.server, server, "UDP {to}");
        }
    }

    /// Every one is at its end: its program is told at once, and does not wait for a timeout.
    fn have_ended(&mut self) {
        let began = Instant::now();
        for (to, stream) in &mut self.streams {
            let error = ask_stream(stream).expect_err("the container is gone");
            let ended = [
                ErrorKind::ConnectionAborted,
                ErrorKind::BrokenPipe,
                ErrorKind::ConnectionReset,
            ];
            assert!(ended.contains(&error.kind()), "TCP {to}: {error:?}");
        }
        for (to, socket) in &self.datagrams {
            let error = ask_datagram(socket).expect_err("the container is gone");
            let ended = error.kind() == ErrorKind::ConnectionAborted
                // The error was taken by something else; then it is not connected any more.
                || error.raw_os_error() == Some(libc::EDESTADDRREQ);
            assert!(ended, "UDP {to}: {error:?}");
        }
        assert!(began.elapsed() < Duration::from_secs(1), "at once");
    }

    /// Sends on each, whatever comes of it.
    fn send(&mut self) -> io::Result<()> {
        use io::Write as _;
        for (_, stream) in &mut self.streams {
            stream.write_all(b"who\n")?;
        }
        for (_, socket) in &self.datagrams {
            socket.send(b"?")?;
        }
        Ok(())
    }
}

#[test]
fn a_removed_publish_ends_its_sockets_and_no_others() {
    need_root!();
    let world = World::new("replace");
    let host = &world.host.host;
    let removed = [
        at("127.0.0.1", ANY),
        at("198.18.0.1", ANY),
        at("::1", ANY),
        at("::ffff:127.0.0.1", ANY),
    ];
    let kept = [
        at("198.18.0.1", ONE),
        at("fd99::1", ONE),
        at("::1", LOOPBACK),
    ];
    let mut ending = Open::to(host, &removed);
    let mut living = Open::to(host, &kept);
    ending.are_answered_by("n2a");
    living.are_answered_by("n2a");
    // One socket that talks to both, with an address each time.
    let both = host.run(|| {
        let socket = open(Way::Unconnected, &Bound::No, removed[0]).expect("a socket");
        socket.set_read_timeout(Some(LONG)).expect("a timeout");
        socket
    });
    let exchange = |to: SocketAddr| {
        both.send_to(b"?", &to.into())?;
        receive(&both)
    };
    for to in [removed[0], kept[0], removed[1], kept[0]] {
        let (report, from) = exchange(to).expect("an answer");
        assert_eq!((report.server.as_str(), from), ("n2a", to));
    }

    let toml = World::toml(&world.host, "replace", &[ONE, LOOPBACK]);
    let answer = world.daemon.reload(&toml).expect("reload");
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    ending.have_ended();
    living.are_answered_by("n2a");
    let (report, from) = exchange(kept[0]).expect("an answer");
    assert_eq!((report.server.as_str(), from), ("n2a", kept[0]));
    for way in [Way::Tcp, Way::Connected] {
        let error = host
            .run(|| ask(way, &Bound::No, removed[0], SHORT))
            .expect_err("nothing is published there");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    world.end();
}

/// Another container with the addresses and, as Docker gave them for years, the MAC of n2a.
fn successor(host: &StandardHost) -> (Namespace, Server) {
    let n2a = host.container("n2a");
    host.host.delete_device(&n2a.host_device).expect("n2a goes");
    let next = Namespace::create("next").expect("a namespace");
    add_veth(
        &VethEnd::new(&next, "eth0").mac(n2a.mac),
        &VethEnd::new(&host.host, "vethnext"),
    )
    .expect("a veth");
    host.host.attach("vethnext", "br-n2").expect("a port");
    host.host.set_up("vethnext").expect("up");
    for address in [
        format!("{}/24", n2a.v4),
        format!("{}/64", n2a.v6.expect("IPv6")),
    ] {
        next.add_address("eth0", net(&address)).expect("an address");
    }
    next.set_up("eth0").expect("up");
    next.wait_ready("eth0").expect("ready");
    let listens = [Listen::tcp_any(WEB), Listen::udp_any(DATAGRAM)].concat();
    let server = Server::start(&next, "next", &listens).expect("a server");
    // The bridge and the host's neighbour tables learn where the addresses are now.
    let network = StandardHost::network("n2");
    for gateway in [network.gateway(), network.gateway6().expect("IPv6")] {
        let options = ProbeOptions::default().timeout(LONG);
        assert!(ping(&next, gateway, &options).answered(), "{gateway}");
    }
    (next, server)
}

/// A packet of the host to one of the servers, which are n2a's as well as its successor's.
fn is_to_a_server(frame: &Captured) -> bool {
    let port = frame.decoded.ports.map(|(_, to)| to);
    !frame.info.outgoing() && matches!(port, Some(WEB | DATAGRAM))
}

fn next_owner(mode: &str) {
    let mut world = World::new(mode);
    let host = world.host.host.clone();
    let all = [
        at("127.0.0.1", ANY),
        at("198.18.0.1", ONE),
        at("::1", LOOPBACK),
        at("::ffff:127.0.0.1", ANY),
    ];
    let mut led = Open::to(&host, &all);
    led.are_answered_by("n2a");
    let unconnected = host.run(|| {
        let socket = open(Way::Unconnected, &Bound::No, all[0]).expect("a socket");
        socket.send_to(b"?", &all[0].into()).expect("sent");
        socket.set_read_timeout(Some(LONG)).expect("a timeout");
        assert_eq!(receive(&socket).expect("an answer").0.server, "n2a");
        socket
    });

    world.daemon.stop(Signal::SIGKILL).expect("killed");
    let (next, server) = successor(&world.host);
    let capture = Capture::filtered(&next, "eth0", is_to_a_server).expect("a capture");
    led.send().expect("the sockets do not know yet");
    unconnected.send_to(b"?", &all[0].into()).expect("sent");
    // New ones too are led to the container that the data plane knows, which is gone.
    for way in [Way::Tcp, Way::Connected, Way::Unconnected] {
        let asked = host.run(|| ask(way, &Bound::No, all[0], SHORT));
        assert!(asked.is_err(), "{way:?}: {asked:?}");
    }
    // Retransmissions, too.
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(capture.frames().len(), 0, "{:?}", capture.frames());
    assert_eq!(server.requests(), 0);

    // What differs from these: a socket that was never led to n2a, and means the new container.
    let n2a = world.host.container("n2a");
    for address in [n2a.v4, n2a.v6.expect("IPv6")] {
        for (way, port) in [
            (Way::Tcp, WEB),
            (Way::Connected, DATAGRAM),
            (Way::Unconnected, DATAGRAM),
        ] {
            let to: (IpAddr, u16) = (address, port);
            let asked = host.run(|| ask(way, &Bound::No, to.into(), LONG));
            let report = asked
                .expect("the host reaches a container by its address")
                .report;
            assert_eq!(report.server, "next", "{way:?} {address}");
        }
    }
    assert!(!capture.stop().is_empty(), "the capture sees such packets");
    // Nothing was lost without a word: n2a's veth is gone, and with it what was sent there.
    let drops = world.daemon.verb(&["status", "--json"]).expect("status");
    let hook = |name: &str, what: &str| {
        let report: serde_json::Value = serde_json::from_str(&drops.stdout).expect("JSON");
        let hooks = report["data_plane"]["verdicts"]
            .as_array()
            .expect("hooks")
            .clone();
        let found = hooks.iter().find(|hook| hook["hook"] == name);
        found.expect("the hook")[what].as_u64().expect("a number")
    };
    assert!(hook("connect4", "decided") > 0 && hook("sendmsg4", "decided") > 0);
    assert!(hook("bridge_guard_out", "decided") > 0);
    let direct = server.requests();

    world.daemon.run(&[]).expect("the daemon returns");
    led.have_ended();
    assert_eq!(
        server.requests(),
        direct,
        "none of the old sockets got through"
    );
    for to in all {
        for way in [Way::Tcp, Way::Connected, Way::Unconnected] {
            let answer = host
                .run(|| ask(way, &Bound::No, to, LONG))
                .expect("an answer");
            assert_eq!(answer.report.server, "next", "{way:?} {to}");
        }
    }
    unconnected.send_to(b"?", &all[0].into()).expect("sent");
    let (report, from) = receive(&unconnected).expect("an answer");
    assert_eq!((report.server.as_str(), from), ("next", all[0]));
    drop(server);
    world.end();
}

#[test]
fn the_next_owner_of_an_address_is_not_reached_in_replace_mode() {
    need_root!();
    next_owner("replace");
}

#[test]
fn the_next_owner_of_an_address_is_not_reached_in_accelerate_mode() {
    need_root!();
    next_owner("accelerate");
}

/// A container goes while the daemon runs: its host sockets end by themselves, a new connection is
/// refused, and nothing waits.
#[test]
fn a_container_that_goes_takes_its_sockets_along() {
    need_root!();
    let world = World::new("replace");
    let host = &world.host.host;
    let mut open = Open::to(host, &[at("127.0.0.1", ANY), at("::1", ANY)]);
    open.are_answered_by("n2a");
    let n2a = world.host.container("n2a");
    host.delete_device(&n2a.host_device).expect("n2a goes");
    world.daemon.settle().expect("settled");
    open.have_ended();
    for way in [Way::Tcp, Way::Connected, Way::Unconnected] {
        let error = host
            .run(|| ask(way, &Bound::No, at("127.0.0.1", ANY), LONG))
            .expect_err("the container is gone");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{way:?}");
    }
    world.end();
}

/// A socket that could not be ended: its packets are dropped and counted, those of another socket to
/// the same container are not. The entry is written by hand, for the daemon would end the socket.
#[test]
fn packets_of_a_socket_that_was_led_elsewhere_are_counted() {
    need_root!();
    let world = World::new("replace");
    let n2a = world.host.container("n2a");
    let to = SocketAddr::new(n2a.v4, WEB);
    let connect = || {
        let socket = world.host.host.run(|| {
            let socket = open(Way::Tcp, &Bound::No, to).expect("a socket");
            socket.connect(&to.into()).expect("a connection");
            socket
        });
        socket.set_read_timeout(Some(SHORT)).expect("a timeout");
        socket
    };
    let (stale, other) = (connect(), connect());
    let pin = world.daemon.pin_dir().join("v2/maps/SOCKETS");
    let data = MapData::from_pin(pin).expect("the map");
    let map = Map::from_map_data(data).expect("the map");
    let mut sockets: HashMap<_, [u8; 32], [u8; 28]> = HashMap::try_from(map).expect("the map");
    let mut key = [0; 32];
    key[..8].copy_from_slice(&stale.cookie().expect("a cookie").to_ne_bytes());
    key[18..20].fill(0xff);
    let IpAddr::V4(v4) = n2a.v4 else {
        unreachable!("it is IPv4")
    };
    key[20..24].copy_from_slice(&v4.octets());
    key[24..26].copy_from_slice(&WEB.to_be_bytes());
    key[26] = libc::IPPROTO_TCP as u8;
    let mut peer = [0; 28];
    // No container's veth.
    peer[20..24].copy_from_slice(&0x7fff_0000u32.to_ne_bytes());
    sockets.insert(key, peer, 0).expect("an entry");

    let exchange = |socket: &Socket| {
        let mut stream = TcpStream::from(socket.try_clone().expect("a clone"));
        ask_stream(&mut stream).map(|report| report.server)
    };
    let before = n2a.server.requests();
    let error = exchange(&stale).expect_err("its packets are dropped");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert_eq!(n2a.server.requests(), before);
    assert_eq!(exchange(&other).expect("an answer"), "n2a");
    let drops = world.daemon.verb(&["drops"]).expect("drops").stdout;
    assert!(drops.contains("stale-host-socket"), "{drops}");
    // The same socket, and nothing else against it: the segment is sent again.
    sockets.remove(&key).expect("removed");
    stale.set_read_timeout(Some(LONG)).expect("a timeout");
    assert_eq!(exchange(&stale).expect("an answer"), "n2a");
    world.end();
}

/// TCP fast open: TCP_FASTOPEN_CONNECT, where connect() sends nothing, and sendto(MSG_FASTOPEN),
/// where there is no connect() at all. The kernel calls the connect hook for both
/// (__inet_stream_connect in net/ipv4/af_inet.c, which tcp_sendmsg_fastopen calls too).
#[test]
fn fast_open() {
    need_root!();
    use socket2::SockRef;
    use std::os::fd::AsRawFd as _;
    let world = World::new("replace");
    let host = &world.host.host;
    for to in [
        at("127.0.0.1", ANY),
        at("198.18.0.1", ONE),
        at("::1", ANY),
        at("::ffff:127.0.0.1", ANY),
    ] {
        for with_connect in [true, false] {
            let (report, peer) = host.run(|| {
                let socket = open(Way::Tcp, &Bound::No, to).expect("a socket");
                socket.set_read_timeout(Some(LONG)).expect("a timeout");
                if with_connect {
                    let on: libc::c_int = 1;
                    // SAFETY: the value is valid for its length.
                    let set = unsafe {
                        libc::setsockopt(
                            socket.as_raw_fd(),
                            libc::IPPROTO_TCP,
                            libc::TCP_FASTOPEN_CONNECT,
                            (&raw const on).cast(),
                            size_of_val(&on) as u32,
                        )
                    };
                    assert_eq!(set, 0, "{}", io::Error::last_os_error());
                    socket.connect(&to.into()).expect("deferred");
                } else {
                    let sent = SockRef::from(&socket)
                        .send_to_with_flags(b"who\n", &to.into(), libc::MSG_FASTOPEN)
                        .unwrap_or_else(|error| panic!("{to}: {error}"));
                    assert_eq!(sent, 4);
                }
                let mut stream = TcpStream::from(socket.try_clone().expect("a clone"));
                let report = ask_stream(&mut stream).expect("an answer");
                (report, shown(&socket).expect("a peer"))
            });
            assert_eq!((report.server.as_str(), peer), ("n2a", to));
        }
    }
    world.end();
}
