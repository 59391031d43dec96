//! Checks that can be switched off one at a time, to prove that the test suite notices.
//!
//! Only the BPF object of `cargo xtask sabotage` contains the switch; everywhere else
//! [`enforced`] is the constant `true` and costs nothing.

/// A check that the suite must miss when it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Check {
    /// Containers of one bridge with `icc = false`.
    Icc = 1 << 0,
    /// Containers of different networks.
    Isolation = 1 << 1,
    /// Internal networks.
    Internal = 1 << 2,
    /// Foreign source addresses of containers.
    Spoof = 1 << 3,
    /// Packets from outside to a container address.
    DirectRouting = 1 << 4,
    /// Bridge guard.
    Guard = 1 << 5,
    /// Ports published on a loopback address.
    Loopback = 1 << 6,
    /// Impossible sources.
    Martian = 1 << 7,
    /// Strict reverse path.
    ReversePath = 1 << 8,
    /// VLAN tags from containers.
    Vlan = 1 << 9,
    /// Destination MAC before address.
    MacFirst = 1 << 10,
    /// OTHERHOST frames on uplinks.
    OtherHost = 1 << 11,
    /// Source NAT.
    Masquerade = 1 << 12,
    /// Host listeners win over publishes.
    HostListener = 1 << 13,
    /// The stack's own forwarding to a container.
    Forwarded = 1 << 14,
    /// Flows that an IPsec policy covers.
    Ipsec = 1 << 15,
}

impl Check {
    /// All checks with the names that `cargo xtask sabotage` knows them by.
    pub const ALL: &[(&'static str, Self)] = &[
        ("icc", Self::Icc),
        ("isolation", Self::Isolation),
        ("internal", Self::Internal),
        ("spoof", Self::Spoof),
        ("direct-routing", Self::DirectRouting),
        ("guard", Self::Guard),
        ("loopback", Self::Loopback),
        ("martian", Self::Martian),
        ("reverse-path", Self::ReversePath),
        ("vlan", Self::Vlan),
        ("mac-first", Self::MacFirst),
        ("other-host", Self::OtherHost),
        ("masquerade", Self::Masquerade),
        ("host-listener", Self::HostListener),
        ("forwarded", Self::Forwarded),
        ("ipsec", Self::Ipsec),
    ];
}

/// Checks switched off, as a mask of [`Check`] bits; the loader writes it.
#[cfg(feature = "sabotage")]
#[unsafe(no_mangle)]
pub static SABOTAGE: u32 = 0;

/// Is this check in force?
#[inline(always)]
#[must_use]
pub fn enforced(check: Check) -> bool {
    #[cfg(feature = "sabotage")]
    {
        // SAFETY: a static u32 that the loader may have overwritten before the program was loaded.
        let mask = unsafe { core::ptr::read_volatile(&raw const SABOTAGE) };
        mask & check as u32 == 0
    }
    #[cfg(not(feature = "sabotage"))]
    {
        let _ = check;
        true
    }
}
