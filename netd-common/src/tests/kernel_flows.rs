//! Flows that the kernel's NAT owned before netd came, and draining: each beside a flow that
//! differs in a single thing and is netd's.

use super::*;
use crate::{
    abi::{Tuple, config_flag},
    tables::Policy,
};

for_both_families! {
    a_published_connection_stays_the_kernels
    a_masqueraded_connection_stays_the_kernels
    datagrams_and_echo_stay_the_kernels
    the_flag_says_whether_to_look
    policy_comes_first
    a_foreign_source_is_refused_all_the_same
    traffic_of_either_direction_keeps_a_flow
    a_closed_connection_that_opens_again_is_netds
    a_forged_reset_changes_nothing
    a_closing_connection_lives_four_minutes
    no_source_port_of_the_kernels_is_taken
    errors_about_the_kernels_flows
    draining_takes_no_new_flow
    draining_lets_go_what_the_guards_would_stop
}

const PORT: u16 = 40000;
/// The port to which the kernel translated a container's source.
const NAT: u16 = 51000;
const LIFETIME: u32 = 600;

fn tuple<A>(proto: u8, src: (A, u16), dst: (A, u16)) -> Tuple<A> {
    Tuple {
        src: src.0,
        dst: dst.0,
        sport: src.1.to_be_bytes(),
        dport: dst.1.to_be_bytes(),
        proto,
        reserved: [0; 3],
    }
}

/// A host on which the kernel owns, of this protocol: the client's flow to port 8081, which leads
/// to C0:80, and C0's flow from [`PORT`] to the client's port 80, under the source port [`NAT`].
fn taken_over<F: Addresses>(proto: u8) -> Host<F> {
    let mut host = Host::<F>::new();
    host.model.config.flags |= config_flag::KERNEL_FLOWS;
    let flows = &mut F::tables_mut(&mut host.model).kernel_flows;
    flows.insert(
        tuple(proto, (F::CLIENT, PORT), (F::HOST, 8081)),
        tuple(proto, (F::of(C0), 80), (F::CLIENT, PORT)),
        1000,
        LIFETIME,
    );
    flows.insert(
        tuple(proto, (F::of(C0), PORT), (F::CLIENT, 80)),
        tuple(proto, (F::CLIENT, 80), (F::HOST, NAT)),
        1000,
        LIFETIME,
    );
    host
}

/// A packet that the stack forwards, at the hooks that it meets on its way into C0.
fn forwarded_to_c0<F: Addresses>(host: &Host<F>, frame: &Frame<F::Addr>) -> [Outcome; 2] {
    [(hook::BRIDGE_OUT, 10), (hook::TO_ENDPOINT, C0)].map(|(hook, ifindex)| {
        let meta = Meta {
            ingress_ifindex: UP0,
            ..Host::<F>::meta(hook, ifindex)
        };
        let bytes = frame.clone().macs(mac(C0), bridge_mac(WEB)).bytes::<F>();
        host.run(meta, bytes, 0).outcome
    })
}

/// A packet that the stack would take from C0's bridge.
fn from_bridge<F: Addresses>(host: &Host<F>, frame: &Frame<F::Addr>) -> Outcome {
    let bytes = frame.clone().macs(bridge_mac(WEB), mac(C0)).bytes::<F>();
    host.run(Host::<F>::meta(hook::BRIDGE_IN, 10), bytes, 0)
        .outcome
}

/// To the container that netd knows, and not to whoever the bridge finds at the address.
const PASSED: [Outcome; 2] = [Outcome::Endpoint(C0), Outcome::Pass];
const REFUSED: [Outcome; 2] = [
    Outcome::Endpoint(C0),
    Outcome::Drop(DropReason::ForwardedByStack),
];

