//! Published ports and packets to container addresses, from outside.

use super::*;
use crate::abi::{config_flag, gateway_mode, uplink_flag};

for_both_families! {
    a_client_reaches_a_published_port_and_its_answer_comes_from_there
    a_port_published_on_one_address_is_only_there
    a_range_is_shifted_as_a_whole
    loopback_is_not_for_the_network
    direct_routing_is_closed_and_each_way_opens_it
    gateway_modes
    internal_networks_are_closed_from_outside
    impossible_sources
    strict_reverse_path
    a_host_listener_wins_unless_overridden
    frames_for_others_and_for_vlans_are_not_ours
}

fn a_client_reaches_a_published_port_and_its_answer_comes_from_there<F: Addresses>() {
    let host = Host::<F>::new();
    let there = host.client(SYN, 8081);
    assert_eq!(there.outcome, Outcome::Peer(C0));
    assert_eq!(there.src(), (F::CLIENT, 40000), "the real client");
    assert_eq!(there.dst(), (F::of(C0), 80));
    assert_eq!(there.bytes[..6], mac(C0));
    assert_eq!(there.bytes[6..12], bridge_mac(WEB));
    assert_eq!(there.parsed().ttl, 63);
    let back = host.server(SYN | ACK);
    assert_eq!(back.outcome, out::<F>(UP0));
    assert_eq!(host.model.hop::<F>(), F::GATEWAY.padded());
    assert_eq!(back.src(), (F::HOST, 8081));
    assert_eq!(back.dst(), (F::CLIENT, 40000));
    // Control: a port that is not published is the host's.
    assert_eq!(host.client(SYN, 8083).outcome, Outcome::Pass);
}

fn a_port_published_on_one_address_is_only_there<F: Addresses>() {
    let mut host = Host::<F>::new();
    let mut spec = Host::<F>::spec(proto::TCP, 9000, C0, 80);
    spec.host = F::inside(WEB, 1);
    host.model.publish::<F>(&spec);
    assert_eq!(host.client(SYN, 9000).outcome, Outcome::Pass);
    spec.host = F::HOST;
    host.model.publish::<F>(&spec);
    assert_eq!(host.client(SYN, 9000).outcome, Outcome::Peer(C0));
}

fn a_range_is_shifted_as_a_whole<F: Addresses>() {
    let mut host = Host::<F>::new();
    let mut spec = Host::<F>::spec(proto::TCP, 9001, C0, 501);
    spec.host_ports.1 = 9030;
    host.model.publish::<F>(&spec);
    for (port, to) in [(9001, 501), (9007, 507), (9030, 530)] {
        assert_eq!(host.client(SYN, port).dst(), (F::of(C0), to));
    }
    for port in [9000, 9031] {
        assert_eq!(host.client(SYN, port).outcome, Outcome::Pass);
    }
}

fn loopback_is_not_for_the_network<F: Addresses>() {
    let mut host = Host::<F>::new();
    let mut spec = Host::<F>::spec(proto::TCP, 9000, C0, 80);
    spec.host = F::LOOPBACK;
    host.model.publish::<F>(&spec);
    let to = |dst| Frame::tcp((F::CLIENT, 40000), (dst, 9000), SYN, b"");
    let reason = DropReason::LoopbackDestination;
    assert_eq!(host.arrive(UP0, to(F::LOOPBACK)).outcome, dropped(reason));
    // Control: the host's address bears no such publish.
    assert_eq!(host.arrive(UP0, to(F::HOST)).outcome, Outcome::Pass);
}

fn direct_routing_is_closed_and_each_way_opens_it<F: Addresses>() {
    let closed = dropped(DropReason::DirectRouting);
    let to = |port| Frame::tcp((F::CLIENT, 40000), (F::of(C0), port), SYN, b"");
    let probe = |host: &Host<F>| [80, 81].map(|port| host.arrive(UP0, to(port)).outcome);
    assert_eq!(probe(&Host::new()), [closed, closed]);
    let published_only = [Outcome::Peer(C0), closed];
    let mut host = Host::<F>::new();
    host.model.trusted.insert((WEB, UP0));
    assert_eq!(probe(&host), published_only);
    let mut host = Host::<F>::new();
    host.model.trusted.insert((DARK, UP0));
    assert_eq!(probe(&host), [closed, closed], "trusted by another network");
    let mut host = Host::<F>::new();
    host.model.config.flags |= config_flag::ALLOW_DIRECT_ROUTING;
    assert_eq!(probe(&host), published_only);
    let mut host = Host::<F>::new();
    host.uplink(UP0).flags |= uplink_flag::CONTAINERS_PUBLISHED;
    assert_eq!(probe(&host), published_only);
    let mut host = Host::<F>::new();
    host.uplink(UP0).flags |= uplink_flag::CONTAINERS_ALL;
    assert_eq!(probe(&host), [Outcome::Peer(C0); 2]);
}

