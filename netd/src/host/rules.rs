//! The policy rules of IPv6 (`ip -6 rule`), as far as netd reads them.

use super::HostError;
use super::facts::{PolicyRule, RuleAction};
use super::netlink::{Attributes, Netlink, u32_at};

/// Length of `struct fib_rule_hdr`: family, lengths of destination and source prefix, TOS, table, 2
/// reserved bytes, action, flags (4 bytes).
const FIB_RULE_HDR: usize = 12;
// linux/fib_rules.h
const FIB_RULE_INVERT: u32 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_UID_RANGE: u16 = 20;
const FRA_IP_PROTO: u16 = 22;
/// FRA_SPORT_RANGE, and what came after: every one of them narrows the rule.
const FRA_NARROWING: u16 = 23;
const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_BLACKHOLE: u8 = 6;
const FR_ACT_PROHIBIT: u8 = 8;

/// Every rule, in the kernel's order.
pub(super) fn read_rules_v6(route: &mut Netlink) -> Result<Vec<PolicyRule>, HostError> {
    let mut request = [0; FIB_RULE_HDR];
    request[0] = libc::AF_INET6 as u8;
    route.dump("the rules", libc::RTM_GETRULE, &request, |found, body| {
        // IPv6 switched off answers with the rules of IPv4.
        let is_v6 = body.first() == Some(&(libc::AF_INET6 as u8));
        found.extend(decode(body).filter(|_| is_v6));
    })
}

fn decode(body: &[u8]) -> Option<PolicyRule> {
    let header = body.first_chunk::<8>()?;
    let [_, destination, source, tos, table, _, _, action] = *header;
    let flags = u32_at(body, 8)?;
    let mut table = u32::from(table);
    let (mut mark, mut mask) = (0, u32::MAX);
    let mut marked = false;
    let mut rule = PolicyRule {
        priority: 0,
        action: RuleAction::Other,
        narrow: destination != 0 || source != 0 || tos != 0,
        sockets_only: false,
        matches_unmarked: true,
        suppresses: None,
        suppresses_group: false,
    };
    // -1, the default of both, means that nothing is suppressed.
    let wanted = |value: &[u8]| u32_at(value, 0).filter(|value| *value != u32::MAX);
    for (kind, value) in Attributes::after(body, FIB_RULE_HDR) {
        match kind {
            FRA_PRIORITY => rule.priority = u32_at(value, 0)?,
            FRA_TABLE => table = u32_at(value, 0)?,
            FRA_FWMARK => (mark, marked) = (u32_at(value, 0)?, true),
            FRA_FWMASK => mask = u32_at(value, 0)?,
            FRA_SUPPRESS_PREFIXLEN => rule.suppresses = wanted(value),
            FRA_SUPPRESS_IFGROUP => rule.suppresses_group = wanted(value).is_some(),
            FRA_OIFNAME | FRA_UID_RANGE => rule.sockets_only = true,
            FRA_IIFNAME | FRA_IP_PROTO | FRA_NARROWING.. => rule.narrow = true,
            _ => {}
        }
    }
    let inverted = flags & FIB_RULE_INVERT != 0;
    if inverted && (rule.narrow || rule.sockets_only) {
        (rule.narrow, rule.sockets_only) = (true, false);
    } else {
        rule.matches_unmarked = (!marked || mark & mask == 0) != inverted;
    }
    rule.action = match action {
        FR_ACT_TO_TBL => RuleAction::Table(table),
        FR_ACT_BLACKHOLE..=FR_ACT_PROHIBIT => RuleAction::Refuse,
        _ => RuleAction::Other,
    };
    Some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::push_attribute;
    use proptest::prelude::*;

    fn rule(action: u8, flags: u32, attributes: &[(u16, u32)]) -> PolicyRule {
        let mut body = vec![0; FIB_RULE_HDR];
        body[0] = libc::AF_INET6 as u8;
        body[4] = 252;
        body[7] = action;
        body[8..12].copy_from_slice(&flags.to_ne_bytes());
        for (kind, value) in attributes {
            push_attribute(&mut body, *kind, &value.to_ne_bytes());
        }
        decode(&body).expect("a rule")
    }

    #[test]
    fn the_rules_of_wg_quick() {
        let main = [
            (FRA_PRIORITY, 32764),
            (FRA_TABLE, 254),
            (FRA_SUPPRESS_PREFIXLEN, 0),
            (FRA_SUPPRESS_IFGROUP, u32::MAX),
        ];
        let first = rule(FR_ACT_TO_TBL, 0, &main);
        assert_eq!(first.action, RuleAction::Table(254));
        assert_eq!(first.suppresses, Some(0));
        assert!(first.matches_unmarked && !first.narrow && !first.suppresses_group);
        let tunnel = [
            (FRA_TABLE, 51820),
            (FRA_SUPPRESS_PREFIXLEN, u32::MAX),
            (FRA_FWMARK, 51820),
            (FRA_FWMASK, u32::MAX),
        ];
        let second = rule(FR_ACT_TO_TBL, FIB_RULE_INVERT, &tunnel);
        assert_eq!(second.action, RuleAction::Table(51820));
        assert!(second.matches_unmarked, "not fwmark");
        assert_eq!(second.suppresses, None);
        let marked = rule(FR_ACT_TO_TBL, 0, &tunnel);
        assert!(!marked.matches_unmarked, "fwmark");
        assert_eq!(rule(7, 0, &[]).action, RuleAction::Refuse);
        assert!(rule(FR_ACT_TO_TBL, 0, &[(FRA_IIFNAME, 0)]).narrow);
        assert!(rule(FR_ACT_TO_TBL, 0, &[(FRA_OIFNAME, 0)]).sockets_only);
        assert!(rule(FR_ACT_TO_TBL, FIB_RULE_INVERT, &[(FRA_OIFNAME, 0)]).narrow);
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            decode(&bytes);
        }
    }
}
