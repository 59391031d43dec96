//! Rule sets of other programs, and proof that packets did not meet them.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::error::{LabError, Result};
use super::namespace::Namespace;

/// Rules in iptables-restore's format, recorded from real hosts (lab/rules) or written by a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSet {
    name: String,
    text: String,
    ipv6: bool,
}

impl RuleSet {
    /// Rules of one's own.
    pub fn new(name: &str, text: &str) -> Self {
        Self {
            name: name.to_owned(),
            text: text.to_owned(),
            ipv6: false,
        }
    }

    /// Docker 20.10's rules for the networks of [`super::StandardHost`].
    pub fn docker_20_10() -> Self {
        Self::new("docker-20.10", include_str!("rules/docker-20.10.rules"))
    }

    /// Docker 29's rules for the networks of [`super::StandardHost`].
    pub fn docker_29() -> Self {
        Self::new("docker-29", include_str!("rules/docker-29.rules"))
    }

    /// Oracle Cloud's Ubuntu image: REJECT at the end of INPUT and FORWARD.
    pub fn oracle_cloud() -> Self {
        Self::new("oracle-cloud", include_str!("rules/oracle-cloud.rules"))
    }

    /// Tailscale's chains in filter, nat and mangle.
    pub fn tailscale() -> Self {
        Self::new("tailscale", include_str!("rules/tailscale.rules"))
    }

    /// UFW with its default of rejecting what is forwarded.
    pub fn ufw() -> Self {
        Self::new("ufw", include_str!("rules/ufw.rules"))
    }

    /// wg-quick's rules for a default-route tunnel.
    pub fn wg_quick() -> Self {
        Self::new("wg-quick", include_str!("rules/wg-quick.rules"))
    }

    /// Nothing but the policy DROP of FORWARD.
    pub fn forward_drop() -> Self {
        Self::new("forward-drop", "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n")
    }

    /// The same rules for another name of a device.
    pub fn rename_device(self, from: &str, to: &str) -> Self {
        let text = self
            .text
            .lines()
            .map(|line| rename_words(line, from, to) + "\n")
            .collect();
        Self { text, ..self }
    }

    /// The same rules for ip6tables: only of use for rules without addresses.
    pub fn ipv6(self) -> Self {
        Self {
            name: format!("{} of IPv6", self.name),
            ipv6: true,
            ..self
        }
    }

    /// The name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The rules.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Which of the kernel's two packet filters iptables programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IptablesBackend {
    /// `iptables-legacy`.
    Legacy,
    /// `iptables-nft`.
    Nft,
    /// Whatever the host's `iptables` is; legacy or nft by their own names if there is no such link.
    Default,
}

impl IptablesBackend {
    fn program(self, ipv6: bool, tool: &str) -> Result<PathBuf> {
        let stem = if ipv6 { "ip6tables" } else { "iptables" };
        let names: &[&str] = match self {
            Self::Legacy => &["-legacy"],
            Self::Nft => &["-nft"],
            Self::Default => &["", "-nft", "-legacy"],
        };
        let names: Vec<String> = names
            .iter()
            .map(|variant| format!("{stem}{variant}{tool}"))
            .collect();
        find_program(&names).ok_or_else(|| LabError::NoProgram {
            tried: names.join(", "),
            package: "iptables",
        })
    }

    /// Whether the programs are installed.
    pub fn installed(self) -> bool {
        self.program(false, "-restore").is_ok() && self.program(false, "-save").is_ok()
    }
}

/// How many packets and bytes a chain's policy or a rule counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The counters of a namespace's filter, nat and raw tables of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By backend, and by family, table, chain and rule.
    entries: BTreeMap<(IptablesBackend, String), Count>,
}

impl Counters {
    /// Packets counted by the policies and rules whose `family table chain` begins so: `ip filter FORWARD`, `ip nat`.
    pub fn packets(&self, prefix: &str) -> u64 {
        let matching = |key: &str| {
            key.strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        };
        self.entries
            .iter()
            .filter(|((_, key), _)| matching(key))
            .map(|(_, count)| count.packets)
            .sum()
    }

