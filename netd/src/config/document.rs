//! Typed reading of a TOML document: what is asked for is returned, what is wrong is recorded.
//!
//! serde stops at the first error; a person with a long file wants all of them.

use std::fmt::Display;
use std::ops::Range;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Finding, Findings};
use super::schema;

/// A type whose values are words of the file.
pub(super) trait Keyword: Sized {
    /// Every word.
    const WORDS: &'static [&'static str];

    /// The value that `word` stands for.
    fn from_word(word: &str) -> Option<Self>;
}

/// One table of the document.
pub(super) struct Section<'a> {
    /// How messages call it: `[host]`, `[[publish]]`.
    title: &'static str,
    span: Range<usize>,
    table: &'a DeTable<'a>,
}

impl<'a> Section<'a> {
    /// The section `title` of the schema; keys that it does not have are errors.
    pub(super) fn new(
        title: &'static str,
        span: Range<usize>,
        table: &'a DeTable<'a>,
        findings: &mut Findings,
    ) -> Self {
        let known = schema::keys(title);
        for (key, _) in table {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                findings.push(unknown_key(title, known, name, key.span()));
            }
        }
        Self { title, span, table }
    }

    /// The place of the section's header.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The value of a key that may be absent.
    pub(super) fn get(&self, key: &'static str) -> Option<Entry<'a>> {
        debug_assert!(
            schema::keys(self.title).contains(&key),
            "{key} in {}",
            self.title
        );
        let value = self.table.get(key)?;
        Some(Entry { key, value })
    }

    /// The value of a key that must be there; `example` is what one could write.
    pub(super) fn require(
        &self,
        key: &'static str,
        example: &str,
        findings: &mut Findings,
    ) -> Option<Entry<'a>> {
        let entry = self.get(key);
        if entry.is_none() {
            findings.push(
                Finding::error(self.span(), format!("{} has no `{key}`", place(self.title)))
                    .help(format!("add a line such as `{key} = {example}`")),
            );
        }
        entry
    }

    /// The single table of this name, as in `[host]`.
    pub(super) fn table(&self, key: &'static str, findings: &mut Findings) -> Option<Section<'a>> {
        let title = schema::title(key);
        let entry = self.get(key)?;
        match entry.value.get_ref() {
            DeValue::Table(table) => Some(Section::new(title, entry.span(), table, findings)),
            DeValue::Array(list) if list.iter().any(|item| item.get_ref().is_table()) => {
                let span = list.iter().next().map_or(entry.span(), Spanned::span);
                findings.push(
                    Finding::error(span, format!("`{key}` is one table, not a list of tables"))
                        .help(format!("write `{title}`, once")),
                );
                None
            }
            _ => {
                entry.wrong_type(
                    "a table",
                    &format!("write `{title}` above its keys"),
                    findings,
                );
                None
            }
        }
    }

    /// The tables of this name, as in `[[network]]`.
    pub(super) fn tables(&self, key: &'static str, findings: &mut Findings) -> Vec<Section<'a>> {
        let title = schema::title(key);
        let Some(entry) = self.get(key) else {
            return Vec::new();
        };
        let help = format!("write `{title}` above the keys of each one");
        let DeValue::Array(list) = entry.value.get_ref() else {
            entry.wrong_type("a list of tables", &help, findings);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for item in list.iter() {
            match item.get_ref() {
                DeValue::Table(table) => {
                    sections.push(Section::new(title, item.span(), table, findings));
                }
                _ => Entry { key, value: item }.wrong_type("a table", &help, findings),
            }
        }
        sections
    }
}

/// A key's value, or one item of a list.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    /// The key, for messages.
    pub(super) key: &'static str,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Entry<'a> {
    /// The place of the value.
    pub(super) fn span(&self) -> Range<usize> {
        self.value.span()
    }

    /// A finding about this value.
    pub(super) fn error(&self, message: impl Into<String>) -> Finding {
        Finding::error(self.span(), message)
    }

    /// The text, if the value is one.
    pub(super) fn as_text(&self) -> Option<&'a str> {
        self.value.get_ref().as_str()
    }

    /// The items, if the value is a list.
    pub(super) fn as_list(&self) -> Option<Vec<Entry<'a>>> {
        let list = self.value.get_ref().as_array()?;
        Some(
            list.iter()
                .map(|value| Entry {
                    key: self.key,
                    value,
                })
                .collect(),
        )
    }

    /// The number, if the value is one; `i128` holds all that TOML can say in 64 bits, and what
    /// does not even fit that is as wrong as any other number out of range.
    pub(super) fn as_integer(&self) -> Option<i128> {
        let integer = self.value.get_ref().as_integer()?;
        let digits = integer.as_str().replace('_', "");
        let negative = digits.starts_with('-');
        let end = if negative { i128::MIN } else { i128::MAX };
        Some(i128::from_str_radix(&digits, integer.radix()).unwrap_or(end))
    }

    /// The keys of a table that stands in place of a value.
    pub(super) fn as_section(
        &self,
        title: &'static str,
        findings: &mut Findings,
    ) -> Option<Section<'a>> {
        let table = self.value.get_ref().as_table()?;
        Some(Section::new(title, self.span(), table, findings))
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self, findings: &mut Findings) -> Option<bool> {
        let value = self.value.get_ref().as_bool();
        if value.is_none() {
            let help = match self.as_text() {
                Some(word @ ("true" | "false")) => format!("write {word} without quotes"),
                _ => "write true or false".to_owned(),
            };
            self.wrong_type("true or false", &help, findings);
        }
        value
    }

    /// A text.
    pub(super) fn text(&self, example: &str, findings: &mut Findings) -> Option<&'a str> {
        let text = self.as_text();
        if text.is_none() {
            self.wrong_type(
                "a string",
                &format!("write a string such as {example}"),
                findings,
            );
        }
        text
    }

    /// A list.
    pub(super) fn list(&self, example: &str, findings: &mut Findings) -> Option<Vec<Entry<'a>>> {
        let list = self.as_list();
        if list.is_none() {
            let help = match self.as_text() {
                Some(text) => format!("write [{text:?}]"),
                None => format!("write a list such as {example}"),
            };
            self.wrong_type("a list", &help, findings);
        }
        list
    }

    /// A text that a type can read.
    pub(super) fn parse<T>(&self, example: &str, findings: &mut Findings) -> Option<T>
    where
        T: FromStr<Err: Display>,
    {
        let text = self.text(example, findings)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                findings.push(
                    self.error(format!("`{}`: {error}", self.key))
                        .help(format!("write for example {example}")),
                );
                None
            }
        }
    }

    /// One of the words of `T`.
    pub(super) fn word<T: Keyword>(&self, findings: &mut Findings) -> Option<T> {
        let Some(word) = self.as_text() else {
            self.wrong_type("a string", &format!("write {}", any_of(T::WORDS)), findings);
            return None;
        };
        let value = T::from_word(word);
        if value.is_none() {
            let help = match closest(word, T::WORDS) {
                Some(meant) => {
                    format!(
                        "did you mean {meant:?}? The values are {}",
                        any_of(T::WORDS)
                    )
                }
                None => format!("write {}", any_of(T::WORDS)),
            };
            findings.push(
                self.error(format!("`{}` cannot be {word:?}", self.key))
                    .help(help),
            );
        }
        value
    }

    /// Records that the value has another type than `wanted`.
    pub(super) fn wrong_type(&self, wanted: &str, help: &str, findings: &mut Findings) {
        let found = match self.value.get_ref() {
            DeValue::Array(_) => "a list",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Float(_) => "a number with a fraction",
            DeValue::Integer(_) => "a number",
            DeValue::String(_) => "a string",
            DeValue::Table(_) => "a table",
        };
        let message = format!("`{}` must be {wanted}, not {found}", self.key);
        findings.push(self.error(message).help(help));
    }
}

