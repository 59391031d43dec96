//! Packets in fragments: where a fragment lies in its packet, and which parts of the packet have
//! come.
//!
//! Only the first fragment has ports. What it told is kept, so that the others find its flow; a
//! router that translates may not leave that to the receiver (RFC 4787 REQ-14, "virtual fragment
//! reassembly"). Bytes that were sent on are never sent on again: what one fragment says of a
//! packet another must not overwrite (RFC 1858, RFC 3128, RFC 5722).

use crate::{
    abi::{FRAGMENT_RUNS, FragmentKey, Fragments},
    packet::Packet,
    parse::{Parsed, extension},
    wire::{Family, Ipv4Header, Ipv6Header, reread},
};

/// Seconds within which a first fragment that comes again belongs to the packet that is known. Later
/// it begins another: identifications of IPv4 come round (RFC 4963).
pub const SAME_PACKET: u32 = 2;

/// Seconds after the first fragment within which the others must come: Linux's `ipfrag_time`, and
/// RFC 8200 §4.5.
#[must_use]
#[inline(always)]
pub const fn lifetime<F: Family>() -> u32 {
    if F::VERSION == 4 { 30 } else { 60 }
}

/// [`Fragment::role`].
pub mod role {
    /// Not a fragment, or none that netd has anything to do with.
    pub const NONE: u32 = 0;
    /// Its packet's flow is known by the first fragment.
    pub const LATER: u32 = 1;
    /// The first fragment was left to the kernel.
    pub const LEFT: u32 = 2;
    /// The first fragment has not come; that is known already.
    pub const HEADLESS: u32 = 3;
    /// Bit of those of which something is to be remembered.
    pub const NEWS: u32 = 0x10;
    /// The first fragment.
    pub const FIRST: u32 = NEWS;
    /// The first fragment has not come.
    pub const STRAY: u32 = NEWS | 1;
}

/// The fragment in hand, part of [`crate::tables::Scratch`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fragment<A> {
    /// Its packet.
    pub key: FragmentKey<A>,
    /// [`role`].
    pub role: u32,
    /// [`crate::drop::DropReason`] for which netd does not send it on, should it be netd's to send;
    /// 0: none.
    pub objection: u32,
    /// [`Fragments::generation`].
    pub generation: u32,
    /// Where it begins in its packet, in units of eight bytes.
    pub start: u32,
    /// Where it ends, in units, rounded up.
    pub end: u32,
    /// Bytes from the L4 header on; only of a first fragment.
    pub l4_len: u32,
    /// 1: no more fragments follow it.
    pub last: u32,
    /// A row to be written.
    pub row: Fragments<A>,
}

impl<A> Fragment<A> {
    /// Not a fragment.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.role = role::NONE;
        self.objection = 0;
    }
}

/// Reads where the fragment lies, and its packet's identity but for the interface. `false`: no
/// packet can have such a fragment.
#[inline(always)]
pub fn locate<F: Family>(
    packet: &impl Packet,
    parsed: &Parsed<F::Addr>,
    fragment: &mut Fragment<F::Addr>,
) -> bool {
    fragment.key.src = parsed.tuple.src;
    fragment.key.dst = parsed.tuple.dst;
    fragment.key.reserved = [0; 3];
    if F::VERSION == 4 {
        locate_v4::<F>(packet, parsed, fragment)
    } else {
        locate_v6::<F>(packet, parsed, fragment)
    }
}

#[inline(always)]
fn locate_v4<F: Family>(
    packet: &impl Packet,
    parsed: &Parsed<F::Addr>,
    fragment: &mut Fragment<F::Addr>,
) -> bool {
    let Ok(ip) = packet.read::<Ipv4Header>(parsed.l3) else {
        return false;
    };
    fragment.key.id = [ip.id[0], ip.id[1], 0, 0];
    fragment.key.proto = ip.proto;
    let field = u32::from(u16::from_be_bytes(ip.fragment));
    let header = parsed.l4 - parsed.l3;
    let total = u32::from(u16::from_be_bytes(ip.total_len));
    fragment.l4_len = total.wrapping_sub(header);
    lies(
        fragment,
        header,
        field & 0x1fff,
        fragment.l4_len,
        field & 0x2000 != 0,
    )
}

