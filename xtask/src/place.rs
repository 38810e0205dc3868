//! Paths of the workspace, the target folder and the cache folder, and the command for cargo.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    let xtask = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&xtask).parent().map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// The target folder of cargo.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The cache folder that all clones share. The runtime uses the same one.
pub(crate) fn cache() -> Result<PathBuf> {
    common::cache_folder::locate(|name| env::var_os(name)).map_err(anyhow::Error::msg)
}

/// A cargo command in the root of the workspace.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_the_workspace() {
        assert!(root().join("Cargo.lock").is_file());
    }
}
