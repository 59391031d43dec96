//! Wire types as aya sees them.

use netd_common::wire::Wire;

/// A type of the ABI that aya may copy to and from a map.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct Pod<T>(pub(super) T);

// SAFETY: `Wire` promises plain data without padding, and the wrapper is transparent.
unsafe impl<T: Wire> aya::Pod for Pod<T> {}
