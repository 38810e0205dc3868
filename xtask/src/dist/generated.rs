//! The files of a package that are made from the program and its sources: manual pages, completions, licences and the SBOM.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::licences::Licences;

/// Where shells look for completions, below a prefix such as `/usr`.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "share/bash-completion/completions/runtime"),
    ("zsh", "share/zsh/site-functions/_runtime"),
    ("fish", "share/fish/vendor_completions.d/runtime.fish"),
];

/// Where `man` looks for pages, below a prefix.
const PAGES: &str = "share/man/man1";

/// Replaces `folder` with one that has the files of the program `runtime`, at their paths below a prefix. `wheels` are folders of wheels whose
/// parts the package contains.
///
/// # Errors
/// The program does not run, a licence is unknown (see [`Licences::write`]), or a file cannot be written.
pub(crate) fn write(runtime: &Path, wheels: &[&Path], folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    for (shell, path) in COMPLETIONS {
        let path = create_parent(folder.join(path))?;
        let script = run(runtime, &["completions", shell])?;
        fs::write(&path, script).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let pages = create_parent(folder.join(PAGES))?;
    run(runtime, &["man", "--out", &pages.to_string_lossy()])?;
    Licences::of(wheels)?.write(folder).map(drop)
}

fn create_parent(path: PathBuf) -> Result<PathBuf> {
    let parent = path.parent().unwrap_or(&path);
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    Ok(path)
}

/// What the program prints.
fn run(runtime: &Path, arguments: &[&str]) -> Result<Vec<u8>> {
    let cannot = || format!("cannot run {} {}", runtime.display(), arguments.join(" "));
    let output = Command::new(runtime).args(arguments).output().with_context(cannot)?;
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "{}: {reason}", cannot());
    Ok(output.stdout)
}
