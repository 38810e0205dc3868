//! OpenAI's requests in terms of tokens: what a body asks for, or the sentence that refuses it.

use actix_web::http::StatusCode;
use engine::Sampling;
use serde_json::Value;

use super::api_error::ApiError;
use super::chat_template::Message;
use super::fields::{Fields, Neutral, wrong};
use super::sampling::sampling;
use super::served_model::ServedModel;

/// `max_tokens` of a completion that does not say; OpenAI's and vLLM's default.
const COMPLETION_TOKENS: u32 = 16;

/// Which of the two endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `/v1/completions`.
    Completion,
    /// `/v1/chat/completions`.
    Chat,
}

impl Kind {
    /// What a request's id starts with.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Completion => "cmpl",
            Self::Chat => "chatcmpl",
        }
    }
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ask {
    pub(super) kind: Kind,
    /// Token ids of the prompt; at least one.
    pub(super) prompt: Vec<u32>,
    /// At least one, and prompt + `max_tokens` fit the context.
    pub(super) max_tokens: u32,
    pub(super) sampling: Sampling,
    pub(super) ignore_eos: bool,
    pub(super) skip_special_tokens: bool,
    pub(super) return_token_ids: bool,
    pub(super) return_timings: bool,
    /// `None`: the answer comes whole.
    pub(super) stream: Option<StreamOptions>,
    /// The client's own name for the request.
    pub(super) request_id: Option<String>,
}

/// How an answer is streamed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StreamOptions {
    /// A last chunk without choices carries the usage.
    pub(super) include_usage: bool,
    /// Every chunk carries the usage so far.
    pub(super) continuous_usage_stats: bool,
}

/// Fields that would change the answer in a way that is not supported yet, and the values that change nothing.
const UNSUPPORTED: &[(&str, Neutral)] = &[
    ("n", Neutral::Number(1.0)),
    ("best_of", Neutral::Number(1.0)),
    ("length_penalty", Neutral::Number(1.0)),
    ("min_tokens", Neutral::Number(0.0)),
    ("top_logprobs", Neutral::Number(0.0)),
    ("logprobs", Neutral::False),
    ("prompt_logprobs", Neutral::False),
    ("echo", Neutral::False),
    ("use_beam_search", Neutral::False),
    ("include_stop_str_in_output", Neutral::False),
    ("continue_final_message", Neutral::False),
    ("stop", Neutral::Empty),
    ("stop_token_ids", Neutral::Empty),
    ("bad_words", Neutral::Empty),
    ("allowed_token_ids", Neutral::Empty),
    ("logits_processors", Neutral::Empty),
    ("suffix", Neutral::Empty),
    ("truncate_prompt_tokens", Neutral::Empty),
    ("prompt_embeds", Neutral::Empty),
    ("structured_outputs", Neutral::Empty),
    ("guided_json", Neutral::Empty),
    ("guided_regex", Neutral::Empty),
    ("guided_choice", Neutral::Empty),
    ("guided_grammar", Neutral::Empty),
    ("tools", Neutral::Empty),
    ("functions", Neutral::Empty),
    ("documents", Neutral::Empty),
    ("audio", Neutral::Empty),
    ("chat_template", Neutral::Empty),
    ("chat_template_kwargs", Neutral::Empty),
    ("tool_choice", Neutral::Word(&["none", "auto"])),
    ("function_call", Neutral::Word(&["none", "auto"])),
    ("response_format", Neutral::Word(&["text"])),
];

impl Ask {
    /// Reads a body.
    ///
    /// # Errors
    /// 404 for another model, else 400 with a sentence that names the field.
    pub(super) fn read(kind: Kind, fields: &Fields, model: &ServedModel) -> Result<Self, ApiError> {
        if let Some(name) = fields.text("model")?.filter(|name| *name != model.name) {
            let message = format!("model {name:?} does not exist; this server has {:?}", model.name);
            let error = ApiError::new(StatusCode::NOT_FOUND, message);
            return Err(ApiError { param: Some("model".to_owned()), ..error });
        }
        UNSUPPORTED.iter().try_for_each(|(name, neutral)| fields.refuse_unless(name, *neutral))?;
        let prompt = match kind {
            Kind::Completion => completion_prompt(fields, model)?,
            Kind::Chat => chat_prompt(fields, model)?,
        };
        let field = match kind {
            Kind::Completion => "prompt",
            Kind::Chat => "messages",
        };
        if prompt.is_empty() {
            return Err(ApiError::field(field, format!("{field} must have at least one token")));
        }
        Ok(Self {
            kind,
            max_tokens: max_tokens(kind, field, prompt.len(), fields, model)?,
            prompt,
            sampling: sampling(fields, model.tokenizer.vocabulary())?,
            ignore_eos: fields.flag("ignore_eos", false)?,
            skip_special_tokens: fields.flag("skip_special_tokens", true)?,
            return_token_ids: fields.flag("return_token_ids", false)?,
            return_timings: fields.flag("return_timings", false)?,
            stream: stream_options(fields)?,
            request_id: fields.text("request_id")?.map(str::to_owned),
        })
    }
}

fn stream_options(fields: &Fields) -> Result<Option<StreamOptions>, ApiError> {
    let options = fields.inner("stream_options")?;
    if !fields.flag("stream", false)? {
        return match options {
            None => Ok(None),
            Some(_) => Err(ApiError::field("stream_options", "stream_options needs stream: true")),
        };
    }
    let Some(options) = options else { return Ok(Some(StreamOptions::default())) };
    Ok(Some(StreamOptions {
        include_usage: options.flag("include_usage", false)?,
        continuous_usage_stats: options.flag("continuous_usage_stats", false)?,
    }))
}

