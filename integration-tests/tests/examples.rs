//! The programs in `examples/` run, print their result and end.

use std::process::Command;

use anyhow::{Context, Result};
use integration_tests::process::example;

/// Checks that an example ends with status 0 and prints this line.
fn check(name: &str, arguments: &[&str], line: &str) -> Result<()> {
    let output = Command::new(example(name)?).args(arguments).output().with_context(|| name.to_owned())?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} ended with {}:\n{printed}\n{errors}", output.status);
    assert!(printed.lines().any(|printed| printed == line), "{name} does not print {line:?}:\n{printed}");
    Ok(())
}

#[test]
fn two_actors_end_with_all_pages_free() -> Result<()> {
    check("two_actors", &[], "all pages are free again")
}

#[test]
fn ring_put_moves_pages_between_two_processes() -> Result<()> {
    check("ring_put", &[], "receiver: 10 pages are right")
}

#[test]
fn embedded_engine_continues_a_prompt() -> Result<()> {
    check("embedded_engine", &["The capital of France is"], "The capital of France is Paris.")
}
