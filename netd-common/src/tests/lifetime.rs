//! Flows over time: confirmation, changes of configuration and routes, closing and opening again.

use super::*;
use crate::{abi::Tuple, conntrack::State, flow::ROUTE_LIFETIME};

for_both_families! {
    a_reply_confirms_a_datagram_flow
    a_removed_publish_ends_its_flows
    a_moved_publish_leads_to_the_new_container
    a_container_that_is_gone_ends_its_flows
    an_epoch_without_a_change_ends_nothing
    a_changed_route_is_taken_at_the_next_epoch
    a_dead_daemon_does_not_freeze_routes
    a_closed_connection_opens_again
    half_an_embryo_is_of_no_use
    a_client_that_moves_to_another_uplink
}

fn a_reply_confirms_a_datagram_flow<F: Addresses>() {
    let host = Host::<F>::new();
    let ask = || Frame::udp((F::CLIENT, 40000), (F::HOST, 8081), b"?");
    assert_eq!(host.arrive(UP0, ask()).outcome, Outcome::Peer(C0));
    assert_eq!(host.arrive(UP0, ask()).outcome, Outcome::Peer(C0));
    assert_eq!((host.flows(), host.embryos()), (0, 2));
    let answer = Frame::udp((F::of(C0), 80), (F::CLIENT, 40000), b"!");
    assert_eq!(host.sends(C0, answer).outcome, out::<F>(UP0));
    assert_eq!((host.flows(), host.embryos()), (2, 0));
    assert_eq!(host.arrive(UP0, ask()).outcome, Outcome::Peer(C0));
}

fn a_removed_publish_ends_its_flows<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.connect(8081);
    let spec = Host::<F>::spec(proto::TCP, 8081, C0, 80);
    host.model.unpublish::<F>(&spec);
    assert_eq!(host.server(ACK).outcome, out::<F>(UP0), "not yet");
    host.model.config.epoch += 1;
    let reason = DropReason::FlowEnded;
    assert_eq!(host.server(ACK).outcome, dropped(reason));
    assert_eq!((host.flows(), host.embryos()), (0, 0));
    assert_eq!(host.client(ACK, 8081).outcome, Outcome::Pass, "the host's");
}

fn a_moved_publish_leads_to_the_new_container<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.connect(8081);
    let spec = Host::<F>::spec(proto::TCP, 8081, C0, 80);
    host.model.unpublish::<F>(&spec);
    host.publish(proto::TCP, 8081, C0B, 80);
    host.model.config.epoch += 1;
    let there = host.client(ACK, 8081);
    assert_eq!(there.outcome, Outcome::Peer(C0B), "the new one only");
    assert_eq!(host.flows(), 0, "the old flow has ended");
}

fn a_container_that_is_gone_ends_its_flows<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.connect(8081);
    host.model.remove_endpoint(C0);
    host.model.config.epoch += 1;
    let reason = DropReason::NoBackend;
    assert_eq!(host.client(ACK, 8081).outcome, dropped(reason));
    assert_eq!(host.flows(), 0);
    Host::<F>::add_container(&mut host.model, C0);
    host.model.config.epoch += 1;
    assert_eq!(host.client(SYN, 8081).outcome, Outcome::Peer(C0));
}

fn an_epoch_without_a_change_ends_nothing<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.connect(8081);
    for _ in 0..3 {
        host.model.config.epoch += 1;
        assert_eq!(host.client(ACK, 8081).outcome, Outcome::Peer(C0));
        assert_eq!(host.server(ACK).outcome, out::<F>(UP0));
    }
    assert_eq!((host.flows(), host.embryos()), (2, 0));
}

