//! The flows that the kernel's NAT owned before netd came, in their maps.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use netd_common::abi::{Flow, KernelFlow, Tuple, V4Addr, V6Addr, config_flag, kernel_flow_flag};
use netd_common::conntrack::idle;
use netd_common::kernel_flow::lifetime;
use netd_common::wire::Wire;

use super::DataplaneError;
use super::kernel::{Kernel, Pinned};
use super::maps::{FlowTable, Maps, NotInserted};
use crate::collect::{FlowFilter, partner};
use crate::host::{self, Closing, ConntrackFlow, FlowEnds};

/// A flow that the kernel does not list may have begun or been renewed since the list was read.
const LISTED_LATE: u32 = 5;

/// What became of a list of the kernel's flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TakenOver {
    /// Left to the kernel, now or before.
    pub flows: usize,
    /// Of them, those that were not yet.
    pub added: usize,
    /// Netd's own already.
    pub own: usize,
    /// For which there was no room.
    pub left_out: usize,
}

/// What a look through the maps of the kernel's flows found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftToKernel {
    /// Entries that are still there, two for each flow.
    pub entries: usize,
    /// Entries that were removed.
    pub removed: usize,
}

impl Kernel {
    /// Leaves these flows to the kernel, but for those that netd owns. A flow that netd took at
    /// `since` (CLOCK_MONOTONIC seconds) or later is one of the kernel's too, whose packet came
    /// before the kernel's list was read: it is given back.
    ///
    /// # Errors
    /// When a map cannot be read, or the configuration not be written. That a map is full is told,
    /// not an error.
    pub fn leave_to_kernel(
        &mut self,
        flows: &[ConntrackFlow],
        since: u32,
    ) -> Result<TakenOver, DataplaneError> {
        let maps = &mut self.pinned.maps;
        let v4 = leave::<V4Addr>(
            flows,
            since,
            &mut maps.kernel_v4,
            [&mut maps.flows_v4, &mut maps.embryos_v4],
            |address| match address {
                IpAddr::V4(v4) => Some(v4.into()),
                IpAddr::V6(_) => None,
            },
        )?;
        let v6 = leave::<V6Addr>(
            flows,
            since,
            &mut maps.kernel_v6,
            [&mut maps.flows_v6, &mut maps.embryos_v6],
            |address| match address {
                IpAddr::V6(v6) => Some(v6.into()),
                IpAddr::V4(_) => None,
            },
        )?;
        let taken = TakenOver {
            flows: v4.flows + v6.flows,
            added: v4.added + v6.added,
            own: v4.own + v6.own,
            left_out: v4.left_out + v6.left_out,
        };
        if taken.flows > 0 {
            self.pinned.set_passing(config_flag::KERNEL_FLOWS, true)?;
        }
        Ok(taken)
    }

    /// Forgets the kernel's flows that were idle for their lifetime and, given the kernel's list,
    /// those that it has forgotten itself. When none is left, the programs stop asking.
    ///
    /// # Errors
    /// When a map cannot be walked, or the configuration not be written.
    pub fn collect_kernel_flows(
        &mut self,
        known: Option<&[ConntrackFlow]>,
    ) -> Result<LeftToKernel, DataplaneError> {
        let maps = &mut self.pinned.maps;
        if maps.config.read()?.flags & config_flag::KERNEL_FLOWS == 0 {
            return Ok(LeftToKernel::default());
        }
        let ends: Option<HashSet<(u8, FlowEnds)>> = known.map(|known| {
            let both = |flow: &ConntrackFlow| {
                [(flow.protocol, flow.original), (flow.protocol, flow.reply)]
            };
            known.iter().flat_map(both).collect()
        });
        let v4 = forget(&mut maps.kernel_v4, ends.as_ref())?;
        let v6 = forget(&mut maps.kernel_v6, ends.as_ref())?;
        let left = LeftToKernel {
            entries: v4.entries + v6.entries,
            removed: v4.removed + v6.removed,
        };
        if left.entries == 0 {
            self.pinned.set_passing(config_flag::KERNEL_FLOWS, false)?;
        }
        Ok(left)
    }
}

impl Pinned {
    /// Sets or clears a bit of [`config_flag::PASSING`].
    pub(super) fn set_passing(&mut self, bit: u32, on: bool) -> Result<(), DataplaneError> {
        self.maps.config.change(|config| {
            config.flags = if on {
                config.flags | bit
            } else {
                config.flags & !bit
            };
        })
    }
}

