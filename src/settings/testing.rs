//! Settings for the unit tests of other modules.

use std::io;
use std::path::Path;

use super::Settings;
use super::load::{FileContents, Outside, load};

/// A world without files and variables.
struct Nothing;

impl Outside for Nothing {
    fn read(&self, _: &Path) -> io::Result<FileContents> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }

    fn unix_seconds(&self) -> u64 {
        0
    }
}

/// The settings that `text` describes. Panics with the first problem.
pub(crate) fn settings(text: &str) -> Settings {
    match load(text, Path::new("test.toml"), &Nothing) {
        Ok(loaded) => loaded.settings,
        Err(problems) => panic!("{}", problems[0]),
    }
}
