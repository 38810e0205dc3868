//! One model in the cache that Python's `huggingface_hub` shares.
//!
//! ```text
//! models--org--name/blobs/<etag>                  a file, named by its checksum
//! models--org--name/blobs/<etag>.incomplete       the part of a file that has arrived
//! models--org--name/snapshots/<commit>/<path>     a relative link to a blob
//! models--org--name/refs/<revision>               the commit of a branch or tag
//! models--org--name/trees/<commit>.json           the list of the repository's files, which version 2 of the Python package keeps
//! .locks/models--org--name/<etag>.lock            locked with flock while the blob is downloaded
//! ```
//!
//! A blob gets its name, by a rename, after its checksum was verified. So each file that a snapshot leads to is whole.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::HubError;
use super::name::{is_commit, is_relative};
use super::select::{INDEX, ModelParts, Selection, TOKENIZER, select, shards};
use super::tree::Tree;

/// The time between attempts to get a lock. It is that of Python's `filelock`.
const LOCK_EVERY: Duration = Duration::from_millis(50);

/// The time between log lines while another process has a lock.
const WAITING_EVERY: Duration = Duration::from_secs(10);

/// One model in the cache.
#[derive(Clone, Debug)]
pub(super) struct RepoCache {
    /// The folder of the model.
    pub(super) folder: PathBuf,
    locks: PathBuf,
}

/// The right to write a blob. The lock ends with the file.
#[derive(Debug)]
pub(super) struct BlobLock {
    /// `None` if the file system has no locks.
    file: Option<File>,
}

impl RepoCache {
    /// The model `repo` in the cache folder.
    pub(super) fn new(cache: &Path, repo: &str) -> Self {
        let name = format!("models--{}", repo.replace('/', "--"));
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// The folder of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The path of a blob.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// The path of the part of a blob that has arrived. Without a lock, each process has its own.
    pub(super) fn incomplete(&self, etag: &str, lock: &BlobLock) -> PathBuf {
        match lock.file {
            Some(_) => self.blob(&format!("{etag}.incomplete")),
            None => self.blob(&format!("{etag}.{}.incomplete", random())),
        }
    }

    /// The commit that a revision meant when it was last looked up.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Records the commit of a revision.
    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        write_whole(&self.folder.join("refs").join(revision), commit.as_bytes())
    }

    /// Links a blob into the folder of a commit.
    pub(super) fn link(&self, commit: &str, path: &str, etag: &str) -> Result<(), HubError> {
        let pointer = self.snapshot(commit).join(path);
        if !is_relative(path) || !is_relative(etag) {
            let error = io::Error::new(ErrorKind::InvalidInput, "the path leads out of the folder");
            return Err(HubError::cache("create", &pointer)(error));
        }
        if let Some(folder) = pointer.parent() {
            fs::create_dir_all(folder).map_err(HubError::cache("create", folder))?;
        }
        let up = "../".repeat(path.split('/').count() + 1);
        let target = format!("{up}blobs/{etag}");
        if fs::read_link(&pointer).is_ok_and(|old| old == Path::new(&target)) {
            return Ok(());
        }
        // The link replaces what is there, such as the link to a damaged blob, in one step.
        let new = with_suffix(&pointer, &format!(".{}.tmp", random()));
        symlink(target, &new).map_err(HubError::cache("create", &new))?;
        fs::rename(&new, &pointer).map_err(HubError::cache("create", &pointer))
    }

    /// Whether the folder of a commit has a whole file at this path. A file of another size than `bytes` counts as missing.
    pub(super) fn has(&self, commit: &str, path: &str, bytes: Option<u64>) -> bool {
        fs::metadata(self.snapshot(commit).join(path))
            .is_ok_and(|found| found.is_file() && bytes.is_none_or(|bytes| found.len() == bytes))
    }

    /// The list of the repository's files at a commit, if it is known.
    pub(super) fn tree(&self, commit: &str) -> Option<Tree> {
        Tree::parse(&fs::read(self.tree_path(commit)).ok()?)
    }

    /// Records the list of the repository's files at a commit.
    pub(super) fn set_tree(&self, commit: &str, tree: &Tree) -> Result<(), HubError> {
        match tree.to_json() {
            Some(json) if self.tree(commit).is_none() => {
                write_whole(&self.tree_path(commit), json.as_bytes())
            }
            _ => Ok(()),
        }
    }

    fn tree_path(&self, commit: &str) -> PathBuf {
        self.folder.join("trees").join(format!("{commit}.json"))
    }

