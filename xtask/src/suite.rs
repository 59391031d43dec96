//! Results of checks, in the form that every suite of the project prints.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// One check.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Row {
    /// `SUITE` or `SUITE PART`.
    pub name: String,
    /// What should be.
    #[serde(default)]
    pub expected: String,
    /// What was.
    #[serde(default)]
    pub got: String,
    /// Whether it was as expected, or was skipped and may be.
    pub ok: bool,
    /// Why it was not run.
    #[serde(default)]
    pub skip: Option<String>,
}

impl Row {
    /// A check that was made.
    pub fn new(name: &str, expected: &str, got: impl Into<String>, ok: bool) -> Self {
        Self {
            name: name.to_owned(),
            expected: expected.to_owned(),
            got: got.into(),
            ok,
            skip: None,
        }
    }

    /// A check that could not be made; [`Report::new`] decides whether that is fine.
    pub fn skipped(name: &str, expected: &str, why: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            expected: expected.to_owned(),
            got: "skipped".to_owned(),
            ok: false,
            skip: Some(why.into()),
        }
    }
}

/// The names of checks that a machine may lack something for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MaySkip(BTreeSet<String>);

impl MaySkip {
    /// Reads one name per line; blank lines and lines from `#` on are comments, and a name that
    /// ends in `*` stands for all that begin so. A file that does not exist lists nothing.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn parse(text: &str) -> Self {
        Self(
            text.lines()
                .map(|line| line.split('#').next().unwrap_or_default().trim().to_owned())
                .filter(|name| !name.is_empty())
                .collect(),
        )
    }

    fn lists(&self, name: &str) -> bool {
        self.0.iter().any(|entry| match entry.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == entry,
        })
    }
}

/// All checks of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    schema: u32,
    /// Whether every row is.
    pub ok: bool,
    /// Number of rows.
    pub total: usize,
    /// Rows that are not as expected, unpermitted skips among them.
    pub failed: usize,
    /// Rows that were not run, permitted or not.
    pub skipped: usize,
    /// The checks, in the order they were made.
    pub rows: Vec<Row>,
}

impl Report {
    /// Counts the rows; a skipped one is ok only if `may_skip` lists its name.
    ///
    /// No rows at all are a failure: nothing was proved.
    pub fn new(mut rows: Vec<Row>, may_skip: &MaySkip) -> Self {
        for row in rows.iter_mut().filter(|row| row.skip.is_some()) {
            row.ok = may_skip.lists(&row.name);
        }
        let failed = rows.iter().filter(|row| !row.ok).count();
        Self {
            schema: 1,
            ok: failed == 0 && !rows.is_empty(),
            total: rows.len(),
            failed,
            skipped: rows.iter().filter(|row| row.skip.is_some()).count(),
            rows,
        }
    }

    /// Rows that fail, then what was skipped and why, then the line that a runner ends with.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let line = match (&row.skip, row.ok) {
                (None, true) => continue,
                (None, false) => format!(
                    "FAILED   {}: expected {}, got {}",
                    row.name, row.expected, row.got
                ),
                (Some(why), true) => format!("skipped  {}: {why}", row.name),
                (Some(why), false) => {
                    format!(
                        "FAILED   {}: skipped ({why}), and not listed as one that may be",
                        row.name
                    )
                }
            };
            text.push_str(&line);
            text.push('\n');
        }
        let permitted = self
            .rows
            .iter()
            .filter(|r| r.skip.is_some() && r.ok)
            .count();
        let passed = self.total - self.failed - permitted;
        text.push_str(&format!(
            "{passed} passed, {} failed, {} skipped",
            self.failed, permitted
        ));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_a_failure_unless_it_is_listed() {
        let rows = vec![
            Row::new("fmt", "clean", "clean", true),
            Row::skipped("netd::lab vlan", "pass", "no CONFIG_VLAN_8021Q"),
            Row::skipped("netd::lab tap", "pass", "no /dev/net/tun"),
        ];
        let may = MaySkip::parse("# kernels without modules\nnetd::lab vl*  # VLAN\n\n");
        let report = Report::new(rows, &may);
        assert!(!report.ok);
        assert_eq!((report.total, report.failed, report.skipped), (3, 1, 2));
        assert!(report.text().contains("FAILED   netd::lab tap"));
        assert!(report.text().ends_with("1 passed, 1 failed, 1 skipped"));
    }

    #[test]
    fn nothing_checked_is_not_a_success() {
        assert!(!Report::new(Vec::new(), &MaySkip::default()).ok);
    }

    #[test]
    fn a_listed_name_is_not_a_prefix() {
        let may = MaySkip::parse("verifier 6.1");
        assert!(may.lists("verifier 6.1") && !may.lists("verifier 6.12"));
    }

    #[test]
    fn the_json_has_the_shape_of_the_contract() {
        let report = Report::new(vec![Row::new("a", "b", "c", true)], &MaySkip::default());
        assert_eq!(
            serde_json::to_value(&report).unwrap(),
            serde_json::json!({"schema": 1, "ok": true, "total": 1, "failed": 0, "skipped": 0,
                "rows": [{"name": "a", "expected": "b", "got": "c", "ok": true, "skip": null}]})
        );
    }
}
