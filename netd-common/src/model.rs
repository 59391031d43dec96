//! The engine's tables in memory: what the BPF maps and the kernel's lookups are to the programs,
//! for tests.
//!
//! A [`Model`] is filled like a host (networks, endpoints, uplinks, publishes, routes, listeners)
//! and then given packets. It is the source of truth for a differential test too: every table can
//! be read back and written into real maps.

pub mod cut;
mod flows;
mod fragments;
pub mod frame;
mod host;
mod prefix;

use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::{HashMap, HashSet},
    hash::Hash,
    mem::MaybeUninit,
};

pub use self::{
    flows::{FlowTable, KernelFlowTable},
    fragments::FragmentTable,
    host::{EndpointSpec, NetworkSpec, PublishSpec, port_prefixes},
    prefix::LongestPrefix,
};

use crate::{
    abi::{
        Answers, Backend, Config, Endpoint, EndpointAddress, Flow, FragmentKey, Fragments,
        IpsecPolicy, LocalAddress, Network, PORT_WORDS, PortPrefix, Seat, SocketKey, SocketPeer,
        Subnet, Tuple, Uplink, answer_kind, flow_table, hook, local_kind, network_flag,
        port_prefix_base, port_word, table_event, uplink_flag,
    },
    answer::{Buffer, Pace},
    checksum::Diff,
    drop::DropReason,
    packet::{self, L4Checksum, Packet, SlicePacket},
    pipeline::{self, Meta, Verdict, steps},
    room,
    tables::{InsertError, KernelSlot, Policy, Route, RouteQuery, Scratch, Slot, Steps, Tables},
    wire::{ETH_LEN, Eth, Family, V4, V6, Wire},
};

/// Answers a route lookup.
pub type RouteFunction<A> = Box<dyn Fn(&RouteQuery<A>) -> Result<Route<A>, DropReason>>;
/// Answers for the user's policy: the tuple as sent, and the interface.
pub type PolicyFunction<A> = Box<dyn Fn(&Tuple<A>, u32) -> Policy>;

/// A host, as netd's programs see it.
pub struct Model {
    /// `CONFIG`.
    pub config: Config,
    /// `ENDPOINTS`.
    pub endpoints: HashMap<u32, Endpoint>,
    /// `NETWORKS`, by id; id 0 is never used.
    pub networks: Vec<Network>,
    /// `TRUSTED`: network id and interface.
    pub trusted: HashSet<(u16, u32)>,
    /// `UPLINKS`.
    pub uplinks: HashMap<u32, Uplink>,
    /// `PORTS`.
    pub ports: Vec<u64>,
    /// `SOCKETS`.
    pub sockets: HashMap<SocketKey, SocketPeer>,
    /// Cookie of the socket that sends the packets.
    pub socket_cookie: u64,
    /// IPv4.
    pub v4: FamilyTables<V4>,
    /// IPv6.
    pub v6: FamilyTables<V6>,
    /// `HOLDINGS`: by container and flow table.
    pub holdings: RefCell<HashMap<(u32, usize), i64>>,
    /// `TABLE_EVENTS`, by flow table.
    pub events: RefCell<[[u64; table_event::COUNT]; flow_table::COUNT]>,
    /// `NAT_EVENTS`: attempts, and whether none was left.
    pub pressure: RefCell<Vec<(u32, bool)>>,
    /// `ANSWERS`, by [`crate::abi::answer_kind`].
    pub answers: RefCell<[Answers; answer_kind::COUNT]>,
    /// When this CPU has answered too much; nanoseconds of [`Model::set_now`]'s clock.
    pub pace: [Cell<Pace>; answer_kind::COUNT],
    /// Ethernet addresses, to and from, of every next hop; `None`: not resolved.
    pub neighbour: Option<[u8; 12]>,
    answer: UnsafeCell<Buffer>,
    pub(crate) hands: [Cell<u32>; flow_table::COUNT],
    now: Cell<u32>,
    generation: Cell<u32>,
}

