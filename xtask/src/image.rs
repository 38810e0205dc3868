//! `cargo xtask image`: packs a container image with buildah, as an archive in OCI's format.
//!
//! The image has no shell. It has the program and UCX in `/opt/baton`, as the archive of `cargo xtask dist` does, and below it the C library, the
//! certificates and the licences of Debian. The process runs as a user without a name, needs no writable root, and keeps models in `/cache`.

mod base;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::dist::{self, ArchiveEntry, Contents};
use crate::licences::Licences;
use crate::{binary, fetch, place};

/// The user and the group of the process. Users of this number exist on no machine, and other images use it too.
const USER: &str = "65532:65532";

/// Where the program is.
const HOME: &str = "opt/baton";

/// Where the process writes models.
const CACHE: &str = "/cache";

/// An image with or without CUDA's libraries. The program is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ImageKind {
    name: &'static str,
    /// The modules of UCX.
    modules: &'static [&'static str],
    /// Maximum size of all files.
    limit_bytes: u64,
}

const CPU: ImageKind = ImageKind { name: "cpu", modules: &["libuct_cma"], limit_bytes: 100_000_000 };
const CUDA: ImageKind = ImageKind { name: "cuda", modules: &dist::MODULES, limit_bytes: 1_000_000_000 };

/// Fetches, builds, lays out the files in `target/image/root-<kind>`, and packs them.
///
/// # Errors
/// A fetch or the build fails, apt or buildah is missing or fails, or the image is too large.
pub(crate) fn run(with_cuda: bool) -> Result<()> {
    let kind = if with_cuda { CUDA } else { CPU };
    let mut wheels = fetch::run([fetch::UCX, fetch::CUDA])?.to_vec();
    if with_cuda {
        wheels.extend(fetch::run([fetch::CUBLAS])?);
    }
    let [runtime] = binary::package([binary::RUNTIME], &["cuda"])?;
    let images = place::target().join("image");
    let root = images.join(format!("root-{}", kind.name));
    let contents = contents(kind, &runtime, &wheels)?;
    // Replaces the root, so the base comes second.
    dist::stage(&contents, &root)?;
    let shipped: Vec<&Path> = wheels.iter().map(PathBuf::as_path).collect();
    let packages = base::write(&root, &images.join("packages"))?;
    let licences = Licences::of(&shipped)?.with_system(&packages);
    licences.write(&root.join(HOME))?;
    let cache = root.with_file_name("cache");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    [&root, &cache].into_iter().try_for_each(|folder| base::set_modes(folder))?;
    let size = size_of(&root)?;
    ensure!(
        size <= kind.limit_bytes,
        "the image has {size} bytes, and the limit is {}; look for large files in {}",
        kind.limit_bytes,
        root.display()
    );
    let archive = images.join(format!("baton-{}-{}.oci.tar", env!("CARGO_PKG_VERSION"), kind.name));
    pack(kind, &licences.expression(), &root, &cache, &archive)?;
    println!("{}: {} on disk", archive.display(), dist::in_mib(size));
    println!("to load it: podman load --input {}", archive.display());
    Ok(())
}

/// The files of Baton and of the fetched wheels, of which UCX is the first.
fn contents(kind: ImageKind, runtime: &Path, wheels: &[PathBuf]) -> Result<Contents> {
    let file = |name: &str| {
        let found = wheels.iter().map(|wheel| wheel.join(name)).find(|path| path.is_file());
        found.map(ArchiveEntry::File).with_context(|| format!("the fetched wheels have no {name}"))
    };
    let mut below = dist::ucx_contents(&wheels[0], kind.modules);
    below.insert("bin/runtime".into(), ArchiveEntry::Program(runtime.to_owned()));
    below.insert("LICENSE".into(), ArchiveEntry::File(place::root().join("LICENSE")));
    if kind == CUDA {
        below.insert(dist::UCX_CUDA_RUNTIME.into(), file(dist::UCX_CUDA_RUNTIME)?);
        below.insert("lib/cuda/libcublasLt.so.13".into(), file(fetch::CUBLAS_LT)?);
    }
    for wheel in wheels {
        for (name, path) in dist::entries(wheel)? {
            if let Some(name) = name.strip_suffix(".dist-info") {
                below.extend(dist::all_of(&path.join("licenses"), &format!("licenses/{name}"))?);
            }
        }
    }
    Ok(below.into_iter().map(|(path, entry)| (Path::new(HOME).join(path), entry)).collect())
}

