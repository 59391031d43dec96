//! Tables that are full, flows that have expired, ports that run out.

use std::collections::BTreeMap;

use super::*;
use crate::{
    abi::{Flow, Tuple, flow_flag, table_event},
    conntrack::State,
    room::{self, QUIET_CLOSING, QUIET_STREAM, SHARE, STREAM},
};

for_both_families! {
    the_longest_idle_embryo_makes_room
    a_confirmed_embryo_never_makes_room
    a_silent_stream_among_the_embryos_makes_room
    a_container_at_its_share_finds_room_while_others_have_it
    a_full_table_degrades_in_order
    a_live_stream_does_not_make_room_for_questions
    expired_flows_make_room_without_a_daemon
    an_expired_flow_lets_nothing_in
    a_container_has_its_share_of_what_it_opens
    a_flood_does_not_use_up_the_share_of_its_victim
    a_container_has_its_share_of_the_flows
    every_port_of_a_small_range_is_found
    a_closed_connection_gives_its_port_when_there_is_no_other
    an_expired_flow_gives_its_port
    scarce_ports_are_told_of
    a_storm_in_small_tables
}

fn embryos_of<F: Addresses>(host: &Host<F>, event: usize) -> u64 {
    host.model.events.borrow()[room::table::<F>(false)][event]
}

fn flows_of<F: Addresses>(host: &Host<F>, event: usize) -> u64 {
    host.model.events.borrow()[room::table::<F>(true)][event]
}

fn asks<F: Addresses>(container: u32, sport: u16, dport: u16) -> Frame<F::Addr> {
    Frame::udp((F::of(container), sport), (F::CLIENT, dport), b"?")
}

/// Asks from a container; the port under which the question left.
fn asked<F: Addresses>(host: &Host<F>, container: u32, sport: u16, dport: u16) -> u16 {
    let there = host.sends(container, asks::<F>(container, sport, dport));
    assert_eq!(there.outcome, out::<F>(UP0));
    there.src().1
}

/// The client's answer to what left under this port.
fn answer<F: Addresses>(host: &Host<F>, dport: u16, port: u16) -> Outcome {
    let frame = Frame::udp((F::CLIENT, dport), (F::HOST, port), b"!");
    host.arrive(UP0, frame).outcome
}

/// A connection of the container to the client's port 80: opened, established.
fn connected<F: Addresses>(host: &Host<F>, container: u32, sport: u16) -> u16 {
    let there = |flags| Frame::tcp((F::of(container), sport), (F::CLIENT, 80), flags, b"");
    let sent = host.sends(container, there(SYN));
    assert_eq!(sent.outcome, out::<F>(UP0));
    let port = sent.src().1;
    let back = Frame::tcp((F::CLIENT, 80), (F::HOST, port), SYN | ACK, b"");
    assert_eq!(host.arrive(UP0, back).outcome, Outcome::Peer(container));
    assert_eq!(host.sends(container, there(ACK)).outcome, out::<F>(UP0));
    port
}

fn close<F: Addresses>(host: &Host<F>, container: u32, sport: u16, port: u16) {
    let there = Frame::tcp((F::of(container), sport), (F::CLIENT, 80), FIN | ACK, b"");
    assert_eq!(host.sends(container, there).outcome, out::<F>(UP0));
    let back = Frame::tcp((F::CLIENT, 80), (F::HOST, port), FIN | ACK, b"");
    assert_eq!(host.arrive(UP0, back).outcome, Outcome::Peer(container));
}

fn the_longest_idle_embryo_makes_room<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.model.set_seats::<F>(false, 4);
    let flood = |port| {
        let frame = Frame::tcp((F::CLIENT, port), (F::HOST, 8081), SYN, b"");
        assert_eq!(host.arrive(UP0, frame).outcome, Outcome::Peer(C0));
        host.model.pass(1);
    };
    (1..=4).for_each(&flood);
    assert_eq!(
        (
            host.embryos(),
            embryos_of(&host, table_event::EVICTED_EMBRYO)
        ),
        (8, 0)
    );
    // The first one speaks again: it is the youngest now.
    flood(1);
    flood(5);
    assert_eq!(
        (
            host.embryos(),
            embryos_of(&host, table_event::EVICTED_EMBRYO)
        ),
        (8, 1)
    );
    let rows = F::tables(&host.model).embryos.rows();
    let mut ports: Vec<u16> = rows
        .iter()
        .filter(|(_, flow)| flow.flags & flow_flag::REPLY == 0)
        .map(|(key, _)| u16::from_be_bytes(key.sport))
        .collect();
    ports.sort_unstable();
    assert_eq!(ports, [1, 3, 4, 5]);
}

