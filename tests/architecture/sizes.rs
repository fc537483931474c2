//! Refuses files and functions that are too long, unless a comment beside them says
//! `Long because: …`.

use crate::source::{self, Source};

const FILE_LINES: usize = 600;
const FUNCTION_LINES: usize = 70;
const REASON: &str = "Long because: ";

/// Files that are not split yet. Remove a file when the test says so; never add one.
const NOT_YET: &[&str] = &[];

#[test]
fn files_and_functions_are_short_or_say_why_not() {
    let all: Vec<String> = source::production("src").iter().flat_map(too_long).collect();
    let excused = |wrong: &str, file: &str| wrong.split(':').next() == Some(file);
    let wrong: Vec<_> =
        all.iter().filter(|wrong| !NOT_YET.iter().any(|file| excused(wrong, file))).collect();
    assert!(wrong.is_empty(), "split, or say \"{REASON}…\" beside:\n{wrong:#?}");
    let split: Vec<_> =
        NOT_YET.iter().filter(|file| !all.iter().any(|wrong| excused(wrong, file))).collect();
    assert!(split.is_empty(), "split: remove from NOT_YET: {split:?}");
}

fn too_long(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    let name = source.file.display();
    let lines = without_test_lines(source);
    let head: String = source.text.lines().take_while(|line| line.starts_with("//")).collect();
    if lines > FILE_LINES && !head.contains(REASON) {
        wrong.push(format!("{name}: {lines} lines without its tests"));
    }
    if lines <= FILE_LINES && head.contains(REASON) {
        wrong.push(format!("{name}: {lines} lines need no reason"));
    }
    for function in functions(source) {
        let place =
            format!("{name}:{}: {} has {} lines", function.line, function.name, function.lines);
        match (function.lines > FUNCTION_LINES, function.reason) {
            (true, false) => wrong.push(place),
            (false, true) => wrong.push(format!("{place}, which need no reason")),
            _ => {}
        }
    }
    wrong
}

/// The lines that hold more than what `Source::code` blanked as a test.
fn without_test_lines(source: &Source) -> usize {
    let whole = source::code_of(&source.text);
    let of_tests = whole.lines().zip(source.code.lines()).filter(|(whole, kept)| whole != kept);
    source.text.lines().count() - of_tests.count()
}

struct Function {
    name: String,
    line: usize,
    lines: usize,
    reason: bool,
}

fn functions(source: &Source) -> Vec<Function> {
    let code = &source.code;
    let text: Vec<&str> = source.text.lines().collect();
    let starts = code.match_indices("fn ").filter(|(at, _)| {
        at.checked_sub(1).is_none_or(|before| !source::is_name(code.as_bytes()[before]))
    });
    let mut functions = Vec::new();
    for (at, word) in starts {
        let name: String = code[at + word.len()..]
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        // A type, as in `Box<dyn Fn(fn (u8))>`, has no name.
        if name.is_empty() {
            continue;
        }
        let line = source.line(at);
        let lines = source.line(source::item_end(code, at) - 1) + 1 - line;
        let above = text[..line - 1].iter().rev().take_while(|line| {
            let line = line.trim_start();
            line.starts_with("//") || line.starts_with("#[")
        });
        let reason = above.into_iter().any(|line| line.contains(REASON));
        functions.push(Function { name, line, lines, reason });
    }
    functions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> Vec<String> {
        let code = source::code_of(text);
        let file = "x.rs".into();
        too_long(&Source { file, module: vec!["x".into()], text: text.into(), code })
    }

    #[test]
    fn a_long_function_needs_a_reason_and_a_short_one_none() {
        let of_lines =
            |n: usize| format!("fn f<'a, 'b>(a: [u8; 2]) {{\n{}}}\n", "    a;\n".repeat(n - 2));
        assert_eq!(wrong(&of_lines(70)), [""; 0]);
        assert_eq!(wrong(&of_lines(71)), ["x.rs:1: f has 71 lines"]);
        let with_reason = |n| format!("// Long because: a table.\n#[inline]\n{}", of_lines(n));
        assert_eq!(wrong(&format!("\n{}", with_reason(71))), [""; 0]);
        assert_eq!(
            wrong(&format!("\n{}", with_reason(3))),
            ["x.rs:4: f has 3 lines, which need no reason"]
        );
    }

    #[test]
    fn a_long_file_needs_a_reason() {
        assert_eq!(wrong(&"\n".repeat(600)), [""; 0]);
        assert_eq!(wrong(&"\n".repeat(601)), ["x.rs: 601 lines without its tests"]);
        assert_eq!(wrong(&format!("//! Long because: x.\n{}", "\n".repeat(600))), [""; 0]);
    }
}
