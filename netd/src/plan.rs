//! From what is to what ought to be: a pure difference, as ordered steps.
//!
//! The order keeps every state in between at least as closed as the one before or after it:
//!
//! 1. programs at interfaces that are gone are detached, ports that are published no more close;
//! 2. networks, subnets, local addresses and uplinks become known;
//! 3. programs are attached: guards first, then uplinks, then containers. A container that has its
//!    programs but no row yet can neither send nor receive;
//! 4. containers become known, then ports that lead to them: backends before frontends;
//! 5. forwarding is switched on, once everything guards it;
//! 6. containers that are gone are forgotten, and what only they needed is detached;
//! 7. the hooks of the host's own programs are attached;
//! 8. flows of what was removed end, and all others decide again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use netd_common::abi::{self, Backend, PortPrefix, config_flag, port_prefix_base};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::collect::{FlowFilter, PublishedPorts};
use crate::dataplane::{Actual, Attached, Attachment, Hook, Prefix, Row, RowKey, Table, Tables};
use crate::desired::Desired;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write flags and source ports.
    Configure(abi::Config),
    /// Add a row.
    Add(Row),
    /// Replace the row of the same key.
    Change(Row),
    /// Remove a row.
    Remove(RowKey),
    /// Attach a program.
    Attach(Attachment, String),
    /// Replace an earlier daemon's program, atomically.
    Replace(Attachment, String),
    /// Detach a program.
    Detach(Attachment),
    /// Set a kernel setting, by its path below /proc/sys.
    Sysctl {
        /// Path below /proc/sys.
        name: String,
        /// What it is; `None` when unknown.
        from: Option<String>,
        /// What it becomes.
        to: String,
    },
    /// End flows of containers and publishes that are gone.
    EndFlows(FlowFilter),
    /// Let every flow decide again.
    BumpEpoch,
}

/// The steps that lead from `actual` to `desired`; none when they agree. Settings are changed only
/// where `sysctls`, the current ones, differ.
pub fn diff(desired: &Desired, actual: &Actual, sysctls: &BTreeMap<String, String>) -> Vec<Step> {
    let mut steps = Vec::new();
    let (want, have) = (&desired.tables, &actual.tables);

    let stale = |state: &Attached| *state == Attached::Stale;
    for (attachment, _) in actual.attachments.iter().filter(|(_, state)| stale(state)) {
        steps.push(Step::Detach(*attachment));
    }
    // Ports that go on being published under other keys lead where they led until the new rows are
    // there: the longest prefix wins, so both may be there at once.
    let mut divided = Vec::new();
    for table in FRONTENDS.iter().rev() {
        let new = want.beyond(have, *table);
        for row in have.keys_beyond(want, *table) {
            let goes_on = new.iter().any(|(new, _)| share_ports(&row, new));
            let steps = if goes_on { &mut divided } else { &mut steps };
            steps.push(Step::Remove(row.key()));
        }
    }

    if settings_of(&desired.config) != settings_of(&actual.config) {
        steps.push(Step::Configure(desired.config));
    }
    for table in BASE {
        add(&mut steps, want, have, *table);
    }
    for hook in Hook::ALL.into_iter().filter(|hook| !hook.is_cgroup()) {
        attach(&mut steps, desired, actual, hook);
    }
    for table in ENDPOINTS.iter().chain(FRONTENDS) {
        add(&mut steps, want, have, *table);
    }
    steps.append(&mut divided);
    for (name, to) in &desired.sysctls {
        let from = sysctls.get(name);
        if from != Some(to) {
            let (name, to, from) = (name.clone(), to.clone(), from.cloned());
            steps.push(Step::Sysctl { name, from, to });
        }
    }

    for table in ENDPOINTS.iter().rev() {
        let gone = have.keys_beyond(want, *table);
        steps.extend(gone.iter().map(|row| Step::Remove(row.key())));
    }
    let superfluous = |hook: Hook| {
        actual
            .attachments
            .iter()
            .filter_map(move |(attachment, state)| {
                let unwanted = !desired.attachments.contains_key(attachment);
                (attachment.hook == hook && unwanted && !stale(state)).then_some(*attachment)
            })
    };
    let hooks = Hook::ALL.into_iter().rev();
    for hook in hooks.filter(|hook| !matches!(hook, Hook::BridgeIn | Hook::BridgeOut)) {
        steps.extend(superfluous(hook).map(Step::Detach));
    }
    for table in BASE.iter().rev() {
        let gone = have.keys_beyond(want, *table);
        steps.extend(gone.iter().map(|row| Step::Remove(row.key())));
    }
    for hook in [Hook::BridgeOut, Hook::BridgeIn] {
        steps.extend(superfluous(hook).map(Step::Detach));
    }

    // After everything else: the host's own programs must not keep containers from their network, should another
    // program at the control group refuse company.
    for hook in Hook::ALL.into_iter().filter(|hook| hook.is_cgroup()) {
        attach(&mut steps, desired, actual, hook);
    }

    let ended = ended_flows(want, have);
    if !ended.is_empty() {
        steps.push(Step::EndFlows(ended));
    }
    if steps.iter().any(concerns_flows) {
        steps.push(Step::BumpEpoch);
    }
    steps
}