fn a_confirmed_embryo_never_makes_room<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.model.set_seats::<F>(true, 4);
    host.model.set_seats::<F>(false, 8);
    // One for each container fills the flows; four more stay among the embryos.
    for container in [C0, C0B, N1A, N1B] {
        connected(&host, container, 1000);
    }
    let mut ports = Vec::new();
    host.model.config.seats[room::table::<F>(true)] = 4;
    assert_eq!((host.flows(), host.embryos()), (8, 0));
    // A share of a table of four is one, so the fifth is another's: of the inner network's.
    *host.flags(INNER) &= !network_flag::INTERNAL;
    *host.flags(INNER) |= network_flag::MASQUERADE_V4 | network_flag::MASQUERADE_V6;
    for container in [N3A, N3B] {
        ports.push((container, connected(&host, container, 1000)));
    }
    assert_eq!((host.flows(), host.embryos()), (8, 4));
    assert!(flows_of(&host, table_event::OVERFLOWED) >= 2);
    // A flood takes what is left, and leaves them alone.
    for port in 1..100 {
        let frame = Frame::tcp((F::CLIENT, port), (F::HOST, 8082), SYN, b"");
        let outcome = host.arrive(UP0, frame).outcome;
        let refused = [
            dropped(DropReason::FlowTableFull),
            dropped(DropReason::FlowShareExhausted),
        ];
        assert!(outcome == Outcome::Peer(N1A) || refused.contains(&outcome));
    }
    for (container, port) in ports {
        let back = Frame::tcp((F::CLIENT, 80), (F::HOST, port), ACK, b"data");
        assert_eq!(host.arrive(UP0, back).outcome, Outcome::Peer(container));
    }
}

fn a_silent_stream_among_the_embryos_makes_room<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.model.set_seats::<F>(true, 4);
    host.model.set_seats::<F>(false, 4);
    for container in [C0, C0B, N1A, N1B] {
        connected(&host, container, 1000);
    }
    // No room there: four streams fill the embryos.
    host.model.holdings.borrow_mut().clear();
    for _ in 0..2 {
        for sport in 1..=4 {
            let port = asked(&host, C0, sport, 53);
            assert_eq!(answer(&host, 53, port), Outcome::Peer(C0));
            host.model.holdings.borrow_mut().clear();
        }
        host.model.pass(STREAM);
    }
    assert_eq!((host.flows(), host.embryos()), (8, 8));
    let syn = |port| Frame::tcp((F::CLIENT, port), (F::HOST, 8081), SYN, b"");
    let refused = dropped(DropReason::FlowTableFull);
    assert_eq!(host.arrive(UP0, syn(1)).outcome, refused);
    host.model.pass(QUIET_STREAM);
    assert_eq!(host.arrive(UP0, syn(2)).outcome, Outcome::Peer(C0));
    assert_eq!(embryos_of(&host, table_event::EVICTED_IDLE), 1);
    // What no reply has confirmed goes first.
    assert_eq!(host.arrive(UP0, syn(3)).outcome, Outcome::Peer(C0));
    assert_eq!(embryos_of(&host, table_event::EVICTED_EMBRYO), 1);
    assert_eq!(embryos_of(&host, table_event::EVICTED_IDLE), 1);
}

/// Looking for a flow of its own must not turn the hand for all: it would come to the youngest flows, and find the table
/// full where three quarters of it are free.
fn a_container_at_its_share_finds_room_while_others_have_it<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.model.set_seats::<F>(true, 4096);
    for second in 0..8 {
        for sport in 1..=512 {
            let port = asked(&host, C0, sport, 1000 + second);
            assert_eq!(answer(&host, 1000 + second, port), Outcome::Peer(C0));
        }
        host.model.pass(1);
    }
    assert_eq!(flows_of(&host, table_event::OVERFLOWED), 0);
    assert_eq!((host.flows(), host.embryos()), (2 * 1024, 0));
    let (opened, hand) = (8 * 512, host.model.hands[room::table::<F>(true)].get());
    assert!(
        (opened..2 * opened).contains(&hand),
        "{hand} seats for {opened} flows"
    );
}

