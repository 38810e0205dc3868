//! The runtime's release binary: built, and found in what cargo says.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::place;

/// Builds the release binary with cargo's own progress on the terminal, and returns its path.
pub(crate) fn build(features: &[&str]) -> Result<PathBuf> {
    println!("building the runtime (release; the first time takes minutes)");
    let output = place::cargo()
        .args(["build", "--release", "--package", "runtime", "--bin", "runtime", "--locked"])
        .args(["--features", &features.join(",")])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "the runtime does not build; cargo says why above");
    executable(&String::from_utf8_lossy(&output.stdout)).context("cargo built no binary named runtime")
}

/// Finds the binary in cargo's messages, so that any target folder works.
fn executable(messages: &str) -> Option<PathBuf> {
    messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
        let is_runtime = message["target"]["name"] == "runtime";
        message["executable"].as_str().filter(|_| is_runtime).map(|path| Path::new(path).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_found_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"serde"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"runtime","kind":["lib"]},"executable":null}
{"reason":"compiler-artifact","target":{"name":"runtime","kind":["bin"]},"executable":"/t/release/runtime"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages), Some(PathBuf::from("/t/release/runtime")));
        assert_eq!(executable("not json\n"), None);
    }
}
