//! One line of the doctor's report.

use serde_json::{Value, json};

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// It was not looked at; the finding says why.
    Skipped,
    /// Nothing to do.
    Ok,
    /// The gateway works, but not as well as it could.
    Warn,
    /// The gateway does not work.
    Fail,
}

impl Status {
    /// As it is printed.
    pub fn label(self) -> &'static str {
        match self {
            Status::Skipped => "skip",
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "fail",
        }
    }
}

/// What one check found, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What was checked: stable, for programs.
    pub check: &'static str,
    /// How it is.
    pub status: Status,
    /// What was found, for people.
    pub finding: String,
    /// What to do; empty when there is nothing to do.
    pub remedy: String,
}

impl Row {
    /// Nothing to do.
    pub fn ok(check: &'static str, finding: impl Into<String>) -> Row {
        Row { check, status: Status::Ok, finding: finding.into(), remedy: String::new() }
    }

    /// Not looked at.
    pub fn skipped(check: &'static str, why: impl Into<String>) -> Row {
        Row { check, status: Status::Skipped, finding: why.into(), remedy: String::new() }
    }

    /// Works, with a loss.
    pub fn warn(check: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Row {
        let (finding, remedy) = (finding.into(), remedy.into());
        Row { check, status: Status::Warn, finding, remedy }
    }

    /// Does not work.
    pub fn fail(check: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Row {
        let (finding, remedy) = (finding.into(), remedy.into());
        Row { check, status: Status::Fail, finding, remedy }
    }

    /// For people, in one or two lines.
    pub fn text(&self) -> String {
        let Row { check, status, finding, remedy } = self;
        let line = format!("{:4}  {check:18} {finding}\n", status.label());
        match remedy.as_str() {
            "" => line,
            remedy => format!("{line}      {:18} -> {remedy}\n", ""),
        }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "check": self.check,
            "status": self.status.label(),
            "finding": self.finding,
            "remedy": if self.remedy.is_empty() { Value::Null } else { self.remedy.as_str().into() },
        })
    }
}
