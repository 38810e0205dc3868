//! `cargo xtask dist`: packs an archive that runs on machines without Rust or a network. It needs the NVIDIA driver and CUDA 13's libraries.
//!
//! The libraries of UCX find each other through their rpath in their own folder, and their modules in the folder `ucx/` there. The archive
//! keeps that layout. The runtime finds `lib/ucx/libucp.so.0` relative to its own path.

pub(crate) mod generated;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{binary, fetch, place};

/// Maximum size of the archive, so that it is easy to copy to a GPU machine.
const LIMIT_BYTES: u64 = 60 * MIB;
pub(crate) const MIB: u64 = 1 << 20;

/// The archive's only folder.
const NAME: &str = concat!("baton-", env!("CARGO_PKG_VERSION"));

/// The libraries of UCX without its modules.
const LIBRARIES: [&str; 5] = ["libucp", "libuct", "libucs", "libucm", "libucs_signal"];

/// The modules of UCX without those of its perftest.
pub(crate) const MODULES: [&str; 3] = ["libuct_cuda", "libuct_cma", "libucm_cuda"];

/// The CUDA runtime that `libucm_cuda` loads. `libucm_cuda` looks for it at exactly this path, three folders above its own folder.
pub(crate) const UCX_CUDA_RUNTIME: &str = "libucx_cu12.libs/libcudart-256e6409.so.12.9.79";

/// The content of the archive at one path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ArchiveEntry {
    /// A copy of a program without its symbols.
    Program(PathBuf),
    /// A copy of a file.
    File(PathBuf),
    /// A link to a file in the same folder.
    Link(String),
}

/// The entries of the archive by their paths in its folder.
pub(crate) type Contents = BTreeMap<PathBuf, ArchiveEntry>;

/// Fetches, builds, copies everything to `target/dist/baton-<version>/`, and packs that folder.
///
/// # Errors
/// The fetch or the build fails (see [`fetch::run`] and [`binary::package`]), a file is missing or cannot be written, or the archive is too large.
pub(crate) fn run() -> Result<()> {
    let [ucx, cuda] = fetch::run([fetch::UCX, fetch::CUDA])?;
    let programs = binary::package([binary::RUNTIME, binary::GPU_ENGINE], &["cuda"])?;
    let dist = place::target().join("dist");
    let (folder, extras) = (dist.join(NAME), dist.join("generated"));
    generated::write(&programs[0], &[&ucx, &cuda], &extras)?;
    stage(&contents(&place::root(), &ucx, &cuda, &extras, &programs)?, &folder)?;

    let archive = dist.join(format!("{NAME}-x86_64-linux.tar.gz"));
    let part = dist.join("part");
    pack(&dist, &part)?;
    let size = fs::metadata(&part).with_context(|| format!("cannot read {}", part.display()))?.len();
    require_small(size, &folder)?;
    fs::rename(&part, &archive).with_context(|| format!("cannot write {}", archive.display()))?;
    println!("{}: {}", archive.display(), in_mib(size));
    println!(
        "to run it, unpack it on a machine with the NVIDIA driver and with CUDA 13's libraries on LD_LIBRARY_PATH, then in {NAME}/:"
    );
    for (gpu, role) in ["receiver", "sender"].iter().enumerate() {
        println!("  CUDA_VISIBLE_DEVICES={gpu} bin/runtime --role {role} --model MODEL");
    }
    println!(
        "  python3 gpu/suite.py bin/runtime bin/gpu_engine lib/ucx/libucp.so.0 configs/models/llama-3.1-8b --model MODEL"
    );
    Ok(())
}

/// Lists the entries of the archive. `ucx` and `cuda` are the fetched folders, and `extras` has the [`generated`] files. Reads folders and writes nothing.
fn contents(root: &Path, ucx: &Path, cuda: &Path, extras: &Path, programs: &[PathBuf]) -> Result<Contents> {
    let mut contents = Contents::new();
    for program in programs {
        let name = program.file_name().with_context(|| format!("{} has no name", program.display()))?;
        contents.insert(Path::new("bin").join(name), ArchiveEntry::Program(program.clone()));
    }
    contents.extend(ucx_contents(ucx, &MODULES));
    contents.insert(UCX_CUDA_RUNTIME.into(), ArchiveEntry::File(ucx.join(UCX_CUDA_RUNTIME)));
    for folder in ["configs", "docs", "examples"] {
        contents.extend(all_of(&root.join(folder), folder)?);
    }
    let gpu = all_of(&root.join("integration-tests/gpu"), "gpu")?;
    contents.extend(gpu.into_iter().filter(|(to, _)| to.extension().is_some_and(|end| end == "py")));
    for (name, path) in entries(root)? {
        if name == "README.md" || name.starts_with("LICENSE") {
            contents.insert(name.into(), ArchiveEntry::File(path));
        }
    }
    for (name, path) in entries(extras)? {
        if path.is_dir() {
            contents.extend(all_of(&path, &name)?);
        } else {
            contents.insert(name.into(), ArchiveEntry::File(path));
        }
    }
    // The archive contains parts of the wheels, as files or linked into its programs.
    for (name, path) in [entries(ucx)?, entries(cuda)?].concat() {
        if let Some(wheel) = name.strip_suffix(".dist-info") {
            contents.extend(all_of(&path.join("licenses"), &format!("licenses/{wheel}"))?);
        }
    }
    Ok(contents)
}

