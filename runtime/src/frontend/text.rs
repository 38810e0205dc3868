//! `/tokenize` and `/detokenize`: what the model makes of a text, without computing anything.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use serde_json::Value;

use super::Frontend;
use super::api_error::ApiError;
use super::fields::{Fields, wrong};
use super::handlers::json_body;
use super::openai::{self, Kind};
use super::response::json;
use super::served_model::ServedModel;
use super::tokenizer::Detokenizer;

#[derive(Serialize)]
struct Tokenized {
    count: usize,
    max_model_len: u32,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Detokenized {
    prompt: String,
}

pub(super) async fn tokenize(
    frontend: web::Data<Frontend>,
    request: HttpRequest,
    body: web::Payload,
) -> HttpResponse {
    answer(frontend, request, body, |fields, model| {
        let kind = if fields.get("messages").is_some() { Kind::Chat } else { Kind::Completion };
        let tokens = openai::prompt(kind, fields, model)?;
        let text = |token: &u32| model.tokenizer.text_of(*token).into_owned();
        let wanted = fields.flag("return_token_strs", false)?;
        Ok(json(&Tokenized {
            count: tokens.len(),
            max_model_len: model.context_tokens,
            token_strs: wanted.then(|| tokens.iter().map(text).collect()),
            tokens,
        }))
    })
    .await
}

pub(super) async fn detokenize(
    frontend: web::Data<Frontend>,
    request: HttpRequest,
    body: web::Payload,
) -> HttpResponse {
    answer(frontend, request, body, |fields, model| {
        let tokens = match fields.get("tokens") {
            None => return Err(ApiError::field("tokens", "tokens is missing")),
            Some(Value::Array(ids)) => openai::token_ids("tokens", ids, model)?,
            Some(other) => return Err(wrong("tokens", "a list of token ids", other)),
        };
        // As it is: what is special is spelt out.
        Ok(json(&Detokenized { prompt: Detokenizer::text(&model.tokenizer, &tokens, false) }))
    })
    .await
}

/// On another thread, since the worker has streams to serve.
async fn answer(
    frontend: web::Data<Frontend>,
    request: HttpRequest,
    body: web::Payload,
    work: impl FnOnce(&Fields, &ServedModel) -> Result<String, ApiError> + Send + 'static,
) -> HttpResponse {
    let done = async {
        let body = json_body(&request, body, frontend.limits.body).await?;
        let model = frontend.model.clone();
        let work = move || {
            let fields = Fields::parse(&body)?;
            openai::check_model(&fields, &model)?;
            work(&fields, &model)
        };
        let busy = |_| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server is busy; retry after a second");
        web::block(work).await.map_err(busy)?
    };
    match done.await {
        Ok(json) => HttpResponse::Ok().content_type("application/json").body(json),
        Err(error) => error.response(),
    }
}
