//! Acceptance 4: no source port is left to one destination.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use netd::lab::{
    CLIENT, Connection, DATAGRAM, Listen, Namespace, Outcome, ProbeOptions, Server,
    StandardHostOptions, WEB, ip, tcp_probe, udp_probe,
};

use crate::programs::need_root;
use crate::world::{CLIENT_V6, LONG, SHORT, World, at};

/// The least that the file may say.
const PORTS: usize = 64;
const FIRST: u16 = 20_000;
/// Another port of the same server.
const OTHER: u16 = 81;

#[test]
fn the_last_port_to_a_destination() {
    need_root!();
    let mut world = World::new(
        StandardHostOptions {
            networks: &["n2"],
            ..StandardHostOptions::default()
        },
        |_| {
            format!(
                "\n[nat]\nports = \"{FIRST}-{}\"\n",
                usize::from(FIRST) + PORTS - 1
            )
        },
    );
    let _other =
        Server::start(&world.host.client, "other", &Listen::tcp_any(OTHER)).expect("a server");
    let n2a = world.container("n2a").namespace.clone();
    let n2b = world.container("n2b").namespace.clone();
    for address in [IpAddr::from(CLIENT), ip(CLIENT_V6)] {
        let to = at(address, WEB);
        let mut live = fill(&n2a, to);
        let sources: std::collections::BTreeSet<u16> = live
            .iter_mut()
            .map(|connection| match connection.exchange(10, LONG) {
                Outcome::Answered(answer) => answer.report.expect("a report").peer.port(),
                outcome => panic!("{to}: {outcome}"),
            })
            .collect();
        assert_eq!(
            sources.len(),
            PORTS,
            "each has a port of its own: {sources:?}"
        );
        let range = FIRST..=FIRST + PORTS as u16 - 1;
        assert!(
            sources.iter().all(|port| range.contains(port)),
            "{sources:?}"
        );

        // The next one is refused, whoever asks, and the refusal is counted with its destination.
        let before = refused(&world, to);
        for from in [&n2a, &n2b] {
            let outcome = tcp_probe(from, to, &ProbeOptions::default().timeout(SHORT));
            assert_eq!(outcome, Outcome::Timeout, "{to}");
        }
        let after = refused(&world, to);
        assert!(
            after >= before + 2,
            "{before} and then {after} refusals to {to}"
        );
        // Another port, another protocol and another host are other destinations.
        let patient = ProbeOptions::default().timeout(LONG);
        let others = [
            tcp_probe(&n2a, at(address, OTHER), &patient),
            udp_probe(&n2a, at(address, DATAGRAM), &patient),
        ];
        for outcome in others {
            assert!(outcome.answered(), "{address}: {outcome}");
        }
        for connection in &mut live {
            let outcome = connection.exchange(1000, LONG);
            assert!(outcome.answered(), "{to}: {outcome}");
        }
        assert_eq!(refused(&world, to), after, "{to}: none of that was refused");

        // Closed, they give their ports back, with the daemon and without.
        drop(live);
        came_back(&n2b, to);
        world.kill();
        drop(fill(&n2b, to));
        came_back(&n2a, to);
        let live = fill(&n2a, to);
        world.start_again();
        drop(live);
    }
    world.end();
}

/// As many connections as there are ports.
fn fill(from: &Namespace, to: SocketAddr) -> Vec<Connection> {
    let options = ProbeOptions::default().timeout(LONG);
    (0..PORTS)
        .map(|n| {
            Connection::open(from, to, &options)
                .unwrap_or_else(|outcome| panic!("connection {n} to {to}: {outcome}"))
        })
        .collect()
}

/// A new connection is answered soon.
fn came_back(from: &Namespace, to: SocketAddr) {
    let closed = Instant::now();
    loop {
        let outcome = tcp_probe(from, to, &ProbeOptions::default().timeout(SHORT));
        if outcome.answered() {
            eprintln!("{to}: a port came back after {:?}", closed.elapsed());
            return;
        }
        assert!(
            closed.elapsed() < Duration::from_secs(10),
            "{to}: no port came back: {outcome}"
        );
    }
}

/// New flows to this destination that found no port.
fn refused(world: &World, to: SocketAddr) -> u64 {
    let drops = world.json(&["drops"]);
    let rows = drops["drops"].as_array().expect("rows");
    let refusals = rows.iter().filter(|row| {
        let last = &row["last"];
        row["reason"] == "source-ports-exhausted"
            && last["dst"] == to.ip().to_string()
            && last["dst_port"] == to.port()
    });
    refusals.filter_map(|row| row["count"].as_u64()).sum()
}
