//! Which flows end: those that were idle too long, and those whose container or publish is gone.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use netd_common::abi::{Flow, Tuple, flow_flag, flow_kind};
use netd_common::conntrack::State;

/// Host ports that lead to no container any more, or to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublishedPorts {
    /// IP protocol.
    pub protocol: u8,
    /// Address of the host; `None`: any.
    pub address: Option<IpAddr>,
    /// The family, which `address` does not tell when it is any.
    pub ipv6: bool,
    /// First port.
    pub first: u16,
    /// Last port, included.
    pub last: u16,
}

/// Flows to end at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// Flows of these container addresses.
    pub containers: BTreeSet<IpAddr>,
    /// Flows that came in by these published ports.
    pub published: BTreeSet<PublishedPorts>,
}

impl FlowFilter {
    /// True if it matches nothing.
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty() && self.published.is_empty()
    }

    /// Whether this half of a flow is to end; the other half gives the same answer.
    pub fn matches<A: Copy>(&self, tuple: &Tuple<A>, flow: &Flow<A>) -> bool
    where
        IpAddr: From<A>,
    {
        if !self.containers.is_empty()
            && [tuple.src, tuple.dst, flow.src, flow.dst]
                .iter()
                .any(|address| self.containers.contains(&IpAddr::from(*address)))
        {
            return true;
        }
        if self.published.is_empty()
            || !matches!(flow.kind, flow_kind::PUBLISH | flow_kind::HAIRPIN)
        {
            return false;
        }
        // What the client addressed: before translation on its way in, after it on the way back.
        let (address, port) = if flow.flags & flow_flag::REPLY == 0 {
            (tuple.dst, tuple.dport)
        } else {
            (flow.src, flow.sport)
        };
        self.leads_nowhere(tuple.proto, address, u16::from_be_bytes(port))
    }

    /// Whether a flow of the kernel's is to end, by the tuples of its two directions as packets bear
    /// them when they arrive.
    pub fn matches_tuples<A: Copy + PartialEq>(&self, original: &Tuple<A>, reply: &Tuple<A>) -> bool
    where
        IpAddr: From<A>,
    {
        let ends = [original.src, original.dst, reply.src, reply.dst];
        if ends
            .iter()
            .any(|end| self.containers.contains(&IpAddr::from(*end)))
        {
            return true;
        }
        // Its destination was translated: it came in by a published port.
        let published = (original.dst, original.dport) != (reply.src, reply.sport);
        published
            && !self.published.is_empty()
            && self.leads_nowhere(
                original.proto,
                original.dst,
                u16::from_be_bytes(original.dport),
            )
    }

    fn leads_nowhere<A: Copy>(&self, protocol: u8, address: A, port: u16) -> bool
    where
        IpAddr: From<A>,
    {
        // Ranges of one protocol, address and family do not overlap, so the one that begins last
        // before the port is the only candidate.
        let has = |address: Option<IpAddr>| {
            let wanted = PublishedPorts {
                protocol,
                address,
                ipv6: size_of::<A>() == 16,
                first: port,
                last: u16::MAX,
            };
            self.published
                .range(..=wanted)
                .next_back()
                .is_some_and(|found| {
                    (found.protocol, found.address, found.ipv6)
                        == (protocol, address, size_of::<A>() == 16)
                        && (found.first..=found.last).contains(&port)
                })
        };
        has(None) || has(Some(IpAddr::from(address)))
    }
}

impl fmt::Display for FlowFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flows of ")?;
        match (self.containers.len(), self.published.len()) {
            (1, 0) => write!(f, "{}", self.containers.iter().next().expect("one"))?,
            (0, n) => write!(f, "{n} published ports or ranges")?,
            (n, 0) => write!(f, "{n} container addresses")?,
            (n, m) => write!(
                f,
                "{n} container addresses and {m} published ports or ranges"
            )?,
        }
        write!(f, " that lead elsewhere now")
    }
}

/// The key of a flow's other half.
pub fn partner<A: Copy>(tuple: &Tuple<A>, flow: &Flow<A>) -> Tuple<A> {
    Tuple {
        src: flow.dst,
        dst: flow.src,
        sport: flow.dport,
        dport: flow.sport,
        proto: tuple.proto,
        reserved: [0; 3],
    }
}

/// Whether a flow was idle for its whole lifetime at `now` (CLOCK_MONOTONIC seconds), judged by
/// both its halves, or by the one that is there.
pub fn is_expired<A>(now: u32, half: &Flow<A>, other: Option<&Flow<A>>) -> bool {
    // A packet after `now` was read is not idle at all; an unknown state cannot be aged.
    let idle = |flow: &Flow<A>| now.saturating_sub(flow.last_seen);
    let lifetime = |flow: &Flow<A>| State::from_number(flow.state).map_or(0, State::lifetime);
    let other = other.filter(|other| other.generation == half.generation);
    match other {
        Some(other) => idle(half).min(idle(other)) > lifetime(half).max(lifetime(other)),
        None => idle(half) > lifetime(half),
    }
}

/// What one round of collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Entries that were looked at.
    pub seen: usize,
    /// Entries that were removed.
    pub removed: usize,
}

#[cfg(test)]
mod tests {
    use netd_common::abi::V4Addr;

    use super::*;
    use std::collections::BTreeSet;

    fn flow(state: State, last_seen: u32) -> Flow<V4Addr> {
        Flow {
            state: state as u8,
            last_seen,
            generation: 1,
            ..Flow::default()
        }
    }

