//! Every way to name a published port × TCP, connected and unconnected UDP × what the socket is
//! bound to.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use netd::lab::{Listen, Namespace, Server, StandardHost};

use super::sockets::{Answer, Bound, Way, ask};
use super::{ANY, LOOPBACK, ONE, World, at, ip, need_root};

const WAYS: [Way; 3] = [Way::Tcp, Way::Connected, Way::Unconnected];
/// An answer may take this long on a busy machine.
const LONG: Duration = Duration::from_secs(5);
/// What is not answered within this time was not served.
const SHORT: Duration = Duration::from_millis(600);

/// What a program names, what it is shown then, and which of the ports that means.
struct Named {
    /// The address that the program gives to connect or sendto.
    to: &'static str,
    /// The peer's address as the kernel would show it without netd.
    shown: &'static str,
    /// Is a port of this kind served there?
    served: [(u16, bool); 3],
    /// A loopback address and a host address that the socket may be bound to.
    bindable: [&'static str; 2],
    /// The source that the container sees: chosen by the kernel, or the bound host address.
    sources: [&'static str; 2],
}

const fn served(any: bool, one: bool, loopback: bool) -> [(u16, bool); 3] {
    [(ANY, any), (ONE, one), (LOOPBACK, loopback)]
}

const V4: [&str; 2] = ["127.0.0.1", "198.18.0.1"];
const V6: [&str; 2] = ["::1", "fd99::1"];
const MAPPED: [&str; 2] = ["::ffff:127.0.0.1", "::ffff:198.18.0.1"];
const FROM_V4: [&str; 2] = ["10.201.2.1", "198.18.0.1"];
const FROM_V6: [&str; 2] = ["fd00:201:2::1", "fd99::1"];

const fn named(
    to: &'static str,
    shown: &'static str,
    served: [(u16, bool); 3],
    bindable: [&'static str; 2],
    sources: [&'static str; 2],
) -> Named {
    Named {
        to,
        shown,
        served,
        bindable,
        sources,
    }
}

#[rustfmt::skip]
const MATRIX: [Named; 12] = [
    named("127.0.0.1",           "127.0.0.1",           served(true, false, true),  V4,     FROM_V4),
    named("127.0.0.2",           "127.0.0.2",           served(true, false, false), V4,     FROM_V4),
    named("198.18.0.1",          "198.18.0.1",          served(true, true, false),  V4,     FROM_V4),
    named("10.200.0.1",          "10.200.0.1",          served(true, false, false), V4,     FROM_V4),
    named("0.0.0.0",             "127.0.0.1",           served(true, false, true),  V4,     FROM_V4),
    named("::1",                 "::1",                 served(true, false, true),  V6,     FROM_V6),
    named("fd99::1",             "fd99::1",             served(true, true, false),  V6,     FROM_V6),
    named("fd00:201:2::1",       "fd00:201:2::1",       served(true, false, false), V6,     FROM_V6),
    named("::",                  "::1",                 served(true, false, true),  V6,     FROM_V6),
    named("::ffff:127.0.0.1",    "::ffff:127.0.0.1",    served(true, false, true),  MAPPED, FROM_V4),
    named("::ffff:127.0.0.2",    "::ffff:127.0.0.2",    served(true, false, false), MAPPED, FROM_V4),
    named("::ffff:198.18.0.1",   "::ffff:198.18.0.1",   served(true, true, false),  MAPPED, FROM_V4),
];

/// One question and what is expected: the container's source and the shown peer, or nothing.
struct Case {
    name: String,
    way: Way,
    bound: Bound,
    to: SocketAddr,
    expected: Option<(IpAddr, SocketAddr)>,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for named in &MATRIX {
        let [loopback, own] = named.bindable.map(|bound| Bound::Address(at(bound, 0)));
        let [chosen, bound_own] = named.sources.map(ip);
        for way in WAYS {
            for (port, is_served) in named.served {
                for (bound, source) in [
                    (Bound::No, Some(chosen)),
                    (own.clone(), Some(bound_own)),
                    // Left alone: from there the container cannot be reached.
                    (loopback.clone(), None),
                    (Bound::Device("lo"), None),
                ] {
                    let source = source.filter(|_| is_served);
                    cases.push(Case {
                        name: format!("{way:?} bound to {bound:?} → {}:{port}", named.to),
                        way,
                        bound,
                        to: at(named.to, port),
                        expected: source.map(|source| (source, at(named.shown, port))),
                    });
                }
            }
        }
    }
    // To `::` from a mapped address is to 127.0.0.1.
    for way in WAYS {
        cases.push(Case {
            name: format!("{way:?} bound to ::ffff:198.18.0.1 → [::]:{LOOPBACK}"),
            way,
            bound: Bound::Address(at("::ffff:198.18.0.1", 0)),
            to: at("::", LOOPBACK),
            expected: Some((ip("198.18.0.1"), at("::ffff:127.0.0.1", LOOPBACK))),
        });
    }
    cases
}

/// Asks everything, many at once: what is not answered takes its time.
fn ask_all(namespace: &Namespace, cases: &[Case]) -> BTreeMap<usize, io::Result<Answer>> {
    let next = Mutex::new(0..cases.len());
    let answers = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| {
                namespace.run(|| {
                    loop {
                        let Some(index) = next.lock().expect("lock").next() else {
                            break;
                        };
                        let case = &cases[index];
                        let patience = if case.expected.is_some() { LONG } else { SHORT };
                        let answer = ask(case.way, &case.bound, case.to, patience);
                        answers.lock().expect("lock").insert(index, answer);
                    }
                });
            });
        }
    });
    answers.into_inner().expect("lock")
}

