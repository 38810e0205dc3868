//! The parts of an answer to a chat, in chunks and in whole responses.

use serde::Serialize;

use super::super::answer_parser::AnswerPart;

/// The parts of a whole answer.
#[derive(Default)]
pub(in super::super) struct Said<'a> {
    pub(in super::super) reasoning: Option<&'a str>,
    /// `None` if the answer has reasoning or calls only.
    pub(in super::super) text: Option<&'a str>,
    pub(in super::super) calls: &'a [ToolCall],
}

/// A tool call of a whole answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(in super::super) struct ToolCall {
    pub(in super::super) id: String,
    pub(in super::super) r#type: FunctionType,
    pub(in super::super) function: FunctionCall,
}

/// The tool and the arguments of a call.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(in super::super) struct FunctionCall {
    pub(in super::super) name: String,
    /// JSON, as the model wrote it.
    pub(in super::super) arguments: String,
}

/// The only type of tools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(in super::super) enum FunctionType {
    #[default]
    #[serde(rename = "function")]
    Function,
}

/// What a chunk of a stream adds to its choice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in super::super) enum Addition<'a> {
    /// Text of the content.
    Text(&'a str),
    /// A part of an answer that is divided.
    Part(&'a AnswerPart),
    /// Nothing.
    Nothing,
}

impl Default for Addition<'_> {
    fn default() -> Self {
        Self::Text("")
    }
}

/// The collected parts of a whole answer.
#[derive(Debug, Default, PartialEq)]
pub(in super::super) struct DividedAnswer {
    reasoning: Option<String>,
    text: Option<String>,
    calls: Vec<ToolCall>,
}

impl DividedAnswer {
    /// Adds the next part.
    pub(in super::super) fn push(&mut self, part: AnswerPart) {
        match part {
            AnswerPart::Reasoning(text) => self.reasoning.get_or_insert_default().push_str(&text),
            AnswerPart::Content(text) => self.text.get_or_insert_default().push_str(&text),
            AnswerPart::Call { id, name, .. } => {
                let function = FunctionCall { name, arguments: String::new() };
                self.calls.push(ToolCall { id, r#type: FunctionType::Function, function });
            }
            AnswerPart::Arguments { text, .. } => {
                if let Some(call) = self.calls.last_mut() {
                    call.function.arguments += &text;
                }
            }
        }
    }

    /// The parts.
    pub(in super::super) fn said(&self) -> Said<'_> {
        Said { reasoning: self.reasoning.as_deref(), text: self.text.as_deref(), calls: &self.calls }
    }
}

/// The delta of a chunk.
#[derive(Default, Serialize)]
pub(super) struct ChatDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    /// `Some(None)` is null.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Option<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[CallDelta<'a>; 1]>,
}

/// A part of a tool call. The first one has all fields and no arguments; the later ones have only arguments.
#[derive(Serialize)]
struct CallDelta<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<FunctionType>,
    function: FunctionDelta<'a>,
}

#[derive(Serialize)]
struct FunctionDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

impl<'a> ChatDelta<'a> {
    /// The delta of the first chunk. Without content, its content is null.
    pub(super) fn start(content: Option<&'a str>) -> Self {
        Self { role: Some("assistant"), content: Some(content), ..Self::default() }
    }

    /// The delta that adds a part.
    pub(super) fn new(adds: Addition<'a>) -> Self {
        let call = |index, id: Option<&'a str>, name, arguments| CallDelta {
            index,
            id,
            r#type: id.map(|_| FunctionType::Function),
            function: FunctionDelta { name, arguments },
        };
        let (mut content, mut reasoning_content, mut tool_calls) = (None, None, None);
        match adds {
            Addition::Nothing => {}
            Addition::Text(text) => content = Some(Some(text)),
            Addition::Part(AnswerPart::Content(text)) => content = Some(Some(&**text)),
            Addition::Part(AnswerPart::Reasoning(text)) => reasoning_content = Some(&**text),
            Addition::Part(AnswerPart::Call { index, id, name }) => {
                tool_calls = Some([call(*index, Some(id), Some(&**name), "")]);
            }
            Addition::Part(AnswerPart::Arguments { index, text }) => {
                tool_calls = Some([call(*index, None, None, text)]);
            }
        }
        Self { role: None, content, reasoning_content, tool_calls }
    }
}
