//! Stop strings and stop tokens of a request. A stop string may begin in one token and end in another.

use serde::Serialize;
use serde_json::value::RawValue;

use super::api_error::ApiError;
use super::fields::{Fields, Text, elements, parsed, wrong};

/// Maximum number of stop strings per request, and maximum number of stop tokens.
const STOPS_MAX: usize = 64;
/// Maximum length of a stop string. A stream may hold back this many bytes.
const STOP_BYTES_MAX: usize = 1024;

/// Maximum length of all stop strings together. Each of them is searched after every token.
const ALL_BYTES_MAX: usize = 4096;

/// The stop strings and stop tokens of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct StopRule {
    strings: Vec<String>,
    tokens: Vec<u32>,
    /// The stop string or token stays in the answer.
    include: bool,
}

/// The string or the token that stopped an answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum StopReason {
    Text(String),
    Token(u32),
}

impl StopRule {
    /// Reads `stop`, `stop_token_ids` and `include_stop_str_in_output`.
    ///
    /// # Errors
    /// 400 with a sentence that names the field.
    pub(super) fn read(fields: &Fields<'_>, vocabulary: u32) -> Result<Self, ApiError> {
        const STRINGS: &str = "a string or a list of at most 64 strings of 1 to 1024 bytes";
        let string = |value: &RawValue| {
            let text = parsed::<Text<'_>>(value).filter(|text| (1..=STOP_BYTES_MAX).contains(&text.0.len()));
            text.map(|text| text.0.into_owned()).ok_or_else(|| wrong("stop", STRINGS, value))
        };
        let strings: Vec<String> = match fields.get("stop") {
            None => Vec::new(),
            Some(value) => match elements(value, STOPS_MAX) {
                Some(stops) if !stops.has_more() => {
                    stops.first.into_iter().map(string).collect::<Result<_, _>>()?
                }
                _ => vec![string(value)?],
            },
        };
        let bytes: usize = strings.iter().map(String::len).sum();
        if bytes > ALL_BYTES_MAX {
            let message = format!("stop has {bytes} bytes in all; at most {ALL_BYTES_MAX} are allowed");
            return Err(ApiError::field("stop", message));
        }
        const TOKENS: &str = "a list of at most 64 token ids";
        let token = |value: &RawValue| {
            let id = parsed::<u32>(value).filter(|id| *id < vocabulary);
            id.ok_or_else(|| wrong("stop_token_ids", "token ids of the vocabulary", value))
        };
        let tokens = match fields.get("stop_token_ids") {
            None => Vec::new(),
            Some(value) => match elements(value, STOPS_MAX) {
                Some(ids) if !ids.has_more() => ids.first.into_iter().map(token).collect::<Result<_, _>>()?,
                _ => return Err(wrong("stop_token_ids", TOKENS, value)),
            },
        };
        Ok(Self { strings, tokens, include: fields.flag("include_stop_str_in_output", false)? })
    }

    /// Memory of the rule in bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.tokens)
            + self.strings.iter().map(|stop| size_of::<String>() + stop.len()).sum::<usize>()
    }
}

/// Searches one answer for stop strings and tokens. It holds text back as long as a stop string may begin in it.
pub(super) struct StopWatch {
    rule: StopRule,
    held: String,
    reason: Option<StopReason>,
}

impl StopWatch {
    pub(super) fn new(rule: StopRule) -> Self {
        Self { rule, held: String::new(), reason: None }
    }

    /// The string or token that has stopped the answer.
    pub(super) fn reason(&self) -> Option<&StopReason> {
        self.reason.as_ref()
    }

    /// Takes a token and the text that it completes. Returns the text that may be sent.
    pub(super) fn token(&mut self, id: u32, text: String) -> String {
        if !self.rule.tokens.contains(&id) {
            return self.text(text);
        }
        self.reason = Some(StopReason::Token(id));
        let held = std::mem::take(&mut self.held);
        if self.rule.include { held + &text } else { held }
    }

