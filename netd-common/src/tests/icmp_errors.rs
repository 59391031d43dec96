//! ICMP errors about netd's flows: every kind of flow, in both directions, and what must not pass
//! for an error about one.
//!
//! What an error quotes must become what its receiver sent, byte by byte: the expected packet is the
//! one that was sent through the flow before, not one that this test translates.

use proptest::prelude::*;

use super::*;
use crate::{
    abi::{Flow, Tuple, config_flag, uplink_flag},
    model::frame::{renewed, verify_quoted},
};

for_both_families! {
    errors_about_every_kind_of_flow
    a_router_keeps_its_address_and_a_router_inside_does_not
    quotes_cut_at_every_byte
    quotes_that_contradict_themselves
    options_and_extension_headers
    what_follows_the_quote_stays
    a_datagram_without_a_checksum
    only_errors_that_a_host_may_believe
    from_where_the_flow_comes_and_to_who_sent
    impossible_senders
    a_foreign_source_does_not_leak
    an_error_refreshes_nothing_and_ends_nothing
    an_expired_flow_gets_no_errors
    an_error_is_the_first_packet_of_its_way
    an_error_after_a_change
    an_error_after_its_way_was_forgotten
    ttl_and_size
    errors_about_nothing_of_ours
    errors_about_what_the_kernel_owns
    neighbours_tell_each_other
    in_accelerate_mode
    an_error_is_no_packet_of_a_flow_without_ports
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

/// What becomes of an error from this end that says nothing: the host's own business from outside
/// and to the host; dropped from a container to anyone else.
fn unreadable<F: Addresses>(host: &Host<F>, journey: &Journey<F>) -> Outcome {
    let to = journey.left().src;
    let to_host = <Model as crate::tables::Tables<F>>::local(&host.model, &to) != 0;
    match journey.to.to {
        None if to == F::HOST => Outcome::Pass,
        None => dropped(DropReason::IcmpQuote),
        Some(_) if to_host => Outcome::Pass,
        Some(to) if to == mac(C0B) => Outcome::Peer(C0B),
        Some(_) => dropped(DropReason::IcmpQuote),
    }
}

fn quotes_cut_at_every_byte<F: Addresses>() {
    every_flow::<F>(|host, journey| {
        for length in 0..=journey.left.len() {
            let kind = too_big::<F>();
            let error = journey.error(kind, &journey.left[..length]);
            let got = journey.to.sends(host, error);
            if length < header_len::<F>() + 8 {
                let expected = unreadable(host, journey);
                assert_eq!(got.outcome, expected, "{} {length}", journey.name);
            } else {
                arrives(journey, &got, (seen_source(journey), kind), length);
            }
        }
    });
}

fn quotes_that_contradict_themselves<F: Addresses>() {
    let (host, [_, back]) = flow::<F>(Kind::Masquerade, proto::UDP, plain).expect("a flow");
    let outcome = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut quoted = back.left.clone();
        change(&mut quoted);
        let error = back.error(unreachable::<F>(), &quoted);
        back.to.sends(&host, error).outcome
    };
    assert_eq!(outcome(&|_| {}), out::<F>(UP0));
    let refused = dropped(DropReason::IcmpQuote);
    assert_eq!(outcome(&|q| q[0] ^= 0x10), refused, "another version");
    if F::VERSION == 4 {
        assert_eq!(outcome(&|q| q[0] = 0x44), refused, "a short header");
        assert_eq!(outcome(&|q| q[0] = 0x4f), refused, "a long header");
        assert_eq!(outcome(&|q| q[2..4].copy_from_slice(&[0, 27])), refused);
        assert_eq!(
            outcome(&|q| q[2..4].copy_from_slice(&[0, 28])),
            out::<F>(UP0)
        );
        assert_eq!(outcome(&|q| q[6..8].copy_from_slice(&[0, 1])), refused);
        assert_eq!(
            outcome(&|q| q[6..8].copy_from_slice(&[0x20, 0])),
            out::<F>(UP0)
        );
    } else {
        assert_eq!(outcome(&|q| q[4..6].copy_from_slice(&[0, 7])), refused);
        assert_eq!(
            outcome(&|q| q[4..6].copy_from_slice(&[0, 8])),
            out::<F>(UP0)
        );
    }
    // An error about an error, and about neighbour discovery.
    let about = |kind| {
        let t = back.left();
        let quoted = Frame::icmp::<F>(t.src, t.dst, kind, [0; 4], &back.sent).packet::<F>();
        back.to
            .sends(&host, back.error(unreachable::<F>(), &quoted))
            .outcome
    };
    assert_eq!(about(unreachable::<F>()), refused);
    if F::VERSION == 6 {
        assert_eq!(about((135, 0)), refused);
    }
}

