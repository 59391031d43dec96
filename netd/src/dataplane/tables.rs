//! The content of the maps that the daemon writes, as typed rows: one shape for what is wanted and
//! for what is there.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use netd_common::abi::{
    self, Backend, Endpoint, EndpointAddress, IpsecPolicy, LocalAddress, Network, NetworkInterface,
    PortPrefix, Subnet, Suppressed, SuppressedHop, Uplink, V4Addr, V6Addr,
};
use netd_common::wire::proto;

/// Key of a longest-prefix-match map: how many leading bits of `data` count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix<K> {
    /// Bits of `data` that count.
    pub bits: u32,
    /// The key, zero beyond the prefix.
    pub data: K,
}

/// Every map that holds what the daemon decided: calls `$callback!` with one line per map,
/// `field Variant kind(key => value) NAME`. Flow tables and counters are the programs' own.
macro_rules! for_each_table {
    ($callback:ident) => {
        $callback! {
            networks Networks ArrayTable(u32 => Network) NETWORKS,
            subnets_v4 SubnetsV4 LpmTable(Prefix<V4Addr> => Subnet) SUBNETS_V4,
            subnets_v6 SubnetsV6 LpmTable(Prefix<V6Addr> => Subnet) SUBNETS_V6,
            trusted Trusted HashTable(NetworkInterface => u32) TRUSTED,
            local_v4 LocalV4 LpmTable(Prefix<V4Addr> => LocalAddress) LOCAL_V4,
            local_v6 LocalV6 LpmTable(Prefix<V6Addr> => LocalAddress) LOCAL_V6,
            uplinks Uplinks HashTable(u32 => Uplink) UPLINKS,
            ipsec_v4 IpsecV4 ArrayTable(u32 => IpsecPolicy<V4Addr>) IPSEC_V4,
            ipsec_v6 IpsecV6 ArrayTable(u32 => IpsecPolicy<V6Addr>) IPSEC_V6,
            suppressed_v6 SuppressedV6 HashTable(SuppressedHop => Suppressed) SUPPRESSED_V6,
            endpoints Endpoints HashTable(u32 => Endpoint) ENDPOINTS,
            addrs_v4 AddrsV4 HashTable(V4Addr => EndpointAddress) ADDRS_V4,
            addrs_v6 AddrsV6 HashTable(V6Addr => EndpointAddress) ADDRS_V6,
            exposed_v4 ExposedV4 LpmTable(Prefix<PortPrefix<V4Addr>> => u32) EXPOSED_V4,
            exposed_v6 ExposedV6 LpmTable(Prefix<PortPrefix<V6Addr>> => u32) EXPOSED_V6,
            publish_v4 PublishV4 LpmTable(Prefix<PortPrefix<V4Addr>> => Backend<V4Addr>) PUBLISH_V4,
            publish_v6 PublishV6 LpmTable(Prefix<PortPrefix<V6Addr>> => Backend<V6Addr>) PUBLISH_V6,
            ports Ports ArrayTable(u32 => u64) PORTS,
        }
    };
}
pub(super) use for_each_table;

macro_rules! define {
    ($($field:ident $variant:ident $kind:ident($key:ty => $value:ty) $name:ident,)+) => {
        /// The rows of every map that the daemon writes. An array element that is all zero counts
        /// as absent.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Tables {
            $(#[doc = concat!("[`abi::map::", stringify!($name), "`]")]
            pub $field: BTreeMap<$key, $value>,)+
        }

        /// One of those maps, in the order in which rows are added: what others refer to first.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Table {
            $(#[doc = concat!("[`abi::map::", stringify!($name), "`]")]
            $variant,)+
        }

        /// A row.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Row {
            $(#[doc = concat!("A row of [`abi::map::", stringify!($name), "`]")]
            $variant($key, $value),)+
        }

        /// The key of a row.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum RowKey {
            $(#[doc = concat!("A key of [`abi::map::", stringify!($name), "`]")]
            $variant($key),)+
        }

        impl Table {
            /// Every table.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The map's name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => abi::map::$name,)+ }
            }
        }

        impl Row {
            /// Its key.
            pub fn key(&self) -> RowKey {
                match self { $(Self::$variant(key, _) => RowKey::$variant(*key),)+ }
            }

            /// The table that it belongs to.
            pub fn table(&self) -> Table {
                match self { $(Self::$variant(..) => Table::$variant,)+ }
            }
        }

        impl RowKey {
            /// The table that it belongs to.
            pub fn table(&self) -> Table {
                match self { $(Self::$variant(..) => Table::$variant,)+ }
            }
        }

        impl Tables {
            /// Adds or replaces a row.
            pub fn put(&mut self, row: Row) {
                match row { $(Row::$variant(key, value) => { self.$field.insert(key, value); })+ }
            }

            /// Removes a row, if it is there.
            pub fn remove(&mut self, key: RowKey) {
                match key { $(RowKey::$variant(key) => { self.$field.remove(&key); })+ }
            }

            /// Rows of one table.
            pub fn len(&self, table: Table) -> usize {
                match table { $(Table::$variant => self.$field.len(),)+ }
            }

            /// Rows of `table` that `other` has not, or has with another value; true marks the
            /// latter.
            pub fn beyond(&self, other: &Self, table: Table) -> Vec<(Row, bool)> {
                match table {
                    $(Table::$variant => self
                        .$field
                        .iter()
                        .filter_map(|(key, value)| match other.$field.get(key) {
                            Some(theirs) if theirs == value => None,
                            theirs => Some((Row::$variant(*key, *value), theirs.is_some())),
                        })
                        .collect(),)+
                }
            }

            /// Rows of `table` whose key `other` has not.
            pub fn keys_beyond(&self, other: &Self, table: Table) -> Vec<Row> {
                match table {
                    $(Table::$variant => self
                        .$field
                        .iter()
                        .filter(|&(key, _)| !other.$field.contains_key(key))
                        .map(|(key, value)| Row::$variant(*key, *value))
                        .collect(),)+
                }
            }
        }
    };
}
for_each_table!(define);

