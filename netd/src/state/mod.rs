//! What the data plane enforces, read from its pinned maps: typed, read-only, without the daemon.
//!
//! | module | subject |
//! |---|---|
//! | [`batch`] | walking a whole map with few system calls |
//! | [`shape`] | what each map looks like, and refusing one that does not |
//! | [`clock`] | times in the maps as times of day |
//! | [`network`] | networks and containers |
//! | [`publish`] | published ports, ranges folded back from prefixes |
//! | [`flow`] | flows, both directions joined |
//! | [`kernel_flow`] | flows that the kernel's NAT owned before netd |
//! | [`filter`] | choosing flows |
//! | [`drops`] | dropped packets by reason |
//! | [`events`] | dropped packets as they come |
//! | [`attachment`] | which program sits where |
//!
//! A [`State`] is opened once per command; each view is read from the kernel when it is asked for.

pub mod attachment;
pub mod batch;
pub mod clock;
pub mod drops;
pub mod events;
pub mod filter;
pub mod flow;
pub mod kernel_flow;
pub mod network;
pub mod publish;
pub mod shape;
pub(crate) mod sys;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use aya::maps::{MapData, MapInfo};
use netd_common::{
    abi::{self, Answers, Config, TableEvents, Verdicts, answer_kind, flow_table, hook, map},
    wire::Address,
};
use nix::net::if_::if_nameindex;
use thiserror::Error;

use self::{clock::Clock, network::Topology};

/// Why the data plane's state could not be read. Nothing was changed.
#[derive(Debug, Error)]
pub enum StateError {
    /// There are no maps.
    #[error(
        "nothing is loaded: there are no maps in {}{}. `netd run` loads the data plane; \
         if it was pinned elsewhere, say where with --pin-dir",
        .directory.display(),
        other_versions(.others)
    )]
    NotLoaded {
        /// Where they were looked for.
        directory: PathBuf,
        /// Other versions of the ABI that are pinned next to it.
        others: Vec<String>,
    },
    /// The directory may not be read.
    #[error("{}: {source}. Reading the data plane needs root (CAP_BPF and access to the BPF file system)", .path.display())]
    Denied {
        /// What was to be read.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A map is not what this version of netd would create.
    #[error(
        "{}: this map was not made by this version of netd: {difference}. It is not read. \
         Use the netd that made it, or remove everything that is pinned there by \
         `netd unload --force`", .path.display()
    )]
    Shape {
        /// The map's pin.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
    /// One map is missing.
    #[error(
        "{}: this map is missing, although others are pinned beside it. `netd run` makes the set \
         complete again", .path.display()
    )]
    Incomplete {
        /// Where it should be.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("{}: cannot read this: {source}", .path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn other_versions(others: &[String]) -> String {
    if others.is_empty() {
        return String::new();
    }
    format!(
        " (but there is {}, of another version of netd)",
        others.join(", ")
    )
}

/// The pinned data plane.
#[derive(Clone, Debug)]
pub struct State {
    directory: PathBuf,
    interfaces: BTreeMap<u32, String>,
    network_names: BTreeMap<u16, String>,
    clock: Clock,
}

