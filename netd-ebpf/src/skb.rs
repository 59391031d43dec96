//! The packet inside an skb.
//!
//! Bytes are read and written directly; writing directly makes the verifier put
//! `bpf_unclone_prologue` in front of the program, which costs one test of a bit unless the skb is
//! cloned. L4 checksums go through the kernel's helpers, which alone know whether the field holds
//! a checksum, a pseudo-header sum for the NIC to complete (CHECKSUM_PARTIAL), or whether the NIC
//! has summed the packet (CHECKSUM_COMPLETE).

use core::arch::asm;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_check_mtu_flags::BPF_MTU_CHK_SEGS,
    },
    helpers::generated::{
        bpf_check_mtu, bpf_clone_redirect, bpf_csum_update, bpf_l4_csum_replace,
        bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_pull_data,
        bpf_skb_store_bytes,
    },
};
use netd_common::{
    answer::{Buffer, QUOTE_ROOM},
    checksum::Diff,
    drop::DropReason,
    packet::{L4Checksum, MAX_OFFSET, Packet},
    wire::{ETH_LEN, Eth, Wire},
};

use crate::{access, features};

/// `BPF_F_IPV6` of `bpf_l4_csum_replace` (Linux 6.16, commit ead7f9b8de65).
const BPF_F_IPV6: u64 = 1 << 7;

/// An skb at a tc hook.
pub struct Skb(pub *mut __sk_buff);

impl Skb {
    /// A pointer to `T` at `offset`, if that lies in the linear part. The packet's bounds are
    /// loaded anew each time, for a helper may have moved them.
    #[inline(always)]
    fn at<T>(&self, offset: u32) -> Option<*mut T> {
        if offset >= MAX_OFFSET {
            return None;
        }
        // SAFETY: the context outlives the program.
        let (data, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        let mut offset = offset as usize;
        // SAFETY: arithmetic. The mask changes nothing; it tells the verifier what the comparison
        // told us, and keeps LLVM from moving a constant part of the offset past it.
        unsafe { asm!("{0} &= {1}", inout(reg) offset, const MAX_OFFSET - 1) };
        let pointer = (data as *mut u8).wrapping_add(offset);
        if pointer.wrapping_add(size_of::<T>()) as usize > end {
            return None;
        }
        Some(pointer.cast())
    }
}

/// A length that is between 1 and [`QUOTE_ROOM`] anyway, in a form that the verifier understands:
/// that of Linux 6.1 learns nothing from a comparison with zero.
#[inline(always)]
pub fn bounded(length: u32) -> u32 {
    let mut length = u64::from(length.wrapping_sub(1));
    // SAFETY: arithmetic, which changes nothing.
    unsafe { asm!("{0} &= {1}", inout(reg) length, const QUOTE_ROOM - 1) };
    length as u32 + 1
}

/// Does each segment fit the interface's MTU? A function of its own, for its few bytes of stack.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn segments_fit(ctx: *mut __sk_buff, ifindex: u32) -> u32 {
    let mut length = 0u32;
    // SAFETY: the context outlives the program; `length` outlives the call.
    let result = unsafe {
        bpf_check_mtu(
            ctx.cast(),
            ifindex,
            &mut length,
            0,
            u64::from(BPF_MTU_CHK_SEGS),
        )
    };
    u32::from(result == 0)
}

