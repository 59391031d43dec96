//! `[[network]]`: reading one, and the rules that need nothing but it.

use std::net::IpAddr;
use std::ops::Range;

use super::address::{address, not_unicast, subnet};
use super::diagnostic::{Finding, Findings};
use super::document::{Entry, Section};
use super::model::{Family, GatewayModes, MasqueradeTo, Network};
use super::read::{boolean_or, interface, items, word_or_default};
use super::schema;
use super::words::GatewayMode;

/// Longest name in bytes.
const MAX_NAME: usize = 128;

/// A network and the places of its parts.
pub(super) struct NetworkDraft {
    pub(super) network: Network,
    pub(super) name_at: Range<usize>,
    pub(super) bridge_at: Range<usize>,
    /// One for each subnet, in the same order.
    pub(super) subnets_at: Vec<Range<usize>>,
    pub(super) masquerade_to_at: Option<Range<usize>>,
    pub(super) trusted_interfaces_at: Option<Range<usize>>,
}

/// Reads one network; `None` if something without which it means nothing is missing or wrong.
pub(super) fn read(section: &Section<'_>, findings: &mut Findings) -> Option<NetworkDraft> {
    let name = section.require("name", "\"web\"", findings);
    let bridge = section.require("bridge", "\"br-web\"", findings);
    let subnets = section.require("subnets", "[\"10.201.1.0/24\"]", findings);

    let mode = section
        .get("mode")
        .and_then(|entry| modes(&entry, findings));
    let icc = boolean_or(true, section, "icc", findings);
    let internal = boolean_or(false, section, "internal", findings);
    let masquerade = boolean_or(true, section, "masquerade", findings);
    let masquerade_to = section.get("masquerade_to");
    let trusted = section.get("trusted_interfaces");
    let spoof = word_or_default(section, "spoof", findings);
    if let Some(mode) = mode {
        isolated_is_internal(section, mode, internal, findings);
    }

    let name_entry = name?;
    let name = network_name(&name_entry, findings);
    let bridge_entry = bridge?;
    let bridge = interface(&bridge_entry, findings);
    let subnets = self::subnets(&subnets?, findings);
    let to = masquerade_to.map(|entry| masquerade_addresses(&entry, findings));
    let trusted_interfaces = trusted
        .and_then(|entry| entry.list("[\"wg0\"]", findings))
        .map(|list| {
            items(&list, findings, interface)
                .into_iter()
                .map(|(name, _)| name)
                .collect()
        });
    let (subnets, subnets_at) = subnets?.into_iter().unzip();
    Some(NetworkDraft {
        network: Network {
            name: name?,
            bridge: bridge?,
            subnets,
            mode: mode.unwrap_or_default(),
            icc,
            internal,
            masquerade,
            masquerade_to: to.unwrap_or_default(),
            trusted_interfaces: trusted_interfaces.unwrap_or_default(),
            spoof,
        },
        name_at: name_entry.span(),
        bridge_at: bridge_entry.span(),
        subnets_at,
        masquerade_to_at: masquerade_to.map(|entry| entry.span()),
        trusted_interfaces_at: trusted.map(|entry| entry.span()),
    })
}

/// The names that the Engine accepts too, so that a file can be compared with it.
fn network_name(entry: &Entry<'_>, findings: &mut Findings) -> Option<String> {
    let text = entry.text("\"web\"", findings)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let wrong = if text.is_empty() {
        "a network's name cannot be empty".to_owned()
    } else if text.len() > MAX_NAME {
        format!(
            "a network's name has at most {MAX_NAME} characters, this one has {}",
            text.len()
        )
    } else if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        "a network's name begins with a letter or a digit".to_owned()
    } else if let Some(c) = text.chars().find(|c| !allowed(*c)) {
        format!("a network's name cannot contain {c:?}")
    } else {
        return Some(text.to_owned());
    };
    findings.push(
        entry
            .error(wrong)
            .help("use letters, digits, `_`, `.` and `-`"),
    );
    None
}

/// At least one subnet; `None` if none could be read.
fn subnets(
    entry: &Entry<'_>,
    findings: &mut Findings,
) -> Option<Vec<(ipnet::IpNet, Range<usize>)>> {
    let list = entry.list("[\"10.201.1.0/24\", \"fd00:201:1::/64\"]", findings)?;
    if list.is_empty() {
        findings.push(
            entry
                .error("a network needs at least one subnet")
                .help("write for example [\"10.201.1.0/24\", \"fd00:201:1::/64\"]"),
        );
        return None;
    }
    let mut subnets = Vec::new();
    for item in &list {
        subnets.push((subnet(item, findings)?, item.span()));
    }
    Some(subnets)
}

/// One word for both families, or a table with one for each.
fn modes(entry: &Entry<'_>, findings: &mut Findings) -> Option<GatewayModes> {
    match entry.as_section(schema::MODE, findings) {
        Some(section) => Some(GatewayModes {
            ipv4: word_or_default(&section, "ipv4", findings),
            ipv6: word_or_default(&section, "ipv6", findings),
        }),
        None => entry.word(findings).map(|mode| GatewayModes {
            ipv4: mode,
            ipv6: mode,
        }),
    }
}

fn isolated_is_internal(
    section: &Section<'_>,
    mode: GatewayModes,
    internal: bool,
    findings: &mut Findings,
) {
    let isolated = [mode.ipv4, mode.ipv6].contains(&GatewayMode::Isolated);
    if isolated && !internal {
        let at = section
            .get("mode")
            .map_or(section.span(), |entry| entry.span());
        findings.push(
            Finding::error(at, "mode \"isolated\" is only for internal networks")
                .help("add `internal = true`, or choose another mode"),
        );
    }
}

/// At most one unicast address for each family.
fn masquerade_addresses(entry: &Entry<'_>, findings: &mut Findings) -> MasqueradeTo {
    let mut to = MasqueradeTo::default();
    let Some(list) = entry.list("[\"198.18.0.1\"]", findings) else {
        return to;
    };
    for (address, at) in items(&list, findings, address) {
        let wrong = if address.is_unspecified() {
            Some("no address at all")
        } else if address.is_loopback() {
            Some("a loopback address, so no reply would find it")
        } else {
            not_unicast(address)
        };
        if let Some(wrong) = wrong {
            findings.push(
                Finding::error(at, format!("`masquerade_to`: {address} is {wrong}"))
                    .help("write an address that this host has on an uplink"),
            );
            continue;
        }
        let family = Family::of(address);
        let second = match address {
            IpAddr::V4(v4) => to.ipv4.replace(v4).is_some(),
            IpAddr::V6(v6) => to.ipv6.replace(v6).is_some(),
        };
        if second {
            let name = family.name();
            findings.push(
                Finding::error(at, format!("`masquerade_to` has a second {name} address"))
                    .help("keep one address for each family"),
            );
        }
    }
    to
}
