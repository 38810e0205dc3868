//! UCX: the unpacked wheel as `ucx-<version>/`, ready when its stamp is right and every file has the size it should.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Wheel, pip};

/// The wheel; UCX's CUDA parts in it are loaded only where CUDA is.
pub(super) const WHEEL: Wheel = Wheel {
    package: "libucx_cu12",
    version: "1.22.0",
    sha256: "5cbbef0c140a0a158ae3486089af659b38822b2234cd3dc90ba40a5e6553402a",
};

/// Written last, inside the folder: the wheel's sha256.
const STAMP: &str = "stamp";

/// Where the wheel is unpacked.
pub(super) fn path(cache: &Path) -> PathBuf {
    cache.join(format!("ucx-{}", WHEEL.version))
}

/// Whether the folder is whole.
pub(super) fn is_ready(cache: &Path) -> bool {
    let folder = path(cache);
    fs::read_to_string(folder.join(STAMP)).is_ok_and(|stamp| stamp.trim() == WHEEL.sha256)
        && is_whole(&folder)
}

/// Compares with the list of files and sizes that every wheel carries.
fn is_whole(folder: &Path) -> bool {
    let list = folder.join(format!("{}-{}.dist-info/RECORD", WHEEL.package, WHEEL.version));
    let Ok(record) = fs::read_to_string(list) else { return false };
    let mut files = sizes(&record).peekable();
    files.peek().is_some()
        && files.all(|(name, size)| fs::metadata(folder.join(name)).is_ok_and(|meta| meta.len() == size))
}

/// The lines `path,sha256=…,size` of a RECORD; its line about itself has no size.
fn sizes(record: &str) -> impl Iterator<Item = (&str, u64)> {
    record.lines().filter_map(|line| {
        let (rest, size) = line.rsplit_once(',')?;
        let (name, _hash) = rest.rsplit_once(',')?;
        Some((name, size.parse().ok()?))
    })
}

/// Puts the folder there if it is not ready. Call under the lock.
pub(super) fn fetch(cache: &Path, work: &Path) -> Result<()> {
    if is_ready(cache) {
        return Ok(());
    }
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("the UCX wheel that is fetched is for Linux on x86_64: install UCX 1.21 or later yourself");
    }
    let unpacked = pip::download(&WHEEL, work)?;
    make_executable(&unpacked.join("libucx/bin"))?;
    if !is_whole(&unpacked) {
        bail!("the unpacked UCX wheel lacks files of its own list; is the disk full?");
    }
    let stamp = unpacked.join(STAMP);
    fs::write(&stamp, format!("{}\n", WHEEL.sha256))
        .with_context(|| format!("cannot write {}", stamp.display()))?;
    install(&unpacked, &path(cache), work)
}

/// Moves the folder into place; what was there is moved out of the way first and goes with `work`.
pub(super) fn install(unpacked: &Path, folder: &Path, work: &Path) -> Result<()> {
    if folder.exists() {
        fs::rename(folder, work.join("replaced"))
            .with_context(|| format!("cannot replace {}", folder.display()))?;
    }
    fs::rename(unpacked, folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// Python's zipfile drops the mode bits.
fn make_executable(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} executable", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read() {
        let record = "libucx/GIT_COMMIT,sha256=7W,41\n\"odd, name\",sha256=a,2\nx.dist-info/RECORD,,\n";
        assert_eq!(sizes(record).collect::<Vec<_>>(), [("libucx/GIT_COMMIT", 41), ("\"odd, name\"", 2)]);
    }
}
