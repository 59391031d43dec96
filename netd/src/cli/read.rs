//! Opening the pinned data plane for a verb that reads.

use std::{collections::BTreeMap, path::Path, process::ExitCode};

use super::Exit;
use crate::{
    desired::MAX_NETWORKS,
    run_state::{RunFiles, RunState},
    state::{State, StateError},
};

/// The pinned data plane, with the names that the daemon last gave to networks. A failure has been
/// printed; its exit code is returned.
pub(super) fn open(pin_dir: &Path) -> Result<State, ExitCode> {
    let names = RunState::load(&RunFiles::of(pin_dir).state)
        .map(|run| network_names(&run))
        .unwrap_or_default();
    State::open(pin_dir)
        .map(|state| state.with_network_names(names))
        .map_err(cannot_read)
}

/// Prints why the state cannot be read.
pub(super) fn cannot_read(error: StateError) -> ExitCode {
    eprintln!("error: {error}");
    Exit::CannotRun.into()
}

/// Prints what is wrong with the arguments.
pub(super) fn refuse(error: impl std::fmt::Display) -> ExitCode {
    eprintln!("error: {error}");
    Exit::BadInput.into()
}

fn network_names(run: &RunState) -> BTreeMap<u16, String> {
    (1..MAX_NETWORKS)
        .filter_map(|id| Some((id, run.networks.name(id)?.to_owned())))
        .collect()
}