fn options_and_extension_headers<F: Addresses>() {
    let shapes: Vec<(u8, Vec<u8>)> = if F::VERSION == 4 {
        vec![(0, vec![1; 4]), (0, vec![1; 40])]
    } else {
        let header = |next, kind: u8| vec![next, 0, kind, 4, 0, 0, 0, 0];
        let last = proto::UDP;
        vec![
            (0, header(last, 1)),
            (60, header(last, 1)),
            (43, header(last, 4)),
            (44, vec![last, 0, 0, 0, 0, 0, 0, 1]),
            (
                0,
                [
                    header(60, 1),
                    header(44, 1),
                    vec![60, 0, 0, 0, 0, 0, 0, 1],
                    header(last, 1),
                ]
                .concat(),
            ),
        ]
    };
    for (first, options) in shapes {
        for kind in [Kind::Masquerade, Kind::Publish, Kind::Itself] {
            let shape = |mut frame: Frame<F::Addr>| {
                (frame.first_extension, frame.options) = (first, options.clone());
                frame
            };
            let (host, journeys) = flow::<F>(kind, proto::UDP, shape).expect("a flow");
            for journey in &journeys {
                let kind = unreachable::<F>();
                for length in 0..=journey.left.len() {
                    let error = journey.error(kind, &journey.left[..length]);
                    let got = journey.to.sends(&host, error);
                    if length < header_len::<F>() + options.len() + 8 {
                        assert_eq!(got.outcome, unreadable(&host, journey), "{length}");
                    } else {
                        arrives(journey, &got, (seen_source(journey), kind), length);
                    }
                }
            }
        }
    }
    if F::VERSION == 6 {
        // More than are followed, and one that must not be.
        let (host, [_, back]) = flow::<F>(Kind::Masquerade, proto::UDP, plain).expect("a flow");
        let with = |first, options: Vec<u8>| {
            let t = back.left();
            let mut quoted = Frame::udp((t.src, 80), (t.dst, 40000), b"");
            (quoted.first_extension, quoted.options) = (first, options);
            let error = back.error(unreachable::<F>(), &quoted.packet::<F>());
            back.to.sends(&host, error).outcome
        };
        let refused = dropped(DropReason::IcmpQuote);
        let mut chain = [60u8, 0, 1, 4, 0, 0, 0, 0].repeat(4);
        chain.extend([proto::UDP, 0, 1, 4, 0, 0, 0, 0]);
        assert_eq!(with(60, chain), refused);
        assert_eq!(with(43, vec![proto::UDP, 0, 0, 0, 0, 0, 0, 0]), refused);
        let fragment = |offset| vec![proto::UDP, 0, 0, offset, 0, 0, 0, 1];
        assert_eq!(with(44, fragment(9)), refused, "a later fragment");
        assert_eq!(with(44, fragment(1)), out::<F>(UP0), "a first one");
    }
}

/// RFC 4884: the quoted packet is padded to 128 bytes, and extensions follow.
fn what_follows_the_quote_stays<F: Addresses>() {
    for protocol in [proto::TCP, proto::UDP] {
        let (host, journeys) = flow::<F>(Kind::Masquerade, protocol, plain).expect("a flow");
        for journey in &journeys {
            let extensions: Vec<u8> = (0..21).collect();
            let mut quoted = journey.left.clone();
            quoted.resize(128, 0);
            quoted.extend(&extensions);
            let got = journey
                .to
                .sends(&host, journey.error(time_exceeded::<F>(), &quoted));
            assert_eq!(got.outcome, journey.from.receives::<F>());
            let at = got.parsed().l4 as usize + 8;
            let mut expected = journey.expected();
            expected.resize(128, 0);
            expected.extend(&extensions);
            assert_eq!(got.bytes[at..], expected);
        }
        // A quoted packet that says it ends before its checksum: what is there is not one.
        let [there, _] = &journeys;
        let mut quoted = there.left.clone();
        let at = if F::VERSION == 4 { 2 } else { 4 };
        let length = if F::VERSION == 4 { [0, 28] } else { [0, 8] };
        quoted[at..at + 2].copy_from_slice(&length);
        let got = there
            .to
            .sends(&host, there.error(time_exceeded::<F>(), &quoted));
        assert_eq!(got.outcome, there.from.receives::<F>());
        let l4 = got.parsed().l4 as usize + 8 + header_len::<F>();
        let rest = header_len::<F>() + 8;
        assert_eq!(got.bytes[l4 + 8..], there.left[rest..]);
    }
}

