//! Benchmarks.
//!
//! - `runtime bench serve` sends requests to an OpenAI-compatible server and measures like `vllm bench serve`. It can compare two servers.
//! - `runtime bench sweep` sends requests at rising rates until too few meet limits of latency.
//! - `runtime bench transfer` measures the transfer of KV pages between two processes.
//! - `runtime bench plot` draws a saved result again. Each of the others can draw its result itself.
//!
//! The options of `serve`, the arrivals, the random dataset, the counting of tokens and the printed results are those of vLLM's client,
//! so that results are comparable. The server may be any one that streams answers at `/v1/completions`.

mod client;
mod comparison;
mod dataset;
mod files;
mod load;
mod options;
mod plot;
mod results;
mod serve;
mod sweep;
mod transfer;

use clap::Subcommand;

use crate::config::{Config, Role, Surroundings};

pub use options::{Backend, DatasetName, LoadOptions, RedrawOptions, ServeOptions, SweepOptions};
pub use transfer::{PutMeasurement, TransferOptions};

/// The benchmarks.
#[derive(Subcommand)]
pub enum BenchCommand {
    /// Sends requests to a running server and prints latencies and throughput
    Serve(Box<ServeOptions>),
    /// Sends requests at rising rates to a running server and prints the rate at which enough requests meet limits of latency
    Sweep(Box<SweepOptions>),
    /// Transfers KV pages between two processes and prints the throughput
    Transfer(TransferOptions),
    /// Draws a saved result again
    Plot(RedrawOptions),
}

impl BenchCommand {
    /// Runs the benchmark and prints the results.
    ///
    /// # Errors
    /// Why it could not measure, in one sentence.
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Serve(options) => serve::run(options, Surroundings::openai_key()),
            Self::Sweep(options) => sweep::run(options, Surroundings::openai_key()),
            Self::Plot(options) => plot::redraw(&options.result, &options.plot),
            Self::Transfer(options) => transfer::run(
                options,
                Config::load(Role::Local, None, &options.set, Surroundings::of_process())?,
            ),
        }
    }
}

#[cfg(test)]
mod testing {
    //! Parses options like the command line.

    use clap::Parser;

    use super::{BenchCommand, ServeOptions, SweepOptions};

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        bench: BenchCommand,
    }

    /// The options of `bench serve` with these arguments.
    pub(super) fn options(arguments: &[&str]) -> ServeOptions {
        let line = Line::try_parse_from([&["bench", "serve"], arguments].concat()).unwrap();
        let BenchCommand::Serve(options) = line.bench else { panic!("the command is not `serve`") };
        *options
    }

    /// The options of `bench sweep` with these arguments.
    pub(super) fn sweep_options(arguments: &[&str]) -> SweepOptions {
        let line = Line::try_parse_from([&["bench", "sweep"], arguments].concat()).unwrap();
        let BenchCommand::Sweep(options) = line.bench else { panic!("the command is not `sweep`") };
        *options
    }
}
