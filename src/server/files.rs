//! Configuration files as they lie on this machine.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;

use crate::settings::load::{Environment, FileContents, Loaded, Problem, Severity, load};

/// Larger files are no configuration, key or certificate, but a mistake.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The files, environment and clock of this machine.
pub struct SystemEnvironment;

impl Environment for SystemEnvironment {
    fn read(&self, path: &Path) -> io::Result<FileContents> {
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        if metadata.len() > FILE_BYTES_MAX {
            return Err(io::Error::other("larger than 4 MiB"));
        }
        let readable_by_others = metadata.permissions().mode() & 0o004 != 0;
        Ok(FileContents { bytes: std::fs::read(path)?, readable_by_others })
    }

    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn unix_seconds(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    fn system_roots(&self) -> io::Result<RootCertStore> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        // Old certificates that cannot be used are no reason to do without the others.
        roots.add_parsable_certificates(found.certs);
        match (roots.is_empty(), found.errors.first()) {
            (false, _) => Ok(roots),
            (true, Some(error)) => Err(io::Error::other(error.to_string())),
            (true, None) => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }
}

/// Loads a configuration file with everything that it refers to.
///
/// # Errors
/// Everything that is wrong, warnings included, in the order of the file.
pub fn load_file(path: &Path) -> Result<Loaded, Vec<Problem>> {
    let unreadable = |what: String, fix: &str| {
        let (file, fix) = (path.display().to_string(), fix.to_owned());
        let (severity, code) = (Severity::Error, "unreadable_file");
        vec![Problem { file, line: 1, column: 1, severity, code, what, fix }]
    };
    let bytes = match SystemEnvironment.read(path) {
        Ok(file) => file.bytes,
        Err(error) => {
            let fix = "name the configuration with --config FILE";
            return Err(unreadable(format!("cannot be read: {error}"), fix));
        }
    };
    match std::str::from_utf8(&bytes) {
        Ok(text) => load(text, path, &SystemEnvironment),
        Err(error) => {
            let what = format!("byte {} is not UTF-8", error.valid_up_to() + 1);
            Err(unreadable(what, "save the file as UTF-8"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    #[test]
    fn others_permission_is_seen() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("key");
        std::fs::write(&path, "x").expect("written");
        for (mode, others) in [(0o600, false), (0o640, false), (0o644, true), (0o604, true)] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("set");
            let file = SystemEnvironment.read(&path).expect("read");
            assert_eq!((file.readable_by_others, file.bytes), (others, b"x".to_vec()), "{mode:o}");
        }
        assert!(SystemEnvironment.read(folder.path()).is_err(), "a folder is no file");
    }

    #[test]
    fn what_cannot_be_read_is_a_problem_of_line_1() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("c.toml");
        let first = |path: &Path| load_file(path).err().map(|problems| problems[0].what.clone());
        let missing = first(&path).expect("refused");
        assert!(missing.starts_with("cannot be read: No such file"), "{missing}");
        std::fs::write(&path, b"# \xff").expect("written");
        assert_eq!(first(&path).as_deref(), Some("byte 3 is not UTF-8"));
    }
}
