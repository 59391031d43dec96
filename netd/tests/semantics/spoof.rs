//! Sources that are not the container's, and what arrives past netd's hooks.

use std::net::IpAddr;

use netd::lab::{
    CLIENT, DATAGRAM, Frame, HOST, HOST_SERVICE, Namespace, ProbeOptions, Question, Route,
    StandardHostOptions, VethEnd, WEB, Want, Way, add_veth, ip, net, tcp_probe,
};
use nix::sys::signal::Signal;

use super::world::{LONG, Toml, World, at, by, need_root};

const FOREIGN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x77];

#[test]
fn foreign_sources() {
    need_root!();
    let world = World::standard(StandardHostOptions::default());
    let standard = Toml::standard(&world.host);
    let (c0, c0b) = (world.host.container("c0"), world.host.container("c0b"));
    let n2a = world.host.container("n2a");
    let bridge = world.host.host.mac("br-def").expect("MAC");
    let bridge6 = world.host.host.mac("br-n2").expect("MAC");
    let client = (&world.host.client, "eth0");
    let out = |source: &str, port| {
        Frame::ethernet(c0.mac, bridge)
            .ip(ip(source), CLIENT)
            .udp(port, DATAGRAM)
    };
    let out6 = |source: &str, port| {
        Frame::ethernet(n2a.mac, bridge6)
            .ip(ip(source), ip("fd99::2"))
            .udp(port, DATAGRAM)
    };
    let in_subnet = ("of its subnet", out("10.200.0.77", 7001));
    let neighbours = ("its neighbour's", out("10.200.0.3", 7002));
    let another = ("another network's", out("10.201.1.2", 7003));
    let own = ("own", out("10.200.0.2", 7005));
    let foreign = ("of nowhere", out("100.64.9.9", 7004));
    let frames = [in_subnet, neighbours, another, foreign.clone(), own.clone()];
    world.frames(
        "spoof = nat",
        (&c0.namespace, "eth0"),
        client,
        &frames,
        &["own"],
    );
    let frames = [
        ("its neighbour's", out6("fd00:201:2::3", 7006)),
        ("of nowhere", out6("fd77::9", 7007)),
        ("own", out6("fd00:201:2::2", 7008)),
    ];
    world.frames(
        "spoof = nat, IPv6",
        (&n2a.namespace, "eth0"),
        client,
        &frames,
        &["own"],
    );
    // To published ports neither.
    let to_port = |source: &str, port| {
        Frame::ethernet(c0.mac, bridge)
            .ip(ip(source), HOST)
            .udp(port, 8084)
    };
    let frames = [
        ("neighbour's source", to_port("10.200.0.3", 7009)),
        ("own source", to_port("10.200.0.2", 7010)),
    ];
    let n2b = &world.host.container("n2b").namespace;
    world.frames(
        "spoof = nat, published",
        (&c0.namespace, "eth0"),
        (n2b, "eth0"),
        &frames,
        &["own source"],
    );

    // On the bridge itself anything goes, unless strict.
    let beside = |mac, source: &str, port| {
        Frame::ethernet(mac, c0b.mac)
            .ip(ip(source), c0b.v4)
            .udp(port, DATAGRAM)
    };
    let frames = [
        ("foreign address", beside(c0.mac, "100.64.9.9", 7011)),
        ("foreign MAC", beside(FOREIGN_MAC, "10.200.0.2", 7012)),
        ("own address and MAC", beside(c0.mac, "10.200.0.2", 7013)),
    ];
    let neighbour = (&c0b.namespace, "eth0");
    let every = ["foreign address", "foreign MAC", "own address and MAC"];
    world.frames(
        "spoof = nat, neighbour",
        (&c0.namespace, "eth0"),
        neighbour,
        &frames,
        &every,
    );
    world.reload(&standard.clone().network("def", "spoof", "\"strict\""));
    world.frames(
        "spoof = strict, neighbour",
        (&c0.namespace, "eth0"),
        neighbour,
        &frames,
        &every[2..],
    );
    world.frames(
        "spoof = strict",
        (&c0.namespace, "eth0"),
        client,
        &[foreign.clone(), own.clone()],
        &["own"],
    );
    let drops = world
        .daemon
        .verb(&["drops", "--json"])
        .expect("drops")
        .stdout;
    for reason in ["spoofed-mac", "spoofed-address"] {
        world.check(
            "spoof = strict: netd drops",
            reason,
            &drops,
            drops.contains(reason),
        );
    }
    let q = Question::new;
    world.ask(
        "spoof = strict",
        &[
            q("c0", Way::Tcp, at(c0b.v4, WEB), by("c0b", c0.v4)),
            q("c0", Way::Tcp, at(CLIENT, WEB), by("client", HOST)),
            q("client", Way::Tcp, at(HOST, 8081), by("c0", CLIENT)),
        ],
    );

    world.reload(&standard.clone().network("def", "spoof", "\"off\""));
    world.frames(
        "spoof = off",
        (&c0.namespace, "eth0"),
        client,
        &[foreign, own],
        &["of nowhere", "own"],
    );
    world.end();
}

