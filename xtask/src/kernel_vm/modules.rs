//! Which modules of a kernel go into the initramfs, and in which order they are loaded.
//!
//! All are loaded at the start: a guest without `modprobe` and an index has nothing that could
//! load one when it is asked for. Debian makes the index (`modules.dep`) when a kernel is
//! installed, so the dependencies are read from the modules themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::system::{Machine, System as _};

/// What tests of container networking meet. What a kernel has built in, or lacks, is left out.
#[rustfmt::skip]
const WANTED: &[&str] = &[
    // devices
    "8021q", "bridge", "br_netfilter", "dummy", "ipvlan", "macvlan", "tun", "veth", "vxlan", "wireguard",
    // tc
    "act_bpf", "act_gact", "act_mirred", "cls_bpf", "cls_matchall", "cls_u32", "sch_fq", "sch_htb", "sch_ingress", "sch_netem", "sch_tbf",
    // netfilter: the core, legacy tables
    "nf_conntrack", "nf_conntrack_netlink", "nf_log_syslog", "nf_nat", "nfnetlink", "nfnetlink_log",
    "ip6_tables", "ip6table_filter", "ip6table_mangle", "ip6table_nat", "ip6table_raw", "ip6t_REJECT", "ip6t_rpfilter",
    "ip_tables", "iptable_filter", "iptable_mangle", "iptable_nat", "iptable_raw", "ipt_REJECT", "ipt_rpfilter",
    // netfilter: matches and targets
    "xt_CT", "xt_LOG", "xt_MASQUERADE", "xt_NFLOG", "xt_REDIRECT", "xt_TCPMSS", "xt_addrtype", "xt_bpf", "xt_comment", "xt_connmark",
    "xt_conntrack", "xt_hashlimit", "xt_hl", "xt_limit", "xt_mark", "xt_multiport", "xt_nat", "xt_owner", "xt_physdev", "xt_pkttype", "xt_recent",
    "xt_set", "xt_state", "xt_statistic", "xt_tcpudp",
    // netfilter: nf_tables
    "nf_tables", "nft_chain_nat", "nft_compat", "nft_ct", "nft_fib", "nft_fib_inet", "nft_fib_ipv4", "nft_fib_ipv6", "nft_hash", "nft_limit",
    "nft_log", "nft_masq", "nft_nat", "nft_redir", "nft_reject", "nft_reject_inet", "nft_reject_ipv4", "nft_reject_ipv6",
    // ipset, sockets by netlink, IPsec
    "ip_set", "ip_set_hash_ip", "ip_set_hash_net", "inet_diag", "tcp_diag", "udp_diag", "raw_diag", "unix_diag", "xfrm_user",
];

/// A module, ready for `insmod`.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// The wanted modules of the kernel whose modules are below `root`, each after what it needs.
pub(super) fn load_order(root: &Path) -> anyhow::Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    collect(&root.join("kernel"), &mut files);
    if files.is_empty() {
        bail!("no modules below {}", root.display());
    }
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for name in WANTED {
        add(name, &files, &mut seen, &mut order)?;
    }
    Ok(order)
}

/// File names without `.ko*`, with `_` for `-` as in dependencies, → paths.
fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) {
    for path in Machine.entries(dir) {
        if path.is_dir() {
            collect(&path, files);
        } else if let Some((name, _)) = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.split_once(".ko"))
        {
            files.insert(name.replace('-', "_"), path);
        }
    }
}

fn add(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    seen: &mut BTreeSet<String>,
    order: &mut Vec<Module>,
) -> anyhow::Result<()> {
    let Some(path) = files.get(name) else {
        return Ok(());
    };
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }
    let content = read(path)?;
    for needed in depends(&content) {
        add(&needed, files, seen, order)?;
    }
    order.push(Module {
        name: name.to_owned(),
        content,
    });
    Ok(())
}

/// The module, unpacked: a kernel of Debian 12 keeps them as they are, newer ones by xz or zstd.
fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let program = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    let output = Command::new(program)
        .arg("-dc")
        .arg(path)
        .output()
        .with_context(|| format!("cannot start {program} to unpack {}", path.display()))?;
    if !output.status.success() {
        bail!(
            "cannot unpack {}: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}

/// The names in `depends=` of the section `.modinfo`, which is a list of NUL-terminated settings.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let list = &module[at + KEY.len()..];
    let end = list
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(list.len());
    String::from_utf8_lossy(&list[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_module() {
        let module = b"\x7fELF..\0license=GPL\0depends=nf_tables,nf-nat\0retpoline=Y\0";
        assert_eq!(depends(module), ["nf_tables", "nf_nat"]);
        assert!(depends(b"\0license=GPL\0depends=\0").is_empty());
        assert!(depends(b"\0license=GPL\0").is_empty());
    }

    #[test]
    fn a_module_comes_after_what_it_needs_and_once() {
        let dir = std::env::temp_dir().join(format!("netd-modules-{}", std::process::id()));
        let net = dir.join("kernel/net");
        fs::create_dir_all(&net).unwrap();
        for (name, needs) in [
            ("bridge", "stp"),
            ("stp", "llc"),
            ("llc", ""),
            ("br_netfilter", "bridge"),
        ] {
            let text = format!("\0depends={needs}\0");
            fs::write(net.join(format!("{name}.ko")), text).unwrap();
        }
        let order = load_order(&dir);
        fs::remove_dir_all(&dir).unwrap();
        let names: Vec<_> = order
            .unwrap()
            .into_iter()
            .map(|module| module.name)
            .collect();
        assert_eq!(names, ["llc", "stp", "bridge", "br_netfilter"]);
    }
}
