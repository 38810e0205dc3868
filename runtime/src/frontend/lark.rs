//! Pieces of grammars in llguidance's dialect of Lark: texts, markers of a model's formats, JSON, and reasoning before an answer.

use std::fmt::Write as _;

use actors::grammar::GrammarSource;
use serde_json::{Map, Value};

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

/// JSON that matches a schema. The compiler of grammars prepares the schema.
pub(super) fn json(schema: Map<String, Value>) -> String {
    format!("%json {}", Value::Object(schema))
}

/// The grammar as the right side of a rule, which more rules may follow. `None` for a grammar in Lark that may be in the way of other rules,
/// and for an invalid schema, whose error is reported when it is compiled.
pub(super) fn body(source: &GrammarSource) -> Option<String> {
    match source {
        GrammarSource::JsonSchema(text) => serde_json::from_str(text).ok().map(json),
        GrammarSource::Regex(text) => Some(format!("/{}/", with_escaped_slashes(text))),
        GrammarSource::Lark(text) => {
            let rest = text.strip_prefix("start:")?;
            let word = |word: &str| {
                let name = word.trim_end_matches(|c: char| c.is_ascii_digit());
                word == "start" || RULES.contains(&name)
            };
            let words = rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            (!rest.contains('%') && !words.into_iter().any(word)).then(|| rest.trim().to_owned())
        }
    }
}

/// The names of the rules that grammars are combined with, without their numbers.
const RULES: [&str; 12] = [
    "answer",
    "arguments_",
    "call",
    "call_",
    "calls",
    "gap",
    "opened",
    "other",
    "reasoned",
    "rest",
    "text",
    "thought",
];

/// The grammar for an answer that begins with reasoning; `None` if the answer has none, or if the grammar has no [`body`] and constrains the
/// whole answer.
pub(super) fn after_reasoning(
    source: &GrammarSource,
    start: Option<ReasoningStart>,
    tokenizer: &Tokenizer,
) -> Option<GrammarSource> {
    let mut rules = String::new();
    let thought = thought(start, tokenizer, &mut rules);
    let body = body(source).filter(|_| !thought.is_empty())?;
    Some(GrammarSource::Lark(format!("start: {thought}answer\n{rules}answer: {body}\n")))
}

/// A regular expression between slashes: each slash in it has a backslash.
fn with_escaped_slashes(regex: &str) -> String {
    let mut out = String::new();
    let mut is_escaped = false;
    for c in regex.chars() {
        if c == '/' && !is_escaped {
            out.push('\\');
        }
        is_escaped = c == '\\' && !is_escaped;
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::model_text::testing::bytes_model;
    use super::*;

    #[test]
    fn a_grammar_applies_after_the_reasoning() {
        let tokenizer = Tokenizer::new(&bytes_model()).unwrap();
        let regex = GrammarSource::Regex(r"a/b\/c\\/".to_owned());
        let after = |source: &GrammarSource, start| after_reasoning(source, start, &tokenizer);
        let expect = "start: thought gap answer\nthought[suffix=\"</think>\"]: /(.|\\n)*/\ngap: /\\n*/\nanswer: /a\\/b\\/c\\\\\\//\n";
        let expect = GrammarSource::Lark(expect.to_owned());
        assert_eq!(after(&regex, Some(ReasoningStart::Inside)), Some(expect));
        assert_eq!(after(&regex, Some(ReasoningStart::Closed)), None);
        assert_eq!(after(&regex, None), None);
        let lark = |text: &str| after(&GrammarSource::Lark(text.to_owned()), Some(ReasoningStart::Inside));
        let choice = lark("start: CHOICE\nCHOICE: \"a\"\n").unwrap();
        assert!(choice.text().ends_with("answer: CHOICE\nCHOICE: \"a\"\n"), "{}", choice.text());
        assert_eq!(lark("start: \"(\" start \")\""), None);
        assert_eq!(lark("start: call_7\ncall_7: \"a\""), None);
        assert_eq!(lark("%ignore \" \"\nstart: \"a\""), None);
    }
}
