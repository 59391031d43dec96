//! Counting verdicts and drops.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_NOEXIST},
    helpers::generated::bpf_ktime_get_coarse_ns,
};
use netd_common::{
    abi::{
        AnyTuple, DROP_EVENTS_PER_SECOND, DROP_SLOT_SECONDS, DROP_SLOTS, DropEvent, DropSlot,
        NAT_EVENTS_PER_SECOND, NatPressure,
    },
    host_access::answer,
    pipeline::{Meta, Verdict, any_tuple, drop_key},
    tables::Tables,
    wire::{V4, V6},
};

use crate::{maps, tables::Maps};

/// Counts a packet that was not dropped.
#[inline(always)]
pub fn passed(hook: u8) {
    if let Some(v) = maps::VERDICTS.get_ptr_mut(u32::from(hook)) {
        // SAFETY: this CPU's element.
        unsafe { (*v).passed += 1 };
    }
}

/// Counts a packet that was redirected.
#[inline(always)]
pub fn redirected(hook: u8, slow: bool) {
    if let Some(v) = maps::VERDICTS.get_ptr_mut(u32::from(hook)) {
        // SAFETY: this CPU's element.
        unsafe {
            if slow {
                (*v).decided += 1;
            } else {
                (*v).forwarded += 1;
            }
        }
    }
}

/// Counts a call of a socket by what was made of it, a [`answer`].
#[inline(always)]
pub fn called(hook: u8, what: u32) {
    if let Some(v) = maps::VERDICTS.get_ptr_mut(u32::from(hook)) {
        // SAFETY: this CPU's element. (A process that is moved while it runs may lose a count.)
        unsafe {
            match what {
                answer::LEAVE => (*v).passed += 1,
                answer::TRANSLATE => (*v).decided += 1,
                _ => (*v).dropped += 1,
            }
        }
    }
}

/// Counts a dropped packet by reason, hook, interface and network, and samples it. A global
/// function, like those in `subprograms`.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn count_drop(ctx: *mut __sk_buff, hook: u32, verdict: u64) -> u32 {
    let maps = &Maps(ctx);
    let verdict = Verdict(verdict);
    // SAFETY: the context outlives the program.
    let (ifindex, length) = unsafe { ((*ctx).ifindex, (*ctx).len) };
    let meta = &Meta {
        ifindex,
        hook: hook as u8,
        ..Meta::default()
    };
    if let Some(v) = maps::VERDICTS.get_ptr_mut(u32::from(meta.hook)) {
        // SAFETY: this CPU's element.
        unsafe { (*v).dropped += 1 };
    }
    #[cfg(feature = "log")]
    crate::log::log_drop(ctx, hook, verdict.0);
    let key = drop_key(verdict, meta);
    let count = match maps::DROPS.get_ptr_mut(key) {
        Some(count) => count,
        None => {
            let Some(zero) = maps::DROP_ZERO.get(0) else {
                return 0;
            };
            let _ = maps::DROPS.insert(key, zero, u64::from(BPF_NOEXIST));
            let Some(count) = maps::DROPS.get_ptr_mut(key) else {
                return 0;
            };
            count
        }
    };
    let now = <Maps as Tables<V4>>::now(maps);
    let number = now / DROP_SLOT_SECONDS;
    // SAFETY: this CPU's value of a per-CPU map.
    let count = unsafe { &mut *count };
    count.total += 1;
    count.last_seen = now;
    match verdict.family() {
        4 => {
            if let Some(scratch) = <Maps as Tables<V4>>::scratch(maps) {
                any_tuple::<V4>(&scratch.parsed, &mut count.last);
            }
        }
        6 => {
            if let Some(scratch) = <Maps as Tables<V6>>::scratch(maps) {
                any_tuple::<V6>(&scratch.parsed, &mut count.last);
            }
        }
        _ => {}
    }
    if let Some(slot) = count.slots.get_mut(number as usize % DROP_SLOTS) {
        if slot.number != number {
            slot.number = number;
            slot.count = 0;
        }
        slot.count += 1;
    }
    sample(now, length, meta, verdict, &count.last);
    0
}

#[inline(always)]
fn sample(now: u32, length: u32, meta: &Meta, verdict: Verdict, tuple: &AnyTuple) {
    let sampler = maps::DROP_SAMPLER.get_ptr_mut(0);
    if !is_sampled(sampler, now, DROP_EVENTS_PER_SECOND) {
        return;
    }
    if let Some(mut event) = maps::DROP_EVENTS.reserve(0) {
        event.write(DropEvent {
            seen: now,
            length,
            key: drop_key(verdict, meta),
            tuple: *tuple,
        });
        event.submit(0);
    }
}

/// Tells the daemon that source ports run out.
#[inline(always)]
pub fn nat_pressure(pressure: NatPressure) {
    // SAFETY: no arguments.
    let now = (unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000_000) as u32;
    if !is_sampled(maps::NAT_SAMPLER.get_ptr_mut(0), now, NAT_EVENTS_PER_SECOND) {
        return;
    }
    if let Some(mut event) = maps::NAT_EVENTS.reserve(0) {
        event.write(pressure);
        event.submit(0);
    }
}

/// Is this one of the first `limit` events of the second `now`?
#[inline(always)]
fn is_sampled(sampler: Option<*mut DropSlot>, now: u32, limit: u32) -> bool {
    let Some(sampler) = sampler else {
        return false;
    };
    // SAFETY: this CPU's element.
    let sampler = unsafe { &mut *sampler };
    if sampler.number != now {
        sampler.number = now;
        sampler.count = 0;
    }
    if sampler.count >= limit {
        return false;
    }
    sampler.count += 1;
    true
}
