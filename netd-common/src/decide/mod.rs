//! What happens to a new flow: Docker's semantics in one place.
//!
//! [`classify`] says which part of the contract answers, and that part decides: [`publish()`],
//! [`direct()`] or [`egress()`]. The same functions decide a flow's first packet and, after any change of
//! the configuration or the routes, its next one. A flow lives on only if the decision is still the
//! same.

mod direct;
mod egress;
mod publish;

pub use self::direct::direct;
pub use self::egress::{egress, egress_uplink};
pub use self::publish::publish;

use crate::{
    abi::{
        Backend, Config, Endpoint, Network, Tuple, Uplink, config_flag, flow_flag, local_kind,
        network_flag, uplink_flag,
    },
    drop::DropReason,
    kernel_flow,
    sabotage::{Check, enforced},
    tables::{Policy, Route, Scratch, Tables},
    wire::{Address, Family, V4Addr, proto, tcp_flag},
};

/// Where a flow comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Origin {
    /// Interface of its first packet.
    pub ifindex: u32,
    /// The container's network id, or 0 for an uplink.
    pub network: u16,
    /// 1: no flow yet, so a listener of the host takes precedence over a publish. 0: the flow is
    /// decided again, and a listener that came later does not take it away.
    pub fresh: u8,
}

impl Origin {
    /// From a step's arguments.
    #[must_use]
    #[inline(always)]
    pub fn new(ifindex: u32, network: u32, fresh: u32) -> Self {
        Self {
            ifindex,
            network: network as u16,
            fresh: fresh as u8,
        }
    }
}

/// What a new flow is to netd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Not netd's: leave the packet to the kernel, untouched.
    Pass,
    /// To a published port: [`publish()`].
    Published,
    /// The same, unless a program of the host listens on the port.
    PublishedUnlessHeard,
    /// To a container's own address: [`direct()`].
    Direct,
    /// From a container to the world: [`egress()`].
    Egress,
}

/// What to do with a flow that netd does not own yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Not netd's: leave the packet to the kernel, untouched.
    Pass,
    /// As [`Scratch::decision`] says.
    Forward,
}

/// Everything that a flow's two entries are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Decision<A> {
    /// [`crate::abi::flow_kind`].
    pub kind: u8,
    /// Source NAT: 1 translates the source to `nat`, with a port still to be chosen.
    pub snat: u8,
    /// 1: a container opened the flow.
    pub outgoing: u8,
    /// Reserved, zero.
    pub reserved: u8,
    /// Host veth of the container that the flow is accounted to: see [`crate::abi::Flow::owner`].
    pub owner: u32,
    /// Destination after translation.
    pub dst: A,
    /// Destination port after translation.
    pub dport: [u8; 2],
    /// Direction of the packets that open the flow.
    pub forward: Leg,
    /// Direction of the replies.
    pub reply: Leg,
    /// Source after translation, if `snat`.
    pub nat: A,
}

/// Where one direction's packets go, and how they arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Leg {
    /// Interface on which they arrive.
    pub in_ifindex: u32,
    /// Interface to which they go. 0: ask the route tables at the first packet.
    pub out_ifindex: u32,
    /// MTU there.
    pub mtu: u16,
    /// `TO_ENDPOINT`, `HOP`, `HOP_V6`, `SAME_BRIDGE` of [`flow_flag`].
    pub flags: u16,
    /// Next hop or MACs, as in [`crate::abi::Flow::via`].
    pub via: [u8; 16],
    /// Destination MAC of the frames that arrive.
    pub in_mac: [u8; 6],
}

// Written in place, field by field: a value on its way would cost BPF stack.
impl Leg {
    #[inline(always)]
    fn clear(&mut self) {
        self.in_ifindex = 0;
        self.out_ifindex = 0;
        self.mtu = 0;
        self.flags = 0;
        self.via = [0; 16];
        self.in_mac = [0; 6];
    }

