//! The host's route tables, asked by bpf_fib_lookup.

use core::ffi::c_void;

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_fib_lookup};
use netd_common::{
    abi::{NO_TABLE, config_flag},
    drop::DropReason,
    tables::{Scratch, Tables},
    wire::{Address, Family, V6, V6Addr},
};

use crate::{
    features, maps,
    tables::{FamilyMaps, Maps, words},
};

/// `struct bpf_fib_lookup` (include/uapi/linux/bpf.h), 64 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FibLookup {
    family: u8,
    l4_protocol: u8,
    sport: u16,
    dport: u16,
    /// In: total length; out: the route's MTU.
    mtu: u16,
    ifindex: u32,
    tos: u32,
    src: [u32; 4],
    dst: [u32; 4],
    vlan: u32,
    macs: [u32; 3],
}
const _: () = assert!(size_of::<FibLookup>() == 64);

mod fib {
    pub const DIRECT: u32 = 1;
    pub const TBID: u32 = 1 << 3;
    pub const SKIP_NEIGH: u32 = 1 << 2;
    pub const SRC: u32 = 1 << 4;
    pub const SUCCESS: i64 = 0;
    pub const BLACKHOLE: i64 = 1;
    pub const UNREACHABLE: i64 = 2;
    pub const PROHIBIT: i64 = 3;
    pub const NOT_FORWARDED: i64 = 4;
    pub const NO_NEIGH: i64 = 7;
    pub const NO_SRC_ADDR: i64 = 9;
}

/// Asks for `scratch.query`; the answer is `scratch.route`. 0, or the number of a [`DropReason`].
#[inline(always)]
pub fn route<F: FamilyMaps>(ctx: *mut __sk_buff) -> u32 {
    let maps = Maps(ctx);
    let Some(Scratch { route, .. }) = <Maps as Tables<F>>::scratch(&maps) else {
        return DropReason::HelperFailed as u32;
    };
    let Some(params) = maps::FIB_LOOKUP.get_ptr_mut(0) else {
        return DropReason::HelperFailed as u32;
    };
    // SAFETY: this CPU's element.
    let params = unsafe { &mut *params };
    let mut flags = 0;
    if features::has(features::FIB_SKIP_NEIGH) {
        flags |= fib::SKIP_NEIGH;
    }
    if features::has(features::FIB_SRC) {
        flags |= fib::SRC;
    }
    let mut result = ask::<F>(ctx, 0, 0, flags);
    if F::VERSION == 6
        && let Some(config) = maps::CONFIG.get(0)
        && config.past_default_v6 != 0
        && is_reached(result)
    {
        // An answer that the kernel would have passed over, were it the main table's default route:
        // fib6_rule_suppress() looks at a result that only the stack's own lookup fills in. That
        // route itself is asked for, by a destination that no other route has.
        keep_answer_v6();
        let direct = ask::<F>(ctx, 1, 0, flags | fib::DIRECT);
        let (table, how) = if is_default_v6(direct as u32) == 0 {
            (0, 0)
        } else if config.past_default_v6 == NO_TABLE {
            return DropReason::NoRoute as u32;
        } else {
            (config.past_default_v6, fib::DIRECT | fib::TBID)
        };
        result = ask::<F>(ctx, 0, table, flags | how);
        if result < 0 && table != 0 {
            // Linux 6.1 knows no BPF_FIB_LOOKUP_TBID, and refuses.
            return DropReason::NoRoute as u32;
        }
    }
    match result {
        // The neighbour is resolved by bpf_redirect_neigh; a source address is looked for elsewhere.
        fib::SUCCESS | fib::NO_NEIGH | fib::NO_SRC_ADDR => {}
        fib::BLACKHOLE => return DropReason::Blackhole as u32,
        fib::UNREACHABLE | fib::NOT_FORWARDED => return DropReason::NoRoute as u32,
        fib::PROHIBIT => return DropReason::Prohibited as u32,
        _ => return DropReason::HelperFailed as u32,
    }
    route.oif = params.ifindex;
    route.mtu = u32::from(params.mtu);
    route.via = bytes(&params.dst);
    route.via_v6 = params.family == V6::AF;
    route.src = F::Addr::default();
    if features::has(features::FIB_SRC) && result == fib::SUCCESS {
        route.src = F::Addr::from_padded(&bytes(&params.src));
    }
    0
}

/// An address of 4000::/3, which IANA gives to nobody: only the default route leads there. (`::` is
/// no such: some distributions refuse `::/96` by a route.)
const NOBODY: [u32; 4] = [0x4000_0000u32.to_be(), 0, 0, 1u32.to_be()];

