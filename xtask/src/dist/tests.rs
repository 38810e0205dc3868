//! Tests list, stage and pack folders made for the test.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::fetch::tests::Folder;

/// The paths of the archive of these folders, without programs.
const FILES: [&str; 26] = [
    "LICENSE",
    "README.md",
    "THIRD-PARTY-LICENCES",
    "configs/local.yaml",
    "configs/models/llama/config.json",
    "configs/systemd/baton@.service",
    "docs/lab/gpus.md",
    "examples/lmcache/ask.sh",
    "gpu/serving.py",
    "gpu/suite.py",
    "lib/ucx/libucm.so.0",
    "lib/ucx/libucp.so.0",
    "lib/ucx/libucs.so.0",
    "lib/ucx/libucs_signal.so.0",
    "lib/ucx/libuct.so.0",
    "lib/ucx/ucx/libucm_cuda.so",
    "lib/ucx/ucx/libucm_cuda.so.0",
    "lib/ucx/ucx/libuct_cma.so",
    "lib/ucx/ucx/libuct_cma.so.0",
    "lib/ucx/ucx/libuct_cuda.so",
    "lib/ucx/ucx/libuct_cuda.so.0",
    UCX_CUDA_RUNTIME,
    "licenses/libucx_cu12-1/LICENSE",
    "licenses/nvcc-13/License.txt",
    "licenses/nvcc-13/more/LICENSE",
    "share/man/man1/runtime.1",
];

