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
