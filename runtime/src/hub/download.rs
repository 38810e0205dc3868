//! Downloads one file into its blob: it continues what is there, tries again after failures, and checks the checksum before the blob gets
//! its name.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE};
use hyper::{Response, StatusCode};
use tokio::time::{sleep, timeout};

use super::cache::RepoCache;
use super::checksum::{Checksum, ChecksumKind};
use super::client::{Failure, HubClient};
use super::error::{HubError, size_text};
use super::name::HubName;
use super::progress::Progress;
use super::retry::Retries;
use crate::frontend::with_causes;

/// A file to download.
#[derive(Clone, Debug)]
pub(super) struct RemoteFile {
    /// The path in the repository.
    pub(super) path: String,
    /// The URL of the file at a fixed commit.
    pub(super) url: String,
    /// The checksum in hexadecimal digits.
    pub(super) etag: String,
    /// The kind of the checksum.
    pub(super) kind: ChecksumKind,
    /// The size, if it is known. That of a file with git's checksum is.
    pub(super) bytes: Option<u64>,
}

/// What a download of a file uses.
pub(super) struct Download<'a> {
    pub(super) client: &'a HubClient,
    pub(super) cache: &'a RepoCache,
    pub(super) name: &'a HubName,
    pub(super) progress: &'a Progress,
}

/// The part of a file that is on disk.
struct Part {
    path: PathBuf,
    file: File,
    bytes: u64,
    checksum: Checksum,
}

/// How an attempt has ended.
enum Attempt {
    /// All bytes are there.
    Whole,
    /// The connection broke, or there was none.
    Broken(Failure),
    /// The bytes, or the number of bytes, are not those of the file.
    Wrong(String),
}

