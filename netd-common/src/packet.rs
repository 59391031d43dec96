//! Where the bytes of a packet live: an skb in the kernel, a slice in a test.

use crate::{
    answer::Buffer,
    checksum::Diff,
    drop::DropReason,
    wire::{Eth, Wire},
};

/// How an L4 checksum is updated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L4Checksum {
    /// The change is of the pseudo header (addresses), not of the payload (ports).
    pub pseudo_header: bool,
    /// UDP: zero means "no checksum" and stays; a result of zero is written as 0xffff (RFC 768).
    pub udp: bool,
    /// The IP header has no checksum that compensates the change.
    pub ipv6: bool,
}

/// Offsets at or beyond this are never accessed: no chain of headers that is followed is so long.
pub const MAX_OFFSET: u32 = 0x800;

/// Access to a packet. Offsets count from the first byte the hook sees.
#[expect(clippy::len_without_is_empty, reason = "no hook sees an empty packet")]
pub trait Packet {
    /// Length of the packet in bytes; of a GSO packet, of the whole.
    fn len(&self) -> u32;

    /// Payload bytes per segment of a GSO packet, 0 for an ordinary one.
    fn gso_size(&self) -> u32;

    /// Reads bytes.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] beyond the directly readable part: see [`Packet::pull`].
    fn read<T: Wire>(&self, offset: u32) -> Result<T, DropReason>;

    /// Writes bytes.
    ///
    /// # Errors
    /// [`DropReason::HelperFailed`] beyond the directly readable part.
    fn write<T: Wire>(&mut self, offset: u32, value: T) -> Result<(), DropReason>;

    /// Does each segment of this GSO packet fit the interface's MTU?
    fn segments_fit(&self, ifindex: u32) -> bool;

    /// Makes the first `len` bytes directly readable. The kernel keeps as little as 34 bytes of
    /// a packet in one piece.
    fn pull(&mut self, len: u32) -> bool;

    /// Updates the L4 checksum field at `offset` for a change of bytes that it covers.
    ///
    /// # Errors
    /// [`DropReason::HelperFailed`] beyond the packet.
    fn l4_checksum(&mut self, offset: u32, change: Diff, how: L4Checksum)
    -> Result<(), DropReason>;

    /// Copies `length` bytes from `offset` on, wherever they lie, into words of the buffer; what is
    /// left of the last word is zero.
    fn copy_to(&self, offset: u32, length: u32, buffer: &mut Buffer, word: usize) -> bool {
        let _ = (offset, length, buffer, word);
        false
    }

    /// Becomes another packet: the `length` bytes of the buffer from byte `start` on. It is no GSO
    /// packet any more, and its checksums are complete. `false`: it could not be done, and what the
    /// packet holds now is of no use.
    fn replace(&mut self, buffer: &Buffer, start: u32, length: u32) -> bool {
        let _ = (buffer, start, length);
        false
    }

    /// Puts an Ethernet header in front of a packet that has none. Offsets count from it from now on.
    ///
    /// # Errors
    /// [`DropReason::HelperFailed`] where there is no memory for it.
    fn push_ethernet(&mut self, header: Eth) -> Result<(), DropReason>;

    /// Ends after `length` bytes. `false`: something that a device is still to do to the packet lies
    /// beyond, and nothing was changed.
    fn truncate(&mut self, length: u32) -> bool {
        let _ = length;
        false
    }

    /// Has the device do nothing more to a packet of `length` bytes: no segments, no checksum. What
    /// follows the IP header is lost.
    fn forget_offload(&mut self, length: u32) -> bool {
        let _ = length;
        false
    }

    /// Ends with `length` bytes of the buffer, from byte `start` on, which follow after `at` bytes.
    fn set_payload(&mut self, at: u32, buffer: &Buffer, start: u32, length: u32) -> bool {
        let _ = (at, buffer, start, length);
        false
    }

    /// Sends a copy out of this interface, as it is.
    fn send_copy(&mut self, ifindex: u32) -> bool {
        let _ = ifindex;
        false
    }

    /// Tells of a change that no checksum in the packet makes up for. A device may have summed
    /// the whole packet (CHECKSUM_COMPLETE), and that sum must follow. Carriers without such a sum
    /// have nothing to do.
    #[inline(always)]
    fn complete_sum(&mut self, change: Diff) {
        let _ = change;
    }
}

/// [`Packet::read`] of a packet in memory.
pub(crate) fn read<T: Wire>(packet: &[u8], offset: u32) -> Result<T, DropReason> {
    if offset >= MAX_OFFSET {
        return Err(DropReason::Malformed);
    }
    let bytes = packet
        .get(offset as usize..)
        .and_then(|bytes| bytes.get(..size_of::<T>()));
    let bytes = bytes.ok_or(DropReason::Malformed)?;
    // SAFETY: `bytes` is size_of::<T>() long and `Wire` types accept any bytes.
    Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// [`Packet::copy_to`] of a packet in memory.
#[cfg(any(test, feature = "model"))]
pub(crate) fn copy_to(
    packet: &[u8],
    offset: u32,
    length: u32,
    buffer: &mut Buffer,
    word: usize,
) -> bool {
    let Some(bytes) = packet.get(offset as usize..(offset + length) as usize) else {
        return false;
    };
    if !length.is_multiple_of(4)
        && let Some(last) = buffer.words.get_mut(word + length as usize / 4)
    {
        *last = 0;
    }
    for (i, byte) in bytes.iter().enumerate() {
        let Some(at) = buffer.words.get_mut(word + i / 4) else {
            return false;
        };
        let mut word = at.to_ne_bytes();
        word[i % 4] = *byte;
        *at = u32::from_ne_bytes(word);
    }
    true
}

/// A packet in memory, which cannot grow.
pub struct SlicePacket<'a>(pub &'a mut [u8]);

impl Packet for SlicePacket<'_> {
    fn len(&self) -> u32 {
        self.0.len() as u32
    }

    fn gso_size(&self) -> u32 {
        0
    }

    fn segments_fit(&self, _: u32) -> bool {
        true
    }

    fn read<T: Wire>(&self, offset: u32) -> Result<T, DropReason> {
        read(self.0, offset)
    }

    fn write<T: Wire>(&mut self, offset: u32, value: T) -> Result<(), DropReason> {
        let bytes = self
            .0
            .get_mut(offset as usize..)
            .and_then(|b| b.get_mut(..size_of::<T>()));
        let bytes = bytes.ok_or(DropReason::HelperFailed)?;
        // SAFETY: `bytes` is size_of::<T>() long, and a `Wire` type has no padding.
        unsafe { bytes.as_mut_ptr().cast::<T>().write_unaligned(value) };
        Ok(())
    }

    fn pull(&mut self, len: u32) -> bool {
        len <= self.len()
    }

    fn push_ethernet(&mut self, _: Eth) -> Result<(), DropReason> {
        Err(DropReason::HelperFailed)
    }

    fn l4_checksum(
        &mut self,
        offset: u32,
        change: Diff,
        how: L4Checksum,
    ) -> Result<(), DropReason> {
        let old: [u8; 2] = self.read(offset).map_err(|_| DropReason::HelperFailed)?;
        if how.udp && old == [0, 0] {
            return Ok(());
        }
        let new = change.apply(old);
        self.write(
            offset,
            if how.udp && new == [0, 0] {
                [0xff, 0xff]
            } else {
                new
            },
        )
    }
}
