//! `return_path = "symmetric"`: a host with two providers and one default route answers on both, without any rule.

use std::time::Duration;

use netd::lab::{Capture, Connection, ProbeOptions, Route, RouteType, tcp_probe};

use crate::fork::{Side, fork, sides, single};
use crate::world::{LONG, Toml, World, at, need_root};

const SYMMETRIC: &str = "\n[[uplink]]\nname = \"up1\"\nreturn_path = \"symmetric\"\n";

/// The far address, at the second uplink, asks the host's address there.
fn ask(world: &World, side: Side, port: u16, timeout: Duration) -> netd::lab::Outcome {
    let options = ProbeOptions::default()
        .timeout(timeout)
        .source(at(side.far, port));
    let to = at(side.own[1], side.published);
    tcp_probe(world.host.namespace("extra"), to, &options)
}

fn check(world: &World, name: &str, side: Side, outcome: netd::lab::Outcome) {
    let right = outcome
        .report()
        .is_some_and(|report| report.server == side.container && report.peer.ip() == side.far);
    let expected = format!("{} answers {}", side.container, side.far);
    world.check(&format!("{name}, {}", side.far), expected, outcome, right);
}

#[test]
fn a_host_with_one_default_route_answers_on_both_uplinks() {
    need_root!();
    answers_on_both(true);
}

#[test]
fn so_it_does_with_whole_checksums() {
    need_root!();
    answers_on_both(false);
}

fn answers_on_both(tx_offload: bool) {
    let world = fork(|toml| toml, tx_offload);
    let short = Duration::from_millis(700);
    for side in sides() {
        let outcome = ask(&world, side, 20_000, short);
        let name = format!("by the routes, {}", side.far);
        world.check(&name, "no answer", &outcome, !outcome.answered());
    }
    world.reload(&Toml::standard(&world.host).more(SYMMETRIC));
    let captures = ["client", "extra"].map(|name| {
        let far = sides().map(|side| side.far);
        let answers = move |frame: &netd::lab::Captured| {
            let to = frame.decoded.destination;
            // The first question's answer is still repeated, the routes' way.
            let later = frame.decoded.ports.is_some_and(|(_, to)| to > 20_000);
            !frame.info.outgoing() && later && to.is_some_and(|to| far.contains(&to))
        };
        Capture::filtered(world.host.namespace(name), "eth0", answers).expect("capture")
    });
    for side in sides() {
        for port in 20_001..20_021 {
            let outcome = ask(&world, side, port, LONG);
            check(&world, &format!("connection {port}"), side, outcome);
        }
        // A client on the link itself, and one that the default route does lead to.
        let options = ProbeOptions::default().timeout(LONG);
        for (name, uplink) in [("client", 0), ("extra", 1)] {
            let to = at(side.own[uplink], side.published);
            let outcome = tcp_probe(world.host.namespace(name), to, &options);
            let right = outcome.report().is_some_and(|report| {
                report.server == side.container && report.peer.ip() == side.gateways[uplink]
            });
            world.check(
                &format!("{name} on the link, {}", side.far),
                side.container,
                &outcome,
                right,
            );
        }
    }
    let [astray, answers] = captures.map(|capture| capture.stop().len());
    world.check(
        "answers that left by the default route",
        0,
        astray,
        astray == 0,
    );
    world.check(
        "answers by the uplink of the question",
        "at least 80",
        answers,
        answers >= 80,
    );
    world.end();
}

#[test]
fn a_flow_stays_symmetric_through_changes() {
    need_root!();
    let world = fork(|toml| toml.more(SYMMETRIC), true);
    let host = &world.host.host;
    for side in sides() {
        let open = |port: u16| {
            let options = ProbeOptions::default()
                .timeout(LONG)
                .source(at(side.far, port));
            let to = at(side.own[1], side.published);
            Connection::open(world.host.namespace("extra"), to, &options)
                .unwrap_or_else(|outcome| panic!("{}: {outcome}", side.far))
        };
        let mut flow = open(21_000);
        check(&world, "at first", side, flow.exchange(1000, LONG));

        // The only default route goes away: there is no route to the client at all.
        host.delete_route(&side.default_by(0)).expect("route");
        std::thread::sleep(Duration::from_millis(200));
        check(&world, "without a route", side, flow.exchange(1000, LONG));
        check(&world, "a new flow without a route", side, {
            ask(&world, side, 21_001, LONG)
        });

        // The next hop's Ethernet address changes, as with a router that is replaced: questions tell the new one.
        let extra = world.host.namespace("extra");
        let mac = extra.mac("eth0").expect("a MAC");
        let other = [mac[0], mac[1], mac[2], mac[3], mac[4], mac[5] ^ 0x55];
        extra.set_mac("eth0", other).expect("another MAC");
        std::thread::sleep(Duration::from_millis(200));
        host.add_route(&side.default_by(0)).expect("route");
        std::thread::sleep(Duration::from_millis(200));
        check(&world, "another router", side, flow.exchange(1000, LONG));

        // A client that is shut out stays out.
        let blackhole = Route::to(single(side.far)).kind(RouteType::BlackHole);
        host.add_route(&blackhole).expect("route");
        std::thread::sleep(Duration::from_millis(200));
        let outcome = ask(&world, side, 21_002, Duration::from_millis(700));
        world.check(
            &format!("a blackhole, {}", side.far),
            "no answer",
            &outcome,
            !outcome.answered(),
        );
        host.delete_route(&blackhole).expect("route");
        std::thread::sleep(Duration::from_millis(200));
        check(&world, "no blackhole", side, flow.exchange(1000, LONG));
        // And when next hops have been looked up by time alone.
        std::thread::sleep(Duration::from_secs(6));
        check(&world, "later", side, flow.exchange(1000, LONG));
    }
    world.end();
}
