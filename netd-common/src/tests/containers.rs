//! What containers send: to the world, to each other, to published ports.

use super::*;
use crate::{abi::gateway_mode, model::frame};

for_both_families! {
    the_world_sees_the_host_and_answers_find_the_container
    a_fixed_masquerade_address
    without_masquerade_the_source_stays
    icc_off_is_between_neighbours_only
    internal_networks_keep_to_themselves
    other_networks_by_published_ports_only
    to_itself_through_the_host
    to_a_neighbour_through_the_host
    a_neighbour_as_gateway
    foreign_sources
    foreign_sources_do_not_leak_where_they_are_allowed
    foreign_flows_outlive_an_epoch
    strict_macs_and_addresses
    tagged_frames_and_other_ethertypes
    what_the_stack_delivers
    the_guard_of_the_bridge
}

fn hello<F: Addresses>(from: u32, to: F::Addr) -> Frame<F::Addr> {
    Frame::tcp((F::of(from), 40000), (to, 80), SYN, b"")
}

fn the_world_sees_the_host_and_answers_find_the_container<F: Addresses>() {
    let host = Host::<F>::new();
    for frame in [
        hello::<F>(C0, F::CLIENT),
        Frame::udp((F::of(C0), 40000), (F::CLIENT, 53), b"?"),
    ] {
        let there = host.sends(C0, frame);
        assert_eq!(there.outcome, out::<F>(UP0));
        let (src, port) = there.src();
        assert_eq!(src, F::HOST);
        assert!(port >= host.model.config.nat_first);
        let (_, to) = there.dst();
        let answer = if to == 80 {
            Frame::tcp((F::CLIENT, 80), (F::HOST, port), SYN | ACK, b"")
        } else {
            Frame::udp((F::CLIENT, 53), (F::HOST, port), b"!")
        };
        let back = host.arrive(UP0, answer);
        assert_eq!(back.outcome, Outcome::Peer(C0));
        assert_eq!(back.dst(), (F::of(C0), 40000));
        assert_eq!(back.src(), (F::CLIENT, to));
    }
    let there = host.sends(C0, Frame::echo::<F>(F::of(C0), F::CLIENT, 7));
    let (_, id) = there.src();
    let back = host.arrive(UP0, Frame::echo_reply::<F>(F::CLIENT, F::HOST, id));
    assert_eq!(back.outcome, Outcome::Peer(C0));
    assert_eq!(back.dst(), (F::of(C0), 7));
    // Control: an answer to nobody is the host's.
    let stray = Frame::udp((F::CLIENT, 53), (F::HOST, 9), b"!");
    assert_eq!(host.arrive(UP0, stray).outcome, Outcome::Pass);
}

fn a_fixed_masquerade_address<F: Addresses>() {
    let mut host = Host::<F>::new();
    let network = &mut host.model.networks[usize::from(WEB)];
    network.nat_v4 = [198, 18, 0, 77];
    network.nat_v6 = [0xfd; 16];
    let fixed = if F::VERSION == 4 {
        F::Addr::from_padded(&V4Addr(network.nat_v4).padded())
    } else {
        F::Addr::from_padded(&network.nat_v6)
    };
    assert_eq!(host.sends(C0, hello::<F>(C0, F::CLIENT)).src().0, fixed);
    assert_eq!(host.sends(N1A, hello::<F>(N1A, F::CLIENT)).src().0, F::HOST);
}

fn without_masquerade_the_source_stays<F: Addresses>() {
    let mut host = Host::<F>::new();
    *host.flags(WEB) &= !(network_flag::MASQUERADE_V4 | network_flag::MASQUERADE_V6);
    let there = host.sends(C0, hello::<F>(C0, F::CLIENT));
    assert_eq!(there.outcome, out::<F>(UP0));
    assert_eq!(there.src(), (F::of(C0), 40000));
}

