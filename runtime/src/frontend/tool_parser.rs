//! Finds tool calls in the text of an answer, as the text arrives.
//!
//! A call counts as soon as its name is complete and its arguments begin. The text of its arguments is passed on as the model wrote it.
//! Text that begins like a call and is none is content. White space next to a call is dropped. The result does not depend on how the text
//! is cut into pieces.

mod call_reader;
mod json_span;

use std::sync::Arc;

use super::stop::begun;
use call_reader::{CallReader, Heard, Step};

/// A way in which models write tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes and Qwen. Qwen2.5-Coder often leaves out the tags or writes a fenced
    /// block.
    Hermes,
    /// `{"name": …, "parameters": …}`, possibly after `<|python_tag|>`; several with `;` between them: Llama 3.1 and later.
    Llama3Json,
    /// `[TOOL_CALLS][{"name": …, "arguments": …}]`, or `[TOOL_CALLS]name[ARGS]{…}`: Mistral.
    Mistral,
}

impl ToolFormat {
    /// The format that a chat template shows to the model; `None` if it shows no tools, or an unknown format.
    pub(super) fn of_template(source: &str) -> Option<Self> {
        let has = |text: &str| source.contains(text);
        // Other formats with the same tags: Qwen3-Coder, GLM, MiniMax-M3, Apriel and Functionary.
        let other = ["<function=", "<arg_key>", "<invoke", "<tool_calls>", ">>>"];
        if !has("tools") || other.into_iter().any(has) {
            return None;
        }
        if has("<tool_call>") {
            return Some(Self::Hermes);
        }
        if has("[TOOL_CALLS]") {
            return Some(Self::Mistral);
        }
        let is_llama = has("<|python_tag|>") || (has("<|start_header_id|>") && has("parameters"));
        is_llama.then_some(Self::Llama3Json)
    }

    /// The format with this name of `vllm serve --tool-call-parser`.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "hermes" => Some(Self::Hermes),
            "llama3_json" => Some(Self::Llama3Json),
            "mistral" => Some(Self::Mistral),
            _ => None,
        }
    }

    /// The texts that may be special tokens of the vocabulary. They are part of the text that [`ToolParser`] reads.
    pub(super) fn markers(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Llama3Json => &["<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
        }
    }

    /// The text before a call.
    pub(super) fn opener(self) -> &'static str {
        self.markers()[0]
    }

    /// The texts that may stand after a call.
    fn closers(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["</tool_call>", FENCE],
            Self::Llama3Json => &[FENCE],
            Self::Mistral => &[],
        }
    }

    /// Whether the character means nothing after a call.
    fn is_ignored_after_a_call(self, c: char) -> bool {
        c.is_whitespace()
            || match self {
                // Some models write a brace too many.
                Self::Hermes => c == '}',
                Self::Llama3Json => c == ';',
                Self::Mistral => c == ',' || c == ']',
            }
    }
}

/// The end of a block of code in Markdown.
const FENCE: &str = "```";

/// The starts of a block of JSON in Markdown, the longest first, or of JSON without a block.
const FENCES: [&str; 3] = ["```json", FENCE, ""];

/// Whether a text begins with a call without a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BareStart {
    /// Its object begins here.
    At(usize),
    /// More text decides.
    Undecided,
    No,
}

impl BareStart {
    fn of(text: &str) -> Self {
        let rest = text.trim_start();
        for inside in FENCES.iter().filter_map(|fence| rest.strip_prefix(fence)) {
            let object = inside.trim_start();
            if object.starts_with('{') {
                return Self::At(text.len() - object.len());
            }
            if object.is_empty() {
                return Self::Undecided;
            }
        }
        if FENCES[0].starts_with(rest) { Self::Undecided } else { Self::No }
    }
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ToolDelta {
    /// Text that belongs to no call.
    Content(String),
    /// A call begins.
    Call(String),
    /// Text of the arguments of the last call.
    Arguments(String),
}

/// Finds the calls in one answer.
pub(super) struct ToolParser {
    format: ToolFormat,
    /// The names of the tools. Calls without a marker count only with one of these names.
    names: Arc<[String]>,
    /// Only the first call counts.
    only_one: bool,
    /// Calls without a marker count.
    bare: bool,
    state: State,
    /// Text that was not taken yet.
    text: String,
    calls: usize,
    /// There was content or a call.
    begun: bool,
    /// Inside Mistral's list of calls.
    in_list: bool,
    /// The arguments of a call that counts are not complete.
    is_cut: bool,
    out: Vec<ToolDelta>,
}

enum State {
    Text,
    /// After a call.
    After,
    Call {
        reader: CallReader,
        /// The text from the marker on, until the call counts.
        raw: String,
        /// The call counts.
        counts: bool,
        /// The call began without a marker.
        is_bare: bool,
    },
}

impl ToolParser {
    /// A parser at the start of an answer.
    pub(super) fn new(format: ToolFormat, names: Arc<[String]>, only_one: bool, bare: bool) -> Self {
        Self {
            format,
            names,
            only_one,
            bare,
            state: State::Text,
            text: String::new(),
            calls: 0,
            begun: false,
            in_list: false,
            is_cut: false,
            out: Vec::new(),
        }
    }

    /// True if the arguments of a call that counts are not complete: the answer has ended inside them, or they are not JSON.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Takes the next text of the answer.
    pub(super) fn push(&mut self, text: &str) -> Vec<ToolDelta> {
        self.text += text;
        while self.step(false) {}
        std::mem::take(&mut self.out)
    }

