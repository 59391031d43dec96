//! Keys and values of the BPF maps: the contract between the daemon and the programs.
//!
//! What came from a packet (addresses, ports, MACs) is a byte array in wire order; counters,
//! ifindexes and times are native integers. Every type is plain data: no padding the compiler
//! chose, no `bool`, `enum` or `Option`, and its size is asserted below. Alignment 4 lets BPF move
//! whole words on its stack. A change of any layout or
//! meaning is a new [`VERSION`], which is part of the pin path.

use crate::wire::Wire;
pub use crate::wire::{V4Addr, V6Addr};

/// Version of everything in this module. Maps are pinned under `<pin_dir>/v<VERSION>/`.
pub const VERSION: u32 = 2;

/// Names of the maps in the BPF object, which are also their pin names.
pub mod map {
    /// [`super::Config`], one element.
    pub const CONFIG: &str = "CONFIG";
    /// ifindex of a container's host veth (native u32) → [`super::Endpoint`].
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// Container IPv4 address → [`super::EndpointAddress`].
    pub const ADDRS_V4: &str = "ADDRS_V4";
    /// Container IPv6 address → [`super::EndpointAddress`].
    pub const ADDRS_V6: &str = "ADDRS_V6";
    /// Network id → [`super::Network`], an array; id 0 is never used.
    pub const NETWORKS: &str = "NETWORKS";
    /// [`super::NetworkInterface`] → native u32 flags (1 = trusted).
    pub const TRUSTED: &str = "TRUSTED";
    /// Prefix → [`super::Subnet`] of a managed network, LPM.
    pub const SUBNETS_V4: &str = "SUBNETS_V4";
    /// The same for IPv6.
    pub const SUBNETS_V6: &str = "SUBNETS_V6";
    /// Prefix of the host's `local` route table → [`super::LocalAddress`], LPM.
    pub const LOCAL_V4: &str = "LOCAL_V4";
    /// The same for IPv6.
    pub const LOCAL_V6: &str = "LOCAL_V6";
    /// ifindex (native u32) of every L3 interface that is not a managed bridge → [`super::Uplink`].
    pub const UPLINKS: &str = "UPLINKS";
    /// [`super::PortPrefix`] of a host address → [`super::Backend`], LPM.
    pub const PUBLISH_V4: &str = "PUBLISH_V4";
    /// The same for IPv6.
    pub const PUBLISH_V6: &str = "PUBLISH_V6";
    /// [`super::PortPrefix`] of a container address → native u32 (1): container ports that some
    /// publish opens, for direct routing. LPM.
    pub const EXPOSED_V4: &str = "EXPOSED_V4";
    /// The same for IPv6.
    pub const EXPOSED_V6: &str = "EXPOSED_V6";
    /// Bitmap of host ports that some publish of any address uses: one native u64 per 64 ports,
    /// index [`super::port_word`].
    pub const PORTS: &str = "PORTS";
    /// [`super::Tuple`] → [`super::Flow`]: confirmed IPv4 flows, two entries each; see [`crate::room`].
    pub const FLOWS_V4: &str = "FLOWS_V4";
    /// The same for IPv6.
    pub const FLOWS_V6: &str = "FLOWS_V6";
    /// IPv4 flows that no reply has confirmed yet, two entries each.
    pub const EMBRYOS_V4: &str = "EMBRYOS_V4";
    /// The same for IPv6.
    pub const EMBRYOS_V6: &str = "EMBRYOS_V6";
    /// Index → [`super::Seat`]: every flow of `FLOWS_V4`, for the hand that looks for room.
    pub const FLOW_RING_V4: &str = "FLOW_RING_V4";
    /// The same for IPv6.
    pub const FLOW_RING_V6: &str = "FLOW_RING_V6";
    /// Index → [`super::Seat`]: every flow of `EMBRYOS_V4`.
    pub const EMBRYO_RING_V4: &str = "EMBRYO_RING_V4";
    /// The same for IPv6.
    pub const EMBRYO_RING_V6: &str = "EMBRYO_RING_V6";
    /// [`super::flow_table`] → [`super::Hand`].
    pub const HANDS: &str = "HANDS";
    /// ifindex of a container's host veth (native u32) → [`super::Holding`].
    pub const HOLDINGS: &str = "HOLDINGS";
    /// [`super::flow_table`] → [`super::TableEvents`], per CPU.
    pub const TABLE_EVENTS: &str = "TABLE_EVENTS";
    /// Ring buffer of [`super::NatPressure`], sampled.
    pub const NAT_EVENTS: &str = "NAT_EVENTS";
    /// [`super::Tuple`] → [`super::KernelFlow`]: IPv4 flows that the kernel's own conntrack owned
    /// when netd came, two entries each.
    pub const KERNEL_FLOWS_V4: &str = "KERNEL_FLOWS_V4";
    /// The same for IPv6.
    pub const KERNEL_FLOWS_V6: &str = "KERNEL_FLOWS_V6";
    /// [`super::FragmentKey`] → [`super::Fragments`]: IPv4 packets that come in fragments, LRU.
    pub const FRAGMENTS_V4: &str = "FRAGMENTS_V4";
    /// The same for IPv6.
    pub const FRAGMENTS_V6: &str = "FRAGMENTS_V6";
    /// Index → [`super::IpsecPolicy`]: what the kernel encrypts or blocks on its way out, IPv4.
    pub const IPSEC_V4: &str = "IPSEC_V4";
    /// The same for IPv6.
    pub const IPSEC_V6: &str = "IPSEC_V6";
    /// [`super::SuppressedHop`] → [`super::Suppressed`]: next hops of IPv6 that policy rules suppress.
    pub const SUPPRESSED_V6: &str = "SUPPRESSED_V6";
    /// [`super::DropKey`] → [`super::DropCount`], per CPU.
    pub const DROPS: &str = "DROPS";
    /// Ring buffer of [`super::DropEvent`], sampled.
    pub const DROP_EVENTS: &str = "DROP_EVENTS";
    /// [`super::Verdicts`] per hook, per CPU; index [`super::hook`].
    pub const VERDICTS: &str = "VERDICTS";
    /// [`super::answer_kind`] → [`super::Answers`], per CPU.
    pub const ANSWERS: &str = "ANSWERS";
    /// [`super::SocketKey`] → [`super::SocketPeer`]: sockets of the host that were led to a
    /// container, LRU.
    pub const SOCKETS: &str = "SOCKETS";
}

