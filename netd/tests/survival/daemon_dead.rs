//! Without a daemon: what was enforced is enforced, what is new has no network, and routes are still followed. When the
//! daemon returns, it changes what has to be changed and nothing else.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use netd::lab::{
    CLIENT, Capture, Connection, DATAGRAM, HOST, Mac, Namespace, Outcome, ProbeOptions, Question,
    Route, StandardHostOptions, WEB, Want, Way, ip, net,
};

use crate::load::Push;
use crate::programs::need_root;
use crate::world::{LONG, SHORT, World, at, by, config, publish};

/// Port of the standard file that leads to c0:80.
const C0: u16 = 8081;
/// Of n2a.
const N2A: u16 = 8083;

/// Forwarding is on: nothing but netd stands between the networks.
fn open_host(networks: &'static [&'static str]) -> StandardHostOptions {
    StandardHostOptions {
        forwarding: true,
        networks,
        ..StandardHostOptions::default()
    }
}

/// A UDP socket in a namespace.
fn udp(namespace: &Namespace, port: u16) -> UdpSocket {
    let any = SocketAddr::from(([0, 0, 0, 0], port));
    let socket = namespace.run(|| UdpSocket::bind(any)).expect("bind");
    socket.set_read_timeout(Some(LONG)).expect("a timeout");
    socket
}

/// Sends a datagram to a server or an echo; who answered.
fn answer(socket: &UdpSocket, to: SocketAddr) -> Option<SocketAddr> {
    socket.send_to(b"hello", to).expect("send");
    let mut buffer = [0; 512];
    socket.recv_from(&mut buffer).ok().map(|(_, from)| from)
}

#[test]
fn everything_is_still_enforced() {
    need_root!();
    let mut world = World::new(open_host(&["def", "n1", "n2", "n3"]), |_| String::new());
    let address = |name: &str| world.container(name).v4;
    let (c0, c0b, n1a, n1b) = (
        address("c0"),
        address("c0b"),
        address("n1a"),
        address("n1b"),
    );
    let (n2a, n2b) = (address("n2a"), address("n2b"));
    let ask = |from, to, want| Question::new(from, Way::Tcp, to, want);
    let questions = [
        // Between containers of one network, where that is on and where it is off.
        ask("c0", at(c0b, WEB), by("c0b", c0)),
        ask("n1a", at(n1b, WEB), Want::Nothing),
        // Inside a network, and across two.
        ask("n2a", at(n2b, WEB), by("n2b", n2a)),
        ask("c0", at(n2b, WEB), Want::Nothing),
        // To the published port, and to the container directly.
        ask("client", at(HOST, C0), by("c0", CLIENT)),
        ask("client", at(c0, WEB), Want::Nothing),
        // Published on the uplink's address, and on the loopback's only.
        ask("client", at(HOST, N2A), by("n2a", CLIENT)),
        ask("client", at(HOST, 8082), Want::Refused),
        // A published UDP port, and one that is not.
        Question::new("client", Way::Udp, at(HOST, 8084), by("n2b", CLIENT)),
        Question::new("client", Way::Udp, at(n2b, DATAGRAM), Want::Nothing),
        // Into the world, from a network that may and from an internal one.
        ask("n1a", at(CLIENT, WEB), by("client", HOST)),
        ask("n3a", at(CLIENT, WEB), Want::Nothing),
        // Hairpin, with the client's own address.
        ask("n1a", at(HOST, C0), by("c0", n1a)),
    ];
    world.ask("with the daemon", &questions);
    world.kill();
    world.ask("without the daemon", &questions);
    // An address that nobody gave the container, and its own.
    let sent_from = |address: &str| {
        let options = ProbeOptions::default()
            .timeout(SHORT)
            .source(at(ip(address), 0));
        world.host.tcp("c0", at(CLIENT, WEB), &options)
    };
    let c0 = &world.container("c0").namespace;
    c0.add_address("eth0", net("10.200.0.77/24"))
        .expect("an address");
    let (own, foreign) = (sent_from("10.200.0.2"), sent_from("10.200.0.77"));
    c0.delete_address("eth0", net("10.200.0.77/24"))
        .expect("gone");
    assert!(by("client", HOST).matches(&own), "{own}");
    assert!(Want::Nothing.matches(&foreign), "{foreign}");
    // Long after, as far as a test can wait: next hops have been looked up again.
    std::thread::sleep(Duration::from_secs(6));
    world.ask("without the daemon for a while", &questions);
    world.start_again();
    world.ask("with the daemon again", &questions);
    world.end();
}

