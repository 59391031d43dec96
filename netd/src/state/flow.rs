//! Flows: the two entries of each, one per direction, joined into one view.

use std::{borrow::Cow, collections::HashMap, net::IpAddr};

use jiff::Timestamp;
use netd_common::{
    abi::{
        Flow, TableEvents, Tuple, V4Addr, V6Addr, flow_flag, flow_kind, flow_table, map,
        table_event,
    },
    conntrack,
    wire::{Address, Family, V4, V6, Wire, proto},
};
use serde::Serialize;

use super::{
    State, StateError,
    clock::Clock,
    ip,
    network::{ContainerRef, NetworkRef, Topology},
    protocol_name,
};

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowView {
    /// What was decided about it: `masquerade`, `publish`, `hairpin`, `direct`.
    pub kind: &'static str,
    /// Protocol by name, or its number.
    pub protocol: Cow<'static, str>,
    /// State of the connection, as conntrack names it.
    pub state: &'static str,
    /// Has no reply confirmed it yet?
    pub embryo: bool,
    /// The tuple of the first packet as it arrived.
    pub original: TupleView,
    /// The same after translation; equal where nothing is translated.
    pub translated: TupleView,
    /// The container that the flow is accounted to.
    pub container: Option<ContainerRef>,
    /// Its network.
    pub network: Option<NetworkRef>,
    /// Where packets of the opening side arrive, and where they leave.
    pub path: Path,
    /// Packets and bytes of the opening side; `None` where that half is missing.
    pub sent: Option<Counters>,
    /// Those of the replies.
    pub received: Option<Counters>,
    /// The half that is missing. The flow ends with the next packet of the other.
    pub missing: Option<Half>,
    /// When the flow began.
    pub began: Timestamp,
    /// When the last packet was seen, in either direction.
    pub last_seen: Timestamp,
    /// Seconds since then.
    pub idle_seconds: u32,
    /// Seconds without a packet after which it is removed.
    pub expires_in_seconds: u32,
    /// ifindex of the container's host veth.
    #[serde(skip)]
    pub owner: u32,
}

/// Addresses of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TupleView {
    /// Source.
    pub src: IpAddr,
    /// Source port, of a protocol that has ports.
    pub src_port: Option<u16>,
    /// Destination.
    pub dst: IpAddr,
    /// Destination port, of a protocol that has ports.
    pub dst_port: Option<u16>,
    /// Identifier of an echo request.
    pub icmp_id: Option<u16>,
}

/// Interfaces of a flow; `None` where one is gone or was not decided yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Path {
    /// Where the opening side's packets arrive.
    pub in_interface: Option<String>,
    /// Where they leave.
    pub out_interface: Option<String>,
}

/// What went one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Bytes, with the Ethernet header.
    pub bytes: u64,
}

/// One direction's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Half {
    /// The side that opened the flow.
    Original,
    /// The replies.
    Reply,
}

/// How full the flow tables of one family are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Confirmed flows.
    pub flows: u32,
    /// How many there can be.
    pub limit: u32,
    /// Flows that no reply has confirmed.
    pub embryos: u32,
    /// How many there can be before the oldest makes room.
    pub embryo_limit: u32,
    /// What happened for want of room since the tables were made.
    pub events: RoomEvents,
}

/// Flows that made room or found none; see [`netd_common::room`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RoomEvents {
    /// Flows beyond their lifetime that made room.
    pub expired: u64,
    /// Embryos that made room.
    pub evicted_embryo: u64,
    /// Closing connections that made room.
    pub evicted_closing: u64,
    /// Idle flows without a connection that made room.
    pub evicted_idle: u64,
    /// Tries of a confirmed flow to leave the embryos that found no room.
    pub overflowed: u64,
    /// New flows refused, the table being full.
    pub refused_full: u64,
    /// New flows refused, their container having its share.
    pub refused_share: u64,
    /// Source ports taken over from closed connections.
    pub port_reused: u64,
}

