//! How large the maps are: from the memory of the host and the limits of the file.

use netd_common::abi::*;

use crate::config::Limits;

/// Sizes of all maps, in entries (flow tables hold two entries per flow).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// IPv4 flows.
    pub flows_v4: u32,
    /// IPv6 flows.
    pub flows_v6: u32,
    /// Flows that the kernel's NAT owned before netd came, of both families together; by memory
    /// alone, for their number is not netd's to limit.
    pub kernel_flows: u32,
    /// Containers, and their addresses of each family.
    pub endpoints: u32,
    /// Distinct kinds of drops.
    pub drops: u32,
    /// CPUs that per-CPU maps have a value for.
    pub cpus: u32,
}

/// Maps take at most this share of memory.
const SHARE: u64 = 50;
/// Tries grow as they are filled; this share of the budget is left to them.
const TRIES: u64 = 10;
/// Walking the tables takes time too: more flows than this must be asked for.
const MOST_FLOWS: u32 = 1 << 18;
const FEWEST_FLOWS: u32 = 1 << 11;
const FEWEST_EMBRYOS: u32 = 1 << 10;

/// Sizes for a host with `ram` bytes of memory: everything preallocated fits into 2 % of it, less
/// a tenth for the tries, or is as small as it gets. Four IPv4 flows for one IPv6 flow; a quarter
/// as many embryos. What `limits` says is taken as it is.
pub fn sizes(ram: u64, cpus: u32, limits: &Limits) -> Sizes {
    let budget = ram / SHARE * (TRIES - 1) / TRIES;
    let mut sizes = Sizes {
        flows_v4: 0,
        flows_v6: 0,
        kernel_flows: 0,
        endpoints: if ram >= 4 << 30 { 16384 } else { 4096 },
        drops: 1024,
        cpus: cpus.max(1),
    };
    // Per-CPU counters weigh more on many CPUs with little memory.
    while sizes.drops > 128 && sizes.drops_bytes() > budget / 8 {
        sizes.drops /= 2;
    }
    let mut best = FEWEST_FLOWS;
    // Powers of two and what lies half-way: the number of buckets is a power of two anyway.
    for half in FEWEST_FLOWS.ilog2()..=MOST_FLOWS.ilog2() {
        for flows in [1 << half, 3 << (half - 1)] {
            if flows <= MOST_FLOWS && sizes.with(flows, limits).preallocated() <= budget {
                best = best.max(flows);
            }
        }
    }
    sizes.with(best, limits)
}

impl Sizes {
    fn with(self, flows: u32, limits: &Limits) -> Self {
        Self {
            flows_v4: limits.flows_v4.unwrap_or(flows),
            flows_v6: limits.flows_v6.unwrap_or(flows / 4),
            kernel_flows: flows,
            ..self
        }
    }

    /// Entries of the map of that name; of the ring buffer, its bytes.
    pub fn entries(&self, name: &str) -> u32 {
        let embryos = |flows: u32| (flows / 4 * 2).max(FEWEST_EMBRYOS);
        match name {
            map::FLOWS_V4 => self.flows_v4 * 2,
            map::FLOWS_V6 => self.flows_v6 * 2,
            map::EMBRYOS_V4 => embryos(self.flows_v4),
            map::EMBRYOS_V6 => embryos(self.flows_v6),
            map::KERNEL_FLOWS_V4 => self.kernel_flows * 2,
            map::KERNEL_FLOWS_V6 => self.kernel_flows / 4 * 2,
            // A seat per flow.
            map::FLOW_RING_V4 => self.flows_v4,
            map::FLOW_RING_V6 => self.flows_v6,
            map::EMBRYO_RING_V4 => embryos(self.flows_v4) / 2,
            map::EMBRYO_RING_V6 => embryos(self.flows_v6) / 2,
            map::HANDS | map::TABLE_EVENTS => flow_table::COUNT as u32,
            map::NAT_EVENTS => 4096,
            map::ENDPOINTS | map::ADDRS_V4 | map::ADDRS_V6 | map::HOLDINGS => self.endpoints,
            map::DROPS => self.drops,
            map::CONFIG => 1,
            map::NETWORKS | map::TRUSTED | map::SUPPRESSED_V6 => 1024,
            map::SUBNETS_V4 | map::SUBNETS_V6 | map::UPLINKS => 4096,
            map::LOCAL_V4 | map::LOCAL_V6 => 16384,
            map::PORTS => PORT_WORDS,
            map::IPSEC_V4 | map::IPSEC_V6 => IPSEC_POLICIES,
            map::VERDICTS => u32::from(hook::COUNT),
            map::ANSWERS => answer_kind::COUNT as u32,
            // Sockets of the host that talk to containers.
            map::SOCKETS if self.endpoints > 4096 => 65536,
            map::SOCKETS => 4096,
            // Packets of which a part has come: a machine that has more of them at a time is under
            // attack, and the ones in use are not those that make room.
            map::FRAGMENTS_V4 if self.endpoints > 4096 => 8192,
            map::FRAGMENTS_V4 => 2048,
            map::FRAGMENTS_V6 => self.entries(map::FRAGMENTS_V4) / 2,
            // The publish and exposed tries, and the ring buffer.
            _ => 65536,
        }
    }

