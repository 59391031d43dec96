//! Properties over random packets.

use proptest::prelude::*;
use std::collections::BTreeSet;

use super::*;
use crate::abi::Tuple;

/// Any bytes, half of them behind an IP EtherType and a first nibble that agrees with it.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop::collection::vec(any::<u8>(), 0..200);
    (bytes, 0..3u8, any::<bool>()).prop_map(|(mut bytes, kind, plausible)| {
        if bytes.len() > 24 {
            match kind {
                0 => bytes[12..15].copy_from_slice(&[0x08, 0x00, 0x45]),
                1 => bytes[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]),
                _ => {}
            }
            if plausible {
                let length = (bytes.len() as u16 - 14).to_be_bytes();
                bytes[16..18].copy_from_slice(&length);
                bytes[..6].copy_from_slice(&bridge_mac(WEB));
                bytes[20..22].copy_from_slice(&[0, 0]);
                bytes[23] = [6, 17, 1, 132][usize::from(bytes[23] % 4)];
            }
        }
        bytes
    })
}

#[derive(Clone, Debug)]
struct Send {
    inside: bool,
    container: usize,
    client: u8,
    sport: u16,
    dport: u16,
    kind: u8,
    flags: u8,
    payload: usize,
}

fn send() -> impl Strategy<Value = Send> {
    (
        any::<bool>(),
        0..4usize,
        2..5u8,
        0..4u16,
        0..3u16,
        0..4u8,
        prop::sample::select(vec![SYN, ACK, SYN | ACK, FIN | ACK, RST, RST | ACK]),
        0..40usize,
    )
        .prop_map(
            |(inside, container, client, sport, dport, kind, flags, payload)| Send {
                inside,
                container,
                client,
                sport,
                dport,
                kind,
                flags,
                payload,
            },
        )
}

fn client<F: Addresses>(number: u8) -> F::Addr {
    let mut bytes = F::CLIENT.padded();
    bytes[size_of::<F::Addr>() - 1] = number;
    F::Addr::from_padded(&bytes)
}

/// A packet of a container to the world, or of a client to the host.
fn perform<F: Addresses>(host: &Host<F>, send: &Send) -> Result<F> {
    let payload = vec![7; send.payload];
    let build = |src, dst| match send.kind {
        0 => Frame::tcp(src, dst, send.flags, &payload),
        1 => Frame::udp(src, dst, &payload),
        2 => Frame::echo::<F>(src.0, dst.0, src.1),
        _ => Frame::sctp(src, dst),
    };
    if send.inside {
        let container = [C0, C0B, N1A, N1B][send.container];
        let to = (client::<F>(send.client), 80 + send.dport);
        host.sends(container, build((F::of(container), 61000 + send.sport), to))
    } else {
        let from = (client::<F>(send.client), 80 + send.sport);
        // The source ports of masquerades, and a published port.
        let port = [61000, 61001, 8081][usize::from(send.dport)];
        host.arrive(UP0, build(from, (F::HOST, port)))
    }
}

/// What the world sees of a flow must belong to one flow only.
fn external_tuples_are_unique<F: Addresses>(sends: &[Send], embryos: usize) {
    let mut host = Host::<F>::new();
    (host.model.config.nat_first, host.model.config.nat_last) = (61000, 61003);
    F::tables(&host.model).embryos.set_capacity(embryos);
    for send in sends {
        let result = perform(&host, send);
        let tables = F::tables(&host.model);
        let rows: Vec<_> = tables
            .flows
            .rows()
            .into_iter()
            .chain(tables.embryos.rows())
            .collect();
        // No key is in both maps.
        let keys: BTreeSet<Tuple<F::Addr>> = rows.iter().map(|(key, _)| *key).collect();
        assert_eq!(keys.len(), rows.len());
        // No two flows translate to the same tuple and would be sent the same answers: the
        // answers' entry is of the flow itself.
        if result.outcome == out::<F>(UP0) {
            let seen = result.parsed().tuple;
            let answers = tables
                .flows
                .get(&seen.reversed())
                .or_else(|| tables.embryos.get(&seen.reversed()));
            let own = rows.iter().filter(|(key, flow)| {
                key.proto == seen.proto
                    && (flow.src, flow.dst) == (seen.src, seen.dst)
                    && (flow.sport, flow.dport) == (seen.sport, seen.dport)
                    && answers.is_some_and(|a| a.generation == flow.generation)
            });
            assert_eq!(own.count(), 1, "{send:?} {seen:?}");
        }
    }
}