fn a_published_connection_stays_the_kernels<F: Addresses>() {
    let host = taken_over::<F>(proto::TCP);
    assert_eq!(host.client(ACK, 8081).outcome, Outcome::Pass);
    let inside = Frame::tcp((F::CLIENT, PORT), (F::of(C0), 80), ACK, b"");
    assert_eq!(forwarded_to_c0(&host, &inside), PASSED);
    assert_eq!(host.server(ACK).outcome, Outcome::Pass);
    let reply = Frame::tcp((F::of(C0), 80), (F::CLIENT, PORT), ACK, b"");
    assert_eq!(from_bridge(&host, &reply), Outcome::Pass);
    assert_eq!((host.flows(), host.embryos()), (0, 0));

    // Another port of the same client: netd's, from its first packet on.
    let other = |flags| Frame::tcp((F::CLIENT, PORT + 1), (F::HOST, 8081), flags, b"");
    assert_eq!(host.arrive(UP0, other(SYN)).outcome, Outcome::Peer(C0));
    assert_eq!(host.embryos(), 2);
    let inside = Frame::tcp((F::CLIENT, PORT + 2), (F::of(C0), 80), ACK, b"");
    assert_eq!(forwarded_to_c0(&host, &inside), REFUSED);
    let reply = Frame::tcp((F::of(C0), 80), (F::CLIENT, PORT + 2), ACK, b"");
    let unknown = dropped(DropReason::UnknownEndpoint);
    assert_eq!(from_bridge(&host, &reply), unknown);
}

fn a_masqueraded_connection_stays_the_kernels<F: Addresses>() {
    let host = taken_over::<F>(proto::TCP);
    let send = |port| Frame::tcp((F::of(C0), port), (F::CLIENT, 80), ACK, b"");
    assert_eq!(host.sends(C0, send(PORT)).outcome, Outcome::Pass);
    assert_eq!(from_bridge(&host, &send(PORT)), Outcome::Pass);
    let reply = |port| Frame::tcp((F::CLIENT, 80), (F::HOST, port), ACK, b"");
    assert_eq!(host.arrive(UP0, reply(NAT)).outcome, Outcome::Pass);
    let inside = |port| Frame::tcp((F::CLIENT, 80), (F::of(C0), port), ACK, b"");
    assert_eq!(forwarded_to_c0(&host, &inside(PORT)), PASSED);
    assert_eq!(forwarded_to_c0(&host, &inside(PORT + 1)), REFUSED);
    // As it is on the wire, the translated tuple opens no way to the container's own address.
    let direct = dropped(DropReason::DirectRouting);
    assert_eq!(host.arrive(UP0, inside(PORT)).outcome, direct);
    assert_eq!((host.flows(), host.embryos()), (0, 0));
    assert_eq!(host.sends(C0, send(PORT + 1)).outcome, out::<F>(UP0));
    assert_eq!(host.embryos(), 2, "picked up: nobody else owns it");
}

fn datagrams_and_echo_stay_the_kernels<F: Addresses>() {
    let host = taken_over::<F>(proto::UDP);
    let ask = |port| Frame::udp((F::CLIENT, port), (F::HOST, 8081), b"?");
    assert_eq!(host.arrive(UP0, ask(PORT)).outcome, Outcome::Pass);
    assert_eq!(host.arrive(UP0, ask(PORT + 1)).outcome, Outcome::Peer(C0));

    let mut host = Host::<F>::new();
    host.model.config.flags |= config_flag::KERNEL_FLOWS;
    // The identifier is the source port of a request, and the destination port of a reply.
    F::tables_mut(&mut host.model).kernel_flows.insert(
        tuple(F::ICMP, (F::of(C0), 7), (F::CLIENT, 0)),
        tuple(F::ICMP, (F::CLIENT, 0), (F::HOST, 9)),
        1000,
        LIFETIME,
    );
    let request = |id| Frame::echo::<F>(F::of(C0), F::CLIENT, id);
    assert_eq!(host.sends(C0, request(7)).outcome, Outcome::Pass);
    assert_eq!(from_bridge(&host, &request(7)), Outcome::Pass);
    let reply = Frame::echo_reply::<F>(F::CLIENT, F::HOST, 9);
    assert_eq!(host.arrive(UP0, reply).outcome, Outcome::Pass);
    let inside = |id| Frame::echo_reply::<F>(F::CLIENT, F::of(C0), id);
    assert_eq!(forwarded_to_c0(&host, &inside(7)), PASSED);
    assert_eq!(forwarded_to_c0(&host, &inside(8)), REFUSED);
    assert_eq!((host.flows(), host.embryos()), (0, 0));
    assert_eq!(host.sends(C0, request(8)).outcome, out::<F>(UP0));
}

