//! Packets in fragments: every order, overlaps, duplicates, and what is none of netd's.

use proptest::prelude::*;

use super::*;
use crate::{
    abi::{Tuple, config_flag, gateway_mode, network_flag},
    model::cut::{cut, fragment, join},
};

for_both_families! {
    a_datagram_out_and_its_answer
    a_published_port_and_its_answer
    hairpins
    every_order_from_a_container
    every_order_from_the_world
    duplicates_and_overlaps
    the_rest_of_an_overlap_is_dropped_too
    a_first_fragment_too_small
    a_trailer_is_no_part_of_a_first_fragment
    lengths_that_cannot_be
    too_many_gaps
    time_runs_out
    what_is_left_of_a_packet_claims_no_other
    identifications_come_round
    the_table_is_bounded
    the_hosts_own_are_left_alone
    neighbours_are_left_alone
    options_and_extension_headers
    atomic_fragments_are_whole
    a_flow_that_ends_in_between
    a_change_in_between
    a_connection_is_followed
    protocols_without_ports_where_nothing_is_translated
    errors_and_sctp_do_not_come_in_fragments
    what_the_kernel_owns_must_be_whole
    a_spoofed_fragment_tells_nothing
    an_interface_of_its_own
    fragments_of_one_share_a_ttl_and_an_mtu
}

/// Fragments of a UDP datagram of 800 bytes, in five.
fn datagram<F: Addresses>(src: (F::Addr, u16), dst: (F::Addr, u16), id: u32) -> Vec<Vec<u8>> {
    let payload: Vec<u8> = (0..800u32).map(|i| i as u8).collect();
    let frame = Frame::udp(src, dst, &payload).bytes::<F>();
    cut::<F>(&frame, id, 0, &[160, 200, 40, 200])
}

const FROM_WORLD: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 9, 9, 9, 9, 9];

impl<F: Addresses> Host<F> {
    fn fragment_arrives(&self, mut bytes: Vec<u8>) -> Result<F> {
        bytes[..12].copy_from_slice(&FROM_WORLD);
        self.run(Self::meta(hook::FROM_UPLINK, UP0), bytes, 0)
    }

    fn fragment_leaves(&self, ifindex: u32, bytes: Vec<u8>) -> Result<F> {
        self.fragment_leaves_to(ifindex, bridge_mac((ifindex / 10) as u16), bytes)
    }

    fn fragment_leaves_to(&self, ifindex: u32, to: [u8; 6], mut bytes: Vec<u8>) -> Result<F> {
        bytes[..6].copy_from_slice(&to);
        bytes[6..12].copy_from_slice(&mac(ifindex));
        self.run(Self::meta(hook::FROM_ENDPOINT, ifindex), bytes, 0)
    }

    fn rows(&self) -> usize {
        F::tables(&self.model).fragments.len()
    }
}

/// All of them went this way; the packet that they make up.
fn whole<F: Addresses>(results: Vec<Result<F>>, outcome: Outcome) -> Result<F> {
    for result in &results {
        assert_eq!(result.outcome, outcome);
    }
    let bytes: Vec<_> = results.into_iter().map(|result| result.bytes).collect();
    let bytes = join::<F>(&bytes);
    assert_eq!(verify::<F>(&bytes), Ok(()));
    Result {
        outcome,
        copies: Vec::new(),
        bytes,
        family: PhantomData,
    }
}

fn to_world<F: Addresses>(id: u32) -> Vec<Vec<u8>> {
    datagram::<F>((F::of(C0), 4000), (F::CLIENT, 53), id)
}

fn to_publish<F: Addresses>(id: u32) -> Vec<Vec<u8>> {
    datagram::<F>((F::CLIENT, 4000), (F::HOST, 8081), id)
}

fn a_datagram_out_and_its_answer<F: Addresses>() {
    let host = Host::<F>::new();
    for id in 0..3 {
        let results = to_world::<F>(id).into_iter();
        let there = whole(
            results.map(|f| host.fragment_leaves(C0, f)).collect(),
            out::<F>(UP0),
        );
        assert_eq!(there.dst(), (F::CLIENT, 53));
        let (address, port) = there.src();
        assert_eq!(address, F::HOST);
        let answer = datagram::<F>((F::CLIENT, 53), (F::HOST, port), id);
        let results = answer.into_iter().map(|f| host.fragment_arrives(f));
        let back = whole(results.collect(), Outcome::Peer(C0));
        assert_eq!(back.dst(), (F::of(C0), 4000));
        assert_eq!(back.bytes[..6], mac(C0));
        assert_eq!(host.rows(), 0, "nothing is kept of what is complete");
    }
    assert_eq!(host.flows(), 2);
    let counted: u64 = F::tables(&host.model)
        .flows
        .rows()
        .values()
        .map(|f| f.packets)
        .sum();
    // The first datagram was an embryo's, whose counters go with it.
    assert_eq!(counted, 30);
}

fn a_published_port_and_its_answer<F: Addresses>() {
    let host = Host::<F>::new();
    let results = to_publish::<F>(7).into_iter();
    let there = whole(
        results.map(|f| host.fragment_arrives(f)).collect(),
        Outcome::Peer(C0),
    );
    assert_eq!(there.src(), (F::CLIENT, 4000));
    assert_eq!(there.dst(), (F::of(C0), 80));
    let answer = datagram::<F>((F::of(C0), 80), (F::CLIENT, 4000), 7);
    let results = answer.into_iter().map(|f| host.fragment_leaves(C0, f));
    let back = whole(results.collect(), out::<F>(UP0));
    assert_eq!(back.src(), (F::HOST, 8081));
}

