//! What the host's rules and tables say is where containers' packets go, as if the kernel had forwarded them.

use std::net::UdpSocket;
use std::time::Duration;

use netd::lab::{
    Capture, Connection, Namespace, ProbeOptions, Route, RouteType, Rule, RuleAction, WEB, ip, net,
    tcp_probe, udp_probe,
};

use crate::fork::{PRIORITY, SECOND_TABLE, Side, fork, sides, single};
use crate::world::{LONG, World, at, need_root};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// The main table.
const MAIN: u32 = 254;

#[test]
fn rules_by_interface_addresses_protocol_and_mark() {
    need_root!();
    let world = fork(|toml| toml, true);
    for side in sides() {
        let rule = || side.rule(SECOND_TABLE);
        let own = match world.host.container(side.container) {
            container if side.far.is_ipv4() => container.v4,
            container => container.v6.expect("IPv6"),
        };
        side.check(&world, "no rule", 0);
        let rules: [(&str, Rule, usize); 11] = [
            ("iif of the bridge", rule().input_device(side.bridge), 1),
            ("iif of another bridge", rule().input_device("br-other"), 0),
            // The port of the bridge is not where the stack would see the packet arrive.
            (
                "iif of the veth",
                rule().input_device(&port(&world, side)),
                0,
            ),
            ("from the container", rule().from(single(own)), 1),
            (
                "from the uplink's address",
                rule().from(single(side.own[0])),
                0,
            ),
            ("to the destination", rule().to(single(side.far)), 1),
            ("ipproto tcp", rule().protocol(TCP), 1),
            ("ipproto udp", rule().protocol(UDP), 0),
            ("dport", rule().protocol(TCP).destination_port(WEB), 1),
            // netd asks before any mark could be set: as for a packet without.
            ("fwmark", rule().mark(1, u32::MAX), 0),
            ("not fwmark", rule().mark(51_820, u32::MAX).invert(), 1),
        ];
        for (name, rule, uplink) in rules {
            world.host.host.add_rule(&rule).expect(name);
            side.check(&world, name, uplink);
            world.host.host.delete_rule(&rule).expect(name);
        }
        side.check(&world, "no rule any more", 0);
        source_port(&world, side);
        service_class(&world, side);
    }
    world.end();
}

/// The host's end of the container's veth.
fn port(world: &World, side: Side) -> String {
    world.host.container(side.container).host_device.clone()
}

/// `ip rule sport`: the container's own port counts, not the one that it is translated to.
fn source_port(world: &World, side: Side) {
    let any = if side.far.is_ipv4() { "0.0.0.0" } else { "::" };
    let rule = side.rule(SECOND_TABLE).protocol(TCP).source_port(4242);
    world.host.host.add_rule(&rule).expect("rule");
    for (port, uplink) in [(4242, 1), (4243, 0)] {
        let options = ProbeOptions::default()
            .timeout(LONG)
            .source(at(ip(any), port));
        let outcome = tcp_probe(side.container(world), at(side.far, WEB), &options);
        world.check(
            &format!("sport {port}, {}", side.far),
            format!("by {}", side.own[uplink]),
            &outcome,
            side.is_by(uplink, &outcome),
        );
    }
    world.host.host.delete_rule(&rule).expect("rule");
}

