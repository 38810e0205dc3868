//! Log probabilities of prompts: the fields that ask for them, their limit, and vLLM's format `prompt_logprobs`.

use engine::{Logprobs, Sampling, Token};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use super::api_error::ApiError;
use super::fields::{Fields, parsed, wrong};
use super::tokenizer::Tokenizer;

/// The log probability of zero. JSON has no infinity; vLLM sends the same number.
const LEAST: f32 = -9999.0;

/// Maximum number of log probabilities of prompt tokens in one response. It allows for the most probable token at each place of a prompt
/// of 131,072 tokens.
const ENTRIES_MAX: usize = 1 << 18;

/// Memory for one log probability: the number, the text of its token, and about 80 bytes of JSON in a buffer that may be twice as large.
const ENTRY_BYTES: usize = 256;

/// The log probability as a number that JSON has.
pub(super) fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() { LEAST } else { logprob.max(LEAST) }
}

/// Which log probabilities of its prompts a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PromptScores {
    /// `prompt_logprobs`: the number of most probable tokens at each place, in a list of its own.
    pub(super) listed: Option<u32>,
    /// `logprobs` of a request with `echo`: the same number, for the log probabilities of the answer, which begin with those of the prompt.
    pub(super) echoed: Option<u32>,
}

impl PromptScores {
    /// Reads `prompt_logprobs`. `echoed` is `logprobs` if the request sets `echo`.
    ///
    /// # Errors
    /// 400 if the number is not allowed, or if the answer is streamed.
    pub(super) fn read(
        fields: &Fields<'_>,
        echoed: Option<u32>,
        is_streamed: bool,
    ) -> Result<Self, ApiError> {
        const NAME: &str = "prompt_logprobs";
        let Some(value) = fields.get(NAME).filter(|value| value.get() != "false") else {
            return Ok(Self { listed: None, echoed });
        };
        let most = Sampling::LOGPROBS_MAX;
        let listed = parsed::<u32>(value).filter(|count| *count <= most);
        if listed.is_none() {
            return Err(wrong(NAME, &format!("a whole number from 0 to {most}"), value));
        }
        if is_streamed {
            let message = "prompt_logprobs is not available with stream: true; leave out stream, or set echo and logprobs";
            return Err(ApiError::field(NAME, message));
        }
        Ok(Self { listed, echoed })
    }

    /// The number of most probable tokens that the engine must report at each place; `None` if the prompt is not scored.
    pub(super) fn top(self) -> Option<u32> {
        self.listed.max(self.echoed)
    }

    /// Memory of the log probabilities of prompts with this many tokens.
    pub(super) fn bytes(self, prompt_tokens: usize) -> usize {
        self.entries(prompt_tokens).saturating_mul(ENTRY_BYTES)
    }

    fn entries(self, prompt_tokens: usize) -> usize {
        self.top().map_or(0, |top| prompt_tokens.saturating_mul(top as usize + 1))
    }

    /// Checks the number of log probabilities for answers whose prompts have this many tokens in all.
    ///
    /// # Errors
    /// 400 if there are too many.
    pub(super) fn check(self, prompt_tokens: usize) -> Result<(), ApiError> {
        let entries = self.entries(prompt_tokens);
        if entries <= ENTRIES_MAX {
            return Ok(());
        }
        let name = if self.listed.is_some() { "prompt_logprobs" } else { "logprobs" };
        let each = self.top().unwrap_or(0) as usize + 1;
        let message = format!(
            "{name} asks for {entries} log probabilities of prompts ({prompt_tokens} prompt tokens in all answers, {each} \
             for each token) and at most {ENTRIES_MAX} are allowed; send shorter or fewer prompts, or set a smaller {name}"
        );
        Err(ApiError::field(name, message))
    }
}

/// The log probabilities of a prompt in vLLM's format: null for the first token, and for each other token an object from token ids to log
/// probabilities. The object has the prompt's own token and the most probable ones.
pub(super) struct ScoredPrompt<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    /// The tokens of the prompt. The first one has no log probabilities.
    pub(super) tokens: &'a [Token],
    /// The number of most probable tokens.
    pub(super) top: u32,
}

impl Serialize for ScoredPrompt<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.tokens.len()))?;
        for Token { id, logprobs } in self.tokens {
            let (tokenizer, top) = (self.tokenizer, self.top);
            list.serialize_element(&logprobs.as_deref().map(|logprobs| ScoredPlace {
                tokenizer,
                id: *id,
                logprobs,
                top,
            }))?;
        }
        list.end()
    }
}

