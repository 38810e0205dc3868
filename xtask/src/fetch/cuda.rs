//! The compiler of the CUDA kernels and its inputs: nvcc with its libraries, and FlashInfer's headers, as `cuda-13.0/`.
//!
//! The folder has the layout that pip gives the wheels: `nvidia/cu13` is a toolkit, and `flashinfer/data` has the headers. Only the headers
//! of FlashInfer's 430 MB are kept. They include CCCL, which the nvcc wheel lacks, and the runtime wheel includes `libculibos.a`, so neither
//! needs a wheel of its own. Running Baton needs nothing of this folder.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Part, Wheel, install, make_executable, pip, record};

/// The folder with the compiler and the headers.
pub(crate) const PART: Part = Part { path, is_ready, fetch };

/// The toolkit, all of one release. A newer release would need a newer driver.
const TOOLKIT: [Wheel; 4] = [
    Wheel {
        package: "nvidia_cuda_nvcc",
        version: "13.0.88",
        sha256: "56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03",
    },
    Wheel {
        package: "nvidia_cuda_crt",
        version: "13.0.88",
        sha256: "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4",
    },
    Wheel {
        package: "nvidia_nvvm",
        version: "13.0.88",
        sha256: "c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0",
    },
    Wheel {
        package: "nvidia_cuda_runtime",
        version: "13.0.96",
        sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    },
];

const FLASHINFER: Wheel = Wheel {
    package: "flashinfer_python",
    version: "0.7.2.post1",
    sha256: "bfdc18b9e1e4d8d0730fe4343dc0e284cd0c160086de80f99888bc4867922d49",
};

/// The parts of FlashInfer that are kept: headers, and the folder with its licences and its list of files.
const FLASHINFER_KEPT: [&str; 6] = [
    "flashinfer/data/include",
    "flashinfer/data/cccl/libcudacxx/include",
    "flashinfer/data/cccl/cub/cub",
    "flashinfer/data/cccl/thrust/thrust",
    "flashinfer/data/cutlass/include",
    "flashinfer_python-0.7.2.post1.dist-info",
];

/// The toolkit in the folder.
const HOME: &str = "nvidia/cu13";

/// Folders of programs, whose mode bits Python's zipfile drops.
const PROGRAMS: [&str; 2] = ["bin", "nvvm/bin"];

/// A file in the folder with the sha256 of each wheel. It is written last. The build script of `engine` reads it too.
const STAMP: &str = "stamp";

/// The folder, in which the build script of `engine` looks for the compiler.
fn path(cache: &Path) -> PathBuf {
    cache.join("cuda-13.0")
}

/// One line per wheel.
fn stamp_text() -> String {
    let lines = TOOLKIT.iter().chain([&FLASHINFER]);
    lines.map(|wheel| format!("{} {} {}\n", wheel.sha256, wheel.package, wheel.version)).collect()
}

fn is_kept(name: &str) -> bool {
    FLASHINFER_KEPT.iter().any(|kept| name.strip_prefix(kept).is_some_and(|rest| rest.starts_with('/')))
}

fn is_whole(folder: &Path) -> bool {
    let toolkit = || TOOLKIT.iter().all(|wheel| record::is_whole(folder, wheel, |_| true));
    toolkit() && record::is_whole(folder, &FLASHINFER, is_kept)
}

/// Whether the folder is complete.
fn is_ready(cache: &Path) -> bool {
    let folder = path(cache);
    fs::read_to_string(folder.join(STAMP)).is_ok_and(|stamp| stamp == stamp_text()) && is_whole(&folder)
}

fn fetch(cache: &Path, work: &Path) -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("the CUDA wheels are for Linux on x86_64 only");
    }
    let folder = work.join("cuda");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for wheel in &TOOLKIT {
        merge(&pip::download(wheel, work)?, &folder)?;
    }
    let flashinfer = pip::download(&FLASHINFER, work)?;
    for kept in FLASHINFER_KEPT {
        let to = folder.join(kept);
        fs::create_dir_all(&to).with_context(|| format!("cannot create {}", to.display()))?;
        merge(&flashinfer.join(kept), &to)?;
    }
    finish(&folder.join(HOME))?;
    if !is_whole(&folder) {
        bail!("the unpacked CUDA wheels lack listed files; is the disk full?");
    }
    let stamp = folder.join(STAMP);
    fs::write(&stamp, stamp_text()).with_context(|| format!("cannot write {}", stamp.display()))?;
    install(&folder, &path(cache), work)
}

