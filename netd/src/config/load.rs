//! From a file or a text to a [`Config`], or to everything that is wrong with it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;
use toml::de::{DeTable, Error as TomlError};

use super::diagnostic::{Diagnostic, Finding, Findings, Report, Severity};
use super::document::Section;
use super::model::{Config, DEFAULT_PATH};
use super::{advice, conflicts, read, schema};

/// The largest file that is read, in bytes: about 400,000 `[[publish]]` entries.
pub const MAX_FILE_SIZE: u64 = 64 << 20;

/// A file that was read and is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What it says.
    pub config: Config,
    /// What it may not mean; no error is among them.
    pub warnings: Report,
    /// The file's text, for [`last_good::save`](super::last_good::save).
    pub text: String,
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Nobody named a file, and there is none in the usual place.
    #[error(
        "there is no configuration: {} does not exist; write it as docs/configuration.md \
         describes (`version = 1` alone is a valid file), or name another one",
        .path.display()
    )]
    DefaultFileMissing {
        /// [`DEFAULT_PATH`].
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read {}: {source}; check the path and its permissions", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is larger than [`MAX_FILE_SIZE`]; perhaps it is not a configuration at all.
    #[error(
        "{} has more than {} MiB, which no configuration has; check the path",
        .path.display(), MAX_FILE_SIZE >> 20
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file has errors. `Display` shows all of them as a compiler does, without colour.
    #[error("{0}")]
    Invalid(Report),
}

impl ConfigError {
    /// The errors with their places; empty if the file could not be read at all.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        match self {
            Self::Invalid(report) => report.diagnostics(),
            _ => &[],
        }
    }

    /// The message for a person, ending with a newline; `color` adds terminal escapes.
    pub fn render(&self, color: bool) -> String {
        match self {
            Self::Invalid(report) => report.render(color),
            other => format!("error: {other}\n"),
        }
    }
}

impl Config {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// [`ConfigError::DefaultFileMissing`] if `path` is [`DEFAULT_PATH`] and does not exist;
    /// the other variants as they say. Nothing is changed in any case.
    pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
        let bytes = read_file(path)?;
        let name = path.display().to_string();
        let text = String::from_utf8(bytes)
            .map_err(|error| ConfigError::Invalid(not_utf8(&error.into_bytes(), &name)))?;
        let (config, warnings) = Self::check(&text, &name)?;
        Ok(Loaded {
            config,
            warnings,
            text,
        })
    }

    /// Validates a text; `name` stands for it in messages.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with all errors that could be found.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        Self::check(text, name).map(|(config, _)| config)
    }

    /// As [`parse`](Self::parse), with the warnings.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with all errors that could be found.
    pub fn check(text: &str, name: &str) -> Result<(Self, Report), ConfigError> {
        let mut findings = Findings::default();
        let (document, errors) = DeTable::parse_recoverable(text);
        for finding in syntax(&errors, text) {
            findings.push(finding);
        }
        // What was recovered from broken syntax is a guess; errors about it would mislead.
        let refuse = |findings: &Findings| {
            ConfigError::Invalid(findings.report(Severity::Error, name, text))
        };
        if findings.has_errors() {
            return Err(refuse(&findings));
        }
        let top = Section::new(schema::TOP, 0..0, document.get_ref(), &mut findings);
        let draft = read::draft(&top, &mut findings);
        conflicts::find(&draft, &mut findings);
        if findings.has_errors() {
            return Err(refuse(&findings));
        }
        advice::find(&draft, &mut findings);
        let warnings = findings.report(Severity::Warning, name, text);
        let config = Self {
            host: draft.host,
            uplinks: draft
                .uplinks
                .into_iter()
                .map(|draft| draft.uplink)
                .collect(),
            limits: draft.limits,
            nat: draft.nat,
            log: draft.log,
            networks: draft
                .networks
                .into_iter()
                .map(|draft| draft.network)
                .collect(),
            publishes: draft
                .publishes
                .into_iter()
                .map(|draft| draft.publish)
                .collect(),
        };
        Ok((config, warnings))
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let unreadable = |source: io::Error| {
        if source.kind() == io::ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) {
            ConfigError::DefaultFileMissing {
                path: path.to_owned(),
            }
        } else {
            ConfigError::Unreadable {
                path: path.to_owned(),
                source,
            }
        }
    };
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_SIZE + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_SIZE {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(bytes)
}

/// The syntax errors up to the first one after which the parser has lost the structure: what
/// follows an array that is not closed is no news.
fn syntax(errors: &[TomlError], text: &str) -> Vec<Finding> {
    let mut errors: Vec<&TomlError> = errors.iter().collect();
    errors.sort_by_key(|error| error.span().map_or(text.len(), |span| span.start));
    let mut found = Vec::new();
    for error in errors {
        let span = error.span().unwrap_or(text.len()..text.len());
        let message = error.message().trim();
        // The parser joins what it expected to its message; it belongs to the help.
        let (message, expected) = match message.split_once(", expected ") {
            Some((message, expected)) => (message, Some(expected)),
            None => (message, None),
        };
        let (help, lost) = match (message, expected) {
            ("string values must be quoted", _) => {
                let word = text.get(span.clone()).unwrap_or_default();
                (format!("write {word:?}"), false)
            }
            ("duplicate key", _) => (
                "a key and a table in single brackets can appear once: join them".into(),
                false,
            ),
            (_, Some(expected)) => (format!("expected {expected} here"), true),
            (_, None) => (
                "see https://toml.io for what can be written here".into(),
                true,
            ),
        };
        found.push(Finding::error(span, message).help(help));
        if lost {
            break;
        }
    }
    found
}

/// The first byte that is no UTF-8, shown in the text as far as it can be.
fn not_utf8(bytes: &[u8], name: &str) -> Report {
    let text = String::from_utf8_lossy(bytes);
    let at = text.find(char::REPLACEMENT_CHARACTER).unwrap_or_default();
    let mut findings = Findings::default();
    findings.push(
        Finding::error(at..at + 1, "this byte is not UTF-8")
            .help("a TOML file is UTF-8; save it as such"),
    );
    findings.report(Severity::Error, name, &text)
}
