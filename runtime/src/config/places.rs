//! Files and folders that follow from the environment of the process.

use std::path::PathBuf;

use super::{Config, Surroundings};

impl Config {
    /// Paths at which UCX is searched, in this order. `transport.ucx_library` comes before them, the loader's own search after them.
    pub fn ucx_search(&self) -> Vec<PathBuf> {
        let Surroundings { archive, packages, cache, .. } = &self.surroundings;
        let in_archive = archive.iter().map(|folder| folder.join("lib/ucx/libucp.so.0"));
        // PyPI's libucx-cu12, which pip installs beside the program. The cache has the same wheel.
        let in_packages = packages.iter().map(|folder| folder.join("libucx/lib/libucp.so.0"));
        in_archive.chain(in_packages).chain([cache.join(common::cache_folder::UCX)]).collect()
    }

    /// The file that keeps the digests of model files from one start to the next. `None` without a cache folder of the user.
    pub fn digests_file(&self) -> Option<PathBuf> {
        let cache = &self.surroundings.cache;
        cache.is_absolute().then(|| cache.join("digests.json"))
    }

    /// Folders in which CUDA's libraries are searched after the loader's own search, in this order.
    pub fn cuda_search(&self) -> Vec<PathBuf> {
        let Surroundings { archive, packages, .. } = &self.surroundings;
        let in_archive = archive.iter().map(|folder| folder.join("lib/cuda"));
        // PyPI's nvidia-cublas.
        in_archive.chain(packages.iter().map(|folder| folder.join("nvidia/cu13/lib"))).collect()
    }
}
