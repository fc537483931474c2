//! Refuses circles of imports among the files of a folder. A folder's own `mod.rs` is one of them;
//! a `pub use` there that only hands on what another file defines is no import.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{self, Source};

type Path = Vec<String>;

/// Folders whose circles are not mended yet. Remove a folder when the test says so; never add one.
const NOT_YET: &[&str] = &["worker"];

/// Circles that stay: the folder, the members, the reason.
const ALLOWED: &[(&str, &[&str], &str)] = &[(
    "settings",
    &["keys", "mod"],
    "a row of the table compares two `Settings`, whose limits and deadlines the table makes",
)];

#[test]
fn the_files_of_a_folder_import_in_one_direction() {
    let circles = circles(&source::production("src"));
    let wrong: Vec<String> = circles
        .iter()
        .filter(|circle| !NOT_YET.contains(&circle.folder.as_str()))
        .filter(|circle| !ALLOWED.iter().any(|allowed| circle.is(allowed)))
        .map(Circle::to_string)
        .collect();
    assert!(wrong.is_empty(), "circles of imports:\n{}", wrong.join("\n"));
    let mended = |folder: &&&str| circles.iter().all(|circle| circle.folder != **folder);
    let mended: Vec<_> = NOT_YET.iter().filter(mended).collect();
    assert!(mended.is_empty(), "mended: remove from NOT_YET: {mended:?}");
    for allowed in ALLOWED {
        assert!(circles.iter().any(|circle| circle.is(allowed)), "mended: remove {allowed:?}");
    }
}

struct Circle {
    folder: String,
    members: Vec<String>,
    /// The imports between members: place, from, to.
    imports: Vec<String>,
}

impl Circle {
    fn is(&self, (folder, members, _reason): &(&str, &[&str], &str)) -> bool {
        self.folder == *folder && self.members == *members
    }
}

impl std::fmt::Display for Circle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.folder, self.members.join(", "))?;
        self.imports.iter().try_for_each(|import| write!(f, "\n    {import}"))
    }
}

/// An import: from which module, to which, and where it is written.
struct Import {
    from: Path,
    to: Path,
    place: String,
}

fn circles(sources: &[Source]) -> Vec<Circle> {
    let imports = imports(sources);
    let folders: BTreeSet<Path> = sources
        .iter()
        .flat_map(|source| (1..source.module.len()).map(|n| source.module[..n].to_vec()))
        .collect();
    folders.iter().flat_map(|folder| circles_of(folder, &imports)).collect()
}

/// The circles among a folder's members: its files, its folders, and its own `mod.rs`.
fn circles_of(folder: &Path, imports: &[Import]) -> Vec<Circle> {
    let member = |module: &Path| -> Option<String> {
        let rest = module.strip_prefix(&folder[..])?;
        Some(rest.first().map_or_else(|| "mod".to_owned(), String::clone))
    };
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut written: Vec<(String, String, String)> = Vec::new();
    for import in imports {
        if let (Some(from), Some(to)) = (member(&import.from), member(&import.to))
            && from != to
        {
            edges.entry(from.clone()).or_default().insert(to.clone());
            written.push((from, to, import.place.clone()));
        }
    }
    let mut found: Vec<Circle> = Vec::new();
    for start in edges.keys() {
        let ahead = reached(&edges, start);
        if !ahead.contains(start) || found.iter().any(|circle| circle.members.contains(start)) {
            continue;
        }
        let members: Vec<String> =
            ahead.iter().filter(|other| reached(&edges, other).contains(start)).cloned().collect();
        let inside = written
            .iter()
            .filter(|(from, to, _)| members.contains(from) && members.contains(to))
            .map(|(from, to, place)| format!("{from} → {to} ({place})"));
        let imports: BTreeSet<String> = inside.collect();
        found.push(Circle {
            folder: folder.join("/"),
            members,
            imports: imports.into_iter().collect(),
        });
    }
    found
}

/// What can be reached from a member by one import or more.
fn reached(edges: &BTreeMap<String, BTreeSet<String>>, start: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut next = vec![start];
    while let Some(member) = next.pop() {
        for to in edges.get(member).into_iter().flatten() {
            if found.insert(to.clone()) {
                next.push(to);
            }
        }
    }
    found
}

