//! Structured output: reads the fields of a request that constrain its answer, and compiles them.

use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::web;
use actors::grammar::{CompiledGrammar, GrammarCompiler, GrammarError, GrammarSource, guarded};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;

use super::api_error::ApiError;
use super::fields::{Fields, Neutral, Text, elements, parsed, wrong};

/// The grammar that a request asks for.
#[derive(Debug, PartialEq)]
pub(super) struct AskedGrammar {
    /// The field that it comes from.
    pub(super) field: String,
    pub(super) source: GrammarSource,
}

impl AskedGrammar {
    /// Approximate memory of one answer's place in the grammar besides a constant, as measured for lists of words: the library copies its
    /// tables for each answer.
    pub(super) fn bytes(&self) -> usize {
        32 * self.source.text().len()
    }
}

/// Maximum number of answers in a list of choices.
const CHOICES_MAX: usize = 10_000;

/// The values of `guided_decoding_backend` that vLLM has had. Baton has one backend and ignores the field.
const BACKENDS: [&str; 5] = ["auto", "guidance", "lm-format-enforcer", "outlines", "xgrammar"];

/// Unsupported options of `structured_outputs`, and their values that do not change the answer.
const UNSUPPORTED: &[(&str, Neutral)] = &[
    ("structural_tag", Neutral::Empty),
    ("whitespace_pattern", Neutral::Empty),
    ("disable_additional_properties", Neutral::False),
];

/// The forms of a constraint, by their names in `structured_outputs` and as fields of their own.
const FORMS: [(&str, &str, Form); 5] = [
    ("json", "guided_json", Form::Json),
    ("json_object", "guided_json_object", Form::JsonObject),
    ("regex", "guided_regex", Form::Regex),
    ("choice", "guided_choice", Form::Choice),
    ("grammar", "guided_grammar", Form::Grammar),
];

#[derive(Clone, Copy)]
enum Form {
    Json,
    JsonObject,
    Regex,
    Choice,
    Grammar,
}

impl Form {
    /// The grammar of a field with this value; `None` if the value is `false`.
    fn read(self, field: String, value: &RawValue) -> Result<Option<AskedGrammar>, ApiError> {
        let text = |expect| {
            let text = parsed::<Text<'_>>(value).filter(|text| !text.0.is_empty());
            text.map(|text| text.0.into_owned()).ok_or_else(|| wrong(&field, expect, value))
        };
        let source = match self {
            Self::Json => schema(&field, value)?,
            Self::JsonObject => match parsed::<bool>(value) {
                Some(true) => any_object(),
                Some(false) => return Ok(None),
                None => return Err(wrong(&field, "true or false", value)),
            },
            Self::Regex => GrammarSource::Regex(text("a regular expression of at least one character")?),
            Self::Choice => choice(&field, value)?,
            Self::Grammar => GrammarSource::Lark(text("a grammar in Lark")?),
        };
        let bytes = source.text().len();
        if bytes > GrammarSource::BYTES_MAX {
            let message =
                format!("{field} has {bytes} bytes; at most {} are allowed", GrammarSource::BYTES_MAX);
            return Err(ApiError::field(&field, message));
        }
        Ok(Some(AskedGrammar { field, source }))
    }
}

/// A JSON schema: an object, or a string that contains it.
fn schema(field: &str, value: &RawValue) -> Result<GrammarSource, ApiError> {
    let text = match parsed::<Text<'_>>(value) {
        Some(text) => text.0.into_owned(),
        None => value.get().to_owned(),
    };
    if !text.trim_start().starts_with('{') {
        return Err(wrong(field, "a JSON schema", value));
    }
    Ok(GrammarSource::JsonSchema(text))
}

