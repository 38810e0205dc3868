//! Checks of the model: its files, its checksum, its tokenizer and chat template, and the token for downloads.

use std::path::PathBuf;

use engine::{InspectedModel, OpenError};
use serde_json::json;

use super::report::{Finding, bytes_text};
use super::{LIMIT, Subject};
use crate::config::{Config, Role, Surroundings};
use crate::frontend::{Conversation, ServedModel};
use crate::roles::{self, proxying};

/// Whether a check compares the fingerprint of the model, for which all of its files are read.
pub(super) fn needs_fingerprint(config: &Config, model: &InspectedModel) -> bool {
    let meets_peers = config.role.dials_peers() || !config.fleet.etcd_endpoints.is_empty();
    meets_peers || has_checksum(model)
}

/// Whether `<file>.sha256` lies beside the model.
fn has_checksum(model: &InspectedModel) -> bool {
    let mut name = model.info().path.clone().into_os_string();
    name.push(".sha256");
    PathBuf::from(name).exists()
}

/// The files of the model, up to the weights.
pub(super) fn files(subject: &Subject) -> Vec<Finding> {
    if subject.config.role == Role::Proxy {
        return Vec::new();
    }
    if let Some(reason) = &subject.not_cached {
        let remedy =
            "run `runtime pull` with the name of the model, or start the process, which downloads it";
        return vec![Finding::warning("model", reason, remedy)];
    }
    let Some(model) = subject.model.within(LIMIT) else { return Vec::new() };
    vec![match model.as_ref() {
        Ok(model) => {
            let (info, size) = (model.info(), |path: &PathBuf| path.metadata().map_or(0, |file| file.len()));
            let bytes = model.files().iter().map(size).sum();
            let files = model.files().len();
            Finding::ok(
                "model",
                format!(
                    "{} is complete: {:.2} billion parameters, {} in {files} file{}, {} tokens of context",
                    info.path.display(),
                    info.parameters as f64 / 1e9,
                    bytes_text(bytes),
                    if files == 1 { "" } else { "s" },
                    info.context_tokens
                ),
            )
        }
        Err(error) => judge_model_error(error),
    }]
}

/// The finding for a model that cannot be opened.
pub(super) fn judge_model_error(error: &OpenError) -> Finding {
    let remedy = match error.kind() {
        "model_truncated" | "safetensors_malformed" | "gguf_malformed" | "no_tensor" => {
            "fetch the model again, completely"
        }
        "model_unreadable" => "fetch the missing file, or give this user the permission to read it",
        _ => "choose a model that is supported (docs/models.md)",
    };
    Finding::from_error("model", &error.to_string(), remedy)
}

/// The checksum of the model, if `.sha256` lies beside it.
pub(super) fn checksum(subject: &Subject) -> Vec<Finding> {
    if subject.config.role == Role::Proxy {
        return Vec::new();
    }
    let Some(model) = subject.model() else { return Vec::new() };
    let Ok(model) = model.as_ref() else { return Vec::new() };
    if !has_checksum(model) {
        return Vec::new();
    }
    // Leaves time for the report.
    vec![match subject.fingerprint.within(LIMIT.mul_f32(0.9)) {
        Some(Ok(_)) => Finding::ok("checksum", "the model has the checksum in its .sha256 file"),
        Some(Err(error)) => Finding { check: "checksum", ..judge_model_error(&error) },
        None => {
            Finding::ok("checksum", "the model is too large to compare its checksum now; a start compares it")
        }
    }]
}

/// How the model reads and writes text.
#[derive(Clone, Debug)]
pub(super) struct TextFacts {
    /// Tokens of the tokenizer; `None` if the model has no tokenizer.
    pub(super) vocabulary: Option<u32>,
    /// What the chat template makes of one message; `None` if the model has no template.
    pub(super) rendered: Option<Result<String, String>>,
}

/// The tokenizer and the chat template.
pub(super) fn text(subject: &Subject) -> Vec<Finding> {
    let config = &subject.config;
    let served = if config.role == Role::Proxy {
        proxying::served_text(config)
    } else {
        let Some(model) = subject.model() else { return Vec::new() };
        let Ok(model) = model.as_ref() else { return Vec::new() };
        roles::served_model(config, model.info())
    };
    judge_text(served.map(|model| facts_of(&model)).map_err(|error| format!("{error:#}")))
}

fn facts_of(model: &ServedModel) -> TextFacts {
    let messages = [json!({ "role": "user", "content": "Hello" })];
    let conversation = Conversation { messages: &messages, reply: true, ..Conversation::default() };
    TextFacts {
        vocabulary: model.tokenizer.reads_text().then(|| model.tokenizer.vocabulary()),
        rendered: model.template.as_ref().map(|template| template.render(conversation)),
    }
}

pub(super) fn judge_text(facts: Result<TextFacts, String>) -> Vec<Finding> {
    const TEMPLATE: &str = "chat template";
    let TextFacts { vocabulary, rendered } = match facts {
        Ok(facts) => facts,
        Err(error) => {
            let remedy = "fetch tokenizer.json, tokenizer_config.json and the chat template of the model again, or set tokenizer to a model \
                          that has them";
            return vec![Finding::fault("tokenizer", error, remedy)];
        }
    };
    let tokenizer = match vocabulary {
        Some(tokens) => Finding::ok("tokenizer", format!("{tokens} tokens")),
        None => Finding::warning(
            "tokenizer",
            "the model has no tokenizer, so it takes token ids only",
            "fetch tokenizer.json into the folder of the model, or set tokenizer to a model that has it",
        ),
    };
    let template = match rendered {
        Some(Ok(_)) => Finding::ok(TEMPLATE, "it renders a message"),
        Some(Err(reason)) => Finding::warning(
            TEMPLATE,
            format!("it does not render a conversation of one message: {reason}"),
            "fetch the chat template of the model again, or send prompts to /v1/completions",
        ),
        None => Finding::warning(
            TEMPLATE,
            "the model has none, so /v1/chat/completions is refused",
            "use an instruction-tuned model for chats, or send prompts to /v1/completions",
        ),
    };
    vec![tokenizer, template]
}

/// The token for downloads from Hugging Face. Access to a model is checked where it is downloaded.
pub(super) fn hugging_face(_: &Subject) -> Vec<Finding> {
    vec![judge_token(Surroundings::hugging_face_token().as_deref())]
}

/// Judges the form of the token. Whether it gives access to a model, only the hub can say.
pub(super) fn judge_token(token: Option<&str>) -> Finding {
    const CHECK: &str = "hf token";
    let Some(token) = token else {
        return Finding::ok(CHECK, "HF_TOKEN is not set; only downloads of gated models need it");
    };
    let remedy = "copy the token again from huggingface.co/settings/tokens, or unset HF_TOKEN";
    let Some(rest) = token.strip_prefix("hf_") else {
        return Finding::warning(CHECK, "HF_TOKEN does not start with hf_", remedy);
    };
    if rest.len() < 20 || !rest.chars().all(|character| character.is_ascii_alphanumeric()) {
        let what = "HF_TOKEN starts with hf_, but the rest is too short or has other characters than letters and digits";
        return Finding::warning(CHECK, what, remedy);
    }
    Finding::ok(CHECK, "HF_TOKEN has the right form")
}