impl RoomEvents {
    fn of(tables: [&TableEvents; 2]) -> Self {
        let sum = |event: usize| tables.iter().map(|t| t.count[event]).sum();
        Self {
            expired: sum(table_event::EXPIRED),
            evicted_embryo: sum(table_event::EVICTED_EMBRYO),
            evicted_closing: sum(table_event::EVICTED_CLOSING),
            evicted_idle: sum(table_event::EVICTED_IDLE),
            overflowed: sum(table_event::OVERFLOWED),
            refused_full: sum(table_event::REFUSED_FULL),
            refused_share: sum(table_event::REFUSED_SHARE),
            port_reused: sum(table_event::PORT_REUSED),
        }
    }
}

impl FlowView {
    /// Bytes of both directions.
    pub fn bytes(&self) -> u64 {
        [self.sent, self.received]
            .into_iter()
            .flatten()
            .map(|c| c.bytes)
            .sum()
    }
}

/// Reads every flow of both families.
///
/// # Errors
/// What the kernel says.
pub fn flows(state: &State, topology: &Topology) -> Result<Vec<FlowView>, StateError> {
    let mut views = read::<V4>(state, topology, map::FLOWS_V4, map::EMBRYOS_V4)?;
    views.extend(read::<V6>(state, topology, map::FLOWS_V6, map::EMBRYOS_V6)?);
    Ok(views)
}

/// Counts the flows of both families, IPv4 first.
///
/// # Errors
/// What the kernel says.
pub fn usage(state: &State) -> Result<[Usage; 2], StateError> {
    let events = state.table_events()?;
    let of = |a: usize, b: usize| RoomEvents::of([&events[a], &events[b]]);
    let (v4, v6) = (
        of(flow_table::FLOWS_V4, flow_table::EMBRYOS_V4),
        of(flow_table::FLOWS_V6, flow_table::EMBRYOS_V6),
    );
    Ok([
        usage_of::<V4Addr>(state, map::FLOWS_V4, map::EMBRYOS_V4, v4)?,
        usage_of::<V6Addr>(state, map::FLOWS_V6, map::EMBRYOS_V6, v6)?,
    ])
}

fn usage_of<A: Address>(
    state: &State,
    flows: &str,
    embryos: &str,
    events: RoomEvents,
) -> Result<Usage, StateError>
where
    Tuple<A>: Wire,
    Flow<A>: Wire,
{
    let count = |name| -> Result<(u32, u32), StateError> {
        let mut entries = 0u32;
        state.for_each(name, |_: Tuple<A>, _: Flow<A>| entries += 1)?;
        // Two entries each; the odd one is half of a flow.
        Ok((entries.div_ceil(2), state.capacity(name)? / 2))
    };
    let (flows, limit) = count(flows)?;
    let (embryos, embryo_limit) = count(embryos)?;
    Ok(Usage {
        flows,
        limit,
        embryos,
        embryo_limit,
        events,
    })
}

fn read<F: Family>(
    state: &State,
    topology: &Topology,
    flows: &str,
    embryos: &str,
) -> Result<Vec<FlowView>, StateError>
where
    F::Addr: std::hash::Hash,
    Tuple<F::Addr>: Wire,
    Flow<F::Addr>: Wire,
{
    let mut entries = Entries::<F::Addr>::default();
    // Room is only reserved: memory that is not written to is not used. Growing would copy.
    entries.reserve(state.capacity(flows)? as usize);
    // Embryos first: what is promoted between the two reads is seen in both, and the flow wins.
    state.for_each(embryos, |key, flow| {
        entries.insert(key, Entry { flow, embryo: true });
    })?;
    state.for_each(flows, |key, flow| {
        entries.insert(
            key,
            Entry {
                flow,
                embryo: false,
            },
        );
    })?;
    let context = Context {
        topology,
        clock: state.clock(),
        interface: &|ifindex| state.interface(ifindex).map(str::to_owned),
    };
    Ok(join::<F>(&entries, &context))
}

/// A full table is read in a fraction of a second only with a fast hash. It is seeded: who may
/// choose tuples cannot choose collisions.
type Entries<A> = HashMap<Tuple<A>, Entry<A>, foldhash::fast::RandomState>;

#[derive(Clone, Copy)]
struct Entry<A> {
    flow: Flow<A>,
    embryo: bool,
}

