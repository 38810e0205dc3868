//! Divides the text of an answer to a chat into reasoning, content and tool calls, as the text arrives.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use super::reasoning::{Reasoning, ReasoningFormat, ReasoningStart};
use super::tool_parser::{ToolDelta, ToolFormat, ToolParser};

/// How the answers to a request are divided.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct AnswerFormat {
    /// `None` if answers have no reasoning.
    pub(super) reasoning: Option<ReasoningStart>,
    /// `None` if answers have no tool calls.
    pub(super) tools: Option<CallRule>,
}

/// Which tool calls the answers to a request may have.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CallRule {
    pub(super) format: ToolFormat,
    /// The names of the tools.
    pub(super) names: Arc<[String]>,
    /// Calls after the first do not count.
    pub(super) only_one: bool,
    /// Calls without a marker count.
    pub(super) bare: bool,
    /// The request names the function to call. Such an answer finishes with `stop`, as in OpenAI and vLLM.
    pub(super) is_named: bool,
}

impl AnswerFormat {
    /// True if all text is content.
    pub(super) fn is_plain(&self) -> bool {
        self.reasoning.is_none() && self.tools.is_none()
    }

    /// The parser of one answer.
    pub(super) fn parser(&self) -> AnswerParser {
        let tools =
            |rule: &CallRule| ToolParser::new(rule.format, Arc::clone(&rule.names), rule.only_one, rule.bare);
        AnswerParser {
            reasoning: self.reasoning.map(Reasoning::new),
            tools: self.tools.as_ref().map(tools),
            format: self.tools.as_ref().map(|rule| rule.format),
            is_named: self.tools.as_ref().is_some_and(|rule| rule.is_named),
            calls: 0,
            is_empty: true,
        }
    }

    /// Memory of the names of tools in bytes.
    pub(super) fn bytes(&self) -> usize {
        let names = self.tools.iter().flat_map(|rule| rule.names.iter());
        names.map(|name| size_of::<String>() + name.len()).sum()
    }

    /// The texts of the marks, which may be special tokens.
    pub(super) fn markers(&self) -> impl Iterator<Item = &'static str> {
        let reasoning = self.reasoning.map(|_| ReasoningFormat::MARKERS);
        let tools = self.tools.as_ref().map(|rule| rule.format.markers());
        reasoning.into_iter().flatten().chain(tools.into_iter().flatten().copied())
    }
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AnswerPart {
    /// Text of the reasoning.
    Reasoning(String),
    /// Text of the answer itself.
    Content(String),
    /// The start of a tool call.
    Call {
        /// Number of the call in the answer.
        index: usize,
        /// Its id, which the client repeats with the result.
        id: String,
        /// Name of the tool.
        name: String,
    },
    /// Text of the arguments of a call.
    Arguments {
        /// Number of the call in the answer.
        index: usize,
        /// JSON, as the model wrote it.
        text: String,
    },
}

/// Divides one answer.
pub(super) struct AnswerParser {
    reasoning: Option<Reasoning>,
    tools: Option<ToolParser>,
    format: Option<ToolFormat>,
    is_named: bool,
    calls: usize,
    is_empty: bool,
}

impl AnswerParser {
    /// Takes the next text of the answer. With `is_end`, it is the last one.
    pub(super) fn push(&mut self, text: &str, is_end: bool) -> Vec<AnswerPart> {
        let mut parts = Vec::new();
        let mut content = String::new();
        match &mut self.reasoning {
            None => content += text,
            Some(reasoning) => {
                let mut split = reasoning.push(text);
                if is_end {
                    let rest = reasoning.finish();
                    split.reasoning += &rest.reasoning;
                    split.content += &rest.content;
                }
                if !split.reasoning.is_empty() {
                    parts.push(AnswerPart::Reasoning(split.reasoning));
                }
                content += &split.content;
            }
        }
        match &mut self.tools {
            None if content.is_empty() => {}
            None => parts.push(AnswerPart::Content(content)),
            Some(tools) => {
                let mut deltas = tools.push(&content);
                if is_end {
                    deltas.extend(tools.finish());
                }
                deltas.into_iter().for_each(|delta| parts.push(self.part(delta)));
            }
        }
        self.is_empty &= parts.is_empty();
        if is_end && self.is_empty {
            // An answer without any part has an empty content, not none.
            parts.push(AnswerPart::Content(String::new()));
        }
        parts
    }

    fn part(&mut self, delta: ToolDelta) -> AnswerPart {
        match delta {
            ToolDelta::Content(text) => AnswerPart::Content(text),
            ToolDelta::Call(name) => {
                self.calls += 1;
                AnswerPart::Call { index: self.calls - 1, id: call_id(self.format), name }
            }
            ToolDelta::Arguments(text) => AnswerPart::Arguments { index: self.calls.saturating_sub(1), text },
        }
    }

    /// True while the text of the answer is reasoning.
    pub(super) fn is_reasoning(&self) -> bool {
        self.reasoning.as_ref().is_some_and(Reasoning::is_inside)
    }

    /// True if the answer has tool calls that its finish reason tells. The client is to run them, so none of them may be cut.
    pub(super) fn finishes_with_calls(&self) -> bool {
        self.calls > 0 && !self.is_named && !self.tools.as_ref().is_some_and(ToolParser::is_cut)
    }

    /// True if the answer has tool calls.
    pub(super) fn has_calls(&self) -> bool {
        self.calls > 0
    }
}

/// A new id of a tool call. Mistral's templates want nine letters and digits.
fn call_id(format: Option<ToolFormat>) -> String {
    // Each `RandomState` has new keys. The id does not have to be hard to guess.
    let word = || RandomState::new().hash_one(0u8);
    match format {
        Some(ToolFormat::Mistral) => format!("{:016x}", word())[..9].to_owned(),
        _ => format!("call_{:016x}{:08x}", word(), word() >> 32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_calls_are_new() {
        let id = call_id(None);
        assert!(id.starts_with("call_") && id.len() == 29 && id != call_id(None), "{id}");
        let id = call_id(Some(ToolFormat::Mistral));
        assert!(id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
    }
}
