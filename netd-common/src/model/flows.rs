//! A flow map in memory.

use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::{BTreeMap, HashMap},
    hash::Hash,
    ptr::NonNull,
};

use crate::{
    abi::{Flow, KernelFlow, Tuple},
    tables::{InsertError, KernelSlot, Slot},
};

type Entries<A> = HashMap<Tuple<A>, Box<UnsafeCell<Flow<A>>>>;

/// A flow map with a capacity.
pub struct FlowTable<A> {
    entries: RefCell<Entries<A>>,
    capacity: Cell<usize>,
    /// Removed while a packet may still hold their slots: the kernel keeps them mapped too.
    removed: RefCell<Vec<Box<UnsafeCell<Flow<A>>>>>,
}

impl<A> Default for FlowTable<A> {
    fn default() -> Self {
        Self {
            entries: RefCell::default(),
            capacity: Cell::new(1 << 16),
            removed: RefCell::default(),
        }
    }
}

impl<A: Copy + Eq + Hash + Ord> FlowTable<A> {
    /// Changes the capacity; entries beyond it stay.
    pub fn set_capacity(&self, capacity: usize) {
        self.capacity.set(capacity);
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of an entry.
    #[must_use]
    pub fn get(&self, key: &Tuple<A>) -> Option<Flow<A>> {
        self.slot(key).map(|slot| slot.load())
    }

    /// Copies of all entries, by key.
    #[must_use]
    pub fn rows(&self) -> BTreeMap<Tuple<A>, Flow<A>> {
        let entries = self.entries.borrow();
        entries
            .keys()
            .filter_map(|key| Some((*key, Self::slot_of(&entries, key)?.load())))
            .collect()
    }

    /// An entry in place.
    #[must_use]
    pub fn slot(&self, key: &Tuple<A>) -> Option<Slot<A>> {
        Self::slot_of(&self.entries.borrow(), key)
    }

    fn slot_of(entries: &Entries<A>, key: &Tuple<A>) -> Option<Slot<A>> {
        let pointer = NonNull::new(entries.get(key)?.get())?;
        // SAFETY: a box does not move, and `removed` keeps it until the next packet.
        Some(unsafe { Slot::new(pointer) })
    }

    /// Inserts what is not there.
    ///
    /// # Errors
    /// See [`InsertError`].
    pub fn insert(&self, key: &Tuple<A>, flow: &Flow<A>) -> Result<(), InsertError> {
        if self.entries.borrow().contains_key(key) {
            return Err(InsertError::Exists);
        }
        if self.len() >= self.capacity.get() {
            return Err(InsertError::Full);
        }
        let flow = Box::new(UnsafeCell::new(*flow));
        self.entries.borrow_mut().insert(*key, flow);
        Ok(())
    }

    /// Removes an entry; was it there?
    pub fn remove(&self, key: &Tuple<A>) -> bool {
        let removed = self.entries.borrow_mut().remove(key);
        let found = removed.is_some();
        self.removed.borrow_mut().extend(removed);
        found
    }

    /// Removes all entries.
    pub fn clear(&mut self) {
        self.entries.get_mut().clear();
        self.bury();
    }

    /// Frees what was removed: no packet is under way.
    pub(super) fn bury(&self) {
        self.removed.borrow_mut().clear();
    }
}

/// A map of the kernel's flows in memory; a test fills it.
pub struct KernelFlowTable<A> {
    entries: HashMap<Tuple<A>, Box<UnsafeCell<KernelFlow<A>>>>,
}

impl<A> Default for KernelFlowTable<A> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
        }
    }
}

impl<A: Copy + Eq + Hash> KernelFlowTable<A> {
    /// Adds a flow of the kernel's: its tuples as its packets arrive, one per direction.
    pub fn insert(&mut self, original: Tuple<A>, reply: Tuple<A>, last_seen: u32, lifetime: u32) {
        for (key, other) in [(original, reply), (reply, original)] {
            let flow = KernelFlow {
                last_seen,
                lifetime,
                flags: 0,
                other,
            };
            self.entries.insert(key, Box::new(UnsafeCell::new(flow)));
        }
    }

    /// Removes an entry, if it is there.
    pub fn remove(&mut self, key: &Tuple<A>) {
        self.entries.remove(key);
    }

    /// An entry in place.
    #[must_use]
    pub fn slot(&self, key: &Tuple<A>) -> Option<KernelSlot<A>> {
        let pointer = NonNull::new(self.entries.get(key)?.get())?;
        // SAFETY: a box does not move, and no packet is under way when an entry is removed.
        Some(unsafe { KernelSlot::new(pointer) })
    }
}
