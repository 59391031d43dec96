//! Errors that are not sent on, each beside one that is.

use super::*;

for_both_families! {
    only_errors_that_a_host_may_believe
    from_where_the_flow_comes_and_to_who_sent
    impossible_senders
    a_foreign_source_does_not_leak
    errors_about_nothing_of_ours
    errors_about_what_the_kernel_owns
    neighbours_tell_each_other
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
    let error = |port, dst| {
        let quoted = Frame::udp((F::CLIENT, port), (F::of(C0), 80), b"?").packet::<F>();
        Frame::icmp::<F>(F::of(C0), dst, unreachable::<F>(), [0; 4], &quoted)
    };
    let guard = |host: &Host<F>, frame: Frame<F::Addr>| {
        let bytes = frame.macs(bridge_mac(WEB), mac(C0)).bytes::<F>();
        let meta = Host::<F>::meta(hook::BRIDGE_IN, 10);
        host.run(meta, bytes, 0).outcome
    };
    let refused = dropped(DropReason::IcmpError);
    let unknown = dropped(DropReason::UnknownEndpoint);
    for (port, dst, sent, guarded) in [
        (40000, F::CLIENT, Outcome::Pass, Outcome::Pass),
        (40001, F::CLIENT, refused, unknown),
        // To another than who sent what is quoted: nf_conntrack does not take it for the flow's, and
        // it would leave as it is.
        (40000, F::GATEWAY, refused, unknown),
        (40000, F::of(N1A), refused, unknown),
    ] {
        let outcome = host.sends(C0, error(port, dst)).outcome;
        assert_eq!(outcome, sent, "{port} {dst:?}");
        let outcome = guard(&host, error(port, dst));
        assert_eq!(outcome, guarded, "{port} {dst:?}");
    }
    // And what the kernel forwards into the container, translated.
    for (dst, expected) in [
        (F::of(C0), Outcome::Pass),
        (F::of(C0B), dropped(DropReason::ForwardedByStack)),
    ] {
        let quoted = Frame::udp((F::of(C0), 80), (F::CLIENT, 40000), b"!").packet::<F>();
        let error = Frame::icmp::<F>(F::GATEWAY, dst, unreachable::<F>(), [0; 4], &quoted);
        let meta = Meta {
            ingress_ifindex: UP0,
            ..Host::<F>::meta(hook::TO_ENDPOINT, C0)
        };
        let bytes = error.macs(mac(C0), bridge_mac(WEB)).bytes::<F>();
        assert_eq!(host.run(meta, bytes, 0).outcome, expected, "{dst:?}");
    }
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
