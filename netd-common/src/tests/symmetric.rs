//! `return_path = "symmetric"`: replies leave by the uplink that the question came in by.

use super::*;
use crate::{abi::uplink_flag, flow::ROUTE_LIFETIME, model::GsoPacket};

for_both_families! {
    answers_go_back_to_the_station_that_asked
    without_the_option_the_routes_decide
    no_route_is_no_obstacle_but_a_blackhole_is
    the_station_is_learnt_again_after_a_change
    an_error_teaches_nothing
    a_client_that_moves_is_answered_where_it_is
    what_no_station_has_is_not_learnt
    the_option_may_come_and_go
    a_tunnel_needs_no_station
    what_a_container_opens_follows_the_routes
}

const ROUTER: [u8; 6] = [2, 9, 9, 9, 9, 1];
const OTHER: [u8; 6] = [2, 9, 9, 9, 9, 2];
const UP1_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];

/// Everything is routed by [`UP0`]; [`UP1`] answers where it was asked.
fn host<F: Addresses>() -> Host<F> {
    let mut host = Host::<F>::new();
    let uplink = host.uplink(UP1);
    uplink.flags = uplink_flag::SYMMETRIC;
    uplink.mac = UP1_MAC;
    uplink.mtu = 1400;
    host
}

/// A segment of the client's to the published port.
fn asks<F: Addresses>(host: &Host<F>, ifindex: u32, from: [u8; 6], flags: u8) -> Outcome {
    let frame = Frame::tcp((F::CLIENT, 40000), (F::HOST, 8081), flags, b"");
    let bytes = frame.macs(UP_MAC, from).bytes::<F>();
    host.run(Host::<F>::meta(hook::FROM_UPLINK, ifindex), bytes, 0)
        .outcome
}

/// The answer is a frame to this station, out of [`UP1`].
fn is_answered_at<F: Addresses>(host: &Host<F>, station: [u8; 6], flags: u8) {
    let answer = host.server(flags);
    assert_eq!(answer.outcome, Outcome::Device(UP1));
    assert_eq!(answer.bytes[..6], station);
    assert_eq!(answer.bytes[6..12], UP1_MAC);
    assert_eq!(answer.bytes[12..14], F::ETHERTYPE);
    assert_eq!(answer.src(), (F::HOST, 8081));
}

fn connect<F: Addresses>(host: &Host<F>) {
    assert_eq!(asks(host, UP1, ROUTER, SYN), Outcome::Peer(C0));
    is_answered_at(host, ROUTER, SYN | ACK);
    assert_eq!(asks(host, UP1, ROUTER, ACK), Outcome::Peer(C0));
    assert_eq!(host.flows(), 2);
}

fn answers_go_back_to_the_station_that_asked<F: Addresses>() {
    let host = host::<F>();
    connect(&host);
    for _ in 0..3 {
        is_answered_at(&host, ROUTER, ACK);
        host.model.pass(ROUTE_LIFETIME + 1);
        is_answered_at(&host, ROUTER, ACK);
    }
    // The uplink's own MTU: the route is of another one.
    let large = vec![0; 1400];
    let mut frame = Frame::tcp((F::of(C0), 80), (F::CLIENT, 40000), ACK, &large);
    frame.fragment = 0x4000;
    let told = Outcome::AnswerPeer(DropReason::TooBig);
    assert_eq!(host.sends(C0, frame).outcome, told);
}

fn without_the_option_the_routes_decide<F: Addresses>() {
    let mut host = host::<F>();
    host.uplink(UP1).flags = 0;
    assert_eq!(asks(&host, UP1, ROUTER, SYN), Outcome::Peer(C0));
    assert_eq!(host.server(SYN | ACK).outcome, out::<F>(UP0));
}

fn no_route_is_no_obstacle_but_a_blackhole_is<F: Addresses>() {
    let mut host = host::<F>();
    host.route(Err(DropReason::NoRoute));
    connect(&host);
    for (reason, refused) in [
        (DropReason::Blackhole, Outcome::Drop(DropReason::Blackhole)),
        (
            DropReason::Prohibited,
            Outcome::AnswerPeer(DropReason::Prohibited),
        ),
    ] {
        host.route(Err(reason));
        host.model.config.epoch += 1;
        assert_eq!(host.server(ACK).outcome, refused);
        host.route(Ok(UP0));
        host.model.config.epoch += 1;
        is_answered_at(&host, ROUTER, ACK);
    }
    assert_eq!(host.flows(), 2, "it lives on");
}

fn the_station_is_learnt_again_after_a_change<F: Addresses>() {
    let mut host = host::<F>();
    connect(&host);
    assert_eq!(asks(&host, UP1, OTHER, ACK), Outcome::Peer(C0));
    is_answered_at(&host, ROUTER, ACK);
    host.model.config.epoch += 1;
    is_answered_at(&host, ROUTER, ACK);
    assert_eq!(asks(&host, UP1, OTHER, ACK), Outcome::Peer(C0));
    is_answered_at(&host, OTHER, ACK);
    is_answered_at(&host, OTHER, ACK);
}

