//! Random packets: new flows, what follows in the flows that there are, and odd ones.

use netd::lab::Mac;
use netd_common::abi::{Tuple, flow_flag, hook};
use netd_common::model::frame::{self, Frame};
use netd_common::packet::SlicePacket;
use netd_common::parse::parse;
use netd_common::pipeline::Meta;
use netd_common::wire::{Address, ETH_LEN, V4, V6, proto};

use super::fragments;
use super::mtu;
use super::quoted;
use super::random::Random;
use super::rules;
use super::scenario::{Container, LabFamily, Scenario};
use super::test_host::TestHost;

/// A packet at a hook.
#[derive(Clone, Debug)]
pub struct Shot {
    pub meta: Meta,
    pub gso_size: u32,
    pub bytes: Vec<u8>,
    /// The bytes begin with the IP header.
    pub headerless: bool,
}

const SYN: u8 = 2;
const ACK: u8 = 16;
const CLIENT_PORTS: [u16; 4] = [40000, 40001, 40002, 61001];

impl Shot {
    /// A random packet.
    pub fn random(random: &mut Random, scenario: &mut Scenario, host: &TestHost) -> Self {
        let mut shot = if random.chance(60) && !scenario.fragments.is_empty() {
            fragments::next(random, scenario)
        } else if random.chance(50) {
            of_family::<V4>(random, scenario, host)
        } else {
            of_family::<V6>(random, scenario, host)
        };
        if random.chance(6) {
            shot = fragments::cut_up(random, scenario, shot);
        }
        match random.below(100) {
            0..6 => shot.damage(random),
            6..8 => shot.bytes = frame::tagged(&shot.bytes, [0x81, 0, 0, 5]),
            8 => shot.bytes = frame::tagged(&shot.bytes, [0x88, 0xa8, 0, 5]),
            9 => shot.bytes[12..14].copy_from_slice(&[0x88, 0xcc]),
            10..13 => shot = arp(random, scenario),
            _ => {}
        }
        shot.meta.to_host =
            u8::from(shot.bytes[..6] == host.mac(shot.meta.ifindex) && shot.bytes[0] & 1 == 0);
        if shot.meta.hook == hook::FROM_UPLINK && shot.meta.ifindex == host.tunnel.ifindex {
            shot.bytes.drain(..ETH_LEN as usize);
            // BPF_PROG_TEST_RUN takes the first 14 bytes for an Ethernet header, and wants more.
            shot.bytes.resize(shot.bytes.len().max(34), 0);
            shot.headerless = true;
        }
        shot
    }

    /// Can the headers be read?
    pub fn parses(&self) -> bool {
        let mut bytes = self.bytes.clone();
        if self.headerless {
            return parse::<V4>(&mut SlicePacket(&mut bytes), 0).is_ok()
                || parse::<V6>(&mut SlicePacket(&mut bytes), 0).is_ok();
        }
        match bytes[12..14] {
            [0x08, 0x00] => parse::<V4>(&mut SlicePacket(&mut bytes), ETH_LEN).is_ok(),
            [0x86, 0xdd] => parse::<V6>(&mut SlicePacket(&mut bytes), ETH_LEN).is_ok(),
            [0x08, 0x06] => true,
            _ => false,
        }
    }

    fn damage(&mut self, random: &mut Random) {
        if random.chance(50) {
            // BPF_PROG_TEST_RUN refuses frames that do not hold an IP header.
            let least = if self.bytes[12] == 0x86 { 54 } else { 34 };
            let length = random.between(least, least.max(self.bytes.len() as u64));
            self.bytes.truncate(length as usize);
        } else {
            let at = random.between(14, 50).min(self.bytes.len() as u64 - 1) as usize;
            self.bytes[at] = random.next() as u8;
        }
    }
}

