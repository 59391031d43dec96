//! Frames read: what a capture says about a packet. Pure, like [`super::Frame`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::device::Mac;
use super::frame::{
    ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN,
    internet_sum, protocol, pseudo_sum,
};

/// A frame's headers; what is absent or cut off is None or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Source and destination Ethernet address; None on an L3 device.
    pub ethernet: Option<(Mac, Mac)>,
    /// VLAN tags in the bytes, outermost first: Ethernet type and control information.
    pub tags: Vec<(u16, u16)>,
    /// The Ethernet type after the tags.
    pub ethertype: u16,
    /// Source address: of IP, or ARP's sender.
    pub source: Option<IpAddr>,
    /// Destination address: of IP, or ARP's target.
    pub destination: Option<IpAddr>,
    /// The IP protocol after extension headers.
    pub protocol: Option<u8>,
    /// TTL or hop limit.
    pub ttl: Option<u8>,
    /// Fragment offset in bytes and whether more follow; None if not a fragment.
    pub fragment: Option<(u16, bool)>,
    /// Source and destination port of TCP, UDP and SCTP.
    pub ports: Option<(u16, u16)>,
    /// TCP flags.
    pub tcp_flags: Option<u8>,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
    /// Identifier and sequence number of an echo request or reply.
    pub echo: Option<(u16, u16)>,
    /// Whether the IPv4 header checksum is right.
    pub ip_checksum: Option<bool>,
    /// Whether the transport checksum is right; None if absent, of a fragment, or the packet is cut off. Packets
    /// captured where they were sent may have a partial one, which is wrong here.
    pub checksum: Option<bool>,
    /// The bytes after the transport header (after IP's for other protocols), to the end that IP's length gives.
    pub payload: Vec<u8>,
}

impl Decoded {
    /// Reads a frame that starts with an Ethernet header, or, if `ethernet` is false, with the IP header.
    pub fn read(bytes: &[u8], ethernet: bool) -> Self {
        let mut decoded = Self::default();
        let packet = if ethernet {
            decoded.read_ethernet(bytes)
        } else {
            decoded.ethertype = match bytes.first().map(|byte| byte >> 4) {
                Some(4) => ETHERTYPE_IPV4,
                Some(6) => ETHERTYPE_IPV6,
                _ => 0,
            };
            Some(bytes)
        };
        if let Some(packet) = packet {
            // None: cut off; what was read so far stands.
            let _ = match decoded.ethertype {
                ETHERTYPE_IPV4 => decoded.read_ipv4(packet),
                ETHERTYPE_IPV6 => decoded.read_ipv6(packet),
                ETHERTYPE_ARP => decoded.read_arp(packet),
                _ => None,
            };
        }
        decoded
    }

