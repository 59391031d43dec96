//! The maps, typed, over aya.

use std::collections::BTreeMap;
use std::io;
use std::marker::PhantomData;
use std::path::Path;

use aya::maps::lpm_trie::Key as LpmKey;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError};
use netd_common::abi::{
    Backend, Endpoint, EndpointAddress, Flow, Holding, IpsecPolicy, KernelFlow, LocalAddress,
    Network, NetworkInterface, PortPrefix, Subnet, Suppressed, SuppressedHop, Tuple, Uplink,
    V4Addr, V6Addr, map,
};
use netd_common::wire::Wire;

use super::DataplaneError;
use super::config_map::ConfigMap;
use super::host_sockets::SocketTable;
use super::pod::Pod;
use super::tables::{Prefix, Row, RowKey, Tables, for_each_table};
use crate::state::batch::for_each;

struct HashTable<K, V>(HashMap<MapData, Pod<K>, Pod<V>>);
struct LpmTable<P: IsPrefix, V>(LpmTrie<MapData, Pod<P::Data>, Pod<V>>);
/// `I` is the type of an index.
struct ArrayTable<I, V: Wire>(Array<MapData, Pod<V>>, PhantomData<I>);

/// [`Prefix`], as a bound.
trait IsPrefix {
    type Data: Wire;
}

impl<K: Wire> IsPrefix for Prefix<K> {
    type Data = K;
}

/// What a map of each kind does with a row.
trait TypedMap<K, V>: Sized {
    fn from_map(map: Map) -> Result<Self, MapError>;
    fn put(&mut self, key: &K, value: &V) -> Result<(), MapError>;
    fn remove(&mut self, key: &K) -> Result<(), MapError>;
    fn rows(&self) -> Result<BTreeMap<K, V>, MapError>;
}

impl<K: Wire + Ord, V: Wire> TypedMap<K, V> for HashTable<K, V> {
    fn from_map(map: Map) -> Result<Self, MapError> {
        HashMap::try_from(map).map(Self)
    }
    fn put(&mut self, key: &K, value: &V) -> Result<(), MapError> {
        self.0.insert(Pod(*key), Pod(*value), 0)
    }
    fn remove(&mut self, key: &K) -> Result<(), MapError> {
        self.0.remove(&Pod(*key))
    }
    fn rows(&self) -> Result<BTreeMap<K, V>, MapError> {
        let rows = self.0.iter().map(|row| row.map(|(k, v)| (k.0, v.0)));
        rows.collect()
    }
}

fn lpm<K: Wire>(prefix: &Prefix<K>) -> LpmKey<Pod<K>> {
    LpmKey::new(prefix.bits, Pod(prefix.data))
}

impl<K: Wire + Ord, V: Wire> TypedMap<Prefix<K>, V> for LpmTable<Prefix<K>, V> {
    fn from_map(map: Map) -> Result<Self, MapError> {
        LpmTrie::try_from(map).map(Self)
    }
    fn put(&mut self, key: &Prefix<K>, value: &V) -> Result<(), MapError> {
        self.0.insert(&lpm(key), Pod(*value), 0)
    }
    fn remove(&mut self, key: &Prefix<K>) -> Result<(), MapError> {
        self.0.remove(&lpm(key))
    }
    fn rows(&self) -> Result<BTreeMap<Prefix<K>, V>, MapError> {
        let rows = self.0.iter().map(|row| {
            row.map(|(key, value)| {
                (
                    Prefix {
                        bits: key.prefix_len(),
                        data: key.data().0,
                    },
                    value.0,
                )
            })
        });
        rows.collect()
    }
}

/// An element that is all zero is absent.
impl<V: Wire + Default + PartialEq> TypedMap<u32, V> for ArrayTable<u32, V> {
    fn from_map(map: Map) -> Result<Self, MapError> {
        Array::try_from(map).map(|map| Self(map, PhantomData))
    }
    fn put(&mut self, key: &u32, value: &V) -> Result<(), MapError> {
        self.0.set(*key, Pod(*value), 0)
    }
    fn remove(&mut self, key: &u32) -> Result<(), MapError> {
        self.0.set(*key, Pod(V::default()), 0)
    }
    fn rows(&self) -> Result<BTreeMap<u32, V>, MapError> {
        let mut rows = BTreeMap::new();
        for (index, value) in (0..).zip(self.0.iter()) {
            let value = value?.0;
            if value != V::default() {
                rows.insert(index, value);
            }
        }
        Ok(rows)
    }
}

