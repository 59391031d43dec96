//! Dropped packets, counted by reason, hook, interface and network.

use std::{borrow::Cow, net::IpAddr};

use jiff::Timestamp;
use netd_common::{
    abi::{AnyTuple, DROP_SLOT_SECONDS, DROP_SLOTS, DropCount, DropKey, hook, map},
    drop::DropReason,
    wire::{Address as _, V4Addr, V6Addr, proto},
};
use serde::Serialize;

use super::{
    State, StateError, batch,
    flow::{TupleView, has_ports},
    ip,
    network::{ContainerRef, NetworkRef, Topology},
    protocol_name,
};

/// The longest window that the counters can answer for, in seconds.
pub const LONGEST_WINDOW: u32 = 600;
const _: () = assert!(LONGEST_WINDOW / DROP_SLOT_SECONDS < DROP_SLOTS as u32);

/// Drops of one kind at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DropView {
    /// Why; the number where this netd does not know it.
    pub reason: String,
    /// One sentence about it.
    pub explain: &'static str,
    /// Hook that dropped.
    pub hook: &'static str,
    /// Which way the packets went, seen from the containers.
    pub direction: &'static str,
    /// 4, 6, or `None` where no IP header was read.
    pub family: Option<u8>,
    /// Interface of the hook.
    pub interface: Option<String>,
    /// The container, by the hook's interface or else by the last packet's addresses.
    pub container: Option<ContainerRef>,
    /// Network, where one is known.
    pub network: Option<NetworkRef>,
    /// How many, within the window that was asked for.
    pub count: u64,
    /// The last packet.
    pub last: Option<PacketView>,
    /// When it was dropped.
    pub last_seen: Timestamp,
}

/// Addresses of a dropped packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PacketView {
    /// Protocol by name, or its number.
    pub protocol: Cow<'static, str>,
    /// Its tuple.
    #[serde(flatten)]
    pub tuple: TupleView,
}

/// Counters of one key, summed over CPUs, as they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropSum {
    /// What is counted.
    pub key: DropKey,
    /// Drops within the window.
    pub count: u64,
    /// CLOCK_MONOTONIC seconds of the last one on any CPU.
    pub last_seen: u32,
    /// Its packet.
    pub last: AnyTuple,
}

/// Reads the counters. `window`: only what was dropped in the last so many seconds, at most
/// [`LONGEST_WINDOW`]; time is counted in slots, so up to [`DROP_SLOT_SECONDS`] more are covered.
///
/// # Errors
/// What the kernel says.
pub fn sums(state: &State, window: Option<u32>) -> Result<Vec<DropSum>, StateError> {
    let mut sums = Vec::new();
    let map = state.map(map::DROPS)?;
    // Not the clock of when the state was opened: a follower polls.
    let now = super::clock::Clock::now().monotonic();
    let walked = batch::for_each_per_cpu(&map, |key: DropKey, counts: &[DropCount]| {
        let sum = sum(key, counts, window, now);
        if sum.count > 0 {
            sums.push(sum);
        }
    });
    state.read(map::DROPS, walked)?;
    Ok(sums)
}

/// Drops for people, the most frequent first.
///
/// # Errors
/// What the kernel says.
pub fn drops(
    state: &State,
    topology: &Topology,
    window: Option<u32>,
) -> Result<Vec<DropView>, StateError> {
    let mut views: Vec<DropView> = sums(state, window)?
        .iter()
        .map(|sum| view(state, topology, sum))
        .collect();
    views.sort_by(|a, b| {
        let order = |v: &DropView| (v.reason.clone(), v.hook, v.interface.clone());
        b.count.cmp(&a.count).then_with(|| order(a).cmp(&order(b)))
    });
    Ok(views)
}

fn sum(key: DropKey, counts: &[DropCount], window: Option<u32>, now: u32) -> DropSum {
    let mut sum = DropSum {
        key,
        count: 0,
        last_seen: 0,
        last: AnyTuple::default(),
    };
    for count in counts.iter().filter(|c| c.total > 0) {
        sum.count += match window {
            None => count.total,
            Some(window) => within(count, window, now),
        };
        if count.last_seen >= sum.last_seen {
            sum.last_seen = count.last_seen;
            sum.last = count.last;
        }
    }
    sum
}

