//! From the document to a [`Draft`]: every value typed, each with its place for the rules that
//! look at several entries.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Component, PathBuf};

use super::diagnostic::Findings;
use super::document::{Entry, Section};
use super::model::{Host, Limits, Log, Nat, NatPorts, Uplink, UplinkSelection};
use super::network::{self, NetworkDraft};
use super::publish::{self, PublishDraft};
use super::schema;
use super::words::ContainersAccess;
use super::{InterfaceName, NamePattern, PortRange};

/// The version of the file that this program reads.
const VERSION: i128 = 1;

/// Flows a table may hold at most: what the kernel can allocate for a hash map of our entries.
const MAX_FLOWS: i128 = 16 << 20;

/// The least ports that are worth a NAT range.
const MIN_NAT_PORTS: u32 = 64;

/// What was read, with places. Entries that were unreadable are missing.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) host: Host,
    /// The place of `allow_direct_routing`.
    pub(super) direct_routing_at: Range<usize>,
    pub(super) uplinks: Vec<UplinkDraft>,
    pub(super) limits: Limits,
    pub(super) nat: Nat,
    /// The place of `nat.ports`.
    pub(super) nat_ports_at: Range<usize>,
    pub(super) log: Log,
    pub(super) networks: Vec<NetworkDraft>,
    /// Names of networks that have errors: a publish to one of them is not to blame.
    pub(super) broken_networks: Vec<String>,
    pub(super) publishes: Vec<PublishDraft>,
}

/// An uplink and the place of its name.
pub(super) struct UplinkDraft {
    pub(super) uplink: Uplink,
    pub(super) at: Range<usize>,
}

/// Reads the top level. A file of another version is not read further: its keys may mean
/// something else.
pub(super) fn draft(top: &Section<'_>, findings: &mut Findings) -> Draft {
    let mut draft = Draft::default();
    if !version(top, findings) {
        return draft;
    }
    let mut trust = Vec::new();
    if let Some(section) = top.table("host", findings) {
        host(&section, &mut draft, &mut trust, findings);
    }
    for section in top.tables("uplink", findings) {
        draft.uplinks.extend(uplink(&section, findings));
    }
    refuse_repeated_uplinks(&draft.uplinks, findings);
    merge_trust(trust, &mut draft.uplinks, findings);
    if let Some(section) = top.table("limits", findings) {
        draft.limits = Limits {
            flows_v4: section
                .get("flows_v4")
                .and_then(|entry| flows(&entry, findings)),
            flows_v6: section
                .get("flows_v6")
                .and_then(|entry| flows(&entry, findings)),
        };
    }
    if let Some(entry) = top
        .table("nat", findings)
        .and_then(|section| section.get("ports"))
    {
        draft.nat_ports_at = entry.span();
        draft.nat.ports = nat_ports(&entry, findings).unwrap_or_default();
    }
    if let Some(section) = top.table("log", findings) {
        draft.log = Log {
            level: word_or_default(&section, "level", findings),
            format: word_or_default(&section, "format", findings),
        };
    }
    for section in top.tables("network", findings) {
        match network::read(&section, findings) {
            Some(network) => draft.networks.push(network),
            None => draft.broken_networks.extend(
                section
                    .get("name")
                    .and_then(|entry| entry.as_text())
                    .map(str::to_owned),
            ),
        }
    }
    for section in top.tables("publish", findings) {
        draft.publishes.extend(publish::read(&section, findings));
    }
    draft
}

/// The word of an optional key, or the default of its type.
pub(super) fn word_or_default<T: super::document::Keyword + Default>(
    section: &Section<'_>,
    key: &'static str,
    findings: &mut Findings,
) -> T {
    section
        .get(key)
        .and_then(|entry| entry.word(findings))
        .unwrap_or_default()
}

/// The value of an optional key that is true or false.
pub(super) fn boolean_or(
    default: bool,
    section: &Section<'_>,
    key: &'static str,
    findings: &mut Findings,
) -> bool {
    section
        .get(key)
        .and_then(|entry| entry.boolean(findings))
        .unwrap_or(default)
}

