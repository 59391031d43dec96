//! IPsec policies for outgoing packets (XFRM).

use super::facts::*;
use super::netlink::{Attributes, Netlink, any_prefix, ifindex_of, ip_of, u16_at, u32_at};
use super::{HostError, open};
use ipnet::IpNet;

// linux/xfrm.h
const XFRM_MSG_GETPOLICY: u16 = 0x15;
const XFRM_POLICY_OUT: u8 = 1;
const XFRM_POLICY_BLOCK: u8 = 1;
const XFRMA_TMPL: u16 = 5;
const XFRMA_MARK: u16 = 21;
const XFRMA_IF_ID: u16 = 31;
const XFRM_MSG_GETDEFAULT: u16 = 0x28;
/// `struct xfrm_userpolicy_default`: what happens to packets that no policy matches, in, forwarded and out.
const DEFAULT: usize = 3;
const XFRM_USERPOLICY_BLOCK: u8 = 1;
/// Length of `struct xfrm_userpolicy_info`: a selector of 56 bytes, limits and counters of 96,
/// priority at 152, index, direction at 160, action at 161, flags, share, padding.
const POLICY: usize = 168;

/// Every outgoing policy, sorted; empty where the kernel has no XFRM.
pub(super) fn read_policies() -> Result<Vec<IpsecPolicy>, HostError> {
    let mut xfrm = match open(libc::NETLINK_XFRM, "XFRM") {
        Err(HostError::Open { source, .. })
            if source.raw_os_error() == Some(libc::EPROTONOSUPPORT) =>
        {
            return Ok(Vec::new());
        }
        opened => opened?,
    };
    let what = "the IPsec policies";
    let mut found = xfrm.dump(what, XFRM_MSG_GETPOLICY, &[], |found, body| {
        found.extend(decode(body).into_iter().flatten());
    })?;
    found.extend(default_policies(&mut xfrm)?);
    found.sort();
    found.dedup();
    Ok(found)
}

/// What happens to packets that no policy matches (`ip xfrm policy setdefault`, Linux 5.15), as policies that come
/// after all others.
fn default_policies(xfrm: &mut Netlink) -> Result<Vec<IpsecPolicy>, HostError> {
    let body = [0; DEFAULT.next_multiple_of(4)];
    let out = xfrm.get("the IPsec default", XFRM_MSG_GETDEFAULT, &body, |answer| {
        answer.get(2).copied()
    });
    let blocks = match out {
        // An older kernel lets everything through.
        Err(HostError::Netlink { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
            false
        }
        out => out? == Some(XFRM_USERPOLICY_BLOCK),
    };
    let families = [libc::AF_INET, libc::AF_INET6]
        .into_iter()
        .filter(|_| blocks);
    Ok(families
        .filter_map(|family| any_prefix(family as u8))
        .map(|any| IpsecPolicy {
            source: any,
            destination: any,
            source_port: PortMask::default(),
            destination_port: PortMask::default(),
            protocol: None,
            ifindex: None,
            if_id: None,
            priority: u32::MAX,
            action: IpsecAction::Block,
        })
        .collect())
}

/// One policy; two when its selector names no family. `None` when it is not for output, or for marked
/// packets only.
fn decode(body: &[u8]) -> Option<Vec<IpsecPolicy>> {
    if body.len() < POLICY || body[160] != XFRM_POLICY_OUT {
        return None;
    }
    // struct xfrm_selector: destination, source (16 bytes each), ports and masks (8), family,
    // prefix lengths of destination and source, protocol, 3 bytes of padding, ifindex, user.
    let family = u16_at(body, 40)? as u8;
    let (destination_len, source_len, protocol) = (body[42], body[43], body[44]);
    let (mut templates, mut if_id, mut marked) = (false, None, false);
    for (kind, value) in Attributes::after(body, POLICY) {
        match kind {
            XFRMA_TMPL => templates = !value.is_empty(),
            // struct xfrm_mark: value, mask.
            XFRMA_MARK => marked = u32_at(value, 0)? & u32_at(value, 4)? != 0,
            XFRMA_IF_ID => if_id = ifindex_of(value),
            _ => {}
        }
    }
    // A container's packet bears no mark (VTI tunnels give theirs to what they send).
    if marked {
        return None;
    }
    let action = match (body[161], templates) {
        (XFRM_POLICY_BLOCK, _) => IpsecAction::Block,
        (_, true) => IpsecAction::Transform,
        (_, false) => IpsecAction::Bypass,
    };
    let port = |at: usize| {
        let value = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
        PortMask {
            port: value(at),
            mask: value(at + 2),
        }
    };
    let policy = |source, destination| IpsecPolicy {
        source,
        destination,
        source_port: port(36),
        destination_port: port(32),
        protocol: Some(protocol).filter(|protocol| *protocol != 0),
        ifindex: body.get(48..52).and_then(ifindex_of),
        if_id,
        priority: u32_at(body, 152).unwrap_or_default(),
        action,
    };
    let prefix = |at: usize, length: u8| {
        let bytes = if i32::from(family) == libc::AF_INET {
            4
        } else {
            16
        };
        let net = IpNet::new(ip_of(body.get(at..at + bytes)?)?, length).ok()?;
        Some(net.trunc())
    };
    match i32::from(family) {
        libc::AF_INET | libc::AF_INET6 => Some(vec![policy(
            prefix(16, source_len)?,
            prefix(0, destination_len)?,
        )]),
        _ => [libc::AF_INET, libc::AF_INET6]
            .iter()
            .map(|family| {
                let any = any_prefix(*family as u8)?;
                Some(policy(any, any))
            })
            .collect(),
    }
}
