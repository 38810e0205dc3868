//! OpenAI's responses and chunks, with the fields, the order and the nulls that vLLM sends.

use actors::request::{FinishReason, Timings};
use serde::Serialize;

use super::openai::Kind;
use super::served_model::ServedModel;

/// Tokens counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u32,
    pub(super) total_tokens: u32,
    pub(super) completion_tokens: u32,
}

impl Usage {
    pub(super) fn new(prompt_tokens: u32, completion_tokens: u32) -> Self {
        Self { prompt_tokens, total_tokens: prompt_tokens + completion_tokens, completion_tokens }
    }
}

/// Where a request's time went: ours, on `return_timings: true`.
#[derive(Debug, Serialize)]
pub(super) struct TimingsReport {
    #[serde(flatten)]
    timings: Timings,
    /// GB/s from the first put to the last flush; null if nothing travelled.
    handover_gbps: Option<f64>,
    /// Tokens a second after the first; null if there was one.
    tokens_per_s: Option<f64>,
}

impl From<Timings> for TimingsReport {
    fn from(timings: Timings) -> Self {
        let rate = |amount: f64, ms: f64| (amount > 0.0 && ms > 0.0).then(|| amount / ms);
        let later_tokens = f64::from(timings.completion_tokens.saturating_sub(1));
        Self {
            handover_gbps: rate(timings.bytes as f64 / 1e6, timings.transfer_ms),
            tokens_per_s: rate(later_tokens * 1e3, timings.decode_ms),
            timings,
        }
    }
}

/// What all chunks and the response of one request have in common.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
}

/// A whole answer.
pub(super) struct Answer<'a> {
    pub(super) text: &'a str,
    pub(super) finish: FinishReason,
    pub(super) usage: Usage,
    /// Prompt and answer, if they were asked for.
    pub(super) token_ids: Option<(&'a [u32], &'a [u32])>,
    pub(super) timings: Option<TimingsReport>,
}

/// One token's part of a streamed answer.
#[derive(Default)]
pub(super) struct Delta<'a> {
    pub(super) text: &'a str,
    pub(super) finish: Option<FinishReason>,
    pub(super) token_ids: Option<&'a [u32]>,
    /// On the first chunk, if ids were asked for.
    pub(super) prompt_token_ids: Option<&'a [u32]>,
    pub(super) usage: Option<Usage>,
    pub(super) timings: Option<TimingsReport>,
}

/// A field that is always null: vLLM sends it, and clients may look.
type Null = Option<()>;

#[derive(Serialize)]
struct CompletionChoice<'a> {
    index: u32,
    text: &'a str,
    logprobs: Null,
    finish_reason: Option<FinishReason>,
    stop_reason: Null,
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
struct ChatDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    content: &'a str,
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: u32,
    delta: ChatDelta<'a>,
    logprobs: Null,
    finish_reason: Option<FinishReason>,
    stop_reason: Null,
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
    choices: [CompletionChoice<'a>; 1],
    system_fingerprint: Null,
    usage: Usage,
    kv_transfer_params: Null,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<TimingsReport>,
}

#[derive(Serialize)]
struct ChatMessage<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Null,
    tool_calls: [(); 0],
}

#[derive(Serialize)]
struct ChatResponseChoice<'a> {
    index: u32,
    message: ChatMessage<'a>,
    logprobs: Null,
    finish_reason: FinishReason,
    stop_reason: Null,
    token_ids: Option<&'a [u32]>,
}

#[derive(Serialize)]
struct ChatResponse<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: [ChatResponseChoice<'a>; 1],
    system_fingerprint: Null,
    usage: Usage,
    prompt_token_ids: Option<&'a [u32]>,
    kv_transfer_params: Null,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<TimingsReport>,
}

#[derive(Serialize)]
struct ModelList<'a> {
    object: &'static str,
    data: [ModelCard<'a>; 1],
}

#[derive(Serialize)]
struct ModelCard<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: &'a str,
    parent: Null,
    max_model_len: u32,
    permission: [(); 0],
}

/// The list of models.
pub(super) fn models(model: &ServedModel) -> String {
    let card = ModelCard {
        id: &model.name,
        object: "model",
        created: model.created,
        owned_by: "baton",
        root: &model.root,
        parent: None,
        max_model_len: model.context_tokens,
        permission: [],
    };
    json(&ModelList { object: "list", data: [card] })
}

/// None of the types here can fail to serialise: no maps with odd keys, no writer that fails.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

impl Head {
    /// The first chunk of a chat, before any token: who speaks.
    pub(super) fn role_chunk(&self, prompt_token_ids: Option<&[u32]>) -> String {
        json(&self.chat_chunk(Some("assistant"), Delta { prompt_token_ids, ..Delta::default() }))
    }

    /// One token's chunk.
    pub(super) fn chunk(&self, delta: Delta<'_>) -> String {
        match self.kind {
            Kind::Completion => json(&CompletionChunk {
                id: &self.id,
                object: "text_completion",
                created: self.created,
                model: &self.model,
                choices: [CompletionChoice {
                    index: 0,
                    text: delta.text,
                    logprobs: None,
                    finish_reason: delta.finish,
                    stop_reason: None,
                    prompt_token_ids: delta.prompt_token_ids,
                    token_ids: delta.token_ids,
                    weight_versions: None,
                }],
                usage: delta.usage,
                kv_transfer_params: None,
                timings: delta.timings,
            }),
            Kind::Chat => json(&self.chat_chunk(None, delta)),
        }
    }

    fn chat_chunk<'a>(&'a self, role: Option<&'static str>, delta: Delta<'a>) -> ChatChunk<'a> {
        ChatChunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            choices: [ChatChoice {
                index: 0,
                delta: ChatDelta { role, content: delta.text },
                logprobs: None,
                finish_reason: delta.finish,
                stop_reason: None,
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
            Kind::Completion => "text_completion",
            Kind::Chat => "chat.completion.chunk",
        };
        let (id, created, model) = (&*self.id, self.created, &*self.model);
        json(&UsageChunk { id, object, created, model, choices: [], usage, timings })
    }

    /// The whole answer.
    pub(super) fn response(&self, answer: Answer<'_>) -> String {
        let (id, created, model) = (&*self.id, self.created, &*self.model);
        let (prompt_token_ids, token_ids) = answer.token_ids.unzip();
        match self.kind {
            Kind::Completion => json(&CompletionResponse {
                id,
                object: "text_completion",
                created,
                model,
                choices: [CompletionChoice {
                    index: 0,
                    text: answer.text,
                    logprobs: None,
                    finish_reason: Some(answer.finish),
                    stop_reason: None,
                    prompt_token_ids,
                    token_ids,
                    weight_versions: None,
                }],
                system_fingerprint: None,
                usage: answer.usage,
                kv_transfer_params: None,
                timings: answer.timings,
            }),
            Kind::Chat => json(&ChatResponse {
                id,
                object: "chat.completion",
                created,
                model,
                choices: [ChatResponseChoice {
                    index: 0,
                    message: ChatMessage {
                        role: "assistant",
                        content: answer.text,
                        refusal: None,
                        tool_calls: [],
                    },
                    logprobs: None,
                    finish_reason: answer.finish,
                    stop_reason: None,
                    token_ids,
                }],
                system_fingerprint: None,
                usage: answer.usage,
                prompt_token_ids,
                kv_transfer_params: None,
                timings: answer.timings,
            }),
        }
    }
}
