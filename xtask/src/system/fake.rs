//! A machine made of a few lines of a test.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::System;

/// Files, program outputs and variables that a test names; everything else is absent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fake {
    files: BTreeSet<PathBuf>,
    outputs: BTreeMap<(PathBuf, String), String>,
    vars: BTreeMap<String, OsString>,
    root: bool,
}

impl Fake {
    /// An empty machine, run by root.
    pub(crate) fn root() -> Self {
        Self {
            root: true,
            ..Self::user()
        }
    }

    /// An empty machine, run by somebody else.
    pub(crate) fn user() -> Self {
        Self::default().var("HOME", "/root").var("PATH", "/usr/bin")
    }

    pub(crate) fn file(mut self, path: &str) -> Self {
        self.files.insert(path.into());
        self
    }

    /// A program that answers `output` to exactly `args` (joined by blanks).
    pub(crate) fn program(mut self, path: &str, args: &str, output: &str) -> Self {
        self.outputs
            .insert((path.into(), args.to_owned()), output.to_owned());
        self.file(path)
    }

    pub(crate) fn var(mut self, name: &str, value: &str) -> Self {
        self.vars.insert(name.to_owned(), value.into());
        self
    }
}

impl System for Fake {
    fn output(&self, program: &Path, args: &[&str]) -> Option<String> {
        self.outputs
            .get(&(program.to_path_buf(), args.join(" ")))
            .cloned()
    }

    fn is_file(&self, path: &Path) -> bool {
        self.files.contains(path)
    }

    fn entries(&self, path: &Path) -> Vec<PathBuf> {
        let children: BTreeSet<_> = self
            .files
            .iter()
            .filter_map(|file| Some(path.join(file.strip_prefix(path).ok()?.iter().next()?)))
            .collect();
        children.into_iter().collect()
    }

    fn var(&self, name: &str) -> Option<OsString> {
        self.vars.get(name).cloned()
    }

    fn is_root(&self) -> bool {
        self.root
    }
}