fn gateway_modes<F: Addresses>() {
    let closed = dropped(DropReason::DirectRouting);
    let open = Outcome::Peer(C0);
    for (mode, published, unpublished, ping) in [
        (gateway_mode::NAT, closed, closed, closed),
        (gateway_mode::NAT_UNPROTECTED, open, open, open),
        (gateway_mode::ROUTED, open, closed, open),
        (gateway_mode::ISOLATED, closed, closed, closed),
    ] {
        let mut host = Host::<F>::new();
        host.mode(WEB, mode);
        let to = |port| Frame::tcp((F::CLIENT, 40000), (F::of(C0), port), SYN, b"");
        assert_eq!(host.arrive(UP0, to(80)).outcome, published, "{mode}");
        assert_eq!(host.arrive(UP0, to(81)).outcome, unpublished, "{mode}");
        let echo = Frame::echo::<F>(F::CLIENT, F::of(C0), 7);
        assert_eq!(host.arrive(UP0, echo).outcome, ping, "{mode}");
    }
}

fn internal_networks_are_closed_from_outside<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.uplink(UP0).flags |= uplink_flag::CONTAINERS_ALL;
    let to = |ifindex| Frame::tcp((F::CLIENT, 40000), (F::of(ifindex), 80), SYN, b"");
    let reason = DropReason::Internal;
    assert_eq!(host.arrive(UP0, to(N3A)).outcome, dropped(reason));
    assert_eq!(host.arrive(UP0, to(C0)).outcome, Outcome::Peer(C0));
}

fn impossible_sources<F: Addresses>() {
    let host = Host::<F>::new();
    let from = |src| {
        let frame = Frame::tcp((src, 40000), (F::HOST, 8081), SYN, b"");
        host.arrive(UP0, frame).outcome
    };
    let reason = dropped(DropReason::MartianSource);
    assert_eq!(from(F::of(C0B)), reason);
    assert_eq!(from(F::inside(INNER, 99)), reason);
    assert_eq!(from(F::HOST), reason);
    assert_eq!(from(F::LOOPBACK), reason);
    assert_eq!(from(F::Addr::default()), reason);
    assert_eq!(from(F::CLIENT), Outcome::Peer(C0));
}

fn strict_reverse_path<F: Addresses>() {
    let mut host = Host::<F>::new();
    let probe = |host: &Host<F>, uplink| {
        let frame = Frame::tcp((F::CLIENT, 40000), (F::HOST, 8081), SYN, b"");
        host.arrive(uplink, frame).outcome
    };
    assert_eq!(probe(&host, UP1), Outcome::Peer(C0), "not strict");
    let mut strict = Host::<F>::new();
    strict.uplink(UP1).flags |= uplink_flag::STRICT_RP_FILTER;
    let reason = dropped(DropReason::ReversePath);
    assert_eq!(probe(&strict, UP1), reason);
    strict.route(Err(DropReason::NoRoute));
    assert_eq!(probe(&strict, UP1), reason, "no way back at all");
    host.uplink(UP0).flags |= uplink_flag::STRICT_RP_FILTER;
    let other = Host::<F>::new();
    assert_eq!(probe(&other, UP0), Outcome::Peer(C0), "the right interface");
}

fn a_host_listener_wins_unless_overridden<F: Addresses>() {
    let mut host = Host::<F>::new();
    let key = (proto::TCP, F::HOST, 8081);
    F::tables_mut(&mut host.model).listeners.insert(key);
    assert_eq!(host.client(SYN, 8081).outcome, Outcome::Pass);
    let mut spec = Host::<F>::spec(proto::TCP, 8081, C0, 80);
    spec.overrides = true;
    host.model.publish::<F>(&spec);
    assert_eq!(host.client(SYN, 8081).outcome, Outcome::Peer(C0));

    // A listener that comes later does not take a flow away.
    let mut host = Host::<F>::new();
    host.connect(8081);
    F::tables_mut(&mut host.model).listeners.insert(key);
    host.model.config.epoch += 1;
    assert_eq!(host.client(ACK, 8081).outcome, Outcome::Peer(C0));
}

fn frames_for_others_and_for_vlans_are_not_ours<F: Addresses>() {
    let host = Host::<F>::new();
    let frame = Frame::tcp((F::CLIENT, 40000), (F::HOST, 8081), SYN, b"");
    let bytes = frame.macs(UP_MAC, [2, 9, 9, 9, 9, 9]).bytes::<F>();
    let mut meta = Host::<F>::meta(hook::FROM_UPLINK, UP0);
    let outcome = |meta| host.run(meta, bytes.clone(), 0).outcome;
    meta.to_host = 0;
    assert_eq!(outcome(meta), Outcome::Pass);
    meta.to_host = 1;
    meta.vlan = 1;
    assert_eq!(outcome(meta), Outcome::Pass);
    meta.vlan = 0;
    assert_eq!(outcome(meta), Outcome::Peer(C0));
}
