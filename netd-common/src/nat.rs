//! Rewriting a packet, and choosing a source port.

use crate::{
    abi::{Config, Tuple, flow_flag},
    checksum::Diff,
    drop::DropReason,
    packet::{L4Checksum, Packet},
    parse::{Kind, Parsed},
    tables::Slot,
    wire::{Address, Family, proto},
};

/// Writes the flow's addresses and ports into the packet and decrements its TTL.
///
/// # Errors
/// [`DropReason::TtlExpired`], [`DropReason::HelperFailed`].
#[inline(always)]
pub fn translate<F: Family>(
    packet: &mut impl Packet,
    parsed: &Parsed<F::Addr>,
    flow: &Slot<F::Addr>,
) -> Result<(), DropReason> {
    if parsed.ttl <= 1 {
        return Err(DropReason::TtlExpired);
    }
    let flags = flow.flags();
    let old = &parsed.tuple;
    let (mut addresses, mut ports) = (Diff::NONE, Diff::NONE);
    let (mut src, mut sport, mut dst, mut dport) = (old.src, old.sport, old.dst, old.dport);
    if flags & flow_flag::REWRITE_SRC != 0 {
        (src, sport) = (flow.src(), flow.sport());
        addresses = addresses.replace_address(old.src, src);
        ports = ports.replace2(old.sport, sport);
    }
    if flags & flow_flag::REWRITE_DST != 0 {
        (dst, dport) = (flow.dst(), flow.dport());
        addresses = addresses.replace_address(old.dst, dst);
        ports = ports.replace2(old.dport, dport);
    }
    let rewrite = flags & (flow_flag::REWRITE_SRC | flow_flag::REWRITE_DST) != 0;
    if rewrite && matches!(parsed.kind, Kind::Ports | Kind::FirstFragment) {
        // Of a first fragment too: the checksum is of the whole packet, and only what is changed
        // here changes it. (Fragments are no CHECKSUM_PARTIAL: who cuts a packet has to sum it
        // first, as `ip_do_fragment` and `ip6_fragment` do.)
        l4_checksum::<F>(packet, parsed, addresses, ports)?;
        if old.proto == F::ICMP {
            // An echo has one identifier, and only the side that asks owns it.
            let id = if parsed.icmp_type == F::ECHO_REQUEST {
                sport
            } else {
                dport
            };
            packet.write(parsed.l4 + 4, id)?;
        } else {
            packet.write(parsed.l4, [sport[0], sport[1], dport[0], dport[1]])?;
        }
    } else if F::VERSION == 6 && rewrite {
        // No checksum in this packet makes up for the addresses.
        packet.complete_sum(addresses);
    }
    if rewrite {
        packet.write(parsed.l3 + F::SRC_OFFSET, src)?;
        packet.write(parsed.l3 + F::SRC_OFFSET + F::ADDR_LEN, dst)?;
    }
    decrement_ttl::<F>(packet, parsed, addresses)
}

/// Decrements the TTL, and brings the IPv4 header's checksum up to date for that and for a change of
/// `addresses`.
///
/// # Errors
/// [`DropReason::HelperFailed`].
#[inline(always)]
pub(crate) fn decrement_ttl<F: Family>(
    packet: &mut impl Packet,
    parsed: &Parsed<F::Addr>,
    addresses: Diff,
) -> Result<(), DropReason> {
    packet.write(parsed.l3 + F::TTL_OFFSET, parsed.ttl - 1)?;
    if F::VERSION == 4 {
        // TTL shares its 16-bit word with the protocol, which stays.
        let change = addresses.replace2([parsed.ttl, 0], [parsed.ttl - 1, 0]);
        let field: [u8; 2] = packet.read(parsed.l3 + 10)?;
        packet.write(parsed.l3 + 10, change.apply(field))?;
    } else {
        // No checksum of IPv6 makes up for the hop limit, unlike IPv4's and unlike the addresses.
        packet.complete_sum(Diff::NONE.replace2([0, parsed.ttl], [0, parsed.ttl - 1]));
    }
    Ok(())
}

#[inline(always)]
fn l4_checksum<F: Family>(
    packet: &mut impl Packet,
    parsed: &Parsed<F::Addr>,
    addresses: Diff,
    ports: Diff,
) -> Result<(), DropReason> {
    let (offset, covers_addresses) = match parsed.tuple.proto {
        proto::TCP => (16, true),
        proto::UDP => (6, true),
        // SCTP's CRC32c covers no addresses, and follows the ports afterwards: `crc32c`.
        proto::SCTP => return Ok(()),
        _ => (2, F::ICMP_PSEUDO_HEADER),
    };
    let how = |pseudo_header| L4Checksum {
        pseudo_header,
        udp: parsed.tuple.proto == proto::UDP,
        ipv6: F::VERSION == 6,
    };
    if covers_addresses && !addresses.is_none() {
        packet.l4_checksum(parsed.l4 + offset, addresses, how(true))?;
    }
    if !ports.is_none() {
        packet.l4_checksum(parsed.l4 + offset, ports, how(false))?;
    }
    Ok(())
}

