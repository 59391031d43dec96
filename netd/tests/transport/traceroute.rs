//! Every hop from a container to a far server answers: netd's host first, then the routers, then the server.

use std::time::Duration;

use netd::lab::{Hop, StandardHost, StandardHostOptions, Trace, trace};

use crate::path::{Addresses, Path, addresses};
use crate::world::{World, need_root};

#[test]
fn every_hop_answers_beyond_a_wire() {
    need_root!();
    every_hop_answers(|host| Path::by_wire(host).expect("the path"));
}

#[test]
fn every_hop_answers_beyond_a_tunnel() {
    need_root!();
    every_hop_answers(|host| Path::by_tunnel(host, 1280).expect("the path"));
}

fn every_hop_answers(build: impl FnOnce(&StandardHost) -> Path) {
    let mut path = None;
    let world = World::new(
        StandardHostOptions::default(),
        |host| path = Some(build(host)),
        |toml| toml,
    );
    let path = path.expect("built above");
    let n2b = &world.host.container("n2b").namespace;
    let network = StandardHost::network("n2");
    let gateways = [Some(network.gateway()), network.gateway6()];
    for (Addresses { routers, far, .. }, gateway) in addresses().into_iter().zip(gateways) {
        let hops = [gateway.expect("both families"), routers[0], routers[1]];
        let mut expected = hops.map(Hop::Expired).to_vec();
        expected.push(Hop::Arrived(far));
        for with in [Trace::Udp(33_434), Trace::Echo] {
            let before = path.server.requests();
            let got = trace(n2b, far, with, 8, Duration::from_secs(3)).expect("probes");
            world.check(
                &format!("{with:?} to {far}"),
                format!("{expected:?}"),
                format!("{got:?}"),
                got == expected,
            );
            world.check(
                "requests",
                before,
                path.server.requests(),
                path.server.requests() == before,
            );
        }
        // A router beyond, asked itself.
        let got = trace(n2b, routers[1], Trace::Echo, 8, Duration::from_secs(3)).expect("probes");
        let expected = [
            Hop::Expired(hops[0]),
            Hop::Expired(hops[1]),
            Hop::Arrived(routers[1]),
        ];
        world.check(
            &format!("echo to {}", routers[1]),
            format!("{expected:?}"),
            format!("{got:?}"),
            got == expected,
        );
    }
    world.end();
}
