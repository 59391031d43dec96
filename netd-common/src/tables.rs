//! What the engine asks of the maps, the route table and the socket table, by meaning.

use core::ptr::NonNull;

use crate::{
    abi::{
        Backend, Config, Endpoint, EndpointAddress, Flow, FragmentKey, Fragments, IpsecPolicy,
        KernelFlow, Network, Seat, SocketKey, Tuple, Uplink,
    },
    answer::Buffer,
    drop::DropReason,
    parse::Parsed,
    quoted::Quoted,
    wire::{Family, proto},
};

/// A flow entry inside a map.
///
/// The kernel may give the slot to another flow while it is held, and other CPUs write it: fields
/// are read and written one at a time, never through a reference. A preallocated map gives the memory
/// of an entry that is removed to the next flow at once: who holds its slot at that moment reads or
/// writes one packet's worth of another flow. Where something of it would last (a promotion), the key
/// is looked up again.
#[derive(Clone, Copy)]
pub struct Slot<A>(NonNull<Flow<A>>);

macro_rules! fields {
    ($($(#[$doc:meta])* $get:ident, $set:ident: $t:ty;)+) => { $(
        $(#[$doc])*
        #[must_use]
        #[inline(always)]
        pub fn $get(&self) -> $t {
            // SAFETY: `new` promised a pointer to a map value that stays mapped.
            unsafe { (*self.0.as_ptr()).$get }
        }
        $(#[$doc])*
        #[inline(always)]
        pub fn $set(&self, value: $t) {
            // SAFETY: as above; integers and byte arrays may be overwritten at any time.
            unsafe { (*self.0.as_ptr()).$get = value }
        }
    )+ };
}

impl<A: Copy> Slot<A> {
    /// # Safety
    /// `pointer` must be a value of a flow map that stays mapped while the slot is used.
    #[must_use]
    #[inline(always)]
    pub unsafe fn new(pointer: NonNull<Flow<A>>) -> Self {
        Self(pointer)
    }

    /// The whole entry. Its fields may be of different moments.
    #[must_use]
    #[inline(always)]
    pub fn load(&self) -> Flow<A> {
        // SAFETY: as in the accessors.
        unsafe { self.0.as_ptr().read() }
    }

    fields! {
        /// [`Flow::packets`].
        packets, set_packets: u64;
        /// [`Flow::bytes`].
        bytes, set_bytes: u64;
        /// [`Flow::last_seen`].
        last_seen, set_last_seen: u32;
        /// [`Flow::epoch`].
        epoch, set_epoch: u32;
        /// [`Flow::routed_at`].
        routed_at, set_routed_at: u32;
        /// [`Flow::in_ifindex`].
        in_ifindex, set_in_ifindex: u32;
        /// [`Flow::out_ifindex`].
        out_ifindex, set_out_ifindex: u32;
        /// [`Flow::generation`].
        generation, set_generation: u32;
        /// [`Flow::owner`].
        owner, set_owner: u32;
        /// [`Flow::created`].
        created, set_created: u32;
        /// [`Flow::flags`].
        flags, set_flags: u16;
        /// [`Flow::mtu`].
        mtu, set_mtu: u16;
        /// [`Flow::state`].
        state, set_state: u8;
        /// [`Flow::in_mac`].
        in_mac, set_in_mac: [u8; 6];
        /// [`Flow::via`].
        via, set_via: [u8; 16];
        /// [`Flow::src`].
        src, set_src: A;
        /// [`Flow::dst`].
        dst, set_dst: A;
        /// [`Flow::sport`].
        sport, set_sport: [u8; 2];
        /// [`Flow::dport`].
        dport, set_dport: [u8; 2];
    }
}

/// A [`KernelFlow`] inside a map; see [`Slot`].
#[derive(Clone, Copy)]
pub struct KernelSlot<A>(NonNull<KernelFlow<A>>);

impl<A: Copy> KernelSlot<A> {
    /// # Safety
    /// `pointer` must be a value of a map of kernel flows that stays mapped while the slot is used.
    #[must_use]
    #[inline(always)]
    pub unsafe fn new(pointer: NonNull<KernelFlow<A>>) -> Self {
        Self(pointer)
    }

    fields! {
        /// [`KernelFlow::last_seen`].
        last_seen, set_last_seen: u32;
        /// [`KernelFlow::lifetime`].
        lifetime, set_lifetime: u32;
        /// [`KernelFlow::flags`].
        flags, set_flags: u32;
        /// [`KernelFlow::other`].
        other, set_other: Tuple<A>;
    }
}

/// Why an entry was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// The key is taken (EEXIST).
    Exists,
    /// The map is full (E2BIG, ENOMEM).
    Full,
}

/// A question to the host's route tables, as for a packet that arrives on `iif`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct RouteQuery<A> {
    /// Incoming interface, for `ip rule iif`.
    pub iif: u32,
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port, wire order; 0 where the protocol has none. For `ip rule sport`, and for the
    /// choice among several next hops (`fib_multipath_hash_policy = 1`).
    pub sport: [u8; 2],
    /// Destination port, as `sport`.
    pub dport: [u8; 2],
    /// IP protocol.
    pub proto: u8,
    /// The six bits of the differentiated services field (RFC 2474), in their place; no ECN.
    pub tos: u8,
}

impl<A> RouteQuery<A> {
    /// Sets the question in place, without ports and service class.
    #[inline(always)]
    pub fn ask(&mut self, iif: u32, src: A, dst: A, proto: u8) {
        self.iif = iif;
        self.src = src;
        self.dst = dst;
        self.proto = proto;
        self.sport = [0; 2];
        self.dport = [0; 2];
        self.tos = 0;
    }

    /// Adds the ports, if the protocol has such: an echo's identifier is none.
    #[inline(always)]
    pub fn between(&mut self, sport: [u8; 2], dport: [u8; 2]) {
        if matches!(self.proto, proto::TCP | proto::UDP | proto::SCTP) {
            self.sport = sport;
            self.dport = dport;
        }
    }
}

/// The answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Route<A> {
    /// Egress interface.
    pub oif: u32,
    /// MTU of the route; 0 where the kernel does not say.
    pub mtu: u32,
    /// Next hop: the gateway, or the destination itself.
    pub via: [u8; 16],
    /// Is `via` an IPv6 address?
    pub via_v6: bool,
    /// Source address that the host would choose; unspecified where the kernel does not say.
    pub src: A,
}

