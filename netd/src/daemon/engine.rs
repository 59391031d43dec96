//! One synchronisation: read the host, decide, compare, apply.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;
use thiserror::Error;

use crate::apply::{self, Failure};
use crate::config::Config;
use crate::dataplane::{
    Actual, AttachMode, Dataplane as _, DataplaneError, Kernel, Tables, detach_clsact,
};
use crate::desired::{self, Ids, TooManyNetworks};
use crate::host::{
    EngineSockets, HostError, HostFacts, HostReader, LinkKind, ListenerProtocol, SysctlChange,
};
use crate::plan::{self, Step};
use crate::run_state::{Alarm, RunState};
use crate::teardown;

use super::kernel_nat::Takeover;

/// The daemon's state between two synchronisations.
pub(super) struct Engine {
    pub(super) config: Config,
    pub(super) kernel: Kernel,
    pub(super) state: RunState,
    pub(super) state_path: PathBuf,
    reader: HostReader,
    engine_sockets: EngineSockets,
    /// What they were when they could be listed last.
    engine_ports: BTreeSet<(ListenerProtocol, u16)>,
    /// The host's sockets have been held against what is in force.
    sockets_checked: bool,
    /// What the maps hold, while only this daemon has written to them.
    tables: Option<Tables>,
    /// Something was changed without flows being told.
    bump_owed: bool,
    /// Flows of the kernel's NAT.
    pub(super) kernel_nat: Takeover,
}

/// What one synchronisation did.
#[derive(Debug, Default)]
pub(super) struct Synced {
    /// The steps, all of them done.
    pub(super) steps: Vec<Step>,
    /// Nothing is left to be looked at again soon.
    pub(super) settled: bool,
    /// Managed bridges, for the watch.
    pub(super) bridges: BTreeSet<u32>,
}