/// `ip rule tos`, and the flow stays where its first packet led it.
fn service_class(world: &World, side: Side) {
    /// What Linux 6.1 looks at too: it knows three of the six bits.
    const CLASS: u8 = 0x10;
    let rule = side.rule(SECOND_TABLE).tos(CLASS);
    world.host.host.add_rule(&rule).expect("rule");
    let to_far = |namespace: &Namespace| {
        let far = side.far;
        let seen = move |frame: &netd::lab::Captured| {
            !frame.info.outgoing() && frame.decoded.destination == Some(far)
        };
        Capture::filtered(namespace, "eth0", seen).expect("capture")
    };
    let captures = [&world.host.client, world.host.namespace("extra")].map(to_far);
    let any = if side.far.is_ipv4() { "0.0.0.0" } else { "::" };
    let open = || {
        let bound = || UdpSocket::bind(at(ip(any), 0));
        side.container(world).run(bound).expect("bind")
    };
    let send = |socket: &UdpSocket, class: u8, word: &'static [u8]| {
        let options = socket2::SockRef::from(socket);
        let set = if side.far.is_ipv4() {
            options.set_tos_v4(class.into())
        } else {
            options.set_tclass_v6(class.into())
        };
        set.expect("a service class");
        // Nobody listens there: the answers are errors, and none of this test's business.
        let _ = socket.send_to(word, at(side.far, 5001));
        let arrived = |capture: &Capture| {
            let is = |frame: &netd::lab::Captured| frame.decoded.payload == word;
            capture.wait_for(Duration::from_millis(300), is).is_some()
        };
        captures.each_ref().map(arrived)
    };
    let (first, second) = (open(), open());
    let cases = [
        (
            "a class of the rule",
            send(&first, CLASS, b"one"),
            [false, true],
        ),
        ("another class", send(&second, 0, b"two"), [true, false]),
    ];
    // Every flow is decided again, by a packet of another class.
    world.host.host.add_route(&by_the_way()).expect("route");
    std::thread::sleep(Duration::from_millis(100));
    let later = [
        (
            "of the first flow, without it",
            send(&first, 0, b"three"),
            [false, true],
        ),
        (
            "of the other, with it",
            send(&second, CLASS, b"four"),
            [true, false],
        ),
    ];
    world.host.host.delete_route(&by_the_way()).expect("route");
    world.host.host.delete_rule(&rule).expect("rule");
    for (name, seen, expected) in cases.into_iter().chain(later) {
        world.check(
            &format!("tos: {name}, {}", side.far),
            format!("{expected:?}"),
            format!("{seen:?}"),
            seen == expected,
        );
    }
}

/// A route on nobody's way: it only raises the epoch.
fn by_the_way() -> Route {
    Route::to(net("100.99.0.0/24")).via(ip("198.18.0.2"))
}

