//! The command line: what a person types, and the exit code that comes back.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::bench::BenchCommand;
use crate::config::{Config, ConfigErrors, Flag, Problem, Role, Surroundings};
use crate::{roles, telemetry};

const AFTER_HELP: &str = "\
Two launches and a POST:
  runtime --role receiver &        decodes; frontend on 127.0.0.1:9000
  runtime --role sender &          prefills; dials the receiver on 127.0.0.1:55555
  curl http://127.0.0.1:9000/v1/completions -H 'content-type: application/json' \\
       -d '{\"prompt\": \"Once upon a time\", \"max_tokens\": 32}'

Configuration, later ones win:
  defaults, --config FILE, variables such as BATON_LINK__PORT=55556, --model and --set.
  --print-config shows every key, its value and what set it; configs/ holds examples.

Exit codes:
  0  ended cleanly (SIGTERM, SIGINT)
  1  could not start or could not go on; the reason is one line on standard error
  2  the command line or the configuration is wrong; nothing was started";

/// Where the flags stand that users of vLLM know.
const VLLM: &str = "Flags of `vllm serve`";

const ABOUT: &str = "Serves a language model with its prefill in one process and its decoding in another.";

const LONG_ABOUT: &str = "\
Serves a language model with its prefill in one process and its decoding in another.

The sender computes a prompt's KV cache and puts it page by page into the memory of the receiver,
which decodes and streams the answer over an OpenAI-compatible HTTP port.";

/// The command line.
#[derive(Parser)]
#[command(name = "runtime", version, about = ABOUT, long_about = LONG_ABOUT, after_help = AFTER_HELP)]
#[command(args_conflicts_with_subcommands = true, args_override_self = true)]
pub struct Cli {
    /// What to do other than serve.
    #[command(subcommand)]
    pub command: Option<CliCommand>,

    /// What this process is [default: what --config or --kv-transfer-config says, else local]
    #[arg(long, value_enum)]
    pub role: Option<Role>,

    /// YAML file with configuration keys, Baton's or LMCache's [default: $LMCACHE_CONFIG_FILE]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Model: a GGUF file or a Hugging Face folder (the key `model`)
    #[arg(long, value_name = "PATH")]
    pub model: Option<String>,

    /// Port: the node's own for a sender or receiver (`http.port`), else the frontend's
    #[arg(long, value_name = "PORT", help_heading = VLLM)]
    pub port: Option<String>,

    /// Address to listen on for HTTP (`http.host` and `frontend.host`)
    #[arg(long, value_name = "HOST", help_heading = VLLM)]
    pub host: Option<String>,

    /// Name under which clients ask for the model (`served_model_name`)
    #[arg(long, value_name = "NAME", help_heading = VLLM)]
    pub served_model_name: Option<String>,

    /// Most tokens of a prompt and its answer (`request.context_tokens`)
    #[arg(long, value_name = "TOKENS", help_heading = VLLM)]
    pub max_model_len: Option<String>,

    /// Key that clients have to show (`request.api_key`)
    #[arg(long, value_name = "KEY", help_heading = VLLM)]
    pub api_key: Option<String>,

    /// Leaves the line for each finished request out of the log
    #[arg(long, help_heading = VLLM)]
    pub disable_log_requests: bool,

    /// Its `kv_role` says what this process is: kv_producer is a sender, kv_consumer a receiver
    #[arg(long, value_name = "JSON", help_heading = VLLM, value_parser = parse_kv_transfer)]
    pub kv_transfer_config: Option<KvTransfer>,

    /// Sets one configuration key; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = Flag::parse)]
    pub set: Vec<Flag>,

    /// Prints the resolved configuration as YAML and exits
    #[arg(long)]
    pub print_config: bool,

    /// What to log, as `info` or `warn,runtime=debug`
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = telemetry::Filter::parse)]
    pub log: telemetry::Filter,
}

/// What the binary does beside serving.
#[derive(Subcommand)]
pub enum CliCommand {
    /// Measures a running server, or the lane between two processes
    #[command(subcommand)]
    Bench(BenchCommand),
}

/// What of `--kv-transfer-config` is understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvTransfer {
    role: Role,
    /// Fields that set nothing here.
    idle: Vec<String>,
}

fn parse_kv_transfer(text: &str) -> Result<KvTransfer, String> {
    let fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(text).map_err(|error| format!("not a JSON object: {error}"))?;
    let role = match fields.get("kv_role").and_then(serde_json::Value::as_str) {
        Some("kv_producer") => Role::Sender,
        Some("kv_consumer") => Role::Receiver,
        Some(other) => return Err(format!("kv_role is {other:?}; kv_producer and kv_consumer are known")),
        None => return Err("kv_role is missing; set it to kv_producer or kv_consumer".to_owned()),
    };
    let idle = fields.keys().filter(|key| *key != "kv_role").cloned().collect();
    Ok(KvTransfer { role, idle })
}

impl Cli {
    /// What the process is: what `--role` says, or the flag or file that vLLM and LMCache have for it.
    fn role(&self, file: Option<&Path>) -> Result<Role, ConfigErrors> {
        let transfer = self.kv_transfer_config.as_ref().map(|transfer| transfer.role);
        match (self.role, transfer) {
            (Some(role), Some(transfer)) if role != transfer => {
                let reason = format!("makes a {}, and --role says {}", transfer.name(), role.name());
                let (origin, key) = ("--kv-transfer-config".to_owned(), "kv_role".to_owned());
                Err(ConfigErrors(vec![Problem { origin, key, reason }]))
            }
            (role, transfer) => {
                Ok(role.or(transfer).or_else(|| Config::role_in(file?)).unwrap_or(Role::Local))
            }
        }
    }