impl<A> Entry<A> {
    fn is_reply(&self) -> bool {
        self.flow.flags & flow_flag::REPLY != 0
    }
}

struct Context<'a> {
    topology: &'a Topology,
    clock: &'a Clock,
    interface: &'a dyn Fn(u32) -> Option<String>,
}

/// The tuple of the packet after translation; reversed, the key of the other direction's entry.
fn translated<A: Copy>(key: &Tuple<A>, flow: &Flow<A>) -> Tuple<A> {
    Tuple {
        src: flow.src,
        dst: flow.dst,
        sport: flow.sport,
        dport: flow.dport,
        proto: key.proto,
        reserved: [0; 3],
    }
}

fn join<F: Family>(entries: &Entries<F::Addr>, context: &Context<'_>) -> Vec<FlowView>
where
    F::Addr: std::hash::Hash,
{
    let other_half = |key: &Tuple<F::Addr>, entry: &Entry<F::Addr>| {
        entries
            .get(&translated(key, &entry.flow).reversed())
            .filter(|other| {
                other.is_reply() != entry.is_reply()
                    && other.flow.generation == entry.flow.generation
            })
    };
    let mut views = Vec::with_capacity(entries.len() / 2 + 1);
    for (key, entry) in entries {
        let other = other_half(key, entry);
        if !entry.is_reply() {
            let halves = Halves {
                original: Some(entry),
                reply: other,
            };
            views.push(view::<F>(
                key,
                &translated(key, &entry.flow),
                &halves,
                context,
            ));
        } else if other.is_none() {
            // What the opening side sends is what its replies are turned into, and back.
            let original = translated(key, &entry.flow).reversed();
            let halves = Halves {
                original: None,
                reply: Some(entry),
            };
            views.push(view::<F>(&original, &key.reversed(), &halves, context));
        }
    }
    views
}

struct Halves<'a, A> {
    original: Option<&'a Entry<A>>,
    reply: Option<&'a Entry<A>>,
}

fn view<F: Family>(
    original: &Tuple<F::Addr>,
    translated: &Tuple<F::Addr>,
    halves: &Halves<'_, F::Addr>,
    context: &Context<'_>,
) -> FlowView {
    let present = [halves.original, halves.reply].into_iter().flatten();
    let began = present.clone().map(|e| e.flow.created).min().unwrap_or(0);
    let newest = present.clone().map(|e| e.flow.last_seen).max().unwrap_or(0);
    // Both halves bear the same state; one of them is always there.
    let (flow, embryo) = halves
        .original
        .or(halves.reply)
        .map_or_else(Default::default, |e| (e.flow, e.embryo));
    let state = conntrack::State::from_number(flow.state);
    let idle = context.clock.idle(newest);
    let counters = |entry: &Entry<F::Addr>| Counters {
        packets: entry.flow.packets,
        bytes: entry.flow.bytes,
    };
    let (container, network) = owner(flow.owner, [ip(translated.dst), ip(original.src)], context);
    let interface = |ifindex| (context.interface)(ifindex);
    FlowView {
        kind: flow_kind::name(flow.kind),
        protocol: protocol_name(original.proto),
        state: state.map_or("unknown", conntrack::State::name),
        embryo,
        original: tuple_view::<F>(original),
        translated: tuple_view::<F>(translated),
        container,
        network,
        path: match (halves.original, halves.reply) {
            (Some(e), _) => Path {
                in_interface: interface(e.flow.in_ifindex),
                out_interface: interface(e.flow.out_ifindex),
            },
            // The replies take the same way back.
            (None, Some(e)) => Path {
                in_interface: interface(e.flow.out_ifindex),
                out_interface: interface(e.flow.in_ifindex),
            },
            (None, None) => Path::default(),
        },
        sent: halves.original.map(counters),
        received: halves.reply.map(counters),
        missing: match (halves.original, halves.reply) {
            (None, _) => Some(Half::Original),
            (_, None) => Some(Half::Reply),
            _ => None,
        },
        began: context.clock.time_of(began),
        last_seen: context.clock.time_of(newest),
        idle_seconds: idle,
        expires_in_seconds: state.map_or(0, |s| s.lifetime().saturating_sub(idle)),
        owner: flow.owner,
    }
}

