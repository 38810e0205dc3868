//! `cargo xtask licences`: the licences of the parts of the program, as a text for people and as an SBOM (CycloneDX 1.5) for tools.
//!
//! Parts are the crates that are linked into `runtime` with its CUDA backend, Rust's standard library, the wheels of which the archive
//! contains files or linked code, and the libraries of headers that the kernels include. Crates that only run during a build, such as procedural macros, are no parts. Equal sources give equal files.

mod headers;
mod parts;
mod sbom;
mod texts;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{fetch, place};

/// The name of the text.
pub(crate) const TEXT: &str = "THIRD-PARTY-LICENCES";

/// The name of the SBOM.
pub(crate) const SBOM: &str = "sbom.cdx.json";

/// Writes both files into `target/dist` and prints where they are.
///
/// # Errors
/// A wheel cannot be fetched, cargo fails, or a crate has a licence whose text is unknown.
pub(crate) fn run() -> Result<()> {
    let [ucx, cuda] = fetch::run([fetch::UCX, fetch::CUDA])?;
    for file in write(&[&ucx, &cuda], &place::target().join("dist"))? {
        println!("{}", file.display());
    }
    Ok(())
}

/// Writes both files into `folder`. `wheels` are folders of unpacked wheels.
///
/// # Errors
/// Cargo or nvcc fails, a crate has a licence whose text is unknown, or a file cannot be written.
pub(crate) fn write(wheels: &[&Path], folder: &Path) -> Result<[PathBuf; 2]> {
    let mut parts = parts::crates()?;
    parts.push(parts::standard_library()?);
    for wheel in wheels {
        parts.extend(parts::wheels(wheel)?);
        parts.extend(headers::parts(wheel)?);
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let write = |name: &str, text: String| -> Result<PathBuf> {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    };
    Ok([write(TEXT, texts::render(&parts)?)?, write(SBOM, format!("{:#}\n", sbom::document(&parts)))?])
}