/// Hook numbers: index in `VERDICTS`, and `hook` of drop counters and events.
pub mod hook {
    /// tcx ingress of a container's host veth: what the container sends.
    pub const FROM_ENDPOINT: u8 = 0;
    /// tcx egress of a container's host veth: what the stack or the bridge delivers.
    pub const TO_ENDPOINT: u8 = 1;
    /// tcx ingress of every other L3 interface.
    pub const FROM_UPLINK: u8 = 2;
    /// tcx ingress of a managed bridge.
    pub const BRIDGE_IN: u8 = 3;
    /// tcx egress of a managed bridge.
    pub const BRIDGE_OUT: u8 = 4;
    /// Hooks below this number see packets; the others see calls of the host's sockets.
    pub const PACKETS: u8 = 5;
    /// cgroup: connect() of an IPv4 socket, or to an IPv4 address.
    pub const CONNECT4: u8 = 5;
    /// cgroup: connect() of an IPv6 socket.
    pub const CONNECT6: u8 = 6;
    /// cgroup: sendmsg() of a UDP socket to an IPv4 address.
    pub const SENDMSG4: u8 = 7;
    /// cgroup: sendmsg() of a UDP socket to an IPv6 address.
    pub const SENDMSG6: u8 = 8;
    /// cgroup: recvmsg() of an IPv4 UDP socket.
    pub const RECVMSG4: u8 = 9;
    /// cgroup: recvmsg() of an IPv6 UDP socket.
    pub const RECVMSG6: u8 = 10;
    /// cgroup: getpeername() of an IPv4 socket.
    pub const GETPEERNAME4: u8 = 11;
    /// cgroup: getpeername() of an IPv6 socket.
    pub const GETPEERNAME6: u8 = 12;
    /// How many there are.
    pub const COUNT: u8 = 13;

    /// Name for people and JSON.
    #[must_use]
    pub fn name(hook: u8) -> &'static str {
        match hook {
            CONNECT4 => "connect4",
            CONNECT6 => "connect6",
            SENDMSG4 => "sendmsg4",
            SENDMSG6 => "sendmsg6",
            RECVMSG4 => "recvmsg4",
            RECVMSG6 => "recvmsg6",
            GETPEERNAME4 => "getpeername4",
            GETPEERNAME6 => "getpeername6",
            FROM_ENDPOINT => "from_endpoint",
            TO_ENDPOINT => "to_endpoint",
            FROM_UPLINK => "from_uplink",
            BRIDGE_IN => "bridge_guard_in",
            BRIDGE_OUT => "bridge_guard_out",
            _ => "unknown",
        }
    }
}

/// [`Config::flags`].
pub mod config_flag {
    /// The Engine's own rules stay in force: unknown mid-stream TCP is passed, not picked up.
    pub const ACCELERATE: u32 = 1;
    /// `allow_direct_routing`: published container ports may be reached by direct routing.
    pub const ALLOW_DIRECT_ROUTING: u32 = 2;
    /// `netd unload --drain`: no new flow is taken; what is new is left to the kernel.
    pub const DRAIN: u32 = 4;
    /// There may be flows that the kernel's own NAT owned before netd came.
    pub const KERNEL_FLOWS: u32 = 8;
    /// There are IPsec policies for outgoing packets: see [`super::IpsecPolicy`].
    pub const IPSEC: u32 = 16;
    /// What says how things stand, not what is wanted: these bits come and go while netd is in
    /// force, and no reading of the file or the host changes them.
    pub const PASSING: u32 = DRAIN | KERNEL_FLOWS;
    /// Any of these: what netd does not know is left to the kernel and its rules.
    pub const YIELDS: u32 = ACCELERATE | DRAIN;
}

