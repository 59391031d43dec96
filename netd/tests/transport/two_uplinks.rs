//! Two uplinks with `ip rule from ADDRESS`: an answer leaves by the uplink that its question came in by.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use netd::lab::{
    CLIENT, CLIENT_EXTRA, Capture, Connection, HOST, HOST_EXTRA, IpNet, Namespace, ProbeOptions,
    Route, Rule, StandardHostOptions, Want, frame::tcp_flags, ip, net, tcp_probe,
};

use crate::fragments::drops;
use crate::world::{LONG, World, at, by, need_root};

/// Connections to each address.
const CONNECTIONS: u16 = 1000;

/// One address of the host, and who asks it.
struct Side<'a> {
    client: &'a Namespace,
    host: IpAddr,
    /// The client's first source port. The two ranges do not meet: the container sees the client's true address and
    /// port, so the same of both sides would be one flow to it, and netd refuses the second
    /// ([`one_client_port_to_both_addresses_is_one_flow_to_the_container`]).
    first_port: u16,
}

#[test]
fn answers_leave_by_the_uplink_of_the_question_ipv4() {
    need_root!();
    answers_leave_by_the_uplink_of_the_question(
        ip("100.70.0.9"),
        8081,
        "c0",
        [
            (HOST.into(), CLIENT.into()),
            (HOST_EXTRA.into(), CLIENT_EXTRA.into()),
        ],
    );
}

#[test]
fn answers_leave_by_the_uplink_of_the_question_ipv6() {
    need_root!();
    answers_leave_by_the_uplink_of_the_question(
        ip("fd70::9"),
        8085,
        "n2a",
        [
            (ip("fd99::1"), ip("fd99::2")),
            (ip("fd98::1"), ip("fd98::2")),
        ],
    );
}

/// Both clients have the same address, which the main table reaches by the first uplink only: an answer that goes by
/// the wrong one meets a client that knows nothing of it.
fn answers_leave_by_the_uplink_of_the_question(
    far: IpAddr,
    port: u16,
    server: &str,
    addresses: [(IpAddr, IpAddr); 2],
) {
    let [(own, _), (own_extra, _)] = addresses;
    let world = two_uplinks(far, addresses);
    let sides = [
        Side {
            client: &world.host.client,
            host: own,
            first_port: 20_000,
        },
        Side {
            client: world.host.namespace("extra"),
            host: own_extra,
            first_port: 40_000,
        },
    ];
    let captures = sides.each_ref().map(|side| {
        Capture::filtered(side.client, "eth0", |frame| {
            let answer = tcp_flags::SYN | tcp_flags::ACK;
            let wanted = if frame.info.outgoing() {
                tcp_flags::SYN
            } else {
                answer
            };
            frame.decoded.tcp_flags == Some(wanted)
        })
        .expect("capture")
    });
    for side in &sides {
        let mut answered = 0;
        let mut failed = Vec::new();
        for number in 0..CONNECTIONS {
            let options = ProbeOptions::default()
                .source(at(far, side.first_port + number))
                .timeout(LONG);
            let outcome = tcp_probe(side.client, at(side.host, port), &options);
            let right = outcome
                .report()
                .is_some_and(|report| report.server == server && report.peer.ip() == far);
            if right {
                answered += 1;
            } else {
                failed.push(format!("connection {number}: {outcome}"));
            }
            // Each failure takes the whole patience.
            if failed.len() == 3 {
                break;
            }
        }
        world.check(
            &format!("connections to {}", side.host),
            format!("{CONNECTIONS} answered by {server}"),
            format!("{answered} {failed:?}"),
            answered == CONNECTIONS,
        );
    }
    std::thread::sleep(Duration::from_millis(100));
    for (side, capture) in sides.iter().zip(captures) {
        let place = capture.place().to_owned();
        let frames = capture.stop();
        // Retransmissions count once.
        let flows = |outgoing: bool| -> BTreeSet<(IpAddr, u16)> {
            frames
                .iter()
                .filter(|frame| frame.info.outgoing() == outgoing)
                .filter_map(|frame| {
                    let (source, destination) = frame.decoded.ports?;
                    Some(if outgoing {
                        (frame.decoded.destination?, source)
                    } else {
                        (frame.decoded.source?, destination)
                    })
                })
                .collect()
        };
        let (asked, answered) = (flows(true), flows(false));
        let expected: BTreeSet<_> = (0..CONNECTIONS)
            .map(|number| (side.host, side.first_port + number))
            .collect();
        world.check(
            &format!("asked on {place}"),
            expected.len(),
            asked.len(),
            asked == expected,
        );
        world.check(
            &format!("answered on {place}"),
            expected.len(),
            format!(
                "{}, of others {:?}",
                answered.len(),
                answered.difference(&expected).take(3).collect::<Vec<_>>()
            ),
            answered == expected,
        );
    }
    world.end();
}

