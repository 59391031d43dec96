//! What this kernel, and netd's place on it, allow.

use std::path::Path;
use std::{fmt, fs, io};

use nix::mount::{MsFlags, mount};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use serde::{Serialize, Serializer};

use super::HostError;
use super::probe::{self, FIB_LOOKUP_MARK, FIB_LOOKUP_SKIP_NEIGH, FIB_LOOKUP_SRC, FIB_LOOKUP_TBID};

/// Where Linux has its BPF file system.
pub const BPFFS_PATH: &str = "/sys/fs/bpf";

/// The oldest kernel that netd runs on.
const FLOOR: KernelVersion = KernelVersion { major: 6, minor: 1 };

/// What the kernel can do, found out once at the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KernelFeatures {
    /// What the kernel calls itself (`uname -r`).
    pub release: String,
    /// Its version by number.
    pub version: KernelVersion,
    /// Programs attach by tcx links; without it, by clsact filters.
    pub tcx: bool,
    /// A route lookup does without a resolved neighbour.
    pub fib_skip_neigh: bool,
    /// A route lookup tells the source address.
    pub fib_source: bool,
    /// A route lookup can be made in one table, by its number.
    pub fib_table: bool,
    /// A route lookup takes a mark.
    pub fib_mark: bool,
    /// Checksums of IPv6 packets that the device summed (CHECKSUM_COMPLETE) can be kept right by
    /// a flag; without it they need a correction of their own.
    pub csum_ipv6: bool,
    /// `RLIMIT_MEMLOCK` in bytes; `None` is no limit. Maps count towards a control group instead,
    /// since 5.11: a low limit does no harm.
    pub memlock: Option<u64>,
    /// What is not there, what must be there first.
    pub missing: Vec<MissingFeature>,
}

/// Something that the kernel, or netd's privileges, do not give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MissingFeature {
    /// What it is.
    pub what: String,
    /// The first kernel that has it. Stable kernels of older lines can have it too: Debian's 6.1
    /// knows the source lookup of 6.7.
    pub since: KernelVersion,
    /// What netd does instead, or what to do about it.
    pub hint: String,
    /// netd cannot run without it.
    pub required: bool,
}

/// A kernel version, as far as features depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KernelVersion {
    /// The first number.
    pub major: u16,
    /// The second number.
    pub minor: u16,
}

/// Whether a BPF file system had to be mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bpffs {
    /// It was there.
    Present,
    /// netd has just mounted it.
    Mounted,
}

/// Finds out what the kernel can do, by small BPF programs that are loaded, run once on an empty
/// frame and dropped. Never fails for a lack: that is listed in `missing`.
pub fn kernel_features() -> Result<KernelFeatures, HostError> {
    let release = read("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let version = KernelVersion::parse(&release).ok_or_else(|| HostError::ReadFile {
        file: "/proc/sys/kernel/osrelease",
        source: io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{release:?} begins with no version"),
        ),
    })?;
    let mut missing = Vec::new();
    if version < FLOOR {
        missing.push(MissingFeature {
            what: format!("Linux {FLOOR} (this is {release})"),
            since: FLOOR,
            hint: "netd is verified from that version on: boot a newer kernel".to_owned(),
            required: true,
        });
    }
    missing.extend(missing_privileges()?);

    // The first probe also tells whether BPF can be used at all.
    let has = match probe::fib_lookup_knows(FIB_LOOKUP_SKIP_NEIGH) {
        Ok(skip_neigh) => {
            let known = |probed: io::Result<bool>| probed.unwrap_or(false);
            Probed {
                tcx: known(probe::has_tcx()),
                skip_neigh,
                source: known(probe::fib_lookup_knows(FIB_LOOKUP_SRC)),
                table: known(probe::fib_lookup_knows(FIB_LOOKUP_TBID)),
                mark: known(probe::fib_lookup_knows(FIB_LOOKUP_MARK)),
                csum_ipv6: known(probe::csum_replace_knows_ipv6()),
            }
        }
        Err(error) => {
            missing.push(cannot_load(&error));
            Probed::default()
        }
    };
    for (there, what, since, hint) in has.table() {
        if !there {
            missing.push(MissingFeature {
                what: what.to_owned(),
                since,
                hint: hint.to_owned(),
                required: false,
            });
        }
    }
    missing.sort_by_key(|feature| !feature.required);
    Ok(KernelFeatures {
        release,
        version,
        tcx: has.tcx,
        fib_skip_neigh: has.skip_neigh,
        fib_source: has.source,
        fib_mark: has.mark,
        fib_table: has.table,
        csum_ipv6: has.csum_ipv6,
        memlock: memlock_limit(),
        missing,
    })
}