/// A router on the way, or anyone else, may send an error: the client is where its own packets come
/// from.
fn an_error_teaches_nothing<F: Addresses>() {
    let mut host = host::<F>();
    connect(&host);
    host.model.config.epoch += 1;
    let quoted = Frame::tcp((F::HOST, 8081), (F::CLIENT, 40000), ACK, b"!").packet::<F>();
    let kind = if F::VERSION == 4 { (3, 1) } else { (1, 0) };
    let error = Frame::icmp::<F>(F::CLIENT, F::HOST, kind, [0; 4], &quoted);
    let error = error.macs(UP_MAC, OTHER).bytes::<F>();
    let meta = Host::<F>::meta(hook::FROM_UPLINK, UP1);
    assert_eq!(host.run(meta, error, 0).outcome, Outcome::Peer(C0));
    is_answered_at(&host, ROUTER, ACK);
    // Nor does it take the client's next packet for a known one.
    assert_eq!(asks(&host, UP1, OTHER, ACK), Outcome::Peer(C0));
    is_answered_at(&host, OTHER, ACK);
}

fn a_client_that_moves_is_answered_where_it_is<F: Addresses>() {
    let mut host = host::<F>();
    let uplink = host.uplink(UP0);
    uplink.flags = uplink_flag::SYMMETRIC;
    connect(&host);
    assert_eq!(asks(&host, UP0, OTHER, ACK), Outcome::Peer(C0));
    let answer = host.server(ACK);
    assert_eq!(answer.outcome, Outcome::Device(UP0));
    assert_eq!(answer.bytes[..12], [OTHER, UP_MAC].concat());
    assert_eq!(asks(&host, UP1, ROUTER, ACK), Outcome::Peer(C0));
    is_answered_at(&host, ROUTER, ACK);
    assert_eq!(host.flows(), 2, "the same flow");
}

fn what_no_station_has_is_not_learnt<F: Addresses>() {
    for nobody in [[0; 6], [0xff; 6], [3, 9, 9, 9, 9, 1]] {
        let host = host::<F>();
        assert_eq!(asks(&host, UP1, nobody, SYN), Outcome::Peer(C0));
        assert_eq!(host.server(SYN | ACK).outcome, out::<F>(UP0));
        // The next question after a change may be of one.
        let mut host = host;
        host.model.config.epoch += 1;
        assert_eq!(asks(&host, UP1, ROUTER, ACK), Outcome::Peer(C0));
        is_answered_at(&host, ROUTER, ACK);
    }
}

fn the_option_may_come_and_go<F: Addresses>() {
    let mut host = host::<F>();
    connect(&host);
    host.uplink(UP1).flags = 0;
    host.model.config.epoch += 1;
    assert_eq!(host.server(ACK).outcome, out::<F>(UP0));
    assert_eq!(asks(&host, UP1, ROUTER, ACK), Outcome::Peer(C0));
    host.uplink(UP1).flags = uplink_flag::SYMMETRIC;
    host.model.config.epoch += 1;
    assert_eq!(host.server(ACK).outcome, out::<F>(UP0), "not learnt yet");
    assert_eq!(asks(&host, UP1, ROUTER, ACK), Outcome::Peer(C0));
    is_answered_at(&host, ROUTER, ACK);
    assert_eq!(host.flows(), 2, "the same flow");
}

fn a_tunnel_needs_no_station<F: Addresses>() {
    let mut host = host::<F>();
    host.uplink(UP1).flags |= uplink_flag::L3;
    let frame = |flags| {
        let mut bytes = Frame::tcp((F::CLIENT, 40000), (F::HOST, 8081), flags, b"").packet::<F>();
        let meta = Host::<F>::meta(hook::FROM_UPLINK, UP1);
        let outcome = host.model.run(&mut GsoPacket::new(&mut bytes), &meta);
        outcome.outcome()
    };
    assert_eq!(frame(SYN), Outcome::Peer(C0));
    for _ in 0..2 {
        let answer = host.server(SYN | ACK);
        assert_eq!(answer.outcome, Outcome::Device(UP1));
        assert_eq!(answer.bytes[..6], bridge_mac(WEB), "not written");
        host.model.pass(ROUTE_LIFETIME + 1);
    }
    assert_eq!(frame(ACK), Outcome::Peer(C0));
    assert_eq!(host.server(ACK).outcome, Outcome::Device(UP1));
}

fn what_a_container_opens_follows_the_routes<F: Addresses>() {
    let mut host = host::<F>();
    host.uplink(UP0).flags = uplink_flag::SYMMETRIC;
    let frame = Frame::udp((F::of(C0), 5000), (F::CLIENT, 53), b"?");
    assert_eq!(host.sends(C0, frame).outcome, out::<F>(UP0));
}
