//! The file that revocations outlive a restart in: a snapshot, then the changes since, one record
//! a line. Each line carries a checksum over itself and all lines before.
//!
//! A crash can only tear the last line, which was then never answered as saved: it is dropped.
//! Anything else that does not fit is damage, and the file is refused. When the changes outgrow
//! the snapshot, a new file is written beside the old one, onto the disk, and then over it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::base::time::UnixTime;
use crate::linux::process::effective_user;
use crate::protocol::revocation::{
    Hasher, NAME_MAX, Revocation, RevocationSet, ScopedRevocation, Target,
};

/// The first line; the number is the format's.
const MAGIC: &str = "portcullis-revocations 2\n";
/// What the first line of the format before began with: one checksum, then one record.
const OLD_MAGIC: &str = "portcullis-revocations 1 sha256=";
/// Longest form of one entry, in bytes: every byte of its names may be escaped as `\u00xx`.
const ENTRY_BYTES_MAX: u64 = 2 * 6 * NAME_MAX as u64 + 256;
/// Changes may take this much more than the snapshot before both are written as one, in bytes.
const SLACK: u64 = 64 * 1024;
/// No set gets as far: ids are given one by one. From here on they could run out.
const NEXT_ID_MAX: u64 = u64::MAX / 2;

/// Why the file cannot be used. Going on without it would let the revoked in again.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Another user could have written it, or could make us write elsewhere.
    #[error("it is not safe: {0}")]
    Unsafe(&'static str),
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

/// One line: entries that were made and ended, and the next id after them.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    next_id: u64,
    entries: Vec<Entry>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    removed: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    issued_before_ms: Option<u64>,
    lapses_ms: u64,
    /// The backend of whose routes it holds; files of earlier versions name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backend: Option<String>,
}

impl Record {
    /// Notes a new entry.
    pub fn add(&mut self, id: u64, entry: &ScopedRevocation) {
        let ScopedRevocation { revocation, backend } = entry;
        let target = &revocation.target;
        self.entries.push(Entry {
            id,
            subject: target.subject().map(str::to_owned),
            token_id: target.token_id().map(str::to_owned),
            issued_before_ms: target.issued_before().map(UnixTime::as_millis),
            backend: backend.as_deref().map(str::to_owned),
            lapses_ms: revocation.lapses.as_millis(),
        });
        self.next_id = self.next_id.max(id + 1);
    }

    /// Notes the end of an entry.
    pub fn remove(&mut self, id: u64) {
        // Entries of one record come before its ends, as ids are given in order.
        self.removed.push(id);
        self.next_id = self.next_id.max(id + 1);
    }

    /// How many changes there are.
    pub fn changes(&self) -> usize {
        self.entries.len() + self.removed.len()
    }

    fn apply(self, set: &mut RevocationSet) -> Result<(), FileError> {
        let damaged = FileError::Damaged;
        for entry in self.entries {
            let before = entry.issued_before_ms.map(UnixTime::from_millis);
            let target = Target::new(entry.subject.as_deref(), entry.token_id.as_deref(), before);
            let target = target.map_err(|_| damaged("an entry names nothing"))?;
            let lapses = UnixTime::from_millis(entry.lapses_ms);
            let backend = entry.backend.map(String::into_boxed_str);
            let revocation = Revocation { target, lapses };
            let restored = set.restore(entry.id, ScopedRevocation { revocation, backend });
            restored.map_err(|_| damaged("its ids are out of order"))?;
        }
        for id in self.removed {
            set.remove(id);
        }
        let next_id = self.next_id.max(set.next_id());
        if next_id > NEXT_ID_MAX {
            return Err(damaged("its ids are used up"));
        }
        set.skip_ids(next_id).map_err(|_| damaged("its ids are out of order"))
    }
}

/// All entries, as the writer of the file takes them.
pub struct Snapshot {
    next_id: u64,
    entries: Vec<(u64, Arc<ScopedRevocation>)>,
}

