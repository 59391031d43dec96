//! Published ports: on which addresses, as ranges, beside programs of the host, and when they come and go.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netd::dataplane::{AttachMode, Pinned, sizes};
use netd::host::HostReader;
use netd::lab::{
    CLIENT, Connection, DATAGRAM, Frame, HOST, Listen, Namespace, Outcome, ProbeOptions, Question,
    Route, Server, StandardHost, StandardHostOptions, VethEnd, WEB, Want, Way, add_veth, ip, net,
    udp_probe,
};

use super::world::{LONG, Toml, World, at, by, need_root};

use Way::{Tcp, Udp};

const SHORT: Duration = Duration::from_millis(600);

#[test]
fn addresses() {
    need_root!();
    let world = World::new(
        StandardHostOptions::default(),
        |_| {},
        |toml| {
            let (c0, c0b, n2a) = (ip("10.200.0.2"), ip("10.200.0.3"), ip("10.201.2.2"));
            toml.publish(
                "def",
                c0,
                "tcp",
                "[\"198.18.0.1\", \"198.18.0.50\"]",
                ("8091", "80"),
                "",
            )
            .publish("def", c0b, "tcp", "\"127.0.0.2\"", ("8092", "80"), "")
            .publish("n2", n2a, "tcp", "\"0.0.0.0\"", ("8094", "80"), "")
            .publish(
                "n2",
                ip("fd00:201:2::3"),
                "tcp",
                "\"::\"",
                ("8094", "80"),
                "",
            )
        },
    );
    let q = Question::new;
    let second = ip("198.18.0.50");
    let client = IpAddr::from(CLIENT);
    world.ask(
        "addresses",
        &[
            q("client", Tcp, at(HOST, 8091), by("c0", client)),
            q("client", Tcp, at(second, 8091), Want::Nothing),
            q("client", Tcp, at(HOST, 8092), Want::Refused),
            q("client", Tcp, at(HOST, 8094), by("n2a", client)),
            q(
                "client",
                Tcp,
                at(ip("fd99::1"), 8094),
                by("n2b", ip("fd99::2")),
            ),
        ],
    );
    world
        .host
        .host
        .add_address("up0", net("198.18.0.50/24"))
        .expect("address");
    world.daemon.settle().expect("settle");
    world.ask(
        "an address more",
        &[
            q("client", Tcp, at(second, 8091), by("c0", client)),
            q("client", Tcp, at(second, 8081), by("c0", client)),
            q("client", Tcp, at(second, 8083), Want::Refused),
            q("n1a", Tcp, at(second, 8081), by("c0", ip("10.201.1.2"))),
        ],
    );
    world
        .host
        .host
        .delete_address("up0", net("198.18.0.50/24"))
        .expect("delete");
    world.daemon.settle().expect("settle");
    world.ask(
        "and gone",
        &[
            q("client", Tcp, at(second, 8091), Want::Nothing),
            q("client", Tcp, at(HOST, 8091), by("c0", client)),
        ],
    );
    // What is not the host's is not published there.
    world
        .host
        .client
        .add_route(&Route::to(net("198.19.44.0/24")).via(HOST.into()))
        .expect("route");
    let elsewhere = ip("198.19.44.4");
    world.ask(
        "not local",
        &[q("client", Tcp, at(elsewhere, 8081), Want::Nothing)],
    );
    world
        .host
        .host
        .add_address("lo", net("198.19.44.4/32"))
        .expect("address");
    world.daemon.settle().expect("settle");
    world.ask(
        "local by lo",
        &[q("client", Tcp, at(elsewhere, 8081), by("c0", client))],
    );
    world.end();
}

