//! What a run leaves on the machine: a snapshot before, a snapshot after, and what only one of them has.
//!
//! On a machine of its own ([`Scope::Exclusive`]) everything must be equal. On a shared one ([`Scope::Shared`]) other
//! processes go on with their work, and what can be attributed to them is left out:
//!
//! - network namespaces under /run/netns: those of other live processes' labs, and names that no lab makes;
//! - BPF objects: those that other live processes hold or pin outside the own directories (see `bpf_objects`);
//! - pins, cgroups, /run and /var/lib: everything that is not below the own paths; if none are given, everything not
//!   called `netd…`.
//!
//! Links, routes, rules, sysctls and iptables of the machine's own namespace are compared in both scopes. Left out in
//! both is what changes by itself: counters, sysctls that hold counts, keys or caches, the lock file that iptables
//! makes, and the directory /run/netns as such, which stays when the first namespace has been there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAttribute, RouteFlags, RouteMessage};

use super::bpf_objects::{BpfObjects, files_below};
use super::cleanup;
use super::error::{LabError, Result};
use super::firewall::find_program;
use super::namespace::NETNS_DIR;

/// How much of the machine a snapshot speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Nothing else runs here that changes the network, BPF, cgroups, /run or /var/lib.
    Exclusive,
    /// Others work here too; only what lies below these paths, or cannot be attributed to others, is compared.
    Shared {
        /// Pin, run and state directories of the run.
        own: Vec<PathBuf>,
    },
}

/// A snapshot of what must not change.
#[derive(Clone, Debug)]
pub struct Leftovers {
    scope: Scope,
    parts: BTreeMap<&'static str, BTreeSet<String>>,
    bpf: BpfObjects,
}

impl Leftovers {
    /// Takes a snapshot of the machine's own namespace and file systems.
    pub fn take(scope: Scope) -> Result<Self> {
        let mut parts = BTreeMap::new();
        parts.insert("link", links()?);
        parts.insert("netns", namespaces(&scope));
        parts.insert("bpffs", paths_of(&["/sys/fs/bpf"], &scope));
        parts.insert("cgroup", directories_of("/sys/fs/cgroup", &scope));
        parts.insert("sysctl", sysctls());
        parts.insert("route", routes()?);
        parts.insert("iptables", iptables());
        parts.insert("file", paths_of(&["/run", "/var/lib"], &scope));
        Ok(Self {
            scope,
            parts,
            bpf: BpfObjects::loaded(),
        })
    }