/// The tables of one family.
pub struct FamilyTables<F: ModelFamily> {
    /// `ADDRS_*`.
    pub addresses: HashMap<F::Addr, EndpointAddress>,
    /// `SUBNETS_*`.
    pub subnets: LongestPrefix<F::Addr, Subnet>,
    /// `LOCAL_*`.
    pub local: LongestPrefix<F::Addr, LocalAddress>,
    /// `PUBLISH_*`.
    pub publish: LongestPrefix<PortPrefix<F::Addr>, Backend<F::Addr>>,
    /// `EXPOSED_*`.
    pub exposed: LongestPrefix<PortPrefix<F::Addr>, u32>,
    /// `FLOWS_*`.
    pub flows: FlowTable<F::Addr>,
    /// `EMBRYOS_*`.
    pub embryos: FlowTable<F::Addr>,
    /// `IPSEC_*`.
    pub ipsec: Vec<IpsecPolicy<F::Addr>>,
    /// `KERNEL_FLOWS_*`.
    pub kernel_flows: KernelFlowTable<F::Addr>,
    /// `FRAGMENTS_*`.
    pub fragments: FragmentTable<F::Addr>,
    /// What the host listens on: protocol, address (unspecified: any) and port (native).
    pub listeners: HashSet<(u8, F::Addr, u16)>,
    /// The route tables.
    pub route: RouteFunction<F::Addr>,
    /// The user's policy.
    pub policy: PolicyFunction<F::Addr>,
    /// `EMBRYO_RING_*` and `FLOW_RING_*`.
    rings: [Vec<UnsafeCell<Seat<F::Addr>>>; 2],
    scratch: UnsafeCell<Scratch<F::Addr>>,
}

/// A family whose addresses can be keys of a hash map.
pub trait ModelFamily: Family<Addr: Hash + Ord> {
    /// The family's tables.
    fn tables(model: &Model) -> &FamilyTables<Self>;
    /// The same, to be changed.
    fn tables_mut(model: &mut Model) -> &mut FamilyTables<Self>;
}

impl ModelFamily for V4 {
    fn tables(model: &Model) -> &FamilyTables<Self> {
        &model.v4
    }
    fn tables_mut(model: &mut Model) -> &mut FamilyTables<Self> {
        &mut model.v4
    }
}

impl ModelFamily for V6 {
    fn tables(model: &Model) -> &FamilyTables<Self> {
        &model.v6
    }
    fn tables_mut(model: &mut Model) -> &mut FamilyTables<Self> {
        &mut model.v6
    }
}

impl<F: ModelFamily> Default for FamilyTables<F> {
    fn default() -> Self {
        Self {
            addresses: HashMap::new(),
            subnets: LongestPrefix::default(),
            local: LongestPrefix::default(),
            publish: LongestPrefix::default(),
            exposed: LongestPrefix::default(),
            flows: FlowTable::default(),
            embryos: FlowTable::default(),
            ipsec: Vec::new(),
            kernel_flows: KernelFlowTable::default(),
            fragments: FragmentTable::default(),
            listeners: HashSet::new(),
            route: Box::new(|_| Err(DropReason::NoRoute)),
            policy: Box::new(|_, _| Policy::Return),
            rings: [Vec::new(), Vec::new()],
            // SAFETY: integers, byte arrays, a bool and a `Kind`, all of which zero is valid for: a
            // BPF map begins with the same.
            scratch: UnsafeCell::new(unsafe { MaybeUninit::zeroed().assume_init() }),
        }
    }
}

