//! Pieces of grammars in llguidance's dialect of Lark: texts, markers of a model's formats, JSON, and reasoning before an answer.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::reasoning::{ReasoningFormat, ReasoningStart};
use super::tokenizer::Tokenizer;

/// Any text without special tokens.
pub(super) const TEXT: &str = r"/(.|\n)*/";

/// A marker of a format.
pub(super) struct Mark {
    pub(super) text: &'static str,
    /// The id of the special token with this text.
    pub(super) token: Option<u32>,
}

impl Mark {
    pub(super) fn new(text: &'static str, tokenizer: &Tokenizer) -> Self {
        Self { text, token: tokenizer.special_token(text) }
    }

    /// The mark as a terminal.
    pub(super) fn terminal(&self) -> String {
        self.token.map_or_else(|| quoted(self.text), |id| format!("<[{id}]>"))
    }

    /// A rule for any text up to the mark.
    pub(super) fn until(&self, rule: &str) -> String {
        match self.token {
            Some(_) => format!("{rule}: {TEXT} {}\n", self.terminal()),
            None => format!("{rule}[suffix={}]: {TEXT}\n", quoted(self.text)),
        }
    }

    /// A pattern for the text of the mark.
    pub(super) fn pattern(&self) -> String {
        // `<` after a backslash would be the start of a word.
        let escaped = |c: char| {
            if r"[]|()*+?.^$\/{}".contains(c) { format!("\\{c}") } else { c.to_string() }
        };
        self.text.chars().map(escaped).collect()
    }
}

/// A text as a terminal. The escapes are those of JSON.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The reference to the reasoning that comes first in an answer. Appends its rules to `lark`.
pub(super) fn thought(
    start: Option<ReasoningStart>,
    tokenizer: &Tokenizer,
    lark: &mut String,
) -> &'static str {
    let [opener, closer] = ReasoningFormat::MARKERS.map(|text| Mark::new(text, tokenizer));
    let thought = match start {
        None | Some(ReasoningStart::Closed) => return "",
        Some(ReasoningStart::Inside) => "thought gap ",
        Some(ReasoningStart::Open) => {
            let _ = writeln!(lark, "reasoned: {} thought gap", opener.terminal());
            "reasoned? "
        }
    };
    lark.push_str(&closer.until("thought"));
    lark.push_str("gap: /\\n*/\n");
    thought
}

/// JSON that matches a schema, with the spaces that models write, unless the schema has options of its own.
pub(super) fn json(mut schema: Map<String, Value>) -> String {
    let options = json!({
        "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": true,
    });
    schema.entry("x-guidance").or_insert(options);
    format!("%json {}", Value::Object(schema))
}
