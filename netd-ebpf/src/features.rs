//! What the running kernel can do, found out by the loader and written into read-only data: the
//! verifier sees constants and drops the branches that do not apply.

/// `BPF_FIB_LOOKUP_SRC` (Linux 6.7, commit dab4e1f06cab).
pub const FIB_SRC: u32 = 1;
/// `BPF_FIB_LOOKUP_SKIP_NEIGH` (Linux 6.3, commit 31de4105f00d).
pub const FIB_SKIP_NEIGH: u32 = 2;
/// `BPF_F_IPV6` of `bpf_l4_csum_replace` (Linux 6.16, commit ead7f9b8de65).
pub const CSUM_IPV6: u32 = 4;
/// `BPF_FIB_LOOKUP_TBID` (Linux 6.5, commit 8ad77e72caae).
pub const FIB_TABLE: u32 = 8;

#[unsafe(no_mangle)]
static FEATURES: u32 = 0;

/// Does the kernel have this?
#[inline(always)]
pub fn has(feature: u32) -> bool {
    // SAFETY: a static u32 that the loader may have overwritten before the program was loaded.
    unsafe { core::ptr::read_volatile(&raw const FEATURES) & feature != 0 }
}
