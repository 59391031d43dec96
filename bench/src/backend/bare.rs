//! The limit: a tc program that finds the packet, writes its Ethernet header and redirects it.

use anyhow::Context as _;
use aya::Ebpf;

use super::{Backend, Installed};
use crate::bpf;
use crate::bpf::abi;
use crate::topology::{HOST, HOST_PORT, PORT, Topology, UPLINK};

/// Parse, write, redirect; no translation, no state, no checksum.
pub struct Bare;

/// Keeps the program attached.
struct Attached(#[expect(dead_code, reason = "detaches when dropped")] Ebpf);

impl Backend for Bare {
    fn name(&self) -> &'static str {
        "bare"
    }

    fn about(&self) -> &'static str {
        "tc: parse, write the Ethernet header, redirect; the limit"
    }

    fn probe(&self) -> Result<(), String> {
        Ok(())
    }

    fn translates(&self) -> bool {
        false
    }

    fn install(&self, topology: &Topology) -> anyhow::Result<Box<dyn Installed>> {
        let mut macs = [0; 3];
        let bytes = [topology.container_mac, topology.bridge_mac].concat();
        for (word, bytes) in macs.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().context("four bytes")?);
        }
        let mut ebpf = bpf::object()?;
        let bare = abi::Bare {
            address: HOST.octets(),
            port: HOST_PORT,
            padding: 0,
            ifindex: topology.host.ifindex(PORT)?,
            macs,
        };
        bpf::set(&mut ebpf, "BARE", bare)?;
        bpf::attach(&mut ebpf, "bare", &topology.host, UPLINK)?;
        Ok(Box::new(Attached(ebpf)))
    }
}

impl Installed for Attached {}
