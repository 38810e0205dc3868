//! Where things lie: the workspace, the cache folder, and the cargo that runs us.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    let xtask = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&xtask).parent().map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// Where cargo builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The cache folder that all clones share; the runtime looks in the same place.
pub(crate) fn cache() -> Result<PathBuf> {
    cache_from(|name| env::var_os(name))
}

fn cache_from(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let folder = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("XDG_CACHE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("baton"))
        .context("neither XDG_CACHE_HOME nor HOME is set, so there is no cache folder: set one of them")
}

/// Cargo, to be run in the root of the workspace.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_folder_follows_the_variables() {
        fn check(variables: &[(&str, &str)], expect: Option<&str>) {
            let found = cache_from(|name| {
                variables.iter().find(|(other, _)| *other == name).map(|(_, value)| value.into())
            });
            assert_eq!(found.ok().as_deref(), expect.map(Path::new), "{variables:?}");
        }
        check(&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "/c")], Some("/c/baton"));
        check(&[("HOME", "/home/u"), ("XDG_CACHE_HOME", "")], Some("/home/u/.cache/baton"));
        check(&[("HOME", "/home/u")], Some("/home/u/.cache/baton"));
        check(&[], None);
    }

    #[test]
    fn the_root_holds_the_workspace() {
        assert!(root().join("Cargo.lock").is_file());
    }
}