/// The kernel's answer inside aya's.
pub(super) fn cause(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::KeyNotFound => io::Error::from_raw_os_error(libc::ENOENT),
        MapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

/// A table of flows: netd's own, or with another value.
pub(super) struct FlowTable<A, V = Flow<A>> {
    name: &'static str,
    /// For walking it: aya's typed map does not show its own.
    data: MapData,
    map: HashMap<MapData, Pod<Tuple<A>>, Pod<V>>,
}

/// Why an entry was not inserted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotInserted {
    /// The key is there.
    Exists,
    /// There is no room.
    Full,
}

impl<A, V: Wire> FlowTable<A, V>
where
    Tuple<A>: Wire,
{
    fn open(directory: &Path, name: &'static str) -> Result<Self, DataplaneError> {
        let data = MapData::from_pin(directory.join(name)).map_err(|e| unreadable(name, e))?;
        let map = pinned(directory, name, HashMap::try_from)?;
        Ok(Self { name, data, map })
    }

    /// Calls `visit` with every entry; see [`for_each`].
    pub(super) fn walk(&self, visit: impl FnMut(Tuple<A>, V)) -> Result<(), DataplaneError> {
        for_each(&self.data, visit).map_err(|source| DataplaneError::ReadMap {
            map: self.name,
            source,
        })
    }

    /// An entry, if it is there.
    pub(super) fn get(&self, tuple: &Tuple<A>) -> Option<V> {
        self.map.get(&Pod(*tuple), 0).ok().map(|flow| flow.0)
    }

    /// Inserts an entry, if it is not there.
    pub(super) fn insert(&mut self, tuple: &Tuple<A>, value: &V) -> Result<(), NotInserted> {
        const NOEXIST: u64 = 1;
        let inserted = self.map.insert(Pod(*tuple), Pod(*value), NOEXIST);
        inserted.map_err(|error| match cause(error).raw_os_error() {
            Some(libc::EEXIST) => NotInserted::Exists,
            _ => NotInserted::Full,
        })
    }

    /// Writes over an entry, or inserts it.
    pub(super) fn replace(&mut self, tuple: &Tuple<A>, value: &V) -> Result<(), NotInserted> {
        let written = self.map.insert(Pod(*tuple), Pod(*value), 0);
        written.map_err(|_| NotInserted::Full)
    }

    /// Removes an entry; true if it was there.
    pub(super) fn remove(&mut self, tuple: &Tuple<A>) -> bool {
        self.map.remove(&Pod(*tuple)).is_ok()
    }
}

