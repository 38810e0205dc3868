//! The table of the fields of requests. The readers refuse fields with it; `/openapi.json` and `docs/parameters.md` are made from it.
//!
//! A test compares the table with the fields that the readers read.

mod rows;

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::api_error::ApiError;
use super::fields::{Fields, Neutral};

pub(super) use rows::ROWS;

/// A set of endpoints that take a JSON body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Endpoints(u8);

impl Endpoints {
    pub(super) const COMPLETIONS: Self = Self(1);
    pub(super) const CHAT: Self = Self(2);
    pub(super) const RESPONSES: Self = Self(4);
    pub(super) const TOKENIZE: Self = Self(8);
    pub(super) const DETOKENIZE: Self = Self(16);

    /// Each endpoint with its path.
    pub(super) const ALL: [(Self, &'static str); 5] = [
        (Self::COMPLETIONS, "/v1/completions"),
        (Self::CHAT, "/v1/chat/completions"),
        (Self::RESPONSES, "/v1/responses"),
        (Self::TOKENIZE, "/tokenize"),
        (Self::DETOKENIZE, "/detokenize"),
    ];

    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    fn paths(self) -> Vec<&'static str> {
        Self::ALL.iter().filter(|(one, _)| self.has(*one)).map(|(_, path)| *path).collect()
    }
}

/// A field of the body of requests.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) endpoints: Endpoints,
    pub(super) support: Support,
}

/// What Baton does with a field.
#[derive(Clone, Copy)]
pub(super) enum Support {
    /// It is read. The schema is JSON Schema; the text says what the field means.
    Read { schema: &'static str, text: &'static str },
    /// It is accepted and has no effect; the text says why.
    Ignored { text: &'static str },
    /// It is refused unless its value is a neutral one.
    Refused(Neutral),
}

impl Row {
    /// The schema of its values besides null, with its description.
    pub(super) fn schema(&self) -> Value {
        let (mut schema, text) = match self.support {
            Support::Read { schema, text } => {
                (serde_json::from_str(schema).unwrap_or_default(), text.to_owned())
            }
            Support::Ignored { text } => (json!({}), format!("Ignored. {text}")),
            Support::Refused(neutral) => {
                (json!({"enum": neutral_values(neutral)}), "Not supported.".to_owned())
            }
        };
        schema["description"] = Value::from(text);
        schema
    }
}

/// The values of an unsupported field that are accepted.
fn neutral_values(neutral: Neutral) -> Vec<Value> {
    match neutral {
        Neutral::Number(number) => vec![json!(number)],
        Neutral::False => vec![json!(false)],
        Neutral::Empty => vec![json!(""), json!([]), json!({})],
        Neutral::Word(words) => words.iter().map(|word| json!(word)).collect(),
    }
}

/// Refuses the fields of a request that are not supported. `/v1/responses` also refuses fields that only other endpoints have, because
/// clients would expect an effect of them. Unknown fields are accepted.
///
/// # Errors
/// 400 with a sentence that names the field.
pub(super) fn check(endpoint: Endpoints, fields: &Fields<'_>) -> Result<(), ApiError> {
    // The outer loop is over the fields, because a body has few fields and the table has many.
    for (name, value) in fields.iter() {
        let rows = ROWS.iter().filter(|row| row.name == name);
        match rows.clone().find(|row| row.endpoints.has(endpoint)).map(|row| row.support) {
            Some(Support::Refused(neutral)) => neutral.check(name, value)?,
            None if endpoint == Endpoints::RESPONSES => {
                let others: Vec<_> = rows.flat_map(|row| row.endpoints.paths()).collect();
                if !others.is_empty() {
                    let message =
                        format!("{name} is not a field of /v1/responses; it is one of {}", others.join(", "));
                    return Err(ApiError::field(name, message));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

const HEAD: &str = "\
# Parameters

The fields of request bodies, from the table that the server uses (`runtime/src/frontend/field_table`). A test compares this page with the table;
`cargo run -p integration-tests --example parameter_table > docs/parameters.md` writes it. `/openapi.json` describes the same fields for programs.

A field with the value null counts as missing. Unknown fields are accepted and have no effect. A value of the wrong type or range is refused with
status 400; the error's `param` names the field. The default is in parentheses.
";

/// The page `docs/parameters.md`.
pub fn parameters_page() -> String {
    let mut page = HEAD.to_owned();
    // Writing to a string cannot fail.
    for (endpoint, path) in Endpoints::ALL {
        let _ = write!(page, "\n## {path}\n\n| field | value | meaning |\n|---|---|---|\n");
        for row in ROWS.iter().filter(|row| row.endpoints.has(endpoint)) {
            if let Support::Read { text, .. } = row.support {
                let _ = writeln!(page, "| `{}` | {} | {text} |", row.name, values(&row.schema()));
            }
        }
    }
    page += "\n## Accepted and ignored\n\n| field | endpoints | why |\n|---|---|---|\n";
    for row in ROWS {
        if let Support::Ignored { text } = row.support {
            let _ = writeln!(page, "| `{}` | {} | {text} |", row.name, row.endpoints.paths().join(", "));
        }
    }
    page += "\n## Not supported\n\nThe server refuses these fields, with status 400, unless they have one of the accepted values, which do not \
             change the answer. `/v1/responses`\nalso refuses the fields of other endpoints that it does not have.\n\n\
             | field | endpoints | accepted |\n|---|---|---|\n";
    for row in ROWS {
        if let Support::Refused(neutral) = row.support {
            let values: Vec<String> =
                neutral_values(neutral).iter().map(|value| format!("`{value}`")).collect();
            let paths = row.endpoints.paths().join(", ");
            let _ = writeln!(page, "| `{}` | {paths} | {} |", row.name, values.join(", "));
        }
    }
    page
}

/// Type, range and default of a schema in words.
fn values(schema: &Value) -> String {
    let mut words = if let Some(all) = schema["enum"].as_array() {
        all.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ")
    } else if let Some(reference) = schema["$ref"].as_str() {
        format!("`{}`", reference.rsplit('/').next().unwrap_or_default())
    } else if let Some(forms) = schema["anyOf"].as_array() {
        forms.iter().map(values).collect::<Vec<_>>().join(" or ")
    } else if schema["items"].is_object() {
        format!("list of {}", values(&schema["items"]))
    } else {
        schema["type"].as_str().unwrap_or("any").to_owned()
    };
    for (key, sign) in [
        ("minimum", "≥"),
        ("exclusiveMinimum", ">"),
        ("maximum", "≤"),
        ("minItems", "length ≥"),
        ("maxItems", "length ≤"),
    ] {
        if !schema[key].is_null() {
            let _ = write!(words, ", {sign} {}", schema[key]);
        }
    }
    if !schema["default"].is_null() {
        let _ = write!(words, " (`{}`)", schema["default"]);
    }
    words
}

#[cfg(test)]
mod tests;
