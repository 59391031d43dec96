//! Frames made and read byte by byte: pure, so that the packet engine's own tests may use it.
//!
//! [`Frame`] builds: Ethernet, any VLAN tags, then ARP, IPv4 or IPv6 with options or extension headers, then TCP,
//! UDP, ICMP or raw bytes, with right lengths and checksums unless told otherwise. [`super::Decoded`] reads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::device::Mac;

/// Ethernet type of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// Ethernet type of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// Ethernet type of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Ethernet type of a customer VLAN tag (802.1Q).
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// Ethernet type of a service VLAN tag (802.1ad).
pub const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

/// IP protocol numbers (IANA).
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// TCP flag bits (RFC 9293 section 3.1).
pub mod tcp_flags {
    /// FIN.
    pub const FIN: u8 = 1;
    /// SYN.
    pub const SYN: u8 = 2;
    /// RST.
    pub const RST: u8 = 4;
    /// PSH.
    pub const PSH: u8 = 8;
    /// ACK.
    pub const ACK: u8 = 16;
}

/// A frame under construction. Without [`Frame::ethernet`] it begins with the IP header, as on an L3 device.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    ethernet: Option<(Mac, Mac)>,
    ethertype: Option<u16>,
    tags: Vec<(u16, u16)>,
    network: Network,
    transport: Transport,
    payload: Vec<u8>,
    ttl: Option<u8>,
    tos: u8,
    identification: u16,
    dont_fragment: bool,
    fragment: Option<(u16, bool)>,
    ipv4_options: Vec<u8>,
    ipv6_extensions: Vec<(u8, Vec<u8>)>,
    broken_ip_checksum: bool,
    broken_checksum: bool,
    zero_udp_checksum: bool,
}

#[derive(Clone, Debug, Default)]
enum Network {
    #[default]
    None,
    Arp {
        operation: u16,
        sender: (Mac, Ipv4Addr),
        target: (Mac, Ipv4Addr),
    },
    Ip {
        source: IpAddr,
        destination: IpAddr,
    },
}

#[derive(Clone, Debug, Default)]
enum Transport {
    #[default]
    None,
    Tcp(Tcp),
    Udp {
        source: u16,
        destination: u16,
    },
    Icmp {
        kind: u8,
        code: u8,
        rest: [u8; 4],
    },
    Raw(u8),
}

/// The fields of a TCP header that a test sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// [`tcp_flags`].
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Options; padded to a multiple of four bytes with zeroes.
    pub options: Vec<u8>,
}

impl Tcp {
    /// A header with these ports and flags, and zero sequence numbers.
    pub fn new(source: u16, destination: u16, flags: u8) -> Self {
        Self {
            source,
            destination,
            sequence: 0,
            acknowledgement: 0,
            flags,
            window: 64240,
            options: Vec::new(),
        }
    }

    /// The maximum segment size option (RFC 9293 section 3.7.1).
    pub fn mss(mut self, mss: u16) -> Self {
        self.options.extend([2, 4]);
        self.options.extend(mss.to_be_bytes());
        self
    }
}

impl Frame {
    /// A frame from one Ethernet address to another.
    pub fn ethernet(source: Mac, destination: Mac) -> Self {
        Self {
            ethernet: Some((source, destination)),
            ..Self::default()
        }
    }

    /// A packet without an Ethernet header.
    pub fn bare() -> Self {
        Self::default()
    }

    /// Adds a tag inside those added before: its Ethernet type and control information.
    pub fn vlan(mut self, ethertype: u16, tci: u16) -> Self {
        self.tags.push((ethertype, tci));
        self
    }

    /// Another Ethernet type than the content's.
    pub fn ethertype(self, ethertype: u16) -> Self {
        Self {
            ethertype: Some(ethertype),
            ..self
        }
    }

