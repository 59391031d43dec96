//! The programs that tests start, and the packages that have them.

use super::plan::Need;

/// The programs that belong to `need`.
pub fn names(need: Need) -> impl Iterator<Item = &'static str> {
    PROGRAMS
        .iter()
        .filter(move |program| program.need == need)
        .map(|program| program.name)
}

/// A program, the package that has it, and the reason to want it.
pub(super) struct Program {
    pub(super) need: Need,
    pub(super) name: &'static str,
    pub(super) debian: &'static str,
    pub(super) fedora: &'static str,
    pub(super) arch: &'static str,
    pub(super) why: &'static str,
}

#[rustfmt::skip]
pub(super) const PROGRAMS: &[Program] = &[
    Program { need: Need::Network, name: "bridge", debian: "iproute2", fedora: "iproute", arch: "iproute2", why: "namespaces, bridges and veth pairs for tests" },
    Program { need: Need::Network, name: "conntrack", debian: "conntrack", fedora: "conntrack-tools", arch: "conntrack-tools", why: "tests show what the kernel's conntrack sees" },
    Program { need: Need::Network, name: "ethtool", debian: "ethtool", fedora: "ethtool", arch: "ethtool", why: "tests run with checksum offload on and off" },
    Program { need: Need::Network, name: "ip", debian: "iproute2", fedora: "iproute", arch: "iproute2", why: "namespaces, bridges and veth pairs for tests" },
    Program { need: Need::Network, name: "ip6tables-legacy", debian: "iptables", fedora: "iptables-legacy", arch: "iptables-legacy", why: "the rules that netd must work beside" },
    Program { need: Need::Network, name: "iptables-legacy", debian: "iptables", fedora: "iptables-legacy", arch: "iptables-legacy", why: "the rules that netd must work beside" },
    Program { need: Need::Network, name: "iptables-nft", debian: "iptables", fedora: "iptables-nft", arch: "iptables", why: "the rules that netd must work beside" },
    Program { need: Need::Network, name: "nft", debian: "nftables", fedora: "nftables", arch: "nftables", why: "the rules that netd must work beside" },
    Program { need: Need::Network, name: "ping", debian: "iputils-ping", fedora: "iputils", arch: "iputils", why: "echo probes" },
    Program { need: Need::Network, name: "tc", debian: "iproute2", fedora: "iproute-tc", arch: "iproute2", why: "clsact, where the kernel has no tcx" },
    Program { need: Need::Network, name: "tcpdump", debian: "tcpdump", fedora: "tcpdump", arch: "tcpdump", why: "captures that prove no container address leaks" },
    Program { need: Need::KernelVm, name: "qemu-system-x86_64", debian: "qemu-system-x86", fedora: "qemu-system-x86-core", arch: "qemu-system-x86", why: "boots kernels 6.1 and 6.12" },
    Program { need: Need::KernelVm, name: "xz", debian: "xz-utils", fedora: "xz", arch: "xz", why: "unpacks the modules of those kernels" },
];

/// A program that is built from crates.io, with a pinned version.
pub(super) struct Crate {
    pub(super) need: Need,
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    pub(super) why: &'static str,
}

#[rustfmt::skip]
pub(super) const CRATES: &[Crate] = &[
    Crate { need: Need::Tunnel, name: "boringtun-cli", version: "0.7.0", why: "real WireGuard tunnels for tests, on kernels without it as well" },
];

/// Packages that start a service when they are installed, or that take over the host's firewall:
/// they are only ever unpacked ([`super::apt::unpack`]).
pub const NEVER_INSTALLED: &[&str] = &[
    "containerd",
    "containerd.io",
    "docker-ce",
    "docker.io",
    "firewalld",
    "nginx-light",
    "ufw",
];
