//! The benchmark's own BPF programs: loading them, and talking to their maps.

use anyhow::{Context as _, anyhow};
use aya::Ebpf;
use aya::maps::Array;
use aya::programs::{SchedClassifier, TcAttachType, tc};
use netd::lab::Namespace;

#[path = "../../netd-ebpf/src/bin/bench/abi.rs"]
pub mod abi;

use abi::{Bare, Expected, Load, Seen};

// SAFETY: all four are plain integers without padding (the sizes are asserted below).
unsafe impl aya::Pod for Load {}
// SAFETY: as above.
unsafe impl aya::Pod for Expected {}
// SAFETY: as above.
unsafe impl aya::Pod for Seen {}
// SAFETY: as above.
unsafe impl aya::Pod for Bare {}

const _: () = assert!(size_of::<Load>() == abi::FRAME + 12);
const _: () = assert!(size_of::<Expected>() == 4 + 4 + 6 + 4 * 2 + 2 + 4);
const _: () = assert!(size_of::<Seen>() == 10 * 8);
const _: () = assert!(size_of::<Bare>() == 4 + 4 + 4 + 12);

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("NETD_BENCH_BPF_OBJECT"));

/// A fresh copy of all maps and, unloaded, all programs.
pub fn object() -> anyhow::Result<Ebpf> {
    Ebpf::load(OBJECT).context("cannot load the benchmark's BPF object")
}

/// Sets the one value of an array.
pub fn set<V: aya::Pod>(ebpf: &mut Ebpf, map: &str, value: V) -> anyhow::Result<()> {
    let map_data = ebpf
        .map_mut(map)
        .with_context(|| format!("the benchmark's BPF object has no map {map}"))?;
    Array::<_, V>::try_from(map_data)?
        .set(0, value, 0)
        .with_context(|| format!("cannot write the map {map}"))
}

/// Loads a tc program and attaches it to the ingress of a device. It is detached when `ebpf` is
/// dropped.
pub fn attach(
    ebpf: &mut Ebpf,
    program: &str,
    namespace: &Namespace,
    device: &str,
) -> anyhow::Result<()> {
    let classifier: &mut SchedClassifier = ebpf
        .program_mut(program)
        .with_context(|| format!("the benchmark's BPF object has no program {program}"))?
        .try_into()?;
    classifier
        .load()
        .with_context(|| format!("cannot load the program {program}"))?;
    namespace
        .run(|| {
            // Before 6.6, where there is no tcx, programs hang on a qdisc; it may exist.
            let _ = tc::qdisc_add_clsact(device);
            classifier.attach(device, TcAttachType::Ingress)
        })
        .map_err(|e| anyhow!(e))
        .with_context(|| {
            format!(
                "cannot attach {program} to the ingress of {device} in {}",
                namespace.role()
            )
        })?;
    Ok(())
}