/// The schema of all JSON objects.
fn any_object() -> GrammarSource {
    GrammarSource::JsonSchema(r#"{"type":"object"}"#.to_owned())
}

/// A grammar whose answers are the strings of a list.
fn choice(field: &str, value: &RawValue) -> Result<GrammarSource, ApiError> {
    let expect = format!("a list of 1 to {CHOICES_MAX} strings");
    let list = elements(value, CHOICES_MAX).filter(|list| !list.first.is_empty() && !list.has_more());
    let list = list.ok_or_else(|| wrong(field, &expect, value))?;
    let mut grammar = "start: CHOICE\nCHOICE:".to_owned();
    for (index, element) in list.first.into_iter().enumerate() {
        let text = parsed::<Text<'_>>(element).ok_or_else(|| wrong(field, &expect, value))?;
        grammar += if index == 0 { " " } else { " | " };
        // A string in Lark has the escapes of JSON.
        grammar += &Value::from(text.0).to_string();
    }
    Ok(GrammarSource::Lark(grammar + "\n"))
}

/// Reads the grammar that a request asks for. Baton accepts vLLM's `structured_outputs` and `guided_…`, and the `format` that the request
/// asks for in OpenAI's way.
///
/// # Errors
/// 400 with a sentence that names the field.
pub(super) fn read(
    fields: &Fields<'_>,
    format: Option<AskedGrammar>,
) -> Result<Option<AskedGrammar>, ApiError> {
    if let Some(name) = fields.text("guided_decoding_backend")?
        && !BACKENDS.contains(&name.split(':').next().unwrap_or_default())
    {
        let message = format!("guided_decoding_backend must be one of {}, not {name:?}", BACKENDS.join(", "));
        return Err(ApiError::field("guided_decoding_backend", message));
    }
    let mut asked: Vec<AskedGrammar> = format.into_iter().collect();
    if let Some(options) = fields.inner("structured_outputs")? {
        options.refuse_unless(UNSUPPORTED).map_err(|error| inside("structured_outputs", error))?;
        let before = asked.len();
        for (name, _, form) in FORMS {
            let Some(value) = options.get(name) else { continue };
            asked.extend(form.read(format!("structured_outputs.{name}"), value)?);
        }
        if asked.len() == before && !options.is_empty() {
            let message = "structured_outputs must have json, json_object, regex, choice or grammar";
            return Err(ApiError::field("structured_outputs", message));
        }
    }
    for (_, name, form) in FORMS {
        let Some(value) = fields.get(name) else { continue };
        asked.extend(form.read(name.to_owned(), value)?);
    }
    if let [first, second, ..] = &asked[..] {
        let message =
            format!("{} and {} both constrain the answer; use one of them", first.field, second.field);
        return Err(ApiError::field(&second.field, message));
    }
    Ok(asked.pop())
}

/// Reads `response_format`, the format of the answer to a completion or a chat.
///
/// # Errors
/// 400 with a sentence that names the field.
pub(super) fn response_format(fields: &Fields<'_>) -> Result<Option<AskedGrammar>, ApiError> {
    const FIELD: &str = "response_format";
    let Some(format) = fields.inner(FIELD)? else { return Ok(None) };
    let described = || match format.inner("json_schema").map_err(|error| inside(FIELD, error))? {
        Some(described) => Ok(("response_format.json_schema.schema", described.get("schema"))),
        None => Ok(("response_format.json_schema", None)),
    };
    answer_format(FIELD, &format, described)
}

/// Reads `text.format`, the format of the answer to a request for a response.
///
/// # Errors
/// 400 with a sentence that names the field.
pub(super) fn text_format(fields: &Fields<'_>) -> Result<Option<AskedGrammar>, ApiError> {
    const FIELD: &str = "text.format";
    let Some(text) = fields.inner("text")? else { return Ok(None) };
    let Some(format) = text.inner("format").map_err(|error| inside("text", error))? else { return Ok(None) };
    answer_format(FIELD, &format, || Ok(("text.format.schema", format.get("schema"))))
}

/// The grammar of an answer's format in OpenAI's way. `schema` finds the schema and the name of its field.
fn answer_format<'a>(
    field: &str,
    format: &Fields<'_>,
    schema: impl FnOnce() -> Result<(&'static str, Option<&'a RawValue>), ApiError>,
) -> Result<Option<AskedGrammar>, ApiError> {
    let kind = format.text("type").map_err(|error| inside(field, error))?;
    match kind.as_deref() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(AskedGrammar { field: field.to_owned(), source: any_object() })),
        Some("json_schema") => {
            let (field, schema) = schema()?;
            let missing = || ApiError::field(field, format!("{field} is missing"));
            // The answer follows the schema also if `strict` is false.
            Form::Json.read(field.to_owned(), schema.ok_or_else(missing)?)
        }
        kind => {
            let kind = kind.map_or_else(|| "missing".to_owned(), |kind| format!("{kind:?}"));
            let field = format!("{field}.type");
            let message = format!("{field} must be text, json_object or json_schema; it is {kind}");
            Err(ApiError::field(&field, message))
        }
    }
}

