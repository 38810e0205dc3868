//! Finds cublasLt of the CUDA version that the kernels are compiled for, and refuses another one.
//!
//! cudarc asks the dynamic loader for `libcublasLt.so` first, then for `libcublasLt.so.13`, and then for those of older versions. So the library of an
//! older CUDA in the loader's path must neither count as one that is there, nor be used.

use std::path::PathBuf;

use cudarc::cublaslt::sys;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// The major version of CUDA that the kernels are compiled for.
const MAJOR: usize = 13;

/// The library's name. While a library of this name is loaded, the dynamic loader finds it by the name.
const SONAME: &str = "libcublasLt.so.13";

/// Loads the library from the first of `folders` that has it, unless the dynamic loader finds one of this version. It is never unloaded.
pub(crate) fn load(folders: &[PathBuf]) {
    if is_there() {
        return;
    }
    let Some(path) = folders.iter().map(|folder| folder.join(SONAME)).find(|path| path.is_file()) else {
        return;
    };
    // SAFETY: loading runs the library's initialisers. The library is NVIDIA's, and was installed with the program.
    match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) } {
        Ok(library) => {
            tracing::debug!(path = %path.display(), "cublasLt loaded");
            // Dropping it would unload it.
            std::mem::forget(library);
        }
        Err(error) => tracing::warn!(path = %path.display(), %error, "cublasLt exists but cannot be loaded"),
    }
}

/// Whether the dynamic loader finds the library, or it is loaded. It stays loaded.
fn is_there() -> bool {
    // SAFETY: as in `load`.
    let library = unsafe { Library::open(Some(SONAME), RTLD_NOW | RTLD_LOCAL) };
    library.map(std::mem::forget).is_ok()
}

/// Checks that the calls of this process go to a library of the right version.
///
/// # Errors
/// There is none, or the dynamic loader finds one of another version before it. The text is one sentence.
pub(super) fn require() -> Result<(), String> {
    if !is_there() {
        return Err(format!(
            "there is no {SONAME}; install baton-serve[cuda] with pip, or add the folder of CUDA {MAJOR}'s libraries to LD_LIBRARY_PATH, or set engine.device to cpu"
        ));
    }
    // SAFETY: a library of this name is there, so cudarc finds one, and each version has this function.
    judge(unsafe { sys::cublasLtGetVersion() })
}

/// Judges the version of the library that cudarc has found, such as 130001 of CUDA 13.0.1.
fn judge(version: usize) -> Result<(), String> {
    match version / 10_000 {
        MAJOR => Ok(()),
        major => Err(format!(
            "the dynamic loader finds cublasLt of CUDA {major} as libcublasLt.so before {SONAME}; remove its folder from LD_LIBRARY_PATH, \
             or put the folder of CUDA {MAJOR}'s libraries in front of it"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_of_an_older_version_is_refused_with_the_remedy() {
        assert_eq!(judge(130_100), Ok(()));
        for (version, name) in [(120_405, "CUDA 12 "), (140_000, "CUDA 14 ")] {
            let error = judge(version).unwrap_err();
            assert!(error.contains(name) && error.contains("LD_LIBRARY_PATH"), "{error}");
        }
    }
}
