//! Packets in fragments, with real sockets and with frames made by hand.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use netd::lab::{
    CLIENT, Capture, DATAGRAM, Frame, HOST, Namespace, ProbeOptions, StandardHostOptions, Want,
    inject, ip,
};
use netd_common::crc32c::crc32c;
use netd_common::model::cut::{cut, fragment, join};
use netd_common::wire::{V4, V6};

use crate::world::{LONG, World, add_verified_tunnel, at, by, need_root};

/// What must come after it has come.
const SETTLE: Duration = Duration::from_millis(300);

/// Host, client and the container n2b, of one family.
struct Family {
    host: IpAddr,
    client: IpAddr,
    n2b: IpAddr,
    n2a: IpAddr,
    gateway: IpAddr,
}

fn families() -> [Family; 2] {
    [
        Family {
            host: HOST.into(),
            client: CLIENT.into(),
            n2b: ip("10.201.2.3"),
            n2a: ip("10.201.2.2"),
            gateway: ip("10.201.2.1"),
        },
        Family {
            host: ip("fd99::1"),
            client: ip("fd99::2"),
            n2b: ip("fd00:201:2::3"),
            n2a: ip("fd00:201:2::2"),
            gateway: ip("fd00:201:2::1"),
        },
    ]
}

fn options(payload: usize) -> ProbeOptions {
    ProbeOptions::default().timeout(LONG).payload(payload)
}

/// Datagrams of up to 60,000 bytes and echoes of 4 KB, through every kind of flow, there and back.
fn large_datagrams(tx_offload: bool) {
    let world = World::standard(StandardHostOptions {
        tx_offload,
        ..Default::default()
    });
    let fragments = Capture::filtered(&world.host.client, "eth0", |frame| {
        frame.decoded.fragment.is_some()
    })
    .expect("capture");
    for family in families() {
        let Family {
            host,
            client,
            n2b,
            n2a,
            gateway,
        } = family;
        for size in [1450, 8000, 60_000] {
            let probe = |name: &str, from: &str, to, want: Want| {
                let got = world.host.udp(from, to, &options(size));
                world.outcome(&format!("{size} bytes, {name}, {to}"), want, got);
            };
            let published = at(host, 8084);
            let by = |server: &str, peer: IpAddr| by(server, peer);
            probe(
                "masquerade",
                "n2b",
                at(client, DATAGRAM),
                by("client", host),
            );
            probe("publish", "client", published, by("n2b", client));
            probe("hairpin", "n2a", published, by("n2b", n2a));
            probe("hairpin to itself", "n2b", published, by("n2b", gateway));
            probe("neighbour", "n2a", at(n2b, DATAGRAM), by("n2b", n2a));
            if host.is_ipv4() {
                let n1a = world.host.container("n1a").v4;
                probe("another network", "n1a", published, by("n2b", n1a));
            }
        }
        let got = world.host.ping("n2b", client, &options(4000));
        world.outcome(&format!("an echo of 4 KB to {client}"), Want::Reply, got);
    }
    let seen = fragments.stop();
    for (way, outgoing) in [("from the client", true), ("to the client", false)] {
        let count = seen
            .iter()
            .filter(|f| f.info.outgoing() == outgoing)
            .count();
        // Six of 8,000 bytes and forty-one of 60,000, of two families and two kinds of flow.
        world.check(
            &format!("fragments {way}"),
            "many",
            count,
            count >= 2 * 2 * (6 + 41),
        );
    }
    let drops = drops(&world);
    for (reason, count) in &drops {
        world.check(
            "dropped as fragments",
            "none",
            format!("{count} {reason}"),
            !reason.starts_with("fragment"),
        );
    }
    world.end();
}

#[test]
fn large_datagrams_pass_both_ways() {
    need_root!();
    large_datagrams(true);
}

#[test]
fn large_datagrams_pass_both_ways_without_offload() {
    need_root!();
    large_datagrams(false);
}