/// Every import, followed through the `use` lines of the modules on its way to the file that
/// defines what it names.
fn imports(sources: &[Source]) -> Vec<Import> {
    let modules: BTreeSet<Path> = sources.iter().map(|source| source.module.clone()).collect();
    let paths: Vec<(&Source, Vec<Named>)> =
        sources.iter().map(|source| (source, named_paths(source, &modules))).collect();
    let mut aliases: BTreeMap<(Path, String), Path> = BTreeMap::new();
    for (source, named) in &paths {
        for path in named {
            if let Some(alias) = &path.alias {
                aliases.insert((source.module.clone(), alias.clone()), path.path.clone());
            }
        }
    }
    let mut imports = Vec::new();
    for (source, named) in paths {
        for Named { path, at, handed_on, .. } in named {
            if handed_on {
                continue;
            }
            let Some(to) = defining(&path, &modules, &aliases, 0) else { continue };
            let place = format!("{}:{}", source.file.display(), source.line(at));
            imports.push(Import { from: source.module.clone(), to, place });
        }
    }
    imports
}

fn defining(
    path: &Path,
    modules: &BTreeSet<Path>,
    aliases: &BTreeMap<(Path, String), Path>,
    depth: usize,
) -> Option<Path> {
    let length = (1..=path.len()).rev().find(|n| modules.contains(&path[..*n]))?;
    let (module, rest) = path.split_at(length);
    if let Some(name) = rest.first()
        && let Some(target) = aliases.get(&(module.to_vec(), name.clone()))
    {
        assert!(depth < 20, "{path:?} is an alias of itself");
        let further = [&target[..], &rest[1..]].concat();
        if let Some(found) = defining(&further, modules, aliases, depth + 1) {
            return Some(found);
        }
    }
    Some(module.to_vec())
}

/// A path of this crate in a file, from the crate's root.
struct Named {
    path: Path,
    /// The name that a `use` gives.
    alias: Option<String>,
    /// By a `pub use` whose name the file itself does not use: that is no import.
    handed_on: bool,
    at: usize,
}

