//! One table of every key of the configuration file.
//!
//! The checks of types and ranges, the defaults, what a reload may change and the tables of
//! `docs/configuration.md` all derive from it.

mod key;
#[macro_use]
mod rows;
pub mod schema;
pub(super) mod table;

pub use key::{Key, NONE, REQUIRED, Reload, Shape};
pub use table::{Deadlines, Limits};

/// Every section that may appear at the top of the file, and whether it is a list (`[[…]]`).
pub const SECTIONS: &[(&str, bool)] = &[
    ("gateway", false),
    ("limits", false),
    ("deadlines", false),
    ("listener", true),
    ("auth", true),
    ("route", true),
    ("backend", true),
];

/// Every key, section by section.
pub fn all() -> impl Iterator<Item = &'static Key> + Clone {
    table::TABLE.iter().flat_map(|section| section.iter())
}

/// The row of `name` in `section`.
pub fn find(section: &str, name: &str) -> Option<&'static Key> {
    all().find(|key| key.section == section && key.name == name)
}

/// Every key of `section`, in the table's order.
pub fn of_section(section: &str) -> impl Iterator<Item = &'static Key> {
    all().filter(move |key| key.section == section)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_declared_once_and_its_section_exists() {
        for (index, key) in all().enumerate() {
            let same = |other: &Key| other.full_name == key.full_name;
            assert!(!all().take(index).any(same), "{} is there twice", key.full_name);
            let declared = SECTIONS.iter().any(|(section, _)| *section == key.section)
                || all().any(|other| match other.shape {
                    Shape::Table(s)
                    | Shape::Tables(s)
                    | Shape::TableOrTables(s)
                    | Shape::TablesByName(s, ..) => s == key.section,
                    _ => false,
                });
            assert!(declared, "nothing leads to {}", key.full_name);
            for kind in key.kinds() {
                let words = find(key.section, "kind").map(|kind| kind.shape);
                let Some(Shape::Word(words) | Shape::WordOrLater(words, _)) = words else {
                    panic!("{} has no kinds", key.section)
                };
                assert!(words.contains(&kind), "{}: {kind}", key.full_name);
            }
        }
    }

    #[test]
    fn rows_for_the_documentation() {
        let row = |section, name| find(section, name).expect("declared").row();
        assert_eq!(
            row("deadlines", "drain"),
            "| `drain` | Time over which a drain spreads its closes. A supervisor\'s stop timeout \
             must be longer. | 0s to 1h | `30s` | live |"
        );
        assert!(row("limits", "message_max").contains("| `1MiB`; conformance `32MiB` | live |"));
        assert!(row("listener", "address").ends_with("| (required) | **restart** |"));
    }
}
