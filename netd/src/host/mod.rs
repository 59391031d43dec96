//! What the daemon learns from the kernel: plain, comparable data, read by netlink.
//!
//! [`HostReader`] reads it all into [`HostFacts`]; the decisions made from it live elsewhere and
//! are pure. [`HostWatch`] says when to read again. Everything shows the network namespace of
//! the thread that opens the reader (or calls the function).

mod cgroup;
mod conntrack;
mod containers;
mod engine_sockets;
mod facts;
pub(crate) mod filters;
mod interfaces;
mod ipsec;
mod kernel;
mod link;
mod listeners;
mod machine;
pub(crate) mod netlink;
mod probe;
mod route_watch;
mod routes;
mod rules;
mod sock_destroy;
mod sysctl;
mod watch;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use netlink::Netlink;

pub use cgroup::{cgroup2_root, netns_cookie, supports_socket_hooks};
pub use conntrack::{Closing, ConntrackFlow, FlowEnds, read_conntrack};
pub use engine_sockets::EngineSockets;
pub use facts::*;
pub use kernel::{
    BPFFS_PATH, Bpffs, KernelFeatures, KernelVersion, MissingFeature, ensure_bpffs, kernel_features,
};
pub use link::*;
pub use listeners::{ListenerProtocol, LocalListener, local_listeners};
pub use machine::{KernelClock, boot_id, boottime_nanoseconds, monotonic_nanoseconds, ram_bytes};
pub use route_watch::{ContainerBridges, RouteWatch};
pub use rules::PolicyRule;
pub use sock_destroy::{OpenSocket, SocketEnder, open_sockets};
pub use sysctl::{Restored, SysctlChange, read_sysctl, set_bridge_forwarding, set_sysctl};
pub use watch::{HostWatch, Wake};

/// Reads the host. Holds one rtnetlink socket; a reading takes a few milliseconds.
pub struct HostReader {
    route: Netlink,
}

impl HostReader {
    /// Opens the socket in the calling thread's network namespace. Settings are read from
    /// /proc/sys, so [`Self::read`] belongs on a thread of the same namespace.
    pub fn open() -> Result<Self, HostError> {
        let route = open(libc::NETLINK_ROUTE, "rtnetlink")?;
        Ok(Self { route })
    }

    /// One reading of everything. Containers are looked for on the bridges for which `managed`
    /// is true.
    pub fn read(&mut self, managed: impl Fn(&Link) -> bool) -> Result<HostFacts, HostError> {
        let route = &mut self.route;
        let mut links = interfaces::read_links(route)?;
        let mut addresses = interfaces::read_addresses(route)?;
        interfaces::fill_primary_addresses(&mut links, &addresses);
        addresses.sort();
        let settings = sysctl::read_settings(route, &mut links)?;
        let vrfs: BTreeSet<u32> = links
            .iter()
            .filter_map(|link| Some(link.vrf?.table))
            .collect();
        Ok(HostFacts {
            local: routes::read_local(route, &vrfs)?,
            default_routes: routes::read_defaults(route)?,
            rules_v6: rules::read_v6(route)?,
            containers: containers::discover(route, &links, &addresses, managed)?,
            ipsec_out: ipsec::read_policies()?,
            links,
            addresses,
            settings,
            socket_hooks: supports_socket_hooks() && cgroup2_root().is_some(),
            netns_cookie: netns_cookie().unwrap_or(0),
            engine_ports: BTreeSet::new(),
        })
    }
}

/// One of the two address families that netd carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// Its number (`AF_INET`, `AF_INET6`).
    fn number(self) -> u8 {
        match self {
            Self::V4 => libc::AF_INET as u8,
            Self::V6 => libc::AF_INET6 as u8,
        }
    }

    /// Its directory under /proc/sys/net.
    fn directory(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

/// Why the host could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are what the messages show")]
pub enum HostError {
    /// A netlink socket could not be opened.
    #[error("cannot open a netlink socket ({family}): {source}")]
    Open {
        family: &'static str,
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("cannot read {what} by netlink: {source}{}", in_brackets(.kernel_says))]
    Netlink {
        what: &'static str,
        source: io::Error,
        kernel_says: Option<String>,
    },
    /// A file of the kernel could not be read.
    #[error("cannot read {file}: {source}")]
    ReadFile {
        file: &'static str,
        source: io::Error,
    },
    /// The BPF file system is not there and could not be mounted.
    #[error(
        "no BPF file system at {path}, and mounting one failed: {source}; \
         run `mount -t bpf bpf {path}` as root on the host, or choose another pin_dir"
    )]
    Bpffs { path: PathBuf, source: io::Error },
    /// A setting could not be read.
    #[error("cannot read the setting /proc/sys/{name}: {source}")]
    ReadSysctl { name: String, source: io::Error },
    /// A setting could not be changed.
    #[error(
        "cannot write {value:?} to the setting /proc/sys/{name}: {source}; \
         netd needs root (CAP_NET_ADMIN) and a writable /proc/sys"
    )]
    WriteSysctl {
        name: String,
        value: String,
        source: io::Error,
    },
    /// Not the name of one interface.
    #[error("{name:?} is not the name of an interface; name one that `ip link` lists")]
    InterfaceName { name: String },
}

pub(crate) fn open(protocol: i32, family: &'static str) -> Result<Netlink, HostError> {
    Netlink::open(protocol as isize).map_err(|source| HostError::Open { family, source })
}

fn in_brackets(says: &Option<String>) -> String {
    let says = says.as_ref();
    says.map(|says| format!(" ({says})")).unwrap_or_default()
}