#[inline(always)]
fn locate_v6<F: Family>(
    packet: &impl Packet,
    parsed: &Parsed<F::Addr>,
    fragment: &mut Fragment<F::Addr>,
) -> bool {
    let Ok(ip) = packet.read::<Ipv6Header>(parsed.l3) else {
        return false;
    };
    let payload_end = parsed.l3 + 40 + u32::from(u16::from_be_bytes(ip.payload_len));
    fragment.l4_len = payload_end.wrapping_sub(parsed.l4);
    fragment.key.proto = 0;
    let (mut next, mut at) = (ip.next, parsed.l3 + 40);
    let mut followed = 0;
    while followed < extension::MAX {
        let Ok(header) = packet.read::<[u8; 8]>(at) else {
            return false;
        };
        let field = u32::from(u16::from_be_bytes([header[2], header[3]]));
        if next != extension::FRAGMENT {
            at += (u32::from(header[1]) + 1) * 8;
        } else if field & 0xfff9 == 0 {
            // An atomic fragment (RFC 6946) is no fragment of anything.
            at += 8;
        } else {
            fragment.key.id = [header[4], header[5], header[6], header[7]];
            let length = payload_end.wrapping_sub(at + 8);
            return lies(fragment, 0, field >> 3, length, field & 1 != 0);
        }
        next = header[0];
        followed += 1;
    }
    false
}

/// RFC 791 §3.2, RFC 8200 §4.5: all but the last are multiples of eight bytes, and the whole is no
/// longer than a packet can be. `header`: what comes on top of the fragments' bytes.
#[inline(always)]
fn lies<A>(fragment: &mut Fragment<A>, header: u32, offset: u32, length: u32, more: bool) -> bool {
    fragment.start = offset;
    fragment.end = offset.wrapping_add(length.wrapping_add(7) >> 3);
    fragment.last = u32::from(!more);
    length != 0 && length <= 0xffff && (!more || length & 7 == 0) && {
        header + offset * 8 + length <= 0xffff
    }
}

/// What [`cover`] returns.
pub mod covered {
    /// The part is new.
    pub const NEW: u32 = 0;
    /// It was the one that was missing.
    pub const COMPLETE: u32 = 1;
    /// It had come already, alone or as part of what had come without a gap: as Linux tells a
    /// duplicate (`inet_frag_queue_insert`). To be dropped; the packet may go on.
    pub const DUPLICATE: u32 = 2;
    /// It overlaps what had come, or the end.
    pub const OVERLAP: u32 = 3;
    /// There are too many gaps.
    pub const NO_ROOM: u32 = 4;
}

#[inline(always)]
const fn run(start: u32, end: u32) -> u32 {
    start | end << 16
}

/// First unit, and the one after the last.
#[inline(always)]
fn bounds(run: &u32) -> (u32, u32) {
    let run = reread(run);
    (run & 0xffff, run >> 16)
}

/// Notes that the units from `start` to before `end` have come, `last` being the end of the packet.
/// What is refused is not noted. Returns a [`covered`].
#[inline(always)]
pub fn cover<A>(row: &mut Fragments<A>, start: u32, end: u32, last: bool) -> u32 {
    let whole = u32::from(row.end);
    if whole != 0 && (end > whole || last && end != whole) {
        return covered::OVERLAP;
    }
    let mut i = 0;
    while i < FRAGMENT_RUNS {
        let (first, after) = bounds(&row.runs[i]);
        if after != 0 {
            if start >= first && end <= after {
                return covered::DUPLICATE;
            }
            if start < after && end > first || last && after > end {
                return covered::OVERLAP;
            }
        }
        i += 1;
    }
    // Together with the runs that end where it begins, and begin where it ends.
    let (mut from, mut to) = (start, end);
    let mut i = 0;
    while i < FRAGMENT_RUNS {
        let (first, after) = bounds(&row.runs[i]);
        if after != 0 && after == start {
            from = first;
            row.runs[i] = 0;
        } else if after != 0 && first == end {
            to = after;
            row.runs[i] = 0;
        }
        i += 1;
    }
    // Whoever was taken away has left its place.
    let mut i = 0;
    while i < FRAGMENT_RUNS && reread(&row.runs[i]) != 0 {
        i += 1;
    }
    let Some(free) = row.runs.get_mut(i) else {
        return covered::NO_ROOM;
    };
    *free = run(from, to);
    if last {
        row.end = end as u16;
    }
    let whole = u32::from(row.end);
    if whole != 0 && from == 0 && to == whole {
        covered::COMPLETE
    } else {
        covered::NEW
    }
}

/// Begins a row with a first fragment that ends before unit `end`.
#[inline(always)]
pub fn begin<A>(row: &mut Fragments<A>, end: u32, now: u32) {
    row.generation = 0;
    row.began = now;
    row.runs[0] = run(0, end);
    let mut i = 1;
    while i < FRAGMENT_RUNS {
        row.runs[i] = 0;
        i += 1;
    }
    row.end = 0;
    row.refused = 0;
    row.flags = 0;
    row.reserved = 0;
}