    /// Takes text. Returns the text that may be sent. Of several stop strings in the text, the one that ends first counts, and the longest
    /// of those. So the result does not depend on how the text is cut.
    pub(super) fn text(&mut self, text: String) -> String {
        if self.reason.is_some() {
            return String::new();
        }
        if self.rule.strings.is_empty() {
            return text;
        }
        self.held += &text;
        let found = self.rule.strings.iter().filter_map(|stop| Some((self.held.find(&**stop)?, stop)));
        if let Some((start, stop)) = found.min_by_key(|(start, stop)| (start + stop.len(), *start)) {
            let end = if self.rule.include { start + stop.len() } else { start };
            self.reason = Some(StopReason::Text(stop.clone()));
            self.held.truncate(end);
            return std::mem::take(&mut self.held);
        }
        let waits = self.rule.strings.iter().map(|stop| begun(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - waits);
        std::mem::replace(&mut self.held, rest)
    }

    /// Returns the text that was held back, at the end of the answer.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` with which `stop` begins.
pub(super) fn begun(text: &str, stop: &str) -> usize {
    // The longest first.
    let mut lengths = (1..stop.len()).rev().filter(|length| stop.is_char_boundary(*length));
    lengths.find(|length| text.ends_with(&stop[..*length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn watch(strings: &[&str], include: bool) -> StopWatch {
        let strings = strings.iter().map(|stop| (*stop).to_owned()).collect();
        StopWatch::new(StopRule { strings, tokens: vec![7], include })
    }

    fn check(stops: &[&str], pieces: &[&str], expect: &[&str], reason: Option<&str>) {
        let mut watch = watch(stops, false);
        let out: Vec<String> = pieces.iter().map(|piece| watch.text((*piece).to_owned())).collect();
        assert_eq!(out, expect, "{stops:?} in {pieces:?}");
        assert_eq!(watch.reason, reason.map(|stop| StopReason::Text(stop.to_owned())));
    }

    #[test]
    fn strings_are_found_across_pieces() {
        check(&["END"], &["a", "E", "N", "D", "b"], &["a", "", "", "", ""], Some("END"));
        check(&["END"], &["aE", "Nx"], &["a", "ENx"], None);
        check(&["END"], &["xENDy"], &["x"], Some("END"));
        check(&["aab"], &["a", "a", "a", "b"], &["", "", "a", ""], Some("aab"));
        check(&["ü!"], &["ü", "ü", "!"], &["", "ü", ""], Some("ü!"));
        check(&["bcd", "c"], &["a", "b", "c"], &["a", "", "b"], Some("c"));
        check(&["c", "bc"], &["abc"], &["a"], Some("bc"));
    }

    #[test]
    fn held_text_is_returned_at_the_end() {
        let mut watch = watch(&["END"], false);
        assert_eq!((watch.text("aE".to_owned()), watch.finish()), ("a".to_owned(), "E".to_owned()));
    }

    #[test]
    fn stop_strings_and_tokens_may_stay() {
        let mut kept = watch(&["END"], true);
        assert_eq!(
            (kept.text("aEN".to_owned()), kept.text("Db".to_owned())),
            ("a".to_owned(), "END".to_owned())
        );
        let mut dropped = watch(&["END"], false);
        assert_eq!(
            (dropped.text("aE".to_owned()), dropped.token(7, "x".to_owned())),
            ("a".to_owned(), "E".to_owned())
        );
        assert_eq!(dropped.reason(), Some(&StopReason::Token(7)));
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(
            text in "[ab]{0,24}",
            stops in proptest::collection::vec("[ab]{1,4}", 1..3),
            cuts in proptest::collection::vec(0usize..4, 24),
        ) {
            let rule = StopRule { strings: stops, tokens: Vec::new(), include: false };
            let mut whole = StopWatch::new(rule.clone());
            let expect = text.chars().map(|c| whole.text(c.to_string())).collect::<String>() + &whole.finish();
            let (mut pieces, mut rest, mut out) = (StopWatch::new(rule), &*text, String::new());
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                out += &pieces.text(piece.to_owned());
                rest = after;
            }
            out += &pieces.text(rest.to_owned());
            out += &pieces.finish();
            prop_assert_eq!(out, expect);
            prop_assert_eq!(pieces.reason, whole.reason);
        }
    }
}
