//! Frames for tests: built from a description, and checked by full recomputation.

use crate::{
    checksum::checksum,
    crc32c::crc32c,
    wire::{Address, Family, ethertype, proto},
};

/// A frame to build. Lengths and checksums follow from the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<A> {
    /// Destination MAC.
    pub to: [u8; 6],
    /// Source MAC.
    pub from: [u8; 6],
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS byte or traffic class.
    pub tos: u8,
    /// IP protocol.
    pub proto: u8,
    /// IPv4 options, a multiple of 4 bytes; or IPv6 extension headers, whose first is numbered by
    /// `first_extension` and whose last names `proto` as the next.
    pub options: Vec<u8>,
    /// Number of the first extension header, if `options` are such.
    pub first_extension: u8,
    /// Fragment field of IPv4: flags and offset.
    pub fragment: u16,
    /// L4 header and payload, with a checksum field of zeros.
    pub l4: Vec<u8>,
    /// A UDP checksum of zero: none was computed (IPv4 only).
    pub no_udp_checksum: bool,
}

impl<A: Address> Frame<A> {
    /// An IP packet of any protocol.
    pub fn new(src: A, dst: A, proto: u8, l4: Vec<u8>) -> Self {
        Self {
            to: [0; 6],
            from: [0; 6],
            src,
            dst,
            ttl: 64,
            tos: 0,
            proto,
            options: Vec::new(),
            first_extension: 0,
            fragment: 0,
            l4,
            no_udp_checksum: false,
        }
    }

    /// A TCP segment.
    pub fn tcp(src: (A, u16), dst: (A, u16), flags: u8, payload: &[u8]) -> Self {
        let mut l4 = [src.1.to_be_bytes(), dst.1.to_be_bytes()].concat();
        l4.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        l4.extend(payload);
        Self::new(src.0, dst.0, proto::TCP, l4)
    }

    /// A UDP datagram.
    pub fn udp(src: (A, u16), dst: (A, u16), payload: &[u8]) -> Self {
        let mut l4 = [src.1.to_be_bytes(), dst.1.to_be_bytes()].concat();
        l4.extend((8 + payload.len() as u16).to_be_bytes());
        l4.extend([0, 0]);
        l4.extend(payload);
        Self::new(src.0, dst.0, proto::UDP, l4)
    }

    /// An SCTP packet without chunks.
    pub fn sctp(src: (A, u16), dst: (A, u16)) -> Self {
        let mut l4 = [src.1.to_be_bytes(), dst.1.to_be_bytes()].concat();
        l4.extend([0; 8]);
        Self::new(src.0, dst.0, proto::SCTP, l4)
    }

    /// An ICMP message: type, code, the four bytes after the checksum, and the rest.
    pub fn icmp<F: Family<Addr = A>>(
        src: A,
        dst: A,
        kind: (u8, u8),
        rest_of_header: [u8; 4],
        payload: &[u8],
    ) -> Self {
        let mut l4 = vec![kind.0, kind.1, 0, 0];
        l4.extend(rest_of_header);
        l4.extend(payload);
        Self::new(src, dst, F::ICMP, l4)
    }

    /// An echo request.
    pub fn echo<F: Family<Addr = A>>(src: A, dst: A, id: u16) -> Self {
        let id = id.to_be_bytes();
        Self::icmp::<F>(
            src,
            dst,
            (F::ECHO_REQUEST, 0),
            [id[0], id[1], 0, 1],
            b"ping",
        )
    }

    /// An echo reply.
    pub fn echo_reply<F: Family<Addr = A>>(src: A, dst: A, id: u16) -> Self {
        let id = id.to_be_bytes();
        Self::icmp::<F>(src, dst, (F::ECHO_REPLY, 0), [id[0], id[1], 0, 1], b"ping")
    }

    /// A TCP segment with these options, a multiple of 4 bytes.
    ///
    /// # Panics
    /// If they are not.
    #[must_use]
    pub fn tcp_options(mut self, options: &[u8]) -> Self {
        assert_eq!(options.len() % 4, 0, "TCP options come in words");
        self.l4[12] = ((20 + options.len()) as u8 / 4) << 4;
        self.l4.splice(20..20, options.iter().copied());
        self
    }

    /// Not to be fragmented: sets DF (IPv4).
    #[must_use]
    pub fn whole(mut self) -> Self {
        self.fragment = 0x4000;
        self
    }

    /// With these MACs: to, from.
    #[must_use]
    pub fn macs(mut self, to: [u8; 6], from: [u8; 6]) -> Self {
        (self.to, self.from) = (to, from);
        self
    }