#[cfg(test)]
mod tests {
    use super::{covered::*, *};
    use crate::wire::V4Addr;
    use proptest::prelude::*;

    fn begun(end: u32) -> Fragments<V4Addr> {
        let mut row = Fragments::default();
        begin(&mut row, end, 0);
        row
    }

    /// Parts as (start, end, last) after a first fragment of ten units.
    fn come(parts: &[(u32, u32, bool)]) -> Vec<u32> {
        let mut row = begun(10);
        parts
            .iter()
            .map(|(start, end, last)| cover(&mut row, *start, *end, *last))
            .collect()
    }

    #[test]
    fn whole_in_order_and_in_any_other() {
        assert_eq!(
            come(&[(10, 20, false), (20, 30, false), (30, 31, true)]),
            [NEW, NEW, COMPLETE]
        );
        assert_eq!(
            come(&[(30, 31, true), (20, 30, false), (10, 20, false)]),
            [NEW, NEW, COMPLETE]
        );
        assert_eq!(
            come(&[(20, 30, false), (10, 20, false), (30, 31, true)]),
            [NEW, NEW, COMPLETE]
        );
    }

    #[test]
    fn duplicates_and_overlaps() {
        // The very same; inside of what came; over its edge; over the first fragment.
        assert_eq!(come(&[(10, 20, false), (10, 20, false)]), [NEW, DUPLICATE]);
        assert_eq!(come(&[(10, 20, false), (12, 14, false)]), [NEW, DUPLICATE]);
        assert_eq!(come(&[(10, 20, false), (15, 25, false)]), [NEW, OVERLAP]);
        assert_eq!(come(&[(1, 2, false)]), [DUPLICATE]);
        assert_eq!(come(&[(1, 20, false)]), [OVERLAP]);
        assert_eq!(come(&[(9, 11, true)]), [OVERLAP]);
        // Around what came.
        assert_eq!(come(&[(20, 30, false), (15, 35, false)]), [NEW, OVERLAP]);
        // Beyond the end, another end, an end before what came.
        assert_eq!(come(&[(20, 30, true), (30, 40, false)]), [NEW, OVERLAP]);
        assert_eq!(come(&[(20, 30, true), (15, 20, true)]), [NEW, OVERLAP]);
        assert_eq!(come(&[(20, 30, false), (10, 15, true)]), [NEW, OVERLAP]);
    }

    #[test]
    fn too_many_gaps() {
        let mut row = begun(10);
        let gaps = FRAGMENT_RUNS as u32 - 1;
        for i in 1..=gaps {
            assert_eq!(cover(&mut row, i * 20, i * 20 + 10, false), NEW);
        }
        assert_eq!(cover(&mut row, 1000, 1010, false), NO_ROOM);
        // What fills a gap is taken all the same, and makes room.
        assert_eq!(cover(&mut row, 10, 20, false), NEW);
        assert_eq!(cover(&mut row, 1000, 1010, false), NEW);
    }

    proptest! {
        /// Against a set of units: whatever is taken was not there, and the whole is noticed.
        #[test]
        fn as_a_set_of_units(parts in prop::collection::vec((0u32..64, 1u32..12, any::<bool>()), 1..40)) {
            let mut row = begun(4);
            let mut units: std::collections::BTreeSet<u32> = (0..4).collect();
            let mut end = None;
            for (start, length, last) in parts {
                let after = start + length;
                let said = cover(&mut row, start, after, last);
                let new = (start..after).filter(|unit| !units.contains(unit)).count();
                match said {
                    NEW | COMPLETE => {
                        prop_assert_eq!(new as u32, length);
                        prop_assert!(end.is_none_or(|end| after <= end));
                        units.extend(start..after);
                        if last {
                            prop_assert!(end.is_none());
                            end = Some(after);
                            prop_assert_eq!(units.last(), Some(&(after - 1)));
                        }
                        let whole = end == Some(units.len() as u32);
                        prop_assert_eq!(said == COMPLETE, whole);
                    }
                    DUPLICATE => prop_assert_eq!(new, 0),
                    OVERLAP => prop_assert!(
                        (new as u32) < length
                            || end.is_some_and(|end| after > end || last)
                            || last && units.last().is_some_and(|unit| *unit >= after)
                    ),
                    _ => prop_assert!(new as u32 == length),
                }
            }
        }
    }
}