fn a_datagram_without_a_checksum<F: Addresses>() {
    if F::VERSION == 6 {
        return;
    }
    let shape = |mut frame: Frame<F::Addr>| {
        frame.no_udp_checksum = true;
        frame
    };
    for kind in KINDS {
        let (host, journeys) = flow::<F>(kind, proto::UDP, shape).expect("a flow");
        for journey in &journeys {
            let kind = unreachable::<F>();
            let got = journey.to.sends(&host, journey.error(kind, &journey.left));
            let whole = journey.left.len();
            arrives(journey, &got, (seen_source(journey), kind), whole);
        }
    }
}

fn only_errors_that_a_host_may_believe<F: Addresses>() {
    let believed: &[u8] = if F::VERSION == 4 {
        &[3, 11, 12]
    } else {
        &[1, 2, 3, 4]
    };
    let others: &[u8] = if F::VERSION == 4 {
        &[4, 5]
    } else {
        &[0, 5, 99, 100, 127]
    };
    every_flow::<F>(|host, journey| {
        let outcome = |kind: u8| {
            let error = journey.error((kind, 0), &journey.left);
            journey.to.sends(host, error).outcome
        };
        for kind in believed {
            assert_eq!(outcome(*kind), journey.from.receives::<F>());
        }
        for kind in others {
            assert_eq!(outcome(*kind), dropped(DropReason::IcmpType));
        }
    });
}

fn from_where_the_flow_comes_and_to_who_sent<F: Addresses>() {
    let (host, [there, back]) = flow::<F>(Kind::Masquerade, proto::UDP, plain).expect("a flow");
    let kind = unreachable::<F>();
    let refused = dropped(DropReason::IcmpQuote);
    // Another container says so of its neighbour's flow, in its own name.
    let mut error = there.error(kind, &there.left);
    error.src = F::of(C0B);
    assert_eq!(container(C0B).sends(&host, error).outcome, refused);
    let mut error = back.error(kind, &back.left);
    error.src = F::of(C0B);
    assert_eq!(container(C0B).sends(&host, error).outcome, refused);
    // Someone outside who knows the container's address.
    assert_eq!(
        WORLD.sends(&host, back.error(kind, &back.left)).outcome,
        refused
    );
    let mut error = there.error(kind, &there.left);
    error.dst = F::of(C0);
    assert_eq!(WORLD.sends(&host, error).outcome, refused);
    // The container itself, in the world's name.
    let error = there.error(kind, &there.left);
    let spoofed = dropped(DropReason::SpoofedAddress);
    assert_eq!(container(C0).sends(&host, error).outcome, spoofed);
    // To another than who sent what is quoted.
    let mut error = back.error(kind, &back.left);
    error.dst = F::GATEWAY;
    assert_eq!(container(C0).sends(&host, error).outcome, refused);
    // Controls: as each of them may be said. Another uplink is the network too.
    let error = || there.error(kind, &there.left);
    assert_eq!(WORLD.sends(&host, error()).outcome, Outcome::Peer(C0));
    assert_eq!(host.arrive(UP1, error()).outcome, Outcome::Peer(C0));
    let error = back.error(kind, &back.left);
    assert_eq!(container(C0).sends(&host, error).outcome, out::<F>(UP0));
}

