//! The bpf(2) commands that aya does not offer, and bytes that become values: all `unsafe` of
//! [`super`] is here. What only changes something is in [`crate::dataplane::sys`].

use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr,
};

use aya::maps::MapData;
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type};
use netd_common::wire::Wire;

/// Fills the buffers with entries that follow `cursor`, and `next` with the cursor after them.
/// Returns the number of entries and whether the walk is at its end.
///
/// `sizes`: bytes of a key and of all values of an entry, as the map has them; a cursor has the
/// size of a key, and at least 4 bytes.
pub(super) fn lookup_batch(
    map: &MapData,
    sizes: (usize, usize),
    cursor: Option<&[u8]>,
    next: &mut [u8],
    keys: &mut [u8],
    values: &mut [u8],
) -> io::Result<(usize, bool)> {
    let cursor_size = sizes.0.max(4);
    assert!(next.len() >= cursor_size && cursor.is_none_or(|c| c.len() >= cursor_size));
    let room = (keys.len() / sizes.0).min(values.len() / sizes.1);
    let mut attr = zeroed();
    attr.batch.in_batch = cursor.map_or(0, |c| c.as_ptr() as u64);
    attr.batch.out_batch = next.as_mut_ptr() as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = room as u32;
    attr.batch.map_fd = map.fd().as_fd().as_raw_fd() as u32;
    // SAFETY: the kernel writes at most `count` keys and values of the map's sizes, and a cursor;
    // the buffers have that room and outlive the call.
    let result = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) };
    // SAFETY: written as `batch` above, and by the kernel.
    let count = (unsafe { attr.batch.count } as usize).min(room);
    match result {
        Ok(_) => Ok((count, false)),
        // The end of the map: what stood before it is in the buffers.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((count, true)),
        Err(error) => Err(error),
    }
}

/// ifindex of the interface that a pinned tcx link is attached to: 0 once that is gone. An error
/// of kind `InvalidData` where something else is pinned there.
pub(super) fn tcx_link_target(pin: &Path) -> io::Result<u32> {
    let info = link_info(open_pinned(pin)?.as_fd())?;
    if info.type_ != bpf_link_type::BPF_LINK_TYPE_TCX as u32 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "this is not a tcx link",
        ));
    }
    // SAFETY: the type says which member of the union was written.
    Ok(unsafe { info.__bindgen_anon_1.tcx.ifindex })
}

/// Opens what is pinned at a path.
///
/// # Errors
/// What the kernel says.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    // SAFETY: the path is terminated and outlives the call.
    let fd = unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)? };
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the kernel says of a link.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<bpf_link_info> {
    // SAFETY: integers, for which all zero is valid.
    let mut info: bpf_link_info = unsafe { mem::zeroed() };
    let mut attr = zeroed();
    attr.info.bpf_fd = link.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    attr.info.info = ptr::from_mut(&mut info) as u64;
    // SAFETY: the kernel writes at most `info_len` bytes to `info`, which outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)? };
    Ok(info)
}

/// The value that these bytes are; panics where their number is not its size.
pub(crate) fn read<T: Wire>(bytes: &[u8]) -> T {
    assert_eq!(bytes.len(), size_of::<T>());
    // SAFETY: the length is the type's, and any bytes are a valid `Wire` value.
    unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) }
}

pub(crate) fn zeroed() -> bpf_attr {
    // SAFETY: a union of integers, for which all zero is valid; the kernel wants unused fields so.
    unsafe { mem::zeroed() }
}

/// A command of bpf(2); what it returns.
///
/// # Safety
/// What `attr` points to must be of the size that the command expects, and outlive the call.
pub(crate) unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` is whole and initialised; the rest is the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}

#[cfg(test)]
mod tests {
    use netd_common::abi::Endpoint;

    use super::*;

    #[test]
    fn bytes_become_the_value_at_any_alignment() {
        let mut bytes = vec![0xff];
        bytes.extend([1, 2, 3, 4, 5, 6]);
        bytes.extend(7u16.to_ne_bytes());
        bytes.extend(1500u16.to_ne_bytes());
        bytes.extend(1u16.to_ne_bytes());
        let endpoint: Endpoint = read(&bytes[1..]);
        assert_eq!(
            endpoint,
            Endpoint {
                mac: [1, 2, 3, 4, 5, 6],
                network: 7,
                mtu: 1500,
                flags: 1
            }
        );
    }

    #[test]
    #[should_panic(expected = "left: 11")]
    fn a_value_cut_short_is_refused() {
        let _: Endpoint = read(&[0; 11]);
    }
}
