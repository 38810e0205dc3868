//! Prometheus's `promtool`, from Debian's package `prometheus`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::FetchedPart;

/// The program, unless one is in `PATH`.
pub(crate) const PART: FetchedPart = FetchedPart {
    path: |cache| cache.join("promtool"),
    is_ready: |cache| cache.join("promtool").is_file() || is_in_path(),
    fetch,
};

fn is_in_path() -> bool {
    let mut version = Command::new("promtool");
    version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

/// Downloads the package, whose signature apt checks, and takes the program out of it. Nothing is installed.
fn fetch(cache: &Path, work: &Path) -> Result<()> {
    println!("fetching Debian's package prometheus (19 MB)");
    run(Command::new("apt-get").args(["download", "--quiet", "prometheus"]).current_dir(work))?;
    let package = package(work)?;
    let unpacked = work.join("unpacked");
    run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&unpacked))?;
    let program = unpacked.join("usr/bin/promtool");
    fs::rename(&program, cache.join("promtool")).with_context(|| format!("cannot move {}", program.display()))
}

/// The downloaded package.
fn package(work: &Path) -> Result<PathBuf> {
    let mut files = fs::read_dir(work)?.filter_map(|entry| Some(entry.ok()?.path()));
    files
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get wrote no package into {}", work.display()))
}

/// Runs a program. The error has the last line that it printed.
fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.output().with_context(|| format!("cannot run {program}; install promtool instead"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}", stderr.trim().lines().next_back().unwrap_or("no reason given"));
    }
    Ok(())
}