/// The log probabilities at one place of a prompt.
struct ScoredPlace<'a> {
    tokenizer: &'a Tokenizer,
    /// The prompt's token.
    id: u32,
    logprobs: &'a Logprobs,
    top: u32,
}

/// One token at a place of a prompt.
#[derive(serde::Serialize)]
struct RankedToken<'a> {
    logprob: f32,
    rank: u32,
    decoded_token: std::borrow::Cow<'a, str>,
}

impl Serialize for ScoredPlace<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { tokenizer, id: own, logprobs, top } = self;
        let ranked = (1u32..=*top).zip(&logprobs.top).map(|(rank, (id, logprob))| (*id, *logprob, rank));
        // As in vLLM, the prompt's token comes first. Among tokens of equal probability, it has the rank that it has in the list.
        let ranked_own = ranked.clone().find(|(id, _, _)| id == own);
        let first = ranked_own.unwrap_or((*own, logprobs.sampled, logprobs.rank));
        let mut map = serializer.serialize_map(None)?;
        for (id, logprob, rank) in std::iter::once(first).chain(ranked.filter(|(id, _, _)| id != own)) {
            let decoded_token = tokenizer.text_of(id);
            map.serialize_entry(&id, &RankedToken { logprob: finite(logprob), rank, decoded_token })?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::super::model_text::testing::bytes_model;
    use super::*;

    fn check(token: u32, logprobs: (f32, u32, &[(u32, f32)]), top: u32, expect: &str) {
        let tokenizer = Tokenizer::new(&bytes_model()).unwrap();
        let (sampled, rank, most) = logprobs;
        let logprobs = Some(Box::new(Logprobs { sampled, rank, top: most.to_vec() }));
        let tokens = [104.into(), Token { id: token, logprobs }];
        let listed = ScoredPrompt { tokenizer: &tokenizer, tokens: &tokens, top };
        assert_eq!(serde_json::to_string(&listed).unwrap(), format!("[null,{{{expect}}}]"));
    }

    #[test]
    fn the_prompts_token_comes_first_and_once() {
        let own = r#""97":{"logprob":-2.5,"rank":7,"decoded_token":"a"}"#;
        let b = r#""98":{"logprob":-0.5,"rank":1,"decoded_token":"b"}"#;
        check(97, (-2.5, 7, &[]), 0, own);
        check(97, (-2.5, 7, &[(98, -0.5)]), 1, &format!("{own},{b}"));
        check(97, (-2.5, 7, &[(98, -0.5), (99, -1.0)]), 1, &format!("{own},{b}"));
        // Two tokens of equal probability: the rank is the place in the list.
        let second = r#""97":{"logprob":-0.5,"rank":2,"decoded_token":"a"}"#;
        check(97, (-0.5, 2, &[(98, -0.5), (97, -0.5)]), 2, &format!("{second},{b}"));
        let first = r#""98":{"logprob":-0.5,"rank":1,"decoded_token":"b"}"#;
        check(98, (-0.5, 2, &[(98, -0.5), (97, -0.5)]), 2, &format!("{first},{second}"));
        let never = r#""195":{"logprob":-9999.0,"rank":262,"decoded_token":"�"}"#;
        check(0xC3, (f32::NEG_INFINITY, 262, &[]), 0, never);
    }

    #[test]
    fn the_number_of_log_probabilities_is_limited() {
        let listed = |top| PromptScores { listed: Some(top), echoed: None };
        assert!(listed(1).check(ENTRIES_MAX / 2).is_ok());
        let error = listed(1).check(ENTRIES_MAX / 2 + 1).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("prompt_logprobs"));
        assert!(error.message.contains("asks for 262146 log probabilities"), "{}", error.message);
        let both = PromptScores { listed: Some(0), echoed: Some(3) };
        assert_eq!((both.top(), both.bytes(10)), (Some(3), 40 * ENTRY_BYTES));
        let echoed = PromptScores { listed: None, echoed: Some(20) };
        assert_eq!(echoed.check(usize::MAX).unwrap_err().param.as_deref(), Some("logprobs"));
        let none = PromptScores { listed: None, echoed: None };
        assert!(none.check(usize::MAX).is_ok() && none.bytes(usize::MAX) == 0);
    }
}