impl Default for Model {
    fn default() -> Self {
        let mut model = Self {
            config: Config {
                epoch: 1,
                nat_first: 61000,
                nat_last: 65535,
                seed: 0x5eed,
                ..Config::default()
            },
            endpoints: HashMap::new(),
            networks: vec![Network::default()],
            trusted: HashSet::new(),
            uplinks: HashMap::new(),
            ports: vec![0; PORT_WORDS as usize],
            sockets: HashMap::new(),
            socket_cookie: 0,
            v4: FamilyTables::default(),
            v6: FamilyTables::default(),
            holdings: RefCell::default(),
            events: RefCell::default(),
            pressure: RefCell::default(),
            answers: RefCell::default(),
            pace: Default::default(),
            neighbour: None,
            answer: UnsafeCell::default(),
            hands: Default::default(),
            now: Cell::new(1000),
            generation: Cell::new(0),
        };
        for confirmed in [false, true] {
            model.set_seats::<V4>(confirmed, 1 << 15);
            model.set_seats::<V6>(confirmed, 1 << 15);
        }
        model
    }
}

impl Model {
    /// Sets the clock, in seconds.
    pub fn set_now(&self, seconds: u32) {
        self.now.set(seconds);
    }

    /// Moves the clock.
    pub fn pass(&self, seconds: u32) {
        self.now.set(self.now.get().wrapping_add(seconds));
    }

    /// Empties a flow table and gives it another size.
    pub fn set_seats<F: ModelFamily>(&mut self, confirmed: bool, seats: u32) {
        self.config.seats[room::table::<F>(confirmed)] = seats;
        let tables = F::tables_mut(self);
        let table = if confirmed {
            &mut tables.flows
        } else {
            &mut tables.embryos
        };
        *table = FlowTable::default();
        table.set_capacity(seats as usize * 2);
        tables.rings[usize::from(confirmed)] = (0..seats).map(|_| UnsafeCell::default()).collect();
    }

    /// Runs the program of `meta.hook` over a packet, as the kernel would.
    ///
    /// # Panics
    /// If there is no such hook.
    pub fn run(&self, packet: &mut GsoPacket<'_>, meta: &Meta) -> Verdict {
        self.v4.bury();
        self.v6.bury();
        match meta.hook {
            hook::FROM_ENDPOINT => pipeline::from_endpoint(packet, self, meta),
            hook::TO_ENDPOINT => pipeline::to_endpoint(packet, self, meta),
            hook::FROM_UPLINK if self.is_headerless(meta.ifindex) => {
                pipeline::from_tunnel(packet, self, meta)
            }
            hook::FROM_UPLINK => pipeline::from_uplink(packet, self, meta),
            hook::BRIDGE_IN => pipeline::bridge_guard_in(packet, self, meta),
            hook::BRIDGE_OUT => pipeline::bridge_guard_out(packet, self, meta),
            other => panic!("there is no hook {other}"),
        }
    }

    /// Do packets of this interface begin with the IP header?
    #[must_use]
    pub fn is_headerless(&self, ifindex: u32) -> bool {
        let uplink = self.uplinks.get(&ifindex);
        uplink.is_some_and(|uplink| uplink.flags & uplink_flag::L3 != 0)
    }

    /// Tuple of the last packet of this family; of a later fragment, that of its first one.
    #[must_use]
    pub fn tuple<F: ModelFamily>(&self) -> Tuple<F::Addr> {
        // SAFETY: as in `hop`.
        unsafe { (*F::tables(self).scratch.get()).parsed.tuple }
    }

    /// Next hop of the last packet of this family that left by an uplink.
    #[must_use]
    pub fn hop<F: ModelFamily>(&self) -> [u8; 16] {
        // SAFETY: no program is running, so nothing else refers to the scratch.
        unsafe { (*F::tables(self).scratch.get()).hop }
    }
}

impl<F: ModelFamily> FamilyTables<F> {
    fn bury(&self) {
        self.flows.bury();
        self.embryos.bury();
        self.fragments.bury();
    }
}