/// A tunnel whose far end verifies the outer checksum: fragments arrive with a sum over the whole of each
/// (CHECKSUM_COMPLETE), which of a later one no checksum inside makes up for.
#[test]
fn a_tunnel_with_verified_checksums() {
    need_root!();
    let world = World::new(
        StandardHostOptions {
            tx_offload: false,
            ..Default::default()
        },
        |host| {
            add_verified_tunnel(host);
            // What is cut is to fit into the tunnel and into the container.
            host.host.set_mtu("vx0", 1400).expect("MTU");
            host.client.set_mtu("vx0", 1400).expect("MTU");
            let n2b = host.container("n2b");
            n2b.namespace.set_mtu("eth0", 1400).expect("MTU");
        },
        |toml| toml,
    );
    for (own, peer) in [("100.64.0.1", "100.64.0.2"), ("fd77::1", "fd77::2")] {
        let (own, peer) = (ip(own), ip(peer));
        for size in [3001, 8000] {
            let name = format!("{size} bytes between {own} and {peer}");
            let got = world.host.udp("client", at(own, 8084), &options(size));
            world.outcome(&name, by("n2b", peer), got);
            let got = world.host.udp("n2b", at(peer, DATAGRAM), &options(size));
            world.outcome(&name, by("client", own), got);
        }
    }
    world.end();
}

/// Dropped packets by reason.
pub fn drops(world: &World) -> BTreeMap<String, u64> {
    let answer = world.daemon.verb(&["drops", "--json"]).expect("drops");
    let json: serde_json::Value = serde_json::from_str(&answer.stdout).expect("JSON");
    let mut drops = BTreeMap::new();
    for row in json["drops"].as_array().expect("rows") {
        let reason = row["reason"].as_str().expect("a reason").to_owned();
        *drops.entry(reason).or_default() += row["count"].as_u64().expect("a count");
    }
    drops
}

/// Frames of one side of the world, and where they arrive.
struct Side<'a> {
    from: (&'a Namespace, &'a str),
    macs: ([u8; 6], [u8; 6]),
    at: (&'a Namespace, &'a str),
}

impl Side<'_> {
    /// Sends frames; what of them, or of others, comes out in fragments within a short time.
    fn send(&self, frames: &[Vec<u8>], awaited: usize) -> Vec<Vec<u8>> {
        let capture = Capture::filtered(self.at.0, self.at.1, |frame| {
            !frame.info.outgoing() && frame.decoded.fragment.is_some()
        })
        .expect("capture");
        inject(self.from.0, self.from.1, frames).expect("inject");
        let deadline = std::time::Instant::now() + LONG;
        while capture.frames().len() < awaited && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(SETTLE);
        let frames = capture.stop();
        frames.into_iter().map(|frame| frame.bytes).collect()
    }

    fn datagram(&self, from: IpAddr, to: IpAddr, ports: (u16, u16)) -> Vec<u8> {
        let payload: Vec<u8> = (0..800u32).map(|i| i as u8).collect();
        Frame::ethernet(self.macs.0, self.macs.1)
            .ip(from, to)
            .udp(ports.0, ports.1)
            .payload(&payload)
            .build()
    }
}

fn pieces(v4: bool, frame: &[u8], id: u32) -> Vec<Vec<u8>> {
    let lengths = [160, 200, 40, 200];
    if v4 {
        cut::<V4>(frame, id, 0, &lengths)
    } else {
        cut::<V6>(frame, id, 0, &lengths)
    }
}

/// One more fragment of zeros.
fn zeros(v4: bool, frame: &[u8], id: u32, offset: usize, length: usize) -> Vec<u8> {
    let header = if v4 { 20 } else { 40 };
    let head = &frame[14..14 + header];
    let piece = if v4 {
        fragment::<V4>(head, id, offset, true, &vec![0; length])
    } else {
        fragment::<V6>(head, id, offset, true, &vec![0; length])
    };
    [&frame[..14], &piece].concat()
}