/// [`look_up`], for IPv6 in a function of its own: it is asked several times, and below the deepest
/// chain of calls.
#[inline(always)]
fn ask<F: FamilyMaps>(ctx: *mut __sk_buff, nobody: u32, table: u32, flags: u32) -> i64 {
    if F::VERSION == 6 {
        look_up_v6(ctx, nobody, table, flags)
    } else {
        look_up::<F>(ctx, nobody, table, flags)
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn look_up_v6(ctx: *mut __sk_buff, nobody: u32, table: u32, flags: u32) -> i64 {
    look_up::<V6>(ctx, nobody, table, flags)
}

/// One lookup, as the query says, or to [`NOBODY`]; `table`: of [`fib::TBID`]. The answer is in
/// `FIB_LOOKUP`.
#[inline(always)]
fn look_up<F: FamilyMaps>(ctx: *mut __sk_buff, nobody: u32, table: u32, flags: u32) -> i64 {
    let maps = Maps(ctx);
    let (Some(Scratch { query, .. }), Some(params)) = (
        <Maps as Tables<F>>::scratch(&maps),
        maps::FIB_LOOKUP.get_ptr_mut(0),
    ) else {
        return fib::NOT_FORWARDED;
    };
    // SAFETY: this CPU's element.
    let params = unsafe { &mut *params };
    params.family = F::AF;
    params.l4_protocol = query.proto;
    params.sport = u16::from_ne_bytes(query.sport);
    params.dport = u16::from_ne_bytes(query.dport);
    // Any length that fits: it makes the kernel tell the route's MTU.
    params.mtu = 1;
    params.ifindex = query.iif;
    // A byte for IPv4, the first word of the header for IPv6. Without its flow label, which a sender
    // may change in the middle of a flow: the choice among several next hops must not.
    params.tos = if F::VERSION == 4 {
        u32::from_ne_bytes([query.tos, 0, 0, 0])
    } else {
        (u32::from(query.tos) << 20).to_be()
    };
    params.src = words(&query.src);
    params.dst = if nobody == 0 {
        words(&query.dst)
    } else {
        NOBODY
    };
    params.vlan = table;
    let params = core::ptr::from_mut(params).cast();
    // SAFETY: `params` is `struct bpf_fib_lookup`, and its size is passed.
    unsafe { bpf_fib_lookup(ctx.cast::<c_void>(), params, 64, flags) }
}

/// Is there a way, and do the parameters tell it?
#[inline(always)]
const fn is_reached(result: i64) -> bool {
    matches!(result, fib::SUCCESS | fib::NO_NEIGH | fib::NO_SRC_ADDR)
}

/// Puts the first answer aside, into `scratch.route`.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn keep_answer_v6() -> u32 {
    let maps = Maps(core::ptr::null_mut());
    let (Some(Scratch { route, .. }), Some(params)) = (
        <Maps as Tables<V6>>::scratch(&maps),
        maps::FIB_LOOKUP.get_ptr_mut(0),
    ) else {
        return 0;
    };
    // SAFETY: this CPU's element.
    let params = unsafe { &*params };
    route.oif = params.ifindex;
    route.via = bytes(&params.dst);
    0
}

/// 1 if the first answer is the main table's default route, or may be. `result` and `FIB_LOOKUP` are
/// what a lookup of that says.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn is_default_v6(result: u32) -> u32 {
    let maps = Maps(core::ptr::null_mut());
    let (Some(Scratch { route, query, .. }), Some(params), Some(config)) = (
        <Maps as Tables<V6>>::scratch(&maps),
        maps::FIB_LOOKUP.get_ptr_mut(0),
        maps::CONFIG.get(0),
    ) else {
        return 1;
    };
    // SAFETY: this CPU's element.
    let params = unsafe { &*params };
    let result = i64::from(result as i32);
    let via = words(&V6Addr(route.via));
    let by_gateway = differ(via, words(&query.dst));
    u32::from(match result {
        fib::NOT_FORWARDED => false,
        // One of several: any gateway's way may be one.
        _ if config.flags & config_flag::DEFAULTS_V6 != 0 => by_gateway,
        // Without a gateway the next hop is the destination.
        _ if is_reached(result) => {
            params.ifindex == route.oif
                && (!differ(params.dst, via) || !by_gateway && !differ(params.dst, NOBODY))
        }
        // Somebody has a route for nobody's addresses: it cannot be told.
        _ => by_gateway,
    })
}

/// Without a call of memcmp.
#[inline(always)]
const fn differ(a: [u32; 4], b: [u32; 4]) -> bool {
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) != 0
}

/// The inverse of [`words`], padded.
#[inline(always)]
fn bytes(w: &[u32; 4]) -> [u8; 16] {
    let (a, b, c, d) = (
        w[0].to_ne_bytes(),
        w[1].to_ne_bytes(),
        w[2].to_ne_bytes(),
        w[3].to_ne_bytes(),
    );
    [
        a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2],
        d[3],
    ]
}
