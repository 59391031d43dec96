//! netd's BPF programs: entry points over `netd-common`.
#![no_std]
#![no_main]

mod maps;

use aya_ebpf::{bindings::tcx_action_base::TCX_NEXT, macros::classifier, programs::TcContext};

/// What a container sends.
#[classifier]
pub fn from_endpoint(_ctx: TcContext) -> i32 {
    TCX_NEXT
}

/// What the stack or the bridge delivers to a container.
#[classifier]
pub fn to_endpoint(_ctx: TcContext) -> i32 {
    TCX_NEXT
}

/// What arrives on an interface that is not a container's.
#[classifier]
pub fn from_uplink(_ctx: TcContext) -> i32 {
    TCX_NEXT
}

/// What enters the stack through a managed bridge.
#[classifier]
pub fn bridge_guard_in(_ctx: TcContext) -> i32 {
    TCX_NEXT
}

/// What the stack sends into a managed bridge.
#[classifier]
pub fn bridge_guard_out(_ctx: TcContext) -> i32 {
    TCX_NEXT
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

// bpf_redirect_neigh, bpf_skc_lookup_tcp and others are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