#[test]
fn tables_and_refusals() {
    need_root!();
    let world = fork(|toml| toml, true);
    let host = &world.host.host;
    for side in sides() {
        let second = side.rule(SECOND_TABLE).input_device(side.bridge);
        for (name, action) in [
            ("rule prohibit", RuleAction::Prohibit),
            ("rule unreachable", RuleAction::Unreachable),
            ("rule blackhole", RuleAction::Blackhole),
        ] {
            let rule = side.rule(MAIN).to(single(side.far)).action(action);
            host.add_rule(&rule).expect(name);
            side.check_refused(&world, name);
            host.delete_rule(&rule).expect(name);
            side.check(&world, &format!("no {name}"), 0);
        }
        for (name, kind) in [
            ("prohibit route", RouteType::Prohibit),
            ("unreachable route", RouteType::Unreachable),
            ("blackhole route", RouteType::BlackHole),
        ] {
            let route = Route::to(single(side.far)).kind(kind);
            host.add_route(&route).expect(name);
            side.check_refused(&world, name);
            host.delete_route(&route).expect(name);
            side.check(&world, &format!("no {name}"), 0);
            // In the table that a rule leads to: what the main table says does not help.
            let route = route.table(SECOND_TABLE);
            host.add_route(&route).expect(name);
            host.add_rule(&second).expect(name);
            side.check_refused(&world, &format!("{name} in another table"));
            host.delete_rule(&second).expect(name);
            host.delete_route(&route).expect(name);
        }

        // A throw route ends the lookup in its table, and the next rule is asked.
        host.add_rule(&second).expect("rule");
        side.check(&world, "a table of its own", 1);
        let throw = Route::to(single(side.far))
            .kind(RouteType::Throw)
            .table(SECOND_TABLE);
        host.add_route(&throw).expect("throw");
        if side.far.is_ipv4() {
            side.check(&world, "throw route", 0);
        } else {
            // The kernel's lookup for programs ends there (fib6_rule_action_alt() knows no RTN_THROW): no way, and no
            // wrong one.
            side.check_refused(&world, "throw route");
        }
        host.delete_route(&throw).expect("throw");
        side.check(&world, "no throw route", 1);

        // What wg-quick does: the main table but for its default route, then the tunnel's table.
        let specific = side.rule_at(PRIORITY - 1, MAIN).suppress_prefix_length(0);
        host.delete_rule(&second).expect("rule");
        let second = side.rule(SECOND_TABLE).mark(51_820, u32::MAX).invert();
        host.add_rule(&second).expect("rule");
        host.add_rule(&specific).expect("rule");
        // For IPv6 the daemon has to tell the programs.
        world.daemon.settle().expect("settle");
        side.check(&world, "default route suppressed", 1);
        // (By another gateway than the default route's: for IPv6 only that tells them apart.)
        let second_gateway = ip(if side.far.is_ipv4() {
            "198.18.0.3"
        } else {
            "fd99::3"
        });
        let prefix = if side.far.is_ipv4() {
            "198.18.0.3/24"
        } else {
            "fd99::3/64"
        };
        let client = &world.host.client;
        client.add_address("eth0", net(prefix)).expect("address");
        let exact = Route::to(single(side.far)).via(second_gateway);
        host.add_route(&exact).expect("route");
        side.check(&world, "a longer prefix is not", 0);
        host.delete_route(&exact).expect("route");
        // Nothing in the tunnel's table: the next rule leads to the main table after all.
        let tunnel = side.default_by(1).table(SECOND_TABLE);
        host.delete_route(&tunnel).expect("route");
        side.check(&world, "nothing in the tunnel's table", 0);
        host.add_route(&tunnel).expect("route");
        side.check(&world, "the tunnel's route is back", 1);
        host.delete_rule(&specific).expect("rule");
        host.delete_rule(&second).expect("rule");
        world.daemon.settle().expect("settle");
        side.check(&world, "no rule any more", 0);
    }
    world.end();
}

#[test]
fn several_next_hops_are_spread_over_and_kept() {
    need_root!();
    let world = fork(|toml| toml, true);
    let host = &world.host.host;
    let side = sides()[0];
    let many = Route::to(net("100.71.0.0/24"))
        .hop(side.gateways[0], "up0")
        .hop(side.gateways[1], "up1");
    host.add_route(&many).expect("route");
    let container = side.container(&world);
    let options = ProbeOptions::default().timeout(LONG);

    // By addresses, the kernel's default: each destination has its way.
    let mut flows = Vec::new();
    for last in 1..=32 {
        let to = at(ip(&format!("100.71.0.{last}")), WEB);
        let flow = Connection::open(container, to, &options).expect("a connection");
        flows.push(flow);
    }
    spread_and_kept(&world, "by addresses", side, &mut flows);

    // By ports too: one destination is reached both ways.
    host.set_sysctl("net/ipv4/fib_multipath_hash_policy", 1)
        .expect("sysctl");
    let to = at(ip("100.71.0.200"), WEB);
    let mut flows: Vec<_> = (0..32)
        .map(|_| Connection::open(container, to, &options).expect("a connection"))
        .collect();
    spread_and_kept(&world, "by ports", side, &mut flows);

    // IPv6, by ports.
    let side = sides()[1];
    host.set_sysctl("net/ipv6/fib_multipath_hash_policy", 1)
        .expect("sysctl");
    let many = Route::to(single(side.far))
        .hop(side.gateways[0], "up0")
        .hop(side.gateways[1], "up1");
    host.add_route(&many).expect("route");
    let container = side.container(&world);
    let to = at(side.far, WEB);
    let mut flows: Vec<_> = (0..32)
        .map(|_| Connection::open(container, to, &options).expect("a connection"))
        .collect();
    spread_and_kept(&world, "by ports", side, &mut flows);
    world.end();
}