fn of_family<F: LabFamily>(random: &mut Random, scenario: &mut Scenario, host: &TestHost) -> Shot {
    let shot = match random.below(100) {
        0..37 => follow_up::<F>(random, scenario, host),
        37..44 => quoted::error::<F>(random, scenario, host),
        44..48 => Some(discovery::<F>(random, scenario)),
        48..74 => Some(from_container::<F>(random, scenario, host)),
        74..92 => Some(from_uplink::<F>(random, scenario, host)),
        92..96 => Some(to_container::<F>(random, scenario, host)),
        _ => Some(at_bridge::<F>(random, scenario, host)),
    };
    shot.unwrap_or_else(|| from_uplink::<F>(random, scenario, host))
}

/// A packet of a flow that there is.
fn follow_up<F: LabFamily>(
    random: &mut Random,
    scenario: &Scenario,
    host: &TestHost,
) -> Option<Shot> {
    let tables = F::tables(&scenario.model);
    let table = if random.chance(45) {
        &tables.flows
    } else {
        &tables.embryos
    };
    let rows = table.rows();
    if rows.is_empty() {
        return None;
    }
    let (key, flow) = rows.iter().nth(random.below(rows.len() as u64) as usize)?;
    let reply = flow.flags & flow_flag::REPLY != 0;
    let flags = match random.below(20) {
        0 => 4,
        1 => 4 | ACK,
        2 | 3 => 1 | ACK,
        4 => *random.pick(&[0, 3, SYN | 4, 0xff]),
        5..8 if !reply => SYN,
        5..9 if reply => SYN | ACK,
        _ => ACK,
    };
    let payload = random.payload();
    let packet = transport::<F>(key, flags, &payload);
    let packet = rules::dress(random, packet);
    let mut packet = mtu::dress::<F>(random, packet);
    let ethernet = flow.in_mac;
    let from_container = ethernet != [0; 6];
    packet.to = if from_container {
        ethernet
    } else {
        host.mac(flow.in_ifindex)
    };
    packet.from = scenario
        .containers
        .iter()
        .find(|c| c.device.ifindex == flow.in_ifindex)
        .map_or_else(|| station(random), |c| c.mac);
    if random.chance(3) {
        packet.ttl = 1;
    }
    let mut ifindex = flow.in_ifindex;
    if !from_container && random.chance(5) {
        ifindex = random.pick(&[host.up0, host.up1]).ifindex;
        packet.to = host.mac(ifindex);
    }
    let mut gso_size = 0;
    // Of other segments than TCP's only a packet of the kernel's own can tell.
    if payload.len() > 1000 && key.proto == proto::TCP && random.chance(60) {
        gso_size = random.between(300, 1500) as u32;
    }
    let bytes = packet.bytes::<F>();
    let hook = if scenario
        .containers
        .iter()
        .any(|c| c.device.ifindex == ifindex)
    {
        hook::FROM_ENDPOINT
    } else {
        hook::FROM_UPLINK
    };
    Some(shot(hook, ifindex, 0, gso_size, bytes))
}

/// A packet with this tuple.
pub fn transport<F: LabFamily>(key: &Tuple<F::Addr>, flags: u8, payload: &[u8]) -> Frame<F::Addr> {
    let (sport, dport) = (u16::from_be_bytes(key.sport), u16::from_be_bytes(key.dport));
    let (src, dst) = ((key.src, sport), (key.dst, dport));
    match key.proto {
        proto::TCP => Frame::tcp(src, dst, flags, payload),
        proto::UDP => Frame::udp(src, dst, payload),
        proto::SCTP => sctp(src, dst, payload),
        p if p == F::ICMP && key.dport == [0, 0] => Frame::echo::<F>(key.src, key.dst, sport),
        p if p == F::ICMP => Frame::echo_reply::<F>(key.src, key.dst, dport),
        p => Frame::new(key.src, key.dst, p, vec![0; 24]),
    }
}

