//! The command line: what a person types, and the exit code that comes back.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::config::{Config, ConfigErrors, Flag, Role, Surroundings};
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

const ABOUT: &str = "Serves a language model with its prefill in one process and its decoding in another.";

const LONG_ABOUT: &str = "\
Serves a language model with its prefill in one process and its decoding in another.

The sender computes a prompt's KV cache and puts it page by page into the memory of the receiver,
which decodes and streams the answer over an OpenAI-compatible HTTP port.";

/// The command line.
#[derive(Parser)]
#[command(name = "runtime", version, about = ABOUT, long_about = LONG_ABOUT, after_help = AFTER_HELP)]
pub struct Cli {
    /// What this process is
    #[arg(long, value_enum, default_value_t = Role::Local)]
    pub role: Role,

    /// YAML file with configuration keys
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Model: a GGUF file or a Hugging Face folder (the key `model`)
    #[arg(long, value_name = "PATH")]
    pub model: Option<String>,

    /// Sets one configuration key; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_set)]
    pub set: Vec<Flag>,

    /// Prints the resolved configuration as YAML and exits
    #[arg(long)]
    pub print_config: bool,

    /// What to log, as `info` or `warn,runtime=debug`
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = telemetry::Filter::parse)]
    pub log: telemetry::Filter,
}

fn parse_set(text: &str) -> Result<Flag, String> {
    let (key, value) = text.split_once('=').ok_or("expected key=value, as in link.port=55556")?;
    Ok(Flag { name: format!("--set {key}"), key: key.to_owned(), value: value.to_owned() })
}

impl Cli {
    /// Resolves the configuration that this command line asks for.
    ///
    /// # Errors
    /// Every problem found, each one sentence.
    pub fn resolve(&self, surroundings: Surroundings) -> Result<Config, ConfigErrors> {
        let model = self.model.iter().map(|path| Flag {
            name: "--model".into(),
            key: "model".into(),
            value: path.clone(),
        });
        let flags: Vec<Flag> = self.set.iter().cloned().chain(model).collect();
        Config::load(self.role, self.config.as_deref(), &flags, surroundings)
    }
}

/// Parses, configures and runs; what the binary does.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = match cli.resolve(Surroundings::of_process()) {
        Ok(config) => config,
        Err(errors) => {
            errors.0.iter().for_each(|problem| eprintln!("error: {problem}"));
            return ExitCode::from(2);
        }
    };
    if cli.print_config {
        print!("{}", config.to_yaml(cli.role));
        return ExitCode::SUCCESS;
    }
    telemetry::start(cli.log);
    match roles::run(cli.role, config) {
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
        assert_eq!((cli.role, config.link.port), (Role::Sender, 7));
        assert_eq!(config.model, PathBuf::from("m.gguf"));
        assert_eq!(config.ring.bytes.0, 1 << 20);
    }

    #[test]
    fn bad_usage_is_refused() {
        for (arguments, kind) in [
            (vec!["runtime", "--role", "prefiller"], ErrorKind::InvalidValue),
            (vec!["runtime", "--set", "link.port"], ErrorKind::ValueValidation),
            (vec!["runtime", "--log", "runtime=loud"], ErrorKind::ValueValidation),
            (vec!["runtime", "--prot", "1"], ErrorKind::UnknownArgument),
            (vec!["runtime", "stray"], ErrorKind::UnknownArgument),
        ] {
            assert_eq!(
                Cli::try_parse_from(&arguments).err().map(|error| error.kind()),
                Some(kind),
                "{arguments:?}"
            );
        }
    }
}
