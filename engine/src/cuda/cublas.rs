//! Finds cublasLt beside the program, where the dynamic loader does not look.

use std::path::PathBuf;

use cudarc::cublaslt::sys;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// The library's name. While a library of this name is loaded, the dynamic loader finds it by the name.
const SONAME: &str = "libcublasLt.so.13";

/// Loads the library from the first of `folders` that has it, unless the dynamic loader finds one. It is never unloaded.
pub(crate) fn load(folders: &[PathBuf]) {
    // SAFETY: the probe only tries to load the library by name.
    if unsafe { sys::is_culib_present() } {
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