fn hairpins<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.publish(proto::UDP, 8090, N1A, 90);
    // A neighbour, which is answered by its own MAC; and one of another network.
    for (client, port, server, to) in [(C0B, 8081, C0, 80), (C0, 8090, N1A, 90)] {
        let there = datagram::<F>((F::of(client), 4000), (F::HOST, port), 3);
        let there = there.into_iter().map(|f| host.fragment_leaves(client, f));
        let there = whole(there.collect(), Outcome::Peer(server));
        assert_eq!(there.src(), (F::of(client), 4000));
        assert_eq!(there.dst(), (F::of(server), to));
        let back = datagram::<F>((F::of(server), to), (F::of(client), 4000), 3);
        let gateway = if client == C0B {
            mac(client)
        } else {
            bridge_mac((server / 10) as u16)
        };
        let back = back
            .into_iter()
            .map(|f| host.fragment_leaves_to(server, gateway, f));
        let back = whole(back.collect(), Outcome::Peer(client));
        assert_eq!(back.src(), (F::HOST, port));
    }
    // To itself.
    let there = datagram::<F>((F::of(C0), 4000), (F::HOST, 8081), 4).into_iter();
    let there = whole(
        there.map(|f| host.fragment_leaves(C0, f)).collect(),
        Outcome::Peer(C0),
    );
    let (gateway, port) = there.src();
    assert_eq!(gateway, F::inside(WEB, 1));
    let back = datagram::<F>((F::of(C0), 80), (gateway, port), 4).into_iter();
    let back = whole(
        back.map(|f| host.fragment_leaves(C0, f)).collect(),
        Outcome::Peer(C0),
    );
    assert_eq!(back.src(), (F::HOST, 8081));
    assert_eq!(back.dst(), (F::of(C0), 4000));
}

/// Every order of `count` things.
fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = orders(count - 1);
    (0..count)
        .flat_map(|at| {
            shorter.iter().map(move |order| {
                let mut order = order.clone();
                order.insert(at, count - 1);
                order
            })
        })
        .collect()
}

fn in_pieces<F: Addresses>(src: (F::Addr, u16), dst: (F::Addr, u16), count: usize) -> Vec<Vec<u8>> {
    let frame = Frame::udp(src, dst, &[9; 301]).bytes::<F>();
    cut::<F>(&frame, 77, 0, &[64, 40, 80, 48][..count - 1])
}

fn every_order_from_a_container<F: Addresses>() {
    for count in 2..=5 {
        for order in orders(count) {
            let host = Host::<F>::new();
            let pieces = in_pieces::<F>((F::of(C0), 4000), (F::CLIENT, 53), count);
            let results = order
                .iter()
                .map(|i| host.fragment_leaves(C0, pieces[*i].clone()));
            let results: Vec<_> = results.collect();
            if order[0] == 0 {
                let there = whole(results, out::<F>(UP0));
                assert_eq!(there.src().0, F::HOST, "{order:?}");
                assert_eq!(host.rows(), 0);
                continue;
            }
            // Nothing leaks, and no flow begins with what cannot be whole.
            for result in results {
                let reason = dropped(DropReason::FragmentOrder);
                assert_eq!(result.outcome, reason, "{order:?}");
            }
            assert_eq!(host.embryos(), 0);
        }
    }
}

fn every_order_from_the_world<F: Addresses>() {
    for count in 2..=5 {
        for order in orders(count) {
            let host = Host::<F>::new();
            let pieces = in_pieces::<F>((F::CLIENT, 4000), (F::HOST, 8081), count);
            let results = order
                .iter()
                .map(|i| host.fragment_arrives(pieces[*i].clone()));
            let results: Vec<_> = results.collect();
            let Some(strays) = order.iter().position(|i| *i == 0).filter(|at| *at != 0) else {
                let there = whole(results, Outcome::Peer(C0));
                assert_eq!(there.dst(), (F::of(C0), 80), "{order:?}");
                continue;
            };
            // What came before the first may be the host's; the first tells, and the rest is known.
            for (at, result) in results.iter().enumerate() {
                let expected = if at < strays {
                    Outcome::Pass
                } else {
                    dropped(DropReason::FragmentOrder)
                };
                assert_eq!(result.outcome, expected, "{order:?} {at}");
            }
            assert_eq!(host.embryos(), 0);
        }
    }
}

/// The IP header of these frames.
fn head<F: Addresses>(frame: &[u8]) -> Vec<u8> {
    let length = if F::VERSION == 4 { 20 } else { 40 };
    let mut head = frame[14..14 + length].to_vec();
    if F::VERSION == 6 {
        head[6] = proto::UDP;
    }
    head
}

/// A frame with one more fragment of the packet that `frame` is of.
fn another<F: Addresses>(frame: &[u8], id: u32, offset: usize, more: bool, part: &[u8]) -> Vec<u8> {
    [
        &frame[..14],
        &fragment::<F>(&head::<F>(frame), id, offset, more, part),
    ]
    .concat()
}