/// Reads every item of a list; an item that equals an earlier one is an error.
pub(super) fn items<T: PartialEq + std::fmt::Display>(
    list: &[Entry<'_>],
    findings: &mut Findings,
    mut read: impl FnMut(&Entry<'_>, &mut Findings) -> Option<T>,
) -> Vec<(T, Range<usize>)> {
    let mut items: Vec<(T, Range<usize>)> = Vec::new();
    for entry in list {
        let Some(item) = read(entry, findings) else {
            continue;
        };
        match items.iter().find(|(earlier, _)| *earlier == item) {
            Some((_, first)) => findings.push(
                entry
                    .error(format!("`{}` names {item} twice", entry.key))
                    .related(first.clone(), "first here")
                    .help("remove one of them"),
            ),
            None => items.push((item, entry.span())),
        }
    }
    items
}

fn version(top: &Section<'_>, findings: &mut Findings) -> bool {
    let Some(entry) = top.require("version", "1", findings) else {
        return false;
    };
    match entry.as_integer() {
        Some(VERSION) => return true,
        Some(other) => findings.push(
            entry
                .error(format!(
                    "this netd reads version {VERSION} of the file, not version {other}"
                ))
                .help(if other > VERSION {
                    "install a newer netd, or write the file as docs/configuration.md describes it"
                } else {
                    "write `version = 1`"
                }),
        ),
        None => entry.wrong_type("a number", "write `version = 1`", findings),
    }
    false
}

fn host<'a>(
    section: &Section<'a>,
    draft: &mut Draft,
    trust: &mut Vec<(NamePattern, Range<usize>)>,
    findings: &mut Findings,
) {
    let uplinks = section
        .get("uplinks")
        .and_then(|entry| uplink_selection(&entry, findings));
    draft.host.uplinks = uplinks.unwrap_or_default();
    if let Some(list) = section
        .get("trust")
        .and_then(|entry| entry.list("[\"tailscale0\"]", findings))
    {
        *trust = items(&list, findings, pattern);
    }
    if let Some(entry) = section.get("allow_direct_routing") {
        draft.direct_routing_at = entry.span();
        draft.host.allow_direct_routing = entry.boolean(findings).unwrap_or(false);
    }
    draft.host.mode = word_or_default(section, "mode", findings);
    if let Some(path) = section
        .get("pin_dir")
        .and_then(|entry| pin_dir(&entry, findings))
    {
        draft.host.pin_dir = path;
    }
}

/// An interface name in which `*` is allowed.
fn pattern(entry: &Entry<'_>, findings: &mut Findings) -> Option<NamePattern> {
    entry.parse("\"tailscale0\" or \"wg*\"", findings)
}

/// The name of one interface.
pub(super) fn interface(entry: &Entry<'_>, findings: &mut Findings) -> Option<InterfaceName> {
    entry.parse("\"br-web\"", findings)
}

fn uplink_selection(entry: &Entry<'_>, findings: &mut Findings) -> Option<UplinkSelection> {
    if entry.as_text() == Some("auto") {
        return Some(UplinkSelection::Auto);
    }
    let Some(list) = entry.as_list() else {
        let help = match entry.as_text() {
            Some(name) => format!("write \"auto\" or [{name:?}]"),
            None => "write \"auto\" or a list such as [\"eth0\", \"wg*\"]".to_owned(),
        };
        entry.wrong_type("\"auto\" or a list of names", &help, findings);
        return None;
    };
    if list.is_empty() {
        findings.push(
            entry
                .error("`uplinks` names no interface, so nothing could be reached")
                .help("write \"auto\", or the names of the interfaces that lead out"),
        );
        return None;
    }
    let patterns = items(&list, findings, pattern)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    Some(UplinkSelection::Matching(patterns))
}

/// An absolute path without `..`, which names the same place for everyone who reads it.
fn pin_dir(entry: &Entry<'_>, findings: &mut Findings) -> Option<PathBuf> {
    let text = entry.text("\"/sys/fs/bpf/netd\"", findings)?;
    let path = PathBuf::from(text);
    let wrong = if !path.is_absolute() {
        "is not an absolute path"
    } else if text.contains('\0') {
        "contains a zero byte"
    } else if path.components().any(|part| part == Component::ParentDir) {
        "contains `..`"
    } else if path.parent().is_none() {
        "is the root directory"
    } else {
        return Some(path);
    };
    findings.push(
        entry
            .error(format!("`pin_dir`: {text:?} {wrong}"))
            .help("write a directory on a BPF file system, such as \"/sys/fs/bpf/netd\""),
    );
    None
}

fn uplink(section: &Section<'_>, findings: &mut Findings) -> Option<UplinkDraft> {
    let name = section.require("name", "\"tailscale0\"", findings);
    let containers = section
        .get("containers")
        .and_then(|entry| entry.word(findings));
    let return_path = section
        .get("return_path")
        .and_then(|entry| entry.word(findings));
    let entry = name?;
    let name = pattern(&entry, findings)?;
    Some(UplinkDraft {
        uplink: Uplink {
            name,
            containers,
            return_path,
        },
        at: entry.span(),
    })
}

fn refuse_repeated_uplinks(uplinks: &[UplinkDraft], findings: &mut Findings) {
    let mut first = HashMap::new();
    for UplinkDraft { uplink, at } in uplinks {
        match first.get(&uplink.name) {
            None => {
                first.insert(&uplink.name, at);
            }
            Some(earlier) => findings.push(
                super::diagnostic::Finding::error(
                    at.clone(),
                    format!("a second {} for {}", schema::UPLINK, uplink.name),
                )
                .related((*earlier).clone(), "the first one")
                .help("put the keys of both into one"),
            ),
        }
    }
}

/// `trust` is short for `containers = "published"`: it joins the entry of the same name, unless
/// that one says something else.
fn merge_trust(
    trust: Vec<(NamePattern, Range<usize>)>,
    uplinks: &mut Vec<UplinkDraft>,
    findings: &mut Findings,
) {
    for (name, at) in trust {
        let published = Some(ContainersAccess::Published);
        match uplinks.iter_mut().find(|other| other.uplink.name == name) {
            None => {
                let uplink = Uplink { name, containers: published, return_path: None };
                uplinks.push(UplinkDraft { uplink, at });
            }
            Some(entry) => match entry.uplink.containers {
                Some(other) if Some(other) != published => findings.push(
                    super::diagnostic::Finding::error(
                        at,
                        format!(
                            "`trust` means containers = \"published\" for {name}, but its {} says {:?}",
                            schema::UPLINK,
                            other.word(),
                        ),
                    )
                    .related(entry.at.clone(), "this entry")
                    .help(format!("remove {name} from `trust`, or `containers` from the entry")),
                ),
                _ => entry.uplink.containers = published,
            },
        }
    }
}

fn flows(entry: &Entry<'_>, findings: &mut Findings) -> Option<u32> {
    let help = format!("write a number from 1 to {MAX_FLOWS}, or leave the key out");
    match entry.as_integer() {
        None => entry.wrong_type("a number", &help, findings),
        Some(flows) if (1..=MAX_FLOWS).contains(&flows) => return u32::try_from(flows).ok(),
        Some(flows) => findings.push(
            entry
                .error(format!(
                    "`{}`: a table cannot hold {flows} flows",
                    entry.key
                ))
                .help(help),
        ),
    }
    None
}

fn nat_ports(entry: &Entry<'_>, findings: &mut Findings) -> Option<NatPorts> {
    const EXAMPLE: &str = "\"auto\" or \"61000-65535\"";
    if entry.as_text() == Some("auto") {
        return Some(NatPorts::Auto);
    }
    let range: PortRange = entry.parse(EXAMPLE, findings)?;
    if range.first() < 1024 {
        findings.push(
            entry
                .error(format!("`ports`: {range} contains privileged ports"))
                .help("NAT uses ports from 1024 on; \"auto\" finds free ones"),
        );
        return None;
    }
    if range.count() < MIN_NAT_PORTS {
        findings.push(
            entry
                .error(format!(
                    "`ports`: {range} is too small, NAT needs {MIN_NAT_PORTS} ports"
                ))
                .help(format!("write {EXAMPLE}")),
        );
        return None;
    }
    Some(NatPorts::Range(range))
}
