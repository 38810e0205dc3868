//! Benchmarks. `runtime bench serve` sends requests to an OpenAI-compatible server and measures like `vllm bench serve`.
//! `runtime bench transfer` measures the transfer of KV pages between two processes.
//!
//! The options of `serve`, the arrivals, the random dataset, the counting of tokens and the printed results are those of vLLM's client,
//! so that results are comparable. The server may be any one that streams answers at `/v1/completions`.

mod client;
mod dataset;
mod results;
mod serve;
mod transfer;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::config::{Config, Role, Surroundings};

pub use transfer::TransferOptions;

/// The benchmarks.
#[derive(Subcommand)]
pub enum BenchCommand {
    /// Sends requests to a running server and prints latencies and throughput
    Serve(Box<ServeOptions>),
    /// Transfers KV pages between two processes and prints the throughput
    Transfer(TransferOptions),
}

impl BenchCommand {
    /// Runs the benchmark and prints the results.
    ///
    /// # Errors
    /// Why it could not measure, in one sentence.
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Serve(options) => serve::run(options, Surroundings::openai_key()),
            Self::Transfer(options) => transfer::run(
                options,
                Config::load(Role::Local, None, &options.set, Surroundings::of_process())?,
            ),
        }
    }
}

/// The API of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The completions API.
    Openai,
    /// The completions API (same as openai).
    Vllm,
    /// The chat completions API.
    OpenaiChat,
}

impl Backend {
    /// The name on the command line and in result files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Openai => "openai",
            Self::Vllm => "vllm",
            Self::OpenaiChat => "openai-chat",
        }
    }
}

/// The source of the prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DatasetName {
    /// Random tokens.
    Random,
}

/// The options of `vllm bench serve` that apply to Baton.
#[derive(Debug, Args)]
pub struct ServeOptions {
    /// Prefix of the name of the result file
    #[arg(long)]
    pub label: Option<String>,
    /// API of the server
    #[arg(long, value_enum, default_value = "openai")]
    pub backend: Backend,
    /// URL of the server, such as http://host:port; replaces --host and --port
    #[arg(long)]
    pub base_url: Option<String>,
    /// Host of the server
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Port of the server
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Path of the endpoint [default: depends on --backend]
    #[arg(long)]
    pub endpoint: Option<String>,
    /// Header of each request, as NAME=VALUE; may be repeated
    #[arg(long, value_parser = pair)]
    pub header: Vec<(String, String)>,
    /// Maximum number of requests in flight; further requests wait in the client
    #[arg(long)]
    pub max_concurrency: Option<usize>,
    /// Model in the requests [default: the first model that the server lists]
    #[arg(long)]
    pub model: Option<String>,
    /// GGUF file or folder with the tokenizer for the prompts [default: the model of the server, if it is on this machine]
    #[arg(long)]
    pub tokenizer: Option<PathBuf>,
    /// Source of the prompts
    #[arg(long, value_enum, default_value = "random")]
    pub dataset_name: DatasetName,
    /// Number of requests
    #[arg(long, default_value_t = 1000)]
    pub num_prompts: usize,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Number of tokens in a prompt
    #[arg(long, visible_alias = "input-len", default_value_t = 1024)]
    pub random_input_len: u32,
    /// Number of tokens in an answer
    #[arg(long, visible_alias = "output-len", default_value_t = 128)]
    pub random_output_len: u32,
    /// Lengths vary by up to this fraction, 0 to 1
    #[arg(long, default_value_t = 0.0)]
    pub random_range_ratio: f64,
    /// Number of tokens in a common prefix of all prompts
    #[arg(long, default_value_t = 0)]
    pub random_prefix_len: u32,
    /// Requests per second; inf sends all of them at once
    #[arg(long, default_value_t = f64::INFINITY)]
    pub request_rate: f64,
    /// Evenness of the arrivals: 1 is a Poisson process, larger is more even
    #[arg(long, default_value_t = 1.0)]
    pub burstiness: f64,
    /// Number of requests before the measurement
    #[arg(long, default_value_t = 0)]
    pub num_warmups: usize,
    /// Seconds to wait until the server answers a first request; 0 skips this check
    #[arg(long, default_value_t = 0)]
    pub ready_check_timeout_sec: u64,
    /// Continues answers after an end-of-sequence token (always on for random prompts)
    #[arg(long)]
    pub ignore_eos: bool,
    /// Sampling temperature
    #[arg(long)]
    pub temperature: Option<f64>,
    /// Top-p of the sampling
    #[arg(long)]
    pub top_p: Option<f64>,
    /// Top-k of the sampling
    #[arg(long)]
    pub top_k: Option<i64>,
    /// Min-p of the sampling
    #[arg(long)]
    pub min_p: Option<f64>,
    /// Additional fields of each request's body, as a JSON object
    #[arg(long, value_parser = object)]
    pub extra_body: Option<serde_json::Map<String, serde_json::Value>>,
    /// Prefix of the id of each request
    #[arg(long)]
    pub request_id_prefix: Option<String>,
    /// Latencies to show: ttft, tpot, itl, e2el
    #[arg(long, value_delimiter = ',', default_value = "ttft,tpot,itl")]
    pub percentile_metrics: Vec<String>,
    /// Percentiles to show
    #[arg(long, value_delimiter = ',', default_value = "99")]
    pub metric_percentiles: Vec<f64>,
    /// Limits of a good request, as ttft:MS, tpot:MS or e2el:MS; may be repeated
    #[arg(long, num_args = 1.., value_parser = goodput)]
    pub goodput: Vec<(String, f64)>,
    /// Writes the results to a JSON file
    #[arg(long)]
    pub save_result: bool,
    /// Also writes the figures of each request
    #[arg(long)]
    pub save_detailed: bool,
    /// Metadata for the file, as NAME=VALUE
    #[arg(long, num_args = 1.., value_parser = pair)]
    pub metadata: Vec<(String, String)>,
    /// Folder of the file [default: the current folder]
    #[arg(long)]
    pub result_dir: Option<PathBuf>,
    /// Name of the file [default: from label, rate, model and time]
    #[arg(long)]
    pub result_filename: Option<String>,
    /// Does not show progress
    #[arg(long)]
    pub disable_tqdm: bool,
}

impl ServeOptions {
    /// The URL of the server.
    pub(crate) fn base(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        self.base_url.clone().unwrap_or_else(|| format!("http://{host}:{}", self.port))
    }

    /// The path of the measured endpoint.
    pub(crate) fn endpoint(&self) -> &str {
        match (&self.endpoint, self.backend) {
            (Some(path), _) => path,
            (None, Backend::OpenaiChat) => "/v1/chat/completions",
            (None, _) => "/v1/completions",
        }
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn object(text: &str) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("not a JSON object: {error}"))
}

fn goodput(text: &str) -> Result<(String, f64), String> {
    let (name, ms) = text.split_once(':').ok_or("expected ttft:MS, tpot:MS or e2el:MS")?;
    if !["ttft", "tpot", "e2el"].contains(&name) {
        return Err(format!("{name} is not a latency; use ttft, tpot or e2el"));
    }
    let ms = ms.parse().map_err(|_| format!("{ms} is not a number of milliseconds"))?;
    Ok((name.to_owned(), ms))
}

#[cfg(test)]
mod testing {
    //! Parses options like the command line.

    use clap::Parser;

    use super::{BenchCommand, ServeOptions};

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
}
