//! The output items of a response, and the events of its stream.
//!
//! Each part of the answer belongs to an item: the open one, or a new one if the part is of another kind. The events are OpenAI's. Their
//! order for an item with text is: `output_item.added`, `content_part.added`, deltas, the text's `done`, `content_part.done`,
//! `output_item.done`.

use std::fmt::Write as _;
use std::hash::{BuildHasher, RandomState};

use actors::request::FinishReason;
use serde::Serialize;
use serde_json::{Value, json};

use super::super::answer_parser::{AnswerParser, AnswerPart};
use super::super::reply::Piece;
use super::RepeatedFields;

/// What a response has from its start.
pub(in super::super) struct ResponseStart {
    pub(in super::super) id: String,
    /// Seconds since 1970.
    pub(in super::super) created: u64,
    pub(in super::super) model: String,
    pub(in super::super) repeated: RepeatedFields,
    pub(in super::super) prompt_tokens: u32,
    /// Divides the answer.
    pub(in super::super) parser: AnswerParser,
}

/// Where events go.
pub(in super::super) enum Output<'a> {
    /// The response is not streamed.
    None,
    /// The text of a stream of server-sent events.
    Events(&'a mut String),
}

/// The state of a response or an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    InProgress,
    Completed,
    Incomplete,
    Failed,
}

#[derive(Clone, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Item {
    Reasoning { id: String, status: Status, summary: [(); 0], content: Vec<Content> },
    Message { id: String, status: Status, role: &'static str, content: Vec<Content> },
    FunctionCall { id: String, status: Status, call_id: String, name: String, arguments: String },
}

#[derive(Clone, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Content {
    ReasoningText { text: String },
    OutputText { text: String, annotations: [(); 0], logprobs: [(); 0] },
}

impl Content {
    fn text(&mut self) -> &mut String {
        match self {
            Self::ReasoningText { text } | Self::OutputText { text, .. } => text,
        }
    }
}

impl Item {
    /// The item that the part begins.
    fn of(part: &AnswerPart) -> Self {
        let (status, content) = (Status::InProgress, Vec::new());
        match part {
            AnswerPart::Reasoning(_) => Self::Reasoning { id: new_id("rs"), status, summary: [], content },
            AnswerPart::Content(_) => Self::Message { id: new_id("msg"), status, role: "assistant", content },
            AnswerPart::Call { id, name, .. } => Self::FunctionCall {
                id: new_id("fc"),
                status,
                call_id: id.clone(),
                name: name.clone(),
                arguments: String::new(),
            },
            // The start of its call comes first.
            AnswerPart::Arguments { .. } => Self::FunctionCall {
                id: new_id("fc"),
                status,
                call_id: new_id("call"),
                name: String::new(),
                arguments: String::new(),
            },
        }
    }

    /// Whether the part belongs to this item.
    fn takes(&self, part: &AnswerPart) -> bool {
        matches!(
            (self, part),
            (Self::Reasoning { .. }, AnswerPart::Reasoning(_))
                | (Self::Message { .. }, AnswerPart::Content(_))
                | (Self::FunctionCall { .. }, AnswerPart::Arguments { .. })
        )
    }

    fn id(&self) -> &str {
        match self {
            Self::Reasoning { id, .. } | Self::Message { id, .. } | Self::FunctionCall { id, .. } => id,
        }
    }

    fn set_status(&mut self, new: Status) {
        match self {
            Self::Reasoning { status, .. }
            | Self::Message { status, .. }
            | Self::FunctionCall { status, .. } => {
                *status = new;
            }
        }
    }

    /// The start of the names of the events of its text.
    fn event(&self) -> &'static str {
        match self {
            Self::Reasoning { .. } => "response.reasoning_text",
            Self::Message { .. } => "response.output_text",
            Self::FunctionCall { .. } => "response.function_call_arguments",
        }
    }
}

/// Makes a response of the pieces of its answer.
pub(in super::super) struct ResponseWriter {
    start: ResponseStart,
    items: Vec<Item>,
    /// The last item may grow.
    is_open: bool,
    /// Number of the next event.
    sequence: u64,
    status: Status,
    error: Option<Value>,
    cached_tokens: u32,
    tokens: u32,
    reasoning_tokens: u32,
}

