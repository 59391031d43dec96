//! The bpf(2) commands that aya does not offer: which links sit at an interface, at which control
//! group a link sits, and another program for a link.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_link_type};

pub use crate::state::sys::open_pinned;
use crate::state::sys::{bpf, link_info, zeroed};

/// Ids of the tcx links at an interface of this network namespace, in their order. An interface
/// that does not exist has none.
pub fn tcx_links(ifindex: u32, egress: bool) -> io::Result<Vec<u32>> {
    let attach_type = if egress {
        bpf_attach_type::BPF_TCX_EGRESS
    } else {
        bpf_attach_type::BPF_TCX_INGRESS
    };
    // BPF_MPROG_MAX is 64.
    let mut programs = [0u32; 64];
    let mut links = [0u32; 64];
    let mut attr = zeroed();
    attr.query.__bindgen_anon_1.target_ifindex = ifindex;
    attr.query.attach_type = attach_type as u32;
    attr.query.prog_ids = programs.as_mut_ptr() as u64;
    attr.query.link_ids = links.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.count = programs.len() as u32;
    // SAFETY: the kernel writes at most `count` ids to each buffer, and both outlive the call.
    match unsafe { bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) } {
        Ok(_) => {
            // SAFETY: written above and by the kernel.
            let count = unsafe { attr.query.__bindgen_anon_2.count } as usize;
            Ok(links[..count.min(links.len())].to_vec())
        }
        Err(error) => match error.raw_os_error() {
            Some(libc::ENODEV | libc::ENOENT) => Ok(Vec::new()),
            _ => Err(error),
        },
    }
}

/// Where a link to a control group sits, and with which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupLink {
    /// Id of the control group; 0 once that is gone.
    pub cgroup: u64,
    /// Id of the program.
    pub program: u32,
}

/// Inspects a link; `None` if it is of another kind.
pub fn cgroup_link(link: BorrowedFd<'_>) -> io::Result<Option<CgroupLink>> {
    let info = link_info(link)?;
    if info.type_ != bpf_link_type::BPF_LINK_TYPE_CGROUP as u32 {
        return Ok(None);
    }
    Ok(Some(CgroupLink {
        // SAFETY: the type says which member of the union was written.
        cgroup: unsafe { info.__bindgen_anon_1.cgroup.cgroup_id },
        program: info.prog_id,
    }))
}

/// Puts another program in the place of a link's, atomically.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_update.link_fd = link.as_raw_fd() as u32;
    attr.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
    // SAFETY: two descriptors, which outlive the call; nothing is pointed to.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr) }.map(drop)
}
