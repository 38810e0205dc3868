//! The binary with the feature `cuda` on a machine without a GPU: it starts, and refuses `engine.device=cuda` with one sentence.
#![cfg(feature = "cuda")]

use std::process::Command;

/// Runs the binary with all GPUs hidden.
fn runtime(arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_runtime"))
        .args(arguments)
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .expect("the binary starts")
}

#[test]
fn it_starts_without_a_gpu() {
    let version = runtime(&["--version"]);
    assert!(version.status.success(), "{version:?}");
}

#[test]
fn a_gpu_that_is_not_there_is_one_sentence() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/models/llama-3.1-8b");
    // Free ports, because others may be in use on this machine.
    let ports = ["--port", "0", "--set", "http.port=0"];
    let settings = ["--set", "engine.device=cuda", "--set", "engine.load_format=dummy"];
    let refused = runtime(&[&["--role", "local", "--model", model][..], &ports, &settings].concat());
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr);
    let last = said.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: the GPU cannot be used: "), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}
