//! cublasLt, the library of CUDA that the program loads on GPUs: NVIDIA's wheel as `cublas-<version>/`, without its other library.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{FetchedPart, Wheel, install, pip, record};

/// The folder with the library. It takes 540 MB.
pub(crate) const PART: FetchedPart = FetchedPart { path, is_ready, fetch };

/// The wheel of CUDA 13.0, whose compiler builds the kernels.
const WHEEL: Wheel = Wheel {
    package: "nvidia_cublas",
    version: "13.1.0.3",
    sha256: "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171",
};

/// The library in the folder.
pub(crate) const CUBLAS_LT: &str = "nvidia/cu13/lib/libcublasLt.so.13";

/// A file in the folder with the sha256 of the wheel. It is written last.
const STAMP: &str = "stamp";

fn path(cache: &Path) -> PathBuf {
    cache.join(format!("cublas-{}", WHEEL.version))
}

/// The library, and the folder with its licence and its list of files.
fn is_kept(name: &str) -> bool {
    name == CUBLAS_LT || name.contains(".dist-info/")
}

fn is_ready(cache: &Path) -> bool {
    let folder = path(cache);
    fs::read_to_string(folder.join(STAMP)).is_ok_and(|stamp| stamp.trim() == WHEEL.sha256)
        && record::is_whole(&folder, &WHEEL, is_kept)
}

fn fetch(cache: &Path, work: &Path) -> Result<()> {
    let unpacked = pip::download(&WHEEL, work)?;
    let remove = |name: &str| {
        let path = unpacked.join("nvidia/cu13").join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("cannot remove {}", path.display()))
    };
    ["include", "lib/libcublas.so.13", "lib/libnvblas.so.13"].into_iter().try_for_each(remove)?;
    if !record::is_whole(&unpacked, &WHEEL, is_kept) {
        bail!("the unpacked wheel of cublas lacks listed files; is the disk full?");
    }
    let stamp = unpacked.join(STAMP);
    fs::write(&stamp, format!("{}\n", WHEEL.sha256))
        .with_context(|| format!("cannot write {}", stamp.display()))?;
    install(&unpacked, &path(cache), work)
}
