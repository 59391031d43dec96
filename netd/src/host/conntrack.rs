//! Flows that the kernel's own conntrack knows, read through ctnetlink.

use std::io;
use std::net::IpAddr;

use netd_common::wire::proto;

use super::netlink::{Attributes, ip_of};
use super::{HostError, IpFamily, open, read_sysctl};

/// One flow of nf_conntrack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackFlow {
    /// IP protocol.
    pub protocol: u8,
    /// What the packets of the side that opened it bear when they arrive (`IPCT_TUPLE_ORIG`).
    pub original: FlowEnds,
    /// What the packets of the other side bear when they arrive (`IPCT_TUPLE_REPLY`).
    pub reply: FlowEnds,
    /// Seconds after which the kernel forgets it if nothing passes.
    pub remaining: u32,
    /// Seconds after which the kernel would forget it, counted from the last packet.
    pub lifetime: u32,
    /// How far a TCP connection is closed.
    pub closing: Closing,
}

impl ConntrackFlow {
    /// Does the kernel's NAT change its packets? Then the replies are not those of the original.
    pub fn is_translated(&self) -> bool {
        let (there, back) = (&self.original, &self.reply);
        (there.src, there.dst, there.sport, there.dport)
            != (back.dst, back.src, back.dport, back.sport)
    }
}

/// The two ends that a packet names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowEnds {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port, the identifier of an echo request, or 0.
    pub sport: u16,
    /// Destination port, the identifier of an echo reply, or 0.
    pub dport: u16,
}

/// How far a TCP connection is closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Closing {
    /// Not at all; every other protocol.
    #[default]
    Open,
    /// One side has sent its FIN.
    Half,
    /// Both have, or one has sent a RST.
    Whole,
}

// linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
/// Length of `struct nfgenmsg`: family, version, resource id.
const NFGENMSG: usize = 4;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTO_ICMP_ID: u16 = 4;
const CTA_PROTO_ICMP_TYPE: u16 = 5;
const CTA_PROTO_ICMPV6_ID: u16 = 7;
const CTA_PROTO_ICMPV6_TYPE: u16 = 8;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;

/// The flows of this network namespace for which `concerns` is true of one of the addresses; none
/// where the kernel has no conntrack.
///
/// # Errors
/// What the kernel says; also where it has conntrack, but not its netlink interface.
pub fn read_conntrack(concerns: impl Fn(&IpAddr) -> bool) -> Result<Vec<ConntrackFlow>, HostError> {
    let Some(timeouts) = Timeouts::read() else {
        return Ok(Vec::new());
    };
    let mut netfilter = match open(libc::NETLINK_NETFILTER, "netfilter") {
        Err(HostError::Open { source, .. }) if has_no_family(&source) => return Ok(Vec::new()),
        opened => opened?,
    };
    let mut flows = Vec::new();
    for family in [IpFamily::V4, IpFamily::V6] {
        let request = [family.number(), 0, 0, 0];
        flows.append(&mut netfilter.dump(
            "the kernel's conntrack",
            NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET,
            &request,
            |found, body| {
                found.extend(decode(body, &timeouts).filter(|flow| {
                    let ends = [&flow.original, &flow.reply];
                    ends.iter().any(|e| concerns(&e.src) || concerns(&e.dst))
                }));
            },
        )?);
    }
    Ok(flows)
}

fn has_no_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPROTONOSUPPORT)
}

/// Seconds after which the kernel forgets a flow, as set in this network namespace.
struct Timeouts {
    established: u32,
    fin_wait: u32,
    close_wait: u32,
    last_ack: u32,
    time_wait: u32,
    close: u32,
    udp_stream: u32,
    icmp: u32,
    icmpv6: u32,
}

impl Timeouts {
    /// `None` where there is no conntrack. A setting that is missing has the kernel's default.
    fn read() -> Option<Self> {
        let setting = |name: &str| {
            let name = format!("net/netfilter/nf_conntrack_{name}");
            read_sysctl(&name).ok().flatten()
        };
        setting("max")?;
        let seconds = |name: &str, default| {
            let text = setting(name);
            text.and_then(|t| t.trim().parse().ok()).unwrap_or(default)
        };
        Some(Self {
            established: seconds("tcp_timeout_established", 432_000),
            fin_wait: seconds("tcp_timeout_fin_wait", 120),
            close_wait: seconds("tcp_timeout_close_wait", 60),
            last_ack: seconds("tcp_timeout_last_ack", 30),
            time_wait: seconds("tcp_timeout_time_wait", 120),
            close: seconds("tcp_timeout_close", 10),
            udp_stream: seconds("udp_timeout_stream", 120),
            icmp: seconds("icmp_timeout", 30),
            icmpv6: seconds("icmpv6_timeout", 30),
        })
    }