    /// What differs between this snapshot and now, one line each with `+` or `-` in front; empty is clean. The kernel
    /// frees much after a grace period only, so a difference is looked at again until `patience` is over.
    pub fn differences(&self, patience: Duration) -> Result<Vec<String>> {
        let deadline = Instant::now() + patience;
        loop {
            let differences = self.diff(&Self::take(self.scope.clone())?);
            if differences.is_empty() || Instant::now() >= deadline {
                return Ok(differences);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What differs between this snapshot and a later one.
    pub fn diff(&self, after: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        for (part, before) in &self.parts {
            let after = &after.parts[part];
            differences.extend(
                (before - after)
                    .iter()
                    .map(|gone| format!("- {part} {gone}")),
            );
            differences.extend((after - before).iter().map(|new| format!("+ {part} {new}")));
        }
        let mut new = after.bpf.without(&self.bpf);
        if let Scope::Shared { own } = &self.scope
            && new != BpfObjects::default()
        {
            new = new.without(&BpfObjects::foreign(own));
        }
        differences.extend(
            new.describe()
                .into_iter()
                .map(|object| format!("+ bpf {object}")),
        );
        if self.scope == Scope::Exclusive {
            let gone = self.bpf.without(&after.bpf);
            differences.extend(
                gone.describe()
                    .into_iter()
                    .map(|object| format!("- bpf {object}")),
            );
        }
        differences
    }
}

fn links() -> Result<BTreeSet<String>> {
    let links =
        nix::net::if_::if_nameindex().map_err(|e| LabError::io("list the machine's links", e))?;
    Ok(links
        .iter()
        .map(|link| format!("{} index {}", link.name().to_string_lossy(), link.index()))
        .collect())
}

fn namespaces(scope: &Scope) -> BTreeSet<String> {
    let foreign = |name: &str| match cleanup::creator(name) {
        Some((pid, started)) => {
            pid != std::process::id() && cleanup::start_time(pid) == Some(started)
        }
        None => true,
    };
    let mut names = names_in(Path::new(NETNS_DIR));
    if *scope != Scope::Exclusive {
        names.retain(|name| !foreign(name));
    }
    names
}

fn names_in(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Files below directories, without what the system itself makes and removes.
fn paths_of(directories: &[&str], scope: &Scope) -> BTreeSet<String> {
    const VOLATILE: [&str; 13] = [
        "/run/lock",
        "/run/log",
        "/run/netns",
        "/run/systemd",
        "/run/udev",
        "/run/user",
        "/run/utmp",
        "/run/xtables.lock",
        "/var/lib/apt",
        "/var/lib/dpkg",
        "/var/lib/logrotate",
        "/var/lib/private",
        "/var/lib/systemd",
    ];
    directories
        .iter()
        .flat_map(|directory| files_below(Path::new(directory)))
        .filter(|path| !VOLATILE.iter().any(|volatile| path.starts_with(volatile)))
        .filter(|path| speaks_for(scope, path))
        .map(|path| path.display().to_string())
        .collect()
}

fn directories_of(root: &str, scope: &Scope) -> BTreeSet<String> {
    let (mut found, mut directories) = (BTreeSet::new(), vec![PathBuf::from(root)]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if speaks_for(scope, &entry.path()) {
                    found.insert(entry.path().display().to_string());
                }
                directories.push(entry.path());
            }
        }
    }
    found
}

/// Whether the snapshot is responsible for a path.
fn speaks_for(scope: &Scope, path: &Path) -> bool {
    match scope {
        Scope::Exclusive => true,
        Scope::Shared { own } => {
            own.iter().any(|directory| path.starts_with(directory))
                || own.is_empty()
                    && path
                        .components()
                        .any(|part| part.as_os_str().to_string_lossy().starts_with("netd"))
        }
    }
}

/// `key = value` of what lies below /proc/sys/net in the namespace of this thread.
fn sysctls() -> BTreeSet<String> {
    const MOVING: [&str; 8] = [
        "conntrack_count",
        "dccp",
        "fastopen_key",
        "flush",
        "netdev_rss_key",
        "nf_conntrack_max",
        "/stable_secret",
        "/route/gc_",
    ];
    files_below(Path::new("/proc/sys/net"))
        .into_iter()
        .filter_map(|path| {
            let key = path.strip_prefix("/proc/sys").ok()?.display().to_string();
            if MOVING.iter().any(|moving| key.contains(moving)) {
                return None;
            }
            Some(format!(
                "{key} = {}",
                fs::read_to_string(&path).ok()?.trim_end()
            ))
        })
        .collect()
}

/// Every route and policy rule of the namespace of this thread.
fn routes() -> Result<BTreeSet<String>> {
    // A thread of its own: the caller's may run an async runtime already.
    std::thread::scope(|scope| scope.spawn(dump_routes).join()).unwrap_or_else(|payload| {
        std::panic::resume_unwind(payload);
    })
}

fn dump_routes() -> Result<BTreeSet<String>> {
    let failed = |e: rtnetlink::Error| LabError::Netlink {
        doing: "list the machine's routes and rules".to_owned(),
        source: Box::new(e),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|e| LabError::io("start the netlink runtime", e))?;
    runtime.block_on(async {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| LabError::io("open a netlink socket", e))?;
        tokio::spawn(connection);
        let mut found = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let mut routes = handle.route().get(message).execute();
            while let Some(mut route) = routes.try_next().await.map_err(failed)? {
                if !route.header.flags.contains(RouteFlags::Cloned) {
                    route
                        .attributes
                        .retain(|attribute| !matches!(attribute, RouteAttribute::CacheInfo(_)));
                    found.insert(format!("{route:?}"));
                }
            }
        }
        for version in [rtnetlink::IpVersion::V4, rtnetlink::IpVersion::V6] {
            let mut rules = handle.rule().get(version).execute();
            while let Some(rule) = rules.try_next().await.map_err(failed)? {
                found.insert(format!("{rule:?}"));
            }
        }
        Ok(found)
    })
}

/// The lines of what iptables saves, without comments and counters.
fn iptables() -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for name in [
        "iptables-legacy-save",
        "iptables-nft-save",
        "ip6tables-legacy-save",
        "ip6tables-nft-save",
    ] {
        let Some(program) = find_program(&[name.to_owned()]) else {
            continue;
        };
        let Ok(output) = Command::new(program).output() else {
            continue;
        };
        let mut table = String::new();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.to_owned();
            }
            let rule = line.split(" [").next().unwrap_or(line);
            // An empty table appears when somebody only looks at it.
            let policy_of_an_empty_table = rule.starts_with(':') && rule.ends_with(" ACCEPT");
            if !(line.starts_with('#')
                || line.starts_with('*')
                || line == "COMMIT"
                || policy_of_an_empty_table)
            {
                lines.insert(format!("{name} {table} {rule}"));
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_machine_is_judged_by_own_paths_only() {
        let shared = Scope::Shared {
            own: vec![PathBuf::from("/sys/fs/bpf/netd-1")],
        };
        assert!(speaks_for(
            &shared,
            Path::new("/sys/fs/bpf/netd-1/v1/flows")
        ));
        assert!(!speaks_for(
            &shared,
            Path::new("/sys/fs/bpf/netd-12/v1/flows")
        ));
        assert!(!speaks_for(&shared, Path::new("/run/sshd.pid")));
        let nameless = Scope::Shared { own: Vec::new() };
        assert!(speaks_for(&nameless, Path::new("/run/netd/lock")));
        assert!(!speaks_for(&nameless, Path::new("/run/sshd.pid")));
        assert!(speaks_for(&Scope::Exclusive, Path::new("/run/sshd.pid")));
    }

    #[test]
    fn differences_name_what_came_and_went() {
        let snapshot = |names: &[&str]| Leftovers {
            scope: Scope::Exclusive,
            parts: [(
                "link",
                names.iter().map(|name| (*name).to_owned()).collect(),
            )]
            .into(),
            bpf: BpfObjects::default(),
        };
        let (before, after) = (snapshot(&["lo", "eth0"]), snapshot(&["lo", "veth1"]));
        assert_eq!(before.diff(&after), ["- link eth0", "+ link veth1"]);
        assert!(before.diff(&before).is_empty());
    }
}