    fn read_ethernet<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        self.ethernet = Some((mac_at(bytes, 6)?, mac_at(bytes, 0)?));
        let mut at = 12;
        loop {
            let ethertype = word_at(bytes, at)?;
            if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_SERVICE_VLAN {
                self.ethertype = ethertype;
                return bytes.get(at + 2..);
            }
            self.tags.push((ethertype, word_at(bytes, at + 2)?));
            at += 4;
        }
    }

    fn read_arp(&mut self, packet: &[u8]) -> Option<()> {
        self.source = Some(Ipv4Addr::from(array_at::<4>(packet, 14)?).into());
        self.destination = Some(Ipv4Addr::from(array_at::<4>(packet, 24)?).into());
        Some(())
    }

    fn read_ipv4(&mut self, packet: &[u8]) -> Option<()> {
        let header_length = usize::from(packet.first()? & 15) * 4;
        let total = usize::from(word_at(packet, 2)?);
        self.source = Some(Ipv4Addr::from(array_at::<4>(packet, 12)?).into());
        self.destination = Some(Ipv4Addr::from(array_at::<4>(packet, 16)?).into());
        self.ttl = Some(packet[8]);
        self.protocol = Some(packet[9]);
        self.ip_checksum = Some(internet_sum(packet.get(..header_length)?, 0) == 0xffff);
        let flags = word_at(packet, 6)?;
        let (offset, more) = ((flags & 0x1fff) * 8, flags & 0x2000 != 0);
        if offset != 0 || more {
            self.fragment = Some((offset, more));
        }
        self.read_transport(packet, header_length, total)
    }

    fn read_ipv6(&mut self, packet: &[u8]) -> Option<()> {
        let total = 40 + usize::from(word_at(packet, 4)?);
        self.source = Some(Ipv6Addr::from(array_at::<16>(packet, 8)?).into());
        self.destination = Some(Ipv6Addr::from(array_at::<16>(packet, 24)?).into());
        self.ttl = Some(packet[7]);
        let (mut next, mut at) = (packet[6], 40);
        loop {
            match next {
                0 | 43 | 60 => {
                    next = *packet.get(at)?;
                    at += 8 * (usize::from(*packet.get(at + 1)?) + 1);
                    // The next header's number stood in this one.
                    continue;
                }
                protocol::FRAGMENT => {
                    let word = word_at(packet, at + 2)?;
                    self.fragment = Some((word & !7, word & 1 != 0));
                    next = *packet.get(at)?;
                    at += 8;
                    if word & !7 != 0 {
                        break;
                    }
                }
                _ => break,
            }
        }
        self.protocol = Some(next);
        self.read_transport(packet, at, total)
    }

    /// Reads the header at `at` of a packet that ends at `total`.
    fn read_transport(&mut self, packet: &[u8], at: usize, total: usize) -> Option<()> {
        let number = self.protocol?;
        let whole = packet.len() >= total;
        let body = packet.get(at..total.min(packet.len()))?;
        if self.fragment.is_some_and(|(offset, _)| offset != 0) {
            self.payload = body.to_vec();
            return Some(());
        }
        let header_length = match number {
            protocol::TCP => {
                self.tcp_flags = Some(*body.get(13)?);
                usize::from(body[12] >> 4) * 4
            }
            protocol::UDP | protocol::ICMP | protocol::ICMPV6 => 8,
            protocol::SCTP => 12,
            _ => 0,
        };
        match number {
            protocol::TCP | protocol::UDP | protocol::SCTP => {
                self.ports = Some((word_at(body, 0)?, word_at(body, 2)?));
            }
            protocol::ICMP | protocol::ICMPV6 => {
                self.icmp = Some((*body.first()?, *body.get(1)?));
                if matches!((number, body[0]), (protocol::ICMP, 0 | 8) | (_, 128 | 129)) {
                    self.echo = Some((word_at(body, 4)?, word_at(body, 6)?));
                }
            }
            _ => {}
        }
        self.payload = body.get(header_length..)?.to_vec();
        let unsummed = number == protocol::UDP && word_at(body, 6) == Some(0);
        if whole && self.fragment.is_none() && !unsummed {
            let pseudo = pseudo_sum(self.source?, self.destination?, number, body.len());
            self.checksum = match number {
                protocol::TCP | protocol::UDP | protocol::ICMPV6 => {
                    Some(internet_sum(body, pseudo) == 0xffff)
                }
                protocol::ICMP => Some(internet_sum(body, 0) == 0xffff),
                _ => None,
            };
        }
        Some(())
    }
}

impl fmt::Display for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((source, destination)) = self.ethernet {
            write!(f, "{} > {} ", display_mac(source), display_mac(destination))?;
        }
        for (ethertype, tci) in &self.tags {
            write!(f, "tag {ethertype:#06x}/{} ", tci & 0xfff)?;
        }
        let kind = match (self.ethertype, self.protocol) {
            (ETHERTYPE_ARP, _) => "ARP".to_owned(),
            (_, Some(protocol::TCP)) => "TCP".to_owned(),
            (_, Some(protocol::UDP)) => "UDP".to_owned(),
            (_, Some(protocol::ICMP)) => "ICMP".to_owned(),
            (_, Some(protocol::ICMPV6)) => "ICMPv6".to_owned(),
            (_, Some(protocol::SCTP)) => "SCTP".to_owned(),
            (_, Some(number)) => format!("protocol {number}"),
            (ethertype, None) => format!("type {ethertype:#06x}"),
        };
        f.write_str(&kind)?;
        if let (Some(source), Some(destination)) = (self.source, self.destination) {
            match self.ports {
                Some((from, to)) => write!(f, " {source} port {from} > {destination} port {to}")?,
                None => write!(f, " {source} > {destination}")?,
            }
        }
        if let Some(flags) = self.tcp_flags {
            let names = [(2, 'S'), (1, 'F'), (4, 'R'), (8, 'P'), (16, '.')];
            let set: String = names
                .iter()
                .filter(|(bit, _)| flags & bit != 0)
                .map(|(_, name)| *name)
                .collect();
            write!(f, " [{set}]")?;
        }
        if let Some((kind, code)) = self.icmp {
            write!(f, " type {kind} code {code}")?;
        }
        if let Some((offset, more)) = self.fragment {
            write!(f, " fragment at {offset}{}", if more { "+" } else { "" })?;
        }
        if let Some(ttl) = self.ttl {
            write!(f, " ttl {ttl}")?;
        }
        write!(f, " length {}", self.payload.len())
    }
}