/// The container by its interface, or, once that is gone, by the address it had.
fn owner(
    ifindex: u32,
    candidates: [IpAddr; 2],
    context: &Context<'_>,
) -> (Option<ContainerRef>, Option<NetworkRef>) {
    let topology = context.topology;
    let endpoint = topology
        .endpoints
        .get(&ifindex)
        .or_else(|| candidates.into_iter().find_map(|a| topology.endpoint_at(a)));
    match endpoint {
        Some(endpoint) => (
            Some(endpoint.into()),
            topology.network_ref(endpoint.network),
        ),
        None => (None, None),
    }
}

fn tuple_view<F: Family>(tuple: &Tuple<F::Addr>) -> TupleView {
    let (sport, dport) = (
        u16::from_be_bytes(tuple.sport),
        u16::from_be_bytes(tuple.dport),
    );
    let ports = has_ports(tuple.proto);
    TupleView {
        src: ip(tuple.src),
        src_port: ports.then_some(sport),
        dst: ip(tuple.dst),
        dst_port: ports.then_some(dport),
        // A request's tuple has it as the source port.
        icmp_id: (tuple.proto == F::ICMP).then_some(sport),
    }
}

/// Does a packet of this protocol bear ports that netd reads?
pub(super) fn has_ports(protocol: u8) -> bool {
    matches!(protocol, proto::TCP | proto::UDP | proto::SCTP)
}

#[cfg(test)]
pub(crate) mod tests {
    use netd_common::conntrack::State as Conn;

    use super::{super::network::tests::topology, *};

    const CLIENT: V4Addr = V4Addr([198, 18, 0, 9]);
    const HOST: V4Addr = V4Addr([198, 18, 0, 1]);
    const CONTAINER: V4Addr = V4Addr([10, 201, 1, 2]);

    fn tuple(src: V4Addr, sport: u16, dst: V4Addr, dport: u16, proto: u8) -> Tuple<V4Addr> {
        Tuple {
            src,
            dst,
            sport: sport.to_be_bytes(),
            dport: dport.to_be_bytes(),
            proto,
            reserved: [0; 3],
        }
    }

    fn entry(to: &Tuple<V4Addr>, flags: u16, packets: u64, last_seen: u32) -> Flow<V4Addr> {
        Flow {
            packets,
            bytes: packets * 100,
            last_seen,
            in_ifindex: if flags & flow_flag::REPLY == 0 { 2 } else { 11 },
            out_ifindex: if flags & flow_flag::REPLY == 0 { 11 } else { 2 },
            generation: 77,
            owner: 11,
            flags,
            state: Conn::Established as u8,
            kind: flow_kind::PUBLISH,
            src: to.src,
            dst: to.dst,
            sport: to.sport,
            dport: to.dport,
            ..Flow::default()
        }
    }

    /// A published connection 198.18.0.9:40000 → 198.18.0.1:8080 → 10.201.1.2:80.
    fn pair() -> [(Tuple<V4Addr>, Flow<V4Addr>); 2] {
        let original = tuple(CLIENT, 40000, HOST, 8080, proto::TCP);
        let inside = tuple(CLIENT, 40000, CONTAINER, 80, proto::TCP);
        [
            (original, entry(&inside, flow_flag::REWRITE_DST, 3, 900)),
            (
                inside.reversed(),
                entry(
                    &original.reversed(),
                    flow_flag::REPLY | flow_flag::REWRITE_SRC,
                    2,
                    990,
                ),
            ),
        ]
    }

    fn joined(entries: &[(Tuple<V4Addr>, Flow<V4Addr>)], embryo: bool) -> Vec<FlowView> {
        let entries = entries
            .iter()
            .map(|(k, flow)| {
                (
                    *k,
                    Entry {
                        flow: *flow,
                        embryo,
                    },
                )
            })
            .collect();
        let clock = Clock::at("2026-11-21T10:00:00Z".parse().unwrap(), 1000);
        let names = |ifindex| match ifindex {
            2 => Some("eth0".to_owned()),
            11 => Some("vethA".to_owned()),
            _ => None,
        };
        join::<V4>(
            &entries,
            &Context {
                topology: &topology(),
                clock: &clock,
                interface: &names,
            },
        )
    }

