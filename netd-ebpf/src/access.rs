//! Moving headers between the packet and registers, a word at a time.
//!
//! Nothing in a packet is aligned. The kernel lets a program load any word from it all the same,
//! but LLVM, asked for an unaligned load, emits one instruction for every byte. So the loads are
//! spelt out.

use core::{arch::asm, mem::MaybeUninit};

/// The largest header that is read at once, in words.
const WORDS: usize = 10;

macro_rules! piece {
    ($load:ident, $store:ident, $ty:ty, $c:literal) => {
        /// # Safety
        /// `from + OFFSET` must be readable.
        #[inline(always)]
        unsafe fn $load<const OFFSET: usize>(from: *const u8) -> $ty {
            let value: u64;
            // SAFETY: the caller's.
            unsafe {
                asm!(concat!("{0} = *(", $c, " *)({1} + {2})"), out(reg) value, in(reg) from, const OFFSET,
                     options(pure, readonly, nostack, preserves_flags));
            }
            value as $ty
        }

        /// # Safety
        /// `to + OFFSET` must be writable.
        #[inline(always)]
        unsafe fn $store<const OFFSET: usize>(to: *mut u8, value: $ty) {
            // SAFETY: the caller's.
            unsafe {
                asm!(concat!("*(", $c, " *)({0} + {1}) = {2}"), in(reg) to, const OFFSET, in(reg) u64::from(value),
                     options(nostack, preserves_flags));
            }
        }
    };
}
piece!(load_word, store_word, u32, "u32");
piece!(load_half, store_half, u16, "u16");
piece!(load_byte, store_byte, u8, "u8");

/// Runs `$body` for each whole word, then for the half and the byte that are left.
macro_rules! pieces {
    ($size:expr, $word:ident, $half:ident, $byte:ident, [$($i:literal)*]) => {{
        const { assert!($size / 4 <= WORDS) };
        $(
            if $size >= $i * 4 + 4 { $word!($i * 4); }
            if $size >= $i * 4 + 2 && $size < $i * 4 + 4 { $half!($i * 4); }
            if $size == $i * 4 + 1 { $byte!($i * 4); }
            if $size == $i * 4 + 3 { $byte!($i * 4 + 2); }
        )*
    }};
}

/// Reads a header.
///
/// # Safety
/// `size_of::<T>()` bytes at `from` must be readable, and any bytes must be a valid `T`.
#[inline(always)]
pub unsafe fn load<T: Copy>(from: *const T) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    let (from, to) = (from.cast::<u8>(), value.as_mut_ptr().cast::<u8>());
    macro_rules! word {
        ($o:expr) => {
            // SAFETY: within both.
            unsafe {
                to.add($o)
                    .cast::<u32>()
                    .write_unaligned(load_word::<{ $o }>(from))
            }
        };
    }
    macro_rules! half {
        ($o:expr) => {
            // SAFETY: within both.
            unsafe {
                to.add($o)
                    .cast::<u16>()
                    .write_unaligned(load_half::<{ $o }>(from))
            }
        };
    }
    macro_rules! byte {
        ($o:expr) => {
            // SAFETY: within both.
            unsafe { to.add($o).write(load_byte::<{ $o }>(from)) }
        };
    }
    pieces!(size_of::<T>(), word, half, byte, [0 1 2 3 4 5 6 7 8 9]);
    // SAFETY: every byte is written.
    unsafe { value.assume_init() }
}

/// Writes a header.
///
/// # Safety
/// `size_of::<T>()` bytes at `to` must be writable, and `T` must have no padding.
#[inline(always)]
pub unsafe fn store<T: Copy>(to: *mut T, value: T) {
    let (to, from) = (to.cast::<u8>(), (&raw const value).cast::<u8>());
    macro_rules! word {
        ($o:expr) => {
            // SAFETY: within both.
            unsafe { store_word::<{ $o }>(to, from.add($o).cast::<u32>().read_unaligned()) }
        };
    }
    macro_rules! half {
        ($o:expr) => {
            // SAFETY: within both.
            unsafe { store_half::<{ $o }>(to, from.add($o).cast::<u16>().read_unaligned()) }
        };
    }
    macro_rules! byte {
        ($o:expr) => {
            // SAFETY: within both.
            unsafe { store_byte::<{ $o }>(to, from.add($o).read()) }
        };
    }
    pieces!(size_of::<T>(), word, half, byte, [0 1 2 3 4 5 6 7 8 9]);
}
