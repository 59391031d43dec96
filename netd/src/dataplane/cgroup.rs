//! Programs at the root control group: the hooks of the host's own sockets.
//!
//! They are attached beside those of others, see every socket of the machine, and act for those of
//! netd's own network namespace.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};

use super::kernel::{chain, pin_error};
use super::sys::{cgroup_link, open_pinned, update_link};
use super::{Attached, Attachment, DataplaneError, ROOT_CGROUP};
use crate::host;

/// Attaches a program and pins its link at `path`, or replaces the program of the link that is
/// pinned there.
pub(super) fn attach(
    program: &mut CgroupSockAddr,
    attachment: Attachment,
    path: &Path,
) -> Result<(), DataplaneError> {
    let failed = |reason: &dyn std::fmt::Display| DataplaneError::Attach {
        program: attachment.hook.program(),
        interface: ROOT_CGROUP.to_owned(),
        reason: reason.to_string(),
    };
    if path.exists() {
        if state(path, |_| true)? == Attached::Current {
            let link = open_pinned(path).map_err(pin_error(path, "open it"))?;
            let program = program.fd().map_err(|error| failed(&error))?;
            return update_link(link.as_fd(), program.as_fd()).map_err(|error| failed(&error));
        }
        std::fs::remove_file(path).map_err(pin_error(path, "remove it"))?;
    }
    let root = host::cgroup2_root()
        .ok_or_else(|| failed(&"no cgroup2 file system is mounted (mount -t cgroup2)"))?;
    let cgroup =
        File::open(&root).map_err(|error| failed(&format!("{}: {error}", root.display())))?;
    // A link is always beside others; the flag for that is refused.
    let id = program
        .attach(cgroup, CgroupAttachMode::Single)
        .map_err(|error| failed(&chain(&error)))?;
    let link = program.take_link(id).map_err(|error| failed(&error))?;
    let link = FdLink::try_from(link).map_err(|error| failed(&error))?;
    link.pin(path)
        .map(drop)
        .map_err(|error| failed(&chain(&error)))
}

/// State of the link that is pinned at `path`. Stale once it is not at the root control group.
pub(super) fn state(
    path: &Path,
    is_current: impl Fn(u32) -> bool,
) -> Result<Attached, DataplaneError> {
    let link = open_pinned(path).map_err(pin_error(path, "open it"))?;
    let link = cgroup_link(link.as_fd()).map_err(pin_error(path, "inspect it"))?;
    let root = host::cgroup2_root().and_then(|root| root.metadata().ok());
    // The inode number of a control group's directory is its id.
    let is_at_root = |at: u64| at != 0 && root.as_ref().is_none_or(|root| root.ino() == at);
    Ok(match link {
        Some(link) if is_at_root(link.cgroup) => {
            if is_current(link.program) {
                Attached::Current
            } else {
                Attached::Outdated
            }
        }
        _ => Attached::Stale,
    })
}
