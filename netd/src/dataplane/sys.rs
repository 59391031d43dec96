//! The one bpf(2) command that aya does not offer: which links sit at an interface.

use std::io;
use std::mem;

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd};

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<()> {
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
        Ok(())
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
        Ok(()) => {
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
