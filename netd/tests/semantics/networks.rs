//! What a network's keys mean: gateway modes, masquerade, isolation of its containers, who may come in directly.

use std::net::IpAddr;

use netd::lab::{
    CLIENT, DATAGRAM, HOST, HOST_SERVICE, Question, Route, StandardHost, StandardHostOptions, WEB,
    Want, Way, ip, net,
};

use super::table::hears;
use super::world::{Toml, World, at, by, need_root};

use Way::{Echo, Tcp, Udp};

fn client6() -> IpAddr {
    ip("fd99::2")
}

fn host6() -> IpAddr {
    ip("fd99::1")
}

fn v4(world: &World, name: &str) -> IpAddr {
    world.host.container(name).v4
}

fn v6(world: &World, name: &str) -> IpAddr {
    world.host.container(name).v6.expect("n2 has IPv6")
}

#[test]
fn gateway_modes() {
    need_root!();
    let world = World::standard(StandardHostOptions::default());
    let q = Question::new;
    let standard = Toml::standard(&world.host);
    let (client, host) = (IpAddr::from(CLIENT), IpAddr::from(HOST));
    let (a4, b4, a6, b6) = (
        v4(&world, "n2a"),
        v4(&world, "n2b"),
        v6(&world, "n2a"),
        v6(&world, "n2b"),
    );
    let neighbours_network_stays = |part: &str| {
        world.ask(
            part,
            &[
                q("client", Tcp, at(v4(&world, "c0"), WEB), Want::Nothing),
                q("client", Echo, at(v4(&world, "c0"), 0), Want::Nothing),
                q("client", Tcp, at(host, 8081), by("c0", client)),
                q("c0", Tcp, at(CLIENT, WEB), by("client", host)),
            ],
        );
    };
    let closed = [
        q("client", Tcp, at(b4, WEB), Want::Nothing),
        q("client", Echo, at(a4, 0), Want::Nothing),
        q("client", Tcp, at(b6, WEB), Want::Nothing),
        q("client", Echo, at(a6, 0), Want::Nothing),
    ];
    world.ask("nat", &closed);

    // Replies of what comes in directly bear the container's address.
    world.guard(&["n2"]);
    world.reload(
        &standard
            .clone()
            .network("n2", "mode", "\"nat-unprotected\""),
    );
    world.ask(
        "nat-unprotected",
        &[
            q("client", Tcp, at(a4, WEB), by("n2a", client)),
            q("client", Tcp, at(b4, WEB), by("n2b", client)),
            q("client", Udp, at(b4, DATAGRAM), by("n2b", client)),
            q("client", Echo, at(a4, 0), Want::Reply),
            q("client", Tcp, at(b6, WEB), by("n2b", client6())),
            q("client", Echo, at(a6, 0), Want::Reply),
            q("client", Tcp, at(host, 8083), by("n2a", client)),
            q("n2a", Tcp, at(CLIENT, WEB), by("client", host)),
            q("n2a", Tcp, at(client6(), WEB), by("client", host6())),
        ],
    );
    neighbours_network_stays("beside nat-unprotected");

    world.reload(
        &standard
            .clone()
            .network("n2", "mode", "\"routed\"")
            .without("n2", "masquerade"),
    );
    world.ask(
        "routed",
        &[
            q("n2a", Tcp, at(CLIENT, WEB), by("client", a4)),
            q("n2a", Udp, at(client6(), DATAGRAM), by("client", a6)),
            q("client", Tcp, at(a4, WEB), by("n2a", client)),
            q("client", Udp, at(b4, DATAGRAM), by("n2b", client)),
            q("client", Tcp, at(a6, WEB), by("n2a", client6())),
            q("client", Echo, at(a4, 0), Want::Reply),
            q("client", Echo, at(b6, 0), Want::Reply),
            q("client", Tcp, at(b4, WEB), Want::Nothing),
            q("client", Udp, at(a4, DATAGRAM), Want::Nothing),
            q("client", Tcp, at(b6, WEB), Want::Nothing),
            // There is no host port.
            q("client", Tcp, at(host, 8083), Want::Refused),
            q("client", Tcp, at(host6(), 8085), Want::Refused),
        ],
    );
    neighbours_network_stays("beside routed");

    let mixed = "{ ipv4 = \"nat\", ipv6 = \"routed\" }";
    world.reload(&standard.clone().network("n2", "mode", mixed));
    world.ask(
        "mixed",
        &[
            q("n2a", Tcp, at(CLIENT, WEB), by("client", host)),
            q("n2a", Tcp, at(client6(), WEB), by("client", a6)),
            q("client", Tcp, at(a4, WEB), Want::Nothing),
            q("client", Tcp, at(a6, WEB), by("n2a", client6())),
            q("client", Tcp, at(host, 8083), by("n2a", client)),
        ],
    );

    world.reload(&standard);
    world.ask("nat again", &closed);
    world.end();
}

