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

struct Entry<A> {
    /// When it was inserted, for eviction.
    age: u64,
    flow: Box<UnsafeCell<Flow<A>>>,
}

/// A flow map with a capacity: full, it either refuses new entries or evicts its oldest.
///
/// The kernel's LRU evicts something that was not used lately; which, it does not promise.
pub struct FlowTable<A> {
    entries: RefCell<HashMap<Tuple<A>, Entry<A>>>,
    by_age: RefCell<BTreeMap<u64, Tuple<A>>>,
    ages: Cell<u64>,
    capacity: Cell<usize>,
    evicts: bool,
    /// Removed while a packet may still hold their slots: the kernel keeps them mapped too.
    removed: RefCell<Vec<Box<UnsafeCell<Flow<A>>>>>,
}

impl<A: Copy + Eq + Hash + Ord> FlowTable<A> {
    /// A map that refuses entries beyond `capacity`.
    #[must_use]
    pub fn refusing(capacity: usize) -> Self {
        Self::new(capacity, false)
    }

    /// A map that evicts its oldest entry when another is inserted beyond `capacity`.
    #[must_use]
    pub fn evicting(capacity: usize) -> Self {
        Self::new(capacity, true)
    }

    fn new(capacity: usize, evicts: bool) -> Self {
        Self {
            entries: RefCell::default(),
            by_age: RefCell::default(),
            ages: Cell::new(0),
            capacity: Cell::new(capacity),
            evicts,
            removed: RefCell::default(),
        }
    }

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

    fn slot_of(entries: &HashMap<Tuple<A>, Entry<A>>, key: &Tuple<A>) -> Option<Slot<A>> {
        let pointer = NonNull::new(entries.get(key)?.flow.get())?;
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
        while self.len() >= self.capacity.get() {
            let oldest = self.by_age.borrow().values().next().copied();
            match oldest {
                Some(oldest) if self.evicts => self.remove(&oldest),
                _ => return Err(InsertError::Full),
            }
        }
        let age = self.ages.get();
        self.ages.set(age + 1);
        self.by_age.borrow_mut().insert(age, *key);
        let flow = Box::new(UnsafeCell::new(*flow));
        self.entries.borrow_mut().insert(*key, Entry { age, flow });
        Ok(())
    }

    /// Removes an entry, if it is there.
    pub fn remove(&self, key: &Tuple<A>) {
        if let Some(entry) = self.entries.borrow_mut().remove(key) {
            self.by_age.borrow_mut().remove(&entry.age);
            self.removed.borrow_mut().push(entry.flow);
        }
    }

    /// Removes all entries.
    pub fn clear(&mut self) {
        self.entries.get_mut().clear();
        self.by_age.get_mut().clear();
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
