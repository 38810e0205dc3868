//! One function an endpoint.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use actix::MailboxError;
use actix_web::error::PayloadError;
use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use actix_web::{FromRequest, HttpRequest, HttpResponse, web};
use actors::request::{Generate, RequestError, RequestId, StreamEvent};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{timeout, timeout_at};
use tracing::warn;

use super::Frontend;
use super::access_log::log_end;
use super::admission::{next_request, permit, public_id};
use super::api_error::ApiError;
use super::connection::Connection;
use super::fields::Fields;
use super::openai::{Ask, Kind};
use super::reply::{EndRule, Live, Reply};
use super::response::{Answer, Head, Usage, models};
use super::served_model::ServedModel;
use super::stream::{EventShape, events};
use super::tokenizer::Detokenizer;

/// Largest body: a prompt of 128k token ids spelt as a JSON list is 1 MiB, as text less.
pub(super) const BODY_BYTES_MAX: usize = 8 << 20;

/// A body up to this long takes well under a millisecond to read.
const READ_HERE_BYTES_MAX: usize = 4 << 10;

/// How long the proxy may take to accept or refuse; it decides from memory, so this only ends the wait for a stuck one.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);

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

pub(super) async fn health(frontend: Shared) -> HttpResponse {
    let health = (frontend.health)();
    let status = if health.reason_down.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    HttpResponse::build(status).content_type("application/json").body(health.body())
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
async fn json_body(
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
    model: &Arc<ServedModel>,
    permit: OwnedSemaphorePermit,
) -> Result<(Ask, OwnedSemaphorePermit), ApiError> {
    let model = Arc::clone(model);
    let long = body.len() > READ_HERE_BYTES_MAX;
    let read = move || Ok((Ask::read(kind, &Fields::parse(&body)?, &model)?, permit));
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
    let permit = permit(&frontend.permits)?;
    let deadline = Instant::now() + frontend.deadline;
    if let Some(connection) = Connection::of(&http) {
        connection.admitted(deadline);
    }
    let (ask, permit) = match timeout_at(deadline.into(), read(kind, body, &frontend.model, permit)).await {
        Ok(read) => read?,
        Err(_) => {
            let deadline_ms = frontend.deadline.as_millis() as u64;
            return Err(RequestError::Deadline { deadline_ms }.into());
        }
    };
    let wanted = http.headers().get("x-request-id").and_then(|id| id.to_str().ok());
    let head = Head {
        kind,
        id: public_id(kind, wanted.or(ask.request_id.as_deref())),
        created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        model: frontend.model.name.clone(),
    };
    let (live, source) =
        Live::open(next_request(), ask.max_tokens, &frontend.streams, &frontend.abort, permit);
    let mut reply = submit(&frontend, &ask, live, source, deadline).await?;

    let Some(options) = ask.stream else {
        return whole(&head, &ask, reply).await;
    };
    let keep_alive = frontend.limits.keep_alive;
    // For a while, a failure still gets an HTTP status of its own; then the response starts without a token.
    if let Ok(first) = timeout(keep_alive, reply.next()).await {
        let first = first.map_err(|error| failed(&head, reply.request(), error))?;
        reply.unread(first);
    }
    let shape = EventShape {
        head,
        prompt: ask.prompt,
        options,
        return_token_ids: ask.return_token_ids,
        return_timings: ask.return_timings,
    };
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream; charset=utf-8")
        .insert_header((CACHE_CONTROL, "no-cache"))
        .streaming(events(shape, reply, keep_alive)))
}

/// Hands the request to the proxy.
async fn submit(
    frontend: &Frontend,
    ask: &Ask,
    live: Live,
    source: mpsc::Receiver<StreamEvent>,
    deadline: Instant,
) -> Result<Reply, ApiError> {
    let rule =
        EndRule { max_tokens: ask.max_tokens, ignore_eos: ask.ignore_eos, eos: frontend.model.eos.clone() };
    let detokenizer = Detokenizer::new(Arc::clone(&frontend.model.tokenizer), ask.skip_special_tokens);
    // The reply holds the guard while the proxy decides: a client that leaves now still aborts its request.
    let give_up = deadline + frontend.limits.grace;
    let reply = Reply::new(live, source, rule, detokenizer, frontend.deadline, give_up);
    let generate = Generate {
        request: reply.request(),
        prompt: ask.prompt.as_slice().into(),
        max_tokens: ask.max_tokens,
        sampling: ask.sampling.clone().into(),
        ignore_eos: ask.ignore_eos,
        deadline,
        route: frontend.route,
    };
    match frontend.generate.send(generate).timeout(ACCEPT_TIMEOUT).await {
        Ok(Ok(())) => Ok(reply),
        Ok(Err(refused)) => {
            reply.refused();
            Err(refused.into())
        }
        Err(error) => {
            let reason = match error {
                MailboxError::Closed => "the proxy has stopped",
                MailboxError::Timeout => "the proxy does not answer",
            };
            warn!(request = %reply.request(), reason, "request could not be handed over");
            let message = format!("server cannot take requests: {reason}; see /health");
            Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message))
        }
    }
}

/// The answer in one response.
async fn whole(head: &Head, ask: &Ask, mut reply: Reply) -> Result<HttpResponse, ApiError> {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    let (finish, timings) = loop {
        let piece = reply.next().await.map_err(|error| failed(head, reply.request(), error))?;
        text += &piece.text;
        tokens.extend(piece.token);
        if let Some(end) = piece.finish {
            break end;
        }
    };
    log_end(head, reply.request(), &Ok((finish, &timings)));
    let answer = Answer {
        text: &text,
        finish,
        usage: Usage::new(ask.prompt.len() as u32, tokens.len() as u32),
        token_ids: ask.return_token_ids.then_some((&*ask.prompt, &*tokens)),
        timings: ask.return_timings.then(|| timings.into()),
    };
    Ok(HttpResponse::Ok().content_type("application/json").body(head.response(answer)))
}

fn failed(head: &Head, request: RequestId, error: RequestError) -> ApiError {
    log_end(head, request, &Err(error.clone()));
    error.into()
}
