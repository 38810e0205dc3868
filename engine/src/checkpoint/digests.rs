//! The SHA-256 of files. Reading a large file takes seconds, so a store keeps the digests from one start to the next.
//!
//! A file is known by its path, inode, size and times of change. A change of the contents changes the times, unless it comes within
//! the resolution of the clock after another one. So the digest of a file that has just changed is not stored.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The SHA-256 of a file.
pub(super) type FileDigest = [u8; 32];

/// Most entries of a store.
const ENTRIES_MAX: usize = 1000;

/// Bytes between two calls of `read`.
const READ_EVERY: u64 = 64 << 20;

/// Most files that are read at once.
const READERS_MAX: usize = 8;

/// Age after which a file's times of change are different from those of its next change.
const SETTLED: Duration = Duration::from_secs(2);

/// What identifies the contents of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// When the contents changed, and when the inode changed: seconds since 1970, and nanoseconds.
    changed: [(i64, i64); 2],
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        let changed = [(found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec())];
        Self { device: found.dev(), inode: found.ino(), bytes: found.len(), changed }
    }

    fn has_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let latest = now.saturating_sub(SETTLED).as_secs() as i64;
        self.changed.iter().all(|(seconds, _)| *seconds < latest)
    }
}

/// The contents of a store: for each path without links, the stamp of the file and its digest.
type Entries = BTreeMap<PathBuf, (Stamp, FileDigest)>;

/// The digests of the files, in order. Reads the files whose digests the store, a JSON file, does not have, several at once, and adds them to
/// the store. Calls `read` now and then, from several threads. A store that cannot be read or written is not used.
///
/// # Errors
/// The path of a file that cannot be read, and the error.
pub(super) fn of_files(
    paths: &[PathBuf],
    store: Option<&Path>,
    read: &(dyn Fn() + Sync),
) -> Result<Vec<FileDigest>, (PathBuf, io::Error)> {
    of_files_at(SystemTime::now(), paths, store, read)
}

fn of_files_at(
    now: SystemTime,
    paths: &[PathBuf],
    store: Option<&Path>,
    read: &(dyn Fn() + Sync),
) -> Result<Vec<FileDigest>, (PathBuf, io::Error)> {
    let known = store.map(load).unwrap_or_default();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(path) = paths.get(place) else { return Ok(found) };
            let digest = of_file(now, path, &known, read).map_err(|error| {
                // The other readers stop too.
                next.store(paths.len(), Ordering::Relaxed);
                (path.clone(), error)
            })?;
            found.push((place, digest));
        }
    };
    let readers = thread::available_parallelism().map_or(1, usize::from).min(READERS_MAX).min(paths.len());
    let mut found = thread::scope(|scope| {
        let readers: Vec<_> = (0..readers).map(|_| scope.spawn(work)).collect();
        let results =
            readers.into_iter().map(|reader| reader.join().unwrap_or_else(|panic| resume_unwind(panic)));
        results.collect::<Result<Vec<_>, _>>()
    })?
    .concat();
    found.sort_by_key(|(place, _)| *place);
    if let Some(store) = store {
        let learnt = found.iter().filter_map(|(_, found)| found.learnt.clone()).collect::<Entries>();
        if !learnt.is_empty() {
            // Without the store, the next start reads the files again.
            let _ = keep(store, learnt);
        }
    }
    Ok(found.into_iter().map(|(_, found)| found.digest).collect())
}

/// The digest of a file.
#[derive(Clone)]
struct Found {
    digest: FileDigest,
    /// What a store can keep, if it does not have the digest yet.
    learnt: Option<(PathBuf, (Stamp, FileDigest))>,
}

fn of_file(now: SystemTime, path: &Path, known: &Entries, read: &(dyn Fn() + Sync)) -> io::Result<Found> {
    // A model of the hub is a link to a file that several models may share.
    let path = fs::canonicalize(path)?;
    let mut file = File::open(&path)?;
    let stamp = Stamp::of(&file.metadata()?);
    if let Some((_, digest)) = known.get(&path).filter(|(before, _)| *before == stamp) {
        return Ok(Found { digest: *digest, learnt: None });
    }
    let digest = of_contents(&mut file, read)?;
    let is_kept = stamp.has_settled(now) && Stamp::of(&file.metadata()?) == stamp;
    Ok(Found { digest, learnt: is_kept.then_some((path, (stamp, digest))) })
}