    /// The paths that the cache lacks of a commit, and where the model is. Without a recorded list, the folder itself says what the
    /// repository has. A folder without a tokenizer was then left by a download that did not end.
    ///
    /// # Errors
    /// The repository does not have the files of a model. The text is the rest of a sentence that begins with the repository.
    pub(super) fn check(
        &self,
        commit: &str,
        file: Option<&str>,
        parts: ModelParts,
    ) -> Result<(Selection, Vec<String>), String> {
        let folder = self.snapshot(commit);
        let recorded = self.tree(commit);
        let is_recorded = recorded.is_some();
        let tree = recorded.unwrap_or_else(|| Tree::of_names(files_below(&folder)));
        let names = tree.names();
        let mut selection = select(&names, file, parts)?;
        let mut missing: Vec<String> = Vec::new();
        if selection.has_index {
            match fs::read(folder.join(INDEX)) {
                // A folder without a list may lack files that its index names.
                Ok(index) => selection.weights = shards(&index, &names).or_else(|_| shards_of(&index))?,
                Err(_) => missing.push(INDEX.to_owned()),
            }
        }
        let wanted = selection.texts.iter().chain(&selection.weights);
        missing.extend(wanted.filter(|path| !self.has(commit, path, tree.bytes(path))).cloned());
        let has_tokenizer = names.iter().any(|name| name == TOKENIZER);
        if !is_recorded && selection.gguf.is_none() && !has_tokenizer {
            missing.push(TOKENIZER.to_owned());
        }
        missing.dedup();
        Ok((selection, missing))
    }

    /// Waits for the lock of a blob. `path` is the file in the repository. Calls `waits` again and again while it waits.
    pub(super) async fn lock(&self, etag: &str, path: &str, waits: impl Fn()) -> Result<BlobLock, HubError> {
        fs::create_dir_all(&self.locks).map_err(HubError::cache("create", &self.locks))?;
        let lock = self.locks.join(format!("{etag}.lock"));
        let mut logged = Instant::now() - WAITING_EVERY;
        loop {
            match try_lock(&lock) {
                Ok(Some(file)) => return Ok(BlobLock { file: Some(file) }),
                Ok(None) => {}
                Err(error) if matches!(error.kind(), ErrorKind::Unsupported) => {
                    tracing::warn!(
                        file = %lock.display(),
                        "the file system of the cache has no locks, so processes that start together download files twice"
                    );
                    return Ok(BlobLock { file: None });
                }
                Err(error) => return Err(HubError::cache("lock", &lock)(error)),
            }
            if logged.elapsed() >= WAITING_EVERY {
                logged = Instant::now();
                tracing::info!(file = path, "another process downloads the file; waiting for it");
            }
            waits();
            sleep(LOCK_EVERY).await;
        }
    }

    /// The locks of all files of the model, for as long as the result lives; `None` if another process may have one. The files of locks are never
    /// removed, because a lock on a removed file keeps no other process out.
    pub(super) fn hold(&self) -> Option<Vec<File>> {
        let mut held = Vec::new();
        for entry in fs::read_dir(&self.locks).into_iter().flatten().flatten() {
            match try_lock(&entry.path()) {
                Ok(lock) => held.push(lock?),
                // No process can hold a lock here.
                Err(error) if error.kind() == ErrorKind::Unsupported => {}
                Err(_) => return None,
            }
        }
        Some(held)
    }
}

/// The lock, or `None` if another process has it.
fn try_lock(path: &Path) -> io::Result<Option<File>> {
    // The mode is that of Python's `huggingface_hub`, for users who share a cache.
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o664).open(path)?;
    // The user's mask may have taken bits of the mode. Another user's file keeps its mode.
    let _ = file.set_permissions(Permissions::from_mode(0o664));
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        // Some network file systems say so if another process has the lock. `filelock` waits then, too.
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::PermissionDenied => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Some versions of Python's `filelock` remove the file when they release the lock. Then this lock excludes nobody.
    let is_current =
        fs::metadata(path).is_ok_and(|found| found.ino() == file.metadata().map_or(0, |held| held.ino()));
    Ok(is_current.then_some(file))
}

/// The files with weights that an index names, without a list of the repository.
fn shards_of(index: &[u8]) -> Result<Vec<String>, String> {
    let index: serde_json::Value = serde_json::from_slice(index).map_err(|error| error.to_string())?;
    let places = index["weight_map"].as_object().into_iter().flat_map(|places| places.values());
    let mut files: Vec<String> =
        places.filter_map(|file| file.as_str().filter(|file| is_relative(file)).map(str::to_owned)).collect();
    files.sort_unstable();
    files.dedup();
    if files.is_empty() { Err(format!("has an {INDEX} that names no file")) } else { Ok(files) }
}

/// The paths of all files below a folder, relative to it, in order.
pub(super) fn files_below(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, prefix: &str, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            match fs::symlink_metadata(entry.path()) {
                Ok(kind) if kind.is_dir() => walk(&entry.path(), &format!("{path}/"), found),
                Ok(_) => found.push(path),
                Err(_) => {}
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, "", &mut found);
    found.sort_unstable();
    found
}

/// Writes a small file that other processes see whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), HubError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(HubError::cache("create", folder))?;
    }
    let new = with_suffix(path, &format!(".{}.tmp", random()));
    fs::write(&new, bytes).map_err(HubError::cache("write", &new))?;
    fs::rename(&new, path).map_err(HubError::cache("write", path))
}

/// A part of a name that no other process takes. Processes in containers that share a cache may have the same id.
fn random() -> String {
    // Each `RandomState` has new keys.
    format!("{:016x}", RandomState::new().hash_one(0u8))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests;
