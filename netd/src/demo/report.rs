//! The answer: rows in the form of every suite of the project, and a table for people.

use serde::Serialize;

use crate::lab::{LabError, Outcome, Question, RuleSet};

/// One line of the table.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// What was asked.
    pub name: String,
    /// What should come of it under netd.
    pub expected: String,
    /// What came of it under netd.
    pub got: String,
    /// Whether that is as expected, or was skipped for a reason.
    pub ok: bool,
    /// Why it was not asked.
    pub skip: Option<String>,
    /// What came of it without netd.
    pub without: String,
    /// Milliseconds to the answer under netd.
    pub ms: Option<f64>,
    /// More to know when it is not as expected.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub detail: Vec<String>,
}

impl Row {
    pub(super) fn probe(probe: &Question, without: &Outcome, with: &Outcome) -> Self {
        Self {
            name: probe.name.clone(),
            expected: probe.want.to_string(),
            got: with.to_string(),
            ok: probe.want.matches(with),
            without: without.to_string(),
            ms: with.millis(),
            ..Self::default()
        }
    }

    pub(super) fn rules(set: &RuleSet, loaded: Result<(), LabError>) -> Self {
        let mut row = Self {
            name: format!("rules: {}", set.name()),
            expected: "loaded".to_owned(),
            got: "loaded".to_owned(),
            without: "loaded".to_owned(),
            ok: true,
            ..Self::default()
        };
        if let Err(error) = loaded {
            row.without = "-".to_owned();
            row.skip(&error.to_string());
        }
        row
    }

    pub(super) fn skip(&mut self, why: &str) {
        self.got = "skipped".to_owned();
        self.ok = true;
        self.skip = Some(why.to_owned());
    }
}

/// All rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    schema: u32,
    /// Whether every row is as expected.
    pub ok: bool,
    /// Number of rows.
    pub total: usize,
    /// Rows that are not as expected.
    pub failed: usize,
    /// Rows for which this machine lacks something.
    pub skipped: usize,
    /// The rows, in the order of the table.
    pub rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(rows: Vec<Row>) -> Self {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_the_shape_of_every_suite() {
        let mut skipped = Row {
            name: "b".to_owned(),
            ..Row::default()
        };
        skipped.skip("no iptables");
        let failed = Row {
            name: "a".to_owned(),
            got: "timeout".to_owned(),
            ..Row::default()
        };
        let report = serde_json::to_value(Report::new(vec![failed, skipped])).expect("JSON");
        assert_eq!(report["schema"], 1);
        assert_eq!(report["ok"], false);
        assert_eq!(
            (&report["total"], &report["failed"], &report["skipped"]),
            (&2.into(), &1.into(), &1.into())
        );
        for key in ["name", "expected", "got", "ok", "skip", "without", "ms"] {
            assert!(report["rows"][0].get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn no_rows_are_no_success() {
        assert!(!Report::new(Vec::new()).ok);
    }
}