    /// Lifetime that the next packets give a flow, and how far it is closed. A connection that is
    /// being opened, and a UDP flow without a reply, live longer once they are answered: they count
    /// as answered, and what the kernel says remains until then.
    fn of(&self, protocol: u8, tcp_state: u8) -> (u32, Closing) {
        // enum tcp_conntrack (linux/netfilter/nf_conntrack_tcp.h)
        match (protocol, tcp_state) {
            (proto::TCP, 4) => (self.fin_wait, Closing::Half),
            (proto::TCP, 5) => (self.close_wait, Closing::Half),
            (proto::TCP, 6) => (self.last_ack, Closing::Whole),
            (proto::TCP, 7) => (self.time_wait, Closing::Whole),
            (proto::TCP, 8) => (self.close, Closing::Whole),
            (proto::TCP, _) => (self.established, Closing::Open),
            (proto::UDP, _) => (self.udp_stream, Closing::Open),
            (proto::ICMP, _) => (self.icmp, Closing::Open),
            (proto::ICMPV6, _) => (self.icmpv6, Closing::Open),
            _ => (0, Closing::Open),
        }
    }
}

/// One flow; `None` for protocols whose packets cannot be told apart by addresses and ports.
fn decode(body: &[u8], timeouts: &Timeouts) -> Option<ConntrackFlow> {
    let (mut original, mut reply, mut remaining, mut tcp_state) = (None, None, 0, 0);
    for (kind, value) in Attributes::after(body, NFGENMSG) {
        match kind {
            CTA_TUPLE_ORIG => original = tuple(value),
            CTA_TUPLE_REPLY => reply = tuple(value),
            CTA_TIMEOUT => remaining = u32::from_be_bytes(value.try_into().ok()?),
            CTA_PROTOINFO => {
                let tcp = Attributes(value).find(|(kind, _)| *kind == CTA_PROTOINFO_TCP);
                let state = Attributes(tcp.map_or(&[][..], |(_, value)| value))
                    .find(|(kind, _)| *kind == CTA_PROTOINFO_TCP_STATE);
                tcp_state = state.and_then(|(_, v)| v.first().copied()).unwrap_or(0);
            }
            _ => {}
        }
    }
    let ((protocol, original), (_, reply)) = (original?, reply?);
    let (lifetime, closing) = timeouts.of(protocol, tcp_state);
    Some(ConntrackFlow {
        protocol,
        original,
        reply,
        remaining,
        // A rule of the CT target, or a helper, may have given it more.
        lifetime: lifetime.max(remaining),
        closing,
    })
}

