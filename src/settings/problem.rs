//! What is wrong with a configuration file, and where.

use std::fmt;
use std::ops::Range;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is accepted, but the operator should know.
    Warning,
}

/// One thing that is wrong with a configuration file.
///
/// Shown as `config.toml:12:5: error: WHAT; FIX`. It never holds a secret's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file's name, as it was given.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// How bad it is.
    pub severity: Severity,
    /// The kind of mistake, for programs: stable, in snake_case.
    pub code: &'static str,
    /// What is wrong.
    pub what: String,
    /// What to do; empty when `what` says it all.
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let Problem { file, line, column, what, fix, .. } = self;
        write!(out, "{file}:{line}:{column}: {severity}: {what}")?;
        if fix.is_empty() { Ok(()) } else { write!(out, "; {fix}") }
    }
}

/// Collects problems; knows the text, so that byte offsets become lines and columns.
pub(super) struct Report<'t> {
    file: String,
    text: &'t str,
    problems: Vec<Problem>,
}

impl<'t> Report<'t> {
    /// No problems so far.
    pub(super) fn new(file: String, text: &'t str) -> Self {
        Report { file, text, problems: Vec::new() }
    }

    /// The text that is checked.
    pub(super) fn text(&self) -> &'t str {
        self.text
    }

    /// Adds an error at the start of `span` (byte offsets). Its code is `invalid_value` unless
    /// the caller changes it.
    pub(super) fn error(
        &mut self,
        span: Range<usize>,
        what: impl Into<String>,
        fix: &str,
    ) -> &mut Problem {
        self.push(Severity::Error, span, what.into(), fix)
    }

    /// Adds a warning at the start of `span` (byte offsets). Its code is `unwise` unless the
    /// caller changes it.
    pub(super) fn warning(
        &mut self,
        span: Range<usize>,
        what: impl Into<String>,
        fix: &str,
    ) -> &mut Problem {
        self.push(Severity::Warning, span, what.into(), fix)
    }

    /// Whether anything refuses the file.
    pub(super) fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// Everything, in the order of the file.
    pub(super) fn into_problems(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|p| (p.line, p.column, p.severity));
        self.problems
    }

    fn push(
        &mut self,
        severity: Severity,
        span: Range<usize>,
        what: String,
        fix: &str,
    ) -> &mut Problem {
        let (line, column) = self.position(span.start);
        let code = match severity {
            Severity::Error => "invalid_value",
            Severity::Warning => "unwise",
        };
        let (file, fix) = (self.file.clone(), fix.to_owned());
        self.problems.push(Problem { file, line, column, severity, code, what, fix });
        self.problems.last_mut().expect("it was just added")
    }

    fn position(&self, offset: usize) -> (u32, u32) {
        let before: String =
            self.text.char_indices().take_while(|(at, _)| *at < offset).map(|(_, c)| c).collect();
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        (line as u32, column as u32)
    }
}

/// The candidate that `word` was probably meant to be, as a question for [`Problem::fix`].
pub(super) fn did_you_mean<'c>(
    word: &str,
    candidates: impl Iterator<Item = &'c str>,
) -> Option<String> {
    let lower = word.to_lowercase();
    let distance = |candidate: &str| strsim::damerau_levenshtein(&lower, candidate);
    let nearest = candidates.min_by_key(|candidate| distance(candidate))?;
    let near = distance(nearest) <= (nearest.len() / 3).max(1);
    near.then(|| format!("did you mean \"{nearest}\"?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters() {
        let text = "a = 1\nä = \"ö\"; x\n";
        let at = |needle: &str| {
            let start = text.find(needle).expect("the text has it");
            Report::new(String::new(), text).position(start)
        };
        assert_eq!(at("a"), (1, 1));
        assert_eq!(at("1"), (1, 5));
        assert_eq!(at("ä"), (2, 1));
        assert_eq!(at("x"), (2, 10));
        assert_eq!(Report::new(String::new(), "").position(0), (1, 1));
        assert_eq!(Report::new(String::new(), "x").position(99), (1, 2));
    }

    #[test]
    fn shown_with_place_and_fix() {
        let mut report = Report::new("c.toml".into(), "\n\n    idel = 1\n");
        report.warning(0..0, "late", "");
        report.error(6..10, "unknown key \"idel\"", "did you mean \"idle\"?");
        assert!(report.has_errors());
        let shown: Vec<String> = report.into_problems().iter().map(|p| p.to_string()).collect();
        assert_eq!(
            shown,
            [
                "c.toml:1:1: warning: late",
                "c.toml:3:5: error: unknown key \"idel\"; did you mean \"idle\"?"
            ]
        );
    }

    #[test]
    fn suggestions() {
        let keys = ["idle", "linger", "tls_handshake", "drain"];
        let table: &[(&str, Option<&str>)] = &[
            ("idel", Some("idle")),
            ("IDLE", Some("idle")),
            ("tls_handshke", Some("tls_handshake")),
            ("tls-handshake", Some("tls_handshake")),
            ("timeout", None),
            ("", None),
        ];
        for (word, meant) in table {
            let expected = meant.map(|meant| format!("did you mean \"{meant}\"?"));
            assert_eq!(did_you_mean(word, keys.iter().copied()), expected, "{word:?}");
        }
    }
}