/// What the user's policy says of a new flow. The seam for the policy engine: it is asked first,
/// with the addresses as the packet bears them, before anything is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// No opinion: Docker's semantics decide.
    Return,
    /// Refused.
    Drop,
}

/// Working memory of one packet: what is too large for the 512 bytes of BPF stack.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Scratch<A> {
    /// The packet's headers.
    pub parsed: Parsed<A>,
    /// What an ICMP error is about.
    pub quoted: Quoted<A>,
    /// The tuple as the side that opened the flow sends it.
    pub tuple: Tuple<A>,
    /// Key of the other direction's entry.
    pub reply_tuple: Tuple<A>,
    /// What the host's sockets are asked about; else a key in passing.
    pub socket: Tuple<A>,
    /// What was decided.
    pub decision: crate::decide::Decision<A>,
    /// [`RouteQuery::tos`] of the flow in `tuple`: that of the packet that opened it.
    pub tos: u8,
    /// Source MAC of a frame that arrived on an uplink; zero where there is none.
    pub sender: [u8; 6],
    /// A route lookup's question.
    pub query: RouteQuery<A>,
    /// A route lookup's answer.
    pub route: Route<A>,
    /// The best seat that was found so far.
    pub candidate: crate::room::Candidate,
    /// Seat of a flow that is being made.
    pub seat: u32,
    /// Entry of the original direction.
    pub original: Flow<A>,
    /// Entry of the replies.
    pub reply: Flow<A>,
    /// Key of a flow that may have to make room, and of its other half.
    pub victim: Tuple<A>,
    /// See [`Scratch::victim`].
    pub victim_other: Tuple<A>,
    /// The packet in hand, if it is a fragment.
    pub fragment: crate::fragment::Fragment<A>,
    /// Next hop of a [`crate::pipeline::Outcome::Neighbour4`].
    pub hop: [u8; 16],
}

