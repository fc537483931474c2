//! The file that revocations outlive a restart in: one line with a checksum, then JSON.
//!
//! It is never changed in place: the new contents go to a file beside it, onto the disk, and
//! then over it, so that a crash leaves the old or the new and nothing between.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio_uring::fs::File;

use crate::base::time::UnixTime;
use crate::protocol::revocation::{Entry, NAME_MAX, Revocation, RevocationSet, Target};

/// What the first line begins with; the number is the format's.
const MAGIC: &str = "portcullis-revocations 1 sha256=";
/// Longest form of one entry, in bytes: every byte of its name may be escaped as `\u00xx`.
const ENTRY_BYTES_MAX: u64 = 6 * NAME_MAX as u64 + 256;

/// No set gets as far: ids are given one by one. From here on they could run out.
const NEXT_ID_MAX: u64 = u64::MAX / 2;

/// What the file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// The id that the next entry gets.
    pub next_id: u64,
    /// The entries, those included that have lapsed since.
    pub entries: Vec<Entry>,
}

/// Why the file cannot be used. Going on without it would let the revoked in again.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is not what this program wrote.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// More entries than allowed.
    #[error("it holds {found} entries, and limits.revocations_max is {max}")]
    TooMany {
        /// How many there are.
        found: usize,
        /// How many there may be.
        max: usize,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    next_id: u64,
    entries: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    issued_before_ms: Option<u64>,
    lapses_ms: u64,
}

/// The contents for a set.
pub fn format(set: &RevocationSet) -> Vec<u8> {
    let line = |(id, revocation): (u64, &Revocation)| Line {
        id,
        subject: revocation.target.subject().map(str::to_owned),
        token_id: revocation.target.token_id().map(str::to_owned),
        issued_before_ms: revocation.target.issued_before().map(UnixTime::as_millis),
        lapses_ms: revocation.lapses.as_millis(),
    };
    let body = Body { next_id: set.next_id(), entries: set.after(0).map(line).collect() };
    let body = serde_json::to_string(&body).expect("numbers and strings are JSON");
    format!("{MAGIC}{}\n{body}\n", checksum(body.as_bytes())).into_bytes()
}

/// What the contents say.
///
/// # Errors
/// [`FileError::Damaged`] and [`FileError::TooMany`].
pub fn parse(bytes: &[u8], max: usize) -> Result<Saved, FileError> {
    let damaged = FileError::Damaged;
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("not UTF-8"))?;
    let rest = text.strip_prefix(MAGIC).ok_or(damaged("not a file of revocations"))?;
    let (sum, rest) = rest.split_once('\n').ok_or(damaged("it ends early"))?;
    let body = rest.strip_suffix('\n').ok_or(damaged("it ends early"))?;
    if sum != checksum(body.as_bytes()) {
        return Err(damaged("the checksum is wrong"));
    }
    let body: Body = serde_json::from_str(body).map_err(|_| damaged("not the JSON expected"))?;
    if body.entries.len() > max {
        return Err(FileError::TooMany { found: body.entries.len(), max });
    }
    // Ids begin with 1 and are never used twice; a set would lose entries whose ids are not so.
    let mut before = 0;
    for line in &body.entries {
        if line.id <= before || line.id >= body.next_id {
            return Err(damaged("its ids are out of order"));
        }
        before = line.id;
    }
    if body.next_id > NEXT_ID_MAX {
        return Err(damaged("its ids are used up"));
    }
    let entry = |line: Line| {
        let before = line.issued_before_ms.map(UnixTime::from_millis);
        let target = Target::new(line.subject.as_deref(), line.token_id.as_deref(), before);
        let target = target.map_err(|_| damaged("an entry names nothing"))?;
        let lapses = UnixTime::from_millis(line.lapses_ms);
        Ok(Entry { id: line.id, revocation: Revocation { target, lapses } })
    };
    let entries = body.entries.into_iter().map(entry).collect::<Result<_, FileError>>()?;
    Ok(Saved { next_id: body.next_id, entries })
}

/// Reads the file. One that is not there yet holds nothing.
///
/// # Errors
/// [`FileError`].
pub fn load(path: &Path, max: usize) -> Result<Saved, FileError> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Saved::default()),
        Err(error) => return Err(error.into()),
    };
    let bytes_max = 1024 + ENTRY_BYTES_MAX.saturating_mul(max as u64);
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(FileError::Damaged("larger than limits.revocations_max entries can be"));
    }
    parse(&bytes, max)
}

