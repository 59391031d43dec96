//! IPsec policies as the programs know them.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use netd_common::abi::{IPSEC_POLICIES, IpsecPolicy as PolicyRow, config_flag, ipsec_action};
use netd_common::wire::{V4Addr, V6Addr};

use super::Desired;
use crate::dataplane::Row;
use crate::host::{HostFacts, IpsecAction, IpsecPolicy};
use ipnet::IpNet;

/// One row per policy for outgoing packets. Policies of XFRM interfaces are left out: who sends by such
/// an interface has its packets transformed by it.
pub(super) fn rows(facts: &HostFacts, out: &mut Desired) {
    for v4 in [true, false] {
        let of_family = |policy: &&IpsecPolicy| policy.destination.addr().is_ipv4() == v4;
        let policies = facts.ipsec_out.iter().filter(of_family);
        let mut policies: Vec<_> = policies.filter(|p| p.if_id.is_none()).cloned().collect();
        // By weight, for those that there is no room for.
        policies.sort_by_key(|policy| policy.priority);
        let room = IPSEC_POLICIES as usize;
        if policies.len() > room {
            out.warnings.push(format!(
                "there are {} IPsec policies for outgoing packets and netd knows {room}: flows that none of the first \
                 {} covers are taken for covered, and are not redirected",
                policies.len(),
                room - 1
            ));
            policies.truncate(room);
            let last = &mut policies[room - 1];
            *last = all(v4, last.priority);
        }
        if !policies.is_empty() {
            out.config.flags |= config_flag::IPSEC;
        }
        let mut slots = Slots::default();
        for policy in &policies {
            let slot = slots.take(policy);
            out.tables.put(match (policy.source, policy.destination) {
                (IpNet::V4(source), IpNet::V4(destination)) => Row::IpsecV4(
                    slot,
                    row::<V4Addr>(
                        policy,
                        [source.network(), source.netmask()].map(V4Addr::from),
                        [destination.network(), destination.netmask()].map(V4Addr::from),
                    ),
                ),
                (IpNet::V6(source), IpNet::V6(destination)) => Row::IpsecV6(
                    slot,
                    row::<V6Addr>(
                        policy,
                        [source.network(), source.netmask()].map(V6Addr::from),
                        [destination.network(), destination.netmask()].map(V6Addr::from),
                    ),
                ),
                // The kernel's selectors have one family.
                _ => continue,
            });
        }
    }
}

fn row<A>(policy: &IpsecPolicy, [src, src_mask]: [A; 2], [dst, dst_mask]: [A; 2]) -> PolicyRow<A> {
    PolicyRow {
        src,
        src_mask,
        dst,
        dst_mask,
        sport: policy.source_port.port.to_be_bytes(),
        sport_mask: policy.source_port.mask.to_be_bytes(),
        dport: policy.destination_port.port.to_be_bytes(),
        dport_mask: policy.destination_port.mask.to_be_bytes(),
        ifindex: policy.ifindex.unwrap_or(0),
        priority: policy.priority,
        proto: policy.protocol.unwrap_or(0),
        action: match policy.action {
            IpsecAction::Bypass => ipsec_action::BYPASS,
            IpsecAction::Transform | IpsecAction::Block => ipsec_action::REFUSE,
        },
        reserved: [0; 2],
    }
}

/// A policy that covers everything.
fn all(v4: bool, priority: u32) -> IpsecPolicy {
    let any = if v4 { "0.0.0.0/0" } else { "::/0" };
    let any: IpNet = any.parse().expect("a prefix");
    IpsecPolicy {
        source: any,
        destination: any,
        source_port: Default::default(),
        destination_port: Default::default(),
        protocol: None,
        ifindex: None,
        if_id: None,
        priority,
        action: IpsecAction::Block,
    }
}

/// A policy has its place by what it says, so that others mostly stay where they are when one comes or
/// goes: rows are written one by one, and none may be missing for a moment. Where one takes
/// another's place, the plan writes the other's new place first.
#[derive(Default)]
struct Slots(std::collections::BTreeSet<u32>);

impl Slots {
    fn take(&mut self, policy: &IpsecPolicy) -> u32 {
        let mut hasher = DefaultHasher::new();
        policy.hash(&mut hasher);
        let first = hasher.finish() as u32 % IPSEC_POLICIES;
        let slots = (0..IPSEC_POLICIES).map(|i| (first + i) % IPSEC_POLICIES);
        let mut free = slots.filter(|slot| !self.0.contains(slot));
        let slot = free.next().expect("no more policies than slots");
        self.0.insert(slot);
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{WEB, host, wanted};
    use super::*;

    fn policy(source: &str, destination: &str, action: IpsecAction) -> IpsecPolicy {
        IpsecPolicy {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            action,
            ..all(true, 5)
        }
    }

    #[test]
    fn policies_become_rows_and_set_the_flag() {
        let mut facts = host();
        assert_eq!(wanted(WEB, &facts).config.flags & config_flag::IPSEC, 0);
        let tunnel = policy("10.201.1.0/24", "198.19.0.0/16", IpsecAction::Transform);
        let interface = IpsecPolicy {
            if_id: Some(7),
            ..tunnel
        };
        facts.ipsec_out = vec![
            tunnel,
            interface,
            policy("10.201.1.0/24", "198.19.3.0/24", IpsecAction::Bypass),
            policy("fd00::/8", "::/0", IpsecAction::Block),
        ];
        let want = wanted(WEB, &facts);
        assert_ne!(want.config.flags & config_flag::IPSEC, 0);
        let rows: Vec<_> = want.tables.ipsec_v4.values().collect();
        assert_eq!(rows.len(), 2);
        let wide = rows.iter().find(|row| row.action == ipsec_action::REFUSE);
        let wide = wide.unwrap();
        assert_eq!(wide.dst, V4Addr([198, 19, 0, 0]));
        assert_eq!(wide.dst_mask, V4Addr([255, 255, 0, 0]));
        assert_eq!(want.tables.ipsec_v6.len(), 1);
    }

    #[test]
    fn a_policy_keeps_its_slot_when_others_come() {
        let mut facts = host();
        let first = policy("10.201.1.0/24", "198.19.0.0/16", IpsecAction::Transform);
        facts.ipsec_out = vec![first];
        let before = wanted(WEB, &facts).tables.ipsec_v4;
        let (slot, row) = before.iter().next().unwrap();
        for i in 0..20 {
            let more = policy(
                "10.201.1.0/24",
                &format!("198.18.{i}.0/24"),
                IpsecAction::Block,
            );
            facts.ipsec_out.insert(
                0,
                IpsecPolicy {
                    priority: 9,
                    ..more
                },
            );
        }
        let after = wanted(WEB, &facts).tables.ipsec_v4;
        assert_eq!(after.len(), 21);
        assert_eq!(after.get(slot), Some(row));
    }

    #[test]
    fn more_policies_than_slots_cover_everything() {
        let mut facts = host();
        for i in 0..300u32 {
            let to = format!("198.{}.{}.0/24", 18 + i / 256, i % 256);
            let more = policy("10.201.1.0/24", &to, IpsecAction::Transform);
            facts.ipsec_out.push(IpsecPolicy {
                priority: i,
                ..more
            });
        }
        let want = wanted(WEB, &facts);
        assert_eq!(want.tables.ipsec_v4.len(), 256);
        let all = want.tables.ipsec_v4.values();
        let mut all = all.filter(|row| row.dst_mask == V4Addr::default());
        assert_eq!(all.next().unwrap().priority, 255);
        assert!(
            want.warnings[0].contains("300 IPsec policies"),
            "{:?}",
            want.warnings
        );
    }
}
