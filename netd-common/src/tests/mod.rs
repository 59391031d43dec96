//! The engine over the native model: a host with three networks and an uplink, packet by packet.

mod answers;
mod containers;
mod failures;
mod fragmenting;
mod fragments;
mod host_access;
mod icmp_errors;
mod ipsec;
mod kernel_flows;
mod lifetime;
mod mss;
mod properties;
mod publishing;
mod room;
mod routes;
mod sctp;
mod symmetric;
mod tunnels;

use std::marker::PhantomData;

use crate::{
    abi::{Uplink, hook, network_flag},
    drop::DropReason,
    model::{
        EndpointSpec, GsoPacket, Model, ModelFamily, NetworkSpec, PublishSpec,
        frame::{Frame, verify},
    },
    packet::SlicePacket,
    parse::{Parsed, parse},
    pipeline::{Meta, Outcome},
    tables::Route,
    wire::{Address, ETH_LEN, V4, V4Addr, V6, V6Addr, proto},
};

/// Runs each generic test for both families.
macro_rules! for_both_families {
    ($($name:ident)+) => {
        mod v4 { $(#[test] fn $name() { super::$name::<crate::wire::V4>(); })+ }
        mod v6 { $(#[test] fn $name() { super::$name::<crate::wire::V6>(); })+ }
    };
}
use for_both_families;

pub const SYN: u8 = 2;
pub const ACK: u8 = 16;
pub const RST: u8 = 4;
pub const FIN: u8 = 1;

pub const UP0: u32 = 2;
pub const UP1: u32 = 3;
pub const UP_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// The default network: ICC on.
pub const WEB: u16 = 1;
/// ICC off.
pub const DARK: u16 = 2;
/// Internal.
pub const INNER: u16 = 3;
/// Host veths: two containers in each network.
pub const C0: u32 = 11;
pub const C0B: u32 = 12;
pub const N1A: u32 = 21;
pub const N1B: u32 = 22;
pub const N3A: u32 = 31;
pub const N3B: u32 = 32;

/// Addresses of the test host.
pub trait Addresses: ModelFamily + core::fmt::Debug {
    /// The host's address on [`UP0`].
    const HOST: Self::Addr;
    /// A client beyond it.
    const CLIENT: Self::Addr;
    const LOOPBACK: Self::Addr;
    /// The gateway of the networks' default route.
    const GATEWAY: Self::Addr;
    /// An address in a network (1, 2, 3).
    fn inside(network: u16, host: u8) -> Self::Addr;
    /// Address of a container.
    fn of(ifindex: u32) -> Self::Addr {
        Self::inside((ifindex / 10) as u16, (ifindex % 10 + 1) as u8)
    }
}

const fn v6(a: u16, b: u16, c: u16, last: u16) -> V6Addr {
    V6Addr(std::net::Ipv6Addr::new(a, b, c, 0, 0, 0, 0, last).octets())
}

impl Addresses for V4 {
    const HOST: V4Addr = V4Addr([198, 18, 0, 1]);
    const CLIENT: V4Addr = V4Addr([198, 18, 0, 2]);
    const LOOPBACK: V4Addr = V4Addr([127, 0, 0, 1]);
    const GATEWAY: V4Addr = V4Addr([198, 18, 0, 254]);
    fn inside(network: u16, host: u8) -> V4Addr {
        V4Addr([10, 200 + network as u8, 0, host])
    }
}

impl Addresses for V6 {
    const HOST: V6Addr = v6(0xfd99, 0, 0, 1);
    const CLIENT: V6Addr = v6(0xfd99, 0, 0, 2);
    const LOOPBACK: V6Addr = v6(0, 0, 0, 1);
    const GATEWAY: V6Addr = v6(0xfd99, 0, 0, 0xfe);
    fn inside(network: u16, host: u8) -> V6Addr {
        v6(0xfd00, 0x200 + network, 0, host as u16)
    }
}

pub fn mac(ifindex: u32) -> [u8; 6] {
    [2, 0x42, 0, 0, 0, ifindex as u8]
}

pub fn bridge_mac(network: u16) -> [u8; 6] {
    mac(u32::from(network) * 10)
}

/// What became of a packet.
#[derive(Debug)]
pub struct Result<F> {
    pub outcome: Outcome,
    pub bytes: Vec<u8>,
    /// What was sent besides: interface and bytes.
    pub copies: Vec<(u32, Vec<u8>)>,
    family: PhantomData<F>,
}

impl<F: Addresses> Result<F> {
    pub fn parsed(&self) -> Parsed<F::Addr> {
        let mut bytes = self.bytes.clone();
        let mut parsed = parse::<F>(&mut SlicePacket(&mut bytes), ETH_LEN).expect("still a packet");
        parsed.tuple.reserved = [0; 3];
        parsed
    }
    pub fn src(&self) -> (F::Addr, u16) {
        let tuple = self.parsed().tuple;
        (tuple.src, u16::from_be_bytes(tuple.sport))
    }
    pub fn dst(&self) -> (F::Addr, u16) {
        let tuple = self.parsed().tuple;
        (tuple.dst, u16::from_be_bytes(tuple.dport))
    }
}

/// The test host.
pub struct Host<F: Addresses> {
    pub model: Model,
    family: PhantomData<F>,
}

impl<F: Addresses> Host<F> {
    pub fn new() -> Self {
        let mut model = Model::default();
        let masquerade = network_flag::MASQUERADE_V4 | network_flag::MASQUERADE_V6;
        for (id, flags) in [
            (WEB, network_flag::ICC | masquerade),
            (DARK, masquerade),
            (INNER, network_flag::ICC | network_flag::INTERNAL),
        ] {
            let (v4, v6) = (V4::inside(id, 0).0, V6::inside(id, 0).0);
            let added = model.add_network(&NetworkSpec {
                bridge: u32::from(id) * 10,
                mac: bridge_mac(id),
                flags,
                mode: 0,
                v4: Some((V4::inside(id, 1).0, v4, 24)),
                v6: Some((V6::inside(id, 1).0, v6, 64)),
            });
            assert_eq!(added, id);
        }
        for ifindex in [C0, C0B, N1A, N1B, N3A, N3B] {
            Self::add_container(&mut model, ifindex);
        }
        let uplink = Uplink {
            mtu: 1500,
            flags: 0,
            mac: UP_MAC,
            addr_v4: V4::HOST.0,
            addr_v6: V6::HOST.0,
        };
        model.add_uplink(UP0, uplink);
        model.add_uplink(
            UP1,
            Uplink {
                addr_v4: [0; 4],
                addr_v6: [0; 16],
                ..uplink
            },
        );
        model.add_local::<V4>(V4Addr([127, 0, 0, 0]), 8, crate::abi::local_kind::UNICAST);
        model.add_local::<V6>(V6::LOOPBACK, 128, crate::abi::local_kind::UNICAST);
        let mut host = Self {
            model,
            family: PhantomData,
        };
        host.route(Ok(UP0));
        host.publish(proto::TCP, 8081, C0, 80);
        host.publish(proto::UDP, 8081, C0, 80);
        host.publish(proto::TCP, 8082, N1A, 80);
        host
    }

    pub fn add_container(model: &mut Model, ifindex: u32) {
        model.add_endpoint(&EndpointSpec {
            ifindex,
            network: (ifindex / 10) as u16,
            mac: mac(ifindex),
            v4: Some(V4::of(ifindex).0),
            v6: Some(V6::of(ifindex).0),
        });
    }

    /// Every route leads out of this interface, by the gateway.
    pub fn route(&mut self, answer: core::result::Result<u32, DropReason>) {
        F::tables_mut(&mut self.model).route = Box::new(move |_| {
            Ok(Route {
                oif: answer?,
                mtu: 1500,
                via: F::GATEWAY.padded(),
                via_v6: F::VERSION == 6,
                src: F::HOST,
            })
        });
    }

    pub fn spec(proto: u8, port: u16, container: u32, to: u16) -> PublishSpec<F::Addr> {
        PublishSpec {
            proto,
            host: F::Addr::default(),
            host_ports: (port, port),
            container: F::of(container),
            container_port: to,
            network: (container / 10) as u16,
            overrides: false,
        }
    }

    pub fn publish(&mut self, proto: u8, port: u16, container: u32, to: u16) {
        let spec = Self::spec(proto, port, container, to);
        self.model.publish::<F>(&spec);
    }

    pub fn flags(&mut self, network: u16) -> &mut u16 {
        &mut self.model.networks[usize::from(network)].flags
    }

    pub fn mode(&mut self, network: u16, mode: u8) {
        let network = &mut self.model.networks[usize::from(network)];
        (network.mode_v4, network.mode_v6) = (mode, mode);
    }

    pub fn uplink(&mut self, ifindex: u32) -> &mut Uplink {
        self.model.uplinks.get_mut(&ifindex).expect("an uplink")
    }

    /// Runs bytes through a hook. What was a valid packet must be one afterwards.
    pub fn run(&self, meta: Meta, bytes: Vec<u8>, gso_size: u32) -> Result<F> {
        let valid = verify::<F>(&bytes).is_ok();
        let mut after = bytes.clone();
        let mut packet = GsoPacket {
            gso_size,
            ..GsoPacket::new(&mut after)
        };
        let outcome = self.model.run(&mut packet, &meta).outcome();
        let copies = std::mem::take(&mut packet.copies);
        // The checksum of a datagram in pieces is right when they are put together.
        let whole = copies.is_empty() && !is_fragment(&after);
        if valid && whole {
            assert_eq!(verify::<F>(&after), Ok(()), "{outcome:?}");
        }
        if matches!(outcome, Outcome::Pass | Outcome::Drop(_)) {
            assert_eq!(bytes, after, "changed, though {outcome:?}");
        }
        Result {
            outcome,
            bytes: after,
            copies,
            family: PhantomData,
        }
    }

    pub fn meta(hook: u8, ifindex: u32) -> Meta {
        Meta {
            ifindex,
            to_host: 1,
            hook,
            ..Meta::default()
        }
    }

    /// A container sends to its bridge.
    pub fn sends(&self, ifindex: u32, frame: Frame<F::Addr>) -> Result<F> {
        self.sends_to(ifindex, bridge_mac((ifindex / 10) as u16), frame)
    }

    /// A container sends to this MAC.
    pub fn sends_to(&self, ifindex: u32, to: [u8; 6], frame: Frame<F::Addr>) -> Result<F> {
        let bytes = frame.macs(to, mac(ifindex)).bytes::<F>();
        self.run(Self::meta(hook::FROM_ENDPOINT, ifindex), bytes, 0)
    }

    /// A packet arrives on an uplink.
    pub fn arrive(&self, ifindex: u32, frame: Frame<F::Addr>) -> Result<F> {
        let bytes = frame.macs(UP_MAC, [2, 9, 9, 9, 9, 9]).bytes::<F>();
        self.run(Self::meta(hook::FROM_UPLINK, ifindex), bytes, 0)
    }

    /// A client's segment to a port of the host.
    pub fn client(&self, flags: u8, port: u16) -> Result<F> {
        let frame = Frame::tcp((F::CLIENT, 40000), (F::HOST, port), flags, b"");
        self.arrive(UP0, frame)
    }

    /// A handshake of the client with the port, whose container is C0:80.
    pub fn connect(&self, port: u16) {
        assert_eq!(self.client(SYN, port).outcome, Outcome::Peer(C0));
        assert!(matches!(
            self.server(SYN | ACK).outcome,
            Outcome::Neighbour4(UP0) | Outcome::Neighbour6(UP0)
        ));
        assert_eq!(self.client(ACK, port).outcome, Outcome::Peer(C0));
        assert_eq!(self.flows(), 2);
        assert_eq!(self.embryos(), 0);
    }

    /// A handshake of the client's port with the port, whose container is C0:80.
    pub fn connect_from(&self, client: u16, port: u16) {
        let there = |flags| {
            let frame = Frame::tcp((F::CLIENT, client), (F::HOST, port), flags, b"");
            self.arrive(UP0, frame).outcome
        };
        let back = Frame::tcp((F::of(C0), 80), (F::CLIENT, client), SYN | ACK, b"");
        assert_eq!(there(SYN), Outcome::Peer(C0));
        assert_eq!(self.sends(C0, back).outcome, out::<F>(UP0));
        assert_eq!(there(ACK), Outcome::Peer(C0));
    }

    /// C0's answer to the client.
    pub fn server(&self, flags: u8) -> Result<F> {
        self.sends(
            C0,
            Frame::tcp((F::of(C0), 80), (F::CLIENT, 40000), flags, b""),
        )
    }

    pub fn flows(&self) -> usize {
        F::tables(&self.model).flows.len()
    }
    pub fn embryos(&self) -> usize {
        F::tables(&self.model).embryos.len()
    }
}

fn is_fragment(frame: &[u8]) -> bool {
    frame.len() > 21 && frame[12..14] == [8, 0] && (frame[20] & 0x3f != 0 || frame[21] != 0)
}

/// Out by an uplink.
pub fn out<F: Addresses>(ifindex: u32) -> Outcome {
    if F::VERSION == 4 {
        Outcome::Neighbour4(ifindex)
    } else {
        Outcome::Neighbour6(ifindex)
    }
}

/// Dropped at a container's veth, and the container is told.
pub fn refused(reason: DropReason) -> Outcome {
    Outcome::AnswerPeer(reason)
}

pub fn dropped(reason: DropReason) -> Outcome {
    Outcome::Drop(reason)
}
