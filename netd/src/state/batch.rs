//! Walking a whole BPF map by BPF_MAP_LOOKUP_BATCH, which aya does not offer: two system calls
//! per entry become one per few thousand.
//!
//! Every kind of map that is walked here has the command on netd's oldest kernel, 6.1.

use std::io;

use aya::maps::{MapData, MapInfo, MapType};
use netd_common::wire::Wire;

use super::sys::{self, read};

/// Entries of a hash map fetched by one call.
const BATCH: u32 = 4096;

/// Calls `visit` with every entry of a hash map or an array (whose keys are native `u32`).
///
/// An entry that is added or removed meanwhile may be missed; one that stays is seen exactly once.
///
/// # Errors
/// `InvalidData` where `K` or `V` is not of the map's size, and what the kernel says.
pub fn for_each<K: Wire, V: Wire>(map: &MapData, mut visit: impl FnMut(K, V)) -> io::Result<()> {
    let layout = Layout::of(map, size_of::<K>(), size_of::<V>(), None)?;
    walk(map, &layout, |key, value| visit(read(key), read(value)))
}

/// Calls `visit` with the prefix length, the data and the value of every entry of an LPM trie.
///
/// # Errors
/// As [`for_each`].
pub fn for_each_prefix<K: Wire, V: Wire>(
    map: &MapData,
    mut visit: impl FnMut(u32, K, V),
) -> io::Result<()> {
    let layout = Layout::of(map, 4 + size_of::<K>(), size_of::<V>(), None)?;
    walk(map, &layout, |key, value| {
        visit(read(&key[..4]), read(&key[4..]), read(value));
    })
}

/// Calls `visit` with every entry of a per-CPU map; the slice holds one value for each CPU that
/// this machine may have.
///
/// # Errors
/// As [`for_each`].
pub fn for_each_per_cpu<K: Wire, V: Wire>(
    map: &MapData,
    mut visit: impl FnMut(K, &[V]),
) -> io::Result<()> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
    let layout = Layout::of(map, size_of::<K>(), size_of::<V>(), Some(cpus))?;
    let stride = layout.value / cpus;
    let mut values = Vec::with_capacity(cpus);
    walk(map, &layout, |key, bytes| {
        values.clear();
        values.extend(
            bytes
                .chunks_exact(stride)
                .map(|v| read::<V>(&v[..size_of::<V>()])),
        );
        visit(read(key), &values);
    })
}

/// How the kernel lays out keys and values in the buffers of a batch, in bytes.
struct Layout {
    key: usize,
    value: usize,
    batch: u32,
}

impl Layout {
    /// `cpus`: how many values an entry has, in a per-CPU map.
    fn of(map: &MapData, key: usize, value: usize, cpus: Option<usize>) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        let kind = info.map_type().map_err(io::Error::other)?;
        if info.key_size() as usize != key
            || info.value_size() as usize != value
            || is_per_cpu(kind) != cpus.is_some()
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "a {kind:?} with keys of {} and values of {} bytes, where {key} and {value} \
                     were expected",
                    info.key_size(),
                    info.value_size()
                ),
            ));
        }
        Ok(Self {
            key,
            // The kernel rounds the value of each CPU up to 8 bytes.
            value: cpus.map_or(value, |cpus| value.next_multiple_of(8) * cpus),
            batch: batch_size(kind, &info),
        })
    }
}

fn is_per_cpu(kind: MapType) -> bool {
    matches!(
        kind,
        MapType::PerCpuArray | MapType::PerCpuHash | MapType::LruPerCpuHash
    )
}

/// A hash map's cursor is a bucket, and a walk can go on whatever happens between two calls. The
/// others' cursor is a key, and a trie begins again at its first when that key has gone meanwhile:
/// those are small, and read in one call.
fn batch_size(kind: MapType, info: &MapInfo) -> u32 {
    match kind {
        MapType::Hash | MapType::LruHash => BATCH,
        MapType::PerCpuHash | MapType::LruPerCpuHash => BATCH / 16,
        _ => info.max_entries(),
    }
    .clamp(1, info.max_entries().max(1))
}

fn walk(map: &MapData, layout: &Layout, mut visit: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
    let sizes = (layout.key, layout.value);
    let mut batch = layout.batch;
    let mut cursor: Option<Vec<u8>> = None;
    let mut next = vec![0; layout.key.max(4)];
    let mut keys = Vec::new();
    let mut values = Vec::new();
    loop {
        keys.resize(batch as usize * layout.key, 0);
        values.resize(batch as usize * layout.value, 0);
        let (count, done) = match sys::lookup_batch(
            map,
            sizes,
            cursor.as_deref(),
            &mut next,
            &mut keys,
            &mut values,
        ) {
            Ok(found) => found,
            // One bucket holds more than a batch.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && batch < 1 << 20 => {
                batch *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        let found = keys
            .chunks_exact(layout.key)
            .zip(values.chunks_exact(layout.value));
        for (key, value) in found.take(count) {
            visit(key, value);
        }
        if done {
            return Ok(());
        }
        cursor = Some(next.clone());
    }
}
