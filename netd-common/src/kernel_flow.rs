//! Flows that the kernel's own NAT owned when netd came.
//!
//! The daemon reads them from nf_conntrack and writes both tuples of each into `KERNEL_FLOWS_*`.
//! A packet that bears such a tuple has no flow of netd's and must get none: netd would translate
//! it to another port, and the far end would take it for a stranger's. It is passed until the
//! kernel must have forgotten the flow, which is judged by what passes here: netd sees every packet
//! of both directions where it enters the host.

use crate::{
    abi::{Config, Tuple, config_flag, kernel_flow_flag as flag},
    conntrack::{State, idle},
    tables::{KernelSlot, Tables},
    wire::{Family, proto, tcp_flag},
};

/// Seconds that a connection with a FIN or RST may be idle; never more than its own lifetime. The
/// kernel gives it at most two minutes (`nf_conntrack_tcp_timeout_*`); a forged RST, which the
/// kernel sees through by its sequence number, should not end a connection that goes on.
const CLOSING_LIFETIME: u32 = State::Closing.lifetime();

/// Are there flows of the kernel's at all? Where not, no packet asks for one.
#[must_use]
#[inline(always)]
pub const fn any(config: &Config) -> bool {
    config.flags & config_flag::KERNEL_FLOWS != 0
}

/// Does the kernel own the flow of a packet that arrives with this tuple? `tcp_flags`: those of the
/// packet, which is counted as one of the flow's. `passing` is overwritten.
///
/// A bare SYN on the tuple of a connection that both sides have closed, or one has reset, opens
/// another (RFC 9293 §3.6.1), which is not the kernel's any more.
#[must_use]
#[inline(always)]
pub fn owns_arriving<F: Family, T: Tables<F>>(
    tables: &T,
    key: &Tuple<F::Addr>,
    passing: &mut Tuple<F::Addr>,
    tcp_flags: u8,
) -> bool {
    let Some(slot) = tables.kernel_flow(key) else {
        return false;
    };
    *passing = slot.other();
    let other = tables.kernel_flow(passing);
    let now = tables.now();
    let tcp = key.proto == proto::TCP;
    if expired(&slot, &other, now) || tcp && opens(tcp_flags) && is_closed(&slot, &other) {
        return false;
    }
    slot.set_last_seen(now);
    if tcp {
        let flags = slot.flags();
        let next = flags_after(flags, tcp_flags);
        if next != flags {
            slot.set_flags(next);
        }
    }
    true
}

/// Does the kernel own the flow of a packet that the kernel has already translated and forwards
/// with this tuple, `reversed`? It was counted where it arrived. `passing` is overwritten.
#[must_use]
#[inline(always)]
pub fn owns_forwarded<F: Family, T: Tables<F>>(
    tables: &T,
    reversed: &Tuple<F::Addr>,
    passing: &mut Tuple<F::Addr>,
) -> bool {
    let Some(slot) = tables.kernel_flow(reversed) else {
        return false;
    };
    *passing = slot.other();
    !expired(&slot, &tables.kernel_flow(passing), tables.now())
}

/// Is the tuple of replies one by which the kernel knows a flow? No flow of netd's may have it as
/// well. An entry that has expired but is still there counts: another port is as good.
#[must_use]
#[inline(always)]
pub fn reserves<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    key: &Tuple<F::Addr>,
) -> bool {
    any(config) && tables.kernel_flow(key).is_some()
}

/// Seconds that a flow may be idle, by its lifetime and the flags of both its directions.
#[must_use]
#[inline(always)]
pub const fn lifetime(lifetime: u32, flags: u32) -> u32 {
    if flags & (flag::FIN | flag::RST) != 0 && lifetime > CLOSING_LIFETIME {
        CLOSING_LIFETIME
    } else {
        lifetime
    }
}

#[inline(always)]
fn expired<A: Copy>(slot: &KernelSlot<A>, other: &Option<KernelSlot<A>>, now: u32) -> bool {
    let mut flags = slot.flags();
    let mut since = idle(now, slot.last_seen());
    if let Some(other) = other {
        flags |= other.flags();
        let others = idle(now, other.last_seen());
        if others < since {
            since = others;
        }
    }
    since > lifetime(slot.lifetime(), flags)
}

#[inline(always)]
fn is_closed<A: Copy>(slot: &KernelSlot<A>, other: &Option<KernelSlot<A>>) -> bool {
    let own = slot.flags();
    let others = match other {
        Some(other) => other.flags(),
        None => own,
    };
    (own | others) & flag::RST != 0 || own & others & flag::FIN != 0
}

#[inline(always)]
const fn opens(tcp_flags: u8) -> bool {
    tcp_flags & (tcp_flag::SYN | tcp_flag::ACK | tcp_flag::RST | tcp_flag::FIN) == tcp_flag::SYN
}

/// A direction's flags after a segment of it. Who goes on sending after a RST has not sent it; a SYN
/// does not go on.
#[inline(always)]
const fn flags_after(flags: u32, segment: u8) -> u32 {
    if segment & tcp_flag::RST != 0 {
        flags | flag::RST
    } else if segment & tcp_flag::FIN != 0 {
        flags & !flag::RST | flag::FIN
    } else if segment & tcp_flag::SYN != 0 {
        flags
    } else {
        flags & !flag::RST
    }
}