/// The response as clients see it.
#[derive(Serialize)]
struct ResponseBody<'a> {
    id: &'a str,
    object: &'static str,
    created_at: u64,
    status: Status,
    background: bool,
    error: &'a Option<Value>,
    incomplete_details: Option<Value>,
    model: &'a str,
    output: &'a [Item],
    previous_response_id: Option<()>,
    store: bool,
    truncation: &'static str,
    #[serde(flatten)]
    repeated: &'a RepeatedFields,
    usage: Option<Value>,
}

impl ResponseWriter {
    pub(in super::super) fn new(start: ResponseStart) -> Self {
        Self {
            start,
            items: Vec::new(),
            is_open: false,
            sequence: 0,
            status: Status::InProgress,
            error: None,
            cached_tokens: 0,
            tokens: 0,
            reasoning_tokens: 0,
        }
    }

    /// Takes the next piece of the answer.
    pub(in super::super) fn push(&mut self, piece: &Piece, out: &mut Output<'_>) {
        self.begin(out);
        let mut is_reasoning = self.start.parser.is_reasoning();
        let parts = self.start.parser.push(&piece.text, piece.finish.is_some());
        is_reasoning |= self.start.parser.is_reasoning();
        self.tokens += u32::from(piece.token.is_some());
        self.reasoning_tokens += u32::from(piece.token.is_some() && is_reasoning);
        parts.iter().for_each(|part| self.add(part, out));
        let Some(finish) = &piece.finish else { return };
        let (status, event) = match finish.reason {
            FinishReason::Stop => (Status::Completed, "response.completed"),
            FinishReason::Length => (Status::Incomplete, "response.incomplete"),
        };
        self.cached_tokens = finish.timings.cached_tokens;
        self.close(status, out);
        self.status = status;
        self.response_event(event, out);
    }

    /// Ends the response with an error.
    pub(in super::super) fn fail(&mut self, message: &str, out: &mut Output<'_>) {
        self.begin(out);
        self.close(Status::Incomplete, out);
        self.status = Status::Failed;
        self.error = Some(json!({"code": "server_error", "message": message}));
        self.response_event("response.failed", out);
    }

    /// The response as JSON.
    pub(in super::super) fn body(&self) -> String {
        serde_json::to_string(&self.response()).unwrap_or_default()
    }

