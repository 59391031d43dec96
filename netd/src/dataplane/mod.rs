//! The data plane as the daemon sees it: maps, programs at hooks, settings of the host.
//!
//! [`Dataplane`] is what a plan needs to be carried out. [`Kernel`] is the real one, over aya;
//! the tests have one in memory that can fail at any call.
//!
//! # Where things are pinned
//! | path below the pin directory | what |
//! |---|---|
//! | `v<ABI version>/maps/<NAME>` | the maps of [`netd_common::abi::map`] |
//! | `v<ABI version>/links/<hook>-<ifindex>` | tcx links, e.g. `from_endpoint-12` |
//! | `v<ABI version>/links/<hook>-0` | links to the root control group, e.g. `connect4-0` |
//!
//! Where the kernel has no tcx (before 6.6), programs are filters at a clsact qdisc with priority
//! [`clsact::PRIORITY`] and handle [`clsact::HANDLE`]; nothing of them is pinned, and they outlive
//! the daemon as pinned links do.

#[cfg(feature = "bpf-log")]
mod bpf_log;
mod cgroup;
pub mod clsact;
mod drain;
#[cfg(test)]
pub(crate) mod fake;
mod flows;
mod host_sockets;
mod kernel;
mod kernel_flows;
mod maps;
pub mod migrate;
mod pod;
mod shape;
mod sizes;
pub mod sys;
mod tables;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;

use netd_common::abi::{self, hook};
use thiserror::Error;

pub use kernel::{Features, Kernel, LoadOptions, OBJECT, Pinned, detach_clsact, load_unattached};
pub use kernel_flows::{LeftToKernel, TakenOver};
pub use shape::{Shape, ShapeError};
pub use sizes::{Sizes, sizes};
pub use tables::{Prefix, Row, RowKey, Table, Tables};

use crate::collect::FlowFilter;

/// A place where a program is attached: to an interface, or to the root control group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Both directions of a managed bridge: refuse what is forwarded to unknown endpoints.
    BridgeIn,
    /// Egress of a managed bridge.
    BridgeOut,
    /// Ingress of an uplink.
    FromUplink,
    /// The same of an uplink without an Ethernet header: tun, WireGuard.
    FromTunnel,
    /// Egress of a container's host veth.
    ToEndpoint,
    /// Ingress of a container's host veth.
    FromEndpoint,
    /// getpeername() of the host's IPv4 sockets.
    Getpeername4,
    /// The same of IPv6 sockets.
    Getpeername6,
    /// recvmsg() of the host's IPv4 UDP sockets.
    Recvmsg4,
    /// The same of IPv6 sockets.
    Recvmsg6,
    /// connect() of the host's IPv4 sockets.
    Connect4,
    /// The same of IPv6 sockets.
    Connect6,
    /// sendmsg() of the host's UDP sockets to IPv4 addresses.
    Sendmsg4,
    /// The same to IPv6 addresses.
    Sendmsg6,
}

impl Hook {
    /// Every hook, in the order in which programs are attached: what closes before what opens, and
    /// what shows an address before what changes it.
    pub const ALL: [Self; 14] = [
        Self::BridgeIn,
        Self::BridgeOut,
        Self::FromUplink,
        Self::FromTunnel,
        Self::ToEndpoint,
        Self::FromEndpoint,
        Self::Getpeername4,
        Self::Getpeername6,
        Self::Recvmsg4,
        Self::Recvmsg6,
        Self::Connect4,
        Self::Connect6,
        Self::Sendmsg4,
        Self::Sendmsg6,
    ];

    /// Its number in the ABI, by which packets are counted.
    pub fn number(self) -> u8 {
        match self {
            Self::FromEndpoint => hook::FROM_ENDPOINT,
            Self::ToEndpoint => hook::TO_ENDPOINT,
            Self::FromUplink | Self::FromTunnel => hook::FROM_UPLINK,
            Self::BridgeIn => hook::BRIDGE_IN,
            Self::BridgeOut => hook::BRIDGE_OUT,
            Self::Getpeername4 => hook::GETPEERNAME4,
            Self::Getpeername6 => hook::GETPEERNAME6,
            Self::Recvmsg4 => hook::RECVMSG4,
            Self::Recvmsg6 => hook::RECVMSG6,
            Self::Connect4 => hook::CONNECT4,
            Self::Connect6 => hook::CONNECT6,
            Self::Sendmsg4 => hook::SENDMSG4,
            Self::Sendmsg6 => hook::SENDMSG6,
        }
    }

    /// The program's name in the BPF object.
    pub fn program(self) -> &'static str {
        match self {
            Self::FromTunnel => "from_tunnel",
            _ => hook::name(self.number()),
        }
    }

    /// True if its program is attached to the root control group instead of an interface.
    pub fn is_cgroup(self) -> bool {
        self.number() >= hook::PACKETS
    }

    /// True if its program is loaded with the first interface that needs it: the verifier takes a
    /// second or so for it, and most hosts have no such interface.
    pub fn is_rare(self) -> bool {
        self == Self::FromTunnel
    }

    /// True at egress, false at ingress.
    pub fn is_egress(self) -> bool {
        matches!(self, Self::ToEndpoint | Self::BridgeOut)
    }
}

