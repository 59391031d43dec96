//! The flow tables from the daemon's side: ending flows, collecting those that have expired, and
//! counting what is left.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netd_common::abi::{Flow, Holding, NatPressure, Tuple, V4Addr, V6Addr, flow_flag, flow_table};
use netd_common::room::is_counted_embryo;
use netd_common::wire::Wire;

use super::DataplaneError;
use super::maps::{FlowTable, Maps};
use crate::collect::{Collected, FlowFilter, is_expired, partner};
use crate::nat_use::{Destination, pressed};

/// Removes every entry of the flow tables that the filter matches; how many there were.
pub(super) fn end(maps: &mut Maps, filter: &FlowFilter) -> Result<usize, DataplaneError> {
    if filter.is_empty() {
        return Ok(0);
    }
    Ok(end_in(&mut maps.flows_v4, filter)?
        + end_in(&mut maps.embryos_v4, filter)?
        + end_in(&mut maps.flows_v6, filter)?
        + end_in(&mut maps.embryos_v6, filter)?)
}

/// Removes what was idle longer than its state allows at `now` (CLOCK_MONOTONIC seconds), and sets
/// right how many flows each container has: the programs count what comes and goes by themselves,
/// but not what the daemon removes.
pub(super) fn collect(maps: &mut Maps, now: u32) -> Result<Collected, DataplaneError> {
    let mut held = Held::default();
    let mut total = Collected::default();
    let v4 = (flow_table::FLOWS_V4, flow_table::EMBRYOS_V4);
    let v6 = (flow_table::FLOWS_V6, flow_table::EMBRYOS_V6);
    let (flows4, embryos4) = (&mut maps.flows_v4, &mut maps.embryos_v4);
    let (flows6, embryos6) = (&mut maps.flows_v6, &mut maps.embryos_v6);
    for done in [
        collect_in((v4.0, flows4), (v4.1, embryos4), now, &mut held)?,
        collect_in((v4.1, embryos4), (v4.0, flows4), now, &mut held)?,
        collect_in((v6.0, flows6), (v6.1, embryos6), now, &mut held)?,
        collect_in((v6.1, embryos6), (v6.0, flows6), now, &mut held)?,
    ] {
        total.seen += done.seen;
        total.removed += done.removed;
    }
    maps.set_holdings(&held.0)?;
    Ok(total)
}

/// How many source ports are in use towards the destinations that `events` tell of.
pub(super) fn ports_in_use(
    maps: &Maps,
    events: &[NatPressure],
) -> Result<BTreeMap<Destination, u32>, DataplaneError> {
    let wanted: BTreeSet<Destination> = events.iter().map(pressed).collect();
    let mut counts: BTreeMap<Destination, u32> = wanted.iter().map(|d| (*d, 0)).collect();
    count_ports::<V4Addr>(&[&maps.flows_v4, &maps.embryos_v4], &mut counts)?;
    count_ports::<V6Addr>(&[&maps.flows_v6, &maps.embryos_v6], &mut counts)?;
    Ok(counts)
}

fn count_ports<A: Copy>(
    tables: &[&FlowTable<A>],
    counts: &mut BTreeMap<Destination, u32>,
) -> Result<(), DataplaneError>
where
    Tuple<A>: Wire,
    Flow<A>: Wire,
    IpAddr: From<A>,
{
    if counts.is_empty() {
        return Ok(());
    }
    for table in tables {
        table.walk(|tuple, flow| {
            if let Some(destination) = Destination::of(&tuple, &flow)
                && let Some(count) = counts.get_mut(&destination)
            {
                *count += 1;
            }
        })?;
    }
    Ok(())
}

/// Flows by container and table.
#[derive(Default)]
struct Held(BTreeMap<u32, Holding>);

impl Held {
    fn add<A>(&mut self, table: usize, flow: &Flow<A>, more: i64) {
        let confirmed = matches!(table, flow_table::FLOWS_V4 | flow_table::FLOWS_V6);
        if flow.flags & flow_flag::REPLY == 0 && (confirmed || is_counted_embryo(flow.flags)) {
            self.0.entry(flow.owner).or_default().flows[table] += more;
        }
    }
}

fn end_in<A: Copy + Ord>(
    table: &mut FlowTable<A>,
    filter: &FlowFilter,
) -> Result<usize, DataplaneError>
where
    Tuple<A>: Wire,
    Flow<A>: Wire,
    IpAddr: From<A>,
{
    let mut ended = Vec::new();
    table.walk(|tuple, flow| {
        if filter.matches(&tuple, &flow) {
            ended.push(tuple);
        }
    })?;
    Ok(ended.iter().filter(|tuple| table.remove(tuple)).count())
}

/// Removes what has expired from `table`. The other half of a flow is looked for in `other` as
/// well: the halves are moved there one after the other when the flow is confirmed.
fn collect_in<A: Copy>(
    (number, table): (usize, &mut FlowTable<A>),
    (other_number, other): (usize, &mut FlowTable<A>),
    now: u32,
    held: &mut Held,
) -> Result<Collected, DataplaneError>
where
    Tuple<A>: Wire,
    Flow<A>: Wire,
{
    let mut collected = Collected::default();
    let mut idle = Vec::new();
    table.walk(|tuple, flow| {
        collected.seen += 1;
        held.add(number, &flow, 1);
        if is_expired(now, &flow, None) {
            idle.push((tuple, flow));
        }
    })?;
    for (tuple, flow) in idle {
        let reverse = partner(&tuple, &flow);
        let here = table.get(&reverse);
        let in_other = here.is_none();
        let half = here.or_else(|| other.get(&reverse));
        if !is_expired(now, &flow, half.as_ref()) {
            continue;
        }
        // The reverse half first: it is what reserves the source port, and a flow without it
        // is made whole by its next packet.
        if let Some(half) = half.filter(|half| half.generation == flow.generation) {
            let removed = if in_other {
                other.remove(&reverse)
            } else {
                table.remove(&reverse)
            };
            if removed {
                collected.removed += 1;
                let at = if in_other { other_number } else { number };
                held.add(at, &half, -1);
            }
        }
        if table.remove(&tuple) {
            collected.removed += 1;
            held.add(number, &flow, -1);
        }
    }
    Ok(collected)
}