/// A container that netd has not seen yet, for its daemon is dead, on a host that forwards everything.
#[test]
fn the_guard_of_the_bridge() {
    need_root!();
    let options = StandardHostOptions {
        forwarding: true,
        ..Default::default()
    };
    let mut world = World::standard(options);
    world.daemon.stop(Signal::SIGKILL).expect("kill");
    let late = Namespace::create("late").expect("namespace");
    let host = &world.host.host;
    add_veth(
        &VethEnd::new(host, "vethlate"),
        &VethEnd::new(&late, "eth0"),
    )
    .expect("veth");
    host.attach("vethlate", "br-def").expect("attach");
    host.set_up("vethlate").expect("up");
    late.add_address("eth0", net("10.200.0.20/24"))
        .expect("address");
    late.set_up("eth0").expect("up");
    late.wait_ready("eth0").expect("ready");
    late.add_route(&Route::default_via(ip("10.200.0.1")))
        .expect("route");
    let _server =
        netd::lab::Server::start(&late, "late", &netd::lab::Listen::tcp_any(WEB)).expect("server");

    let short = ProbeOptions::default().timeout(std::time::Duration::from_millis(700));
    let long = ProbeOptions::default().timeout(LONG);
    let address = IpAddr::from([10, 200, 0, 20]);
    world.outcome(
        "late → client",
        Want::Nothing,
        tcp_probe(&late, at(CLIENT, WEB), &short),
    );
    world.outcome(
        "late → the host's service",
        by("host", address),
        tcp_probe(&late, at(HOST, HOST_SERVICE), &long),
    );
    world.outcome(
        "client → late",
        Want::Nothing,
        world.host.tcp("client", at(address, WEB), &short),
    );
    world.outcome(
        "host → late",
        by("late", ip("10.200.0.1")),
        world.host.tcp("host", at(address, WEB), &long),
    );
    world.ask(
        "the data plane goes on",
        &[
            Question::new("client", Way::Tcp, at(HOST, 8081), by("c0", CLIENT)),
            Question::new("c0", Way::Tcp, at(CLIENT, WEB), by("client", HOST)),
        ],
    );
    world.daemon.run(&[]).expect("the daemon again");
    world.outcome(
        "late → client, known now",
        by("client", HOST),
        tcp_probe(&late, at(CLIENT, WEB), &long),
    );
    world.outcome(
        "client → late, known now",
        Want::Nothing,
        world.host.tcp("client", at(address, WEB), &short),
    );
    world.end();
}

/// An interface that the file does not let netd watch, on a host that forwards everything: the stack forwards from it,
/// and what it forwards ends at the container's own hook.
#[test]
fn what_the_stack_forwards() {
    need_root!();
    let options = StandardHostOptions {
        forwarding: true,
        extra_uplink: true,
        ..Default::default()
    };
    let world = World::new(options, |_| {}, |toml| toml.host("uplinks", "[\"up0\"]"));
    let n2a = world.host.container("n2a").v4;
    let n2b = world.host.container("n2b").v4;
    let q = Question::new;
    world.ask(
        "past netd",
        &[
            q("extra", Way::Tcp, at(n2a, WEB), Want::Nothing),
            q("extra", Way::Udp, at(n2b, DATAGRAM), Want::Nothing),
            q("extra", Way::Echo, at(n2a, 0), Want::Nothing),
            q(
                "extra",
                Way::Tcp,
                at(netd::lab::HOST_EXTRA, HOST_SERVICE),
                by("host", netd::lab::CLIENT_EXTRA),
            ),
        ],
    );
    // The same packets, once the interface is netd's and all may come in.
    world.guard(&["n2"]);
    let all = "[[uplink]]\nname = \"up1\"\ncontainers = \"all\"\n";
    world.reload(&Toml::standard(&world.host).more(all));
    let extra = netd::lab::CLIENT_EXTRA;
    world.ask(
        "by netd",
        &[
            q("extra", Way::Tcp, at(n2a, WEB), by("n2a", extra)),
            q("extra", Way::Udp, at(n2b, DATAGRAM), by("n2b", extra)),
            q("extra", Way::Echo, at(n2a, 0), Want::Reply),
        ],
    );
    world.end();
}