    /// Bytes of kernel memory that the maps take before a trie has a row, as kernel/bpf/hashtab.c
    /// and arraymap.c allocate them.
    pub fn preallocated(&self) -> u64 {
        let hash = |name, key, value| hash_bytes(self.entries(name), key, value);
        let flow4 = (size_of::<Tuple<V4Addr>>(), size_of::<Flow<V4Addr>>());
        let flow6 = (size_of::<Tuple<V6Addr>>(), size_of::<Flow<V6Addr>>());
        hash(map::FLOWS_V4, flow4.0, flow4.1)
            + hash(map::EMBRYOS_V4, flow4.0, flow4.1)
            + hash(map::FLOWS_V6, flow6.0, flow6.1)
            + hash(map::EMBRYOS_V6, flow6.0, flow6.1)
            + bucket_bytes(self.entries(map::KERNEL_FLOWS_V4))
            + bucket_bytes(self.entries(map::KERNEL_FLOWS_V6))
            + array_bytes(self.entries(map::FLOW_RING_V4), size_of::<Seat<V4Addr>>())
            + array_bytes(self.entries(map::EMBRYO_RING_V4), size_of::<Seat<V4Addr>>())
            + array_bytes(self.entries(map::FLOW_RING_V6), size_of::<Seat<V6Addr>>())
            + array_bytes(self.entries(map::EMBRYO_RING_V6), size_of::<Seat<V6Addr>>())
            + array_bytes(self.entries(map::HANDS), size_of::<Hand>())
            + array_bytes(
                flow_table::COUNT as u32 * self.cpus,
                size_of::<TableEvents>(),
            )
            + u64::from(self.entries(map::NAT_EVENTS))
            + hash(map::HOLDINGS, 4, size_of::<Holding>())
            + hash(map::ENDPOINTS, 4, size_of::<Endpoint>())
            + hash(map::ADDRS_V4, 4, size_of::<EndpointAddress>())
            + hash(map::ADDRS_V6, 16, size_of::<EndpointAddress>())
            + hash(map::TRUSTED, size_of::<NetworkInterface>(), 4)
            + hash(map::UPLINKS, 4, size_of::<Uplink>())
            + hash(
                map::SOCKETS,
                size_of::<SocketKey>(),
                size_of::<SocketPeer>(),
            )
            + hash(
                map::FRAGMENTS_V4,
                size_of::<FragmentKey<V4Addr>>(),
                size_of::<Fragments<V4Addr>>(),
            )
            + hash(
                map::FRAGMENTS_V6,
                size_of::<FragmentKey<V6Addr>>(),
                size_of::<Fragments<V6Addr>>(),
            )
            + self.drops_bytes()
            + array_bytes(self.entries(map::NETWORKS), size_of::<Network>())
            + array_bytes(PORT_WORDS, 8)
            + array_bytes(u32::from(hook::COUNT) * self.cpus, size_of::<Verdicts>())
            + array_bytes(answer_kind::COUNT as u32 * self.cpus, size_of::<Answers>())
            + u64::from(self.entries(map::DROP_EVENTS))
    }

    fn drops_bytes(&self) -> u64 {
        // The element holds a pointer; the values are outside, one per CPU.
        hash_bytes(self.drops, size_of::<DropKey>(), 8)
            + array_bytes(self.drops * self.cpus, size_of::<DropCount>())
    }
}

fn hash_bytes(entries: u32, key: usize, value: usize) -> u64 {
    const ELEMENT: u64 = 48; // struct htab_elem
    let element = ELEMENT + (key as u64).next_multiple_of(8) + (value as u64).next_multiple_of(8);
    u64::from(entries) * element + bucket_bytes(entries)
}

fn bucket_bytes(entries: u32) -> u64 {
    const BUCKET: u64 = 16; // struct bucket
    u64::from(entries.next_power_of_two()) * BUCKET
}

fn array_bytes(entries: u32, value: usize) -> u64 {
    u64::from(entries) * (value as u64).next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_million_flows_weigh_what_was_measured() {
        // Linux 6.18, 2,097,152 entries of 16 + 88 bytes: 338 MB of it.
        let bytes = hash_bytes(2 << 20, 16, 88);
        assert!((330..=355).contains(&(bytes / 1_000_000)), "{bytes}");
    }

    #[test]
    fn two_percent_of_memory() {
        for (ram, cpus) in [
            (GIB, 1),
            (GIB, 2),
            (GIB, 8),
            (2 * GIB, 2),
            (3 * GIB, 4),
            (4 * GIB, 2),
            (8 * GIB, 4),
            (16 * GIB, 16),
            (64 * GIB, 64),
            (512 * GIB, 256),
        ] {
            let sizes = sizes(ram, cpus, &Limits::default());
            let bytes = sizes.preallocated();
            assert!(
                bytes <= ram / 50,
                "{ram} bytes, {cpus} CPUs: {bytes} for {sizes:?}"
            );
            // At least half of the budget is used until the most flows are reached.
            assert!(
                sizes.flows_v4 == MOST_FLOWS || bytes >= ram / 100,
                "{ram} bytes, {cpus} CPUs: only {bytes} for {sizes:?}"
            );
            assert_eq!(sizes.flows_v6, sizes.flows_v4 / 4);
        }
        let small = sizes(GIB, 2, &Limits::default());
        assert!(small.preallocated() <= 24 << 20);
        assert!(small.flows_v4 >= 16384, "{small:?}");
    }

    #[test]
    fn limits_are_taken_as_they_are() {
        let limits = Limits {
            flows_v4: Some(100),
            flows_v6: None,
        };
        let sizes = sizes(8 * GIB, 2, &limits);
        assert_eq!(sizes.entries(map::FLOWS_V4), 200);
        assert_eq!(sizes.entries(map::EMBRYOS_V4), FEWEST_EMBRYOS);
        assert!(sizes.flows_v6 >= 16384);
    }

    #[test]
    fn a_tiny_host_still_gets_flows() {
        let sizes = sizes(64 << 20, 4, &Limits::default());
        assert_eq!(sizes.flows_v4, FEWEST_FLOWS);
    }
}
