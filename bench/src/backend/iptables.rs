//! Docker's own rules, as Docker 29 writes them for the default bridge with one published port and
//! without its userland proxy; in either of the kernel's two packet filters.

use ::netd::lab::{IptablesBackend, RuleSet};
use anyhow::ensure;

use super::{Backend, Installed};
use crate::topology::{BRIDGE, Topology};

/// The name of the variant with `iptables-legacy`.
pub const LEGACY: &str = "iptables-legacy";
/// The name of the variant with `iptables-nft`.
pub const NFT: &str = "iptables-nft";

const RULES: &str = include_str!("docker-29.rules");

/// Docker's rules.
pub struct Iptables {
    name: &'static str,
    about: &'static str,
    kernel_side: IptablesBackend,
}

/// Rules go away with their namespace.
struct Rules;

impl Iptables {
    /// Through x_tables.
    pub fn legacy() -> Self {
        Self {
            name: LEGACY,
            about: "Docker 29's rules, one published port, in x_tables",
            kernel_side: IptablesBackend::Legacy,
        }
    }

    /// Through nf_tables, with iptables' syntax.
    pub fn nft() -> Self {
        Self {
            name: NFT,
            about: "the same rules in nf_tables",
            kernel_side: IptablesBackend::Nft,
        }
    }
}

impl Backend for Iptables {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn probe(&self) -> Result<(), String> {
        if self.kernel_side.installed() {
            Ok(())
        } else {
            Err(format!(
                "{}-restore and {}-save are not installed: install the package iptables",
                self.name, self.name
            ))
        }
    }

    fn install(&self, topology: &Topology) -> anyhow::Result<Box<dyn Installed>> {
        let host = &topology.host;
        host.set_sysctl("net/ipv4/ip_forward", 1)?;
        // What Docker sets on the bridge when it runs without its proxy.
        host.set_sysctl(&format!("net/ipv4/conf/{BRIDGE}/route_localnet"), 1)?;
        host.load_rules(
            &RuleSet::new("docker-29, one port", RULES),
            self.kernel_side,
        )?;
        let count = RULES.lines().filter(|line| line.starts_with("-A")).count();
        let loaded: usize = host
            .rules()?
            .iter()
            .filter(|(side, family, _)| *side == self.kernel_side && *family == "ip")
            .flat_map(|(_, _, text)| text.lines())
            .filter(|line| line.contains(" -A "))
            .count();
        ensure!(
            loaded == count,
            "{} took {loaded} of {count} rules",
            self.name
        );
        Ok(Box::new(Rules))
    }
}

impl Installed for Rules {}
