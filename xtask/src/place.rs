//! Paths of the workspace, the target folder and the cache folder, and the command for cargo.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

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

/// Lets cargo, or a program that runs it, build for packages: without the paths of this machine in the binaries, of which source paths are part for
/// messages of panics. The flags differ from those of other builds, so the build has a target folder of its own.
///
/// # Errors
/// rustc does not start.
pub(crate) fn for_packages(command: &mut Command) -> Result<&mut Command> {
    let output = Command::new("rustc").args(["--print", "sysroot"]).current_dir(root()).output();
    let toolchain =
        PathBuf::from(String::from_utf8_lossy(&output.context("cannot start rustc")?.stdout).trim());
    let set =
        env::var("CARGO_ENCODED_RUSTFLAGS").map(|flags| flags.split('\x1f').map(str::to_owned).collect());
    let words = || env::var("RUSTFLAGS").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let mut flags: Vec<String> = set.unwrap_or_else(|_| words());
    flags.extend(remaps(&private_folders(&toolchain)));
    Ok(command
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CARGO_TARGET_DIR", target().join("packages")))
}

/// Folders of this machine with sources of the program, and the names that stand for them in binaries. A later one may lie in an earlier one.
fn private_folders(toolchain: &Path) -> [(PathBuf, &'static str); 4] {
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cargo = env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    [(cargo, "cargo"), (toolchain.to_owned(), "rust"), (root(), "baton"), (target(), "target")]
}

/// The flags of rustc that replace folders. Of several folders that contain a path, the last one counts.
fn remaps(folders: &[(PathBuf, &'static str)]) -> Vec<String> {
    folders.iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_do_not_have_the_folders_of_this_machine() {
        let folders = private_folders(Path::new("/t"));
        let flags = remaps(&folders);
        let of =
            |folder: &Path| flags.iter().position(|flag| flag.contains(&format!("={}=", folder.display())));
        assert!(of(&root()).is_some() && of(Path::new("/t")).is_some(), "{flags:?}");
        assert!(of(&root()) < of(&target()), "{flags:?}");
        let mut command = Command::new("cargo");
        let set: Vec<_> = for_packages(&mut command).unwrap().get_envs().collect();
        let value = |name: &str| {
            let found = set.iter().find(|(key, _)| *key == name).and_then(|(_, value)| *value);
            found.unwrap_or_default().to_string_lossy().into_owned()
        };
        assert!(value("CARGO_ENCODED_RUSTFLAGS").ends_with(&flags[2..].join("\x1f")));
        assert!(value("CARGO_TARGET_DIR").ends_with("packages"));
    }

    #[test]
    fn the_root_is_the_workspace() {
        assert!(root().join("Cargo.lock").is_file());
    }
}
