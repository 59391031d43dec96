//! ICMP errors that netd sends: what they look like, whom they reach, and what gets none.

use super::*;
use crate::{
    abi::{answer_event, answer_kind, endpoint_flag, gateway_mode},
    answer::{ANSWERS_AT_ONCE, ANSWERS_PER_SECOND},
    wire::Family,
};

for_both_families! {
    a_container_is_told_by_its_gateway
    the_world_is_told_by_the_address_it_wrote_to
    a_container_address_answers_from_the_uplink
    without_a_gateway_the_uplink_answers
    nobody_to_answer_from
    a_tap_gets_its_answer_by_the_veth
    what_is_quoted_is_what_was_sent
    long_packets_are_quoted_in_part
    the_mtu_of_the_next_hop
    a_dead_packet_is_dead_before_it_is_too_big
    errors_are_never_answered
    what_was_sent_to_many_is_never_answered
    sources_that_are_nobody_are_never_answered
    only_first_fragments_are_answered
    answers_are_rationed
    segments_are_judged_one_by_one
    a_published_server_is_told_of_a_missing_route
    replies_that_are_too_big
}

/// An answer, taken apart: source, destination, type and code, second word, quoted packet.
#[derive(Debug, PartialEq)]
struct Told<A> {
    src: A,
    dst: A,
    kind: (u8, u8),
    word: u32,
    quoted: Vec<u8>,
}

fn read<F: Addresses>(bytes: &[u8]) -> Told<F::Addr> {
    assert_eq!(verify::<F>(bytes), Ok(()));
    let mut copy = bytes.to_vec();
    let parsed = parse::<F>(&mut SlicePacket(&mut copy), ETH_LEN).expect("a packet");
    assert_eq!(parsed.tuple.proto, F::ICMP);
    assert_eq!(parsed.ttl, 64);
    let l4 = parsed.l4 as usize;
    Told {
        src: parsed.tuple.src,
        dst: parsed.tuple.dst,
        kind: (bytes[l4], bytes[l4 + 1]),
        word: u32::from_be_bytes(bytes[l4 + 4..l4 + 8].try_into().unwrap()),
        quoted: bytes[l4 + 8..].to_vec(),
    }
}

fn world<F: Addresses>() -> Frame<F::Addr> {
    Frame::udp((F::of(C0), 40000), (F::CLIENT, 53), b"question")
}

fn published<F: Addresses>() -> Frame<F::Addr> {
    Frame::tcp((F::CLIENT, 40000), (F::HOST, 8081), SYN, b"")
}

fn count(host: &Model, kind: usize, event: usize) -> u64 {
    host.answers.borrow()[kind].count[event]
}

const EXCEEDED: DropReason = DropReason::TtlExpired;

fn time_exceeded<F: Family>() -> (u8, u8) {
    if F::VERSION == 4 { (11, 0) } else { (3, 0) }
}

fn too_big<F: Family>() -> (u8, u8) {
    if F::VERSION == 4 { (3, 4) } else { (2, 0) }
}

fn a_container_is_told_by_its_gateway<F: Addresses>() {
    let (v4, mut host) = (F::VERSION == 4, Host::<F>::new());
    let reasons = [
        (
            DropReason::NoRoute,
            if v4 { (3, 1) } else { (1, 0) },
            answer_kind::UNREACHABLE,
        ),
        (
            DropReason::Prohibited,
            if v4 { (3, 13) } else { (1, 1) },
            answer_kind::PROHIBITED,
        ),
        (EXCEEDED, time_exceeded::<F>(), answer_kind::TIME_EXCEEDED),
    ];
    for (reason, kind, index) in reasons {
        host.route(if reason == EXCEEDED {
            Ok(UP0)
        } else {
            Err(reason)
        });
        let sent = world::<F>().ttl(if reason == EXCEEDED { 1 } else { 9 });
        let result = host.sends(C0, sent.clone());
        assert_eq!(result.outcome, Outcome::AnswerPeer(reason));
        assert_eq!(result.bytes[..6], mac(C0));
        assert_eq!(result.bytes[6..12], bridge_mac(WEB));
        let told = Told {
            src: F::inside(WEB, 1),
            dst: F::of(C0),
            kind,
            word: 0,
            quoted: sent.packet::<F>(),
        };
        assert_eq!(read::<F>(&result.bytes), told);
        assert_eq!(count(&host.model, index, answer_event::SENT), 1);
    }
    // Control: a blackhole says nothing.
    host.route(Err(DropReason::Blackhole));
    let outcome = host
        .sends(C0B, Frame::udp((F::of(C0B), 1), (F::CLIENT, 53), b""))
        .outcome;
    assert_eq!(outcome, dropped(DropReason::Blackhole));
}