/// Puts the contents in the place of the file's, on the disk when this returns. Within a
/// tokio-uring runtime only.
///
/// # Errors
/// What the kernel says; then the old contents are there.
pub async fn replace(path: PathBuf, bytes: Vec<u8>) -> io::Result<()> {
    let beside = beside(&path);
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    let file = File::from_std(file);
    file.write_all_at(bytes, 0).await.0?;
    file.sync_all().await?;
    file.close().await?;
    tokio_uring::fs::rename(&beside, &path).await?;
    // The new name is on the disk only when the folder is.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or(Path::new("."))).await?;
    folder.sync_all().await?;
    folder.close().await
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

fn checksum(bytes: &[u8]) -> String {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::revocation::Hasher;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::from_seconds(seconds)
    }

    fn set() -> RevocationSet {
        let mut set = RevocationSet::new(Hasher::new(&[1; 32]));
        for target in [
            Target::new(Some("alice \"x\"\n\u{1}ä"), None, None),
            Target::new(Some("bob"), None, Some(at(5))),
            Target::new(None, Some("t"), None),
            Target::new(None, None, Some(at(7))),
        ] {
            let revocation = Revocation { target: target.unwrap(), lapses: at(100) };
            set.insert(revocation, 10, at(1)).unwrap();
        }
        set
    }

    #[test]
    fn a_file_says_what_the_set_said() {
        let set = set();
        let saved = parse(&format(&set), 4).unwrap();
        let entries: Vec<Entry> =
            set.after(0).map(|(id, r)| Entry { id, revocation: r.clone() }).collect();
        assert_eq!(saved, Saved { next_id: 5, entries });
        let again = RevocationSet::restored(Hasher::new(&[2; 32]), 5, saved.entries, at(1));
        assert_eq!(format(&again), format(&set));
    }

    #[test]
    fn no_damage_passes() {
        let bytes = format(&set());
        for index in 0..bytes.len() {
            let mut other = bytes.clone();
            other[index] ^= 1;
            assert!(parse(&other, 4).is_err(), "byte {index} changed");
            assert!(parse(&bytes[..index], 4).is_err(), "cut at {index}");
        }
        assert!(parse(&[&bytes[..], b"x"].concat(), 4).is_err());
        let many = parse(&bytes, 3).unwrap_err().to_string();
        assert_eq!(many, "it holds 4 entries, and limits.revocations_max is 3");
        for body in [
            r#"{"next_id":2,"entries":[{"id":1,"lapses_ms":5}]}"#,
            r#"{"next_id":2,"entries":[{"id":1,"subject":"a","lapses_ms":5,"more":1}]}"#,
            r#"{"next_id":2,"entries":[{"id":1,"subject":"","lapses_ms":5}]}"#,
            r#"{"entries":[]}"#,
            r#"{"next_id":9,"entries":[{"id":0,"subject":"a","lapses_ms":5}]}"#,
            r#"{"next_id":1,"entries":[{"id":1,"subject":"a","lapses_ms":5}]}"#,
            r#"{"next_id":9,"entries":[{"id":2,"subject":"a","lapses_ms":5},{"id":2,"subject":"b","lapses_ms":5}]}"#,
            r#"{"next_id":9,"entries":[{"id":2,"subject":"a","lapses_ms":5},{"id":1,"subject":"b","lapses_ms":5}]}"#,
            r#"{"next_id":18446744073709551615,"entries":[]}"#,
        ] {
            let text = format!("{MAGIC}{}\n{body}\n", checksum(body.as_bytes()));
            assert!(parse(text.as_bytes(), 9).is_err(), "{body}");
        }
    }

    #[test]
    fn it_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("revocations");
        assert_eq!(load(&path, 9).unwrap(), Saved::default());
        for bytes in [format(&set()), format(&RevocationSet::new(Hasher::new(&[1; 32])))] {
            tokio_uring::start(replace(path.clone(), bytes.clone())).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
            assert!(load(&path, 9).is_ok());
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
        fs::write(&path, vec![b'x'; 9000]).unwrap();
        let error = load(&path, 1).unwrap_err().to_string();
        assert!(error.contains("larger than"), "{error}");
        let nowhere = folder.path().join("none/revocations");
        assert!(tokio_uring::start(replace(nowhere, Vec::new())).is_err());
    }
}