/// Is this the whole datagram, once, with every checksum right?
fn is_whole(v4: bool, fragments: &[Vec<u8>], payload: &[u8]) -> bool {
    let whole = std::panic::catch_unwind(|| {
        if v4 {
            join::<V4>(fragments)
        } else {
            join::<V6>(fragments)
        }
    });
    whole.is_ok_and(|whole| {
        let decoded = netd::lab::Decoded::read(&whole, true);
        decoded.checksum == Some(true) && decoded.payload == payload
    })
}

#[test]
fn order_and_overlap() {
    need_root!();
    let world = World::standard(StandardHostOptions::default());
    let (host, client) = (&world.host.host, &world.host.client);
    let n2b = world.host.container("n2b");
    let payload: Vec<u8> = (0..800u32).map(|i| i as u8).collect();
    let inwards = Side {
        from: (client, "eth0"),
        macs: (
            client.mac("eth0").expect("MAC"),
            host.mac("up0").expect("MAC"),
        ),
        at: (&n2b.namespace, "eth0"),
    };
    let outwards = Side {
        from: (&n2b.namespace, "eth0"),
        macs: (n2b.mac, host.mac("br-n2").expect("MAC")),
        at: (client, "eth0"),
    };
    for family in families() {
        let v4 = family.host.is_ipv4();
        // Neighbours are known from here on.
        let got = world
            .host
            .udp("n2b", at(family.client, DATAGRAM), &options(8));
        world.outcome("a datagram out", by("client", family.host), got);
        let got = world.host.udp("client", at(family.host, 8084), &options(8));
        world.outcome("a datagram in", by("n2b", family.client), got);
        for (way, side, frame) in [
            (
                "in",
                &inwards,
                inwards.datagram(family.client, family.host, (4000, 8084)),
            ),
            (
                "out",
                &outwards,
                outwards.datagram(family.n2b, family.client, (4000, 53)),
            ),
        ] {
            let check = |part: &str,
                         awaited: usize,
                         sent: &[Vec<u8>],
                         whole: bool,
                         counted: &[(&str, u64)]| {
                let before = drops(&world);
                let got = side.send(sent, awaited);
                let name = format!("{way}, IPv{}: {part}", if v4 { 4 } else { 6 });
                world.check(&name, awaited, got.len(), awaited == got.len());
                if whole {
                    let is = is_whole(v4, &got, &payload);
                    world.check(&name, "the whole datagram", is, is);
                }
                let after = drops(&world);
                for (reason, count) in counted {
                    let of =
                        |drops: &BTreeMap<String, u64>| drops.get(*reason).copied().unwrap_or(0);
                    let more = of(&after) - of(&before);
                    world.check(&format!("{name}, {reason}"), count, more, more == *count);
                }
            };
            let all = |id| pieces(v4, &frame, id);
            let order = |id: u32, order: &[usize]| -> Vec<Vec<u8>> {
                order.iter().map(|i| all(id)[*i].clone()).collect()
            };
            check(
                "in order",
                5,
                &all(1),
                true,
                &[("fragment-order", 0), ("fragment-overlap", 0)],
            );
            check(
                "any order behind the first",
                5,
                &order(2, &[0, 4, 2, 3, 1]),
                true,
                &[("fragment-order", 0)],
            );
            // From a container nothing leaves before its first; from outside it may be the host's.
            let dropped = if way == "in" { 3 } else { 5 };
            check(
                "two before the first",
                0,
                &order(3, &[3, 4, 0, 1, 2]),
                false,
                &[("fragment-order", dropped)],
            );
            check(
                "each but the last twice",
                5,
                &order(4, &[0, 0, 1, 1, 2, 2, 3, 3, 4]),
                true,
                &[("fragment-overlap", 4)],
            );
            let mut evil = order(5, &[0, 1, 2, 3, 4]);
            evil.insert(2, zeros(v4, &frame, 5, 200, 320));
            check(
                "an overlap spoils the rest",
                2,
                &evil,
                false,
                &[("fragment-overlap", 4)],
            );
            check(
                "too long",
                1,
                &[all(6)[0].clone(), zeros(v4, &frame, 6, 65_528, 64)],
                false,
                &[("fragment-invalid", 1)],
            );
            check(
                "a control",
                5,
                &all(7),
                true,
                &[("fragment-overlap", 0), ("fragment-invalid", 0)],
            );
        }
    }
    world.end();
}