/// The bytes of all files below a folder.
fn size_of(folder: &Path) -> Result<u64> {
    let mut size = 0;
    for (_, path) in dist::entries(folder)? {
        let metadata =
            fs::symlink_metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
        size += if metadata.is_dir() { size_of(&path)? } else { metadata.len() };
    }
    Ok(size)
}

/// The settings of the image, as arguments of `buildah config`. `licences` is the expression for all that it contains.
fn settings(kind: ImageKind, licences: &str) -> Vec<String> {
    let path = format!("/{HOME}/bin");
    let mut settings = vec![
        format!("--user={USER}"),
        format!("--entrypoint=[\"{path}/runtime\"]"),
        format!("--workingdir={CACHE}"),
        format!("--volume={CACHE}"),
        format!("--env=PATH={path}"),
        format!("--env=HOME={CACHE}"),
        format!("--env=XDG_CACHE_HOME={CACHE}"),
        "--stop-signal=SIGTERM".to_owned(),
    ];
    settings.extend(["9000", "8200", "8100", "55555"].map(|port| format!("--port={port}")));
    if kind == CUDA {
        // NVIDIA's container toolkit reads them.
        settings.push("--env=NVIDIA_VISIBLE_DEVICES=all".to_owned());
        settings.push("--env=NVIDIA_DRIVER_CAPABILITIES=compute,utility".to_owned());
    }
    let labels = [
        ("title", "Baton"),
        ("description", "Serves large language models with disaggregated prefill"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("licenses", licences),
    ];
    settings.extend(labels.map(|(name, value)| format!("--label=org.opencontainers.image.{name}={value}")));
    settings
}

/// Packs `root` as an image into `archive`. `cache` is the empty folder of the volume.
fn pack(kind: ImageKind, licences: &str, root: &Path, cache: &Path, archive: &Path) -> Result<()> {
    if archive.exists() {
        // buildah adds to an archive that exists.
        fs::remove_file(archive).with_context(|| format!("cannot remove {}", archive.display()))?;
    }
    let container = buildah(&["from", "scratch"])?;
    let packed = (|| {
        buildah(&["copy", "--quiet", "--chown=0:0", &container, &root.to_string_lossy(), "/"])?;
        buildah(&[
            "copy",
            "--quiet",
            &format!("--chown={USER}"),
            &container,
            &cache.to_string_lossy(),
            CACHE,
        ])?;
        let mut config = vec!["config".to_owned()];
        config.extend(settings(kind, licences));
        config.push(container.clone());
        buildah(&config.iter().map(String::as_str).collect::<Vec<_>>())?;
        let name =
            format!("oci-archive:{}:baton:{}-{}", archive.display(), env!("CARGO_PKG_VERSION"), kind.name);
        // The same files give the same image.
        buildah(&[
            "commit",
            "--quiet",
            "--format=oci",
            "--disable-compression=false",
            "--timestamp=0",
            &container,
            &name,
        ])
    })();
    let removed = buildah(&["rm", &container]);
    packed.and(removed).map(drop)
}

/// Runs buildah and returns what it prints.
fn buildah(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("buildah");
    command.args(arguments).stderr(Stdio::inherit());
    let output = command
        .output()
        .context("cannot start buildah; install it, for instance as Debian's package buildah")?;
    ensure!(output.status.success(), "buildah {} failed; see its output above", arguments[0]);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_cuda_image_asks_for_gpus() {
        let has = |kind, word: &str| settings(kind, "MIT").iter().any(|setting| setting.contains(word));
        assert!(has(CUDA, "NVIDIA_DRIVER_CAPABILITIES=compute,utility") && !has(CPU, "NVIDIA"));
        for kind in [CPU, CUDA] {
            let numeric = |part: &str| part.parse::<u32>().is_ok_and(|number| number != 0);
            assert!(has(kind, "image.licenses=MIT"));
            let user = settings(kind, "MIT")
                .into_iter()
                .find_map(|setting| Some(setting.strip_prefix("--user=")?.to_owned()));
            assert!(user.is_some_and(|user| user.split(':').all(numeric)), "Kubernetes wants a number");
            assert!(has(kind, "--entrypoint=[\"/opt/baton/bin/runtime\"]"));
        }
    }
}