    /// Client 198.18.0.2:40000 → host 198.18.0.1:8080 → container 10.201.1.2:80.
    fn published() -> [(Tuple<V4Addr>, Flow<V4Addr>); 2] {
        let original = Tuple {
            src: V4Addr([198, 18, 0, 2]),
            dst: V4Addr([198, 18, 0, 1]),
            sport: 40000u16.to_be_bytes(),
            dport: 8080u16.to_be_bytes(),
            proto: 6,
            reserved: [0; 3],
        };
        let to_container = Flow {
            src: original.src,
            sport: original.sport,
            dst: V4Addr([10, 201, 1, 2]),
            dport: 80u16.to_be_bytes(),
            kind: flow_kind::PUBLISH,
            flags: flow_flag::REWRITE_DST | flow_flag::TO_ENDPOINT,
            ..flow(State::Established, 0)
        };
        let back = Flow {
            src: original.dst,
            sport: original.dport,
            dst: original.src,
            dport: original.sport,
            kind: flow_kind::PUBLISH,
            flags: flow_flag::REWRITE_SRC | flow_flag::REPLY,
            ..flow(State::Established, 0)
        };
        [
            (original, to_container),
            (partner(&original, &to_container), back),
        ]
    }

    #[test]
    fn halves_find_each_other() {
        let [(a, fa), (b, fb)] = published();
        assert_eq!(partner(&a, &fa), b);
        assert_eq!(partner(&b, &fb), a);
    }

    #[test]
    fn flows_of_the_kernels_end_with_their_publish_or_container() {
        let [(original, to_container), (reply, _)] = published();
        let ports = FlowFilter {
            published: BTreeSet::from([PublishedPorts {
                protocol: 6,
                address: None,
                ipv6: false,
                first: 8080,
                last: 8080,
            }]),
            ..FlowFilter::default()
        };
        assert!(ports.matches_tuples(&original, &reply));
        // Masqueraded, under a source port of the same number.
        let out = Tuple {
            src: to_container.dst,
            dst: original.src,
            sport: 80u16.to_be_bytes(),
            dport: 8080u16.to_be_bytes(),
            ..original
        };
        let back = Tuple {
            src: out.dst,
            dst: original.dst,
            sport: out.dport,
            dport: 8080u16.to_be_bytes(),
            ..original
        };
        assert!(!ports.matches_tuples(&out, &back));
        let gone = FlowFilter {
            containers: BTreeSet::from([IpAddr::from(to_container.dst)]),
            ..FlowFilter::default()
        };
        assert!(gone.matches_tuples(&original, &reply) && gone.matches_tuples(&out, &back));
        let other = FlowFilter {
            containers: BTreeSet::from([[10, 201, 1, 3].into()]),
            ..FlowFilter::default()
        };
        assert!(!other.matches_tuples(&original, &reply));
    }

    #[test]
    fn both_halves_of_a_removed_publish_match_and_nothing_else() {
        let ports = |address, first, last| PublishedPorts {
            protocol: 6,
            address,
            ipv6: false,
            first,
            last,
        };
        let host: IpAddr = [198, 18, 0, 1].into();
        for (range, expected) in [
            (ports(None, 8080, 8080), true),
            (ports(None, 8000, 8099), true),
            (ports(Some(host), 8080, 8081), true),
            (ports(Some([198, 18, 0, 9].into()), 8080, 8080), false),
            (ports(None, 8081, 9000), false),
            (ports(None, 1, 8079), false),
            (ports(None, 80, 80), false),
            (
                PublishedPorts {
                    protocol: 17,
                    ..ports(None, 8080, 8080)
                },
                false,
            ),
            (
                PublishedPorts {
                    ipv6: true,
                    ..ports(None, 8080, 8080)
                },
                false,
            ),
        ] {
            let filter = FlowFilter {
                published: BTreeSet::from([range, ports(None, 9, 9), ports(None, 60000, 60000)]),
                ..FlowFilter::default()
            };
            for (tuple, flow) in published() {
                assert_eq!(filter.matches(&tuple, &flow), expected, "{range:?}");
            }
        }
    }

    #[test]
    fn flows_of_a_container_match_in_both_directions() {
        for (address, expected) in [([10, 201, 1, 2], true), ([10, 201, 1, 3], false)] {
            let filter = FlowFilter {
                containers: BTreeSet::from([IpAddr::from(address)]),
                ..FlowFilter::default()
            };
            for (tuple, flow) in published() {
                assert_eq!(filter.matches(&tuple, &flow), expected);
            }
        }
    }

    #[test]
    fn a_flow_lives_as_long_as_either_half() {
        let (old, fresh) = (flow(State::UdpReplied, 100), flow(State::UdpReplied, 900));
        let life = State::UdpReplied.lifetime();
        assert!(!is_expired(900 + life, &old, Some(&fresh)));
        assert!(is_expired(901 + life, &old, Some(&fresh)));
        assert!(is_expired(901 + life, &fresh, Some(&old)));
        assert!(is_expired(101 + life, &old, None));
        // The partner of an earlier flow on the same tuple does not count.
        let stranger = Flow {
            generation: 2,
            ..fresh
        };
        assert!(is_expired(101 + life, &old, Some(&stranger)));
        // The clock was read before the packet came.
        assert!(!is_expired(50, &old, None));
    }
}