impl Download<'_> {
    /// Makes sure that the blob of the file exists. Waits while another process downloads it.
    pub(super) async fn run(&self, file: &RemoteFile) -> Result<(), HubError> {
        let blob = self.cache.blob(&file.etag);
        let lock = self.cache.lock(&file.etag, &file.path, || self.progress.waits()).await?;
        if has_blob(&blob, file.bytes) {
            self.progress.skip(file.bytes.unwrap_or(0));
            return Ok(());
        }
        let partial = self.cache.incomplete(&file.etag, &lock);
        let mut wrong: Option<String> = None;
        loop {
            let what = match self.attempts(file, &partial).await? {
                None => break,
                Some(what) => what,
            };
            tracing::warn!(file = file.path, "the file arrived with {what} and was discarded");
            match fs::remove_file(&partial) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(HubError::cache("remove", &partial)(error));
                }
                _ => {}
            }
            if wrong.is_some() {
                return Err(HubError::Damaged {
                    repo: self.name.repo.clone(),
                    file: file.path.clone(),
                    what,
                });
            }
            wrong = Some(what);
        }
        // A blob of another size is a damaged one. The new one replaces it in one step.
        fs::rename(&partial, &blob).map_err(HubError::cache("rename", &partial))
    }

    /// Downloads until the file is whole. Returns what is wrong with it, if it must be discarded.
    async fn attempts(&self, file: &RemoteFile, partial: &Path) -> Result<Option<String>, HubError> {
        let mut part = Part::open(partial, file)?;
        self.progress.skip(part.bytes);
        let mut retries = Retries::default();
        let mut before = part.bytes;
        loop {
            let attempt = self.attempt(file, &mut part).await?;
            if part.bytes > before {
                retries.progressed();
            }
            before = part.bytes;
            match attempt {
                Attempt::Whole => break,
                Attempt::Wrong(what) => {
                    self.progress.discard(part.bytes);
                    return Ok(Some(what));
                }
                Attempt::Broken(failure) => {
                    let pause = failure.may_pass().and_then(|asked| retries.next(asked));
                    let Some(pause) = pause else { return Err(self.given_up(failure, file, part.bytes)) };
                    tracing::info!(
                        file = file.path,
                        reason = failure.reason(),
                        "the download is tried again"
                    );
                    sleep(pause).await;
                }
            }
        }
        part.file.sync_data().map_err(|error| write_error(error, partial, file, part.bytes))?;
        if !part.is_at(partial) {
            self.progress.discard(part.bytes);
            return Ok(Some("changes of another process".to_owned()));
        }
        let found = part.checksum.finish();
        let is_right = found == file.etag;
        if !is_right {
            self.progress.discard(part.bytes);
        }
        let shorts = |text: &str| text[..12].to_owned();
        Ok((!is_right).then(|| format!("checksum {} instead of {}", shorts(&found), shorts(&file.etag))))
    }

    /// Sends one request and writes what comes.
    async fn attempt(&self, file: &RemoteFile, part: &mut Part) -> Result<Attempt, HubError> {
        match file.bytes {
            Some(bytes) if bytes == part.bytes => return Ok(Attempt::Whole),
            Some(bytes) if bytes < part.bytes => return Ok(Attempt::Wrong(lengths(part.bytes, bytes))),
            _ => {}
        }
        let response = match self.client.get(&file.url, part.bytes).await {
            Ok(response) => response,
            Err(Failure::Status(refused)) if refused.status == StatusCode::RANGE_NOT_SATISFIABLE => {
                return Ok(Attempt::Wrong(format!("more than the {} bytes of the file", part.bytes)));
            }
            Err(failure) => return Ok(Attempt::Broken(failure)),
        };
        if response.status() != StatusCode::PARTIAL_CONTENT && part.bytes > 0 {
            // The server sends the file from its beginning.
            self.progress.discard(part.bytes);
            let path = part.path.clone();
            fs::remove_file(&path).map_err(HubError::cache("remove", &path))?;
            *part = Part::open(&path, file)?;
        }
        match sent_range(&response) {
            Some((start, _)) if start != part.bytes => {
                return Ok(Attempt::Wrong(format!("bytes from position {start} instead of {}", part.bytes)));
            }
            Some((_, Some(total))) if file.bytes.is_some_and(|bytes| bytes != total) => {
                return Ok(Attempt::Wrong(lengths(total, file.bytes.unwrap_or_default())));
            }
            _ => {}
        }
        self.receive(file, part, response.into_body()).await
    }

    async fn receive(
        &self,
        file: &RemoteFile,
        part: &mut Part,
        mut body: Incoming,
    ) -> Result<Attempt, HubError> {
        let broken = |reason: String| Attempt::Broken(Failure::Connection { url: file.url.clone(), reason });
        loop {
            let frame = match timeout(self.client.patience, body.frame()).await {
                Err(_) => return Ok(broken(self.client.silence())),
                Ok(None) => break,
                Ok(Some(Err(error))) => return Ok(broken(with_causes(&error))),
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(bytes) = frame.into_data() else { continue };
            if file.bytes.is_some_and(|limit| part.bytes + bytes.len() as u64 > limit) {
                return Ok(Attempt::Wrong(format!(
                    "more than the {} bytes of the file",
                    file.bytes.unwrap_or_default()
                )));
            }
            part.write(&bytes).map_err(|error| write_error(error, &part.path, file, part.bytes))?;
            self.progress.add(bytes.len() as u64);
        }
        match file.bytes {
            Some(bytes) if part.bytes < bytes => {
                Ok(broken(format!("the answer ended after {} bytes", part.bytes)))
            }
            _ => Ok(Attempt::Whole),
        }
    }

    /// The error of a failure after which no attempt follows.
    fn given_up(&self, failure: Failure, file: &RemoteFile, done: u64) -> HubError {
        match failure {
            Failure::Connection { reason, .. } if done > 0 => {
                HubError::Interrupted { repo: self.name.repo.clone(), file: file.path.clone(), done, reason }
            }
            failure => self.client.error(failure, &self.name.repo, self.name.revision()),
        }
    }
}

impl Part {
    /// Opens the part that is there, and computes its checksum.
    fn open(path: &Path, remote: &RemoteFile) -> Result<Self, HubError> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(HubError::cache("create", folder))?;
        }
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = open.map_err(HubError::cache("open", path))?;
        let mut checksum = Checksum::new(remote.kind, remote.bytes.unwrap_or_default());
        let mut buffer = vec![0; 1 << 18];
        let mut bytes = 0;
        // After the last read, the file is positioned where new bytes go.
        loop {
            match file.read(&mut buffer).map_err(HubError::cache("read", path))? {
                0 => break,
                count => {
                    checksum.update(&buffer[..count]);
                    bytes += count as u64;
                }
            }
        }
        Ok(Self { path: path.to_owned(), file, bytes, checksum })
    }

    /// Whether the path leads to the bytes that were checked. A process that ignores the lock may have replaced or extended the file.
    fn is_at(&self, path: &Path) -> bool {
        let place = |found: fs::Metadata| (found.dev(), found.ino(), found.len());
        match (self.file.metadata(), fs::metadata(path)) {
            (Ok(held), Ok(named)) => held.len() == self.bytes && place(held) == place(named),
            _ => false,
        }
    }

    fn write(&mut self, bytes: &Bytes) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.checksum.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// The error of a write to the part of a file that has `done` bytes.
