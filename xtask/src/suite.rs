//! `cargo xtask test`: runs all checks and tests, the cheapest first, and stops at the first failure.
//!
//! Cargo chooses the features of a dependency from the packages that a command names. All steps that compile programs name the whole workspace with
//! its tests, so that each dependency is compiled once.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{fetch, place};

/// One command of the suite.
struct Step {
    name: &'static str,
    program: Program,
    arguments: &'static [&'static str],
    variable: Option<(&'static str, &'static str)>,
}

impl Step {
    const fn new(name: &'static str, arguments: &'static [&'static str]) -> Self {
        Self { name, program: Program::Cargo, arguments, variable: None }
    }

    /// A step that runs the simulator, which an earlier step builds.
    const fn simulator(name: &'static str, arguments: &'static [&'static str]) -> Self {
        Self { name, program: Program::Simulator, arguments, variable: None }
    }

    fn line(&self) -> String {
        let variable = self.variable.map(|(name, value)| format!("{name}={value} ")).unwrap_or_default();
        let program = match self.program {
            Program::Cargo => "cargo",
            Program::Simulator => "target/debug/sim",
        };
        format!("{variable}{program} {}", self.arguments.join(" "))
    }

    fn command(&self) -> Command {
        let mut command = match self.program {
            Program::Cargo => place::cargo(),
            Program::Simulator => Command::new(place::target().join("debug/sim")),
        };
        command.args(self.arguments).envs(self.variable);
        command
    }
}

/// The program of a step.
#[derive(Clone, Copy)]
enum Program {
    Cargo,
    Simulator,
}

/// The steps in order. Process tests start the `runtime` binary, so it is built before them.
fn steps(nextest: bool) -> Vec<Step> {
    let mut steps = vec![
        Step::new("format", &["fmt", "--all", "--check"]),
        Step::new(
            "clippy",
            &["clippy", "--workspace", "--all-targets", "--all-features", "--locked", "--", "-D", "warnings"],
        ),
        Step {
            name: "docs",
            program: Program::Cargo,
            arguments: &["doc", "--workspace", "--no-deps", "--locked"],
            variable: Some(("RUSTDOCFLAGS", "-Dwarnings")),
        },
        Step::new(
            "no GPU",
            &["test", "--workspace", "--features", "runtime/cuda", "--test", "no_gpu", "--locked", "--quiet"],
        ),
        // After "no GPU", which builds the binary with another feature.
        Step::new("build", &["build", "--workspace", "--all-targets", "--locked"]),
        Step::simulator("histories", &["--minutes", "1"]),
        Step::simulator("histories of fleets", &["--fleet", "--minutes", "0.5"]),
    ];
    if nextest {
        // nextest does not run the examples in the documentation.
        steps.push(Step::new("doc tests", &["test", "--doc", "--workspace", "--locked", "--quiet"]));
        steps.push(Step::new("tests", &["nextest", "run", "--workspace", "--locked"]));
    } else {
        steps.push(Step::new("tests", &["test", "--workspace", "--locked"]));
    }
    steps
}

/// Runs the suite and prints a table of the steps, also after a failure.
pub(crate) fn run() -> Result<()> {
    let start = Instant::now();
    println!("== fetch");
    // clippy enables all features, and the feature `cuda` compiles kernels.
    fetch::run([fetch::UCX, fetch::MODEL, fetch::OPENAI, fetch::CUDA])?;
    let optional = [
        fetch::SUITES,
        fetch::ZMQ,
        fetch::HUB,
        fetch::NPM_OPENAI,
        fetch::SCHEMAS,
        fetch::GRAFANA_SCHEMA,
        fetch::TYPESCRIPT,
        fetch::PROMTOOL,
    ];
    for part in optional {
        // Needs Node.js, a recent Python, or Debian.
        if let Err(error) = fetch::run([part]) {
            println!("not fetched: {error:#}; the tests that need it are skipped");
        }
    }
    let mut table = vec![("fetch", start.elapsed())];
    let outcome = steps(has_nextest()).iter().try_for_each(|step| {
        println!("\n== {}: {}", step.name, step.line());
        let begin = Instant::now();
        let status = step.command().status().with_context(|| format!("cannot start {}", step.line()))?;
        table.push((step.name, begin.elapsed()));
        if !status.success() {
            bail!("{} failed: `{}` ended with {status}", step.name, step.line());
        }
        Ok(())
    });
    table.push(("total", start.elapsed()));
    println!("\n{}", render(&table));
    outcome
}

fn has_nextest() -> bool {
    let mut probe = place::cargo();
    probe.args(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

fn render(table: &[(&str, Duration)]) -> String {
    let row = |(name, took): &(&str, Duration)| format!("  {name:<10} {:>8.1} s", took.as_secs_f64());
    table.iter().map(row).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_built_before_the_tests() {
        for nextest in [false, true] {
            let names: Vec<_> = steps(nextest).iter().map(|step| step.name).collect();
            assert_eq!(names.last(), Some(&"tests"));
            assert_eq!(names[..6], ["format", "clippy", "docs", "no GPU", "build", "histories"]);
        }
    }

    #[test]
    fn a_step_prints_its_command_line() {
        let docs = &steps(true)[2];
        assert_eq!(docs.line(), "RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --locked");
    }

    #[test]
    fn the_columns_of_the_table_line_up() {
        let table = render(&[("fetch", Duration::from_millis(40)), ("tests", Duration::from_secs(123))]);
        assert_eq!(table, "  fetch           0.0 s\n  tests         123.0 s");
    }
}
