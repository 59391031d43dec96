//! Ways that change under running flows: new flows follow, old ones keep their translation or end, and nothing ever
//! leaves by an uplink under another's address.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use netd::lab::{Capture, Captured, Connection, Outcome, RouteType};
use nix::sys::signal::Signal;

use crate::fork::{SECOND_TABLE, Side, fork, sides};
use crate::world::{LONG, World, need_root};

/// Watches what leaves by each uplink under an address that is not one of that uplink.
struct Strangers(Vec<Capture>);

impl Strangers {
    fn watch(world: &World) -> Self {
        let own = |uplink: usize| sides().map(|side| side.own[uplink]);
        let watch = |(uplink, device): (usize, &str)| {
            let own = own(uplink);
            // At the far end, for the host's uplink may be taken away.
            let namespace = world.host.namespace(["client", "extra"][uplink]);
            let strange = move |frame: &Captured| {
                !frame.info.outgoing() && frame.decoded.source.is_some_and(|s| is_strange(s, &own))
            };
            Capture::filtered(namespace, device, strange).expect("capture")
        };
        Self([(0, "eth0"), (1, "eth0")].map(watch).into())
    }

    fn check(self, world: &World, name: &str) {
        // Blind ones would prove nothing.
        let seen: u64 = self.0.iter().map(Capture::seen).sum();
        for capture in self.0 {
            let place = capture.place().to_owned();
            let strangers: Vec<String> = capture
                .stop()
                .iter()
                .map(|frame| frame.decoded.to_string())
                .collect();
            world.check(
                &format!("{name}: sources of others on {place}, of {seen} frames"),
                "none",
                strangers.join("\n"),
                strangers.is_empty() && seen > 0,
            );
        }
    }
}

/// Not the uplink's, and not the link's own business.
fn is_strange(source: IpAddr, own: &[IpAddr]) -> bool {
    let link_local = match source {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_unspecified(),
    };
    !link_local && !own.contains(&source)
}

/// The flow goes on where it was, or ends: then within this time the client is told.
fn ends(world: &World, name: &str, flow: &mut Connection) {
    let begin = Instant::now();
    let outcome = flow.exchange(100, LONG);
    world.check(
        name,
        "its end, told",
        format!("{outcome} after {:?}", begin.elapsed()),
        matches!(outcome, Outcome::Reset | Outcome::Refused),
    );
}

fn goes_on(world: &World, name: &str, side: Side, uplink: usize, flow: &mut Connection) {
    let outcome = flow.exchange(100, LONG);
    let right = side.is_by(uplink, &outcome);
    let expected = format!("by {}", side.own[uplink]);
    world.check(&format!("{name}, {}", side.far), expected, outcome, right);
}

/// Time for the daemon to see a change and act on it.
fn soon() {
    std::thread::sleep(Duration::from_millis(300));
}

#[test]
fn an_exit_node_is_switched_on_and_off() {
    need_root!();
    let world = fork(|toml| toml, true);
    let host = &world.host.host;
    let strangers = Strangers::watch(&world);
    for side in sides() {
        let exit = side.rule(SECOND_TABLE).input_device(side.bridge);
        let by_rule = (
            "by a rule",
            &|| host.add_rule(&exit).expect("rule"),
            &|| host.delete_rule(&exit).expect("rule"),
        );
        let by_route = (
            "by a route",
            &|| host.replace_route(&side.default_by(1)).expect("route"),
            &|| host.replace_route(&side.default_by(0)).expect("route"),
        );
        type Switch<'a> = (&'a str, &'a dyn Fn(), &'a dyn Fn());
        let switches: [Switch<'_>; 2] = [
            (by_rule.0, by_rule.1, by_rule.2),
            (by_route.0, by_route.1, by_route.2),
        ];
        for (name, on, off) in switches {
            let mut before = side.connect(&world, 0);
            on();
            soon();
            ends(&world, &format!("{name}, on: the old flow"), &mut before);
            let mut during = side.connect(&world, 1);
            off();
            soon();
            ends(&world, &format!("{name}, off: the old flow"), &mut during);
            side.check(&world, &format!("{name}, off: a new flow"), 0);
        }
        // On and off before the flow says anything: it lives on.
        let mut idle = side.connect(&world, 0);
        host.add_rule(&exit).expect("rule");
        soon();
        host.delete_rule(&exit).expect("rule");
        soon();
        goes_on(&world, "on and off in silence", side, 0, &mut idle);
    }
    strangers.check(&world, "exit node");
    world.end();
}