/// Everything outside the packet.
pub trait Tables<F: Family> {
    /// `CONFIG`; `None` cannot happen, but the verifier does not know.
    fn config(&self) -> Option<&Config>;
    /// CLOCK_MONOTONIC seconds, coarse.
    fn now(&self) -> u32;
    /// A label for a new flow, different from that of the tuple's last one.
    fn generation(&self) -> u32;
    /// This CPU's working memory.
    #[expect(
        clippy::mut_from_ref,
        reason = "per-CPU memory; a program never runs twice at once on a CPU"
    )]
    fn scratch(&self) -> Option<&mut Scratch<F::Addr>>;
    /// `ENDPOINTS`.
    fn endpoint(&self, ifindex: u32) -> Option<Endpoint>;
    /// `ADDRS_*`.
    fn endpoint_of(&self, addr: &F::Addr) -> Option<EndpointAddress>;
    /// `NETWORKS`; `None` also for an id that is not in use.
    fn network(&self, id: u16) -> Option<&Network>;
    /// `TRUSTED`.
    fn trusted(&self, network: u16, ifindex: u32) -> bool;
    /// `SUBNETS_*`: network id, 0 for none.
    fn subnet(&self, addr: &F::Addr) -> u16;
    /// `LOCAL_*`: [`crate::abi::local_kind`].
    fn local(&self, addr: &F::Addr) -> u16;
    /// `UPLINKS`.
    fn uplink(&self, ifindex: u32) -> Option<Uplink>;
    /// `PORTS`: may this host port be published on some address?
    fn port_published(&self, proto: u8, port: [u8; 2]) -> bool;
    /// `PUBLISH_*`, by exact address or, unspecified, for any.
    fn backend(&self, proto: u8, addr: &F::Addr, port: [u8; 2]) -> Option<&Backend<F::Addr>>;
    /// `EXPOSED_*`.
    fn exposed(&self, proto: u8, addr: &F::Addr, port: [u8; 2]) -> bool;
    /// `FLOWS_*`.
    fn flow(&self, key: &Tuple<F::Addr>) -> Option<Slot<F::Addr>>;
    /// `EMBRYOS_*`.
    fn embryo(&self, key: &Tuple<F::Addr>) -> Option<Slot<F::Addr>>;
    /// Inserts into `FLOWS_*` what is not there.
    ///
    /// # Errors
    /// See [`InsertError`].
    fn insert_flow(&self, key: &Tuple<F::Addr>, flow: &Flow<F::Addr>) -> Result<(), InsertError>;
    /// Inserts into `EMBRYOS_*` what is not there.
    ///
    /// # Errors
    /// See [`InsertError`].
    fn insert_embryo(&self, key: &Tuple<F::Addr>, flow: &Flow<F::Addr>) -> Result<(), InsertError>;
    /// Removes from `FLOWS_*`; was it there?
    fn remove_flow(&self, key: &Tuple<F::Addr>) -> bool;
    /// Removes from `EMBRYOS_*`; was it there?
    fn remove_embryo(&self, key: &Tuple<F::Addr>) -> bool;
    /// A seat of `FLOW_RING_*` or `EMBRYO_RING_*`. Another CPU may be at it: what it says is
    /// verified in the flow table.
    #[expect(clippy::mut_from_ref, reason = "a value inside a map")]
    fn seat(&self, confirmed: bool, index: u32) -> Option<&mut Seat<F::Addr>>;
    /// Changes [`Seat::state`] if it still is what it was, atomically; was it?
    fn swap_seat(&self, seat: &mut Seat<F::Addr>, from: u64, to: u64) -> bool;
    /// [`Seat::state`], all at one moment.
    fn seat_state(&self, seat: &Seat<F::Addr>) -> u64;
    /// Moves the hand of a [`crate::abi::flow_table`] on; where it was.
    fn next_seat(&self, table: usize) -> u32;
    /// `HOLDINGS`: flows that a container has in a [`crate::abi::flow_table`].
    fn holding(&self, owner: u32, table: usize) -> i64;
    /// Adds to [`Tables::holding`].
    fn hold(&self, owner: u32, table: usize, more: i64);
    /// Counts a [`crate::abi::table_event`] of a [`crate::abi::flow_table`].
    fn count(&self, table: usize, event: usize);
    /// Tells the daemon that the flow in [`Scratch`] found this many source ports taken.
    fn nat_pressure(&self, attempts: u32, exhausted: bool);
    /// `KERNEL_FLOWS_*`; asked only while [`crate::abi::config_flag::KERNEL_FLOWS`] is set.
    fn kernel_flow(&self, key: &Tuple<F::Addr>) -> Option<KernelSlot<F::Addr>>;
    /// `FRAGMENTS_*`. Another CPU may be at it: the fragments of one packet seldom come by two.
    #[expect(clippy::mut_from_ref, reason = "a value inside a map")]
    fn fragments(&self, key: &FragmentKey<F::Addr>) -> Option<&mut Fragments<F::Addr>>;
    /// Writes into `FRAGMENTS_*`, over what is there.
    fn put_fragments(&self, key: &FragmentKey<F::Addr>, fragments: &Fragments<F::Addr>);
    /// Removes from `FRAGMENTS_*`.
    fn remove_fragments(&self, key: &FragmentKey<F::Addr>);
    /// `IPSEC_*`; asked only while [`crate::abi::config_flag::IPSEC`] is set.
    fn ipsec_policy(&self, index: u32) -> Option<&IpsecPolicy<F::Addr>>;
    /// Asks the route tables, policy rules included: [`Scratch::query`], answered in
    /// [`Scratch::route`].
    ///
    /// # Errors
    /// [`DropReason::NoRoute`], [`DropReason::Blackhole`], [`DropReason::Prohibited`],
    /// [`DropReason::HelperFailed`].
    fn route(&self) -> Result<(), DropReason>;
    /// Would a socket of the host take a new packet with this tuple?
    fn host_listens(&self, tuple: &Tuple<F::Addr>) -> bool;
    /// Cookie of the socket that sends the packet; 0: none, or it is not known.
    fn socket_cookie(&self) -> u64;
    /// `SOCKETS`: host veth of the container that this socket was led to, or 0.
    fn socket_peer(&self, key: &SocketKey) -> u32;
    /// Ethernet addresses, to and from, of the next hop to which [`Scratch::query`] leads out of this
    /// interface; `None`: not resolved, or it leads elsewhere.
    fn neighbour(&self, oif: u32) -> Option<[u8; 12]>;
    /// Where an answer is built.
    #[expect(clippy::mut_from_ref, reason = "per-CPU memory, as the scratch")]
    fn answer_buffer(&self) -> Option<&mut Buffer>;
    /// May this CPU send one more answer of that [`crate::abi::answer_kind`] now? Each has a ration
    /// of its own ([`crate::answer::Pace`]): who provokes one must not silence another.
    fn may_answer(&self, kind: usize) -> bool;
    /// Counts an [`crate::abi::answer_event`] of an [`crate::abi::answer_kind`].
    fn count_answer(&self, kind: usize, event: usize);
    /// Asks the user's policy about a new flow: `tuple` as sent, `ifindex` where it arrived.
    #[inline(always)]
    fn policy(&self, tuple: &Tuple<F::Addr>, ifindex: u32) -> Policy {
        let _ = (tuple, ifindex);
        Policy::Return
    }
}

