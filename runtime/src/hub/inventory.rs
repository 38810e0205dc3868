//! The models in the cache: what is there, and its removal.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use super::cache::{RepoCache, files_below};
use super::error::{HubError, size_text};
use super::name::{HubName, is_gguf};
use super::select::{INDEX, ModelParts};

/// One revision of a model in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CachedModel {
    /// The id, `org/name`.
    pub name: String,
    /// The commit; `None` if only parts of files have arrived.
    pub commit: Option<String>,
    /// The branches and tags that lead to the commit.
    pub revisions: Vec<String>,
    /// Bytes of the files. Revisions share files that are equal.
    pub bytes: u64,
    /// Bytes of files of the model that have arrived in part.
    pub partial_bytes: u64,
    /// The last read of a file that the file system recorded, in seconds since 1970.
    pub last_used: i64,
    /// What Baton can do with the files.
    pub state: CachedState,
    /// The folder of the files.
    pub path: PathBuf,
}

/// What Baton can do with the files of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CachedState {
    /// They can be served.
    Complete,
    /// They serve a proxy, or another model as tokenizer.
    WithoutWeights,
    /// Files are missing. A download continues.
    Incomplete,
}

impl CachedState {
    fn text(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::WithoutWeights => "without weights",
            Self::Incomplete => "incomplete",
        }
    }
}

/// Lists the models in a cache folder, in the order of their names. A folder that does not exist has none.
pub fn list(cache: &Path) -> Vec<CachedModel> {
    let ids =
        entries(cache).into_iter().filter_map(|name| Some(name.strip_prefix("models--")?.replace("--", "/")));
    ids.flat_map(|id| of_repo(cache, &id)).collect()
}

fn of_repo(cache: &Path, id: &str) -> Vec<CachedModel> {
    let repo = RepoCache::new(cache, id);
    let refs = files_below(&repo.folder.join("refs"));
    let partial_bytes = partial_bytes(&repo);
    let mut found: Vec<CachedModel> = entries(&repo.folder.join("snapshots"))
        .into_iter()
        .map(|commit| {
            let path = repo.snapshot(&commit);
            let files: Vec<fs::Metadata> =
                files_below(&path).iter().filter_map(|file| fs::metadata(path.join(file)).ok()).collect();
            let leads_here = |name: &&String| repo.commit_of(name).as_ref() == Some(&commit);
            CachedModel {
                name: id.to_owned(),
                revisions: refs.iter().filter(leads_here).cloned().collect(),
                bytes: files.iter().map(fs::Metadata::len).sum(),
                partial_bytes,
                last_used: files.iter().map(MetadataExt::atime).max().unwrap_or(0),
                state: state(&repo, &commit, partial_bytes),
                commit: Some(commit),
                path,
            }
        })
        .collect();
    if found.is_empty() && partial_bytes > 0 {
        found.push(CachedModel {
            name: id.to_owned(),
            commit: None,
            revisions: Vec::new(),
            bytes: 0,
            partial_bytes,
            last_used: fs::metadata(repo.folder.join("blobs")).map_or(0, |blobs| blobs.mtime()),
            state: CachedState::Incomplete,
            path: repo.folder,
        });
    }
    found
}

fn state(repo: &RepoCache, commit: &str, partial_bytes: u64) -> CachedState {
    let has_gguf = || {
        files_below(&repo.snapshot(commit)).iter().any(|file| is_gguf(file) && repo.has(commit, file, None))
    };
    let has = |parts| repo.check(commit, None, parts).is_ok_and(|(_, missing)| missing.is_empty());
    if has(ModelParts::All) || has_gguf() {
        CachedState::Complete
    } else if has(ModelParts::WithoutWeights) && partial_bytes == 0 && !repo.has(commit, INDEX, None) {
        CachedState::WithoutWeights
    } else {
        CachedState::Incomplete
    }
}

fn partial_bytes(repo: &RepoCache) -> u64 {
    let blobs = repo.folder.join("blobs");
    let partial = entries(&blobs).into_iter().filter(|name| name.ends_with(".incomplete"));
    partial.filter_map(|name| Some(fs::metadata(blobs.join(name)).ok()?.len())).sum()
}

