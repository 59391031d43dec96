//! Acceptance 1: the daemon is killed, restarted and replaced twenty times, and no packet notices.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use netd::lab::{CLIENT, HOST, StandardHostOptions, WEB, ip};
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};

use crate::load::{Connections, Stop, Stream, Transfers};
use crate::programs::{need_root, netd, second_build};
use crate::world::{CLIENT_V6, HOST_V6, Link, World, at, publish, to};

const CYCLES: usize = 20;
/// Of each of the four streams.
const DATAGRAMS: u64 = 100_000;
/// Of them, each millisecond: they last about as long as the restarts, and go on if these take longer.
const PACE: u32 = 4;
/// Where the streams' echoes listen.
const ECHO: u16 = 6000;
/// Where those of containers are published.
const PUBLISHED_ECHO: u16 = 8086;

#[test]
fn no_packet_is_lost_in_twenty_restarts() {
    need_root!();
    let second = second_build();
    let mut world = World::new(
        StandardHostOptions {
            networks: &["n2"],
            ..StandardHostOptions::default()
        },
        |host| {
            let n2b = host.container("n2b");
            let v6 = n2b.v6.expect("n2 has IPv6");
            publish("n2", n2b.v4, "udp", PUBLISHED_ECHO, ECHO)
                + &publish("n2", v6, "udp", PUBLISHED_ECHO, ECHO)
        },
    );
    // Before netd knew the containers, their first solicitations may have met the guards.
    let drops_before = world.drops();
    let stop = Stop::default();
    let (client, n2a, n2b) = (
        &world.host.client,
        &world.container("n2a").namespace,
        &world.container("n2b").namespace,
    );
    let transfers = Transfers::start(
        [
            ("in, IPv4", client, at(HOST, 8083)),
            ("in, IPv6", client, to(HOST_V6, 8085)),
            ("out, IPv4", n2b, at(CLIENT, WEB)),
            ("out, IPv6", n2b, to(CLIENT_V6, WEB)),
        ],
        &stop,
    );
    // Name, sender and where it sends to, echo, and the address that the echo has to see.
    let published = |address| (client, at(address, PUBLISHED_ECHO));
    let outwards = |address| (n2a, at(address, ECHO));
    let (host, host_v6) = (HOST.into(), ip(HOST_V6));
    let (world_v4, world_v6) = (CLIENT.into(), ip(CLIENT_V6));
    let streams = [
        ("in, IPv4", published(host), n2b, world_v4),
        ("in, IPv6", published(host_v6), n2b, world_v6),
        ("out, IPv4", outwards(world_v4), client, host),
        ("out, IPv6", outwards(world_v6), client, host_v6),
    ]
    .map(|(name, from, echo, source)| {
        let stream = Stream::start(from, (echo, ECHO), PACE, DATAGRAMS, stop.clone());
        (name, stream, source)
    });
    // Each a connection every ten milliseconds, to the two families in turn.
    let connections = [
        (
            client,
            [(at(HOST, 8083), "n2a"), (to(HOST_V6, 8085), "n2a")],
        ),
        (
            n2a,
            [(at(CLIENT, WEB), "client"), (to(CLIENT_V6, WEB), "client")],
        ),
    ]
    .map(|(from, to)| {
        let to = to.map(|(address, server)| (address, server.to_owned()));
        Connections::start(from, to.into(), Duration::from_millis(10), stop.clone())
    });

    let ids = |links: &BTreeMap<_, Link>| links.values().map(|link| link.id).collect::<Vec<_>>();
    let before = world.links();
    let mut programs: BTreeSet<u32> = before.values().map(|link| link.program).collect();
    for cycle in 0..CYCLES {
        let began = Instant::now();
        let daemon = &mut world.daemon;
        let how = match cycle % 4 {
            0 => {
                daemon.stop(SIGKILL).expect("killed");
                daemon.run(&[]).expect("runs again");
                "kill -9 and a start"
            }
            1 => {
                daemon.stop(SIGTERM).expect("left");
                daemon.run(&[]).expect("runs again");
                "a restart"
            }
            2 => {
                daemon.set_program(second);
                daemon.run(&["--takeover"]).expect("the second build runs");
                "the second build takes over"
            }
            _ => {
                daemon.set_program(netd());
                daemon.run(&["--takeover"]).expect("the first build runs");
                "the first build takes over"
            }
        };
        let now = world.links();
        assert!(
            ids(&now) == ids(&before),
            "{how}: the links are others: {before:?}, {now:?}"
        );
        let replaced: BTreeSet<u32> = now.values().map(|link| link.program).collect();
        assert!(
            replaced.is_disjoint(&programs),
            "{how}: some links still have an earlier daemon's program: {now:?}"
        );
        programs = replaced;
        eprintln!("{how}: {} ms", began.elapsed().as_millis());
    }

    stop.now();
    let mut wrong = Vec::new();
    for (name, moved) in transfers.finish() {
        match &moved {
            Ok(moved) => eprintln!(
                "transfer {name}: {} bytes, {} segments sent again",
                moved.bytes, moved.retransmitted
            ),
            Err(error) => eprintln!("transfer {name}: {error}"),
        }
        match moved {
            Ok(moved) if moved.bytes > 1 << 20 => {}
            moved => wrong.push(format!("transfer {name}: {moved:?}")),
        }
    }
    for opened in connections.map(Connections::finish) {
        eprintln!(
            "{} connections, {:.0} per second, the slowest {:?}, {} failed",
            opened.answered,
            opened.rate(),
            opened.slowest,
            opened.failed.len()
        );
        if opened.answered < 500 {
            wrong.push(format!("only {} new connections", opened.answered));
        }
        wrong.extend(opened.failed);
    }
    for (name, stream, source) in streams {
        let outcome = stream.finish();
        eprintln!(
            "stream {name}: {} sent, {} lost, {} of them for want of room at a socket",
            outcome.sent,
            outcome.lost_there + outcome.lost_back,
            outcome.overflowed
        );
        if !outcome.is_whole(source) || outcome.sent < DATAGRAMS {
            wrong.push(format!("stream {name}: {outcome:?}"));
        }
    }
    let drops = world.drops();
    if drops != drops_before {
        wrong.push(format!(
            "drops: {drops:?}, before the first restart {drops_before:?}"
        ));
    }
    assert!(
        wrong.is_empty(),
        "{}\n{}",
        wrong.join("\n"),
        world.daemon.log()
    );
    world.end();
}
