//! The maps. Sizes here are defaults; the loader sets them from the machine's memory.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, LruPerCpuHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use netd_common::{
    abi::*,
    answer::{Buffer, Pace},
    tables::Scratch,
};

use crate::tables::{FibLookup, HopWords};

type A4 = V4Addr;
type A6 = V6Addr;

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
pub static ENDPOINTS: HashMap<u32, Endpoint, 16384> = HashMap::new();
#[btf_map]
pub static ADDRS_V4: HashMap<A4, EndpointAddress, 16384> = HashMap::new();
#[btf_map]
pub static ADDRS_V6: HashMap<A6, EndpointAddress, 16384> = HashMap::new();
#[btf_map]
pub static NETWORKS: Array<Network, 1024> = Array::new();
#[btf_map]
pub static TRUSTED: HashMap<NetworkInterface, u32, 1024> = HashMap::new();
#[btf_map]
pub static SUBNETS_V4: LpmTrie<A4, Subnet, 4096> = LpmTrie::new();
#[btf_map]
pub static SUBNETS_V6: LpmTrie<A6, Subnet, 4096> = LpmTrie::new();
#[btf_map]
pub static LOCAL_V4: LpmTrie<A4, LocalAddress, 16384> = LpmTrie::new();
#[btf_map]
pub static LOCAL_V6: LpmTrie<A6, LocalAddress, 16384> = LpmTrie::new();
#[btf_map]
pub static UPLINKS: HashMap<u32, Uplink, 4096> = HashMap::new();
#[btf_map]
pub static PUBLISH_V4: LpmTrie<PortPrefix<A4>, Backend<A4>, 65536> = LpmTrie::new();
#[btf_map]
pub static PUBLISH_V6: LpmTrie<PortPrefix<A6>, Backend<A6>, 65536> = LpmTrie::new();
#[btf_map]
pub static EXPOSED_V4: LpmTrie<PortPrefix<A4>, u32, 65536> = LpmTrie::new();
#[btf_map]
pub static EXPOSED_V6: LpmTrie<PortPrefix<A6>, u32, 65536> = LpmTrie::new();
#[btf_map]
pub static PORTS: Array<u64, { PORT_WORDS as usize }> = Array::new();
#[btf_map]
pub static FLOWS_V4: HashMap<Tuple<A4>, Flow<A4>, 262144> = HashMap::new();
#[btf_map]
pub static FLOWS_V6: HashMap<Tuple<A6>, Flow<A6>, 65536> = HashMap::new();
#[btf_map]
pub static EMBRYOS_V4: HashMap<Tuple<A4>, Flow<A4>, 65536> = HashMap::new();
#[btf_map]
pub static EMBRYOS_V6: HashMap<Tuple<A6>, Flow<A6>, 16384> = HashMap::new();
#[btf_map]
pub static FLOW_RING_V4: Array<Seat<A4>, 131072> = Array::new();
#[btf_map]
pub static FLOW_RING_V6: Array<Seat<A6>, 32768> = Array::new();
#[btf_map]
pub static EMBRYO_RING_V4: Array<Seat<A4>, 32768> = Array::new();
#[btf_map]
pub static EMBRYO_RING_V6: Array<Seat<A6>, 8192> = Array::new();
#[btf_map]
pub static HANDS: Array<Hand, { flow_table::COUNT }> = Array::new();
#[btf_map]
pub static HOLDINGS: HashMap<u32, Holding, 16384> = HashMap::new();
#[btf_map]
pub static TABLE_EVENTS: PerCpuArray<TableEvents, { flow_table::COUNT }> = PerCpuArray::new();
#[btf_map]
pub static NAT_EVENTS: RingBuf<NatPressure, 4096> = RingBuf::new();
#[btf_map]
pub static KERNEL_FLOWS_V4: HashMap<Tuple<A4>, KernelFlow<A4>, 524288, NO_PREALLOC> =
    HashMap::new();
#[btf_map]
pub static KERNEL_FLOWS_V6: HashMap<Tuple<A6>, KernelFlow<A6>, 131072, NO_PREALLOC> =
    HashMap::new();
#[btf_map]
pub static IPSEC_V4: Array<IpsecPolicy<A4>, { IPSEC_POLICIES as usize }> = Array::new();
#[btf_map]
pub static IPSEC_V6: Array<IpsecPolicy<A6>, { IPSEC_POLICIES as usize }> = Array::new();
#[btf_map]
pub static SUPPRESSED_V6: HashMap<SuppressedHop, Suppressed, 1024> = HashMap::new();
#[btf_map]
pub static DROPS: LruPerCpuHashMap<DropKey, DropCount, 1024> = LruPerCpuHashMap::new();
#[btf_map]
pub static DROP_EVENTS: RingBuf<DropEvent, 65536> = RingBuf::new();
#[btf_map]
pub static VERDICTS: PerCpuArray<Verdicts, { hook::COUNT as usize }> = PerCpuArray::new();
#[btf_map]
pub static ANSWERS: PerCpuArray<Answers, { answer_kind::COUNT }> = PerCpuArray::new();
#[btf_map]
pub static SOCKETS: LruHashMap<SocketKey, SocketPeer, 65536> = LruHashMap::new();
#[btf_map]
pub static FRAGMENTS_V4: LruHashMap<FragmentKey<A4>, Fragments<A4>, 8192> = LruHashMap::new();
#[btf_map]
pub static FRAGMENTS_V6: LruHashMap<FragmentKey<A6>, Fragments<A6>, 4096> = LruHashMap::new();

/// Working memory of the packet in hand; not part of the ABI, not pinned.
#[btf_map]
pub static SCRATCH_V4: PerCpuArray<Scratch<A4>, 1> = PerCpuArray::new();
#[btf_map]
pub static SCRATCH_V6: PerCpuArray<Scratch<A6>, 1> = PerCpuArray::new();
/// Where an answer is built.
#[btf_map]
pub static ANSWER: PerCpuArray<Buffer, 1> = PerCpuArray::new();
/// How many answers this CPU has sent of late.
#[btf_map]
pub static ANSWER_PACE: PerCpuArray<Pace, { answer_kind::COUNT }> = PerCpuArray::new();
/// Argument of bpf_fib_lookup, and a copy of it as it was asked.
#[btf_map]
pub static FIB_LOOKUP: PerCpuArray<FibLookup, 2> = PerCpuArray::new();
/// Key of `SUPPRESSED_V6`, made from what bpf_fib_lookup found.
#[btf_map]
pub static FOUND_HOP: PerCpuArray<HopWords, 1> = PerCpuArray::new();
/// What a new drop counter starts from: too large for the stack. Never written.
#[btf_map]
pub static DROP_ZERO: Array<DropCount, 1> = Array::new();
/// Source port events of the current second, per CPU.
#[btf_map]
pub static NAT_SAMPLER: PerCpuArray<DropSlot, 1> = PerCpuArray::new();
/// Drop events of the current second, per CPU.
#[btf_map]
pub static DROP_SAMPLER: PerCpuArray<DropSlot, 1> = PerCpuArray::new();
