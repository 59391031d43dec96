//! The few bpf(2) commands that aya does not offer: walking a hash map in batches, and which links
//! sit at an interface.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd};
use netd_common::wire::Wire;

/// Entries fetched by one system call.
const BATCH: usize = 1024;

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

/// Calls `visit` with every entry of a hash map. Entries that come or go meanwhile may be missed;
/// none is shown twice unless it was removed and added again.
///
/// The caller must give the types of the map's own keys and values: sizes are not checked here.
pub(crate) fn for_each_entry<K: Wire, V: Wire>(
    map: impl AsFd,
    mut visit: impl FnMut(&K, &V),
) -> io::Result<()> {
    let mut batch = BATCH;
    let mut cursor: Option<u32> = None;
    let mut keys: Vec<K> = Vec::new();
    let mut values: Vec<V> = Vec::new();
    loop {
        keys.clear();
        values.clear();
        keys.reserve_exact(batch);
        values.reserve_exact(batch);
        let (count, next, done) =
            match lookup_batch(map.as_fd(), cursor, &mut keys, &mut values, batch) {
                Ok(found) => found,
                // One bucket holds more than a batch.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && batch < 1 << 20 => {
                    batch *= 2;
                    continue;
                }
                Err(error) => return Err(error),
            };
        // SAFETY: the kernel wrote `count` elements, at most `batch`, which is reserved; any bytes
        // are a valid `Wire` value.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        for (key, value) in keys.iter().zip(&values) {
            visit(key, value);
        }
        if done {
            return Ok(());
        }
        cursor = Some(next);
    }
}

/// Fills the spare room of both vectors. Returns the number of elements, the next cursor and
/// whether the walk is at its end.
fn lookup_batch<K, V>(
    map: BorrowedFd<'_>,
    cursor: Option<u32>,
    keys: &mut Vec<K>,
    values: &mut Vec<V>,
    batch: usize,
) -> io::Result<(usize, u32, bool)> {
    let mut next = 0u32;
    let mut attr = zeroed();
    attr.batch.in_batch = cursor.as_ref().map_or(0, |c| std::ptr::from_ref(c) as u64);
    attr.batch.out_batch = &raw mut next as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = batch as u32;
    attr.batch.map_fd = map.as_raw_fd() as u32;
    let result = bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr);
    // SAFETY: written as `batch` above and by the kernel.
    let count = unsafe { attr.batch.count } as usize;
    match result {
        Ok(()) => Ok((count.min(batch), next, false)),
        // The end of the map: what was found before it is in the buffers.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            Ok((count.min(batch), next, true))
        }
        Err(error) => Err(error),
    }
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