impl Snapshot {
    /// What a set holds now.
    pub fn of(set: &RevocationSet) -> Snapshot {
        let entries = set.after(0).map(|(id, revocation)| (id, Arc::clone(revocation))).collect();
        Snapshot { next_id: set.next_id(), entries }
    }

    /// A file that holds them.
    pub fn file(&self) -> Vec<u8> {
        self.file_and_sum().0
    }

    fn file_and_sum(&self) -> (Vec<u8>, String) {
        let (line, sum) = line("", &self.record());
        ([MAGIC.as_bytes(), &line].concat(), sum)
    }

    fn record(&self) -> Record {
        let mut record = Record { next_id: self.next_id, ..Record::default() };
        self.entries.iter().for_each(|(id, revocation)| record.add(*id, revocation));
        record
    }
}

/// What is to be saved.
pub enum Save {
    /// Changes since the last save.
    Changes(Record),
    /// Everything.
    All(Snapshot),
}

/// The file, open for appending. Its calls block.
pub struct Journal {
    path: PathBuf,
    file: File,
    /// The checksum of the last line.
    sum: String,
    snapshot_bytes: u64,
    change_bytes: u64,
    /// A save failed: nothing may be appended to what may be half a line.
    broken: bool,
}

impl Journal {
    /// Writes the file whole, which shows whether that works.
    ///
    /// # Errors
    /// What the kernel says of the file; then the old one is there.
    pub fn create(path: PathBuf, snapshot: &Snapshot) -> io::Result<Journal> {
        let (bytes, sum) = snapshot.file_and_sum();
        let file = replace(&path, &bytes)?;
        let snapshot_bytes = bytes.len() as u64;
        Ok(Journal { path, file, sum, snapshot_bytes, change_bytes: 0, broken: false })
    }

    /// Whether the next save must be of everything.
    pub fn needs_all(&self) -> bool {
        self.broken || self.change_bytes > self.snapshot_bytes + SLACK
    }

    /// Saves; the changes are on the disk when this returns.
    ///
    /// # Errors
    /// What the kernel says; then everything must be saved next.
    pub fn save(&mut self, save: &Save) -> io::Result<()> {
        let saved = match save {
            Save::Changes(record) => self.append(record),
            Save::All(snapshot) => Journal::create(self.path.clone(), snapshot).map(|new| {
                *self = new;
            }),
        };
        self.broken |= saved.is_err();
        saved
    }

    fn append(&mut self, record: &Record) -> io::Result<()> {
        let (line, sum) = line(&self.sum, record);
        // Appending to a file that was moved away would save nothing.
        let (there, ours) = (fs::symlink_metadata(&self.path)?, self.file.metadata()?);
        if (there.dev(), there.ino()) != (ours.dev(), ours.ino()) {
            return Err(io::Error::other("the file was replaced or moved away"));
        }
        self.file.write_all(&line)?;
        self.file.sync_data()?;
        self.sum = sum;
        self.change_bytes += line.len() as u64;
        Ok(())
    }
}

/// A record as a line, and its checksum.
fn line(sum_before: &str, record: &Record) -> (Vec<u8>, String) {
    let body = serde_json::to_string(record).expect("numbers and strings are JSON");
    let sum = checksum(sum_before, body.as_bytes());
    (format!("{sum} {body}\n").into_bytes(), sum)
}

fn checksum(sum_before: &str, body: &[u8]) -> String {
    let digest = Sha256::new().chain_update(sum_before).chain_update(body).finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Puts the contents in the place of the file's, on the disk when this returns.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // Whatever lies there (a file of a crash, a link, a pipe) goes, unopened.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    // The new name is on the disk only when the folder is.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(file)
}

