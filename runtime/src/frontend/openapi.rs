//! The OpenAPI document of the HTTP API, made from the table of fields.

mod components;

use serde_json::{Map, Value, json};

use super::field_table::{Endpoints, ROWS, Support};

/// Statuses of errors that every endpoint with a body can have, with their reasons.
const BODY_ERRORS: [(&str, &str); 7] = [
    ("400", "The request is wrong. `param` names the field."),
    ("404", "The server has no such model."),
    ("408", "The body did not arrive in time."),
    ("413", "The body is too large."),
    ("415", "The body is not JSON."),
    ("500", "The request failed."),
    ("503", "The server is busy or shuts down. `Retry-After` says when to try again."),
];

/// Further statuses of the endpoints that generate answers.
const ANSWER_ERRORS: [(&str, &str); 2] = [
    ("429", "Too many requests wait. `Retry-After` says when to try again."),
    ("504", "The deadline of the request has passed."),
];

/// Name and text of the operation of an endpoint with a body.
fn operation(endpoint: Endpoints) -> (&'static str, &'static str) {
    match endpoint {
        Endpoints::COMPLETIONS => ("Completion", "Continues prompts."),
        Endpoints::CHAT => ("ChatCompletion", "Answers a chat."),
        Endpoints::RESPONSES => {
            ("Response", "Answers a chat that is given as items. The server keeps no state between requests.")
        }
        Endpoints::TOKENIZE => ("Tokenized", "Turns a text or a chat into tokens."),
        _ => ("Detokenized", "Turns tokens into text."),
    }
}

/// The document.
pub(super) fn document() -> Value {
    let mut paths = Map::new();
    let mut schemas: Map<String, Value> = serde_json::from_str(components::SCHEMAS).unwrap_or_default();
    for (endpoint, path) in Endpoints::ALL {
        let (name, text) = operation(endpoint);
        let body = format!("{name}Request");
        paths.insert(path.to_owned(), json!({"post": post(endpoint, name, &body, text)}));
        schemas.insert(body, request(endpoint));
    }
    for (path, text, content_type, schema, is_open) in components::GETS {
        paths.insert((*path).to_owned(), json!({"get": get(path, text, content_type, schema, *is_open)}));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Baton",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "An LLM server with disaggregated prefill. A field with the value null counts as missing; unknown fields are \
                            ignored.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"api_key": {
                "type": "http",
                "scheme": "bearer",
                "description": "The key of `request.api_key`. A server without a key accepts all clients.",
            }},
        },
        "security": [{"api_key": []}],
    })
}

/// The schema of the body of requests.
fn request(endpoint: Endpoints) -> Value {
    let mut properties = Map::new();
    for row in ROWS.iter().filter(|row| row.endpoints.has(endpoint)) {
        let schema = match row.support {
            Support::Ignored { .. } => row.schema(),
            _ => json!({"anyOf": [row.schema(), {"type": "null"}]}),
        };
        properties.insert(row.name.to_owned(), schema);
    }
    let required: &[&str] = match endpoint {
        Endpoints::COMPLETIONS => &["prompt"],
        Endpoints::CHAT => &["messages"],
        Endpoints::RESPONSES => &["input"],
        Endpoints::TOKENIZE => &[],
        _ => &["tokens"],
    };
    for name in required {
        if let Some(form) = properties[*name]["anyOf"].get(0).cloned() {
            properties.insert((*name).to_owned(), form);
        }
    }
    json!({"type": "object", "required": required, "properties": properties})
}

fn post(endpoint: Endpoints, name: &str, body: &str, text: &str) -> Value {
    let is_answer = !matches!(endpoint, Endpoints::TOKENIZE | Endpoints::DETOKENIZE);
    let mut content = Map::new();
    content.insert("application/json".to_owned(), json!({"schema": reference(name)}));
    if is_answer {
        // OpenAPI 3.1 has no schema for the events of a stream.
        content.insert("text/event-stream".to_owned(), json!({}));
    }
    let text_of_answer = if is_answer {
        "The answer. If the request sets `stream`, it comes as server-sent events with JSON. The streams of completions and chats end with \
         `[DONE]`; the events of a response have types."
    } else {
        "The answer."
    };
    let mut responses = Map::new();
    responses.insert("200".to_owned(), json!({"description": text_of_answer, "content": content}));
    let errors = BODY_ERRORS.iter().chain(ANSWER_ERRORS.iter().filter(|_| is_answer));
    responses.extend(errors.map(|(status, text)| ((*status).to_owned(), error(text))));
    responses.insert("401".to_owned(), unauthorized());
    json!({
        "operationId": format!("create{name}"),
        "summary": text,
        "requestBody": {"required": true, "content": {"application/json": {"schema": reference(body)}}},
        "responses": responses,
    })
}

fn get(path: &str, text: &str, content_type: &str, schema: &str, is_open: bool) -> Value {
    let mut ok = json!({ "description": text });
    if !content_type.is_empty() {
        let mut content = Map::new();
        content.insert(content_type.to_owned(), json!({"schema": reference(schema)}));
        ok["content"] = Value::Object(content);
    }
    let mut get = json!({"summary": text, "responses": {"200": ok.clone()}});
    if is_open {
        get["security"] = json!([]);
    } else {
        get["responses"]["401"] = unauthorized();
    }
    if path.contains('{') {
        get["parameters"] = json!([{"name": "model", "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}}]);
        get["responses"]["404"] = error("The server has no such model.");
    }
    if ["/health", "/ping", "/live"].contains(&path) {
        ok["description"] = Value::from("The process cannot serve.");
        get["responses"]["503"] = ok;
    }
    get
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn error(text: &str) -> Value {
    json!({"description": text, "content": {"application/json": {"schema": reference("Error")}}})
}

fn unauthorized() -> Value {
    json!({"description": "The API key is missing or wrong.", "content": {"application/json": {"schema": reference("Unauthorized")}}})
}
