//! Addresses and prefixes of the file, with help for the usual ways to write them wrong.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::diagnostic::Findings;
use super::document::Entry;

/// An IP address as text.
pub(super) fn address(entry: &Entry<'_>, findings: &mut Findings) -> Option<IpAddr> {
    let text = entry.text("\"198.18.0.1\"", findings)?;
    let finding = match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(mapped)) if mapped.to_ipv4_mapped().is_some() => entry
            .error(format!("{text} is an IPv4 address in IPv6 form"))
            .help(format!("write \"{}\"", IpAddr::V6(mapped).to_canonical())),
        Ok(address) => return Some(address),
        Err(_) => entry
            .error(format!("`{}`: {text:?} is not an IP address", entry.key))
            .help(address_help(text)),
    };
    findings.push(finding);
    None
}

fn address_help(text: &str) -> String {
    let bare = text.trim().trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<IpAddr>().is_ok() {
        format!("write {bare:?}")
    } else if let Ok(net) = text.parse::<IpNet>() {
        format!(
            "this is a prefix; write the address alone: \"{}\"",
            net.addr()
        )
    } else if let Ok(socket) = text.parse::<std::net::SocketAddr>() {
        format!(
            "write the address alone, \"{}\"; ports have keys of their own",
            socket.ip()
        )
    } else if let Some((address, _)) = text.split_once('%')
        && address.parse::<Ipv6Addr>().is_ok()
    {
        "an address with a zone is local to one link and cannot be used here".to_owned()
    } else {
        "write an address such as \"198.18.0.1\" or \"fd00::1\"; names are not looked up".to_owned()
    }
}

/// A prefix without host bits that containers can live in.
pub(super) fn subnet(entry: &Entry<'_>, findings: &mut Findings) -> Option<IpNet> {
    let text = entry.text("\"10.201.1.0/24\"", findings)?;
    let finding = match text.parse::<IpNet>() {
        Err(_) => {
            let help = match text.parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => format!("add the prefix length: \"{text}/24\""),
                Ok(IpAddr::V6(_)) => format!("add the prefix length: \"{text}/64\""),
                Err(_) => "write a prefix such as \"10.201.1.0/24\" or \"fd00:201:1::/64\"".into(),
            };
            entry
                .error(format!("`{}`: {text:?} is not an IP prefix", entry.key))
                .help(help)
        }
        Ok(net) if net != net.trunc() => entry
            .error(format!(
                "{net} has bits set beyond its /{} prefix",
                net.prefix_len()
            ))
            .help(format!("write \"{}\"", net.trunc())),
        Ok(net) if net.prefix_len() == net.max_prefix_len() => entry
            .error(format!(
                "{net} is a single address: there is no room for a container"
            ))
            .help("write a shorter prefix, such as a /24 for IPv4 or a /64 for IPv6"),
        Ok(net) => match RESERVED
            .iter()
            .find(|(reserved, _)| overlap(&net, &parse(reserved)))
        {
            None => return Some(net),
            Some((reserved, why)) => entry
                .error(format!(
                    "{net} cannot be a container subnet: {reserved} is {why}"
                ))
                .help("use a private prefix, such as one of 10.0.0.0/8 or fd00::/8"),
        },
    };
    findings.push(finding);
    None
}

/// Prefixes in which no container can have its address.
const RESERVED: &[(&str, &str)] = &[
    ("0.0.0.0/8", "\"this network\" (RFC 1122)"),
    ("127.0.0.0/8", "loopback"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved (RFC 1112)"),
    ("::/127", "the unspecified and the loopback address"),
    ("::ffff:0:0/96", "IPv4 in IPv6 form"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
];

fn parse(reserved: &str) -> IpNet {
    reserved.parse().expect("the table holds prefixes")
}

/// True if one of two prefixes contains the other.
pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Why `address` cannot be one host's, if that is so. Loopback and the unspecified address are
/// for the caller to judge.
pub(super) fn not_unicast(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_multicast() => Some("a multicast address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        // Includes 0.0.0.0/8 except 0.0.0.0 itself.
        IpAddr::V4(v4) if v4.octets()[0] == 0 && !v4.is_unspecified() => {
            Some("in 0.0.0.0/8, which no host has")
        }
        IpAddr::V4(v4) if v4.octets()[0] >= 240 => Some("in 240.0.0.0/4, which is reserved"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            Some("link-local, so it names no single host")
        }
        _ => None,
    }
}

/// Why `address` cannot be a container's in `subnet`: the network address (in IPv6 the
/// subnet-router anycast address, RFC 4291 2.6.1) or the broadcast address. A /31 and a /127 have
/// neither (RFC 3021, RFC 6164).
pub(super) fn not_host(subnet: IpNet, address: IpAddr) -> Option<&'static str> {
    if subnet.prefix_len() + 1 >= subnet.max_prefix_len() {
        None
    } else if address == subnet.network() {
        Some("network address")
    } else if subnet.addr().is_ipv4() && address == subnet.broadcast() {
        Some("broadcast address")
    } else {
        None
    }
}