#[test]
fn who_may_come_in_directly() {
    need_root!();
    let world = World::standard(StandardHostOptions::default());
    let q = Question::new;
    let standard = Toml::standard(&world.host);
    let client = IpAddr::from(CLIENT);
    let c = |name: &str| v4(&world, name);
    let never = [
        q("client", Tcp, at(c("n3a"), WEB), Want::Nothing),
        q("n1a", Tcp, at(c("n2a"), WEB), Want::Nothing),
    ];
    // Published container ports only, whatever opens them.
    let published_of_n2 = [
        q("client", Tcp, at(c("n2a"), WEB), by("n2a", client)),
        q(
            "client",
            Tcp,
            at(v6(&world, "n2a"), WEB),
            by("n2a", client6()),
        ),
        q("client", Tcp, at(c("n2b"), WEB), Want::Nothing),
        q("client", Tcp, at(v6(&world, "n2b"), WEB), Want::Nothing),
        q("client", Echo, at(c("n2a"), 0), Want::Nothing),
    ];
    world.guard(&["n2", "def", "n1"]);

    world.reload(
        &standard
            .clone()
            .network("n2", "trusted_interfaces", "[\"up0\"]"),
    );
    world.ask("trusted interface", &published_of_n2);
    world.ask(
        "trusted interface",
        &[q("client", Tcp, at(c("c0"), WEB), Want::Nothing)],
    );
    world.ask("trusted interface", &never);

    world.reload(
        &standard
            .clone()
            .network("n2", "trusted_interfaces", "[\"up9\"]"),
    );
    world.ask(
        "another is trusted",
        &[q("client", Tcp, at(c("n2a"), WEB), Want::Nothing)],
    );

    for (name, toml) in [
        ("trust", standard.clone().host("trust", "[\"up0\"]")),
        (
            "allow_direct_routing",
            standard.clone().host("allow_direct_routing", "true"),
        ),
    ] {
        world.reload(&toml);
        world.ask(name, &published_of_n2);
        world.ask(
            name,
            &[q("client", Tcp, at(c("c0"), WEB), by("c0", client))],
        );
        world.ask(name, &[q("client", Tcp, at(c("c0b"), WEB), Want::Nothing)]);
        world.ask(name, &never);
    }

    let all = "[[uplink]]\nname = \"up0\"\ncontainers = \"all\"\n";
    world.reload(&standard.clone().more(all));
    world.ask(
        "all",
        &[
            q("client", Tcp, at(c("c0b"), WEB), by("c0b", client)),
            q("client", Echo, at(c("n2a"), 0), Want::Reply),
            q(
                "client",
                Tcp,
                at(v6(&world, "n2b"), WEB),
                by("n2b", client6()),
            ),
        ],
    );
    world.ask("all", &never);
    world.end();
}

#[test]
fn masquerade() {
    need_root!();
    let options = StandardHostOptions {
        extra_uplink: true,
        ..Default::default()
    };
    let world = World::standard(options);
    let q = Question::new;
    let standard = Toml::standard(&world.host);
    let extra = netd::lab::CLIENT_EXTRA;
    let plain = [
        q("c0", Tcp, at(CLIENT, WEB), by("client", HOST)),
        q(
            "c0",
            Tcp,
            at(extra, WEB),
            by("extra", netd::lab::HOST_EXTRA),
        ),
        q(
            "n2a",
            Udp,
            at(ip("fd98::2"), DATAGRAM),
            by("extra", ip("fd98::1")),
        ),
    ];
    world.ask("the egress interface's address", &plain);

    world
        .host
        .host
        .add_address("up0", net("198.18.0.77/24"))
        .expect("address");
    world
        .host
        .host
        .add_address("up0", net("fd99::77/64"))
        .expect("address");
    world.reload(&standard.clone().network(
        "n2",
        "masquerade_to",
        "[\"198.18.0.77\", \"fd99::77\"]",
    ));
    world.ask("the others stay", &plain[..2]);
    world.ask(
        "masquerade_to",
        &[
            q("n2a", Tcp, at(CLIENT, WEB), by("client", ip("198.18.0.77"))),
            q(
                "n2a",
                Udp,
                at(CLIENT, DATAGRAM),
                by("client", ip("198.18.0.77")),
            ),
            q("n2a", Echo, at(CLIENT, 0), Want::Reply),
            q("n2b", Tcp, at(client6(), WEB), by("client", ip("fd99::77"))),
            q("n2b", Echo, at(client6(), 0), Want::Reply),
        ],
    );

    world.guard(&["n2"]);
    world.reload(&standard.clone().network("n2", "masquerade", "false"));
    world.ask(
        "masquerade = false",
        &[
            q("n2a", Tcp, at(CLIENT, WEB), by("client", v4(&world, "n2a"))),
            q(
                "n2a",
                Tcp,
                at(client6(), WEB),
                by("client", v6(&world, "n2a")),
            ),
            q("client", Tcp, at(v4(&world, "n2b"), WEB), Want::Nothing),
            q("client", Tcp, at(HOST, 8083), by("n2a", CLIENT)),
            q("c0", Tcp, at(CLIENT, WEB), by("client", HOST)),
        ],
    );
    world.end();
}