impl Packet for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context outlives the program.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        // SAFETY: the context outlives the program.
        unsafe { (*self.0).gso_size }
    }

    #[inline(always)]
    fn segments_fit(&self, ifindex: u32) -> bool {
        segments_fit(self.0, ifindex) != 0
    }

    #[inline(always)]
    fn read<T: Wire>(&self, offset: u32) -> Result<T, DropReason> {
        let pointer = self.at::<T>(offset).ok_or(DropReason::Malformed)?;
        // SAFETY: in bounds, and `Wire` types accept any bytes.
        Ok(unsafe { access::load(pointer) })
    }

    #[inline(always)]
    fn write<T: Wire>(&mut self, offset: u32, value: T) -> Result<(), DropReason> {
        let pointer = self.at::<T>(offset).ok_or(DropReason::HelperFailed)?;
        // SAFETY: in bounds, and a `Wire` type has no padding.
        unsafe { access::store(pointer, value) };
        Ok(())
    }

    #[inline(always)]
    fn pull(&mut self, len: u32) -> bool {
        // SAFETY: the context outlives the program.
        unsafe { bpf_skb_pull_data(self.0, len) == 0 }
    }

    #[inline(always)]
    fn l4_checksum(
        &mut self,
        offset: u32,
        change: Diff,
        how: L4Checksum,
    ) -> Result<(), DropReason> {
        let mut flags = 0;
        if how.pseudo_header {
            flags |= u64::from(BPF_F_PSEUDO_HDR);
        }
        if how.udp {
            flags |= u64::from(BPF_F_MARK_MANGLED_0);
        }
        let v6_pseudo = how.ipv6 && how.pseudo_header;
        let knows_v6 = features::has(features::CSUM_IPV6);
        if v6_pseudo && knows_v6 {
            flags |= BPF_F_IPV6;
        }
        let diff = change.wsum();
        // SAFETY: the context outlives the program. A size of 0 in the flags: `diff` is a
        // difference, and `from` is not used.
        if unsafe { bpf_l4_csum_replace(self.0, offset, 0, u64::from(diff), flags) } != 0 {
            return Err(DropReason::HelperFailed);
        }
        if v6_pseudo && !knows_v6 {
            // The helper took an IPv4 header for granted, whose own checksum would make up for the
            // change, and took it out of a CHECKSUM_COMPLETE sum: put it back. On any other skb
            // this fails and changes nothing.
            // SAFETY: the context outlives the program.
            unsafe { bpf_csum_update(self.0, diff) };
        }
        Ok(())
    }

    #[inline(always)]
    fn copy_to(&self, offset: u32, length: u32, buffer: &mut Buffer, word: usize) -> bool {
        let Some(to) = buffer.words.get_mut(word) else {
            return false;
        };
        let length = bounded(length);
        let last = core::ptr::from_mut(to).wrapping_byte_add(length as usize & !3);
        if !length.is_multiple_of(4) {
            // SAFETY: the buffer has room for what `bounded` lets through after the word.
            unsafe { last.write(0) };
        }
        // SAFETY: as above.
        length != 0
            && unsafe {
                bpf_skb_load_bytes(
                    self.0.cast(),
                    offset,
                    core::ptr::from_mut(to).cast(),
                    length,
                ) == 0
            }
    }

    #[inline(always)]
    fn truncate(&mut self, length: u32) -> bool {
        // Refuses what would cut off a checksum that the device is to complete (__bpf_skb_min_len).
        // SAFETY: the context outlives the program.
        unsafe { bpf_skb_change_tail(self.0, length, 0) == 0 }
    }

    #[inline(always)]
    fn forget_offload(&mut self, length: u32) -> bool {
        crate::replace::turn_over(self.0, length)
    }

    #[inline(always)]
    fn set_payload(&mut self, at: u32, buffer: &Buffer, start: u32, length: u32) -> bool {
        let (start, length) = (bounded(start), bounded(length));
        let from = (&raw const buffer.words)
            .cast::<u8>()
            .wrapping_add(start as usize);
        // SAFETY: the context outlives the program; the verifier knows the buffer's bounds.
        length != 0
            && unsafe {
                bpf_skb_change_tail(self.0, at + length, 0) == 0
                    && bpf_skb_store_bytes(self.0, at, from.cast(), length, 0) == 0
            }
    }

    #[inline(always)]
    fn send_copy(&mut self, ifindex: u32) -> bool {
        // SAFETY: the context outlives the program.
        unsafe { bpf_clone_redirect(self.0, ifindex, 0) == 0 }
    }

    #[inline(always)]
    fn replace(&mut self, buffer: &Buffer, start: u32, length: u32) -> bool {
        crate::replace::replace(self.0, buffer, start, length)
    }

    #[inline(always)]
    fn push_ethernet(&mut self, header: Eth) -> Result<(), DropReason> {
        // SAFETY: the context outlives the program.
        if unsafe { bpf_skb_change_head(self.0, ETH_LEN, 0) } != 0 {
            return Err(DropReason::HelperFailed);
        }
        self.write(0, header)
    }

    #[inline(always)]
    fn complete_sum(&mut self, change: Diff) {
        // Fails on any skb without such a sum, and changes nothing there.
        // SAFETY: the context outlives the program.
        unsafe { bpf_csum_update(self.0, change.wsum()) };
    }
}
