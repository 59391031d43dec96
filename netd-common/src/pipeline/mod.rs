//! The hooks. Each reads the frame, follows an established flow in one lookup, and leaves
//! everything else to its slow path.

mod bridge_guard;
mod continuing;
mod fragmenting;
mod fragments;
mod from_endpoint;
mod from_uplink;
mod host_socket;
mod icmp_error;
mod mss;
mod refusal;
pub mod steps;
mod symmetric;
mod to_endpoint;
mod way;

pub use self::bridge_guard::{bridge_guard_in, bridge_guard_out};
pub use self::from_endpoint::from_endpoint;
pub use self::from_uplink::{from_tunnel, from_uplink};
pub use self::to_endpoint::to_endpoint;

use crate::{
    abi::{AnyTuple, Config, DropKey, config_flag, flow_flag},
    conntrack::{SHORTEST_LIFETIME, State},
    drop::DropReason,
    flow::ROUTE_LIFETIME,
    nat::translate,
    packet::Packet,
    parse::Parsed,
    tables::{Slot, Steps, Tables},
    wire::{Address, Eth, Family, V4, V6, proto, tcp_flag},
};

/// What the hook knows of a packet beside its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Meta {
    /// Interface of the hook.
    pub ifindex: u32,
    /// Interface on which the packet entered the host; 0: the host sent it.
    pub ingress_ifindex: u32,
    /// 1: the frame is addressed to this host's MAC (PACKET_HOST).
    pub to_host: u8,
    /// 1: a VLAN tag was taken off by the hardware or the stack (vlan_present).
    pub vlan: u8,
    /// [`crate::abi::hook`].
    pub hook: u8,
}

/// What to do with the packet: an action, its argument, and what a drop is counted by, in one
/// register (a BPF subprogram returns one).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Verdict(pub u64);

/// A [`Verdict`], readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// To the next program or the kernel, untouched.
    Pass,
    /// Away.
    Drop(DropReason),
    /// Into the namespace of this host veth's peer.
    Peer(u32),
    /// Out of this interface, to the IPv4 next hop in [`crate::tables::Scratch::hop`].
    Neighbour4(u32),
    /// Out of this interface, to the IPv6 next hop in [`crate::tables::Scratch::hop`].
    Neighbour6(u32),
    /// Out of this host veth, addressed to its container's MAC.
    Endpoint(u32),
    /// Out of this interface as it is: it has no Ethernet header, or the packet bears it already.
    Device(u32),
    /// Dropped, and answered: the answer is in the packet's place, for the container that it came
    /// from.
    AnswerPeer(DropReason),
    /// The same, to be sent out of the interface that the packet came in by.
    AnswerBack(DropReason),
}

const PASS: u64 = 0;
const DROP: u64 = 1;
const PEER: u64 = 2;
const NEIGHBOUR4: u64 = 3;
const NEIGHBOUR6: u64 = 4;
const ENDPOINT: u64 = 5;
const DEVICE: u64 = 6;
const ANSWER_PEER: u64 = 7;
const ANSWER_BACK: u64 = 8;
/// The bits of a [`Verdict`] that hold its action.
const ACTION: u64 = 0x7f << 32;
/// The packet took the slow path.
const SLOW: u64 = 1 << 39;

impl Verdict {
    /// [`Outcome::Pass`].
    pub const PASSED: Self = Self(PASS);

    #[inline(always)]
    const fn new(action: u64, argument: u32) -> Self {
        Self(action << 32 | argument as u64)
    }

    /// [`Outcome::Drop`].
    #[must_use]
    #[inline(always)]
    pub const fn drop(reason: DropReason) -> Self {
        Self::new(DROP, reason as u32)
    }

    /// With the family and the network that a drop is counted by.
    #[must_use]
    #[inline(always)]
    const fn of(self, family: u8, network: u16) -> Self {
        Self(self.0 | (family as u64) << 40 | (network as u64) << 48)
    }

    #[must_use]
    #[inline(always)]
    const fn slow(self) -> Self {
        Self(self.0 | SLOW)
    }

    /// Action code: 0 pass, 1 drop, 2 peer, 3 and 4 neighbour, 5 endpoint,
    /// 6 device, 7 and 8 answer.
    #[must_use]
    #[inline(always)]
    pub const fn action(self) -> u64 {
        self.0 >> 32 & 0x7f
    }

    /// Does the packet go somewhere by netd's hand?
    #[must_use]
    #[inline(always)]
    pub const fn redirects(self) -> bool {
        self.action() > DROP
    }

    /// Interface or drop reason.
    #[must_use]
    #[inline(always)]
    pub const fn argument(self) -> u32 {
        self.0 as u32
    }