#[test]
fn containers_of_one_bridge() {
    need_root!();
    let world = World::standard(StandardHostOptions::default());
    let q = Question::new;
    let standard = Toml::standard(&world.host);
    let (a4, b4, a6, b6) = (
        v4(&world, "n2a"),
        v4(&world, "n2b"),
        v6(&world, "n2a"),
        v6(&world, "n2b"),
    );
    let pairs = |answered: bool| {
        let want = |peer: IpAddr| {
            if answered {
                by("n2b", peer)
            } else {
                Want::Nothing
            }
        };
        [
            q("n2a", Tcp, at(b4, WEB), want(a4)),
            q("n2a", Udp, at(b4, DATAGRAM), want(a4)),
            q("n2a", Tcp, at(b6, WEB), want(a6)),
            q("n2a", Udp, at(b6, DATAGRAM), want(a6)),
            q(
                "n2a",
                Echo,
                at(b6, 0),
                if answered { Want::Reply } else { Want::Nothing },
            ),
        ]
    };
    world.ask("icc = true", &pairs(true));
    world.reload(&standard.clone().network("n2", "icc", "false"));
    world.ask("icc = false", &pairs(false));
    for group in ["10.201.2.255", "224.0.0.251", "ff02::fb"] {
        let heard = hears(&world.host, "n2a", "n2b", ip(group));
        world.check(&format!("icc = false: {group}"), false, heard, !heard);
    }
    // Published ports still work between them, and the true client is seen.
    world.ask(
        "icc = false, published",
        &[
            q("n2b", Tcp, at(HOST, 8083), by("n2a", b4)),
            q("n2b", Tcp, at(host6(), 8085), by("n2a", b6)),
            q("n2a", Udp, at(HOST, 8084), by("n2b", a4)),
            q("n2a", Udp, at(host6(), 8084), by("n2b", a6)),
            q(
                "n2a",
                Tcp,
                at(HOST, 8083),
                by("n2a", StandardHost::network("n2").gateway()),
            ),
            q("n2a", Tcp, at(CLIENT, WEB), by("client", HOST)),
        ],
    );
    world.end();
}

#[test]
fn internal_networks() {
    need_root!();
    let world = World::standard(StandardHostOptions::default());
    let q = Question::new;
    let standard = Toml::standard(&world.host);
    let gateway = StandardHost::network("n3").gateway();
    let n3a = world.host.container("n3a");
    // It has a way in mind; nothing but netd stops it.
    n3a.namespace
        .add_route(&Route::default_via(gateway))
        .expect("route");
    let out = |want: Want| q("n3a", Tcp, at(CLIENT, WEB), want);
    let inside = [q("n3a", Tcp, at(v4(&world, "n3b"), WEB), by("n3b", n3a.v4))];
    let own_gateway = q("n3a", Tcp, at(gateway, HOST_SERVICE), by("host", n3a.v4));
    world.ask(
        "internal",
        &[
            out(Want::Nothing),
            q("n3a", Udp, at(CLIENT, DATAGRAM), Want::Nothing),
            q("n3a", Echo, at(CLIENT, 0), Want::Nothing),
            q("n3a", Tcp, at(HOST, 8081), Want::Nothing),
            q("n3a", Tcp, at(gateway, 8081), Want::Nothing),
            q("n3a", Tcp, at(HOST, HOST_SERVICE), Want::Nothing),
            q("n3a", Tcp, at(v4(&world, "c0"), WEB), Want::Nothing),
            q("c0", Tcp, at(n3a.v4, WEB), Want::Nothing),
            q("client", Tcp, at(n3a.v4, WEB), Want::Nothing),
            own_gateway,
        ],
    );
    world.ask("internal", &inside);

    world.reload(
        &standard
            .clone()
            .network("n3", "internal", "false")
            .network("n3", "masquerade", "true"),
    );
    world.ask(
        "no longer internal",
        &[
            out(by("client", HOST)),
            q("n3a", Tcp, at(HOST, 8081), by("c0", n3a.v4)),
        ],
    );

    // Isolated: internal, and the host has no address there.
    let bridge = StandardHost::network("n3").bridge;
    world
        .host
        .host
        .delete_address(bridge, net("10.201.3.1/24"))
        .expect("delete");
    world.reload(&standard.clone().network("n3", "mode", "\"isolated\""));
    world.ask("isolated", &inside);
    world.ask(
        "isolated",
        &[
            out(Want::Nothing),
            q("n3a", Tcp, at(gateway, HOST_SERVICE), Want::Nothing),
            q("n3a", Tcp, at(HOST, HOST_SERVICE), Want::Nothing),
            q("client", Tcp, at(n3a.v4, WEB), Want::Nothing),
        ],
    );
    world.end();
}