fn write_error(error: std::io::Error, path: &Path, file: &RemoteFile, done: u64) -> HubError {
    if !matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        return HubError::cache("write", path)(error);
    }
    let folder = path.parent().unwrap_or(path);
    HubError::DiskFull {
        folder: folder.to_owned(),
        needed: file.bytes.map_or_else(|| "file".to_owned(), |bytes| size_text(bytes.saturating_sub(done))),
        available: size_text(available(folder).unwrap_or(0)),
    }
}

/// Whether the blob is there. A blob of another size is damaged.
pub(super) fn has_blob(blob: &Path, bytes: Option<u64>) -> bool {
    fs::metadata(blob).is_ok_and(|found| found.is_file() && bytes.is_none_or(|bytes| found.len() == bytes))
}

/// Free bytes for this user on the file system of a folder that exists.
pub(super) fn available(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

fn lengths(found: u64, expected: u64) -> String {
    format!("{found} bytes instead of {expected}")
}

/// Where the bytes of an answer begin, and the size of the whole file if the answer says it.
fn sent_range(response: &Response<Incoming>) -> Option<(u64, Option<u64>)> {
    let header = |name| response.headers().get(name)?.to_str().ok();
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Some((0, header(CONTENT_LENGTH).and_then(|length| length.parse().ok())));
    }
    content_range(header(CONTENT_RANGE)?)
}

/// The first position and the total of `bytes 10-99/100`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(content_range("bytes 10-99/100"), Some((10, Some(100))));
        assert_eq!(content_range("bytes 10-99/*"), Some((10, None)));
        for other in ["", "bytes */100", "items 1-2/3", "bytes 10-99"] {
            assert_eq!(content_range(other), None, "{other}");
        }
    }

    #[test]
    fn a_full_disk_has_its_sentence() {
        let file = RemoteFile {
            path: "m.gguf".to_owned(),
            url: String::new(),
            etag: String::new(),
            kind: ChecksumKind::Git,
            bytes: Some(5_000_000),
        };
        let sentence = |kind: ErrorKind| {
            write_error(kind.into(), Path::new("/nowhere/blobs/aa.incomplete"), &file, 2_000_000).to_string()
        };
        for full in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded] {
            let sentence = sentence(full);
            let words = "the disk of /nowhere/blobs is full: the model needs another 3.0 MB and 0 B are free";
            assert!(sentence.starts_with(words), "{sentence}");
        }
        let denied = sentence(ErrorKind::PermissionDenied);
        assert!(denied.starts_with("cannot write /nowhere/blobs/aa.incomplete: "), "{denied}");
    }

    /// Only the bytes that were checked get the name of the blob.
    #[test]
    fn a_part_that_was_replaced_is_noticed() {
        let folder = std::env::temp_dir().join(format!("baton-part-{}", std::process::id()));
        let path = folder.join("aa.incomplete");
        let file = RemoteFile {
            path: "m.gguf".to_owned(),
            url: String::new(),
            etag: String::new(),
            kind: ChecksumKind::Sha256,
            bytes: Some(3),
        };
        let mut part = Part::open(&path, &file).unwrap();
        part.write(&Bytes::from_static(b"abc")).unwrap();
        assert!(part.is_at(&path));
        fs::write(&path, "abcd").unwrap();
        assert!(!part.is_at(&path), "it is longer");
        fs::write(&path, "abc").unwrap();
        assert!(part.is_at(&path));
        fs::write(folder.join("other"), "abc").unwrap();
        fs::rename(folder.join("other"), &path).unwrap();
        assert!(!part.is_at(&path), "it is another file");
        fs::remove_file(&path).unwrap();
        assert!(!part.is_at(&path), "it is gone");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_disk_of_a_folder_has_a_number_of_free_bytes() {
        assert!(available(Path::new("/")).is_some());
        assert_eq!(available(Path::new("/nowhere/at/home")), None);
    }
}