fn impossible_senders<F: Addresses>() {
    let (mut host, [there, _]) = flow::<F>(Kind::Masquerade, proto::UDP, plain).expect("a flow");
    let from = |host: &Host<F>, src| {
        let mut error = there.error(unreachable::<F>(), &there.left);
        error.src = src;
        WORLD.sends(host, error).outcome
    };
    let martian = dropped(DropReason::MartianSource);
    for src in [F::LOOPBACK, F::Addr::default(), F::HOST, F::of(C0B)] {
        assert_eq!(from(&host, src), martian, "{src:?}");
    }
    if F::VERSION == 6 {
        let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!(
            from(&host, F::Addr::from_padded(&link_local)),
            dropped(DropReason::LinkLocalSource)
        );
    }
    assert_eq!(from(&host, F::GATEWAY), Outcome::Peer(C0));
    host.uplink(UP0).flags |= uplink_flag::STRICT_RP_FILTER;
    assert_eq!(from(&host, F::GATEWAY), Outcome::Peer(C0));
    host.route(Ok(UP1));
    assert_eq!(from(&host, F::GATEWAY), dropped(DropReason::ReversePath));
}

/// `spoof = "off"`: a container may say something in the name of another, but no address of a
/// masqueraded network leaves.
fn a_foreign_source_does_not_leak<F: Addresses>() {
    let (mut host, [_, back]) = flow::<F>(Kind::DirectOut, proto::UDP, plain).expect("a flow");
    *host.flags(WEB) |= network_flag::SPOOF_OFF;
    let from = |src| {
        let mut error = back.error(unreachable::<F>(), &back.left);
        error.src = src;
        back.to.sends(&host, error)
    };
    let refused = dropped(DropReason::MartianSource);
    assert_eq!(from(F::of(N1A)).outcome, refused);
    assert_eq!(from(F::HOST).outcome, refused);
    assert_eq!(from(F::of(C0B)).outcome, out::<F>(UP0), "not masqueraded");
    assert_eq!(from(F::inside(9, 9)).src().0, F::inside(9, 9));
}

/// All that an error must leave alone: everything but when the next hop was looked up.
fn lifes<F: Addresses>(host: &Host<F>) -> Vec<(Tuple<F::Addr>, Flow<F::Addr>)> {
    let tables = F::tables(&host.model);
    let rows = tables.flows.rows().into_iter().chain(tables.embryos.rows());
    let unrouted = |(key, flow)| {
        let flow = Flow {
            routed_at: 0,
            ..flow
        };
        (key, flow)
    };
    rows.map(unrouted).collect()
}

fn an_error_refreshes_nothing_and_ends_nothing<F: Addresses>() {
    every_flow::<F>(|host, journey| {
        let before = lifes(host);
        assert_eq!(before.len(), 2);
        host.model.pass(3);
        for kind in [unreachable::<F>(), too_big::<F>(), time_exceeded::<F>()] {
            for _ in 0..3 {
                let error = journey.error(kind, &journey.left);
                let got = journey.to.sends(host, error).outcome;
                assert_eq!(got, journey.from.receives::<F>());
            }
        }
        assert_eq!(lifes(host), before, "{}", journey.name);
    });
}

fn an_expired_flow_gets_no_errors<F: Addresses>() {
    let (host, [there, _]) = flow::<F>(Kind::Masquerade, proto::UDP, plain).expect("a flow");
    let say = || {
        let error = there.error(unreachable::<F>(), &there.left);
        WORLD.sends(&host, error).outcome
    };
    let lifetime = crate::conntrack::State::UdpReplied.lifetime();
    host.model.pass(lifetime);
    assert_eq!(say(), Outcome::Peer(C0));
    host.model.pass(1);
    assert_eq!(say(), dropped(DropReason::FlowEnded));
}

/// A closed port is the usual answer to the first datagram, which nobody has answered before.
fn an_error_is_the_first_packet_of_its_way<F: Addresses>() {
    let host = Host::<F>::new();
    let ask = Frame::udp((F::CLIENT, 40000), (F::HOST, 8081), b"?");
    let sent = ask.packet::<F>();
    let there = host.arrive(UP0, ask);
    assert_eq!(there.outcome, Outcome::Peer(C0));
    let error = Frame::icmp::<F>(
        F::of(C0),
        F::CLIENT,
        unreachable::<F>(),
        [0; 4],
        &there.bytes[14..],
    );
    let got = host.sends(C0, error);
    assert_eq!(got.outcome, out::<F>(UP0));
    assert_eq!(got.src().0, F::HOST);
    assert_eq!(host.model.hop::<F>(), F::GATEWAY.padded());
    let at = got.parsed().l4 as usize + 8;
    assert_eq!(ip_tuple::<F>(&got.bytes[at..]), ip_tuple::<F>(&sent));
    assert_eq!(host.embryos(), 2, "an error confirms nothing");
    let tables = F::tables(&host.model);
    let states: Vec<_> = tables.embryos.rows().values().map(|f| f.state).collect();
    assert_eq!(states, [crate::conntrack::State::UdpNew as u8; 2]);
}