impl State {
    /// Finds the maps below a pin directory and checks the shape of each.
    ///
    /// # Errors
    /// [`StateError::NotLoaded`] where nothing is pinned, [`StateError::Shape`] and
    /// [`StateError::Incomplete`] where something else is.
    pub fn open(pin_dir: &Path) -> Result<Self, StateError> {
        let directory = pin_dir.join(format!("v{}", abi::VERSION));
        let state = Self {
            interfaces: interface_names(),
            network_names: BTreeMap::new(),
            clock: Clock::now(),
            directory,
        };
        match fs::read_dir(state.maps()).map(|mut entries| entries.next().is_some()) {
            Ok(true) => {}
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                return Err(StateError::Denied {
                    path: state.maps(),
                    source,
                });
            }
            _ => {
                return Err(StateError::NotLoaded {
                    others: pinned_versions(pin_dir),
                    directory: state.maps(),
                });
            }
        }
        for (name, shape) in shape::SHAPES {
            let info = state.info(name)?;
            if let Some(difference) = shape.difference(&info) {
                return Err(StateError::Shape {
                    path: state.path(name),
                    difference,
                });
            }
        }
        Ok(state)
    }

    /// The same state with names for networks: the maps know numbers only.
    #[must_use]
    pub fn with_network_names(mut self, names: BTreeMap<u16, String>) -> Self {
        self.network_names = names;
        self
    }

    /// Reads the clocks and the names of interfaces again, for a command that goes on.
    pub fn refresh(&mut self) {
        self.interfaces = interface_names();
        self.clock = Clock::now();
    }

    /// Where maps and links are pinned.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The clocks when the state was opened.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Name of an interface of this network namespace.
    pub fn interface(&self, ifindex: u32) -> Option<&str> {
        self.interfaces.get(&ifindex).map(String::as_str)
    }

    /// Name of an interface, or `if7` where it is gone.
    pub fn interface_or_number(&self, ifindex: u32) -> String {
        self.interface(ifindex)
            .map_or_else(|| format!("if{ifindex}"), str::to_owned)
    }

    /// The one element of `CONFIG`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn config(&self) -> Result<Config, StateError> {
        let mut config = Config::default();
        self.for_each(map::CONFIG, |_: u32, c| config = c)?;
        Ok(config)
    }

    /// What each hook decided, summed over CPUs, by [`hook`] number.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn verdicts(&self) -> Result<[Verdicts; hook::COUNT as usize], StateError> {
        let mut sums = [Verdicts::default(); hook::COUNT as usize];
        let map = self.map(map::VERDICTS)?;
        let walked = batch::for_each_per_cpu(&map, |hook: u32, values: &[Verdicts]| {
            if let Some(sum) = sums.get_mut(hook as usize) {
                for v in values {
                    sum.passed += v.passed;
                    sum.forwarded += v.forwarded;
                    sum.decided += v.decided;
                    sum.dropped += v.dropped;
                }
            }
        });
        self.read(map::VERDICTS, walked)?;
        Ok(sums)
    }

    /// ICMP errors that netd itself sent, or did not, by [`answer_kind`].
    ///
    /// # Errors
    /// What the kernel says.
    pub fn answers(&self) -> Result<[Answers; answer_kind::COUNT], StateError> {
        let mut sums = [Answers::default(); answer_kind::COUNT];
        let map = self.map(map::ANSWERS)?;
        let walked = batch::for_each_per_cpu(&map, |kind: u32, values: &[Answers]| {
            if let Some(sum) = sums.get_mut(kind as usize) {
                for value in values {
                    for (sum, count) in sum.count.iter_mut().zip(value.count) {
                        *sum += count;
                    }
                }
            }
        });
        self.read(map::ANSWERS, walked)?;
        Ok(sums)
    }

    /// What happened in the flow tables for want of room, by [`flow_table`].
    ///
    /// # Errors
    /// What the kernel says.
    pub fn table_events(&self) -> Result<[TableEvents; flow_table::COUNT], StateError> {
        let mut sums = [TableEvents::default(); flow_table::COUNT];
        let map = self.map(map::TABLE_EVENTS)?;
        let walked = batch::for_each_per_cpu(&map, |table: u32, values: &[TableEvents]| {
            if let Some(sum) = sums.get_mut(table as usize) {
                for value in values {
                    for (sum, count) in sum.count.iter_mut().zip(value.count) {
                        *sum += count;
                    }
                }
            }
        });
        self.read(map::TABLE_EVENTS, walked)?;
        Ok(sums)
    }

    /// Networks and containers.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn topology(&self) -> Result<Topology, StateError> {
        Topology::read(self)
    }

    /// Number of entries that a map has room for.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn capacity(&self, name: &str) -> Result<u32, StateError> {
        self.info(name).map(|info| info.max_entries())
    }

    fn maps(&self) -> PathBuf {
        self.directory.join("maps")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    fn info(&self, name: &str) -> Result<MapInfo, StateError> {
        self.map(name)?
            .info()
            .map_err(|error| self.unreadable(name, io::Error::other(error)))
    }

    fn map(&self, name: &str) -> Result<MapData, StateError> {
        MapData::from_pin(self.path(name)).map_err(|error| match error {
            aya::maps::MapError::SyscallError(error) => self.unreadable(name, error.io_error),
            error => self.unreadable(name, io::Error::other(error)),
        })
    }

    fn unreadable(&self, name: &str, source: io::Error) -> StateError {
        let path = self.path(name);
        match source.kind() {
            io::ErrorKind::NotFound => StateError::Incomplete { path },
            io::ErrorKind::PermissionDenied => StateError::Denied { path, source },
            _ => StateError::Read { path, source },
        }
    }

    fn read<T>(&self, name: &str, outcome: io::Result<T>) -> Result<T, StateError> {
        outcome.map_err(|source| self.unreadable(name, source))
    }

    fn for_each<K, V>(&self, name: &str, visit: impl FnMut(K, V)) -> Result<(), StateError>
    where
        K: netd_common::wire::Wire,
        V: netd_common::wire::Wire,
    {
        let map = self.map(name)?;
        self.read(name, batch::for_each(&map, visit))
    }
}

/// An address of the maps as the standard library has it.
pub fn ip<A: Address>(address: A) -> IpAddr {
    let padded = address.padded();
    if size_of::<A>() == 4 {
        IpAddr::from([padded[0], padded[1], padded[2], padded[3]])
    } else {
        IpAddr::from(padded)
    }
}

/// A protocol by name, or its number.
pub fn protocol_name(proto: u8) -> Cow<'static, str> {
    netd_common::wire::proto::name(proto)
        .map_or_else(|| Cow::Owned(proto.to_string()), Cow::Borrowed)
}

fn interface_names() -> BTreeMap<u32, String> {
    // Without names everything is still shown, by number.
    let Ok(interfaces) = if_nameindex() else {
        return BTreeMap::new();
    };
    interfaces
        .into_iter()
        .map(|i| (i.index(), i.name().to_string_lossy().into_owned()))
        .collect()
}

fn pinned_versions(pin_dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(pin_dir) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            name.strip_prefix('v')
                .is_some_and(|n| n.parse().is_ok_and(|n: u32| n != abi::VERSION))
        })
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use netd_common::wire::{V4Addr, V6Addr};

    use super::*;

    #[test]
    fn addresses_of_both_families() {
        assert_eq!(ip(V4Addr([10, 201, 1, 2])).to_string(), "10.201.1.2");
        let mut v6 = [0; 16];
        v6[0] = 0xfd;
        v6[15] = 7;
        assert_eq!(ip(V6Addr(v6)).to_string(), "fd00::7");
    }

    #[test]
    fn nothing_pinned_is_said_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("v9999/maps")).unwrap();
        let error = State::open(dir.path()).unwrap_err();
        let StateError::NotLoaded { others, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(others, &["v9999"]);
        let text = error.to_string();
        assert!(
            text.contains("netd run") && text.contains("--pin-dir"),
            "{text}"
        );
    }
}