    /// Delivery into a container.
    #[inline(always)]
    fn lead_to_endpoint(&mut self, ifindex: u32, endpoint: &Endpoint, network: &Network) {
        let (m, b) = (&endpoint.mac, &network.bridge_mac);
        self.out_ifindex = ifindex;
        self.mtu = endpoint.mtu;
        self.flags = flow_flag::TO_ENDPOINT;
        self.via = [
            m[0], m[1], m[2], m[3], m[4], m[5], b[0], b[1], b[2], b[3], b[4], b[5], 0, 0, 0, 0,
        ];
    }

    /// Out by an uplink, where `route` leads.
    #[inline(always)]
    pub(crate) fn lead_to_uplink<A>(&mut self, route: &Route<A>, uplink: &Uplink) {
        self.out_ifindex = route.oif;
        self.mtu = if route.mtu > 0xffff {
            0xffff
        } else {
            route.mtu as u16
        };
        self.flags = if uplink.flags & uplink_flag::L3 != 0 {
            0
        } else if route.via_v6 {
            flow_flag::HOP | flow_flag::HOP_V6
        } else {
            flow_flag::HOP
        };
        self.via = route.via;
    }
}

impl<A: Address> Decision<A> {
    #[inline(always)]
    fn clear(&mut self) {
        self.kind = 0;
        self.snat = 0;
        self.outgoing = 0;
        self.reserved = 0;
        self.owner = 0;
        self.dst = A::default();
        self.dport = [0; 2];
        self.forward.clear();
        self.reply.clear();
        self.nat = A::default();
    }
}

/// Index of a byte that [`Leg::via`] of a way into a container does not need: in the entry of the
/// replies of what a container opened it keeps [`Scratch::tos`]. A flow is routed by that for its
/// life, whichever of its packets leads to another lookup.
pub const TOS: usize = 12;

/// Gateway mode of a network for this family.
#[inline(always)]
#[must_use]
pub fn mode<F: Family>(network: &Network) -> u8 {
    if F::VERSION == 4 {
        network.mode_v4
    } else {
        network.mode_v6
    }
}

/// Must addresses of this network never leave the host as they are?
#[inline(always)]
#[must_use]
pub fn masquerades<F: Family>(network: &Network) -> bool {
    let flag = if F::VERSION == 4 {
        network_flag::MASQUERADE_V4
    } else {
        network_flag::MASQUERADE_V6
    };
    network.flags & flag != 0
}

#[inline(always)]
pub(crate) fn own_address<F: Family>(v4: [u8; 4], v6: [u8; 16]) -> F::Addr {
    if F::VERSION == 4 {
        F::Addr::from_padded(&V4Addr(v4).padded())
    } else {
        F::Addr::from_padded(&v6)
    }
}

/// Which part of the contract answers for `scratch.tuple`, the tuple of the packets that open the
/// flow. The user's policy is asked first, then whether the kernel owns the flow.
///
/// # Errors
/// The reason to drop the packet.
#[inline(always)]
pub fn classify<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    scratch: &mut Scratch<F::Addr>,
    origin: &Origin,
    tcp_flags: u8,
) -> Result<Way, DropReason> {
    if tables.policy(&scratch.tuple, origin.ifindex) == Policy::Drop {
        return Err(DropReason::Policy);
    }
    if origin.fresh != 0
        && kernel_flow::any(config)
        && kernel_flow::owns_arriving::<F, T>(
            tables,
            &scratch.tuple,
            &mut scratch.socket,
            tcp_flags,
        )
    {
        return Ok(Way::Pass);
    }
    let own = if origin.network == 0 {
        None
    } else {
        tables.network(origin.network)
    };
    let internal =
        own.is_some_and(|n| n.flags & network_flag::INTERNAL != 0) && enforced(Check::Internal);
    if internal && tables.subnet(&scratch.tuple.dst) != origin.network {
        return Err(DropReason::Internal);
    }
    let local = tables.local(&scratch.tuple.dst);
    if local == local_kind::UNICAST {
        return match published::<F, T>(tables, &scratch.tuple) {
            // The gateway lies in the subnet, but the port behind it does not.
            Some(_) if internal => Err(DropReason::Internal),
            Some(backend) => {
                publish::admit::<F>(config, &scratch.tuple, origin, backend, tcp_flags)
            }
            None => Ok(Way::Pass),
        };
    }
    if local != local_kind::NONE {
        return Ok(Way::Pass);
    }
    if tables.subnet(&scratch.tuple.dst) != 0 {
        return Ok(Way::Direct);
    }
    match own {
        Some(_) => Ok(Way::Egress),
        None => Ok(Way::Pass),
    }
}