/// Entries of the publish maps.
fn entries(world: &World) -> usize {
    let (pin_dir, state) = (world.daemon.pin_dir(), world.daemon.files().state);
    world.host.host.run(|| {
        let facts = HostReader::open()
            .expect("netlink")
            .read(|_| false)
            .expect("facts");
        let sizes = sizes(1 << 33, 1, &netd::config::Limits::default());
        let state = netd::run_state::RunState::load(&state);
        let attach = state.map_or(AttachMode::Tcx, |state| state.fallbacks.attach);
        let pinned = Pinned::open(pin_dir, &sizes, attach, Default::default());
        let actual = pinned
            .expect("pins")
            .expect("maps")
            .read(&facts)
            .expect("maps");
        actual.tables.publish_v4.len()
    })
}

#[test]
fn ranges_and_programs_of_the_host() {
    need_root!();
    let world = World::standard(StandardHostOptions::default());
    let standard = Toml::standard(&world.host);
    let q = Question::new;
    let (c0, client) = (world.host.container("c0").v4, IpAddr::from(CLIENT));
    let any = "\"0.0.0.0\"";
    world
        .host
        .host
        .add_address("up0", net("198.18.0.60/24"))
        .expect("address");
    let one = ip("198.18.0.60");
    let programs = Server::start(
        &world.host.host,
        "program",
        &[
            Listen::tcp_any(2222),
            Listen::tcp_any(8095),
            Listen::udp_any(8096),
            Listen::tcp_any(8097),
        ]
        .concat(),
    )
    .expect("server");

    let before = entries(&world);
    let range = "\"198.18.0.60\"";
    // A port of every address would be claimed twice.
    let standard = standard.unpublish(8081).unpublish(8084);
    world.reload(
        &standard
            .clone()
            .publish("def", c0, "tcp", range, ("1-60000", "1-60000"), "")
            .publish("def", c0, "udp", range, ("1-60000", "1-60000"), "")
            .publish(
                "def",
                c0,
                "tcp",
                "\"198.18.0.1\"",
                ("9100-9110", "75-85"),
                "",
            ),
    );
    let more = entries(&world) - before;
    world.check(
        "entries of two ranges of 60,000 and one of 11",
        "at most 100",
        more,
        more <= 100,
    );
    world.ask(
        "ranges",
        &[
            q("client", Tcp, at(one, WEB), by("c0", client)),
            q("client", Udp, at(one, DATAGRAM), by("c0", client)),
            q("client", Tcp, at(HOST, 9105), by("c0", client)),
            q("client", Tcp, at(HOST, 9104), Want::Refused),
            q("client", Tcp, at(HOST, 9111), Want::Refused),
            q("client", Tcp, at(one, 2222), by("program", client)),
            q("client", Tcp, at(one, 60001), Want::Refused),
        ],
    );

    let single = |more| {
        standard
            .clone()
            .publish("def", c0, "tcp", any, ("8095", "80"), more)
            .publish("def", c0, "udp", any, ("8096", "5000"), more)
            .publish("def", c0, "tcp", "\"127.0.0.1\"", ("8097", "80"), more)
    };
    world.reload(&single(""));
    world.ask(
        "a program listens",
        &[
            q("client", Tcp, at(HOST, 8095), by("program", client)),
            q("client", Udp, at(HOST, 8096), by("program", client)),
            q("client", Tcp, at(HOST, 8097), by("program", client)),
        ],
    );
    world.reload(&single("override = true"));
    world.ask(
        "override",
        &[
            q("client", Tcp, at(HOST, 8095), by("c0", client)),
            q("client", Udp, at(HOST, 8096), by("c0", client)),
            q("client", Tcp, at(HOST, 8097), by("program", client)),
        ],
    );
    drop(programs);
    world.end();
}