/// The libraries of UCX and these modules, at the paths below the program's folder at which it finds them. `ucx` is the fetched folder.
pub(crate) fn ucx_contents(ucx: &Path, modules: &[&str]) -> Contents {
    let mut contents = Contents::new();
    let libraries = ucx.join("libucx/lib");
    for library in LIBRARIES {
        let file = format!("{library}.so.0");
        contents.insert(Path::new("lib/ucx").join(&file), ArchiveEntry::File(libraries.join(file)));
    }
    for module in modules {
        let (folder, file) = (Path::new("lib/ucx/ucx"), format!("{module}.so.0"));
        contents.insert(folder.join(&file), ArchiveEntry::File(libraries.join("ucx").join(&file)));
        contents.insert(folder.join(format!("{module}.so")), ArchiveEntry::Link(file));
    }
    contents
}

/// Names and paths of the entries of a folder.
pub(crate) fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let cannot = || format!("cannot read {}", folder.display());
    let named = |entry: fs::DirEntry| (entry.file_name().to_string_lossy().into_owned(), entry.path());
    let entries = fs::read_dir(folder).with_context(cannot)?;
    entries.map(|entry| entry.map(named).with_context(cannot)).collect()
}

/// All files below a folder.
pub(crate) fn all_of(folder: &Path, to: &str) -> Result<Contents> {
    let mut contents = Contents::new();
    for (name, path) in entries(folder)? {
        let to = format!("{to}/{name}");
        if path.is_dir() {
            contents.extend(all_of(&path, &to)?);
        } else {
            contents.insert(to.into(), ArchiveEntry::File(path));
        }
    }
    Ok(contents)
}

/// Replaces the folder with one that has these entries.
pub(crate) fn stage(contents: &Contents, folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    for (to, source) in contents {
        let to = folder.join(to);
        let parent = to.parent().unwrap_or(folder);
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        match source {
            ArchiveEntry::Program(from) => {
                strip(from, &to)?;
                for folder in [place::root(), place::cache()?] {
                    require_anonymous(&to, &folder)?;
                }
            }
            ArchiveEntry::File(from) => copy(from, &to)?,
            ArchiveEntry::Link(name) => {
                symlink(name, &to).with_context(|| format!("cannot create {}", to.display()))?;
            }
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = fs::copy(from, to);
    copied.map(drop).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// Copies a program without its symbols. Keeps them if `strip` is not installed.
fn strip(from: &Path, to: &Path) -> Result<()> {
    match Command::new("strip").arg("-o").arg(to).arg(from).status() {
        Ok(status) => {
            ensure!(status.success(), "`strip` failed for {}; see its output above", from.display());
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => copy(from, to),
        Err(error) => Err(error).context("cannot start strip"),
    }
}

/// Checks that a program does not name a folder of this machine.
fn require_anonymous(program: &Path, folder: &Path) -> Result<()> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let name = folder.as_os_str().as_encoded_bytes();
    ensure!(
        !bytes.windows(name.len()).any(|part| part == name),
        "{} names the folder {}; find out which part does with `strings`, and add it to xtask/src/place.rs",
        program.display(),
        folder.display()
    );
    Ok(())
}

/// Packs the staged folder. The same files give the same bytes for every user and at every time.
fn pack(dist: &Path, archive: &Path) -> Result<()> {
    let status = Command::new("tar")
        .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "--mode=go=u-w"])
        .arg("-czf")
        .arg(archive)
        .arg("-C")
        .arg(dist)
        .arg(NAME)
        .status()
        .context("cannot start tar to pack the archive")?;
    ensure!(status.success(), "tar failed for {}; see its output above", dist.join(NAME).display());
    Ok(())
}

fn require_small(size_bytes: u64, staged: &Path) -> Result<()> {
    ensure!(
        size_bytes < LIMIT_BYTES,
        "the archive has {}, and the limit is {}; look for large files in {}",
        in_mib(size_bytes),
        in_mib(LIMIT_BYTES),
        staged.display()
    );
    Ok(())
}

pub(crate) fn in_mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / MIB as f64)
}

#[cfg(test)]
mod tests;
