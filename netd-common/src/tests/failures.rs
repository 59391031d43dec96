//! Why packets are dropped, each beside one that differs in a single thing and is not.

use super::*;
use crate::{
    abi::{Tuple, config_flag, uplink_flag},
    tables::{Policy, RouteQuery},
};

for_both_families! {
    a_server_in_the_middle_of_an_unknown_connection
    answers_to_questions_that_nobody_asked
    ttl
    mtu_and_segments
    protocols_without_ports
    routes_that_refuse
    egress_interfaces_that_cannot
    nothing_to_masquerade_with
    source_ports_run_out
    the_flow_table_is_full
    a_tuple_has_one_owner
    addresses_that_nobody_has
    the_middle_of_a_connection
    flags_that_no_connection_bears
    link_local_sources
    the_users_policy_comes_first
    unknown_interfaces
    headers_cut_short
}

fn world<F: Addresses>() -> Frame<F::Addr> {
    Frame::tcp((F::of(C0), 40000), (F::CLIENT, 80), SYN, b"")
}

fn ttl<F: Addresses>() {
    let host = Host::<F>::new();
    for ttl in [0, 1] {
        let late = host.sends(C0, world::<F>().ttl(ttl)).outcome;
        assert_eq!(late, refused(DropReason::TtlExpired));
    }
    let there = host.sends(C0, world::<F>().ttl(2));
    assert_eq!(there.outcome, out::<F>(UP0));
    assert_eq!(there.parsed().ttl, 1);
}

fn mtu_and_segments<F: Addresses>() {
    let host = Host::<F>::new();
    let header = if F::VERSION == 4 { 40 } else { 60 };
    let send = |payload: usize, gso_size| {
        let mut frame = Frame::tcp((F::of(C0), 40000), (F::CLIENT, 80), ACK, &vec![7; payload]);
        frame.fragment = 0x4000;
        let bytes = frame.macs(bridge_mac(WEB), mac(C0)).bytes::<F>();
        host.run(Host::<F>::meta(hook::FROM_ENDPOINT, C0), bytes, gso_size)
            .outcome
    };
    let too_big = refused(DropReason::TooBig);
    assert_eq!(send(1500 - header, 0), out::<F>(UP0));
    assert_eq!(send(1501 - header, 0), too_big);
    assert_eq!(send(4000, 1500 - header as u32), out::<F>(UP0));
    assert_eq!(send(4000, 1501 - header as u32), too_big);
}

fn protocols_without_ports<F: Addresses>() {
    let mut host = Host::<F>::new();
    let gre = || Frame::new(F::of(C0), F::CLIENT, 47, vec![0; 16]);
    let reason = DropReason::UnsupportedProtocol;
    assert_eq!(host.sends(C0, gre()).outcome, dropped(reason));
    *host.flags(WEB) &= !(network_flag::MASQUERADE_V4 | network_flag::MASQUERADE_V6);
    assert_eq!(host.sends(C0, gre()).outcome, out::<F>(UP0));
}

fn routes_that_refuse<F: Addresses>() {
    for reason in [
        DropReason::NoRoute,
        DropReason::Blackhole,
        DropReason::Prohibited,
        DropReason::HelperFailed,
    ] {
        let mut host = Host::<F>::new();
        host.route(Err(reason));
        let told = matches!(reason, DropReason::NoRoute | DropReason::Prohibited);
        let outcome = if told {
            refused(reason)
        } else {
            dropped(reason)
        };
        assert_eq!(host.sends(C0, world::<F>()).outcome, outcome);
        host.route(Ok(UP0));
        assert_eq!(host.sends(C0, world::<F>()).outcome, out::<F>(UP0));
    }
}

fn egress_interfaces_that_cannot<F: Addresses>() {
    let mut host = Host::<F>::new();
    let refused = |host: &Host<F>| host.sends(C0, world::<F>()).outcome;
    host.route(Ok(99));
    assert_eq!(refused(&host), dropped(DropReason::UnmanagedEgress));
    host.route(Ok(UP0));
    host.uplink(UP0).flags = uplink_flag::LOOPBACK;
    assert_eq!(refused(&host), dropped(DropReason::UnmanagedEgress));
    host.uplink(UP0).flags = 0;
    assert_eq!(refused(&host), out::<F>(UP0));
}

