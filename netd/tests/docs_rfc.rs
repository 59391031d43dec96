//! `docs/rfc-compliance.md` says of each requirement that it is met, with tests that exist, or why it is not.

use std::collections::BTreeSet;
use std::path::Path;

const DOCUMENT: &str = include_str!("../../docs/rfc-compliance.md");

/// Requirement and state of every row.
fn rows() -> Vec<(&'static str, &'static str)> {
    DOCUMENT
        .lines()
        .filter(|line| line.starts_with("| RFC "))
        .map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
            match cells[..] {
                [requirement, _, state] => (requirement, state),
                _ => panic!("not three cells: {line}"),
            }
        })
        .collect()
}

/// The names in the backticks of a text that could be those of functions.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|name| {
        name.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    })
}

/// Names of the functions below a directory that are tests: marked so, or listed in `for_both_families!`.
fn tests_below(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in
        std::fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()))
    {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("source");
            tests_of(&text, found);
        }
    }
}

fn tests_of(text: &str, found: &mut BTreeSet<String>) {
    let mut marked = false;
    let mut listed = false;
    for line in text.lines().map(str::trim) {
        if listed {
            listed = !line.starts_with(['}', ')']);
            if listed {
                found.extend(
                    line.split_whitespace()
                        .map(|name| name.trim_end_matches(',').to_owned()),
                );
            }
            continue;
        }
        listed = line.starts_with("for_both_families!") && !line.ends_with([';', '}']);
        if let Some((_, signature)) = line.split_once("fn ")
            && marked
        {
            let name = signature.split(['(', '<']).next().unwrap_or_default();
            found.insert(name.to_owned());
        }
        // Other attributes may stand between the mark and the function.
        marked = line == "#[test]" || (marked && line.starts_with("#["));
    }
}

#[test]
fn every_requirement_is_met_by_a_test_or_has_a_reason() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut tests = BTreeSet::new();
    for directory in ["netd-common/src", "netd/src", "netd/tests"] {
        tests_below(&top.join(directory), &mut tests);
    }
    assert!(tests.len() > 500, "only {} tests were found", tests.len());
    let mut wrong = Vec::new();
    for (requirement, state) in rows() {
        let missing: Vec<_> = names(state).filter(|name| !tests.contains(*name)).collect();
        if !missing.is_empty() {
            wrong.push(format!("{requirement}: there are no tests {missing:?}"));
        }
        let met = state.starts_with("met: ") && names(state).next().is_some();
        let not_met = state
            .strip_prefix("not met: ")
            .is_some_and(|why| why.len() > 10);
        if !met && !not_met {
            wrong.push(format!(
                "{requirement}: neither met by a test nor not met for a reason: {state}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_document_has_rows() {
    let rows = rows();
    assert!(rows.len() >= 30, "{} rows", rows.len());
    for document in ["4787", "5382", "5508", "6146", "7857"] {
        let begins = format!("RFC {document} ");
        let count = rows
            .iter()
            .filter(|(name, _)| name.starts_with(&begins))
            .count();
        assert!(count >= 5, "{count} rows of RFC {document}");
    }
}

#[test]
fn tests_are_found_as_they_are_written() {
    let mut found = BTreeSet::new();
    tests_of(
        "for_both_families! {\n    one\n    two three\n}\nfn helper() {}\n#[test]\n#[ignore = \"x\"]\nfn four() {}\n",
        &mut found,
    );
    let expected = ["four", "one", "three", "two"].map(str::to_owned);
    assert_eq!(found, BTreeSet::from(expected));
    assert_eq!(
        names("`a_b` and `[nat] c` and `d`").collect::<Vec<_>>(),
        ["a_b", "d"]
    );
}
