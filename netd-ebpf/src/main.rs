//! netd's BPF programs.
#![no_std]
#![no_main]
use aya_ebpf::{macros::classifier, programs::TcContext};

/// Placeholder until the engine lands: passes everything.
#[classifier]
pub fn from_uplink(_ctx: TcContext) -> i32 {
    -1
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
