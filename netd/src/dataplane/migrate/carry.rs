//! Carrying flows from the tables of an earlier ABI to ours.

use std::collections::HashMap;
use std::hash::Hash;
use std::path::Path;

use aya::maps::{Array, MapData, MapError};
use netd_common::abi::{Flow, Hand, Seat, Tuple, V4Addr, V6Addr, flow_flag, flow_table, map};
use netd_common::wire::{Address, Wire};

use super::super::DataplaneError;
use super::super::kernel::Kernel;
use super::super::maps::{FlowTable, NotInserted, cause, pinned, unreadable};
use super::super::pod::Pod;
use super::Layout;
use crate::state::batch::for_each;

/// What a copy did, in entries: a flow has two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Copied, because they were not there.
    pub copied: usize,
    /// Copied again, because they have had packets since.
    pub renewed: usize,
    /// For which there was no room.
    pub left_out: usize,
}

/// Carries over the flows of all four tables pinned in the directory `from`.
pub(super) fn carry<L: Layout>(
    from: &Path,
    kernel: &mut Kernel,
) -> Result<Carried, DataplaneError> {
    let seats = kernel.pinned.maps.config.read()?.seats;
    let ours = kernel.pinned.maps_directory();
    let maps = &mut kernel.pinned.maps;
    let mut done = Carried::default();
    let embryos = Ring::open(&ours, map::EMBRYO_RING_V4, flow_table::EMBRYOS_V4, seats)?;
    let flows = Ring::open(&ours, map::FLOW_RING_V4, flow_table::FLOWS_V4, seats)?;
    Target::<V4Addr> {
        tables: [&mut maps.embryos_v4, &mut maps.flows_v4],
        rings: [embryos, flows],
        known: HashMap::new(),
    }
    .fill::<L>(from, [map::EMBRYOS_V4, map::FLOWS_V4], &ours, &mut done)?;
    let embryos = Ring::open(&ours, map::EMBRYO_RING_V6, flow_table::EMBRYOS_V6, seats)?;
    let flows = Ring::open(&ours, map::FLOW_RING_V6, flow_table::FLOWS_V6, seats)?;
    Target::<V6Addr> {
        tables: [&mut maps.embryos_v6, &mut maps.flows_v6],
        rings: [embryos, flows],
        known: HashMap::new(),
    }
    .fill::<L>(from, [map::EMBRYOS_V6, map::FLOWS_V6], &ours, &mut done)?;
    Ok(done)
}

/// Calls `visit` with every entry of a pinned map of any layout.
pub(super) fn walk<K: Wire, V: Wire>(
    path: &Path,
    name: &'static str,
    visit: impl FnMut(K, V),
) -> Result<(), DataplaneError> {
    let map = MapData::from_pin(path).map_err(|error| unreadable(name, error))?;
    for_each(&map, visit).map_err(|source| DataplaneError::ReadMap { map: name, source })
}

/// Index of the embryos in the arrays of a [`Target`], and of the confirmed flows.
const EMBRYOS: usize = 0;
const FLOWS: usize = 1;