/// A workspace in `root/`, the two fetched folders in `ucx/` and `cuda/`, and generated files in `extras/`. The content of each file is its own path.
fn folders() -> Folder {
    let folder = Folder::new();
    let libraries = LIBRARIES.iter().map(|name| format!("ucx/libucx/lib/{name}"));
    let modules = MODULES.iter().chain(&["libucx_perftest_cuda"]);
    let binaries = libraries.chain(modules.map(|name| format!("ucx/libucx/lib/ucx/{name}")));
    let binaries =
        binaries.flat_map(|path| ["so", "so.0", "so.0.0.0", "a"].map(|end| format!("{path}.{end}")));
    let others = [
        "root/Cargo.toml",
        "root/LICENSE",
        "root/README.md",
        "root/configs/local.yaml",
        "root/configs/models/llama/config.json",
        "root/configs/systemd/baton@.service",
        "root/docs/lab/gpus.md",
        "root/examples/lmcache/ask.sh",
        "root/integration-tests/gpu/suite.py",
        "root/integration-tests/gpu/serving.py",
        "root/integration-tests/gpu/__pycache__/suite.pyc",
        "root/integration-tests/tests/tidy.rs",
        &format!("ucx/{UCX_CUDA_RUNTIME}"),
        "ucx/libucx_cu12.libs/libgomp.so.1",
        "ucx/libucx_cu12-1.dist-info/licenses/LICENSE",
        "ucx/libucx_cu12-1.dist-info/RECORD",
        "cuda/nvcc-13.dist-info/licenses/License.txt",
        "cuda/nvcc-13.dist-info/licenses/more/LICENSE",
        "cuda/stamp",
        "extras/THIRD-PARTY-LICENCES",
        "extras/share/man/man1/runtime.1",
    ];
    for name in binaries.chain(others.map(str::to_owned)) {
        let path = folder.path().join(&name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
    folder
}

fn list(folder: &Path, programs: &[PathBuf]) -> Result<Contents> {
    let [root, ucx, cuda, extras] = ["root", "ucx", "cuda", "extras"].map(|name| folder.join(name));
    contents(&root, &ucx, &cuda, &extras, programs)
}

#[test]
fn the_list_has_exactly_the_files_that_are_needed() {
    let folder = folders();
    let programs = ["/t/release/runtime", "/t/release/examples/gpu_engine"].map(PathBuf::from);
    let list = list(folder.path(), &programs).unwrap();
    let mut expected: Vec<_> = FILES.iter().chain(&["bin/runtime", "bin/gpu_engine"]).collect();
    expected.sort();
    let mut found: Vec<_> = list.keys().map(|path| path.to_str().unwrap()).collect();
    found.sort();
    assert_eq!(found.iter().collect::<Vec<_>>(), expected);
    assert_eq!(list[Path::new("bin/gpu_engine")], ArchiveEntry::Program(programs[1].clone()));
    assert_eq!(
        list[Path::new("lib/ucx/ucx/libuct_cma.so")],
        ArchiveEntry::Link("libuct_cma.so.0".to_owned())
    );
}

#[test]
fn a_staged_folder_has_exactly_the_listed_entries() {
    let folder = folders();
    let staged = folder.path().join("dist").join(NAME);
    fs::create_dir_all(&staged).unwrap();
    fs::write(staged.join("stale"), "").unwrap();
    let list = list(folder.path(), &[]).unwrap();
    stage(&list, &staged).unwrap();
    let there = all_of(&staged, "").unwrap();
    assert!(
        there.keys().map(|path| path.to_str().unwrap()).eq(FILES.map(|path| format!("/{path}"))),
        "{there:?}"
    );
    for (to, source) in &list {
        let (path, text) = (staged.join(to), fs::read_to_string(staged.join(to)).unwrap());
        match source {
            ArchiveEntry::Program(from) | ArchiveEntry::File(from) => {
                assert_eq!(folder.path().join(text), *from)
            }
            ArchiveEntry::Link(name) => {
                assert_eq!(fs::read_link(path).unwrap(), Path::new(name));
                assert_eq!(text, format!("ucx/libucx/lib/ucx/{name}"));
            }
        }
    }
}

#[test]
fn a_missing_file_is_named() {
    let folder = folders();
    fs::remove_file(folder.path().join("ucx").join(UCX_CUDA_RUNTIME)).unwrap();
    let list_of_files = list(folder.path(), &[]).unwrap();
    let error = stage(&list_of_files, &folder.path().join("dist")).unwrap_err().to_string();
    assert!(error.contains(UCX_CUDA_RUNTIME), "{error}");
    fs::remove_dir_all(folder.path().join("root/docs")).unwrap();
    let error = list(folder.path(), &[]).unwrap_err().to_string();
    assert!(error.contains("root/docs"), "{error}");
}

#[test]
fn a_stripped_program_is_executable() {
    let folder = Folder::new();
    let (this, copy) = (std::env::current_exe().unwrap(), folder.path().join("copy"));
    strip(&this, &copy).unwrap();
    let (before, after) = (fs::metadata(this).unwrap(), fs::metadata(copy).unwrap());
    assert_eq!(after.permissions().mode() & 0o111, 0o111);
    assert!((1..=before.len()).contains(&after.len()), "{} bytes of {}", after.len(), before.len());
}

#[test]
fn a_program_that_names_a_folder_of_this_machine_is_refused() {
    let folder = Folder::new();
    let program = folder.path().join("program");
    fs::write(&program, b"\0\x7fELF\0baton/runtime/src/main.rs\0").unwrap();
    require_anonymous(&program, Path::new("/home/me/baton")).unwrap();
    fs::write(&program, b"\0\x7fELF\0/home/me/baton/runtime/src/main.rs\0").unwrap();
    let error = require_anonymous(&program, Path::new("/home/me/baton")).unwrap_err().to_string();
    assert!(error.contains("/home/me/baton"), "{error}");
}

#[test]
fn equal_files_give_equal_archives() {
    let archives = [0, 1].map(|days| {
        let folder = folders();
        let dist = folder.path().join("dist");
        stage(&list(folder.path(), &[]).unwrap(), &dist.join(NAME)).unwrap();
        let readme = fs::File::options().append(true).open(dist.join(NAME).join("README.md")).unwrap();
        readme.set_modified(UNIX_EPOCH + Duration::from_hours(24 * days)).unwrap();
        readme.set_permissions(fs::Permissions::from_mode(if days == 0 { 0o600 } else { 0o664 })).unwrap();
        pack(&dist, &dist.join("part")).unwrap();
        fs::read(dist.join("part")).unwrap()
    });
    assert!(!archives[0].is_empty() && archives[0] == archives[1]);
}

#[test]
fn an_archive_that_is_too_large_is_refused() {
    let folder = Path::new("/t/dist/baton");
    require_small(60 * MIB - 1, folder).unwrap();
    for (size, words) in [(60 * MIB, "has 60.0 MiB"), (71 * MIB + MIB / 2, "has 71.5 MiB")] {
        let error = require_small(size, folder).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("/t/dist/baton"), "{error}");
    }
}