fn nothing_to_masquerade_with<F: Addresses>() {
    let mut host = Host::<F>::new();
    let route = |oif| {
        Box::new(move |_: &RouteQuery<F::Addr>| {
            Ok(Route {
                oif,
                ..Route::default()
            })
        })
    };
    // Neither the route nor the uplink names an address.
    F::tables_mut(&mut host.model).route = route(UP1);
    let reason = DropReason::NoMasqueradeAddress;
    assert_eq!(host.sends(C0, world::<F>()).outcome, dropped(reason));
    F::tables_mut(&mut host.model).route = route(UP0);
    let there = host.sends(C0, world::<F>());
    assert_eq!(there.src().0, F::HOST, "the uplink's own");
}

fn source_ports_run_out<F: Addresses>() {
    let mut host = Host::<F>::new();
    (host.model.config.nat_first, host.model.config.nat_last) = (61000, 61003);
    let to = |dport, sport| Frame::udp((F::of(C0), sport), (F::CLIENT, dport), b"");
    let mut used = std::collections::BTreeSet::new();
    let exhausted = (0..200).find(|i| {
        let there = host.sends(C0, to(53, 1000 + i));
        if there.outcome == out::<F>(UP0) {
            assert!(used.insert(there.src().1), "a port was given twice");
        }
        there.outcome == dropped(DropReason::SourcePortsExhausted)
    });
    assert!(exhausted.is_some() && used.len() >= 3, "{used:?}");
    // Another destination has ports of its own.
    assert_eq!(host.sends(C0, to(54, 1000)).outcome, out::<F>(UP0));
    // What a publish or a program of the host uses is not given away.
    let mut host = Host::<F>::new();
    (host.model.config.nat_first, host.model.config.nat_last) = (61000, 61000);
    host.publish(proto::UDP, 61000, C0, 80);
    let reason = DropReason::SourcePortsExhausted;
    assert_eq!(host.sends(C0, to(53, 1)).outcome, dropped(reason));
    let mut host = Host::<F>::new();
    (host.model.config.nat_first, host.model.config.nat_last) = (61000, 61000);
    let key = (proto::UDP, F::HOST, 61000);
    F::tables_mut(&mut host.model).listeners.insert(key);
    assert_eq!(host.sends(C0, to(53, 1)).outcome, dropped(reason));
}

fn the_flow_table_is_full<F: Addresses>() {
    let host = Host::<F>::new();
    F::tables(&host.model).embryos.set_capacity(0);
    let reason = DropReason::FlowTableFull;
    assert_eq!(host.sends(C0, world::<F>()).outcome, dropped(reason));
    F::tables(&host.model).embryos.set_capacity(2);
    assert_eq!(host.sends(C0, world::<F>()).outcome, out::<F>(UP0));
    // A confirmed flow that finds no room stays an embryo and is not refused.
    let host = Host::<F>::new();
    F::tables(&host.model).flows.set_capacity(1);
    host.client(SYN, 8081);
    host.server(SYN | ACK);
    assert_eq!(host.client(ACK, 8081).outcome, Outcome::Peer(C0));
    assert_eq!((host.flows(), host.embryos()), (0, 2));
    F::tables(&host.model).flows.set_capacity(2);
    assert_eq!(host.client(ACK, 8081).outcome, Outcome::Peer(C0));
    assert_eq!((host.flows(), host.embryos()), (2, 0));
}

fn a_tuple_has_one_owner<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.publish(proto::TCP, 8090, C0, 80);
    assert_eq!(host.client(SYN, 8081).outcome, Outcome::Peer(C0));
    // The replies of both would bear the same tuple.
    let reason = DropReason::TupleConflict;
    assert_eq!(host.client(SYN, 8090).outcome, dropped(reason));
    let frame = Frame::tcp((F::CLIENT, 40001), (F::HOST, 8090), SYN, b"");
    assert_eq!(host.arrive(UP0, frame).outcome, Outcome::Peer(C0));
    // The same port of another address of the host's is as much another question of the same socket.
    let unicast = crate::abi::local_kind::UNICAST;
    host.model
        .add_local::<F>(F::GATEWAY, F::ADDR_LEN * 8, unicast);
    let ask = |port| Frame::tcp((F::CLIENT, port), (F::GATEWAY, 8081), SYN, b"");
    assert_eq!(host.arrive(UP0, ask(40000)).outcome, dropped(reason));
    assert_eq!(host.arrive(UP0, ask(40002)).outcome, Outcome::Peer(C0));
}