/// Sees to it that a BPF file system is at the path; mounts one if need be. Needs CAP_SYS_ADMIN
/// in the host's mount namespace then, and the directory must exist.
pub fn ensure_bpffs(path: &Path) -> Result<Bpffs, HostError> {
    let failed = |source: io::Error| HostError::Bpffs {
        path: path.to_owned(),
        source,
    };
    if is_bpffs(path).map_err(failed)? {
        return Ok(Bpffs::Present);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|errno| failed(errno.into()))?;
    Ok(Bpffs::Mounted)
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == BPF_FS_MAGIC)
}

#[derive(Default)]
struct Probed {
    tcx: bool,
    skip_neigh: bool,
    source: bool,
    mark: bool,
    table: bool,
    csum_ipv6: bool,
}

impl Probed {
    /// Feature, name, first kernel, and what happens without it.
    fn table(&self) -> [(bool, &'static str, KernelVersion, &'static str); 6] {
        let since = |major, minor| KernelVersion { major, minor };
        [
            (
                self.tcx,
                "tcx links",
                since(6, 6),
                "programs are attached as clsact filters",
            ),
            (
                self.skip_neigh,
                "BPF_FIB_LOOKUP_SKIP_NEIGH",
                since(6, 3),
                "a next hop without a neighbour entry counts as found",
            ),
            (
                self.source,
                "BPF_FIB_LOOKUP_SRC",
                since(6, 7),
                "the masquerade source is the interface's primary address",
            ),
            (
                self.table,
                "BPF_FIB_LOOKUP_TBID",
                since(6, 5),
                "IPv6 of containers that a suppress_prefixlength rule sends by another table is dropped",
            ),
            (
                self.mark,
                "BPF_FIB_LOOKUP_MARK",
                since(6, 10),
                "route lookups see no fwmark",
            ),
            (
                self.csum_ipv6,
                "BPF_F_IPV6 of bpf_l4_csum_replace",
                since(6, 16),
                "checksums summed by the device are corrected one by one",
            ),
        ]
    }
}

fn cannot_load(error: &io::Error) -> MissingFeature {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "run netd as root on the host, not in a user namespace; kernel lockdown in its \
             confidentiality mode also forbids it (/sys/kernel/security/lockdown)"
        }
        Some(libc::ENOSYS) => "the kernel must be built with CONFIG_BPF_SYSCALL",
        _ => "the kernel must be built with CONFIG_BPF_SYSCALL and CONFIG_NET",
    };
    MissingFeature {
        what: format!("loading BPF programs ({error})"),
        since: FLOOR,
        hint: hint.to_owned(),
        required: true,
    }
}