fn duplicates_and_overlaps<F: Addresses>() {
    let overlap = dropped(DropReason::FragmentOverlap);
    // Each again right after itself: dropped, and the packet is whole all the same.
    let host = Host::<F>::new();
    let mut taken = Vec::new();
    let pieces = to_world::<F>(1);
    for piece in &pieces[..4] {
        taken.push(host.fragment_leaves(C0, piece.clone()));
        assert_eq!(host.fragment_leaves(C0, piece.clone()).outcome, overlap);
    }
    taken.push(host.fragment_leaves(C0, pieces[4].clone()));
    whole(taken, out::<F>(UP0));
    // Another beginning with the same identification; a part that reaches into the next; one that
    // reaches into the one before; over the end.
    for (offset, more, length) in [
        (0, true, 400),
        (0, true, 160),
        (160, true, 208),
        (152, true, 16),
        (560, true, 80),
        (600, false, 300),
    ] {
        let host = Host::<F>::new();
        let pieces = to_world::<F>(1);
        for i in [0, 1, 3, 4] {
            assert_eq!(
                host.fragment_leaves(C0, pieces[i].clone()).outcome,
                out::<F>(UP0)
            );
        }
        // UDP ports, should it be taken for a beginning.
        let mut part = vec![0; length];
        part[..4].copy_from_slice(&[0x0f, 0xa0, 0, 53]);
        let evil = another::<F>(&pieces[0], 1, offset, more, &part);
        assert_eq!(
            host.fragment_leaves(C0, evil).outcome,
            overlap,
            "{offset} {length}"
        );
    }
}

fn the_rest_of_an_overlap_is_dropped_too<F: Addresses>() {
    let overlap = dropped(DropReason::FragmentOverlap);
    let host = Host::<F>::new();
    let pieces = to_publish::<F>(1);
    assert_eq!(
        host.fragment_arrives(pieces[0].clone()).outcome,
        Outcome::Peer(C0)
    );
    let evil = another::<F>(&pieces[0], 1, 80, true, &[0; 160]);
    assert_eq!(host.fragment_arrives(evil).outcome, overlap);
    for piece in &pieces[1..] {
        assert_eq!(host.fragment_arrives(piece.clone()).outcome, overlap);
    }
    assert_eq!(host.fragment_arrives(pieces[0].clone()).outcome, overlap);
    // Control: another packet of the same flow.
    let others = to_publish::<F>(2)
        .into_iter()
        .map(|f| host.fragment_arrives(f));
    whole(others.collect(), Outcome::Peer(C0));
}

fn a_first_fragment_too_small<F: Addresses>() {
    let invalid = dropped(DropReason::FragmentInvalid);
    let tcp = |src, dst, at| {
        let frame = Frame::tcp(src, dst, SYN, &[1; 40]).bytes::<F>();
        cut::<F>(&frame, 9, 0, &[at])
    };
    let host = Host::<F>::new();
    for (port, small, large) in [
        (8081, invalid, Outcome::Peer(C0)),
        // The host's own: its stack puts it together before it reads it.
        (8083, Outcome::Pass, Outcome::Pass),
    ] {
        for (at, expected) in [(8, small), (16, small), (24, large)] {
            let host = Host::<F>::new();
            let pieces = tcp((F::CLIENT, 4000), (F::HOST, port), at);
            let outcome = host.fragment_arrives(pieces[0].clone()).outcome;
            assert_eq!(outcome, expected, "{port} {at}");
        }
    }
    for (at, expected) in [(8, invalid), (16, invalid), (24, out::<F>(UP0))] {
        let pieces = tcp((F::of(C0), 4000), (F::CLIENT, 80), at);
        let outcome = host.fragment_leaves(C0, pieces[0].clone()).outcome;
        assert_eq!(outcome, expected, "{at}");
    }
    // RFC 3128: the flags of the first once more.
    let host = Host::<F>::new();
    let pieces = tcp((F::CLIENT, 4000), (F::HOST, 8081), 24);
    assert_eq!(
        host.fragment_arrives(pieces[0].clone()).outcome,
        Outcome::Peer(C0)
    );
    let flags = another::<F>(&pieces[0], 9, 8, true, &[0; 24]);
    let mut flags = flags;
    flags[if F::VERSION == 4 { 14 + 9 } else { 14 + 40 }] = proto::TCP;
    if F::VERSION == 4 {
        flags[24..26].fill(0);
        let sum = crate::checksum::checksum(&[&flags[14..34]]);
        flags[24..26].copy_from_slice(&sum);
    }
    let overlap = dropped(DropReason::FragmentOverlap);
    assert_eq!(host.fragment_arrives(flags).outcome, overlap);
}

/// What follows the packet in its frame is read by nobody who puts it together.
fn a_trailer_is_no_part_of_a_first_fragment<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.publish(proto::SCTP, 7000, C0, 7000);
    let invalid = dropped(DropReason::FragmentInvalid);
    let sctp = |src, dst| {
        let mut frame = Frame::sctp((src, 7000), (dst, 7000));
        frame.l4.extend([0; 64]);
        frame
    };
    let udp = |src, dst| Frame::udp((src, 8081), (dst, 8081), &[0; 64]);
    let kind = (F::ECHO_REQUEST, 0);
    let echo = |src, dst| Frame::icmp::<F>(src, dst, kind, [0, 9, 0, 1], &[0; 64]);
    let of_world = [udp(F::CLIENT, F::HOST), sctp(F::CLIENT, F::HOST)];
    let of_container = [udp(F::of(C0B), F::CLIENT), echo(F::of(C0B), F::CLIENT)];
    for (id, mut frame) in of_world.into_iter().chain(of_container).enumerate() {
        let from_world = frame.src == F::CLIENT;
        let is_sctp = frame.proto == proto::SCTP;
        let header: usize = if is_sctp { 12 } else { 8 };
        // Bytes in front of the L4 header that are cut with it.
        let options = if F::VERSION == 6 {
            frame.first_extension = 60;
            frame.options = vec![frame.proto, 0, 1, 4, 0, 0, 0, 0];
            8
        } else if is_sctp {
            0
        } else {
            // Nothing is shorter than eight bytes that others follow.
            continue;
        };
        let bytes = frame.bytes::<F>();
        for at in [8, 16, 24] {
            let id = id as u32 * 100 + at as u32;
            let mut first = cut::<F>(&bytes, id, 0, &[at])[0].clone();
            // The header all the same, behind the packet.
            let missing = (options + header).saturating_sub(at);
            let start = 14 + if F::VERSION == 4 { 20 } else { 40 } + at;
            first.extend(&bytes[start..start + missing]);
            let outcome = if from_world {
                host.fragment_arrives(first).outcome
            } else {
                host.fragment_leaves(C0B, first).outcome
            };
            let taken = if from_world {
                Outcome::Peer(C0)
            } else {
                out::<F>(UP0)
            };
            let expected = if missing == 0 { taken } else { invalid };
            assert_eq!(outcome, expected, "{at} {id}");
        }
    }
}