/// The publish that a local destination matches: of the exact address, else of any.
#[inline(always)]
pub(crate) fn published<'t, F: Family, T: Tables<F>>(
    tables: &'t T,
    tuple: &Tuple<F::Addr>,
) -> Option<&'t Backend<F::Addr>> {
    if !tables.port_published(tuple.proto, tuple.dport) {
        return None;
    }
    if let Some(backend) = tables.backend(tuple.proto, &tuple.dst, tuple.dport) {
        return Some(backend);
    }
    tables.backend(tuple.proto, &F::Addr::default(), tuple.dport)
}

/// Where netd yields to the kernel's rules, the kernel may own a connection whose beginning netd did
/// not see.
#[inline(always)]
fn kernel_may_own(config: &Config, tuple_proto: u8, tcp_flags: u8) -> bool {
    config.flags & config_flag::YIELDS != 0
        && tuple_proto == proto::TCP
        && tcp_flags & (tcp_flag::SYN | tcp_flag::ACK) != tcp_flag::SYN
}

/// Both ways of a flow that leads into a container: from an uplink, or from a container.
///
/// # Errors
/// [`DropReason::UnknownEndpoint`].
#[inline(always)]
fn into_endpoint<F: Family, T: Tables<F>>(
    tables: &T,
    d: &mut Decision<F::Addr>,
    origin: &Origin,
    ifindex: u32,
    endpoint: &Endpoint,
    network: &Network,
) -> Result<(), DropReason> {
    d.owner = ifindex;
    d.forward.in_ifindex = origin.ifindex;
    d.forward.lead_to_endpoint(ifindex, endpoint, network);
    d.reply.in_ifindex = ifindex;
    d.reply.in_mac = network.bridge_mac;
    if origin.network == 0 {
        return Ok(());
    }
    let client = tables
        .endpoint(origin.ifindex)
        .ok_or(DropReason::UnknownEndpoint)?;
    let client_network = tables
        .network(origin.network)
        .ok_or(DropReason::UnknownEndpoint)?;
    d.outgoing = 1;
    d.owner = origin.ifindex;
    d.forward.in_mac = client_network.bridge_mac;
    d.reply
        .lead_to_endpoint(origin.ifindex, &client, client_network);
    if endpoint.network == origin.network {
        // The server answers its neighbour directly, not by the gateway.
        d.reply.in_mac = client.mac;
    }
    Ok(())
}

/// Sources that the stack would refuse: a redirect skips its own checks (ip_route_input_slow and
/// fib_validate_source). The reverse lookup is made as for the reply, from the container's bridge:
/// the uplink itself need not forward, and bpf_fib_lookup refuses an interface that does not.
#[inline(always)]
pub(crate) fn check_source<F: Family, T: Tables<F>>(
    tables: &T,
    scratch: &mut Scratch<F::Addr>,
    ifindex: u32,
    bridge: u32,
) -> Result<(), DropReason> {
    let tuple = &scratch.tuple;
    if enforced(Check::Martian)
        && (tuple.src.is_martian_source()
            || tables.local(&tuple.src) != local_kind::NONE
            || tables.subnet(&tuple.src) != 0)
    {
        return Err(DropReason::MartianSource);
    }
    let strict = tables
        .uplink(ifindex)
        .is_some_and(|u| u.flags & uplink_flag::STRICT_RP_FILTER != 0);
    if strict && enforced(Check::ReversePath) {
        let query = &mut scratch.query;
        query.ask(bridge, tuple.dst, tuple.src, tuple.proto);
        query.between(tuple.dport, tuple.sport);
        query.tos = scratch.tos;
        if tables.route().is_err() || scratch.route.oif != ifindex {
            return Err(DropReason::ReversePath);
        }
    }
    Ok(())
}