/// Number, name, first kernel, and what netd needs it for (linux/capability.h).
const CAPABILITIES: [(u32, &str, KernelVersion, &str); 5] = [
    (
        11,
        "CAP_NET_BROADCAST",
        KernelVersion { major: 2, minor: 2 },
        "to hear of addresses inside containers",
    ),
    (
        12,
        "CAP_NET_ADMIN",
        KernelVersion { major: 2, minor: 2 },
        "to attach programs and change forwarding",
    ),
    (
        CAP_SYS_ADMIN,
        "CAP_SYS_ADMIN",
        KernelVersion { major: 2, minor: 2 },
        "to find its own programs and maps again, and to mount the BPF file system",
    ),
    (
        38,
        "CAP_PERFMON",
        KernelVersion { major: 5, minor: 8 },
        "to load its programs",
    ),
    (
        39,
        "CAP_BPF",
        KernelVersion { major: 5, minor: 8 },
        "to load its programs",
    ),
];
const CAP_SYS_ADMIN: u32 = 21;

fn missing_privileges() -> Result<Vec<MissingFeature>, HostError> {
    const FILE: &str = "/proc/thread-self/status";
    let status = read(FILE)?;
    let effective = parse_effective(&status).ok_or_else(|| HostError::ReadFile {
        file: FILE,
        source: io::Error::new(io::ErrorKind::InvalidData, "no CapEff in it"),
    })?;
    Ok(privileges_without(effective))
}

fn privileges_without(effective: u64) -> Vec<MissingFeature> {
    let has = |number: u32| effective & 1 << number != 0;
    // CAP_SYS_ADMIN contains the two that were taken out of it in 5.8.
    let lacks = |number: u32| !(has(number) || number >= 38 && has(CAP_SYS_ADMIN));
    CAPABILITIES
        .iter()
        .filter(|(number, ..)| lacks(*number))
        .map(|(_, name, since, purpose)| MissingFeature {
            what: (*name).to_owned(),
            since: *since,
            hint: format!(
                "needed {purpose}: run netd as root, or add it to AmbientCapabilities of its unit"
            ),
            required: true,
        })
        .collect()
}

/// The effective capabilities in a /proc status file.
fn parse_effective(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn memlock_limit() -> Option<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap_or((RLIM_INFINITY, RLIM_INFINITY));
    (soft != RLIM_INFINITY).then_some(soft)
}

impl KernelFeatures {
    /// What keeps netd from running here.
    pub fn blockers(&self) -> impl Iterator<Item = &MissingFeature> {
        self.missing.iter().filter(|feature| feature.required)
    }
}

impl fmt::Display for MissingFeature {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} (since Linux {}): {}",
            self.what, self.since, self.hint
        )
    }
}

impl KernelVersion {
    /// The first two numbers of what `uname -r` prints.
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?.parse().ok()?;
        Some(Self { major, minor })
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.major, self.minor)
    }
}

impl Serialize for KernelVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn read(file: &'static str) -> Result<String, HostError> {
    fs::read_to_string(file).map_err(|source| HostError::ReadFile { file, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_release_names() {
        let version = |major, minor| Some(KernelVersion { major, minor });
        assert_eq!(KernelVersion::parse("6.1.0-44-cloud-amd64"), version(6, 1));
        assert_eq!(KernelVersion::parse("6.18-rc3"), version(6, 18));
        assert_eq!(KernelVersion::parse("6.12+deb13"), version(6, 12));
        assert_eq!(KernelVersion::parse("linux"), None);
        assert!(version(6, 10) > version(6, 7));
    }

    #[test]
    fn a_missing_privilege_is_named() {
        let names = |effective| -> Vec<_> {
            let missing = privileges_without(effective);
            missing.into_iter().map(|feature| feature.what).collect()
        };
        assert_eq!(names(u64::MAX), [""; 0]);
        let all = parse_effective("CapPrm:\t0\nCapEff:\t000001ffffffffff\n").unwrap();
        assert_eq!(names(all & !(1 << 12)), ["CAP_NET_ADMIN"]);
        // Contained in CAP_SYS_ADMIN.
        assert_eq!(names(all & !(1 << 39)), [""; 0]);
        let without = all & !(1 << 21) & !(1 << 39);
        assert_eq!(names(without), ["CAP_SYS_ADMIN", "CAP_BPF"]);
    }
}
