//! The host's own sockets: where a call leads, and what holds the socket's packets to it.

use super::{
    ACK, Addresses, C0, C0B, DARK, Host, N1A, SYN, WEB, bridge_mac, dropped, for_both_families, mac,
};
use crate::{
    abi::{config_flag, hook, local_kind},
    drop::DropReason,
    host_access::{Call, answer, is_of_host, key, listener, translate},
    model::{PublishSpec, frame::Frame},
    pipeline::{Meta, Outcome},
    tables::Tables,
    wire::{Address, proto},
};

for_both_families! {
    local_addresses_of_a_published_port
    exact_addresses_and_ranges
    bound_sockets
    programs_that_listen
    containers_that_are_gone
    other_namespaces_and_draining
    packets_go_to_the_container_of_the_socket_only
    the_bridge_in_accelerate_mode
}

const COOKIE: u64 = 0x1_0000_0007;

fn call<F: Addresses>(proto: u8, dst: F::Addr, port: u16) -> Call<F::Addr> {
    Call {
        proto,
        dst,
        dport: port.to_be_bytes(),
        ..Call::default()
    }
}

/// What becomes of a call, and where it leads if anywhere. Listeners are those of the model.
fn made<F: Addresses>(host: &Host<F>, call: &mut Call<F::Addr>) -> (u32, F::Addr, u16, u32) {
    let model = &host.model;
    let said = translate::<F, _>(model, &model.config, call, |tuple| {
        u32::from(<_ as Tables<F>>::host_listens(model, tuple))
    });
    (
        said,
        call.backend,
        u16::from_be_bytes(call.backend_port),
        call.ifindex,
    )
}

fn left<F: Addresses>() -> (u32, F::Addr, u16, u32) {
    (answer::LEAVE, F::Addr::default(), 0, 0)
}

fn local_addresses_of_a_published_port<F: Addresses>() {
    let host = Host::<F>::new();
    let to_c0 = (answer::TRANSLATE, F::of(C0), 80, C0);
    for proto in [proto::TCP, proto::UDP] {
        for dst in [F::LOOPBACK, F::HOST, F::inside(WEB, 1), F::inside(DARK, 1)] {
            assert_eq!(made(&host, &mut call::<F>(proto, dst, 8081)), to_c0);
            assert_eq!(made(&host, &mut call::<F>(proto, dst, 8080)), left::<F>());
        }
        for dst in [F::CLIENT, F::of(C0), F::GATEWAY] {
            assert_eq!(made(&host, &mut call::<F>(proto, dst, 8081)), left::<F>());
        }
        // What the program asked for is remembered as loopback, as the kernel shows it.
        let mut any = call::<F>(proto, F::Addr::default(), 8081);
        assert_eq!(made(&host, &mut any), to_c0);
        let peer = any.peer(9);
        assert_eq!((peer.addr, peer.port), (F::LOOPBACK.mapped(), [31, 145]));
        assert_eq!((peer.ifindex, peer.seen), (C0, 9));
        let named = key(COOKIE, proto, F::of(C0).mapped(), 80u16.to_be_bytes());
        assert_eq!(any.key(COOKIE), named);
    }
    let sctp = &mut call::<F>(proto::SCTP, F::HOST, 8081);
    assert_eq!(made(&host, sctp), left::<F>());
    let broadcast = F::inside(WEB, 255);
    if F::VERSION == 4 {
        let udp = &mut call::<F>(proto::UDP, broadcast, 8081);
        assert_eq!(made(&host, udp), left::<F>());
    }
}

