//! The command line and the exit code.

mod completions;
mod man;
mod model_commands;
mod page;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::bench::BenchCommand;
use crate::config::{Config, ConfigErrors, DeviceSetting, Flag, Problem, Role, Surroundings};
use crate::telemetry::LogFormat;
use crate::{doctor, hub, panics, roles, service_manager, telemetry};

pub use completions::CompletionsOptions;
pub use man::ManOptions;
pub use model_commands::{ModelsCommand, ModelsOptions, PullOptions};
pub use page::command_line_page;

const AFTER_HELP: &str = "\
Start two processes and send a request (on GPUs, give each process its own CUDA_VISIBLE_DEVICES):
  runtime --role receiver &        decodes; serves clients on 127.0.0.1:9000
  runtime --role sender &          prefills; connects to the receiver on 127.0.0.1:55555
  curl http://127.0.0.1:9000/v1/completions -H 'content-type: application/json' \\
       -d '{\"prompt\": \"Once upon a time\", \"max_tokens\": 32}'

Start two nodes that prefill and decode for each other (on one host, their ports must differ):
  runtime --role node --set link.peers=127.0.0.1:55555,127.0.0.1:55556 &
  runtime --role node --set link.peers=127.0.0.1:55555,127.0.0.1:55556 \\
          --set link.port=55556 --set http.port=8201 --set frontend.port=9001 &

Serve a model of the hub; its files go to the cache that Python's tools share:
  runtime --model HuggingFaceTB/SmolLM2-135M-Instruct
  runtime --model org/name@revision, org/name:file.gguf

Forward the requests of clients to these nodes:
  runtime --role proxy --set fleet.nodes=127.0.0.1:8200,127.0.0.1:8201 --set frontend.port=9100

Configuration, in this order (a later source overrides an earlier one):
  defaults, --config FILE, variables such as BATON_LINK__PORT=55556, --model and --set.
  --print-config shows every key, its value and the source of the value. configs/ holds examples.

Check the machine, the model, the ports and the peers before a start, with the same flags:
  runtime doctor --role receiver

Exit codes:
  0  clean end after SIGTERM or SIGINT
  1  could not start, or failed while running; the last line of standard error says why
  2  the command line or the configuration is wrong; nothing was started
  130, 143  SIGINT or SIGTERM ended the process before it was ready";

/// The heading of the flags that `vllm serve` has too.
const VLLM: &str = "Flags of `vllm serve`";

const ABOUT: &str = "Serves a language model: one process prefills prompts, another decodes the answers.";

const LONG_ABOUT: &str = "\
Serves a language model: one process prefills prompts, another decodes the answers.

The sender computes the KV cache of a prompt and puts it, page by page, into the receiver's memory.
The receiver decodes and streams the answer over an OpenAI-compatible HTTP port.
A node does both, for itself and for other nodes.";

/// The command line.
#[derive(Parser)]
#[command(name = "runtime", version, about = ABOUT, long_about = LONG_ABOUT, after_help = AFTER_HELP)]
#[command(args_conflicts_with_subcommands = true, args_override_self = true)]
pub struct Cli {
    /// A command other than serving.
    #[command(subcommand)]
    pub command: Option<CliCommand>,

    /// The flags of a start.
    #[command(flatten)]
    pub start: StartOptions,

    /// Prints the resolved configuration as YAML and exits
    #[arg(long)]
    pub print_config: bool,
}

/// The flags of a start. `runtime doctor` takes the same ones.
#[derive(Args)]
pub struct StartOptions {
    /// Role of this process [default: the role in --config or --kv-transfer-config, else local]
    #[arg(long, value_enum)]
    pub role: Option<Role>,

    /// YAML file with keys of Baton or of LMCache [default: $LMCACHE_CONFIG_FILE]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Model: a GGUF file, a Hugging Face folder, or the id of a model on the hub (the key `model`)
    #[arg(long, value_name = "PATH|ID")]
    pub model: Option<String>,