#[test]
fn a_route_that_is_gone_for_a_while_ends_nothing() {
    need_root!();
    let world = fork(|toml| toml, true);
    let host = &world.host.host;
    let strangers = Strangers::watch(&world);
    for side in sides() {
        let mut flow = side.connect(&world, 0);
        for kind in [None, Some(RouteType::Unreachable)] {
            host.delete_route(&side.default_by(0)).expect("route");
            let refusal = kind.map(|kind| netd::lab::Route::to(any(side)).kind(kind));
            if let Some(refusal) = &refusal {
                host.add_route(refusal).expect("route");
            }
            soon();
            side.check_refused(&world, "no route");
            if let Some(refusal) = &refusal {
                host.delete_route(refusal).expect("route");
            }
            host.add_route(&side.default_by(0)).expect("route");
            soon();
            goes_on(&world, "the route is back", side, 0, &mut flow);
        }
    }
    strangers.check(&world, "no route");
    world.end();
}

fn any(side: Side) -> netd::lab::IpNet {
    netd::lab::net(if side.far.is_ipv4() {
        "0.0.0.0/0"
    } else {
        "::/0"
    })
}

#[test]
fn an_address_goes_and_comes() {
    need_root!();
    let world = fork(|toml| toml, true);
    let host = &world.host.host;
    let strangers = Strangers::watch(&world);
    for side in sides() {
        let bits = if side.far.is_ipv4() { 24 } else { 64 };
        let address = netd::lab::IpNet::new(side.own[0], bits).expect("a prefix");
        let mut flow = side.connect(&world, 0);
        host.delete_address("up0", address).expect("address");
        soon();
        // Whether the kernel keeps the route or not: nobody leaves under an address that is gone.
        side.check_refused(&world, "the address is gone");
        host.add_address("up0", address).expect("address");
        host.replace_route(&side.default_by(0)).expect("route");
        soon();
        side.check(&world, "the address is back", 0);
        let outcome = flow.exchange(100, LONG);
        // The flow said nothing meanwhile, so that it may have lived on.
        let fine = side.is_by(0, &outcome) || matches!(outcome, Outcome::Reset);
        let name = format!("the old flow, {}", side.far);
        world.check(&name, "goes on or is told its end", outcome, fine);
    }
    strangers.check(&world, "address");
    world.end();
}

#[test]
fn an_uplink_goes_down_and_away() {
    need_root!();
    let world = fork(|toml| toml, true);
    let host = &world.host.host;
    let strangers = Strangers::watch(&world);
    for side in sides() {
        host.add_route(&side.default_by(1).metric(5000))
            .expect("route");
    }
    let mut flows = sides().map(|side| side.connect(&world, 0));
    let mut silent = sides().map(|side| side.connect(&world, 0));
    host.set_down("up0").expect("down");
    soon();
    for (side, flow) in sides().into_iter().zip(&mut flows) {
        let name = format!("down: the old flow, {}", side.far);
        ends(&world, &name, flow);
        side.check(&world, "down: a new flow", 1);
    }
    host.set_up("up0").expect("up");
    host.wait_ready("up0").expect("ready");
    // The kernel takes IPv6 addresses away from what is down.
    let v6 = netd::lab::IpNet::new(sides()[1].own[0], 64).expect("a prefix");
    host.add_address("up0", v6).expect("address");
    for side in sides() {
        host.replace_route(&side.default_by(0)).expect("route");
    }
    soon();
    for (side, flow) in sides().into_iter().zip(&mut silent) {
        goes_on(&world, "up again: a flow that was silent", side, 0, flow);
    }
    host.delete_device("up0").expect("delete");
    soon();
    for (side, flow) in sides().into_iter().zip(&mut silent) {
        let name = format!("deleted: the old flow, {}", side.far);
        ends(&world, &name, flow);
        side.check(&world, "deleted: a new flow", 1);
    }
    strangers.check(&world, "uplink");
    world.end();
}

#[test]
fn without_the_daemon_a_change_is_followed_within_six_seconds() {
    need_root!();
    let mut world = fork(|toml| toml, true);
    let strangers = Strangers::watch(&world);
    let side = sides()[0];
    let mut flow = side.connect(&world, 0);
    let killed = world.daemon.stop(Signal::SIGKILL).expect("kill");
    assert!(killed.is_some(), "it was not running");
    let host = world.host.host.clone();
    host.replace_route(&side.default_by(1)).expect("route");
    let changed = Instant::now();
    side.check(&world, "dead: a new flow", 1);
    let end = loop {
        let outcome = flow.exchange(100, LONG);
        if !side.is_by(0, &outcome) || changed.elapsed() > Duration::from_secs(8) {
            break outcome;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let after = changed.elapsed();
    world.check(
        "dead: the old flow",
        "its end, told within 6 s",
        format!("{end} after {after:?}"),
        matches!(end, Outcome::Reset) && after < Duration::from_secs(6),
    );
    strangers.check(&world, "dead");
    world.daemon.run(&[]).expect("the daemon again");
    world.end();
}