fn lengths_that_cannot_be<F: Addresses>() {
    let invalid = dropped(DropReason::FragmentInvalid);
    for (offset, more, length, expected) in [
        (160, true, 17, invalid),
        (160, false, 17, out::<F>(UP0)),
        (65528, true, 16, invalid),
        (65528, false, 8, invalid),
        (65504, false, 8, out::<F>(UP0)),
    ] {
        let host = Host::<F>::new();
        let first = &to_world::<F>(1)[0];
        assert_eq!(
            host.fragment_leaves(C0, first.clone()).outcome,
            out::<F>(UP0)
        );
        let next = another::<F>(first, 1, offset, more, &vec![0; length]);
        assert_eq!(
            host.fragment_leaves(C0, next).outcome,
            expected,
            "{offset} {length}"
        );
        if expected != invalid {
            continue;
        }
        // It spoils the packet.
        let second = host.fragment_leaves(C0, to_world::<F>(1)[2].clone());
        assert_eq!(second.outcome, expected, "{offset} {length}");
    }
    // A beginning of an odd length.
    let host = Host::<F>::new();
    let first = &to_world::<F>(1)[0];
    let mut part = vec![0; 21];
    part[..4].copy_from_slice(&[0x0f, 0xa0, 0, 53]);
    let odd = another::<F>(first, 1, 0, true, &part);
    assert_eq!(host.fragment_leaves(C0, odd).outcome, invalid);
}

fn too_many_gaps<F: Addresses>() {
    let host = Host::<F>::new();
    let first = &to_publish::<F>(1)[0];
    assert_eq!(
        host.fragment_arrives(first.clone()).outcome,
        Outcome::Peer(C0)
    );
    let outcomes: Vec<_> = (1..=8)
        .map(|i| another::<F>(first, 1, i * 320, true, &[0; 16]))
        .map(|f| host.fragment_arrives(f).outcome)
        .collect();
    assert_eq!(outcomes[..7], [Outcome::Peer(C0); 7]);
    assert_eq!(outcomes[7], dropped(DropReason::FragmentInvalid));
}

fn time_runs_out<F: Addresses>() {
    let limit = if F::VERSION == 4 { 30 } else { 60 };
    for (seconds, expected) in [
        (limit, out::<F>(UP0)),
        (limit + 1, dropped(DropReason::FragmentExpired)),
    ] {
        let host = Host::<F>::new();
        let pieces = to_world::<F>(1);
        // An answer, so that the flow itself lives that long.
        let there = host.fragment_leaves(C0, pieces[0].clone());
        let answer = Frame::udp((F::CLIENT, 53), there.src(), b"x");
        assert_eq!(host.arrive(UP0, answer).outcome, Outcome::Peer(C0));
        host.model.pass(seconds);
        let later = host.fragment_leaves(C0, pieces[1].clone());
        assert_eq!(later.outcome, expected, "{seconds}");
    }
}

/// Of a datagram to a published port the end was lost. Its identification comes round in one to a
/// service of the host, whose fragments come in another order.
fn what_is_left_of_a_packet_claims_no_other<F: Addresses>() {
    let host = Host::<F>::new();
    let lost = to_publish::<F>(5);
    assert_eq!(
        host.fragment_arrives(lost[0].clone()).outcome,
        Outcome::Peer(C0)
    );
    host.model.pass(200);
    let service = datagram::<F>((F::CLIENT, 4000), (F::HOST, 8083), 5);
    for i in [3, 0, 1, 4, 2] {
        let arrived = host.fragment_arrives(service[i].clone());
        assert_eq!(arrived.outcome, Outcome::Pass, "{i}");
    }
    assert_eq!(host.embryos(), 2, "the datagram's that was lost");
    // What is not the host's to take stays dropped, and so does its first one.
    let host = Host::<F>::new();
    let pieces = to_world::<F>(5);
    assert_eq!(
        host.fragment_leaves(C0, pieces[0].clone()).outcome,
        out::<F>(UP0)
    );
    host.model.pass(200);
    let later = host.fragment_leaves(C0, pieces[1].clone());
    assert_eq!(later.outcome, dropped(DropReason::FragmentExpired));
    for i in [2, 0, 3] {
        let sent = host.fragment_leaves(C0, pieces[i].clone());
        assert_eq!(sent.outcome, dropped(DropReason::FragmentOrder), "{i}");
    }
}