fn exact_addresses_and_ranges<F: Addresses>() {
    let mut host = Host::<F>::new();
    let on_loopback = PublishSpec {
        host: F::LOOPBACK,
        ..Host::<F>::spec(proto::TCP, 8081, N1A, 8080)
    };
    host.model.publish::<F>(&on_loopback);
    host.model.publish::<F>(&PublishSpec {
        host_ports: (9000, 9099),
        ..Host::<F>::spec(proto::UDP, 9000, C0B, 5000)
    });
    for (proto, dst, port, expected) in [
        (proto::TCP, F::LOOPBACK, 8081, (F::of(N1A), 8080, N1A)),
        (proto::TCP, F::HOST, 8081, (F::of(C0), 80, C0)),
        (proto::UDP, F::HOST, 9099, (F::of(C0B), 5099, C0B)),
        (proto::UDP, F::LOOPBACK, 9064, (F::of(C0B), 5064, C0B)),
    ] {
        let (to, container, ifindex) = expected;
        assert_eq!(
            made(&host, &mut call::<F>(proto, dst, port)),
            (answer::TRANSLATE, to, container, ifindex),
            "{dst:?}:{port}"
        );
    }
    let beyond = &mut call::<F>(proto::UDP, F::HOST, 9100);
    assert_eq!(made(&host, beyond), left::<F>());
}

fn bound_sockets<F: Addresses>() {
    let mut host = Host::<F>::new();
    let bound = |src: F::Addr, device| {
        let mut call = Call {
            src,
            device,
            ..call::<F>(proto::TCP, F::LOOPBACK, 8081)
        };
        made(&host, &mut call).0
    };
    assert_eq!(bound(F::HOST, 0), answer::TRANSLATE);
    assert_eq!(bound(F::LOOPBACK, 0), answer::LEAVE);
    assert_eq!(bound(F::Addr::default(), 1), answer::LEAVE);
    assert_eq!(bound(F::HOST, 1), answer::LEAVE);
    // IP_TRANSPARENT: until the address is the host's.
    assert_eq!(bound(F::CLIENT, 0), answer::LEAVE);
    let bits = F::ADDR_LEN * 8;
    host.model
        .add_local::<F>(F::CLIENT, bits, local_kind::UNICAST);
    let mut call = Call {
        src: F::CLIENT,
        ..call::<F>(proto::TCP, F::LOOPBACK, 8081)
    };
    assert_eq!(made(&host, &mut call).0, answer::TRANSLATE);
}

fn programs_that_listen<F: Addresses>() {
    let mut host = Host::<F>::new();
    let overriding = PublishSpec {
        overrides: true,
        ..Host::<F>::spec(proto::UDP, 9000, C0, 80)
    };
    host.model.publish::<F>(&overriding);
    let said = |port: u16, found: u32| {
        let mut call = call::<F>(proto::UDP, F::LOOPBACK, port);
        let model = &host.model;
        translate::<F, _>(model, &model.config, &mut call, |tuple| {
            assert_eq!((tuple.src, tuple.dst), (F::LOOPBACK, F::LOOPBACK));
            found
        })
    };
    assert_eq!(said(8081, listener::NONE), answer::TRANSLATE);
    assert_eq!(said(8081, listener::ANYONE), answer::LEAVE);
    assert_eq!(said(9000, listener::ANYONE), answer::TRANSLATE);
    // A server of the host answers a client whose own port happens to be published.
    assert_eq!(said(8081, listener::CONNECTED), answer::LEAVE);
    assert_eq!(said(9000, listener::CONNECTED), answer::LEAVE);
}

fn containers_that_are_gone<F: Addresses>() {
    let mut host = Host::<F>::new();
    let said = |host: &Host<F>| made(host, &mut call::<F>(proto::TCP, F::HOST, 8081)).0;
    assert_eq!(said(&host), answer::TRANSLATE);
    let endpoint = host.model.endpoints.remove(&C0).expect("C0");
    assert_eq!(said(&host), answer::REFUSE);
    host.model.endpoints.insert(C0, endpoint);
    assert_eq!(said(&host), answer::TRANSLATE);
    F::tables_mut(&mut host.model).addresses.remove(&F::of(C0));
    assert_eq!(said(&host), answer::REFUSE);
}

