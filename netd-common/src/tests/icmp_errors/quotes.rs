//! What an error quotes: cut, contradictory, behind options, before extensions.

use proptest::prelude::*;

use super::*;

for_both_families! {
    quotes_cut_at_every_byte
    quotes_that_contradict_themselves
    options_and_extension_headers
    what_follows_the_quote_stays
    a_datagram_without_a_checksum
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
    #![proptest_config(ProptestConfig::with_cases(512))]

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