    /// HTTP port: sets `http.port` for a sender, receiver or node, `frontend.port` for a local process or a proxy
    #[arg(long, value_name = "PORT", help_heading = VLLM)]
    pub port: Option<String>,

    /// Address to listen on for HTTP (`http.host` and `frontend.host`)
    #[arg(long, value_name = "HOST", help_heading = VLLM)]
    pub host: Option<String>,

    /// Name of the model in requests (`served_model_name`)
    #[arg(long, value_name = "NAME", help_heading = VLLM)]
    pub served_model_name: Option<String>,

    /// Maximum number of tokens in a prompt and its answer together (`request.context_tokens`)
    #[arg(long, value_name = "TOKENS", help_heading = VLLM)]
    pub max_model_len: Option<String>,

    /// Rounding of the weights, or of weights and activations: none, fp8_weights or fp8 (`engine.quantization`)
    #[arg(long, value_name = "METHOD", help_heading = VLLM)]
    pub quantization: Option<String>,

    /// Numbers of the KV pages: auto, bf16 or fp8 (`engine.kv_dtype`)
    #[arg(long, value_name = "DTYPE", help_heading = VLLM)]
    pub kv_cache_dtype: Option<String>,

    /// API key that clients must send (`request.api_key`)
    #[arg(long, value_name = "KEY", help_heading = VLLM)]
    pub api_key: Option<String>,

    /// PEM file with the certificate of the HTTP ports, which then serve HTTPS (`tls.cert_file`)
    #[arg(long, value_name = "FILE", help_heading = VLLM)]
    pub ssl_certfile: Option<String>,

    /// PEM file with the key of the certificate (`tls.key_file`)
    #[arg(long, value_name = "FILE", help_heading = VLLM)]
    pub ssl_keyfile: Option<String>,

    /// How the model writes tool calls: hermes, llama3_json, mistral or none (`frontend.tool_call_parser`)
    #[arg(long, value_name = "NAME", help_heading = VLLM)]
    pub tool_call_parser: Option<String>,

    /// How the model writes its reasoning: deepseek_r1, qwen3 or none (`frontend.reasoning_parser`)
    #[arg(long, value_name = "NAME", help_heading = VLLM)]
    pub reasoning_parser: Option<String>,

    /// Accepts a flag of `vllm serve` that Baton does not need: tools are always enabled
    #[arg(long, help_heading = VLLM)]
    pub enable_auto_tool_choice: bool,

    /// Does not log a line for each finished request
    #[arg(long, help_heading = VLLM)]
    pub disable_log_requests: bool,

    /// JSON whose `kv_role` sets the role: kv_producer is a sender, kv_consumer is a receiver
    #[arg(long, value_name = "JSON", help_heading = VLLM, value_parser = parse_kv_transfer)]
    pub kv_transfer_config: Option<KvTransfer>,

    /// Sets one configuration key; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = Flag::parse)]
    pub set: Vec<Flag>,

    /// Log filter, such as `info` or `warn,runtime=debug`
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = telemetry::Filter::parse)]
    pub log: telemetry::Filter,
}

/// The commands other than serving.
#[derive(Subcommand)]
pub enum CliCommand {
    /// Measures a running server, or the transport between two processes
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Checks the machine, the model and the peers for a start with the same flags, and names the remedies
    Doctor(Box<DoctorOptions>),
    /// Downloads a model of the hub into the cache and prints where it is
    Pull(PullOptions),
    /// Lists the models in the cache, or removes one
    Models(ModelsOptions),
    /// Prints the completions of this command line for a shell
    Completions(CompletionsOptions),
    /// Prints the manual page, or writes one page for each command
    Man(ManOptions),
}

/// The options of `runtime doctor`.
#[derive(Args)]
pub struct DoctorOptions {
    /// The flags of the start that is checked.
    #[command(flatten)]
    pub start: StartOptions,

    /// Prints a JSON list of objects with check, state, what and remedy
    #[arg(long)]
    pub json: bool,
}

/// The parts of `--kv-transfer-config` that Baton reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvTransfer {
    role: Role,
    /// Fields that Baton ignores.
    ignored: Vec<String>,
}

