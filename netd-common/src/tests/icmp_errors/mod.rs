//! ICMP errors about netd's flows: every kind of flow, in both directions, and what must not pass
//! for an error about one.
//!
//! What an error quotes must become what its receiver sent, byte by byte: the expected packet is the
//! one that was sent through the flow before, not one that this test translates.

mod life;
mod quotes;
mod refused;

use super::*;
use crate::{
    abi::{Tuple, config_flag, uplink_flag},
    model::frame::{renewed, verify_quoted},
};

for_both_families! {
    errors_about_every_kind_of_flow
    a_router_keeps_its_address_and_a_router_inside_does_not
    in_accelerate_mode
}

const ROUTER: u8 = 77;

/// Somebody at one end of a flow.
#[derive(Clone, Copy, Debug)]
struct End {
    /// Host veth of a container, or an uplink.
    ifindex: u32,
    /// Where a container's frames go; none from an uplink.
    to: Option<[u8; 6]>,
}

/// A packet of a flow: as it was sent, and as it left.
#[derive(Clone, Debug)]
struct Journey<F: Addresses> {
    name: String,
    from: End,
    to: End,
    sent: Vec<u8>,
    left: Vec<u8>,
    family: PhantomData<F>,
}

const fn container(ifindex: u32) -> End {
    End {
        ifindex,
        to: Some(bridge_mac_of(ifindex)),
    }
}

const fn bridge_mac_of(ifindex: u32) -> [u8; 6] {
    [2, 0x42, 0, 0, 0, (ifindex / 10 * 10) as u8]
}

const WORLD: End = End {
    ifindex: UP0,
    to: None,
};

impl End {
    fn sends<F: Addresses>(&self, host: &Host<F>, frame: Frame<F::Addr>) -> Result<F> {
        match self.to {
            Some(mac) => host.sends_to(self.ifindex, mac, frame),
            None => host.arrive(self.ifindex, frame),
        }
    }

    fn receives<F: Addresses>(&self) -> Outcome {
        match self.to {
            Some(_) => Outcome::Peer(self.ifindex),
            None => out::<F>(self.ifindex),
        }
    }
}

impl<F: Addresses> Journey<F> {
    fn sent(&self) -> Tuple<F::Addr> {
        ip_tuple::<F>(&self.sent)
    }

    fn left(&self) -> Tuple<F::Addr> {
        ip_tuple::<F>(&self.left)
    }

    /// What the receiver would say of it, quoting this much.
    fn error(&self, kind: (u8, u8), quoted: &[u8]) -> Frame<F::Addr> {
        let tuple = self.left();
        Frame::icmp::<F>(tuple.dst, tuple.src, kind, [0, 0, 5, 0], quoted)
    }

    /// The packet as the receiver of an error must find it: as sent, by one hop older.
    fn expected(&self) -> Vec<u8> {
        let mut packet = self.sent.clone();
        packet[F::TTL_OFFSET as usize] -= 1;
        renewed::<F>(&packet)
    }
}

fn ip_tuple<F: Addresses>(packet: &[u8]) -> Tuple<F::Addr> {
    let mut bytes = [&[0; 12][..], &F::ETHERTYPE, packet].concat();
    let parsed = parse::<F>(&mut SlicePacket(&mut bytes), ETH_LEN);
    parsed.expect("a packet").tuple
}

/// Port unreachable.
fn unreachable<F: Addresses>() -> (u8, u8) {
    if F::VERSION == 4 { (3, 3) } else { (1, 4) }
}

fn too_big<F: Addresses>() -> (u8, u8) {
    if F::VERSION == 4 { (3, 4) } else { (2, 0) }
}