/// The one element of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Bumped by the daemon whenever routes, addresses, endpoints, networks or publishes change.
    /// A flow with another epoch is decided and routed again at its next packet.
    pub epoch: u32,
    /// [`config_flag`] bits.
    pub flags: u32,
    /// First port of the source NAT range, native.
    pub nat_first: u16,
    /// Last port of the source NAT range, inclusive, native.
    pub nat_last: u16,
    /// Seed of the source port hash; drawn once when the maps are created.
    pub seed: u32,
    /// CLOCK_BOOTTIME seconds at which the daemon last synchronised; 0: never.
    pub synced_at: u32,
    /// Reserved, zero.
    pub reserved: u32,
    /// Cookie of netd's own network namespace (SO_NETNS_COOKIE): sockets of others are not its
    /// business.
    pub netns_cookie: u64,
    /// Number of seats of each flow table, that is of flows it has room for; see [`flow_table`].
    pub seats: [u32; flow_table::COUNT],
}

/// The flow tables by number: index of whatever is kept per table.
pub mod flow_table {
    /// `EMBRYOS_V4`.
    pub const EMBRYOS_V4: usize = 0;
    /// `FLOWS_V4`.
    pub const FLOWS_V4: usize = 1;
    /// `EMBRYOS_V6`.
    pub const EMBRYOS_V6: usize = 2;
    /// `FLOWS_V6`.
    pub const FLOWS_V6: usize = 3;
    /// How many there are.
    pub const COUNT: usize = 4;
}

/// A flow's place in its table's ring. A flow table has no order that a program could walk; the
/// ring has, and a hand goes round it looking for room.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seat<A> {
    /// Key of the flow's original direction.
    pub tuple: Tuple<A>,
    /// [`Flow::generation`]; 0: nobody sits here. A flow that left its table leaves its seat as it
    /// is: it is free when no flow of that key and generation is in the table.
    pub generation: u32,
    /// [`Flow::owner`]; 0 for an embryo that no container opened. Changes together with the
    /// generation, atomically: [`Seat::state`].
    pub owner: u32,
}

impl<A> Seat<A> {
    /// [`Seat::state`] while the tuple is written.
    pub const BEING_TAKEN: u64 = (u32::MAX as u64) << 32;

    /// Generation and owner as one number.
    #[must_use]
    #[inline(always)]
    pub const fn state(generation: u32, owner: u32) -> u64 {
        generation as u64 | (owner as u64) << 32
    }
}

/// The hand of a ring: where the next search for room begins. A cache line of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hand {
    /// Counts up; modulo the number of seats it is an index.
    pub next: u64,
    /// Reserved, zero.
    pub reserved: [u64; 7],
}

/// How many flows one container has in each [`flow_table`]: what it opened among the embryos, and
/// everything that leads to it or from it among the flows. Native, signed: the daemon's recount may
/// for a moment be behind what the programs subtract.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// By [`flow_table`].
    pub flows: [i64; flow_table::COUNT],
}

/// Index of [`TableEvents::count`].
pub mod table_event {
    /// A flow beyond its lifetime made room.
    pub const EXPIRED: usize = 0;
    /// An embryo made room for another.
    pub const EVICTED_EMBRYO: usize = 1;
    /// A closed or closing connection made room.
    pub const EVICTED_CLOSING: usize = 2;
    /// An idle flow without a connection (UDP, echo) made room.
    pub const EVICTED_IDLE: usize = 3;
    /// A confirmed flow found no room among the flows and stays among the embryos.
    pub const OVERFLOWED: usize = 4;
    /// A new flow was refused: the table is full.
    pub const REFUSED_FULL: usize = 5;
    /// A new flow was refused: its container has its share.
    pub const REFUSED_SHARE: usize = 6;
    /// A source port was taken over from a closed connection.
    pub const PORT_REUSED: usize = 7;
    /// How many there are.
    pub const COUNT: usize = 8;
}

/// What happened in a flow table for want of room, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableEvents {
    /// By [`table_event`].
    pub count: [u64; table_event::COUNT],
}

/// A new flow found many source ports taken. Sampled: at most [`NAT_EVENTS_PER_SECOND`] per CPU.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatPressure {
    /// The address that was to be masqueraded with; IPv4 addresses fill the first 4 bytes.
    pub address: [u8; 16],
    /// Where the flow leads.
    pub dst: [u8; 16],
    /// Port there, wire order; for echo the identifier.
    pub dport: [u8; 2],
    /// IP protocol.
    pub proto: u8,
    /// 4 or 6.
    pub family: u8,
    /// Ports that were tried in vain.
    pub attempts: u16,
    /// 1: none was found, and the flow was refused.
    pub exhausted: u16,
}

/// Rate limit of [`NatPressure`] events per CPU.
pub const NAT_EVENTS_PER_SECOND: u32 = 10;

/// [`Endpoint::flags`].
pub mod endpoint_flag {
    /// The far end is in another namespace: `bpf_redirect_peer` delivers there. Clear for a tap.
    pub const PEER: u16 = 1;
}

