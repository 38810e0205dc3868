//! The options of the benchmarks that send requests to a server, and of `bench plot`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

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
    /// The prompts of a file.
    Custom,
}

impl DatasetName {
    /// The name on the command line and in result files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Custom => "custom",
        }
    }
}

/// The server and the requests. These are options of `vllm bench serve`.
#[derive(Debug, Args)]
pub struct LoadOptions {
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
    /// Model in the requests [default: the first model that the server lists]
    #[arg(long)]
    pub model: Option<String>,
    /// GGUF file or folder with the tokenizer for the prompts [default: the model of the server, if it is on this machine]
    #[arg(long)]
    pub tokenizer: Option<PathBuf>,
    /// Source of the prompts
    #[arg(long, value_enum, default_value = "random")]
    pub dataset_name: DatasetName,
    /// File of the custom dataset: JSON lines such as {"prompt": "…", "output_tokens": 64}
    #[arg(long)]
    pub dataset_path: Option<PathBuf>,
    /// Number of tokens in an answer to a custom prompt; -1 requires output_tokens in each line [default: output_tokens, else 256]
    #[arg(long, allow_negative_numbers = true)]
    pub custom_output_len: Option<i64>,
    /// Sends custom prompts as they are, without the model's chat template
    #[arg(long)]
    pub skip_chat_template: bool,
    /// Sends custom prompts in the order of the file
    #[arg(long)]
    pub disable_shuffle: bool,
    /// Does not repeat custom prompts if the file has too few
    #[arg(long)]
    pub no_oversample: bool,
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
    /// Evenness of the arrivals: 1 is a Poisson process, larger is more even
    #[arg(long, default_value_t = 1.0)]
    pub burstiness: f64,
    /// Maximum number of requests in flight; further requests wait in the client
    #[arg(long)]
    pub max_concurrency: Option<usize>,
    /// Number of requests before the measurement, with the first prompts of the dataset
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
    /// Name of this measurement, in plots and in the name of the result file
    #[arg(long)]
    pub label: Option<String>,
    /// Does not show progress
    #[arg(long)]
    pub disable_tqdm: bool,
}

/// The options of `bench serve`. All but the plot and the comparison are options of `vllm bench serve`.
#[derive(Debug, Args)]
pub struct ServeOptions {
    /// The server and the requests.
    #[command(flatten)]
    pub load: LoadOptions,
    /// Number of requests
    #[arg(long, default_value_t = 1000)]
    pub num_prompts: usize,
    /// Requests per second; inf sends all of them at once
    #[arg(long, default_value_t = f64::INFINITY)]
    pub request_rate: f64,
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
    /// Draws distributions of latencies and a timeline into this SVG file
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// URL of a second server; sends each request to both servers, in blocks that alternate, and compares them
    #[arg(long, value_name = "URL")]
    pub compare: Option<String>,
    /// Number of blocks of --compare
    #[arg(long, default_value_t = 10)]
    pub compare_blocks: usize,
}

/// The options of `bench sweep`.
#[derive(Debug, Args)]
pub struct SweepOptions {
    /// The server and the requests.
    #[command(flatten)]
    pub load: LoadOptions,
    /// Rates in requests per second, separated by commas, in rising order
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["from", "factor"])]
    pub rates: Vec<f64>,
    /// First rate, in requests per second
    #[arg(long, default_value_t = 1.0)]
    pub from: f64,
    /// Each rate is the last one times this factor
    #[arg(long, default_value_t = 2.0)]
    pub factor: f64,
    /// Highest rate of --from and --factor
    #[arg(long, default_value_t = 256.0)]
    pub max_rate: f64,
    /// Number of extra rates measured between the last that met the target and the first that missed it
    #[arg(long, default_value_t = 3)]
    pub bisect: u32,
    /// Seconds in which requests are sent at each rate; longer if there would be fewer than 30 requests
    #[arg(long, default_value_t = 20.0)]
    pub seconds: f64,
    /// Longest time from the planned sending of a good request to its first token, in ms
    #[arg(long, default_value_t = 1000.0)]
    pub ttft: f64,
    /// Largest 99th percentile of a good request's own inter-token latencies, in ms
    #[arg(long, default_value_t = 25.0)]
    pub gap: f64,
    /// Target: the percentage of requests that must be good
    #[arg(long, default_value_t = 90.0)]
    pub good: f64,
    /// Writes the results to this JSON file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draws the results into this SVG file
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

/// The options of `bench plot`.
#[derive(Debug, Args)]
pub struct RedrawOptions {
    /// Result file of `bench serve`, `bench sweep` or `bench transfer`, or of `vllm bench serve --save-result --save-detailed`
    pub result: PathBuf,
    /// The SVG file
    #[arg(long, value_name = "FILE")]
    pub plot: PathBuf,
}

impl LoadOptions {
    /// The URL of the server.
    pub(crate) fn base(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        self.base_url.clone().unwrap_or_else(|| format!("http://{host}:{}", self.port))
    }

    /// True if the client renders custom prompts with the model's chat template. In the chat API, the server does.
    pub(crate) fn needs_template(&self) -> bool {
        !self.skip_chat_template && self.backend != Backend::OpenaiChat
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
