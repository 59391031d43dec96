//! Choosing flows: every criterion that is given must hold.

use std::{borrow::Cow, collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use netd_common::{conntrack, wire::proto};
use thiserror::Error;

use super::{
    flow::{FlowView, TupleView},
    network::Topology,
    protocol_name,
};

/// A criterion that makes no sense here. It is the user's to correct.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FilterError {
    /// No container with that interface.
    #[error(
        "--container {0}: this is neither an address nor the host interface of a container; \
         there are: {1}"
    )]
    Container(String, String),
    /// No network with that name.
    #[error("--network {0}: there is no such network; there are: {1}")]
    Network(String, String),
    /// Not an address or prefix.
    #[error("--address {0}: write an address (10.201.1.2, fd00::2) or a prefix (10.201.1.0/24)")]
    Address(String),
    /// Not a protocol.
    #[error("--protocol {0}: write tcp, udp, sctp, icmp, icmpv6 or a number from 0 to 255")]
    Protocol(String),
    /// Not a state.
    #[error("--state {0}: write one of {1}")]
    State(String, String),
}

/// Criteria for flows as a person writes them.
#[derive(Clone, Debug, Default)]
pub struct Criteria {
    /// Address or host interface of a container.
    pub container: Option<String>,
    /// Address or prefix on either side, before or after translation.
    pub address: Option<String>,
    /// Port on either side, before or after translation.
    pub port: Option<u16>,
    /// Protocol by name or number.
    pub protocol: Option<String>,
    /// State as conntrack names it, or `embryo`.
    pub state: Option<String>,
    /// Network by name, bridge or number.
    pub network: Option<String>,
}

/// Criteria that were checked against what there is.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    container: Option<Container>,
    address: Option<IpNet>,
    port: Option<u16>,
    protocol: Option<Cow<'static, str>>,
    state: Option<String>,
    network: Option<u16>,
}

#[derive(Clone, Debug)]
struct Container {
    ifindex: Option<u32>,
    addresses: BTreeSet<IpAddr>,
}

/// What `--state` takes besides the names of conntrack: every flow without a reply.
const EMBRYO: &str = "embryo";

impl Filter {
    /// Checks the criteria.
    ///
    /// # Errors
    /// The first that names nothing there is.
    pub fn new(criteria: &Criteria, topology: &Topology) -> Result<Self, FilterError> {
        let some = |value: &Option<String>| value.clone();
        Ok(Self {
            container: some(&criteria.container)
                .map(|c| container(&c, topology))
                .transpose()?,
            address: some(&criteria.address).map(|a| prefix(&a)).transpose()?,
            port: criteria.port,
            protocol: some(&criteria.protocol).map(|p| protocol(&p)).transpose()?,
            state: some(&criteria.state).map(|s| state(&s)).transpose()?,
            network: some(&criteria.network)
                .map(|n| network(&n, topology))
                .transpose()?,
        })
    }

    /// Does the flow meet every criterion?
    pub fn matches(&self, flow: &FlowView) -> bool {
        let sides = [&flow.original, &flow.translated];
        let addresses = |t: &TupleView| [t.src, t.dst];
        let any_address =
            |test: &dyn Fn(IpAddr) -> bool| sides.iter().flat_map(|t| addresses(t)).any(test);
        self.container.as_ref().is_none_or(|c| {
            c.ifindex == Some(flow.owner) || any_address(&|a| c.addresses.contains(&a))
        }) && self
            .address
            .is_none_or(|p| any_address(&|a| p.contains(&a)))
            && self.port.is_none_or(|port| {
                sides
                    .iter()
                    .any(|t| t.src_port == Some(port) || t.dst_port == Some(port))
            })
            && self.protocol.as_ref().is_none_or(|p| *p == flow.protocol)
            && self.state.as_ref().is_none_or(|s| {
                if s == EMBRYO {
                    flow.embryo
                } else {
                    s == flow.state
                }
            })
            && self
                .network
                .is_none_or(|id| flow.network.as_ref().is_some_and(|n| n.id == id))
    }
}

fn container(text: &str, topology: &Topology) -> Result<Container, FilterError> {
    let address = text.parse::<IpAddr>().ok();
    let endpoint = match address {
        Some(address) => topology.endpoint_at(address),
        None => topology.endpoint_named(text),
    };
    match (endpoint, address) {
        (Some(endpoint), _) => Ok(Container {
            ifindex: Some(endpoint.ifindex),
            addresses: endpoint.addresses.iter().copied().collect(),
        }),
        // A container that is gone may have left flows.
        (None, Some(address)) => Ok(Container {
            ifindex: None,
            addresses: [address].into(),
        }),
        (None, None) => Err(FilterError::Container(
            text.to_owned(),
            list(
                topology
                    .endpoints
                    .values()
                    .filter_map(|e| e.interface.as_deref()),
            ),
        )),
    }
}