/// Protocol and ends of a tuple.
fn tuple(attribute: &[u8]) -> Option<(u8, FlowEnds)> {
    let (mut src, mut dst, mut protocol) = (None, None, None);
    let (mut sport, mut dport, mut id, mut icmp_type) = (None, None, None, None);
    for (kind, nested) in Attributes(attribute) {
        for (field, value) in Attributes(nested) {
            match (kind, field) {
                (CTA_TUPLE_IP, CTA_IP_V4_SRC | CTA_IP_V6_SRC) => src = ip_of(value),
                (CTA_TUPLE_IP, CTA_IP_V4_DST | CTA_IP_V6_DST) => dst = ip_of(value),
                (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => protocol = value.first().copied(),
                (CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT) => sport = port(value),
                (CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT) => dport = port(value),
                (CTA_TUPLE_PROTO, CTA_PROTO_ICMP_ID | CTA_PROTO_ICMPV6_ID) => id = port(value),
                (CTA_TUPLE_PROTO, CTA_PROTO_ICMP_TYPE | CTA_PROTO_ICMPV6_TYPE) => {
                    icmp_type = value.first().copied();
                }
                _ => {}
            }
        }
    }
    let protocol = protocol?;
    let (sport, dport) = match (protocol, icmp_type) {
        (proto::TCP | proto::UDP | proto::SCTP, _) => (sport?, dport?),
        // Echo request, echo reply.
        (proto::ICMP, Some(8)) | (proto::ICMPV6, Some(128)) => (id?, 0),
        (proto::ICMP, Some(0)) | (proto::ICMPV6, Some(129)) => (0, id?),
        (proto::ICMP | proto::ICMPV6, _) => return None,
        // GRE's keys and others' ports are not where netd looks.
        _ if sport.is_some() => return None,
        _ => (0, 0),
    };
    let ends = FlowEnds {
        src: src?,
        dst: dst?,
        sport,
        dport,
    };
    Some((protocol, ends))
}

fn port(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(value.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::netlink::push_attribute;
    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        established: 1000,
        fin_wait: 120,
        close_wait: 60,
        last_ack: 30,
        time_wait: 120,
        close: 10,
        udp_stream: 180,
        icmp: 30,
        icmpv6: 30,
    };

    /// Attributes, one after the other.
    fn attributes(fields: &[(u16, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (kind, value) in fields {
            push_attribute(&mut out, *kind, value);
        }
        out
    }

    const NESTED: u16 = 0x8000;

    fn ends(src: [u8; 4], dst: [u8; 4], l4: &[(u16, &[u8])]) -> Vec<u8> {
        attributes(&[
            (
                CTA_TUPLE_IP | NESTED,
                &attributes(&[(CTA_IP_V4_SRC, &src), (CTA_IP_V4_DST, &dst)]),
            ),
            (CTA_TUPLE_PROTO | NESTED, &attributes(l4)),
        ])
    }

    /// A client's flow to a port of the host, which leads to a container.
    fn body(original: &[(u16, &[u8])], reply: &[(u16, &[u8])], state: u8, left: u32) -> Vec<u8> {
        let (client, host, inside) = ([198, 18, 0, 2], [198, 18, 0, 1], [10, 200, 0, 2]);
        let tcp = attributes(&[(CTA_PROTOINFO_TCP_STATE, &[state])]);
        let mut body = vec![libc::AF_INET as u8, 0, 0, 0];
        body.extend(attributes(&[
            (CTA_TUPLE_ORIG | NESTED, &ends(client, host, original)),
            (CTA_TUPLE_REPLY | NESTED, &ends(inside, client, reply)),
            (CTA_TIMEOUT, &left.to_be_bytes()),
            (
                CTA_PROTOINFO | NESTED,
                &attributes(&[(CTA_PROTOINFO_TCP | NESTED, &tcp)]),
            ),
        ]));
        body
    }

    const TCP: (u16, &[u8]) = (CTA_PROTO_NUM, &[proto::TCP]);
    const ICMP: (u16, &[u8]) = (CTA_PROTO_NUM, &[proto::ICMP]);

    #[test]
    fn a_translated_connection() {
        let [a, b, c] = [40000u16, 8081, 80].map(u16::to_be_bytes);
        let flow = |state, left| {
            let original = [TCP, (CTA_PROTO_SRC_PORT, &a), (CTA_PROTO_DST_PORT, &b)];
            let reply = [TCP, (CTA_PROTO_SRC_PORT, &c), (CTA_PROTO_DST_PORT, &a)];
            decode(&body(&original, &reply, state, left), &TIMEOUTS).unwrap()
        };
        let open = flow(3, 990);
        assert_eq!(open.original.src, IpAddr::from([198, 18, 0, 2]));
        assert_eq!((open.original.sport, open.original.dport), (40000, 8081));
        assert_eq!(open.reply.src, IpAddr::from([10, 200, 0, 2]));
        assert_eq!((open.reply.sport, open.reply.dport), (80, 40000));
        assert_eq!((open.remaining, open.lifetime), (990, 1000));
        assert_eq!(open.closing, Closing::Open);
        assert_eq!(flow(1, 100).lifetime, 1000, "answered, it lives on");
        assert_eq!(flow(7, 90).lifetime, 120);
        assert_eq!(flow(7, 90).closing, Closing::Whole);
        assert_eq!(flow(5, 55).closing, Closing::Half);
        assert_eq!(flow(3, 5000).lifetime, 5000);
    }

    #[test]
    fn an_echo_has_its_identifier_where_netd_looks() {
        let id = 7u16.to_be_bytes();
        let echo = |kind: u8| {
            let original = [
                ICMP,
                (CTA_PROTO_ICMP_ID, &id),
                (CTA_PROTO_ICMP_TYPE, &[kind]),
            ];
            let reply = [ICMP, (CTA_PROTO_ICMP_ID, &id), (CTA_PROTO_ICMP_TYPE, &[0])];
            decode(&body(&original, &reply, 0, 20), &TIMEOUTS)
        };
        let flow = echo(8).unwrap();
        assert_eq!((flow.original.sport, flow.original.dport), (7, 0));
        assert_eq!((flow.reply.sport, flow.reply.dport), (0, 7));
        assert_eq!((flow.remaining, flow.lifetime), (20, 30));
        assert_eq!(echo(13), None, "a timestamp request");
    }

    #[test]
    fn what_is_cut_short_is_no_flow() {
        let ports: [(u16, &[u8]); 3] = [
            TCP,
            (CTA_PROTO_SRC_PORT, &[0, 1]),
            (CTA_PROTO_DST_PORT, &[0, 2]),
        ];
        let whole = body(&ports, &ports, 3, 10);
        assert!(decode(&whole, &TIMEOUTS).is_some());
        let reply = 4 + 4 + ends([0; 4], [0; 4], &ports).len();
        for length in 0..reply + 20 {
            assert_eq!(decode(&whole[..length], &TIMEOUTS), None, "{length}");
        }
    }
}