fn an_error_after_a_change<F: Addresses>() {
    for kind in [Kind::Masquerade, Kind::Publish, Kind::Itself] {
        let (mut host, journeys) = flow::<F>(kind, proto::UDP, plain).expect("a flow");
        host.model.config.epoch += 1;
        for journey in &journeys {
            let kind = unreachable::<F>();
            let got = journey.to.sends(&host, journey.error(kind, &journey.left));
            let whole = journey.left.len();
            arrives(journey, &got, (seen_source(journey), kind), whole);
        }
    }
    // What is published no more says nothing more.
    let (mut host, [there, back]) = flow::<F>(Kind::Publish, proto::UDP, plain).expect("a flow");
    let spec = Host::<F>::spec(proto::UDP, 8081, C0, 80);
    host.model.unpublish::<F>(&spec);
    host.model.config.epoch += 1;
    for journey in [there, back] {
        let error = journey.error(unreachable::<F>(), &journey.left);
        let got = journey.to.sends(&host, error).outcome;
        assert_eq!(got, dropped(DropReason::FlowEnded));
    }
    // The container is gone.
    let (mut host, [there, _]) = flow::<F>(Kind::Masquerade, proto::UDP, plain).expect("a flow");
    host.model.remove_endpoint(C0);
    host.model.config.epoch += 1;
    let error = there.error(unreachable::<F>(), &there.left);
    let got = WORLD.sends(&host, error).outcome;
    assert_eq!(got, dropped(DropReason::FlowEnded));
}

fn an_error_after_its_way_was_forgotten<F: Addresses>() {
    let (mut host, [there, back]) = flow::<F>(Kind::Publish, proto::UDP, plain).expect("a flow");
    let say = |host: &Host<F>| {
        let error = there.error(unreachable::<F>(), &there.left);
        there.to.sends(host, error).outcome
    };
    let reply = |host: &Host<F>| {
        let t = back.sent();
        let frame = Frame::udp((t.src, 80), (t.dst, 40000), b"!");
        host.sends(C0, frame).outcome
    };
    assert_eq!(say(&host), out::<F>(UP0));
    host.route(Ok(UP1));
    assert_eq!(say(&host), out::<F>(UP0), "the next hop is remembered");
    host.model.pass(5);
    assert_eq!(say(&host), out::<F>(UP1));
    assert_eq!(reply(&host), out::<F>(UP1), "as the flow's own packets");
    for reason in [DropReason::NoRoute, DropReason::Blackhole] {
        host.model.pass(5);
        host.route(Err(reason));
        assert_eq!(say(&host), dropped(reason));
        let told = matches!(reason, DropReason::NoRoute);
        let outcome = if told {
            refused(reason)
        } else {
            dropped(reason)
        };
        assert_eq!(
            reply(&host),
            outcome,
            "an error gets no answer, a reply does"
        );
    }
    // A masquerade address belongs to its uplink: the error may not leave by another.
    let (mut host, [_, back]) = flow::<F>(Kind::Masquerade, proto::UDP, plain).expect("a flow");
    host.model.pass(5);
    host.uplink(UP1).addr_v4 = [198, 18, 1, 1];
    host.uplink(UP1).addr_v6[15] = 1;
    F::tables_mut(&mut host.model).route = Box::new(|_| {
        Ok(Route {
            oif: UP1,
            mtu: 1500,
            via: F::GATEWAY.padded(),
            via_v6: F::VERSION == 6,
            src: F::inside(8, 1),
        })
    });
    let error = back.error(unreachable::<F>(), &back.left);
    let got = back.to.sends(&host, error).outcome;
    assert_eq!(got, dropped(DropReason::FlowEnded));
}

