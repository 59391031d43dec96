//! What is asked of the host, and what it should answer.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::lab::{
    CLIENT, DATAGRAM, HOST, HOST_SERVICE, Outcome, ProbeOptions, StandardHost, WEB, ip,
};

use super::client_like;

/// One question.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    /// For people.
    pub(super) name: &'static str,
    /// Whose namespace it is asked from, as in [`StandardHost::namespace`].
    from: &'static str,
    way: Way,
    to: SocketAddr,
    /// What netd must make of it.
    pub(super) want: Want,
    /// It ends at the host itself, whose own rules are right to see it.
    pub(super) of_host: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Tcp,
    Udp,
    /// The port is not used.
    Echo,
}

/// What should come of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// This server answers, and saw this address as its client's.
    Answer(&'static str, IpAddr),
    /// An echo reply comes.
    Reply,
    /// No answer, in whatever way.
    Nothing,
}

impl Want {
    /// Whether the outcome is as wanted; a probe that could not be made, or a changed byte, never is.
    pub(super) fn matches(&self, outcome: &Outcome) -> bool {
        match self {
            Self::Answer(server, peer) => {
                outcome.report().is_some_and(|r| r.server == *server)
                    && outcome.peer() == Some(*peer)
            }
            Self::Reply => outcome.answered(),
            Self::Nothing => crate::lab::Expect::NoAnswer.matches(outcome),
        }
    }
}

impl std::fmt::Display for Want {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Answer(server, peer) => write!(f, "ok server={server} peer={peer}"),
            Self::Reply => f.write_str("ok"),
            Self::Nothing => f.write_str("no answer"),
        }
    }
}

impl Probe {
    pub(super) fn ask(&self, host: &StandardHost, patience: Duration) -> Outcome {
        let options = ProbeOptions::default().timeout(patience);
        match self.way {
            Way::Tcp => host.tcp(self.from, self.to, &options),
            Way::Udp => host.udp(self.from, self.to, &options),
            Way::Echo => host.ping(self.from, self.to.ip(), &options),
        }
    }
}

/// The probes, in the order of the table. Every one that must fail stands beside one that differs in a single attribute
/// and must be answered.
pub(super) fn all(host: &StandardHost) -> Vec<Probe> {
    use Way::{Echo, Tcp, Udp};
    let v4 = |name: &str| host.container(name).v4;
    let v6 = |name: &str| host.container(name).v6.expect("n2 has IPv6");
    let (host4, host6): (IpAddr, IpAddr) = (HOST.into(), ip("fd99::1"));
    let (client4, client6): (IpAddr, IpAddr) = (CLIENT.into(), client_like(host6));
    let at = SocketAddr::new;
    let of = |name, from, way, to, want| Probe {
        name,
        from,
        way,
        to,
        want,
        of_host: false,
    };
    let of_host = |probe: Probe| Probe {
        of_host: true,
        ..probe
    };
    let from = Want::Answer;
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
        of_host(of(
            "client → host:8082 (on 127.0.0.1 only)",
            "client",
            Tcp,
            at(host4, 8082),
            Want::Nothing,
        )),
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
        // The host itself, which netd leaves to its own rules.
        of_host(of(
            "host → n1a:80",
            "host",
            Tcp,
            at(v4("n1a"), WEB),
            from("n1a", StandardHost::network("n1").gateway()),
        )),
        of_host(of(
            "client → host:9000 (the host's firewall says no)",
            "client",
            Tcp,
            at(host4, HOST_SERVICE),
            Want::Nothing,
        )),
    ]
}
