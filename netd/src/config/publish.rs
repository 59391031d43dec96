//! `[[publish]]`: reading one, and the rules that need nothing but it.

use std::net::IpAddr;
use std::ops::Range;

use super::PortRange;
use super::address::{address, not_unicast};
use super::diagnostic::{Finding, Findings};
use super::document::{Entry, Section};
use super::model::{Family, HostAddresses, Publish};
use super::read::{boolean_or, items, word_or_default};

/// A publish and the places of its parts.
pub(super) struct PublishDraft {
    pub(super) publish: Publish,
    pub(super) network_at: Range<usize>,
    pub(super) container_at: Range<usize>,
    pub(super) host_ports_at: Range<usize>,
}

/// Reads one publish; `None` if something without which it means nothing is missing or wrong.
pub(super) fn read(section: &Section<'_>, findings: &mut Findings) -> Option<PublishDraft> {
    let network = section.require("network", "\"web\"", findings);
    let container = section.require("container", "\"10.201.1.2\"", findings);
    let host_ports = section.require("host_ports", "8080", findings);
    let container_ports = section.require("container_ports", "80", findings);
    let protocol = word_or_default(section, "protocol", findings);
    let override_listener = boolean_or(false, section, "override", findings);

    let name = network.and_then(|entry| entry.text("\"web\"", findings));
    let address = container.and_then(|entry| container_address(&entry, findings));
    let host = match section.get("host") {
        Some(entry) => host_addresses(&entry, address, findings),
        None => Some(HostAddresses::Any),
    };
    let from = host_ports.and_then(|entry| ports(&entry, findings));
    let to = container_ports.and_then(|entry| ports(&entry, findings));
    if let (Some(from), Some(to), Some(entry)) = (from, to, container_ports) {
        same_length(from, to, &entry, findings);
    }
    Some(PublishDraft {
        publish: Publish {
            network: name?.to_owned(),
            container: address?,
            protocol,
            host: host?,
            host_ports: from?,
            container_ports: to?,
            override_listener,
        },
        network_at: network?.span(),
        container_at: container?.span(),
        host_ports_at: host_ports?.span(),
    })
}

fn container_address(entry: &Entry<'_>, findings: &mut Findings) -> Option<IpAddr> {
    let address = address(entry, findings)?;
    let wrong = if address.is_unspecified() {
        "no address at all"
    } else if address.is_loopback() {
        "a loopback address"
    } else if let Some(wrong) = not_unicast(address) {
        wrong
    } else {
        return Some(address);
    };
    findings.push(
        entry
            .error(format!("`container`: {address} is {wrong}"))
            .help("write the address that the container has in the network"),
    );
    None
}

/// A number, or a text with one or a range.
fn ports(entry: &Entry<'_>, findings: &mut Findings) -> Option<PortRange> {
    const EXAMPLE: &str = "8080, \"8080\" or \"8000-8099\"";
    let text = match (entry.as_integer(), entry.as_text()) {
        // A negative number would look like half a range.
        (Some(number), _) if number < 0 => "0".to_owned(),
        (Some(number), _) => number.to_string(),
        (None, Some(text)) => text.to_owned(),
        (None, None) => {
            let help = format!("write {EXAMPLE}");
            entry.wrong_type("a port or a range of ports", &help, findings);
            return None;
        }
    };
    match text.parse::<PortRange>() {
        Ok(range) => Some(range),
        Err(error) => {
            let help = match error {
                super::PortError::Reversed(first, last) => format!("write \"{last}-{first}\""),
                _ => format!("write {EXAMPLE}, with ports from 1 to 65535"),
            };
            findings.push(entry.error(format!("`{}`: {error}", entry.key)).help(help));
            None
        }
    }
}

/// Host and container ports are paired in order.
fn same_length(from: PortRange, to: PortRange, entry: &Entry<'_>, findings: &mut Findings) {
    if from.count() == to.count() {
        return;
    }
    let last = u32::from(to.first()) + from.count() - 1;
    let help = match u16::try_from(last)
        .ok()
        .and_then(|last| PortRange::new(to.first(), last).ok())
    {
        Some(range) if range.count() == 1 => format!("write {range}"),
        Some(range) => format!("write \"{range}\""),
        None => format!("write {} ports, for example \"{from}\"", from.count()),
    };
    findings.push(
        entry
            .error(format!(
                "{} for {}",
                counted(to.count(), "container port"),
                counted(from.count(), "host port"),
            ))
            .help(help),
    );
}

fn counted(count: u32, what: &str) -> String {
    if count == 1 {
        format!("1 {what}")
    } else {
        format!("{count} {what}s")
    }
}

/// `"any"`, one address, or a list of them; each of the container's family.
fn host_addresses(
    entry: &Entry<'_>,
    container: Option<IpAddr>,
    findings: &mut Findings,
) -> Option<HostAddresses> {
    const EXAMPLE: &str = "\"any\", an address such as \"127.0.0.1\", or a list of addresses";
    let list = match (entry.as_text(), entry.as_list()) {
        (Some("any"), _) => return Some(HostAddresses::Any),
        (Some(_), _) => vec![*entry],
        (None, Some(list)) => list,
        (None, None) => {
            entry.wrong_type("a string or a list", &format!("write {EXAMPLE}"), findings);
            return None;
        }
    };
    if list.is_empty() {
        findings.push(
            entry
                .error("`host` is an empty list, so nothing would be published")
                .help(format!("write {EXAMPLE}")),
        );
        return None;
    }
    let addresses = items(&list, findings, |item, findings| {
        host_address(item, container, findings)
    });
    if addresses.len() < list.len() {
        return None;
    }
    for (any, at) in addresses
        .iter()
        .filter(|(address, _)| address.is_unspecified())
    {
        let family = Family::of(*any);
        let same = |other: &IpAddr| other != any && Family::of(*other) == family;
        if let Some((other, other_at)) = addresses.iter().find(|(other, _)| same(other)) {
            findings.push(
                Finding::error(other_at.clone(), format!("{any} already contains {other}"))
                    .related(at.clone(), format!("every {} address", family.name()))
                    .help("remove one of them"),
            );
            return None;
        }
    }
    Some(HostAddresses::List(
        addresses.into_iter().map(|(address, _)| address).collect(),
    ))
}

fn host_address(
    entry: &Entry<'_>,
    container: Option<IpAddr>,
    findings: &mut Findings,
) -> Option<IpAddr> {
    if entry.as_text() == Some("any") {
        findings.push(
            entry
                .error("\"any\" stands for every address, so it cannot be one of a list")
                .help("write host = \"any\", without a list"),
        );
        return None;
    }
    let address = address(entry, findings)?;
    if let Some(wrong) = not_unicast(address) {
        findings.push(
            entry
                .error(format!("`host`: {address} is {wrong}"))
                .help("write an address of this host, or \"any\""),
        );
        return None;
    }
    let (family, wanted) = (
        Family::of(address),
        Family::of(container.unwrap_or(address)),
    );
    if family == wanted {
        return Some(address);
    }
    let (family, wanted) = (family.name(), wanted.name());
    let finding = entry.error(format!(
        "the host address {address} is {family}, but the container's address is {wanted}"
    ));
    findings.push(match address {
        IpAddr::V6(_) => finding.help(
            "publish to the container's IPv6 address; if it has only IPv4, leave this address \
             out: IPv6 clients are then served by Docker's proxy",
        ),
        IpAddr::V4(_) => finding.help("publish to the container's IPv4 address"),
    });
    None
}
