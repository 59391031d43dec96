//! One packet in the place of another.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_adj_room_mode::BPF_ADJ_ROOM_NET},
    helpers::generated::{bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_store_bytes},
};
use netd_common::answer::Buffer;

use crate::skb::bounded;

/// Bytes behind the packet while it is turned over, more than the headers that stay.
const ROOM: u32 = 64;
/// Headers that [`bpf_skb_adjust_room`] never takes away, at least: an IPv4 header.
const STAYS_V4: u32 = 20;
const STAYS_V6: u32 = 40;

/// Puts `length` bytes of the buffer, from byte `start` on, in the packet's place.
///
/// What the skb says of the old packet must not be done to the new one:
/// - A GSO packet would be cut into segments: bpf_skb_change_tail ends that (skb_gso_reset).
/// - A packet of a container says CHECKSUM_PARTIAL, and the device would write a checksum into the
///   middle of the new one. No helper says otherwise, but one does it by the way: when bytes beyond
///   `csum_start` are taken away in front, skb_postpull_rcsum finds that `csum_start` is gone and
///   makes it CHECKSUM_NONE. So everything between the headers that must stay and the end goes, and
///   comes back as zeros; the tail is made longer first, so that more goes than the packet is long.
/// - CHECKSUM_COMPLETE ends where the tail grows (bpf_skb_grow_rcsum).
#[inline(always)]
pub fn replace(ctx: *mut __sk_buff, buffer: &Buffer, start: u32, length: u32) -> bool {
    let length = bounded(length);
    // SAFETY: the context outlives the program.
    if unsafe { bpf_skb_change_tail(ctx, length, 0) } != 0 || !turn_over(ctx, length) {
        return false;
    }
    let from = (&raw const buffer.words)
        .cast::<u8>()
        .wrapping_add(start as usize);
    // SAFETY: the context outlives the program, and the buffer is as long as `bounded` lets through.
    unsafe { bpf_skb_store_bytes(ctx, 0, from.cast(), length, 0) == 0 }
}

/// Takes everything between the headers that must stay and the end of a packet of `length` bytes
/// away, and puts zeros there: see [`replace`].
#[inline(always)]
pub fn turn_over(ctx: *mut __sk_buff, length: u32) -> bool {
    // SAFETY: the context outlives the program.
    let ipv6 = unsafe { (*ctx).protocol } == u32::from(0x86ddu16.to_be());
    let stays = 14 + if ipv6 { STAYS_V6 } else { STAYS_V4 };
    if length < stays {
        return false;
    }
    let turned = (length + ROOM - stays) as i32;
    // SAFETY: the context outlives the program.
    unsafe {
        bpf_skb_change_tail(ctx, length + ROOM, 0) == 0
            && bpf_skb_adjust_room(ctx, -turned, BPF_ADJ_ROOM_NET, 0) == 0
            && bpf_skb_adjust_room(ctx, turned, BPF_ADJ_ROOM_NET, 0) == 0
            && bpf_skb_change_tail(ctx, length, 0) == 0
    }
}
