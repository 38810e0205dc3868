//! Reads the prompts of a request as token ids, from lists of ids, text or chat messages.
//!
//! All memory use here is bounded. Reading of a list of token ids stops at the model's context length. A text that is too long
//! for any tokenisation to fit the context is not tokenised. For a long body, the memory for tokenising is taken from the input
//! budget first.

use std::fmt;

use actix_web::http::StatusCode;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::admission::too_many;
use super::api_error::ApiError;
use super::chat_template::Conversation;
use super::fields::{Counted, Fields, Text, elements, parsed, wrong};
use super::memory::{InputMemory, Taken};
use super::messages::message;
use super::responses_api::{input_messages, reasoning_effort};
use super::served_model::ServedModel;
use super::tokenizer::Bos;

/// The parts that are needed to read prompts.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) model: &'a ServedModel,
    pub(super) memory: &'a InputMemory,
    /// Maximum number of tokens of a prompt and its answer together. A proxy has it from its nodes.
    pub(super) context_tokens: u32,
    /// Whether the body is long. A long body is read on a thread of its own, which may wait for
    /// [`TokenizeAllowance`](super::memory::TokenizeAllowance). A short body takes no allowance.
    pub(super) is_long: bool,
}

/// A prompt's tokens, and its field name for error messages.
pub(super) struct Tokens {
    pub(super) field: String,
    pub(super) ids: Vec<u32>,
}

/// Memory in bytes that rendering the chat template takes for each message beyond the message's text: the template engine's values, and the
/// text that the template adds.
const MESSAGE_BYTES: usize = 1024;

/// Number of copies of the messages' text that exist during the rendering of the chat template.
const RENDER_COPIES: usize = 5;

/// Reads the prompts of a completion that asks for `n` answers per prompt.
///
/// # Errors
/// 400 with a sentence that names the field, also if the request asks for more than `most` answers.
pub(super) fn completion(
    fields: &Fields<'_>,
    n: u32,
    most: usize,
    reader: Reader<'_>,
) -> Result<Vec<Tokens>, ApiError> {
    let prompts = spans(fields, most)?;
    // Checked before the prompts are tokenised.
    check_answers(prompts.count, n, most)?;
    let add_bos = fields.flag("add_special_tokens", true)?;
    prompts.first.into_iter().map(|prompt| reader.tokens(prompt, add_bos)).collect()
}

/// Reads the prompt of a request that must have exactly one. The prompt may be empty.
///
/// # Errors
/// 400 with a sentence that names the field.
pub(super) fn single(fields: &Fields<'_>, reader: Reader<'_>) -> Result<Tokens, ApiError> {
    let mut prompts = spans(fields, 1)?;
    let one = prompts.first.pop().filter(|_| prompts.count == 1);
    let one = one.ok_or_else(|| {
        ApiError::field("prompt", "prompt must be a single prompt; send one request per prompt")
    })?;
    reader.tokens(one, fields.flag("add_special_tokens", true)?)
}

/// Reads the first prompt of a request.
///
/// # Errors
/// 400 with a sentence that names the field.
pub(super) fn first(fields: &Fields<'_>, reader: Reader<'_>) -> Result<Tokens, ApiError> {
    let first = spans(fields, 1)?.first.pop();
    let first = first
        .ok_or_else(|| ApiError::field("prompt", "prompt is an empty list; send at least one prompt"))?;
    reader.tokens(first, fields.flag("add_special_tokens", true)?)
}

/// A prompt's field name for error messages, and its raw JSON.
type Span<'a> = (String, &'a RawValue);

/// The first `most` prompts, and the number of all prompts.
fn spans<'a>(fields: &Fields<'a>, most: usize) -> Result<Counted<Span<'a>>, ApiError> {
    let prompt = fields.get("prompt").ok_or_else(|| ApiError::field("prompt", "prompt is missing"))?;
    // A list whose first element is neither text nor a list is one prompt, given as token ids.
    let list = prompt.get().strip_prefix('[');
    let is_batch = list.is_some_and(|list| list.trim_ascii_start().starts_with(['"', '[']));
    let batch = if is_batch { elements(prompt, most) } else { None };
    Ok(match batch {
        None => Counted { first: vec![("prompt".to_owned(), prompt)], count: 1 },
        Some(batch) => {
            let named = |(n, prompt)| (format!("prompt[{n}]"), prompt);
            Counted { first: batch.first.into_iter().enumerate().map(named).collect(), count: batch.count }
        }
    })
}

/// Checks that all answers of a request may run at once.
///
/// # Errors
/// 400 if they may not.
pub(super) fn check_answers(prompts: usize, n: u32, most: usize) -> Result<(), ApiError> {
    let answers = prompts.saturating_mul(n as usize);
    if answers <= most {
        return Ok(());
    }
    let field = if prompts > most { "prompt" } else { "n" };
    Err(ApiError { param: Some(field.to_owned()), ..too_many(answers, most) })
}

/// Memory in bytes for each byte of JSON that becomes a tree of values: a list of short numbers takes the most.
const TREE_BYTES: usize = 80;