fn identifications_come_round<F: Addresses>() {
    let host = Host::<F>::new();
    // The rest of this packet is lost.
    let lost = host.fragment_leaves(C0, to_world::<F>(1)[0].clone());
    assert_eq!(lost.outcome, out::<F>(UP0));
    host.model.pass(3);
    let results = to_world::<F>(1).into_iter();
    whole(
        results.map(|f| host.fragment_leaves(C0, f)).collect(),
        out::<F>(UP0),
    );
    // A complete one does not stand in the way at all.
    let results = to_world::<F>(1).into_iter();
    whole(
        results.map(|f| host.fragment_leaves(C0, f)).collect(),
        out::<F>(UP0),
    );
}

fn the_table_is_bounded<F: Addresses>() {
    let host = Host::<F>::new();
    F::tables(&host.model).fragments.set_capacity(64);
    let mine = to_world::<F>(0);
    assert_eq!(
        host.fragment_leaves(C0, mine[0].clone()).outcome,
        out::<F>(UP0)
    );
    for id in 1..1000 {
        // Another container begins packets that it never ends.
        let flood = datagram::<F>((F::of(C0B), 5000), (F::CLIENT, 53), id);
        host.fragment_leaves(C0B, flood[0].clone());
        assert!(host.rows() <= 64);
        // What is in use stays.
        if id % 50 == 0 && id / 50 < 4 {
            let piece = mine[id as usize / 50].clone();
            assert_eq!(host.fragment_leaves(C0, piece).outcome, out::<F>(UP0));
        }
    }
    // What is not was forgotten, and leaks nothing.
    let reason = dropped(DropReason::FragmentOrder);
    assert_eq!(host.fragment_leaves(C0, mine[4].clone()).outcome, reason);
}

fn the_hosts_own_are_left_alone<F: Addresses>() {
    let host = Host::<F>::new();
    let pieces = datagram::<F>((F::CLIENT, 4000), (F::HOST, 8083), 1);
    for i in [0, 1, 1, 0, 4, 2, 3, 3] {
        let arrived = host.fragment_arrives(pieces[i].clone());
        assert_eq!(arrived.outcome, Outcome::Pass);
    }
    let out_of_order = datagram::<F>((F::CLIENT, 4000), (F::HOST, 8083), 2);
    for i in [3, 4, 0, 1, 2] {
        let arrived = host.fragment_arrives(out_of_order[i].clone());
        assert_eq!(arrived.outcome, Outcome::Pass);
    }
    // What the host only forwards.
    let through = datagram::<F>((F::CLIENT, 4000), (F::GATEWAY, 53), 3);
    for i in [1, 0, 2] {
        assert_eq!(
            host.fragment_arrives(through[i].clone()).outcome,
            Outcome::Pass
        );
    }
    // A container and the host itself.
    let to_host = datagram::<F>((F::of(C0), 4000), (F::HOST, 53), 4);
    for i in [1, 0, 0, 2] {
        let sent = host.fragment_leaves(C0, to_host[i].clone());
        assert_eq!(sent.outcome, Outcome::Pass);
    }
    assert_eq!(host.embryos(), 0);
}

fn neighbours_are_left_alone<F: Addresses>() {
    let mut host = Host::<F>::new();
    let pieces = datagram::<F>((F::of(C0), 4000), (F::of(C0B), 53), 1);
    // In any order, twice, and nothing is kept of it.
    for i in [2, 0, 1, 1, 0, 3, 4] {
        let sent = host.fragment_leaves_to(C0, mac(C0B), pieces[i].clone());
        assert_eq!(sent.outcome, Outcome::Peer(C0B));
        assert_eq!(sent.bytes[14..], pieces[i][14..]);
    }
    assert_eq!(host.rows(), 0);
    *host.flags(WEB) &= !network_flag::ICC;
    let sent = host.fragment_leaves_to(C0, mac(C0B), pieces[1].clone());
    assert_eq!(sent.outcome, dropped(DropReason::IccDisabled));
    // To other networks, or unpublished from outside: as whole packets.
    let isolated = datagram::<F>((F::of(C0), 4000), (F::of(N1A), 53), 1);
    let sent = host.fragment_leaves(C0, isolated[0].clone());
    assert_eq!(sent.outcome, dropped(DropReason::Isolation));
    let sent = host.fragment_leaves(C0, isolated[1].clone());
    assert_eq!(sent.outcome, dropped(DropReason::FragmentOrder));
    let direct = datagram::<F>((F::CLIENT, 4000), (F::of(C0), 80), 1);
    let arrived = host.fragment_arrives(direct[0].clone());
    assert_eq!(arrived.outcome, dropped(DropReason::DirectRouting));
    let arrived = host.fragment_arrives(direct[1].clone());
    assert_eq!(arrived.outcome, dropped(DropReason::FragmentOrder));
}

fn options_and_extension_headers<F: Addresses>() {
    let host = Host::<F>::new();
    let mut frame = Frame::udp((F::of(C0), 4000), (F::CLIENT, 53), &[5; 300]);
    let kept = if F::VERSION == 4 {
        frame.options = vec![1; 12];
        0
    } else {
        // Hop-by-hop options in front of the fragment header, destination options behind it.
        frame.first_extension = 0;
        frame.options = vec![60, 0, 1, 4, 0, 0, 0, 0, proto::UDP, 0, 1, 4, 0, 0, 0, 0];
        8
    };
    let pieces = cut::<F>(&frame.bytes::<F>(), 1, kept, &[64, 80]);
    let results = pieces.into_iter().map(|f| host.fragment_leaves(C0, f));
    let results: Vec<_> = results.collect();
    for result in &results {
        assert_eq!(result.outcome, out::<F>(UP0));
    }
    let bytes: Vec<_> = results.into_iter().map(|result| result.bytes).collect();
    let joined = join::<F>(&bytes);
    let parsed = parse::<F>(&mut SlicePacket(&mut joined.clone()), ETH_LEN).unwrap();
    assert_eq!(parsed.tuple.src, F::HOST);
    // The same packet without what is not looked through.
    let port = u16::from_be_bytes(parsed.tuple.sport);
    let plain = Frame::udp((F::HOST, port), (F::CLIENT, 53), &[5; 300]).bytes::<F>();
    let header = if F::VERSION == 4 { 20 } else { 40 };
    assert_eq!(joined[parsed.l4 as usize..], plain[14 + header..]);
}

