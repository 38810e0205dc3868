//! How probable tokens were, in the two shapes that OpenAI has for it.

use engine::Token;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::openai::ApiKind;
use super::tokenizer::Tokenizer;

/// Stands for a probability of zero, as in vLLM: JSON has no infinity.
const LEAST: f32 = -9999.0;

/// The probabilities of an answer, or of a part of it.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(untagged)]
pub(super) enum LogprobsReport {
    /// Of a completion: lists in step.
    Completion {
        text_offset: Vec<usize>,
        token_logprobs: Vec<f32>,
        tokens: Vec<String>,
        top_logprobs: Vec<Top>,
    },
    /// Of a chat.
    Chat { content: Vec<ChatToken> },
}

/// Token texts and their logarithms, the most probable first.
#[derive(Clone, Debug)]
pub(super) struct Top(Vec<(String, f32)>);

impl Serialize for Top {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (n, (text, logprob)) in self.0.iter().enumerate() {
            // Two tokens may have the same text, such as U+FFFD; a JSON object has each name once.
            if self.0[..n].iter().all(|(before, _)| before != text) {
                map.serialize_entry(text, logprob)?;
            }
        }
        map.end()
    }
}

#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct ChatToken {
    #[serde(flatten)]
    own: Said,
    top_logprobs: Vec<Said>,
}

#[derive(Clone, Debug, serde::Serialize)]
struct Said {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() { LEAST } else { logprob.max(LEAST) }
}

/// The probabilities of `tokens`, whose text begins `offset` characters into the answer; `None` if nobody asked for them.
pub(super) fn report(
    kind: ApiKind,
    tokenizer: &Tokenizer,
    tokens: &[Token],
    offset: usize,
) -> Option<LogprobsReport> {
    let told = || tokens.iter().filter_map(|token| Some((token.id, token.logprobs.as_deref()?)));
    told().next()?;
    let text = |id: u32| tokenizer.text_of(id).into_owned();
    match kind {
        ApiKind::Completion => {
            let texts: Vec<String> = told().map(|(id, _)| text(id)).collect();
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
                token_logprobs: told().map(|(_, logprobs)| finite(logprobs.sampled)).collect(),
                top_logprobs: told().map(top).collect(),
                tokens: texts,
            })
        }
        ApiKind::Chat => {
            let said = |id: u32, logprob: f32| Said {
                token: text(id),
                logprob: finite(logprob),
                bytes: tokenizer.bytes_of(id).to_vec(),
            };
            let content = told().map(|(id, logprobs)| ChatToken {
                own: said(id, logprobs.sampled),
                top_logprobs: logprobs.top.iter().map(|(id, logprob)| said(*id, *logprob)).collect(),
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
        let told = |id: u32, sampled: f32, top: &[(u32, f32)]| Token {
            id,
            logprobs: Some(Box::new(Logprobs { sampled, rank: 1, top: top.to_vec() })),
        };
        let tokens = [told(258, -0.5, &[(258, -0.5)]), told(0xC3, f32::NEG_INFINITY, &[(97, -1.0)])];
        let report = report(kind, &tokenizer, &tokens, 3).unwrap();
        assert_eq!(serde_json::to_string(&report).unwrap(), expect);
    }

    #[test]
    fn both_shapes() {
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
    fn nothing_is_said_unasked() {
        let tokenizer = Tokenizer::new(&bytes_model()).unwrap();
        assert!(report(ApiKind::Chat, &tokenizer, &[97.into()], 0).is_none());
    }
}
