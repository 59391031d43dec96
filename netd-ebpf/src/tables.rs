//! The engine's tables over BPF maps and helpers.

use core::{ffi::c_void, ptr::NonNull};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_CURRENT_NETNS, BPF_NOEXIST, bpf_sock_tuple},
    btf_maps::{HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    helpers::generated::{
        bpf_fib_lookup, bpf_get_socket_cookie, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns,
        bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp,
    },
};
use netd_common::{
    abi::*,
    answer::Buffer,
    drop::DropReason,
    tables::{InsertError, KernelSlot, Scratch, Slot, Tables},
    wire::{Address, Family, V4, V6, proto},
};

use crate::{
    account,
    atomic::{compare_and_swap, fetch_add},
    features, maps, subprograms,
};

/// The maps, and the context that the lookup helpers ask for.
pub struct Maps(pub *mut __sk_buff);

type A<F> = <F as Family>::Addr;

/// The maps of one family.
pub trait FamilyMaps: Family {
    fn endpoints() -> &'static HashMap<A<Self>, EndpointAddress, 16384>;
    fn subnets() -> &'static LpmTrie<A<Self>, Subnet, 4096>;
    fn local() -> &'static LpmTrie<A<Self>, LocalAddress, 16384>;
    fn publish() -> &'static LpmTrie<PortPrefix<A<Self>>, Backend<A<Self>>, 65536>;
    fn exposed() -> &'static LpmTrie<PortPrefix<A<Self>>, u32, 65536>;
    fn flow(key: &Tuple<A<Self>>) -> Option<*mut Flow<A<Self>>>;
    fn embryo(key: &Tuple<A<Self>>) -> Option<*mut Flow<A<Self>>>;
    fn insert_flow(key: &Tuple<A<Self>>, flow: &Flow<A<Self>>) -> Result<(), i32>;
    fn insert_embryo(key: &Tuple<A<Self>>, flow: &Flow<A<Self>>) -> Result<(), i32>;
    fn remove_flow(key: &Tuple<A<Self>>) -> bool;
    fn remove_embryo(key: &Tuple<A<Self>>) -> bool;
    fn flow_seat(index: u32) -> Option<*mut Seat<A<Self>>>;
    fn embryo_seat(index: u32) -> Option<*mut Seat<A<Self>>>;
    fn kernel_flow(key: &Tuple<A<Self>>) -> Option<*mut KernelFlow<A<Self>>>;
    fn fragments(key: &FragmentKey<A<Self>>) -> Option<*mut Fragments<A<Self>>>;
    fn put_fragments(key: &FragmentKey<A<Self>>, fragments: &Fragments<A<Self>>);
    fn remove_fragments(key: &FragmentKey<A<Self>>);
    fn ipsec_policy(index: u32) -> Option<&'static IpsecPolicy<A<Self>>>;
    fn scratch() -> &'static PerCpuArray<Scratch<A<Self>>, 1>;
    fn sock_tuple(tuple: &Tuple<A<Self>>) -> SockTuple;
    const SOCK_TUPLE_LEN: u32;
    fn route(ctx: *mut __sk_buff) -> u32;
    fn host_listens(ctx: *mut __sk_buff) -> u32;
}

/// A map key on the stack. The verifier wants stack accesses aligned, and an address by itself
/// (bytes) is not.
#[repr(C, align(8))]
struct Aligned<T>(T);

/// `struct bpf_sock_tuple`, as words in wire order: 12 bytes for IPv4, 36 for IPv6.
pub type SockTuple = [u32; 9];

