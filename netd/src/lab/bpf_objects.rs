//! Which BPF objects the kernel holds, and which of them belong to others.
//!
//! A program, map or link has no owner that the kernel names. It counts as another's if a live process that is neither
//! this one nor a descendant holds a descriptor of it (/proc/PID/fdinfo), if it is pinned outside the given
//! directories, or if such a link or program uses it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::dataplane::sys::open_pinned;

/// Ids of BPF objects, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BpfObjects {
    pub(super) programs: BTreeSet<u32>,
    pub(super) maps: BTreeSet<u32>,
    pub(super) links: BTreeSet<u32>,
}

impl BpfObjects {
    /// Everything in the kernel; a kind that cannot be listed (no CAP_SYS_ADMIN, no BPF) is empty.
    pub(super) fn loaded() -> Self {
        Self {
            programs: aya::programs::loaded_programs()
                .flatten()
                .map(|info| info.id())
                .collect(),
            maps: aya::maps::loaded_maps()
                .flatten()
                .map(|info| info.id())
                .collect(),
            links: aya::programs::loaded_links()
                .flatten()
                .map(|info| info.id())
                .collect(),
        }
    }

    /// What belongs to others; pins below `own` directories are not theirs.
    pub(super) fn foreign(own: &[PathBuf]) -> Self {
        let mut foreign = Self::default();
        for pid in foreign_processes() {
            let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
                continue;
            };
            for descriptor in descriptors.flatten() {
                if let Ok(text) = fs::read_to_string(descriptor.path()) {
                    foreign.add_fdinfo(&text);
                }
            }
        }
        for pin in files_below(Path::new("/sys/fs/bpf")) {
            if !own.iter().any(|directory| pin.starts_with(directory))
                && let Ok(text) = pinned_fdinfo(&pin)
            {
                foreign.add_fdinfo(&text);
            }
        }
        foreign.add_uses();
        foreign
    }

    pub(super) fn without(&self, other: &Self) -> Self {
        Self {
            programs: &self.programs - &other.programs,
            maps: &self.maps - &other.maps,
            links: &self.links - &other.links,
        }
    }

    /// `program 12 (name)`…
    pub(super) fn describe(&self) -> Vec<String> {
        let program_name = |id: u32| {
            aya::programs::loaded_programs()
                .flatten()
                .find(|info| info.id() == id)
                .and_then(|info| info.name_as_str().map(str::to_owned))
                .unwrap_or_default()
        };
        let map_name = |id: u32| {
            let info = aya::maps::MapInfo::from_id(id).ok();
            info.and_then(|info| info.name_as_str().map(str::to_owned))
                .unwrap_or_default()
        };
        let programs = self
            .programs
            .iter()
            .map(|id| format!("program {id} {}", program_name(*id)));
        let maps = self
            .maps
            .iter()
            .map(|id| format!("map {id} {}", map_name(*id)));
        let links = self.links.iter().map(|id| format!("link {id}"));
        programs.chain(maps).chain(links).collect()
    }

    /// Takes the ids from the text of a descriptor; that of a link names its program too.
    fn add_fdinfo(&mut self, text: &str) {
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let Ok(id) = value.trim().parse() else {
                continue;
            };
            match key {
                "prog_id" => self.programs.insert(id),
                "map_id" => self.maps.insert(id),
                "link_id" => self.links.insert(id),
                _ => false,
            };
        }
    }

    /// Adds the programs of the links and the maps of the programs.
    fn add_uses(&mut self) {
        for link in aya::programs::loaded_links().flatten() {
            if self.links.contains(&link.id()) {
                self.programs.insert(link.program_id());
            }
        }
        for program in aya::programs::loaded_programs().flatten() {
            if self.programs.contains(&program.id())
                && let Ok(Some(maps)) = program.map_ids()
            {
                self.maps.extend(maps);
            }
        }
    }
}

/// Every file below a directory; none if it does not exist.
pub(super) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let (mut files, mut directories) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = directories.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => directories.push(entry.path()),
                _ => files.push(entry.path()),
            }
        }
    }
    files
}

/// Live processes that are neither this one nor its descendants.
pub(super) fn foreign_processes() -> Vec<u32> {
    let own = std::process::id();
    let processes: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent_of(pid)?)))
        .collect();
    let parent = |pid| {
        processes
            .iter()
            .find(|(known, _)| *known == pid)
            .map(|(_, parent)| *parent)
    };
    let descends = |pid| {
        std::iter::successors(Some(pid), |&pid| parent(pid))
            .take(64)
            .any(|pid| pid == own)
    };
    processes
        .iter()
        .map(|(pid, _)| *pid)
        .filter(|&pid| !descends(pid))
        .collect()
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')')? + 1..]
        .split_ascii_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// What /proc says about the object behind a pin, which names its kind and id.
fn pinned_fdinfo(pin: &Path) -> io::Result<String> {
    let fd = open_pinned(pin)?;
    fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_name_their_objects() {
        let mut objects = BpfObjects::default();
        objects.add_fdinfo(
            "pos:\t0\nlink_type:\ttcx\nlink_id:\t5\nprog_tag:\tbad01dea\nprog_id:\t77\n",
        );
        objects.add_fdinfo("map_type:\t1\nmap_id:\t9\n");
        objects.add_fdinfo("pos:\t0\nflags:\t02\n");
        let expected = BpfObjects {
            programs: [77].into(),
            maps: [9].into(),
            links: [5].into(),
        };
        assert_eq!(objects, expected);
        assert_eq!(expected.without(&objects), BpfObjects::default());
    }

    #[test]
    fn own_children_are_not_foreign() {
        let mut child = std::process::Command::new("sleep")
            .arg("30")
            .spawn()
            .expect("sleep");
        let foreign = foreign_processes();
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert!(!foreign.contains(&std::process::id()));
        assert!(!foreign.contains(&child.id()));
        assert!(foreign.contains(&1));
    }
}
