//! What the MTU of a container's interface, smaller than the uplink's, does to who sends to it, and datagrams that may
//! be fragmented.

use std::net::IpAddr;

use netd::lab::{
    CLIENT, Direction, HOST, ProbeOptions, StandardHost, StandardHostOptions, bulk_transfer, ip,
    udp_probe,
};
use nix::errno::Errno;

use crate::mtu_tunnel::{path_mtu, without_fragments};
use crate::world::{LONG, World, at, by, need_root};

/// Gives a container's interface, both ends, this MTU.
fn narrow(host: &StandardHost, container: &str, mtu: u32) {
    let container = host.container(container);
    container.namespace.set_mtu("eth0", mtu).expect("MTU");
    host.host.set_mtu(&container.host_device, mtu).expect("MTU");
}

#[test]
fn a_container_with_a_smaller_mtu_gets_bulk_and_tells_of_datagrams() {
    need_root!();
    let world = World::new(
        StandardHostOptions::default(),
        |host| {
            narrow(host, "n2a", 1280);
            narrow(host, "n2b", 1280);
        },
        |toml| toml,
    );
    let client = &world.host.client;
    for (to, own) in [
        (at(HOST, 8083), IpAddr::from(CLIENT)),
        (at(ip("fd99::1"), 8085), ip("fd99::2")),
    ] {
        for direction in [Direction::Upload, Direction::Download] {
            const BYTES: u64 = 8 << 20;
            let options = ProbeOptions::default().timeout(LONG);
            let name = format!("{direction:?} of {own}");
            match bulk_transfer(client, to, BYTES, direction, &options) {
                Ok(moved) => world.check(&name, BYTES, moved.bytes, moved.bytes == BYTES),
                Err(outcome) => world.check(&name, BYTES, outcome, false),
            }
        }
    }
    for (host, headers) in [(IpAddr::from(HOST), 28), (ip("fd99::1"), 48)] {
        let largest = 1280 - headers;
        let socket = client
            .run(|| without_fragments(at(host, 8084)))
            .expect("a socket");
        let mut buffer = vec![0; 4096];
        socket.send(&vec![7; largest + 1]).expect("send");
        let error = socket
            .recv(&mut buffer)
            .err()
            .and_then(|e| e.raw_os_error());
        let is_it = error == Some(Errno::EMSGSIZE as i32);
        world.check("one byte more", "EMSGSIZE", format!("{error:?}"), is_it);
        let mtu = path_mtu(&socket).expect("the path's MTU");
        world.check("path MTU", 1280, mtu, mtu == 1280);
        let options = ProbeOptions::default().timeout(LONG).payload(600);
        let got = udp_probe(client, at(host, 8084), &options);
        world.outcome(
            "what fits",
            by(
                "n2b",
                if host.is_ipv4() {
                    CLIENT.into()
                } else {
                    ip("fd99::2")
                },
            ),
            got,
        );
    }
    // A neighbour by the gateway too: the container is told, not the world.
    let c0 = &world.host.container("c0").namespace;
    let socket = c0
        .run(|| without_fragments(at(HOST, 8084)))
        .expect("a socket");
    socket.send(&[7; 1400]).expect("send");
    let error = socket
        .recv(&mut [0; 64])
        .err()
        .and_then(|e| e.raw_os_error());
    let is_it = error == Some(Errno::EMSGSIZE as i32);
    world.check("from a container", "EMSGSIZE", format!("{error:?}"), is_it);
    world.end();
}