/// Length of the end of a rendered prompt that [`chat`] returns. A mark of reasoning is shorter.
const END_CHARACTERS: usize = 32;

/// The form in which a request has the turns of its chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChatForm {
    /// `messages`, as in chats.
    Messages,
    /// `instructions` and `input`, as in requests for responses.
    Input,
}

impl ChatForm {
    /// The field with the turns, and what it has to be.
    fn field(self) -> (&'static str, &'static str) {
        match self {
            Self::Messages => ("messages", "a list of at least one message"),
            Self::Input => ("input", "a string or a list of at least one item"),
        }
    }

    /// The turns in the field with this value; `None` if it has another type. Each turn takes at least one token, so more than `most`
    /// are not kept.
    fn turns(self, value: &RawValue, most: u32) -> Option<Counted<&RawValue>> {
        if self == Self::Input && value.get().starts_with('"') {
            return Some(Counted { first: vec![value], count: 1 });
        }
        elements(value, most as usize).filter(|turns| turns.count > 0)
    }

    /// The messages for the chat template.
    fn messages(
        self,
        fields: &Fields<'_>,
        turns: &[&RawValue],
        knows_tools: bool,
    ) -> Result<Vec<Value>, ApiError> {
        match self {
            Self::Messages => {
                turns.iter().enumerate().map(|(n, value)| message(n, value, knows_tools)).collect()
            }
            Self::Input => input_messages(fields, turns, knows_tools),
        }
    }

    /// The variables that the request sets for the template.
    fn variables(self, fields: &Fields<'_>) -> Result<Option<Map<String, Value>>, ApiError> {
        let set = template_variables(fields)?;
        let Some(effort) = (if self == Self::Input { reasoning_effort(fields)? } else { None }) else {
            return Ok(set);
        };
        let mut variables = Map::new();
        if effort == "none" {
            variables.insert("enable_thinking".to_owned(), Value::from(false));
        }
        variables.insert("reasoning_effort".to_owned(), Value::from(effort));
        variables.extend(set.unwrap_or_default());
        Ok(Some(variables))
    }
}

/// Reads the prompt of a chat: renders the turns and tools with the model's chat template and tokenises the result. Also returns the
/// end of the rendered text without white space.
///
/// # Errors
/// 400 with a sentence that names the field.
pub(super) fn chat(
    form: ChatForm,
    fields: &Fields<'_>,
    tools: Option<&[Value]>,
    reader: Reader<'_>,
) -> Result<(Tokens, String), ApiError> {
    let (name, expect) = form.field();
    let (field, context) = (name.to_owned(), reader.context_tokens);
    let template = reader.model.template.as_ref().ok_or_else(|| {
        ApiError::new(StatusCode::BAD_REQUEST, "this model has no chat template; use /v1/completions")
    })?;
    let value = fields.get(name).ok_or_else(|| ApiError::field(name, format!("{name} is missing")))?;
    let turns = form.turns(value, context).ok_or_else(|| wrong(name, expect, value))?;
    if turns.has_more() {
        return Err(too_long(&field, &format!("{} messages", turns.count), context));
    }
    let room = reader.take(&field, render_bytes(fields, value, turns.count))?;
    let knows_tools = template.source().contains("tool_calls");
    let messages = form.messages(fields, &turns.first, knows_tools)?;
    let variables = form.variables(fields)?;
    let (reply, continues) = match form {
        ChatForm::Messages => {
            (fields.flag("add_generation_prompt", true)?, fields.flag("continue_final_message", false)?)
        }
        ChatForm::Input => (true, false),
    };
    if reply && continues {
        let reason = "continue_final_message needs add_generation_prompt: false";
        return Err(ApiError::field("continue_final_message", reason));
    }
    let conversation =
        Conversation { messages: &messages, tools, variables: variables.as_ref(), reply, continues };
    let text = template.render(conversation).map_err(|reason| {
        ApiError::field(&field, format!("the model's chat template rejected {field}: {reason}"))
    })?;
    drop(room);
    let add_bos = form == ChatForm::Messages && fields.flag("add_special_tokens", false)?;
    let ids = reader.encode(&field, &text, add_bos)?;
    let end = text.trim_end().chars().rev().take(END_CHARACTERS).collect::<Vec<_>>();
    Ok((Tokens { field, ids }, end.into_iter().rev().collect()))
}

/// Memory that rendering may take.
fn render_bytes(fields: &Fields<'_>, messages: &RawValue, count: usize) -> usize {
    let instructions = fields.get("instructions").map_or(0, |text| text.get().len());
    let mut bytes = RENDER_COPIES * (messages.get().len() + instructions) + MESSAGE_BYTES * count;
    if ["tool_calls", "function_call"].iter().any(|name| messages.get().contains(name)) {
        bytes += TREE_BYTES * messages.get().len();
    }
    let trees = ["tools", "chat_template_kwargs"].into_iter().filter_map(|name| fields.get(name));
    bytes + trees.map(|tree| TREE_BYTES * tree.get().len()).sum::<usize>()
}