/// A managed container's interface on a bridge, by the ifindex of its host end.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// MAC inside the container.
    pub mac: [u8; 6],
    /// Network id: index in `NETWORKS`.
    pub network: u16,
    /// MTU of the container's interface. What is larger and must not be fragmented is not delivered.
    pub mtu: u16,
    /// [`endpoint_flag`] bits.
    pub flags: u16,
}

/// Who owns a container address.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointAddress {
    /// ifindex of the host veth: key in `ENDPOINTS`.
    pub ifindex: u32,
    /// Network id.
    pub network: u16,
    /// Reserved, zero.
    pub reserved: u16,
}

/// [`Network::mode_v4`] and [`Network::mode_v6`].
pub mod gateway_mode {
    /// Masquerade out, DNAT in, unpublished ports closed.
    pub const NAT: u8 = 0;
    /// As NAT, but open to direct routing.
    pub const NAT_UNPROTECTED: u8 = 1;
    /// No translation; published container ports open to direct routing.
    pub const ROUTED: u8 = 2;
    /// No gateway address on the bridge.
    pub const ISOLATED: u8 = 3;
}

/// [`Network::flags`].
pub mod network_flag {
    /// This id is in use.
    pub const ACTIVE: u16 = 1;
    /// Containers of the bridge may talk to each other.
    pub const ICC: u16 = 2;
    /// Nothing enters or leaves the subnets.
    pub const INTERNAL: u16 = 4;
    /// `spoof = "strict"`.
    pub const SPOOF_STRICT: u16 = 8;
    /// `spoof = "off"`.
    pub const SPOOF_OFF: u16 = 16;
    /// Source NAT for IPv4 egress.
    pub const MASQUERADE_V4: u16 = 32;
    /// Source NAT for IPv6 egress.
    pub const MASQUERADE_V6: u16 = 64;
}

/// A managed bridge network.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// ifindex of the bridge.
    pub bridge: u32,
    /// MAC of the bridge: what containers send to when they send beyond their subnet.
    pub bridge_mac: [u8; 6],
    /// [`network_flag`] bits.
    pub flags: u16,
    /// [`gateway_mode`] of IPv4.
    pub mode_v4: u8,
    /// [`gateway_mode`] of IPv6.
    pub mode_v6: u8,
    /// Reserved, zero.
    pub reserved: u16,
    /// The bridge's own IPv4 address: source of a container's connection to itself. 0: none.
    pub gateway_v4: [u8; 4],
    /// The same for IPv6.
    pub gateway_v6: [u8; 16],
    /// Fixed IPv4 masquerade address (`masquerade_to`). 0: that of the egress interface.
    pub nat_v4: [u8; 4],
    /// The same for IPv6.
    pub nat_v6: [u8; 16],
}

/// A pair of a network and an interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetworkInterface {
    /// Network id.
    pub network: u32,
    /// Interface.
    pub ifindex: u32,
}

/// Network that a managed prefix belongs to.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subnet {
    /// Network id.
    pub network: u16,
    /// Reserved, zero.
    pub reserved: u16,
}

/// [`LocalAddress::kind`].
pub mod local_kind {
    /// Not the host's.
    pub const NONE: u16 = 0;
    /// RTN_LOCAL.
    pub const UNICAST: u16 = 1;
    /// RTN_BROADCAST.
    pub const BROADCAST: u16 = 2;
    /// RTN_ANYCAST, RTN_MULTICAST.
    pub const OTHER: u16 = 3;
}

/// A prefix that the host itself answers for (route table 255).
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalAddress {
    /// [`local_kind`].
    pub kind: u16,
    /// Reserved, zero.
    pub reserved: u16,
}

/// [`Uplink::flags`].
pub mod uplink_flag {
    /// No Ethernet header (tun, wireguard).
    pub const L3: u16 = 1;
    /// `rp_filter = 1`: the route to the source must leave by this interface.
    pub const STRICT_RP_FILTER: u16 = 2;
    /// `containers = "published"`: published container ports may be addressed directly.
    pub const CONTAINERS_PUBLISHED: u16 = 4;
    /// `containers = "all"`: every container port may be addressed directly.
    pub const CONTAINERS_ALL: u16 = 8;
    /// `return_path = "symmetric"`.
    pub const SYMMETRIC: u16 = 16;
    /// Loopback: local delivery only.
    pub const LOOPBACK: u16 = 32;
}

/// An interface of the host that is not a managed bridge or one of its ports.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uplink {
    /// Its MTU, for packets that leave by it.
    pub mtu: u32,
    /// [`uplink_flag`] bits.
    pub flags: u16,
    /// Its own MAC, zero where it has none.
    pub mac: [u8; 6],
    /// Primary IPv4 address: masquerade source where the kernel's route lookup names none.
    pub addr_v4: [u8; 4],
    /// The same for IPv6.
    pub addr_v6: [u8; 16],
}