fn icc_off_is_between_neighbours_only<F: Addresses>() {
    let host = Host::<F>::new();
    let reason = DropReason::IccDisabled;
    let direct = host.sends_to(N1A, mac(N1B), hello::<F>(N1A, F::of(N1B)));
    assert_eq!(direct.outcome, dropped(reason));
    let by_gateway = host.sends(N1A, hello::<F>(N1A, F::of(N1B)));
    assert_eq!(by_gateway.outcome, dropped(reason));
    let direct = host.sends_to(C0, mac(C0B), hello::<F>(C0, F::of(C0B)));
    assert_eq!(direct.outcome, Outcome::Peer(C0B));
    let by_gateway = host.sends(C0, hello::<F>(C0, F::of(C0B)));
    assert_eq!(by_gateway.outcome, Outcome::Peer(C0B));
}

fn internal_networks_keep_to_themselves<F: Addresses>() {
    let host = Host::<F>::new();
    let reason = dropped(DropReason::Internal);
    assert_eq!(host.sends(N3A, hello::<F>(N3A, F::CLIENT)).outcome, reason);
    assert_eq!(host.sends(N3A, hello::<F>(N3A, F::of(C0))).outcome, reason);
    let published = Frame::tcp((F::of(N3A), 1), (F::inside(INNER, 1), 8081), SYN, b"");
    assert_eq!(host.sends(N3A, published).outcome, reason);
    let neighbour = host.sends_to(N3A, mac(N3B), hello::<F>(N3A, F::of(N3B)));
    assert_eq!(neighbour.outcome, Outcome::Peer(N3B));
    let published = Frame::tcp((F::of(C0B), 1), (F::inside(WEB, 1), 8081), SYN, b"");
    assert_eq!(host.sends(C0B, published).outcome, Outcome::Peer(C0));
}

fn other_networks_by_published_ports_only<F: Addresses>() {
    let mut host = Host::<F>::new();
    let reason = DropReason::Isolation;
    let direct = host.sends(N1A, hello::<F>(N1A, F::of(C0)));
    assert_eq!(direct.outcome, dropped(reason));
    let published = Frame::tcp((F::of(N1A), 40000), (F::HOST, 8081), SYN, b"");
    let there = host.sends(N1A, published);
    assert_eq!(there.outcome, Outcome::Peer(C0));
    assert_eq!(there.src(), (F::of(N1A), 40000), "the real client");
    let answer = Frame::tcp((F::of(C0), 80), (F::of(N1A), 40000), SYN | ACK, b"");
    let back = host.sends(C0, answer);
    assert_eq!(back.outcome, Outcome::Peer(N1A));
    assert_eq!(back.src(), (F::HOST, 8081));
    host.mode(WEB, gateway_mode::NAT_UNPROTECTED);
    let direct = host.sends(N1A, hello::<F>(N1A, F::of(C0B)));
    assert_eq!(direct.outcome, Outcome::Peer(C0B), "nat-unprotected");
}

fn to_itself_through_the_host<F: Addresses>() {
    let mut host = Host::<F>::new();
    let frame = || Frame::tcp((F::of(C0), 40000), (F::HOST, 8081), SYN, b"");
    let there = host.sends(C0, frame());
    assert_eq!(there.outcome, Outcome::Peer(C0));
    let (gateway, port) = there.src();
    assert_eq!(gateway, F::inside(WEB, 1));
    assert_eq!(there.dst(), (F::of(C0), 80));
    let answer = Frame::tcp((F::of(C0), 80), (gateway, port), SYN | ACK, b"");
    let back = host.sends(C0, answer);
    assert_eq!(back.outcome, Outcome::Peer(C0));
    assert_eq!(back.src(), (F::HOST, 8081));
    assert_eq!(back.dst(), (F::of(C0), 40000));
    // Without a gateway address there is none to step between; a neighbour needs none.
    let network = &mut host.model.networks[usize::from(WEB)];
    (network.gateway_v4, network.gateway_v6) = ([0; 4], [0; 16]);
    let other = Frame::tcp((F::of(C0), 40001), (F::HOST, 8081), SYN, b"");
    let reason = DropReason::NoMasqueradeAddress;
    assert_eq!(host.sends(C0, other).outcome, dropped(reason));
    let neighbour = Frame::tcp((F::of(C0B), 40001), (F::HOST, 8081), SYN, b"");
    assert_eq!(host.sends(C0B, neighbour).outcome, Outcome::Peer(C0));
}