/// An answer to what came out is what the sender waits for.
fn there_and_back<F: Addresses>(send: &Send) {
    let host = Host::<F>::new();
    let result = perform(&host, send);
    let (inside, sent) = match result.outcome {
        Outcome::Peer(container) => (Some(container), result.parsed().tuple),
        Outcome::Neighbour4(UP0) | Outcome::Neighbour6(UP0) => (None, result.parsed().tuple),
        _ => return,
    };
    let answer = sent.reversed();
    let (src, dst) = (
        (answer.src, u16::from_be_bytes(answer.sport)),
        (answer.dst, u16::from_be_bytes(answer.dport)),
    );
    let frame = match send.kind {
        0 => Frame::tcp(src, dst, SYN | ACK, b"answer"),
        1 => Frame::udp(src, dst, b"answer"),
        2 => Frame::echo_reply::<F>(src.0, dst.0, dst.1),
        _ => Frame::sctp(src, dst),
    };
    let back = match inside {
        Some(container) => host.sends(container, frame),
        None => host.arrive(UP0, frame),
    };
    assert!(
        !matches!(back.outcome, Outcome::Drop(_) | Outcome::Pass),
        "{back:?}"
    );
    let fresh = Host::<F>::new();
    // What was sent first, as it was sent: without a translation it would be answered so.
    let original = untranslated::<F>(&fresh, send);
    assert_eq!(back.parsed().tuple, original.reversed());
}

/// The tuple that `send` bears before anything is done to it.
fn untranslated<F: Addresses>(host: &Host<F>, send: &Send) -> Tuple<F::Addr> {
    let before = F::tables(&host.model).embryos.len();
    perform(host, send);
    assert_eq!(F::tables(&host.model).embryos.len(), before + 2);
    let rows = F::tables(&host.model).embryos.rows();
    let (key, _) = rows
        .iter()
        .find(|(_, flow)| flow.flags & crate::abi::flow_flag::REPLY == 0)
        .expect("the side that opened the flow");
    *key
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_bytes_make_any_hook_panic(
        bytes in any_frame(),
        at in prop::sample::select(vec![C0, N1A, UP0, UP1, 10, 99]),
        ingress in prop::sample::select(vec![0, C0B, UP0]),
        gso_size in prop::sample::select(vec![0u32, 1, 1400]),
        to_host in 0..2u8,
    ) {
        let host = Host::<V4>::new();
        for hook in 0..hook::PACKETS {
            let meta = Meta { ifindex: at, ingress_ifindex: ingress, to_host, vlan: 0, hook };
            let mut after = bytes.clone();
            let mut packet = GsoPacket { gso_size, ..GsoPacket::new(&mut after) };
            let outcome = host.model.run(&mut packet, &meta).outcome();
            if matches!(outcome, Outcome::Pass | Outcome::Drop(_)) {
                prop_assert_eq!(&bytes, &after);
            }
        }
    }

    /// `Host::run` recomputes every checksum, whatever the verdict.
    #[test]
    fn valid_packets_stay_valid(sends in prop::collection::vec(send(), 1..20)) {
        let (v4, v6) = (Host::<V4>::new(), Host::<V6>::new());
        for send in &sends {
            perform(&v4, send);
            perform(&v6, send);
        }
    }

    #[test]
    fn there_and_back_is_identity(send in send()) {
        there_and_back::<V4>(&send);
        there_and_back::<V6>(&send);
    }

    #[test]
    fn no_tuple_is_given_to_two_flows(
        sends in prop::collection::vec(send(), 1..80),
        embryos in 2..12usize,
    ) {
        external_tuples_are_unique::<V4>(&sends, embryos);
        external_tuples_are_unique::<V6>(&sends, embryos);
    }
}