fn the_world_is_told_by_the_address_it_wrote_to<F: Addresses>() {
    let mut host = Host::<F>::new();
    let another = F::inside(9, 9);
    host.model
        .add_local::<F>(another, F::ADDR_LEN * 8, crate::abi::local_kind::UNICAST);
    for (port, to) in [(40001, F::HOST), (40002, another)] {
        let sent = Frame::tcp((F::CLIENT, port), (to, 8081), SYN, b"").ttl(1);
        let result = host.arrive(UP0, sent.clone());
        assert_eq!(result.outcome, Outcome::AnswerBack(EXCEEDED));
        assert_eq!(result.bytes[..6], [2, 9, 9, 9, 9, 9]);
        assert_eq!(result.bytes[6..12], UP_MAC);
        let told = Told {
            src: to,
            dst: F::CLIENT,
            kind: time_exceeded::<F>(),
            word: 0,
            quoted: sent.packet::<F>(),
        };
        assert_eq!(read::<F>(&result.bytes), told);
    }
    assert_eq!(
        host.arrive(UP0, published::<F>().ttl(2)).outcome,
        Outcome::Peer(C0)
    );
}

fn a_container_address_answers_from_the_uplink<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.mode(WEB, gateway_mode::NAT_UNPROTECTED);
    let sent = Frame::tcp((F::CLIENT, 40000), (F::of(C0), 80), SYN, b"").ttl(1);
    let result = host.arrive(UP0, sent);
    assert_eq!(result.outcome, Outcome::AnswerBack(EXCEEDED));
    assert_eq!(read::<F>(&result.bytes).src, F::HOST);
}

fn no_gateway<F: Addresses>() -> Host<F> {
    let mut host = Host::<F>::new();
    let network = &mut host.model.networks[usize::from(WEB)];
    (network.gateway_v4, network.gateway_v6) = ([0; 4], [0; 16]);
    host
}

fn without_a_gateway_the_uplink_answers<F: Addresses>() {
    let host = no_gateway::<F>();
    let result = host.sends(C0, world::<F>().ttl(1));
    assert_eq!(result.outcome, refused(EXCEEDED));
    assert_eq!(read::<F>(&result.bytes).src, F::HOST);
}

fn nobody_to_answer_from<F: Addresses>() {
    let mut host = no_gateway::<F>();
    host.route(Err(DropReason::NoRoute));
    let outcome = host.sends(C0, world::<F>()).outcome;
    assert_eq!(outcome, dropped(DropReason::NoRoute));
    let silent = count(&host.model, answer_kind::UNREACHABLE, answer_event::SILENT);
    assert_eq!(silent, 1);
}

fn a_tap_gets_its_answer_by_the_veth<F: Addresses>() {
    let mut host = Host::<F>::new();
    let endpoint = host.model.endpoints.get_mut(&C0).expect("a container");
    endpoint.flags &= !endpoint_flag::PEER;
    let result = host.sends(C0, world::<F>().ttl(1));
    assert_eq!(result.outcome, Outcome::AnswerBack(EXCEEDED));
    // There the hook of what is delivered sees it, also where neighbours may not talk.
    *host.flags(WEB) &= !network_flag::ICC;
    let delivered = |ingress_ifindex| {
        let meta = Meta {
            ingress_ifindex,
            ..Host::<F>::meta(hook::TO_ENDPOINT, C0)
        };
        host.run(meta, result.bytes.clone(), 0).outcome
    };
    assert_eq!(delivered(C0), Outcome::Pass);
    assert_eq!(delivered(C0B), dropped(DropReason::IccDisabled));
}

/// Nothing was translated yet, and options come with it.
fn what_is_quoted_is_what_was_sent<F: Addresses>() {
    let host = Host::<F>::new();
    assert_eq!(host.sends(C0, world::<F>()).outcome, out::<F>(UP0));
    for length in 0..40 {
        host.model.pass(1);
        let mut sent = Frame::udp((F::of(C0), 40000), (F::CLIENT, 53), &vec![7; length]).ttl(1);
        if F::VERSION == 4 {
            sent.options = vec![1; 8];
        }
        let result = host.sends(C0, sent.clone());
        assert_eq!(result.outcome, refused(EXCEEDED));
        assert_eq!(read::<F>(&result.bytes).quoted, sent.packet::<F>());
        // An Ethernet frame is padded to 60 bytes: that is no part of the packet.
        let mut bytes = sent.macs(bridge_mac(WEB), mac(C0)).bytes::<F>();
        bytes.extend([0xee; 30]);
        let padded = host.run(Host::<F>::meta(hook::FROM_ENDPOINT, C0), bytes, 0);
        assert_eq!(padded.bytes, result.bytes);
    }
}