fn to_a_neighbour_through_the_host<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.publish(proto::TCP, 8083, N1B, 80);
    // Also with icc = false: a published port is open to everyone.
    for (client, server, port) in [(C0B, C0, 8081), (N1A, N1B, 8083)] {
        let there = host.sends(
            client,
            Frame::tcp((F::of(client), 40000), (F::HOST, port), SYN, b""),
        );
        assert_eq!(there.outcome, Outcome::Peer(server));
        assert_eq!(there.src(), (F::of(client), 40000), "the real client");
        // The server answers on the link, to the client's own MAC.
        let answer = |sport| {
            Frame::tcp(
                (F::of(server), sport),
                (F::of(client), 40000),
                SYN | ACK,
                b"",
            )
        };
        let back = host.sends_to(server, mac(client), answer(80));
        assert_eq!(back.outcome, Outcome::Peer(client));
        assert_eq!(back.src(), (F::HOST, port));
        // Control: what is no answer of that flow is judged as between neighbours.
        let other = host.sends_to(server, mac(client), answer(81)).outcome;
        let expected = if server == C0 {
            Outcome::Peer(client)
        } else {
            dropped(DropReason::IccDisabled)
        };
        assert_eq!(other, expected);
    }
}

fn a_neighbour_as_gateway<F: Addresses>() {
    let host = Host::<F>::new();
    let frame = || hello::<F>(C0, F::CLIENT);
    let there = host.sends_to(C0, mac(C0B), frame());
    assert_eq!(there.outcome, Outcome::Pass, "the bridge's business");
    assert_eq!(host.embryos(), 0);
    // The router forwards what is not its own.
    let forwarded = host.sends(C0B, frame()).outcome;
    assert_eq!(forwarded, dropped(DropReason::SpoofedAddress));
    assert_eq!(host.sends(C0, frame()).outcome, out::<F>(UP0));
}

fn foreign_sources<F: Addresses>() {
    let mut host = Host::<F>::new();
    let foreign = || Frame::tcp((F::CLIENT, 1), (F::of(C0B), 80), SYN, b"");
    let to_world = |src| Frame::tcp((src, 1), (F::GATEWAY, 80), SYN, b"");
    let reason = dropped(DropReason::SpoofedAddress);
    // "nat": never routed, but the link is left alone.
    assert_eq!(host.sends(C0, to_world(F::CLIENT)).outcome, reason);
    assert_eq!(host.sends(C0, to_world(F::of(C0B))).outcome, reason);
    assert_eq!(host.sends(C0, to_world(F::of(C0))).outcome, out::<F>(UP0));
    let neighbour = host.sends_to(C0, mac(C0B), foreign());
    assert_eq!(neighbour.outcome, Outcome::Peer(C0B));
    // "strict": nowhere.
    *host.flags(WEB) |= network_flag::SPOOF_STRICT;
    let neighbour = host.sends_to(C0, mac(C0B), foreign());
    assert_eq!(neighbour.outcome, reason);
    let own = host.sends_to(C0, mac(C0B), hello::<F>(C0, F::of(C0B)));
    assert_eq!(own.outcome, Outcome::Peer(C0B));
    // "off": also routed, but not masqueraded.
    let flags = host.flags(WEB);
    *flags = *flags & !network_flag::SPOOF_STRICT | network_flag::SPOOF_OFF;
    let there = host.sends(C0, to_world(F::CLIENT));
    assert_eq!(there.outcome, out::<F>(UP0));
    assert_eq!(there.src(), (F::CLIENT, 1));
}