/// The steps of the slow path. In BPF each is a global function, which the verifier checks once and
/// by itself, not once for every way that leads to it; what it needs beyond a few numbers it finds
/// in [`Scratch`]. Natively they are plain calls of [`crate::pipeline::steps`].
#[expect(
    clippy::wrong_self_convention,
    reason = "from_endpoint and from_uplink are hooks, not conversions"
)]
pub trait Steps<F: Family>: Tables<F> {
    /// [`crate::pipeline::steps::from_endpoint`].
    fn from_endpoint<P: crate::packet::Packet>(&self, packet: &mut P, ifindex: u32) -> u64;
    /// [`crate::pipeline::steps::from_uplink`].
    fn from_uplink<P: crate::packet::Packet>(&self, packet: &mut P, ifindex: u32) -> u64;
    /// [`crate::pipeline::steps::read_quoted`].
    fn read_quoted<P: crate::packet::Packet>(&self, packet: &mut P) -> u32;
    /// [`crate::pipeline::steps::icmp_error`].
    fn icmp_error<P: crate::packet::Packet>(
        &self,
        packet: &mut P,
        ifindex: u32,
        network: u32,
        decision: u32,
    ) -> u64;
    /// [`crate::pipeline::steps::send_error`].
    fn send_error<P: crate::packet::Packet>(&self, packet: &mut P) -> u64;
    /// [`crate::pipeline::steps::proceed`].
    fn proceed<P: crate::packet::Packet>(&self, packet: &mut P, decision: u32) -> u64;
    /// [`crate::pipeline::steps::reroute`].
    fn reroute<P: crate::packet::Packet>(&self, packet: &mut P, ifindex: u32) -> u64;
    /// [`crate::pipeline::steps::classify`].
    fn classify(&self, ifindex: u32, network: u32, fresh: u32) -> u32;
    /// [`crate::pipeline::steps::publish`].
    fn publish(&self, ifindex: u32, network: u32, fresh: u32) -> u32;
    /// [`crate::pipeline::steps::direct`].
    fn direct(&self, ifindex: u32, network: u32, fresh: u32) -> u32;
    /// [`crate::pipeline::steps::egress`].
    fn egress(&self, ifindex: u32, network: u32, fresh: u32) -> u32;
    /// [`crate::pipeline::steps::ipsec`].
    fn ipsec(&self) -> u32;
    /// [`crate::ipsec::covered`]; 1: yes.
    fn ipsec_covers(&self, side: u32) -> u32;
    /// [`crate::ipsec::weight`].
    fn ipsec_weight(&self, index: u32, side: u32) -> u64;
    /// [`crate::pipeline::steps::prepare`].
    fn prepare(&self) -> u32;
    /// [`crate::pipeline::steps::reserve`].
    fn reserve(&self) -> u32;
    /// [`crate::pipeline::steps::commit`].
    fn commit(&self) -> u32;
    /// [`crate::pipeline::steps::send`].
    fn send<P: crate::packet::Packet>(&self, packet: &mut P) -> u64;
    /// [`crate::pipeline::steps::promote`].
    fn promote(&self) -> u32;
    /// [`crate::pipeline::steps::try_source_port`].
    fn try_source_port(&self, attempt: u32) -> u32;
    /// [`crate::pipeline::steps::kernel_forwards`].
    fn kernel_forwards<P: crate::packet::Packet>(&self, packet: &mut P, translated: u32) -> u32;
    /// [`crate::pipeline::steps::track`].
    fn track<P: crate::packet::Packet>(&self, packet: &mut P, ifindex: u32);
    /// [`crate::pipeline::steps::sum_sctp`].
    fn sum_sctp<P: crate::packet::Packet>(&self, packet: &mut P, verdict: u64) -> u64;
    /// [`crate::pipeline::steps::remember`].
    fn remember(&self, verdict: u64);
    /// [`crate::pipeline::steps::answer`].
    fn answer<P: crate::packet::Packet>(&self, packet: &mut P, ifindex: u32, verdict: u64) -> u64;
    /// [`crate::pipeline::steps::fragment`].
    fn fragment<P: crate::packet::Packet>(&self, packet: &mut P, ifindex: u32) -> u64;
    /// [`crate::pipeline::steps::clamp_mss`].
    fn clamp_mss<P: crate::packet::Packet>(&self, packet: &mut P) -> u32;
    /// [`crate::flow::end`].
    fn end(&self, generation: u32);
    /// [`crate::room::reclaim`]; 1: the tuple is free now.
    fn reclaim(&self, pressing: u32) -> u32;
    /// [`crate::room::claim`].
    fn claim_seat(&self, confirmed: u32, owner: u32) -> u64;
    /// [`crate::room::probe_seat`].
    fn probe_seat(&self, confirmed: u32, index: u32, owner: u32) -> u32;
    /// [`crate::room::vacate_seat`]; 1: it is empty now.
    fn vacate_seat(&self, confirmed: u32, index: u32) -> u32;
}
