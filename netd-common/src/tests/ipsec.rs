//! Flows that an IPsec policy covers are never redirected.

use super::*;
use crate::abi::{IpsecPolicy, config_flag, ipsec_action};

for_both_families! {
    what_a_policy_covers_is_refused
    the_translated_source_counts_too
    replies_of_a_published_port_count
    accelerate_mode_leaves_it_to_the_kernel
    exceptions_win_by_priority
    what_comes_in_has_no_form_but_its_last
    ports_and_protocols
    flows_end_when_a_policy_comes
}

fn all_bits<F: Addresses>() -> F::Addr {
    F::Addr::from_padded(&[0xff; 16])
}

/// Whatever goes to the client.
fn to_client<F: Addresses>() -> IpsecPolicy<F::Addr> {
    IpsecPolicy {
        dst: F::CLIENT,
        dst_mask: all_bits::<F>(),
        priority: 5,
        action: ipsec_action::REFUSE,
        ..IpsecPolicy::default()
    }
}

fn with<F: Addresses>(policies: &[IpsecPolicy<F::Addr>]) -> Host<F> {
    let mut host = Host::<F>::new();
    F::tables_mut(&mut host.model).ipsec = policies.to_vec();
    host.model.config.flags |= config_flag::IPSEC;
    host
}

fn asks<F: Addresses>(host: &Host<F>) -> Outcome {
    let frame = Frame::udp((F::of(C0), 5000), (F::CLIENT, 53), b"?");
    host.sends(C0, frame).outcome
}

fn what_a_policy_covers_is_refused<F: Addresses>() {
    let refused = with::<F>(&[to_client::<F>()]);
    assert_eq!(asks(&refused), dropped(DropReason::IpsecPolicy));
    assert_eq!(refused.embryos(), 0);
    let free = IpsecPolicy {
        action: ipsec_action::FREE,
        ..to_client::<F>()
    };
    let elsewhere = IpsecPolicy {
        dst: F::GATEWAY,
        ..to_client::<F>()
    };
    assert_eq!(asks(&with::<F>(&[free, elsewhere])), out::<F>(UP0));
}

fn the_translated_source_counts_too<F: Addresses>() {
    for (src, covered) in [(F::HOST, true), (F::of(C0), true), (F::of(C0B), false)] {
        let policy = IpsecPolicy {
            src,
            src_mask: all_bits::<F>(),
            ..to_client::<F>()
        };
        let outcome = asks(&with::<F>(&[policy]));
        assert_eq!(outcome == dropped(DropReason::IpsecPolicy), covered);
        assert_eq!(outcome == out::<F>(UP0), !covered);
    }
}

fn replies_of_a_published_port_count<F: Addresses>() {
    for (src, covered) in [(F::HOST, true), (F::of(C0), true), (F::of(C0B), false)] {
        let host = with::<F>(&[IpsecPolicy {
            src,
            src_mask: all_bits::<F>(),
            ..to_client::<F>()
        }]);
        let outcome = host.client(SYN, 8081).outcome;
        assert_eq!(outcome == dropped(DropReason::IpsecPolicy), covered);
        assert_eq!(outcome == Outcome::Peer(C0), !covered);
    }
}

fn accelerate_mode_leaves_it_to_the_kernel<F: Addresses>() {
    let mut host = with::<F>(&[to_client::<F>()]);
    host.model.config.flags |= config_flag::ACCELERATE;
    assert_eq!(asks(&host), Outcome::Pass);
    assert_eq!(host.client(SYN, 8081).outcome, Outcome::Pass);
    let other = Frame::udp((F::of(C0), 5000), (F::GATEWAY, 53), b"?");
    assert_eq!(host.sends(C0, other).outcome, out::<F>(UP0));
}

fn exceptions_win_by_priority<F: Addresses>() {
    let exception = |priority| IpsecPolicy {
        priority,
        action: ipsec_action::BYPASS,
        ..to_client::<F>()
    };
    assert_eq!(
        asks(&with::<F>(&[to_client::<F>(), exception(4)])),
        out::<F>(UP0)
    );
    for priority in [5, 6] {
        let host = with::<F>(&[exception(priority), to_client::<F>()]);
        assert_eq!(asks(&host), dropped(DropReason::IpsecPolicy), "{priority}");
    }
}

fn what_comes_in_has_no_form_but_its_last<F: Addresses>() {
    // Answers are addressed to the host only until they are translated; the policy is of the
    // host's own traffic.
    let to = |dst| IpsecPolicy {
        dst,
        ..to_client::<F>()
    };
    assert_eq!(asks(&with::<F>(&[to(F::HOST)])), out::<F>(UP0));
    let into = with::<F>(&[to(F::of(C0))]);
    assert_eq!(asks(&into), dropped(DropReason::IpsecPolicy));
    let syn = with::<F>(&[to(F::HOST)]).client(SYN, 8081).outcome;
    assert_eq!(syn, Outcome::Peer(C0));
}

fn ports_and_protocols<F: Addresses>() {
    let only = |proto, dport: u16| IpsecPolicy {
        proto,
        dport: dport.to_be_bytes(),
        dport_mask: [0xff; 2],
        ..to_client::<F>()
    };
    for (policy, covered) in [
        (only(proto::UDP, 53), true),
        (only(proto::UDP, 54), false),
        (only(proto::TCP, 53), false),
    ] {
        let outcome = asks(&with::<F>(&[policy]));
        assert_eq!(outcome == dropped(DropReason::IpsecPolicy), covered);
    }
    // The translated port is not known yet: a policy that asks for one covers it, an exception does
    // not.
    let by_source = |action, priority| IpsecPolicy {
        src: F::HOST,
        src_mask: all_bits::<F>(),
        sport: [0x12, 0x34],
        sport_mask: [0xff; 2],
        action,
        priority,
        ..to_client::<F>()
    };
    let refuses = with::<F>(&[by_source(ipsec_action::REFUSE, 5)]);
    assert_eq!(asks(&refuses), dropped(DropReason::IpsecPolicy));
    let excepts = with::<F>(&[by_source(ipsec_action::BYPASS, 4), to_client::<F>()]);
    assert_eq!(asks(&excepts), dropped(DropReason::IpsecPolicy));
}

fn flows_end_when_a_policy_comes<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.connect(8081);
    F::tables_mut(&mut host.model).ipsec = vec![to_client::<F>()];
    host.model.config.flags |= config_flag::IPSEC;
    host.model.config.epoch += 1;
    assert_eq!(host.server(ACK).outcome, dropped(DropReason::IpsecPolicy));
    assert_eq!(host.flows(), 0);
}