fn foreign_sources_do_not_leak_where_they_are_allowed<F: Addresses>() {
    let mut host = Host::<F>::new();
    *host.flags(WEB) |= network_flag::SPOOF_OFF;
    let from = |src| {
        let frame = Frame::tcp((src, 1), (F::CLIENT, 80), SYN, b"");
        host.sends(C0, frame)
    };
    // A container that forwards for another network: masqueraded for that one.
    let there = from(F::of(N1A));
    assert_eq!(there.outcome, out::<F>(UP0));
    assert_eq!(there.src().0, F::HOST);
    let reason = dropped(DropReason::MartianSource);
    for src in [F::LOOPBACK, F::HOST, F::Addr::default()] {
        assert_eq!(from(src).outcome, reason);
    }
    let there = from(F::GATEWAY);
    assert_eq!(there.outcome, out::<F>(UP0));
    assert_eq!(there.src(), (F::GATEWAY, 1), "of no network");
}

fn foreign_flows_outlive_an_epoch<F: Addresses>() {
    let mut host = Host::<F>::new();
    *host.flags(WEB) |= network_flag::SPOOF_OFF;
    let there = Frame::udp((F::GATEWAY, 1), (F::CLIENT, 53), b"?");
    let back = || Frame::udp((F::CLIENT, 53), (F::GATEWAY, 1), b"!");
    assert_eq!(host.sends(C0, there).outcome, out::<F>(UP0));
    assert_eq!(host.arrive(UP0, back()).outcome, Outcome::Peer(C0));
    host.model.config.epoch += 1;
    assert_eq!(host.arrive(UP0, back()).outcome, Outcome::Peer(C0));
    // Where foreign sources are not allowed (any more), the flow ends.
    *host.flags(WEB) &= !network_flag::SPOOF_OFF;
    host.model.config.epoch += 1;
    let reason = DropReason::FlowEnded;
    assert_eq!(host.arrive(UP0, back()).outcome, dropped(reason));
}

fn strict_macs_and_addresses<F: Addresses>() {
    let mut host = Host::<F>::new();
    *host.flags(WEB) |= network_flag::SPOOF_STRICT;
    let meta = Host::<F>::meta(hook::FROM_ENDPOINT, C0);
    let from_mac = |from| {
        let frame = hello::<F>(C0, F::CLIENT).macs(bridge_mac(WEB), from);
        host.run(meta, frame.bytes::<F>(), 0).outcome
    };
    assert_eq!(from_mac(mac(C0B)), dropped(DropReason::SpoofedMac));
    assert_eq!(from_mac(mac(C0)), out::<F>(UP0));
    if F::VERSION == 4 {
        let say = |sender_mac, sender| {
            let mut bytes = frame::arp(2, (sender_mac, sender), (mac(C0B), V4::of(C0B).0));
            bytes[6..12].copy_from_slice(&mac(C0));
            host.run(meta, bytes, 0).outcome
        };
        assert_eq!(say(mac(C0), V4::of(C0).0), Outcome::Pass);
        assert_eq!(say(mac(C0), [0; 4]), Outcome::Pass, "a probe");
        let reason = DropReason::SpoofedNeighbour;
        assert_eq!(say(mac(C0), V4::of(C0B).0), dropped(reason));
        let reason = DropReason::SpoofedMac;
        assert_eq!(say(mac(C0B), V4::of(C0).0), dropped(reason));
    } else {
        let say = |kind, target: F::Addr| {
            let message =
                Frame::icmp::<F>(F::of(C0), F::of(C0B), (kind, 0), [0; 4], &target.padded());
            host.sends_to(C0, mac(C0B), message).outcome
        };
        assert_eq!(say(136, F::of(C0)), Outcome::Pass);
        let reason = DropReason::SpoofedNeighbour;
        assert_eq!(say(136, F::of(C0B)), dropped(reason));
        assert_eq!(say(135, F::of(C0B)), Outcome::Pass, "a question");
        let reason = DropReason::RouterAdvertisement;
        assert_eq!(say(134, F::of(C0)), dropped(reason));
    }
}

