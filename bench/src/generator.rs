//! The generator: frames made inside the kernel, sent into the host's uplink.
//!
//! `BPF_PROG_TEST_RUN` with `BPF_F_TEST_XDP_LIVE_FRAMES` (Linux 5.18) runs an XDP program over frames
//! of a page pool and does what it says with them: here XDP_TX, out of the client's veth. The host's
//! end makes skbs of them in NAPI and takes them through tc ingress as it would from a NIC. The
//! softirq runs where the generator is interrupted, on the same CPU: one CPU does all the work.

use anyhow::{Context as _, ensure};
use aya::Ebpf;
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::bpf;
use crate::bpf::abi::{FRAME, Load};
use crate::topology::{CLIENT_DEVICE, Topology};

/// Frames that are handed over at once; a veth's ring holds 256.
const BATCH: u32 = 64;

/// A loaded generator for one topology.
pub struct Generator {
    ebpf: Ebpf,
    load: Load,
    ifindex: u32,
}

/// `struct xdp_md`.
#[derive(Default)]
#[repr(C)]
struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

impl Generator {
    /// Loads it for so many flows.
    pub fn new(topology: &Topology, flows: u16) -> anyhow::Result<Self> {
        let load = Load {
            frame: topology.frame()?,
            flows: flows.into(),
            next: 0,
            padding: 0,
        };
        let mut ebpf = bpf::object()?;
        generator(&mut ebpf)?
            .load()
            .context("cannot load the generator")?;
        Ok(Self {
            ebpf,
            load,
            ifindex: topology.client.ifindex(CLIENT_DEVICE)?,
        })
    }

    /// Sends so many frames, flow after flow, as fast as the CPU can.
    ///
    /// It is one system call, whatever the number: each of them waits for RCU grace periods while
    /// the kernel makes the program known to its XDP dispatcher and forgets it again.
    pub fn send(&mut self, topology: &Topology, cpu: usize, frames: u32) -> anyhow::Result<()> {
        bpf::set(&mut self.ebpf, "LOAD", self.load)?;
        let context = XdpMd {
            data_end: FRAME as u32,
            ingress_ifindex: self.ifindex,
            ..XdpMd::default()
        };
        // SAFETY: six u32 without padding.
        let context: [u8; size_of::<XdpMd>()] = unsafe { std::mem::transmute(context) };
        let program = generator(&mut self.ebpf)?;
        topology.client.run(|| {
            // The thread is this call's own: nothing is to be put back.
            pin(cpu)?;
            program
                .test_run(TestRunOptions {
                    data_in: Some(&[0; FRAME]),
                    ctx_in: Some(&context),
                    repeat: frames,
                    attrs: TestRunAttrs::new().xdp_live_frames(BATCH.min(frames)),
                    ..TestRunOptions::new()
                })
                .context("cannot send live frames (BPF_F_TEST_XDP_LIVE_FRAMES: Linux 5.18)")?;
            Ok(())
        })
    }
}

fn generator(ebpf: &mut Ebpf) -> anyhow::Result<&mut Xdp> {
    Ok(ebpf
        .program_mut("generator")
        .context("the benchmark's BPF object has no program generator")?
        .try_into()?)
}

/// Ties the calling thread to a CPU, before all ordinary threads there: the other programs of the
/// machine must not be part of what is measured. The kernel keeps 5 % of the CPU for them.
fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &only))
        .with_context(|| format!("cannot run on CPU {cpu}: choose another by --cpu"))?;
    let parameter = nix::libc::sched_param { sched_priority: 1 };
    // SAFETY: a valid policy and parameter, for the calling thread.
    let status = unsafe { nix::libc::sched_setscheduler(0, nix::libc::SCHED_FIFO, &parameter) };
    ensure!(
        status == 0,
        "cannot get real-time priority: {} (run as root)",
        Errno::last()
    );
    Ok(())
}