fn a_full_table_degrades_in_order<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.model.set_seats::<F>(true, 16);
    // Twelve live connections, two closing ones, a question that was answered, a silent stream.
    let mut live = Vec::new();
    for container in [C0, C0B, N1A] {
        for sport in 1..=4 {
            live.push((container, sport, connected(&host, container, sport)));
        }
    }
    for sport in [1, 2] {
        let port = connected(&host, N1B, sport);
        close(&host, N1B, sport, port);
    }
    for sport in [3, 4] {
        let port = asked(&host, N1B, sport, 53);
        assert_eq!(answer(&host, 53, port), Outcome::Peer(N1B));
        if sport == 4 {
            host.model.pass(STREAM);
            assert_eq!(answer(&host, 53, port), Outcome::Peer(N1B));
        }
    }
    assert_eq!(host.flows(), 32);
    host.model.pass(QUIET_STREAM.max(QUIET_CLOSING));
    // As the daemon would raise the limits of containers: their share is not what is tested here.
    host.model.holdings.borrow_mut().clear();
    for (sport, closing, idle) in [(11, 1, 0), (12, 2, 0), (13, 2, 1), (14, 2, 2)] {
        live.push((N1B, sport, connected(&host, N1B, sport)));
        assert_eq!(flows_of(&host, table_event::EVICTED_CLOSING), closing);
        assert_eq!(flows_of(&host, table_event::EVICTED_IDLE), idle);
        host.model.holdings.borrow_mut().clear();
    }
    assert_eq!((host.flows(), host.embryos()), (32, 0));
    // All are alive: nobody makes room, and nobody is refused.
    live.push((N1B, 15, connected(&host, N1B, 15)));
    assert_eq!((host.flows(), host.embryos()), (32, 2));
    assert_eq!(flows_of(&host, table_event::OVERFLOWED), 1);
    for (container, _, port) in live {
        let back = Frame::tcp((F::CLIENT, 80), (F::HOST, port), ACK, b"data");
        assert_eq!(host.arrive(UP0, back).outcome, Outcome::Peer(container));
    }
}

fn a_live_stream_does_not_make_room_for_questions<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.model.set_seats::<F>(true, 16);
    let stream = asked(&host, C0, 1, 5004);
    let talk = |host: &Host<F>| {
        asked(host, C0, 1, 5004);
        assert_eq!(answer(host, 5004, stream), Outcome::Peer(C0));
    };
    talk(&host);
    host.model.pass(STREAM);
    talk(&host);
    for sport in 1000..2000 {
        for container in [C0, C0B] {
            let port = asked(&host, container, sport, 53);
            assert_eq!(answer(&host, 53, port), Outcome::Peer(container));
        }
        if sport % 100 == 0 {
            host.model.pass(1);
            talk(&host);
        }
    }
    let rows = F::tables(&host.model).flows.rows();
    assert!(rows.keys().any(|key| key.dport == 5004u16.to_be_bytes()));
}

fn expired_flows_make_room_without_a_daemon<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.model.set_seats::<F>(true, 16);
    host.model.set_seats::<F>(false, 16);
    // Many times as many as there is room for, a few at a time.
    for round in 0..50 {
        for (container, sport) in [(C0, 1), (C0B, 2), (N1A, 3), (N1B, 4)] {
            let port = asked(&host, container, sport, 1000 + round);
            assert_eq!(answer(&host, 1000 + round, port), Outcome::Peer(container));
        }
        host.model.pass(State::UdpReplied.lifetime() + 1);
    }
    assert!(host.flows() <= 32 && host.embryos() <= 32);
    assert_eq!(flows_of(&host, table_event::OVERFLOWED), 0);
    assert_eq!(flows_of(&host, table_event::REFUSED_SHARE), 0);
    assert!(flows_of(&host, table_event::EXPIRED) > 0);
}

fn an_expired_flow_lets_nothing_in<F: Addresses>() {
    let host = Host::<F>::new();
    let port = asked(&host, C0, 5353, 53);
    assert_eq!(answer(&host, 53, port), Outcome::Peer(C0));
    host.model.pass(State::UdpReplied.lifetime());
    assert_eq!(answer(&host, 53, port), Outcome::Peer(C0), "still alive");
    host.model.pass(State::UdpReplied.lifetime() + 1);
    let late = answer(&host, 53, port);
    assert_eq!(late, dropped(DropReason::FlowEnded));
    assert_eq!((host.flows(), host.embryos()), (0, 0));
}

fn a_container_has_its_share_of_what_it_opens<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.model.set_seats::<F>(false, 64);
    let neighbours: Vec<u16> = (1..=8).map(|sport| asked(&host, C0B, sport, 53)).collect();
    // A scan: its own embryos make room, nobody else's.
    for sport in 1..=1000 {
        asked(&host, C0, sport, 53);
    }
    let held = |ifindex| host.model.holdings.borrow()[&(ifindex, room::table::<F>(false))];
    assert_eq!((held(C0), held(C0B)), (i64::from(64 / SHARE), 8));
    for port in neighbours {
        assert_eq!(answer(&host, 53, port), Outcome::Peer(C0B));
    }
    // What the client answers to at once is never lost.
    for sport in 2000..2100 {
        let port = asked(&host, C0, sport, 53);
        assert_eq!(answer(&host, 53, port), Outcome::Peer(C0));
    }
}