/// The list as a table.
pub fn table(models: &[CachedModel], cache: &Path) -> String {
    if models.is_empty() {
        return format!("There are no models in {}.\n", cache.display());
    }
    let heads = ["MODEL", "REVISION", "COMMIT", "SIZE", "LAST USED", "STATE"].map(str::to_owned);
    let row = |model: &CachedModel| {
        let used = Timestamp::from_second(model.last_used).unwrap_or_default();
        let partial = match model.partial_bytes {
            0 => String::new(),
            bytes => format!(", {} of a download", size_text(bytes)),
        };
        [
            model.name.clone(),
            model.revisions.join(", "),
            model.commit.as_ref().map_or_else(|| "-".to_owned(), |commit| commit.chars().take(12).collect()),
            size_text(model.bytes),
            used.strftime("%Y-%m-%d %H:%M").to_string(),
            format!("{}{partial}", model.state.text()),
        ]
    };
    let rows: Vec<[String; 6]> = std::iter::once(heads).chain(models.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// Removes a model, or one revision of it. Returns the bytes that are free after that. Files that other revisions use stay.
///
/// # Errors
/// The model is not in the cache, another process downloads it, or a file cannot be removed.
pub fn remove(name: &HubName, cache: &Path) -> Result<u64, HubError> {
    let repo = RepoCache::new(cache, &name.repo);
    let absent = || HubError::NotCached { name: name.to_string(), cache: cache.to_owned() };
    if name.file.is_some() {
        return Err(HubError::Settings("a single file cannot be removed; leave out `:file`".to_owned()));
    }
    if !repo.folder.is_dir() {
        return Err(absent());
    }
    // Held until the files are removed.
    let _locks = repo.hold().ok_or_else(|| HubError::InUse { repo: name.repo.clone() })?;
    let snapshots = entries(&repo.folder.join("snapshots"));
    let Some(revision) = &name.revision else { return remove_all(&repo) };
    // The table shows the beginnings of commits.
    let mut candidates =
        snapshots.iter().filter(|commit| revision.len() >= 7 && commit.starts_with(&**revision));
    let by_beginning = candidates.next().filter(|_| candidates.next().is_none());
    let commit = repo.commit_of(revision).or_else(|| by_beginning.cloned()).ok_or_else(absent)?;
    match snapshots.iter().filter(|other| **other != commit).count() {
        count if count == snapshots.len() => Err(absent()),
        0 => remove_all(&repo),
        _ => remove_commit(&repo, &commit),
    }
}

fn remove_all(repo: &RepoCache) -> Result<u64, HubError> {
    let blobs = repo.folder.join("blobs");
    let freed = entries(&blobs).iter().map(|blob| own_bytes(&blobs.join(blob))).sum();
    fs::remove_dir_all(&repo.folder).map_err(HubError::cache("remove", &repo.folder))?;
    Ok(freed)
}

/// Removes a commit and the blobs that only it uses: first what leads to them.
fn remove_commit(repo: &RepoCache, commit: &str) -> Result<u64, HubError> {
    let gone = |path: &Path| match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(HubError::cache("remove", path)(error)),
        _ => Ok(()),
    };
    let refs = repo.folder.join("refs");
    for name in files_below(&refs) {
        if repo.commit_of(&name).as_deref() == Some(commit) {
            gone(&refs.join(name))?;
        }
    }
    let used = blobs_of(&repo.snapshot(commit));
    let folder = repo.snapshot(commit);
    fs::remove_dir_all(&folder).map_err(HubError::cache("remove", &folder))?;
    let _ = fs::remove_file(repo.folder.join("trees").join(format!("{commit}.json")));
    let others = entries(&repo.folder.join("snapshots"));
    let kept: BTreeSet<String> = others.iter().flat_map(|other| blobs_of(&repo.snapshot(other))).collect();
    let mut freed = 0;
    for blob in used.difference(&kept) {
        let path = repo.blob(blob);
        freed += own_bytes(&path);
        gone(&path)?;
    }
    Ok(freed)
}

/// The names of the blobs that a folder's links lead to.
fn blobs_of(snapshot: &Path) -> BTreeSet<String> {
    let target = |file: &String| fs::read_link(snapshot.join(file)).ok();
    let name = |path: PathBuf| Some(path.file_name()?.to_string_lossy().into_owned());
    files_below(snapshot).iter().filter_map(target).filter_map(name).collect()
}

/// Bytes that are free after the removal of a file. Python may keep a blob elsewhere; then there is a link, and the blob stays.
fn own_bytes(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |found| if found.is_file() { found.len() } else { 0 })
}

/// The names in a folder, in order.
fn entries(folder: &Path) -> Vec<String> {
    let found = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        found.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests;