macro_rules! family_maps {
    ($family:ty, $endpoints:ident, $subnets:ident, $local:ident, $publish:ident, $exposed:ident,
     $flows:ident, $embryos:ident, $kernel_flows:ident, $ipsec:ident, $flow_ring:ident, $embryo_ring:ident,
     $fragments:ident, $scratch:ident, $sock_len:literal, $sock_tuple:expr,
     $route:ident, $listens:ident) => {
        impl FamilyMaps for $family {
            #[inline(always)]
            fn endpoints() -> &'static HashMap<A<Self>, EndpointAddress, 16384> {
                &maps::$endpoints
            }
            #[inline(always)]
            fn subnets() -> &'static LpmTrie<A<Self>, Subnet, 4096> {
                &maps::$subnets
            }
            #[inline(always)]
            fn local() -> &'static LpmTrie<A<Self>, LocalAddress, 16384> {
                &maps::$local
            }
            #[inline(always)]
            fn publish() -> &'static LpmTrie<PortPrefix<A<Self>>, Backend<A<Self>>, 65536> {
                &maps::$publish
            }
            #[inline(always)]
            fn exposed() -> &'static LpmTrie<PortPrefix<A<Self>>, u32, 65536> {
                &maps::$exposed
            }
            #[inline(always)]
            fn flow(key: &Tuple<A<Self>>) -> Option<*mut Flow<A<Self>>> {
                maps::$flows.get_ptr_mut(key)
            }
            #[inline(always)]
            fn embryo(key: &Tuple<A<Self>>) -> Option<*mut Flow<A<Self>>> {
                maps::$embryos.get_ptr_mut(key)
            }
            #[inline(always)]
            fn insert_flow(key: &Tuple<A<Self>>, flow: &Flow<A<Self>>) -> Result<(), i32> {
                maps::$flows.insert(key, flow, u64::from(BPF_NOEXIST))
            }
            #[inline(always)]
            fn insert_embryo(key: &Tuple<A<Self>>, flow: &Flow<A<Self>>) -> Result<(), i32> {
                maps::$embryos.insert(key, flow, u64::from(BPF_NOEXIST))
            }
            #[inline(always)]
            fn kernel_flow(key: &Tuple<A<Self>>) -> Option<*mut KernelFlow<A<Self>>> {
                maps::$kernel_flows.get_ptr_mut(key)
            }
            #[inline(always)]
            fn remove_flow(key: &Tuple<A<Self>>) -> bool {
                maps::$flows.remove(key).is_ok()
            }
            #[inline(always)]
            fn remove_embryo(key: &Tuple<A<Self>>) -> bool {
                maps::$embryos.remove(key).is_ok()
            }
            #[inline(always)]
            fn flow_seat(index: u32) -> Option<*mut Seat<A<Self>>> {
                maps::$flow_ring.get_ptr_mut(index)
            }
            #[inline(always)]
            fn embryo_seat(index: u32) -> Option<*mut Seat<A<Self>>> {
                maps::$embryo_ring.get_ptr_mut(index)
            }
            #[inline(always)]
            fn fragments(key: &FragmentKey<A<Self>>) -> Option<*mut Fragments<A<Self>>> {
                maps::$fragments.get_ptr_mut(key)
            }
            #[inline(always)]
            fn put_fragments(key: &FragmentKey<A<Self>>, fragments: &Fragments<A<Self>>) {
                // Whoever was not used for longest makes room.
                let _ = maps::$fragments.insert(key, fragments, 0);
            }
            #[inline(always)]
            fn remove_fragments(key: &FragmentKey<A<Self>>) {
                let _ = maps::$fragments.remove(key);
            }
            #[inline(always)]
            fn ipsec_policy(index: u32) -> Option<&'static IpsecPolicy<A<Self>>> {
                maps::$ipsec.get(index)
            }
            #[inline(always)]
            fn scratch() -> &'static PerCpuArray<Scratch<A<Self>>, 1> {
                &maps::$scratch
            }
            const SOCK_TUPLE_LEN: u32 = $sock_len;
            #[inline(always)]
            fn sock_tuple(tuple: &Tuple<A<Self>>) -> SockTuple {
                let ports = u32::from_ne_bytes([
                    tuple.sport[0],
                    tuple.sport[1],
                    tuple.dport[0],
                    tuple.dport[1],
                ]);
                $sock_tuple(words(&tuple.src), words(&tuple.dst), ports)
            }
            #[inline(always)]
            fn route(ctx: *mut __sk_buff) -> u32 {
                subprograms::$route(ctx)
            }
            #[inline(always)]
            fn host_listens(ctx: *mut __sk_buff) -> u32 {
                subprograms::$listens(ctx)
            }
        }
    };
}

