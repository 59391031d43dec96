//! Starting where a netd of an earlier ABI is in force: see [`crate::dataplane::migrate`].

use std::time::Instant;

use anyhow::Context as _;

use super::engine::Engine;
use crate::dataplane::migrate::Previous;
use crate::dataplane::{AttachMode, LoadOptions};
use crate::plan::Step;

/// Before the new maps are made.
pub(super) fn prepare(previous: &Previous, load: &mut LoadOptions) {
    previous.widen(&mut load.sizes);
    // Filters at a clsact qdisc are not pinned: whose they are the directory does not say.
    if load.attach == AttachMode::Tcx {
        for failure in previous.begin_again(&load.pin_dir) {
            tracing::warn!("{failure}");
        }
    }
}

impl Engine {
    /// Copies everything that the new programs need, and puts them in the place of the old ones.
    ///
    /// # Errors
    /// Before the first program is replaced: the earlier version stays in force as it is.
    pub(super) fn adopt(&mut self, previous: &Previous) -> anyhow::Result<()> {
        let began = Instant::now();
        let stays = || {
            format!(
                "cannot carry over what is in force at {}, which stays so",
                previous.path().display()
            )
        };
        previous.hand_down(&mut self.kernel).with_context(stays)?;
        let carried = previous.carry(&mut self.kernel).with_context(stays)?;
        if carried.left_out > 0 {
            tracing::warn!(
                "{} entries of flows did not fit into the new tables: [limits] in the file makes \
                 them larger",
                carried.left_out
            );
        }
        let is_program =
            |step: &Step| matches!(step, Step::Attach(..) | Step::Replace(..) | Step::Detach(_));
        self.sync_but(is_program).with_context(stays)?;
        let (moved, failures) = previous.move_links(&mut self.kernel);
        for failure in failures {
            tracing::warn!("{failure}; another program is attached there");
        }
        tracing::info!(
            "{}: {} flow entries were carried over and {moved} programs replaced in their links \
             ({:.0} ms)",
            previous.path().display(),
            carried.copied,
            began.elapsed().as_secs_f64() * 1e3
        );
        self.catch_up(previous);
        Ok(())
    }

    /// After the first synchronisation: no program uses the old maps any more.
    pub(super) fn complete(&mut self, previous: &Previous) {
        self.catch_up(previous);
        for failure in previous.remove() {
            tracing::warn!("{failure}");
        }
        // Counts how many flows each container has.
        if let Err(error) = self.kernel.collect() {
            tracing::debug!("{error}");
        }
    }

    /// What the old programs did to their flows since they were copied.
    fn catch_up(&mut self, previous: &Previous) {
        match previous.carry(&mut self.kernel) {
            Ok(carried) => tracing::debug!(?carried, "carried over what happened meanwhile"),
            Err(error) => tracing::warn!("{error}: flows of the last moments may be lost"),
        }
    }
}
