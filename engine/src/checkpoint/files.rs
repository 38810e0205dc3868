//! Opening a model's files, and their checksums.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

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

/// The sha256 of the file. If the file `<path>.sha256` exists, its first word must be the same checksum in hex.
pub(super) fn fingerprint(path: &Path, read: &dyn Fn()) -> Result<[u8; 32], OpenError> {
    let actual = sha256(&[path.to_owned()], read).map_err(|(path, error)| OpenError::Read { path, error })?;
    let checksum_file = PathBuf::from({
        let mut name = path.as_os_str().to_owned();
        name.push(".sha256");
        name
    });
    let text = match std::fs::read(&checksum_file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(actual),
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
    Ok(actual)
}

/// Bytes between two calls of `read`.
const READ_EVERY: u64 = 64 << 20;

/// The sha256 of the concatenated files. Calls `read` now and then, because large files take minutes.
///
/// # Errors
/// The path of the file that cannot be read, and the error.
pub(super) fn sha256(paths: &[PathBuf], read: &dyn Fn()) -> Result<[u8; 32], (PathBuf, std::io::Error)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut since = 0;
    for path in paths {
        let failed = |error| (path.clone(), error);
        let mut file = File::open(path).map_err(failed)?;
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => break,
                count => {
                    hasher.update(&buffer[..count]);
                    since += count as u64;
                }
            }
            if since >= READ_EVERY {
                since = 0;
                read();
            }
        }
    }
    Ok(hasher.finalize().into())
}