/// An address as words in wire order; IPv4 fills the first.
#[inline(always)]
fn words<T: Address>(addr: &T) -> [u32; 4] {
    let b = addr.padded();
    [
        u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
        u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
        u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
    ]
}

/// The inverse of [`words`], padded.
#[inline(always)]
fn bytes(w: &[u32; 4]) -> [u8; 16] {
    let (a, b, c, d) = (
        w[0].to_ne_bytes(),
        w[1].to_ne_bytes(),
        w[2].to_ne_bytes(),
        w[3].to_ne_bytes(),
    );
    [
        a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2],
        d[3],
    ]
}

family_maps!(
    V4,
    ADDRS_V4,
    SUBNETS_V4,
    LOCAL_V4,
    PUBLISH_V4,
    EXPOSED_V4,
    FLOWS_V4,
    EMBRYOS_V4,
    KERNEL_FLOWS_V4,
    IPSEC_V4,
    FLOW_RING_V4,
    EMBRYO_RING_V4,
    FRAGMENTS_V4,
    SCRATCH_V4,
    12,
    |s: [u32; 4], d: [u32; 4], ports| [s[0], d[0], ports, 0, 0, 0, 0, 0, 0],
    route_v4,
    host_listens_v4
);
family_maps!(
    V6,
    ADDRS_V6,
    SUBNETS_V6,
    LOCAL_V6,
    PUBLISH_V6,
    EXPOSED_V6,
    FLOWS_V6,
    EMBRYOS_V6,
    KERNEL_FLOWS_V6,
    IPSEC_V6,
    FLOW_RING_V6,
    EMBRYO_RING_V6,
    FRAGMENTS_V6,
    SCRATCH_V6,
    36,
    |s: [u32; 4], d: [u32; 4], ports| [s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3], ports],
    route_v6,
    host_listens_v6
);

/// `struct bpf_fib_lookup` (include/uapi/linux/bpf.h), 64 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FibLookup {
    family: u8,
    l4_protocol: u8,
    sport: u16,
    dport: u16,
    /// In: total length; out: the route's MTU.
    mtu: u16,
    ifindex: u32,
    tos: u32,
    src: [u32; 4],
    dst: [u32; 4],
    vlan: u32,
    macs: [u32; 3],
}
const _: () = assert!(size_of::<FibLookup>() == 64);

impl FibLookup {
    /// An assignment would be a call of memmove, with a frame of its own.
    #[inline(always)]
    fn copy_from(&mut self, other: &Self) {
        // SAFETY: a borrow that may write and one that reads do not overlap.
        unsafe { core::ptr::copy_nonoverlapping(other, self, 1) }
    }
}

/// [`SuppressedHop`] in words.
#[repr(C)]
pub struct HopWords {
    ifindex: u32,
    a: u32,
    b: u32,
    c: u32,
    d: u32,
}
const _: () = assert!(size_of::<HopWords>() == size_of::<SuppressedHop>());

mod fib {
    pub const DIRECT: u32 = 1 << 0;
    pub const SKIP_NEIGH: u32 = 1 << 2;
    pub const TBID: u32 = 1 << 3;
    pub const SRC: u32 = 1 << 4;
    pub const SUCCESS: i64 = 0;
    pub const BLACKHOLE: i64 = 1;
    pub const UNREACHABLE: i64 = 2;
    pub const PROHIBIT: i64 = 3;
    pub const NOT_FORWARDED: i64 = 4;
    pub const NO_NEIGH: i64 = 7;
    pub const NO_SRC_ADDR: i64 = 9;
}

fn insert_error(errno: i32) -> InsertError {
    const EEXIST: i32 = 17;
    if errno == -EEXIST {
        InsertError::Exists
    } else {
        InsertError::Full
    }
}

