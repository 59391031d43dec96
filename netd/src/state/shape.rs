//! What each map of the ABI looks like, and whether a pinned one does.

use aya::maps::{MapInfo, MapType};
use netd_common::abi::{
    Answers, Backend, Config, DropCount, DropKey, Endpoint, EndpointAddress, Flow, FragmentKey,
    Fragments, Hand, Holding, IpsecPolicy, KernelFlow, LocalAddress, Network, NetworkInterface,
    PortPrefix, Seat, SocketKey, SocketPeer, Subnet, Suppressed, SuppressedHop, TableEvents, Tuple,
    Uplink, V4Addr, V6Addr, Verdicts, map,
};

/// Type and sizes of a map: what a reader depends on. The number of entries is a matter of the
/// machine's memory and not part of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Kind of map.
    pub kind: MapType,
    /// Bytes of a key; 0 for a ring buffer.
    pub key: u32,
    /// Bytes of a value, of one CPU where the map is per CPU; 0 for a ring buffer.
    pub value: u32,
}

impl Shape {
    const fn of<K, V>(kind: MapType) -> Self {
        // A trie's key begins with the prefix length.
        let prefix = if matches!(kind, MapType::LpmTrie) {
            4
        } else {
            0
        };
        Self {
            kind,
            key: size_of::<K>() as u32 + prefix,
            value: size_of::<V>() as u32,
        }
    }

    /// What differs in a map of the kernel, for people; `None` where nothing does.
    pub fn difference(&self, found: &MapInfo) -> Option<String> {
        let mut parts = Vec::new();
        match found.map_type() {
            Ok(kind) if kind == self.kind => {}
            Ok(kind) => parts.push(format!("it is a {kind:?} instead of a {:?}", self.kind)),
            Err(_) => parts.push(format!("it is not a {:?}", self.kind)),
        }
        for (what, wanted, found) in [
            ("keys", self.key, found.key_size()),
            ("values", self.value, found.value_size()),
        ] {
            if wanted != found {
                parts.push(format!("its {what} have {found} bytes instead of {wanted}"));
            }
        }
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

/// Every map of the ABI with its shape.
pub const SHAPES: &[(&str, Shape)] = {
    type A4 = V4Addr;
    type A6 = V6Addr;
    use MapType::{Array, Hash, LpmTrie, LruHash, LruPerCpuHash, PerCpuArray, RingBuf};
    &[
        (map::CONFIG, Shape::of::<u32, Config>(Array)),
        (map::ENDPOINTS, Shape::of::<u32, Endpoint>(Hash)),
        (map::ADDRS_V4, Shape::of::<A4, EndpointAddress>(Hash)),
        (map::ADDRS_V6, Shape::of::<A6, EndpointAddress>(Hash)),
        (map::NETWORKS, Shape::of::<u32, Network>(Array)),
        (map::TRUSTED, Shape::of::<NetworkInterface, u32>(Hash)),
        (map::SUBNETS_V4, Shape::of::<A4, Subnet>(LpmTrie)),
        (map::SUBNETS_V6, Shape::of::<A6, Subnet>(LpmTrie)),
        (map::LOCAL_V4, Shape::of::<A4, LocalAddress>(LpmTrie)),
        (map::LOCAL_V6, Shape::of::<A6, LocalAddress>(LpmTrie)),
        (map::UPLINKS, Shape::of::<u32, Uplink>(Hash)),
        (
            map::PUBLISH_V4,
            Shape::of::<PortPrefix<A4>, Backend<A4>>(LpmTrie),
        ),
        (
            map::PUBLISH_V6,
            Shape::of::<PortPrefix<A6>, Backend<A6>>(LpmTrie),
        ),
        (map::EXPOSED_V4, Shape::of::<PortPrefix<A4>, u32>(LpmTrie)),
        (map::EXPOSED_V6, Shape::of::<PortPrefix<A6>, u32>(LpmTrie)),
        (map::PORTS, Shape::of::<u32, u64>(Array)),
        (map::FLOWS_V4, Shape::of::<Tuple<A4>, Flow<A4>>(Hash)),
        (map::FLOWS_V6, Shape::of::<Tuple<A6>, Flow<A6>>(Hash)),
        (map::EMBRYOS_V4, Shape::of::<Tuple<A4>, Flow<A4>>(Hash)),
        (map::EMBRYOS_V6, Shape::of::<Tuple<A6>, Flow<A6>>(Hash)),
        (map::FLOW_RING_V4, Shape::of::<u32, Seat<A4>>(Array)),
        (map::FLOW_RING_V6, Shape::of::<u32, Seat<A6>>(Array)),
        (map::EMBRYO_RING_V4, Shape::of::<u32, Seat<A4>>(Array)),
        (map::EMBRYO_RING_V6, Shape::of::<u32, Seat<A6>>(Array)),
        (map::HANDS, Shape::of::<u32, Hand>(Array)),
        (map::HOLDINGS, Shape::of::<u32, Holding>(Hash)),
        (
            map::TABLE_EVENTS,
            Shape::of::<u32, TableEvents>(PerCpuArray),
        ),
        (map::NAT_EVENTS, Shape::of::<(), ()>(RingBuf)),
        (
            map::KERNEL_FLOWS_V4,
            Shape::of::<Tuple<A4>, KernelFlow<A4>>(Hash),
        ),
        (
            map::KERNEL_FLOWS_V6,
            Shape::of::<Tuple<A6>, KernelFlow<A6>>(Hash),
        ),
        (
            map::FRAGMENTS_V4,
            Shape::of::<FragmentKey<A4>, Fragments<A4>>(LruHash),
        ),
        (
            map::FRAGMENTS_V6,
            Shape::of::<FragmentKey<A6>, Fragments<A6>>(LruHash),
        ),
        (map::IPSEC_V4, Shape::of::<u32, IpsecPolicy<A4>>(Array)),
        (map::IPSEC_V6, Shape::of::<u32, IpsecPolicy<A6>>(Array)),
        (
            map::SUPPRESSED_V6,
            Shape::of::<SuppressedHop, Suppressed>(Hash),
        ),
        (map::DROPS, Shape::of::<DropKey, DropCount>(LruPerCpuHash)),
        (map::DROP_EVENTS, Shape::of::<(), ()>(RingBuf)),
        (map::VERDICTS, Shape::of::<u32, Verdicts>(PerCpuArray)),
        (map::ANSWERS, Shape::of::<u32, Answers>(PerCpuArray)),
        (map::SOCKETS, Shape::of::<SocketKey, SocketPeer>(LruHash)),
    ]
};

/// The shape of the map with this name.
pub fn shape(name: &str) -> Option<&'static Shape> {
    SHAPES
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, shape)| shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_abi() {
        let of = |name| {
            let shape = shape(name).unwrap();
            (shape.key, shape.value)
        };
        assert_eq!(of(map::FLOWS_V4), (16, 88));
        assert_eq!(of(map::FLOWS_V6), (40, 112));
        assert_eq!(of(map::PUBLISH_V4), (16, 12));
        assert_eq!(of(map::DROP_EVENTS), (0, 0));
    }

    #[test]
    fn names_are_unique() {
        for (i, (name, _)) in SHAPES.iter().enumerate() {
            assert!(
                SHAPES[i + 1..].iter().all(|(other, _)| other != name),
                "{name}"
            );
        }
    }
}