fn ttl_and_size<F: Addresses>() {
    let (mut host, [there, back]) = flow::<F>(Kind::Masquerade, proto::UDP, plain).expect("a flow");
    for journey in [&there, &back] {
        for (ttl, expected) in [
            (0, dropped(DropReason::TtlExpired)),
            (1, dropped(DropReason::TtlExpired)),
            (2, journey.from.receives::<F>()),
        ] {
            let error = journey.error(unreachable::<F>(), &journey.left).ttl(ttl);
            assert_eq!(journey.to.sends(&host, error).outcome, expected);
        }
    }
    host.model.endpoints.get_mut(&C0).expect("C0").mtu = 1280;
    host.model.config.epoch += 1;
    let (host, [there, _]) = (host, [there, back]);
    for (length, expected) in [(1280, Outcome::Pass), (1281, dropped(DropReason::TooBig))] {
        let mut quoted = there.left.clone();
        quoted.resize(length - header_len::<F>() - 8, 0);
        let got = WORLD.sends(&host, there.error(unreachable::<F>(), &quoted));
        if length == 1281 {
            assert_eq!(got.outcome, dropped(DropReason::TooBig));
        } else {
            assert_ne!(got.outcome, expected);
        }
    }
}

fn errors_about_nothing_of_ours<F: Addresses>() {
    let mut host = Host::<F>::new();
    let about = |port, dst| {
        let quoted = Frame::udp((dst, port), (F::CLIENT, 80), b"12345678").packet::<F>();
        Frame::icmp::<F>(F::CLIENT, dst, unreachable::<F>(), [0; 4], &quoted)
    };
    // The host's own.
    assert_eq!(host.arrive(UP0, about(1, F::HOST)).outcome, Outcome::Pass);
    let refused = dropped(DropReason::IcmpError);
    assert_eq!(host.arrive(UP0, about(1, F::of(C0))).outcome, refused);
    let from_container = |dst| {
        let quoted = Frame::udp((dst, 80), (F::of(C0), 1), b"12345678").packet::<F>();
        Frame::icmp::<F>(F::of(C0), dst, unreachable::<F>(), [0; 4], &quoted)
    };
    assert_eq!(host.sends(C0, from_container(F::CLIENT)).outcome, refused);
    assert_eq!(
        host.sends(C0, from_container(F::HOST)).outcome,
        Outcome::Pass
    );
    host.model.config.flags |= config_flag::ACCELERATE;
    assert_eq!(host.arrive(UP0, about(1, F::of(C0))).outcome, Outcome::Pass);
    assert_eq!(
        host.sends(C0, from_container(F::CLIENT)).outcome,
        refused,
        "the kernel would let it out as it is"
    );
    *host.flags(WEB) &= !(network_flag::MASQUERADE_V4 | network_flag::MASQUERADE_V6);
    assert_eq!(
        host.sends(C0, from_container(F::CLIENT)).outcome,
        Outcome::Pass
    );
}

/// A container's error about a flow of the kernel's: the kernel translates it.
fn errors_about_what_the_kernel_owns<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.model.config.flags |= config_flag::KERNEL_FLOWS;
    let tuple = |src: (F::Addr, u16), dst: (F::Addr, u16)| Tuple {
        src: src.0,
        dst: dst.0,
        sport: src.1.to_be_bytes(),
        dport: dst.1.to_be_bytes(),
        proto: proto::UDP,
        reserved: [0; 3],
    };
    F::tables_mut(&mut host.model).kernel_flows.insert(
        tuple((F::CLIENT, 40000), (F::HOST, 8081)),
        tuple((F::of(C0), 80), (F::CLIENT, 40000)),
        1000,
        600,
    );
    let error = |port| {
        let quoted = Frame::udp((F::CLIENT, port), (F::of(C0), 80), b"?").packet::<F>();
        Frame::icmp::<F>(F::of(C0), F::CLIENT, unreachable::<F>(), [0; 4], &quoted)
    };
    assert_eq!(host.sends(C0, error(40000)).outcome, Outcome::Pass);
    let refused = dropped(DropReason::IcmpError);
    assert_eq!(host.sends(C0, error(40001)).outcome, refused);
}