    /// Resolves the configuration that this command line asks for.
    ///
    /// # Errors
    /// Every problem found, each one sentence.
    pub fn resolve(&self, surroundings: Surroundings) -> Result<Config, ConfigErrors> {
        let file = self.config.clone().or_else(|| surroundings.lmcache_file.clone());
        let role = self.role(file.as_deref())?;
        let port = if role == Role::Local { "frontend.port" } else { "http.port" };
        let named: [(&str, &[&str], &Option<String>); 6] = [
            ("--model", &["model"], &self.model),
            ("--port", &[port], &self.port),
            ("--host", &["http.host", "frontend.host"], &self.host),
            ("--served-model-name", &["served_model_name"], &self.served_model_name),
            ("--max-model-len", &["request.context_tokens"], &self.max_model_len),
            ("--api-key", &["request.api_key"], &self.api_key),
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
        let idle = self.kv_transfer_config.iter().flat_map(|transfer| &transfer.idle);
        let idle: Vec<&str> = idle.map(String::as_str).collect();
        if !idle.is_empty() {
            config.notes.push(format!("--kv-transfer-config: nothing here for {} to set", idle.join(", ")));
        }
        Ok(config)
    }
}

/// Parses, configures and runs; what the binary does.
pub fn main() -> ExitCode {
    main_with(engine::open_watched)
}

/// As [`main`], with an engine that `open` opens.
pub fn main_with(open: roles::OpenEngine) -> ExitCode {
    let cli = Cli::parse();
    if let Some(CliCommand::Bench(bench)) = &cli.command {
        return match bench.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let config = match cli.resolve(Surroundings::of_process()) {
        Ok(config) => config,
        Err(errors) => {
            errors.0.iter().for_each(|problem| eprintln!("error: {problem}"));
            return ExitCode::from(2);
        }
    };
    if cli.print_config {
        print!("{}", config.to_yaml(config.role));
        return ExitCode::SUCCESS;
    }
    telemetry::start(if cli.disable_log_requests { cli.log.without_requests() } else { cli.log });
    config.notes.iter().for_each(|note| tracing::info!("{note}"));
    match roles::run(config.role, config, open) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    #[test]
    fn the_command_is_well_formed() {
        Cli::command().debug_assert();
    }

    /// As with vLLM, so that a script's options can be followed by one's own.
    #[test]
    fn the_last_of_an_option_given_twice_holds() {
        let serving =
            ["runtime", "--port", "1", "--set", "log.color=never", "--port", "2", "--set", "ring.bytes=1MiB"];
        let cli = Cli::try_parse_from(serving).unwrap();
        assert_eq!((cli.port.as_deref(), cli.set.len()), (Some("2"), 2));
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
            panic!("another command");
        };
        assert_eq!((options.num_prompts, options.header.len()), (3, 2));
    }

    #[test]
    fn a_command_line_is_read() {
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
        let config = cli.resolve(Surroundings::from_variables([], 2)).unwrap();
        assert_eq!((config.role, config.link.port), (Role::Sender, 7));
        assert_eq!(config.model, PathBuf::from("m.gguf"));
        assert_eq!(config.ring.bytes.0, 1 << 20);
    }

    fn resolved(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Config, String> {
        let cli = Cli::try_parse_from([&["runtime"], arguments].concat()).map_err(|e| e.to_string())?;
        let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        cli.resolve(Surroundings::from_variables(variables, 2)).map_err(|errors| errors.to_string())
    }

    #[test]
    fn flags_of_vllm_are_taken() {
        let transfer =
            r#"{"kv_connector":"LMCacheConnectorV1","kv_role":"kv_consumer","kv_connector_extra_config":{}}"#;
        let flags =
            ["--port", "8201", "--host", "0.0.0.0", "--served-model-name", "m", "--max-model-len", "512"];
        let more = ["--disable-log-requests", "--api-key", "k", "--kv-transfer-config", transfer];
        let config = resolved(&[&flags[..], &more].concat(), &[]).unwrap();
        assert_eq!((config.role, config.http.port, config.frontend.port), (Role::Receiver, 8201, 9000));
        assert_eq!((&*config.http.host, &*config.frontend.host), ("0.0.0.0", "0.0.0.0"));
        assert_eq!(config.served_model_name.as_deref(), Some("m"));
        assert_eq!(config.request.context_tokens, 512);
        assert_eq!(config.request.api_key.unwrap().reveal(), "k");
        assert_eq!(
            config.notes,
            ["--kv-transfer-config: nothing here for kv_connector, kv_connector_extra_config to set"]
        );
        assert_eq!(resolved(&["--port", "9001"], &[]).unwrap().frontend.port, 9001);
    }

    #[test]
    fn whoever_names_a_role_must_agree() {
        let producer = ["--kv-transfer-config", r#"{"kv_role":"kv_producer"}"#];
        assert_eq!(resolved(&producer, &[]).unwrap().role, Role::Sender);
        let error = resolved(&[&producer[..], &["--role", "receiver"]].concat(), &[]).unwrap_err();
        assert_eq!(error, "--kv-transfer-config: kv_role makes a sender, and --role says receiver");
        let both = resolved(&["--kv-transfer-config", r#"{"kv_role":"kv_both"}"#], &[]).unwrap_err();
        assert!(both.contains("kv_producer and kv_consumer are known"), "{both}");

        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/lmcache-decoder-config.yaml");
        let variables = [("LMCACHE_CONFIG_FILE", file), ("LMCACHE_USE_EXPERIMENTAL", "True")];
        assert_eq!(resolved(&[], &variables).unwrap().role, Role::Receiver);
        let error = resolved(&["--role", "sender"], &variables).unwrap_err();
        assert!(error.contains("nixl_role is receiver, and this process is to be a sender"), "{error}");
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