fn parse_kv_transfer(text: &str) -> Result<KvTransfer, String> {
    let fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(text).map_err(|error| format!("not a JSON object: {error}"))?;
    let role = match fields.get("kv_role").and_then(serde_json::Value::as_str) {
        Some("kv_producer") => Role::Sender,
        Some("kv_consumer") => Role::Receiver,
        Some(other) => return Err(format!("kv_role is {other:?}; set it to kv_producer or kv_consumer")),
        None => return Err("kv_role is missing; set it to kv_producer or kv_consumer".to_owned()),
    };
    let ignored = fields.keys().filter(|key| *key != "kv_role").cloned().collect();
    Ok(KvTransfer { role, ignored })
}

impl StartOptions {
    /// The role from `--role`, from `--kv-transfer-config`, or from the configuration file.
    fn role(&self, file: Option<&Path>) -> Result<Role, ConfigErrors> {
        let transfer = self.kv_transfer_config.as_ref().map(|transfer| transfer.role);
        match (self.role, transfer) {
            (Some(role), Some(transfer)) if role != transfer => {
                let reason = format!(
                    "makes this process a {}, but --role is {}; make them equal",
                    transfer.name(),
                    role.name()
                );
                let (origin, key) = ("--kv-transfer-config".to_owned(), "kv_role".to_owned());
                Err(ConfigErrors(vec![Problem { origin, key, reason }]))
            }
            (role, transfer) => {
                Ok(role.or(transfer).or_else(|| Config::role_in(file?)).unwrap_or(Role::Local))
            }
        }
    }

    /// Resolves the configuration of this command line.
    ///
    /// # Errors
    /// All problems of the configuration, one sentence each.
    pub fn resolve(&self, surroundings: Surroundings) -> Result<Config, ConfigErrors> {
        let file = self.config.clone().or_else(|| surroundings.lmcache_file.clone());
        let role = self.role(file.as_deref())?;
        let port = if matches!(role, Role::Local | Role::Proxy) { "frontend.port" } else { "http.port" };
        let named: [(&str, &[&str], &Option<String>); 12] = [
            ("--model", &["model"], &self.model),
            ("--port", &[port], &self.port),
            ("--host", &["http.host", "frontend.host"], &self.host),
            ("--served-model-name", &["served_model_name"], &self.served_model_name),
            ("--max-model-len", &["request.context_tokens"], &self.max_model_len),
            ("--quantization", &["engine.quantization"], &self.quantization),
            ("--kv-cache-dtype", &["engine.kv_dtype"], &self.kv_cache_dtype),
            ("--api-key", &["request.api_key"], &self.api_key),
            ("--ssl-certfile", &["tls.cert_file"], &self.ssl_certfile),
            ("--ssl-keyfile", &["tls.key_file"], &self.ssl_keyfile),
            ("--tool-call-parser", &["frontend.tool_call_parser"], &self.tool_call_parser),
            ("--reasoning-parser", &["frontend.reasoning_parser"], &self.reasoning_parser),
        ];
        let named = named.into_iter().flat_map(|(name, keys, value)| {
            let flag = move |key: &&str, value: &String| Flag {
                name: name.to_owned(),
                key: (*key).to_owned(),
                value: value.clone(),
            };
            keys.iter().filter_map(move |key| value.as_ref().map(|value| flag(key, value)))
        });
        let flags: Vec<Flag> = self.set.iter().cloned().chain(named).collect();
        let mut config = Config::load(role, file.as_deref(), &flags, surroundings)?;
        let ignored = self.kv_transfer_config.iter().flat_map(|transfer| &transfer.ignored);
        let ignored: Vec<&str> = ignored.map(String::as_str).collect();
        if !ignored.is_empty() {
            config.notes.push(format!("--kv-transfer-config: ignored {}", ignored.join(", ")));
        }
        Ok(config)
    }
}

/// Runs the binary: parses the command line, resolves the configuration, and serves or measures.
pub fn main() -> ExitCode {
    main_with(engine::open_watched)
}

