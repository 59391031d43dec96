//! The shape of every map, and whether a pinned one has it.

use std::path::{Path, PathBuf};

use aya::maps::{MapInfo, MapType};
use netd_common::abi::map;
use thiserror::Error;

use super::Sizes;
use crate::state::shape::SHAPES;

/// What makes two maps interchangeable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// The map's name.
    pub name: &'static str,
    /// What kind of map it is.
    pub kind: MapType,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value (of one CPU's).
    pub value: u32,
    /// Largest number of entries; of a ring buffer, its bytes.
    pub entries: u32,
    /// Flags that it was created with.
    pub flags: u32,
}

/// A pinned map is not what this version of netd would create.
#[derive(Debug, Error)]
pub enum ShapeError {
    /// It differs.
    #[error(
        "{}: this map was not made by this netd: {difference}. Nothing was changed. \
         `netd unload --force` removes everything that is pinned there; \
         or choose another directory with --pin-dir", .path.display()
    )]
    Other {
        /// Its pin.
        path: PathBuf,
        /// What differs, and how.
        difference: String,
    },
    /// Others are there, but not this one.
    #[error(
        "{}: this map is not there, but others are: a daemon did not live to make it, or someone \
         removed it. `netd run` makes it", .path.display()
    )]
    Missing {
        /// Its pin.
        path: PathBuf,
    },
    /// It could not be inspected.
    #[error("{}: cannot inspect this pinned map: {reason}. Remove the file, or choose another \
         directory with --pin-dir", .path.display())]
    Unreadable {
        /// Its pin.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
}

const NO_PREALLOC: u32 = 1;

/// The shape of every map of the ABI, with these sizes.
pub fn shapes(sizes: &Sizes) -> Vec<Shape> {
    let all = SHAPES.iter().map(|(name, shape)| Shape {
        name,
        kind: shape.kind,
        key: shape.key,
        value: shape.value,
        entries: sizes.entries(name),
        flags: if shape.kind == MapType::LpmTrie || is_grown(name) {
            NO_PREALLOC
        } else {
            0
        },
    });
    all.collect()
}

/// True for hash maps that take memory only for the entries that they have.
fn is_grown(name: &str) -> bool {
    [map::KERNEL_FLOWS_V4, map::KERNEL_FLOWS_V6].contains(&name)
}

/// True for the tables whose size is a matter of memory, not of the ABI: one that exists is kept
/// with its flows, whatever size this run would choose.
pub fn is_sized_by_memory(name: &str) -> bool {
    [
        map::FLOWS_V4,
        map::FLOWS_V6,
        map::EMBRYOS_V4,
        map::EMBRYOS_V6,
        map::KERNEL_FLOWS_V4,
        map::KERNEL_FLOWS_V6,
        map::SOCKETS,
        map::FLOW_RING_V4,
        map::FLOW_RING_V6,
        map::EMBRYO_RING_V4,
        map::EMBRYO_RING_V6,
        map::FRAGMENTS_V4,
        map::FRAGMENTS_V6,
        map::HOLDINGS,
        map::ENDPOINTS,
        map::ADDRS_V4,
        map::ADDRS_V6,
        map::DROPS,
    ]
    .contains(&name)
}

/// What a look at a pinned map found: `None` when there is no such pin, else its number of
/// entries.
pub fn check(directory: &Path, shape: &Shape) -> Result<Option<u32>, ShapeError> {
    let path = directory.join(shape.name);
    if !path.exists() {
        return Ok(None);
    }
    let unreadable = |error: &dyn std::fmt::Display| ShapeError::Unreadable {
        path: path.clone(),
        reason: error.to_string(),
    };
    let info = MapInfo::from_pin(&path).map_err(|error| unreadable(&error))?;
    let found = Shape {
        name: shape.name,
        kind: info.map_type().map_err(|error| unreadable(&error))?,
        key: info.key_size(),
        value: info.value_size(),
        entries: info.max_entries(),
        flags: info.map_flags(),
    };
    match difference(shape, &found) {
        None => Ok(Some(found.entries)),
        Some(difference) => Err(ShapeError::Other { path, difference }),
    }
}

fn difference(wanted: &Shape, found: &Shape) -> Option<String> {
    let mut parts = Vec::new();
    let mut number = |what: &str, wanted: u32, found: u32| {
        if wanted != found {
            parts.push(format!("{what} {found} instead of {wanted}"));
        }
    };
    number("key size", wanted.key, found.key);
    number("value size", wanted.value, found.value);
    if !is_sized_by_memory(wanted.name) {
        number("number of entries", wanted.entries, found.entries);
    }
    number("flags", wanted.flags, found.flags);
    if wanted.kind != found.kind {
        parts.insert(
            0,
            format!("type {:?} instead of {:?}", found.kind, wanted.kind),
        );
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;
    use crate::dataplane::sizes;

    #[test]
    fn what_depends_on_memory_is_known_to() {
        let of = |ram| shapes(&sizes(ram, 2, &Limits::default()));
        for (small, large) in of(1 << 30).iter().zip(of(64 << 30)) {
            if small.entries != large.entries {
                assert!(is_sized_by_memory(small.name), "{}", small.name);
            }
        }
    }

    #[test]
    fn every_difference_is_named() {
        let sizes = sizes(8 << 30, 2, &Limits::default());
        let shapes = shapes(&sizes);
        let publish = *shapes.iter().find(|s| s.name == map::PUBLISH_V4).unwrap();
        assert_eq!(
            (publish.key, publish.value, publish.flags),
            (16, 12, NO_PREALLOC)
        );
        assert_eq!(difference(&publish, &publish), None);
        let other = Shape {
            key: 8,
            entries: 1,
            flags: 0,
            kind: MapType::Hash,
            ..publish
        };
        assert_eq!(
            difference(&publish, &other).unwrap(),
            "type Hash instead of LpmTrie, key size 8 instead of 16, \
             number of entries 1 instead of 65536, flags 0 instead of 1"
        );
    }

    #[test]
    fn a_flow_table_of_another_size_is_kept() {
        let sizes = sizes(8 << 30, 2, &Limits::default());
        let flows = *shapes(&sizes)
            .iter()
            .find(|s| s.name == map::FLOWS_V4)
            .unwrap();
        assert_eq!(
            difference(
                &flows,
                &Shape {
                    entries: 2,
                    ..flows
                }
            ),
            None
        );
        assert!(difference(&flows, &Shape { value: 96, ..flows }).is_some());
    }
}