/// `"a"`, `"b"` or `"c"`, as a person would list them.
fn any_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

/// How messages call a table.
fn place(title: &'static str) -> &'static str {
    if title.is_empty() { "the file" } else { title }
}

fn unknown_key(
    title: &'static str,
    known: &[&'static str],
    name: &str,
    span: Range<usize>,
) -> Finding {
    let place = place(title);
    let finding = Finding::error(span, format!("unknown key `{name}` in {place}"));
    let elsewhere = schema::SECTIONS
        .iter()
        .find(|section| section.keys.contains(&name));
    let list = || {
        known
            .iter()
            .map(|key| format!("`{key}`"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    finding.help(match (closest(name, known), elsewhere) {
        (Some(meant), _) => format!("did you mean `{meant}`?"),
        (None, Some(other)) if other.title.is_empty() => {
            format!("`{name}` belongs to the top level, above every `[...]`")
        }
        (None, Some(other)) => format!("`{name}` is a key of {}", other.title),
        (None, None) => format!("the keys of {place} are {}", list()),
    })
}

/// The word that was probably meant: a third of its characters may differ.
fn closest(word: &str, words: &[&'static str]) -> Option<&'static str> {
    // A long text is no typing error, and the distance costs time by the product of the lengths.
    if word.len() > 64 {
        return None;
    }
    let normal = word.to_lowercase().replace('-', "_");
    words
        .iter()
        .map(|known| {
            (
                strsim::damerau_levenshtein(&normal, &known.replace('-', "_")),
                *known,
            )
        })
        .filter(|(distance, known)| *distance <= (known.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_are_near_or_none() {
        let words = &["network", "host_ports", "icc", "nat-unprotected"];
        for (typed, meant) in [
            ("netwrok", Some("network")),
            ("networks", Some("network")),
            ("hostPorts", Some("host_ports")),
            ("host-ports", Some("host_ports")),
            ("ICC", Some("icc")),
            ("nat_unprotected", Some("nat-unprotected")),
            ("enable_icc", None),
            ("x", None),
        ] {
            assert_eq!(closest(typed, words), meant, "{typed}");
        }
    }

    #[test]
    fn lists_of_words() {
        assert_eq!(any_of(&["a"]), r#""a""#);
        assert_eq!(any_of(&["a", "b", "c"]), r#""a", "b" or "c""#);
    }
}