#[test]
fn the_next_owner_of_an_address_gets_nothing_of_the_last() {
    need_root!();
    const OUTER: u16 = 8087;
    const REMOTE: u16 = 6001;
    let mut world = World::new(open_host(&["def", "n2"]), |host| {
        publish("def", host.container("c0").v4, "udp", OUTER, DATAGRAM)
    });
    let client = world.host.client.clone();
    let c0 = world.container("c0").v4;
    // Flows of each kind while c0 lives: in by TCP and UDP, and out.
    let mut tcp = Connection::open(&client, at(HOST, C0), &ProbeOptions::default())
        .expect("a connection to c0");
    let asked = tcp.exchange(100, LONG);
    assert!(by("c0", CLIENT).matches(&asked), "{asked}");
    let datagrams = udp(&client, 0);
    assert_eq!(
        answer(&datagrams, at(HOST, OUTER)),
        Some(at(HOST, OUTER)),
        "c0 answers datagrams"
    );
    let remote = udp(&client, REMOTE);
    let inside = udp(&world.container("c0").namespace, 0);
    inside.send_to(b"out", at(CLIENT, REMOTE)).expect("send");
    let (_, masqueraded) = remote.recv_from(&mut [0; 64]).expect("c0's datagram");
    assert_eq!(masqueraded.ip(), IpAddr::from(HOST));
    remote.send_to(b"back", masqueraded).expect("send");
    inside.recv_from(&mut [0; 64]).expect("the reply");
    drop(inside);

    world.kill();
    let mac = world.container("c0").mac;
    world.host.remove_container("c0").expect("c0 goes");
    let thief = world.host.add_container("thief", "def", 2).expect("thief");
    assert_eq!((thief.v4, thief.mac), (c0, mac), "the very same addresses");
    let from_client = |frame: &netd::lab::Captured| frame.decoded.source == Some(CLIENT.into());
    let capture = Capture::filtered(&thief.namespace, "eth0", from_client).expect("capture");
    let questions = [
        Question::new("client", Way::Tcp, at(HOST, C0), Want::Nothing),
        Question::new("client", Way::Udp, at(HOST, OUTER), Want::Nothing),
        Question::new("client", Way::Tcp, at(HOST, N2A), by("n2a", CLIENT)),
    ];
    datagrams.set_read_timeout(Some(SHORT)).expect("a timeout");
    for _ in 0..3 {
        assert_eq!(answer(&datagrams, at(HOST, OUTER)), None);
        remote.send_to(b"late", masqueraded).expect("send");
        let asked = tcp.exchange(100, SHORT);
        assert!(Want::Nothing.matches(&asked), "{asked}");
    }
    world.ask("new flows to the old ports", &questions);
    let reached = capture.stop();
    assert!(reached.is_empty(), "the next owner got {reached:?}");
    assert_eq!(world.container("thief").server.requests(), 0);

    // By the file this address is the one that is published: with a daemon it is known, and so is its owner.
    world.start_again();
    world.ask(
        "with the daemon again",
        &[
            Question::new("client", Way::Tcp, at(HOST, C0), by("thief", CLIENT)),
            Question::new("client", Way::Udp, at(HOST, OUTER), by("thief", CLIENT)),
            Question::new("thief", Way::Tcp, at(CLIENT, WEB), by("client", HOST)),
        ],
    );
    world.end();
}

