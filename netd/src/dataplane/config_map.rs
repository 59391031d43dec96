//! The configuration element, and who may change it.
//!
//! It is one element of one map, written as a whole, and more than one thread of the daemon has a
//! part in it. Whoever writes reads, changes and writes under one lock: no change of another's is
//! lost, and the epoch only rises.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, MapData};
use netd_common::abi::{self, map};

use super::DataplaneError;
use super::maps::{cause, pinned, unreadable};
use super::pod::Pod;

type Element = Array<MapData, Pod<abi::Config>>;

/// `CONFIG`. Clones share the lock.
#[derive(Clone)]
pub(super) struct ConfigMap(Arc<Mutex<Element>>);

/// Raises [`abi::Config::epoch`], from any thread of the daemon.
#[derive(Clone)]
pub struct Epoch(ConfigMap);

impl ConfigMap {
    /// Opens the map that is pinned in `directory`.
    pub(super) fn open(directory: &Path) -> Result<Self, DataplaneError> {
        let map = pinned(directory, map::CONFIG, Array::try_from)?;
        Ok(Self(Arc::new(Mutex::new(map))))
    }

    /// The element as it is.
    pub(super) fn read(&self) -> Result<abi::Config, DataplaneError> {
        read(&self.element())
    }

    /// Changes the element; nothing is written where nothing changes.
    pub(super) fn change(
        &self,
        change: impl FnOnce(&mut abi::Config),
    ) -> Result<(), DataplaneError> {
        let mut element = self.element();
        let before = read(&element)?;
        let mut config = before;
        change(&mut config);
        if config == before {
            return Ok(());
        }
        element
            .set(0, Pod(config), 0)
            .map_err(|error| DataplaneError::Map {
                map: map::CONFIG,
                row: "the configuration".to_owned(),
                source: cause(error),
            })
    }

    /// Raises the epoch.
    pub(super) fn epoch(&self) -> Epoch {
        Epoch(self.clone())
    }

    fn element(&self) -> MutexGuard<'_, Element> {
        // The kernel keeps the element whole: who panicked while he held the lock has left nothing half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Epoch {
    /// Makes every flow decide and look up its route again at its next packet.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn bump(&self) -> Result<(), DataplaneError> {
        self.0
            .change(|config| config.epoch = config.epoch.wrapping_add(1))
    }
}

fn read(element: &Element) -> Result<abi::Config, DataplaneError> {
    let config = element.get(&0, 0);
    config
        .map(|config| config.0)
        .map_err(|error| unreadable(map::CONFIG, error))
}
