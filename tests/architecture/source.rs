//! Reads Rust files just as far as the rules need: no comments, no literals, no tests.

use std::fs;
use std::path::{Path, PathBuf};

pub struct Source {
    pub file: PathBuf,
    /// `["connection", "client", "state"]`; a `mod.rs` is its folder.
    pub module: Vec<String>,
    pub text: String,
    /// `text` with comments, the contents of literals and test items blanked: what is left stands
    /// at its place.
    pub code: String,
}

/// The files below `folder` that are not tests as a whole.
pub fn production(folder: &str) -> Vec<Source> {
    let files = rust_files(Path::new(folder)).into_iter().filter(|file| !is_test(file));
    files
        .map(|file| {
            let text = fs::read_to_string(&file).unwrap();
            let code = without_tests(&code_of(&text));
            Source { module: module_of(&file), file, text, code }
        })
        .collect()
}

pub fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn is_test(file: &Path) -> bool {
    let name = file.file_stem().unwrap().to_str().unwrap();
    name.ends_with("tests") || name == "testing" || name == "end_to_end"
}

fn module_of(file: &Path) -> Vec<String> {
    let path = file.with_extension("");
    let mut names: Vec<String> =
        path.iter().skip(1).map(|name| name.to_str().unwrap().to_owned()).collect();
    if names.last().is_some_and(|name| name == "mod") {
        names.pop();
    }
    names
}

impl Source {
    /// `connection`, `main`: what ARCHITECTURE.md gives a layer.
    pub fn layer(&self) -> &str {
        &self.module[0]
    }

    pub fn line(&self, at: usize) -> usize {
        self.code[..at].matches('\n').count() + 1
    }
}

/// The text with comments and the contents of literals as blanks, of the same length.
pub fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let (skip, blank) = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => {
                let end = text[at..].find('\n').unwrap_or(text.len() - at);
                (end, 0..end)
            }
            b'/' if bytes[at..].starts_with(b"/*") => {
                let end = text[at..].find("*/").map_or(text.len() - at, |end| end + 2);
                (end, 0..end)
            }
            b'r' if raw_hashes(bytes, at).is_some() => {
                let hashes = raw_hashes(bytes, at).unwrap();
                let close = format!("\"{}", "#".repeat(hashes));
                let open = hashes + 2;
                let end = open + text[at + open..].find(&close).unwrap() + close.len();
                (end, open..end - close.len())
            }
            b'"' => {
                let mut end = 1;
                while bytes[at + end] != b'"' {
                    end += 1 + usize::from(bytes[at + end] == b'\\');
                }
                (end + 1, 1..end)
            }
            b'\'' => match character_length(&text[at..]) {
                Some(length) => (length, 1..length - 1),
                None => (1, 0..0),
            },
            _ => (1, 0..0),
        };
        for byte in &mut code[at + blank.start..at + blank.end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at += skip;
    }
    String::from_utf8(code).expect("whole characters were blanked")
}

/// The `#` of `r##"` at this place, unless the `r` ends a name.
fn raw_hashes(bytes: &[u8], at: usize) -> Option<usize> {
    let before = at.checked_sub(1).map(|at| bytes[at]);
    if before.is_some_and(|byte| byte != b'b' && is_name(byte)) {
        return None;
    }
    let hashes = bytes[at + 1..].iter().take_while(|byte| **byte == b'#').count();
    (bytes.get(at + 1 + hashes) == Some(&b'"')).then_some(hashes)
}

/// The length of a character literal; none for a lifetime.
fn character_length(text: &str) -> Option<usize> {
    let mut characters = text.char_indices().skip(1);
    let (_, first) = characters.next()?;
    if first == '\\' {
        let (escaped, _) = characters.next()?;
        return text[escaped + 1..].find('\'').map(|end| escaped + 1 + end + 1);
    }
    let (end, next) = characters.next()?;
    (next == '\'').then_some(end + 1)
}

pub fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Blanks each item below `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut kept = code.as_bytes().to_vec();
    for (start, mark) in code.match_indices("#[cfg(test)]") {
        let item = start + mark.len();
        let end = item_end(code, item);
        for byte in &mut kept[start..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    }
    String::from_utf8(kept).expect("whole characters were blanked")
}

/// Where the item ends that begins at or after `from`: its `;`, or the end of its first block.
pub fn item_end(code: &str, from: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' => depth -= 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            b';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

#[test]
fn comments_literals_and_tests_are_blanked() {
    let code = code_of(r##"a("x // \" y", 'b', '\'', b'"', r#"c " d"#) /* e */ & 'f // g"##);
    assert_eq!(code, "a(\"         \", ' ', '  ', b' ', r#\"     \"#)         & 'f     ");
    let text = "fn a() {}\n#[cfg(test)]\n#[x]\nmod tests {\n  {}\n}\nfn b() {}\n";
    let left = without_tests(text);
    assert_eq!(left.len(), text.len());
    assert_eq!(left.split_whitespace().collect::<Vec<_>>().join(" "), "fn a() {} fn b() {}");
}