fn long_packets_are_quoted_in_part<F: Addresses>() {
    let host = Host::<F>::new();
    let most = if F::VERSION == 4 { 576 } else { 1280 };
    let headers = if F::VERSION == 4 { 28 } else { 48 };
    for length in [
        most - 2 * headers - 1,
        most - 2 * headers,
        most - 2 * headers + 1,
        1400,
    ] {
        let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
        let sent = Frame::udp((F::of(C0), 40000), (F::CLIENT, 53), &payload).ttl(1);
        let result = host.sends(C0, sent.clone());
        assert_eq!(result.outcome, refused(EXCEEDED));
        let packet = sent.packet::<F>();
        let quoted = packet.len().min(most - headers);
        assert_eq!(read::<F>(&result.bytes).quoted, packet[..quoted]);
        assert_eq!(result.bytes.len(), 14 + headers + quoted);
    }
}

fn uplink_mtu<F: Addresses>(host: &mut Host<F>, mtu: u32) {
    F::tables_mut(&mut host.model).route = Box::new(move |_| {
        Ok(Route {
            oif: UP0,
            mtu,
            via: F::GATEWAY.padded(),
            via_v6: F::VERSION == 6,
            src: F::HOST,
        })
    });
}

fn the_mtu_of_the_next_hop<F: Addresses>() {
    let mut host = Host::<F>::new();
    uplink_mtu(&mut host, 1280);
    let headers = if F::VERSION == 4 { 28 } else { 48 };
    let send = |payload: usize| {
        let frame = Frame::udp((F::of(C0), 40000), (F::CLIENT, 53), &vec![7; payload]);
        host.sends(C0, frame.whole())
    };
    assert_eq!(send(1280 - headers).outcome, out::<F>(UP0));
    let result = send(1281 - headers);
    assert_eq!(result.outcome, refused(DropReason::TooBig));
    let told = read::<F>(&result.bytes);
    assert_eq!((told.kind, told.word), (too_big::<F>(), 1280));
    assert_eq!(told.src, F::inside(WEB, 1));
    // Into a container whose interface is smaller, the client is told.
    host.model.endpoints.get_mut(&C0).expect("a container").mtu = 1300;
    let arrive = |payload: usize| {
        let frame = Frame::udp((F::CLIENT, 40001), (F::HOST, 8081), &vec![7; payload]);
        host.arrive(UP0, frame.whole())
    };
    assert_eq!(arrive(1300 - headers).outcome, Outcome::Peer(C0));
    let result = arrive(1301 - headers);
    assert_eq!(result.outcome, Outcome::AnswerBack(DropReason::TooBig));
    let told = read::<F>(&result.bytes);
    assert_eq!((told.kind, told.word), (too_big::<F>(), 1300));
    assert_eq!((told.src, told.dst), (F::HOST, F::CLIENT));
}

fn a_dead_packet_is_dead_before_it_is_too_big<F: Addresses>() {
    let mut host = Host::<F>::new();
    uplink_mtu(&mut host, 1280);
    let frame = Frame::udp((F::of(C0), 40000), (F::CLIENT, 53), &[7; 1400]).whole();
    let outcome = host.sends(C0, frame.clone().ttl(1)).outcome;
    assert_eq!(outcome, refused(EXCEEDED));
    assert_eq!(
        host.sends(C0, frame.ttl(2)).outcome,
        refused(DropReason::TooBig)
    );
}

fn answered<F: Addresses>(host: &Host<F>, frame: Frame<F::Addr>) -> bool {
    let outcome = host.sends(C0, frame).outcome;
    match outcome {
        Outcome::AnswerPeer(DropReason::NoRoute) => true,
        Outcome::Drop(DropReason::NoRoute) => false,
        other => panic!("{other:?}"),
    }
}

