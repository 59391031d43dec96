//! Atomic arithmetic, spelt out.

use core::arch::asm;

/// Adds to an integer that all CPUs change; returns what was there. Core has no atomic arithmetic
/// for this target (`atomic_cas` is off), the instruction set (v3) has.
///
/// # Safety
/// `at` must be a readable and writable, aligned u64 in a map.
#[inline(always)]
pub unsafe fn fetch_add(at: *mut u64, more: u64) -> u64 {
    let mut value = more;
    // SAFETY: the caller's.
    unsafe {
        asm!("{0} = atomic_fetch_add((u64 *)({1} + 0), {0})", inout(reg) value, in(reg) at,
             options(nostack, preserves_flags));
    }
    value
}

/// Writes `to` if `from` is there; returns what was there.
///
/// # Safety
/// As [`fetch_add`].
#[inline(always)]
pub unsafe fn compare_and_swap(at: *mut u64, from: u64, to: u64) -> u64 {
    let mut value = from;
    // SAFETY: the caller's. The instruction compares with r0 and leaves there what it found.
    unsafe {
        asm!("r0 = cmpxchg_64({0} + 0, r0, {1})", in(reg) at, in(reg) to, inout("r0") value,
             options(nostack, preserves_flags));
    }
    value
}
