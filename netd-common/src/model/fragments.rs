//! `FRAGMENTS_*` in memory: a table in which the row that was not used for longest makes room.

use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::{BTreeMap, HashMap},
    hash::Hash,
};

use crate::abi::{FragmentKey, Fragments};

struct Row<A> {
    value: Box<UnsafeCell<Fragments<A>>>,
    used: u64,
}

/// Packets that come in fragments.
pub struct FragmentTable<A> {
    rows: RefCell<HashMap<FragmentKey<A>, Row<A>>>,
    capacity: Cell<usize>,
    clock: Cell<u64>,
    /// Removed while a packet may still hold them.
    removed: RefCell<Vec<Row<A>>>,
}

impl<A> Default for FragmentTable<A> {
    fn default() -> Self {
        Self {
            rows: RefCell::default(),
            capacity: Cell::new(1 << 13),
            clock: Cell::new(0),
            removed: RefCell::default(),
        }
    }
}

impl<A: Copy + Eq + Hash + Ord> FragmentTable<A> {
    /// Changes the capacity; rows beyond it stay.
    pub fn set_capacity(&self, capacity: usize) {
        self.capacity.set(capacity);
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.borrow().len()
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies of all rows, by key.
    #[must_use]
    pub fn rows(&self) -> BTreeMap<FragmentKey<A>, Fragments<A>> {
        let rows = self.rows.borrow();
        rows.iter()
            // SAFETY: no packet is under way while a test looks.
            .map(|(key, row)| (*key, unsafe { *row.value.get() }))
            .collect()
    }

    /// A row in place; it counts as used.
    pub(super) fn at(&self, key: &FragmentKey<A>) -> Option<*mut Fragments<A>> {
        let mut rows = self.rows.borrow_mut();
        let row = rows.get_mut(key)?;
        row.used = self.tick();
        Some(row.value.get())
    }

    /// Writes a row; the one that was not used for longest makes room for a new one.
    pub fn put(&self, key: &FragmentKey<A>, value: &Fragments<A>) {
        let mut rows = self.rows.borrow_mut();
        if !rows.contains_key(key) && rows.len() >= self.capacity.get() {
            let oldest = rows.iter().min_by_key(|(_, row)| row.used);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.removed.borrow_mut().extend(rows.remove(&oldest));
            }
        }
        let row = Row {
            value: Box::new(UnsafeCell::new(*value)),
            used: self.tick(),
        };
        self.removed.borrow_mut().extend(rows.insert(*key, row));
    }

    /// Removes a row, if it is there.
    pub fn remove(&self, key: &FragmentKey<A>) {
        let removed = self.rows.borrow_mut().remove(key);
        self.removed.borrow_mut().extend(removed);
    }

    /// Frees what was removed: no packet is under way.
    pub(super) fn bury(&self) {
        self.removed.borrow_mut().clear();
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }
}