    /// Did the packet need a decision?
    #[must_use]
    #[inline(always)]
    pub const fn is_slow(self) -> bool {
        self.0 & SLOW != 0
    }

    /// 4, 6, or 0 where no IP header was read.
    #[must_use]
    #[inline(always)]
    pub const fn family(self) -> u8 {
        (self.0 >> 40) as u8
    }

    /// Network id, 0 where none is known.
    #[must_use]
    #[inline(always)]
    pub const fn network(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The readable form.
    ///
    /// # Panics
    /// If the bits are not a verdict.
    #[must_use]
    pub fn outcome(self) -> Outcome {
        let argument = self.argument();
        match self.action() {
            PASS => Outcome::Pass,
            DROP => Outcome::Drop(DropReason::from_number(argument as u16).expect("a reason")),
            PEER => Outcome::Peer(argument),
            NEIGHBOUR4 => Outcome::Neighbour4(argument),
            NEIGHBOUR6 => Outcome::Neighbour6(argument),
            ENDPOINT => Outcome::Endpoint(argument),
            DEVICE => Outcome::Device(argument),
            ANSWER_PEER | ANSWER_BACK => {
                let reason = DropReason::from_number(argument as u16).expect("a reason");
                if self.action() == ANSWER_PEER {
                    Outcome::AnswerPeer(reason)
                } else {
                    Outcome::AnswerBack(reason)
                }
            }
            action => panic!("no action {action}"),
        }
    }
}

impl core::fmt::Debug for Verdict {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}", self.outcome())
    }
}

/// What a drop is counted by.
#[must_use]
#[inline(always)]
pub fn drop_key(verdict: Verdict, meta: &Meta) -> DropKey {
    DropKey {
        reason: verdict.argument() as u16,
        hook: meta.hook,
        family: verdict.family(),
        ifindex: meta.ifindex,
        network: verdict.network(),
        reserved: 0,
    }
}

/// The addresses of a parsed packet, for drop counters.
#[inline(always)]
pub fn any_tuple<F: Family>(parsed: &Parsed<F::Addr>, out: &mut AnyTuple) {
    out.src = parsed.tuple.src.padded();
    out.dst = parsed.tuple.dst.padded();
    out.sport = parsed.tuple.sport;
    out.dport = parsed.tuple.dport;
    out.proto = parsed.tuple.proto;
    out.family = F::VERSION;
}

/// Does netd leave what it does not know to the kernel's own rules? In accelerate mode, and while
/// it is drained.
#[inline(always)]
fn yields(config: &Config) -> bool {
    config.flags & config_flag::YIELDS != 0
}

/// [`steps::kernel_forwards`] of the packet's family.
#[inline(always)]
fn kernel_forwards<P: Packet, T: Steps<V4> + Steps<V6>>(
    packet: &mut P,
    tables: &T,
    family: u8,
    translated: u32,
) -> bool {
    match family {
        4 => kernel_forwards_of::<V4, P, T>(packet, tables, translated),
        6 => kernel_forwards_of::<V6, P, T>(packet, tables, translated),
        _ => false,
    }
}

#[inline(always)]
fn kernel_forwards_of<F: Family, P: Packet, T: Steps<F>>(
    packet: &mut P,
    tables: &T,
    translated: u32,
) -> bool {
    let mut forwards = tables.kernel_forwards(packet, translated);
    if forwards == steps::ASK_OF_QUOTED {
        if tables.read_quoted(packet) == 0 {
            return false;
        }
        forwards = tables.kernel_forwards(packet, translated | steps::QUOTED);
    }
    forwards == 1
}

/// Sends the packet along its flow. `l3`: offset of the IP header, 0 or [`crate::wire::ETH_LEN`].
///
/// # Errors
/// [`DropReason::TooBig`], [`DropReason::TtlExpired`], [`DropReason::HelperFailed`].
#[inline(always)]
fn deliver<F: Family, P: Packet>(
    packet: &mut P,
    now: u32,
    l3: u32,
    parsed: &Parsed<F::Addr>,
    slot: &Slot<F::Addr>,
    hop: &mut [u8; 16],
) -> Result<Verdict, DropReason> {
    if packet.len() - l3 > u32::from(slot.mtu()) && !segments_fit(packet, parsed, slot) {
        oversize::<F>(packet, parsed, slot)?;
    }
    translate::<F>(packet, parsed, slot)?;
    slot.set_packets(slot.packets() + 1);
    slot.set_bytes(slot.bytes() + u64::from(packet.len()));
    slot.set_last_seen(now);
    lead::<F, P>(packet, l3, slot, hop)
}

