use std::collections::BTreeSet;
use std::path::Path;

use serde_json::json;

use super::*;
use crate::frontend::memory::InputMemory;
use crate::frontend::model_text::ModelText;
use crate::frontend::model_text::testing::bytes_model;
use crate::frontend::openai::{self, ApiKind, Ask};
use crate::frontend::prompts::Reader;
use crate::frontend::served_model::ServedModel;

/// Reads a body like the endpoint does. Returns the names that were looked up, and the error.
fn read(endpoint: Endpoints, body: &Value) -> (BTreeSet<String>, Option<ApiError>) {
    let text = ModelText { context_tokens: 256, ..bytes_model() };
    let model = ServedModel::new(Path::new("m.gguf"), &text, None).unwrap();
    let memory = InputMemory::new(16 << 20, 1);
    let reader = Reader::new(&model, &memory, false);
    let text = body.to_string();
    let fields = Fields::parse(text.as_bytes()).unwrap();
    let kinds = [ApiKind::Completion, ApiKind::Chat, ApiKind::Response];
    let result = match kinds.into_iter().find(|kind| kind.endpoint() == endpoint) {
        Some(kind) => Ask::read(kind, &fields, reader, 4).map(|_| ()),
        None => {
            let kind = if body.get("messages").is_some() { ApiKind::Chat } else { ApiKind::Completion };
            openai::check_model(&fields, &model)
                .and_then(|()| openai::prompt(kind, &fields, reader).map(|_| ()))
        }
    };
    (fields.reads.take(), result.err())
}

/// A body with what the endpoint needs.
fn minimal(endpoint: Endpoints) -> Value {
    match endpoint {
        Endpoints::CHAT => json!({"messages": [{"role": "user", "content": "a"}]}),
        Endpoints::RESPONSES => json!({"input": "a"}),
        _ => json!({"prompt": "a"}),
    }
}

const ANSWERS: [Endpoints; 3] = [Endpoints::COMPLETIONS, Endpoints::CHAT, Endpoints::RESPONSES];

fn rows(endpoint: Endpoints) -> impl Iterator<Item = &'static Row> {
    ROWS.iter().filter(move |row| row.endpoints.has(endpoint))
}

#[test]
fn the_table_has_the_fields_that_the_readers_read() {
    let listed = |endpoint| -> BTreeSet<String> {
        let read = rows(endpoint).filter(|row| matches!(row.support, Support::Read { .. }));
        read.map(|row| row.name.to_owned()).collect()
    };
    for endpoint in ANSWERS {
        let (reads, error) = read(endpoint, &minimal(endpoint));
        assert_eq!(error, None);
        // Every response repeats some fields. The chat's instructions count for the memory that it takes.
        let reads: BTreeSet<String> = reads
            .into_iter()
            .filter(|name| !(name == "instructions" && endpoint != Endpoints::RESPONSES))
            .collect();
        assert_eq!(reads, listed(endpoint), "{:?}", endpoint.paths());
    }
    let mut reads = BTreeSet::from(["return_token_strs", "messages"].map(str::to_owned));
    for body in [minimal(Endpoints::TOKENIZE), minimal(Endpoints::CHAT)] {
        reads.extend(read(Endpoints::TOKENIZE, &body).0);
    }
    reads.remove("instructions");
    assert_eq!(reads, listed(Endpoints::TOKENIZE));
}

#[test]
fn each_endpoint_has_a_field_once() {
    for (endpoint, path) in Endpoints::ALL {
        let names: BTreeSet<&str> = rows(endpoint).map(|row| row.name).collect();
        assert_eq!(names.len(), rows(endpoint).count(), "{path}");
    }
}

#[test]
fn schemas_fit_the_readers() {
    for endpoint in ANSWERS {
        for row in rows(endpoint) {
            let body = |value: Value| {
                let mut body = minimal(endpoint);
                body[row.name] = value;
                body
            };
            let Support::Read { schema, .. } = row.support else { continue };
            let schema: Value = serde_json::from_str(schema).unwrap();
            let default = &schema["default"];
            if !default.is_null() {
                assert_eq!(read(endpoint, &body(default.clone())).1, None, "{}: {default}", row.name);
            }
            // No field may be a list in a list of an object.
            let error = read(endpoint, &body(json!([[{}]]))).1.expect(row.name);
            assert!(
                error.param.is_some_and(|param| param.starts_with(row.name)),
                "{}: {}",
                row.name,
                error.message
            );
            for (bound, step) in [("minimum", -1.0), ("exclusiveMinimum", 0.0), ("maximum", 1.0)] {
                let Some(bound) = schema[bound].as_f64() else { continue };
                let value = bound + step;
                let value = if schema["type"] == "integer" { json!(value as i64) } else { json!(value) };
                assert!(read(endpoint, &body(value.clone())).1.is_some(), "{}: {value}", row.name);
            }
        }
    }
}

#[test]
fn unsupported_fields_are_refused_by_name() {
    for endpoint in ANSWERS {
        for row in rows(endpoint) {
            let Support::Refused(neutral) = row.support else { continue };
            let mut body = minimal(endpoint);
            for value in neutral_values(neutral) {
                body[row.name] = value;
                assert_eq!(read(endpoint, &body).1, None, "{body}");
            }
            body[row.name] = json!([7]);
            let error = read(endpoint, &body).1.expect(row.name);
            assert_eq!(error.param.as_deref(), Some(row.name));
            assert!(error.message.contains("is not supported yet"), "{}", error.message);
        }
    }
}

#[test]
fn the_page_equals_the_table() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/parameters.md");
    assert_eq!(
        std::fs::read_to_string(page).unwrap_or_default(),
        parameters_page(),
        "write the page again: cargo run -p integration-tests --example parameter_table > docs/parameters.md"
    );
}

#[test]
fn responses_have_no_fields_of_other_endpoints() {
    let refused = |field: &str| {
        let error = read(Endpoints::RESPONSES, &json!({"input": "a", field: 1})).1.expect(field);
        assert_eq!(error.param.as_deref(), Some(field));
        error.message
    };
    assert_eq!(
        refused("max_tokens"),
        "max_tokens is not a field of /v1/responses; it is one of /v1/completions, /v1/chat/completions"
    );
    for field in ["messages", "max_completion_tokens", "response_format", "logprobs", "n", "return_timings"] {
        assert!(refused(field).contains("not a field of /v1/responses"));
    }
    assert_eq!(
        read(Endpoints::RESPONSES, &json!({"input": "a", "x": 1, "store": true, "user": "u"})).1,
        None
    );
}
