//! Acceptance 5: six million short flows with the daemon dead, and every one opens.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use netd::lab::{HOST, Route, StandardHostOptions, ip, net};

use crate::load::short::{Kind, deafen, open};
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
            publish("def", c0, "udp", UDP_PORT, 7000) + &publish("def", c0, "tcp", TCP_PORT, 7000)
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
    let rounds: [(&str, &str, Kind, Range<u32>); 4] = [
        (
            "UDP to a published port",
            "c0",
            published(UDP_PORT, false),
            0..2_500_000,
        ),
        ("UDP into the world", "c0b", outwards(false), 0..2_500_000),
        (
            "TCP to a published port",
            "c0",
            published(TCP_PORT, true),
            0..500_000,
        ),
        (
            "TCP into the world",
            "c0b",
            outwards(true),
            2_500_000..3_000_000,
        ),
    ];
    let mut opened = 0;
    for (what, name, kind, numbers) in rounds {
        let count = numbers.len() as u64;
        let outcome = open(&world.host, name, kind, numbers);
        eprintln!(
            "{what}: {} of {count} in {:.1} s, {:.0} per second, {} asked again; {:?}",
            outcome.opened,
            outcome.took.as_secs_f64(),
            outcome.rate(),
            outcome.again,
            world.drops()
        );
        assert_eq!(
            outcome.failures,
            0,
            "{what}: {outcome:?}, {:?}",
            world.drops()
        );
        opened += outcome.opened;
    }
    assert_eq!(opened, 6_000_000);
    // Nothing was refused, and nothing had to be asked twice.
    assert!(world.drops().is_empty(), "{:?}", world.drops());
    world.start_again();
    world.end();
}