/// The verdict that sends a translated packet on its flow's way. `l3`: as of [`deliver`].
///
/// # Errors
/// [`DropReason::HelperFailed`].
#[inline(always)]
fn lead<F: Family, P: Packet>(
    packet: &mut P,
    l3: u32,
    slot: &Slot<F::Addr>,
    hop: &mut [u8; 16],
) -> Result<Verdict, DropReason> {
    let flags = slot.flags();
    let via = slot.via();
    if flags & flow_flag::TO_ENDPOINT != 0 {
        let header = frame_header::<F>(via);
        if l3 == 0 {
            packet.push_ethernet(header)?;
        } else {
            packet.write(0, header)?;
        }
        return Ok(Verdict::new(PEER, slot.out_ifindex()));
    }
    *hop = via;
    let action = if flags & flow_flag::HOP == 0 {
        if flags & flow_flag::LINK != 0 {
            packet.write(0, frame_header::<F>(via))?;
        }
        DEVICE
    } else if flags & flow_flag::HOP_V6 != 0 {
        NEIGHBOUR6
    } else {
        NEIGHBOUR4
    };
    Ok(Verdict::new(action, slot.out_ifindex()))
}

/// The Ethernet header of which [`crate::abi::Flow::via`] holds the addresses.
#[inline(always)]
fn frame_header<F: Family>(via: [u8; 16]) -> Eth {
    Eth {
        dst: [via[0], via[1], via[2], via[3], via[4], via[5]],
        src: [via[6], via[7], via[8], via[9], via[10], via[11]],
        ethertype: F::ETHERTYPE,
    }
}

/// A packet that is larger than the MTU on its way may go all the same if nobody asked that it stay
/// whole, and it is for a container: bpf_redirect_peer knows no MTU, and the MTU of an interface is
/// for what leaves by it, not for what it receives.
///
/// # Errors
/// [`DropReason::TtlExpired`] (which a router finds out first), [`DropReason::TooBig`],
/// [`DropReason::CannotFragment`].
#[inline(always)]
fn oversize<F: Family>(
    packet: &impl Packet,
    parsed: &Parsed<F::Addr>,
    slot: &Slot<F::Addr>,
) -> Result<(), DropReason> {
    const DONT_FRAGMENT: u8 = 0x40;
    if parsed.ttl <= 1 {
        return Err(DropReason::TtlExpired);
    }
    if F::VERSION != 4 || packet.read::<u8>(parsed.l3 + 6)? & DONT_FRAGMENT != 0 {
        return Err(DropReason::TooBig);
    }
    if slot.flags() & flow_flag::TO_ENDPOINT != 0 {
        return Ok(());
    }
    Err(DropReason::CannotFragment)
}

/// A GSO packet is as large as its segments.
#[inline(always)]
fn segments_fit<A>(packet: &impl Packet, parsed: &Parsed<A>, slot: &Slot<A>) -> bool
where
    A: Copy,
{
    let mtu = u32::from(slot.mtu());
    let size = packet.gso_size();
    if size == 0 {
        return false;
    }
    if parsed.tuple.proto == proto::TCP {
        let Ok(offset) = packet.read::<u8>(parsed.l4 + 12) else {
            return false;
        };
        let header = u32::from(offset >> 4) * 4;
        return parsed.l4 - parsed.l3 + header + size <= mtu;
    }
    // A segment of UDP may be a tunnel's, with headers of its own inside, and SCTP's are packets of
    // any size (GSO_BY_FRAGS): only the kernel knows, and it knows the device.
    let by_frags = size == 0xffff;
    (by_frags || parsed.l4 - parsed.l3 + 8 + size <= mtu) && packet.segments_fit(slot.out_ifindex())
}

/// The flow that an established packet belongs to, if nothing about it needs thought: it arrives
/// where its flow's packets arrive, its decision and route are current, and it changes no state.
#[inline(always)]
fn established<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    now: u32,
    parsed: &Parsed<F::Addr>,
    ifindex: u32,
    in_mac: [u8; 6],
) -> Option<Slot<F::Addr>> {
    let slot = tables.flow(&parsed.tuple)?;
    if slot.in_ifindex() != ifindex || slot.in_mac() != in_mac || slot.epoch() != config.epoch {
        return None;
    }
    // It may have expired, and nobody was there to collect it.
    if now.wrapping_sub(slot.last_seen()) > SHORTEST_LIFETIME {
        return None;
    }
    if slot.flags() & flow_flag::TO_ENDPOINT == 0
        && now.wrapping_sub(slot.routed_at()) > ROUTE_LIFETIME
    {
        return None;
    }
    if parsed.tuple.proto == proto::TCP
        && (parsed.tcp_flags & (tcp_flag::SYN | tcp_flag::FIN | tcp_flag::RST) != 0
            || slot.state() != State::Established as u8)
    {
        return None;
    }
    Some(slot)
}
