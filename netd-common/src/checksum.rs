//! One's complement arithmetic (RFC 1071, RFC 1624 eqn. 3), in the kernel's representation.
//!
//! A [`Diff`] is what `bpf_csum_diff` would return: the difference between new and old bytes as a
//! 32-bit sum of native-endian words. Results are the same bits the kernel's helpers compute, also
//! where one's complement has two zeros.

use crate::wire::Address;

/// Difference that a change of bytes makes to a checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Diff(u64);

impl Diff {
    /// No change.
    pub const NONE: Self = Self(0);

    /// Adds the change of one 16-bit field, both in wire order.
    #[must_use]
    #[inline(always)]
    pub const fn replace2(self, old: [u8; 2], new: [u8; 2]) -> Self {
        Self(self.0 + (!u16::from_ne_bytes(old)) as u64 + u16::from_ne_bytes(new) as u64)
    }

    /// Adds the change of one address.
    #[must_use]
    #[inline(always)]
    pub fn replace_address<A: Address>(self, old: A, new: A) -> Self {
        let (old, new) = (old.padded(), new.padded());
        let words = size_of::<A>() / 4;
        let mut sum = self.0;
        let mut i = 0;
        while i < words {
            sum += u64::from(!crate::wire::word(&old, i)) + u64::from(crate::wire::word(&new, i));
            i += 1;
        }
        Self(sum)
    }

    /// Both changes.
    #[must_use]
    #[inline(always)]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Is this a change at all? (A change by a multiple of 0xffff is none.)
    #[must_use]
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// As the kernel's `__wsum`.
    #[must_use]
    #[inline(always)]
    pub const fn wsum(self) -> u32 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((sum & 0xffff_ffff) + (sum >> 32)) as u32
    }

    /// A checksum field after the change: `csum_replace_by_diff` of include/net/checksum.h.
    #[must_use]
    #[inline(always)]
    pub const fn apply(self, field: [u8; 2]) -> [u8; 2] {
        let sum = csum_add(self.wsum(), !(u16::from_ne_bytes(field) as u32));
        fold(sum).to_ne_bytes()
    }
}

#[inline(always)]
const fn csum_add(a: u32, b: u32) -> u32 {
    let sum = a as u64 + b as u64;
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

/// `csum_fold`: to 16 bits, complemented.
#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// Checksum field over words that add up to `sum`, as they lie in memory; fewer than 2³² of them.
#[must_use]
#[inline(always)]
pub const fn sum_to_field(sum: u64) -> [u8; 2] {
    fold(Diff(sum).wsum()).to_ne_bytes()
}

/// Checksum of bytes, from scratch: for tests and for packets that are built.
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    sum_to_field(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{V4Addr, V6Addr};
    use proptest::prelude::*;

    #[test]
    fn rfc1071_example() {
        // RFC 1071 §3: 00 01 f2 03 f4 f5 f6 f7 sums to ddf2.
        assert_eq!(
            checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]),
            [!0xdd, !0xf2]
        );
    }

    proptest! {
        #[test]
        fn incremental_equals_full(a: [u8; 4], b: [u8; 4], p: [u8; 2], q: [u8; 2], rest: [u8; 8]) {
            let field = checksum(&[&a, &p, &rest]);
            let new = Diff::NONE.replace_address(V4Addr(a), V4Addr(b)).replace2(p, q).apply(field);
            // Equal as one's complement numbers: the whole sums to zero.
            let total = checksum(&[&b, &q, &rest, &new]);
            prop_assert!(total == [0, 0] || total == [0xff, 0xff]);
        }

        #[test]
        fn incremental_equals_full_v6(a: [u8; 16], b: [u8; 16], rest: [u8; 6]) {
            let field = checksum(&[&a, &rest]);
            let total = checksum(&[&b, &rest, &Diff::NONE.replace_address(V6Addr(a), V6Addr(b)).apply(field)]);
            prop_assert!(total == [0, 0] || total == [0xff, 0xff]);
        }

        #[test]
        fn there_and_back(a: [u8; 16], b: [u8; 16], field: [u8; 2]) {
            let there = Diff::NONE.replace_address(V6Addr(a), V6Addr(b)).apply(field);
            let back = Diff::NONE.replace_address(V6Addr(b), V6Addr(a)).apply(there);
            prop_assert!(back == field || (field == [0, 0] && back == [0xff, 0xff]) || (field == [0xff, 0xff] && back == [0, 0]));
        }
    }
}