fn of_contents(file: &mut File, read: &(dyn Fn() + Sync)) -> io::Result<FileDigest> {
    let (mut hasher, mut buffer, mut since) = (Sha256::new(), vec![0; 1 << 18], 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
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

/// The entries of a store; none if it cannot be read.
fn load(store: &Path) -> Entries {
    fs::read(store).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Adds entries to a store, and removes those of files that are gone or have changed. Another process that does the same at this moment may undo it.
fn keep(store: &Path, learnt: Entries) -> io::Result<()> {
    let mut entries = load(store);
    // Hosts that share the store know the device of a file by other numbers.
    let is_same = |stamp: &Stamp, found: Stamp| found.device != stamp.device || found == *stamp;
    entries
        .retain(|path, (stamp, _)| fs::metadata(path).is_ok_and(|found| is_same(stamp, Stamp::of(&found))));
    if entries.len() + learnt.len() > ENTRIES_MAX {
        entries.clear();
    }
    // JSON has no other paths.
    entries.extend(learnt.into_iter().filter(|(path, _)| path.to_str().is_some()));
    fs::create_dir_all(store.parent().unwrap_or(Path::new(".")))?;
    // Processes in containers may have one pid and share the store.
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    let part = store.with_extension(format!("{}-{nanos}.part", process::id()));
    fs::write(&part, serde_json::to_vec(&entries)?)?;
    fs::rename(&part, store)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempFile;

    /// The digests at a time at which the files have settled.
    fn later(paths: &[PathBuf], store: &Path) -> Vec<FileDigest> {
        of_files_at(SystemTime::now() + 2 * SETTLED, paths, Some(store), &|| ()).unwrap()
    }

    fn sha256(contents: &[u8]) -> FileDigest {
        Sha256::digest(contents).into()
    }

    #[test]
    fn many_files_have_their_digests_in_order() {
        let files: Vec<_> = (0..20_u8).map(|n| TempFile::new("digest", &[n; 3])).collect();
        let paths: Vec<_> = files.iter().map(|file| file.path().to_owned()).collect();
        let expect: Vec<_> = (0..20_u8).map(|n| sha256(&[n; 3])).collect();
        assert_eq!(of_files(&paths, None, &|| ()).unwrap(), expect);
        let missing = [paths[0].clone(), PathBuf::from("/nowhere/file")];
        assert_eq!(of_files(&missing, None, &|| ()).unwrap_err().0, missing[1]);
    }

    #[test]
    fn a_stored_digest_is_used_until_the_file_changes() {
        let (file, store) = (TempFile::new("model", b"one"), TempFile::new("digests.json", b"damaged"));
        let paths = [file.path().to_owned()];
        assert_eq!(later(&paths, store.path()), [sha256(b"one")]);
        let mut entries = load(store.path());
        assert_eq!(entries.len(), 1);
        entries.values_mut().for_each(|(_, digest)| *digest = [7; 32]);
        fs::write(store.path(), serde_json::to_vec(&entries).unwrap()).unwrap();
        assert_eq!(later(&paths, store.path()), [[7; 32]], "the file is not read");
        fs::write(file.path(), b"two").unwrap();
        assert_eq!(later(&paths, store.path()), [sha256(b"two")]);
        drop(file);
        let other = TempFile::new("other", b"three");
        later(&[other.path().to_owned()], store.path());
        assert_eq!(load(store.path()).len(), 1, "the file that is gone is forgotten");
    }

    #[test]
    fn the_digest_of_a_file_that_has_just_changed_is_not_stored() {
        let (file, store) = (TempFile::new("model", b"one"), TempFile::new("digests.json", b"{}"));
        of_files(&[file.path().to_owned()], Some(store.path()), &|| ()).unwrap();
        assert!(load(store.path()).is_empty());
    }
}