fn from_container<F: LabFamily>(
    random: &mut Random,
    scenario: &mut Scenario,
    host: &TestHost,
) -> Shot {
    let container = random.pick(&scenario.containers).clone();
    let other = random.pick(&scenario.containers).clone();
    let src = match random.below(100) {
        0..91 => F::container(&container),
        91..94 => F::container(&other),
        94..96 => *random.pick(&F::link_local()),
        _ => *random.pick(&F::odd()),
    };
    let (mut port, mut protocol) = (*random.pick(&[80, 80, 443, 53, 8081]), None);
    let dst = match random.below(100) {
        0..10 => F::world()[0],
        10..40 => *random.pick(&F::world()),
        40..62 => {
            (port, protocol) = publish_port::<F>(random, scenario);
            *random.pick(&F::host())
        }
        62..78 => F::container(&other),
        78..90 => {
            (port, protocol) = own_publish::<F>(random, scenario, &container);
            *random.pick(&F::host())
        }
        _ => {
            if random.chance(50) {
                *random.pick(&F::odd())
            } else {
                (port, protocol) = publish_port::<F>(random, scenario);
                F::odd()[1]
            }
        }
    };
    let to = match random.below(100) {
        0..80 => container.bridge.mac,
        80..92 => other.mac,
        92..96 => [0xff; 6],
        _ => [2, 9, 9, 9, 9, 9],
    };
    let from = if random.chance(94) {
        container.mac
    } else {
        other.mac
    };
    let bytes = any::<F>(random, src, (dst, port), protocol, &container)
        .macs(to, from)
        .bytes::<F>();
    let _ = host;
    shot(hook::FROM_ENDPOINT, container.device.ifindex, 0, 0, bytes)
}

fn from_uplink<F: LabFamily>(
    random: &mut Random,
    scenario: &mut Scenario,
    host: &TestHost,
) -> Shot {
    let uplink = match random.below(10) {
        0..5 => host.up0,
        5..7 => host.up1,
        7..9 => host.tunnel,
        _ => host.unmanaged,
    };
    let container = random.pick(&scenario.containers).clone();
    let src = match random.below(100) {
        0..40 => F::world()[0],
        40..88 => *random.pick(&F::world()[..5]),
        88..92 => F::container(&container),
        92..94 => F::host()[0],
        _ => *random.pick(&F::odd()),
    };
    let (mut port, mut protocol) = (*random.pick(&[80, 81, 22]), None);
    let dst = match random.below(100) {
        0..60 => {
            (port, protocol) = publish_port::<F>(random, scenario);
            *random.pick(&F::host())
        }
        60..90 => F::container(&container),
        _ => *random.pick(&F::odd()),
    };
    let to = if random.chance(95) {
        uplink.mac
    } else {
        [2, 9, 9, 9, 9, 9]
    };
    let bytes = any::<F>(random, src, (dst, port), protocol, &container)
        .macs(to, [2, 8, 8, 8, 8, 8])
        .bytes::<F>();
    shot(hook::FROM_UPLINK, uplink.ifindex, 0, 0, bytes)
}

/// What the stack or the bridge delivers.
fn to_container<F: LabFamily>(
    random: &mut Random,
    scenario: &mut Scenario,
    host: &TestHost,
) -> Shot {
    let mut shot = from_container::<F>(random, scenario, host);
    let container = random.pick(&scenario.containers).clone();
    if random.chance(70) {
        shot.bytes[..6].copy_from_slice(&container.mac);
    }
    let other = random.pick(&scenario.containers);
    shot.meta.ingress_ifindex = *random.pick(&[
        0,
        other.device.ifindex,
        other.device.ifindex,
        host.up0.ifindex,
    ]);
    shot.meta.hook = hook::TO_ENDPOINT;
    shot.meta.ifindex = container.device.ifindex;
    shot
}

fn at_bridge<F: LabFamily>(random: &mut Random, scenario: &mut Scenario, host: &TestHost) -> Shot {
    let mut shot = from_container::<F>(random, scenario, host);
    shot.meta.ifindex = random.pick(&host.bridges).ifindex;
    shot.meta.ingress_ifindex = *random.pick(&[0, host.up0.ifindex]);
    shot.meta.hook = *random.pick(&[hook::BRIDGE_IN, hook::BRIDGE_OUT]);
    shot
}