#[test]
fn what_starts_without_a_daemon_has_no_network() {
    need_root!();
    const LAST: u8 = 9;
    const OUTER: u16 = 8090;
    let new = ip("10.200.0.9");
    let mut world = World::new(open_host(&["def", "n2"]), |_| {
        publish("def", new, "tcp", OUTER, WEB)
    });
    world.kill();
    world.host.add_container("new", "def", LAST).expect("new");
    let (c0, c0b) = (world.container("c0").v4, world.container("c0b").v4);
    let known = [
        Question::new("client", Way::Tcp, at(HOST, C0), by("c0", CLIENT)),
        Question::new("c0", Way::Tcp, at(c0b, WEB), by("c0b", c0)),
        Question::new("c0", Way::Tcp, at(CLIENT, WEB), by("client", HOST)),
    ];
    let closed = |from, to| Question::new(from, Way::Tcp, to, Want::Nothing);
    let nothing = [
        // The world, another network and a neighbour to it.
        closed("client", at(HOST, OUTER)),
        closed("client", at(new, WEB)),
        closed("n2a", at(new, WEB)),
        closed("c0", at(new, WEB)),
        // It to them.
        closed("new", at(CLIENT, WEB)),
        closed("new", at(world.container("n2a").v4, WEB)),
        closed("new", at(c0, WEB)),
        closed("new", at(HOST, N2A)),
        // Not TCP alone.
        Question::new("new", Way::Udp, at(CLIENT, DATAGRAM), Want::Nothing),
        Question::new("client", Way::Udp, at(new, DATAGRAM), Want::Nothing),
        Question::new("new", Way::Echo, at(CLIENT, 0), Want::Nothing),
        Question::new("new", Way::Echo, at(c0, 0), Want::Nothing),
    ];
    world.ask("containers that are known", &known);
    world.ask("a container that is not", &nothing);

    // Neighbours that were asked for in vain are given up after three seconds, and whoever asks meanwhile with them.
    std::thread::sleep(Duration::from_millis(3500));
    world.start_again();
    world.ask(
        "with the daemon again",
        &[
            Question::new("client", Way::Tcp, at(HOST, OUTER), by("new", CLIENT)),
            Question::new("client", Way::Tcp, at(new, WEB), Want::Nothing),
            Question::new("n2a", Way::Tcp, at(new, WEB), Want::Nothing),
            Question::new("c0", Way::Tcp, at(new, WEB), by("new", c0)),
            Question::new("new", Way::Tcp, at(CLIENT, WEB), by("client", HOST)),
            Question::new("new", Way::Tcp, at(c0, WEB), by("c0", new)),
            Question::new("new", Way::Tcp, at(HOST, N2A), by("n2a", new)),
            Question::new("new", Way::Udp, at(CLIENT, DATAGRAM), by("client", HOST)),
            Question::new("new", Way::Echo, at(CLIENT, 0), Want::Reply),
            Question::new("new", Way::Echo, at(c0, 0), Want::Reply),
        ],
    );
    world.end();
}