    /// Takes the end of the answer.
    pub(super) fn finish(&mut self) -> Vec<ToolDelta> {
        while self.step(true) {}
        match std::mem::replace(&mut self.state, State::Text) {
            State::Call { raw, counts: false, .. } => self.content(&raw),
            State::Call { reader, .. } => {
                self.is_cut |= reader.is_in_arguments() && self.passes_on();
            }
            State::Text | State::After => {}
        }
        std::mem::take(&mut self.out)
    }

    /// Takes some of the text. False if more text is needed.
    fn step(&mut self, is_end: bool) -> bool {
        match self.state {
            State::Text => self.scan(is_end),
            State::After => self.skip(is_end),
            State::Call { .. } => self.read(),
        }
    }

    /// Takes text outside of calls, up to the next marker.
    fn scan(&mut self, is_end: bool) -> bool {
        if self.bare && !self.begun {
            match BareStart::of(&self.text) {
                BareStart::At(at) => {
                    self.open(at, true);
                    return true;
                }
                BareStart::Undecided if !is_end => return false,
                _ => {}
            }
        }
        let opener = self.format.opener();
        if let Some(at) = self.text.find(opener) {
            let end = self.text[..at].trim_end().len();
            let before = self.text[..end].to_owned();
            self.content(&before);
            self.text.drain(..end);
            self.open(at - end + opener.len(), false);
            return true;
        }
        let undecided = self.text.len() - begun(&self.text, opener);
        let end = if is_end { self.text.len() } else { self.text[..undecided].trim_end().len() };
        let content: String = self.text.drain(..end).collect();
        self.content(&content);
        false
    }

    /// Takes text after a call, up to the next call or to content.
    fn skip(&mut self, is_end: bool) -> bool {
        let format = self.format;
        let ignored = |c: char| format.is_ignored_after_a_call(c);
        let start = self.text.len() - self.text.trim_start_matches(ignored).len();
        let rest = &self.text[start..];
        if rest.is_empty() {
            if is_end {
                self.text.clear();
            }
            return false;
        }
        let in_list = self.in_list && !self.text[..start].contains(']');
        if self.bare || in_list {
            match BareStart::of(rest) {
                BareStart::At(at) => {
                    self.open(start + at, !in_list);
                    return true;
                }
                BareStart::Undecided if !is_end => return false,
                _ => {}
            }
        }
        for closer in format.closers() {
            if let Some(after) = rest.strip_prefix(closer) {
                self.text = after.to_owned();
                return true;
            }
            if closer.starts_with(rest) {
                if is_end {
                    self.text.clear();
                }
                return false;
            }
        }
        let opener = format.opener();
        if opener.starts_with(rest) && rest.len() < opener.len() && !is_end {
            return false;
        }
        if rest.starts_with(opener) {
            self.text.drain(..start);
        }
        self.in_list = false;
        self.state = State::Text;
        true
    }

    /// Begins to read a call at `at`. If it is none, the text before `at` is content too.
    fn open(&mut self, at: usize, is_bare: bool) {
        let raw = self.text.drain(..at).collect();
        let reader = match self.format {
            ToolFormat::Mistral if !self.in_list => CallReader::ListOrName,
            _ => CallReader::object(!is_bare),
        };
        self.state = State::Call { reader, raw, counts: false, is_bare };
    }

    /// Takes the text of a call.
    fn read(&mut self) -> bool {
        let text = std::mem::take(&mut self.text);
        let mut arguments = String::new();
        let mut heard = Vec::new();
        for (at, c) in text.char_indices() {
            let State::Call { reader, counts, is_bare, .. } = &mut self.state else { break };
            let mut step = reader.push(c, &mut heard);
            let mut name = None;
            for heard in heard.drain(..) {
                match heard {
                    Heard::Name(said) => name = Some(said),
                    Heard::Arguments(text) => arguments += &text,
                    Heard::List => self.in_list = true,
                }
            }
            if let Some(name) = name {
                if *is_bare && !self.names.contains(&name) {
                    arguments.clear();
                    step = Step::Broken;
                } else {
                    *counts = true;
                    self.begin(name);
                }
            }
            let State::Call { reader, raw, counts, .. } = &mut self.state else { break };
            match step {
                Step::More if *counts => {}
                Step::More => raw.push(c),
                Step::Done => {
                    self.arguments(&arguments);
                    self.text = text[at + c.len_utf8()..].to_owned();
                    self.state = State::After;
                    return true;
                }
                Step::Broken => {
                    let (raw, counts, inside) = (std::mem::take(raw), *counts, reader.is_in_arguments());
                    self.text = text[at..].to_owned();
                    if counts {
                        self.is_cut |= inside && self.passes_on();
                        self.arguments(&arguments);
                        self.state = State::After;
                    } else {
                        self.content(&raw);
                        self.in_list = false;
                        self.state = State::Text;
                    }
                    return true;
                }
            }
        }
        self.arguments(&arguments);
        false
    }

    fn content(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.begun = true;
        match self.out.last_mut() {
            Some(ToolDelta::Content(last)) => last.push_str(text),
            _ => self.out.push(ToolDelta::Content(text.to_owned())),
        }
    }

    /// True if the last call is part of the answer.
    fn passes_on(&self) -> bool {
        self.calls <= 1 || !self.only_one
    }

    fn begin(&mut self, name: String) {
        self.begun = true;
        self.calls += 1;
        if self.passes_on() {
            self.out.push(ToolDelta::Call(name));
        }
    }

    fn arguments(&mut self, text: &str) {
        if text.is_empty() || !self.passes_on() {
            return;
        }
        match self.out.last_mut() {
            Some(ToolDelta::Arguments(last)) => last.push_str(text),
            _ => self.out.push(ToolDelta::Arguments(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests;