/// A published port and its protocol.
fn publish_port<F: LabFamily>(random: &mut Random, scenario: &mut Scenario) -> (u16, Option<u8>) {
    let publishes = F::publishes(scenario);
    if publishes.is_empty() {
        return (8085, None);
    }
    let publish = random.pick(publishes);
    let (first, last) = publish.host_ports;
    let port = random.between(u64::from(first), u64::from(last)) as u16;
    (port, Some(publish.proto))
}

/// A published port that leads to the container itself, if there is one.
fn own_publish<F: LabFamily>(
    random: &mut Random,
    scenario: &mut Scenario,
    container: &Container,
) -> (u16, Option<u8>) {
    let own: Vec<_> = F::publishes(scenario)
        .iter()
        .filter(|publish| publish.container == F::container(container))
        .map(|publish| (publish.host_ports.0, Some(publish.proto)))
        .collect();
    if own.is_empty() {
        return publish_port::<F>(random, scenario);
    }
    *random.pick(&own)
}

/// With what goes for chunks: nobody on the way reads them.
fn sctp<A: Address>(src: (A, u16), dst: (A, u16), payload: &[u8]) -> Frame<A> {
    let mut frame = Frame::sctp(src, dst);
    frame.l4.extend(payload);
    frame
}

/// A packet of any protocol that begins something.
fn any<F: LabFamily>(
    random: &mut Random,
    src: F::Addr,
    server: (F::Addr, u16),
    protocol: Option<u8>,
    near: &Container,
) -> Frame<F::Addr> {
    let client = (src, *random.pick(&CLIENT_PORTS));
    let dst = server.0;
    let payload = random.payload();
    let flags = match random.below(20) {
        0..14 => SYN,
        14 => 4,
        15 => *random.pick(&[0, 3, SYN | 4, 1]),
        16 => SYN | ACK,
        _ => ACK,
    };
    let kind = match protocol {
        Some(_) if random.chance(15) => random.below(100),
        Some(proto::TCP) => 0,
        Some(proto::UDP) => 50,
        Some(proto::SCTP) => 75,
        _ => random.below(100),
    };
    let mut frame = match kind {
        0..42 => Frame::tcp(client, server, flags, &payload),
        42..66 => Frame::udp(client, server, &payload),
        66..72 => Frame::echo::<F>(src, dst, client.1),
        72..74 => Frame::echo_reply::<F>(src, dst, client.1),
        74..80 => sctp(client, server, &payload),
        80..86 => Frame::new(src, dst, 47, vec![0; 24]),
        86..90 if F::VERSION == 6 => link_control::<F>(random, src, dst, near),
        86..90 => Frame::icmp::<F>(src, dst, (13, 0), [0; 4], &[0; 12]),
        90..92 => {
            let quoted = Frame::udp(server, client, b"12345678").packet::<F>();
            let kind = if F::VERSION == 4 { 3 } else { 1 };
            Frame::icmp::<F>(src, dst, (kind, 1), [0; 4], &quoted)
        }
        _ => return odd_headers::<F>(random, Frame::udp(client, server, &payload)),
    };
    if random.chance(5) {
        frame.ttl = 1;
    }
    frame = rules::dress(random, frame);
    frame = mtu::dress::<F>(random, frame);
    if F::VERSION == 4 && random.chance(5) {
        frame.options = vec![1; 4 * random.between(1, 10) as usize];
    }
    frame.no_udp_checksum = F::VERSION == 4 && random.chance(10);
    frame
}

/// Who is on an uplink: one of two routers, seldom an address that no station has.
fn station(random: &mut Random) -> Mac {
    match random.below(10) {
        0 => [3, 9, 9, 9, 9, 9],
        1..4 => [2, 9, 9, 9, 9, 1],
        _ => [2, 9, 9, 9, 9, 9],
    }
}