fn atomic_fragments_are_whole<F: Addresses>() {
    if F::VERSION == 4 {
        return;
    }
    let host = Host::<F>::new();
    let frame = Frame::udp((F::of(C0), 4000), (F::CLIENT, 53), &[5; 30]).bytes::<F>();
    let atomic = || cut::<F>(&frame, 5, 0, &[])[0].clone();
    for _ in 0..3 {
        assert_eq!(host.fragment_leaves(C0, atomic()).outcome, out::<F>(UP0));
    }
    assert_eq!(host.rows(), 0);
}

fn a_flow_that_ends_in_between<F: Addresses>() {
    let mut host = Host::<F>::new();
    let pieces = to_publish::<F>(1);
    assert_eq!(
        host.fragment_arrives(pieces[0].clone()).outcome,
        Outcome::Peer(C0)
    );
    assert_eq!(
        host.fragment_arrives(pieces[1].clone()).outcome,
        Outcome::Peer(C0)
    );
    host.model
        .unpublish::<F>(&Host::<F>::spec(proto::UDP, 8081, C0, 80));
    host.model.config.epoch += 1;
    // Neither to the container nor to the host.
    for piece in &pieces[2..] {
        let reason = dropped(DropReason::FlowEnded);
        assert_eq!(host.fragment_arrives(piece.clone()).outcome, reason);
    }
    // The port leads to another container now: what began with the first does not end there.
    let mut host = Host::<F>::new();
    assert_eq!(
        host.fragment_arrives(pieces[0].clone()).outcome,
        Outcome::Peer(C0)
    );
    host.publish(proto::UDP, 8081, C0B, 80);
    host.model.config.epoch += 1;
    let whole = Frame::udp((F::CLIENT, 4000), (F::HOST, 8081), b"x");
    assert_eq!(host.arrive(UP0, whole).outcome, Outcome::Peer(C0B));
    let later = host.fragment_arrives(pieces[1].clone());
    assert_eq!(later.outcome, dropped(DropReason::FlowEnded));
}

fn a_change_in_between<F: Addresses>() {
    let mut host = Host::<F>::new();
    let mut results = Vec::new();
    for piece in to_world::<F>(1) {
        results.push(host.fragment_leaves(C0, piece));
        host.model.config.epoch += 1;
    }
    whole(results, out::<F>(UP0));
    // A route that has gone meanwhile.
    let pieces = to_world::<F>(2);
    assert_eq!(
        host.fragment_leaves(C0, pieces[0].clone()).outcome,
        out::<F>(UP0)
    );
    host.route(Err(DropReason::NoRoute));
    host.model.config.epoch += 1;
    let later = host.fragment_leaves(C0, pieces[1].clone());
    assert_eq!(later.outcome, dropped(DropReason::NoRoute));
}

/// A first fragment is of an established connection as much as of a new one.
fn a_connection_is_followed<F: Addresses>() {
    let host = Host::<F>::new();
    host.connect(8081);
    let segment = Frame::tcp((F::CLIENT, 40000), (F::HOST, 8081), ACK, &[3; 500]).bytes::<F>();
    let pieces = cut::<F>(&segment, 6, 0, &[200, 200]).into_iter();
    let there = whole(
        pieces.map(|f| host.fragment_arrives(f)).collect(),
        Outcome::Peer(C0),
    );
    assert_eq!(there.dst(), (F::of(C0), 80));
    let answer = Frame::tcp((F::of(C0), 80), (F::CLIENT, 40000), ACK, &[3; 500]).bytes::<F>();
    let pieces = cut::<F>(&answer, 6, 0, &[200, 200]).into_iter();
    let back = whole(
        pieces.map(|f| host.fragment_leaves(C0, f)).collect(),
        out::<F>(UP0),
    );
    assert_eq!(back.src(), (F::HOST, 8081));
    // Echo, there and back.
    let echo = |kind: u8, src, dst, id: u16| {
        let id = id.to_be_bytes();
        let frame = Frame::icmp::<F>(src, dst, (kind, 0), [id[0], id[1], 0, 1], &[8; 600]);
        cut::<F>(&frame.bytes::<F>(), 7, 0, &[296])
    };
    let there = echo(F::ECHO_REQUEST, F::of(C0), F::CLIENT, 99).into_iter();
    let there = whole(
        there.map(|f| host.fragment_leaves(C0, f)).collect(),
        out::<F>(UP0),
    );
    let (address, id) = there.src();
    assert_eq!(address, F::HOST);
    let back = echo(F::ECHO_REPLY, F::CLIENT, F::HOST, id).into_iter();
    let back = whole(
        back.map(|f| host.fragment_arrives(f)).collect(),
        Outcome::Peer(C0),
    );
    assert_eq!(back.dst(), (F::of(C0), 99));
}