/// Why a synchronisation ended early. What was done until then is sound, and the next one goes on
/// from there.
#[derive(Debug, Error)]
pub(super) enum SyncError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Networks(#[from] TooManyNetworks),
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    #[error("cannot {0}")]
    Step(#[from] Failure),
}

impl Engine {
    pub(super) fn new(
        config: Config,
        kernel: Kernel,
        state: RunState,
        state_path: PathBuf,
    ) -> Result<Self, HostError> {
        Ok(Self {
            config,
            kernel,
            state,
            state_path,
            reader: HostReader::open()?,
            engine_sockets: EngineSockets::default(),
            engine_ports: BTreeSet::new(),
            sockets_checked: false,
            tables: None,
            // What an earlier daemon did not live to do.
            bump_owed: true,
            kernel_nat: Takeover::default(),
        })
    }

    /// Brings the data plane into agreement with the configuration and the host.
    pub(super) fn sync(&mut self) -> Result<Synced, SyncError> {
        self.sync_but(|_| false)
    }

    /// [`Self::sync`], but for these steps.
    pub(super) fn sync_but(
        &mut self,
        left_out: impl Fn(&Step) -> bool,
    ) -> Result<Synced, SyncError> {
        let config = &self.config;
        let mut facts = self.reader.read(|link| desired::is_managed(config, link))?;
        match engine_ports(&mut self.engine_sockets, config) {
            Ok(ports) => self.engine_ports = ports,
            // What was known is nearer to the truth than nothing.
            Err(error) => tracing::debug!("{error}"),
        }
        facts.engine_ports.clone_from(&self.engine_ports);
        let mut actual = read_actual(&self.kernel, self.tables.take(), &facts)?;
        let mut ids = self.state.networks.clone();
        recover_ids(&mut ids, config, &facts, &actual.tables);
        let ids = ids.assign(config.networks.iter().map(|network| network.name.as_str()))?;
        let wanted = desired::desired(config, &facts, &ids);
        let sysctls = desired::current_sysctls(config, &facts);
        let mut steps = plan::diff(&wanted, &actual, &sysctls);
        let all = steps.len();
        steps.retain(|step| !left_out(step));
        let complete = steps.len() == all;

        let mut changed = self.state.networks != ids || self.state.warnings != wanted.warnings;
        self.state.networks = ids;
        for warning in &wanted.warnings {
            if !self.state.warnings.contains(warning) {
                tracing::warn!("{warning}");
            }
        }
        self.state.warnings.clone_from(&wanted.warnings);
        // What will have to be undone is noted before it is done.
        changed |= note_sysctls(&steps, &mut self.state.sysctls);
        if let Some(ports) = wanted.reserved
            && steps.iter().any(is_reservation)
            && self.state.reserved_ports != Some(ports)
        {
            self.state.reserved_ports = Some(ports);
            changed = true;
        }
        if changed {
            self.save();
        }

        let taking_over = self.kernel_nat.is_due(&actual.config, &wanted.config);
        if taking_over {
            self.prepare_takeover();
        }
        let qdiscs = self.kernel.qdiscs().len();
        let done = apply::apply(&steps, &mut self.kernel);
        if self.kernel.qdiscs().len() != qdiscs {
            self.state.qdiscs.clone_from(self.kernel.qdiscs());
            self.save();
        }
        match done {
            Ok(_) => {
                if steps.contains(&Step::BumpEpoch) {
                    self.bump_owed = false;
                }
            }
            Err(failure) => {
                self.tables = None;
                self.bump_owed = true;
                self.end_host_sockets(&steps, &wanted.tables);
                return Err(failure.into());
            }
        }
        if self.bump_owed {
            self.kernel.bump_epoch()?;
            self.bump_owed = false;
        }
        if taking_over {
            // What began while the first list was read and the programs were attached.
            self.take_over();
            self.kernel_nat.done();
        }
        let config = &self.config;
        let bridges = facts
            .links
            .iter()
            .filter(|link| link.kind == LinkKind::Bridge && desired::is_managed(config, link))
            .map(|link| link.ifindex)
            .collect();
        self.end_host_sockets(&steps, &wanted.tables);
        if complete && (!steps.is_empty() || self.state.synced_at.is_none()) {
            self.kernel.synchronised()?;
            self.state.synced_at = Some(Timestamp::now());
            self.save();
        }
        actual.tables = wanted.tables;
        self.tables = Some(actual.tables);
        let settled = self.sockets_checked;
        Ok(Synced {
            steps,
            bridges,
            settled,
        })
    }

    /// Ends the host's sockets whose container or publish went: with these steps, or while there
    /// was no daemon. Until one is ended, its packets are dropped before they reach another
    /// container.
    fn end_host_sockets(&mut self, steps: &[Step], tables: &Tables) {
        if self.sockets_checked && !steps.iter().any(is_row) {
            return;
        }
        match self.kernel.end_host_sockets(tables) {
            Ok(ended) => {
                self.sockets_checked = ended.unsettled == 0;
                if ended.sockets > 0 {
                    tracing::info!(
                        "ended {} sockets of the host whose container or publish is gone",
                        ended.sockets
                    );
                }
            }
            Err(error) => {
                self.sockets_checked = false;
                tracing::warn!(
                    "sockets of the host to containers that are gone stay open: {error}"
                );
            }
        }
    }

    /// Detaches what an earlier daemon attached in the way that this one does not use: packets
    /// would be decided twice.
    pub(super) fn detach_other(&mut self, attach: AttachMode, pin_dir: &Path) {
        let failures = match attach {
            AttachMode::Tcx => match self.reader.read(|_| false) {
                Ok(facts) => {
                    let failures = detach_clsact(&facts, &self.state.qdiscs);
                    self.state.qdiscs.clear();
                    failures.iter().map(ToString::to_string).collect()
                }
                Err(error) => vec![error.to_string()],
            },
            AttachMode::Clsact => teardown::detach_links(pin_dir),
        };
        for failure in failures {
            tracing::warn!("{failure}");
        }
        self.save();
    }

    /// Sets or clears the alarm; the state file says so at once.
    pub(super) fn alarm(&mut self, message: Option<String>) {
        let now = self.state.alarm.as_ref().map(|alarm| &alarm.message);
        if now == message.as_ref() {
            return;
        }
        self.state.alarm = message.map(|message| Alarm {
            since: Timestamp::now(),
            message,
        });
        self.save();
    }

    pub(super) fn save(&self) {
        // Only readers miss it: the data plane does not depend on it.
        if let Err(error) = self.state.save(&self.state_path) {
            tracing::warn!("{error}");
        }
    }
}

/// What is in force; `tables` is what the maps hold, when that is known.
fn read_actual(
    kernel: &Kernel,
    tables: Option<Tables>,
    facts: &HostFacts,
) -> Result<Actual, DataplaneError> {
    match tables {
        Some(tables) => Ok(Actual {
            tables,
            ..kernel.read_without_tables(facts)?
        }),
        None => kernel.read(facts),
    }
}

fn is_row(step: &Step) -> bool {
    matches!(step, Step::Add(_) | Step::Change(_) | Step::Remove(_))
}

fn is_reservation(step: &Step) -> bool {
    matches!(step, Step::Sysctl { name, .. } if name == desired::RESERVED_PORTS)
}

/// Published ports that only the Engine's own sockets hold.
///
/// # Errors
/// When the sockets cannot be listed.
pub fn engine_ports(
    sockets: &mut EngineSockets,
    config: &Config,
) -> Result<BTreeSet<(ListenerProtocol, u16)>, HostError> {
    let published = |protocol, port| {
        config.publishes.iter().any(|publish| {
            desired::listener_protocol(publish.protocol) == protocol
                && (publish.host_ports.first()..=publish.host_ports.last()).contains(&port)
        })
    };
    sockets.ports(published)
}

/// Notes the first value that each setting had. True if there was something to note.
fn note_sysctls(steps: &[Step], noted: &mut BTreeMap<String, SysctlChange>) -> bool {
    let mut changed = false;
    for step in steps.iter().filter(|step| !is_reservation(step)) {
        let Step::Sysctl {
            name,
            from: Some(from),
            to,
        } = step
        else {
            continue;
        };
        noted.entry(name.clone()).or_insert_with(|| {
            changed = true;
            SysctlChange {
                name: name.clone(),
                previous: from.clone(),
                written: to.clone(),
            }
        });
    }
    changed
}

/// Without a state file, the maps still tell which bridge had which id.
pub fn recover_ids(ids: &mut Ids, config: &Config, facts: &HostFacts, tables: &Tables) {
    for network in &config.networks {
        let Some(bridge) = facts.link_named(network.bridge.as_str()) else {
            continue;
        };
        for (id, row) in &tables.networks {
            if row.bridge == bridge.ifindex
                && let Ok(id) = u16::try_from(*id)
            {
                ids.adopt(&network.name, id);
            }
        }
    }
}

/// One line for people: the steps themselves when they are few, else how many of each kind.
pub(super) fn summary(steps: &[Step], began: Instant) -> String {
    let told: Vec<&Step> = steps
        .iter()
        .filter(|step| !matches!(step, Step::BumpEpoch))
        .collect();
    let mut text = if told.len() <= 3 {
        let each: Vec<String> = told
            .iter()
            .map(|step| format!("{} {}", step.action(), step.subject()))
            .collect();
        each.join("; ")
    } else {
        let mut kinds: Vec<(&str, usize)> = Vec::new();
        for step in told {
            match kinds.iter_mut().find(|(kind, _)| *kind == step.action()) {
                Some((_, count)) => *count += 1,
                None => kinds.push((step.action(), 1)),
            }
        }
        let each: Vec<String> = kinds
            .iter()
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect();
        each.join(", ")
    };
    text.push_str(&format!(" ({:.1} ms)", began.elapsed().as_secs_f64() * 1e3));
    text
}