/// Neighbour and router discovery.
fn link_control<F: LabFamily>(
    random: &mut Random,
    src: F::Addr,
    dst: F::Addr,
    near: &Container,
) -> Frame<F::Addr> {
    let kind = *random.pick(&[133, 134, 134, 135, 136, 136, 143]);
    let target = match random.below(3) {
        0 => F::container(near),
        1 => *random.pick(&F::odd()),
        _ => src,
    };
    let mut frame = Frame::icmp::<F>(src, dst, (kind, 0), [0; 4], &target.padded());
    frame.ttl = 255;
    frame
}

/// What a container tells its neighbours of itself.
fn discovery<F: LabFamily>(random: &mut Random, scenario: &Scenario) -> Shot {
    if F::VERSION == 4 {
        return arp(random, scenario);
    }
    let container = random.pick(&scenario.containers);
    let src = if random.chance(70) {
        F::container(container)
    } else {
        *random.pick(&F::link_local())
    };
    let all_nodes = F::odd()[2];
    let frame = link_control::<F>(random, src, all_nodes, container);
    let bytes = frame
        .macs([0x33, 0x33, 0, 0, 0, 1], container.mac)
        .bytes::<F>();
    shot(hook::FROM_ENDPOINT, container.device.ifindex, 0, 0, bytes)
}

/// Fragments, and chains of extension headers.
fn odd_headers<F: LabFamily>(random: &mut Random, mut frame: Frame<F::Addr>) -> Frame<F::Addr> {
    if F::VERSION == 4 {
        frame.fragment = *random.pick(&[0x2000, 0x2005, 0x0005, 0x4000]);
        return frame;
    }
    let last = frame.proto;
    let fragment = |offset: [u8; 2]| vec![last, 0, offset[0], offset[1], 0, 0, 0, 1];
    (frame.first_extension, frame.options) = match random.below(6) {
        0 => (44, fragment([0, 1])),
        1 => (44, fragment([0, 9])),
        2 => (44, fragment([0, 0])),
        3 => (0, vec![last, 0, 1, 4, 0, 0, 0, 0]),
        4 => (43, vec![last, 0, 0, 0, 0, 0, 0, 0]),
        _ => {
            let mut chain = [60u8, 0, 1, 4, 0, 0, 0, 0].repeat(4);
            chain.extend([last, 0, 1, 4, 0, 0, 0, 0]);
            (60, chain)
        }
    };
    frame
}

fn arp(random: &mut Random, scenario: &Scenario) -> Shot {
    let container = random.pick(&scenario.containers);
    let other = random.pick(&scenario.containers);
    let mac = if random.chance(70) {
        container.mac
    } else {
        other.mac
    };
    let sender = *random.pick(&[container.v4.0, container.v4.0, other.v4.0, [0; 4]]);
    let mut bytes = frame::arp(
        random.between(1, 2) as u8,
        (mac, sender),
        (other.mac, other.v4.0),
    );
    if random.chance(20) {
        bytes[6..12].copy_from_slice(&other.mac);
    }
    shot(hook::FROM_ENDPOINT, container.device.ifindex, 0, 0, bytes)
}

pub fn shot(hook: u8, ifindex: u32, ingress_ifindex: u32, gso_size: u32, bytes: Vec<u8>) -> Shot {
    let meta = Meta {
        ifindex,
        ingress_ifindex,
        hook,
        ..Meta::default()
    };
    Shot {
        meta,
        gso_size,
        bytes,
        headerless: false,
    }
}

impl Random {
    fn payload(&mut self) -> Vec<u8> {
        let length = match self.below(20) {
            0 => self.between(1200, 1480),
            1..5 => self.between(400, 700),
            _ => self.between(0, 40),
        };
        let byte = self.next() as u8;
        vec![byte; length as usize]
    }
}
