//! Suites of clients with a pair: OpenAI's client for Node.js, the chat model suite of langchain-tests, answers under JSON schemas, and streams that are
//! cut anywhere.
//!
//! `cargo xtask test` fetches the suites. A test whose suite could not be fetched, for example without npm, is
//! skipped and says so.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration_tests::process::Pair;

/// A folder that `cargo xtask test` puts into the cache folder. `None` if it is absent.
fn fetched(name: &str) -> Result<Option<PathBuf>> {
    let cache = common::cache_folder::locate(|name| std::env::var_os(name)).map_err(anyhow::Error::msg)?;
    let folder = cache.join(name);
    if folder.is_dir() {
        return Ok(Some(folder));
    }
    println!("skipped: {} does not exist; `cargo xtask test` fetches it", folder.display());
    Ok(None)
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

/// A Python program with the packages of this folder. It writes nothing next to its source.
fn python(packages: &Path) -> Command {
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1").env_remove("OPENAI_API_KEY");
    command
}

/// Runs a program that prints `words` if all is right.
fn run(command: &mut Command, words: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && printed.contains(words), "{printed}{errors}");
    println!("{printed}");
    Ok(())
}

#[test]
fn every_call_of_the_npm_client_works() -> Result<()> {
    let Some(package) = fetched("npm-openai-7.59.0")? else { return Ok(()) };
    let pair = Pair::start(&["request.api_key=key"])?;
    let mut node = Command::new("node");
    node.arg(script("openai_client.mjs")).arg(package).arg(format!("http://{}", pair.frontend));
    run(&mut node, "all calls are right")
}

#[test]
fn a_stream_cut_anywhere_gives_the_same_message() -> Result<()> {
    let Some(packages) = fetched("openai-3.57.0")? else { return Ok(()) };
    let pair = Pair::start(&["frontend.reasoning_parser=qwen3", "frontend.tool_call_parser=hermes"])?;
    // The stream has about 20 kB. A prime number of bytes reaches each place in an event.
    let mut cuts = python(&packages);
    cuts.arg(script("stream_cuts.py")).arg(format!("http://{}", pair.frontend)).arg("97");
    run(&mut cuts, "all cuts are read alike")
}

#[test]
fn the_suite_of_langchain_has_only_expected_failures() -> Result<()> {
    let Some(packages) = fetched("langchain-tests-1.1.9")? else { return Ok(()) };
    let pair = Pair::start(&[])?;
    let mut pytest = python(&packages);
    // The client shares its connections between tests, so all tests have one event loop.
    pytest.args(["-m", "pytest", "-q", "-rxX", "--tb=short", "-p", "no:cacheprovider"]);
    pytest.args(["-o", "asyncio_mode=auto", "-o", "asyncio_default_test_loop_scope=session"]);
    pytest.arg(script("langchain_suite.py")).env("BASE_URL", format!("http://{}", pair.frontend));
    run(&mut pytest, " passed, ")
}

#[test]
fn answers_under_schemas_are_instances() -> Result<()> {
    let Some(packages) = fetched("langchain-tests-1.1.9")? else { return Ok(()) };
    let pair = Pair::start(&[])?;
    let base = format!("http://{}", pair.frontend);
    let mut written_down = python(&packages);
    written_down.arg(script("schemas.py")).arg(&base).args([
        "--every",
        "8",
        "--answers",
        "22",
        "--max-tokens",
        "256",
    ]);
    run(&mut written_down, "answers ended by themselves")?;
    let Some(suite) = fetched("npm-json-schema-test-suite-0.0.10")? else { return Ok(()) };
    let mut others = python(&packages);
    others.arg(script("schemas.py")).arg(&base).arg("--suite").arg(suite);
    others.args(["--every", "3", "--answers", "25", "--max-tokens", "32"]);
    run(&mut others, "answers ended by themselves")
}