impl<F: FamilyMaps> Tables<F> for Maps {
    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        maps::CONFIG.get(0)
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: no arguments. Coarse: one load instead of a read of the clock source.
        (unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000_000) as u32
    }

    #[inline(always)]
    fn generation(&self) -> u32 {
        // Never 0: that is an empty seat's.
        // SAFETY: no arguments.
        unsafe { bpf_ktime_get_ns() as u32 | 1 }
    }

    #[inline(always)]
    fn scratch(&self) -> Option<&mut Scratch<F::Addr>> {
        // SAFETY: this CPU's element, which no other program uses while this one runs.
        F::scratch().get_ptr_mut(0).map(|p| unsafe { &mut *p })
    }

    #[inline(always)]
    fn endpoint(&self, ifindex: u32) -> Option<Endpoint> {
        // SAFETY: copied at once.
        unsafe { maps::ENDPOINTS.get(ifindex) }.copied()
    }

    #[inline(always)]
    fn endpoint_of(&self, addr: &F::Addr) -> Option<EndpointAddress> {
        // SAFETY: copied at once.
        unsafe { F::endpoints().get(Aligned(*addr).0) }.copied()
    }

    #[inline(always)]
    fn network(&self, id: u16) -> Option<&Network> {
        maps::NETWORKS
            .get(u32::from(id))
            .filter(|n| n.flags & network_flag::ACTIVE != 0)
    }

    #[inline(always)]
    fn trusted(&self, network: u16, ifindex: u32) -> bool {
        let key = NetworkInterface {
            network: u32::from(network),
            ifindex,
        };
        maps::TRUSTED.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn subnet(&self, addr: &F::Addr) -> u16 {
        F::subnets()
            .get(&Aligned(Key::new(F::ADDR_LEN * 8, *addr)).0)
            .map_or(0, |s| s.network)
    }

    #[inline(always)]
    fn local(&self, addr: &F::Addr) -> u16 {
        F::local()
            .get(&Aligned(Key::new(F::ADDR_LEN * 8, *addr)).0)
            .map_or(local_kind::NONE, |l| l.kind)
    }

    #[inline(always)]
    fn uplink(&self, ifindex: u32) -> Option<Uplink> {
        // SAFETY: copied at once.
        unsafe { maps::UPLINKS.get(ifindex) }.copied()
    }

    #[inline(always)]
    fn port_published(&self, protocol: u8, port: [u8; 2]) -> bool {
        let port = u16::from_be_bytes(port);
        let Some(index) = port_word(protocol, port) else {
            return false;
        };
        maps::PORTS
            .get(index)
            .is_some_and(|word| word >> (port & 63) & 1 != 0)
    }

    #[inline(always)]
    fn backend(&self, protocol: u8, addr: &F::Addr, port: [u8; 2]) -> Option<&Backend<F::Addr>> {
        let key = PortPrefix {
            proto: protocol,
            reserved: [0; 3],
            addr: *addr,
            port,
            tail: [0; 2],
        };
        F::publish().get(&Aligned(Key::new(port_prefix_base::<F::Addr>() + 16, key)).0)
    }

    #[inline(always)]
    fn exposed(&self, protocol: u8, addr: &F::Addr, port: [u8; 2]) -> bool {
        let key = PortPrefix {
            proto: protocol,
            reserved: [0; 3],
            addr: *addr,
            port,
            tail: [0; 2],
        };
        F::exposed()
            .get(&Aligned(Key::new(port_prefix_base::<F::Addr>() + 16, key)).0)
            .is_some()
    }

    #[inline(always)]
    fn flow(&self, key: &Tuple<F::Addr>) -> Option<Slot<F::Addr>> {
        // SAFETY: a map value stays mapped while the program runs.
        F::flow(key)
            .and_then(NonNull::new)
            .map(|p| unsafe { Slot::new(p) })
    }

    #[inline(always)]
    fn embryo(&self, key: &Tuple<F::Addr>) -> Option<Slot<F::Addr>> {
        // SAFETY: a map value stays mapped while the program runs.
        F::embryo(key)
            .and_then(NonNull::new)
            .map(|p| unsafe { Slot::new(p) })
    }

    #[inline(always)]
    fn insert_flow(&self, key: &Tuple<F::Addr>, flow: &Flow<F::Addr>) -> Result<(), InsertError> {
        F::insert_flow(key, flow).map_err(insert_error)
    }

    #[inline(always)]
    fn insert_embryo(&self, key: &Tuple<F::Addr>, flow: &Flow<F::Addr>) -> Result<(), InsertError> {
        F::insert_embryo(key, flow).map_err(insert_error)
    }

    #[inline(always)]
    fn remove_flow(&self, key: &Tuple<F::Addr>) -> bool {
        F::remove_flow(key)
    }

    #[inline(always)]
    fn remove_embryo(&self, key: &Tuple<F::Addr>) -> bool {
        F::remove_embryo(key)
    }

    #[inline(always)]
    fn seat(&self, confirmed: bool, index: u32) -> Option<&mut Seat<F::Addr>> {
        let seat = if confirmed {
            F::flow_seat(index)
        } else {
            F::embryo_seat(index)
        };
        // SAFETY: a map value stays mapped; it is plain data, and what it says is verified.
        seat.map(|seat| unsafe { &mut *seat })
    }

    #[inline(always)]
    fn swap_seat(&self, seat: &mut Seat<F::Addr>, from: u64, to: u64) -> bool {
        let state = (&raw mut seat.generation).cast();
        // SAFETY: generation and owner, eight bytes of a map at a multiple of eight.
        unsafe { compare_and_swap(state, from, to) == from }
    }

    #[inline(always)]
    fn seat_state(&self, seat: &Seat<F::Addr>) -> u64 {
        // SAFETY: as above; one load.
        unsafe { (&raw const seat.generation).cast::<u64>().read_volatile() }
    }

    #[inline(always)]
    fn next_seat(&self, table: usize) -> u32 {
        let Some(hand) = maps::HANDS.get_ptr_mut(table as u32) else {
            return 0;
        };
        // SAFETY: an aligned integer in a map.
        unsafe { fetch_add(&raw mut (*hand).next, 1) as u32 }
    }

    #[inline(always)]
    fn holding(&self, owner: u32, table: usize) -> i64 {
        // SAFETY: copied at once.
        unsafe { maps::HOLDINGS.get(owner) }.map_or(0, |held| held.flows[table])
    }

    #[inline(always)]
    fn hold(&self, owner: u32, table: usize, more: i64) {
        let held = match maps::HOLDINGS.get_ptr_mut(owner) {
            Some(held) => held,
            None => {
                let _ = maps::HOLDINGS.insert(owner, Holding::default(), u64::from(BPF_NOEXIST));
                let Some(held) = maps::HOLDINGS.get_ptr_mut(owner) else {
                    return;
                };
                held
            }
        };
        // SAFETY: an aligned integer in a map.
        unsafe { fetch_add((&raw mut (*held).flows[table]).cast(), more as u64) };
    }

    #[inline(always)]
    fn count(&self, table: usize, event: usize) {
        if let Some(events) = maps::TABLE_EVENTS.get_ptr_mut(table as u32) {
            // SAFETY: this CPU's element.
            unsafe { (*events).count[event] += 1 };
        }
    }

    #[inline(always)]
    fn nat_pressure(&self, attempts: u32, exhausted: bool) {
        if F::VERSION == 4 {
            nat_pressure_v4(attempts, u32::from(exhausted));
        } else {
            nat_pressure_v6(attempts, u32::from(exhausted));
        }
    }

    #[inline(always)]
    fn kernel_flow(&self, key: &Tuple<F::Addr>) -> Option<KernelSlot<F::Addr>> {
        // SAFETY: a map value stays mapped while the program runs.
        F::kernel_flow(key)
            .and_then(NonNull::new)
            .map(|p| unsafe { KernelSlot::new(p) })
    }

    #[inline(always)]
    fn fragments(&self, key: &FragmentKey<F::Addr>) -> Option<&mut Fragments<F::Addr>> {
        // SAFETY: a map value stays mapped; it is plain data, and no value of it is trusted.
        F::fragments(key).map(|fragments| unsafe { &mut *fragments })
    }

    #[inline(always)]
    fn put_fragments(&self, key: &FragmentKey<F::Addr>, fragments: &Fragments<F::Addr>) {
        F::put_fragments(key, fragments);
    }

    #[inline(always)]
    fn remove_fragments(&self, key: &FragmentKey<F::Addr>) {
        F::remove_fragments(key);
    }

    #[inline(always)]
    fn ipsec_policy(&self, index: u32) -> Option<&IpsecPolicy<F::Addr>> {
        F::ipsec_policy(index)
    }

    #[inline(always)]
    fn route(&self) -> Result<(), DropReason> {
        match F::route(self.0) {
            0 => Ok(()),
            code => Err(DropReason::from_number(code as u16).unwrap_or(DropReason::HelperFailed)),
        }
    }

    #[inline(always)]
    fn socket_cookie(&self) -> u64 {
        // SAFETY: the context outlives the program.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    #[inline(always)]
    fn socket_peer(&self, key: &SocketKey) -> u32 {
        // SAFETY: copied at once.
        unsafe { maps::SOCKETS.get(key) }.map_or(0, |peer| peer.ifindex)
    }

    #[inline(always)]
    fn neighbour(&self, oif: u32) -> Option<[u8; 12]> {
        neighbour::<F>(self.0, oif)
    }

    #[inline(always)]
    fn answer_buffer(&self) -> Option<&mut Buffer> {
        // SAFETY: this CPU's element, which no other program uses while this one runs.
        maps::ANSWER.get_ptr_mut(0).map(|p| unsafe { &mut *p })
    }

    #[inline(always)]
    fn may_answer(&self, kind: usize) -> bool {
        // SAFETY: this CPU's element; the clock takes no arguments.
        maps::ANSWER_PACE
            .get_ptr_mut(kind as u32)
            .is_some_and(|pace| unsafe { (*pace).take(bpf_ktime_get_coarse_ns()) })
    }

    #[inline(always)]
    fn count_answer(&self, kind: usize, event: usize) {
        if let Some(answers) = maps::ANSWERS.get_ptr_mut(kind as u32) {
            // SAFETY: this CPU's element.
            unsafe { (*answers).count[event] += 1 };
        }
    }

    #[inline(always)]
    fn host_listens(&self, tuple: &Tuple<F::Addr>) -> bool {
        let Some(scratch) = <Self as Tables<F>>::scratch(self) else {
            return true;
        };
        scratch.socket = *tuple;
        F::host_listens(self.0) != 0
    }
}

/// [`Tables::neighbour`].
#[inline(always)]
fn neighbour<F: FamilyMaps>(ctx: *mut __sk_buff, oif: u32) -> Option<[u8; 12]> {
    let maps = Maps(ctx);
    let scratch = <Maps as Tables<F>>::scratch(&maps)?;
    let params = maps::FIB_LOOKUP.get_ptr_mut(0)?;
    // SAFETY: this CPU's element.
    let params = unsafe { &mut *params };
    let query = &scratch.query;
    params.family = F::AF;
    params.l4_protocol = query.proto;
    params.sport = u16::from_ne_bytes(query.sport);
    params.dport = u16::from_ne_bytes(query.dport);
    params.mtu = 0;
    params.ifindex = query.iif;
    // A byte for IPv4, the first word of the header for IPv6. Without its flow label, which a sender
    // may change in the middle of a flow: the choice among several next hops must not.
    params.tos = if F::VERSION == 4 {
        u32::from_ne_bytes([query.tos, 0, 0, 0])
    } else {
        (u32::from(query.tos) << 20).to_be()
    };
    params.src = words(&query.src);
    params.dst = words(&query.dst);
    params.vlan = 0;
    params.macs = [0; 3];
    let params_pointer = core::ptr::from_mut(params).cast();
    // SAFETY: `params` is `struct bpf_fib_lookup`, and its size is passed.
    let result = unsafe { bpf_fib_lookup(ctx.cast::<c_void>(), params_pointer, 64, 0) };
    if result != fib::SUCCESS || params.ifindex != oif {
        return None;
    }
    // The kernel's order is source, destination.
    let (a, b, c) = (
        params.macs[0].to_ne_bytes(),
        params.macs[1].to_ne_bytes(),
        params.macs[2].to_ne_bytes(),
    );
    Some([
        b[2], b[3], c[0], c[1], c[2], c[3], a[0], a[1], a[2], a[3], b[0], b[1],
    ])
}

/// Asks for `scratch.query`; the answer is `scratch.route`. 0, or the number of a [`DropReason`].
#[inline(always)]
pub fn route<F: FamilyMaps>(ctx: *mut __sk_buff) -> u32 {
    let maps = Maps(ctx);
    let Some(Scratch { query, route, .. }) = <Maps as Tables<F>>::scratch(&maps) else {
        return DropReason::HelperFailed as u32;
    };
    let Some(params) = maps::FIB_LOOKUP.get_ptr_mut(0) else {
        return DropReason::HelperFailed as u32;
    };
    // SAFETY: this CPU's element.
    let params = unsafe { &mut *params };
    params.family = F::AF;
    params.l4_protocol = query.proto;
    params.sport = u16::from_ne_bytes(query.sport);
    params.dport = u16::from_ne_bytes(query.dport);
    // Any length that fits: it makes the kernel tell the route's MTU.
    params.mtu = 1;
    params.ifindex = query.iif;
    // A byte for IPv4, the first word of the header for IPv6. Without its flow label, which a sender
    // may change in the middle of a flow: the choice among several next hops must not.
    params.tos = if F::VERSION == 4 {
        u32::from_ne_bytes([query.tos, 0, 0, 0])
    } else {
        (u32::from(query.tos) << 20).to_be()
    };
    params.src = words(&query.src);
    params.dst = words(&query.dst);
    // The rest is the answer's.
    let mut flags = 0;
    if features::has(features::FIB_SKIP_NEIGH) {
        flags |= fib::SKIP_NEIGH;
    }
    if features::has(features::FIB_SRC) {
        flags |= fib::SRC;
    }
    let result = if F::VERSION == 6 {
        look_up_unsuppressed(ctx, params, flags)
    } else {
        look_up(ctx, params, flags)
    };
    match result {
        // The neighbour is resolved by bpf_redirect_neigh; a source address is looked for elsewhere.
        fib::SUCCESS | fib::NO_NEIGH | fib::NO_SRC_ADDR => {}
        fib::BLACKHOLE => return DropReason::Blackhole as u32,
        fib::UNREACHABLE | fib::NOT_FORWARDED => return DropReason::NoRoute as u32,
        fib::PROHIBIT => return DropReason::Prohibited as u32,
        _ => return DropReason::HelperFailed as u32,
    }
    route.oif = params.ifindex;
    route.mtu = u32::from(params.mtu);
    route.via = bytes(&params.dst);
    route.via_v6 = params.family == V6::AF;
    // Not a default that is overwritten: its zeroes would be a call of memset, with a frame of its own.
    let known = features::has(features::FIB_SRC) && result == fib::SUCCESS;
    let known = 0u32.wrapping_sub(u32::from(known));
    let [a, b, c, d] = params.src;
    route.src = F::Addr::from_padded(&bytes(&[a & known, b & known, c & known, d & known]));
    0
}

/// Asks the kernel. Returns `BPF_FIB_LKUP_RET_*`, or an errno below zero.
#[inline(always)]
fn look_up(ctx: *mut __sk_buff, params: &mut FibLookup, flags: u32) -> i64 {
    let params_pointer = core::ptr::from_mut(params).cast();
    // SAFETY: `params` is `struct bpf_fib_lookup`, and its size is passed.
    unsafe { bpf_fib_lookup(ctx.cast::<c_void>(), params_pointer, 64, flags) }
}

/// The same for IPv6, and does what the kernel omits there: a route that a policy rule suppresses
/// does not count. See netd's `desired/suppressed.rs`.
#[inline(always)]
fn look_up_unsuppressed(ctx: *mut __sk_buff, params: &mut FibLookup, flags: u32) -> i64 {
    let (Some(question), Some(hop)) = (
        maps::FIB_LOOKUP.get_ptr_mut(1),
        maps::FOUND_HOP.get_ptr_mut(0),
    ) else {
        return -1;
    };
    // SAFETY: this CPU's elements, and not those of `params`.
    let (question, hop) = unsafe { (&mut *question, &mut *hop) };
    question.copy_from(params);
    let result = look_up(ctx, params, flags);
    if !matches!(result, fib::SUCCESS | fib::NO_NEIGH | fib::NO_SRC_ADDR) {
        return result;
    }
    // A route without a gateway leaves the destination in its place.
    let differs = (params.dst[0] ^ question.dst[0])
        | (params.dst[1] ^ question.dst[1])
        | (params.dst[2] ^ question.dst[2])
        | (params.dst[3] ^ question.dst[3]);
    let gateway = if differs == 0 { 0 } else { u32::MAX };
    hop.ifindex = params.ifindex;
    // Not as an array: a store of zeroes would be a call of memset, with a frame of its own.
    hop.a = params.dst[0] & gateway;
    hop.b = params.dst[1] & gateway;
    hop.c = params.dst[2] & gateway;
    hop.d = params.dst[3] & gateway;
    let key = core::ptr::from_ref(hop).cast::<SuppressedHop>();
    // SAFETY: the same size, and every bit pattern is an address.
    let key: &SuppressedHop = unsafe { &*key };
    // SAFETY: the value is copied at once.
    let Some(instead) = unsafe { maps::SUPPRESSED_V6.get(key) }.copied() else {
        return result;
    };
    // A kernel that cannot be asked about one table (6.1): nothing leaves by what is suppressed.
    if instead.table == 0 || !features::has(features::FIB_TABLE) {
        return fib::NOT_FORWARDED;
    }
    params.copy_from(question);
    // In the same place.
    params.vlan = instead.table;
    let result = look_up(ctx, params, flags | fib::DIRECT | fib::TBID);
    if result == fib::NOT_FORWARDED && instead.flags & suppressed_flag::STANDS != 0 {
        params.copy_from(question);
        return look_up(ctx, params, flags);
    }
    result
}

/// 1 if a socket of the host would take a packet with the tuple `scratch.socket`.
#[inline(always)]
pub fn host_listens<F: FamilyMaps>(ctx: *mut __sk_buff) -> u32 {
    let maps = Maps(ctx);
    let Some(Scratch { socket: tuple, .. }) = <Maps as Tables<F>>::scratch(&maps) else {
        return 1;
    };
    let mut key = F::sock_tuple(tuple);
    let key_pointer = (&raw mut key).cast::<bpf_sock_tuple>();
    let netns = BPF_F_CURRENT_NETNS as i64 as u64;
    let context = ctx.cast::<c_void>();
    match tuple.proto {
        proto::TCP => {
            // SAFETY: the first SOCK_TUPLE_LEN bytes of `key` are the tuple.
            let sock =
                unsafe { bpf_skc_lookup_tcp(context, key_pointer, F::SOCK_TUPLE_LEN, netns, 0) };
            if sock.is_null() {
                return 0;
            }
            const TIME_WAIT: u32 = 6;
            // SAFETY: a referenced socket, released below.
            let state = unsafe { (*sock).state };
            // SAFETY: as above.
            unsafe { bpf_sk_release(sock.cast()) };
            // What lingers in TIME_WAIT serves nobody. A half-closed connection does.
            u32::from(state != TIME_WAIT)
        }
        proto::UDP => {
            // SAFETY: as above.
            let sock =
                unsafe { bpf_sk_lookup_udp(context, key_pointer, F::SOCK_TUPLE_LEN, netns, 0) };
            if sock.is_null() {
                return 0;
            }
            // SAFETY: a referenced socket.
            unsafe { bpf_sk_release(sock.cast()) };
            1
        }
        _ => 0,
    }
}

/// Global functions of their own: the event would stand on the stack of `create`, below which the
/// deepest chain of calls hangs.
macro_rules! nat_pressure {
    ($name:ident, $family:ty) => {
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $name(attempts: u32, exhausted: u32) -> u32 {
            let maps = Maps(core::ptr::null_mut());
            let Some(scratch) = <Maps as Tables<$family>>::scratch(&maps) else {
                return 0;
            };
            account::nat_pressure(NatPressure {
                address: scratch.original.src.padded(),
                dst: scratch.original.dst.padded(),
                dport: scratch.original.dport,
                proto: scratch.tuple.proto,
                family: <$family>::VERSION,
                attempts: attempts as u16,
                exhausted: exhausted as u16,
            });
            0
        }
    };
}
nat_pressure!(nat_pressure_v4, V4);
nat_pressure!(nat_pressure_v6, V6);