/// Drops in every slot that reaches into the window. A slot that was last written in an earlier
/// turn of the ring bears an old number and does not count.
fn within(count: &DropCount, window: u32, now: u32) -> u64 {
    let current = now / DROP_SLOT_SECONDS;
    let first = now.saturating_sub(window) / DROP_SLOT_SECONDS;
    count
        .slots
        .iter()
        // A CPU may have begun the next slot since `now` was read.
        .filter(|slot| slot.number >= first && slot.number <= current + 1)
        .map(|slot| u64::from(slot.count))
        .sum()
}

/// One sum for people.
pub fn view(state: &State, topology: &Topology, sum: &DropSum) -> DropView {
    let key = &sum.key;
    let last = packet_view(&sum.last);
    let addresses = last.as_ref().map(|p| [p.tuple.src, p.tuple.dst]);
    DropView {
        reason: reason_name(key.reason),
        explain: DropReason::from_number(key.reason).map_or("", DropReason::explain),
        hook: hook::name(key.hook),
        direction: direction(key.hook),
        family: (key.family != 0).then_some(key.family),
        interface: state.interface(key.ifindex).map(str::to_owned),
        container: container(topology, key.ifindex, addresses),
        network: topology.network_ref(key.network),
        count: sum.count,
        last,
        last_seen: state.clock().time_of(sum.last_seen),
    }
}

/// The container that a drop concerns: that of the hook's interface, else the one that was
/// addressed, else the one that sent.
pub(super) fn container(
    topology: &Topology,
    ifindex: u32,
    addresses: Option<[IpAddr; 2]>,
) -> Option<ContainerRef> {
    let by_address = || {
        let [src, dst] = addresses?;
        topology
            .endpoint_at(dst)
            .or_else(|| topology.endpoint_at(src))
    };
    topology
        .endpoints
        .get(&ifindex)
        .or_else(by_address)
        .map(ContainerRef::from)
}

/// Name of a reason, or its number.
pub(super) fn reason_name(number: u16) -> String {
    DropReason::from_number(number).map_or_else(|| number.to_string(), |r| r.name().to_owned())
}

/// Which way a packet at a hook goes, seen from the containers.
pub(super) fn direction(number: u8) -> &'static str {
    match number {
        hook::FROM_ENDPOINT => "from-container",
        hook::TO_ENDPOINT => "to-container",
        hook::FROM_UPLINK => "from-uplink",
        hook::BRIDGE_IN => "from-bridge",
        hook::BRIDGE_OUT => "to-bridge",
        hook::CONNECT4..=hook::GETPEERNAME6 => "from-host",
        _ => "unknown",
    }
}

/// The packet that these addresses are of; `None` where no IP header was read.
pub(super) fn packet_view(tuple: &AnyTuple) -> Option<PacketView> {
    let address = |bytes: &[u8; 16]| match tuple.family {
        4 => ip(V4Addr::from_padded(bytes)),
        _ => ip(V6Addr(*bytes)),
    };
    if !matches!(tuple.family, 4 | 6) {
        return None;
    }
    let (sport, dport) = (
        u16::from_be_bytes(tuple.sport),
        u16::from_be_bytes(tuple.dport),
    );
    let ports = has_ports(tuple.proto);
    let icmp = matches!(tuple.proto, proto::ICMP | proto::ICMPV6);
    Some(PacketView {
        protocol: protocol_name(tuple.proto),
        tuple: TupleView {
            src: address(&tuple.src),
            src_port: ports.then_some(sport),
            dst: address(&tuple.dst),
            dst_port: ports.then_some(dport),
            icmp_id: (icmp && sport | dport != 0).then_some(sport | dport),
        },
    })
}

#[cfg(test)]
mod tests {
    use netd_common::abi::DropSlot;

    use super::{super::network::tests::topology, *};