    /// With this TTL or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// With this TOS byte or traffic class.
    #[must_use]
    pub fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    /// The bytes, from the Ethernet header on.
    #[must_use]
    pub fn bytes<F: Family<Addr = A>>(&self) -> Vec<u8> {
        let mut frame = [&self.to[..], &self.from, &F::ETHERTYPE].concat();
        frame.extend(self.packet::<F>());
        frame
    }

    /// The bytes from the IP header on.
    #[must_use]
    pub fn packet<F: Family<Addr = A>>(&self) -> Vec<u8> {
        let len = size_of::<A>();
        let mut ip = Vec::new();
        if F::VERSION == 4 {
            let header = 20 + self.options.len();
            ip.extend([0x40 | (header / 4) as u8, self.tos]);
            ip.extend(((header + self.l4.len()) as u16).to_be_bytes());
            ip.extend([0x12, 0x34]);
            ip.extend(self.fragment.to_be_bytes());
            ip.extend([self.ttl, self.proto, 0, 0]);
        } else {
            let next = if self.options.is_empty() {
                self.proto
            } else {
                self.first_extension
            };
            ip.extend([0x60 | self.tos >> 4, self.tos << 4, 0, 0]);
            ip.extend(((self.options.len() + self.l4.len()) as u16).to_be_bytes());
            ip.extend([next, self.ttl]);
        }
        ip.extend(&self.src.padded()[..len]);
        ip.extend(&self.dst.padded()[..len]);
        ip.extend(&self.options);
        if F::VERSION == 4 {
            let sum = checksum(&[&ip]);
            ip[10..12].copy_from_slice(&sum);
        }
        let mut l4 = self.l4.clone();
        if self.proto == proto::SCTP && l4.len() >= 12 {
            l4[8..12].copy_from_slice(&[0; 4]);
            let crc = crc32c(&[&l4]);
            l4[8..12].copy_from_slice(&crc.to_le_bytes());
        }
        if let Some(field) = l4_checksum_field::<F>(self.proto)
            && l4.len() >= field + 2
        {
            l4[field..field + 2].copy_from_slice(&[0, 0]);
            let mut sum = l4_checksum::<F>(&self.src, &self.dst, self.proto, &l4);
            if self.proto == proto::UDP && sum == [0, 0] {
                sum = [0xff, 0xff];
            }
            if !self.no_udp_checksum {
                l4[field..field + 2].copy_from_slice(&sum);
            }
        }
        ip.extend(l4);
        ip
    }
}

fn l4_checksum_field<F: Family>(protocol: u8) -> Option<usize> {
    match protocol {
        proto::TCP => Some(16),
        proto::UDP => Some(6),
        p if p == F::ICMP => Some(2),
        _ => None,
    }
}

/// Over the pseudo header, where the protocol has one, and `l4`.
fn l4_checksum<F: Family>(src: &F::Addr, dst: &F::Addr, protocol: u8, l4: &[u8]) -> [u8; 2] {
    if protocol == F::ICMP && !F::ICMP_PSEUDO_HEADER {
        return checksum(&[l4]);
    }
    let len = size_of::<F::Addr>();
    let length = (l4.len() as u32).to_be_bytes();
    checksum(&[
        &src.padded()[..len],
        &dst.padded()[..len],
        &length,
        &[0, 0, 0, protocol],
        l4,
    ])
}

/// Recomputes the checksums of a frame that [`Frame`] built, whatever has happened to it since:
/// of the IPv4 header, and of TCP, UDP, ICMP and SCTP. Extension headers are not looked through, nor is
/// what an ICMP error quotes: see [`verify_quoted`]. Of a fragment only the IPv4 header has one.
///
/// # Errors
/// What is wrong.
pub fn verify<F: Family>(frame: &[u8]) -> Result<(), String> {
    if frame.get(12..14) != Some(&F::ETHERTYPE[..]) {
        return Err(format!("not an IPv{} frame", F::VERSION));
    }
    let ip = &frame[14..];
    let header = if F::VERSION == 4 && !ip.is_empty() {
        usize::from(ip[0] & 0xf) * 4
    } else {
        40
    };
    let least = if F::VERSION == 4 { 20 } else { 40 };
    if header < least || ip.len() < header {
        return Err("the header is cut short".into());
    }
    if F::VERSION == 4 && checksum(&[&ip[..header]]) != [0, 0] {
        return Err("the IPv4 header's checksum is wrong".into());
    }
    if F::VERSION == 4 && u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0 {
        return Ok(());
    }
    let protocol = ip[if F::VERSION == 4 { 9 } else { 6 }];
    let at = |offset: u32| {
        let mut padded = [0; 16];
        let (from, len) = (offset as usize, size_of::<F::Addr>());
        padded[..len].copy_from_slice(&ip[from..from + len]);
        F::Addr::from_padded(&padded)
    };
    let (src, dst) = (at(F::SRC_OFFSET), at(F::SRC_OFFSET + F::ADDR_LEN));
    let l4 = &ip[header..];
    if protocol == proto::SCTP {
        return verify_sctp(l4);
    }
    let Some(field) = l4_checksum_field::<F>(protocol) else {
        return Ok(());
    };
    if l4.len() < field + 2 {
        return Err("the L4 header is cut short".into());
    }
    if protocol == proto::UDP && l4[field..field + 2] == [0, 0] {
        return if F::VERSION == 4 {
            Ok(())
        } else {
            Err("UDP over IPv6 without a checksum".into())
        };
    }
    match l4_checksum::<F>(&src, &dst, protocol, l4) {
        [0, 0] => Ok(()),
        other => Err(format!("the L4 checksum is off by {other:x?}")),
    }
}