/// The tables of one family, and what they hold.
struct Target<'a, A>
where
    Seat<A>: Wire,
{
    tables: [&'a mut FlowTable<A>; 2],
    rings: [Ring<A>; 2],
    known: HashMap<Tuple<A>, Known>,
}

/// An entry that is there.
#[derive(Clone, Copy)]
struct Known {
    table: usize,
    generation: u32,
    packets: u64,
}

impl<A: Address + Eq + Hash> Target<'_, A>
where
    Tuple<A>: Wire,
    Flow<A>: Wire,
    Seat<A>: Wire,
{
    fn fill<L: Layout>(
        &mut self,
        from: &Path,
        names: [&'static str; 2],
        ours: &Path,
        done: &mut Carried,
    ) -> Result<(), DataplaneError> {
        for (number, table) in self.tables.iter().enumerate() {
            table.walk(|tuple, flow| {
                let known = Known {
                    table: number,
                    generation: flow.generation,
                    packets: flow.packets,
                };
                self.known.insert(tuple, known);
            })?;
        }
        for (number, name) in names.into_iter().enumerate() {
            walk(
                &from.join(name),
                name,
                |tuple: L::Tuple<A>, flow: L::Flow<A>| {
                    self.take(number, &L::tuple(&tuple), &L::flow(&flow), done);
                },
            )?;
        }
        self.rings.iter().try_for_each(|ring| ring.store_hand(ours))
    }

    fn take(&mut self, table: usize, key: &Tuple<A>, flow: &Flow<A>, done: &mut Carried) {
        let known = match self.known.get(key) {
            None => {
                match self.tables[table].insert(key, flow) {
                    Ok(()) => {
                        self.seat(table, key, flow);
                        done.copied += 1;
                    }
                    // The programs were faster: it is another flow, and ours.
                    Err(NotInserted::Exists) => {}
                    Err(NotInserted::Full) => done.left_out += 1,
                }
                return;
            }
            Some(known) if known.generation != flow.generation => return,
            Some(known) => *known,
        };
        if table == FLOWS && known.table == EMBRYOS {
            // Confirmed since it was copied. It is never in neither table.
            match self.tables[FLOWS].insert(key, flow) {
                Ok(()) | Err(NotInserted::Exists) => {
                    self.tables[EMBRYOS].remove(key);
                    self.seat(FLOWS, key, flow);
                    done.renewed += 1;
                }
                Err(NotInserted::Full) => {}
            }
        } else if flow.packets > known.packets
            && self.tables[known.table].replace(key, flow).is_ok()
        {
            done.renewed += 1;
        }
    }

    fn seat(&mut self, table: usize, key: &Tuple<A>, flow: &Flow<A>) {
        if flow.flags & flow_flag::REPLY == 0 {
            self.rings[table].seat(key, flow);
        }
    }
}

/// The seats of a flow table: see `netd_common::room`. A flow without one lives on, but cannot make
/// room for another.
struct Ring<A>
where
    Seat<A>: Wire,
{
    map: Array<MapData, Pod<Seat<A>>>,
    /// [`flow_table`].
    table: usize,
    seats: u32,
    first: u32,
    next: u32,
}

impl<A: Copy> Ring<A>
where
    Tuple<A>: Wire,
    Seat<A>: Wire,
{
    fn open(
        directory: &Path,
        name: &'static str,
        table: usize,
        seats: [u32; flow_table::COUNT],
    ) -> Result<Self, DataplaneError> {
        let seats = seats[table].max(1);
        let hand = hands(directory)?
            .get(&(table as u32), 0)
            .map_err(|error| unreadable(map::HANDS, error))?;
        let first = (hand.0.next % u64::from(seats)) as u32;
        Ok(Self {
            map: pinned(directory, name, Array::try_from)?,
            table,
            seats,
            first,
            next: first,
        })
    }

    fn seat(&mut self, tuple: &Tuple<A>, flow: &Flow<A>) {
        for _ in 0..self.seats {
            let index = self.next;
            self.next = (self.next + 1) % self.seats;
            if self
                .map
                .get(&index, 0)
                .is_ok_and(|seat| seat.0.generation == 0)
            {
                let seat = Seat {
                    tuple: *tuple,
                    generation: flow.generation,
                    owner: flow.owner,
                };
                // Without a seat it lives on all the same.
                let _ = self.map.set(index, Pod(seat), 0);
                return;
            }
        }
    }

    /// New flows look for a seat behind those that were given away.
    fn store_hand(&self, directory: &Path) -> Result<(), DataplaneError> {
        if self.next == self.first {
            return Ok(());
        }
        let hand = Hand {
            next: self.next.into(),
            ..Hand::default()
        };
        hands(directory)?
            .set(self.table as u32, Pod(hand), 0)
            .map_err(|error| DataplaneError::Map {
                map: map::HANDS,
                row: "where to look for a seat".to_owned(),
                source: cause(error),
            })
    }
}

fn hands(directory: &Path) -> Result<Array<MapData, Pod<Hand>>, DataplaneError> {
    pinned(directory, map::HANDS, |map| -> Result<_, MapError> {
        Array::try_from(map)
    })
}
