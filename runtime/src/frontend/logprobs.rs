//! Log probabilities of tokens, in the formats of OpenAI's completions and chats.

use engine::Token;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::openai::ApiKind;
use super::prompt_logprobs::finite;
use super::tokenizer::Tokenizer;

/// The log probabilities of an answer, or of a part of it.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(untagged)]
pub(super) enum LogprobsReport {
    /// For a completion: lists of equal length.
    Completion {
        text_offset: Vec<usize>,
        /// `None` for the first token of a prompt.
        token_logprobs: Vec<Option<f32>>,
        tokens: Vec<String>,
        top_logprobs: Vec<Option<Top>>,
    },
    /// For a chat.
    Chat { content: Vec<ChatToken> },
}

/// Token texts and their log probabilities, the most probable first.
#[derive(Clone, Debug)]
pub(super) struct Top(Vec<(String, f32)>);

impl Serialize for Top {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (n, (text, logprob)) in self.0.iter().enumerate() {
            // Two tokens may have the same text, such as U+FFFD. A name appears once in a JSON object.
            if self.0[..n].iter().all(|(before, _)| before != text) {
                map.serialize_entry(text, logprob)?;
            }
        }
        map.end()
    }
}

/// One token of a chat, and the most probable tokens at its place.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct ChatToken {
    #[serde(flatten)]
    own: TokenLogprob,
    top_logprobs: Vec<TokenLogprob>,
}

#[derive(Clone, Debug, serde::Serialize)]
struct TokenLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// The log probabilities of `tokens`, with `top` most probable tokens at the place of each. `offset` is the number of characters of the
/// answer before them. `None` if there are no tokens, or if `top` is `None` because the request did not ask for log probabilities.
pub(super) fn report<'a>(
    kind: ApiKind,
    tokenizer: &Tokenizer,
    top: Option<u32>,
    tokens: impl Iterator<Item = &'a Token> + Clone,
    offset: usize,
) -> Option<LogprobsReport> {
    let top = top? as usize;
    tokens.clone().next()?;
    let text = |id: u32| tokenizer.text_of(id).into_owned();
    match kind {
        ApiKind::Completion => {
            let texts: Vec<String> = tokens.clone().map(|token| text(token.id)).collect();
            let ends = texts.iter().scan(offset, |at, text| {
                let start = *at;
                *at += text.chars().count();
                Some(start)
            });
            let top_of = |token: &Token| {
                let logprobs = token.logprobs.as_deref()?;
                let most = logprobs.top.iter().take(top);
                let own = (token.id, logprobs.sampled);
                let own = most.clone().all(|(other, _)| *other != token.id).then_some(&own);
                Some(Top(most.chain(own).map(|(id, logprob)| (text(*id), finite(*logprob))).collect()))
            };
            let sampled = |token: &Token| token.logprobs.as_deref().map(|logprobs| finite(logprobs.sampled));
            Some(LogprobsReport::Completion {
                text_offset: ends.collect(),
                token_logprobs: tokens.clone().map(sampled).collect(),
                top_logprobs: tokens.map(top_of).collect(),
                tokens: texts,
            })
        }
        ApiKind::Chat | ApiKind::Response => {
            let logprob_of = |id: u32, logprob: f32| TokenLogprob {
                token: text(id),
                logprob: finite(logprob),
                bytes: tokenizer.bytes_of(id).to_vec(),
            };
            let known = tokens.filter_map(|token| Some((token.id, token.logprobs.as_deref()?)));
            let content = known.map(|(id, logprobs)| ChatToken {
                own: logprob_of(id, logprobs.sampled),
                top_logprobs: logprobs.top.iter().map(|(id, logprob)| logprob_of(*id, *logprob)).collect(),
            });
            Some(LogprobsReport::Chat { content: content.collect() })
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::Logprobs;

    use super::super::model_text::testing::bytes_model;
    use super::*;

    fn check(kind: ApiKind, expect: &str) {
        let tokenizer = Tokenizer::new(&bytes_model()).unwrap();
        let token = |id: u32, sampled: f32, top: &[(u32, f32)]| Token {
            id,
            logprobs: Some(Box::new(Logprobs { sampled, rank: 1, top: top.to_vec() })),
        };
        let tokens = [token(258, -0.5, &[(258, -0.5)]), token(0xC3, f32::NEG_INFINITY, &[(97, -1.0)])];
        let report = report(kind, &tokenizer, Some(1), tokens.iter(), 3).unwrap();
        assert_eq!(serde_json::to_string(&report).unwrap(), expect);
    }

    #[test]
    fn both_formats() {
        check(
            ApiKind::Completion,
            r#"{"text_offset":[3,5],"token_logprobs":[-0.5,-9999.0],"tokens":["he","�"],"top_logprobs":[{"he":-0.5},{"a":-1.0,"�":-9999.0}]}"#,
        );
        check(
            ApiKind::Chat,
            r#"{"content":[{"token":"he","logprob":-0.5,"bytes":[104,101],"top_logprobs":[{"token":"he","logprob":-0.5,"bytes":[104,101]}]},{"token":"�","logprob":-9999.0,"bytes":[195],"top_logprobs":[{"token":"a","logprob":-1.0,"bytes":[97]}]}]}"#,
        );
    }

    #[test]
    fn a_prompt_begins_with_null_and_has_as_many_tokens_as_asked_for() {
        let tokenizer = Tokenizer::new(&bytes_model()).unwrap();
        let logprobs = Logprobs { sampled: -2.0, rank: 3, top: vec![(98, -0.5), (99, -1.0)] };
        let tokens = [97.into(), Token { id: 100, logprobs: Some(Box::new(logprobs)) }];
        let report = report(ApiKind::Completion, &tokenizer, Some(1), tokens.iter(), 0).unwrap();
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            r#"{"text_offset":[0,1],"token_logprobs":[null,-2.0],"tokens":["a","d"],"top_logprobs":[null,{"b":-0.5,"d":-2.0}]}"#
        );
    }

    #[test]
    fn there_is_no_report_without_tokens_or_if_it_is_not_asked_for() {
        let tokenizer = Tokenizer::new(&bytes_model()).unwrap();
        let token = [97.into()];
        assert!(report(ApiKind::Chat, &tokenizer, None, token.iter(), 0).is_none());
        assert!(report(ApiKind::Chat, &tokenizer, Some(1), token[1..].iter(), 0).is_none());
    }
}