fn a_flood_does_not_use_up_the_share_of_its_victim<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.model.set_seats::<F>(false, 16);
    for port in 1..=1000 {
        let frame = Frame::tcp((F::CLIENT, port), (F::HOST, 8081), SYN, b"");
        assert_eq!(host.arrive(UP0, frame).outcome, Outcome::Peer(C0));
    }
    // Neither for what it opens nor for those who reach it.
    asked(&host, C0, 1, 53);
    host.connect_from(50000, 8081);
    assert_eq!(host.embryos(), 32 - 2);
}

fn a_container_has_its_share_of_the_flows<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.model.set_seats::<F>(true, 16);
    let share = 16 / SHARE as u16;
    for port in 1..=share {
        host.connect_from(port, 8081);
    }
    let begins = |port| Frame::tcp((F::CLIENT, 50000), (F::HOST, port), SYN, b"");
    let reason = dropped(DropReason::FlowShareExhausted);
    assert_eq!(host.arrive(UP0, begins(8081)).outcome, reason);
    assert_eq!(host.arrive(UP0, begins(8082)).outcome, Outcome::Peer(N1A));
    assert_eq!(flows_of(&host, table_event::REFUSED_SHARE), 1);
    // One that has closed makes room.
    for (client, frame) in [(FIN | ACK, true), (FIN | ACK, false)] {
        let outcome = if frame {
            let fin = Frame::tcp((F::CLIENT, 1), (F::HOST, 8081), client, b"");
            host.arrive(UP0, fin).outcome
        } else {
            let fin = Frame::tcp((F::of(C0), 80), (F::CLIENT, 1), client, b"");
            host.sends(C0, fin).outcome
        };
        assert!(!matches!(outcome, Outcome::Drop(_)), "{outcome:?}");
    }
    assert_eq!(host.arrive(UP0, begins(8081)).outcome, Outcome::Peer(C0));
    assert_eq!(flows_of(&host, table_event::EVICTED_CLOSING), 1);
}

fn every_port_of_a_small_range_is_found<F: Addresses>() {
    let mut host = Host::<F>::new();
    (host.model.config.nat_first, host.model.config.nat_last) = (61000, 61039);
    let mut used = std::collections::BTreeSet::new();
    for sport in 1..=40 {
        assert!(used.insert(asked(&host, C0, sport, 53)));
    }
    assert_eq!((used.first(), used.last()), (Some(&61000), Some(&61039)));
    let reason = dropped(DropReason::SourcePortsExhausted);
    assert_eq!(host.sends(C0, asks::<F>(C0, 41, 53)).outcome, reason);
    asked(&host, C0, 41, 54);
}

fn a_closed_connection_gives_its_port_when_there_is_no_other<F: Addresses>() {
    let mut host = Host::<F>::new();
    (host.model.config.nat_first, host.model.config.nat_last) = (61000, 61001);
    let live = connected(&host, C0, 1);
    let closed = connected(&host, C0, 2);
    close(&host, C0, 2, closed);
    let begins = |sport| Frame::tcp((F::of(C0B), sport), (F::CLIENT, 80), SYN, b"");
    // Its last segments may be under way.
    let reason = dropped(DropReason::SourcePortsExhausted);
    assert_eq!(host.sends(C0B, begins(3)).outcome, reason);
    host.model.pass(2);
    let there = host.sends(C0B, begins(3));
    assert_eq!((there.outcome, there.src().1), (out::<F>(UP0), closed));
    assert_eq!(flows_of(&host, table_event::PORT_REUSED), 1);
    assert_eq!(host.sends(C0B, begins(4)).outcome, reason);
    let back = Frame::tcp((F::CLIENT, 80), (F::HOST, live), ACK, b"data");
    assert_eq!(host.arrive(UP0, back).outcome, Outcome::Peer(C0));
}

fn an_expired_flow_gives_its_port<F: Addresses>() {
    let mut host = Host::<F>::new();
    (host.model.config.nat_first, host.model.config.nat_last) = (61000, 61000);
    let port = asked(&host, C0, 1, 53);
    let reason = dropped(DropReason::SourcePortsExhausted);
    assert_eq!(host.sends(C0, asks::<F>(C0, 2, 53)).outcome, reason);
    host.model.pass(State::UdpNew.lifetime());
    assert_eq!(host.sends(C0, asks::<F>(C0, 2, 53)).outcome, reason);
    host.model.pass(1);
    assert_eq!(asked(&host, C0, 2, 53), port);
    assert_eq!(host.embryos(), 2);
}

