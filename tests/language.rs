//! Refuses words that the project's plain English does not use, in the documentation, the command
//! line's help and the comments.

use std::fs;
use std::path::{Path, PathBuf};

/// The word or phrase, in lower case with single spaces, and what to write instead.
const BANNED: &[(&str, &str)] = &[
    ("anew", "again"),
    ("anybody", "name the actor: the gateway, a client, any program"),
    ("are told", "say which side sends what"),
    ("at once", "immediately, concurrently, or in one burst"),
    ("everybody", "all clients, every user"),
    ("for ever", "forever, without end"),
    ("is told", "say which side sends what"),
    ("nobody", "no client, no user, no program"),
    ("somebody", "name the actor: an attacker, another user"),
    ("whoever", "a client that, the side that"),
];

/// Paths that are not converted yet: a folder with its `/`, or a file. Remove a path when the test
/// says so; never add one.
const NOT_YET: &[&str] = &[];

struct Finding {
    file: PathBuf,
    line: usize,
    word: &'static str,
    instead: &'static str,
}

#[test]
fn documentation_and_comments_are_in_plain_english() {
    let findings: Vec<Finding> = texts().iter().flat_map(|(file, text)| find(file, text)).collect();
    let excused = |file: &Path, path: &str| match path.strip_suffix('/') {
        Some(folder) => file.starts_with(folder),
        None => file == Path::new(path),
    };
    let wrong: Vec<String> = findings
        .iter()
        .filter(|found| !NOT_YET.iter().any(|path| excused(&found.file, path)))
        .map(|found| {
            let Finding { file, line, word, instead } = found;
            format!("{}:{line}: \"{word}\"; write: {instead}", file.display())
        })
        .collect();
    assert!(wrong.is_empty(), "not plain English:\n{}", wrong.join("\n"));
    let converted: Vec<_> = NOT_YET
        .iter()
        .filter(|path| !findings.iter().any(|found| excused(&found.file, path)))
        .collect();
    assert!(converted.is_empty(), "converted: remove from NOT_YET: {converted:?}");
}

/// What people read: whole pages, the whole of src/cli (its strings are the help), and the
/// comments elsewhere in src.
fn texts() -> Vec<(PathBuf, String)> {
    let mut texts = Vec::new();
    let mut add = |file: PathBuf, text: String| texts.push((file, text));
    for name in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "deploy/README.md"] {
        add(name.into(), fs::read_to_string(name).unwrap());
    }
    for file in files(Path::new("docs"), "md").into_iter().chain(files(Path::new("config"), "toml"))
    {
        let text = fs::read_to_string(&file).unwrap();
        add(file, text);
    }
    for file in files(Path::new("src"), "rs") {
        let text = fs::read_to_string(&file).unwrap();
        let text = if file.starts_with("src/cli") { text } else { comments(&text) };
        add(file, text);
    }
    texts
}

/// The comments that have lines of their own, each on its line of the file.
fn comments(text: &str) -> String {
    let comment = |line: &str| {
        let line = line.trim_start();
        let text = line.strip_prefix("///").or(line.strip_prefix("//!"));
        text.or(line.strip_prefix("//")).unwrap_or("").to_owned()
    };
    text.lines().map(comment).collect::<Vec<_>>().join("\n")
}

fn find(file: &Path, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    // A phrase may begin on one line and end on the next.
    let words: Vec<(usize, String)> = text
        .lines()
        .enumerate()
        .flat_map(|(index, line)| words_of(line).map(move |word| (index + 1, word)))
        .collect();
    for (at, (line, _)) in words.iter().enumerate() {
        for &(word, instead) in BANNED {
            let mut rest = words[at..].iter().map(|(_, word)| word.as_str());
            if word.split(' ').all(|part| rest.next() == Some(part)) {
                findings.push(Finding { file: file.to_owned(), line: *line, word, instead });
            }
        }
    }
    findings
}

/// The words in lower case; a mark of punctuation counts as one, so that no phrase spans it.
fn words_of(line: &str) -> impl Iterator<Item = String> {
    let line = line.trim_start().trim_start_matches(['/', '!', '#', '>', '*']).to_lowercase();
    let mut words = vec![String::new()];
    for c in line.chars() {
        if c.is_alphanumeric() || c == '\'' || c == '_' {
            words.last_mut().unwrap().push(c);
        } else {
            if !c.is_whitespace() {
                words.push(c.to_string());
            }
            words.push(String::new());
        }
    }
    words.into_iter().filter(|word| !word.is_empty())
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|ending| ending == extension) {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_phrase_is_found_wherever_its_lines_break() {
    let found = |text: &str| {
        let words = find(Path::new("x"), text).into_iter().map(|found| (found.line, found.word));
        words.collect::<Vec<_>>()
    };
    assert_eq!(
        found("It closes at\nonce. Nobody is told."),
        [(1, "at once"), (2, "nobody"), (2, "is told")]
    );
    assert_eq!(found("/// It retries for\n/// ever."), [(1, "for ever")]);
    assert_eq!(found("forever; a renewal, at: once; nobody_else"), []);
    assert_eq!(comments("//! a\ncode at once // x\n    /// b // c\n// d"), " a\n\n b // c\n d");
}
