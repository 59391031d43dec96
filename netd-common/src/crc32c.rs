//! SCTP's checksum (RFC 9260 appendix A): CRC32c over the whole packet, brought up to date after a
//! change of the ports without reading the packet.
//!
//! A CRC is linear: that of `a ^ b` is that of `a` with the remainder of `b` added, and the ports are
//! the first four bytes of what is covered. So the change of the checksum is the change of the ports,
//! taken for a polynomial, times x to the eight times the packet's length.
//!
//! The field of a packet whose sender leaves the sum to the device is zero (CHECKSUM_PARTIAL: the
//! device sums the packet with the zero in it), and so is that of one that needs none (RFC 9653):
//! zero stays zero. One packet in 2³² has a sum of zero, is sent on with the old one, and is lost.

use crate::{
    drop::DropReason,
    packet::Packet,
    wire::{Ipv4Header, Ipv6Header},
};

/// The Castagnoli polynomial with the bits in reverse, as everything here.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// Offset of the checksum in the SCTP header.
const FIELD: u32 = 8;

/// `POWERS[i][d]` is x to the power of 8 · d · 16^i, modulo the polynomial.
static POWERS: [[u32; 16]; 4] = powers();

const fn powers() -> [[u32; 16]; 4] {
    let mut powers = [[0; 16]; 4];
    // x⁸: the unit is the highest bit, and each bit to the right is one more x.
    let mut base = 1 << 23;
    let mut i = 0;
    while i < 4 {
        powers[i][0] = 1 << 31;
        let mut digit = 1;
        while digit < 16 {
            powers[i][digit] = multiply(powers[i][digit - 1], base);
            digit += 1;
        }
        base = multiply(powers[i][15], base);
        i += 1;
    }
    powers
}

/// Product modulo the polynomial, without a branch.
#[inline(always)]
const fn multiply(mut a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut i = 0;
    while i < 32 {
        product ^= (a >> 31).wrapping_neg() & b;
        a <<= 1;
        b = b >> 1 ^ (b & 1).wrapping_neg() & POLYNOMIAL;
        i += 1;
    }
    product
}

/// What a change of the first four of `length` bytes changes in their CRC. `change` and the result
/// are little-endian: as the bytes stand in the packet.
#[must_use]
#[inline(always)]
pub fn shift(change: u32, length: u32) -> u32 {
    let mut crc = change;
    let mut length = length as usize;
    let mut i = 0;
    while i < 4 {
        crc = multiply(crc, POWERS[i][length & 15]);
        length >>= 4;
        i += 1;
    }
    crc
}

/// Updates the checksum of the SCTP packet at `l4`, whose ports were changed by `change` (old ^ new,
/// as a little-endian number). `l3`: offset of the IP header; `version`: 4 or 6.
///
/// The one's complement sum of a device (CHECKSUM_COMPLETE) does not follow: SCTP does not ask it
/// (`sctp_rcv`), and what carries SCTP has used it up.
///
/// # Errors
/// [`DropReason::Malformed`], [`DropReason::HelperFailed`].
#[inline(always)]
pub fn update(
    packet: &mut impl Packet,
    l3: u32,
    l4: u32,
    version: u8,
    change: u32,
) -> Result<(), DropReason> {
    if packet.read::<[u8; 4]>(l4 + FIELD).is_err() {
        packet.pull(l4 + FIELD + 4);
    }
    let field: [u8; 4] = packet.read(l4 + FIELD)?;
    if field == [0; 4] {
        return Ok(());
    }
    let end = if version == 4 {
        let ip: Ipv4Header = packet.read(l3)?;
        l3 + u32::from(u16::from_be_bytes(ip.total_len))
    } else {
        let ip: Ipv6Header = packet.read(l3)?;
        l3 + 40 + u32::from(u16::from_be_bytes(ip.payload_len))
    };
    if end <= l4 {
        return Err(DropReason::Malformed);
    }
    let new = u32::from_le_bytes(field) ^ shift(change, end - l4);
    packet.write(l4 + FIELD, new.to_le_bytes())
}

/// CRC32c of bytes, from scratch: for tests and for packets that are built.
#[must_use]
pub fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut crc = !0u32;
    for byte in parts.iter().copied().flatten() {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (crc & 1).wrapping_neg() & POLYNOMIAL;
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        // RFC 3720 B.4: 32 bytes of zeros, of ones, ascending.
        assert_eq!(crc32c(&[&[0; 32]]), 0x8a91_36aa);
        assert_eq!(crc32c(&[&[0xff; 32]]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&[&ascending]), 0x46dd_794e);
        assert_eq!(crc32c(&[b"1234", b"56789"]), 0xe306_9283);
    }

    /// Of this many bytes, the first four changed.
    fn incremental_equals_full(bytes: &[u8], ports: [u8; 4]) {
        let mut changed = bytes.to_vec();
        changed[..4].copy_from_slice(&ports);
        let old = [bytes[0], bytes[1], bytes[2], bytes[3]];
        let change = u32::from_le_bytes(old) ^ u32::from_le_bytes(ports);
        assert_eq!(
            crc32c(&[bytes]) ^ shift(change, bytes.len() as u32),
            crc32c(&[&changed]),
            "{} bytes",
            bytes.len()
        );
    }

    #[test]
    fn every_length_up_to_a_large_frame_and_the_longest() {
        let bytes: Vec<u8> = (0..65535u32).map(|i| (i * 7 + (i >> 8)) as u8).collect();
        for length in (12..1600).chain([4095, 4096, 9000, 65514, 65535]) {
            incremental_equals_full(&bytes[..length], [0x1f, 0xc4, 0x0f, 0x1c]);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_and_ports(bytes in prop::collection::vec(any::<u8>(), 12..3000), ports: [u8; 4]) {
            incremental_equals_full(&bytes, ports);
        }
    }
}
