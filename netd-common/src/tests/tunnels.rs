//! Uplinks without an Ethernet header (tun, WireGuard): in, out, and back.

use super::*;
use crate::abi::uplink_flag;

for_both_families!(
    masquerade_to_a_tunnel_and_back
    published_on_a_tunnel
    what_is_not_netds_passes_a_tunnel_untouched
    oversize_for_the_tunnel
    what_came_by_a_tunnel_is_not_answered_beside_it
);

fn tunnel<F: Addresses>() -> Host<F> {
    let mut host = Host::<F>::new();
    host.uplink(UP0).flags = uplink_flag::L3;
    host
}

/// A packet arrives on the tunnel.
fn arrive<F: Addresses>(host: &Host<F>, frame: Frame<F::Addr>) -> (Outcome, Vec<u8>, Vec<u8>) {
    let sent = frame.packet::<F>();
    let mut bytes = sent.clone();
    let mut packet = GsoPacket::new(&mut bytes);
    let meta = Host::<F>::meta(hook::FROM_UPLINK, UP0);
    let outcome = host.model.run(&mut packet, &meta).outcome();
    (outcome, sent, bytes)
}

fn masquerade_to_a_tunnel_and_back<F: Addresses>() {
    let host = tunnel::<F>();
    let there = host.sends(C0, Frame::udp((F::of(C0), 5000), (F::CLIENT, 53), b"q"));
    assert_eq!(there.outcome, Outcome::Device(UP0));
    let (nat, port) = there.src();
    assert_eq!(nat, F::HOST);
    for _ in 0..2 {
        let reply = Frame::udp((F::CLIENT, 53), (nat, port), b"a");
        let (outcome, _, bytes) = arrive(&host, reply);
        assert_eq!(outcome, Outcome::Peer(C0));
        assert_eq!(bytes[..6], mac(C0));
        assert_eq!(bytes[6..12], bridge_mac(WEB));
        assert_eq!(bytes[12..14], F::ETHERTYPE);
        assert_eq!(verify::<F>(&bytes), Ok(()));
        let parsed = parse::<F>(&mut SlicePacket(&mut bytes.clone()), ETH_LEN).unwrap();
        assert_eq!(parsed.tuple.dst, F::of(C0));
        assert_eq!(parsed.tuple.dport, 5000u16.to_be_bytes());
    }
    let again = host.sends(C0, Frame::udp((F::of(C0), 5000), (F::CLIENT, 53), b"q"));
    assert_eq!(again.outcome, Outcome::Device(UP0), "on the fast path too");
}

fn published_on_a_tunnel<F: Addresses>() {
    let host = tunnel::<F>();
    let syn = Frame::tcp((F::CLIENT, 40000), (F::HOST, 8081), SYN, b"");
    let (outcome, _, bytes) = arrive(&host, syn);
    assert_eq!(outcome, Outcome::Peer(C0));
    assert_eq!(verify::<F>(&bytes), Ok(()));
    let back = host.server(SYN | ACK);
    assert_eq!(back.outcome, Outcome::Device(UP0));
    assert_eq!(back.src(), (F::HOST, 8081));
}

fn what_is_not_netds_passes_a_tunnel_untouched<F: Addresses>() {
    let host = tunnel::<F>();
    for frame in [
        Frame::tcp((F::CLIENT, 40000), (F::HOST, 22), SYN, b""),
        Frame::udp((F::CLIENT, 40000), (F::CLIENT, 53), b""),
    ] {
        let (outcome, sent, bytes) = arrive(&host, frame);
        assert_eq!(outcome, Outcome::Pass);
        assert_eq!(sent, bytes);
    }
    let mut nothing = vec![0x50, 1, 2, 3];
    let meta = Host::<F>::meta(hook::FROM_UPLINK, UP0);
    let outcome = host.model.run(&mut GsoPacket::new(&mut nothing), &meta);
    assert_eq!(outcome.outcome(), Outcome::Pass);
}

fn oversize_for_the_tunnel<F: Addresses>() {
    let host = tunnel::<F>();
    let header = if F::VERSION == 4 { 28 } else { 48 };
    for (payload, fits) in [(1500 - header, true), (1501 - header, false)] {
        let frame = Frame::udp((F::of(C0), 5000), (F::CLIENT, 53), &vec![0; payload]);
        let there = host.sends(C0, frame.whole());
        assert_eq!(there.outcome == Outcome::Device(UP0), fits, "{payload}");
    }
}

fn what_came_by_a_tunnel_is_not_answered_beside_it<F: Addresses>() {
    let mut host = tunnel::<F>();
    let syn = Frame::tcp((F::CLIENT, 40000), (F::HOST, 8081), SYN, b"");
    assert_eq!(arrive(&host, syn.clone()).0, Outcome::Peer(C0));
    assert_eq!(host.server(SYN | ACK).outcome, Outcome::Device(UP0));
    host.model.config.epoch += 1;
    assert_eq!(
        host.server(SYN | ACK).outcome,
        Outcome::Device(UP0),
        "the same way"
    );
    host.route(Ok(UP1));
    host.model.config.epoch += 1;
    let refused = dropped(DropReason::FlowEnded);
    assert_eq!(host.server(SYN | ACK).outcome, refused);
    assert_eq!(host.embryos(), 0);
    // Between two uplinks of the other kind it moves.
    let mut host = Host::<F>::new();
    let syn = Frame::tcp((F::CLIENT, 40000), (F::HOST, 8081), SYN, b"");
    assert_eq!(host.arrive(UP0, syn).outcome, Outcome::Peer(C0));
    assert_eq!(host.server(SYN | ACK).outcome, out::<F>(UP0));
    host.route(Ok(UP1));
    host.model.config.epoch += 1;
    assert_eq!(host.server(SYN | ACK).outcome, out::<F>(UP1));
}
