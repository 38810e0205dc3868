//! The endpoints `/tokenize` and `/detokenize`.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;

use super::Frontend;
use super::api_error::ApiError;
use super::body;
use super::fields::Fields;
use super::openai::{self, ApiKind};
use super::prompts::Reader;
use super::response::json;
use super::tokenizer::{Detokenizer, SpecialTokens};

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

/// Handler of `/tokenize`.
pub(super) async fn tokenize(
    frontend: web::Data<Frontend>,
    request: HttpRequest,
    payload: web::Payload,
) -> HttpResponse {
    answer(frontend.into_inner(), request, payload, |fields, reader| {
        let kind = if fields.get("messages").is_some() { ApiKind::Chat } else { ApiKind::Completion };
        let tokens = openai::prompt(kind, fields, reader)?;
        let model = reader.model;
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

/// Handler of `/detokenize`.
pub(super) async fn detokenize(
    frontend: web::Data<Frontend>,
    request: HttpRequest,
    payload: web::Payload,
) -> HttpResponse {
    answer(frontend.into_inner(), request, payload, |fields, reader| {
        let tokens = fields.get("tokens").ok_or_else(|| ApiError::field("tokens", "tokens is missing"))?;
        let tokens = reader.ids("tokens", tokens)?;
        Ok(json(&Detokenized {
            prompt: Detokenizer::text(&reader.model.tokenizer, &tokens, SpecialTokens::Show),
        }))
    })
    .await
}

/// Reads the body and responds with the JSON that `work` makes of it.
async fn answer(
    frontend: Arc<Frontend>,
    request: HttpRequest,
    payload: web::Payload,
    work: impl FnOnce(&Fields<'_>, Reader<'_>) -> Result<String, ApiError> + Send + 'static,
) -> HttpResponse {
    let done = async {
        let body = body::read(&request, payload, &frontend.memory, frontend.limits.body).await?;
        let work = |fields: &Fields<'_>, reader: Reader<'_>| {
            openai::check_model(fields, reader.model)?;
            work(fields, reader)
        };
        body.parse(&frontend, work).await
    };
    match done.await {
        Ok(json) => HttpResponse::Ok().content_type("application/json").body(json),
        Err(error) => error.response(),
    }
}