fn the_flag_says_whether_to_look<F: Addresses>() {
    let mut host = taken_over::<F>(proto::TCP);
    host.model.config.flags &= !config_flag::KERNEL_FLOWS;
    let inside = Frame::tcp((F::CLIENT, PORT), (F::of(C0), 80), ACK, b"");
    assert_eq!(forwarded_to_c0(&host, &inside), REFUSED);
    assert_eq!(host.client(ACK, 8081).outcome, Outcome::Peer(C0));
}

fn policy_comes_first<F: Addresses>() {
    let mut host = taken_over::<F>(proto::TCP);
    F::tables_mut(&mut host.model).policy = Box::new(|tuple, _| {
        if tuple.dport == 8081u16.to_be_bytes() {
            Policy::Drop
        } else {
            Policy::Return
        }
    });
    let refused = dropped(DropReason::Policy);
    assert_eq!(host.client(ACK, 8081).outcome, refused);
    let reply = Frame::tcp((F::CLIENT, 80), (F::HOST, NAT), ACK, b"");
    assert_eq!(host.arrive(UP0, reply).outcome, Outcome::Pass);
}

fn a_foreign_source_is_refused_all_the_same<F: Addresses>() {
    let host = taken_over::<F>(proto::TCP);
    let frame = || Frame::tcp((F::of(C0), PORT), (F::CLIENT, 80), ACK, b"");
    let spoofed = dropped(DropReason::SpoofedAddress);
    assert_eq!(host.sends(C0B, frame()).outcome, spoofed);
    assert_eq!(host.sends(C0, frame()).outcome, Outcome::Pass);
}

fn traffic_of_either_direction_keeps_a_flow<F: Addresses>() {
    let reply = || Frame::tcp((F::of(C0), 80), (F::CLIENT, PORT), ACK, b"");
    let host = taken_over::<F>(proto::TCP);
    for _ in 0..3 {
        host.model.pass(LIFETIME);
        assert_eq!(host.sends(C0, reply()).outcome, Outcome::Pass);
    }
    assert_eq!(host.client(ACK, 8081).outcome, Outcome::Pass);
    host.model.pass(LIFETIME);
    assert_eq!(from_bridge(&host, &reply()), Outcome::Pass);
    host.model.pass(1);
    let unknown = dropped(DropReason::UnknownEndpoint);
    assert_eq!(from_bridge(&host, &reply()), unknown);
    assert_eq!(host.client(ACK, 8081).outcome, Outcome::Peer(C0));
}

fn a_closed_connection_that_opens_again_is_netds<F: Addresses>() {
    for (client, server) in [(FIN | ACK, FIN | ACK), (RST, ACK), (ACK, RST | ACK)] {
        let host = taken_over::<F>(proto::TCP);
        assert_eq!(host.client(SYN, 8081).outcome, Outcome::Pass, "sent again");
        assert_eq!(host.client(client, 8081).outcome, Outcome::Pass);
        assert_eq!(host.server(server).outcome, Outcome::Pass);
        assert_eq!(host.server(SYN | ACK).outcome, Outcome::Pass, "not bare");
        assert_eq!(host.client(SYN, 8081).outcome, Outcome::Peer(C0));
        assert_eq!(host.embryos(), 2);
        assert_eq!(host.server(SYN | ACK).outcome, out::<F>(UP0));
    }
    let host = taken_over::<F>(proto::TCP);
    assert_eq!(host.client(FIN | ACK, 8081).outcome, Outcome::Pass);
    assert_eq!(host.client(SYN, 8081).outcome, Outcome::Pass, "half closed");
}

fn a_forged_reset_changes_nothing<F: Addresses>() {
    let host = taken_over::<F>(proto::TCP);
    assert_eq!(host.client(RST, 8081).outcome, Outcome::Pass);
    assert_eq!(host.client(ACK, 8081).outcome, Outcome::Pass);
    host.model.pass(LIFETIME);
    assert_eq!(host.client(ACK, 8081).outcome, Outcome::Pass);
    assert_eq!(host.client(SYN, 8081).outcome, Outcome::Pass);
}

fn a_closing_connection_lives_four_minutes<F: Addresses>() {
    for (wait, outcome) in [(240, Outcome::Pass), (241, Outcome::Peer(C0))] {
        let host = taken_over::<F>(proto::TCP);
        assert_eq!(host.server(FIN | ACK).outcome, Outcome::Pass);
        host.model.pass(wait);
        assert_eq!(host.client(ACK, 8081).outcome, outcome);
    }
}

