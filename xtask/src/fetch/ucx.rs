//! UCX: the unpacked wheel as `ucx-<version>/`. It is ready when its stamp is right and all listed files have their listed sizes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Part, Wheel, install, make_executable, pip, record};

/// The unpacked wheel.
pub(crate) const PART: Part = Part { path, is_ready, fetch };

/// The wheel. UCX loads its CUDA modules only on machines with CUDA.
pub(super) const WHEEL: Wheel = Wheel {
    package: "libucx_cu12",
    version: "1.22.0",
    sha256: "5cbbef0c140a0a158ae3486089af659b38822b2234cd3dc90ba40a5e6553402a",
};

/// A file in the folder with the sha256 of the wheel. It is written last.
const STAMP: &str = "stamp";

/// Where the wheel is unpacked.
pub(super) fn path(cache: &Path) -> PathBuf {
    cache.join(format!("ucx-{}", WHEEL.version))
}

/// Whether the folder is complete.
pub(super) fn is_ready(cache: &Path) -> bool {
    let folder = path(cache);
    fs::read_to_string(folder.join(STAMP)).is_ok_and(|stamp| stamp.trim() == WHEEL.sha256)
        && record::is_whole(&folder, &WHEEL, |_| true)
}

fn fetch(cache: &Path, work: &Path) -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("the UCX wheel is for Linux on x86_64 only: install UCX 1.21 or later yourself");
    }
    let unpacked = pip::download(&WHEEL, work)?;
    make_executable(&unpacked.join("libucx/bin"))?;
    if !record::is_whole(&unpacked, &WHEEL, |_| true) {
        bail!("the unpacked UCX wheel lacks listed files; is the disk full?");
    }
    let stamp = unpacked.join(STAMP);
    fs::write(&stamp, format!("{}\n", WHEEL.sha256))
        .with_context(|| format!("cannot write {}", stamp.display()))?;
    install(&unpacked, &path(cache), work)
}