fn leave<A: Copy + Eq + std::hash::Hash>(
    flows: &[ConntrackFlow],
    since: u32,
    table: &mut FlowTable<A, KernelFlow<A>>,
    mut own: [&mut FlowTable<A>; 2],
    family: impl Fn(IpAddr) -> Option<A>,
) -> Result<TakenOver, DataplaneError>
where
    Tuple<A>: Wire,
    Flow<A>: Wire,
    KernelFlow<A>: Wire,
{
    // One walk of each, and not a few system calls for each of the kernel's flows. The second list
    // is little else than the first, and what is new in it must not wait.
    let mut known = HashSet::new();
    table.walk(|tuple, _| {
        known.insert(tuple);
    })?;
    let mut owned = HashMap::new();
    for table in &own {
        table.walk(|tuple, flow| {
            owned.insert(tuple, flow);
        })?;
    }
    let now = seconds_now();
    let mut done = TakenOver::default();
    for flow in flows {
        let key = |ends: &FlowEnds| {
            Some(Tuple {
                src: family(ends.src)?,
                dst: family(ends.dst)?,
                sport: ends.sport.to_be_bytes(),
                dport: ends.dport.to_be_bytes(),
                proto: flow.protocol,
                reserved: [0; 3],
            })
        };
        let (Some(original), Some(reply)) = (key(&flow.original), key(&flow.reply)) else {
            continue;
        };
        let taken = owned.get(&original);
        // Seconds count the difference modulo their range.
        if taken.is_some_and(|taken| (taken.created.wrapping_sub(since) as i32) < 0) {
            done.own += 1;
            continue;
        }
        if known.contains(&original) && known.contains(&reply) {
            done.flows += 1;
            continue;
        }
        match insert(table, flow, original, reply, now) {
            Ok(()) | Err(NotInserted::Exists) => {
                done.flows += 1;
                done.added += 1;
            }
            Err(NotInserted::Full) => {
                done.left_out += 1;
                continue;
            }
        }
        if let Some(taken) = taken {
            let other = partner(&original, taken);
            for table in &mut own {
                table.remove(&other);
                table.remove(&original);
            }
        }
    }
    Ok(done)
}

fn insert<A: Copy>(
    table: &mut FlowTable<A, KernelFlow<A>>,
    flow: &ConntrackFlow,
    original: Tuple<A>,
    reply: Tuple<A>,
    now: u32,
) -> Result<(), NotInserted>
where
    Tuple<A>: Wire,
    KernelFlow<A>: Wire,
{
    // The kernel counts down from the last packet; when that was, follows.
    let since = flow.lifetime.saturating_sub(flow.remaining);
    let entry = |other, flags| KernelFlow {
        last_seen: now.wrapping_sub(since),
        lifetime: flow.lifetime,
        flags,
        other,
    };
    let (ours, theirs) = match flow.closing {
        Closing::Open => (0, 0),
        // Whose FIN it was, the kernel does not say.
        Closing::Half => (kernel_flow_flag::FIN, 0),
        Closing::Whole => (kernel_flow_flag::FIN, kernel_flow_flag::FIN),
    };
    table.insert(&reply, &entry(original, theirs | kernel_flow_flag::REPLY))?;
    let inserted = table.insert(&original, &entry(reply, ours));
    if inserted == Err(NotInserted::Full) {
        table.remove(&reply);
    }
    inserted
}

/// Forgets every flow that the filter matches; how many entries there were. The kernel goes on
/// knowing them, but their packets are judged like any others.
pub(super) fn end(maps: &mut Maps, filter: &FlowFilter) -> Result<usize, DataplaneError> {
    if filter.is_empty() || maps.config.read()?.flags & config_flag::KERNEL_FLOWS == 0 {
        return Ok(0);
    }
    Ok(end_in(&mut maps.kernel_v4, filter)? + end_in(&mut maps.kernel_v6, filter)?)
}

fn end_in<A: Copy + Ord>(
    table: &mut FlowTable<A, KernelFlow<A>>,
    filter: &FlowFilter,
) -> Result<usize, DataplaneError>
where
    Tuple<A>: Wire,
    KernelFlow<A>: Wire,
    IpAddr: From<A>,
{
    let mut ended = Vec::new();
    table.walk(|tuple, flow| {
        let matches = if flow.flags & kernel_flow_flag::REPLY == 0 {
            filter.matches_tuples(&tuple, &flow.other)
        } else {
            filter.matches_tuples(&flow.other, &tuple)
        };
        if matches {
            ended.push(tuple);
        }
    })?;
    Ok(ended.iter().filter(|tuple| table.remove(tuple)).count())
}

fn forget<A: Copy>(
    table: &mut FlowTable<A, KernelFlow<A>>,
    known: Option<&HashSet<(u8, FlowEnds)>>,
) -> Result<LeftToKernel, DataplaneError>
where
    Tuple<A>: Wire,
    KernelFlow<A>: Wire,
    IpAddr: From<A>,
{
    let now = seconds_now();
    let mut left = LeftToKernel::default();
    let mut candidates = Vec::new();
    table.walk(|tuple, flow| {
        left.entries += 1;
        let unknown = known.is_some_and(|known| !known.contains(&(tuple.proto, ends(&tuple))));
        let idle = idle(now, flow.last_seen);
        if unknown && idle > LISTED_LATE || idle > lifetime(flow.lifetime, flow.flags) {
            candidates.push((tuple, flow, unknown));
        }
    })?;
    for (tuple, flow, unknown) in candidates {
        let other = table.get(&flow.other);
        let (seen, flags) = other.map_or((flow.last_seen, 0), |o| (o.last_seen, o.flags));
        let idle = idle(now, flow.last_seen).min(idle(now, seen));
        let over = idle > lifetime(flow.lifetime, flow.flags | flags);
        if over || unknown && idle > LISTED_LATE {
            left.removed += usize::from(table.remove(&flow.other));
            left.removed += usize::from(table.remove(&tuple));
        }
    }
    left.entries = left.entries.saturating_sub(left.removed);
    Ok(left)
}

fn ends<A: Copy>(tuple: &Tuple<A>) -> FlowEnds
where
    IpAddr: From<A>,
{
    FlowEnds {
        src: tuple.src.into(),
        dst: tuple.dst.into(),
        sport: u16::from_be_bytes(tuple.sport),
        dport: u16::from_be_bytes(tuple.dport),
    }
}

fn seconds_now() -> u32 {
    (host::monotonic_nanoseconds() / 1_000_000_000) as u32
}