/// Stands for the root control group where an interface's name is printed.
pub const ROOT_CGROUP: &str = "the root control group";

/// A program at an interface, or at the root control group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment {
    /// Which program, and in which direction.
    pub hook: Hook,
    /// The interface; 0 for the root control group.
    pub ifindex: u32,
}

impl Attachment {
    /// Name of the link's pin.
    pub fn pin_name(&self) -> String {
        format!("{}-{}", self.hook.program(), self.ifindex)
    }

    /// The attachment that a pin's name stands for.
    pub fn from_pin_name(name: &str) -> Option<Self> {
        let (program, ifindex) = name.rsplit_once('-')?;
        Some(Self {
            hook: Hook::ALL.into_iter().find(|h| h.program() == program)?,
            ifindex: ifindex.parse().ok()?,
        })
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.hook.is_cgroup() {
            return write!(f, "{} at {ROOT_CGROUP}", self.hook.program());
        }
        write!(f, "{} at interface {}", self.hook.program(), self.ifindex)
    }
}

/// State of a program that is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// It is the program of this daemon.
    Current,
    /// It is the program of an earlier one.
    Outdated,
    /// Its interface is gone, or moved to another network namespace.
    Stale,
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachMode {
    /// tcx links (kernel 6.6).
    Tcx,
    /// Filters at a clsact qdisc.
    Clsact,
}

/// What is in force now.
#[derive(Clone, Debug, Default)]
pub struct Actual {
    /// Rows of the maps.
    pub tables: Tables,
    /// The configuration element; all zero before the first run.
    pub config: abi::Config,
    /// Programs at interfaces.
    pub attachments: BTreeMap<Attachment, Attached>,
}

/// What carrying out a plan needs. Each call is one system call or a few, and leaves the data
/// plane as it was when it fails.
pub trait Dataplane {
    /// Adds or replaces a row.
    fn put(&mut self, row: &Row) -> Result<(), DataplaneError>;
    /// Removes a row; it is no error when it is not there.
    fn remove(&mut self, key: &RowKey) -> Result<(), DataplaneError>;
    /// Attaches a program, or replaces the one that is attached, atomically.
    fn attach(&mut self, attachment: Attachment, interface: &str) -> Result<(), DataplaneError>;
    /// Detaches a program; it is no error when it is not there.
    fn detach(&mut self, attachment: Attachment) -> Result<(), DataplaneError>;
    /// Writes flags and the port range of the configuration element; epoch and seed stay, and so do
    /// the flags of [`abi::config_flag::PASSING`].
    fn configure(&mut self, config: &abi::Config) -> Result<(), DataplaneError>;
    /// Makes every flow decide and look up its route again at its next packet.
    fn bump_epoch(&mut self) -> Result<(), DataplaneError>;
    /// Sets a kernel setting, by its path below /proc/sys.
    fn set_sysctl(&mut self, name: &str, value: &str) -> Result<(), DataplaneError>;
    /// Ends flows at once; returns how many entries were removed.
    fn end_flows(&mut self, filter: &FlowFilter) -> Result<usize, DataplaneError>;
}

/// Why a call to the data plane failed.
#[derive(Debug, Error)]
pub enum DataplaneError {
    /// A map refused a row.
    #[error("cannot write {row} to map {map}: {source}{}", full(.source, .map))]
    Map {
        /// The map's name.
        map: &'static str,
        /// The row or key, for people.
        row: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A map could not be read or opened.
    #[error("cannot read map {map}: {source}")]
    ReadMap {
        /// The map's name.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A program could not be attached.
    #[error("cannot attach {program} to {interface}: {reason}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The interface's name.
        interface: String,
        /// What the kernel or aya said.
        reason: String,
    },
    /// A program could not be detached.
    #[error("cannot detach {attachment}: {reason}")]
    Detach {
        /// What was to be detached.
        attachment: Attachment,
        /// What the kernel or aya said.
        reason: String,
    },
    /// The BPF object could not be loaded.
    #[error("cannot load the BPF programs: {0}")]
    Load(String),
    /// A pinned map has another shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A file or directory below the pin directory.
    #[error("{}: cannot {action}: {source}", .path.display())]
    Pin {
        /// The path.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A kernel setting.
    #[error(transparent)]
    Sysctl(#[from] crate::host::HostError),
    /// What a test asked for.
    #[cfg(test)]
    #[error("injected failure at call {0}")]
    Injected(usize),
}

fn full(source: &io::Error, map: &str) -> String {
    if matches!(source.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) {
        format!(" (the map {map} is full: remove publishes or networks)")
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pin_names_round_trip() {
        for hook in Hook::ALL {
            let attachment = Attachment {
                hook,
                ifindex: 4711,
            };
            let name = attachment.pin_name();
            assert!(!name.contains('.'), "bpffs refuses dots");
            assert_eq!(Attachment::from_pin_name(&name), Some(attachment));
        }
        for bad in ["", "from_uplink", "from_uplink-x", "other-3"] {
            assert_eq!(Attachment::from_pin_name(bad), None, "{bad}");
        }
    }
}
