//! Removes everything that netd put into the kernel. Needs no valid file and no map of this
//! version's shape, and goes on after an error.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use netd_common::abi::{self, config_flag, network_flag};

use crate::dataplane::{Actual, AttachMode, Attachment, Hook, Tables, detach_clsact};
use crate::desired::{RESERVED_PORTS, reserved_list, reserved_text};
use crate::host::{self, HostFacts};
use crate::run_state::{RunFiles, RunState};

/// True if anything of netd is pinned below the directory.
pub fn is_loaded(pin_dir: &Path) -> bool {
    versions(pin_dir).next().is_some()
}

/// The directories `v<number>` below the pin directory: other versions of netd pinned there too.
fn versions(pin_dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(pin_dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix('v')
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    })
}

/// What would be open without the data plane, one sentence each: nothing in accelerate mode, where
/// the Engine's own rules are in force.
pub fn would_be_open(actual: &Actual) -> Vec<String> {
    if actual.config.flags & config_flag::ACCELERATE != 0 {
        return Vec::new();
    }
    let Tables {
        networks,
        addrs_v4,
        addrs_v6,
        publish_v4,
        publish_v6,
        ..
    } = &actual.tables;
    let mut open = Vec::new();
    let addresses = addrs_v4.len() + addrs_v6.len();
    if addresses > 0 {
        open.push(format!(
            "{addresses} container addresses could be reached directly, on every port, from \
             wherever the host forwards"
        ));
    }
    let count = |flag: u16, set: bool| {
        let with = |row: &&abi::Network| (row.flags & flag != 0) == set;
        networks.values().filter(with).count()
    };
    if networks.len() > 1 {
        open.push(format!(
            "containers of {} networks could reach those of the others",
            networks.len()
        ));
    }
    for (number, what) in [
        (
            count(network_flag::ICC, false),
            "networks with icc = false: their containers could reach each other",
        ),
        (
            count(network_flag::INTERNAL, true),
            "internal networks: their containers could reach the outside",
        ),
        (
            count(
                network_flag::MASQUERADE_V4 | network_flag::MASQUERADE_V6,
                true,
            ),
            "masqueraded networks: container addresses would leave the host as sources",
        ),
    ] {
        if number > 0 {
            open.push(format!("{number} {what}"));
        }
    }
    let publishes = publish_v4.len() + publish_v6.len();
    if publishes > 0 {
        open.push(format!(
            "{publishes} published ports or parts of ranges would lead nowhere"
        ));
    }
    open
}

/// Removes programs, links, maps and run files, and restores the settings of the host. The daemon
/// must have left. Returns what could not be done.
pub fn tear_down(pin_dir: &Path, files: &RunFiles, facts: &HostFacts) -> Vec<String> {
    let mut failures = Vec::new();
    let state = RunState::load(&files.state);
    let mut note = |failure: String| failures.push(failure);

    // Forwarding goes off while the guards are still there.
    if let Some(state) = &state {
        for change in state.sysctls.values() {
            if let Err(error) = change.restore() {
                note(error.to_string());
            }
        }
        if let Some(ports) = state.reserved_ports {
            let list = reserved_list(&facts.settings.reserved_ports, None, Some(ports));
            if let Err(error) = host::set_sysctl(RESERVED_PORTS, &reserved_text(&list)) {
                note(error.to_string());
            }
        }
    }
    let clsact = state
        .as_ref()
        .is_none_or(|state| state.fallbacks.attach == AttachMode::Clsact);
    if clsact {
        let qdiscs = state.as_ref().map(|s| s.qdiscs.clone()).unwrap_or_default();
        for error in detach_clsact(facts, &qdiscs) {
            note(error.to_string());
        }
    }
    for version in versions(pin_dir) {
        remove_version(&version, &mut note);
    }
    // Other things may be in it.
    let _ = fs::remove_dir(pin_dir);

    for path in [&files.socket, &files.state, &files.lock] {
        remove(path, &mut note);
    }
    if let Some(directory) = files.lock.parent() {
        let _ = fs::remove_dir(directory);
    }
    failures
}

/// Removes the links to interfaces of every version, and with them the programs. Returns what could
/// not be done.
pub fn detach_links(pin_dir: &Path) -> Vec<String> {
    let mut failures = Vec::new();
    for version in versions(pin_dir) {
        remove_links(&version, false, &mut |failure| failures.push(failure));
    }
    failures
}

fn remove_links(version: &Path, cgroup: bool, note: &mut impl FnMut(String)) {
    // Programs go in the order opposite to the one in which they come: guards last.
    let mut pins: BTreeMap<(usize, String), PathBuf> = BTreeMap::new();
    for entry in fs::read_dir(version.join("links"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let attachment = Attachment::from_pin_name(&name);
        if !cgroup && attachment.is_some_and(|found| found.hook.is_cgroup()) {
            continue;
        }
        let order = attachment
            .and_then(|found| Hook::ALL.iter().rev().position(|hook| *hook == found.hook));
        pins.insert((order.unwrap_or(0), name), entry.path());
    }
    for path in pins.values() {
        remove(path, note);
    }
}

/// Removes the links and maps of one version, and its directory.
pub(crate) fn remove_version(version: &Path, note: &mut impl FnMut(String)) {
    remove_links(version, true, note);
    let maps = version.join("maps");
    for entry in fs::read_dir(&maps).into_iter().flatten().flatten() {
        remove(&entry.path(), note);
    }
    for directory in [&version.join("links"), &maps, &version.to_owned()] {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                note(format!(
                    "{}: cannot remove it: {error}",
                    directory.display()
                ));
            }
            _ => {}
        }
    }
}

fn remove(path: &Path, note: &mut impl FnMut(String)) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            note(format!("{}: cannot remove it: {error}", path.display()));
        }
        _ => {}
    }
}
