//! Questions to the kernel's BPF about what it can do, without any lasting effect.
//!
//! A version number lies: vendors backport, and configurations leave out. A helper that is called
//! with a flag it does not know answers `EINVAL` before it looks at anything else; the calls here
//! are wrong in a second way, which a kernel that knows the flag reports instead.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

// linux/bpf.h
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;
const HELPER_L4_CSUM_REPLACE: i32 = 11;
const HELPER_FIB_LOOKUP: i32 = 69;

/// `bpf_fib_lookup` without a resolved neighbour (6.3).
pub(super) const FIB_LOOKUP_SKIP_NEIGH: i32 = 1 << 2;
/// `bpf_fib_lookup` in a table that is named (6.5).
pub(super) const FIB_LOOKUP_TBID: i32 = 1 << 3;
/// `bpf_fib_lookup` that returns the source address (6.7).
pub(super) const FIB_LOOKUP_SRC: i32 = 1 << 4;
/// `bpf_fib_lookup` that takes a mark (6.10).
pub(super) const FIB_LOOKUP_MARK: i32 = 1 << 5;
/// `bpf_l4_csum_replace` for IPv6 addresses (6.16).
const CSUM_IPV6: i32 = 1 << 7;

/// Whether `bpf_fib_lookup` knows a flag.
pub(super) fn fib_lookup_knows(flag: i32) -> io::Result<bool> {
    // A struct bpf_fib_lookup of zeroes, but for a family that does not exist.
    let mut program: Vec<Insn> = (1..=8).map(|word| Insn::store_zero(-8 * word)).collect();
    program.extend([
        Insn::store_byte(-64, 0xff),
        Insn::mov_register(2, 10),
        Insn::add(2, -64),
        Insn::mov(3, 64),
        Insn::mov(4, flag),
        Insn::call(HELPER_FIB_LOOKUP),
        Insn::exit(),
    ]);
    Ok(run(&program)? != -libc::EINVAL)
}

/// Whether `bpf_l4_csum_replace` knows `BPF_F_IPV6`.
pub(super) fn csum_replace_knows_ipv6() -> io::Result<bool> {
    let program = [
        // An odd offset: refused after the flags were found good.
        Insn::mov(2, 1),
        Insn::mov(3, 0),
        Insn::mov(4, 0),
        Insn::mov(5, CSUM_IPV6),
        Insn::call(HELPER_L4_CSUM_REPLACE),
        Insn::exit(),
    ];
    Ok(run(&program)? != -libc::EINVAL)
}

/// Whether programs can be attached by tcx: asks the loopback interface for its list.
pub(super) fn has_tcx() -> io::Result<bool> {
    let mut query = Query {
        target_ifindex: 1,
        attach_type: BPF_TCX_INGRESS,
        ..Query::default()
    };
    // SAFETY: `Query` is the part of union bpf_attr that BPF_PROG_QUERY reads and writes; it holds
    // no pointer, and lives past the call.
    match unsafe { bpf(BPF_PROG_QUERY, &mut query) } {
        Ok(_) => Ok(true),
        // Unknown attach type.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        // 6.6 said so of an interface without programs.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(true),
        Err(error) => Err(error),
    }
}

/// One BPF instruction.
#[repr(C)]
#[derive(Clone, Copy)]
struct Insn {
    code: u8,
    /// Destination register in the low half on little-endian machines, the source in the other.
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Insn {
    const fn new(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Self {
        let registers = if cfg!(target_endian = "little") {
            to | from << 4
        } else {
            to << 4 | from
        };
        Self {
            code,
            registers,
            offset,
            immediate,
        }
    }

    const fn mov(to: u8, value: i32) -> Self {
        Self::new(0xb7, to, 0, 0, value)
    }

    const fn mov_register(to: u8, from: u8) -> Self {
        Self::new(0xbf, to, from, 0, 0)
    }

    const fn add(to: u8, value: i32) -> Self {
        Self::new(0x07, to, 0, 0, value)
    }

    /// Eight zero bytes on the stack.
    const fn store_zero(offset: i16) -> Self {
        Self::new(0x7a, 10, 0, offset, 0)
    }

    /// One byte on the stack.
    const fn store_byte(offset: i16, value: i32) -> Self {
        Self::new(0x72, 10, 0, offset, value)
    }

    const fn call(helper: i32) -> Self {
        Self::new(0x85, 0, 0, 0, helper)
    }

    const fn exit() -> Self {
        Self::new(0x95, 0, 0, 0, 0)
    }
}

#[repr(C)]
#[derive(Default)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    program_fd: u32,
    result: u32,
    data_in_size: u32,
    data_out_size: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    padding: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Loads a classifier, runs it once on an empty frame, and forgets it.
fn run(program: &[Insn]) -> io::Result<i32> {
    let license = c"GPL";
    let mut load = Load {
        program_type: BPF_PROG_TYPE_SCHED_CLS,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: `Load` is the part of union bpf_attr that BPF_PROG_LOAD reads; both its pointers
    // point to memory of the stated length (the licence ends in a zero) that outlives the call.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &mut load) }?;
    // SAFETY: the kernel has just made this descriptor, and no one else knows it.
    let loaded = unsafe { OwnedFd::from_raw_fd(fd) };

    let frame = [0u8; 64];
    let mut test = TestRun {
        program_fd: loaded.as_raw_fd() as u32,
        data_in_size: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        ..TestRun::default()
    };
    // SAFETY: `TestRun` is the part of union bpf_attr that BPF_PROG_TEST_RUN uses; `data_in` points
    // to `data_in_size` bytes that outlive the call, and without `data_out` nothing is written
    // but `result` and `duration` of the structure itself.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut test) }?;
    Ok(test.result as i32)
}

/// The bpf system call.
///
/// # Safety
/// `attributes` must be a prefix of union bpf_attr as `command` reads and writes it, and every
/// pointer in it must hold what the command expects until the call returns.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<i32> {
    let pointer: *mut T = attributes;
    // SAFETY: the size is that of the structure behind the pointer; the caller vouches for the
    // rest.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size_of::<T>()) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_that_no_kernel_knows_is_unknown() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        assert!(!fib_lookup_knows(1 << 30).unwrap());
        // DIRECT, of 4.18.
        assert!(fib_lookup_knows(1 << 0).unwrap());
    }
}