    /// The policies and rules whose packet count differs from `before`, with the difference.
    pub fn moved_since(&self, before: &Self) -> Vec<Movement> {
        let mut moved = Vec::new();
        for (key, count) in &self.entries {
            let earlier = before.entries.get(key).copied().unwrap_or_default();
            if count.packets != earlier.packets {
                let packets = count.packets.wrapping_sub(earlier.packets);
                moved.push(Movement {
                    rule: key.1.clone(),
                    packets,
                });
            }
        }
        moved
    }

    /// Of [`Counters::moved_since`], the policies and rules of the base chains that forwarded packets meet: FORWARD of
    /// any table, and PREROUTING and POSTROUTING of nat and raw. Packets of the host itself meet the latter two as
    /// well; those that netd redirects meet none.
    pub fn forwarding_moved_since(&self, before: &Self) -> Vec<Movement> {
        let mut moved = self.moved_since(before);
        moved.retain(|movement| {
            let mut words = movement.rule.split(' ').skip(1);
            matches!(
                (words.next(), words.next()),
                (_, Some("FORWARD")) | (Some("nat" | "raw"), Some("PREROUTING" | "POSTROUTING"))
            )
        });
        moved
    }

    /// How many policies and rules were read: a comparison of none proves nothing.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn read(&mut self, backend: IptablesBackend, family: &str, save: &str) {
        let mut table = "";
        let mut numbers = BTreeMap::<String, usize>::new();
        for line in save.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            } else if let Some(policy) = line.strip_prefix(':') {
                // `:FORWARD DROP [2:120]`; chains of users have no policy, and no counter that moves.
                let mut words = policy.split(' ');
                let (Some(chain), Some(policy), Some(count)) =
                    (words.next(), words.next(), words.next())
                else {
                    continue;
                };
                if policy != "-"
                    && let Some(count) = parse_count(count)
                {
                    self.entries
                        .insert((backend, format!("{family} {table} {chain} policy")), count);
                }
            } else if line.starts_with('[') {
                // `[0:0] -A FORWARD …`.
                let Some((count, rule)) = line.split_once(" -A ") else {
                    continue;
                };
                let Some(count) = parse_count(count) else {
                    continue;
                };
                let (chain, matches) = rule.split_once(' ').unwrap_or((rule, ""));
                // The number keeps equal rules of a chain apart.
                let number = numbers.entry(format!("{table} {chain}")).or_default();
                *number += 1;
                self.entries.insert(
                    (
                        backend,
                        format!("{family} {table} {chain} {number} {matches}"),
                    ),
                    count,
                );
            }
        }
    }
}

/// A rule whose counter moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Movement {
    /// Family, table, chain, and the rule's number and text, or `policy`.
    pub rule: String,
    /// By how many packets.
    pub packets: u64,
}

impl fmt::Display for Movement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{} {}", self.packets, self.rule)
    }
}