fn max_tokens(
    kind: Kind,
    field: &str,
    prompt: usize,
    fields: &Fields,
    model: &ServedModel,
) -> Result<u32, ApiError> {
    let context = model.context_tokens;
    let rest = u32::try_from(prompt).ok().and_then(|prompt| context.checked_sub(prompt)).unwrap_or(0);
    if rest == 0 {
        let message = format!(
            "{field} has {prompt} tokens and this model's maximum context length is {context} tokens, answer included; \
             shorten it"
        );
        return Err(ApiError::field(field, message));
    }
    let (name, wanted) = match (kind, fields.count("max_completion_tokens")?) {
        (Kind::Chat, Some(wanted)) => ("max_completion_tokens", Some(wanted)),
        _ => ("max_tokens", fields.count("max_tokens")?),
    };
    match (wanted, kind) {
        (Some(wanted), _) if wanted > rest => {
            let message = format!(
                "{name} is {wanted} and {field} has {prompt} tokens, but this model's maximum context length is \
                 {context} tokens; ask for at most {rest}"
            );
            Err(ApiError::field(name, message))
        }
        (Some(wanted), _) => Ok(wanted),
        (None, Kind::Completion) => Ok(COMPLETION_TOKENS.min(rest)),
        (None, Kind::Chat) => Ok(rest),
    }
}

fn completion_prompt(fields: &Fields, model: &ServedModel) -> Result<Vec<u32>, ApiError> {
    const FORMS: &str = "a string or a list of token ids";
    let prompt = fields.get("prompt").ok_or_else(|| ApiError::field("prompt", "prompt is missing"))?;
    let prompt = match prompt {
        // A batch: lists of prompts, of which one may be empty text but none may be missing.
        Value::Array(entries) if entries.iter().any(|entry| entry.is_string() || entry.is_array()) => {
            match &entries[..] {
                [one] => one,
                many => {
                    let message = format!(
                        "prompt has {} prompts, and one is supported; send {} requests",
                        many.len(),
                        many.len()
                    );
                    return Err(ApiError::field("prompt", message));
                }
            }
        }
        other => other,
    };
    match prompt {
        Value::String(text) => encode("prompt", text, fields.flag("add_special_tokens", true)?, model),
        Value::Array(ids) => {
            let vocabulary = model.tokenizer.vocabulary();
            let id = |(n, value): (usize, &Value)| {
                let id = value.as_u64().ok_or_else(|| wrong("prompt", FORMS, prompt))?;
                let known = u32::try_from(id).ok().filter(|id| *id < vocabulary);
                known.ok_or_else(|| {
                    let message =
                        format!("prompt[{n}] is token {id}, and the vocabulary has {vocabulary} tokens");
                    ApiError::field("prompt", message)
                })
            };
            ids.iter().enumerate().map(id).collect()
        }
        other => Err(wrong("prompt", FORMS, other)),
    }
}

fn chat_prompt(fields: &Fields, model: &ServedModel) -> Result<Vec<u32>, ApiError> {
    let template = model.template.as_ref().ok_or_else(|| {
        ApiError::new(StatusCode::BAD_REQUEST, "this model has no chat template; use /v1/completions")
    })?;
    let messages = match fields.get("messages") {
        None => return Err(ApiError::field("messages", "messages is missing")),
        Some(Value::Array(messages)) if !messages.is_empty() => messages,
        Some(other) => return Err(wrong("messages", "a list of at least one message", other)),
    };
    let messages: Result<Vec<Message>, ApiError> = messages.iter().enumerate().map(message).collect();
    let reply = fields.flag("add_generation_prompt", true)?;
    let text = template.render(&messages?, reply).map_err(|reason| {
        ApiError::field("messages", format!("the model's chat template refused messages: {reason}"))
    })?;
    encode("messages", &text, fields.flag("add_special_tokens", false)?, model)
}

fn encode(field: &str, text: &str, add_bos: bool, model: &ServedModel) -> Result<Vec<u32>, ApiError> {
    // No tokenisation of it could fit, so it is not even tried.
    let bytes_max = model.context_tokens as usize * model.tokenizer.token_bytes_max();
    if text.len() > bytes_max {
        let context = model.context_tokens;
        let reason =
            format!("{field} has {} bytes, more than the model's {context} tokens can stand for", text.len());
        return Err(ApiError::field(field, reason));
    }
    let failed = |reason| ApiError::field(field, format!("{field} cannot be tokenized: {reason}"));
    model.tokenizer.encode(text, add_bos).map_err(failed)
}

fn message((n, message): (usize, &Value)) -> Result<Message, ApiError> {
    let field = |name: &str| format!("messages[{n}].{name}");
    let role = message.get("role").unwrap_or(&Value::Null);
    let role = role
        .as_str()
        .filter(|role| !role.is_empty())
        .ok_or_else(|| wrong(&field("role"), "a role such as system, user or assistant", role))?;
    let content = message.get("content").unwrap_or(&Value::Null);
    let refused = || wrong(&field("content"), "a string or a list of text parts", content);
    let text = match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let part = |part: &Value| match part.get("type").and_then(Value::as_str) {
                Some("text") | None => part.get("text").and_then(Value::as_str).map(str::to_owned),
                Some(_) => None,
            };
            let parts: Option<Vec<String>> = parts.iter().map(part).collect();
            // As vLLM does for templates that expect a string.
            parts.ok_or_else(refused)?.join("\n")
        }
        _ => return Err(refused()),
    };
    Ok(Message { role: role.to_owned(), content: text })
}