fn a_changed_route_is_taken_at_the_next_epoch<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.connect(8081);
    host.route(Ok(UP1));
    assert_eq!(host.server(ACK).outcome, out::<F>(UP0), "not yet");
    host.model.config.epoch += 1;
    assert_eq!(host.server(ACK).outcome, out::<F>(UP1));
    host.route(Err(DropReason::NoRoute));
    host.model.config.epoch += 1;
    assert_eq!(host.server(ACK).outcome, refused(DropReason::NoRoute));
    host.route(Ok(UP0));
    host.model.config.epoch += 1;
    assert_eq!(host.server(ACK).outcome, out::<F>(UP0), "it lives on");
}

fn a_dead_daemon_does_not_freeze_routes<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.connect(8081);
    host.route(Ok(UP1));
    host.model.pass(ROUTE_LIFETIME);
    assert_eq!(host.server(ACK).outcome, out::<F>(UP0));
    host.model.pass(1);
    assert_eq!(host.server(ACK).outcome, out::<F>(UP1));
}

fn a_closed_connection_opens_again<F: Addresses>() {
    let host = Host::<F>::new();
    host.connect(8081);
    host.server(FIN | ACK);
    host.client(FIN | ACK, 8081);
    let key = Tuple {
        src: F::CLIENT,
        dst: F::HOST,
        sport: 40000u16.to_be_bytes(),
        dport: 8081u16.to_be_bytes(),
        proto: proto::TCP,
        reserved: [0; 3],
    };
    let closed = F::tables(&host.model).flows.get(&key).expect("a flow");
    assert_eq!(State::from_number(closed.state), Some(State::TimeWait));
    assert_eq!(host.client(ACK, 8081).outcome, Outcome::Peer(C0), "late");
    assert_eq!(host.flows(), 2);
    assert_eq!(host.client(SYN, 8081).outcome, Outcome::Peer(C0));
    assert_eq!((host.flows(), host.embryos()), (0, 2), "a new flow");
    let opened = F::tables(&host.model).embryos.get(&key).expect("a flow");
    assert_ne!(opened.generation, closed.generation);
}

fn half_an_embryo_is_of_no_use<F: Addresses>() {
    let host = Host::<F>::new();
    assert_eq!(host.client(SYN, 8081).outcome, Outcome::Peer(C0));
    let tables = F::tables(&host.model);
    let rows = tables.embryos.rows();
    let (reply, _) = rows.iter().find(|(key, _)| key.src == F::of(C0)).unwrap();
    let (original, _) = rows.iter().find(|(key, _)| key.src == F::CLIENT).unwrap();
    // The reply's half: the client's next packet opens the flow again.
    tables.embryos.remove(reply);
    assert_eq!(host.client(SYN, 8081).outcome, Outcome::Peer(C0));
    assert_eq!(host.embryos(), 2);
    // The client's half: the answer is of no known flow, and is not let out as it is.
    tables.embryos.remove(original);
    let reason = DropReason::FlowEnded;
    assert_eq!(host.server(SYN | ACK).outcome, dropped(reason));
    assert_eq!(host.embryos(), 1, "it may be in the making");
    host.model.pass(crate::room::SETTLED);
    assert_eq!(host.server(SYN | ACK).outcome, dropped(reason));
    assert_eq!(host.embryos(), 0);
    assert_eq!(host.client(SYN, 8081).outcome, Outcome::Peer(C0));
    assert_eq!(host.server(SYN | ACK).outcome, out::<F>(UP0));
}

fn a_client_that_moves_to_another_uplink<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.connect(8081);
    let frame = || Frame::tcp((F::CLIENT, 40000), (F::HOST, 8081), ACK, b"");
    host.uplink(UP1).flags |= crate::abi::uplink_flag::STRICT_RP_FILTER;
    let reason = DropReason::ReversePath;
    assert_eq!(host.arrive(UP1, frame()).outcome, dropped(reason));
    host.uplink(UP1).flags = 0;
    assert_eq!(host.arrive(UP1, frame()).outcome, Outcome::Peer(C0));
    assert_eq!(host.flows(), 2, "the same flow");
}