fn time_exceeded<F: Addresses>() -> (u8, u8) {
    if F::VERSION == 4 { (11, 0) } else { (3, 0) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Masquerade,
    Publish,
    Neighbour,
    OtherNetwork,
    Itself,
    DirectOut,
    DirectIn,
}

const KINDS: [Kind; 7] = [
    Kind::Masquerade,
    Kind::Publish,
    Kind::Neighbour,
    Kind::OtherNetwork,
    Kind::Itself,
    Kind::DirectOut,
    Kind::DirectIn,
];

/// A flow of this kind, and its first two packets. `shape` may change them before they are sent.
fn flow<F: Addresses>(
    kind: Kind,
    protocol: u8,
    shape: impl Fn(Frame<F::Addr>) -> Frame<F::Addr>,
) -> Option<(Host<F>, [Journey<F>; 2])> {
    let mut host = Host::<F>::new();
    host.publish(proto::SCTP, 8081, C0, 8081);
    let echo = protocol == F::ICMP;
    let translated_destination = matches!(
        kind,
        Kind::Publish | Kind::Neighbour | Kind::OtherNetwork | Kind::Itself
    );
    if echo && translated_destination {
        return None;
    }
    let (client, server) = match kind {
        Kind::Masquerade | Kind::DirectOut => (container(C0), WORLD),
        Kind::Publish | Kind::DirectIn => (WORLD, container(C0)),
        Kind::Neighbour => (
            container(C0B),
            End {
                ifindex: C0,
                to: Some(mac(C0B)),
            },
        ),
        Kind::OtherNetwork => (container(N1A), container(C0)),
        Kind::Itself => (container(C0), container(C0)),
    };
    if kind == Kind::DirectOut {
        *host.flags(WEB) &= !(network_flag::MASQUERADE_V4 | network_flag::MASQUERADE_V6);
    }
    host.uplink(UP0).flags |= uplink_flag::CONTAINERS_ALL;
    let src = match client.to {
        Some(_) => F::of(client.ifindex),
        None => F::CLIENT,
    };
    let dst = match kind {
        Kind::Masquerade | Kind::DirectOut => (F::CLIENT, 80),
        Kind::DirectIn => (F::of(C0), 80),
        _ => (F::HOST, 8081),
    };
    let build = |src: (F::Addr, u16), dst: (F::Addr, u16), reply: bool| {
        let payload = [0x5a; 33];
        let flags = if reply { SYN | ACK } else { SYN };
        shape(match protocol {
            proto::TCP => Frame::tcp(src, dst, flags, &payload),
            proto::UDP => Frame::udp(src, dst, &payload),
            proto::SCTP => Frame::sctp(src, dst),
            _ if reply => Frame::echo_reply::<F>(src.0, dst.0, dst.1),
            _ => Frame::echo::<F>(src.0, dst.0, src.1),
        })
    };
    let port = u16::from_be_bytes;
    let name = format!("{kind:?}, protocol {protocol}");
    let travel = |from: End, to: End, frame: Frame<F::Addr>, way: &str| {
        let sent = frame.packet::<F>();
        let result = from.sends(&host, frame);
        assert_eq!(result.outcome, to.receives::<F>(), "{name} {way}");
        Journey::<F> {
            name: format!("{name} {way}"),
            from,
            to,
            sent,
            left: result.bytes[14..].to_vec(),
            family: PhantomData,
        }
    };
    let there = travel(client, server, build((src, 40000), dst, false), "there");
    let t = there.left();
    let answer = build((t.dst, port(t.dport)), (t.src, port(t.sport)), true);
    let back = travel(server, client, answer, "back");
    Some((host, [there, back]))
}

fn plain<A>(frame: Frame<A>) -> Frame<A> {
    frame
}

fn every_flow<F: Addresses>(test: impl Fn(&Host<F>, &Journey<F>)) {
    let mut tested = 0;
    for kind in KINDS {
        for protocol in [proto::TCP, proto::UDP, proto::SCTP, F::ICMP] {
            let Some((host, journeys)) = flow::<F>(kind, protocol, plain) else {
                continue;
            };
            for journey in &journeys {
                test(&host, journey);
                tested += 1;
            }
        }
    }
    assert_eq!(tested, 2 * (7 * 3 + 3));
}

/// The error arrives where the packet came from, and is about what was sent there. `from`: the
/// error's source as the receiver sees it.
fn arrives<F: Addresses>(
    journey: &Journey<F>,
    got: &Result<F>,
    (src, kind): (F::Addr, (u8, u8)),
    quoted: usize,
) {
    let name = &journey.name;
    assert_eq!(got.outcome, journey.from.receives::<F>(), "{name}");
    let parsed = got.parsed();
    assert_eq!(parsed.tuple.src, src, "{name}: the source");
    assert_eq!(parsed.tuple.dst, journey.sent().src, "{name}");
    assert_eq!(parsed.ttl, 63, "{name}");
    if journey.from.to.is_some() {
        assert_eq!(got.bytes[..6], mac(journey.from.ifindex));
    }
    let icmp = &got.bytes[parsed.l4 as usize..];
    assert_eq!((icmp[0], icmp[1]), kind);
    assert_eq!(icmp[4..8], [0, 0, 5, 0], "{name}: the MTU");
    // Of half a checksum nothing can be said.
    let checksum = header_len::<F>() + 16;
    let cut = journey.sent().proto == proto::TCP && quoted == checksum + 1;
    let quoted = quoted - usize::from(cut);
    assert_eq!(icmp[8..8 + quoted], journey.expected()[..quoted], "{name}");
}

/// The source that the receiver of an error from `journey.to` itself sees: who it sent to.
fn seen_source<F: Addresses>(journey: &Journey<F>) -> F::Addr {
    journey.sent().dst
}

fn errors_about_every_kind_of_flow<F: Addresses>() {
    every_flow::<F>(|host, journey| {
        for kind in [unreachable::<F>(), too_big::<F>(), time_exceeded::<F>()] {
            let error = journey.error(kind, &journey.left);
            let got = journey.to.sends(host, error);
            let whole = journey.left.len();
            arrives(journey, &got, (seen_source(journey), kind), whole);
            verify_quoted::<F>(&got.bytes).expect("the quoted packet's checksums");
        }
    });
}

fn a_router_keeps_its_address_and_a_router_inside_does_not<F: Addresses>() {
    let router = F::inside(9, ROUTER);
    every_flow::<F>(|host, journey| {
        let mut error = journey.error(time_exceeded::<F>(), &journey.left);
        if journey.to.to.is_none() {
            error.src = router;
            let got = journey.to.sends(host, error);
            let whole = journey.left.len();
            arrives(journey, &got, (router, time_exceeded::<F>()), whole);
        } else {
            error.src = router;
            let got = journey.to.sends(host, error).outcome;
            // To a neighbour, without `spoof = "strict"`, it is left to the bridge.
            let neighbour = journey.to.to == Some(mac(C0B));
            let refused = if neighbour {
                Outcome::Peer(C0B)
            } else {
                dropped(DropReason::SpoofedAddress)
            };
            if neighbour {
                assert_ne!(got, dropped(DropReason::IcmpQuote));
            } else {
                assert_eq!(got, refused, "{}", journey.name);
            }
        }
    });
    // Where a container may route for others, what they say comes from the published address.
    let (mut host, [there, _]) = flow::<F>(Kind::Publish, proto::UDP, plain).expect("a flow");
    *host.flags(WEB) |= network_flag::SPOOF_OFF;
    let mut error = there.error(time_exceeded::<F>(), &there.left);
    error.src = router;
    let got = there.to.sends(&host, error);
    let whole = there.left.len();
    arrives(&there, &got, (F::HOST, time_exceeded::<F>()), whole);
}

fn header_len<F: Addresses>() -> usize {
    if F::VERSION == 4 { 20 } else { 40 }
}

fn in_accelerate_mode<F: Addresses>() {
    for kind in KINDS {
        let (mut host, journeys) = flow::<F>(kind, proto::UDP, plain).expect("a flow");
        host.model.config.flags |= config_flag::ACCELERATE;
        for journey in &journeys {
            let kind = unreachable::<F>();
            let got = journey.to.sends(&host, journey.error(kind, &journey.left));
            let whole = journey.left.len();
            arrives(journey, &got, (seen_source(journey), kind), whole);
        }
    }
}