fn attach(steps: &mut Vec<Step>, desired: &Desired, actual: &Actual, hook: Hook) {
    for (attachment, interface) in desired.attachments.iter().filter(|(a, _)| a.hook == hook) {
        let step = match actual.attachments.get(attachment) {
            Some(Attached::Current) => continue,
            Some(Attached::Outdated) => Step::Replace,
            Some(Attached::Stale) | None => Step::Attach,
        };
        steps.push(step(*attachment, interface.clone()));
    }
}

/// Do two rows of a publish table have ports in common?
fn share_ports(a: &Row, b: &Row) -> bool {
    fn common<A: PartialEq>(a: &Prefix<PortPrefix<A>>, b: &Prefix<PortPrefix<A>>) -> bool {
        let bits = a.bits.min(b.bits) - port_prefix_base::<A>();
        let port = |p: &Prefix<PortPrefix<A>>| u32::from(u16::from_be_bytes(p.data.port));
        (a.data.proto, &a.data.addr) == (b.data.proto, &b.data.addr)
            && (port(a) ^ port(b)) >> (16 - bits) == 0
    }
    match (a, b) {
        (Row::PublishV4(a, _), Row::PublishV4(b, _)) => common(a, b),
        (Row::PublishV6(a, _), Row::PublishV6(b, _)) => common(a, b),
        _ => false,
    }
}

/// What the others refer to.
const BASE: &[Table] = &[
    Table::Networks,
    Table::SubnetsV4,
    Table::SubnetsV6,
    Table::Trusted,
    Table::LocalV4,
    Table::LocalV6,
    Table::IpsecV4,
    Table::IpsecV6,
    Table::SuppressedV6,
    Table::Uplinks,
];
const ENDPOINTS: &[Table] = &[Table::Endpoints, Table::AddrsV4, Table::AddrsV6];
/// The bitmap first: no new flow may take a port as its source that is about to be published.
const FRONTENDS: &[Table] = &[
    Table::Ports,
    Table::ExposedV4,
    Table::ExposedV6,
    Table::PublishV4,
    Table::PublishV6,
];

fn add(steps: &mut Vec<Step>, want: &Tables, have: &Tables, table: Table) {
    let mut rows = want.beyond(have, table);
    if matches!(table, Table::IpsecV4 | Table::IpsecV6) {
        // One policy may have pushed another into the next slot: there first, so that none is
        // missing for a moment.
        rows.sort_by_key(|(_, replaces)| *replaces);
        let changes = rows.iter().position(|(_, replaces)| *replaces);
        rows[changes.unwrap_or(0)..].reverse();
    }
    steps.extend(rows.into_iter().map(|(row, replaces)| {
        if replaces {
            Step::Change(row)
        } else {
            Step::Add(row)
        }
    }));
}

fn settings_of(config: &abi::Config) -> (u32, u16, u16, u64) {
    (
        config.flags & !config_flag::PASSING,
        config.nat_first,
        config.nat_last,
        config.netns_cookie,
    )
}

fn concerns_flows(step: &Step) -> bool {
    matches!(
        step,
        Step::Configure(_) | Step::Add(_) | Step::Change(_) | Step::Remove(_)
    )
}

/// What of `have` leads elsewhere, or nowhere, in `want`.
fn ended_flows(want: &Tables, have: &Tables) -> FlowFilter {
    let mut filter = FlowFilter::default();
    for (address, owner) in &have.addrs_v4 {
        let now = want.addrs_v4.get(address);
        if now.is_none_or(|now| now.ifindex != owner.ifindex) {
            filter.containers.insert(IpAddr::from(*address));
        }
    }
    for (address, owner) in &have.addrs_v6 {
        let now = want.addrs_v6.get(address);
        if now.is_none_or(|now| now.ifindex != owner.ifindex) {
            filter.containers.insert(IpAddr::from(*address));
        }
    }
    unpublished(&want.publish_v4, &have.publish_v4, &mut filter.published);
    unpublished(&want.publish_v6, &have.publish_v6, &mut filter.published);
    filter
}