fn addresses_that_nobody_has<F: Addresses>() {
    let mut host = Host::<F>::new();
    let direct = || Frame::tcp((F::CLIENT, 1), (F::inside(WEB, 99), 80), SYN, b"");
    let reason = dropped(DropReason::UnknownEndpoint);
    assert_eq!(host.arrive(UP0, direct()).outcome, reason);
    host.model.remove_endpoint(C0);
    let reason = dropped(DropReason::NoBackend);
    assert_eq!(host.client(SYN, 8081).outcome, reason);
    assert_eq!(host.client(SYN, 8082).outcome, Outcome::Peer(N1A));
    host.model.config.flags |= config_flag::ACCELERATE;
    assert_eq!(host.arrive(UP0, direct()).outcome, Outcome::Pass);
}

fn the_middle_of_a_connection<F: Addresses>() {
    let host = Host::<F>::new();
    let middle = || Frame::tcp((F::of(C0), 40000), (F::CLIENT, 80), ACK, b"data");
    let there = host.sends(C0, middle());
    assert_eq!(there.outcome, out::<F>(UP0), "picked up");
    assert_eq!(there.src().0, F::HOST, "and never leaked");
    assert_eq!(host.client(ACK, 8081).outcome, Outcome::Peer(C0));
    let mut host_accelerating = Host::<F>::new();
    host_accelerating.model.config.flags |= config_flag::ACCELERATE;
    let there = host_accelerating.sends(C0, middle()).outcome;
    assert_eq!(there, Outcome::Pass);
    let there = host_accelerating.client(ACK, 8081).outcome;
    assert_eq!(there, Outcome::Pass);
    let begins = host_accelerating.sends(C0, world::<F>()).outcome;
    assert_eq!(begins, out::<F>(UP0));
}

fn flags_that_no_connection_bears<F: Addresses>() {
    let host = Host::<F>::new();
    let reason = dropped(DropReason::InvalidTcpFlags);
    for flags in [0, SYN | FIN, SYN | RST, FIN, RST, RST | ACK] {
        assert_eq!(host.client(flags, 8081).outcome, reason, "{flags:#x}");
    }
    assert_eq!(host.embryos(), 0);
    assert_eq!(host.client(SYN, 8081).outcome, Outcome::Peer(C0));
}

fn link_local_sources<F: Addresses>() {
    if F::VERSION == 4 {
        return;
    }
    let mut link_local = [0; 16];
    (link_local[0], link_local[1], link_local[15]) = (0xfe, 0x80, 1);
    let src = F::Addr::from_padded(&link_local);
    let host = Host::<F>::new();
    let reason = dropped(DropReason::LinkLocalSource);
    let frame = |dst| Frame::tcp((src, 1), (dst, 8081), SYN, b"");
    assert_eq!(host.arrive(UP0, frame(F::HOST)).outcome, reason);
    assert_eq!(host.sends(C0, frame(F::CLIENT)).outcome, reason);
    assert_eq!(
        host.sends(C0, frame(F::inside(WEB, 1))).outcome,
        Outcome::Pass
    );
    assert_eq!(host.client(SYN, 8081).outcome, Outcome::Peer(C0));
}

fn the_users_policy_comes_first<F: Addresses>() {
    let mut host = Host::<F>::new();
    F::tables_mut(&mut host.model).policy = Box::new(|tuple: &Tuple<F::Addr>, ifindex| {
        // The original port, before it is translated to 80.
        if tuple.dport == 8081u16.to_be_bytes() && ifindex == UP0 {
            Policy::Drop
        } else {
            Policy::Return
        }
    });
    assert_eq!(host.client(SYN, 8081).outcome, dropped(DropReason::Policy));
    assert_eq!(host.client(SYN, 8082).outcome, Outcome::Peer(N1A));
}

