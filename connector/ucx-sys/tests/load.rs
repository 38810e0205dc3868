//! The error texts if UCX is missing, too old or another library. `cc` builds small libraries for these tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use ucx_sys::{LoadError, Ucx};

/// Builds a shared library from C source in the test's own folder.
fn fake(name: &str, text: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&dir).expect("folder for the fake library");
    let (source, library) = (dir.join("fake.c"), dir.join("libucp.so.0"));
    std::fs::write(&source, text).expect("source of the fake library");
    let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(status.expect("cc is installed").success(), "cc builds {name}");
    library
}

fn version(major: u32, minor: u32, release: u32) -> String {
    format!(
        "void ucp_get_version(unsigned *a, unsigned *b, unsigned *c) {{ *a = {major}; *b = {minor}; *c = {release}; }}"
    )
}

#[test]
fn too_old_is_refused_before_any_other_symbol() {
    let path = fake("old", &version(1, 20, 1));
    let error =
        Ucx::load(&[PathBuf::from("/nowhere/libucp.so.0"), path.clone()]).expect_err("1.20.1 is too old");
    assert_eq!(error.kind(), "too_old");
    let text = error.to_string();
    assert!(text.starts_with(&format!("UCX 1.20.1 at {} is older than 1.21", path.display())), "{text}");
    assert!(text.contains("transport.ucx_library"), "{text}");
}

#[test]
fn a_missing_symbol_is_named() {
    let path = fake("partial", &version(1, 23, 0));
    let error = Ucx::load(std::slice::from_ref(&path)).expect_err("it has only one function");
    assert!(matches!(&error, LoadError::Symbol { symbol: "ucp_get_version_string", .. }), "{error}");
    let other = fake("other", "int unrelated;");
    let error = Ucx::load(&[other]).expect_err("it is not UCX");
    assert!(matches!(&error, LoadError::Symbol { symbol: "ucp_get_version", .. }), "{error}");
}

#[test]
fn a_file_that_is_not_a_library_is_named() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("text.so");
    std::fs::write(&path, "not a library").expect("the file can be written");
    let error = Ucx::load(std::slice::from_ref(&path)).expect_err("it is text");
    assert_eq!(error.kind(), "unloadable");
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
}

#[test]
fn a_named_file_that_is_absent_is_not_replaced_by_another() {
    let error = Ucx::open(Path::new("/nowhere/libucp.so.0")).expect_err("it does not exist");
    let text = error.to_string();
    assert!(
        text.starts_with(
            "libucp.so.0 was not found (looked in: /nowhere/libucp.so.0); run `cargo xtask demo`"
        )
    );
}