/// SCTP frames made by hand: this kernel may have no SCTP of its own.
#[test]
fn sctp_to_another_port() {
    need_root!();
    let world = World::new(
        StandardHostOptions::default(),
        |_| {},
        |toml| {
            toml.publish(
                "n2",
                ip("10.201.2.3"),
                "sctp",
                "\"0.0.0.0\"",
                ("8132", "3868"),
                "",
            )
            .publish(
                "n2",
                ip("fd00:201:2::3"),
                "sctp",
                "\"::\"",
                ("8132", "3868"),
                "",
            )
        },
    );
    let (host, client) = (&world.host.host, &world.host.client);
    let n2b = world.host.container("n2b");
    let (client_mac, up) = (
        client.mac("eth0").expect("MAC"),
        host.mac("up0").expect("MAC"),
    );
    let bridge = host.mac("br-n2").expect("MAC");
    let packet = |ports: (u16, u16), length: usize| {
        let mut packet = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        packet.extend([1, 2, 3, 4, 0, 0, 0, 0]);
        packet.extend((0..length).map(|i| (i * 5) as u8));
        let crc = crc32c(&[&packet]);
        packet[8..12].copy_from_slice(&crc.to_le_bytes());
        packet
    };
    let sound = |packet: &[u8], ports: (u16, u16)| {
        packet.len() >= 12
            && packet[..2] == ports.0.to_be_bytes()
            && packet[2..4] == ports.1.to_be_bytes()
            && packet[8..12] == crc32c(&[&packet[..8], &[0; 4], &packet[12..]]).to_le_bytes()
    };
    for family in families() {
        // Neighbours are known from here on.
        let got = world.host.udp("client", at(family.host, 8084), &options(8));
        world.outcome("a datagram in", by("n2b", family.client), got);
        for length in [4, 100, 1400] {
            for (way, from, macs, addresses, sent, to, expected) in [
                (
                    "in",
                    (client, "eth0"),
                    (client_mac, up),
                    (family.client, family.host),
                    (9, 8132),
                    (&n2b.namespace, "eth0"),
                    (9, 3868),
                ),
                (
                    "out",
                    (&n2b.namespace, "eth0"),
                    (n2b.mac, bridge),
                    (family.n2b, family.client),
                    (3868, 9),
                    (client, "eth0"),
                    (8132, 9),
                ),
            ] {
                let frame = Frame::ethernet(macs.0, macs.1)
                    .ip(addresses.0, addresses.1)
                    .raw(netd::lab::frame::protocol::SCTP)
                    .payload(&packet(sent, length))
                    .build();
                let capture = Capture::filtered(to.0, to.1, |frame| {
                    !frame.info.outgoing() && frame.decoded.protocol == Some(132)
                })
                .expect("capture");
                inject(from.0, from.1, &[frame]).expect("inject");
                let header = if family.host.is_ipv4() { 34 } else { 54 };
                let got = capture.wait_for(LONG, |_| true);
                let got = got
                    .map(|frame| frame.bytes[header..].to_vec())
                    .unwrap_or_default();
                world.check(
                    &format!("SCTP {way}, {length} bytes from {}", addresses.0),
                    format!("{expected:?} with a right CRC"),
                    format!("{got:x?}"),
                    got.len() == 12 + length && sound(&got, expected),
                );
            }
        }
    }
    world.end();
}
