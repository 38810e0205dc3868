//! A process that cannot start says why in one sentence with advice, and has an exit code other than 0.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use integration_tests::process::{Event, Process, start_receiver, start_sender};

/// An empty folder of this test.
fn folder(name: &str) -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if path.exists() {
        fs::remove_dir_all(&path)?;
    }
    fs::create_dir_all(&path)?;
    Ok(path)
}

fn default_model() -> PathBuf {
    runtime::config::Surroundings::of_process().default_model()
}

/// Runs a process to its end. Checks its exit code, and that its last line is an error with each of `words`.
fn refused(arguments: &[&str], variables: &[(&str, &str)], code: i32, words: &[&str]) -> Result<()> {
    let mut process = Process::start(arguments, variables)?;
    let status = process.wait()?;
    let log = process.log();
    let line = log.lines().last().with_context(|| format!("{arguments:?} logged nothing"))?;
    println!("{line}");
    assert_eq!(status.code(), Some(code), "{arguments:?}: {log}");
    assert!(line.starts_with("error: "), "{line}");
    for word in words {
        assert!(line.contains(word), "{line:?} does not contain {word:?}");
    }
    Ok(())
}

const LOCAL: [&str; 4] = ["--role", "local", "--set", "frontend.port=0"];

fn local_with_model(model: &Path, words: &[&str]) -> Result<()> {
    let model = model.display().to_string();
    refused(&[&LOCAL[..], &["--model", &model]].concat(), &[], 1, words)
}

#[test]
fn a_missing_model_is_refused() -> Result<()> {
    local_with_model(
        Path::new("/nowhere/model.gguf"),
        &["/nowhere/model.gguf", "cargo xtask demo", "--model"],
    )
}

#[test]
fn a_truncated_or_altered_model_is_refused() -> Result<()> {
    let folder = folder("models")?;
    let whole = fs::read(default_model())?;
    let truncated = folder.join("truncated.gguf");
    fs::write(&truncated, &whole[..whole.len() - 1000])?;
    local_with_model(&truncated, &["truncated", "bytes"])?;
    let altered = folder.join("altered.gguf");
    let mut bytes = whole;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&altered, &bytes)?;
    let sum = fs::read_to_string(format!("{}.sha256", default_model().display()))?;
    fs::write(folder.join("altered.gguf.sha256"), sum)?;
    local_with_model(&altered, &["sha256", "b179c952", "fetch"])?;
    fs::write(&altered, b"not a model at all")?;
    local_with_model(&altered, &["GGUF"])?;
    Ok(fs::remove_dir_all(folder)?)
}

#[test]
fn a_port_in_use_is_refused() -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port().to_string();
    for (role, key) in [
        ("local", "frontend.port"),
        ("receiver", "http.port"),
        ("receiver", "link.port"),
        ("sender", "http.port"),
    ] {
        let mut arguments = vec!["--role".to_owned(), role.to_owned()];
        for other in ["frontend.port", "http.port", "link.port"] {
            // A sender needs a receiver to dial.
            let free = if role == "sender" && other == "link.port" { "1" } else { "0" };
            arguments
                .extend(["--set".to_owned(), format!("{other}={}", if other == key { &port } else { free })]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        refused(&arguments, &[], 1, &[&port, "in use", key])?;
    }
    Ok(())
}

#[test]
fn a_quota_that_does_not_hold_the_longest_prompt_is_refused() -> Result<()> {
    let node = ["--role", "node", "--set", "http.port=0", "--set", "frontend.port=0", "--set", "link.port=0"];
    let peers = ["--set", "link.peers=127.0.0.1:1", "--set", "request.context_tokens=160"];
    let with = |quota| [&node[..], &peers, &["--set", quota]].concat();
    let too_small = ["node.prefill_pages is 9", "160 tokens", "raise node.prefill_pages to 10"];
    refused(&with("node.prefill_pages=9"), &[], 1, &too_small)?;
    let too_large = ["node.prefill_pages is 5000", "lower node.prefill_pages or raise engine.kv_bytes"];
    refused(&with("node.prefill_pages=5000"), &[], 1, &too_large)
}

#[test]
fn a_missing_or_old_ucx_is_refused() -> Result<()> {
    let folder = folder("ucx")?;
    let any =
        ["--role", "receiver", "--set", "http.port=0", "--set", "frontend.port=0", "--set", "link.port=0"];
    let library = folder.join("libucp.so.0");
    let set = format!("transport.ucx_library={}", library.display());
    let arguments = [&any[..], &["--set", &set]].concat();
    refused(&arguments, &[], 1, &["libucp.so.0", "1.21", "transport.ucx_library"])?;
    let source = folder.join("old.c");
    fs::write(
        &source,
        "void ucp_get_version(unsigned *a, unsigned *b, unsigned *c) { *a = 1; *b = 20; *c = 1; }\n\
         const char *ucp_get_version_string(void) { return \"1.20.1\"; }\n",
    )?;
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status()?;
    assert!(built.success(), "the test needs a C linker, as Rust does");
    refused(&arguments, &[], 1, &["1.20.1", "1.21", "transport.ucx_library"])?;
    Ok(fs::remove_dir_all(folder)?)
}

#[test]
fn unknown_keys_and_wrong_values_are_refused() -> Result<()> {
    let folder = folder("configs")?;
    let file = folder.join("typo.yaml");
    fs::write(&file, "ring:\n  bites: 1GiB\n")?;
    let path = file.display().to_string();
    refused(&[&LOCAL[..], &["--config", &path]].concat(), &[], 2, &[&path, "ring.bites", "ring.bytes"])?;
    fs::write(&file, "engine:\n  page_tokens: many\n")?;
    refused(&[&LOCAL[..], &["--config", &path]].concat(), &[], 2, &[&path, "engine.page_tokens", "many"])?;
    refused(&LOCAL, &[("BATON_LINK__PROT", "1")], 2, &["BATON_LINK__PROT", "link.prot"])?;
    Ok(fs::remove_dir_all(folder)?)
}

#[test]
fn a_sender_with_another_model_is_refused() -> Result<()> {
    let folder = folder("other_model")?;
    let other = folder.join("other.gguf");
    let mut bytes = fs::read(default_model())?;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&other, bytes)?;
    let receiver = start_receiver(&[])?;
    let mut sender = start_sender(&receiver, &[&format!("model={}", other.display())])?;
    let status = sender.wait()?;
    let log = sender.log();
    let line = log.lines().last().context("the process printed no log")?;
    println!("{line}");
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(
        line.starts_with("error: ") && line.contains("--model") && line.contains("sha256 b179c952"),
        "{line}"
    );
    receiver.wait_event(Event::ConnectionRefused, &["same --model"])?;
    Ok(fs::remove_dir_all(folder)?)
}