/// No route at all: whatever is sent on is refused.
fn nowhere<F: Addresses>() -> Host<F> {
    let mut host = Host::<F>::new();
    host.route(Err(DropReason::NoRoute));
    let masquerade = network_flag::MASQUERADE_V4 | network_flag::MASQUERADE_V6;
    *host.flags(WEB) &= !masquerade;
    host
}

fn errors_are_never_answered<F: Addresses>() {
    let host = nowhere::<F>();
    let icmp = |kind: u8| {
        let quoted = Frame::udp((F::CLIENT, 53), (F::of(C0), 9), b"12345678").packet::<F>();
        Frame::icmp::<F>(F::of(C0), F::CLIENT, (kind, 0), [0; 4], &quoted)
    };
    // A router asks of errors by type (what else is done with them is not this test's business).
    let told = |kind: u8| {
        let mut bytes = icmp(kind).macs(bridge_mac(WEB), mac(C0)).bytes::<F>();
        let mut packet = GsoPacket::new(&mut bytes);
        let parsed = parse::<F>(&mut packet, ETH_LEN).expect("a packet");
        crate::answer::may_be_answered::<F, _, _>(&packet, &host.model, &parsed)
    };
    let errors: &[u8] = if F::VERSION == 4 {
        &[3, 4, 5, 11, 12]
    } else {
        &[1, 2, 3, 4, 100, 127, 137]
    };
    for kind in errors {
        assert!(!told(*kind), "type {kind}");
    }
    let questions: &[u8] = if F::VERSION == 4 {
        &[0, 8, 13, 15, 17]
    } else {
        &[128, 129, 139]
    };
    for kind in questions {
        assert!(told(*kind), "type {kind}");
    }
    assert!(answered(&host, Frame::echo::<F>(F::of(C0), F::CLIENT, 7)));
}

fn judged<F: Addresses>(host: &Host<F>, frame: &Frame<F::Addr>, to: [u8; 6]) -> bool {
    let mut bytes = frame.clone().macs(to, mac(C0)).bytes::<F>();
    let mut packet = GsoPacket::new(&mut bytes);
    let parsed = parse::<F>(&mut packet, ETH_LEN).expect("a packet");
    crate::answer::may_be_answered::<F, _, _>(&packet, &host.model, &parsed)
}

fn what_was_sent_to_many_is_never_answered<F: Addresses>() {
    let host = nowhere::<F>();
    let unicast = bridge_mac(WEB);
    assert!(judged(&host, &world::<F>(), unicast));
    assert!(!judged(&host, &world::<F>(), [0xff; 6]));
    assert!(!judged(&host, &world::<F>(), [1, 0, 0x5e, 0, 0, 1]));
    let to = |dst| Frame::udp((F::of(C0), 1), (dst, 2), b"");
    for many in many::<F>() {
        assert!(!judged(&host, &to(many), unicast), "{many:?}");
    }
    assert!(judged(&host, &to(F::CLIENT), unicast));
}

fn many<F: Addresses>() -> Vec<F::Addr> {
    let v4 = [[224, 0, 0, 251], [255; 4], V4::inside(WEB, 255).0];
    if F::VERSION == 4 {
        v4.map(|a| F::Addr::from_padded(&V4Addr(a).padded()))
            .to_vec()
    } else {
        vec![F::Addr::from_padded(&v6(0xff02, 0, 0, 0xfb).0)]
    }
}

fn sources_that_are_nobody_are_never_answered<F: Addresses>() {
    let host = nowhere::<F>();
    let from = |src| Frame::udp((src, 1), (F::CLIENT, 2), b"");
    let mut nobody = many::<F>();
    nobody.extend([F::Addr::default(), F::LOOPBACK, F::HOST]);
    for src in nobody {
        assert!(!judged(&host, &from(src), bridge_mac(WEB)), "{src:?}");
    }
    assert!(judged(&host, &from(F::of(C0)), bridge_mac(WEB)));
}

fn only_first_fragments_are_answered<F: Addresses>() {
    let host = nowhere::<F>();
    let fragment = |offset: u16, chain: bool| {
        let mut frame = world::<F>();
        if F::VERSION == 4 {
            frame.fragment = if offset == 0 { 0x2000 } else { offset };
        } else {
            let [high, low] = (offset << 3 | 1).to_be_bytes();
            frame.first_extension = 44;
            frame.options = vec![frame.proto, 0, high, low, 0, 0, 0, 1];
            if chain {
                frame.first_extension = 60;
                frame.options.splice(0..0, [44, 0, 1, 4, 0, 0, 0, 0]);
            }
        }
        frame
    };
    for chain in [false, true] {
        assert!(judged(&host, &fragment(0, chain), bridge_mac(WEB)));
        assert!(!judged(&host, &fragment(1, chain), bridge_mac(WEB)));
        assert!(!judged(&host, &fragment(0x1000, chain), bridge_mac(WEB)));
    }
}

