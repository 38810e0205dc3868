//! Tests of checksums, stamps, the lock and the work folder.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{bail, ensure};

use super::*;

/// A folder of one test, removed when dropped.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("baton-xtask-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn checksums_equal_those_of_sha256sum() {
    let folder = Folder::new();
    let file = folder.path().join("abc");
    fs::write(&file, "abc").unwrap();
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(checksum::sha256(&file).unwrap(), expected);
    checksum::verify(&file, expected).unwrap();
}

#[test]
fn the_error_for_a_wrong_checksum_names_the_file_and_both_sums() {
    let folder = Folder::new();
    let file = folder.path().join("abc");
    fs::write(&file, "abd").unwrap();
    let error = checksum::verify(&file, "ba78").unwrap_err().to_string();
    for part in ["abc", "expected ba78", "sha256 a52d"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = format!("{:#}", checksum::sha256(Path::new("/nowhere/file")).unwrap_err());
    assert!(error.contains("cannot read /nowhere/file"), "{error}");
}

#[test]
fn a_work_folder_starts_empty_and_is_removed() {
    let cache = Folder::new();
    let left = cache.path().join(format!("{WORK_PREFIX}1"));
    fs::create_dir(&left).unwrap();
    fs::write(left.join("half.whl"), "half").unwrap();
    let work = Work::begin(cache.path()).unwrap();
    assert!(!left.exists() && work.0.is_dir());
    fs::write(work.0.join("file"), "x").unwrap();
    drop(work);
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn the_lock_is_exclusive_until_dropped() {
    let cache = Folder::new();
    let held = lock(cache.path()).unwrap();
    let other = File::create(cache.path().join("lock")).unwrap();
    assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
    drop(held);
    other.try_lock().unwrap();
}

#[test]
fn only_missing_parts_are_fetched_and_a_failure_keeps_the_others() {
    fn file(cache: &Path) -> PathBuf {
        cache.join("file")
    }
    let good = || Part {
        path: file,
        is_ready: |cache| file(cache).exists(),
        fetch: |cache, work| {
            ensure!(
                work.is_dir() && !file(cache).exists(),
                "the part is fetched twice or has no work folder"
            );
            write_whole(work, &file(cache), "content")
        },
    };
    let bad = Part { path: file, is_ready: |_| false, fetch: |_, _| bail!("no network") };
    let home = Folder::new();
    let cache = home.path().join("cache");
    assert!(complete(&cache, &[good()]).unwrap());
    assert!(!complete(&cache, &[good()]).unwrap());
    fs::remove_file(file(&cache)).unwrap();
    assert_eq!(complete(&cache, &[good(), bad]).unwrap_err().to_string(), "no network");
    assert!(file(&cache).exists());
}

/// An unpacked UCX wheel with one listed file.
fn ucx_folder(folder: &Path, listed_size: u64) {
    let info = folder.join(format!("{}-{}.dist-info", ucx::WHEEL.package, ucx::WHEEL.version));
    fs::create_dir_all(&info).unwrap();
    fs::write(folder.join("libucp.so.0"), "library").unwrap();
    fs::write(info.join("RECORD"), format!("libucp.so.0,sha256=x,{listed_size}\n")).unwrap();
    fs::write(folder.join("stamp"), ucx::WHEEL.sha256).unwrap();
}

#[test]
fn ucx_is_ready_when_stamped_and_complete() {
    let cache = Folder::new();
    assert!(!ucx::is_ready(cache.path()), "absent");
    let folder = ucx::path(cache.path());
    ucx_folder(&folder, 7);
    assert!(ucx::is_ready(cache.path()));
    fs::write(folder.join("stamp"), "another wheel").unwrap();
    assert!(!ucx::is_ready(cache.path()), "stamp of another wheel");
    ucx_folder(&folder, 8);
    assert!(!ucx::is_ready(cache.path()), "a file of another size");
}

#[test]
fn ucx_replaces_an_older_folder() {
    let cache = Folder::new();
    let work = Work::begin(cache.path()).unwrap();
    let folder = ucx::path(cache.path());
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("old"), "").unwrap();
    let unpacked = work.0.join("new");
    ucx_folder(&unpacked, 7);
    install(&unpacked, &folder, &work.0).unwrap();
    assert!(ucx::is_ready(cache.path()) && !folder.join("old").exists());
}