/// A host with `ip rule from` each of its two addresses, and a client of this address beyond both uplinks.
fn two_uplinks(far: IpAddr, addresses: [(IpAddr, IpAddr); 2]) -> World {
    let options = StandardHostOptions {
        extra_uplink: true,
        ..Default::default()
    };
    let [(own, client), (own_extra, extra)] = addresses;
    World::new(
        options,
        |host| {
            for namespace in [&host.client, host.namespace("extra")] {
                namespace.add_address("lo", single(far)).expect("address");
            }
            let gateway = Route::default_via(client);
            host.host.add_route(&gateway).expect("route");
            for (table, own, gateway) in [(101, own, client), (102, own_extra, extra)] {
                let rule = if far.is_ipv4() {
                    Rule::v4(100, table)
                } else {
                    Rule::v6(100, table)
                };
                host.host
                    .add_route(&Route::default_via(gateway).table(table))
                    .expect("route");
                host.host.add_rule(&rule.from(single(own))).expect("rule");
            }
        },
        |toml| toml,
    )
}

/// A known limit: netd keeps the client's port towards the container, so a client that uses one port of its own to both
/// published addresses gets one connection; the second is refused and counted, and the first is not harmed.
#[test]
fn one_client_port_to_both_addresses_is_one_flow_to_the_container() {
    need_root!();
    const PORT: u16 = 30_000;
    let far = ip("100.70.0.9");
    let world = two_uplinks(
        far,
        [
            (HOST.into(), CLIENT.into()),
            (HOST_EXTRA.into(), CLIENT_EXTRA.into()),
        ],
    );
    let conflicts = || drops(&world).get("tuple-conflict").copied().unwrap_or(0);
    let options = |port, patience| {
        let options = ProbeOptions::default().timeout(patience);
        options.source(at(far, port))
    };
    let mut first = Connection::open(&world.host.client, at(HOST, 8081), &options(PORT, LONG))
        .expect("the first");
    let got = first.exchange(32, LONG);
    world.outcome("the first", by("c0", far), got);
    world.check("conflicts before", 0, conflicts(), conflicts() == 0);
    let extra = world.host.namespace("extra");
    let to = at(HOST_EXTRA, 8081);
    let got = tcp_probe(extra, to, &options(PORT, Duration::from_millis(700)));
    world.outcome("the second", Want::Nothing, got);
    world.check("conflicts", "some", conflicts(), conflicts() > 0);
    // The control: any other port.
    let got = tcp_probe(extra, to, &options(PORT + 1, LONG));
    world.outcome("another port", by("c0", far), got);
    let got = first.exchange(32, LONG);
    world.outcome("the first again", by("c0", far), got);
    world.end();
}

/// The prefix of one address.
fn single(address: IpAddr) -> IpNet {
    net(&format!(
        "{address}/{}",
        if address.is_ipv4() { 32 } else { 128 }
    ))
}