/// An Ethernet address as people write it.
pub fn display_mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn word_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_be_bytes)
}

fn mac_at(bytes: &[u8], at: usize) -> Option<Mac> {
    array_at(bytes, at)
}

#[cfg(test)]
mod tests {
    use super::super::frame::{Frame, Tcp, tcp_flags};
    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];

    fn v4() -> Frame {
        Frame::ethernet(A, B).ip([198, 18, 0, 2], [10, 200, 0, 2])
    }

    fn v6() -> Frame {
        let address = |text: &str| text.parse::<Ipv6Addr>().expect("address");
        Frame::ethernet(A, B).ip(address("fd99::2"), address("fd00::2"))
    }

    /// The header whose checksum textbooks compute (RFC 1071's rule): proves the sum right and not only consistent.
    #[test]
    fn the_textbook_header_is_built_and_read() {
        let textbook = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8,
            0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        let frame = Frame::bare()
            .ip([192, 168, 0, 1], [192, 168, 0, 199])
            .dont_fragment();
        let bytes = frame.udp(1, 2).payload(&[0; 0x73 - 28]).build();
        assert_eq!(bytes[..20], textbook);
        assert_eq!(Decoded::read(&bytes, false).ip_checksum, Some(true));
    }

    #[test]
    fn every_kind_has_right_checksums() {
        let odd = b"three";
        let frames = [
            v4().udp(4242, 53).payload(odd),
            v4().tcp(Tcp::new(1, 2, tcp_flags::SYN).mss(1400))
                .payload(odd),
            v4().ipv4_options(&[7, 3, 4]).udp(1, 2),
            v4().echo_request(7, 1).payload(odd),
            v6().udp(4242, 53).payload(odd),
            v6().tcp(Tcp::new(1, 2, tcp_flags::ACK)).payload(odd),
            v6().echo_request(7, 1).payload(odd),
            v6().ipv6_extension(0, &[5, 2, 0, 0])
                .ipv6_extension(60, &[1, 4])
                .udp(1, 2)
                .payload(odd),
        ];
        for frame in frames {
            let decoded = Decoded::read(&frame.build(), true);
            assert_eq!(decoded.checksum, Some(true), "{decoded}");
            assert_ne!(decoded.ip_checksum, Some(false), "{decoded}");
            let broken = Decoded::read(
                &frame.clone().broken_checksum().broken_ip_checksum().build(),
                true,
            );
            assert_eq!(broken.checksum, Some(false), "{decoded}");
            assert_ne!(broken.ip_checksum, Some(true), "{decoded}");
        }
    }

    #[test]
    fn tags_and_fragments_are_read() {
        let frame = v4()
            .vlan(ETHERTYPE_SERVICE_VLAN, 0)
            .vlan(ETHERTYPE_VLAN, 0x2064)
            .udp(1, 2)
            .payload(&[0; 16]);
        let decoded = Decoded::read(&frame.build(), true);
        assert_eq!(decoded.tags, [(0x88a8, 0), (0x8100, 0x2064)]);
        assert_eq!(decoded.ports, Some((1, 2)));
        for first in [v4(), v6()] {
            let later = first.clone().udp(1, 2).fragment(16, false).payload(&[9; 8]);
            let decoded = Decoded::read(&later.build(), true);
            assert_eq!((decoded.fragment, decoded.ports), (Some((16, false)), None));
            let decoded = Decoded::read(
                &first.udp(1, 2).fragment(0, true).payload(&[0; 8]).build(),
                true,
            );
            assert_eq!(
                (decoded.fragment, decoded.ports),
                (Some((0, true)), Some((1, 2)))
            );
        }
    }

    #[test]
    fn any_prefix_of_a_frame_is_read_without_panic() {
        for frame in [
            v4().tcp(Tcp::new(1, 2, 0)),
            v6().ipv6_extension(0, &[]).fragment(0, true).udp(1, 2),
        ] {
            let bytes = frame.build();
            for length in 0..bytes.len() {
                Decoded::read(&bytes[..length], true);
                Decoded::read(&bytes[..length], false);
            }
        }
    }
}