/// Key of the publish and exposed tries: protocol and address whole, the port by prefix.
/// A range of ports is at most 30 prefixes, so its size does not matter.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortPrefix<A> {
    /// IP protocol.
    pub proto: u8,
    /// Reserved, zero.
    pub reserved: [u8; 3],
    /// Host (publish) or container (exposed) address; all zero: any local address.
    pub addr: A,
    /// Port in wire order, masked to the prefix.
    pub port: [u8; 2],
    /// Reserved, zero; beyond every prefix.
    pub tail: [u8; 2],
}

/// Bits of [`PortPrefix`] before the port: the prefix length of a whole-address match is this plus
/// the number of port bits.
#[must_use]
#[inline(always)]
pub const fn port_prefix_base<A>() -> u32 {
    32 + size_of::<A>() as u32 * 8
}

/// [`Backend::flags`].
pub mod backend_flag {
    /// `override = true`, or the listener is the Engine's own placeholder: a host socket on the
    /// port does not win.
    pub const OVERRIDE: u16 = 1;
}

/// Where a published port leads.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend<A> {
    /// Container address.
    pub addr: A,
    /// First host port of the range, wire order.
    pub host_first: [u8; 2],
    /// Container port that `host_first` leads to, wire order.
    pub container_first: [u8; 2],
    /// Network id.
    pub network: u16,
    /// [`backend_flag`] bits.
    pub flags: u16,
}

/// Index in `PORTS` of the word that holds `port` (native) of a protocol, or `None` for a protocol
/// that cannot be published. The bit within the word is `port % 64`.
#[must_use]
#[inline(always)]
pub const fn port_word(proto: u8, port: u16) -> Option<u32> {
    let table = match proto {
        6 => 0,
        17 => 1,
        132 => 2,
        _ => return None,
    };
    Some(table * 1024 + (port as u32) / 64)
}

/// Number of words in `PORTS`.
pub const PORT_WORDS: u32 = 3 * 1024;

/// A flow's key: the packet's own tuple, before any translation.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port, or the ICMP identifier of an echo request, or 0.
    pub sport: [u8; 2],
    /// Destination port, or the ICMP identifier of an echo reply, or 0.
    pub dport: [u8; 2],
    /// IP protocol.
    pub proto: u8,
    /// Reserved, zero.
    pub reserved: [u8; 3],
}

impl<A: Copy> Tuple<A> {
    /// The tuple of a packet that travels the other way.
    #[must_use]
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
            proto: self.proto,
            reserved: [0; 3],
        }
    }
}

/// [`Flow::flags`].
pub mod flow_flag {
    /// The source address and port are rewritten.
    pub const REWRITE_SRC: u16 = 1;
    /// The destination address and port are rewritten.
    pub const REWRITE_DST: u16 = 2;
    /// This entry is the direction of the replies.
    pub const REPLY: u16 = 4;
    /// The target is a container: `via` holds its MAC (6 bytes) and the bridge's (6 bytes).
    /// Clear: the target is an uplink and `via` holds the next hop.
    pub const TO_ENDPOINT: u16 = 8;
    /// The next hop in `via` is an IPv6 address (also for an IPv4 flow, RFC 5549).
    pub const HOP_V6: u16 = 16;
    /// There is a next hop in `via`; clear on the way to an uplink: it has no Ethernet header, and
    /// nobody to be found on it.
    pub const HOP: u16 = 32;
    /// A FIN was seen in this direction.
    pub const FIN: u16 = 64;
    /// The container at the far end is on the same bridge: replies come to the client's own MAC.
    pub const SAME_BRIDGE: u16 = 128;
    /// A container opened the flow, and [`super::Flow::owner`] is that container.
    pub const OUTGOING: u16 = 256;
    /// The target is an uplink, and `via` holds the MAC of the next hop (6 bytes) and the uplink's
    /// own (6 bytes): frames go out as they then are, and no neighbour table is asked.
    pub const LINK: u16 = 512;
}

/// [`Flow::kind`].
pub mod flow_kind {
    /// Opened by a container, source translated to an address of the egress interface.
    pub const MASQUERADE: u8 = 1;
    /// Opened from an uplink to a published port.
    pub const PUBLISH: u8 = 2;
    /// Opened by a container to a published port on a host address.
    pub const HAIRPIN: u8 = 3;
    /// Not translated: routed networks, trusted interfaces.
    pub const DIRECT: u8 = 4;
    /// How many there are, plus one.
    pub const COUNT: u8 = 5;

    /// Name for people and JSON.
    #[must_use]
    pub fn name(kind: u8) -> &'static str {
        match kind {
            MASQUERADE => "masquerade",
            PUBLISH => "publish",
            HAIRPIN => "hairpin",
            DIRECT => "direct",
            _ => "unknown",
        }
    }
}