/// Does what [`main`] does, with an engine that `open` opens.
pub fn main_with(open: roles::OpenEngine) -> ExitCode {
    panics::end_the_process();
    let cli = Cli::parse();
    let start = match &cli.command {
        Some(CliCommand::Bench(bench)) => return exit_code(bench.run()),
        Some(CliCommand::Pull(pull)) => {
            telemetry::start(cli.start.log, LogFormat::Text);
            return exit_code(pull.run().map_err(Into::into));
        }
        Some(CliCommand::Models(models)) => return exit_code(models.run().map_err(Into::into)),
        Some(CliCommand::Completions(options)) => {
            return exit_code(options.run(Cli::command()).map_err(Into::into));
        }
        Some(CliCommand::Man(options)) => return exit_code(options.run(Cli::command())),
        Some(CliCommand::Doctor(options)) => &options.start,
        None => &cli.start,
    };
    let config = match start.resolve(Surroundings::of_process()) {
        Ok(config) => config,
        Err(errors) => {
            errors.0.iter().for_each(|problem| eprintln!("error: {problem}"));
            return ExitCode::from(2);
        }
    };
    if let Some(CliCommand::Doctor(options)) = &cli.command {
        find_cuda(&config);
        return doctor::run(config, options.json);
    }
    if cli.print_config {
        print!("{}", config.to_yaml(config.role));
        return ExitCode::SUCCESS;
    }
    let log = cli.start.log;
    let filter = if cli.start.disable_log_requests { log.without_requests() } else { log };
    telemetry::start(filter, LogFormat::of(&config));
    config.notes.iter().for_each(|note| tracing::info!("{note}"));
    find_cuda(&config);
    service_manager::report_start("looking for the model");
    let served = hub::localize(config).map_err(anyhow::Error::new);
    exit_code(served.and_then(|config| roles::run(config.role, config, open)))
}

/// Has the engine find CUDA's libraries beside the program.
fn find_cuda(config: &Config) {
    if config.engine.device == DeviceSetting::Cuda {
        engine::load_cublas(&config.cuda_search());
    }
}

