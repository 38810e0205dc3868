//! OpenAI's Python client, which a test runs against a server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Part, pip};

/// A folder for `PYTHONPATH`.
pub(crate) const PART: Part = Part { path, is_ready: |cache| path(cache).is_dir(), fetch };

const VERSION: &str = "3.57.0";

fn path(cache: &Path) -> PathBuf {
    cache.join(format!("openai-{VERSION}"))
}

/// Installs the client and its dependencies into a folder of its own.
fn fetch(cache: &Path, work: &Path) -> Result<()> {
    let (requirement, into) = (format!("openai=={VERSION}"), work.join("openai"));
    println!("fetching {requirement}");
    let output = Command::new(pip::PYTHON)
        .args(["-m", "pip", "install", "--quiet", "--only-binary", ":all:", "--no-input"])
        .args(["--disable-pip-version-check", "--retries", "2", "--target"])
        .arg(&into)
        .arg(&requirement)
        .output()
        .context("cannot run pip")?;
    if !output.status.success() {
        let reason = pip::complaint(&String::from_utf8_lossy(&output.stderr));
        bail!(
            "cannot install {requirement}: {reason}; check the network and the index of pip, then try again"
        );
    }
    let path = path(cache);
    fs::rename(&into, &path).with_context(|| format!("cannot write {}", path.display()))
}
