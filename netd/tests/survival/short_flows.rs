//! Acceptance 5: six million short flows with the daemon dead, and every one opens.

use std::net::{IpAddr, Ipv4Addr};

use netd::lab::{HOST, Route, StandardHostOptions, ip, net};

use crate::load::short::{INSIDE, Kind, deafen, open};
use crate::programs::need_root;
use crate::world::{World, publish};

const UDP_PORT: u16 = 8100;
const TCP_PORT: u16 = 8101;

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => panic!("{address} is not IPv4"),
    }
}

#[test]
fn six_million_short_flows_without_a_daemon() {
    need_root!();
    let mut world = World::new(
        StandardHostOptions {
            networks: &["def"],
            ..StandardHostOptions::default()
        },
        |host| {
            let c0 = host.container("c0").v4;
            publish("def", c0, "udp", UDP_PORT, INSIDE)
                + &publish("def", c0, "tcp", TCP_PORT, INSIDE)
        },
    );
    let pool = Route::to(net("198.18.128.0/17")).via(ip("198.18.0.2"));
    world.host.host.add_route(&pool).expect("a route");
    // The host knows its neighbour, and keeps it.
    let client = world.host.client.mac("eth0").expect("a MAC");
    world
        .host
        .host
        .set_neighbour("up0", ip("198.18.0.2"), client)
        .expect("a neighbour");
    for name in ["c0", "c0b"] {
        deafen(&world.host, name);
    }
    world.daemon.settle().expect("nothing to do");
    let (c0, c0b) = (v4(world.container("c0").v4), v4(world.container("c0b").v4));
    let published = |port, tcp| Kind {
        container: c0,
        published: Some((HOST, port)),
        tcp,
    };
    let outwards = |tcp| Kind {
        container: c0b,
        published: None,
        tcp,
    };
    world.kill();
    // Both ways at once, first by datagrams, then by connections.
    let rounds = [
        ("UDP", UDP_PORT, false, 2_500_000),
        ("TCP", TCP_PORT, true, 500_000),
    ];
    let mut opened = 0;
    for (protocol, port, tcp, count) in rounds {
        let host = &world.host;
        let (inwards, outwards) = std::thread::scope(|scope| {
            let inwards = scope.spawn(move || open(host, "c0", published(port, tcp), 0..count));
            let outwards = scope.spawn(move || open(host, "c0b", outwards(tcp), 0..count));
            (inwards.join().expect("in"), outwards.join().expect("out"))
        });
        for (way, outcome) in [("in", inwards), ("out", outwards)] {
            eprintln!(
                "{protocol} {way}: {} of {count} in {:.1} s, {:.0} per second, {} asked again",
                outcome.opened,
                outcome.took.as_secs_f64(),
                outcome.rate(),
                outcome.again,
            );
            assert_eq!(outcome.failures, 0, "{protocol} {way}: {outcome:?}");
            opened += outcome.opened;
        }
        let status = world.json(&["status"]);
        eprintln!("{}\n{:?}", status["data_plane"]["flows_v4"], world.drops());
    }
    assert_eq!(opened, 6_000_000);
    // Nothing was refused, and nothing had to be asked twice.
    assert!(world.drops().is_empty(), "{:?}", world.drops());
    world.start_again();
    world.end();
}
