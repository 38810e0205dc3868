//! The fields of a request's body, read one by one so that an error names the field.

use serde_json::{Map, Value};

use super::api_error::ApiError;
use actix_web::http::StatusCode;

/// A JSON object. A field that is null is a field that is not there.
pub(super) struct Fields(Map<String, Value>);

/// What a field must be to change nothing about the answer.
#[derive(Clone, Copy)]
pub(super) enum Neutral {
    /// This number.
    Number(f64),
    /// `false`.
    False,
    /// An empty string, list or object, or nothing.
    Empty,
    /// One of these words, as a string or as an object's `type`.
    Word(&'static [&'static str]),
}

impl Neutral {
    fn holds(self, value: &Value) -> bool {
        match self {
            Self::Number(number) => value.as_f64() == Some(number),
            Self::False => value == &Value::Bool(false),
            Self::Empty => match value {
                Value::String(text) => text.is_empty(),
                Value::Array(entries) => entries.is_empty(),
                Value::Object(fields) => fields.is_empty(),
                _ => false,
            },
            Self::Word(words) => {
                let word = value.as_str().or_else(|| value.get("type")?.as_str());
                word.is_some_and(|word| words.contains(&word))
            }
        }
    }
}

/// The value in a sentence, cut short.
fn named(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 40 { text.chars().take(40).chain(['…']).collect() } else { text }
}

impl Fields {
    /// Reads a body.
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let bad = |message: String| ApiError::new(StatusCode::BAD_REQUEST, message);
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(other) => Err(bad(format!("body must be a JSON object, not {}", named(&other)))),
            Err(error) => Err(bad(format!("body is not JSON: {error}"))),
        }
    }

    /// An object that stands inside a body, under `name`.
    pub(super) fn inner(&self, name: &str) -> Result<Option<Self>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Self(fields.clone()))),
            Some(other) => Err(wrong(name, "an object", other)),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, ApiError> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(wrong(name, "true or false", other)),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, "a string", other)),
        }
    }

    /// A count of at least one.
    pub(super) fn count(&self, name: &str) -> Result<Option<u32>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let count = value.as_u64().filter(|count| *count > 0).and_then(|count| u32::try_from(count).ok());
        count.map(Some).ok_or_else(|| wrong(name, "a whole number of at least 1", value))
    }

    /// A number that `fits`; `expect` says what would.
    pub(super) fn number(
        &self,
        name: &str,
        expect: &str,
        default: f64,
        fits: fn(f64) -> bool,
    ) -> Result<f64, ApiError> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.as_f64().filter(|number| fits(*number)).ok_or_else(|| wrong(name, expect, value))
    }

    /// Refuses fields that would change the answer in a way that is not supported yet: those of `table` with another value than the
    /// one it says.
    pub(super) fn refuse_unless(&self, table: &[(&str, Neutral)]) -> Result<(), ApiError> {
        // A body has few fields, and the table many.
        for (name, value) in self.0.iter().filter(|(_, value)| !value.is_null()) {
            let Some((_, neutral)) = table.iter().find(|(known, _)| known == name) else { continue };
            if neutral.holds(value) {
                continue;
            }
            let mend = match neutral {
                Neutral::Number(number) => format!("leave it out or set it to {number}"),
                Neutral::False => "leave it out or set it to false".to_owned(),
                Neutral::Empty => "leave it out".to_owned(),
                Neutral::Word(words) => format!("leave it out or set it to {}", words.join(" or ")),
            };
            let message = format!("{name} {} is not supported yet; {mend}", named(value));
            return Err(ApiError::field(name, message));
        }
        Ok(())
    }
}

/// 400: the field has the wrong type or range.
pub(super) fn wrong(name: &str, expect: &str, value: &Value) -> ApiError {
    ApiError::field(name, format!("{name} must be {expect}, not {}", named(value)))
}