/// What neighbours say to each other of their own packets is the bridge's business.
fn neighbours_tell_each_other<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.publish(proto::UDP, 8083, N1B, 80);
    let about = |from: u32, to: u32, port| {
        let quoted = Frame::udp((F::of(to), 40000), (F::of(from), port), b"?").packet::<F>();
        Frame::icmp::<F>(F::of(from), F::of(to), unreachable::<F>(), [0; 4], &quoted)
    };
    let got = host.sends_to(C0, mac(C0B), about(C0, C0B, 80)).outcome;
    assert_eq!(got, Outcome::Peer(C0B));
    let got = host.sends_to(N1A, mac(N1B), about(N1A, N1B, 80)).outcome;
    assert_eq!(got, dropped(DropReason::IccDisabled));
    // With icc = false, what was asked for by a published port is answered also by an error.
    let ask = Frame::udp((F::of(N1A), 40000), (F::HOST, 8083), b"?");
    assert_eq!(host.sends(N1A, ask).outcome, Outcome::Peer(N1B));
    let got = host.sends_to(N1B, mac(N1A), about(N1B, N1A, 80));
    assert_eq!(got.outcome, Outcome::Peer(N1A));
    assert_eq!(got.src().0, F::HOST);
    let got = host.sends_to(N1B, mac(N1A), about(N1B, N1A, 81)).outcome;
    assert_eq!(got, dropped(DropReason::IccDisabled));
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

/// The packet of an ICMP flow without an identifier has no ports either.
fn an_error_is_no_packet_of_a_flow_without_ports<F: Addresses>() {
    let mut host = Host::<F>::new();
    *host.flags(WEB) &= !(network_flag::MASQUERADE_V4 | network_flag::MASQUERADE_V6);
    let timestamp = if F::VERSION == 4 { 13 } else { 200 };
    let ask = || Frame::icmp::<F>(F::of(C0), F::CLIENT, (timestamp, 0), [0; 4], &[0; 12]);
    assert_eq!(host.sends(C0, ask()).outcome, out::<F>(UP0));
    let answer = Frame::icmp::<F>(F::CLIENT, F::of(C0), (timestamp + 1, 0), [0; 4], &[0; 12]);
    assert_eq!(host.arrive(UP0, answer).outcome, Outcome::Peer(C0));
    let before = lifes(&host);
    let quoted = Frame::udp((F::CLIENT, 80), (F::of(C0), 1), b"12345678").packet::<F>();
    let error = Frame::icmp::<F>(F::of(C0), F::CLIENT, unreachable::<F>(), [0; 4], &quoted);
    let got = host.sends(C0, error).outcome;
    assert_eq!(got, dropped(DropReason::IcmpError));
    assert_eq!(lifes(&host), before);
    // Control: an error about that very flow.
    let quoted = ask().packet::<F>();
    let error = Frame::icmp::<F>(F::GATEWAY, F::of(C0), unreachable::<F>(), [0; 4], &quoted);
    assert_eq!(host.arrive(UP0, error).outcome, Outcome::Peer(C0));
}

/// Whatever is quoted: valid stays valid, and what is not sent on is not touched ([`Host::run`]
/// sees to both).
fn any_quote<F: Addresses>(
    kind: Kind,
    protocol: u8,
    back: bool,
    damage: &[(usize, u8)],
    length: usize,
    icmp: u8,
) {
    let Some((host, journeys)) = flow::<F>(kind, protocol, plain) else {
        return;
    };
    let journey = &journeys[usize::from(back)];
    let mut quoted = journey.left.clone();
    for (at, value) in damage {
        let at = at % quoted.len();
        quoted[at] = *value;
    }
    quoted.truncate(length);
    let got = journey.to.sends(&host, journey.error((icmp, 0), &quoted));
    if damage.is_empty() && length >= header_len::<F>() + 8 && icmp == time_exceeded::<F>().0 {
        assert_eq!(got.outcome, journey.from.receives::<F>());
    }
    assert_eq!(host.flows() + host.embryos(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn any_quote_is_harmless(
        kind in prop::sample::select(KINDS.to_vec()),
        protocol in prop::sample::select(vec![proto::TCP, proto::UDP, proto::SCTP, proto::ICMP]),
        back: bool,
        damage in prop::collection::vec((0usize..100, any::<u8>()), 0..4),
        length in 0usize..160,
        icmp in prop::sample::select(vec![(3, 0), (4, 1), (5, 2), (11, 3), (12, 4), (3, 100)]),
    ) {
        let v6 = if protocol == proto::ICMP { proto::ICMPV6 } else { protocol };
        any_quote::<V4>(kind, protocol, back, &damage, length, icmp.0);
        any_quote::<V6>(kind, v6, back, &damage, length, icmp.1);
    }
}