/// Tries at a random source port, before the search becomes systematic.
pub const RANDOM_ATTEMPTS: u32 = 16;
/// Tries at a source port in all. With 90 % of a range in use, all fail once in four thousand
/// flows; the smallest range that can be configured (64 ports) is searched to its last.
pub const PORT_ATTEMPTS: u32 = RANDOM_ATTEMPTS + 64;
/// Tries in vain that the daemon is told of: with half of a range in use, one flow in sixty.
pub const PRESSURE_ATTEMPTS: u32 = 6;

/// The `attempt`-th source port to try for a flow: first its own, where that lies in the range,
/// then by hash (RFC 6056 §3.3.3: keyed by the tuple and a secret, so that ports of one
/// destination do not tell those of another), in the end one after the other. `None`: no more.
#[must_use]
#[inline(always)]
pub fn source_port<A: Address>(config: &Config, tuple: &Tuple<A>, attempt: u32) -> Option<[u8; 2]> {
    if attempt == 0 {
        let own = u16::from_be_bytes(tuple.sport);
        let in_range = own >= config.nat_first && own <= config.nat_last;
        // SCTP's stays as it is wherever that is free: a peer with several addresses may name it.
        if in_range || tuple.proto == proto::SCTP {
            return Some(tuple.sport);
        }
    }
    if attempt >= PORT_ATTEMPTS {
        return None;
    }
    let (round, step) = if attempt < RANDOM_ATTEMPTS {
        (attempt, 0)
    } else {
        (RANDOM_ATTEMPTS, attempt - RANDOM_ATTEMPTS)
    };
    let ports = u32::from(u16::from_be_bytes(tuple.sport)) << 16
        | u32::from(u16::from_be_bytes(tuple.dport));
    let mut hash = config.seed ^ round.wrapping_mul(0x9e37_79b9);
    hash = mix(hash, tuple.src.fold());
    hash = mix(hash, tuple.dst.fold());
    hash = mix(hash, ports ^ u32::from(tuple.proto));
    // To the range by multiplication: no division in BPF.
    let count = u64::from(config.nat_last.wrapping_sub(config.nat_first)) + 1;
    let mut offset = ((u64::from(hash) * count) >> 32) + u64::from(step);
    if offset >= count {
        offset %= count;
    }
    Some((config.nat_first.wrapping_add(offset as u16)).to_be_bytes())
}

/// A round of MurmurHash3's 32-bit mixing with its finaliser.
#[inline(always)]
fn mix(hash: u32, value: u32) -> u32 {
    let mut h = hash
        ^ value
            .wrapping_mul(0xcc9e_2d51)
            .rotate_left(15)
            .wrapping_mul(0x1b87_3593);
    h = h.rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ h >> 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::V4Addr;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn tuple(sport: u16) -> Tuple<V4Addr> {
        Tuple {
            src: V4Addr([10, 200, 0, 2]),
            dst: V4Addr([198, 18, 0, 2]),
            sport: sport.to_be_bytes(),
            dport: [0, 80],
            proto: proto::TCP,
            reserved: [0; 3],
        }
    }

    fn config(first: u16, last: u16) -> Config {
        Config {
            nat_first: first,
            nat_last: last,
            seed: 7,
            ..Config::default()
        }
    }

    #[test]
    fn own_port_first_where_it_lies_in_the_range() {
        let c = config(20000, 20999);
        assert_eq!(
            source_port(&c, &tuple(20500), 0),
            Some(20500u16.to_be_bytes())
        );
        assert_ne!(
            source_port(&c, &tuple(40000), 0),
            Some(40000u16.to_be_bytes())
        );
    }

    #[test]
    fn sctp_keeps_its_port_where_it_is_free() {
        let t = Tuple {
            proto: proto::SCTP,
            ..tuple(9)
        };
        assert_eq!(source_port(&config(20000, 20999), &t, 0), Some([0, 9]));
        let next = source_port(&config(20000, 20999), &t, 1).map(u16::from_be_bytes);
        assert!((20000..=20999).contains(&next.unwrap()));
    }

    #[test]
    fn attempts_end() {
        assert!(source_port(&config(20000, 20999), &tuple(1), PORT_ATTEMPTS - 1).is_some());
        assert_eq!(
            source_port(&config(20000, 20999), &tuple(1), PORT_ATTEMPTS),
            None
        );
    }

    #[test]
    fn ports_spread_over_the_range() {
        let c = config(20000, 20255);
        let seen: HashSet<_> = (0..4096)
            .filter_map(|p| source_port(&c, &tuple(30000 + p), 1))
            .collect();
        assert!(seen.len() > 250, "{} of 256", seen.len());
    }

    proptest! {
        #[test]
        fn ports_lie_in_the_range(first in 1024u16.., span: u16, sport: u16, attempt in 0..PORT_ATTEMPTS) {
            let last = first.saturating_add(span);
            let port = u16::from_be_bytes(source_port(&config(first, last), &tuple(sport), attempt).unwrap());
            prop_assert!((first..=last).contains(&port));
        }
    }
}