    fn response(&self) -> ResponseBody<'_> {
        let ResponseStart { id, created, model, repeated, prompt_tokens, .. } = &self.start;
        let is_cut = self.status == Status::Incomplete;
        let usage = || {
            json!({
                "input_tokens": prompt_tokens,
                "input_tokens_details": {"cached_tokens": self.cached_tokens, "cache_write_tokens": 0},
                "output_tokens": self.tokens,
                "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
                "total_tokens": prompt_tokens + self.tokens,
            })
        };
        ResponseBody {
            id,
            object: "response",
            created_at: *created,
            status: self.status,
            background: false,
            error: &self.error,
            incomplete_details: is_cut.then(|| json!({"reason": "max_output_tokens"})),
            model,
            output: &self.items,
            previous_response_id: None,
            store: false,
            truncation: "disabled",
            repeated,
            usage: [Status::Completed, Status::Incomplete].contains(&self.status).then(usage),
        }
    }

    /// Writes the first events.
    fn begin(&mut self, out: &mut Output<'_>) {
        if self.sequence == 0 {
            self.response_event("response.created", out);
            self.response_event("response.in_progress", out);
        }
    }

    /// Adds a part of the answer to the open item or to a new one.
    fn add(&mut self, part: &AnswerPart, out: &mut Output<'_>) {
        if !(self.is_open && self.items.last().is_some_and(|item| item.takes(part))) {
            self.close(Status::Completed, out);
            self.open(part, out);
        }
        let (AnswerPart::Reasoning(delta)
        | AnswerPart::Content(delta)
        | AnswerPart::Arguments { text: delta, .. }) = part
        else {
            return;
        };
        if delta.is_empty() {
            return;
        }
        let Some(item) = self.items.last_mut() else { return };
        match item {
            Item::Reasoning { content, .. } | Item::Message { content, .. } => {
                content.iter_mut().for_each(|content| content.text().push_str(delta));
            }
            Item::FunctionCall { arguments, .. } => arguments.push_str(delta),
        }
        self.text_event(".delta", ("delta", delta), out);
    }

    /// Opens the item that the part begins.
    fn open(&mut self, part: &AnswerPart, out: &mut Output<'_>) {
        self.items.push(Item::of(part));
        self.is_open = true;
        self.item_event("response.output_item.added", out);
        let text = String::new();
        match self.items.last_mut() {
            Some(Item::Reasoning { content, .. }) => content.push(Content::ReasoningText { text }),
            Some(Item::Message { content, .. }) => {
                content.push(Content::OutputText { text, annotations: [], logprobs: [] });
            }
            Some(Item::FunctionCall { .. }) | None => {}
        }
        self.part_event("response.content_part.added", out);
    }

    /// Closes the open item.
    fn close(&mut self, status: Status, out: &mut Output<'_>) {
        if !std::mem::take(&mut self.is_open) {
            return;
        }
        let Some(item) = self.items.last_mut() else { return };
        item.set_status(status);
        let (name, text) = match item {
            Item::Reasoning { content, .. } | Item::Message { content, .. } => {
                ("text", content.iter_mut().map(|content| content.text().clone()).collect())
            }
            Item::FunctionCall { arguments, .. } => ("arguments", arguments.clone()),
        };
        self.text_event(".done", (name, &text), out);
        self.part_event("response.content_part.done", out);
        self.item_event("response.output_item.done", out);
    }

    fn response_event(&mut self, event: &str, out: &mut Output<'_>) {
        let mut fields = String::new();
        if matches!(out, Output::Events(_)) {
            let _ = write!(fields, r#""response":{}"#, self.body());
        }
        self.write(event, &fields, out);
    }

    fn item_event(&mut self, event: &str, out: &mut Output<'_>) {
        let mut fields = String::new();
        if let (Output::Events(_), Some(item)) = (&out, self.items.last()) {
            let item = serde_json::to_string(item).unwrap_or_default();
            let _ = write!(fields, r#""output_index":{},"item":{item}"#, self.items.len() - 1);
        }
        self.write(event, &fields, out);
    }

    /// An event of the content of an item with text.
    fn part_event(&mut self, event: &str, out: &mut Output<'_>) {
        let Some(item @ (Item::Reasoning { content, .. } | Item::Message { content, .. })) =
            self.items.last()
        else {
            return;
        };
        let [content] = &content[..] else { return };
        let part = serde_json::to_string(content).unwrap_or_default();
        let fields = format!(r#"{},"content_index":0,"part":{part}"#, self.place(item));
        self.write(event, &fields, out);
    }

    /// An event of the text or the arguments of an item.
    fn text_event(&mut self, end: &str, (name, text): (&str, &str), out: &mut Output<'_>) {
        let Some(item) = self.items.last() else { return };
        let mut fields = self.place(item);
        if !matches!(item, Item::FunctionCall { .. }) {
            fields += r#","content_index":0"#;
        }
        let _ = write!(fields, r#","{name}":{}"#, Value::from(text));
        if matches!(item, Item::Message { .. }) {
            fields += r#","logprobs":[]"#;
        }
        self.write(&format!("{}{end}", item.event()), &fields, out);
    }

    fn place(&self, item: &Item) -> String {
        format!(r#""item_id":"{}","output_index":{}"#, item.id(), self.items.len() - 1)
    }

    fn write(&mut self, event: &str, fields: &str, out: &mut Output<'_>) {
        if let Output::Events(out) = out {
            let number = self.sequence;
            let _ = write!(
                out,
                "event: {event}\ndata: {{\"type\":\"{event}\",\"sequence_number\":{number},{fields}}}\n\n"
            );
        }
        self.sequence += 1;
    }
}

/// A new id of an item. It does not have to be hard to guess, and each `RandomState` has new keys.
fn new_id(kind: &str) -> String {
    let word = || RandomState::new().hash_one(0u8);
    format!("{kind}_{:016x}{:016x}", word(), word())
}