    /// The published connection as a view.
    pub fn published() -> FlowView {
        joined(&pair(), false).remove(0)
    }

    #[test]
    fn two_entries_are_one_flow() {
        let views = joined(&pair(), false);
        assert_eq!(views.len(), 1);
        let v = &views[0];
        assert_eq!(
            (v.kind, &*v.protocol, v.state),
            ("publish", "tcp", "established")
        );
        assert_eq!(v.original.dst.to_string(), "198.18.0.1");
        assert_eq!(v.original.dst_port, Some(8080));
        assert_eq!(v.translated.dst.to_string(), "10.201.1.2");
        assert_eq!(v.translated.dst_port, Some(80));
        assert_eq!(
            v.sent,
            Some(Counters {
                packets: 3,
                bytes: 300
            })
        );
        assert_eq!(
            v.received,
            Some(Counters {
                packets: 2,
                bytes: 200
            })
        );
        assert_eq!(v.missing, None);
        assert_eq!(v.idle_seconds, 10);
        assert_eq!(v.expires_in_seconds, 5 * 24 * 3600 - 10);
        assert_eq!(v.last_seen.to_string(), "2026-11-21T09:59:50Z");
        assert_eq!(v.path.in_interface.as_deref(), Some("eth0"));
        assert_eq!(v.path.out_interface.as_deref(), Some("vethA"));
        assert_eq!(v.container.as_ref().unwrap().to_string(), "10.201.1.2");
        assert_eq!(v.network.as_ref().unwrap().name, "web");
    }

    #[test]
    fn a_half_tells_the_same_as_both() {
        let [original, reply] = pair();
        let whole = published();
        for (half, missing) in [(original, Half::Reply), (reply, Half::Original)] {
            let views = joined(&[half], true);
            assert_eq!(views.len(), 1);
            let v = &views[0];
            assert_eq!(v.missing, Some(missing));
            assert_eq!(v.original, whole.original);
            assert_eq!(v.translated, whole.translated);
            assert_eq!(v.path, whole.path);
            assert!(v.embryo);
            assert_eq!(v.sent.is_none(), missing == Half::Original);
            assert_eq!(v.received.is_none(), missing == Half::Reply);
        }
    }

    #[test]
    fn halves_of_two_generations_are_two_flows() {
        let [original, mut reply] = pair();
        reply.1.generation += 1;
        let views = joined(&[original, reply], false);
        assert_eq!(views.len(), 2);
        assert!(views.iter().all(|v| v.missing.is_some()));
    }

    #[test]
    fn a_flow_to_itself_is_not_its_own_reply() {
        // A container that talks to its own address and port: the key equals its reversal.
        let t = tuple(CONTAINER, 53, CONTAINER, 53, proto::UDP);
        let views = joined(&[(t, entry(&t, 0, 1, 999))], true);
        assert_eq!(views.len(), 1);
        assert_eq!(views[0].missing, Some(Half::Reply));
    }

    #[test]
    fn an_echo_has_an_identifier_and_no_ports() {
        let request = tuple(CONTAINER, 0x1234, CLIENT, 0, proto::ICMP);
        let outside = tuple(HOST, 0x9999, CLIENT, 0, proto::ICMP);
        let mut sent = entry(&outside, flow_flag::REWRITE_SRC, 1, 999);
        let mut received = entry(
            &request.reversed(),
            flow_flag::REPLY | flow_flag::REWRITE_DST,
            1,
            999,
        );
        (sent.kind, received.kind) = (flow_kind::MASQUERADE, flow_kind::MASQUERADE);
        let views = joined(&[(request, sent), (outside.reversed(), received)], false);
        assert_eq!(views.len(), 1);
        assert_eq!(views[0].original.icmp_id, Some(0x1234));
        assert_eq!(views[0].translated.icmp_id, Some(0x9999));
        assert_eq!(views[0].original.src_port, None);
        assert_eq!(views[0].kind, "masquerade");
    }
}