fn prefix(text: &str) -> Result<IpNet, FilterError> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| FilterError::Address(text.to_owned()))
}

fn protocol(text: &str) -> Result<Cow<'static, str>, FilterError> {
    let lower = text.to_ascii_lowercase();
    let known = [
        proto::TCP,
        proto::UDP,
        proto::SCTP,
        proto::ICMP,
        proto::ICMPV6,
    ];
    known
        .into_iter()
        .map(protocol_name)
        .find(|name| *name == lower)
        .or_else(|| lower.parse().ok().map(protocol_name))
        .ok_or_else(|| FilterError::Protocol(text.to_owned()))
}

fn state(text: &str) -> Result<String, FilterError> {
    let lower = text.to_ascii_lowercase().replace('_', "-");
    let names: BTreeSet<&str> = conntrack::State::ALL
        .iter()
        .map(|s| s.name())
        .chain([EMBRYO])
        .collect();
    if names.contains(lower.as_str()) {
        Ok(lower)
    } else {
        Err(FilterError::State(text.to_owned(), list(names)))
    }
}

fn network(text: &str, topology: &Topology) -> Result<u16, FilterError> {
    topology.network_called(text).map(|n| n.id).ok_or_else(|| {
        let names = topology.networks.values().map(|n| n.name.as_str());
        FilterError::Network(text.to_owned(), list(names))
    })
}

fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{flow::tests::published, network::tests::topology},
        *,
    };

    fn matches(change: impl FnOnce(&mut Criteria)) -> bool {
        let mut criteria = Criteria::default();
        change(&mut criteria);
        Filter::new(&criteria, &topology())
            .unwrap()
            .matches(&published())
    }

    fn refused(change: impl FnOnce(&mut Criteria)) -> String {
        let mut criteria = Criteria::default();
        change(&mut criteria);
        Filter::new(&criteria, &topology()).unwrap_err().to_string()
    }

    /// Every criterion with a value that the published connection meets, and one that it does not.
    #[test]
    fn each_criterion_decides() {
        assert!(matches(|_| {}));
        let text = |s: &str| Some(s.to_owned());
        for yes in ["10.201.1.2", "fd00:201:1::2", "vethA"] {
            assert!(matches(|c| c.container = text(yes)), "{yes}");
        }
        for no in ["10.201.2.2", "vethB", "10.201.1.77"] {
            assert!(!matches(|c| c.container = text(no)), "{no}");
        }
        for yes in ["198.18.0.9", "198.18.0.1", "10.201.1.2", "10.201.1.0/24"] {
            assert!(matches(|c| c.address = text(yes)), "{yes}");
        }
        assert!(!matches(|c| c.address = text("10.201.2.0/24")));
        for yes in [40000, 8080, 80] {
            assert!(matches(|c| c.port = Some(yes)), "{yes}");
        }
        assert!(!matches(|c| c.port = Some(81)));
        for yes in ["tcp", "TCP", "6"] {
            assert!(matches(|c| c.protocol = text(yes)), "{yes}");
        }
        assert!(!matches(|c| c.protocol = text("udp")));
        assert!(matches(|c| c.state = text("established")));
        assert!(!matches(|c| c.state = text("time_wait")));
        assert!(!matches(|c| c.state = text("embryo")));
        for yes in ["web", "br-web", "1"] {
            assert!(matches(|c| c.network = text(yes)), "{yes}");
        }
        assert!(!matches(|c| c.network = text("db")));
    }

    #[test]
    fn criteria_combine() {
        assert!(matches(|c| {
            c.port = Some(80);
            c.protocol = Some("tcp".into());
        }));
        assert!(!matches(|c| {
            c.port = Some(80);
            c.protocol = Some("udp".into());
        }));
    }

    #[test]
    fn what_names_nothing_is_refused_with_what_there_is() {
        let text = |s: &str| Some(s.to_owned());
        assert!(refused(|c| c.container = text("web-1")).contains("vethA, vethB"));
        assert!(refused(|c| c.network = text("lan")).contains("web, db"));
        assert!(refused(|c| c.address = text("10.201")).contains("prefix"));
        assert!(refused(|c| c.protocol = text("256")).contains("0 to 255"));
        assert!(refused(|c| c.state = text("open")).contains("established"));
    }
}
