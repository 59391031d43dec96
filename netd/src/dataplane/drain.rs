//! Draining: no new flow is taken, and those that there are come to their end.

use netd_common::abi::{Flow, Tuple, config_flag, flow_flag};
use netd_common::conntrack::State;
use netd_common::wire::Wire;

use super::DataplaneError;
use super::kernel::{Kernel, Pinned};
use super::maps::FlowTable;
use crate::collect::{is_expired, partner};
use crate::host;

impl Pinned {
    /// Switches draining on or off: while it is on, no new flow is taken.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn set_draining(&mut self, on: bool) -> Result<(), DataplaneError> {
        self.set_passing(config_flag::DRAIN, on)
    }

    /// Is netd drained?
    ///
    /// # Errors
    /// When the configuration cannot be read.
    pub fn is_draining(&self) -> Result<bool, DataplaneError> {
        Ok(self.maps.config.read()?.flags & config_flag::DRAIN != 0)
    }

    /// How many flows would be cut if netd went now. Connections that are closed, and flows that
    /// were idle for longer than their state allows, are none.
    ///
    /// # Errors
    /// When a map cannot be walked.
    pub fn live_flows(&self) -> Result<usize, DataplaneError> {
        let maps = &self.maps;
        Ok(live(&maps.flows_v4)?
            + live(&maps.embryos_v4)?
            + live(&maps.flows_v6)?
            + live(&maps.embryos_v6)?)
    }
}

impl Kernel {
    /// See [`Pinned::set_draining`].
    ///
    /// # Errors
    /// As there.
    pub fn set_draining(&mut self, on: bool) -> Result<(), DataplaneError> {
        self.pinned.set_draining(on)
    }

    /// See [`Pinned::is_draining`].
    ///
    /// # Errors
    /// As there.
    pub fn is_draining(&self) -> Result<bool, DataplaneError> {
        self.pinned.is_draining()
    }
}

fn live<A: Copy>(table: &FlowTable<A>) -> Result<usize, DataplaneError>
where
    Tuple<A>: Wire,
    Flow<A>: Wire,
{
    let now = (host::monotonic_nanoseconds() / 1_000_000_000) as u32;
    let mut live = 0;
    table.walk(|tuple, flow| {
        let closed = matches!(
            State::from_number(flow.state),
            Some(State::TimeWait | State::Reset)
        );
        if flow.flags & flow_flag::REPLY != 0 || closed {
            return;
        }
        // The other half is asked for only where it matters.
        let expired = is_expired(now, &flow, None)
            && is_expired(now, &flow, table.get(&partner(&tuple, &flow)).as_ref());
        live += usize::from(!expired);
    })?;
    Ok(live)
}