fn unknown_interfaces<F: Addresses>() {
    let mut host = Host::<F>::new();
    let frame = || world::<F>();
    let reason = DropReason::UnknownEndpoint;
    let send = |host: &Host<F>, ifindex| {
        let bytes = frame().macs(bridge_mac(WEB), mac(C0)).bytes::<F>();
        let meta = Host::<F>::meta(hook::FROM_ENDPOINT, ifindex);
        host.run(meta, bytes, 0).outcome
    };
    assert_eq!(send(&host, 99), dropped(reason));
    assert_eq!(send(&host, C0), out::<F>(UP0));
    host.model.config.flags |= config_flag::ACCELERATE;
    assert_eq!(send(&host, 99), Outcome::Pass);
}

fn headers_cut_short<F: Addresses>() {
    let host = Host::<F>::new();
    let whole = world::<F>().macs(bridge_mac(WEB), mac(C0)).bytes::<F>();
    let meta = Host::<F>::meta(hook::FROM_ENDPOINT, C0);
    for length in 0..whole.len() {
        let outcome = host.run(meta, whole[..length].to_vec(), 0).outcome;
        assert_eq!(outcome, dropped(DropReason::Malformed), "{length} bytes");
        let uplink = Host::<F>::meta(hook::FROM_UPLINK, UP0);
        let outcome = host.run(uplink, whole[..length].to_vec(), 0).outcome;
        assert_eq!(outcome, Outcome::Pass, "the stack refuses it");
    }
    assert_eq!(host.run(meta, whole, 0).outcome, out::<F>(UP0));
}

#[test]
fn chains_of_extension_headers() {
    let host = Host::<V6>::new();
    let send = |first, options: Vec<u8>| {
        let mut frame = world::<V6>();
        (frame.first_extension, frame.options) = (first, options);
        let bytes = frame.macs(bridge_mac(WEB), mac(C0)).bytes::<V6>();
        // The checksums of such frames are not verified: `verify` does not follow the chain.
        let mut after = bytes;
        let meta = Host::<V6>::meta(hook::FROM_ENDPOINT, C0);
        let verdict = host.model.run(&mut GsoPacket::new(&mut after), &meta);
        verdict.outcome()
    };
    let option = |next| vec![next, 0, 1, 4, 0, 0, 0, 0];
    let reason = dropped(DropReason::ExtensionHeaders);
    assert_eq!(send(60, option(proto::TCP)), out::<V6>(UP0));
    assert_eq!(send(0, option(proto::TCP)), out::<V6>(UP0));
    assert_eq!(send(60, [option(0), option(proto::TCP)].concat()), reason);
    let four = [option(60), option(60), option(60), option(proto::TCP)].concat();
    assert_eq!(send(60, four), out::<V6>(UP0));
    let five = [option(60).repeat(4), option(proto::TCP)].concat();
    assert_eq!(send(60, five), reason);
    let routing = |kind| vec![proto::TCP, 0, kind, 0, 0, 0, 0, 0];
    assert_eq!(send(43, routing(0)), reason);
    assert_eq!(send(43, routing(4)), out::<V6>(UP0));
}

fn answers_to_questions_that_nobody_asked<F: Addresses>() {
    let mut host = Host::<F>::new();
    let reply = || Frame::echo_reply::<F>(F::of(C0), F::CLIENT, 7);
    let refused = dropped(DropReason::UnsolicitedReply);
    assert_eq!(host.sends(C0, reply()).outcome, refused);
    assert_eq!(host.embryos(), 0);
    host.model.config.flags |= config_flag::ACCELERATE;
    assert_eq!(host.sends(C0, reply()).outcome, Outcome::Pass);
    let asked = Frame::echo::<F>(F::of(C0), F::CLIENT, 7);
    assert_eq!(host.sends(C0, asked).outcome, out::<F>(UP0));
}

fn a_server_in_the_middle_of_an_unknown_connection<F: Addresses>() {
    let host = Host::<F>::new();
    assert_eq!(host.server(ACK).outcome, dropped(DropReason::FlowEnded));
    assert_eq!(host.embryos(), 0);
    // The client's next segment makes the flow anew, under the port that it knows.
    assert_eq!(host.client(ACK, 8081).outcome, Outcome::Peer(C0));
    let there = host.server(ACK);
    assert_eq!(
        (there.outcome, there.src()),
        (out::<F>(UP0), (F::HOST, 8081))
    );
    // Of a port that nothing publishes it may be a client's connection, which goes on.
    let from = Frame::tcp((F::of(C0), 40000), (F::CLIENT, 443), ACK, b"");
    assert_eq!(host.sends(C0, from).outcome, out::<F>(UP0));
}