/// A packet in memory that may stand for several.
pub struct GsoPacket<'a> {
    /// Its bytes.
    pub bytes: &'a mut Vec<u8>,
    /// Payload bytes per segment; 0: an ordinary packet.
    pub gso_size: u32,
    /// What the kernel says of its segments and the MTU, where netd cannot tell.
    pub device_takes_segments: bool,
    /// What was sent of it besides: interface and bytes.
    pub copies: Vec<(u32, Vec<u8>)>,
}

impl<'a> GsoPacket<'a> {
    /// An ordinary packet.
    pub fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self {
            bytes,
            gso_size: 0,
            device_takes_segments: true,
            copies: Vec::new(),
        }
    }

    fn whole(&mut self) -> SlicePacket<'_> {
        SlicePacket(self.bytes)
    }
}

impl Packet for GsoPacket<'_> {
    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }
    fn gso_size(&self) -> u32 {
        self.gso_size
    }
    fn segments_fit(&self, _: u32) -> bool {
        self.device_takes_segments
    }
    fn read<T: Wire>(&self, offset: u32) -> Result<T, DropReason> {
        packet::read(self.bytes, offset)
    }
    fn write<T: Wire>(&mut self, offset: u32, value: T) -> Result<(), DropReason> {
        self.whole().write(offset, value)
    }
    fn pull(&mut self, len: u32) -> bool {
        self.whole().pull(len)
    }
    fn push_ethernet(&mut self, header: Eth) -> Result<(), DropReason> {
        self.bytes.splice(..0, [0; ETH_LEN as usize]);
        self.write(0, header)
    }
    fn l4_checksum(
        &mut self,
        offset: u32,
        change: Diff,
        how: L4Checksum,
    ) -> Result<(), DropReason> {
        self.whole().l4_checksum(offset, change, how)
    }
    fn copy_to(&self, offset: u32, length: u32, buffer: &mut Buffer, word: usize) -> bool {
        packet::copy_to(self.bytes, offset, length, buffer, word)
    }
    fn replace(&mut self, buffer: &Buffer, start: u32, length: u32) -> bool {
        let bytes = buffer.words.iter().flat_map(|word| word.to_ne_bytes());
        *self.bytes = bytes.skip(start as usize).take(length as usize).collect();
        self.gso_size = 0;
        true
    }
    fn truncate(&mut self, length: u32) -> bool {
        self.bytes.truncate(length as usize);
        true
    }
    fn forget_offload(&mut self, _: u32) -> bool {
        true
    }
    fn set_payload(&mut self, at: u32, buffer: &Buffer, start: u32, length: u32) -> bool {
        self.bytes.truncate(at as usize);
        let bytes = buffer.words.iter().flat_map(|word| word.to_ne_bytes());
        let piece = bytes.skip(start as usize).take(length as usize);
        self.bytes.extend(piece);
        true
    }
    fn send_copy(&mut self, ifindex: u32) -> bool {
        self.copies.push((ifindex, self.bytes.clone()));
        true
    }
}