fn other_namespaces_and_draining<F: Addresses>() {
    let mut host = Host::<F>::new();
    let mut config = host.model.config;
    assert!(!is_of_host(&config, 0), "before the daemon knew its own");
    config.netns_cookie = 5;
    assert!(is_of_host(&config, 5) && !is_of_host(&config, 6) && !is_of_host(&config, 0));

    host.model.config.flags |= config_flag::DRAIN;
    let new = &mut call::<F>(proto::TCP, F::HOST, 8081);
    assert_eq!(made(&host, new), left::<F>());
}

/// A segment of the host's own to C0's address, with the MAC that the neighbour table says.
fn host_sends<F: Addresses>(host: &Host<F>, at: (u8, u32), to: [u8; 6], flags: u8) -> Outcome {
    let frame = Frame::tcp((F::inside(WEB, 1), 40000), (F::of(C0), 80), flags, b"");
    let meta = Meta {
        ifindex: at.1,
        hook: at.0,
        ..Meta::default()
    };
    let bytes = frame.macs(to, bridge_mac(WEB)).bytes::<F>();
    host.run(meta, bytes, 0).outcome
}

fn packets_go_to_the_container_of_the_socket_only<F: Addresses>() {
    let mut host = Host::<F>::new();
    let bridge = (hook::BRIDGE_OUT, u32::from(WEB) * 10);
    let port = |ifindex| (hook::TO_ENDPOINT, ifindex);
    let stale = dropped(DropReason::StaleHostSocket);

    // A socket that was led nowhere sends where it likes.
    for cookie in [0, COOKIE] {
        host.model.socket_cookie = cookie;
        assert_eq!(host_sends(&host, bridge, mac(C0), SYN), Outcome::Pass);
        assert_eq!(host_sends(&host, port(C0), mac(C0), SYN), Outcome::Pass);
    }

    let mut led = call::<F>(proto::TCP, F::LOOPBACK, 8081);
    assert_eq!(made(&host, &mut led).0, answer::TRANSLATE);
    host.model.sockets.insert(led.key(COOKIE), led.peer(1));
    assert_eq!(
        host_sends(&host, bridge, mac(C0), SYN),
        Outcome::Endpoint(C0)
    );
    assert_eq!(host_sends(&host, port(C0), mac(C0), ACK), Outcome::Pass);

    // Another container has the address: the neighbour table knows, netd does not yet.
    assert_eq!(
        host_sends(&host, bridge, mac(C0B), ACK),
        Outcome::Endpoint(C0)
    );
    assert_eq!(host_sends(&host, port(C0B), mac(C0B), ACK), stale);
    // And then it does.
    host.model.endpoints.remove(&C0);
    assert_eq!(host_sends(&host, bridge, mac(C0B), ACK), stale);
    assert_eq!(host_sends(&host, port(C0B), mac(C0B), ACK), stale);

    // Another socket of the host, opened to the new owner.
    host.model.socket_cookie = COOKIE + 1;
    assert_eq!(host_sends(&host, port(C0B), mac(C0B), ACK), Outcome::Pass);
    assert_eq!(host_sends(&host, bridge, mac(C0B), ACK), Outcome::Pass);
}

fn the_bridge_in_accelerate_mode<F: Addresses>() {
    let mut host = Host::<F>::new();
    let forwarded = |host: &Host<F>| {
        let frame = Frame::tcp((F::CLIENT, 40000), (F::inside(WEB, 99), 80), SYN, b"");
        let meta = Meta {
            ifindex: u32::from(WEB) * 10,
            ingress_ifindex: super::UP0,
            hook: hook::BRIDGE_OUT,
            ..Meta::default()
        };
        let bytes = frame.macs(mac(99), bridge_mac(WEB)).bytes::<F>();
        host.run(meta, bytes, 0).outcome
    };
    assert_eq!(forwarded(&host), dropped(DropReason::UnknownEndpoint));
    host.model.config.flags |= config_flag::ACCELERATE;
    assert_eq!(forwarded(&host), Outcome::Pass);
}
