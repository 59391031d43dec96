//! Messages for people who debug the programs: the feature `log`.
//!
//! Global functions that call nothing: a message takes more stack than all else that a program has at that point.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use netd_common::pipeline::Verdict;

/// What the slow path decided about a packet at a hook.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn log_verdict(ctx: *mut __sk_buff, hook: u32, verdict: u64) -> u32 {
    let verdict = Verdict(verdict);
    // SAFETY: the context outlives the program.
    let ifindex = unsafe { (*ctx).ifindex };
    aya_log_ebpf::debug!(
        TcContext::new(ctx),
        "hook {} of interface {}: action {}, argument {}",
        hook,
        ifindex,
        verdict.action(),
        verdict.argument()
    );
    0
}

/// A packet that is dropped.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn log_drop(ctx: *mut __sk_buff, hook: u32, verdict: u64) -> u32 {
    let verdict = Verdict(verdict);
    // SAFETY: the context outlives the program.
    let (ifindex, length) = unsafe { ((*ctx).ifindex, (*ctx).len) };
    aya_log_ebpf::debug!(
        TcContext::new(ctx),
        "hook {} of interface {}: dropped, reason {}, IPv{}, network {}, {} bytes",
        hook,
        ifindex,
        verdict.argument(),
        verdict.family(),
        verdict.network(),
        length
    );
    0
}
