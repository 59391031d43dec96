//! Two uplinks with `ip rule from ADDRESS`: an answer leaves by the uplink that its question came in by.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use netd::lab::{
    CLIENT, CLIENT_EXTRA, Capture, HOST, HOST_EXTRA, IpNet, Namespace, ProbeOptions, Route, Rule,
    StandardHostOptions, frame::tcp_flags, ip, net, tcp_probe,
};

use crate::world::{LONG, World, at, need_root};

/// Connections to each address.
const CONNECTIONS: u16 = 1000;

/// One address of the host, and who asks it.
struct Side<'a> {
    client: &'a Namespace,
    host: IpAddr,
    /// The client's first source port: ranges that do not meet, so that no two flows to the container are alike.
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
    let options = StandardHostOptions {
        extra_uplink: true,
        ..Default::default()
    };
    let [(own, client), (own_extra, extra)] = addresses;
    let world = World::new(
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
    );
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

/// The prefix of one address.
fn single(address: IpAddr) -> IpNet {
    net(&format!(
        "{address}/{}",
        if address.is_ipv4() { 32 } else { 128 }
    ))
}
