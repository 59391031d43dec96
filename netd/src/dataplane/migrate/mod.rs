//! From the maps of an earlier ABI to ours, without breaking a connection.
//!
//! The old programs go on with the old maps until each is replaced in its link. So everything that
//! the new ones need is there before:
//!
//! 1. [`survey`] says, before anything is done, whether it can be done at all;
//! 2. the new maps are made beside the old, and inherit seed, epoch and flags of the configuration;
//! 3. flows are copied in bulk ([`Previous::carry`]); the daemon puts in the rows as it always does;
//! 4. the programs are replaced in the links that are there, whose pins move ([`Previous::move_links`]);
//! 5. what the old programs did to their flows meanwhile is carried over too ([`Previous::carry`]);
//! 6. the old pins are removed, and the old maps with them.
//!
//! Whoever dies in between leaves a state from which the next daemon begins again: the old version's
//! directory is there until all is done. Between the first and the last link (a few milliseconds) a
//! new connection may have one hook with the old and one with the new programs, and lose a packet.

mod carry;
mod v1;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{MapInfo, MapType};
use netd_common::abi::{self, V4Addr, V6Addr, config_flag, map};
use netd_common::wire::{Address, Wire};
use thiserror::Error;

use self::v1::V1;
use super::kernel::Kernel;
use super::{Attachment, DataplaneError, Sizes};

pub use self::carry::Carried;

/// An earlier ABI: what of it is carried over, and how.
trait Layout {
    /// Its number.
    const VERSION: u32;
    /// The element of `CONFIG`.
    type Config: Wire;
    /// Key of the flow tables.
    type Tuple<A: Address>: Wire;
    /// Value of the flow tables.
    type Flow<A: Address>: Wire;

    fn config(old: &Self::Config) -> Inherited;
    fn tuple<A: Address>(old: &Self::Tuple<A>) -> abi::Tuple<A>;
    fn flow<A: Address>(old: &Self::Flow<A>) -> abi::Flow<A>;
}

/// What the new configuration begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Inherited {
    epoch: u32,
    seed: u32,
    flags: u32,
    synced_at: u32,
}

/// An earlier version's maps and links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Previous {
    root: PathBuf,
}

/// Why netd does not replace what is in force. Nothing was changed.
#[derive(Debug, Error)]
pub enum Refusal {
    /// A newer netd is in force.
    #[error(
        "{}: a newer netd is in force here (ABI {version}, this one has {}), and its flows cannot \
         be carried back. Nothing was changed. Run that netd; or remove it with its own \
         `netd unload --drain`, which lets connections end; or choose another --pin-dir",
        .path.display(), abi::VERSION
    )]
    Newer {
        /// Where.
        path: PathBuf,
        /// Its ABI.
        version: u32,
    },
    /// A netd is in force that is too old.
    #[error(
        "{}: a netd is in force here whose flows this one cannot carry over (ABI {version}; this \
         one has {} and knows {}). Nothing was changed. Upgrade by a release between the two; or \
         remove it with `netd unload --force`, which ends its connections",
        .path.display(), abi::VERSION, V1::VERSION
    )]
    Older {
        /// Where.
        path: PathBuf,
        /// Its ABI.
        version: u32,
    },
    /// It says that it is of an ABI that we know, but is not.
    #[error(
        "{}: this map is not what netd made with ABI {version}: {difference}. Its flows cannot be \
         carried over, and nothing was changed. `netd unload --force` removes everything that is \
         pinned there and ends its connections; or choose another --pin-dir", .path.display()
    )]
    Layout {
        /// The map's pin.
        path: PathBuf,
        /// The ABI of the directory.
        version: u32,
        /// What differs.
        difference: String,
    },
    /// It could not be looked at.
    #[error("{}: cannot read it: {source}", .path.display())]
    Unreadable {
        /// What.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Looks whether another ABI is in force below the pin directory, and whether its flows can be
/// carried over. Changes nothing.
///
/// # Errors
/// A [`Refusal`].
pub fn survey(pin_dir: &Path) -> Result<Option<Previous>, Refusal> {
    let mut found = None;
    for (version, path) in versions(pin_dir)? {
        if version > abi::VERSION {
            return Err(Refusal::Newer { path, version });
        }
        if version == abi::VERSION || is_empty(&path.join("maps")) && is_empty(&path.join("links"))
        {
            continue;
        }
        if version != V1::VERSION {
            return Err(Refusal::Older { path, version });
        }
        check::<V1>(&path)?;
        found = Some(Previous { root: path });
    }
    Ok(found)
}

/// The directories `v<number>`.
fn versions(pin_dir: &Path) -> Result<Vec<(u32, PathBuf)>, Refusal> {
    let entries = match fs::read_dir(pin_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(Refusal::Unreadable {
                path: pin_dir.to_owned(),
                source,
            });
        }
        Ok(entries) => entries,
    };
    let mut versions: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_prefix('v')?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    versions.sort();
    Ok(versions)
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none())
}

