//! How much of the verifier's patience each program may use: `netd-ebpf/verifier-ceilings.toml`.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::ProgramStats;
use crate::workspace;

/// A ceiling may be so much above what is measured, in per cent: more would hide a growth.
pub(super) const SLACK: u64 = 20;
/// What `--bless` writes, in per cent above what is measured.
const BLESSED: u64 = 15;

const HEADER: &str = "\
# What the verifier may find at most, per kernel and program: `cargo xtask verifier` fails above it.
# `cargo xtask verifier --kernel all --bless` writes 15 % above what is measured. More than 20 %
# above fails too, for it would hide a growth. A ceiling is raised only with a reason (--reason),
# which stays here.

";

/// The most that is accepted of one program.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ceiling {
    pub(super) verified_instructions: u64,
    pub(super) stack: u64,
    pub(super) translated_bytes: u64,
    pub(super) jited_bytes: u64,
    /// Why it was raised, once it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
}

impl Ceiling {
    /// What `--bless` writes for a program.
    fn above(stats: &ProgramStats) -> Self {
        let above = |measured| percent_above(measured, BLESSED);
        Self {
            verified_instructions: above(stats.verified_instructions),
            stack: above(stats.stack),
            translated_bytes: above(stats.translated_bytes),
            jited_bytes: above(stats.jited_bytes),
            reason: None,
        }
    }

    /// Name, ceiling and measured value of each number.
    fn pairs(&self, stats: &ProgramStats) -> [(&'static str, u64, u64); 4] {
        [
            (
                "instructions",
                self.verified_instructions,
                stats.verified_instructions,
            ),
            ("stack", self.stack, stats.stack),
            ("translated", self.translated_bytes, stats.translated_bytes),
            ("JIT", self.jited_bytes, stats.jited_bytes),
        ]
    }

    /// What is wrong between the ceiling and what was measured.
    pub(super) fn complaints(&self, stats: &ProgramStats) -> Vec<String> {
        self.pairs(stats)
            .into_iter()
            .filter_map(|(name, ceiling, measured)| {
                if measured > ceiling {
                    Some(format!("{name} {measured} > {ceiling}"))
                } else if ceiling > percent_above(measured, SLACK) {
                    Some(format!(
                        "{name} {measured}: its ceiling of {ceiling} is more than {SLACK} % above, \
                         lower it with --bless"
                    ))
                } else {
                    None
                }
            })
            .collect()
    }

    fn is_raised_by(&self, new: &Self) -> bool {
        new.verified_instructions > self.verified_instructions
            || new.stack > self.stack
            || new.translated_bytes > self.translated_bytes
            || new.jited_bytes > self.jited_bytes
    }
}

/// Rounded up, so that small numbers have room too.
fn percent_above(measured: u64, percent: u64) -> u64 {
    (measured * (100 + percent)).div_ceil(100)
}

/// All ceilings: kernel series → program.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct Ceilings(BTreeMap<String, BTreeMap<String, Ceiling>>);

impl Ceilings {
    fn path() -> PathBuf {
        workspace().join("netd-ebpf/verifier-ceilings.toml")
    }

    /// Reads the file of the project; one that does not exist has no ceilings.
    pub(super) fn read() -> anyhow::Result<Self> {
        let path = Self::path();
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, &path),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn parse(text: &str, path: &Path) -> anyhow::Result<Self> {
        toml::from_str(text).with_context(|| format!("{} is not as expected", path.display()))
    }

    /// Writes the file of the project.
    pub(super) fn write(&self) -> anyhow::Result<()> {
        let path = Self::path();
        fs::write(&path, self.text()?).with_context(|| format!("cannot write {}", path.display()))
    }

    fn text(&self) -> anyhow::Result<String> {
        Ok(format!("{HEADER}{}", toml::to_string(self)?))
    }

    /// The ceilings of a kernel series, if there are any.
    pub(super) fn of(&self, series: &str) -> Option<&BTreeMap<String, Ceiling>> {
        self.0.get(series)
    }

