//! One function an endpoint.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use actix::dev::SendError;
use actix_web::error::PayloadError;
use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use actix_web::{FromRequest, HttpRequest, HttpResponse, web};
use actors::request::{Generate, Refused, RequestError};
use engine::Token;
use tokio::time::{timeout, timeout_at};

use super::Frontend;
use super::admission::{Permit, next_request, public_id};
use super::api_error::ApiError;
use super::choices::{Choices, Failure};
use super::connection::Connection;
use super::fields::Fields;
use super::logprobs::report;
use super::observed::Ended;
use super::openai::{Ask, Kind, check_name};
use super::reply::{EndRule, Finish, Live, Reply};
use super::response::{Answer, Choice, Head, Usage, model_card, models};
use super::stream::{EventShape, events};
use super::tokenizer::Detokenizer;

/// Largest body: a prompt of 128k token ids spelt as a JSON list is 1 MiB, as text less.
pub(super) const BODY_BYTES_MAX: usize = 8 << 20;

/// A body up to this long takes well under a millisecond to read.
const READ_HERE_BYTES_MAX: usize = 4 << 10;

type Shared = web::Data<Frontend>;

pub(super) async fn completions(frontend: Shared, request: HttpRequest, body: web::Payload) -> HttpResponse {
    generate(Kind::Completion, frontend.into_inner(), request, body).await.unwrap_or_else(|e| e.response())
}

pub(super) async fn chat_completions(
    frontend: Shared,
    request: HttpRequest,
    body: web::Payload,
) -> HttpResponse {
    generate(Kind::Chat, frontend.into_inner(), request, body).await.unwrap_or_else(|e| e.response())
}

pub(super) async fn list_models(frontend: Shared) -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(models(&frontend.model))
}

pub(super) async fn show_model(frontend: Shared, name: web::Path<String>) -> HttpResponse {
    match check_name(&name, &frontend.model) {
        Ok(()) => HttpResponse::Ok().content_type("application/json").body(model_card(&frontend.model)),
        Err(error) => error.response(),
    }
}

pub(super) async fn health(frontend: Shared) -> HttpResponse {
    let health = (frontend.health)();
    let status = if health.reason_down.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    HttpResponse::build(status).content_type("application/json").body(health.body())
}

/// As `/health`, for probes that look at the status only.
pub(super) async fn ping(frontend: Shared) -> HttpResponse {
    let down = (frontend.health)().reason_down.is_some();
    if down { HttpResponse::ServiceUnavailable() } else { HttpResponse::Ok() }.finish()
}

pub(super) async fn version() -> HttpResponse {
    HttpResponse::Ok().json(serde_json::json!({ "version": env!("CARGO_PKG_VERSION") }))
}

/// Answers that are being computed.
pub(super) async fn load(frontend: Shared) -> HttpResponse {
    HttpResponse::Ok().json(serde_json::json!({ "server_load": frontend.permits.taken() }))
}

pub(super) async fn metrics(frontend: Shared) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body((frontend.metrics)())
}

pub(super) async fn no_such_path(request: HttpRequest) -> HttpResponse {
    let message = format!("there is nothing at {}", request.path());
    ApiError::new(StatusCode::NOT_FOUND, message).response()
}

/// 405 with the one method that the path has.
pub(super) fn only(method: &'static str) -> impl Fn(HttpRequest) -> std::future::Ready<HttpResponse> + Clone {
    move |request| {
        let message = format!("{} takes {method}, not {}", request.path(), request.method());
        let mut response = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message).response();
        let allow = actix_web::http::header::HeaderValue::from_static(method);
        response.headers_mut().insert(ALLOW, allow);
        std::future::ready(response)
    }
}

/// The body's bytes, if it is JSON of a size that is taken and comes within `period`. Holds no permit: at most a body for each
/// connection.
pub(super) async fn json_body(
    request: &HttpRequest,
    body: web::Payload,
    period: Duration,
) -> Result<web::Bytes, ApiError> {
    if let Some(content_type) = request.headers().get(CONTENT_TYPE) {
        let essence = content_type.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") && !essence.is_empty() {
            let message = format!("content-type must be application/json, not {essence}");
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
    }
    let bytes = web::Bytes::from_request(request, &mut body.into_inner());
    let late = |_| {
        let message = format!("body did not arrive within {period:?}; send all of it at once");
        ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
    };
    timeout(period, bytes).await.map_err(late)?.map_err(|error| match error.as_error::<PayloadError>() {
        Some(PayloadError::Overflow) => ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("body is larger than {BODY_BYTES_MAX} bytes; send a shorter prompt"),
        ),
        _ => ApiError::new(StatusCode::BAD_REQUEST, format!("body could not be read: {error}")),
    })
}

/// Parses, renders and tokenises; a body of any length off the worker, whose other streams go on meanwhile. The permit goes
/// along and comes back: it is not free before the work is done, even if the client has left, so no more work waits for a
/// thread than there are permits.
async fn read(
    kind: Kind,
    body: web::Bytes,
    frontend: &Frontend,
    permits: Vec<Permit>,
) -> Result<(Ask, Vec<Permit>), ApiError> {
    let (model, most) = (Arc::clone(&frontend.model), frontend.permits.most());
    let long = body.len() > READ_HERE_BYTES_MAX;
    let read = move || Ok((Ask::read(kind, &Fields::parse(&body)?, &model, most)?, permits));
    if !long {
        return read();
    }
    let busy = |_| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server is busy; retry after a second");
    web::block(read).await.map_err(busy)?
}

