//! What becomes of a changed configuration file.

use std::fmt::Display;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::settings::Settings;

/// What a reload came to: warnings when it took effect.
pub type ReloadOutcome = Result<Vec<String>, ReloadError>;

/// Why a reload was refused, for people: every problem. The old settings stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReloadError {
    /// The file is wrong in itself.
    Invalid(Vec<String>),
    /// The file, or any file, does not fit what runs.
    Conflict(Vec<String>),
}

impl ReloadError {
    /// Every problem.
    pub fn problems(&self) -> &[String] {
        match self {
            ReloadError::Invalid(problems) | ReloadError::Conflict(problems) => problems,
        }
    }

    /// Every problem.
    pub fn into_problems(self) -> Vec<String> {
        match self {
            ReloadError::Invalid(problems) | ReloadError::Conflict(problems) => problems,
        }
    }
}

/// Decides whether freshly loaded settings may replace the running ones. `cold_changes` names
/// the keys that differ and cannot change in a running gateway; one such key refuses the whole
/// file, so that what runs is always one file and never a mixture.
///
/// # Errors
/// Everything that is wrong, for people.
pub fn judge<P: Display>(
    loaded: Result<(Settings, Vec<P>), Vec<P>>,
    cold_changes: impl Fn(&Settings) -> Vec<&'static str>,
) -> Result<(Settings, Vec<String>), ReloadError> {
    let words = |problems: Vec<P>| problems.iter().map(ToString::to_string).collect();
    let (settings, warnings) = loaded.map_err(|problems| ReloadError::Invalid(words(problems)))?;
    let cold = cold_changes(&settings);
    if cold.is_empty() {
        return Ok((settings, words(warnings)));
    }
    let problem = |key| {
        format!("{key} cannot change while the gateway runs; restart it, or restore the old value")
    };
    Err(ReloadError::Conflict(cold.into_iter().map(problem).collect()))
}

/// The first 48 bits of the file's SHA-256, to compare the files of several machines; 0 when it
/// cannot be read.
pub fn file_hash(path: &Path) -> u64 {
    let Ok(bytes) = std::fs::read(path) else { return 0 };
    let digest: [u8; 32] = Sha256::digest(&bytes).into();
    digest[..6].iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn a_file_takes_effect_only_when_nothing_speaks_against_it() {
        let good = || Ok((testing::settings(), vec!["config.toml:1:1: warning: hm"]));
        let bad = || Err(vec!["config.toml:3:1: error: what", "config.toml:4:1: error: which"]);
        let none = |_: &Settings| Vec::new();
        let cold = |_: &Settings| vec!["gateway.workers", "listener"];
        let outcome = |result: Result<(Settings, Vec<String>), ReloadError>| result.map(|r| r.1);
        assert_eq!(outcome(judge(good(), none)), Ok(vec!["config.toml:1:1: warning: hm".into()]));
        let wrong = outcome(judge(bad(), cold)).unwrap_err();
        assert!(matches!(&wrong, ReloadError::Invalid(all) if all.len() == 2), "{wrong:?}");
        let refused = outcome(judge(good(), cold)).unwrap_err();
        let ReloadError::Conflict(refused) = refused else { panic!("{refused:?}") };
        assert_eq!(refused.len(), 2);
        assert!(refused[0].starts_with("gateway.workers cannot change"), "{refused:?}");
        assert!(refused[1].starts_with("listener cannot change"), "{refused:?}");
    }

    #[test]
    fn hashes_tell_files_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        assert_eq!(file_hash(&path), 0);
        std::fs::write(&path, "").unwrap();
        // SHA-256 of nothing begins e3b0c44298fc.
        assert_eq!(file_hash(&path), 0xe3b0_c442_98fc);
    }
}