fn tagged_frames_and_other_ethertypes<F: Addresses>() {
    let host = Host::<F>::new();
    let plain = hello::<F>(C0, F::CLIENT)
        .macs(bridge_mac(WEB), mac(C0))
        .bytes::<F>();
    let mut meta = Host::<F>::meta(hook::FROM_ENDPOINT, C0);
    let run = |meta, bytes: &[u8]| host.run(meta, bytes.to_vec(), 0).outcome;
    let reason = dropped(DropReason::VlanTag);
    for tag in [[0x81, 0, 0, 0], [0x81, 0, 0, 5], [0x88, 0xa8, 0, 0]] {
        assert_eq!(run(meta, &frame::tagged(&plain, tag)), reason);
    }
    let mut other = plain.clone();
    other[12..14].copy_from_slice(&[0x88, 0xcc]);
    assert_eq!(run(meta, &other), dropped(DropReason::EtherType));
    meta.vlan = 1;
    assert_eq!(run(meta, &plain), reason);
    meta.vlan = 0;
    assert_eq!(run(meta, &plain), out::<F>(UP0));
}

fn what_the_stack_delivers<F: Addresses>() {
    let mut host = Host::<F>::new();
    let deliver = |host: &Host<F>, to: u32, dst_mac, ingress_ifindex| {
        let frame = hello::<F>(C0B, F::of(to)).macs(dst_mac, bridge_mac(WEB));
        let meta = Meta {
            ingress_ifindex,
            ..Host::<F>::meta(hook::TO_ENDPOINT, to)
        };
        host.run(meta, frame.bytes::<F>(), 0).outcome
    };
    assert_eq!(deliver(&host, C0, mac(C0), 0), Outcome::Pass, "the host");
    let reason = DropReason::Flooded;
    assert_eq!(deliver(&host, C0, mac(C0B), 0), dropped(reason));
    assert_eq!(deliver(&host, C0, mac(C0), C0B), Outcome::Pass, "ICC");
    let reason = DropReason::IccDisabled;
    assert_eq!(deliver(&host, N1A, mac(N1A), N1B), dropped(reason));
    assert_eq!(deliver(&host, N1A, [0xff; 6], N1B), dropped(reason));
    let reason = DropReason::Isolation;
    assert_eq!(deliver(&host, C0, mac(C0), N1A), dropped(reason));
    let reason = DropReason::ForwardedByStack;
    assert_eq!(deliver(&host, C0, mac(C0), UP0), dropped(reason));
    host.model.config.flags |= crate::abi::config_flag::ACCELERATE;
    assert_eq!(deliver(&host, C0, mac(C0), UP0), Outcome::Pass);
}

fn the_guard_of_the_bridge<F: Addresses>() {
    let host = Host::<F>::new();
    let at = |hook, dst, ingress_ifindex| {
        let meta = Meta {
            ingress_ifindex,
            ..Host::<F>::meta(hook, 10)
        };
        host.run(meta, hello::<F>(C0, dst).bytes::<F>(), 0).outcome
    };
    let refused = dropped(DropReason::UnknownEndpoint);
    assert_eq!(at(hook::BRIDGE_IN, F::CLIENT, C0), refused);
    assert_eq!(at(hook::BRIDGE_IN, F::HOST, C0), Outcome::Pass);
    let unknown = F::inside(WEB, 99);
    assert_eq!(at(hook::BRIDGE_OUT, unknown, UP0), refused);
    assert_eq!(at(hook::BRIDGE_OUT, unknown, 0), Outcome::Pass, "the host");
    assert_eq!(at(hook::BRIDGE_OUT, F::of(C0), UP0), Outcome::Endpoint(C0));
}