fn answers_are_rationed<F: Addresses>() {
    let host = Host::<F>::new();
    let send = |times: u64| {
        (0..times)
            .map(|_| host.sends(C0, world::<F>().ttl(1)).outcome)
            .filter(|outcome| match outcome {
                Outcome::AnswerPeer(EXCEEDED) => true,
                Outcome::Drop(EXCEEDED) => false,
                other => panic!("{other:?}"),
            })
            .count() as u64
    };
    assert_eq!(send(5000), ANSWERS_AT_ONCE);
    // Who spends the ration of one kind does not silence another.
    let header = if F::VERSION == 4 { 28 } else { 48 };
    let mut large = Frame::udp(
        (F::of(C0B), 40000),
        (F::CLIENT, 53),
        &vec![0; 1501 - header],
    );
    large.fragment = 0x4000;
    let large = host.sends(C0B, large);
    assert_eq!(large.outcome, Outcome::AnswerPeer(DropReason::TooBig));
    host.model.pass(1);
    assert!(send(5000) <= ANSWERS_PER_SECOND);
    let limited = count(
        &host.model,
        answer_kind::TIME_EXCEEDED,
        answer_event::LIMITED,
    );
    assert_eq!(limited, 10_000 - 2 * ANSWERS_AT_ONCE);
}

/// And what is quoted of a GSO packet fits an answer.
fn segments_are_judged_one_by_one<F: Addresses>() {
    let mut host = Host::<F>::new();
    uplink_mtu(&mut host, 1280);
    let header = if F::VERSION == 4 { 40 } else { 60 };
    let send = |gso_size| {
        let frame = Frame::tcp((F::of(C0), 40000), (F::CLIENT, 80), ACK, &[7; 8000]).whole();
        let bytes = frame.macs(bridge_mac(WEB), mac(C0)).bytes::<F>();
        host.run(Host::<F>::meta(hook::FROM_ENDPOINT, C0), bytes, gso_size)
    };
    assert_eq!(send(1280 - header).outcome, out::<F>(UP0));
    let result = send(1281 - header);
    assert_eq!(result.outcome, refused(DropReason::TooBig));
    assert_eq!(read::<F>(&result.bytes).word, 1280);
    assert!(result.bytes.len() <= 14 + 1280);
}

fn a_published_server_is_told_of_a_missing_route<F: Addresses>() {
    let mut host = Host::<F>::new();
    assert_eq!(host.client(SYN, 8081).outcome, Outcome::Peer(C0));
    host.route(Err(DropReason::Prohibited));
    let result = host.server(SYN | ACK);
    assert_eq!(result.outcome, refused(DropReason::Prohibited));
    let told = read::<F>(&result.bytes);
    assert_eq!((told.src, told.dst), (F::inside(WEB, 1), F::of(C0)));
}

fn replies_that_are_too_big<F: Addresses>() {
    let mut host = Host::<F>::new();
    uplink_mtu(&mut host, 1280);
    host.connect(8081);
    let reply = Frame::tcp((F::of(C0), 80), (F::CLIENT, 40000), ACK, &[7; 1400]).whole();
    let result = host.sends(C0, reply.clone());
    assert_eq!(result.outcome, refused(DropReason::TooBig));
    let told = read::<F>(&result.bytes);
    assert_eq!(told.word, 1280);
    assert_eq!(told.quoted, reply.packet::<F>()[..told.quoted.len()]);
}

/// Without "don't fragment" a datagram may be as large as the receiver takes it: a container's
/// interface takes what comes.
#[test]
fn what_may_be_fragmented_reaches_a_container_whole() {
    let mut host = Host::<V4>::new();
    host.model.endpoints.get_mut(&C0).expect("a container").mtu = 1300;
    let frame = Frame::udp((V4::CLIENT, 40001), (V4::HOST, 8081), &[7; 1400]);
    assert_eq!(host.arrive(UP0, frame.clone()).outcome, Outcome::Peer(C0));
    let outcome = host.arrive(UP0, frame.whole()).outcome;
    assert_eq!(outcome, Outcome::AnswerBack(DropReason::TooBig));
}
