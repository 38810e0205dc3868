//! Responses and chunks of the OpenAI API. The fields, their order and the nulls are those of vLLM.

mod chat;

use std::time::Duration;

use actors::request::{FinishReason, Timings};
use serde::Serialize;

use super::logprobs::LogprobsReport;
use super::openai::ApiKind;
use super::prompt_logprobs::ScoredPrompt;
use super::served_model::ServedModel;
use super::stop::StopReason;
use chat::ChatDelta;

pub(super) use chat::{Addition, DividedAnswer, Said};

/// Numbers of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u32,
    pub(super) total_tokens: u32,
    pub(super) completion_tokens: u32,
    /// vLLM omits it before the end of an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_tokens_details: Option<PromptTokensDetails>,
}

/// Details of the tokens of a request's prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct PromptTokensDetails {
    /// Tokens that were not computed, because their KV was in a prefix cache.
    pub(super) cached_tokens: u32,
}

impl Usage {
    pub(super) fn new(prompt_tokens: u32, completion_tokens: u32) -> Self {
        let total_tokens = prompt_tokens + completion_tokens;
        Self { prompt_tokens, total_tokens, completion_tokens, prompt_tokens_details: None }
    }

    /// The usage of answers that have ended. Each prompt counts once, also if it has several answers: `cached_of` has the cached tokens
    /// of each choice, and the first of the `n` answers to a prompt counts, because the others may find its pages.
    pub(super) fn with_cached(self, cached_of: impl Iterator<Item = u32>, n: u32) -> Self {
        let cached_tokens = cached_of.step_by(n as usize).sum();
        Self { prompt_tokens_details: Some(PromptTokensDetails { cached_tokens }), ..self }
    }
}

/// Timings of a request, sent if it sets `return_timings`. OpenAI has no such field.
#[derive(Debug, Serialize)]
pub(super) struct TimingsReport {
    /// Time from the arrival of the request until its answer began.
    queue_ms: f64,
    #[serde(flatten)]
    timings: Timings,
    /// GB/s from the first put to the last flush; null if no page was handed over.
    handover_gigabytes_per_second: Option<f64>,
    /// Tokens per second after the first token; null if there was only one token.
    tokens_per_s: Option<f64>,
}

impl TimingsReport {
    /// The report on an answer whose request waited this long before it began.
    pub(super) fn new(timings: Timings, waited: Duration) -> Self {
        let rate = |amount: f64, ms: f64| (amount > 0.0 && ms > 0.0).then(|| amount / ms);
        let later_tokens = f64::from(timings.completion_tokens.saturating_sub(1));
        Self {
            queue_ms: waited.as_secs_f64() * 1e3,
            handover_gigabytes_per_second: rate(timings.bytes as f64 / 1e6, timings.transfer_ms),
            tokens_per_s: rate(later_tokens * 1e3, timings.decode_ms),
            timings,
        }
    }
}

/// The fields that all chunks and the response of a request share.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) kind: ApiKind,
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
}

/// A whole response, with the choices in order.
pub(super) struct WholeAnswer<'a> {
    pub(super) choices: Vec<Choice<'a>>,
    pub(super) usage: Usage,
    pub(super) timings: Option<TimingsReport>,
}

/// One choice of a whole response.
pub(super) struct Choice<'a> {
    pub(super) said: Said<'a>,
    pub(super) finish: &'static str,
    pub(super) stop: Option<&'a StopReason>,
    pub(super) logprobs: Option<LogprobsReport>,
    /// Log probabilities of the prompt, if the request asked for `prompt_logprobs`.
    pub(super) prompt_logprobs: Option<ScoredPrompt<'a>>,
    /// Token ids of the prompt and of the answer, if the request asked for them.
    pub(super) token_ids: Option<(&'a [u32], &'a [u32])>,
}

/// One chunk of a streamed answer.
#[derive(Default)]
pub(super) struct Delta<'a> {
    /// Index of the choice.
    pub(super) index: usize,
    pub(super) adds: Addition<'a>,
    pub(super) finish: Option<&'static str>,
    pub(super) stop: Option<&'a StopReason>,
    pub(super) logprobs: Option<LogprobsReport>,
    pub(super) token_ids: Option<&'a [u32]>,
    /// In the first chunk, if the request asked for token ids.
    pub(super) prompt_token_ids: Option<&'a [u32]>,
    pub(super) usage: Option<Usage>,
    pub(super) timings: Option<TimingsReport>,
}

