//! The fields of a request's body. A field is a span of the body's text, which is parsed into its type when the field is used. The body
//! is never converted into a tree of values. So memory stays proportional to the body, and an error names its field.

use std::borrow::Cow;
use std::fmt;

use actix_web::http::StatusCode;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::api_error::ApiError;

/// Maximum number of fields of an object.
const FIELDS_MAX: usize = 256;

/// A JSON object. A field that is null counts as missing. Of several fields with the same name, the last one counts.
pub(super) struct Fields<'a> {
    entries: Vec<(String, &'a RawValue)>,
    /// The names that were looked up.
    #[cfg(test)]
    pub(super) reads: std::cell::RefCell<std::collections::BTreeSet<String>>,
}

/// A string. It is borrowed unless it has escapes.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// The values of an unsupported field that do not change the answer.
#[derive(Clone, Copy)]
pub(super) enum Neutral {
    /// This number.
    Number(f64),
    /// `false`.
    False,
    /// An empty string, list or object.
    Empty,
    /// One of these words, as a string or as an object's `type`.
    Word(&'static [&'static str]),
}

impl Neutral {
    /// Refuses the field `name` unless its value is a neutral one.
    pub(super) fn check(self, name: &str, value: &RawValue) -> Result<(), ApiError> {
        if self.holds(value) {
            return Ok(());
        }
        let remedy = match self {
            Self::Number(number) => format!("leave it out or set it to {number}"),
            Self::False => "leave it out or set it to false".to_owned(),
            Self::Empty => "leave it out".to_owned(),
            Self::Word(words) => format!("leave it out or set it to {}", words.join(" or ")),
        };
        Err(ApiError::field(name, format!("{name} {} is not supported yet; {remedy}", named(value))))
    }

    fn holds(self, value: &RawValue) -> bool {
        match self {
            Self::Number(number) => parsed::<f64>(value) == Some(number),
            Self::False => value.get() == "false",
            Self::Empty => {
                let inner = |open, close| value.get().strip_prefix(open)?.strip_suffix(close);
                let inner = inner('[', ']').or_else(|| inner('{', '}'));
                value.get() == "\"\"" || inner.is_some_and(|inner| inner.trim_ascii().is_empty())
            }
            Self::Word(words) => {
                let kind = || parsed::<Text<'_>>(parsed::<Fields<'_>>(value)?.get("type")?);
                let word = parsed::<Text<'_>>(value).or_else(kind);
                word.is_some_and(|word| words.contains(&&*word.0))
            }
        }
    }
}

/// The value as this type; `None` if it has another one.
pub(super) fn parsed<'a, T: Deserialize<'a>>(value: &'a RawValue) -> Option<T> {
    serde_json::from_str(value.get()).ok()
}

impl<'a> Deserialize<'a> for Fields<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        let entries = deserializer.deserialize_map(MostEntries(FIELDS_MAX))?;
        if entries.has_more() {
            return Err(D::Error::custom(format_args!("more than {FIELDS_MAX} fields")));
        }
        Ok(Self {
            entries: entries.first,
            #[cfg(test)]
            reads: std::cell::RefCell::default(),
        })
    }
}

impl<'a> Fields<'a> {
    /// Parses a body.
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, ApiError> {
        serde_json::from_slice(body).map_err(|error| {
            let other = serde_json::from_slice::<&RawValue>(body).ok();
            let message = match other.filter(|value| !value.get().starts_with('{')) {
                Some(other) => format!("body must be a JSON object, not {}", kind_of(other)),
                None if error.classify() == Category::Data => format!("body has {error}"),
                None => format!("body is not JSON: {error}"),
            };
            ApiError::new(StatusCode::BAD_REQUEST, message)
        })
    }

