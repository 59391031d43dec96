//! IPv6 routes that policy rules suppress, as wg-quick and NetworkManager have them: `table main
//! suppress_prefixlength 0`, then the tunnel's table.
//!
//! The kernel's `bpf_fib_lookup` does not suppress for IPv6: `fib6_rule_suppress` (net/ipv6/fib6_rules.c) looks at
//! `res->rt6`, which that lookup leaves empty. It would send what belongs into the tunnel by the default route, in the
//! clear. So the programs are told which next hops the rules suppress, and what holds in their place; where that cannot
//! be said in advance, nothing leaves by such a next hop.

use netd_common::abi::{Suppressed, SuppressedHop, suppressed_flag};
use netd_common::wire::V6Addr;

use super::{Desired, Managed};
use crate::dataplane::Row;
use crate::host::{DefaultRoute, HostFacts, PolicyRule};
use std::net::IpAddr;

/// One row per suppressed next hop.
pub(super) fn rows(facts: &HostFacts, networks: &[Managed<'_>], out: &mut Desired) {
    for (index, rule) in facts.rules_v6.iter().enumerate() {
        let Some(table) = suppresses(rule) else {
            continue;
        };
        let later = &facts.rules_v6[index + 1..];
        let instead = match matches(rule, networks) {
            Some(false) => continue,
            Some(true) => instead(table, later, networks),
            None => Instead::Unknown,
        };
        let row = match instead {
            Instead::Same => continue,
            Instead::Table(table, flags) => Suppressed { table, flags },
            Instead::Unknown => {
                out.warnings.push(format!(
                    "policy rule {} of IPv6 suppresses routes of table {table}, and what holds instead cannot be told \
                     from the rules alone: no packet of a container leaves by the default route of that table. A rule \
                     without other selectors than a mark would help",
                    rule.priority
                ));
                Suppressed::default()
            }
        };
        if rule.suppress_prefix_length.is_some_and(|length| length > 0) {
            out.warnings.push(format!(
                "policy rule {} of IPv6 suppresses more than default routes: netd follows it for default routes only",
                rule.priority
            ));
        }
        let routes = facts.default_routes.iter();
        for key in routes.filter(|route| route.table == table).filter_map(hop) {
            // The first rule that suppresses it decides.
            if !out.tables.suppressed_v6.contains_key(&key) {
                out.tables.put(Row::SuppressedV6(key, row));
            }
        }
    }
}

/// What a lookup comes to whose result is suppressed.
enum Instead {
    /// The same: a later rule looks the table up again.
    Same,
    /// What this table says.
    Table(u32, u32),
    Unknown,
}

/// The rules after one that suppresses results of `table`.
fn instead(table: u32, later: &[PolicyRule], networks: &[Managed<'_>]) -> Instead {
    let mut found = None;
    for rule in later {
        match (matches(rule, networks), rule.table, found) {
            (Some(false), ..) => {}
            (Some(true), Some(same), _) if same == table && suppresses(rule).is_some() => {}
            (Some(true), Some(same), None) if same == table => return Instead::Same,
            (Some(true), Some(same), Some(other)) if same == table => {
                return Instead::Table(other, suppressed_flag::STANDS);
            }
            (Some(true), Some(other), None) if suppresses(rule).is_none() => found = Some(other),
            // A third table, or a rule that may not match: as if there were no other route.
            (.., Some(other)) => return Instead::Table(other, 0),
            (.., None) => return Instead::Unknown,
        }
    }
    found.map_or(Instead::Unknown, |other| Instead::Table(other, 0))
}

/// The table whose results it suppresses.
fn suppresses(rule: &PolicyRule) -> Option<u32> {
    let suppresses = rule.suppress_prefix_length.is_some() || rule.suppress_group.is_some();
    rule.table.filter(|_| suppresses)
}

/// Whether it matches packets of containers, which are looked up without a mark; `None`: some, or nobody knows.
fn matches(rule: &PolicyRule, networks: &[Managed<'_>]) -> Option<bool> {
    let bridges = || {
        networks
            .iter()
            .map(|managed| managed.network.bridge.as_str())
    };
    let mut subnets = networks.iter().flat_map(|managed| &managed.network.subnets);
    let of_nobody = rule.own
        || rule.vrf
        || rule.mark.is_some_and(|(mark, mask)| mark & mask != 0)
        || rule
            .input
            .as_deref()
            .is_some_and(|input| bridges().all(|bridge| bridge != input))
        || rule.source.is_some_and(|source| {
            subnets.all(|net| !net.contains(&source) && !source.contains(net))
        });
    let of_some = rule.more
        || rule.input.is_some()
        || rule.source.is_some()
        // Which interfaces are in a group is not read.
        || rule.suppress_group.is_some();
    match (of_nobody, of_some) {
        (true, _) => Some(rule.inverted),
        (false, true) => None,
        (false, false) => Some(!rule.inverted),
    }
}

fn hop(route: &DefaultRoute) -> Option<SuppressedHop> {
    let via = match route.gateway {
        None => V6Addr::default(),
        Some(IpAddr::V6(via)) => V6Addr::from(via),
        // The kernel has none of this kind.
        Some(IpAddr::V4(_)) => return None,
    };
    route.ipv6.then_some(SuppressedHop {
        ifindex: route.ifindex?,
        via,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::desired::tests::{WEB, host, wanted};

    const MAIN: u32 = 254;
    const TUNNEL: u32 = 51820;

    fn lookup(priority: u32, table: u32) -> PolicyRule {
        PolicyRule {
            priority,
            table: Some(table),
            ..PolicyRule::default()
        }
    }

    fn suppressing(rule: PolicyRule) -> PolicyRule {
        PolicyRule {
            suppress_prefix_length: Some(0),
            ..rule
        }
    }

    fn not_marked(rule: PolicyRule) -> PolicyRule {
        PolicyRule {
            inverted: true,
            mark: Some((51820, u32::MAX)),
            ..rule
        }
    }

    /// Rules as `wg-quick up` leaves them.
    fn wg_quick() -> Vec<PolicyRule> {
        vec![
            lookup(0, 255),
            suppressing(lookup(32_764, MAIN)),
            not_marked(lookup(32_765, TUNNEL)),
            lookup(32_766, MAIN),
        ]
    }

    /// The rows for a host whose main table has a default route by a gateway and one on-link.
    fn rows_of(rules: Vec<PolicyRule>) -> (BTreeMap<SuppressedHop, Suppressed>, usize) {
        let mut facts = host();
        let default = |table, ifindex, gateway: Option<&str>| DefaultRoute {
            table,
            ipv6: true,
            metric: 1024,
            ifindex: Some(ifindex),
            gateway: gateway.map(|via| via.parse().unwrap()),
            preferred_source: None,
        };
        facts.default_routes = vec![
            default(MAIN, 7, Some("fd90::2")),
            default(MAIN, 8, None),
            default(TUNNEL, 9, None),
        ];
        facts.rules_v6 = rules;
        let wanted = wanted(WEB, &facts);
        (wanted.tables.suppressed_v6, wanted.warnings.len())
    }

    fn all(row: Suppressed) -> BTreeMap<SuppressedHop, Suppressed> {
        let via = "fd90::2".parse::<std::net::Ipv6Addr>().unwrap().into();
        let hops = [(7, via), (8, V6Addr::default())];
        hops.map(|(ifindex, via)| (SuppressedHop { ifindex, via }, row))
            .into()
    }

    #[test]
    fn the_tunnels_table_takes_the_place_of_mains_default_routes() {
        let (rows, warnings) = rows_of(wg_quick());
        let tunnel = Suppressed {
            table: TUNNEL,
            flags: suppressed_flag::STANDS,
        };
        assert_eq!(rows, all(tunnel));
        assert_eq!(warnings, rows_of(Vec::new()).1);
    }

    #[test]
    fn without_the_last_rule_nothing_falls_back() {
        let mut rules = wg_quick();
        rules.pop();
        let tunnel = Suppressed {
            table: TUNNEL,
            flags: 0,
        };
        assert_eq!(rows_of(rules).0, all(tunnel));
    }

    #[test]
    fn nothing_is_suppressed_without_such_a_rule_or_if_main_follows_at_once() {
        let plain = vec![lookup(0, 255), lookup(32_766, MAIN)];
        assert_eq!(rows_of(plain.clone()).0, BTreeMap::new());
        let mut again = plain;
        again.insert(1, suppressing(lookup(100, MAIN)));
        assert_eq!(rows_of(again).0, BTreeMap::new());
    }

    #[test]
    fn a_rule_for_others_changes_nothing() {
        let others = [
            PolicyRule {
                mark: Some((0x40000, 0xff0000)),
                ..lookup(100, 52)
            },
            PolicyRule {
                input: Some("eth9".to_owned()),
                ..lookup(101, 52)
            },
            PolicyRule {
                source: Some("fd99::1/128".parse().unwrap()),
                ..lookup(102, 52)
            },
            PolicyRule {
                own: true,
                ..lookup(103, 52)
            },
            PolicyRule {
                vrf: true,
                table: Some(0),
                ..lookup(1000, 0)
            },
        ];
        let mut rules = wg_quick();
        rules.splice(2..2, others);
        assert_eq!(rows_of(rules).0, rows_of(wg_quick()).0);
    }

    #[test]
    fn what_cannot_be_told_in_advance_is_closed_and_said() {
        let mut some = wg_quick();
        some[1].more = true;
        let mut ended = wg_quick();
        ended[2].table = None;
        for rules in [some, ended] {
            let (rows, warnings) = rows_of(rules);
            assert_eq!(rows, all(Suppressed::default()));
            assert_eq!(warnings, rows_of(Vec::new()).1 + 1);
        }
    }
}
