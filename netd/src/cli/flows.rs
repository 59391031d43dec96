//! `netd flows`: connections that netd carries.

use std::process::ExitCode;

use serde::Serialize;

use super::{Global, output, read};
use crate::state::{
    State, StateError,
    filter::{Criteria, Filter, FilterError},
    flow::{self, Counters, FlowView, Half},
};

/// Show flows, the busiest first. Filters combine.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Of this container: its address, or its interface on the host.
    #[arg(long, value_name = "ADDRESS|INTERFACE")]
    pub container: Option<String>,
    /// With this address or prefix on either side, before or after translation.
    #[arg(long, value_name = "ADDRESS|PREFIX")]
    pub address: Option<String>,
    /// With this port on either side, before or after translation.
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// tcp, udp, sctp, icmp, icmpv6 or a number.
    #[arg(long, value_name = "PROTOCOL")]
    pub protocol: Option<String>,
    /// State as conntrack names it (established, time-wait, unreplied…), or `embryo` for every
    /// flow that no reply has confirmed.
    #[arg(long, value_name = "STATE")]
    pub state: Option<String>,
    /// Of containers on this network: its name, its bridge or its number.
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
    /// Show at most this many; 0 shows all. Without it the table shows 100, JSON all.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Rows of the table where no limit is given: what a person may look through.
const TABLE_LIMIT: usize = 100;

/// The flows that were asked for.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    schema: u32,
    /// How many flows meet the filters.
    total: usize,
    /// How many of them follow.
    shown: usize,
    flows: Vec<FlowView>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FlowsError {
    /// The maps cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// A filter names nothing.
    #[error(transparent)]
    Filter(#[from] FilterError),
}

impl Args {
    fn criteria(&self) -> Criteria {
        Criteria {
            container: self.container.clone(),
            address: self.address.clone(),
            port: self.port,
            protocol: self.protocol.clone(),
            state: self.state.clone(),
            network: self.network.clone(),
        }
    }

    fn limit(&self) -> usize {
        match self.limit {
            Some(0) => usize::MAX,
            Some(limit) => limit,
            None if self.json => usize::MAX,
            None => TABLE_LIMIT,
        }
    }
}

impl Report {
    /// Reads the flows from the maps.
    ///
    /// # Errors
    /// A bad filter, or what the kernel says.
    pub fn read(state: &State, args: &Args) -> Result<Self, FlowsError> {
        let topology = state.topology()?;
        let filter = Filter::new(&args.criteria(), &topology)?;
        let mut flows = flow::flows(state, &topology)?;
        flows.retain(|flow| filter.matches(flow));
        Ok(Self::of(flows, args.limit()))
    }

    fn of(mut flows: Vec<FlowView>, limit: usize) -> Self {
        let order = |f: &FlowView| {
            let t = f.original;
            (
                std::cmp::Reverse(f.bytes()),
                t.src,
                t.src_port,
                t.dst,
                t.dst_port,
                t.icmp_id,
            )
        };
        flows.sort_by_key(order);
        let total = flows.len();
        flows.truncate(limit);
        Self {
            schema: 1,
            total,
            shown: flows.len(),
            flows,
        }
    }
}

/// Runs the verb.
///
/// # Errors
/// Where standard output cannot be written.
pub fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let state = match read::open(&global.pin_dir()) {
        Ok(state) => state,
        Err(code) => return Ok(code),
    };
    match Report::read(&state, args) {
        Ok(report) => output::answer(args.json, &report, render),
        Err(FlowsError::State(error)) => Ok(read::cannot_read(error)),
        Err(FlowsError::Filter(error)) => Ok(read::refuse(error)),
    }
}