/// The client has a second interface on the same wire, and the default route goes there from one moment to the next.
#[test]
fn a_route_that_changes_is_followed() {
    need_root!();
    /// An address of the client beyond either next hop.
    const FAR: &str = "100.64.0.1";
    const SECOND: &str = "198.18.0.3";
    let mut world = World::new(open_host(&["def"]), |_| String::new());
    let (host, client) = (world.host.host.clone(), world.host.client.clone());
    // Each interface answers for its own addresses only.
    for key in ["arp_ignore", "arp_announce"] {
        let value = if key == "arp_ignore" { 1 } else { 2 };
        client
            .set_sysctl(&format!("net/ipv4/conf/all/{key}"), value)
            .expect("sysctl");
    }
    client
        .add_macvlan("eth0", "second", &client)
        .expect("macvlan");
    client
        .add_address("second", net("198.18.0.3/24"))
        .expect("address");
    client.set_up("second").expect("up");
    client.wait_ready("second").expect("ready");
    client
        .add_address("lo", net("100.64.0.1/32"))
        .expect("address");
    let via = |next: &str| Route::default_via(ip(next));
    host.add_route(&via("198.18.0.2")).expect("route");
    world.daemon.settle().expect("the daemon has seen it");

    let macs: [Mac; 2] = ["eth0", "second"].map(|device| client.mac(device).expect("a MAC"));
    assert_ne!(macs[0], macs[1]);
    let far = at(ip(FAR), WEB);
    let out = |frame: &netd::lab::Captured| {
        frame.info.outgoing() && frame.decoded.destination == Some(ip(FAR))
    };
    let last_hop = |capture: &Capture| -> Option<Mac> {
        let frames = capture.frames();
        frames.last()?.bytes[..6].try_into().ok()
    };
    let capture = Capture::filtered(&host, "up0", out).expect("capture");
    let c0 = world.container("c0").namespace.clone();
    let mut flow = Connection::open(&c0, far, &ProbeOptions::default()).expect("a connection");
    let exchange = |flow: &mut Connection| {
        let asked = flow.exchange(100, LONG);
        assert!(by("client", HOST).matches(&asked), "{asked}");
    };
    exchange(&mut flow);
    world.kill();
    exchange(&mut flow);
    assert_eq!(last_hop(&capture), Some(macs[0]), "by the first next hop");

    host.replace_route(&via(SECOND)).expect("the route changes");
    let changed = Instant::now();
    let followed = loop {
        exchange(&mut flow);
        if last_hop(&capture) == Some(macs[1]) {
            break changed.elapsed();
        }
        // Half a second for the exchange itself.
        assert!(
            changed.elapsed() < Duration::from_millis(5500),
            "the old next hop is still used after {:?}",
            changed.elapsed()
        );
        std::thread::sleep(Duration::from_millis(50));
    };
    eprintln!("followed after {followed:?}");
    // A flow that begins now goes there at once.
    let fresh = netd::lab::tcp_probe(&c0, far, &ProbeOptions::default().timeout(LONG));
    assert!(by("client", HOST).matches(&fresh), "{fresh}");
    assert_eq!(last_hop(&capture), Some(macs[1]));
    for _ in 0..20 {
        exchange(&mut flow);
    }
    let frames = capture.stop();
    let tail = &frames[frames.len() - 20..];
    assert!(tail.iter().all(|frame| frame.bytes[..6] == macs[1]));

    world.start_again();
    exchange(&mut flow);
    world.end();
}