fn ip<A: Copy>(addr: &A) -> IpAddr
where
    IpAddr: From<A>,
{
    IpAddr::from(*addr)
}

fn port_prefix<A: Copy>(f: &mut fmt::Formatter<'_>, key: &Prefix<PortPrefix<A>>) -> fmt::Result
where
    IpAddr: From<A>,
{
    let address = match ip(&key.data.addr) {
        any if any.is_unspecified() => "any".to_owned(),
        IpAddr::V6(v6) => format!("[{v6}]"),
        v4 => v4.to_string(),
    };
    let first = u16::from_be_bytes(key.data.port);
    let free = abi::port_prefix_base::<A>() + 16 - key.bits;
    let last = first | ((1u32 << free) - 1) as u16;
    write!(f, "{address}:{first}")?;
    if last != first {
        write!(f, "-{last}")?;
    }
    match proto::name(key.data.proto) {
        Some(name) => write!(f, "/{name}"),
        None => write!(f, "/{}", key.data.proto),
    }
}

fn backend<A: Copy>(f: &mut fmt::Formatter<'_>, backend: &Backend<A>) -> fmt::Result
where
    IpAddr: From<A>,
{
    let port = u16::from_be_bytes(backend.container_first);
    let from = u16::from_be_bytes(backend.host_first);
    match ip(&backend.addr) {
        IpAddr::V6(v6) => write!(f, " to [{v6}]:{port}")?,
        v4 => write!(f, " to {v4}:{port}")?,
    }
    write!(
        f,
        " counted from {from}, network {}{}",
        backend.network,
        if backend.flags & abi::backend_flag::OVERRIDE != 0 {
            ", override"
        } else {
            ""
        }
    )
}

fn ipsec<A: Copy>(f: &mut fmt::Formatter<'_>, policy: &IpsecPolicy<A>) -> fmt::Result
where
    IpAddr: From<A>,
{
    let bits = |mask: &A| match ip(mask) {
        IpAddr::V4(mask) => mask.to_bits().count_ones(),
        IpAddr::V6(mask) => mask.to_bits().count_ones(),
    };
    write!(
        f,
        ": {}/{} to {}/{}, priority {}, {}",
        ip(&policy.src),
        bits(&policy.src_mask),
        ip(&policy.dst),
        bits(&policy.dst_mask),
        policy.priority,
        if policy.action == abi::ipsec_action::BYPASS {
            "bypass"
        } else {
            "the kernel's"
        }
    )
}

impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Networks(id) => write!(f, "network {id}"),
            Self::SubnetsV4(p) => write!(f, "subnet {}/{}", ip(&p.data), p.bits),
            Self::SubnetsV6(p) => write!(f, "subnet {}/{}", ip(&p.data), p.bits),
            Self::Trusted(pair) => {
                write!(
                    f,
                    "trusted interface {} of network {}",
                    pair.ifindex, pair.network
                )
            }
            Self::LocalV4(p) => write!(f, "local address {}/{}", ip(&p.data), p.bits),
            Self::LocalV6(p) => write!(f, "local address {}/{}", ip(&p.data), p.bits),
            Self::IpsecV4(slot) | Self::IpsecV6(slot) => write!(f, "IPsec policy in slot {slot}"),
            Self::SuppressedV6(hop) => {
                write!(
                    f,
                    "suppressed next hop {} at interface {}",
                    ip(&hop.via),
                    hop.ifindex
                )
            }
            Self::Uplinks(ifindex) => write!(f, "uplink {ifindex}"),
            Self::Endpoints(ifindex) => write!(f, "endpoint {ifindex}"),
            Self::AddrsV4(a) => write!(f, "container address {}", ip(a)),
            Self::AddrsV6(a) => write!(f, "container address {}", ip(a)),
            Self::ExposedV4(key) => {
                f.write_str("container port ")?;
                port_prefix(f, key)
            }
            Self::ExposedV6(key) => {
                f.write_str("container port ")?;
                port_prefix(f, key)
            }
            Self::PublishV4(key) => {
                f.write_str("publish ")?;
                port_prefix(f, key)
            }
            Self::PublishV6(key) => {
                f.write_str("publish ")?;
                port_prefix(f, key)
            }
            Self::Ports(word) => {
                let first = word % 1024 * 64;
                let protocol = ["tcp", "udp", "sctp"][(word / 1024).min(2) as usize];
                write!(f, "port bitmap {first}-{}/{protocol}", first + 63)
            }
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.key())?;
        match self {
            Self::Networks(_, n) => write!(
                f,
                " on bridge {}, flags {:#x}, gateway {} {}",
                n.bridge,
                n.flags,
                ip(&n.gateway_v4),
                ip(&n.gateway_v6)
            ),
            Self::SubnetsV4(_, s) | Self::SubnetsV6(_, s) => write!(f, " of network {}", s.network),
            Self::Trusted(..) | Self::ExposedV4(..) | Self::ExposedV6(..) => Ok(()),
            Self::LocalV4(_, l) | Self::LocalV6(_, l) => f.write_str(match l.kind {
                abi::local_kind::UNICAST => ", unicast",
                abi::local_kind::BROADCAST => ", broadcast",
                _ => ", anycast or multicast",
            }),
            Self::IpsecV4(_, p) => ipsec(f, p),
            Self::IpsecV6(_, p) => ipsec(f, p),
            Self::SuppressedV6(_, s) => {
                write!(f, ", table {} instead, flags {:#x}", s.table, s.flags)
            }
            Self::Uplinks(_, u) => write!(
                f,
                ", address {} {}, MTU {}, flags {:#x}",
                ip(&u.addr_v4),
                ip(&u.addr_v6),
                u.mtu,
                u.flags
            ),
            Self::Endpoints(_, e) => {
                let [a, b, c, d, g, h] = e.mac;
                write!(
                    f,
                    " {a:02x}:{b:02x}:{c:02x}:{d:02x}:{g:02x}:{h:02x} of network {}, MTU {}",
                    e.network, e.mtu
                )
            }
            Self::AddrsV4(_, a) | Self::AddrsV6(_, a) => {
                write!(f, " at interface {} of network {}", a.ifindex, a.network)
            }
            Self::PublishV4(_, b) => backend(f, b),
            Self::PublishV6(_, b) => backend(f, b),
            Self::Ports(_, bits) => write!(f, ", {} in use", bits.count_ones()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_read_well() {
        let publish = Row::PublishV4(
            Prefix {
                bits: abi::port_prefix_base::<V4Addr>() + 12,
                data: PortPrefix {
                    proto: 6,
                    reserved: [0; 3],
                    addr: V4Addr::default(),
                    port: 8000u16.to_be_bytes(),
                    tail: [0; 2],
                },
            },
            Backend {
                addr: V4Addr([10, 201, 1, 2]),
                host_first: 8000u16.to_be_bytes(),
                container_first: 80u16.to_be_bytes(),
                network: 1,
                flags: 0,
            },
        );
        assert_eq!(
            publish.to_string(),
            "publish any:8000-8015/tcp to 10.201.1.2:80 counted from 8000, network 1"
        );
        assert_eq!(
            RowKey::Ports(1024 + 1).to_string(),
            "port bitmap 64-127/udp"
        );
    }

    #[test]
    fn differences_are_by_key_and_by_value() {
        let mut a = Tables::default();
        let mut b = Tables::default();
        a.ports.extend([(1, 1), (2, 2)]);
        b.ports.extend([(2, 3), (4, 4)]);
        assert_eq!(
            a.beyond(&b, Table::Ports),
            [(Row::Ports(1, 1), false), (Row::Ports(2, 2), true)]
        );
        assert_eq!(b.keys_beyond(&a, Table::Ports), [Row::Ports(4, 4)]);
        assert!(a.beyond(&a, Table::Ports).is_empty());
    }
}