/// The answer for people.
pub fn render(report: &Report) -> String {
    if report.total == 0 {
        return "No flows.\n".to_owned();
    }
    let headers = [
        "PROTO",
        "KIND",
        "STATE",
        "FLOW",
        "TRANSLATED",
        "CONTAINER",
        "NETWORK",
        "SENT",
        "RECEIVED",
        "IDLE",
        "EXPIRES",
    ];
    let mut table = output::table(&headers, &["SENT", "RECEIVED", "IDLE", "EXPIRES"]);
    for flow in &report.flows {
        table.add_row([
            flow.protocol.to_string(),
            flow.kind.to_owned(),
            state_text(flow),
            output::tuple(&flow.original),
            translation(flow),
            output::or_dash(flow.container.as_ref()),
            output::or_dash(flow.network.as_ref()),
            counters(flow.sent),
            counters(flow.received),
            output::seconds(flow.idle_seconds),
            output::seconds(flow.expires_in_seconds),
        ]);
    }
    let mut text = output::lines(&table);
    let more = report.total - report.shown;
    if more > 0 {
        text.push_str(&format!(
            "… and {more} more of {}: narrow it down with filters, or use --limit 0\n",
            report.total
        ));
    }
    text
}

fn state_text(flow: &FlowView) -> String {
    match flow.missing {
        None => flow.state.to_owned(),
        Some(Half::Original) => format!("{} (replies only)", flow.state),
        Some(Half::Reply) => format!("{} (no replies)", flow.state),
    }
}

/// What is rewritten: `src …`, `dst …`, both, or nothing.
fn translation(flow: &FlowView) -> String {
    let (before, after) = (&flow.original, &flow.translated);
    let mut parts = Vec::new();
    if (before.src, before.src_port, before.icmp_id) != (after.src, after.src_port, after.icmp_id) {
        let id = after
            .icmp_id
            .map(|id| format!(" id {id}"))
            .unwrap_or_default();
        parts.push(format!(
            "src {}{id}",
            output::address(after.src, after.src_port)
        ));
    }
    if (before.dst, before.dst_port) != (after.dst, after.dst_port) {
        parts.push(format!(
            "dst {}",
            output::address(after.dst, after.dst_port)
        ));
    }
    if parts.is_empty() {
        "-".to_owned()
    } else {
        parts.join(", ")
    }
}

fn counters(counters: Option<Counters>) -> String {
    counters.map_or_else(
        || "-".to_owned(),
        |c| {
            format!(
                "{} pkt {}",
                output::count(c.packets),
                output::bytes(c.bytes)
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::flow::tests::published;

    #[test]
    fn people_see_a_table() {
        let report = Report::of(vec![published()], 100);
        assert_eq!(
            render(&report),
            "\
PROTO  KIND     STATE        FLOW                                TRANSLATED         CONTAINER   NETWORK         SENT     RECEIVED  IDLE  EXPIRES
tcp    publish  established  198.18.0.9:40000 → 198.18.0.1:8080  dst 10.201.1.2:80  10.201.1.2  web      3 pkt 300 B  2 pkt 200 B   10s    4d23h
"
        );
    }

    #[test]
    fn the_busiest_come_first_and_the_rest_is_counted() {
        let flow = |port, bytes| {
            let mut flow = published();
            flow.original.src_port = Some(port);
            flow.sent = Some(Counters { packets: 1, bytes });
            flow
        };
        let report = Report::of(vec![flow(1, 10), flow(2, 30), flow(3, 20)], 2);
        let ports: Vec<_> = report
            .flows
            .iter()
            .filter_map(|f| f.original.src_port)
            .collect();
        assert_eq!(ports, [2, 3]);
        assert_eq!((report.total, report.shown), (3, 2));
        assert!(render(&report).contains("… and 1 more of 3"));
    }

    #[test]
    fn limits() {
        let limit = |limit, json| {
            Args {
                limit,
                json,
                ..Args::default()
            }
            .limit()
        };
        assert_eq!(limit(None, false), TABLE_LIMIT);
        assert_eq!(limit(None, true), usize::MAX);
        assert_eq!(limit(Some(0), false), usize::MAX);
        assert_eq!(limit(Some(7), true), 7);
    }

    #[test]
    fn both_sides_of_a_hairpin_are_shown() {
        let mut flow = published();
        flow.translated.src = "10.201.1.1".parse().unwrap();
        assert_eq!(
            translation(&flow),
            "src 10.201.1.1:40000, dst 10.201.1.2:80"
        );
        flow.translated = flow.original;
        assert_eq!(translation(&flow), "-");
    }
}
