//! Network ids: small numbers that stay with a network's name as long as the maps live, since
//! flows, counters and rows refer to them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Elements of the map `NETWORKS`; id 0 is never used.
pub const MAX_NETWORKS: u16 = 1024;

/// The id of each network, by its name in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ids(BTreeMap<String, u16>);

/// More networks than ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the file has more than {} networks, which is as many as netd can manage: remove some",
    MAX_NETWORKS - 1
)]
pub struct TooManyNetworks;

impl Ids {
    /// The id of a network.
    pub fn of(&self, name: &str) -> Option<u16> {
        self.0.get(name).copied()
    }

    /// The network with that id.
    pub fn name(&self, id: u16) -> Option<&str> {
        self.0
            .iter()
            .find_map(|(name, &own)| (own == id).then_some(name.as_str()))
    }

    /// Notes an id that is in force already, unless the name or the id is taken.
    pub fn adopt(&mut self, name: &str, id: u16) {
        if id != 0 && id < MAX_NETWORKS && self.of(name).is_none() && self.name(id).is_none() {
            self.0.insert(name.to_owned(), id);
        }
    }

    /// Ids for exactly these networks: known ones keep theirs, new ones get the lowest that no
    /// network has, the others are forgotten.
    pub fn assign<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, TooManyNetworks> {
        let names: Vec<&str> = names.into_iter().collect();
        // An id that has just become free is avoided too: its flows may still be there.
        let taken: BTreeSet<u16> = self.0.values().copied().collect();
        let mut free = (1..MAX_NETWORKS).filter(|id| !taken.contains(id)).chain(
            (1..MAX_NETWORKS)
                .filter(|id| self.name(*id).is_some_and(|name| !names.contains(&name))),
        );
        let mut assigned = BTreeMap::new();
        for name in &names {
            let id = match self.of(name) {
                Some(id) => id,
                None => free.next().ok_or(TooManyNetworks)?,
            };
            assigned.insert((*name).to_owned(), id);
        }
        Ok(Self(assigned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_and_are_not_reused_at_once() {
        let first = Ids::default().assign(["web", "db"]).unwrap();
        assert_eq!((first.of("web"), first.of("db")), (Some(1), Some(2)));
        let second = first.assign(["db", "cache"]).unwrap();
        assert_eq!((second.of("db"), second.of("cache")), (Some(2), Some(3)));
        assert_eq!(second.of("web"), None);
        assert_eq!(second.name(2), Some("db"));
    }

    #[test]
    fn adopting_never_makes_duplicates() {
        let mut ids = Ids::default();
        ids.adopt("web", 7);
        ids.adopt("db", 7);
        ids.adopt("web", 8);
        ids.adopt("zero", 0);
        assert_eq!(ids, serde_json::from_str(r#"{"web":7}"#).unwrap());
    }

    #[test]
    fn the_last_id_is_used_and_then_freed_ones() {
        let names: Vec<String> = (1..MAX_NETWORKS).map(|n| format!("n{n}")).collect();
        let all = Ids::default()
            .assign(names.iter().map(String::as_str))
            .unwrap();
        assert_eq!(all.of("n1023"), Some(1023));
        let replaced = all
            .assign(names[1..].iter().map(String::as_str).chain(["new"]))
            .unwrap();
        assert_eq!(replaced.of("new"), Some(1));
        assert_eq!(
            all.assign(names.iter().map(String::as_str).chain(["more"])),
            Err(TooManyNetworks)
        );
    }
}