#[test]
fn loopback_and_link_local_are_not_the_networks() {
    need_root!();
    let world = World::new(
        StandardHostOptions::default(),
        |host| {
            // What would let the stack itself take such packets.
            host.host
                .set_sysctl("net/ipv4/conf/all/route_localnet", 1)
                .expect("sysctl");
        },
        |toml| {
            let n2b = ip("10.201.2.3");
            toml.publish("n2", n2b, "udp", "\"127.0.0.1\"", ("8098", "5000"), "")
                .publish("n2", n2b, "udp", "\"127.0.0.2\"", ("8099", "5000"), "")
        },
    );
    let (client, host) = (&world.host.client, &world.host.host);
    let eth = Frame::ethernet(
        client.mac("eth0").expect("MAC"),
        host.mac("up0").expect("MAC"),
    );
    let n2b = &world.host.container("n2b").namespace;
    let to =
        |address: &str, source: u16, port| eth.clone().ip(CLIENT, ip(address)).udp(source, port);
    world.frames(
        "loopback",
        (client, "eth0"),
        (n2b, "eth0"),
        &[
            ("127.0.0.1:8098", to("127.0.0.1", 4001, 8098)),
            ("127.0.0.2:8099", to("127.0.0.2", 4002, 8099)),
            // Published on every address, which are those of the network only.
            ("127.0.0.1:8084", to("127.0.0.1", 4003, 8084)),
            ("198.18.0.1:8084", to("198.18.0.1", 4004, 8084)),
        ],
        &["198.18.0.1:8084"],
    );
    let from = |address: &str, port| eth.clone().ip(ip(address), ip("fd99::1")).udp(port, 8084);
    world.frames(
        "link-local source",
        (client, "eth0"),
        (n2b, "eth0"),
        &[
            ("fe80::7", from("fe80::7", 4005)),
            ("fd99::2", from("fd99::2", 4006)),
        ],
        &["fd99::2"],
    );
    world.end();
}

#[test]
fn ports_that_go_or_move_take_their_flows_along() {
    need_root!();
    let world = World::standard(StandardHostOptions::default());
    let standard = Toml::standard(&world.host);
    let client = &world.host.client;
    let options = ProbeOptions::default().timeout(LONG);
    let (tcp, tcp6) = (at(HOST, 8083), at(ip("fd99::1"), 8085));
    let udp = at(HOST, 8084);
    // The same tuple again and again: a flow that is told nothing would go on.
    let same_port = |timeout| {
        let source = SocketAddr::new(CLIENT.into(), 45_454);
        udp_probe(
            client,
            udp,
            &ProbeOptions::default().source(source).timeout(timeout),
        )
    };
    let open = |to| {
        Connection::open(client, to, &options).unwrap_or_else(|outcome| panic!("{to}: {outcome}"))
    };
    let (mut first, mut sixth, mut kept) = (open(tcp), open(tcp6), open(at(HOST, 8081)));
    let by_whom = |outcome: Outcome| {
        outcome
            .report()
            .map_or(outcome.to_string(), |r| r.server.clone())
    };
    world.check("before", "n2a", by_whom(first.exchange(10, LONG)), true);
    world.check("before", "n2a", by_whom(sixth.exchange(10, LONG)), true);
    world.check("before", "c0", by_whom(kept.exchange(10, LONG)), true);
    let got = by_whom(same_port(LONG));
    world.check("before", "n2b", &got, got == "n2b");

    // Moved to another container.
    let n2 = |name: &str| world.host.container(name).v4;
    let moved = standard
        .clone()
        .unpublish(8083)
        .unpublish(8084)
        .unpublish(8085);
    let moved = moved
        .publish("n2", n2("n2b"), "tcp", "\"198.18.0.1\"", ("8083", "80"), "")
        .publish("n2", n2("n2a"), "udp", "\"0.0.0.0\"", ("8084", "5000"), "")
        .publish(
            "n2",
            ip("fd00:201:2::3"),
            "tcp",
            "\"::\"",
            ("8085", "80"),
            "",
        );
    world.reload(&moved);
    let q = Question::new;
    world.ask(
        "moved",
        &[
            q("client", Tcp, tcp, by("n2b", CLIENT)),
            q("client", Tcp, tcp6, by("n2b", ip("fd99::2"))),
        ],
    );
    let got = by_whom(same_port(LONG));
    world.check(
        "moved: the UDP client's next datagram",
        "n2a",
        &got,
        got == "n2a",
    );
    for (name, connection) in [("TCP", &mut first), ("TCP over IPv6", &mut sixth)] {
        let outcome = connection.exchange(10, SHORT);
        let over = Want::Nothing.matches(&outcome);
        world.check(
            &format!("moved: the old {name} flow"),
            "over",
            outcome,
            over,
        );
    }
    let got = by_whom(kept.exchange(10, LONG));
    world.check("moved: a flow of another port", "c0", &got, got == "c0");

    // Removed, with running flows of the new place.
    let mut second = open(tcp);
    let removed = standard
        .clone()
        .unpublish(8083)
        .unpublish(8084)
        .unpublish(8085);
    world.reload(&removed);
    let outcome = second.exchange(10, SHORT);
    let over = Want::Nothing.matches(&outcome);
    world.check("removed: the TCP flow", "over", outcome, over);
    let outcome = same_port(SHORT);
    let over = Want::Nothing.matches(&outcome);
    world.check("removed: the UDP flow", "over", outcome, over);
    world.ask(
        "removed",
        &[
            q("client", Tcp, tcp, Want::Refused),
            q("client", Udp, udp, Want::Refused),
        ],
    );
    let got = by_whom(kept.exchange(10, LONG));
    world.check("removed: a flow of another port", "c0", &got, got == "c0");

    world.reload(&standard);
    world.ask(
        "published again",
        &[
            q("client", Tcp, tcp, by("n2a", CLIENT)),
            q("client", Udp, udp, by("n2b", CLIENT)),
        ],
    );
    world.end();
}