fn verify_sctp(l4: &[u8]) -> Result<(), String> {
    if l4.len() < 12 {
        return Err("the SCTP header is cut short".into());
    }
    let crc = crc32c(&[&l4[..8], &[0; 4], &l4[12..]]).to_le_bytes();
    // RFC 9653: zero, where both ends agreed that it is not needed.
    if l4[8..12] == crc || l4[8..12] == [0; 4] {
        Ok(())
    } else {
        Err(format!(
            "the CRC32c is {:x?} instead of {crc:x?}",
            &l4[8..12]
        ))
    }
}

/// Recomputes the checksums of the packet that an ICMP error quotes whole, as [`verify`] does.
///
/// # Errors
/// What is wrong.
pub fn verify_quoted<F: Family>(frame: &[u8]) -> Result<(), String> {
    let ip = frame.get(14..).unwrap_or_default();
    let header = match ip.first() {
        Some(first) if F::VERSION == 4 => usize::from(first & 0xf) * 4,
        _ => 40,
    };
    let quoted = ip.get(header + 8..).ok_or("nothing is quoted")?;
    verify::<F>(&[&[0; 12][..], &F::ETHERTYPE, quoted].concat())
}

/// An IP packet with its IPv4 header's checksum, if it has one, computed anew.
#[must_use]
pub fn renewed<F: Family>(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if F::VERSION == 4 {
        let header = usize::from(packet[0] & 0xf) * 4;
        packet[10..12].copy_from_slice(&[0, 0]);
        let sum = checksum(&[&packet[..header]]);
        packet[10..12].copy_from_slice(&sum);
    }
    packet
}

/// A tagged copy of a frame: `tag` (TPID and TCI) after the MACs.
#[must_use]
pub fn tagged(frame: &[u8], tag: [u8; 4]) -> Vec<u8> {
    [&frame[..12], &tag, &frame[12..]].concat()
}

/// An ARP frame: operation, sender and target.
#[must_use]
pub fn arp(
    operation: u8,
    (sender_mac, sender): ([u8; 6], [u8; 4]),
    (target_mac, target): ([u8; 6], [u8; 4]),
) -> Vec<u8> {
    let to = if operation == 1 {
        [0xff; 6]
    } else {
        target_mac
    };
    let mut frame = [&to[..], &sender_mac, &ethertype::ARP].concat();
    frame.extend([0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend([&sender_mac[..], &sender, &target_mac, &target].concat());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{V4, V4Addr, V6, V6Addr};

    #[test]
    fn what_is_built_verifies_and_what_is_changed_does_not() {
        let (a, b) = (V4Addr([198, 18, 0, 2]), V4Addr([10, 200, 0, 2]));
        let (c, d) = (V6Addr([0xfd; 16]), V6Addr([0xfc; 16]));
        let v4 = [
            Frame::tcp((a, 1), (b, 2), 2, b"x").bytes::<V4>(),
            Frame::udp((a, 1), (b, 2), b"xyz").bytes::<V4>(),
            Frame::echo::<V4>(a, b, 7).bytes::<V4>(),
        ];
        let v6 = [
            Frame::tcp((c, 1), (d, 2), 2, b"x").bytes::<V6>(),
            Frame::udp((c, 1), (d, 2), b"xyz").bytes::<V6>(),
            Frame::echo::<V6>(c, d, 7).bytes::<V6>(),
        ];
        for (frame, verify) in v4
            .iter()
            .map(|f| (f, verify::<V4> as fn(&[u8]) -> Result<(), String>))
            .chain(
                v6.iter()
                    .map(|f| (f, verify::<V6> as fn(&[u8]) -> Result<(), String>)),
            )
        {
            assert_eq!(verify(frame), Ok(()));
            let mut broken = frame.clone();
            *broken.last_mut().unwrap() ^= 1;
            assert!(verify(&broken).is_err());
        }
        let mut ttl = v4[0].clone();
        ttl[14 + 8] -= 1;
        assert!(verify::<V4>(&ttl).is_err());
    }
}