/// One direction of a flow: everything an established packet needs.
///
/// Its counters are plain adds: the packets of one direction arrive on one receive queue, so a
/// lost increment needs a queue change in the middle of an add.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow<A> {
    /// Packets of this direction.
    pub packets: u64,
    /// Bytes of this direction, layer 2.
    pub bytes: u64,
    /// CLOCK_MONOTONIC seconds of the last packet.
    pub last_seen: u32,
    /// [`Config::epoch`] under which the flow was last decided.
    pub epoch: u32,
    /// CLOCK_MONOTONIC seconds of the last route lookup.
    pub routed_at: u32,
    /// Interface on which the packets of this direction arrive.
    pub in_ifindex: u32,
    /// Interface to which they are redirected.
    pub out_ifindex: u32,
    /// The same in both entries; tells a reused tuple from the one before.
    pub generation: u32,
    /// Host veth of the container that the flow is accounted to: the one that opened it, else the
    /// one it leads to.
    pub owner: u32,
    /// [`flow_flag`] bits.
    pub flags: u16,
    /// MTU of the target.
    pub mtu: u16,
    /// [`crate::conntrack::State`].
    pub state: u8,
    /// [`flow_kind`].
    pub kind: u8,
    /// Destination MAC that a frame of this direction carries, where `in_ifindex` is a container's.
    pub in_mac: [u8; 6],
    /// Next hop address, or two MACs; see [`flow_flag::TO_ENDPOINT`].
    pub via: [u8; 16],
    /// Source after translation.
    pub src: A,
    /// Destination after translation.
    pub dst: A,
    /// Source port after translation.
    pub sport: [u8; 2],
    /// Destination port after translation.
    pub dport: [u8; 2],
    /// CLOCK_MONOTONIC seconds at which the flow began; the same in both entries.
    pub created: u32,
}

impl<A: crate::wire::Address> Flow<A> {
    /// Zeroes the entry in place.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.packets = 0;
        self.bytes = 0;
        self.last_seen = 0;
        self.epoch = 0;
        self.routed_at = 0;
        self.in_ifindex = 0;
        self.out_ifindex = 0;
        self.generation = 0;
        self.owner = 0;
        self.flags = 0;
        self.mtu = 0;
        self.state = 0;
        self.kind = 0;
        self.in_mac = [0; 6];
        self.via = [0; 16];
        self.src = A::default();
        self.dst = A::default();
        self.sport = [0; 2];
        self.dport = [0; 2];
        self.created = 0;
    }
}

/// [`KernelFlow::flags`].
pub mod kernel_flow_flag {
    /// A FIN was seen in this direction.
    pub const FIN: u32 = 1;
    /// A RST was seen in this direction, and nothing but RSTs after it.
    pub const RST: u32 = 2;
    /// This entry is the direction of the replies.
    pub const REPLY: u32 = 4;
}

/// One direction of a flow that the kernel's own conntrack owned when netd came: its packets are
/// passed to the kernel until the flow was idle for its lifetime.
///
/// The keys are the two tuples of the kernel's entry as packets bear them when they *arrive*:
/// before the kernel translates them (`IPCT_TUPLE_ORIG` and `IPCT_TUPLE_REPLY`). A packet that the
/// kernel has translated bears the other tuple, reversed.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelFlow<A> {
    /// CLOCK_MONOTONIC seconds of the last packet of this direction. It may lie before the machine
    /// started: differences count, modulo 2³².
    pub last_seen: u32,
    /// Seconds without a packet in either direction after which the kernel forgets the flow.
    pub lifetime: u32,
    /// [`kernel_flow_flag`] bits.
    pub flags: u32,
    /// Key of the other direction's entry.
    pub other: Tuple<A>,
}

/// What the fragments of one packet have in common (RFC 791 §3.2, RFC 8200 §4.5), and where they
/// arrive.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FragmentKey<A> {
    /// Source address, before translation.
    pub src: A,
    /// Destination address, before translation.
    pub dst: A,
    /// Identification, wire order; that of IPv4 fills the first two bytes.
    pub id: [u8; 4],
    /// Interface on which the fragments arrive.
    pub ifindex: u32,
    /// IP protocol; 0 for IPv6, where it is not part of the identity.
    pub proto: u8,
    /// Reserved, zero.
    pub reserved: [u8; 3],
}

/// [`Fragments::flags`].
pub mod fragments_flag {
    /// The first fragment, which alone has ports, has not come yet.
    pub const HEADLESS: u16 = 1;
}

/// How many separate runs of a packet's bytes are kept track of.
pub const FRAGMENT_RUNS: usize = 8;

/// A packet that comes in fragments: what its first one told, and which parts have come.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragments<A> {
    /// The packet's own tuple, before any translation: the key of its flow.
    pub tuple: Tuple<A>,
    /// [`Flow::generation`] of the flow that the first fragment used; 0: it was left to the kernel.
    pub generation: u32,
    /// CLOCK_MONOTONIC seconds at which the first of them came.
    pub began: u32,
    /// Parts that have come, in no order, 0 where there is none: first unit in the low half, the
    /// unit after the last in the high half. Units of eight bytes, as the fragment offset counts.
    pub runs: [u32; FRAGMENT_RUNS],
    /// Length of the whole in units, rounded up; 0 until the last fragment has come.
    pub end: u16,
    /// [`crate::drop::DropReason`] for which the rest of the packet is refused; 0: it is not.
    pub refused: u16,
    /// [`fragments_flag`] bits.
    pub flags: u16,
    /// Reserved, zero.
    pub reserved: u16,
}

