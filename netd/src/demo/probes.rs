//! What is asked of the host, and what it should answer.

use std::net::{IpAddr, SocketAddr};

use crate::host::{cgroup2_root, supports_socket_hooks};
use crate::lab::{
    CLIENT, DATAGRAM, HOST, HOST_SERVICE, Question, StandardHost, WEB, Want, Way, ip,
};

/// The probes, in the order of the table. Every one that must fail stands beside one that differs in a single attribute
/// and must be answered.
pub(super) fn of_containers(host: &StandardHost) -> Vec<Question> {
    use Way::{Echo, Tcp, Udp};
    let v4 = |name: &str| host.container(name).v4;
    let v6 = |name: &str| host.container(name).v6.expect("n2 has IPv6");
    let (host4, host6): (IpAddr, IpAddr) = (HOST.into(), ip("fd99::1"));
    let (client4, client6): (IpAddr, IpAddr) = (CLIENT.into(), ip("fd99::2"));
    let at = SocketAddr::new;
    let of = |name, from, way, to, want| Question::new(from, way, to, want).named(name);
    let from = |server: &str, peer| Want::Answer(server.to_owned(), peer);
    vec![
        // Out: the world sees the host.
        of(
            "n1a → client",
            "n1a",
            Tcp,
            at(client4, WEB),
            from("client", host4),
        ),
        of(
            "n2a → client, UDP",
            "n2a",
            Udp,
            at(client4, DATAGRAM),
            from("client", host4),
        ),
        of(
            "n2a → client, IPv6",
            "n2a",
            Tcp,
            at(client6, WEB),
            from("client", host6),
        ),
        of(
            "n2b → client, IPv6 UDP",
            "n2b",
            Udp,
            at(client6, DATAGRAM),
            from("client", host6),
        ),
        of(
            "n1b → client, ping",
            "n1b",
            Echo,
            at(client4, 0),
            Want::Reply,
        ),
        of(
            "n2b → client, IPv6 ping",
            "n2b",
            Echo,
            at(client6, 0),
            Want::Reply,
        ),
        // In: the container sees the true client.
        of(
            "client → host:8083 (published)",
            "client",
            Tcp,
            at(host4, 8083),
            from("n2a", client4),
        ),
        of(
            "client → host:8084 (published UDP)",
            "client",
            Udp,
            at(host4, 8084),
            from("n2b", client4),
        ),
        of(
            "client → [host]:8085 (published IPv6)",
            "client",
            Tcp,
            at(host6, 8085),
            from("n2a", client6),
        ),
        of(
            "client → [host]:8084 (published IPv6 UDP)",
            "client",
            Udp,
            at(host6, 8084),
            from("n2b", client6),
        ),
        // Around: a container's own address is no way in.
        of(
            "client → n2a:80 directly",
            "client",
            Tcp,
            at(v4("n2a"), WEB),
            Want::Nothing,
        ),
        of(
            "client → n2a:80 directly, IPv6",
            "client",
            Tcp,
            at(v6("n2a"), WEB),
            Want::Nothing,
        ),
        of(
            "client → n1b:5000 directly, UDP",
            "client",
            Udp,
            at(v4("n1b"), DATAGRAM),
            Want::Nothing,
        ),
        of(
            "client → n2a directly, ping",
            "client",
            Echo,
            at(v4("n2a"), 0),
            Want::Nothing,
        ),
        // Between containers.
        of(
            "n2a → n2b (neighbours)",
            "n2a",
            Tcp,
            at(v4("n2b"), WEB),
            from("n2b", v4("n2a")),
        ),
        of(
            "n2a → n2b, IPv6",
            "n2a",
            Tcp,
            at(v6("n2b"), WEB),
            from("n2b", v6("n2a")),
        ),
        of(
            "n1a → n1b (neighbours, icc = false)",
            "n1a",
            Tcp,
            at(v4("n1b"), WEB),
            Want::Nothing,
        ),
        of(
            "n1a → n2b (another network)",
            "n1a",
            Tcp,
            at(v4("n2b"), WEB),
            Want::Nothing,
        ),
        of(
            "n2b → n1a (another network), UDP",
            "n2b",
            Udp,
            at(v4("n1a"), DATAGRAM),
            Want::Nothing,
        ),
        of(
            "n1a → host:8083 (other network's port)",
            "n1a",
            Tcp,
            at(host4, 8083),
            from("n2a", v4("n1a")),
        ),
        of(
            "n2b → host:8083 (neighbour's port)",
            "n2b",
            Tcp,
            at(host4, 8083),
            from("n2a", v4("n2b")),
        ),
        of(
            "n2a → host:8083 (its own port)",
            "n2a",
            Tcp,
            at(host4, 8083),
            from("n2a", StandardHost::network("n2").gateway()),
        ),
        of(
            "n2b → [host]:8085 (IPv6)",
            "n2b",
            Tcp,
            at(host6, 8085),
            from("n2a", v6("n2b")),
        ),
    ]
}

/// What ends at the host itself, whose own rules are right to see it.
///
/// `guarded`: the host's INPUT chain rejects what it does not know.
pub(super) fn of_host(host: &StandardHost, guarded: bool) -> Vec<Question> {
    let service = if guarded {
        Want::Nothing
    } else {
        Want::Answer("host".to_owned(), CLIENT.into())
    };
    let of = |name, from, to, want| Question::new(from, Way::Tcp, to, want).named(name);
    let at = |port| SocketAddr::new(HOST.into(), port);
    let (n1, n2) = (StandardHost::network("n1"), StandardHost::network("n2"));
    let mut questions = vec![
        of(
            "host → n1a:80",
            "host",
            SocketAddr::new(host.container("n1a").v4, WEB),
            Want::Answer("n1a".to_owned(), n1.gateway()),
        ),
        of(
            "client → host:8082 (on 127.0.0.1 only)",
            "client",
            at(8082),
            Want::Nothing,
        ),
        of(
            "client → host:9000 (the host's own service)",
            "client",
            at(HOST_SERVICE),
            service,
        ),
    ];
    // Without cgroup2 the host's own programs are left to the Engine's proxy, and there is none.
    if cgroup2_root().is_some() && supports_socket_hooks() {
        let local = |address: &str, port| SocketAddr::new(ip(address), port);
        questions.extend([
            of(
                "host → 127.0.0.1:8082 (published there)",
                "host",
                local("127.0.0.1", 8082),
                Want::Answer("n1a".to_owned(), n1.gateway()),
            ),
            of(
                "host → host:8082 (on 127.0.0.1 only)",
                "host",
                at(8082),
                Want::Nothing,
            ),
            of(
                "host → [::1]:8085 (published IPv6)",
                "host",
                local("::1", 8085),
                Want::Answer("n2a".to_owned(), n2.gateway6().expect("n2 has IPv6")),
            ),
            Question::new(
                "host",
                Way::Udp,
                local("127.0.0.1", 8084),
                Want::Answer("n2b".to_owned(), n2.gateway()),
            )
            .named("host → 127.0.0.1:8084 (published UDP)"),
        ]);
    }
    questions
}