/// Reads the file; one that is not there yet holds nothing. Also answers how many bytes of a last
/// line, torn by a crash, were dropped.
///
/// # Errors
/// [`FileError`].
pub fn load(
    path: &Path,
    hasher: Hasher,
    max: usize,
    now: UnixTime,
) -> Result<(RevocationSet, usize), FileError> {
    let Some(file) = open_to_read(path)? else { return Ok((RevocationSet::new(hasher), 0)) };
    let bytes_max = 4 * SLACK + ENTRY_BYTES_MAX.saturating_mul(3).saturating_mul(max as u64);
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(FileError::Damaged("larger than limits.revocations_max entries can be"));
    }
    let (mut set, torn) = parse(&bytes, hasher)?;
    set.lapse(now);
    match set.len() {
        found if found > max => Err(FileError::TooMany { found, max }),
        _ => Ok((set, torn)),
    }
}

fn open_to_read(path: &Path) -> Result<Option<File>, FileError> {
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(FileError::Unsafe("it is a symbolic link"));
        }
        Err(error) => return Err(error.into()),
    };
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(FileError::Unsafe("it is no regular file"));
    }
    if ![0, effective_user()].contains(&found.uid()) {
        return Err(FileError::Unsafe("another user owns it"));
    }
    if found.mode() & 0o022 != 0 {
        return Err(FileError::Unsafe("other users may write it"));
    }
    Ok(Some(file))
}

/// What a file's bytes say, and how many bytes of a torn last line were dropped.
///
/// # Errors
/// [`FileError::Damaged`].
pub fn parse(bytes: &[u8], hasher: Hasher) -> Result<(RevocationSet, usize), FileError> {
    let damaged = FileError::Damaged;
    let mut set = RevocationSet::new(hasher);
    if let Some(rest) = bytes.strip_prefix(OLD_MAGIC.as_bytes()) {
        let (sum, rest) = split(rest, b'\n').ok_or(damaged("it ends early"))?;
        let body = rest.strip_suffix(b"\n").ok_or(damaged("it ends early"))?;
        read_record("", sum, body)?.apply(&mut set)?;
        return Ok((set, 0));
    }
    let rest = bytes.strip_prefix(MAGIC.as_bytes());
    let mut rest = rest.ok_or(damaged("not a file of revocations"))?;
    let mut sum_before = String::new();
    loop {
        let torn = match split(rest, b'\n') {
            None if rest.is_empty() && !sum_before.is_empty() => return Ok((set, 0)),
            None => true,
            // Blocks of the last line that never reached the disk read as zeros.
            Some((line, after)) => after.is_empty() && line.contains(&0),
        };
        // The snapshot came with the file and is whole.
        match torn {
            true if sum_before.is_empty() => return Err(damaged("it ends early")),
            true => return Ok((set, rest.len())),
            false => {}
        }
        let (line, after) = split(rest, b'\n').expect("a whole line");
        let (sum, body) = split(line, b' ').ok_or(damaged("a line without a checksum"))?;
        read_record(&sum_before, sum, body)?.apply(&mut set)?;
        sum_before = String::from_utf8_lossy(sum).into_owned();
        rest = after;
    }
}

fn read_record(sum_before: &str, sum: &[u8], body: &[u8]) -> Result<Record, FileError> {
    if sum != checksum(sum_before, body).as_bytes() {
        return Err(FileError::Damaged("the checksum is wrong"));
    }
    serde_json::from_slice(body).map_err(|_| FileError::Damaged("not the JSON expected"))
}