/// How many IPsec policies of each family the programs can know.
pub const IPSEC_POLICIES: u32 = 256;

/// [`IpsecPolicy::action`].
pub mod ipsec_action {
    /// No policy is here.
    pub const FREE: u8 = 0;
    /// What matches leaves in clear: an exception from a wider policy.
    pub const BYPASS: u8 = 1;
    /// What matches is encrypted or blocked by the kernel, and never redirected.
    pub const REFUSE: u8 = 2;
}

/// An XFRM policy for outgoing packets: `struct xfrm_selector` with masks in place of lengths. Their
/// order in the map means nothing.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpsecPolicy<A> {
    /// Source prefix, and the bits of it that count.
    pub src: A,
    /// See [`IpsecPolicy::src`].
    pub src_mask: A,
    /// Destination prefix, and the bits of it that count.
    pub dst: A,
    /// See [`IpsecPolicy::dst`].
    pub dst_mask: A,
    /// Source port and its mask, wire order.
    pub sport: [u8; 2],
    /// See [`IpsecPolicy::sport`].
    pub sport_mask: [u8; 2],
    /// Destination port and its mask, wire order.
    pub dport: [u8; 2],
    /// See [`IpsecPolicy::dport`].
    pub dport_mask: [u8; 2],
    /// Egress interface; 0: any.
    pub ifindex: u32,
    /// The lowest number of those that match decides.
    pub priority: u32,
    /// IP protocol; 0: any.
    pub proto: u8,
    /// [`ipsec_action`].
    pub action: u8,
    /// Reserved, zero.
    pub reserved: [u8; 2],
}

/// Key of `SUPPRESSED_V6`: how `bpf_fib_lookup` shows a route that a policy rule suppresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SuppressedHop {
    /// The interface that the route leaves by.
    pub ifindex: u32,
    /// Its gateway; zero if there is none.
    pub via: V6Addr,
}

/// What holds in the place of a suppressed route. All zero: nothing does.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suppressed {
    /// The routing table to ask; 0: none.
    pub table: u32,
    /// [`suppressed_flag`] bits.
    pub flags: u32,
}

/// [`Suppressed::flags`].
pub mod suppressed_flag {
    /// The suppressed route stands after all if that table has none.
    pub const STANDS: u32 = 1;
}

/// A socket of the host and the container that it was led to. One unconnected UDP socket can have
/// many.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketKey {
    /// The kernel's cookie of the socket (SO_COOKIE): never used twice.
    pub cookie: u64,
    /// Address of the container; IPv4 as `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2).
    pub addr: V6Addr,
    /// Port of the container, wire order.
    pub port: [u8; 2],
    /// IP protocol.
    pub proto: u8,
    /// Reserved, zero.
    pub reserved: [u8; 5],
}

/// What the program asked for, and whom it got.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketPeer {
    /// The host address that the program named; IPv4 as `::ffff:a.b.c.d`.
    pub addr: V6Addr,
    /// The host port that it named, wire order.
    pub port: [u8; 2],
    /// Reserved, zero.
    pub reserved: [u8; 2],
    /// Host veth of the container, to which alone the socket's packets may go.
    pub ifindex: u32,
    /// CLOCK_MONOTONIC seconds of the last connect() or sendmsg().
    pub seen: u32,
}

/// What a drop is counted by.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DropKey {
    /// [`crate::drop::DropReason`].
    pub reason: u16,
    /// [`hook`].
    pub hook: u8,
    /// 4, 6, or 0 where no IP header was read.
    pub family: u8,
    /// Interface of the hook.
    pub ifindex: u32,
    /// Network id, 0 where none is known.
    pub network: u16,
    /// Reserved, zero.
    pub reserved: u16,
}

/// Length of one slot of [`DropCount::slots`], in seconds.
pub const DROP_SLOT_SECONDS: u32 = 10;
/// Number of slots: drops can be counted over the last ten minutes.
pub const DROP_SLOTS: usize = 64;

/// Drops within one slot of time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropSlot {
    /// CLOCK_MONOTONIC seconds / [`DROP_SLOT_SECONDS`]: which slot of time this is.
    pub number: u32,
    /// Drops in it.
    pub count: u32,
}

/// A packet's addresses, whatever its family. IPv4 addresses fill the first 4 bytes.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnyTuple {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Source port, wire order.
    pub sport: [u8; 2],
    /// Destination port, wire order.
    pub dport: [u8; 2],
    /// IP protocol.
    pub proto: u8,
    /// 4, 6, or 0 where no IP header was read.
    pub family: u8,
    /// Reserved, zero.
    pub reserved: [u8; 2],
}

/// Per-CPU drop counter.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropCount {
    /// Drops since the map was created.
    pub total: u64,
    /// CLOCK_MONOTONIC seconds of the last one.
    pub last_seen: u32,
    /// Reserved, zero.
    pub reserved: u32,
    /// The last packet.
    pub last: AnyTuple,
    /// Recent history: slot number modulo [`DROP_SLOTS`] is the index.
    pub slots: [DropSlot; DROP_SLOTS],
}

