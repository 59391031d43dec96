//! Which source ports masqueraded flows get.

use crate::config::NatPorts;
use crate::host::PortSpan;

/// Lowest port that `auto` takes: below are the ports that services are registered at.
const LOWEST: u16 = 16384;
/// With fewer ports than this outside the kernel's own range, some are reserved instead.
const ENOUGH: u32 = 4096;
/// What is reserved then.
const RESERVED: PortSpan = PortSpan {
    first: 61000,
    last: 65535,
};

/// The source ports of masqueraded flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatSpan {
    /// The ports.
    pub ports: PortSpan,
    /// They lie in `ip_local_port_range`: the kernel must be told not to give them to sockets
    /// (`ip_local_reserved_ports`).
    pub reserve: bool,
}

/// Chooses the ports: those of the file, or the widest gap outside the kernel's own range.
pub fn nat_span(wanted: NatPorts, local: PortSpan) -> NatSpan {
    let overlaps = |span: PortSpan| span.first <= local.last && local.first <= span.last;
    if let NatPorts::Range(range) = wanted {
        let ports = PortSpan {
            first: range.first(),
            last: range.last(),
        };
        return NatSpan {
            ports,
            reserve: overlaps(ports),
        };
    }
    let below = (local.first > LOWEST).then(|| PortSpan {
        first: LOWEST,
        last: local.first - 1,
    });
    let above = (local.last < u16::MAX).then(|| PortSpan {
        first: (local.last + 1).max(LOWEST),
        last: u16::MAX,
    });
    let widest = below.into_iter().chain(above).max_by_key(width);
    match widest.filter(|gap| width(gap) >= ENOUGH) {
        Some(ports) => NatSpan {
            ports,
            reserve: false,
        },
        None => NatSpan {
            ports: RESERVED,
            reserve: overlaps(RESERVED),
        },
    }
}

fn width(span: &PortSpan) -> u32 {
    u32::from(span.last) - u32::from(span.first) + 1
}

/// The list for `ip_local_reserved_ports` with `add` in it and without `remove`.
pub fn reserved_list(
    now: &[PortSpan],
    add: Option<PortSpan>,
    remove: Option<PortSpan>,
) -> Vec<PortSpan> {
    let mut list: Vec<PortSpan> = Vec::with_capacity(now.len() + 1);
    for span in now {
        match remove {
            Some(gone) if span.first <= gone.last && gone.first <= span.last => {
                if span.first < gone.first {
                    list.push(PortSpan {
                        first: span.first,
                        last: gone.first - 1,
                    });
                }
                if span.last > gone.last {
                    list.push(PortSpan {
                        first: gone.last + 1,
                        last: span.last,
                    });
                }
            }
            _ => list.push(*span),
        }
    }
    list.extend(add);
    list.sort();
    let mut merged: Vec<PortSpan> = Vec::with_capacity(list.len());
    for span in list {
        match merged.last_mut() {
            Some(last) if u32::from(span.first) <= u32::from(last.last) + 1 => {
                last.last = last.last.max(span.last);
            }
            _ => merged.push(span),
        }
    }
    merged
}

/// That list as the kernel takes it.
pub fn reserved_text(list: &[PortSpan]) -> String {
    let spans: Vec<String> = list.iter().map(PortSpan::to_string).collect();
    spans.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(first: u16, last: u16) -> PortSpan {
        PortSpan { first, last }
    }

    #[test]
    fn auto_takes_the_widest_gap() {
        for (local, expected, reserve) in [
            ((32768, 60999), (16384, 32767), false),
            ((10000, 40000), (40001, 65535), false),
            ((16384, 32767), (32768, 65535), false),
            ((1024, 65535), (61000, 65535), true),
            ((16384, 65000), (61000, 65535), true),
            ((1024, 60000), (60001, 65535), false),
            ((1024, 2048), (16384, 65535), false),
        ] {
            let got = nat_span(NatPorts::Auto, span(local.0, local.1));
            assert_eq!(
                got,
                NatSpan {
                    ports: span(expected.0, expected.1),
                    reserve
                },
                "{local:?}"
            );
        }
    }

    #[test]
    fn a_chosen_range_is_reserved_where_it_meets_the_kernels() {
        let range = NatPorts::Range("61000-65535".parse().unwrap());
        assert!(!nat_span(range, span(32768, 60999)).reserve);
        assert!(nat_span(range, span(32768, 61000)).reserve);
        assert_eq!(nat_span(range, span(1, 2)).ports, span(61000, 65535));
    }

    #[test]
    fn reserving_and_releasing_keeps_the_rest() {
        let now = [span(8080, 8080), span(9000, 9010)];
        let with = reserved_list(&now, Some(span(61000, 65535)), None);
        assert_eq!(reserved_text(&with), "8080,9000-9010,61000-65535");
        assert_eq!(reserved_list(&with, Some(span(61000, 65535)), None), with);
        assert_eq!(reserved_list(&with, None, Some(span(61000, 65535))), now);
        let wide = [span(60000, 65535)];
        assert_eq!(
            reserved_list(&wide, None, Some(span(61000, 65535))),
            [span(60000, 60999)]
        );
    }
}
