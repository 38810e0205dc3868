//! Reads requests of the OpenAI API into token ids and settings, or refuses them.

use std::borrow::Cow;
use std::sync::Arc;

use actix_web::http::StatusCode;
use actors::request::CacheSalt;
use engine::{Logprobs, Sampling, Token};

use super::answer_parser::AnswerFormat;
use super::api_error::ApiError;
use super::field_table::{self, Endpoints};
use super::fields::Fields;
use super::lark;
use super::memory::HeldBytes;
use super::prompt_logprobs::PromptScores;
use super::prompts::{self, ChatForm, Reader, Tokens, too_long};
use super::responses_api::RepeatedFields;
use super::sampling::sampling;
use super::served_model::ServedModel;
use super::stop::StopRule;
use super::structured::{self, AskedGrammar};
use super::tokenizer::{Detokenizer, SpecialTokens, Tokenizer};
use super::tools::{ToolAsk, ToolShape};

/// Default of `max_tokens` for a completion, as in OpenAI and vLLM.
const COMPLETION_TOKENS: u32 = 16;

/// Memory of a waiting request besides its prompt and settings: its future and its connection.
const REQUEST_BYTES: usize = 4 << 10;

/// The kinds of endpoints that generate answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ApiKind {
    /// `/v1/completions`.
    Completion,
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/responses`.
    Response,
}

impl ApiKind {
    /// The start of a request's id.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Completion => "cmpl-",
            Self::Chat => "chatcmpl-",
            Self::Response => "resp_",
        }
    }

    /// Its path.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Completion => "/v1/completions",
            Self::Chat => "/v1/chat/completions",
            Self::Response => "/v1/responses",
        }
    }

    /// Its rows of the table of fields.
    pub(super) fn endpoint(self) -> Endpoints {
        match self {
            Self::Completion => Endpoints::COMPLETIONS,
            Self::Chat => Endpoints::CHAT,
            Self::Response => Endpoints::RESPONSES,
        }
    }
}

/// A request for `n` answers to each of its prompts.
#[derive(Debug)]
pub(super) struct Ask {
    /// At least one.
    pub(super) prompts: Vec<PromptAsk>,
    /// At least one.
    pub(super) n: u32,
    pub(super) sampling: Sampling,
    /// The log probabilities of the prompts, for each answer.
    pub(super) scores: PromptScores,
    pub(super) stop: StopRule,
    /// The grammar that all answers follow.
    pub(super) grammar: Option<AskedGrammar>,
    pub(super) ignore_eos: bool,
    /// Answers share cached pages only with requests of the same salt.
    pub(super) salt: Option<CacheSalt>,
    pub(super) special_tokens: SpecialTokens,
    pub(super) return_token_ids: bool,
    pub(super) return_timings: bool,
    /// `None` for a whole answer.
    pub(super) stream: Option<StreamOptions>,
    /// The client's id of the request.
    pub(super) request_id: Option<String>,
    /// How the text of the answers is divided into reasoning, content and tool calls.
    pub(super) format: AnswerFormat,
    /// Special tokens that mark those parts. They are part of the text.
    pub(super) marks: Arc<[u32]>,
    /// The fields that a response repeats. Empty for completions and chats.
    pub(super) repeated: RepeatedFields,
    /// Its share of the memory budget.
    held: Option<HeldBytes>,
}

/// One prompt of a request.
#[derive(Debug)]
pub(super) struct PromptAsk {
    /// At least one token id.
    pub(super) tokens: Arc<[u32]>,
    /// May be 0 if the request sets `echo`. The prompt and this many tokens, at least one, fit the context.
    pub(super) max_tokens: u32,
    /// The start of its answers: the text of the prompt if the request sets `echo`, else empty.
    pub(super) echo: String,
}

impl PromptAsk {
    /// The tokens of the prompt with the log probabilities of all but the first one.
    pub(super) fn scored(&self, logprobs: Vec<Logprobs>) -> Vec<Token> {
        let logprobs =
            std::iter::once(None).chain(logprobs.into_iter().map(|logprobs| Some(Box::new(logprobs))));
        self.tokens.iter().zip(logprobs).map(|(id, logprobs)| Token { id: *id, logprobs }).collect()
    }
}

/// How an answer is streamed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StreamOptions {
    /// The last chunk has the usage and no choices.
    pub(super) include_usage: bool,
    /// Every chunk has the usage so far.
    pub(super) continuous_usage_stats: bool,
}

impl Ask {
    /// Reads a request. It may ask for at most `most` answers.
    ///
    /// # Errors
    /// 404 for another model, 503 if the memory budget is used up, else 400 with a sentence that names the field.
    pub(super) fn read(
        kind: ApiKind,
        fields: &Fields<'_>,
        reader: Reader<'_>,
        most: usize,
    ) -> Result<Self, ApiError> {
        let model = reader.model;
        check_model(fields, model)?;
        field_table::check(kind.endpoint(), fields)?;
        let vocabulary = model.tokenizer.vocabulary();
        let sampling = sampling(kind, fields, vocabulary)?;
        let (n, answer_format) = match kind {
            ApiKind::Response => (1, structured::text_format(fields)?),
            _ => (fields.count("n")?.unwrap_or(1), structured::response_format(fields)?),
        };
        let mut grammar = structured::read(fields, answer_format)?;
        let mut format = AnswerFormat::default();
        let prompts = match kind {
            ApiKind::Completion => prompts::completion(fields, n, most, reader)?,
            ApiKind::Chat | ApiKind::Response => {
                prompts::check_answers(1, n, most)?;
                let chat = Chat::read(kind, fields, grammar.is_some(), reader)?;
                grammar = chat.grammar(grammar, &model.tokenizer)?;
                format = chat.format;
                vec![chat.prompt]
            }
        };
        let special = |text| model.tokenizer.special_token(text);
        let marks = format.markers().filter_map(special).collect();
        let echo = kind == ApiKind::Completion && fields.flag("echo", false)?;
        let stream = stream_options(kind, fields)?;
        let scores = match kind {
            ApiKind::Response => PromptScores::default(),
            ApiKind::Completion | ApiKind::Chat => {
                PromptScores::read(fields, sampling.logprobs.filter(|_| echo), stream.is_some())?
            }
        };
        let text = |ids: &[u32]| Detokenizer::text(&model.tokenizer, ids, SpecialTokens::Skip);
        let prompt = |Tokens { field, ids }: Tokens| {
            if ids.is_empty() {
                return Err(ApiError::field(&field, format!("{field} must have at least one token")));
            }
            Ok(PromptAsk {
                max_tokens: max_tokens(kind, &field, ids.len(), echo, fields, reader.context_tokens)?,
                echo: if echo { text(&ids) } else { String::new() },
                tokens: ids.into(),
            })
        };
        let prompts: Vec<PromptAsk> = prompts.into_iter().map(prompt).collect::<Result<_, _>>()?;
        let answers = prompts.len().saturating_mul(n as usize);
        let mut ask = Self {
            prompts,
            n,
            sampling,
            scores,
            stop: StopRule::read(fields, vocabulary)?,
            ignore_eos: fields.flag("ignore_eos", false)?,
            salt: cache_salt(fields)?,
            special_tokens: special_tokens(fields)?,
            return_token_ids: kind != ApiKind::Response && fields.flag("return_token_ids", false)?,
            return_timings: return_timings(kind, fields, answers)?,
            stream,
            request_id: fields.text("request_id")?.map(Cow::into_owned),
            format,
            marks,
            repeated: match kind {
                ApiKind::Response => RepeatedFields::read(fields)?,
                _ => RepeatedFields::default(),
            },
            grammar,
            held: None,
        };
        scores.check(ask.scored_tokens())?;
        ask.held = Some(reader.memory.hold(ask.bytes())?);
        Ok(ask)
    }

    /// The number of answers.
    pub(super) fn choices(&self) -> usize {
        self.prompts.len().saturating_mul(self.n as usize)
    }

    /// The prompt that a choice answers.
    pub(super) fn prompt_of(&self, choice: usize) -> &PromptAsk {
        &self.prompts[choice / self.n as usize]
    }

    /// The sampling settings of a choice. Each answer to a prompt has another seed.
    pub(super) fn sampling_of(&self, choice: usize) -> Sampling {
        let seed = self.sampling.seed.wrapping_add((choice % self.n as usize) as u64);
        Sampling { seed, ..self.sampling.clone() }
    }

    /// Number of tokens in the prompts of all answers.
    fn scored_tokens(&self) -> usize {
        (self.prompt_tokens() as usize).saturating_mul(self.n as usize)
    }

    /// Approximate memory of the request while it waits, and of the log probabilities of its prompts.
    pub(super) fn bytes(&self) -> usize {
        let prompt =
            |prompt: &PromptAsk| size_of::<PromptAsk>() + 4 * prompt.tokens.len() + prompt.echo.len();
        let settings = size_of_val(&*self.sampling.logit_bias) + self.stop.bytes() + self.format.bytes();
        let grammar = self.grammar.as_ref().map_or(0, AskedGrammar::bytes).saturating_mul(self.choices());
        let scores = self.scores.bytes(self.scored_tokens());
        let settings = settings + self.repeated.bytes();
        REQUEST_BYTES + settings + grammar + scores + self.prompts.iter().map(prompt).sum::<usize>()
    }

    /// Number of tokens in all prompts.
    pub(super) fn prompt_tokens(&self) -> u32 {
        self.prompts.iter().map(|prompt| prompt.tokens.len() as u32).sum()
    }
}

/// Checks that a request names this model or none.
///
/// # Errors
/// 404 if it names another one.
pub(super) fn check_model(fields: &Fields<'_>, model: &ServedModel) -> Result<(), ApiError> {
    fields.text("model")?.map_or(Ok(()), |name| check_name(&name, model))
}

/// Checks that `name` is the name of this model.
///
/// # Errors
/// 404 if it is not.
pub(super) fn check_name(name: &str, model: &ServedModel) -> Result<(), ApiError> {
    if name == model.name {
        return Ok(());
    }
    let message = format!("model {name:?} does not exist; this server serves {:?}", model.name);
    let error = ApiError::new(StatusCode::NOT_FOUND, message);
    Err(ApiError { param: Some("model".to_owned()), ..error })
}

/// The tokens of a request with one prompt. The prompt may be empty.
///
/// # Errors
/// 400 with a sentence that names the field.
pub(super) fn prompt(kind: ApiKind, fields: &Fields<'_>, reader: Reader<'_>) -> Result<Vec<u32>, ApiError> {
    let prompt = match kind {
        ApiKind::Chat | ApiKind::Response => Chat::read(kind, fields, false, reader)?.prompt,
        ApiKind::Completion => prompts::single(fields, reader)?,
    };
    Ok(prompt.ids)
}

/// The parts of a request that decide which node of a fleet gets it.
pub(super) struct RoutedPrompt {
    /// The model that the client names.
    pub(super) model: Option<String>,
    /// The tokens of the first prompt; empty if the client names another model than this one.
    pub(super) prompt: Vec<u32>,
    pub(super) salt: Option<CacheSalt>,
    /// Maximum number of tokens in the answer, if the client or the endpoint limits it.
    pub(super) max_tokens: Option<u32>,
    /// The client's id of the request in the body.
    pub(super) request_id: Option<String>,
}

/// Reads what decides where a request goes. The node that gets the request checks the rest.
///
/// # Errors
/// 400 with a sentence that names the field, also if the context has no room for the prompt and one token.
pub(super) fn routed_prompt(
    kind: ApiKind,
    body: &[u8],
    reader: Reader<'_>,
) -> Result<RoutedPrompt, ApiError> {
    let fields = &Fields::parse(body)?;
    let model = fields.text("model")?.map(|name| name.into_owned());
    let is_known = model.as_ref().is_none_or(|name| *name == reader.model.name);
    let prompt = match kind {
        _ if !is_known => None,
        ApiKind::Chat | ApiKind::Response => Some(Chat::read(kind, fields, false, reader)?.prompt),
        ApiKind::Completion => Some(prompts::first(fields, reader)?),
    };
    let room = prompt.as_ref().map(|prompt| room(&prompt.field, prompt.ids.len(), reader.context_tokens));
    let rest = room.transpose()?.unwrap_or(u32::MAX);
    let asked = limits_of(kind).iter().find_map(|name| fields.count(name).ok().flatten());
    let default = (kind == ApiKind::Completion).then(|| COMPLETION_TOKENS.min(rest));
    Ok(RoutedPrompt {
        model,
        prompt: prompt.map(|prompt| prompt.ids).unwrap_or_default(),
        salt: cache_salt(fields)?,
        max_tokens: asked.or(default),
        request_id: fields.text("request_id").ok().flatten().map(Cow::into_owned),
    })
}

/// What a chat has besides the settings that completions have too.
struct Chat {
    prompt: Tokens,
    format: AnswerFormat,
    tools: Option<ToolAsk>,
}

impl Chat {
    /// Reads the fields. `is_constrained` tells that they ask for a grammar.
    fn read(
        kind: ApiKind,
        fields: &Fields<'_>,
        is_constrained: bool,
        reader: Reader<'_>,
    ) -> Result<Self, ApiError> {
        let model = reader.model;
        let (form, shape) = match kind {
            ApiKind::Response => (ChatForm::Input, ToolShape::Flat),
            _ => (ChatForm::Messages, ToolShape::Nested),
        };
        let tools = ToolAsk::read(fields, shape)?;
        let shown = tools.as_ref().map(|tools| &*tools.shown);
        let (prompt, end) = prompts::chat(form, fields, shown, reader)?;
        let reasoning = model.reasoning_format.map(|format| format.start(&end));
        let rule = tools.as_ref().and_then(|tools| tools.rule(model.tool_format, is_constrained));
        Ok(Self { prompt, format: AnswerFormat { reasoning, tools: rule }, tools })
    }

    /// The grammar of the answers. `asked` is the one that the request asks for. It applies to the text after the reasoning, and to answers
    /// without tool calls. A forced call overrides it, as in vLLM.
    fn grammar(
        &self,
        asked: Option<AskedGrammar>,
        tokenizer: &Tokenizer,
    ) -> Result<Option<AskedGrammar>, ApiError> {
        let reasoning = self.format.reasoning;
        let calls = self.tools.as_ref().zip(self.format.tools.as_ref());
        let calls = calls.and_then(|(tools, rule)| tools.grammar(rule, asked.is_some()));
        let answer = asked.as_ref().map(|asked| &asked.source);
        if let Some(calls) = calls
            && let Some(source) = calls.source(reasoning, answer, tokenizer)?
        {
            let field = asked.map_or_else(|| "tools".to_owned(), |asked| asked.field);
            return Ok(Some(AskedGrammar { field, source }));
        }
        Ok(asked.map(|AskedGrammar { field, source }| AskedGrammar {
            source: lark::after_reasoning(&source, reasoning, tokenizer).unwrap_or(source),
            field,
        }))
    }
}

/// Reads `return_timings` of a request for this many answers.
fn return_timings(kind: ApiKind, fields: &Fields<'_>, answers: usize) -> Result<bool, ApiError> {
    const FIELD: &str = "return_timings";
    let wanted = kind != ApiKind::Response && fields.flag(FIELD, false)?;
    if wanted && answers > 1 {
        let message =
            format!("{FIELD} needs a request for one answer, and this one asks for {answers}; leave it out");
        return Err(ApiError::field(FIELD, message));
    }
    Ok(wanted)
}

/// Reads `cache_salt`, a text of at least one character.
fn cache_salt(fields: &Fields<'_>) -> Result<Option<CacheSalt>, ApiError> {
    match fields.text("cache_salt")? {
        Some(salt) if salt.is_empty() => {
            Err(ApiError::field("cache_salt", "cache_salt must not be empty; leave it out or set a text"))
        }
        salt => Ok(salt.map(|salt| CacheSalt::of(&salt))),
    }
}

fn special_tokens(fields: &Fields<'_>) -> Result<SpecialTokens, ApiError> {
    let skip = fields.flag("skip_special_tokens", true)?;
    Ok(if skip { SpecialTokens::Skip } else { SpecialTokens::Show })
}

fn stream_options(kind: ApiKind, fields: &Fields<'_>) -> Result<Option<StreamOptions>, ApiError> {
    if kind == ApiKind::Response {
        return Ok(fields.flag("stream", false)?.then(StreamOptions::default));
    }
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

/// The fields that limit the length of an answer. The first one that a request sets counts.
fn limits_of(kind: ApiKind) -> &'static [&'static str] {
    match kind {
        ApiKind::Completion => &["max_tokens"],
        ApiKind::Chat => &["max_completion_tokens", "max_tokens"],
        ApiKind::Response => &["max_output_tokens"],
    }
}

/// Maximum number of tokens in the answer to a prompt of this many tokens.
///
/// # Errors
/// 400 if the context has no room for one.
fn room(field: &str, prompt: usize, context: u32) -> Result<u32, ApiError> {
    let rest = u32::try_from(prompt).ok().and_then(|prompt| context.checked_sub(prompt)).unwrap_or(0);
    if rest == 0 {
        return Err(too_long(field, &format!("{prompt} tokens"), context));
    }
    Ok(rest)
}

fn max_tokens(
    kind: ApiKind,
    field: &str,
    prompt: usize,
    echo: bool,
    fields: &Fields<'_>,
    context: u32,
) -> Result<u32, ApiError> {
    let rest = room(field, prompt, context)?;
    if echo && fields.get("max_tokens").is_some_and(|value| value.get() == "0") {
        return Ok(0);
    }
    let mut limit = None;
    for name in limits_of(kind) {
        let count = fields.count(name)?;
        limit = limit.or(count.map(|count| (*name, count)));
    }
    match (limit, kind) {
        (Some((name, wanted)), _) if wanted > rest => {
            let message = format!(
                "{name} is {wanted} and {field} has {prompt} tokens, but this model's maximum context length is \
                 {context} tokens; ask for at most {rest}"
            );
            Err(ApiError::field(name, message))
        }
        (Some((_, wanted)), _) => Ok(wanted),
        (None, ApiKind::Completion) => Ok(COMPLETION_TOKENS.min(rest)),
        (None, ApiKind::Chat | ApiKind::Response) => Ok(rest),
    }
}