    /// An ARP request (RFC 826).
    pub fn arp_request(self, sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Self {
        let network = Network::Arp {
            operation: 1,
            sender,
            target: ([0; 6], target),
        };
        Self { network, ..self }
    }

    /// An ARP reply.
    pub fn arp_reply(self, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Self {
        let network = Network::Arp {
            operation: 2,
            sender,
            target,
        };
        Self { network, ..self }
    }

    /// An IP packet; both addresses must be of one family, or [`Frame::build`] panics.
    pub fn ip(self, source: impl Into<IpAddr>, destination: impl Into<IpAddr>) -> Self {
        let network = Network::Ip {
            source: source.into(),
            destination: destination.into(),
        };
        Self { network, ..self }
    }

    /// TTL or hop limit; 64 without.
    pub fn ttl(self, ttl: u8) -> Self {
        Self {
            ttl: Some(ttl),
            ..self
        }
    }

    /// Type of service or traffic class.
    pub fn tos(self, tos: u8) -> Self {
        Self { tos, ..self }
    }

    /// IPv4 identification, or that of the IPv6 fragment header.
    pub fn identification(self, identification: u16) -> Self {
        Self {
            identification,
            ..self
        }
    }

    /// Sets the IPv4 don't-fragment bit.
    pub fn dont_fragment(self) -> Self {
        Self {
            dont_fragment: true,
            ..self
        }
    }

    /// Makes it a fragment: offset in bytes (a multiple of eight) and whether more follow. With an offset other than
    /// zero the content is payload only.
    pub fn fragment(self, offset: u16, more: bool) -> Self {
        Self {
            fragment: Some((offset, more)),
            ..self
        }
    }

    /// IPv4 options, padded to a multiple of four bytes.
    pub fn ipv4_options(self, options: &[u8]) -> Self {
        Self {
            ipv4_options: options.to_vec(),
            ..self
        }
    }

    /// Adds an IPv6 extension header: its number and its bytes after the two of next header and length, padded to a
    /// multiple of eight bytes in all.
    pub fn ipv6_extension(mut self, number: u8, body: &[u8]) -> Self {
        self.ipv6_extensions.push((number, body.to_vec()));
        self
    }

    /// A TCP segment.
    pub fn tcp(self, tcp: Tcp) -> Self {
        Self {
            transport: Transport::Tcp(tcp),
            ..self
        }
    }

    /// A UDP datagram.
    pub fn udp(self, source: u16, destination: u16) -> Self {
        Self {
            transport: Transport::Udp {
                source,
                destination,
            },
            ..self
        }
    }

    /// ICMP or ICMPv6, by the family of the addresses, with the four bytes after the checksum.
    pub fn icmp(self, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        Self {
            transport: Transport::Icmp { kind, code, rest },
            ..self
        }
    }

    /// An echo request of the packet's family.
    pub fn echo_request(self, identifier: u16, sequence: u16) -> Self {
        let kind = if self.is_ipv6() { 128 } else { 8 };
        self.icmp(kind, 0, two_words(identifier, sequence))
    }

    /// An echo reply of the packet's family.
    pub fn echo_reply(self, identifier: u16, sequence: u16) -> Self {
        let kind = if self.is_ipv6() { 129 } else { 0 };
        self.icmp(kind, 0, two_words(identifier, sequence))
    }

    /// A neighbour advertisement (RFC 4861 section 4.4) that is solicited and overrides, with the target's address.
    pub fn neighbour_advertisement(self, target: Ipv6Addr, mac: Mac) -> Self {
        let mut body = target.octets().to_vec();
        body.extend([2, 1]);
        body.extend(mac);
        self.ttl(255).icmp(136, 0, [0x60, 0, 0, 0]).payload(&body)
    }

    /// Another IP protocol, whose bytes are the payload.
    pub fn raw(self, protocol: u8) -> Self {
        Self {
            transport: Transport::Raw(protocol),
            ..self
        }
    }

    /// The payload of the innermost header.
    pub fn payload(self, payload: &[u8]) -> Self {
        Self {
            payload: payload.to_vec(),
            ..self
        }
    }

    /// Leaves a wrong IPv4 header checksum.
    pub fn broken_ip_checksum(self) -> Self {
        Self {
            broken_ip_checksum: true,
            ..self
        }
    }

    /// Leaves a wrong transport checksum.
    pub fn broken_checksum(self) -> Self {
        Self {
            broken_checksum: true,
            ..self
        }
    }

    /// Leaves out the UDP checksum (RFC 768: zero is none).
    pub fn zero_udp_checksum(self) -> Self {
        Self {
            zero_udp_checksum: true,
            ..self
        }
    }

    /// The bytes.
    ///
    /// # Panics
    /// If the addresses are of two families, or a length does not fit its field.
    pub fn build(&self) -> Vec<u8> {
        let (ethertype, content) = match &self.network {
            Network::None => (self.ethertype.unwrap_or(0), self.payload.clone()),
            Network::Arp {
                operation,
                sender,
                target,
            } => (ETHERTYPE_ARP, arp(*operation, *sender, *target)),
            Network::Ip {
                source: IpAddr::V4(source),
                destination: IpAddr::V4(destination),
            } => (ETHERTYPE_IPV4, self.ipv4(*source, *destination)),
            Network::Ip {
                source: IpAddr::V6(source),
                destination: IpAddr::V6(destination),
            } => (ETHERTYPE_IPV6, self.ipv6(*source, *destination)),
            Network::Ip {
                source,
                destination,
            } => panic!("{source} and {destination} are of two families"),
        };
        let Some((source, destination)) = self.ethernet else {
            return content;
        };
        let mut frame = Vec::with_capacity(content.len() + 14 + 4 * self.tags.len());
        frame.extend(destination);
        frame.extend(source);
        for (tag, tci) in &self.tags {
            frame.extend(tag.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        frame.extend(self.ethertype.unwrap_or(ethertype).to_be_bytes());
        frame.extend(content);
        frame
    }

    fn is_ipv6(&self) -> bool {
        matches!(
            self.network,
            Network::Ip {
                source: IpAddr::V6(_),
                ..
            }
        )
    }

    fn ipv4(&self, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
        let body = self.body(source.into(), destination.into());
        let mut options = self.ipv4_options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let header_length = 20 + options.len();
        let total =
            u16::try_from(header_length + body.len()).expect("IPv4 packet over 65,535 bytes");
        let (offset, more) = self.fragment.unwrap_or((0, false));
        let mut flags = offset / 8;
        flags |= u16::from(more) << 13 | u16::from(self.dont_fragment) << 14;
        let mut packet = vec![
            0x40 | u8::try_from(header_length / 4).expect("IPv4 options over 40 bytes"),
            self.tos,
        ];
        packet.extend(total.to_be_bytes());
        packet.extend(self.identification.to_be_bytes());
        packet.extend(flags.to_be_bytes());
        packet.extend([self.ttl.unwrap_or(64), self.protocol(false), 0, 0]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(options);
        let mut sum = !internet_sum(&packet, 0);
        if self.broken_ip_checksum {
            sum ^= 0x5555;
        }
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(body);
        packet
    }

    fn ipv6(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let mut headers: Vec<(u8, Vec<u8>)> = self
            .ipv6_extensions
            .iter()
            .map(|(number, body)| {
                let mut bytes = vec![0, 0];
                bytes.extend(body);
                bytes.resize(bytes.len().next_multiple_of(8), 0);
                bytes[1] = u8::try_from(bytes.len() / 8 - 1).expect("extension header over 2 KiB");
                (*number, bytes)
            })
            .collect();
        if let Some((offset, more)) = self.fragment {
            let mut bytes = vec![0, 0];
            bytes.extend((offset & !7 | u16::from(more)).to_be_bytes());
            bytes.extend(u32::from(self.identification).to_be_bytes());
            headers.push((protocol::FRAGMENT, bytes));
        }
        let mut next = self.protocol(true);
        for (number, bytes) in headers.iter_mut().rev() {
            bytes[0] = next;
            next = *number;
        }
        let body = self.body(source.into(), destination.into());
        let length: usize =
            headers.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() + body.len();
        let mut packet = (0x6000_0000 | u32::from(self.tos) << 20)
            .to_be_bytes()
            .to_vec();
        packet.extend(
            u16::try_from(length)
                .expect("IPv6 payload over 65,535 bytes")
                .to_be_bytes(),
        );
        packet.extend([next, self.ttl.unwrap_or(64)]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        for (_, bytes) in headers {
            packet.extend(bytes);
        }
        packet.extend(body);
        packet
    }

    fn protocol(&self, ipv6: bool) -> u8 {
        match (&self.transport, ipv6) {
            (Transport::None, _) => 59,
            (Transport::Tcp(_), _) => protocol::TCP,
            (Transport::Udp { .. }, _) => protocol::UDP,
            (Transport::Icmp { .. }, false) => protocol::ICMP,
            (Transport::Icmp { .. }, true) => protocol::ICMPV6,
            (Transport::Raw(number), _) => *number,
        }
    }

    fn body(&self, source: IpAddr, destination: IpAddr) -> Vec<u8> {
        if self.fragment.is_some_and(|(offset, _)| offset != 0) {
            return self.payload.clone();
        }
        let (mut body, checksum_at) = match &self.transport {
            Transport::None | Transport::Raw(_) => return self.payload.clone(),
            Transport::Tcp(tcp) => (tcp_header(tcp), 16),
            Transport::Udp {
                source,
                destination,
            } => {
                let length =
                    u16::try_from(8 + self.payload.len()).expect("UDP datagram over 65,535 bytes");
                let words = [*source, *destination, length, 0];
                (words.into_iter().flat_map(u16::to_be_bytes).collect(), 6)
            }
            Transport::Icmp { kind, code, rest } => {
                let mut header = vec![*kind, *code, 0, 0];
                header.extend(rest);
                (header, 2)
            }
        };
        body.extend(&self.payload);
        let udp = matches!(self.transport, Transport::Udp { .. });
        if !(udp && self.zero_udp_checksum) {
            let pseudo = match (&self.transport, source) {
                (Transport::Icmp { .. }, IpAddr::V4(_)) => 0,
                _ => pseudo_sum(
                    source,
                    destination,
                    self.protocol(source.is_ipv6()),
                    body.len(),
                ),
            };
            let mut sum = !internet_sum(&body, pseudo);
            if self.broken_checksum {
                sum ^= 0x5555;
            }
            // RFC 768: a sum of zero is sent as all ones.
            if udp && sum == 0 {
                sum = 0xffff;
            }
            body[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        body
    }
}

/// The ones' complement sum of RFC 1071 over big-endian words, continued from `start`, not complemented.
pub fn internet_sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = u64::from(start);
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of the pseudo-header of TCP, UDP and ICMPv6 (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub fn pseudo_sum(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u32 {
    let mut bytes = Vec::with_capacity(40);
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend(u32::from(protocol).to_be_bytes());
    u32::from(internet_sum(&bytes, 0))
}

fn two_words(a: u16, b: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (a.to_be_bytes(), b.to_be_bytes());
    [a, b, c, d]
}

fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4];
    bytes.extend(operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        bytes.extend(mac);
        bytes.extend(address.octets());
    }
    bytes
}

fn tcp_header(tcp: &Tcp) -> Vec<u8> {
    let mut options = tcp.options.clone();
    options.resize(options.len().next_multiple_of(4), 0);
    let words = u8::try_from(5 + options.len() / 4).expect("TCP options over 40 bytes");
    assert!(words <= 15, "TCP options over 40 bytes");
    let mut header = Vec::with_capacity(20 + options.len());
    header.extend(tcp.source.to_be_bytes());
    header.extend(tcp.destination.to_be_bytes());
    header.extend(tcp.sequence.to_be_bytes());
    header.extend(tcp.acknowledgement.to_be_bytes());
    header.extend([words << 4, tcp.flags]);
    header.extend(tcp.window.to_be_bytes());
    header.extend([0; 4]);
    header.extend(options);
    header
}
