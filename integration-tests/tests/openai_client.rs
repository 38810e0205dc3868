//! OpenAI's Python client with a pair: every supported call, synchronous and asynchronous.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration_tests::process::Pair;

/// The folder in which `cargo xtask test` has installed the client. Of several versions, the newest.
fn client() -> Result<PathBuf> {
    let cache = common::cache_folder::locate(|name| std::env::var_os(name)).map_err(anyhow::Error::msg)?;
    let entries = std::fs::read_dir(cache)?;
    let named =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("openai-"));
    let newest = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(named).max();
    newest.context("the client is not in the cache folder; `cargo xtask test` fetches it")
}

#[test]
fn every_call_of_the_openai_client_works() -> Result<()> {
    let pair = Pair::start(&["request.api_key=key", "engine.prefix_cache=true"])?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/openai_client.py");
    let output = Command::new("python3")
        .arg(script)
        .arg(format!("http://{}", pair.frontend))
        .env("PYTHONPATH", client()?)
        .env_remove("OPENAI_API_KEY")
        .output()
        .context("cannot run python3")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{printed}{errors}");
    ensure!(printed.contains("all calls are right"), "{printed}");
    Ok(())
}
