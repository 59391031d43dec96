//! The table of expected results: every line that needs no Engine; with transmit offload and without, in replace mode and, over Docker's rules, in accelerate mode.

use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Duration;

use netd::lab::{
    CLIENT, DATAGRAM, Direction, HOST, HOST_SERVICE, IptablesBackend, ProbeOptions, Question,
    RuleSet, StandardHost, StandardHostOptions, WEB, Want, Way, bulk_transfer, ip,
};

use super::world::{LONG, World, at, by, need_root};

use Way::{Echo, Tcp, Udp};

const HOST6: &str = "fd99::1";
const CLIENT6: &str = "fd99::2";

/// The lines of the table.
pub fn questions(host: &StandardHost) -> Vec<Question> {
    let v4 = |name: &str| host.container(name).v4;
    let v6 = |name: &str| host.container(name).v6.expect("n2 has IPv6");
    let gateway = |name: &str| StandardHost::network(name).gateway();
    let gateway6 = |name: &str| StandardHost::network(name).gateway6().expect("n2 has IPv6");
    let (host4, host6): (IpAddr, IpAddr) = (HOST.into(), ip(HOST6));
    let (local4, local6) = (ip("127.0.0.1"), ip("::1"));
    let (client4, client6): (IpAddr, IpAddr) = (CLIENT.into(), ip(CLIENT6));
    let q = Question::new;
    vec![
        q("host", Tcp, at(v4("c0"), WEB), by("c0", gateway("def"))),
        q("host", Tcp, at(v6("n2a"), WEB), by("n2a", gateway6("n2"))),
        q("host", Echo, at(v4("n3a"), 0), Want::Reply),
        // The host's own programs. They are asked in full by the survival tests.
        q("host", Tcp, at(local4, 8081), by("c0", gateway("def"))),
        q("host", Tcp, at(host4, 8081), by("c0", gateway("def"))),
        // c0 has no IPv6, and there is no Engine whose proxy would serve it.
        q("host", Tcp, at(local6, 8081), Want::Refused),
        q("host", Tcp, at(local4, 8082), by("n1a", gateway("n1"))),
        q("host", Tcp, at(host4, 8082), Want::Refused),
        q("host", Tcp, at(host4, 8083), by("n2a", gateway("n2"))),
        q("host", Tcp, at(local4, 8083), Want::Refused),
        q("host", Tcp, at(host6, 8085), by("n2a", gateway6("n2"))),
        q("host", Tcp, at(local6, 8085), by("n2a", gateway6("n2"))),
        q("host", Udp, at(local4, 8084), by("n2b", gateway("n2"))),
        q("host", Udp, at(local6, 8084), by("n2b", gateway6("n2"))),
        // Published ports, and the true client.
        q("client", Tcp, at(host4, 8081), by("c0", client4)),
        q("client", Tcp, at(host4, 8083), by("n2a", client4)),
        q("client", Udp, at(host4, 8084), by("n2b", client4)),
        q("client", Tcp, at(host4, 8082), Want::Refused),
        q("client", Tcp, at(host6, 8085), by("n2a", client6)),
        q("client", Udp, at(host6, 8084), by("n2b", client6)),
        q("client", Tcp, at(host6, 8083), Want::Refused),
        // Container addresses from outside.
        q("client", Tcp, at(v4("c0"), WEB), Want::Nothing),
        q("client", Tcp, at(v4("c0b"), WEB), Want::Nothing),
        q("client", Udp, at(v4("n2b"), DATAGRAM), Want::Nothing),
        q("client", Echo, at(v4("n2a"), 0), Want::Nothing),
        q("client", Tcp, at(v6("n2a"), WEB), Want::Nothing),
        q("client", Udp, at(v6("n2b"), DATAGRAM), Want::Nothing),
        q("client", Echo, at(v6("n2a"), 0), Want::Nothing),
        q("client", Tcp, at(v4("n3a"), WEB), Want::Nothing),
        // Out.
        q("c0", Tcp, at(client4, WEB), by("client", host4)),
        q("c0", Udp, at(client4, DATAGRAM), by("client", host4)),
        q("c0", Echo, at(client4, 0), Want::Reply),
        q("n2a", Tcp, at(client6, WEB), by("client", host6)),
        q("n2a", Udp, at(client6, DATAGRAM), by("client", host6)),
        q("n2a", Echo, at(client6, 0), Want::Reply),
        q("n3a", Tcp, at(client4, WEB), Want::Nothing),
        // Hairpin.
        q(
            "c0",
            Tcp,
            at(gateway("def"), 8081),
            by("c0", gateway("def")),
        ),
        q("c0", Tcp, at(host4, 8081), by("c0", gateway("def"))),
        q("c0b", Tcp, at(host4, 8081), by("c0", v4("c0b"))),
        q("n1a", Tcp, at(host4, 8081), by("c0", v4("n1a"))),
        q("n1a", Udp, at(host4, 8084), by("n2b", v4("n1a"))),
        q("n2a", Tcp, at(host4, 8083), by("n2a", gateway("n2"))),
        q("n2a", Tcp, at(host6, 8085), by("n2a", gateway6("n2"))),
        q("n2b", Tcp, at(host6, 8085), by("n2a", v6("n2b"))),
        q("n2b", Udp, at(host6, 8084), by("n2b", gateway6("n2"))),
        q("n2a", Udp, at(gateway6("n2"), 8084), by("n2b", v6("n2a"))),
        q("n3a", Tcp, at(host4, 8081), Want::Nothing),
        // Neighbours.
        q("c0", Tcp, at(v4("c0b"), WEB), by("c0b", v4("c0"))),
        q("c0", Udp, at(v4("c0b"), DATAGRAM), by("c0b", v4("c0"))),
        q("c0", Echo, at(v4("c0b"), 0), Want::Reply),
        q("n2a", Tcp, at(v6("n2b"), WEB), by("n2b", v6("n2a"))),
        q("n2a", Udp, at(v6("n2b"), DATAGRAM), by("n2b", v6("n2a"))),
        q("n2a", Echo, at(v6("n2b"), 0), Want::Reply),
        q("n3a", Tcp, at(v4("n3b"), WEB), by("n3b", v4("n3a"))),
        q("n1a", Tcp, at(v4("n1b"), WEB), Want::Nothing),
        q("n1a", Udp, at(v4("n1b"), DATAGRAM), Want::Nothing),
        q("n1a", Echo, at(v4("n1b"), 0), Want::Nothing),
        // Networks.
        q("c0", Tcp, at(v4("n2b"), WEB), Want::Nothing),
        q("c0", Udp, at(v4("n2b"), DATAGRAM), Want::Nothing),
        q("c0", Echo, at(v4("n2b"), 0), Want::Nothing),
        q("n2a", Tcp, at(v4("c0b"), WEB), Want::Nothing),
        q("c0", Tcp, at(v4("n3a"), WEB), Want::Nothing),
        // The host's own services.
        q(
            "c0",
            Tcp,
            at(gateway("def"), HOST_SERVICE),
            by("host", v4("c0")),
        ),
        q("c0", Tcp, at(host4, HOST_SERVICE), by("host", v4("c0"))),
        // A server on any address answers from the one that is nearest.
        q(
            "n2a",
            Udp,
            at(gateway("n2"), HOST_SERVICE),
            by("host", v4("n2a")),
        ),
        q("n2a", Tcp, at(host6, HOST_SERVICE), by("host", v6("n2a"))),
        q("c0", Echo, at(gateway("def"), 0), Want::Reply),
        q("client", Tcp, at(host4, HOST_SERVICE), by("host", client4)),
        q("client", Echo, at(host4, 0), Want::Reply),
    ]
}