#[test]
fn the_daemon_returns_without_a_stir() {
    need_root!();
    let mut world = World::new(open_host(&["def", "n2"]), |_| String::new());
    let client = world.host.client.clone();
    let n2a = world.container("n2a").namespace.clone();
    let options = ProbeOptions::default().timeout(LONG);
    let mut flows = [
        Connection::open(&client, at(HOST, N2A), &options).expect("in"),
        Connection::open(&n2a, at(CLIENT, WEB), &options).expect("out"),
    ];
    let mut exchange = || {
        for flow in &mut flows {
            let asked = flow.exchange(100, LONG);
            assert!(matches!(asked, Outcome::Answered(_)), "{asked}");
        }
    };
    exchange();
    let flow_ids = |world: &World| {
        let flows = world.json(&["flows", "--protocol", "tcp", "--state", "established"]);
        let flows = flows["flows"].as_array().expect("rows").clone();
        let mut ids: Vec<String> = flows.iter().map(identity).collect();
        ids.sort();
        ids
    };
    let (links, maps, known) = (world.links(), world.maps(), flow_ids(&world));
    assert_eq!(known.len(), 2, "{known:?}");
    // Away and back with nothing to do, and with a container that came and one that went meanwhile.
    for round in 0..3 {
        world.kill();
        if round > 0 {
            world.host.remove_container("c0").expect("c0 goes");
            world.host.add_container("c0", "def", 2).expect("c0 comes");
        }
        exchange();
        world.start_again();
        exchange();
        let now = world.links();
        for (name, link) in &links {
            let is_c0 = round > 0 && now.get(name).is_none();
            assert!(
                is_c0 || now[name].id == link.id && now[name].program != link.program,
                "{name}: {link:?} became {:?}",
                now.get(name)
            );
        }
        let gone = links.keys().filter(|name| !now.contains_key(*name)).count();
        let new = now.keys().filter(|name| !links.contains_key(*name)).count();
        // The two programs of a container's interface.
        let expected = if round > 0 { 2 } else { 0 };
        assert_eq!((gone, new), (expected, expected), "round {round}: {now:?}");
        assert_eq!(world.maps(), maps);
        assert_eq!(flow_ids(&world), known, "round {round}");
        let status = world.json(&["status"]);
        assert_eq!(status["data_plane"]["endpoints"], 4);
    }
    world.end();
}

/// What makes a flow the same flow.
fn identity(flow: &serde_json::Value) -> String {
    ["kind", "original", "translated"]
        .map(|key| flow[key].to_string())
        .join(" ")
}

/// Row B20: with the publish or the container its flows end, at once.
#[test]
fn flows_end_with_their_publish_and_their_container() {
    need_root!();
    const UDP_C0: u16 = 8091;
    const UDP_N2A: u16 = 8092;
    let world = World::new(open_host(&["def", "n2"]), |_| String::new());
    let (c0, n2a) = (world.container("c0").v4, world.container("n2a").v4);
    let lasting = publish("n2", n2a, "udp", UDP_N2A, 7000) + &publish("n2", n2a, "tcp", 8093, WEB);
    let short = publish("def", c0, "udp", UDP_C0, 7000) + &publish("def", c0, "tcp", 8094, WEB);
    let host = &world.host;
    let both = config(host, &format!("{lasting}{short}"));
    let one = config(host, &lasting);
    assert_eq!(world.daemon.reload(&both).expect("reload").code, 0);

    for how in ["the publish is removed", "the container goes"] {
        let client = &world.host.client;
        let c0 = &world.container("c0").namespace;
        let n2a = &world.container("n2a").namespace;
        let ending = [Push::udp(client, UDP_C0, c0), Push::tcp(client, 8094)];
        let lasting = [Push::udp(client, UDP_N2A, n2a), Push::tcp(client, 8093)];
        for push in ending.iter().chain(&lasting) {
            assert!(push.flows(), "{how}: {} has no data before", push.name);
        }
        if how == "the container goes" {
            world
                .host
                .host
                .delete_device(&world.container("c0").host_device)
                .expect("c0's interface");
            world.daemon.settle().expect("seen");
        } else {
            assert_eq!(world.daemon.reload(&one).expect("reload").code, 0);
        }
        for push in &ending {
            assert!(!push.flows(), "{how}: {} still gets data", push.name);
        }
        for push in &lasting {
            assert!(push.flows(), "{how}: {} is hit as well", push.name);
        }
        let flows = world.json(&["flows", "--container", "10.200.0.2"]);
        let left: Vec<String> = flows["flows"]
            .as_array()
            .expect("rows")
            .iter()
            .map(ToString::to_string)
            .filter(|flow| flow.contains("8094") || flow.contains("8091"))
            .collect();
        assert!(left.is_empty(), "{how}: {left:?}");
        drop((ending, lasting));
        if how == "the publish is removed" {
            assert_eq!(world.daemon.reload(&both).expect("reload").code, 0);
        }
    }
    world.end();
}
