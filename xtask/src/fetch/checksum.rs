//! The sha256 of a file, and the error for a wrong one.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// The sha256 of a file in lowercase hex.
pub(super) fn sha256(path: &Path) -> Result<String> {
    let read = || -> std::io::Result<_> {
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hasher.finalize()),
                count => hasher.update(&buffer[..count]),
            }
        }
    };
    let digest = read().with_context(|| format!("cannot read {}", path.display()))?;
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Fails if the sha256 of the file is not `expected`.
pub(super) fn verify(path: &Path, expected: &str) -> Result<()> {
    let actual = sha256(path)?;
    if actual != expected {
        bail!(
            "{} has sha256 {actual}, expected {expected}: the package index or a proxy delivered another file, and nothing was installed",
            path.display()
        );
    }
    Ok(())
}
