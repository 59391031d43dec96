//! A range of ports as prefixes of a longest-prefix-match key.

/// The fewest prefixes whose union is exactly the ports from `first` to `last` (both included, in
/// host byte order): pairs of the first port and the number of leading bits, in ascending order.
/// At most 30.
pub fn port_prefixes(first: u16, last: u16) -> Vec<(u16, u32)> {
    let mut prefixes = Vec::new();
    let (mut next, last) = (u32::from(first), u32::from(last));
    while next <= last {
        // The largest aligned block that starts here and does not go beyond the end.
        let aligned = if next == 0 {
            16
        } else {
            next.trailing_zeros().min(16)
        };
        let fits = (last - next + 1).ilog2();
        let free = aligned.min(fits);
        prefixes.push((next as u16, 16 - free));
        next += 1 << free;
    }
    prefixes
}

/// The same ports in prefixes of which `property` is true for all ports, or false for all: split
/// where need be.
pub fn uniform(prefixes: Vec<(u16, u32)>, property: impl Fn(u16) -> bool) -> Vec<(u16, u32, bool)> {
    let mut todo: Vec<(u16, u32)> = prefixes.into_iter().rev().collect();
    let mut out = Vec::new();
    while let Some((first, bits)) = todo.pop() {
        let free = 16 - bits;
        let last = first | ((1u32 << free) - 1) as u16;
        let is = property(first);
        if (first..=last).all(|port| property(port) == is) {
            out.push((first, bits, is));
        } else {
            let half = 1u16 << (free - 1);
            todo.push((first | half, bits + 1));
            todo.push((first, bits + 1));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn covered(prefixes: &[(u16, u32)]) -> Vec<u32> {
        prefixes
            .iter()
            .flat_map(|&(first, bits)| {
                let first = u32::from(first);
                first..first + (1 << (16 - bits))
            })
            .collect()
    }

    /// The fewest prefixes, by splitting the space recursively.
    fn fewest(first: u32, last: u32, base: u32, size: u32) -> usize {
        if last < base || first >= base + size {
            0
        } else if first <= base && base + size - 1 <= last {
            1
        } else {
            fewest(first, last, base, size / 2) + fewest(first, last, base + size / 2, size / 2)
        }
    }

    #[test]
    fn known_ranges() {
        assert_eq!(port_prefixes(80, 80), [(80, 16)]);
        assert_eq!(port_prefixes(0, 65535), [(0, 0)]);
        assert_eq!(
            port_prefixes(8000, 8099),
            [(8000, 10), (8064, 11), (8096, 14)]
        );
        assert_eq!(port_prefixes(1, 65534).len(), 30);
        assert_eq!(port_prefixes(65535, 65535), [(65535, 16)]);
        assert!(port_prefixes(2, 1).is_empty());
    }

    #[test]
    fn a_range_is_split_where_a_property_changes() {
        assert_eq!(
            uniform(port_prefixes(8000, 8007), |port| port == 8001),
            [
                (8000, 16, false),
                (8001, 16, true),
                (8002, 15, false),
                (8004, 14, false)
            ]
        );
        assert_eq!(
            uniform(port_prefixes(1, 65535), |_| true).len(),
            port_prefixes(1, 65535).len()
        );
    }

    proptest! {
        #[test]
        fn the_union_is_the_range_and_no_fewer_prefixes_do(a: u16, b: u16) {
            let (first, last) = (a.min(b), a.max(b));
            let prefixes = port_prefixes(first, last);
            prop_assert!(covered(&prefixes).into_iter().eq(u32::from(first)..=u32::from(last)));
            for (port, bits) in &prefixes {
                prop_assert_eq!(u32::from(*port) & ((1 << (16 - bits)) - 1), 0, "not masked");
            }
            prop_assert_eq!(prefixes.len(), fewest(first.into(), last.into(), 0, 65536));
        }
    }
}
