//! Dropped packets as they come, from the ring buffer that the programs write samples to.
//!
//! A ring buffer has one read position for all readers: two would take each other's events. The
//! first takes a lock; [`Events::open`] tells the second, which can poll [`super::drops::sums`].

use std::{
    fs::{File, TryLockError},
    io,
    os::fd::AsFd as _,
};

use aya::maps::{Map, MapData, RingBuf};
use jiff::Timestamp;
use netd_common::abi::{DropEvent, hook, map};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::Serialize;

use super::{
    State, StateError,
    drops::{PacketView, container, direction, packet_view, reason_name},
    network::{ContainerRef, NetworkRef, Topology},
    sys,
};

/// A dropped packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DropEventView {
    /// When.
    pub seen: Timestamp,
    /// Why.
    pub reason: String,
    /// Hook that dropped.
    pub hook: &'static str,
    /// Which way the packet went, seen from the containers.
    pub direction: &'static str,
    /// Interface of the hook.
    pub interface: Option<String>,
    /// The container, by the hook's interface or else by the packet's addresses.
    pub container: Option<ContainerRef>,
    /// Network, where one is known.
    pub network: Option<NetworkRef>,
    /// Bytes of the packet.
    pub length: u32,
    /// Its addresses; `None` where no IP header was read.
    pub packet: Option<PacketView>,
}

/// The ring buffer, with this process as its reader.
pub struct Events {
    ring: RingBuf<MapData>,
    _lock: File,
}

impl Events {
    /// Becomes the reader, and discards what was dropped before; `None` where another process is
    /// it.
    ///
    /// The lock is on the directory of the maps itself: it holds for this pin directory, whatever
    /// path leads there, and leaves no file behind.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(state: &State) -> Result<Option<Self>, StateError> {
        let failed = |source| state.unreadable(map::DROP_EVENTS, source);
        let lock = File::open(state.maps()).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let mut ring = Map::from_map_data(state.map(map::DROP_EVENTS)?)
            .and_then(RingBuf::try_from)
            .map_err(|error| failed(io::Error::other(error)))?;
        while ring.next().is_some() {}
        Ok(Some(Self { ring, _lock: lock }))
    }

    /// Waits for the next event; `None` where none came within `timeout`.
    ///
    /// # Errors
    /// Where the ring buffer cannot be waited for.
    pub fn next(&mut self, timeout: PollTimeout) -> io::Result<Option<DropEvent>> {
        if let Some(event) = self.take() {
            return Ok(Some(event));
        }
        match poll(
            &mut [PollFd::new(self.ring.as_fd(), PollFlags::POLLIN)],
            timeout,
        ) {
            Ok(_) | Err(Errno::EINTR) => Ok(self.take()),
            Err(error) => Err(error.into()),
        }
    }

    fn take(&mut self) -> Option<DropEvent> {
        while let Some(item) = self.ring.next() {
            // A shorter sample is not of this ABI.
            if let Some(bytes) = item.get(..size_of::<DropEvent>()) {
                return Some(sys::read(bytes));
            }
        }
        None
    }
}

/// An event for people.
pub fn view(state: &State, topology: &Topology, event: &DropEvent) -> DropEventView {
    let key = &event.key;
    let packet = packet_view(&event.tuple);
    let addresses = packet.as_ref().map(|p| [p.tuple.src, p.tuple.dst]);
    DropEventView {
        seen: state.clock().time_of_event(event.seen),
        reason: reason_name(key.reason),
        hook: hook::name(key.hook),
        direction: direction(key.hook),
        interface: state.interface(key.ifindex).map(str::to_owned),
        container: container(topology, key.ifindex, addresses),
        network: topology.network_ref(key.network),
        length: event.length,
        packet,
    }
}