    /// Whether there are no fields.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.iter().all(|(_, value)| value.get() == "null")
    }

    /// The object in the field `name`.
    pub(super) fn inner(&self, name: &str) -> Result<Option<Fields<'a>>, ApiError> {
        self.typed(name, "an object")
    }

    /// The value of a field; `None` if it is missing or null.
    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        #[cfg(test)]
        self.reads.borrow_mut().insert(name.to_owned());
        let (_, value) = self.entries.iter().find(|(known, _)| known == name)?;
        Some(*value).filter(|value| value.get() != "null")
    }

    /// The fields that are not null, in the client's order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.entries.iter().filter(|(_, value)| value.get() != "null").map(|(name, value)| (&**name, *value))
    }

    /// The value of a field as this type. `expect` describes the type in an error.
    pub(super) fn typed<T: Deserialize<'a>>(&self, name: &str, expect: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        parsed(value).map(Some).ok_or_else(|| wrong(name, expect, value))
    }

    /// A boolean.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, ApiError> {
        Ok(self.typed(name, "true or false")?.unwrap_or(default))
    }

    /// A string.
    pub(super) fn text(&self, name: &str) -> Result<Option<Cow<'a, str>>, ApiError> {
        Ok(self.typed::<Text<'a>>(name, "a string")?.map(|text| text.0))
    }

    /// A whole number of at least 1.
    pub(super) fn count(&self, name: &str) -> Result<Option<u32>, ApiError> {
        const EXPECT: &str = "a whole number of at least 1";
        let count = self.typed::<u32>(name, EXPECT)?;
        match (count, self.get(name)) {
            (Some(0), Some(value)) => Err(wrong(name, EXPECT, value)),
            _ => Ok(count),
        }
    }

    /// A number for which `fits` is true. `expect` describes such a number in an error.
    pub(super) fn number(
        &self,
        name: &str,
        expect: &str,
        default: f64,
        fits: fn(f64) -> bool,
    ) -> Result<f64, ApiError> {
        let Some(value) = self.get(name) else { return Ok(default) };
        parsed(value).filter(|number| fits(*number)).ok_or_else(|| wrong(name, expect, value))
    }

    /// Refuses unsupported fields: those in `table` whose value is not the neutral one.
    pub(super) fn refuse_unless(&self, table: &[(&str, Neutral)]) -> Result<(), ApiError> {
        // The outer loop is over the fields, because a body has few fields and the table has many.
        self.iter().try_for_each(|(name, value)| {
            let row = table.iter().find(|(known, _)| *known == name);
            row.map_or(Ok(()), |(_, neutral)| neutral.check(name, value))
        })
    }
}

/// The first elements of a list, or entries of an object, as spans of its text, and the number of all of them.
pub(super) struct Counted<T> {
    pub(super) first: Vec<T>,
    pub(super) count: usize,
}

impl<T> Counted<T> {
    /// Whether there are more than those in `first`.
    pub(super) fn has_more(&self) -> bool {
        self.count > self.first.len()
    }
}

/// The first `most` elements of a list; `None` if the value is not a list.
pub(super) fn elements(value: &RawValue, most: usize) -> Option<Counted<&RawValue>> {
    serde_json::Deserializer::from_str(value.get()).deserialize_seq(MostElements(most)).ok()
}

/// The first `most` entries of an object; `None` if the value is not an object. Of several entries with the same name, the last one
/// counts.
pub(super) fn entries(value: &RawValue, most: usize) -> Option<Counted<(String, &RawValue)>> {
    serde_json::Deserializer::from_str(value.get()).deserialize_map(MostEntries(most)).ok()
}

/// Collects this many elements and counts the rest.
struct MostElements(usize);

impl<'a> Visitor<'a> for MostElements {
    type Value = Counted<&'a RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<S: SeqAccess<'a>>(self, mut list: S) -> Result<Self::Value, S::Error> {
        let mut first = Vec::new();
        while first.len() < self.0
            && let Some(element) = list.next_element()?
        {
            first.push(element);
        }
        let mut count = first.len();
        while list.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Counted { first, count })
    }
}

/// Collects this many entries and counts the rest.
struct MostEntries(usize);

impl<'a> Visitor<'a> for MostEntries {
    type Value = Counted<(String, &'a RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut first: Vec<(String, &'a RawValue)> = Vec::new();
        while first.len() < self.0
            && let Some((name, value)) = map.next_entry::<String, &'a RawValue>()?
        {
            match first.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => *known = value,
                None => first.push((name, value)),
            }
        }
        let mut count = first.len();
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Counted { first, count })
    }
}

/// Status 400 for a field with the wrong type or range. The message does not show text of a prompt, because programs log errors.
pub(super) fn wrong(name: &str, expect: &str, value: &RawValue) -> ApiError {
    let found = if is_of_prompt(name) { kind_of(value) } else { named(value) };
    ApiError::field(name, format!("{name} must be {expect}, not {found}"))
}

/// Whether the field has text of a prompt. Roles and types are words of the API.
fn is_of_prompt(name: &str) -> bool {
    let first = name.split(['.', '[']).next().unwrap_or_default();
    let last = name.rsplit('.').next().unwrap_or_default();
    ["prompt", "messages", "input", "instructions"].contains(&first) && !["role", "type"].contains(&last)
}

/// The kind of a value; an empty value, a number, `true`, `false` and `null` as they are.
fn kind_of(value: &RawValue) -> String {
    match value.get().as_bytes() {
        [b'"', _, _, ..] => "a string".to_owned(),
        [b'{', _, _, ..] => "an object".to_owned(),
        [b'[', _, _, ..] => "a list".to_owned(),
        _ => named(value),
    }
}