/// One dropped packet, sampled (at most [`DROP_EVENTS_PER_SECOND`] per CPU).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropEvent {
    /// CLOCK_MONOTONIC seconds.
    pub seen: u32,
    /// Length of the packet in bytes.
    pub length: u32,
    /// What it is counted by.
    pub key: DropKey,
    /// Its addresses.
    pub tuple: AnyTuple,
}

/// Rate limit of [`DropEvent`]s per CPU.
pub const DROP_EVENTS_PER_SECOND: u32 = 100;

/// Index of `ANSWERS`: ICMP errors that netd itself sends, by what they tell.
pub mod answer_kind {
    /// Time exceeded (11/0; ICMPv6 3/0).
    pub const TIME_EXCEEDED: usize = 0;
    /// Fragmentation needed (3/4), packet too big (ICMPv6 2/0).
    pub const TOO_BIG: usize = 1;
    /// Host unreachable (3/1), no route (ICMPv6 1/0).
    pub const UNREACHABLE: usize = 2;
    /// Administratively prohibited (3/13; ICMPv6 1/1).
    pub const PROHIBITED: usize = 3;
    /// How many there are.
    pub const COUNT: usize = 4;

    /// Name for people and JSON.
    #[must_use]
    pub const fn name(kind: usize) -> &'static str {
        match kind {
            TIME_EXCEEDED => "time-exceeded",
            TOO_BIG => "too-big",
            UNREACHABLE => "unreachable",
            PROHIBITED => "prohibited",
            _ => "unknown",
        }
    }
}

/// Index of [`Answers::count`].
pub mod answer_event {
    /// An answer was sent.
    pub const SENT: usize = 0;
    /// It was not sent: too many in a second.
    pub const LIMITED: usize = 1;
    /// It was not sent: such a packet must not be answered, or there is no address to answer from.
    pub const SILENT: usize = 2;
    /// How many there are; one is in reserve.
    pub const COUNT: usize = 4;
}

/// What became of the answers of one kind, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// By [`answer_event`].
    pub count: [u64; answer_event::COUNT],
}

/// What a hook decided, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// Left to the kernel.
    pub passed: u64,
    /// Redirected along an established flow.
    pub forwarded: u64,
    /// Redirected after a decision (new flow, embryo, or decided again).
    pub decided: u64,
    /// Dropped.
    pub dropped: u64,
}

// SAFETY (all): `repr(C)`, integers and byte arrays only, no padding (sizes asserted below).
macro_rules! wire {
    ($($t:ty = $size:expr),+ $(,)?) => { $(
        // SAFETY: as above the macro.
        unsafe impl Wire for $t {}
        const _: () = assert!(size_of::<$t>() == $size);
    )+ };
}

wire! {
    Config = 48,
    Endpoint = 12,
    EndpointAddress = 8,
    Network = 56,
    NetworkInterface = 8,
    Subnet = 4,
    LocalAddress = 4,
    Uplink = 32,
    PortPrefix<V4Addr> = 12,
    PortPrefix<V6Addr> = 24,
    Backend<V4Addr> = 12,
    Backend<V6Addr> = 24,
    Tuple<V4Addr> = 16,
    Tuple<V6Addr> = 40,
    Flow<V4Addr> = 88,
    Flow<V6Addr> = 112,
    SocketKey = 32,
    SocketPeer = 28,
    Seat<V4Addr> = 24,
    Seat<V6Addr> = 48,
    Hand = 64,
    Holding = 32,
    TableEvents = 64,
    NatPressure = 40,
    KernelFlow<V4Addr> = 28,
    KernelFlow<V6Addr> = 52,
    FragmentKey<V4Addr> = 20,
    FragmentKey<V6Addr> = 44,
    Fragments<V4Addr> = 64,
    Fragments<V6Addr> = 88,
    IpsecPolicy<V4Addr> = 36,
    IpsecPolicy<V6Addr> = 84,
    SuppressedHop = 20,
    Suppressed = 8,
    DropKey = 12,
    DropSlot = 8,
    AnyTuple = 40,
    DropCount = 56 + 8 * DROP_SLOTS,
    DropEvent = 60,
    Answers = 32,
    Verdicts = 32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_words_do_not_overlap() {
        assert_eq!(port_word(6, 0), Some(0));
        assert_eq!(port_word(6, 65535), Some(1023));
        assert_eq!(port_word(17, 0), Some(1024));
        assert_eq!(port_word(132, 65535), Some(PORT_WORDS - 1));
        assert_eq!(port_word(1, 1), None);
    }

    #[test]
    fn reversing_twice_is_identity() {
        let t = Tuple {
            src: V4Addr([1, 2, 3, 4]),
            dst: V4Addr([5, 6, 7, 8]),
            sport: [9, 1],
            dport: [2, 3],
            proto: 6,
            reserved: [0; 3],
        };
        assert_eq!(t.reversed().reversed(), t);
        assert_ne!(t.reversed(), t);
    }
}
