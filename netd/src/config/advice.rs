//! Warnings: the file is valid, but may not mean what was wanted.

use std::collections::HashMap;

use super::conflicts::is_routed;
use super::diagnostic::{Finding, Findings};
use super::model::{Family, NatPorts, Network};
use super::network::NetworkDraft;
use super::publish::PublishDraft;
use super::read::Draft;
use super::words::Protocol;

const SSH: u16 = 22;

/// Records every warning.
pub(super) fn find(draft: &Draft, findings: &mut Findings) {
    if draft.host.allow_direct_routing {
        findings.push(
            Finding::warning(
                draft.direct_routing_at.clone(),
                "every host that has a route can reach every published container port",
            )
            .help("`trust = [\"tailscale0\"]` opens published ports to one interface only"),
        );
    }
    idle_uplinks(draft, findings);
    for network in &draft.networks {
        idle_keys(network, findings);
    }
    let networks: HashMap<&str, &Network> = draft
        .networks
        .iter()
        .map(|draft| (draft.network.name.as_str(), &draft.network))
        .collect();
    for publish in &draft.publishes {
        let network = networks.get(publish.publish.network.as_str());
        if network.is_some_and(|network| !is_routed(publish, network)) {
            ssh(publish, findings);
        }
    }
    crowded_nat_ports(draft, findings);
}

fn idle_uplinks(draft: &Draft, findings: &mut Findings) {
    for uplink in &draft.uplinks {
        let name = &uplink.uplink.name;
        if !name.is_exact() {
            continue;
        }
        let bridge = draft
            .networks
            .iter()
            .find(|network| network.network.bridge.as_str() == name.as_str());
        if let Some(network) = bridge {
            findings.push(
                Finding::warning(
                    uplink.at.clone(),
                    format!(
                        "{name} is the bridge of network {:?}, never an uplink",
                        network.network.name
                    ),
                )
                .related(network.bridge_at.clone(), "here")
                .help("name the interface that leads out of the host"),
            );
        } else if !draft.host.uplinks.admits(name.as_str()) {
            findings.push(
                Finding::warning(uplink.at.clone(), format!("{name} is not one of `uplinks`"))
                    .help(format!("add {:?} to `uplinks` of [host]", name.as_str())),
            );
        }
    }
}

fn idle_keys(draft: &NetworkDraft, findings: &mut Findings) {
    let network = &draft.network;
    let families = [Family::V4, Family::V6];
    if let Some(at) = &draft.masquerade_to_at {
        for family in families {
            let Some(address) = network.masquerade_to.of(family) else {
                continue;
            };
            let has_subnet = network
                .subnets
                .iter()
                .any(|net| Family::of(net.addr()) == family);
            let why = if network.internal {
                "the network is internal".to_owned()
            } else if !network.masquerade {
                "`masquerade` is false".to_owned()
            } else if !network.mode.of(family).has_nat() {
                format!(
                    "mode {:?} does not masquerade",
                    network.mode.of(family).word()
                )
            } else if !has_subnet {
                format!("the network has no {} subnet", family.name())
            } else {
                continue;
            };
            findings.push(
                Finding::warning(at.clone(), format!("{address} has no effect: {why}"))
                    .help("remove it from `masquerade_to`"),
            );
        }
    }
    if let Some(at) = &draft.trusted_interfaces_at
        && network.internal
        && !network.trusted_interfaces.is_empty()
    {
        findings.push(
            Finding::warning(
                at.clone(),
                "`trusted_interfaces` has no effect: an internal network publishes nothing",
            )
            .help("remove it"),
        );
    }
}

fn ssh(draft: &PublishDraft, findings: &mut Findings) {
    let publish = &draft.publish;
    if publish.protocol != Protocol::Tcp || !publish.host_ports.contains(SSH) {
        return;
    }
    let ports = publish.host_ports;
    let at = draft.host_ports_at.clone();
    findings.push(if publish.override_listener {
        Finding::warning(
            at,
            format!("{ports} takes port {SSH} away from the host's own sshd"),
        )
        .help("be sure to have another way in; without `override` a listener keeps its port")
    } else {
        Finding::warning(
            at,
            format!("{ports} covers port {SSH}: where sshd listens, it keeps it"),
        )
        .help("leave the port out if that is what you want, or write `override = true`")
    });
}

/// Published ports are never used for NAT: few may be left.
fn crowded_nat_ports(draft: &Draft, findings: &mut Findings) {
    let NatPorts::Range(range) = draft.nat.ports else {
        return;
    };
    let mut published: Vec<_> = draft
        .publishes
        .iter()
        .map(|draft| draft.publish.host_ports)
        .collect();
    published.sort();
    let (mut taken, mut next) = (0, u32::from(range.first()));
    for ports in published {
        let first = next.max(ports.first().into());
        let end = u32::from(ports.last().min(range.last())) + 1;
        taken += end.saturating_sub(first);
        next = next.max(end);
    }
    let left = range.count() - taken;
    if taken > 0 && left < 1024 {
        findings.push(
            Finding::warning(
                draft.nat_ports_at.clone(),
                format!(
                    "published ports leave {left} of {} ports for NAT",
                    range.count()
                ),
            )
            .help("widen the range, or write \"auto\""),
        );
    }
}
