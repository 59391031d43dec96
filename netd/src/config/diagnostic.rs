//! Findings about a file, with their place in it, and how they are shown.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::Serialize;

/// How many findings [`Report::render`] shows before it only counts the rest.
const SHOWN: usize = 50;

/// Whether a finding makes the file unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is taken, but may not mean what was wanted.
    Warning,
}

/// One finding about a file. Serializes for `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// What is wrong, in one sentence.
    pub message: String,
    /// The file's name, as given to the parser.
    pub file: String,
    /// Line of the first character, from 1.
    pub line: usize,
    /// Column of the first character, from 1, in characters.
    pub column: usize,
    /// What to write instead.
    pub help: Option<String>,
    #[serde(skip)]
    finding: Finding,
}

/// All findings of one kind about a file, in the order of their places. `Display` renders them
/// without colour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    file: String,
    source: Arc<str>,
    diagnostics: Vec<Diagnostic>,
}

impl Report {
    /// The findings.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.diagnostics.is_empty()
    }

    /// The findings as a compiler shows them: message, place, source line, help. `color` adds
    /// terminal escapes, so it should be false when the output is no terminal. At most 50 are
    /// shown, the others counted. Every line ends with a newline.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let mut text = String::new();
        for diagnostic in self.diagnostics.iter().take(SHOWN) {
            let finding = &diagnostic.finding;
            let level = match diagnostic.severity {
                Severity::Error => Level::ERROR,
                Severity::Warning => Level::WARNING,
            };
            let primary = AnnotationKind::Primary.span(visible(&self.source, &finding.span));
            let snippet = Snippet::source(self.source.as_ref())
                .path(self.file.as_str())
                .annotation(primary)
                .annotations(finding.related.iter().map(|(span, label)| {
                    AnnotationKind::Context
                        .span(visible(&self.source, span))
                        .label(label.as_str())
                }));
            let mut group = level
                .primary_title(finding.message.as_str())
                .element(snippet);
            if let Some(help) = &finding.help {
                group = group.element(Level::HELP.message(help.as_str()));
            }
            text.push_str(&renderer.render(&[group]));
            text.push_str("\n\n");
        }
        if let Some(rest) = self
            .diagnostics
            .len()
            .checked_sub(SHOWN)
            .filter(|rest| *rest > 0)
        {
            text.push_str(&format!("... and {rest} more\n\n"));
        }
        text.pop();
        text
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

/// A finding while the file is read: byte offsets instead of lines and columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    severity: Severity,
    span: Range<usize>,
    message: String,
    help: Option<String>,
    related: Vec<(Range<usize>, String)>,
}

impl Finding {
    pub(super) fn error(span: Range<usize>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            span,
            message: message.into(),
            help: None,
            related: Vec::new(),
        }
    }

    pub(super) fn warning(span: Range<usize>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(span, message)
        }
    }

    /// What to write instead.
    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Another place that has to do with it.
    pub(super) fn related(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.related.push((span, label.into()));
        self
    }
}

/// Collects findings, so that one run reports all of them.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    pub(super) fn push(&mut self, finding: Finding) {
        self.0.push(finding);
    }

    pub(super) fn has_errors(&self) -> bool {
        self.0
            .iter()
            .any(|finding| finding.severity == Severity::Error)
    }

    /// The findings of one severity with their places in `source`, sorted by place.
    pub(super) fn report(&self, severity: Severity, file: &str, source: &str) -> Report {
        let mut findings: Vec<&Finding> = self
            .0
            .iter()
            .filter(|finding| finding.severity == severity)
            .collect();
        findings.sort_by_key(|finding| finding.span.start);
        let mut places = Places::new(source);
        let diagnostics = findings
            .into_iter()
            .map(|finding| {
                let (line, column) = places.of(visible(source, &finding.span).start);
                Diagnostic {
                    severity,
                    message: finding.message.clone(),
                    file: file.to_owned(),
                    line,
                    column,
                    help: finding.help.clone(),
                    finding: finding.clone(),
                }
            })
            .collect();
        Report {
            file: file.to_owned(),
            source: source.into(),
            diagnostics,
        }
    }
}

/// Turns rising byte offsets into lines and columns in one pass over the text.
struct Places<'a> {
    source: &'a str,
    line: usize,
    line_start: usize,
}

impl<'a> Places<'a> {
    fn new(source: &'a str) -> Self {
        Self {
            source,
            line: 1,
            line_start: 0,
        }
    }

    fn of(&mut self, offset: usize) -> (usize, usize) {
        while let Some(newline) = self.source[self.line_start..offset].find('\n') {
            self.line += 1;
            self.line_start += newline + 1;
        }
        (
            self.line,
            self.source[self.line_start..offset].chars().count() + 1,
        )
    }
}

/// The part of `span` that can be shown: inside the text, on character boundaries, and in one
/// line, since marking a whole multi-line value would hide what the message is about.
fn visible(source: &str, span: &Range<usize>) -> Range<usize> {
    let start = source.floor_char_boundary(span.start);
    let end = source.ceil_char_boundary(span.end).max(start);
    let line_end = source[start..end]
        .find(['\n', '\r'])
        .map_or(end, |length| start + length);
    start..line_end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(source: &str, finding: Finding) -> Report {
        let mut findings = Findings::default();
        let severity = finding.severity;
        findings.push(finding);
        findings.report(severity, "netd.toml", source)
    }

    #[test]
    fn looks_like_a_compiler() {
        let finding = Finding::error(15..18, "no such thing")
            .related(0..4, "because of this")
            .help("write `two`");
        assert_eq!(
            report("one = 1\ntoo = \"2ä!\"\n", finding).render(false),
            "\
error: no such thing
 --> netd.toml:2:8
  |
1 | one = 1
  | ---- because of this
2 | too = \"2ä!\"
  |        ^^
  |
  = help: write `two`
"
        );
    }

    #[test]
    fn colour_only_when_asked() {
        let report = report("a", Finding::warning(0..1, "b"));
        assert!(report.render(true).contains('\x1b'));
        assert!(!report.render(false).contains('\x1b'));
        assert!(report.to_string().starts_with("warning: b\n"));
    }

    #[test]
    fn any_span_can_be_shown() {
        for source in ["", "\n", "ä", "a\r\nb", "\u{feff}x", "a\tb"] {
            for start in 0..6 {
                for end in 0..6 {
                    let report = report(source, Finding::error(start..end, "x"));
                    assert!(!report.render(false).is_empty());
                }
            }
        }
    }

    #[test]
    fn sorted_counted_and_cut() {
        let source = "x\n".repeat(60);
        let mut findings = Findings::default();
        for line in (0..60).rev() {
            findings.push(Finding::error(line * 2..line * 2 + 1, format!("at {line}")));
        }
        let report = findings.report(Severity::Error, "f", &source);
        let lines: Vec<_> = report
            .diagnostics()
            .iter()
            .map(|found| found.line)
            .collect();
        assert_eq!(lines, (1..=60).collect::<Vec<_>>());
        let text = report.render(false);
        assert_eq!(text.matches("error: ").count(), SHOWN);
        assert!(text.ends_with("... and 10 more\n"), "{text}");
        assert!(findings.report(Severity::Warning, "f", &source).is_empty());
    }
}
