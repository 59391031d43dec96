//! Random ICMP errors about the flows that there are, with what they quote cut, padded, damaged and
//! behind options and extension headers.

use netd_common::abi::{Tuple, hook};
use netd_common::model::frame::Frame;
use netd_common::packet::SlicePacket;
use netd_common::parse::{Kind, parse};
use netd_common::quoted::{self, Quoted};
use netd_common::wire::{ETH_LEN, V4, proto};

use super::random::Random;
use super::scenario::{LabFamily, Scenario};
use super::test_host::TestHost;
use super::traffic::{Shot, shot, transport};

/// An error about a flow that there is, or nearly.
pub fn error<F: LabFamily>(
    random: &mut Random,
    scenario: &Scenario,
    host: &TestHost,
) -> Option<Shot> {
    let tables = F::tables(&scenario.model);
    let table = if random.chance(50) {
        &tables.flows
    } else {
        &tables.embryos
    };
    let rows = table.rows();
    if rows.is_empty() {
        return None;
    }
    let (key, flow) = rows.iter().nth(random.below(rows.len() as u64) as usize)?;
    // The entry is that of the packets that go the error's way.
    let from_container = flow.in_mac != [0; 6];
    let mut ifindex = flow.in_ifindex;
    let mut to = flow.in_mac;
    if random.chance(8) {
        ifindex = match random.below(3) {
            0 => random.pick(&scenario.containers).device.ifindex,
            1 => host.up0.ifindex,
            _ => host.up1.ifindex,
        };
    }
    if !from_container || ifindex != flow.in_ifindex {
        let container = scenario
            .containers
            .iter()
            .find(|c| c.device.ifindex == ifindex);
        to = container.map_or(host.mac(ifindex), |c| c.bridge.mac);
    } else if random.chance(8) {
        to = random.pick(&scenario.containers).mac;
    }
    let src = match random.below(20) {
        0..13 if from_container => key.src,
        13..16 if from_container => F::container(random.pick(&scenario.containers)),
        0..3 => key.src,
        3 => *random.pick(&F::odd()),
        4 => *random.pick(&F::host()),
        5 => *random.pick(&F::link_local()),
        _ => *random.pick(&F::world()),
    };
    let dst = match random.below(20) {
        0 => *random.pick(&F::host()),
        1 => *random.pick(&F::world()),
        _ => key.dst,
    };
    let believed: &[u8] = if F::VERSION == 4 {
        &[3, 11, 12]
    } else {
        &[1, 2, 3, 4]
    };
    let others: &[u8] = if F::VERSION == 4 {
        &[4, 5]
    } else {
        &[0, 5, 100]
    };
    let kind = if random.chance(88) { believed } else { others };
    let kind = (*random.pick(kind), random.below(6) as u8);
    let quoted = quote::<F>(random, &key.reversed());
    let mut error = Frame::icmp::<F>(src, dst, kind, [0, 0, 5, 0], &quoted);
    if F::VERSION == 4 && random.chance(8) {
        error.options = vec![1; 4 * random.between(1, 10) as usize];
    } else if F::VERSION == 6 && random.chance(8) {
        (error.first_extension, error.options) = (60, vec![proto::ICMPV6, 0, 1, 4, 0, 0, 0, 0]);
    }
    if random.chance(3) {
        error.ttl = 1;
    }
    let from = scenario
        .containers
        .iter()
        .find(|c| c.device.ifindex == ifindex);
    let mac = from.map_or([2, 9, 9, 9, 9, 9], |c| c.mac);
    let hook = match from {
        Some(_) => hook::FROM_ENDPOINT,
        None => hook::FROM_UPLINK,
    };
    let mut bytes = error.macs(to, mac).bytes::<F>();
    if random.chance(5) {
        // Padding of the frame is no part of the error.
        bytes.extend(vec![0xcc; random.between(1, 30) as usize]);
    }
    Some(shot(hook, ifindex, 0, 0, bytes))
}

/// A packet of this tuple as an error might quote it.
fn quote<F: LabFamily>(random: &mut Random, tuple: &Tuple<F::Addr>) -> Vec<u8> {
    let payload = vec![random.next() as u8; random.between(0, 60) as usize];
    let mut packet = transport::<F>(tuple, 16, &payload);
    packet.ttl = random.between(0, 64) as u8;
    packet.no_udp_checksum = F::VERSION == 4 && random.chance(20);
    if random.chance(20) {
        if F::VERSION == 4 {
            packet.options = vec![1; 4 * random.between(1, 10) as usize];
            packet.fragment = *random.pick(&[0, 0x4000, 0x2000, 0x0007]);
        } else {
            extend(random, &mut packet);
        }
    }
    let mut bytes = packet.packet::<F>();
    match random.below(20) {
        0..5 => {
            let length = random.between(0, bytes.len() as u64);
            bytes.truncate(length as usize);
        }
        5..7 => {
            let at = random.below(bytes.len().min(64) as u64) as usize;
            bytes[at] = random.next() as u8;
        }
        7 => {
            bytes.resize(bytes.len().max(128), 0);
            bytes.extend(b"\x20\x00extensions");
        }
        8 => {
            // About an error.
            let error = if F::VERSION == 4 { 3 } else { 1 };
            let frame = Frame::icmp::<F>(tuple.src, tuple.dst, (error, 0), [0; 4], &bytes);
            bytes = frame.packet::<F>();
        }
        _ => {}
    }
    bytes
}

fn extend<A>(random: &mut Random, packet: &mut Frame<A>) {
    let last = packet.proto;
    let header = |next: u8| vec![next, 0, 1, 4, 0, 0, 0, 0];
    let fragment = |next: u8, offset: u8| vec![next, 0, 0, offset, 0, 0, 0, 1];
    (packet.first_extension, packet.options) = match random.below(8) {
        0 => (0, header(last)),
        1 => (60, header(last)),
        2 => (44, fragment(last, 0)),
        3 => (44, fragment(last, 1)),
        4 => (44, fragment(last, 9)),
        5 => (43, vec![last, 0, 4, 0, 0, 0, 0, 0]),
        6 => {
            let chain = [header(60), header(44), fragment(60, 0), header(last)];
            (0, chain.concat())
        }
        _ => (60, [header(60).repeat(4), header(last)].concat()),
    };
}

/// Key of the entry for packets that go this error's way, if the frame holds an ICMP error.
pub fn key<F: LabFamily>(frame: &[u8]) -> Option<Tuple<F::Addr>> {
    let mut bytes = frame.to_vec();
    let l3 = match bytes.get(12..14) {
        Some(kind) if kind == F::ETHERTYPE => ETH_LEN,
        _ => 0,
    };
    let mut packet = SlicePacket(&mut bytes);
    let parsed = parse::<F>(&mut packet, l3).ok()?;
    let mut quoted = Quoted::default();
    (parsed.kind == Kind::IcmpError && quoted::find::<F>(&mut packet, &parsed, &mut quoted))
        .then(|| quoted.tuple.reversed())
}

#[test]
fn a_key_is_that_of_packets_that_go_the_errors_way() {
    use netd_common::wire::V4Addr;
    let (a, b) = (V4Addr([198, 18, 0, 1]), V4Addr([198, 18, 0, 2]));
    let quoted = Frame::udp((a, 1), (b, 2), b"").packet::<V4>();
    let error = Frame::icmp::<V4>(b, a, (3, 3), [0; 4], &quoted).bytes::<V4>();
    let key = key::<V4>(&error).expect("an error");
    assert_eq!((key.src, key.dst), (b, a));
    assert_eq!((key.sport, key.dport), ([0, 2], [0, 1]));
}