#[test]
fn a_container_is_made_anew_with_another_address() {
    need_root!();
    let world = World::standard(StandardHostOptions::default());
    let standard = Toml::standard(&world.host);
    let q = Question::new;
    let to = at(HOST, 8081);
    let mut old = Connection::open(
        &world.host.client,
        to,
        &ProbeOptions::default().timeout(LONG),
    )
    .expect("connection");
    let answered = old.exchange(10, LONG).answered();
    world.check("before", true, answered, answered);
    let c0 = world.host.container("c0");
    // The first address takes others of its subnet along, and the routes.
    c0.namespace
        .delete_address("eth0", net("10.200.0.2/24"))
        .expect("delete");
    c0.namespace
        .add_address("eth0", net("10.200.0.9/24"))
        .expect("address");
    c0.namespace
        .add_route(&Route::default_via(ip("10.200.0.1")))
        .expect("route");
    world.daemon.settle().expect("settle");
    world.ask(
        "the file names an address that nobody has",
        &[q("client", Tcp, to, Want::Nothing)],
    );
    let toml = standard.unpublish(8081).publish(
        "def",
        ip("10.200.0.9"),
        "tcp",
        "\"0.0.0.0\"",
        ("8081", "80"),
        "",
    );
    world.reload(&toml);
    world.ask(
        "anew",
        &[
            q("client", Tcp, to, by("c0", CLIENT)),
            q("c0", Tcp, at(CLIENT, WEB), by("client", HOST)),
        ],
    );
    let outcome = old.exchange(10, SHORT);
    let over = Want::Nothing.matches(&outcome);
    world.check("the old flow", "over", outcome, over);
    world.end();
}

