//! What a fault cost, as a table; and what could not be run.

use std::sync::Mutex;

use libtest_mimic::Failed;

/// What a client in one stage saw of a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub stage: &'static str,
    /// How its connection ended, or that it went on.
    pub saw: String,
    pub sent: u32,
    pub answered: u32,
}

/// How the run of a fault ended, if no assertion failed.
pub enum Outcome {
    Ran(Vec<Row>),
    /// What is missing here, and what to do about it.
    NotRun(String),
}

static SUMMARY: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Notes an outcome. What was not run is a failure where everything is required.
pub fn judge(name: &str, outcome: Outcome) -> Result<(), Failed> {
    let (text, result) = match outcome {
        Outcome::Ran(rows) => (table(name, &rows), Ok(())),
        Outcome::NotRun(why) => {
            let text = format!("{name}: NOT RUN: {why}\n");
            let required = std::env::var_os("PORTCULLIS_FAULTS").is_some_and(|v| v == "required");
            let result = if required { Err(Failed::from(&text)) } else { Ok(()) };
            (text, result)
        }
    };
    SUMMARY.lock().expect("not poisoned").push(text);
    result
}

/// Everything that was noted.
pub fn print_summary() {
    let mut summary = SUMMARY.lock().expect("not poisoned").clone();
    summary.sort();
    for text in &summary {
        println!("{text}");
    }
    let not_run = summary.iter().filter(|text| text.contains(": NOT RUN: ")).count();
    if not_run > 0 {
        println!("{not_run} of the faults NOT RUN, see above\n");
    }
}

fn table(name: &str, rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.stage.len()).max().unwrap_or(0);
    let mut text = format!("{name}:\n");
    for Row { stage, saw, sent, answered } in rows {
        text += &format!("  {stage:width$} -> {saw}");
        if *sent > 0 {
            let lost = sent - answered;
            text += &format!("; sent {sent}, answered {answered}, lost with the close {lost}");
        }
        text += "\n";
    }
    text
}

/// Compares what was seen with what must be, row by row.
#[track_caller]
pub fn assert_rows(name: &str, rows: &[Row], expected: &[(&str, &str, u32, u32)]) {
    let seen: Vec<_> =
        rows.iter().map(|row| (row.stage, row.saw.as_str(), row.sent, row.answered)).collect();
    assert_eq!(seen, expected, "\n{}", table(name, rows));
}