fn table(options: StandardHostOptions) {
    let offload = options.tx_offload;
    let world = World::standard(options);
    world.ask("table", &questions(&world.host));
    // Established flows, segmentation and every checksum.
    let bulk = ProbeOptions::default().timeout(LONG);
    let client = &world.host.client;
    let n2a = &world.host.container("n2a").namespace;
    for (name, from, to) in [
        ("in", client, at(HOST, 8083)),
        ("in, IPv6", client, at(ip(HOST6), 8085)),
        ("out", n2a, at(CLIENT, WEB)),
        ("out, IPv6", n2a, at(ip(CLIENT6), WEB)),
    ] {
        for direction in [Direction::Upload, Direction::Download] {
            let moved = bulk_transfer(from, to, 2 << 20, direction, &bulk);
            let name = format!("bulk {name} {direction:?}, offload {offload}");
            world.check(
                &name,
                "2 MiB",
                format!("{moved:?}"),
                moved.is_ok_and(|m| m.bytes == 2 << 20),
            );
        }
    }
    for (from, to, group, wanted) in [
        ("c0", "c0b", "10.200.0.255", true),
        ("c0", "c0b", "255.255.255.255", true),
        ("c0", "c0b", "224.0.0.251", true),
        ("n2a", "n2b", "ff02::fb", true),
        ("n1a", "n1b", "10.201.1.255", false),
        ("n1a", "n1b", "224.0.0.251", false),
    ] {
        let heard = hears(&world.host, from, to, ip(group));
        world.check(
            &format!("{from} → {group} at {to}"),
            wanted,
            heard,
            heard == wanted,
        );
    }
    world.end();
}