fn check<L: Layout>(root: &Path) -> Result<(), Refusal> {
    let size = |bytes: usize| bytes as u32;
    let v4 = (size_of::<L::Tuple<V4Addr>>(), size_of::<L::Flow<V4Addr>>());
    let v6 = (size_of::<L::Tuple<V6Addr>>(), size_of::<L::Flow<V6Addr>>());
    for (name, (key, value)) in [
        (map::CONFIG, (4, size_of::<L::Config>())),
        (map::FLOWS_V4, v4),
        (map::EMBRYOS_V4, v4),
        (map::FLOWS_V6, v6),
        (map::EMBRYOS_V6, v6),
    ] {
        let path = root.join("maps").join(name);
        let refused = |difference: String| Refusal::Layout {
            path: path.clone(),
            version: L::VERSION,
            difference,
        };
        let info = MapInfo::from_pin(&path).map_err(|error| refused(error.to_string()))?;
        let found = (info.key_size(), info.value_size());
        if found != (size(key), size(value)) {
            return Err(refused(format!(
                "its keys and values have {} and {} bytes instead of {key} and {value}",
                found.0, found.1
            )));
        }
        let kinds = [MapType::Hash, MapType::LruHash, MapType::Array];
        if !info.map_type().is_ok_and(|kind| kinds.contains(&kind)) {
            return Err(refused("it is of another kind".to_owned()));
        }
    }
    Ok(())
}

impl Previous {
    /// Where it is pinned.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Makes sizes for new maps so large that all its flows fit.
    pub fn widen(&self, sizes: &mut Sizes) {
        for (name, flows) in [
            (map::FLOWS_V4, &mut sizes.flows_v4),
            (map::FLOWS_V6, &mut sizes.flows_v6),
        ] {
            if let Ok(info) = MapInfo::from_pin(self.map(name)) {
                *flows = (*flows).max(info.max_entries().div_ceil(2));
            }
        }
    }

    /// Forgets what an attempt left that got as far as making maps, but replaced no program: its
    /// copies are old by now. Returns what could not be removed.
    pub fn begin_again(&self, pin_dir: &Path) -> Vec<String> {
        let ours = pin_dir.join(format!("v{}", abi::VERSION));
        let mut failures = Vec::new();
        if ours.exists() && is_empty(&ours.join("links")) {
            crate::teardown::remove_version(&ours, &mut |failure| failures.push(failure));
        }
        failures
    }

    /// Has the new configuration begin where the old one is.
    ///
    /// # Errors
    /// When one cannot be read or the other not be written.
    pub fn hand_down(&self, kernel: &mut Kernel) -> Result<(), DataplaneError> {
        let inherited = self.inherited::<V1>()?;
        kernel.pinned.maps.config.change(|now| {
            now.epoch = now.epoch.max(inherited.epoch);
            now.flags = inherited.flags & !config_flag::PASSING | now.flags & config_flag::PASSING;
            now.seed = inherited.seed;
            now.synced_at = inherited.synced_at;
        })
    }

    fn inherited<L: Layout>(&self) -> Result<Inherited, DataplaneError> {
        let mut config = None;
        carry::walk(
            &self.map(map::CONFIG),
            map::CONFIG,
            |_: u32, old: L::Config| {
                config = Some(L::config(&old));
            },
        )?;
        config.ok_or_else(|| DataplaneError::ReadMap {
            map: map::CONFIG,
            source: io::ErrorKind::NotFound.into(),
        })
    }

    /// Copies flows that are not ours yet, and brings those up to date that have had more packets
    /// there since they were copied.
    ///
    /// # Errors
    /// When a map cannot be walked. What does not fit is told, and no error.
    pub fn carry(&self, kernel: &mut Kernel) -> Result<Carried, DataplaneError> {
        carry::carry::<V1>(&self.root.join("maps"), kernel)
    }

    /// Replaces the programs in its links by ours, one after the other, and takes over the pins.
    /// Returns how many there were, and what went wrong: such a link stays as it is until
    /// [`Previous::remove`], and the next synchronisation attaches another.
    pub fn move_links(&self, kernel: &mut Kernel) -> (usize, Vec<DataplaneError>) {
        let (mut moved, mut failures) = (0, Vec::new());
        for entry in fs::read_dir(self.root.join("links"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let Some(attachment) = Attachment::from_pin_name(&name.to_string_lossy()) else {
                continue;
            };
            match kernel.adopt_link(&entry.path(), attachment) {
                Ok(adopted) => moved += usize::from(adopted),
                Err(error) => failures.push(error),
            }
        }
        (moved, failures)
    }

    /// Removes what is still pinned, and its directory. Returns what could not be removed.
    pub fn remove(&self) -> Vec<String> {
        let mut failures = Vec::new();
        crate::teardown::remove_version(&self.root, &mut |failure| failures.push(failure));
        failures
    }

    fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }
}

#[cfg(test)]
mod tests;