fn protocols_without_ports_where_nothing_is_translated<F: Addresses>() {
    let mut host = Host::<F>::new();
    let frame = |src, dst| Frame::new(src, dst, 47, vec![1; 400]).bytes::<F>();
    let masqueraded = cut::<F>(&frame(F::of(C0), F::CLIENT), 1, 0, &[200]);
    let sent = host.fragment_leaves(C0, masqueraded[0].clone());
    assert_eq!(sent.outcome, dropped(DropReason::UnsupportedProtocol));
    let sent = host.fragment_leaves(C0, masqueraded[1].clone());
    assert_eq!(sent.outcome, dropped(DropReason::FragmentOrder));
    host.mode(WEB, gateway_mode::NAT_UNPROTECTED);
    for piece in cut::<F>(&frame(F::CLIENT, F::of(C0)), 2, 0, &[200, 96]) {
        assert_eq!(host.fragment_arrives(piece).outcome, Outcome::Peer(C0));
    }
}

fn errors_and_sctp_do_not_come_in_fragments<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.publish(proto::SCTP, 8132, C0, 3868);
    host.publish(proto::SCTP, 7000, C0, 7000);
    let mut chunks = Frame::sctp((F::CLIENT, 9), (F::HOST, 8132));
    chunks.l4.extend([1; 100]);
    let changed = cut::<F>(&chunks.bytes::<F>(), 1, 0, &[48]);
    let arrived = host.fragment_arrives(changed[0].clone());
    assert_eq!(arrived.outcome, dropped(DropReason::Fragment));
    // Control: with the same port nothing is to be summed.
    chunks.l4[3] = (7000 & 0xff) as u8;
    chunks.l4[2] = (7000 >> 8) as u8;
    let kept = cut::<F>(&chunks.bytes::<F>(), 2, 0, &[48]).into_iter();
    let there = whole(
        kept.map(|f| host.fragment_arrives(f)).collect(),
        Outcome::Peer(C0),
    );
    assert_eq!(there.dst(), (F::of(C0), 7000));
    let kind = if F::VERSION == 4 { 3 } else { 1 };
    let quoted = Frame::udp((F::HOST, 8081), (F::CLIENT, 40000), &[0; 300]).packet::<F>();
    let error = |dst| {
        let frame = Frame::icmp::<F>(F::CLIENT, dst, (kind, 1), [0; 4], &quoted);
        cut::<F>(&frame.bytes::<F>(), 3, 0, &[104])[0].clone()
    };
    // To the host it may be the host's; to a container it is not.
    assert_eq!(host.fragment_arrives(error(F::HOST)).outcome, Outcome::Pass);
    host.mode(WEB, gateway_mode::NAT_UNPROTECTED);
    let arrived = host.fragment_arrives(error(F::of(C0)));
    assert_eq!(arrived.outcome, dropped(DropReason::Fragment));
}

/// Fragments of the kernel's flows would not get past the guards, which cannot know them: the kernel
/// has put them together, translated them and cut them again, with no row to tell by.
fn what_the_kernel_owns_must_be_whole<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.model.config.flags |= config_flag::KERNEL_FLOWS;
    let original = Tuple {
        src: F::of(C0),
        dst: F::CLIENT,
        sport: 4000u16.to_be_bytes(),
        dport: 53u16.to_be_bytes(),
        proto: proto::UDP,
        reserved: [0; 3],
    };
    let mut reply = original.reversed();
    reply.dst = F::HOST;
    let tables = F::tables_mut(&mut host.model);
    tables.kernel_flows.insert(original, reply, 1000, 120);
    let guard = |host: &Host<F>, mut bytes: Vec<u8>| {
        bytes[..6].copy_from_slice(&bridge_mac(WEB));
        bytes[6..12].copy_from_slice(&mac(C0));
        let meta = Host::<F>::meta(hook::BRIDGE_IN, 10);
        host.run(meta, bytes, 0).outcome
    };
    let whole = || Frame::udp((F::of(C0), 4000), (F::CLIENT, 53), b"?");
    assert_eq!(host.sends(C0, whole()).outcome, Outcome::Pass);
    assert_eq!(guard(&host, whole().bytes::<F>()), Outcome::Pass);
    let reason = dropped(DropReason::Fragment);
    let first = to_world::<F>(1).swap_remove(0);
    assert_eq!(host.fragment_leaves(C0, first.clone()).outcome, reason);
    let unknown = dropped(DropReason::UnknownEndpoint);
    assert_eq!(guard(&host, first), unknown, "nor would it get further");
    for piece in to_world::<F>(1).split_off(1) {
        let reason = dropped(DropReason::FragmentOrder);
        assert_eq!(host.fragment_leaves(C0, piece).outcome, reason);
    }
    // To the host's own address they are its stack's.
    for piece in datagram::<F>((F::CLIENT, 53), (F::HOST, 4000), 1) {
        assert_eq!(host.fragment_arrives(piece).outcome, Outcome::Pass);
    }
    for piece in datagram::<F>((F::of(C0), 4000), (F::HOST, 53), 3) {
        assert_eq!(host.fragment_leaves(C0, piece).outcome, Outcome::Pass);
    }
    // Where the guards let everything through, the kernel takes them.
    host.model.config.flags |= config_flag::ACCELERATE;
    for piece in to_world::<F>(4) {
        assert_eq!(guard(&host, piece.clone()), Outcome::Pass);
        assert_eq!(host.fragment_leaves(C0, piece).outcome, Outcome::Pass);
    }
    // Without its first one nothing tells, and nothing may leak.
    let sent = host.fragment_leaves(C0, to_world::<F>(5)[1].clone());
    assert_eq!(sent.outcome, dropped(DropReason::FragmentOrder));
}

fn a_spoofed_fragment_tells_nothing<F: Addresses>() {
    let host = Host::<F>::new();
    let reason = dropped(DropReason::SpoofedAddress);
    for piece in to_world::<F>(1) {
        assert_eq!(host.fragment_leaves(C0B, piece).outcome, reason);
    }
    assert_eq!(host.rows(), 0);
}

