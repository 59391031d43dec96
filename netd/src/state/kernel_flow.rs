//! Flows that the kernel's NAT owned when netd came.

use netd_common::abi::{Config, KernelFlow, Tuple, V4Addr, V6Addr, map};
use netd_common::kernel_flow;

use super::{State, StateError};

/// How many of them there still are: those that the programs pass for that reason.
///
/// # Errors
/// What the kernel says.
pub fn count(state: &State, config: &Config) -> Result<usize, StateError> {
    if !kernel_flow::any(config) {
        return Ok(0);
    }
    let mut entries = 0;
    state.for_each(
        map::KERNEL_FLOWS_V4,
        |_: Tuple<V4Addr>, _: KernelFlow<V4Addr>| {
            entries += 1;
        },
    )?;
    state.for_each(
        map::KERNEL_FLOWS_V6,
        |_: Tuple<V6Addr>, _: KernelFlow<V6Addr>| {
            entries += 1;
        },
    )?;
    Ok(entries / 2)
}
