//! What errors do to a flow, nothing, and what time and changes do to them.

use super::*;
use crate::{abi::Flow, tables::Policy};

for_both_families! {
    an_error_refreshes_nothing_and_ends_nothing
    an_expired_flow_gets_no_errors
    an_error_is_the_first_packet_of_its_way
    an_error_after_a_change
    an_error_after_its_way_was_forgotten
    ttl_and_size
    an_error_is_no_packet_of_a_flow_without_ports
}

type Entry<A> = (Tuple<A>, Flow<A>);

/// All that an error must leave alone: everything but when the next hop was looked up.
fn lives<F: Addresses>(host: &Host<F>) -> Vec<Entry<F::Addr>> {
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
        let before = lives(host);
        assert_eq!(before.len(), 2);
        host.model.pass(3);
        for kind in [unreachable::<F>(), too_big::<F>(), time_exceeded::<F>()] {
            for _ in 0..3 {
                let error = journey.error(kind, &journey.left);
                let got = journey.to.sends(host, error).outcome;
                assert_eq!(got, journey.from.receives::<F>());
            }
        }
        assert_eq!(lives(host), before, "{}", journey.name);
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
        let before = lives(&host);
        let got = journey.to.sends(&host, error).outcome;
        assert_eq!(got, dropped(DropReason::FlowEnded));
        assert_eq!(lives(&host), before, "its next packet finds out");
    }
    let ask = Frame::udp((F::CLIENT, 40000), (F::HOST, 8081), b"?");
    assert_eq!(host.arrive(UP0, ask).outcome, Outcome::Pass);
    assert_eq!(lives(&host), []);
    // Nor does the user's policy end a flow by way of an error.
    for kind in [Kind::Masquerade, Kind::Publish] {
        let (mut host, journeys) = flow::<F>(kind, proto::UDP, plain).expect("a flow");
        F::tables_mut(&mut host.model).policy = Box::new(|_, _| Policy::Drop);
        host.model.config.epoch += 1;
        let before = lives(&host);
        for journey in &journeys {
            let error = journey.error(unreachable::<F>(), &journey.left);
            let got = journey.to.sends(&host, error).outcome;
            assert_eq!(got, dropped(DropReason::Policy));
        }
        assert_eq!(lives(&host), before);
        let ask = if matches!(kind, Kind::Publish) {
            let ask = Frame::udp((F::CLIENT, 40000), (F::HOST, 8081), b"?");
            host.arrive(UP0, ask)
        } else {
            let sent = journeys[0].sent();
            let port = |port| u16::from_be_bytes(port);
            let (src, dst) = ((sent.src, port(sent.sport)), (sent.dst, port(sent.dport)));
            host.sends(C0, Frame::udp(src, dst, b"?"))
        };
        assert_eq!(ask.outcome, dropped(DropReason::Policy));
        assert_eq!(lives(&host), []);
    }
    // The container is gone.
    let (mut host, [there, _]) = flow::<F>(Kind::Masquerade, proto::UDP, plain).expect("a flow");
    host.model.remove_endpoint(C0);
    host.model.config.epoch += 1;
    let error = there.error(unreachable::<F>(), &there.left);
    let before = lives(&host);
    let got = WORLD.sends(&host, error).outcome;
    assert_eq!(got, dropped(DropReason::FlowEnded));
    assert_eq!(lives(&host), before);
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
    // Nobody is told that an error could not be sent.
    let told = Outcome::AnswerPeer(DropReason::NoRoute);
    let silent = dropped(DropReason::Blackhole);
    for (reason, of_reply) in [(DropReason::NoRoute, told), (DropReason::Blackhole, silent)] {
        host.model.pass(5);
        host.route(Err(reason));
        assert_eq!(say(&host), dropped(reason));
        assert_eq!(reply(&host), of_reply);
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
    // A decision that is made again finds the way in as it is now.
    let of_size = |size: usize| {
        let mut quoted = there.left.clone();
        quoted.resize(size - header_len::<F>() - 8, 0);
        let error = there.error(unreachable::<F>(), &quoted);
        WORLD.sends(&host, error).outcome
    };
    assert_eq!(of_size(1280), Outcome::Peer(C0));
    assert_eq!(of_size(1281), dropped(DropReason::TooBig));
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
    let before = lives(&host);
    let quoted = Frame::udp((F::CLIENT, 80), (F::of(C0), 1), b"12345678").packet::<F>();
    let error = Frame::icmp::<F>(F::of(C0), F::CLIENT, unreachable::<F>(), [0; 4], &quoted);
    let got = host.sends(C0, error).outcome;
    assert_eq!(got, dropped(DropReason::IcmpError));
    assert_eq!(lives(&host), before);
    // Control: an error about that very flow.
    let quoted = ask().packet::<F>();
    let error = Frame::icmp::<F>(F::GATEWAY, F::of(C0), unreachable::<F>(), [0; 4], &quoted);
    assert_eq!(host.arrive(UP0, error).outcome, Outcome::Peer(C0));
}