impl Namespace {
    /// Loads rules beside those that are there, like `iptables-restore -n`. Chains named in the rules are emptied.
    pub fn load_rules(&self, rules: &RuleSet, backend: IptablesBackend) -> Result<()> {
        let program = backend.program(rules.ipv6, "-restore")?;
        let doing = || {
            format!(
                "load {} in {} with {}",
                rules.name,
                self.role(),
                program.display()
            )
        };
        let mut child = self
            .command(&program)
            .args(["-n", "-w", "5"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| LabError::io(doing(), e))?;
        let mut input = child.stdin.take().expect("stdin is a pipe");
        // A program that refuses a line closes the pipe: its own message is the better one.
        let _ = input.write_all(rules.text.as_bytes());
        drop(input);
        let output = child
            .wait_with_output()
            .map_err(|e| LabError::io(doing(), e))?;
        if output.status.success() {
            return Ok(());
        }
        Err(LabError::Program {
            program: doing(),
            status: output.status,
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// Everything that `iptables-save -c` and `ip6tables-save -c` print for both backends that are installed.
    pub fn rules(&self) -> Result<Vec<(IptablesBackend, &'static str, String)>> {
        let mut saves = Vec::new();
        for backend in [IptablesBackend::Legacy, IptablesBackend::Nft] {
            for (ipv6, family) in [(false, "ip"), (true, "ip6")] {
                let Ok(program) = backend.program(ipv6, "-save") else {
                    continue;
                };
                let output = self
                    .command(&program)
                    .arg("-c")
                    .output()
                    .map_err(|e| LabError::io(format!("run {}", program.display()), e))?;
                if output.status.success() {
                    saves.push((
                        backend,
                        family,
                        String::from_utf8_lossy(&output.stdout).into_owned(),
                    ));
                }
            }
        }
        if saves.is_empty() {
            return Err(LabError::NoProgram {
                tried: "iptables-legacy-save, iptables-nft-save".to_owned(),
                package: "iptables",
            });
        }
        Ok(saves)
    }

    /// The counters of filter, nat, raw and mangle, of both backends and families.
    pub fn counters(&self) -> Result<Counters> {
        let mut counters = Counters::default();
        for (backend, family, save) in self.rules()? {
            counters.read(backend, family, &save);
        }
        Ok(counters)
    }

    /// Removes every rule of nftables in the namespace, which is also what the nft backend of iptables wrote.
    pub fn flush_nft(&self) -> Result<()> {
        let names = ["nft".to_owned()];
        let program = find_program(&names).ok_or_else(|| LabError::NoProgram {
            tried: "nft".to_owned(),
            package: "nftables",
        })?;
        let output = self
            .command(&program)
            .args(["flush", "ruleset"])
            .output()
            .map_err(|e| LabError::io("run nft flush ruleset", e))?;
        if output.status.success() {
            return Ok(());
        }
        Err(LabError::Program {
            program: "nft flush ruleset".to_owned(),
            status: output.status,
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }
}

/// The first of the names that is found in PATH or in the sbin directories, which PATH of a user may lack.
pub fn find_program(names: &[String]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .collect();
    names.iter().find_map(|name| {
        directories
            .iter()
            .map(|directory| directory.join(name))
            .find(|file| is_executable(file))
    })
}

fn is_executable(file: &Path) -> bool {
    nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok() && file.is_file()
}

fn parse_count(text: &str) -> Option<Count> {
    let (packets, bytes) = text
        .trim_start_matches('[')
        .trim_end_matches(']')
        .split_once(':')?;
    Some(Count {
        packets: packets.parse().ok()?,
        bytes: bytes.parse().ok()?,
    })
}

fn rename_words(line: &str, from: &str, to: &str) -> String {
    let words: Vec<&str> = line
        .split(' ')
        .map(|word| if word == from { to } else { word })
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVE: &str = "*filter\n:FORWARD DROP [2:120]\n:DOCKER - [0:0]\n[5:300] -A FORWARD -j DOCKER\n\
                        [1:60] -A DOCKER -i br0 -j DROP\n[0:0] -A DOCKER -i br0 -j DROP\nCOMMIT\n\
                        *nat\n:PREROUTING ACCEPT [7:420]\nCOMMIT\n";

    #[test]
    fn counters_are_read_and_compared() {
        let mut before = Counters::default();
        before.read(IptablesBackend::Nft, "ip", SAVE);
        assert_eq!(before.len(), 5);
        assert_eq!(before.packets("ip filter FORWARD"), 7);
        assert_eq!(before.packets("ip nat"), 7);
        assert_eq!(before.packets("ip6 nat"), 0);
        assert!(before.moved_since(&before).is_empty());
        let mut after = Counters::default();
        after.read(
            IptablesBackend::Nft,
            "ip",
            &SAVE.replace("[0:0] -A DOCKER", "[4:240] -A DOCKER"),
        );
        let moved = after.moved_since(&before);
        assert_eq!(moved.len(), 1);
        assert_eq!(moved[0].to_string(), "+4 ip filter DOCKER 2 -i br0 -j DROP");
    }

    #[test]
    fn devices_are_renamed_as_whole_words() {
        let rules = RuleSet::new("x", "-A FORWARD -i docker0 -o docker01 -j DROP\n")
            .rename_device("docker0", "br-def");
        assert_eq!(rules.text(), "-A FORWARD -i br-def -o docker01 -j DROP\n");
    }
}