    /// One drop in each of these slots of time, with the total that belongs to it.
    fn count(slots: &[u32], last_seen: u32) -> DropCount {
        let mut count = DropCount {
            total: slots.len() as u64,
            last_seen,
            reserved: 0,
            last: AnyTuple {
                family: 4,
                proto: 6,
                ..AnyTuple::default()
            },
            slots: [DropSlot::default(); DROP_SLOTS],
        };
        for &number in slots {
            let slot = &mut count.slots[number as usize % DROP_SLOTS];
            assert!(
                slot.number == 0 || slot.number == number,
                "two turns in one slot"
            );
            slot.number = number;
            slot.count += 1;
        }
        count
    }

    #[test]
    fn a_window_counts_the_slots_that_reach_into_it() {
        // Now is second 10,005: slot 1000 has begun.
        let c = count(&[1000, 999, 994, 993, 940], 10_005);
        for (window, expected) in [(1, 1), (10, 2), (60, 3), (70, 4), (595, 4), (600, 5)] {
            assert_eq!(within(&c, window, 10_005), expected, "{window} s");
        }
    }

    #[test]
    fn slots_of_an_earlier_turn_do_not_count() {
        let c = count(&[1000 - DROP_SLOTS as u32], 9_000);
        assert_eq!(within(&c, 600, 10_005), 0);
        let sum = sum(DropKey::default(), &[c], Some(600), 10_005);
        assert_eq!(sum.count, 0);
    }

    #[test]
    fn a_machine_just_booted_has_a_short_past() {
        let c = count(&[0, 1], 15);
        assert_eq!(within(&c, 600, 15), 2);
        assert_eq!(within(&c, 3, 15), 1);
    }

    #[test]
    fn cpus_are_summed_and_the_newest_packet_wins() {
        let mut a = count(&[10], 100);
        a.last.sport = [0, 1];
        let mut b = count(&[9, 10, 10], 101);
        b.last.sport = [0, 2];
        let idle = count(&[], 0);
        let key = DropKey::default();
        let sum = sum(key, &[a, b, idle], None, 105);
        assert_eq!((sum.count, sum.last_seen, sum.last.sport), (4, 101, [0, 2]));
    }

    #[test]
    fn a_container_is_found_by_interface_then_by_address() {
        let t = topology();
        let addresses = |src: &str, dst: &str| Some([src.parse().unwrap(), dst.parse().unwrap()]);
        let of =
            |ifindex, addresses| container(&t, ifindex, addresses).map(|c| c.interface.unwrap());
        assert_eq!(
            of(12, addresses("10.201.2.2", "10.201.1.2")).unwrap(),
            "vethB"
        );
        assert_eq!(
            of(2, addresses("198.18.0.9", "10.201.1.2")).unwrap(),
            "vethA"
        );
        assert_eq!(
            of(2, addresses("10.201.1.2", "198.18.0.9")).unwrap(),
            "vethA"
        );
        assert_eq!(of(2, addresses("198.18.0.9", "198.18.0.1")), None);
        assert_eq!(of(2, None), None);
    }

    #[test]
    fn packets_of_each_kind() {
        let mut tuple = AnyTuple {
            family: 4,
            proto: 6,
            sport: [0, 80],
            dport: [0x1f, 0x90],
            ..AnyTuple::default()
        };
        tuple.src[..4].copy_from_slice(&[198, 18, 0, 9]);
        let tcp = packet_view(&tuple).unwrap();
        assert_eq!(tcp.tuple.src.to_string(), "198.18.0.9");
        assert_eq!(
            (tcp.tuple.src_port, tcp.tuple.dst_port),
            (Some(80), Some(8080))
        );
        let echo = AnyTuple {
            family: 6,
            proto: 58,
            sport: [0, 7],
            ..AnyTuple::default()
        };
        let echo = packet_view(&echo).unwrap();
        assert_eq!((echo.tuple.src_port, echo.tuple.icmp_id), (None, Some(7)));
        assert!(echo.tuple.src.is_ipv6());
        assert_eq!(packet_view(&AnyTuple::default()), None);
    }

    #[test]
    fn every_hook_has_a_direction() {
        for number in 0..hook::COUNT {
            assert_ne!(direction(number), "unknown");
        }
        assert_eq!(reason_name(7), "isolation");
        assert_eq!(reason_name(60_000), "60000");
    }
}
