//! Log probabilities of tokens, in the formats of OpenAI's completions and chats.

use engine::Token;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::openai::ApiKind;
use super::tokenizer::Tokenizer;

/// The log probability of zero. JSON has no infinity; vLLM sends the same number.
const LEAST: f32 = -9999.0;

/// The log probabilities of an answer, or of a part of it.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(untagged)]
pub(super) enum LogprobsReport {
    /// For a completion: lists of equal length.
    Completion {
        text_offset: Vec<usize>,
        token_logprobs: Vec<f32>,
        tokens: Vec<String>,
        top_logprobs: Vec<Top>,
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

fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() { LEAST } else { logprob.max(LEAST) }
}

/// The log probabilities of `tokens`. `offset` is the number of characters of the answer before them. `None` if the tokens have no log
/// probabilities, because the request did not ask for them.
pub(super) fn report(
    kind: ApiKind,
    tokenizer: &Tokenizer,
    tokens: &[Token],
    offset: usize,
) -> Option<LogprobsReport> {
    let known = || tokens.iter().filter_map(|token| Some((token.id, token.logprobs.as_deref()?)));
    known().next()?;
    let text = |id: u32| tokenizer.text_of(id).into_owned();
    match kind {
        ApiKind::Completion => {
            let texts: Vec<String> = known().map(|(id, _)| text(id)).collect();
            let ends = texts.iter().scan(offset, |at, text| {
                let start = *at;
                *at += text.chars().count();
                Some(start)
            });
            let top = |(id, logprobs): (u32, &engine::Logprobs)| {
                let mut top = logprobs.top.clone();
                if top.iter().all(|(other, _)| *other != id) {
                    top.push((id, logprobs.sampled));
                }
                Top(top.into_iter().map(|(id, logprob)| (text(id), finite(logprob))).collect())
            };
            Some(LogprobsReport::Completion {
                text_offset: ends.collect(),
                token_logprobs: known().map(|(_, logprobs)| finite(logprobs.sampled)).collect(),
                top_logprobs: known().map(top).collect(),
                tokens: texts,
            })
        }
        ApiKind::Chat | ApiKind::Response => {
            let logprob_of = |id: u32, logprob: f32| TokenLogprob {
                token: text(id),
                logprob: finite(logprob),
                bytes: tokenizer.bytes_of(id).to_vec(),
            };
            let content = known().map(|(id, logprobs)| ChatToken {
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
        let report = report(kind, &tokenizer, &tokens, 3).unwrap();
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
    fn tokens_without_logprobs_have_no_report() {
        let tokenizer = Tokenizer::new(&bytes_model()).unwrap();
        assert!(report(ApiKind::Chat, &tokenizer, &[97.into()], 0).is_none());
    }
}