/// The value as it appears in a message: cut short and on one line.
fn named(value: &RawValue) -> String {
    let mut text = value.get().chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut named: String = text.by_ref().take(40).collect();
    named.extend(text.next().map(|_| '…'));
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> String {
        Fields::parse(body.as_bytes()).err().unwrap().message
    }

    #[test]
    fn bodies_are_objects() {
        assert_eq!(refused("{"), "body is not JSON: EOF while parsing an object at line 1 column 1");
        assert_eq!(refused("[1,\n2]"), "body must be a JSON object, not a list");
        assert_eq!(refused("{} x"), "body is not JSON: trailing characters at line 1 column 4");
        let many: Vec<String> = (0..=FIELDS_MAX).map(|n| format!("\"a{n}\":1")).collect();
        assert!(refused(&format!("{{{}}}", many.join(","))).starts_with("body has more than 256 fields"));
        assert!(Fields::parse(format!("{{{}}}", many[1..].join(",")).as_bytes()).is_ok());
        assert!(Fields::parse(br#"{"a": "\xff"}"#).is_err(), "it is not UTF-8");
    }

    #[test]
    fn the_last_field_of_a_name_counts_and_null_is_missing() {
        let fields = Fields::parse(br#"{"a": 1, "b": true, "a": 2, "b": null, "\u0063": "d\n"}"#).unwrap();
        assert_eq!(fields.count("a").unwrap(), Some(2));
        assert!(fields.get("b").is_none());
        assert_eq!(fields.text("c").unwrap().as_deref(), Some("d\n"));
    }

    #[test]
    fn neutral_values_are_accepted() {
        let holds = |neutral: Neutral, value: &str| {
            let fields = format!(r#"{{"a": {value}}}"#);
            Fields::parse(fields.as_bytes()).unwrap().refuse_unless(&[("a", neutral)]).is_ok()
        };
        for (neutral, good, bad) in [
            (Neutral::Number(1.0), &["1", "1.0", "null"][..], &["2", "\"1\"", "true"][..]),
            (Neutral::False, &["false"], &["true", "0", "\"false\""]),
            (Neutral::Empty, &["\"\"", "[]", "[ ]", "{\n}"], &["\" \"", "[0]", "{\"a\":1}", "0", "false"]),
            (
                Neutral::Word(&["none", "auto"]),
                &["\"auto\"", "{\"type\": \"none\"}"],
                &["\"any\"", "{\"type\": 1}", "{}", "[\"auto\"]"],
            ),
        ] {
            good.iter().for_each(|value| assert!(holds(neutral, value), "{value}"));
            bad.iter().for_each(|value| assert!(!holds(neutral, value), "{value}"));
        }
    }

    #[test]
    fn long_lists_are_counted_and_not_kept() {
        let of = |text: &str, most| {
            let value: &RawValue = serde_json::from_str(text).unwrap();
            let elements = elements(value, most)?;
            Some((
                elements.first.iter().map(|element| element.get().to_owned()).collect::<Vec<_>>(),
                elements.count,
            ))
        };
        assert_eq!(of("[1, [2], {}]", 2), Some((vec!["1".to_owned(), "[2]".to_owned()], 3)));
        assert_eq!(of("[]", 2), Some((vec![], 0)));
        assert_eq!(of("{}", 2), None);
    }

    #[test]
    fn text_of_prompts_is_not_shown() {
        let check = |name: &str, value: &str, expect: &str| {
            let value: &RawValue = serde_json::from_str(value).unwrap();
            assert_eq!(wrong(name, "b", value).message, format!("{name} must be b, not {expect}"));
        };
        check("prompt", "\"x\"", "a string");
        check("prompt[1]", "[\"x\"]", "a list");
        check("messages[0].content", "{\"text\":\"x\"}", "an object");
        check("input[0].content[1].text", "5", "5");
        check("instructions", "[]", "[]");
        check("input[0].type", "\"x\"", "\"x\"");
        check("prompt_logprobs", "\"x\"", "\"x\"");
    }

    #[test]
    fn values_are_cut_short() {
        let value: &RawValue = serde_json::from_str("[1,\n2]").unwrap();
        assert_eq!(wrong("a", "b", value).message, "a must be b, not [1, 2]");
        assert_eq!(wrong("messages[0].role", "b", value).message, "messages[0].role must be b, not [1, 2]");
        let long = format!("\"{}\"", "é".repeat(50));
        let value: &RawValue = serde_json::from_str(&long).unwrap();
        assert_eq!(named(value), format!("\"{}…", "é".repeat(39)));
    }
}