/// What one interface is sent does not complete, or spoil, what another is.
fn an_interface_of_its_own<F: Addresses>() {
    let host = Host::<F>::new();
    let pieces = to_publish::<F>(1);
    assert_eq!(
        host.fragment_arrives(pieces[0].clone()).outcome,
        Outcome::Peer(C0)
    );
    let mut elsewhere = pieces[1].clone();
    elsewhere[..12].copy_from_slice(&FROM_WORLD);
    let elsewhere = host.run(Host::<F>::meta(hook::FROM_UPLINK, UP1), elsewhere, 0);
    assert_eq!(
        elsewhere.outcome,
        Outcome::Pass,
        "as one whose first has not come"
    );
    assert_eq!(
        host.fragment_arrives(pieces[1].clone()).outcome,
        Outcome::Peer(C0)
    );
}

fn fragments_of_one_share_a_ttl_and_an_mtu<F: Addresses>() {
    let host = Host::<F>::new();
    let mut pieces = to_world::<F>(1);
    let first = host.fragment_leaves(C0, pieces[0].clone());
    assert_eq!(first.parsed().ttl, 63);
    let ttl = if F::VERSION == 4 { 14 + 8 } else { 14 + 7 };
    pieces[1][ttl] = 1;
    let expired = host.fragment_leaves(C0, pieces[1].clone());
    assert_eq!(expired.outcome, dropped(DropReason::TtlExpired));
    let large = another::<F>(&pieces[0], 1, 400, true, &[0; 1600]);
    let large = host.fragment_leaves(C0, large);
    // IPv4 may be cut again; of a later fragment of IPv6 nobody is told (as RFC 1122 §3.2.2).
    let outcome = if F::VERSION == 4 {
        out::<F>(UP0)
    } else {
        dropped(DropReason::TooBig)
    };
    assert_eq!(large.outcome, outcome);
}

/// Random fragments of one packet, in any order, again and overlapping: what is sent on never says
/// anything twice, and has the flow's addresses.
fn nothing_is_said_twice<F: Addresses>(parts: &[(usize, usize, bool)], outside: bool) {
    let host = Host::<F>::new();
    let (src, dst) = if outside {
        ((F::CLIENT, 4000), (F::HOST, 8081))
    } else {
        ((F::of(C0), 4000), (F::CLIENT, 53))
    };
    let frame = Frame::udp(src, dst, &[6; 1000]).bytes::<F>();
    let l4 = frame.len() - 1008;
    let head = frame[14..l4].to_vec();
    let mut said = std::collections::BTreeSet::new();
    for (start, length, more) in parts {
        let (offset, end) = (start * 8, (start + length) * 8);
        // The beginning and the end at once would be no fragment.
        let more = *more || *start == 0;
        let part = &frame[l4..][offset..end.min(1008)];
        let bytes = fragment::<F>(&head, 3, offset, more, part);
        let bytes = [&frame[..14], &bytes].concat();
        let result = if outside {
            host.fragment_arrives(bytes)
        } else {
            host.fragment_leaves(C0, bytes)
        };
        if matches!(result.outcome, Outcome::Drop(_) | Outcome::Pass) {
            continue;
        }
        for unit in *start..start + length {
            assert!(said.insert(unit), "{unit} twice");
        }
        assert_eq!(said.first(), Some(&0), "before the first");
        let tuple = result.parsed().tuple;
        if outside {
            assert_eq!((tuple.src, tuple.dst), (F::CLIENT, F::of(C0)));
        } else {
            assert_eq!((tuple.src, tuple.dst), (F::HOST, F::CLIENT));
        }
        if said.len() == 126 && !more {
            said.clear();
        }
    }
}

proptest! {
    // A host is a large thing to build.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_overlap_gets_through(
        first in 1usize..20,
        parts in prop::collection::vec((0usize..110, 1usize..16, prop::bool::weighted(0.9)), 1..60),
        outside: bool,
    ) {
        let mut parts = parts;
        parts.insert(0, (0, first, true));
        nothing_is_said_twice::<V4>(&parts, outside);
        nothing_is_said_twice::<V6>(&parts, outside);
    }

    #[test]
    fn any_cut_in_any_order_behind_the_first(
        lengths in prop::collection::vec(1usize..12, 1..12),
        seed: u64,
    ) {
        let payload: Vec<u8> = (0..1200u32).map(|i| (i ^ seed as u32) as u8).collect();
        let lengths: Vec<_> = lengths.iter().map(|length| length * 8).collect();
        check_any_cut::<V4>(&payload, &lengths, seed);
        check_any_cut::<V6>(&payload, &lengths, seed);
    }
}

fn check_any_cut<F: Addresses>(payload: &[u8], lengths: &[usize], seed: u64) {
    let host = Host::<F>::new();
    let frame = Frame::udp((F::CLIENT, 4000), (F::HOST, 8081), payload).bytes::<F>();
    let mut pieces = cut::<F>(&frame, seed as u32, 0, lengths);
    let count = pieces.len();
    for i in (2..count).rev() {
        // Knuth's shuffle of all but the first.
        let j = 1 + (seed.rotate_left(i as u32 * 7) % i as u64) as usize;
        pieces.swap(i, j.min(count - 1));
    }
    let results = pieces.into_iter().map(|f| host.fragment_arrives(f));
    let there = whole(results.collect(), Outcome::Peer(C0));
    assert_eq!(there.dst(), (F::of(C0), 80));
}