/// The finish reason of a choice. `calls` tells that the answer has tool calls that the client is to run.
pub(super) fn finish_word(reason: FinishReason, calls: bool) -> &'static str {
    match (reason, calls) {
        (FinishReason::Stop, true) => "tool_calls",
        (FinishReason::Stop, false) => "stop",
        (FinishReason::Length, _) => "length",
    }
}

impl Delta<'_> {
    /// True if a chunk without an addition is worth sending.
    pub(super) fn is_needed(&self) -> bool {
        self.adds != Addition::Nothing
            || self.finish.is_some()
            || self.logprobs.is_some()
            || self.token_ids.is_some()
            || self.usage.is_some()
    }
}

/// A field that is always null. vLLM sends it, and clients may read it.
type Null = Option<()>;

#[derive(Serialize)]
struct CompletionChoice<'a> {
    index: usize,
    text: &'a str,
    logprobs: Option<LogprobsReport>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<&'a StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<ScoredPrompt<'a>>,
    prompt_token_ids: Option<&'a [u32]>,
    token_ids: Option<&'a [u32]>,
    weight_versions: Null,
}

#[derive(Serialize)]
struct CompletionChunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: [CompletionChoice<'a>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    kv_transfer_params: Null,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<TimingsReport>,
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: usize,
    delta: ChatDelta<'a>,
    logprobs: Option<LogprobsReport>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<&'a StopReason>,
    token_ids: Option<&'a [u32]>,
}

#[derive(Serialize)]
struct ChatChunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: [ChatChoice<'a>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<TimingsReport>,
}

#[derive(Serialize)]
struct UsageChunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: [(); 0],
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<TimingsReport>,
}

#[derive(Serialize)]
struct CompletionResponse<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<CompletionChoice<'a>>,
    system_fingerprint: Null,
    usage: Usage,
    kv_transfer_params: Null,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<TimingsReport>,
}

#[derive(Serialize)]
struct ChatMessage<'a> {
    role: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    content: Option<&'a str>,
    refusal: Null,
    tool_calls: &'a [chat::ToolCall],
}

#[derive(Serialize)]
struct ChatResponseChoice<'a> {
    index: usize,
    message: ChatMessage<'a>,
    logprobs: Option<LogprobsReport>,
    finish_reason: &'static str,
    stop_reason: Option<&'a StopReason>,
    token_ids: Option<&'a [u32]>,
}

#[derive(Serialize)]
struct ChatResponse<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<ChatResponseChoice<'a>>,
    system_fingerprint: Null,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<ScoredPrompt<'a>>,
    /// Token ids of the prompt of the chat.
    prompt_token_ids: Option<&'a [u32]>,
    kv_transfer_params: Null,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<TimingsReport>,
}

#[derive(Serialize)]
struct ModelList<'a> {
    object: &'static str,
    data: Vec<ModelCard<'a>>,
}

#[derive(Serialize)]
pub(super) struct ModelCard<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: &'a str,
    parent: Null,
    max_model_len: u32,
    permission: [(); 0],
}

/// The body of the list of models.
pub(super) fn models(data: Vec<ModelCard<'_>>) -> String {
    json(&ModelList { object: "list", data })
}

impl<'a> ModelCard<'a> {
    /// The card of the model that this process serves.
    pub(super) fn of(model: &'a ServedModel) -> Self {
        Self::named(&model.name, &model.root, model.created, model.context_tokens)
    }

    /// The name of the model.
    pub(super) fn id(&self) -> &'a str {
        self.id
    }

    /// The card of a model with this name. `root` is the path of its file or folder, or empty.
    pub(super) fn named(id: &'a str, root: &'a str, created: u64, max_model_len: u32) -> Self {
        Self {
            id,
            object: "model",
            created,
            owned_by: "baton",
            root,
            parent: None,
            max_model_len,
            permission: [],
        }
    }
}

/// Initial capacity: enough for a chunk or a short answer.
const JSON_BYTES: usize = 512;

/// Serializes a value. It cannot fail, because the types here have no maps with other keys than strings, and the writer does not fail.
pub(super) fn json(value: &impl Serialize) -> String {
    let mut bytes = Vec::with_capacity(JSON_BYTES);
    let _ = serde_json::to_writer(&mut bytes, value);
    String::from_utf8(bytes).unwrap_or_default()
}

impl Head {
    /// The first chunk of a choice of a chat. It has the role and no token. Without content, the content is null: the answer may have only
    /// reasoning or calls.
    pub(super) fn role_chunk(
        &self,
        index: usize,
        content: Option<&str>,
        prompt_token_ids: Option<&[u32]>,
    ) -> String {
        let delta = ChatDelta::start(content);
        json(&self.chat_chunk(delta, Delta { index, prompt_token_ids, ..Delta::default() }))
    }

