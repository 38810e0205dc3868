//! KV events of real processes: a subscriber with libzmq and vLLM's message classes, and the counters.
//!
//! `cargo xtask test` fetches the Python packages. Without them, the test with libzmq is skipped and says so.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration_tests::client::{complete, metrics};
use integration_tests::deadline::STATE_WITHIN;
use integration_tests::process::{Event, Pair, Process, field, start_local, until};
use serde_json::json;

const ON: [&str; 4] =
    ["kv_events.enabled=true", "kv_events.port=0", "kv_events.replay_port=0", "engine.prefix_cache=true"];

/// The topic of the events of a process.
fn topic(process: &Process) -> Result<String> {
    let line = process.wait_event(Event::Listening, &["key=\"kv_events.port\""])?;
    Ok(field(&line, "topic").with_context(|| line.clone())?.to_owned())
}

/// Runs the client against a process that serves HTTP at `http`. Returns false if its packages are absent.
fn check(process: &Process, http: &str) -> Result<bool> {
    let cache = common::cache_folder::locate(|name| std::env::var_os(name)).map_err(anyhow::Error::msg)?;
    let packages = cache.join("pyzmq-27.3.0");
    if !packages.is_dir() {
        println!("skipped: {} does not exist; `cargo xtask test` fetches it", packages.display());
        return Ok(false);
    }
    let output = Command::new("python3")
        .env("PYTHONPATH", packages)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/kv_events.py"))
        .args([http, &*process.address("kv_events.port")?, &*process.address("kv_events.replay_port")?])
        .args([&*topic(process)?, "16"])
        .output()
        .context("cannot run python3")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && printed.contains("all events are right"), "{printed}{errors}");
    println!("{printed}");
    Ok(true)
}

#[test]
fn a_router_knows_the_cached_pages() -> Result<()> {
    let sets =
        [&ON[..], &["engine.kv_bytes=30MiB", "served_model_name=smol", "kv_events.pod=pod-1"]].concat();
    let (process, http) = start_local(&sets)?;
    assert_eq!(topic(&process)?, "kv@pod-1@smol");
    if check(&process, &http)? {
        assert_eq!(metrics(&http)?.get("baton_kv_event_batches_dropped_total")?, 0);
    }
    Ok(())
}

/// Sender and receiver announce the pages of a prompt that the one computed and the other got.
#[test]
fn both_ends_of_a_link_announce_their_pages() -> Result<()> {
    let pair = Pair::start(&ON)?;
    let (receiver, sender) = (pair.receiver.address("http.port")?, pair.sender.address("http.port")?);
    for (process, http) in [(&pair.receiver, &receiver), (&pair.sender, &sender)] {
        let topic = topic(process)?;
        assert!(topic.starts_with(&format!("kv@{http}@")), "{topic}");
        assert_eq!(metrics(http)?.get("baton_kv_event_batches_total")?, 1, "the cache is empty");
    }
    let prompt: Vec<u32> = (100..200).collect();
    complete(&pair.frontend, &json!(prompt), 4)?;
    for http in [&receiver, &sender] {
        let announced = || Ok(metrics(http)?.get("baton_kv_event_batches_total")? > 1);
        until("the pages of the prompt are announced", STATE_WITHIN, announced)?;
    }
    Ok(())
}