/// Both ways are taken, and every flow stays on its own: after the epoch rose, and after its next hop was looked up anew.
fn spread_and_kept(world: &World, name: &str, side: Side, flows: &mut [Connection]) {
    let mut by = [0, 0];
    let ways: Vec<Option<usize>> = flows
        .iter_mut()
        .map(|flow| {
            let outcome = flow.exchange(100, LONG);
            (0..2)
                .find(|uplink| side.is_by(*uplink, &outcome))
                .inspect(|uplink| by[*uplink] += 1)
        })
        .collect();
    world.check(
        &format!("{} flows {name}, {}", flows.len(), side.far),
        "some by each uplink",
        format!("{by:?}"),
        by[0] >= 4 && by[1] >= 4 && by[0] + by[1] == flows.len(),
    );
    world.host.host.add_route(&by_the_way()).expect("route");
    std::thread::sleep(Duration::from_millis(100));
    for when in ["after a change elsewhere", "after the next hop's time"] {
        let moved = flows
            .iter_mut()
            .zip(&ways)
            .filter_map(|(flow, way)| {
                let outcome = flow.exchange(100, LONG);
                let stays = way.is_some_and(|uplink| side.is_by(uplink, &outcome));
                (!stays).then(|| outcome.to_string())
            })
            .collect::<Vec<_>>();
        world.check(
            &format!("flows {name} {when}, {}", side.far),
            "all where they were",
            format!("{moved:?}"),
            moved.is_empty(),
        );
        std::thread::sleep(Duration::from_millis(5500));
    }
    world.host.host.delete_route(&by_the_way()).expect("route");
}

/// Source rules of both uplinks: answers of published ports leave under their translated source, at once and after
/// every change.
#[test]
fn answers_follow_their_translated_source_through_changes() {
    need_root!();
    let world = fork(|toml| toml, true);
    let host = &world.host.host;
    for side in sides() {
        let rule = side.rule(SECOND_TABLE).from(single(side.own[1]));
        host.add_rule(&rule).expect("rule");
        // Both clients ask with the far address, which the main table reaches by the first uplink only.
        let mut flows = Vec::new();
        for (uplink, client) in ["client", "extra"].into_iter().enumerate() {
            let options = ProbeOptions::default()
                .timeout(LONG)
                .source(at(side.far, 30_000 + uplink as u16));
            let to = at(side.own[uplink], side.published);
            let flow = Connection::open(world.host.namespace(client), to, &options);
            match flow {
                Ok(flow) => flows.push((client, flow)),
                Err(outcome) => {
                    world.check(&format!("{client} to {to}"), "a connection", outcome, false)
                }
            }
        }
        for round in 0..10 {
            for (client, flow) in &mut flows {
                let outcome = flow.exchange(1000, LONG);
                let right = outcome.report().is_some_and(|report| {
                    report.server == side.container && report.peer.ip() == side.far
                });
                world.check(
                    &format!("{client}, round {round}, {}", side.far),
                    format!("{} answers {}", side.container, side.far),
                    &outcome,
                    right,
                );
            }
            if round % 2 == 0 {
                host.add_route(&by_the_way()).expect("route");
            } else {
                host.delete_route(&by_the_way()).expect("route");
            }
            std::thread::sleep(Duration::from_millis(30));
        }
        // Without the rule the second one's answers go where nobody waits for them: it was the rule.
        host.delete_rule(&rule).expect("rule");
        std::thread::sleep(Duration::from_millis(100));
        let options = ProbeOptions::default()
            .timeout(Duration::from_millis(700))
            .source(at(side.far, 30_002));
        let to = at(side.own[1], side.published);
        let outcome = tcp_probe(world.host.namespace("extra"), to, &options);
        world.check(
            &format!("without the rule, {}", side.far),
            "no answer",
            &outcome,
            !outcome.answered(),
        );
    }
    let outcome = udp_probe(
        &world.host.client,
        at(ip("198.18.0.1"), 8084),
        &ProbeOptions::default().timeout(LONG),
    );
    world.check("a datagram meanwhile", "ok", &outcome, outcome.answered());
    world.end();
}