fn named_paths(source: &Source, modules: &BTreeSet<Path>) -> Vec<Named> {
    let tokens = tokens(&source.code);
    let mut found = Vec::new();
    // The modules written inside this file, with the depth of their braces.
    let mut inline: Vec<(String, usize)> = Vec::new();
    let mut depth = 0;
    let mut at = 0;
    while at < tokens.len() {
        let (place, token) = tokens[at];
        let here: Path =
            source.module.iter().chain(inline.iter().map(|(name, _)| name)).cloned().collect();
        match token {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                inline.pop_if(|(_, opened)| *opened == depth);
            }
            "mod" if tokens.get(at + 2).is_some_and(|(_, token)| *token == "{") => {
                inline.push((tokens[at + 1].1.to_owned(), depth));
            }
            "use" => {
                let public = at > 0 && ["pub", ")"].contains(&tokens[at - 1].1);
                let mut tree = Vec::new();
                at += 1 + use_tree(&tokens[at + 1..], &Vec::new(), &mut tree);
                for (path, alias) in tree {
                    if let Some(path) = from_root(&path, &here, modules) {
                        let uses = tokens.iter().filter(|(_, token)| *token == alias).count();
                        let handed_on = public && uses == 1;
                        let alias = inline.is_empty().then_some(alias);
                        found.push(Named { path, alias, handed_on, at: place });
                    }
                }
                continue;
            }
            _ if is_word(token) && (at == 0 || tokens[at - 1].1 != "::") => {
                let first = at;
                let mut path = vec![token.to_owned()];
                while let [(_, "::"), (_, next), ..] = tokens[at + 1..] {
                    if !is_word(next) {
                        break;
                    }
                    path.push(next.to_owned());
                    at += 2;
                }
                // `pub(in crate::x)` imports nothing.
                let is_visibility =
                    first >= 2 && tokens[first - 1].1 == "in" && tokens[first - 2].1 == "(";
                if path.len() > 1
                    && !is_visibility
                    && let Some(path) = from_root(&path, &here, modules)
                {
                    found.push(Named { path, alias: None, handed_on: false, at: place });
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Names, `::` and single characters, each with its place.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let bytes = code.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let length = match bytes[at] {
            byte if source::is_name(byte) => {
                bytes[at..].iter().take_while(|byte| source::is_name(**byte)).count()
            }
            b':' if bytes[at..].starts_with(b"::") => 2,
            byte if byte.is_ascii() => 1,
            _ => code[at..].chars().next().map_or(1, char::len_utf8),
        };
        let token = &code[at..at + length];
        if !token.trim().is_empty() {
            tokens.push((at, token));
        }
        at += length;
    }
    tokens
}

fn is_word(token: &str) -> bool {
    token.bytes().all(source::is_name)
}

/// Reads one `use` tree; returns how many tokens it took, its `;` included.
fn use_tree(tokens: &[(usize, &str)], before: &Path, found: &mut Vec<(Path, String)>) -> usize {
    let mut path = before.clone();
    let mut at = 0;
    while let Some(&(_, token)) = tokens.get(at) {
        at += 1;
        match token {
            "{" => {
                while tokens[at].1 != "}" {
                    at += use_tree(&tokens[at..], &path, found);
                    at += usize::from(tokens[at].1 == ",");
                }
                at += 1;
                path.clear();
            }
            "as" => {
                found.push((std::mem::take(&mut path), tokens[at].1.to_owned()));
                at += 1;
            }
            "," | "}" => {
                at -= 1;
                break;
            }
            ";" => break,
            // A glob names nothing that could be followed; the circle is found by its module.
            "*" => {
                found.push((std::mem::take(&mut path), "*".to_owned()));
            }
            "self" if path.len() > before.len() || !before.is_empty() => {}
            word if is_word(word) => path.push(word.to_owned()),
            _ => {}
        }
    }
    if let Some(name) = path.last().cloned() {
        found.push((path, name));
    }
    at
}

/// The path from the crate's root; none if it leads out of the crate.
fn from_root(path: &Path, here: &Path, modules: &BTreeSet<Path>) -> Option<Path> {
    let mut base = here.clone();
    let mut rest = &path[..];
    match rest[0].as_str() {
        "crate" | "portcullis" => {
            base.clear();
            rest = &rest[1..];
        }
        "self" => rest = &rest[1..],
        "super" => {
            while rest.first().is_some_and(|name| name == "super") {
                base.pop();
                rest = &rest[1..];
            }
        }
        // A module right below, by its bare name.
        child => {
            let below: Path = base.iter().cloned().chain([child.to_owned()]).collect();
            if !modules.contains(&below) {
                return None;
            }
        }
    }
    base.extend_from_slice(rest);
    Some(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(module: &str, code: &str) -> Source {
        Source {
            file: format!("{module}.rs").into(),
            module: module.split('/').map(str::to_owned).collect(),
            text: code.to_owned(),
            code: source::code_of(code),
        }
    }

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> = files.iter().map(|(module, code)| file(module, code)).collect();
        let circles = circles(&sources);
        circles
            .iter()
            .map(|circle| format!("{}: {}", circle.folder, circle.members.join(" ")))
            .collect()
    }

    #[test]
    fn a_circle_is_found_however_it_is_written() {
        for (a, b) in [
            ("use super::b::B;", "use super::a::A;"),
            ("use crate::x::b::B;", "fn f(a: super::a::A) {}"),
            ("use super::{b, c::C};", "use crate::x::{a::{A, self}};"),
            ("mod inner { use super::super::b::B; }", "use crate::x::a::A as Z;"),
        ] {
            let files = [("x", ""), ("x/a", a), ("x/b", b), ("x/c", "")];
            assert_eq!(found(&files), ["x: a b"], "{a} {b}");
        }
        // Through a third file, and through a folder.
        let files = [
            ("x/a", "use super::b;"),
            ("x/b", ""),
            ("x/b/d", "use super::super::c::C;"),
            ("x/c", "use super::a;"),
        ];
        assert_eq!(found(&files), ["x: a b c"]);
    }

    #[test]
    fn what_the_folder_defines_is_its_own() {
        let defines = [("x", "mod a; use a::A; struct S;"), ("x/a", "use super::S; struct A;")];
        assert_eq!(found(&defines), ["x: a mod"]);
        let hands_on = "pub use b::B; pub(crate) use b::C; struct S;";
        let b = ("x/b", "struct B; use super::S;");
        assert_eq!(found(&[("x", hands_on), ("x/a", "use super::B;"), b]), [""; 0]);
        let uses = format!("{hands_on} fn f(c: C) {{}}");
        assert_eq!(found(&[("x", &uses), b]), ["x: b mod"]);
        let circle =
            [("x", "pub use b::B;"), ("x/a", "use super::B;"), ("x/b", "use super::a::A;")];
        assert_eq!(found(&circle), ["x: a b"]);
    }

    #[test]
    fn one_direction_comments_and_strings_are_no_circle() {
        let b = "pub(in crate::x::a) fn i() {} // use super::a::A;\nfn f() { g(\"super::a::A\"); h(super::c()); }";
        assert_eq!(found(&[("x/a", "use super::b::B;"), ("x/b", b)]), [""; 0]);
    }
}