/// The error of a field inside the field `outer`.
fn inside(outer: &str, error: ApiError) -> ApiError {
    let param = error.param.map(|param| format!("{outer}.{param}"));
    ApiError { message: format!("{outer}.{}", error.message), param, ..error }
}

/// Maximum number of requests that occupy a thread while they wait for the compiler.
const WAITING_MAX: usize = 8;

/// Compiles the grammars of requests. Cheap to clone; all clones share the same compiler.
#[derive(Clone)]
pub struct Grammars {
    compiler: Arc<dyn GrammarCompiler>,
    waiting: Arc<Semaphore>,
}

impl Grammars {
    /// Compiles with this compiler.
    pub fn new(compiler: Arc<dyn GrammarCompiler>) -> Self {
        Self { compiler, waiting: Arc::new(Semaphore::new(WAITING_MAX)) }
    }

    /// The compiler.
    pub fn compiler(&self) -> &Arc<dyn GrammarCompiler> {
        &self.compiler
    }

    /// Compiles a grammar. An HTTP worker waits for it without blocking.
    ///
    /// # Errors
    /// 400 if the grammar is wrong or too large, 503 if the compiler is busy, 500 if it panics.
    pub(super) async fn compile(&self, asked: &AskedGrammar) -> Result<CompiledGrammar, ApiError> {
        let outcome = match self.compiler.cached(&asked.source) {
            Some(outcome) => outcome,
            None => {
                // The semaphore is never closed.
                let turn = Arc::clone(&self.waiting).acquire_owned().await.ok();
                let (compiler, source) = (Arc::clone(&self.compiler), asked.source.clone());
                let work = move || {
                    let _turn = turn;
                    guarded(|| compiler.compile(&source))
                };
                let busy = |_| Err(GrammarError::Busy("server is busy; retry after a second".to_owned()));
                web::block(work).await.unwrap_or_else(busy)
            }
        };
        outcome.map_err(|error| refusal(&asked.field, &error))
    }
}