impl<F: ModelFamily> Tables<F> for Model {
    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }
    fn now(&self) -> u32 {
        self.now.get()
    }
    fn generation(&self) -> u32 {
        self.generation.set(self.generation.get().wrapping_add(1));
        self.generation.get()
    }
    fn scratch(&self) -> Option<&mut Scratch<F::Addr>> {
        // SAFETY: the model is not `Sync`, and the engine uses its scratch as it does in BPF.
        Some(unsafe { &mut *F::tables(self).scratch.get() })
    }
    fn endpoint(&self, ifindex: u32) -> Option<Endpoint> {
        self.endpoints.get(&ifindex).copied()
    }
    fn endpoint_of(&self, addr: &F::Addr) -> Option<EndpointAddress> {
        F::tables(self).addresses.get(addr).copied()
    }
    fn network(&self, id: u16) -> Option<&Network> {
        self.networks
            .get(usize::from(id))
            .filter(|n| n.flags & network_flag::ACTIVE != 0)
    }
    fn trusted(&self, network: u16, ifindex: u32) -> bool {
        self.trusted.contains(&(network, ifindex))
    }
    fn subnet(&self, addr: &F::Addr) -> u16 {
        F::tables(self).subnets.get(addr).map_or(0, |s| s.network)
    }
    fn local(&self, addr: &F::Addr) -> u16 {
        F::tables(self)
            .local
            .get(addr)
            .map_or(local_kind::NONE, |l| l.kind)
    }
    fn uplink(&self, ifindex: u32) -> Option<Uplink> {
        self.uplinks.get(&ifindex).copied()
    }
    fn port_published(&self, proto: u8, port: [u8; 2]) -> bool {
        let port = u16::from_be_bytes(port);
        port_word(proto, port)
            .is_some_and(|index| self.ports[index as usize] >> (port % 64) & 1 != 0)
    }
    fn backend(&self, proto: u8, addr: &F::Addr, port: [u8; 2]) -> Option<&Backend<F::Addr>> {
        F::tables(self)
            .publish
            .get(&port_key::<F>(proto, addr, port))
    }
    fn exposed(&self, proto: u8, addr: &F::Addr, port: [u8; 2]) -> bool {
        let key = port_key::<F>(proto, addr, port);
        F::tables(self).exposed.get(&key).is_some()
    }
    fn flow(&self, key: &Tuple<F::Addr>) -> Option<Slot<F::Addr>> {
        F::tables(self).flows.slot(key)
    }
    fn embryo(&self, key: &Tuple<F::Addr>) -> Option<Slot<F::Addr>> {
        F::tables(self).embryos.slot(key)
    }
    fn insert_flow(&self, key: &Tuple<F::Addr>, flow: &Flow<F::Addr>) -> Result<(), InsertError> {
        F::tables(self).flows.insert(key, flow)
    }
    fn insert_embryo(&self, key: &Tuple<F::Addr>, flow: &Flow<F::Addr>) -> Result<(), InsertError> {
        F::tables(self).embryos.insert(key, flow)
    }
    fn remove_flow(&self, key: &Tuple<F::Addr>) -> bool {
        F::tables(self).flows.remove(key)
    }
    fn remove_embryo(&self, key: &Tuple<F::Addr>) -> bool {
        F::tables(self).embryos.remove(key)
    }
    fn seat(&self, confirmed: bool, index: u32) -> Option<&mut Seat<F::Addr>> {
        let ring = &F::tables(self).rings[usize::from(confirmed)];
        // SAFETY: as for the scratch.
        ring.get(index as usize)
            .map(|seat| unsafe { &mut *seat.get() })
    }
    fn swap_seat(&self, seat: &mut Seat<F::Addr>, from: u64, to: u64) -> bool {
        let same = Seat::<F::Addr>::state(seat.generation, seat.owner) == from;
        if same {
            (seat.generation, seat.owner) = (to as u32, (to >> 32) as u32);
        }
        same
    }
    fn seat_state(&self, seat: &Seat<F::Addr>) -> u64 {
        Seat::<F::Addr>::state(seat.generation, seat.owner)
    }
    fn next_seat(&self, table: usize) -> u32 {
        let hand = &self.hands[table];
        hand.replace(hand.get().wrapping_add(1))
    }
    fn holding(&self, owner: u32, table: usize) -> i64 {
        let holdings = self.holdings.borrow();
        holdings.get(&(owner, table)).copied().unwrap_or(0)
    }
    fn hold(&self, owner: u32, table: usize, more: i64) {
        *self
            .holdings
            .borrow_mut()
            .entry((owner, table))
            .or_default() += more;
    }
    fn count(&self, table: usize, event: usize) {
        self.events.borrow_mut()[table][event] += 1;
    }
    fn nat_pressure(&self, attempts: u32, exhausted: bool) {
        self.pressure.borrow_mut().push((attempts, exhausted));
    }
    fn kernel_flow(&self, key: &Tuple<F::Addr>) -> Option<KernelSlot<F::Addr>> {
        F::tables(self).kernel_flows.slot(key)
    }
    fn fragments(&self, key: &FragmentKey<F::Addr>) -> Option<&mut Fragments<F::Addr>> {
        // SAFETY: as for the scratch; what is removed stays until the next packet.
        F::tables(self)
            .fragments
            .at(key)
            .map(|row| unsafe { &mut *row })
    }
    fn put_fragments(&self, key: &FragmentKey<F::Addr>, fragments: &Fragments<F::Addr>) {
        F::tables(self).fragments.put(key, fragments);
    }
    fn remove_fragments(&self, key: &FragmentKey<F::Addr>) {
        F::tables(self).fragments.remove(key);
    }
    fn ipsec_policy(&self, index: u32) -> Option<&IpsecPolicy<F::Addr>> {
        F::tables(self).ipsec.get(index as usize)
    }
    fn route(&self) -> Result<(), DropReason> {
        let Some(scratch) = <Self as Tables<F>>::scratch(self) else {
            return Err(DropReason::HelperFailed);
        };
        scratch.route = (F::tables(self).route)(&scratch.query)?;
        Ok(())
    }
    fn host_listens(&self, tuple: &Tuple<F::Addr>) -> bool {
        let port = u16::from_be_bytes(tuple.dport);
        let listeners = &F::tables(self).listeners;
        listeners.contains(&(tuple.proto, tuple.dst, port))
            || listeners.contains(&(tuple.proto, F::Addr::default(), port))
    }
    fn socket_cookie(&self) -> u64 {
        self.socket_cookie
    }
    fn socket_peer(&self, key: &SocketKey) -> u32 {
        self.sockets.get(key).map_or(0, |peer| peer.ifindex)
    }
    fn neighbour(&self, _: u32) -> Option<[u8; 12]> {
        self.neighbour
    }
    fn answer_buffer(&self) -> Option<&mut Buffer> {
        // SAFETY: as for the scratch.
        Some(unsafe { &mut *self.answer.get() })
    }
    fn may_answer(&self, kind: usize) -> bool {
        let mut pace = self.pace[kind].get();
        let taken = pace.take(u64::from(self.now.get()) * 1_000_000_000);
        self.pace[kind].set(pace);
        taken
    }
    fn count_answer(&self, kind: usize, event: usize) {
        self.answers.borrow_mut()[kind].count[event] += 1;
    }
    fn policy(&self, tuple: &Tuple<F::Addr>, ifindex: u32) -> Policy {
        (F::tables(self).policy)(tuple, ifindex)
    }
}