async fn generate(
    kind: Kind,
    frontend: Arc<Frontend>,
    http: HttpRequest,
    body: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let body = json_body(&http, body, frontend.limits.body).await?;
    let permits = frontend.permits.take(0, 1)?;
    let deadline = Instant::now() + frontend.deadline;
    if let Some(connection) = Connection::of(&http) {
        connection.admitted(deadline);
    }
    let (ask, mut permits) = match timeout_at(deadline.into(), read(kind, body, &frontend, permits)).await {
        Ok(read) => read?,
        Err(_) => {
            let deadline_ms = frontend.deadline.as_millis() as u64;
            return Err(RequestError::Deadline { deadline_ms }.into());
        }
    };
    permits.extend(frontend.permits.take(1, ask.choices() - 1)?);
    let wanted = http.headers().get("x-request-id").and_then(|id| id.to_str().ok());
    let head = Head {
        kind,
        id: public_id(kind, wanted.or(ask.request_id.as_deref())),
        created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        model: frontend.model.name.clone(),
    };
    let mut replies = Vec::with_capacity(ask.choices());
    for (choice, permit) in permits.into_iter().enumerate() {
        replies.push(submit(&frontend, &ask, choice, permit, deadline)?);
    }
    let mut choices = Choices::new(replies);

    let Some(options) = ask.stream else {
        return whole(&frontend, &head, &ask, choices).await;
    };
    let keep_alive = frontend.limits.keep_alive;
    // For a while, a failure still gets an HTTP status of its own; then the response starts without a token.
    if let Ok(first) = timeout(keep_alive, choices.next()).await {
        let first = first.map_err(|failure| failed(&frontend, &head, &failure))?;
        choices.unread(first);
    }
    let (tokenizer, observed) = (frontend.model.tokenizer.clone(), frontend.observed.clone());
    let shape = EventShape { head, ask, options, tokenizer, observed };
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream; charset=utf-8")
        .insert_header((CACHE_CONTROL, "no-cache"))
        .streaming(events(shape, choices, keep_alive)))
}

/// Hands one choice of the request to the proxy, whose word, if it is not taken, comes as the reply's end.
fn submit(
    frontend: &Frontend,
    ask: &Ask,
    choice: usize,
    permit: Permit,
    deadline: Instant,
) -> Result<Reply, ApiError> {
    let (model, prompt) = (&frontend.model, ask.prompt_of(choice));
    let (live, source) = Live::open(
        next_request(),
        prompt.max_tokens,
        &frontend.streams,
        &frontend.abort,
        permit.for_an_answer(&frontend.permits),
    );
    let rule = EndRule { max_tokens: prompt.max_tokens, ignore_eos: ask.ignore_eos, eos: model.eos.clone() };
    let detokenizer = Detokenizer::new(Arc::clone(&model.tokenizer), ask.skip_special_tokens);
    let give_up = deadline + frontend.limits.grace;
    let reply = Reply::new(live, source, rule, detokenizer, ask.stop.clone(), frontend.deadline, give_up);
    let generate = Generate {
        request: reply.request(),
        prompt: Arc::clone(&prompt.tokens),
        max_tokens: prompt.max_tokens,
        sampling: ask.sampling_of(choice).into(),
        ignore_eos: ask.ignore_eos,
        deadline,
        route: frontend.route,
    };
    match frontend.generate.try_send(generate) {
        Ok(()) => Ok(reply),
        Err(error) => {
            let refused = match error {
                SendError::Full(_) => Refused::Busy,
                SendError::Closed(_) => Refused::ShuttingDown,
            };
            reply.refused();
            Err(refused.into())
        }
    }
}

/// A choice that is collected.
struct Collected {
    text: String,
    tokens: Vec<Token>,
    finish: Option<Finish>,
}

/// The answer in one response.
async fn whole(
    frontend: &Frontend,
    head: &Head,
    ask: &Ask,
    mut choices: Choices,
) -> Result<HttpResponse, ApiError> {
    let begun =
        |choice| Collected { text: ask.prompt_of(choice).echo.clone(), tokens: Vec::new(), finish: None };
    let mut all: Vec<Collected> = (0..ask.choices()).map(begun).collect();
    while !choices.is_over() {
        let (choice, piece) = choices.next().await.map_err(|failure| failed(frontend, head, &failure))?;
        let collected = &mut all[choice];
        collected.text += &piece.text;
        collected.tokens.extend(piece.token);
        if let (Some(finish), Some(request)) = (piece.finish, choices.request(choice)) {
            let ended = Ended { head, choice, request };
            frontend.observed.end(&ended, Ok((finish.reason, &finish.timings)));
            collected.finish = Some(finish);
            choices.ended(choice);
        }
    }
    let sampled = all.iter().map(|choice| choice.tokens.len() as u32).sum();
    let ids: Vec<Vec<u32>> =
        all.iter().map(|choice| choice.tokens.iter().map(|token| token.id).collect()).collect();
    let mut timings = None;
    let mut answers = Vec::with_capacity(all.len());
    for (index, (choice, ids)) in all.iter().zip(&ids).enumerate() {
        let Some(finish) = &choice.finish else { continue };
        timings = ask.return_timings.then(|| finish.timings.clone().into());
        answers.push(Choice {
            text: &choice.text,
            finish: finish.reason,
            stop: finish.stop.as_ref(),
            logprobs: report(head.kind, &frontend.model.tokenizer, &choice.tokens, 0),
            token_ids: ask.return_token_ids.then_some((&*ask.prompt_of(index).tokens, &**ids)),
        });
    }
    let answer = Answer { choices: answers, usage: Usage::new(ask.prompt_tokens(), sampled), timings };
    Ok(HttpResponse::Ok().content_type("application/json").body(head.response(answer)))
}

fn failed(frontend: &Frontend, head: &Head, failure: &Failure) -> ApiError {
    frontend.observed.end(&failure.of(head), Err(&failure.error));
    failure.error.clone().into()
}