/// The response to a request whose grammar cannot be used.
fn refusal(field: &str, error: &GrammarError) -> ApiError {
    let status = match error {
        GrammarError::Invalid(_) | GrammarError::TooLarge(_) => StatusCode::BAD_REQUEST,
        GrammarError::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let error = ApiError::new(status, format!("{field} cannot be used: {error}"));
    ApiError { param: Some(field.to_owned()), ..error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(body: &str) -> Result<Option<AskedGrammar>, ApiError> {
        let fields = Fields::parse(body.as_bytes()).unwrap();
        read(&fields, response_format(&fields)?)
    }

    #[test]
    fn constraints_become_grammars() {
        let json = |text: &str| GrammarSource::JsonSchema(text.to_owned());
        let lark = |text: &str| GrammarSource::Lark(text.to_owned());
        for (body, field, source) in [
            (
                r#""response_format": {"type": "json_object"}"#,
                "response_format",
                json(r#"{"type":"object"}"#),
            ),
            (
                r#""response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"b": 1, "a": {}}, "strict": false}}"#,
                "response_format.json_schema.schema",
                json(r#"{"b": 1, "a": {}}"#),
            ),
            (
                r#""structured_outputs": {"json": "{\"a\": 1}"}"#,
                "structured_outputs.json",
                json(r#"{"a": 1}"#),
            ),
            (
                r#""structured_outputs": {"json_object": true, "regex": null}"#,
                "structured_outputs.json_object",
                any_object(),
            ),
            (
                r#""structured_outputs": {"regex": "a+", "whitespace_pattern": null, "disable_any_whitespace": true}"#,
                "structured_outputs.regex",
                GrammarSource::Regex("a+".to_owned()),
            ),
            (
                r#""guided_regex": "\\d", "guided_decoding_backend": "xgrammar:no-fallback""#,
                "guided_regex",
                GrammarSource::Regex("\\d".to_owned()),
            ),
            (
                r#""guided_json": {"a": 1}, "response_format": {"type": "text"}"#,
                "guided_json",
                json(r#"{"a": 1}"#),
            ),
            (r#""guided_grammar": "start: \"a\"""#, "guided_grammar", lark("start: \"a\"")),
            (
                r#""guided_choice": ["a", "b\"\\\n", "é"]"#,
                "guided_choice",
                lark("start: CHOICE\nCHOICE: \"a\" | \"b\\\"\\\\\\n\" | \"é\"\n"),
            ),
        ] {
            let found = asked(&format!("{{{body}}}"));
            assert_eq!(found, Ok(Some(AskedGrammar { field: field.to_owned(), source })), "{body}");
        }
    }

    #[test]
    fn requests_without_a_constraint_have_no_grammar() {
        for body in [
            r#"{"prompt": "a"}"#,
            r#"{"response_format": {"type": "text"}, "structured_outputs": {}, "guided_json": null}"#,
            r#"{"guided_json_object": false, "guided_decoding_backend": "auto", "structural_tag": ""}"#,
        ] {
            assert_eq!(asked(body), Ok(None), "{body}");
        }
    }

    #[test]
    fn bad_constraints_are_refused() {
        for (body, field, words) in [
            (r#""response_format": "json_object""#, "response_format", "an object"),
            (r#""response_format": {}"#, "response_format.type", "it is missing"),
            (
                r#""response_format": {"type": 1}"#,
                "response_format.type",
                "response_format.type must be a string",
            ),
            (r#""response_format": {"type": "xml"}"#, "response_format.type", "it is \"xml\""),
            (r#""response_format": {"type": "json_schema"}"#, "response_format.json_schema", "is missing"),
            (
                r#""response_format": {"type": "json_schema", "json_schema": 1}"#,
                "response_format.json_schema",
                "an object",
            ),
            (
                r#""response_format": {"type": "json_schema", "json_schema": {"name": "n"}}"#,
                "response_format.json_schema.schema",
                "is missing",
            ),
            (r#""structured_outputs": {"jsn": 1}"#, "structured_outputs", "must have json"),
            (r#""structured_outputs": {"json": [1]}"#, "structured_outputs.json", "a JSON schema, not [1]"),
            (r#""structured_outputs": {"json": "x"}"#, "structured_outputs.json", "a JSON schema"),
            (
                r#""structured_outputs": {"json_object": 1}"#,
                "structured_outputs.json_object",
                "true or false",
            ),
            (
                r#""structured_outputs": {"regex": "a", "whitespace_pattern": " "}"#,
                "structured_outputs.whitespace_pattern",
                "not supported",
            ),
            (
                r#""structured_outputs": {"regex": "a", "grammar": "start: A"}"#,
                "structured_outputs.grammar",
                "structured_outputs.regex and",
            ),
            (r#""guided_regex": """#, "guided_regex", "at least one character"),
            (r#""guided_choice": []"#, "guided_choice", "a list of 1 to"),
            (r#""guided_choice": ["a", 1]"#, "guided_choice", "strings"),
            (r#""guided_choice": "a""#, "guided_choice", "strings"),
            (r#""guided_grammar": {}"#, "guided_grammar", "a grammar in Lark"),
            (r#""guided_decoding_backend": "magic""#, "guided_decoding_backend", "one of auto"),
            (
                r#""guided_json": {"a": 1}, "response_format": {"type": "json_object"}"#,
                "guided_json",
                "use one of them",
            ),
        ] {
            let error = asked(&format!("{{{body}}}")).expect_err(body);
            assert_eq!(
                (error.status, error.param.as_deref()),
                (StatusCode::BAD_REQUEST, Some(field)),
                "{body}"
            );
            assert!(error.message.contains(words), "{body}: {}", error.message);
        }
        let long = "a".repeat(GrammarSource::BYTES_MAX + 1);
        let error = asked(&format!(r#"{{"guided_regex": "{long}"}}"#)).expect_err("long");
        assert!(error.message.contains("guided_regex has 262145 bytes"), "{}", error.message);
    }
}
