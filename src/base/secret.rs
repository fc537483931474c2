//! Bytes that must never be printed.

use std::io;
use std::path::Path;

use zeroize::Zeroize;

/// A key, token or cookie: it has no `Debug` and no `Display`, and is wiped when dropped.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Secret(bytes)
    }

    /// The secret in a file, byte for byte, except that one newline at its end (`\n` or `\r\n`)
    /// is left out: the gateway reads the files of its settings by the same rule.
    ///
    /// # Errors
    /// When the file cannot be read. The message never repeats what is in it.
    pub fn from_file(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let mut bytes = std::fs::read(path).map_err(|error| {
            let what = format!("cannot read the secret file {}: {error}", path.display());
            io::Error::new(error.kind(), what)
        })?;
        trim_newline(&mut bytes);
        Ok(Secret(bytes))
    }

    /// The bytes, for the code that computes with them. Never format the result.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no byte at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Removes one newline (`\n` or `\r\n`) that an editor or `echo` left at the end of a secret.
pub fn trim_newline(bytes: &mut Vec<u8>) {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_newline_at_the_end_of_a_file_is_no_part_of_its_secret() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        let table: &[(&[u8], &[u8])] = &[
            (b"abc", b"abc"),
            (b"abc\n", b"abc"),
            (b"abc\r\n", b"abc"),
            (b"abc\n\n", b"abc\n"),
            (b"abc\r", b"abc\r"),
            (b"abc ", b"abc "),
            (b"\nabc", b"\nabc"),
            (b"\n", b""),
            (b"", b""),
        ];
        for (written, expected) in table {
            std::fs::write(&path, written).expect("written");
            let secret = Secret::from_file(&path).expect("read");
            assert_eq!(secret.expose(), *expected, "{}", written.escape_ascii());
        }
        let error = Secret::from_file(folder.path().join("absent")).err().expect("no file");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("absent: No such file"), "{error}");
    }
}
