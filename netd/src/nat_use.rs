//! Source ports in use: how many of the range are taken towards one destination.
//!
//! Source NAT runs out of ports per destination, not as a whole: the same port serves two
//! destinations at once. Every masqueraded flow takes one port of its address towards its
//! destination's address and port.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netd_common::abi::{Flow, NatPressure, Tuple, flow_flag};
use serde::{Deserialize, Serialize};

/// What source ports are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Destination {
    /// The address that is masqueraded with.
    pub address: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// Where the flows lead.
    pub destination: IpAddr,
    /// Port there; 0 for echo.
    pub port: u16,
}

/// How many ports are in use towards a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortUse {
    /// Towards where.
    #[serde(flatten)]
    pub towards: Destination,
    /// Ports that are taken.
    pub in_use: u32,
    /// Ports of the range.
    pub of: u32,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

impl Destination {
    /// Where this half of a flow takes a port; `None` for the half of the replies and for flows
    /// whose source is not translated.
    pub fn of<A: Copy>(tuple: &Tuple<A>, flow: &Flow<A>) -> Option<Self>
    where
        IpAddr: From<A>,
    {
        let translated = flow.flags & (flow_flag::REPLY | flow_flag::REWRITE_SRC);
        (translated == flow_flag::REWRITE_SRC).then(|| Self {
            address: flow.src.into(),
            protocol: tuple.proto,
            destination: flow.dst.into(),
            port: port(tuple.proto, flow.dport),
        })
    }
}

/// The destination that an event tells of.
pub fn pressed(event: &NatPressure) -> Destination {
    let address = |bytes: [u8; 16]| match event.family {
        4 => IpAddr::from(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        _ => IpAddr::from(Ipv6Addr::from(bytes)),
    };
    Destination {
        address: address(event.address),
        protocol: event.proto,
        destination: address(event.dst),
        port: port(event.proto, event.dport),
    }
}

/// An echo's identifier is its source port as well as its destination port.
fn port(protocol: u8, port: [u8; 2]) -> u16 {
    if matches!(protocol, TCP | UDP | SCTP) {
        u16::from_be_bytes(port)
    } else {
        0
    }
}

impl PortUse {
    /// From four fifths on.
    pub fn is_scarce(&self) -> bool {
        u64::from(self.in_use) * 5 >= u64::from(self.of) * 4
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            TCP => "tcp",
            UDP => "udp",
            SCTP => "sctp",
            _ => return write!(f, "{} (echo), as {}", self.destination, self.address),
        };
        let to = std::net::SocketAddr::new(self.destination, self.port);
        write!(f, "{to}/{protocol}, as {}", self.address)
    }
}

impl fmt::Display for PortUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} source ports are in use towards {}",
            self.in_use, self.of, self.towards
        )
    }
}

#[cfg(test)]
mod tests {
    use netd_common::abi::V4Addr;

    use super::*;

    fn masqueraded(proto: u8) -> (Tuple<V4Addr>, Flow<V4Addr>) {
        let tuple = Tuple {
            src: V4Addr([10, 200, 0, 2]),
            dst: V4Addr([198, 18, 0, 2]),
            sport: 4000u16.to_be_bytes(),
            dport: 53u16.to_be_bytes(),
            proto,
            reserved: [0; 3],
        };
        let flow = Flow {
            src: V4Addr([198, 18, 0, 1]),
            dst: tuple.dst,
            sport: 20000u16.to_be_bytes(),
            dport: tuple.dport,
            flags: flow_flag::REWRITE_SRC,
            ..Flow::default()
        };
        (tuple, flow)
    }

    #[test]
    fn an_event_and_its_flows_name_the_same_destination() {
        for proto in [TCP, UDP, 1] {
            let (tuple, flow) = masqueraded(proto);
            let mut event = NatPressure {
                dport: flow.dport,
                proto,
                family: 4,
                ..NatPressure::default()
            };
            event.address[..4].copy_from_slice(&flow.src.0);
            event.dst[..4].copy_from_slice(&flow.dst.0);
            assert_eq!(Destination::of(&tuple, &flow), Some(pressed(&event)));
        }
    }

    #[test]
    fn a_flow_counts_once_and_only_if_its_source_is_translated() {
        let (tuple, flow) = masqueraded(TCP);
        for flags in [
            0,
            flow_flag::REWRITE_DST,
            flow_flag::REWRITE_SRC | flow_flag::REPLY,
        ] {
            let other = Flow { flags, ..flow };
            assert_eq!(Destination::of(&tuple, &other), None);
        }
        assert!(Destination::of(&tuple, &flow).is_some());
    }

    #[test]
    fn scarce_from_four_fifths_on() {
        let (tuple, flow) = masqueraded(TCP);
        let used = |in_use| PortUse {
            towards: Destination::of(&tuple, &flow).unwrap(),
            in_use,
            of: 10,
        };
        assert!(!used(7).is_scarce() && used(8).is_scarce());
        assert_eq!(
            used(8).to_string(),
            "8 of 10 source ports are in use towards 198.18.0.2:53/tcp, as 198.18.0.1"
        );
    }
}