fn port_key<F: Family>(proto: u8, addr: &F::Addr, port: [u8; 2]) -> PortPrefix<F::Addr> {
    debug_assert_eq!(port_prefix_base::<F::Addr>(), 32 + F::ADDR_LEN * 8);
    PortPrefix {
        proto,
        reserved: [0; 3],
        addr: *addr,
        port,
        tail: [0; 2],
    }
}

impl<F: ModelFamily> Steps<F> for Model {
    fn from_endpoint<P: Packet>(&self, packet: &mut P, ifindex: u32) -> u64 {
        steps::from_endpoint::<F, P, _>(packet, self, ifindex)
    }
    fn from_uplink<P: Packet>(&self, packet: &mut P, ifindex: u32) -> u64 {
        steps::from_uplink::<F, P, _>(packet, self, ifindex)
    }
    fn read_quoted<P: Packet>(&self, packet: &mut P) -> u32 {
        steps::read_quoted::<F, P, _>(packet, self)
    }
    fn icmp_error<P: Packet>(
        &self,
        packet: &mut P,
        ifindex: u32,
        network: u32,
        decision: u32,
    ) -> u64 {
        steps::icmp_error::<F, P, _>(packet, self, ifindex, network, decision)
    }
    fn send_error<P: Packet>(&self, packet: &mut P) -> u64 {
        steps::send_error::<F, P, _>(packet, self)
    }
    fn proceed<P: Packet>(&self, packet: &mut P, decision: u32) -> u64 {
        steps::proceed::<F, P, _>(packet, self, decision)
    }
    fn reroute<P: Packet>(&self, packet: &mut P, ifindex: u32) -> u64 {
        steps::reroute::<F, P, _>(packet, self, ifindex)
    }
    fn classify(&self, ifindex: u32, network: u32, fresh: u32) -> u32 {
        steps::classify::<F, _>(self, ifindex, network, fresh)
    }
    fn publish(&self, ifindex: u32, network: u32, fresh: u32) -> u32 {
        steps::publish::<F, _>(self, ifindex, network, fresh)
    }
    fn direct(&self, ifindex: u32, network: u32, fresh: u32) -> u32 {
        steps::direct::<F, _>(self, ifindex, network, fresh)
    }
    fn egress(&self, ifindex: u32, network: u32, fresh: u32) -> u32 {
        steps::egress::<F, _>(self, ifindex, network, fresh)
    }
    fn ipsec(&self) -> u32 {
        steps::ipsec::<F, _>(self)
    }
    fn ipsec_covers(&self, side: u32) -> u32 {
        steps::ipsec_covers::<F, _>(self, side)
    }
    fn ipsec_weight(&self, index: u32, side: u32) -> u64 {
        steps::ipsec_weight::<F, _>(self, index, side)
    }
    fn prepare(&self) -> u32 {
        steps::prepare::<F, _>(self)
    }
    fn reserve(&self) -> u32 {
        steps::reserve::<F, _>(self)
    }
    fn commit(&self) -> u32 {
        steps::commit::<F, _>(self)
    }
    fn send<P: Packet>(&self, packet: &mut P) -> u64 {
        steps::send::<F, P, _>(packet, self)
    }
    fn promote(&self) -> u32 {
        steps::promote::<F, _>(self)
    }
    fn try_source_port(&self, attempt: u32) -> u32 {
        steps::try_source_port::<F, _>(self, attempt)
    }
    fn kernel_forwards<P: Packet>(&self, packet: &mut P, translated: u32) -> u32 {
        steps::kernel_forwards::<F, P, _>(packet, self, translated)
    }
    fn track<P: Packet>(&self, packet: &mut P, ifindex: u32) {
        steps::track::<F, P, _>(packet, self, ifindex);
    }
    fn sum_sctp<P: Packet>(&self, packet: &mut P, verdict: u64) -> u64 {
        steps::sum_sctp::<F, P, _>(packet, self, verdict)
    }
    fn remember(&self, verdict: u64) {
        steps::remember::<F, _>(self, verdict);
    }
    fn answer<P: Packet>(&self, packet: &mut P, ifindex: u32, verdict: u64) -> u64 {
        steps::answer::<F, P, _>(packet, self, ifindex, verdict)
    }
    fn fragment<P: Packet>(&self, packet: &mut P, ifindex: u32) -> u64 {
        steps::fragment::<F, P, _>(packet, self, ifindex)
    }
    fn clamp_mss<P: Packet>(&self, packet: &mut P) -> u32 {
        steps::clamp_mss::<F, P, _>(packet, self)
    }
    fn end(&self, generation: u32) {
        crate::flow::end::<F, _>(self, generation);
    }
    fn reclaim(&self, pressing: u32) -> u32 {
        u32::from(room::reclaim::<F, _>(self, pressing != 0))
    }
    fn claim_seat(&self, confirmed: u32, owner: u32) -> u64 {
        steps::claim_seat::<F, _>(self, confirmed, owner)
    }
    fn probe_seat(&self, confirmed: u32, index: u32, owner: u32) -> u32 {
        room::probe_seat::<F, _>(self, confirmed != 0, index, owner)
    }
    fn vacate_seat(&self, confirmed: u32, index: u32) -> u32 {
        u32::from(room::vacate_seat::<F, _>(self, confirmed != 0, index))
    }
}
