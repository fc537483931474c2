//! Keeps ARCHITECTURE.md true: which folder may import what, and where `unsafe` may stand.

mod circles;
mod sizes;
mod source;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Module → the modules of this crate that it may import.
fn allowed() -> BTreeMap<&'static str, Vec<&'static str>> {
    let l0 = vec!["base"];
    let l1 = [&l0[..], &["protocol"]].concat();
    let l2 = [&l1[..], &["settings", "counters", "ring"]].concat();
    let l3: Vec<_> = [&l2[..], &["connection"]].concat();
    let l4 = [&l3[..], &["worker"]].concat();
    let no_ring = |modules: &[&'static str]| -> Vec<&'static str> {
        modules.iter().copied().filter(|module| *module != "ring").collect()
    };
    let all_but_sim = [&l4[..], &["linux", "server", "backend", "dev"]].concat();
    BTreeMap::from([
        ("base", l0.clone()),
        ("protocol", l1.clone()),
        // The endpoint's address type is the ring's, since the ring connects to it.
        ("settings", l2.clone()),
        ("counters", l1.clone()),
        ("ring", l0.clone()),
        ("connection", no_ring(&l3)),
        ("worker", l4.clone()),
        ("linux", vec!["base", "ring", "linux"]),
        ("sim", [&l4[..], &["sim"]].concat()),
        ("server", [&l4[..], &["linux", "server"]].concat()),
        ("backend", [&l1[..], &["backend"]].concat()),
        ("dev", all_but_sim.clone()),
        ("main", all_but_sim.clone()),
        ("cli", [&all_but_sim[..], &["cli"]].concat()),
        ("lib", vec![]),
    ])
}

#[test]
fn modules_import_only_from_layers_below() {
    let allowed = allowed();
    let modules: Vec<String> = allowed.keys().map(|module| (*module).to_owned()).collect();
    let mut wrong = Vec::new();
    for source in source::production("src") {
        let (file, module) = (&source.file, source.layer());
        let allowed =
            allowed.get(module).unwrap_or_else(|| panic!("{} belongs to no layer", file.display()));
        for (index, line) in source.code.lines().enumerate() {
            for imported in crate_paths(line) {
                if modules.contains(&imported) && !allowed.contains(&imported.as_str()) {
                    let number = index + 1;
                    wrong.push(format!("{}:{number}: {module} → {imported}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "imports against the layers:\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_in_linux_only_and_says_why() {
    let mut wrong = Vec::new();
    for file in source::rust_files(Path::new("src")) {
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (index, code) in source::code_of(&text).lines().enumerate() {
            let word =
                |w: &str| code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|x| x == w);
            if !word("unsafe") {
                continue;
            }
            let place = format!("{}:{}", file.display(), index + 1);
            if !file.starts_with("src/linux") {
                wrong.push(format!("{place}: unsafe outside src/linux"));
            }
            let above = lines[index.saturating_sub(6)..=index].join("\n");
            if !above.contains("SAFETY") && !above.contains("# Safety") {
                wrong.push(format!("{place}: unsafe without a SAFETY comment"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Handles of the ring's memory stand for the right to touch it.
#[test]
fn only_rings_make_handles_of_their_memory() {
    let mut calls = Vec::new();
    for source in source::production("src") {
        for (at, _) in source.code.match_indices("::of_ring(") {
            let place = format!("{}:{}", source.file.display(), source.line(at));
            calls.push((source.layer().to_owned(), place));
        }
    }
    let wrong: Vec<_> =
        calls.iter().filter(|(module, _)| !["linux", "sim"].contains(&&**module)).collect();
    assert!(wrong.is_empty(), "handles made outside the rings: {wrong:?}");
    for ring in ["linux", "sim"] {
        assert!(calls.iter().any(|(module, _)| module == ring), "{ring} makes handles");
    }
}

#[test]
fn the_map_names_every_module() {
    let map = fs::read_to_string("ARCHITECTURE.md").unwrap();
    for module in allowed().keys().filter(|module| !["lib", "main", "cli"].contains(module)) {
        assert!(map.contains(&format!("`{module}")), "ARCHITECTURE.md does not name `{module}`");
    }
}

/// A claim of docs/threat-model.md is worth what the test that it names is worth.
#[test]
fn the_threat_model_names_tests_that_exist() {
    let text = fs::read_to_string("docs/threat-model.md").expect("the page");
    let quoted = text.split('`').skip(1).step_by(2);
    let is_file = |name: &&str| {
        let ending = Path::new(name).extension().and_then(|ending| ending.to_str());
        name.contains('/') && !name.contains(' ') && matches!(ending, Some("rs" | "js"))
    };
    let names: Vec<&str> = quoted.filter(is_file).collect();
    assert!(names.len() > 20, "{names:?}");
    let absent: Vec<_> = names
        .iter()
        .filter(|name| {
            ["", "src/", "tests/"].iter().all(|at| !Path::new(&format!("{at}{name}")).exists())
        })
        .collect();
    assert!(absent.is_empty(), "named in docs/threat-model.md, but not there: {absent:?}");
}

/// The modules named by `crate::x` and `portcullis::x` in a line.
fn crate_paths(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for prefix in ["crate::", "portcullis::"] {
        for (index, _) in code.match_indices(prefix) {
            let rest = &code[index + prefix.len()..];
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            if end > 0 {
                found.push(rest[..end].to_owned());
            }
        }
    }
    found
}