macro_rules! define {
    ($($field:ident $variant:ident $kind:ident($key:ty => $value:ty) $name:ident,)+) => {
        /// Every map that the daemon reads or writes.
        pub(super) struct Maps {
            pub(super) config: ConfigMap,
            $($field: $kind<$key, $value>,)+
            pub(super) flows_v4: FlowTable<V4Addr>,
            pub(super) flows_v6: FlowTable<V6Addr>,
            pub(super) embryos_v4: FlowTable<V4Addr>,
            pub(super) embryos_v6: FlowTable<V6Addr>,
            pub(super) kernel_v4: FlowTable<V4Addr, KernelFlow<V4Addr>>,
            pub(super) kernel_v6: FlowTable<V6Addr, KernelFlow<V6Addr>>,
            pub(super) sockets: SocketTable,
            holdings: HashTable<u32, Holding>,
        }

        impl Maps {
            /// Opens the maps that are pinned in `directory`. Their shapes must have been checked.
            pub(super) fn open(directory: &Path) -> Result<Self, DataplaneError> {
                Ok(Self {
                    config: ConfigMap::open(directory)?,
                    $($field: pinned(directory, map::$name, |map| {
                        <$kind<$key, $value> as TypedMap<$key, $value>>::from_map(map)
                    })?,)+
                    flows_v4: FlowTable::open(directory, map::FLOWS_V4)?,
                    flows_v6: FlowTable::open(directory, map::FLOWS_V6)?,
                    embryos_v4: FlowTable::open(directory, map::EMBRYOS_V4)?,
                    embryos_v6: FlowTable::open(directory, map::EMBRYOS_V6)?,
                    kernel_v4: FlowTable::open(directory, map::KERNEL_FLOWS_V4)?,
                    kernel_v6: FlowTable::open(directory, map::KERNEL_FLOWS_V6)?,
                    sockets: SocketTable::open(directory)?,
                    holdings: pinned(directory, map::HOLDINGS, |map| {
                        <HashTable<u32, Holding> as TypedMap<_, _>>::from_map(map)
                    })?,
                })
            }

            /// Every row.
            pub(super) fn rows(&self) -> Result<Tables, DataplaneError> {
                Ok(Tables {
                    $($field: TypedMap::<$key, $value>::rows(&self.$field)
                        .map_err(|error| unreadable(map::$name, error))?,)+
                })
            }

            /// Adds or replaces a row.
            pub(super) fn put(&mut self, row: &Row) -> Result<(), DataplaneError> {
                let done = match row {
                    $(Row::$variant(key, value) => {
                        TypedMap::<$key, $value>::put(&mut self.$field, key, value)
                    })+
                };
                done.map_err(|error| DataplaneError::Map {
                    map: row.table().name(),
                    row: row.to_string(),
                    source: cause(error),
                })
            }

            /// Removes a row, if it is there.
            pub(super) fn remove(&mut self, key: &RowKey) -> Result<(), DataplaneError> {
                let done = match key {
                    $(RowKey::$variant(at) => {
                        TypedMap::<$key, $value>::remove(&mut self.$field, at)
                    })+
                };
                match done.map_err(cause) {
                    Err(source) if source.kind() != io::ErrorKind::NotFound => {
                        Err(DataplaneError::Map {
                            map: key.table().name(),
                            row: key.to_string(),
                            source,
                        })
                    }
                    _ => Ok(()),
                }
            }
        }
    };
}
for_each_table!(define);

impl Maps {
    /// Sets how many flows each container has; who is not named and has no interface any more is
    /// forgotten.
    pub(super) fn set_holdings(
        &mut self,
        held: &BTreeMap<u32, Holding>,
    ) -> Result<(), DataplaneError> {
        let counted = self.holdings.rows();
        let counted = counted.map_err(|error| unreadable(map::HOLDINGS, error))?;
        for (owner, now) in held
            .iter()
            .filter(|(owner, _)| !counted.contains_key(owner))
        {
            self.hold(*owner, now)?;
        }
        for (owner, was) in counted {
            let now = held.get(&owner).copied().unwrap_or_default();
            if now != was {
                self.hold(owner, &now)?;
            } else if was == Holding::default() && nix::net::if_::if_indextoname(owner).is_err() {
                let _ = self.holdings.remove(&owner);
            }
        }
        Ok(())
    }

    fn hold(&mut self, owner: u32, held: &Holding) -> Result<(), DataplaneError> {
        let put = self.holdings.put(&owner, held);
        put.map_err(|error| DataplaneError::Map {
            map: map::HOLDINGS,
            row: format!("interface {owner}"),
            source: cause(error),
        })
    }
}

pub(super) fn pinned<T, E: Into<MapError>>(
    directory: &Path,
    name: &'static str,
    convert: impl FnOnce(Map) -> Result<T, E>,
) -> Result<T, DataplaneError> {
    let data = MapData::from_pin(directory.join(name)).map_err(|e| unreadable(name, e))?;
    let map = Map::from_map_data(data).map_err(|error| unreadable(name, error))?;
    convert(map).map_err(|error| unreadable(name, error.into()))
}

pub(super) fn unreadable(map: &'static str, error: MapError) -> DataplaneError {
    DataplaneError::ReadMap {
        map,
        source: cause(error),
    }
}