    /// Puts all ceilings of a series 15 % above what was measured, and drops programs that are gone.
    ///
    /// # Errors
    /// A ceiling would rise, and there is no `reason`.
    pub(super) fn bless(
        &mut self,
        series: &str,
        programs: &[ProgramStats],
        reason: Option<&str>,
    ) -> anyhow::Result<()> {
        let old = self.0.remove(series).unwrap_or_default();
        let mut new = BTreeMap::new();
        for stats in programs {
            let mut ceiling = Ceiling::above(stats);
            if let Some(before) = old.get(&stats.name) {
                ceiling.reason.clone_from(&before.reason);
                if before.is_raised_by(&ceiling) {
                    if before.complaints(stats).is_empty() {
                        // Still below: a small growth does not move the ceiling.
                        ceiling = before.clone();
                    } else if let Some(reason) = reason {
                        ceiling.reason = Some(reason.to_owned());
                    } else {
                        bail!(
                            "{} on {series} would get a higher ceiling ({}): say why with --reason",
                            stats.name,
                            before.complaints(stats).join(", ")
                        );
                    }
                }
            }
            new.insert(stats.name.clone(), ceiling);
        }
        self.0.insert(series.to_owned(), new);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(instructions: u64) -> ProgramStats {
        ProgramStats {
            name: "from_uplink".to_owned(),
            verified_instructions: instructions,
            stack: 96,
            translated_bytes: 2000,
            jited_bytes: 1200,
            error: None,
        }
    }

    fn blessed(instructions: u64) -> Ceilings {
        let mut ceilings = Ceilings::default();
        ceilings.bless("6.1", &[stats(instructions)], None).unwrap();
        ceilings
    }

    fn complaints(ceilings: &Ceilings, instructions: u64) -> Vec<String> {
        ceilings.of("6.1").unwrap()["from_uplink"].complaints(&stats(instructions))
    }

    #[test]
    fn a_blessed_program_has_fifteen_per_cent_of_room() {
        let ceilings = blessed(1000);
        assert!(complaints(&ceilings, 1150).is_empty());
        assert_eq!(complaints(&ceilings, 1151), ["instructions 1151 > 1150"]);
    }

    #[test]
    fn a_ceiling_far_above_is_refused() {
        let ceilings = blessed(1000);
        assert!(complaints(&ceilings, 959).is_empty());
        assert!(complaints(&ceilings, 950)[0].contains("lower it"));
    }

    #[test]
    fn small_numbers_have_room_too() {
        assert!(complaints(&blessed(2), 2).is_empty());
    }

    #[test]
    fn raising_needs_a_reason_and_lowering_does_not() {
        let mut ceilings = blessed(1000);
        assert!(ceilings.bless("6.1", &[stats(1500)], None).is_err());
        let mut ceilings = blessed(1000);
        ceilings.bless("6.1", &[stats(1500)], Some("IPv6")).unwrap();
        let ceiling = &ceilings.of("6.1").unwrap()["from_uplink"];
        assert_eq!(ceiling.verified_instructions, 1725);
        assert_eq!(ceiling.reason.as_deref(), Some("IPv6"));
        ceilings.bless("6.1", &[stats(500)], None).unwrap();
        assert_eq!(
            ceilings.of("6.1").unwrap()["from_uplink"].verified_instructions,
            575
        );
    }

    #[test]
    fn growth_below_the_ceiling_does_not_move_it() {
        let mut ceilings = blessed(1000);
        ceilings.bless("6.1", &[stats(1100)], None).unwrap();
        assert_eq!(ceilings, blessed(1000));
    }

    #[test]
    fn the_file_is_read_as_it_is_written() {
        let mut ceilings = blessed(1000);
        ceilings.bless("6.12", &[stats(900)], None).unwrap();
        let text = ceilings.text().unwrap();
        assert_eq!(Ceilings::parse(&text, Path::new("x")).unwrap(), ceilings);
        assert!(Ceilings::parse("[\"6.1\".a]\nstakc = 1", Path::new("x")).is_err());
    }
}