/// The exit code of a command. Prints its error.
fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    #[test]
    fn the_command_is_well_formed() {
        Cli::command().debug_assert();
    }

    /// vLLM does so too. A user can append an option to a script's command line.
    #[test]
    fn the_last_value_of_a_repeated_option_wins() {
        let serving =
            ["runtime", "--port", "1", "--set", "log.format=json", "--port", "2", "--set", "ring.bytes=1MiB"];
        let cli = Cli::try_parse_from(serving).unwrap();
        assert_eq!((cli.start.port.as_deref(), cli.start.set.len()), (Some("2"), 2));
        let load = [
            "runtime",
            "bench",
            "serve",
            "--num-prompts",
            "50",
            "--header",
            "A=1",
            "--num-prompts",
            "3",
            "--header",
            "B=2",
        ];
        let Some(CliCommand::Bench(BenchCommand::Serve(options))) =
            Cli::try_parse_from(load).unwrap().command
        else {
            panic!("the command is not `bench serve`");
        };
        assert_eq!((options.num_prompts, options.load.header.len()), (3, 2));
    }

    #[test]
    fn a_command_line_sets_role_model_and_keys() {
        let cli = Cli::try_parse_from([
            "runtime",
            "--role",
            "sender",
            "--model",
            "m.gguf",
            "--set",
            "link.port=7",
            "--set",
            "ring.bytes=1MiB",
        ])
        .unwrap();
        let config = cli.start.resolve(Surroundings::from_variables([], 2)).unwrap();
        assert_eq!((config.role, config.link.port), (Role::Sender, 7));
        assert_eq!(config.model, PathBuf::from("m.gguf"));
        assert_eq!(config.ring.bytes.0, 1 << 20);
    }

    fn resolved(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Config, String> {
        let cli = Cli::try_parse_from([&["runtime"], arguments].concat()).map_err(|e| e.to_string())?;
        let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        cli.start.resolve(Surroundings::from_variables(variables, 2)).map_err(|errors| errors.to_string())
    }

    #[test]
    fn vllm_flags_are_accepted() {
        let transfer =
            r#"{"kv_connector":"LMCacheConnectorV1","kv_role":"kv_consumer","kv_connector_extra_config":{}}"#;
        let flags =
            ["--port", "8201", "--host", "0.0.0.0", "--served-model-name", "m", "--max-model-len", "512"];
        let more = ["--disable-log-requests", "--api-key", "k", "--kv-transfer-config", transfer];
        let tools =
            ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "none"];
        let config = resolved(&[&flags[..], &more, &tools].concat(), &[]).unwrap();
        assert_eq!(config.frontend.tool_call_parser.as_deref(), Some("hermes"));
        assert_eq!(config.frontend.reasoning_parser.as_deref(), Some("none"));
        let error = resolved(&["--tool-call-parser", "pythonic"], &[]).unwrap_err();
        let expect =
            "frontend.tool_call_parser must be hermes, llama3_json, mistral or none, not \"pythonic\"";
        assert!(error.contains(expect), "{error}");
        assert_eq!((config.role, config.http.port, config.frontend.port), (Role::Receiver, 8201, 9000));
        assert_eq!((&*config.http.host, &*config.frontend.host), ("0.0.0.0", "0.0.0.0"));
        assert_eq!(config.served_model_name.as_deref(), Some("m"));
        assert_eq!(config.request.context_tokens, 512);
        assert_eq!(config.request.api_key.unwrap().reveal(), "k");
        assert_eq!(config.notes, ["--kv-transfer-config: ignored kv_connector, kv_connector_extra_config"]);
        assert_eq!(resolved(&["--port", "9001"], &[]).unwrap().frontend.port, 9001);
        let tls = resolved(&["--ssl-certfile", "c.pem", "--ssl-keyfile", "k.pem"], &[]).unwrap().tls;
        assert_eq!((tls.cert_file, tls.key_file), (Some("c.pem".into()), Some("k.pem".into())));
    }

    #[test]
    fn contradicting_roles_are_refused() {
        let producer = ["--kv-transfer-config", r#"{"kv_role":"kv_producer"}"#];
        assert_eq!(resolved(&producer, &[]).unwrap().role, Role::Sender);
        let error = resolved(&[&producer[..], &["--role", "receiver"]].concat(), &[]).unwrap_err();
        assert_eq!(
            error,
            "--kv-transfer-config: kv_role makes this process a sender, but --role is receiver; make them equal"
        );
        let both = resolved(&["--kv-transfer-config", r#"{"kv_role":"kv_both"}"#], &[]).unwrap_err();
        assert!(both.contains("set it to kv_producer or kv_consumer"), "{both}");

        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/lmcache-decoder-config.yaml");
        let variables = [("LMCACHE_CONFIG_FILE", file), ("LMCACHE_USE_EXPERIMENTAL", "True")];
        assert_eq!(resolved(&[], &variables).unwrap().role, Role::Receiver);
        let error = resolved(&["--role", "sender"], &variables).unwrap_err();
        assert!(error.contains("nixl_role is receiver, but the role of this process is sender"), "{error}");
        let other = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/sender.yaml");
        assert_eq!(
            resolved(&["--role", "sender", "--config", other], &variables).unwrap().role,
            Role::Sender
        );
    }

    #[test]
    fn bad_usage_is_refused() {
        for (arguments, kind) in [
            (vec!["runtime", "--role", "prefiller"], ErrorKind::InvalidValue),
            (vec!["runtime", "--set", "link.port"], ErrorKind::ValueValidation),
            (vec!["runtime", "--log", "runtime=loud"], ErrorKind::ValueValidation),
            (vec!["runtime", "--prot", "1"], ErrorKind::UnknownArgument),
            (vec!["runtime", "stray"], ErrorKind::InvalidSubcommand),
        ] {
            assert_eq!(
                Cli::try_parse_from(&arguments).err().map(|error| error.kind()),
                Some(kind),
                "{arguments:?}"
            );
        }
    }
}