fn no_source_port_of_the_kernels_is_taken<F: Addresses>() {
    let send = |host: &Host<F>, port| {
        let frame = Frame::udp((F::of(C0), port), (F::CLIENT, 80), b"?");
        host.sends(C0, frame)
    };
    let mut host = taken_over::<F>(proto::UDP);
    (host.model.config.nat_first, host.model.config.nat_last) = (NAT, NAT + 1);
    let there = send(&host, PORT + 1);
    assert_eq!(there.src(), (F::HOST, NAT + 1), "{:?}", there.outcome);
    let exhausted = dropped(DropReason::SourcePortsExhausted);
    assert_eq!(send(&host, PORT + 2).outcome, exhausted);
    let key = tuple(proto::UDP, (F::CLIENT, 80), (F::HOST, NAT));
    F::tables_mut(&mut host.model).kernel_flows.remove(&key);
    assert_eq!(send(&host, PORT + 2).src(), (F::HOST, NAT));
}

fn errors_about_the_kernels_flows<F: Addresses>() {
    let host = taken_over::<F>(proto::TCP);
    let error = |to: F::Addr, from: (F::Addr, u16)| {
        let quoted = Frame::tcp(from, (F::CLIENT, 80), ACK, b"").packet::<F>();
        let kind = if F::VERSION == 4 { (3, 4) } else { (2, 0) };
        Frame::icmp::<F>(F::GATEWAY, to, kind, [0; 4], &quoted)
    };
    let arrived = host.arrive(UP0, error(F::HOST, (F::HOST, NAT)));
    assert_eq!(arrived.outcome, Outcome::Pass);
    let inside = error(F::of(C0), (F::of(C0), PORT));
    assert_eq!(forwarded_to_c0(&host, &inside), PASSED);
    let inside = error(F::of(C0), (F::of(C0), PORT + 1));
    assert_eq!(forwarded_to_c0(&host, &inside), REFUSED);
}

fn draining_takes_no_new_flow<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.connect(8081);
    let other = || Frame::tcp((F::CLIENT, PORT + 1), (F::HOST, 8081), SYN, b"");
    let world = || Frame::udp((F::of(C0), PORT), (F::CLIENT, 53), b"?");
    host.model.config.flags |= config_flag::DRAIN;
    assert_eq!(host.arrive(UP0, other()).outcome, Outcome::Pass);
    assert_eq!(host.sends(C0, world()).outcome, Outcome::Pass);
    assert_eq!(host.embryos(), 0);
    assert_eq!(host.client(ACK, 8081).outcome, Outcome::Peer(C0), "its own");
    host.model.config.epoch += 1;
    assert_eq!(host.server(ACK).outcome, out::<F>(UP0), "decided again");
    assert_eq!(host.flows(), 2);
    // What is not allowed is not the kernel's to allow either.
    let across = Frame::udp((F::of(C0), PORT), (F::of(N1A), 53), b"?");
    let isolated = dropped(DropReason::Isolation);
    assert_eq!(host.sends(C0, across).outcome, isolated);

    host.model.config.flags &= !config_flag::DRAIN;
    assert_eq!(host.arrive(UP0, other()).outcome, Outcome::Peer(C0));
    assert_eq!(host.sends(C0, world()).outcome, out::<F>(UP0));
}

fn draining_lets_go_what_the_guards_would_stop<F: Addresses>() {
    let mut host = Host::<F>::new();
    let there = Frame::tcp((F::of(C0), PORT), (F::CLIENT, 80), ACK, b"");
    let back = Frame::tcp((F::CLIENT, 80), (F::of(C0), PORT), ACK, b"");
    let unknown = dropped(DropReason::UnknownEndpoint);
    assert_eq!(from_bridge(&host, &there), unknown);
    assert_eq!(forwarded_to_c0(&host, &back), REFUSED);
    host.model.config.flags |= config_flag::DRAIN;
    assert_eq!(from_bridge(&host, &there), Outcome::Pass);
    assert_eq!(forwarded_to_c0(&host, &back), [Outcome::Pass; 2]);
}