#[test]
fn a_container_of_two_networks() {
    need_root!();
    let world = World::new(
        StandardHostOptions::default(),
        |host| {
            let c0 = host.container("c0");
            add_veth(
                &VethEnd::new(&c0.namespace, "eth1"),
                &VethEnd::new(&host.host, "vethsecond"),
            )
            .expect("veth");
            host.host.attach("vethsecond", "br-n2").expect("attach");
            host.host.set_up("vethsecond").expect("up");
            c0.namespace
                .add_address("eth1", net("10.201.2.9/24"))
                .expect("address");
            c0.namespace.set_up("eth1").expect("up");
            c0.namespace.wait_ready("eth1").expect("ready");
        },
        |toml| toml,
    );
    let q = Question::new;
    let (c0, second) = (world.host.container("c0").v4, ip("10.201.2.9"));
    let n2 = |name: &str| world.host.container(name).v4;
    world.ask(
        "two networks",
        &[
            // The gateway endpoint carries what is published, and what goes out.
            q("client", Tcp, at(HOST, 8081), by("c0", CLIENT)),
            q("c0", Tcp, at(CLIENT, WEB), by("client", HOST)),
            // Each network is a neighbourhood.
            q("c0", Tcp, at(n2("n2b"), WEB), by("n2b", second)),
            q("n2a", Tcp, at(second, WEB), by("c0", n2("n2a"))),
            q("c0b", Tcp, at(c0, WEB), by("c0", ip("10.200.0.3"))),
            // But no bridge between them.
            q("c0b", Tcp, at(n2("n2b"), WEB), Want::Nothing),
            q("n2a", Tcp, at(c0, WEB), Want::Nothing),
            q("client", Tcp, at(second, WEB), Want::Nothing),
        ],
    );
    let gateway = StandardHost::network("n2").gateway();
    world.ask(
        "two networks",
        &[
            q("c0", Tcp, at(gateway, 8084), Want::Refused),
            q("c0", Udp, at(gateway, 8084), by("n2b", second)),
        ],
    );
    world.end();
}

#[test]
fn other_names_another_gateway_and_a_macvlan_beside() {
    need_root!();
    let beside = Namespace::create("macvlan").expect("namespace");
    let gateway = ip("10.201.2.254");
    let world = World::new(
        StandardHostOptions::default(),
        |host| {
            // The gateway of n2 is the last address, not the first.
            host.host
                .delete_address("br-n2", net("10.201.2.1/24"))
                .expect("address");
            host.host
                .add_address("br-n2", net("10.201.2.254/24"))
                .expect("address");
            let [n2a, n2b] = ["n2a", "n2b"].map(|name| &host.container(name).namespace);
            // com.docker.network.container_iface_prefix: not every container's interface is eth0.
            n2a.set_down("eth0").expect("down");
            n2a.rename("eth0", "net7").expect("rename");
            n2a.set_up("net7").expect("up");
            for container in [n2a, n2b] {
                container
                    .replace_route(&Route::default_via(gateway))
                    .expect("route");
            }
            host.host
                .add_macvlan("up0", "mv0", &beside)
                .expect("macvlan");
            beside
                .add_address("mv0", net("198.18.0.77/24"))
                .expect("address");
            beside.set_up("mv0").expect("up");
            beside.wait_ready("mv0").expect("ready");
        },
        |toml| toml,
    );
    let _server = Server::start(&beside, "macvlan", &Listen::tcp_any(WEB)).expect("server");
    let q = Question::new;
    let n2a = world.host.container("n2a").v4;
    world.ask(
        "names and gateways",
        &[
            q("client", Tcp, at(HOST, 8083), by("n2a", CLIENT)),
            q("n2a", Tcp, at(CLIENT, WEB), by("client", HOST)),
            q("n2b", Tcp, at(CLIENT, WEB), by("client", HOST)),
            // To itself: the other gateway steps between.
            q("n2a", Tcp, at(HOST, 8083), by("n2a", gateway)),
            q("n2b", Tcp, at(n2a, WEB), by("n2a", ip("10.201.2.3"))),
            q("client", Tcp, at(n2a, WEB), Want::Nothing),
        ],
    );
    world.ask(
        "macvlan",
        &[
            q(
                "client",
                Tcp,
                at(ip("198.18.0.77"), WEB),
                by("macvlan", CLIENT),
            ),
            q("n2b", Tcp, at(CLIENT, WEB), by("client", HOST)),
        ],
    );
    world.end();
}
