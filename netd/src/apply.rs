//! Carries out a plan.

use crate::dataplane::{Dataplane, DataplaneError};
use crate::plan::Step;

/// A step that failed, and why.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {error}")]
pub struct Failure {
    /// What was to be done, for people.
    pub step: String,
    /// Why it was not.
    #[source]
    pub error: DataplaneError,
}

/// Carries out the steps in order and stops at the first that fails: every state in between is
/// sound, so the next plan goes on from there. Flows are told of what was changed until then.
/// Returns how many steps were done.
pub fn apply(steps: &[Step], to: &mut impl Dataplane) -> Result<usize, Failure> {
    for (done, step) in steps.iter().enumerate() {
        if let Err(error) = one(step, to) {
            let for_flows = |step: &&Step| matches!(step, Step::EndFlows(_) | Step::BumpEpoch);
            for step in steps[done + 1..].iter().filter(for_flows) {
                // The first failure is the one to tell.
                let _ = one(step, to);
            }
            return Err(failure(step, error));
        }
    }
    Ok(steps.len())
}

/// Carries out the steps of a teardown: goes on after a failure and returns all of them.
pub fn apply_all(steps: &[Step], to: &mut impl Dataplane) -> Vec<Failure> {
    steps
        .iter()
        .filter_map(|step| one(step, to).err().map(|error| failure(step, error)))
        .collect()
}

fn failure(step: &Step, error: DataplaneError) -> Failure {
    Failure {
        step: format!("{} {}", step.action(), step.subject()),
        error,
    }
}

fn one(step: &Step, to: &mut impl Dataplane) -> Result<(), DataplaneError> {
    match step {
        Step::Configure(config) => to.configure(config),
        Step::Add(row) | Step::Change(row) => to.put(row),
        Step::Remove(key) => to.remove(key),
        Step::Attach(attachment, interface) | Step::Replace(attachment, interface) => {
            to.attach(*attachment, interface)
        }
        Step::Detach(attachment) => to.detach(*attachment),
        Step::Sysctl {
            name, to: value, ..
        } => to.set_sysctl(name, value),
        Step::EndFlows(filter) => to.end_flows(filter).map(drop),
        Step::BumpEpoch => to.bump_epoch(),
    }
}