/// Whether `to` hears a datagram that `from` sends to a group or broadcast address.
pub fn hears(host: &StandardHost, from: &str, to: &str, group: IpAddr) -> bool {
    const PORT: u16 = 5353;
    let index = |name: &str| {
        host.container(name)
            .namespace
            .ifindex("eth0")
            .expect("eth0")
    };
    let (from_index, to_index) = (index(from), index(to));
    let receiver = host.container(to).namespace.run(|| {
        let any = if group.is_ipv4() { "0.0.0.0" } else { "::" };
        let socket = UdpSocket::bind(SocketAddr::new(ip(any), PORT)).expect("bind");
        match group {
            IpAddr::V4(group) if group.is_multicast() => {
                let IpAddr::V4(own) = host.container(to).v4 else {
                    unreachable!("IPv4")
                };
                socket.join_multicast_v4(&group, &own).expect("join");
            }
            IpAddr::V4(_) => {}
            IpAddr::V6(group) => socket.join_multicast_v6(&group, to_index).expect("join"),
        }
        socket
    });
    receiver
        .set_read_timeout(Some(Duration::from_millis(500)))
        .expect("timeout");
    host.container(from).namespace.run(|| {
        let any = if group.is_ipv4() { "0.0.0.0" } else { "::" };
        let socket = UdpSocket::bind(SocketAddr::new(ip(any), 0)).expect("bind");
        socket.set_broadcast(true).ok();
        let to: SocketAddr = match group {
            IpAddr::V4(_) => SocketAddr::new(group, PORT),
            IpAddr::V6(group) => SocketAddrV6::new(group, PORT, 0, from_index).into(),
        };
        socket.send_to(b"anyone?", to).expect("send");
    });
    let mut buffer = [0; 16];
    receiver
        .recv(&mut buffer)
        .is_ok_and(|n| buffer[..n] == *b"anyone?")
}

#[test]
fn the_table_with_transmit_offload() {
    need_root!();
    table(StandardHostOptions::default());
}

#[test]
fn the_table_without_transmit_offload() {
    need_root!();
    table(StandardHostOptions {
        tx_offload: false,
        forwarding: true,
        ..Default::default()
    });
}

#[test]
fn the_table_in_accelerate_mode() {
    need_root!();
    if !IptablesBackend::Default.installed() {
        println!("skipped: iptables is not installed");
        return;
    }
    let options = StandardHostOptions {
        forwarding: true,
        rules: vec![RuleSet::docker_29()],
        ..Default::default()
    };
    let world = World::new(options, |_| {}, |toml| toml.host("mode", "\"accelerate\""));
    world.ask("accelerate", &questions(&world.host));
    world.end();
}