    /// The chunk of one token.
    pub(super) fn chunk(&self, delta: Delta<'_>) -> String {
        match self.kind {
            ApiKind::Completion => json(&CompletionChunk {
                id: &self.id,
                object: "text_completion",
                created: self.created,
                model: &self.model,
                choices: [CompletionChoice {
                    index: delta.index,
                    text: if let Addition::Text(text) = delta.adds { text } else { "" },
                    logprobs: delta.logprobs,
                    finish_reason: delta.finish,
                    stop_reason: delta.stop,
                    prompt_logprobs: None,
                    prompt_token_ids: delta.prompt_token_ids,
                    token_ids: delta.token_ids,
                    weight_versions: None,
                }],
                usage: delta.usage,
                kv_transfer_params: None,
                timings: delta.timings,
            }),
            ApiKind::Chat | ApiKind::Response => json(&self.chat_chunk(ChatDelta::new(delta.adds), delta)),
        }
    }

    fn chat_chunk<'a>(&'a self, adds: ChatDelta<'a>, delta: Delta<'a>) -> ChatChunk<'a> {
        ChatChunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            choices: [ChatChoice {
                index: delta.index,
                delta: adds,
                logprobs: delta.logprobs,
                finish_reason: delta.finish,
                stop_reason: delta.stop,
                token_ids: delta.token_ids,
            }],
            usage: delta.usage,
            prompt_token_ids: delta.prompt_token_ids,
            timings: delta.timings,
        }
    }

    /// The chunk after the last token, without choices.
    pub(super) fn usage_chunk(&self, usage: Usage, timings: Option<TimingsReport>) -> String {
        let object = match self.kind {
            ApiKind::Completion => "text_completion",
            ApiKind::Chat | ApiKind::Response => "chat.completion.chunk",
        };
        let (id, created, model) = (&*self.id, self.created, &*self.model);
        json(&UsageChunk { id, object, created, model, choices: [], usage, timings })
    }

    /// The whole response.
    pub(super) fn response(&self, answer: WholeAnswer<'_>) -> String {
        let (id, created, model) = (&*self.id, self.created, &*self.model);
        let choices = answer.choices.into_iter().enumerate();
        match self.kind {
            ApiKind::Completion => json(&CompletionResponse {
                id,
                object: "text_completion",
                created,
                model,
                choices: choices.map(|(index, choice)| completion_choice(index, choice)).collect(),
                system_fingerprint: None,
                usage: answer.usage,
                kv_transfer_params: None,
                timings: answer.timings,
            }),
            ApiKind::Chat | ApiKind::Response => {
                let (mut prompt_token_ids, mut prompt_logprobs) = (None, None);
                let choices = choices.map(|(index, mut choice)| {
                    prompt_logprobs = choice.prompt_logprobs.take();
                    prompt_token_ids = choice.token_ids.map(|(prompt, _)| prompt);
                    chat_choice(index, choice)
                });
                let choices = choices.collect();
                json(&ChatResponse {
                    id,
                    object: "chat.completion",
                    created,
                    model,
                    choices,
                    system_fingerprint: None,
                    usage: answer.usage,
                    prompt_logprobs,
                    prompt_token_ids,
                    kv_transfer_params: None,
                    timings: answer.timings,
                })
            }
        }
    }
}

fn completion_choice(index: usize, choice: Choice<'_>) -> CompletionChoice<'_> {
    let (prompt_token_ids, token_ids) = choice.token_ids.unzip();
    CompletionChoice {
        index,
        text: choice.said.text.unwrap_or_default(),
        logprobs: choice.logprobs,
        finish_reason: Some(choice.finish),
        stop_reason: choice.stop,
        prompt_logprobs: choice.prompt_logprobs,
        prompt_token_ids,
        token_ids,
        weight_versions: None,
    }
}

fn chat_choice(index: usize, choice: Choice<'_>) -> ChatResponseChoice<'_> {
    let Said { reasoning, text, calls } = choice.said;
    ChatResponseChoice {
        index,
        message: ChatMessage {
            role: "assistant",
            reasoning_content: reasoning,
            content: text,
            refusal: None,
            tool_calls: calls,
        },
        logprobs: choice.logprobs,
        finish_reason: choice.finish,
        stop_reason: choice.stop,
        token_ids: choice.token_ids.map(|(_, answer)| answer),
    }
}
