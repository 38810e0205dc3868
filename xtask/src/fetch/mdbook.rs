//! mdBook, which makes the site of the documentation. `cargo install` builds it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::FetchedPart;
use crate::place;

const VERSION: &str = "0.5.4";

/// A folder with the program in `bin/mdbook`. It has a search and no server.
pub(crate) const PART: FetchedPart =
    FetchedPart { path: folder, is_ready: |cache| folder(cache).join("bin/mdbook").is_file(), fetch };

fn folder(cache: &Path) -> PathBuf {
    cache.join(format!("mdbook-{VERSION}"))
}

/// Builds the program from the registry of cargo, which checks checksums, and moves it into place.
fn fetch(cache: &Path, work: &Path) -> Result<()> {
    println!("building mdBook {VERSION}; this takes minutes");
    let into = work.join("mdbook");
    let mut cargo = place::cargo();
    cargo.args(["install", "--quiet", "--locked", "--no-default-features", "--features", "search"]);
    cargo.args(["mdbook", "--version", &format!("={VERSION}")]).arg("--root").arg(&into);
    cargo.arg("--target-dir").arg(work.join("target"));
    let status = cargo.status().context("cannot start cargo")?;
    ensure!(
        status.success(),
        "cannot build mdBook {VERSION}; see the output of cargo above, check the network, and try again"
    );
    let path = folder(cache);
    fs::rename(&into, &path).with_context(|| format!("cannot write {}", path.display()))
}
