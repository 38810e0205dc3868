//! `runtime bench serve`: load on an OpenAI-compatible server, measured as `vllm bench serve` does; `runtime bench transfer`: pages
//! between two processes, as fast as they go.
//!
//! Options of `serve`, arrivals, the random dataset, what counts as a token and the block of results are those of vLLM's client, so that
//! figures can be held against each other. It needs no server of ours: whatever answers `/v1/completions` with events is measured.

mod client;
mod dataset;
mod results;
mod serve;
mod transfer;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::config::{Config, Role, Surroundings};

pub use transfer::TransferOptions;

/// What to measure.
#[derive(Subcommand)]
pub enum BenchCommand {
    /// Sends requests to a running server and prints what they took
    Serve(Box<ServeOptions>),
    /// Moves pages between two processes and prints how fast
    Transfer(TransferOptions),
}

impl BenchCommand {
    /// Measures and prints.
    ///
    /// # Errors
    /// What kept it from measuring, in one sentence.
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

/// What the server is spoken to as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// Completions.
    Openai,
    /// The same.
    Vllm,
    /// Chat completions.
    OpenaiChat,
}

impl Backend {
    /// Its name on the command line and in files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Openai => "openai",
            Self::Vllm => "vllm",
            Self::OpenaiChat => "openai-chat",
        }
    }
}

/// Where prompts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DatasetName {
    /// Random tokens.
    Random,
}

/// The options of `vllm bench serve`, as far as they mean something here.
#[derive(Debug, Args)]
pub struct ServeOptions {
    /// Prefix of the result file's name
    #[arg(long)]
    pub label: Option<String>,
    /// What the server is spoken to as
    #[arg(long, value_enum, default_value = "openai")]
    pub backend: Backend,
    /// Server, as http://host:port; instead of --host and --port
    #[arg(long)]
    pub base_url: Option<String>,
    /// Server's host
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Server's port
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Path of the endpoint [default: that of the backend]
    #[arg(long)]
    pub endpoint: Option<String>,
    /// Header for each request, as NAME=VALUE; may be repeated
    #[arg(long, value_parser = pair)]
    pub header: Vec<(String, String)>,
    /// Most requests in flight; more wait in the client
    #[arg(long)]
    pub max_concurrency: Option<usize>,
    /// Model to ask for [default: the first that the server lists]
    #[arg(long)]
    pub model: Option<String>,
    /// GGUF file or folder whose tokenizer makes the prompts [default: what the server serves, if it lies on this machine]
    #[arg(long)]
    pub tokenizer: Option<PathBuf>,
    /// Where prompts come from
    #[arg(long, value_enum, default_value = "random")]
    pub dataset_name: DatasetName,
    /// How many requests
    #[arg(long, default_value_t = 1000)]
    pub num_prompts: usize,
    /// What the random choices depend on
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Tokens of a prompt
    #[arg(long, visible_alias = "input-len", default_value_t = 1024)]
    pub random_input_len: u32,
    /// Tokens of an answer
    #[arg(long, visible_alias = "output-len", default_value_t = 128)]
    pub random_output_len: u32,
    /// Lengths vary by up to this share, 0 to 1
    #[arg(long, default_value_t = 0.0)]
    pub random_range_ratio: f64,
    /// Tokens that all prompts begin with
    #[arg(long, default_value_t = 0)]
    pub random_prefix_len: u32,
    /// Requests a second; inf sends all at once
    #[arg(long, default_value_t = f64::INFINITY)]
    pub request_rate: f64,
    /// How even the arrivals are: 1 is a Poisson process, more is more even
    #[arg(long, default_value_t = 1.0)]
    pub burstiness: f64,
    /// Requests before the measurement
    #[arg(long, default_value_t = 0)]
    pub num_warmups: usize,
    /// How long to wait for the server to answer a first request; 0 does not ask
    #[arg(long, default_value_t = 0)]
    pub ready_check_timeout_sec: u64,
    /// Answers go on past an end-of-sequence token (random prompts always do)
    #[arg(long)]
    pub ignore_eos: bool,
    /// Temperature of the sampling
    #[arg(long)]
    pub temperature: Option<f64>,
    /// Nucleus of the sampling
    #[arg(long)]
    pub top_p: Option<f64>,
    /// Most probable tokens that are sampled from
    #[arg(long)]
    pub top_k: Option<i64>,
    /// Least probability, relative to the largest
    #[arg(long)]
    pub min_p: Option<f64>,
    /// Fields for each request's body, as a JSON object
    #[arg(long, value_parser = object)]
    pub extra_body: Option<serde_json::Map<String, serde_json::Value>>,
    /// Begins the name of each request
    #[arg(long)]
    pub request_id_prefix: Option<String>,
    /// Which times are shown: ttft, tpot, itl, e2el
    #[arg(long, value_delimiter = ',', default_value = "ttft,tpot,itl")]
    pub percentile_metrics: Vec<String>,
    /// Which percentiles are shown
    #[arg(long, value_delimiter = ',', default_value = "99")]
    pub metric_percentiles: Vec<f64>,
    /// Longest times of a good request, as ttft:MS, tpot:MS or e2el:MS; may be repeated
    #[arg(long, num_args = 1.., value_parser = goodput)]
    pub goodput: Vec<(String, f64)>,
    /// Writes the results into a JSON file
    #[arg(long)]
    pub save_result: bool,
    /// Writes each request's figures too
    #[arg(long)]
    pub save_detailed: bool,
    /// Facts for the file, as NAME=VALUE
    #[arg(long, num_args = 1.., value_parser = pair)]
    pub metadata: Vec<(String, String)>,
    /// Folder of the file [default: this one]
    #[arg(long)]
    pub result_dir: Option<PathBuf>,
    /// Name of the file [default: made of label, rate, model and time]
    #[arg(long)]
    pub result_filename: Option<String>,
    /// Shows no progress
    #[arg(long)]
    pub disable_tqdm: bool,
}

impl ServeOptions {
    /// The server.
    pub(crate) fn base(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        self.base_url.clone().unwrap_or_else(|| format!("http://{host}:{}", self.port))
    }

    /// The endpoint that is measured.
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
        return Err(format!("{name} is no time of a request; ttft, tpot and e2el are"));
    }
    let ms = ms.parse().map_err(|_| format!("{ms} is no number of milliseconds"))?;
    Ok((name.to_owned(), ms))
}

#[cfg(test)]
mod testing {
    //! Options as the command line gives them.

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
        let BenchCommand::Serve(options) = line.bench else { panic!("another measurement") };
        *options
    }
}
