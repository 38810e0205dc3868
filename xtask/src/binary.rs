//! Builds release binaries of the workspace and finds them in the output of cargo.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::place;

/// A program of the workspace, as cargo names it.
#[derive(Clone, Copy)]
pub(crate) struct Program {
    package: &'static str,
    /// `bin` or `example`, as on the command line of cargo and in its messages.
    kind: &'static str,
    name: &'static str,
}

/// The server.
pub(crate) const RUNTIME: Program = Program { package: "runtime", kind: "bin", name: "runtime" };

/// The program that checks and measures the CUDA engine alone. It needs the feature `cuda`.
pub(crate) const GPU_ENGINE: Program = Program::example("gpu_engine");

/// The profile of the programs in packages.
pub(crate) const PACKAGE_PROFILE: &str = "dist";

impl Program {
    /// An example of the integration tests.
    pub(crate) const fn example(name: &'static str) -> Self {
        Self { package: "integration-tests", kind: "example", name }
    }
}

/// Builds release binaries and returns their paths in the same order. Cargo shows its progress on the terminal.
///
/// # Errors
/// Cargo does not start, a program does not build, or cargo's messages do not name its binary.
pub(crate) fn build<const N: usize>(programs: [Program; N], features: &[&str]) -> Result<[PathBuf; N]> {
    build_with(place::cargo(), "release", programs, features)
}

/// Builds binaries for a package (see [`place::for_packages`]) in the profile `dist`, otherwise as [`build`].
///
/// # Errors
/// As [`build`].
pub(crate) fn package<const N: usize>(programs: [Program; N], features: &[&str]) -> Result<[PathBuf; N]> {
    let mut cargo = place::cargo();
    place::for_packages(&mut cargo)?;
    build_with(cargo, PACKAGE_PROFILE, programs, features)
}

fn build_with<const N: usize>(
    mut cargo: Command,
    profile: &str,
    programs: [Program; N],
    features: &[&str],
) -> Result<[PathBuf; N]> {
    let names = programs.map(|program| program.name).join(" and ");
    println!("building {names} in the profile {profile}; the first build takes minutes");
    cargo.args(["build", "--profile", profile, "--locked", "--features", &features.join(",")]);
    for Program { package, kind, name } in programs {
        cargo.args(["--package", package, &format!("--{kind}"), name]);
    }
    let output = cargo
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "cannot build {names}; see the output of cargo above");
    executables(&programs, &String::from_utf8_lossy(&output.stdout))
}

/// Finds the binaries in the messages of cargo. This works with every target folder.
fn executables<const N: usize>(programs: &[Program; N], messages: &str) -> Result<[PathBuf; N]> {
    let messages: Vec<Value> = messages.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let mut paths = [const { PathBuf::new() }; N];
    for (path, program) in paths.iter_mut().zip(programs) {
        let is_it = |target: &Value| target["name"] == program.name && target["kind"][0] == program.kind;
        *path = messages
            .iter()
            .filter(|message| is_it(&message["target"]))
            .find_map(|message| message["executable"].as_str())
            .map(|path| Path::new(path).to_owned())
            .with_context(|| format!("cargo built no {} named {}", program.kind, program.name))?;
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: &str = r#"{"reason":"compiler-artifact","target":{"name":"serde","kind":["lib"]},"executable":null}
{"reason":"compiler-artifact","target":{"name":"runtime","kind":["lib"]},"executable":null}
{"reason":"compiler-artifact","target":{"name":"gpu_engine","kind":["example"]},"executable":"/t/release/examples/gpu_engine"}
not json
{"reason":"compiler-artifact","target":{"name":"runtime","kind":["test"]},"executable":"/t/release/deps/runtime-1"}
{"reason":"compiler-artifact","target":{"name":"runtime","kind":["bin"]},"executable":"/t/release/runtime"}
{"reason":"build-finished","success":true}"#;

    #[test]
    fn binaries_are_found_in_the_messages_of_cargo() {
        let (runtime, gpu_engine) = ("/t/release/runtime", "/t/release/examples/gpu_engine");
        let both = executables(&[RUNTIME, GPU_ENGINE], MESSAGES).unwrap();
        assert_eq!(both, [runtime, gpu_engine].map(PathBuf::from));
        assert_eq!(executables(&[RUNTIME], MESSAGES).unwrap(), [PathBuf::from(runtime)]);
    }

    #[test]
    fn a_missing_binary_is_named() {
        let without: Vec<&str> = MESSAGES.lines().filter(|line| !line.contains("example")).collect();
        for (messages, words) in [
            (without.join("\n").as_str(), "no example named gpu_engine"),
            ("not json\n", "no bin named runtime"),
        ] {
            let error = executables(&[RUNTIME, GPU_ENGINE], messages).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
