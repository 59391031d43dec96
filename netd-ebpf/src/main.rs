//! netd's BPF programs: entry points over `netd-common`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod access;
mod account;
mod atomic;
mod features;
mod host_access;
#[cfg(feature = "log")]
mod log;
mod maps;
mod replace;
mod skb;
mod subprograms;
mod tables;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        __sk_buff,
        tcx_action_base::{TCX_DROP, TCX_NEXT},
    },
    helpers::generated::{
        bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_type,
        bpf_skb_store_bytes,
    },
    macros::classifier,
    programs::TcContext,
};
use netd_common::{
    abi::hook,
    drop::DropReason,
    pipeline::{self, Meta, Verdict},
    tables::Tables,
    wire::{Family, V4, V6},
};

use crate::{skb::Skb, tables::Maps};

/// A program: the hook's pipeline, and the kernel's action for its verdict. Everything up to the
/// steps of the slow path is one function: LLVM finds it too large to inline by itself, and a call
/// per packet is what that would cost.
macro_rules! program {
    ($(#[$doc:meta])* $name:ident, $hook:expr) => {
        $(#[$doc])*
        #[classifier]
        #[inline(always)]
        pub fn $name(ctx: TcContext) -> i32 {
            let ctx = ctx.as_ptr().cast::<__sk_buff>();
            let (meta, maps) = (meta(ctx, $hook), Maps(ctx));
            let verdict = pipeline::$name(&mut Skb(ctx), &maps, &meta);
            execute(ctx, &maps, &meta, verdict)
        }
    };
}

program! {
    /// What a container sends.
    from_endpoint, hook::FROM_ENDPOINT
}
program! {
    /// What the stack or the bridge delivers to a container.
    to_endpoint, hook::TO_ENDPOINT
}
program! {
    /// What arrives on an interface that is not a container's.
    from_uplink, hook::FROM_UPLINK
}
program! {
    /// The same, where packets have no Ethernet header: tun, WireGuard.
    from_tunnel, hook::FROM_UPLINK
}
program! {
    /// What enters the stack through a managed bridge.
    bridge_guard_in, hook::BRIDGE_IN
}
program! {
    /// What the stack sends into a managed bridge.
    bridge_guard_out, hook::BRIDGE_OUT
}

/// Reads the context.
#[inline(always)]
fn meta(ctx: *mut __sk_buff, hook: u8) -> Meta {
    // SAFETY: the context outlives the program.
    unsafe {
        Meta {
            ifindex: (*ctx).ifindex,
            ingress_ifindex: (*ctx).ingress_ifindex,
            to_host: u8::from((*ctx).pkt_type == 0),
            vlan: u8::from((*ctx).vlan_present != 0),
            hook,
        }
    }
}

/// What a container sends to its bridge is for another host where it enters ours, and a kernel that
/// does not scrub what it redirects to a peer (before 6.15 and its stable series) says so to the
/// container, whose stack would drop it.
#[inline(always)]
fn to_host(ctx: *mut __sk_buff) {
    const PACKET_HOST: u32 = 0;
    // SAFETY: the context outlives the program.
    unsafe { bpf_skb_change_type(ctx, PACKET_HOST) };
}

/// From a verdict to the kernel's action.
#[inline(always)]
fn execute(ctx: *mut __sk_buff, maps: &Maps, meta: &Meta, verdict: Verdict) -> i32 {
    #[cfg(feature = "log")]
    if verdict.is_slow() {
        log::log_verdict(ctx, u32::from(meta.hook), verdict.0);
    }
    match verdict.action() {
        0 => {
            account::passed(meta.hook);
            TCX_NEXT
        }
        2 => {
            account::redirected(meta.hook, verdict.is_slow());
            if meta.to_host == 0 {
                to_host(ctx);
            }
            // SAFETY: plain integers.
            unsafe { bpf_redirect_peer(verdict.argument(), 0) as i32 }
        }
        3 => neighbour::<V4>(maps, meta, verdict, V4::AF),
        4 if verdict.family() == 4 => neighbour::<V4>(maps, meta, verdict, V6::AF),
        4 => neighbour::<V6>(maps, meta, verdict, V6::AF),
        5 => endpoint(ctx, maps, meta, verdict.argument()),
        6 => {
            account::redirected(meta.hook, verdict.is_slow());
            // SAFETY: plain integers. The kernel takes the Ethernet header off by itself.
            unsafe { bpf_redirect(verdict.argument(), 0) as i32 }
        }
        7 => {
            account::count_drop(ctx, u32::from(meta.hook), verdict.0);
            to_host(ctx);
            // SAFETY: plain integers.
            unsafe { bpf_redirect_peer(meta.ifindex, 0) as i32 }
        }
        8 => {
            account::count_drop(ctx, u32::from(meta.hook), verdict.0);
            // SAFETY: plain integers.
            unsafe { bpf_redirect(meta.ifindex, 0) as i32 }
        }
        _ => {
            account::count_drop(ctx, u32::from(meta.hook), verdict.0);
            TCX_DROP
        }
    }
}

/// Out of a host veth to its container, whoever the neighbour table says has its address.
///
/// By the helper, not by writing directly: that would make the verifier unclone every packet at
/// this hook.
#[inline(always)]
fn endpoint(ctx: *mut __sk_buff, maps: &Maps, meta: &Meta, ifindex: u32) -> i32 {
    let stored = <Maps as Tables<V4>>::endpoint(maps, ifindex).is_some_and(|endpoint| {
        // SAFETY: six bytes of the Ethernet header, from six on the stack.
        unsafe { bpf_skb_store_bytes(ctx, 0, endpoint.mac.as_ptr().cast(), 6, 0) == 0 }
    });
    if !stored {
        let verdict = Verdict::drop(DropReason::HelperFailed);
        account::count_drop(ctx, u32::from(meta.hook), verdict.0);
        return TCX_DROP;
    }
    account::redirected(meta.hook, true);
    // SAFETY: plain integers.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// `struct bpf_redir_neigh`.
#[repr(C)]
struct NextHop {
    family: u32,
    addr: [u8; 16],
}

#[inline(always)]
fn neighbour<F: Family>(maps: &Maps, meta: &Meta, verdict: Verdict, family: u8) -> i32
where
    Maps: Tables<F>,
{
    let Some(scratch) = <Maps as Tables<F>>::scratch(maps) else {
        return TCX_DROP;
    };
    account::redirected(meta.hook, verdict.is_slow());
    let mut hop = NextHop {
        family: u32::from(family),
        addr: scratch.hop,
    };
    // SAFETY: `hop` is `struct bpf_redir_neigh`, and its size is passed.
    unsafe {
        bpf_redirect_neigh(
            verdict.argument(),
            (&raw mut hop).cast(),
            size_of::<NextHop>() as i32,
            0,
        ) as i32
    }
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