fn split(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == at)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::from_seconds(seconds)
    }

    fn hasher() -> Hasher {
        Hasher::new(&[1; 32])
    }

    fn subject(name: &str) -> ScopedRevocation {
        let target = Target::new(Some(name), None, None).unwrap();
        Revocation { target, lapses: at(100) }.into()
    }

    fn set() -> RevocationSet {
        let mut set = RevocationSet::new(hasher());
        for target in [
            Target::new(Some("alice \"x\"\n\u{1}ä"), None, None),
            Target::new(Some("bob"), None, Some(at(5))),
            Target::new(None, Some("t"), None),
            Target::new(None, None, Some(at(7))),
        ] {
            let revocation = Revocation { target: target.unwrap(), lapses: at(100) };
            let id = set.next_id();
            let backend = (id == 2).then(|| "chat \"x\"".into());
            set.insert(ScopedRevocation { revocation, backend }, 10, at(1)).unwrap();
        }
        set
    }

    fn contents(set: &RevocationSet) -> (u64, Vec<(u64, ScopedRevocation)>) {
        (set.next_id(), set.after(0).map(|(id, r)| (id, (**r).clone())).collect())
    }

    /// A file with the set above and two changes, and where its lines begin.
    fn written(path: &Path) -> (Vec<u8>, Vec<usize>) {
        let mut journal = Journal::create(path.to_owned(), &Snapshot::of(&set())).unwrap();
        let mut ends = vec![0, MAGIC.len(), fs::metadata(path).unwrap().len() as usize];
        let mut change = Record::default();
        change.add(5, &subject("carol"));
        journal.save(&Save::Changes(change)).unwrap();
        ends.push(fs::metadata(path).unwrap().len() as usize);
        let mut change = Record::default();
        change.add(6, &subject("dave"));
        change.remove(1);
        journal.save(&Save::Changes(change)).unwrap();
        (fs::read(path).unwrap(), ends)
    }

    #[test]
    fn a_file_says_what_the_set_said_and_the_changes_since() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("revocations");
        let empty = load(&path, hasher(), 9, at(1)).unwrap();
        assert!(empty.0.is_empty() && empty.1 == 0);
        written(&path);
        let mut expected = set();
        expected.restore(5, subject("carol")).unwrap();
        expected.restore(6, subject("dave")).unwrap();
        expected.remove(1);
        let (found, torn) = load(&path, Hasher::new(&[2; 32]), 5, at(1)).unwrap();
        assert_eq!((contents(&found), torn), (contents(&expected), 0));
        let many = load(&path, hasher(), 4, at(1)).err().unwrap().to_string();
        assert_eq!(many, "it holds 5 entries, and limits.revocations_max is 4");
        // What has lapsed takes no room, and its id is not used again.
        let (found, _) = load(&path, hasher(), 1, at(100)).unwrap();
        assert!(found.is_empty() && found.next_id() == 7);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_torn_tail_is_dropped_and_no_other_damage_passes() {
        let folder = tempfile::tempdir().unwrap();
        let (bytes, ends) = written(&folder.path().join("revocations"));
        let last = *ends.last().unwrap();
        for cut in 0..bytes.len() {
            let found = parse(&bytes[..cut], hasher());
            // Within the snapshot: damage. Later: all whole lines, and the rest is torn.
            match found {
                Ok((set, torn)) => {
                    let begin = ends.iter().rev().find(|end| **end <= cut).unwrap();
                    assert!(cut >= ends[2] && torn == cut - begin, "cut at {cut}: {torn}");
                    assert_eq!(set.len(), if cut < last { 4 } else { 5 });
                }
                Err(_) => assert!(cut < ends[2], "cut at {cut}"),
            }
        }
        for index in 0..bytes.len() {
            let mut other = bytes.clone();
            other[index] ^= 1;
            let torn = parse(&other, hasher()).map(|(_, torn)| torn);
            // The end of the last line may be what a crash left undone.
            let is_end = index == bytes.len() - 1;
            assert!(if is_end { torn.is_ok() } else { torn.is_err() }, "byte {index} changed");
        }
        let mut holes = bytes.clone();
        holes[last + 70..last + 80].fill(0);
        assert_eq!(parse(&holes, hasher()).unwrap().1, bytes.len() - last);
        holes[ends[2] + 70] = 0;
        assert!(parse(&holes, hasher()).is_err(), "a hole in the middle");
        let without_the_second = [&bytes[..ends[2]], &bytes[last..]].concat();
        assert!(parse(&without_the_second, hasher()).is_err(), "a line is missing");
    }

    #[test]
    fn the_format_before_is_read_and_nonsense_is_not() {
        let old = |body: &str| {
            let text = format!("{OLD_MAGIC}{}\n{body}\n", checksum("", body.as_bytes()));
            parse(text.as_bytes(), hasher()).map(|(set, _)| (set.len(), set.next_id()))
        };
        let good = r#"{"next_id":9,"entries":[{"id":2,"subject":"a","lapses_ms":5}]}"#;
        assert_eq!(old(good).unwrap(), (1, 9));
        for body in [
            r#"{"next_id":2,"entries":[{"id":1,"lapses_ms":5}]}"#,
            r#"{"next_id":2,"entries":[{"id":1,"subject":"a","lapses_ms":5,"more":1}]}"#,
            r#"{"next_id":2,"entries":[{"id":1,"subject":"","lapses_ms":5}]}"#,
            r#"{"entries":[]}"#,
            r#"{"next_id":9,"entries":[{"id":0,"subject":"a","lapses_ms":5}]}"#,
            r#"{"next_id":9,"entries":[{"id":2,"subject":"a","lapses_ms":5},{"id":2,"subject":"b","lapses_ms":5}]}"#,
            r#"{"next_id":9,"entries":[{"id":2,"subject":"a","lapses_ms":5},{"id":1,"subject":"b","lapses_ms":5}]}"#,
            r#"{"next_id":18446744073709551615,"entries":[]}"#,
        ] {
            assert!(old(body).is_err(), "{body}");
        }
    }

    #[test]
    fn changes_are_folded_into_a_snapshot_when_they_outgrow_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("revocations");
        let mut held = set();
        let mut journal = Journal::create(path.clone(), &Snapshot::of(&held)).unwrap();
        let mut saves = 0;
        while !journal.needs_all() {
            let (mut record, id) = (Record::default(), held.next_id());
            held.restore(id, subject(&format!("s{id}"))).unwrap();
            held.remove(id);
            record.add(id, &subject(&format!("s{id}")));
            record.remove(id);
            journal.save(&Save::Changes(record)).unwrap();
            saves += 1;
        }
        assert!(saves > 100 && fs::metadata(&path).unwrap().len() > SLACK);
        journal.save(&Save::All(Snapshot::of(&held))).unwrap();
        assert!(!journal.needs_all() && fs::metadata(&path).unwrap().len() < 2000);
        let (found, _) = load(&path, hasher(), 9, at(1)).unwrap();
        assert_eq!(contents(&found), contents(&held));
    }

    #[test]
    fn neither_links_nor_pipes_nor_foreign_files_are_touched() {
        let folder = tempfile::tempdir().unwrap();
        let (path, beside) =
            (folder.path().join("revocations"), folder.path().join("revocations.new"));
        let victim = folder.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, &beside).unwrap();
        Journal::create(path.clone(), &Snapshot::of(&set())).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert!(!fs::symlink_metadata(&path).unwrap().is_symlink());
        let pipe = |path: &Path| {
            assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
        };
        pipe(&beside);
        Journal::create(path.clone(), &Snapshot::of(&set())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o622)).unwrap();
        let why = |path: &Path| load(path, hasher(), 9, at(1)).err().unwrap().to_string();
        assert_eq!(why(&path), "it is not safe: other users may write it");
        symlink(&path, &beside).unwrap();
        assert_eq!(why(&beside), "it is not safe: it is a symbolic link");
        fs::remove_file(&beside).unwrap();
        pipe(&beside);
        assert_eq!(why(&beside), "it is not safe: it is no regular file");
    }

    #[test]
    fn after_a_failed_save_everything_is_saved_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("revocations");
        let mut journal = Journal::create(path.clone(), &Snapshot::of(&set())).unwrap();
        fs::rename(&path, folder.path().join("moved")).unwrap();
        assert!(journal.save(&Save::Changes(Record::default())).is_err() && journal.needs_all());
        journal.save(&Save::All(Snapshot::of(&set()))).unwrap();
        assert!(!journal.needs_all() && load(&path, hasher(), 9, at(1)).unwrap().0.len() == 4);
        let nowhere = folder.path().join("none/revocations");
        assert!(Journal::create(nowhere, &Snapshot::of(&set())).is_err());
    }
}
