//! Taking over from the kernel's NAT: the flows that it owns when netd comes, or when netd's mode
//! changes, stay its own to their end.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use netd_common::abi::{self, config_flag};

use super::engine::Engine;
use crate::config::Config;
use crate::dataplane::{DataplaneError, TakenOver};
use crate::host::{self, ConntrackFlow, HostError, read_conntrack};
use crate::run_state::KernelNat;

/// The kernel's own list is read again so often: it knows best which flows are over, but a list of
/// hundreds of thousands takes a while.
const LIST_AFTER: Duration = Duration::from_secs(60);

/// One in so many: a list that finds no more new flows has hardly missed any.
const FEW: usize = 50;
/// How often it is tried.
const PREPARATIONS: u32 = 3;

/// Where a takeover stands.
#[derive(Debug, Default)]
pub(super) struct Takeover {
    /// When it began (CLOCK_MONOTONIC seconds), while it is under way.
    since: Option<u32>,
    /// When the kernel's list was last read to see what is over.
    listed: Option<Instant>,
}

impl Takeover {
    /// Are there flows of the kernel's to ask about? When netd was never in force with these maps,
    /// and when its mode changes: what it passed until now, it takes from now on. Also while an
    /// earlier attempt is not complete.
    pub(super) fn is_due(&self, actual: &abi::Config, wanted: &abi::Config) -> bool {
        let other_mode = (actual.flags ^ wanted.flags) & config_flag::ACCELERATE != 0;
        self.since.is_some() || actual.synced_at == 0 || other_mode
    }

    /// It is complete.
    pub(super) fn done(&mut self) {
        self.since = None;
    }
}

impl Engine {
    /// Before programs are attached: as often as it takes for a list to be short of little. Writing
    /// down hundreds of thousands of flows takes a while, in which others begin.
    pub(super) fn prepare_takeover(&mut self) {
        for _ in 0..PREPARATIONS {
            let taken = self.take_over();
            if taken.added <= taken.flows / FEW {
                break;
            }
        }
    }

    /// Reads the kernel's list and leaves its flows to it. What goes wrong is told and no reason to
    /// stop: netd is in force for everything else.
    pub(super) fn take_over(&mut self) -> TakenOver {
        let now = (host::monotonic_nanoseconds() / 1_000_000_000) as u32;
        let since = *self.kernel_nat.since.get_or_insert(now);
        let began = Instant::now();
        let flows = match managed_flows(&self.config) {
            Ok(flows) => flows,
            Err(error) => {
                tracing::warn!(
                    "{error}: connections that the kernel's NAT carries now may break; \
                     is nf_conntrack_netlink there?"
                );
                return TakenOver::default();
            }
        };
        match self.kernel.leave_to_kernel(&flows, since) {
            Ok(taken) => {
                self.tell(taken, began);
                taken
            }
            Err(error) => {
                tracing::warn!("{error}: connections that the kernel's NAT carries now may break");
                TakenOver::default()
            }
        }
    }

    /// Takes no new flow from now on.
    pub(super) fn drain(&mut self) -> Result<(), DataplaneError> {
        self.kernel.set_draining(true)
    }

    /// Takes new flows again, if it did not. Those that began meanwhile are the kernel's.
    pub(super) fn end_draining(&mut self) -> Result<(), DataplaneError> {
        if !self.kernel.is_draining()? {
            return Ok(());
        }
        self.take_over();
        self.kernel.set_draining(false)?;
        self.take_over();
        self.kernel_nat.done();
        Ok(())
    }

    fn tell(&mut self, taken: TakenOver, began: Instant) {
        if taken.added > 0 {
            tracing::info!(
                "{} flows of the kernel's NAT stay with it, {} of them new here ({:.0} ms)",
                taken.flows,
                taken.added,
                began.elapsed().as_secs_f64() * 1e3
            );
        }
        if taken.left_out > 0 {
            tracing::warn!(
                "{} flows of the kernel's NAT did not fit into the map and may break: its size is \
                 a matter of the host's memory",
                taken.left_out
            );
        }
        self.state.kernel_nat = KernelNat {
            flows: taken.flows,
            left_out: taken.left_out,
        };
    }

    /// Forgets flows of the kernel's that are over.
    pub(super) fn collect_kernel_flows(&mut self) {
        let now = Instant::now();
        let listed = *self.kernel_nat.listed.get_or_insert(now);
        let list = now.duration_since(listed) >= LIST_AFTER;
        if list {
            self.kernel_nat.listed = Some(now);
        }
        let collected = match self.kernel.collect_kernel_flows(None) {
            Ok(left) if left.entries > 0 && list => match managed_flows(&self.config) {
                Ok(known) => self.kernel.collect_kernel_flows(Some(&known)),
                // They expire by themselves.
                Err(_) => Ok(left),
            },
            collected => collected,
        };
        match collected {
            Ok(left) if left.removed > 0 => {
                tracing::debug!(?left, "flows of the kernel's are over")
            }
            Ok(_) => {}
            Err(error) => tracing::debug!("{error}"),
        }
    }
}

/// The kernel's flows that have an address of a managed network, and that it translates. What it
/// only forwards netd can carry on with by itself, and judges as it judges every other packet: an
/// open host's connections between networks must not outlive its openness.
fn managed_flows(config: &Config) -> Result<Vec<ConntrackFlow>, HostError> {
    let subnets = config.networks.iter().flat_map(|n| &n.subnets);
    let subnets: Vec<_> = subnets.collect();
    let is_managed = |address: &IpAddr| subnets.iter().any(|subnet| subnet.contains(address));
    let mut flows = read_conntrack(is_managed)?;
    flows.retain(ConntrackFlow::is_translated);
    Ok(flows)
}