/// Moves the contents of one folder into another one, which may have folders of the same names.
fn merge(from: &Path, into: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let (path, to) = (entry.path(), into.join(entry.file_name()));
        if path.is_dir() && to.is_dir() {
            merge(&path, &to)?;
        } else {
            fs::rename(&path, &to).with_context(|| format!("cannot move {}", path.display()))?;
        }
    }
    Ok(())
}

/// Completes an unpacked toolkit: sets mode bits, and adds the name under which nvcc looks for its libraries.
fn finish(home: &Path) -> Result<()> {
    for programs in PROGRAMS {
        make_executable(&home.join(programs))?;
    }
    let link = home.join("lib64");
    symlink("lib", &link).with_context(|| format!("cannot create {}", link.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::fetch::tests::Folder;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A folder as `fetch` leaves it, with one listed file per wheel.
    fn stamped() -> Folder {
        let cache = Folder::new();
        let folder = path(cache.path());
        for (number, wheel) in TOOLKIT.iter().chain([&FLASHINFER]).enumerate() {
            let file = format!("flashinfer/data/include/{number}");
            write(&folder.join(&file), "file");
            let list = format!("{}-{}.dist-info/RECORD", wheel.package, wheel.version);
            write(&folder.join(&list), &format!("{file},sha256=x,4\n{list},,\n"));
        }
        let dropped = "flashinfer/data/csrc/kernel.cu,sha256=x,9\n";
        let list = folder.join(FLASHINFER_KEPT[5]).join("RECORD");
        fs::write(&list, fs::read_to_string(&list).unwrap() + dropped).unwrap();
        write(&folder.join(STAMP), &stamp_text());
        cache
    }

    #[test]
    fn a_stamped_folder_is_ready_without_the_dropped_files() {
        assert!(is_ready(stamped().path()));
        assert!(!is_ready(Folder::new().path()), "absent");
    }

    #[test]
    fn a_changed_folder_is_not_ready() {
        type Damage = (&'static str, fn(&Path));
        let damages: [Damage; 4] = [
            ("stamp gone", |folder| fs::remove_file(folder.join(STAMP)).unwrap()),
            ("stamp of other wheels", |folder| fs::write(folder.join(STAMP), "00 nvcc 12\n").unwrap()),
            ("a header gone", |folder| fs::remove_file(folder.join("flashinfer/data/include/4")).unwrap()),
            ("half a file", |folder| fs::write(folder.join("flashinfer/data/include/0"), "fi").unwrap()),
        ];
        for (name, damage) in damages {
            let cache = stamped();
            damage(&path(cache.path()));
            assert!(!is_ready(cache.path()), "{name}");
        }
    }

    #[test]
    fn only_headers_and_licences_are_kept() {
        for (name, expect) in [
            ("flashinfer/data/include/flashinfer/page.cuh", true),
            ("flashinfer_python-0.7.2.post1.dist-info/licenses/LICENSE", true),
            ("flashinfer/data/csrc/page.cu", false),
            ("flashinfer/data/include_more/x.h", false),
            ("flashinfer/page.py", false),
        ] {
            assert_eq!(is_kept(name), expect, "{name}");
        }
    }

    #[test]
    fn the_kept_folder_of_lists_has_the_version_of_the_wheel() {
        assert_eq!(FLASHINFER_KEPT[5], format!("{}-{}.dist-info", FLASHINFER.package, FLASHINFER.version));
    }

    #[test]
    fn wheels_merge_into_one_executable_toolkit() {
        let folder = Folder::new();
        let (nvcc, nvvm, home) =
            (folder.path().join("nvcc"), folder.path().join("nvvm"), folder.path().join("home"));
        write(&nvcc.join("bin/nvcc"), "nvcc");
        write(&nvcc.join("include/crt.h"), "crt");
        write(&nvvm.join("nvvm/bin/cicc"), "cicc");
        write(&nvvm.join("include/nvvm.h"), "nvvm");
        write(&nvvm.join("lib/libcudart_static.a"), "library");
        fs::create_dir(&home).unwrap();
        merge(&nvcc, &home).unwrap();
        merge(&nvvm, &home).unwrap();
        finish(&home).unwrap();
        for file in ["include/crt.h", "include/nvvm.h", "lib64/libcudart_static.a"] {
            assert!(home.join(file).is_file(), "{file}");
        }
        for program in ["bin/nvcc", "nvvm/bin/cicc"] {
            let mode = fs::metadata(home.join(program)).unwrap().permissions().mode();
            assert_eq!(mode & 0o111, 0o111, "{program}");
        }
    }
}