fn matrix(mode: &str) {
    let world = World::new(mode);
    let server = &world.host.container("n2a").server;
    let before = server.requests();
    let cases = cases();
    let answers = ask_all(&world.host.host, &cases);
    let mut wrong = Vec::new();
    let mut answered = 0;
    for (index, case) in cases.iter().enumerate() {
        let got = &answers[&index];
        answered += u64::from(got.is_ok());
        let ok = match (&case.expected, got) {
            (None, Err(_)) => true,
            (Some((source, shown)), Ok(answer)) => {
                answer.report.server == "n2a"
                    && answer.report.peer.ip() == *source
                    && answer.shown.iter().all(|one| one == shown)
            }
            _ => false,
        };
        if !ok {
            let Case { name, expected, .. } = case;
            wrong.push(format!("{name}: expected {expected:?}, got {got:?}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} were wrong:\n  {}",
        wrong.len(),
        cases.len(),
        wrong.join("\n  ")
    );
    assert_eq!(
        server.requests() - before,
        answered,
        "the container answered nothing that nobody heard"
    );
    println!(
        "{mode}: {} as expected, {answered} of them served",
        cases.len()
    );
    world.end();
}

#[test]
fn every_way_to_name_a_port_in_replace_mode() {
    need_root!();
    matrix("replace");
}

#[test]
fn every_way_to_name_a_port_in_accelerate_mode() {
    need_root!();
    matrix("accelerate");
}

/// The same addresses and ports from other namespaces: a client's, and a container's. A program
/// that serves the port there is the control: the question was answered where it was asked.
#[test]
fn sockets_of_other_namespaces_are_left_alone() {
    need_root!();
    let world = World::new("replace");
    let StandardHost { host, client, .. } = &world.host;
    let c0 = &world.host.container("c0").namespace;
    let n2a = &world.host.container("n2a").server;
    let before = n2a.requests();
    for namespace in [client, c0] {
        let asked = |way: Way, to: &str| {
            namespace.run(|| ask(way, &Bound::No, at(to, ANY), SHORT).map(|a| a.report.server))
        };
        for way in WAYS {
            for to in ["127.0.0.1", "0.0.0.0", "::1", "::ffff:127.0.0.1"] {
                let error = asked(way, to).expect_err("nobody serves it there");
                assert!(
                    matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
                    ),
                    "{way:?} {to}: {error}"
                );
            }
        }
        let listens = [Listen::tcp_any(ANY), Listen::udp_any(ANY)].concat();
        let own = Server::start(namespace, "own", &listens).expect("a server");
        for way in WAYS {
            for to in ["127.0.0.1", "0.0.0.0", "::1", "::ffff:127.0.0.1"] {
                assert_eq!(asked(way, to).expect("an answer"), "own", "{way:?} {to}");
            }
        }
        drop(own);
    }
    assert_eq!(n2a.requests(), before);
    let ours = host.run(|| ask(Way::Tcp, &Bound::No, at("127.0.0.1", ANY), LONG));
    assert_eq!(ours.expect("an answer").report.server, "n2a");
    world.end();
}
