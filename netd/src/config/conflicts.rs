//! Rules that look at several entries: nothing may be claimed twice, and a publish must fit its
//! network.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::Range;

use super::address::{not_host, overlap};
use super::diagnostic::{Finding, Findings};
use super::model::{Family, Network};
use super::network::NetworkDraft;
use super::publish::PublishDraft;
use super::read::Draft;
use super::words::{GatewayMode, Protocol};

/// Records every conflict between entries of the file.
pub(super) fn find(draft: &Draft, findings: &mut Findings) {
    unique_names(&draft.networks, findings);
    disjoint_subnets(&draft.networks, findings);
    let networks: HashMap<&str, &NetworkDraft> = draft
        .networks
        .iter()
        .map(|draft| (draft.network.name.as_str(), draft))
        .collect();
    let mut claims = Vec::new();
    for publish in &draft.publishes {
        let name = publish.publish.network.as_str();
        match networks.get(name) {
            Some(network) => {
                fits_network(publish, &network.network, findings);
                if !is_routed(publish, &network.network) {
                    claims.push(publish);
                }
            }
            None if draft.broken_networks.iter().any(|broken| broken == name) => {}
            None => findings.push(unknown_network(publish, draft)),
        }
    }
    disjoint_claims(&claims, findings);
}

/// In a routed network host ports are ignored, so they claim nothing.
pub(super) fn is_routed(publish: &PublishDraft, network: &Network) -> bool {
    network.mode.of(publish.publish.family()) == GatewayMode::Routed
}

fn unique_names(networks: &[NetworkDraft], findings: &mut Findings) {
    let mut names: HashMap<&str, &Range<usize>> = HashMap::new();
    let mut bridges: HashMap<&str, &Range<usize>> = HashMap::new();
    for draft in networks {
        let name = draft.network.name.as_str();
        match names.get(name) {
            None => {
                names.insert(name, &draft.name_at);
            }
            Some(first) => findings.push(
                Finding::error(
                    draft.name_at.clone(),
                    format!("a second network named {name:?}"),
                )
                .related((*first).clone(), "the first one")
                .help("give every network a name of its own"),
            ),
        }
        let bridge = draft.network.bridge.as_str();
        match bridges.get(bridge) {
            None => {
                bridges.insert(bridge, &draft.bridge_at);
            }
            Some(first) => findings.push(
                Finding::error(
                    draft.bridge_at.clone(),
                    format!("bridge {bridge} already belongs to another network"),
                )
                .related((*first).clone(), "here")
                .help("a bridge has one network; list all its prefixes in that one's `subnets`"),
            ),
        }
    }
}

fn disjoint_subnets(networks: &[NetworkDraft], findings: &mut Findings) {
    // Sorted by address, then by length, a prefix stands directly after the ones that contain it.
    let mut all: Vec<_> = networks
        .iter()
        .flat_map(|draft| draft.network.subnets.iter().zip(&draft.subnets_at))
        .collect();
    all.sort_by_key(|(subnet, at)| (subnet.network(), subnet.prefix_len(), at.start));
    let mut outer: Option<(&ipnet::IpNet, &Range<usize>)> = None;
    for (subnet, at) in all {
        match outer {
            Some((other, other_at)) if overlap(other, subnet) => {
                // Blame the one that stands later in the file.
                let ((first, first_at), (second, second_at)) = if other_at.start < at.start {
                    ((other, other_at), (subnet, at))
                } else {
                    ((subnet, at), (other, other_at))
                };
                findings.push(
                    Finding::error(second_at.clone(), format!("{second} overlaps {first}"))
                        .related(first_at.clone(), "this subnet")
                        .help("give every subnet addresses of its own"),
                );
            }
            _ => outer = Some((subnet, at)),
        }
    }
}

