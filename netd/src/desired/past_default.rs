//! IPv6 rules that pass over a default route (`suppress_prefixlength 0`), as wg-quick sets them: the
//! kernel honours them for its own packets, but not in the lookup that it offers to programs. There
//! the default route of the main table would win, and packets would leave beside the tunnel.
//!
//! The programs are told which table comes next. Where that cannot be said in one word, they are told
//! that there is none: better no way than a wrong one.

use netd_common::abi::{NO_TABLE, config_flag};

use super::Desired;
use crate::host::{HostFacts, PolicyRule, RuleAction};

const MAIN: u32 = libc::RT_TABLE_MAIN as u32;

/// Sets the table, and says what cannot be followed.
pub(super) fn configure(facts: &HostFacts, out: &mut Desired) {
    let rules = &facts.rules_v6;
    for rule in rules.iter().filter(|rule| is_beyond(rule)) {
        out.warnings.push(format!(
            "the IPv6 rule of priority {} passes over routes of other kinds than the main table's default route; \
             no program can follow that, and containers' packets take those routes: \
             use `suppress_prefixlength 0` of table main",
            rule.priority
        ));
    }
    let passes = |rule: &PolicyRule| {
        let may_match = !rule.sockets_only && (rule.matches_unmarked || rule.narrow);
        may_match && rule.suppresses.is_some() && rule.action == RuleAction::Table(MAIN)
    };
    let Some(at) = rules.iter().position(passes) else {
        return;
    };
    let table = match next(&rules[at + 1..]) {
        // The same route after all.
        Next::Table(MAIN) => return,
        Next::Table(table) => table,
        Next::Refused => NO_TABLE,
        Next::Unclear(priority) => {
            out.warnings.push(format!(
                "the IPv6 rule of priority {} passes over the main table's default route, and no program can follow \
                 the rule of priority {priority} after it: containers have no IPv6 beyond the main table's other routes",
                rules[at].priority
            ));
            NO_TABLE
        }
    };
    out.config.past_default_v6 = table;
    let defaults = facts.default_routes.iter();
    if defaults
        .filter(|route| route.ipv6 && route.table == MAIN)
        .count()
        > 1
    {
        out.config.flags |= config_flag::DEFAULTS_V6;
    }
}

/// Passes over more than a default route, or in another table.
fn is_beyond(rule: &PolicyRule) -> bool {
    let other_table = rule.action != RuleAction::Table(MAIN);
    let longer = rule
        .suppresses
        .is_some_and(|length| length > 0 || other_table);
    !rule.sockets_only && (rule.suppresses_group || longer)
}

enum Next {
    Table(u32),
    Refused,
    Unclear(u32),
}

/// Where the rules lead a container's packet that they have not led anywhere yet.
fn next(rules: &[PolicyRule]) -> Next {
    for rule in rules.iter().filter(|rule| !rule.sockets_only) {
        let unclear = rule.narrow || rule.suppresses.is_some() || rule.suppresses_group;
        match rule.action {
            _ if !rule.narrow && !rule.matches_unmarked => {}
            RuleAction::Table(table) if !unclear => return Next::Table(table),
            RuleAction::Refuse if !unclear => return Next::Refused,
            _ => return Next::Unclear(rule.priority),
        }
    }
    Next::Refused
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::tests::host;
    use crate::host::DefaultRoute;

    fn rule(priority: u32, table: u32) -> PolicyRule {
        PolicyRule {
            priority,
            action: RuleAction::Table(table),
            narrow: false,
            sockets_only: false,
            matches_unmarked: true,
            suppresses: None,
            suppresses_group: false,
        }
    }

    fn passing(priority: u32) -> PolicyRule {
        PolicyRule {
            suppresses: Some(0),
            ..rule(priority, MAIN)
        }
    }

    fn configured(rules: &[PolicyRule]) -> (u32, usize) {
        let mut facts = host();
        facts.rules_v6 = rules.to_vec();
        let mut out = Desired::default();
        configure(&facts, &mut out);
        assert_eq!(out.config.flags, 0);
        (out.config.past_default_v6, out.warnings.len())
    }

    #[test]
    fn the_table_after_the_one_that_is_passed_over() {
        let (local, main) = (rule(0, 255), rule(32766, MAIN));
        let tunnel = rule(32765, 51820);
        let narrow = |rule: PolicyRule| PolicyRule {
            narrow: true,
            ..rule
        };
        let marked = PolicyRule {
            matches_unmarked: false,
            ..rule(5210, 7)
        };
        let sockets = PolicyRule {
            sockets_only: true,
            ..rule(5211, 8)
        };
        let refuse = PolicyRule {
            action: RuleAction::Refuse,
            ..rule(5212, 0)
        };
        let group = PolicyRule {
            suppresses_group: true,
            ..rule(5213, MAIN)
        };
        for (name, rules, expected) in [
            ("no such rule", vec![local, main], (0, 0)),
            (
                "wg-quick",
                vec![local, passing(1), tunnel, main],
                (51820, 0),
            ),
            (
                "what matches nothing of a container's",
                vec![local, passing(1), marked, sockets, tunnel, main],
                (51820, 0),
            ),
            (
                "main after all",
                vec![local, passing(1), marked, main],
                (0, 0),
            ),
            ("refused", vec![passing(1), refuse, main], (NO_TABLE, 0)),
            ("nothing follows", vec![passing(1)], (NO_TABLE, 0)),
            (
                "a narrow one follows",
                vec![passing(1), narrow(tunnel), main],
                (NO_TABLE, 1),
            ),
            (
                "it is narrow itself",
                vec![narrow(passing(1)), main],
                (0, 0),
            ),
            (
                "for sockets only",
                vec![
                    PolicyRule {
                        sockets_only: true,
                        ..passing(1)
                    },
                    main,
                ],
                (0, 0),
            ),
            (
                "for marked packets only",
                vec![
                    PolicyRule {
                        matches_unmarked: false,
                        ..passing(1)
                    },
                    main,
                ],
                (0, 0),
            ),
            (
                "longer prefixes too",
                vec![
                    PolicyRule {
                        suppresses: Some(16),
                        ..passing(1)
                    },
                    tunnel,
                ],
                (51820, 1),
            ),
            (
                "of another table",
                vec![
                    PolicyRule {
                        suppresses: Some(0),
                        ..rule(1, 7)
                    },
                    main,
                ],
                (0, 1),
            ),
            ("interfaces of a group", vec![group, main], (0, 1)),
        ] {
            assert_eq!(configured(&rules), expected, "{name}");
        }
    }

    #[test]
    fn several_default_routes_are_all_suspect() {
        let mut facts = host();
        facts.rules_v6 = vec![passing(1), rule(2, 51820)];
        let default = |ifindex| DefaultRoute {
            table: MAIN,
            ipv6: true,
            metric: 1024,
            ifindex: Some(ifindex),
            gateway: "fe80::1".parse().ok(),
            preferred_source: None,
        };
        for (routes, flags) in [(1, 0), (2, config_flag::DEFAULTS_V6)] {
            facts.default_routes = (0..routes).map(default).collect();
            let mut out = Desired::default();
            configure(&facts, &mut out);
            assert_eq!(
                (out.config.past_default_v6, out.config.flags),
                (51820, flags)
            );
        }
    }
}
