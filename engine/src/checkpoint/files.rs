//! Opening a model's files, and their checksums.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::digests::FileDigest;
use crate::error::OpenError;
use crate::gguf::{Gguf, GgufError};

/// Opens a GGUF file. A missing file has an error variant of its own.
pub(super) fn open_gguf(path: &Path) -> Result<Gguf, OpenError> {
    Gguf::open(path).map_err(|error| match error {
        GgufError::Io(error) if error.kind() == ErrorKind::NotFound => {
            OpenError::ModelMissing { path: path.to_owned() }
        }
        GgufError::Io(error) => OpenError::Read { path: path.to_owned(), error },
        error => OpenError::Gguf { path: path.to_owned(), error },
    })
}

/// Compares the digest of a file with the first word of the file `<path>.sha256`, if that exists.
pub(super) fn compare_checksum(path: &Path, actual: &FileDigest) -> Result<(), OpenError> {
    let checksum_file = PathBuf::from({
        let mut name = path.as_os_str().to_owned();
        name.push(".sha256");
        name
    });
    let text = match std::fs::read(&checksum_file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(OpenError::Read { path: checksum_file, error }),
    };
    let expected = text.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
    if expected.len() != 64 || !expected.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(OpenError::BadChecksumFile { path: checksum_file });
    }
    let actual_hex: String = actual.iter().map(|byte| format!("{byte:02x}")).collect();
    if actual_hex != expected {
        return Err(OpenError::WrongChecksum {
            path: path.to_owned(),
            expected: expected[..12].to_owned(),
            actual: actual_hex[..12].to_owned(),
        });
    }
    Ok(())
}