fn scarce_ports_are_told_of<F: Addresses>() {
    let mut host = Host::<F>::new();
    (host.model.config.nat_first, host.model.config.nat_last) = (61000, 61003);
    asked(&host, C0, 1, 53);
    assert!(host.model.pressure.borrow().is_empty());
    // Three of four are taken: sooner or later many tries fail.
    for dport in 1000..1100 {
        for sport in 1..=4 {
            asked(&host, C0, sport, dport);
        }
    }
    let told = host.model.pressure.borrow().clone();
    assert!(!told.is_empty());
    assert!(told.iter().all(|(_, exhausted)| !exhausted), "{told:?}");
    let reason = dropped(DropReason::SourcePortsExhausted);
    assert_eq!(host.sends(C0, asks::<F>(C0, 5, 1000)).outcome, reason);
    assert!(
        host.model
            .pressure
            .borrow()
            .last()
            .is_some_and(|(_, exhausted)| *exhausted)
    );
}

/// Small tables, one port for many, packets of every kind in any order: whatever happens, a tuple
/// is in one table or is the same flow in both, a flow has both its halves, and the counts agree.
fn a_storm_in_small_tables<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.model.set_seats::<F>(true, 12);
    host.model.set_seats::<F>(false, 8);
    (host.model.config.nat_first, host.model.config.nat_last) = (61000, 61002);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let containers = [C0, C0B, N1A, N1B];
    for step in 0..20_000 {
        let container = containers[random(4) as usize];
        let flags = [SYN, SYN | ACK, ACK, FIN | ACK, RST, RST | ACK][random(6) as usize];
        let (sport, dport) = (1 + random(4) as u16, 80 + random(2) as u16);
        let inside = (F::of(container), sport);
        let masqueraded = (F::HOST, 61000 + random(3) as u16);
        match random(6) {
            0 => drop(host.sends(
                container,
                Frame::tcp(inside, (F::CLIENT, dport), flags, b""),
            )),
            1 => drop(host.sends(container, asks::<F>(container, sport, dport))),
            2 => drop(answer(&host, dport, masqueraded.1)),
            3 => drop(host.arrive(UP0, Frame::tcp((F::CLIENT, dport), masqueraded, flags, b""))),
            4 => drop(host.arrive(
                UP0,
                Frame::tcp((F::CLIENT, sport), (F::HOST, 8081), flags, b""),
            )),
            _ => drop(host.sends(
                C0,
                Frame::tcp((F::of(C0), 80), (F::CLIENT, sport), flags, b""),
            )),
        }
        if random(50) == 0 {
            host.model.pass([1, 10, 130, 400][random(4) as usize]);
        }
        if step % 16 == 0 {
            assert_consistent(&host);
        }
    }
    assert_consistent(&host);
    let events = *host.model.events.borrow();
    let embryos = events[room::table::<F>(false)];
    assert!(embryos[table_event::EXPIRED] > 0 && embryos[table_event::EVICTED_EMBRYO] > 0);
}

fn assert_consistent<F: Addresses>(host: &Host<F>) {
    let tables = F::tables(&host.model);
    let (flows, embryos) = (tables.flows.rows(), tables.embryos.rows());
    let mut held = BTreeMap::new();
    for (confirmed, rows, others) in [(true, &flows, &embryos), (false, &embryos, &flows)] {
        for (key, flow) in rows {
            assert!(!others.contains_key(key), "{key:?} is in both tables");
            let other = partner(key, flow);
            let half = rows.get(&other);
            let same = half.is_some_and(|half| half.generation == flow.generation);
            assert!(same, "{key:?} has lost its other half");
            if flow.flags & flow_flag::REPLY == 0
                && (confirmed || room::is_counted_embryo(flow.flags))
            {
                *held
                    .entry((flow.owner, room::table::<F>(confirmed)))
                    .or_insert(0) += 1;
            }
        }
    }
    let counted: BTreeMap<_, _> = host
        .model
        .holdings
        .borrow()
        .iter()
        .filter(|(_, count)| **count != 0)
        .map(|(key, count)| (*key, *count))
        .collect();
    assert_eq!(counted, held);
}

fn partner<A: Copy>(key: &Tuple<A>, flow: &Flow<A>) -> Tuple<A> {
    Tuple {
        src: flow.dst,
        dst: flow.src,
        sport: flow.dport,
        dport: flow.sport,
        ..*key
    }
}