/// Reads `chat_template_kwargs`, the variables that a client sets for the template.
fn template_variables(fields: &Fields<'_>) -> Result<Option<Map<String, Value>>, ApiError> {
    const FIELD: &str = "chat_template_kwargs";
    let variables: Option<Map<String, Value>> = fields.typed(FIELD, "an object")?;
    let taken = ["messages", "tools", "documents", "chat_template", "tokenize"];
    match taken.iter().find(|name| variables.as_ref().is_some_and(|set| set.contains_key(**name))) {
        None => Ok(variables),
        Some(name) => {
            Err(ApiError::field(FIELD, format!("{FIELD} must not set {name}; set the field {name}")))
        }
    }
}

impl<'a> Reader<'a> {
    /// A reader for requests to the model of this process.
    pub(super) fn new(model: &'a ServedModel, memory: &'a InputMemory, is_long: bool) -> Self {
        Self { model, memory, context_tokens: model.context_tokens, is_long }
    }

    fn take(&self, field: &str, bytes: usize) -> Result<Option<Taken<'a>>, ApiError> {
        if !self.is_long {
            return Ok(None);
        }
        let taken = self.memory.room().take(bytes);
        taken.map(Some).map_err(|error| ApiError { param: Some(field.to_owned()), ..error })
    }

    fn tokens(&self, (field, prompt): Span<'_>, add_bos: bool) -> Result<Tokens, ApiError> {
        let ids = match parsed::<Text<'_>>(prompt) {
            Some(text) => self.encode(&field, &text.0, add_bos)?,
            None if prompt.get().starts_with('[') => self.ids(&field, prompt)?,
            None => {
                let expect = "a string, a list of token ids, or a list of either";
                return Err(wrong(&field, expect, prompt));
            }
        };
        Ok(Tokens { field, ids })
    }

    fn encode(&self, field: &str, text: &str, add_bos: bool) -> Result<Vec<u32>, ApiError> {
        let (context, tokenizer) = (self.context_tokens, &self.model.tokenizer);
        // No tokenisation of the text could fit the context, so the text is not tokenised.
        if text.len() > (context as usize).saturating_mul(tokenizer.token_bytes_max()) {
            let reason = format!(
                "{field} has {} bytes, more than fit the model's context of {context} tokens",
                text.len()
            );
            return Err(ApiError::field(field, reason));
        }
        let _room = self.take(field, tokenizer.encode_bytes(text.len()))?;
        let failed = |reason| ApiError::field(field, format!("{field} cannot be tokenized: {reason}"));
        tokenizer.encode(text, if add_bos { Bos::Add } else { Bos::Omit }).map_err(failed)
    }

    /// Reads a list of token ids, at most as many as the context length.
    ///
    /// # Errors
    /// 400 if an element is not a token id of the vocabulary, or if the list is too long. The rest of the list is not read.
    pub(super) fn ids(&self, field: &str, value: &RawValue) -> Result<Vec<u32>, ApiError> {
        struct Ids<'a> {
            field: &'a str,
            reader: Reader<'a>,
            refused: &'a mut Option<ApiError>,
        }

        impl<'a> Visitor<'a> for Ids<'_> {
            type Value = Vec<u32>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of token ids")
            }

            fn visit_seq<S: SeqAccess<'a>>(self, mut list: S) -> Result<Vec<u32>, S::Error> {
                let mut ids = Vec::new();
                while let Some(value) = list.next_element()? {
                    match one_more(self.field, &ids, value, self.reader) {
                        Ok(id) => ids.push(id),
                        Err(error) => {
                            *self.refused = Some(error);
                            return Err(S::Error::custom("refused"));
                        }
                    }
                }
                Ok(ids)
            }
        }

        let mut refused = None;
        let ids = Ids { field, reader: *self, refused: &mut refused };
        let ids = serde_json::Deserializer::from_str(value.get()).deserialize_seq(ids);
        ids.map_err(|_| refused.unwrap_or_else(|| wrong(field, "a list of token ids", value)))
    }
}

/// Reads the next token id of the list, after `ids`.
fn one_more(field: &str, ids: &[u32], value: &RawValue, reader: Reader<'_>) -> Result<u32, ApiError> {
    let (context, vocabulary) = (reader.context_tokens, reader.model.tokenizer.vocabulary());
    if ids.len() >= context as usize {
        return Err(too_long(field, &format!("more than {context} tokens"), context));
    }
    let name = || format!("{field}[{}]", ids.len());
    let id = value.get().parse::<u64>().map_err(|_| wrong(&name(), "a token id", value))?;
    u32::try_from(id).ok().filter(|id| *id < vocabulary).ok_or_else(|| {
        let message = format!("{} is token {id}, and the vocabulary has {vocabulary} tokens", name());
        ApiError::field(field, message)
    })
}

/// The error 400 for a prompt that leaves no room for an answer in the context.
pub(super) fn too_long(field: &str, has: &str, context: u32) -> ApiError {
    let message = format!(
        "{field} has {has}, but this model's maximum context length is {context} tokens including the answer; shorten it"
    );
    ApiError::field(field, message)
}

#[cfg(test)]
mod tests;
