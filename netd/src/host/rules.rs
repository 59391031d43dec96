//! Policy rules of IPv6 (rtnetlink), as far as netd has to know them: see [`crate::desired`].

use ipnet::IpNet;
use serde::Serialize;

use super::HostError;
use super::netlink::{Attributes, Netlink, ip_of, text_of, u32_at};

// linux/fib_rules.h
const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TUN_ID: u16 = 12;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_L3MDEV: u16 = 19;
const FRA_UID_RANGE: u16 = 20;
const FRA_IP_PROTO: u16 = 22;
/// Source and destination ports; what came later (DSCP, flow labels, masks) selects as well.
const FRA_SPORT_RANGE: u16 = 23;
const FR_ACT_TO_TBL: u8 = 1;
const FIB_RULE_INVERT: u32 = 2;
/// Length of `struct fib_rule_hdr`: family, lengths of destination and source, service class, table, two reserved
/// bytes, action, flags (4).
const HEADER: usize = 12;

/// One rule of `ip -6 rule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PolicyRule {
    /// Rules are asked in ascending order.
    pub priority: u32,
    /// The table that it looks up; `None` for rules that end the lookup.
    pub table: Option<u32>,
    /// It matches what its selectors do not.
    pub inverted: bool,
    /// Mark and mask.
    pub mark: Option<(u32, u32)>,
    /// Sources.
    pub source: Option<IpNet>,
    /// The interface that packets come from.
    pub input: Option<String>,
    /// It is for the host's own packets only: by user, or by the interface that a socket is bound to.
    pub own: bool,
    /// It is for packets of VRFs only.
    pub vrf: bool,
    /// It has other selectors.
    pub more: bool,
    /// Results with a prefix of this length or shorter do not count, and the next rule is asked.
    pub suppress_prefix_length: Option<u32>,
    /// Results by interfaces of this group do not count.
    pub suppress_group: Option<u32>,
}

/// The rules of IPv6, in the order in which the kernel asks them.
pub(super) fn read_v6(route: &mut Netlink) -> Result<Vec<PolicyRule>, HostError> {
    let mut request = vec![0; HEADER];
    request[0] = libc::AF_INET6 as u8;
    let what = "the policy rules";
    let found = route.dump(what, libc::RTM_GETRULE, &request, |found, body| {
        // IPv6 switched off answers with every family's rules.
        if body.first() == Some(&(libc::AF_INET6 as u8)) {
            found.extend(decode(body));
        }
    });
    match found {
        // A kernel without policy rules for IPv6.
        Err(HostError::Netlink { source, .. })
            if source.raw_os_error() == Some(libc::EAFNOSUPPORT)
                || source.raw_os_error() == Some(libc::EOPNOTSUPP) =>
        {
            Ok(Vec::new())
        }
        found => found,
    }
}

fn decode(body: &[u8]) -> Option<PolicyRule> {
    let [_, destination_len, source_len, class, table, _, _, action] = *body.first_chunk::<8>()?;
    let flags = u32_at(body, 8)?;
    let mut rule = PolicyRule {
        inverted: flags & FIB_RULE_INVERT != 0,
        more: destination_len != 0 || class != 0,
        ..PolicyRule::default()
    };
    let mut to_table = u32::from(table);
    let (mut mark, mut mask) = (None, u32::MAX);
    // What is not set is sent as −1.
    let set = |value: &[u8]| u32_at(value, 0).filter(|value| *value != u32::MAX);
    for (attribute, value) in Attributes::after(body, HEADER) {
        match attribute {
            FRA_DST => rule.more = true,
            FRA_SRC => {
                let source = ip_of(value)?;
                rule.source = Some(IpNet::new(source, source_len).ok()?.trunc());
            }
            FRA_IIFNAME => rule.input = Some(text_of(value)),
            FRA_PRIORITY => rule.priority = u32_at(value, 0)?,
            FRA_FWMARK => mark = u32_at(value, 0),
            FRA_FWMASK => mask = u32_at(value, 0)?,
            FRA_TABLE => to_table = u32_at(value, 0)?,
            FRA_OIFNAME | FRA_UID_RANGE => rule.own = true,
            FRA_L3MDEV => rule.vrf = value.first() != Some(&0),
            FRA_SUPPRESS_PREFIXLEN => rule.suppress_prefix_length = set(value),
            FRA_SUPPRESS_IFGROUP => rule.suppress_group = set(value),
            FRA_IP_PROTO | FRA_TUN_ID => rule.more = true,
            FRA_SPORT_RANGE.. => rule.more = true,
            _ => {}
        }
    }
    rule.table = (action == FR_ACT_TO_TBL).then_some(to_table);
    // A mask of zero matches every mark.
    rule.mark = mark.filter(|_| mask != 0).map(|mark| (mark, mask));
    Some(rule)
}