type Published<A> = BTreeMap<Prefix<PortPrefix<A>>, Backend<A>>;

/// Host ports of `have` that lead elsewhere in `want`. By port, not by row: a range that grows
/// keeps the flows of the ports that it had.
fn unpublished<A: Copy + Ord>(
    want: &Published<A>,
    have: &Published<A>,
    out: &mut BTreeSet<PublishedPorts>,
) where
    IpAddr: From<A>,
{
    let free_of = |bits: u32| port_prefix_base::<A>() + 16 - bits;
    for (key, old) in have {
        if want.get(key) == Some(old) {
            continue;
        }
        let first = u16::from_be_bytes(key.data.port);
        let last = first | ((1u32 << free_of(key.bits)) - 1) as u16;
        let mut open: Option<PublishedPorts> = None;
        for port in first..=last {
            if leads_to(want, key, port) == Some(target(old, port)) {
                out.extend(open.take());
                continue;
            }
            match &mut open {
                Some(range) => range.last = port,
                None => {
                    open = Some(PublishedPorts {
                        protocol: key.data.proto,
                        address: Some(IpAddr::from(key.data.addr)).filter(|a| !a.is_unspecified()),
                        ipv6: size_of::<A>() == 16,
                        first: port,
                        last: port,
                    });
                }
            }
        }
        out.extend(open);
    }
}

fn target<A: Copy>(backend: &Backend<A>, port: u16) -> (A, u16) {
    let offset = port.wrapping_sub(u16::from_be_bytes(backend.host_first));
    let first = u16::from_be_bytes(backend.container_first);
    (backend.addr, first.wrapping_add(offset))
}

fn leads_to<A: Copy + Ord>(
    table: &Published<A>,
    like: &Prefix<PortPrefix<A>>,
    port: u16,
) -> Option<(A, u16)> {
    (0..=16u32).find_map(|free| {
        let mut key = *like;
        key.bits = port_prefix_base::<A>() + 16 - free;
        key.data.port = ((u32::from(port) >> free << free) as u16).to_be_bytes();
        table.get(&key).map(|backend| target(backend, port))
    })
}

impl Step {
    /// One word for the kind of change.
    pub fn action(&self) -> &'static str {
        match self {
            Self::Configure(_) => "configure",
            Self::Add(_) => "add",
            Self::Change(_) => "change",
            Self::Remove(_) => "remove",
            Self::Attach(..) => "attach",
            Self::Replace(..) => "replace",
            Self::Detach(_) => "detach",
            Self::Sysctl { .. } => "set",
            Self::EndFlows(_) => "end",
            Self::BumpEpoch => "refresh",
        }
    }

    /// What is changed, for people.
    pub fn subject(&self) -> String {
        match self {
            Self::Configure(config) => format!(
                "source ports {}-{}, flags {:#x}",
                config.nat_first, config.nat_last, config.flags
            ),
            Self::Add(row) | Self::Change(row) => row.to_string(),
            Self::Remove(key) => key.to_string(),
            Self::Attach(attachment, interface) | Self::Replace(attachment, interface) => {
                format!("{} at {interface}", attachment.hook.program())
            }
            Self::Detach(attachment) => attachment.to_string(),
            Self::Sysctl { name, from, to } => {
                let name = name.replace('/', ".");
                match from {
                    Some(from) => format!("{name} from {from:?} to {to:?}"),
                    None => format!("{name} to {to:?}"),
                }
            }
            Self::EndFlows(filter) => filter.to_string(),
            Self::BumpEpoch => "every flow decides again at its next packet".to_owned(),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<9} {}", self.action(), self.subject())
    }
}

impl Serialize for Step {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let table = match self {
            Self::Add(row) | Self::Change(row) => Some(row.table().name()),
            Self::Remove(key) => Some(key.table().name()),
            _ => None,
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("action", self.action())?;
        map.serialize_entry("table", &table)?;
        map.serialize_entry("subject", &self.subject())?;
        map.end()
    }
}

#[cfg(test)]
mod tests;
