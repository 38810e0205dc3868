//! `cargo xtask wheel`: packs `baton_serve`, a wheel with the program, for `pip install`.
//!
//! maturin packs the wheel as `pyproject.toml` describes it, and finds its platform tag by the versions of the C library's symbols that the
//! program needs. The wheel has the program as a script, manual pages and completions as data, licences and the SBOM. It requires PyPI's UCX, and
//! cublasLt with the extra `cuda`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::dist::{self, generated};
use crate::{binary, fetch, licences, place};

/// Where `pyproject.toml` names generated files, below the root of the workspace.
const FOLDER: &str = "target/wheel";

/// Builds the program with CUDA, and packs the wheel into `target/wheel`.
///
/// # Errors
/// A fetch or the build fails, a file cannot be written, or maturin fails.
pub(crate) fn run() -> Result<()> {
    let [cuda, maturin] = fetch::run([fetch::CUDA, fetch::MATURIN])?;
    let [runtime] = binary::package([binary::RUNTIME], &["cuda"])?;
    let folder = place::root().join(FOLDER);
    lay_out(&folder, |data| generated::write(&runtime, &[&cuda], data))?;
    let wheel = pack(&maturin, &folder)?;
    let size = fs::metadata(&wheel).with_context(|| format!("cannot read {}", wheel.display()))?.len();
    println!("{}: {}", wheel.display(), dist::in_mib(size));
    println!("to install it: pip install '{}[cuda]', or without [cuda] for CPUs", wheel.display());
    Ok(())
}

/// Replaces `folder` with one that has the generated files. `generate` writes them into a folder.
fn lay_out(folder: &Path, generate: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    // maturin's folder `data` has the schemes of a wheel's data. Their scheme `data` is the root of the environment.
    let data = folder.join("data/data");
    generate(&data)?;
    // These two belong to the metadata of the wheel, not to the environment.
    for name in [licences::TEXT, licences::SBOM] {
        fs::rename(data.join(name), folder.join(name)).with_context(|| format!("cannot move {name}"))?;
    }
    Ok(())
}

/// Packs the wheel into `folder` and returns it. `maturin` is the fetched folder.
fn pack(maturin: &Path, folder: &Path) -> Result<PathBuf> {
    let program = maturin.join("bin/maturin");
    let mut maturin = Command::new(&program);
    let status = place::for_packages(&mut maturin)?
        .args([
            "build",
            "--profile",
            binary::PACKAGE_PROFILE,
            "--features",
            "cuda",
            "--auditwheel",
            "check",
            "--out",
        ])
        .arg(folder)
        .current_dir(place::root())
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(status.success(), "maturin failed; see its output above");
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "whl");
    let wheel = dist::entries(folder)?.into_iter().map(|(_, path)| path).find(is_wheel);
    wheel.with_context(|| format!("maturin left no wheel in {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::tests::Folder;

    #[test]
    fn generated_metadata_lies_where_the_description_of_the_wheel_names_it() {
        let folder = Folder::new();
        let wheel = folder.path().join("wheel");
        fs::create_dir_all(wheel.join("stale")).unwrap();
        let generate = |data: &Path| {
            fs::create_dir_all(data.join("share/man/man1"))?;
            for name in [licences::TEXT, licences::SBOM, "share/man/man1/runtime.1"] {
                fs::write(data.join(name), name)?;
            }
            Ok(())
        };
        lay_out(&wheel, generate).unwrap();
        assert!(wheel.join("data/data/share/man/man1/runtime.1").is_file());
        assert!(!wheel.join("stale").exists() && !wheel.join("data/data").join(licences::SBOM).exists());
        let description = fs::read_to_string(place::root().join("pyproject.toml")).unwrap();
        for name in [licences::TEXT, licences::SBOM, "data"] {
            assert!(wheel.join(name).exists(), "{name}");
            assert!(description.contains(&format!("\"{FOLDER}/{name}\"")), "{name}");
        }
    }
}