fn unknown_network(draft: &PublishDraft, all: &Draft) -> Finding {
    let name = &draft.publish.network;
    let known = || all.networks.iter().map(|other| other.network.name.as_str());
    let meant = known()
        .map(|other| (strsim::damerau_levenshtein(name, other), other))
        .filter(|(distance, other)| *distance <= (other.len() / 3).max(1))
        .min();
    let help = match meant {
        Some((_, meant)) => format!("did you mean {meant:?}?"),
        None if all.networks.is_empty() => format!("add a [[network]] with name = {name:?}"),
        None => {
            let names: Vec<_> = known().take(10).map(|name| format!("{name:?}")).collect();
            format!("the networks of this file are {}", names.join(", "))
        }
    };
    Finding::error(
        draft.network_at.clone(),
        format!("there is no network {name:?}"),
    )
    .help(help)
}

fn fits_network(draft: &PublishDraft, network: &Network, findings: &mut Findings) {
    let publish = &draft.publish;
    let (name, address) = (&network.name, publish.container);
    match network.subnet_of(address) {
        None => {
            let subnets: Vec<_> = network.subnets.iter().map(ToString::to_string).collect();
            findings.push(
                Finding::error(
                    draft.container_at.clone(),
                    format!("{address} is in no subnet of network {name:?}"),
                )
                .help(format!("write an address of {}", subnets.join(" or "))),
            );
        }
        Some(subnet) => {
            if let Some(wrong) = not_host(subnet, address) {
                findings.push(
                    Finding::error(
                        draft.container_at.clone(),
                        format!("{address} is the {wrong} of {subnet}"),
                    )
                    .help("write the address that the container has"),
                );
            }
        }
    }
    let mode = network.mode.of(publish.family());
    if network.internal || mode == GatewayMode::Isolated {
        findings.push(
            Finding::error(
                draft.network_at.clone(),
                format!("network {name:?} is internal: it has no published ports"),
            )
            .help("remove this [[publish]], or `internal = true` of the network"),
        );
    }
}

/// Port ranges that are taken, by first port; no two of them overlap.
#[derive(Default)]
struct Taken<'a>(BTreeMap<u16, &'a PublishDraft>);

impl<'a> Taken<'a> {
    fn overlapping(&self, draft: &PublishDraft) -> Option<&'a PublishDraft> {
        let ports = draft.publish.host_ports;
        // Among disjoint ranges only the last one that begins in time can reach into this one.
        let (_, other) = self.0.range(..=ports.last()).next_back()?;
        other.publish.host_ports.overlaps(ports).then_some(*other)
    }
}

/// No host port may lead to two places: of each protocol, a port is taken once per address, and
/// on any address only if no address has it. 60,000 entries take n log n.
fn disjoint_claims(claims: &[&PublishDraft], findings: &mut Findings) {
    let mut taken: HashMap<(Protocol, IpAddr), Taken<'_>> = HashMap::new();
    let mut wide = Vec::new();
    let mut narrow = Vec::new();
    for draft in claims {
        for address in draft.publish.host_addresses() {
            let list = if address.is_unspecified() {
                &mut wide
            } else {
                &mut narrow
            };
            list.push((address, *draft));
        }
    }
    // First those on any address: each of the others is then compared with two sets only.
    for (address, draft) in wide.into_iter().chain(narrow) {
        let protocol = draft.publish.protocol;
        let any = (protocol, Family::of(address).unspecified());
        let other = [any, (protocol, address)]
            .iter()
            .find_map(|key| taken.get(key).and_then(|taken| taken.overlapping(draft)));
        match other {
            Some(other) => findings.push(claimed_twice(address, draft, other)),
            None => {
                let first = draft.publish.host_ports.first();
                taken
                    .entry((protocol, address))
                    .or_default()
                    .0
                    .insert(first, draft);
            }
        }
    }
}

fn claimed_twice(address: IpAddr, a: &PublishDraft, b: &PublishDraft) -> Finding {
    let (first, second) = if a.host_ports_at.start < b.host_ports_at.start {
        (a, b)
    } else {
        (b, a)
    };
    let what = if address.is_unspecified() {
        format!("any {} address", Family::of(address).name())
    } else {
        address.to_string()
    };
    let ports = second.publish.host_ports;
    Finding::error(
        second.host_ports_at.clone(),
        format!(
            "{} port {ports} of {what} is already published",
            second.publish.protocol
        ),
    )
    .related(first.host_ports_at.clone(), "here")
    .help("choose another port, or another host address if the first one does not take any")
}
