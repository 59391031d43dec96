//! The bpf(2) commands that aya does not offer: which links sit at an interface, at which control
//! group a link sits, and another program for a link.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type};

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` is a whole, initialised bpf_attr; the callers' buffers outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}

fn zeroed() -> bpf_attr {
    // SAFETY: a union of integers: all zero is valid, and what the kernel wants in unused fields.
    unsafe { mem::zeroed() }
}

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
    match bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) {
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

/// Opens what is pinned at a path.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    let fd = bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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
    // SAFETY: integers, for which all zero is valid.
    let mut info: bpf_link_info = unsafe { mem::zeroed() };
    let mut attr = zeroed();
    attr.info.bpf_fd = link.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    attr.info.info = std::ptr::from_mut(&mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
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
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}
