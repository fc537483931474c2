//! What becomes of a changed configuration file.

use std::fmt::Display;

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

/// Decides whether freshly loaded settings may replace the running ones. `restart_required` names
/// the keys that differ and cannot change in a running gateway; one such key refuses the whole
/// file, so that what runs is always one file and never a mixture.
///
/// # Errors
/// Everything that is wrong, for people.
pub fn judge<P: Display>(
    loaded: Result<(Settings, Vec<P>), Vec<P>>,
    restart_required: impl Fn(&Settings) -> Vec<&'static str>,
) -> Result<(Settings, Vec<String>), ReloadError> {
    let words = |problems: Vec<P>| problems.iter().map(ToString::to_string).collect();
    let (settings, warnings) = loaded.map_err(|problems| ReloadError::Invalid(words(problems)))?;
    let changes = restart_required(&settings);
    if changes.is_empty() {
        return Ok((settings, words(warnings)));
    }
    let problem = |key| {
        format!("{key} cannot change while the gateway runs; restart it, or restore the old value")
    };
    Err(ReloadError::Conflict(changes.into_iter().map(problem).collect()))
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
        let changes = |_: &Settings| vec!["gateway.workers", "listener"];
        let outcome = |result: Result<(Settings, Vec<String>), ReloadError>| result.map(|r| r.1);
        assert_eq!(outcome(judge(good(), none)), Ok(vec!["config.toml:1:1: warning: hm".into()]));
        let wrong = outcome(judge(bad(), changes)).unwrap_err();
        assert!(matches!(&wrong, ReloadError::Invalid(all) if all.len() == 2), "{wrong:?}");
        let refused = outcome(judge(good(), changes)).unwrap_err();
        let ReloadError::Conflict(refused) = refused else { panic!("{refused:?}") };
        assert_eq!(refused.len(), 2);
        assert!(refused[0].starts_with("gateway.workers cannot change"), "{refused:?}");
        assert!(refused[1].starts_with("listener cannot change"), "{refused:?}");
    }
}
