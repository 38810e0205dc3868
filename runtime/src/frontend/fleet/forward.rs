//! Forwards one request to a node, and its answer to the client.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use actix_web::http::StatusCode;
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, web};
use actors::fleet::{FleetAsk, FleetRefusal, FleetTicket, NodeId, TicketId};
use futures_util::StreamExt;
use futures_util::stream::unfold;
use http_body_util::BodyStream;
use hyper::body::Incoming;
use hyper::{Method, Response};
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::client::{self, ToNode};
use super::{ATTEMPTS, FleetProxy, refused};
use crate::frontend::api_error::ApiError;
use crate::frontend::body::{self, Body};
use crate::frontend::connection::Connection;
use crate::frontend::openai::{self, ApiKind, RoutedPrompt};
use crate::frontend::prompts::Reader;

/// Headers of a node's answer that the client gets.
const PASSED: &[&str] = &["content-type", "cache-control", "retry-after"];

/// A live request. Dropping it tells the state that the request has ended.
struct Live {
    proxy: Arc<FleetProxy>,
    ticket: TicketId,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.proxy.state().ended(Instant::now(), self.ticket);
    }
}

/// Answers a request whose head has just arrived.
pub(super) async fn forward(
    kind: ApiKind,
    proxy: Arc<FleetProxy>,
    http: HttpRequest,
    payload: web::Payload,
) -> HttpResponse {
    match answer(kind, &proxy, &http, payload).await {
        Ok(response) => response,
        Err(error) => refused(&proxy, error),
    }
}

async fn answer(
    kind: ApiKind,
    proxy: &Arc<FleetProxy>,
    http: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let deadline = Instant::now() + proxy.deadline;
    let Body { bytes, held } = body::read(http, payload, &proxy.memory, proxy.limits.body).await?;
    if let Some(connection) = Connection::of(http) {
        connection.answers_until(deadline);
    }
    let bytes = Bytes::from(bytes);
    let routed = Arc::new(read(kind, proxy, bytes.clone()).await?);
    let mut tried: Vec<NodeId> = Vec::new();
    loop {
        let ask = FleetAsk {
            model: routed.model.as_deref(),
            prompt: &routed.prompt,
            salt: routed.salt,
            max_tokens: routed.max_tokens,
            tried: &tried,
        };
        let placed = proxy.state().place(Instant::now(), &ask);
        let ticket = placed.map_err(|refusal| unplaced(refusal, routed.model.as_deref(), &tried))?;
        let live = Live { proxy: Arc::clone(proxy), ticket: ticket.id };
        let last = tried.len() + 1 >= ATTEMPTS;
        let Some(member) = proxy.member(ticket.decode_on) else { continue };
        let mut cut = member.cut.subscribe();
        let send = send(proxy, http, &member.address, &ticket, bytes.clone());
        let sent = tokio::select! {
            sent = timeout_at(deadline.into(), send) => sent.map_err(|_| late(proxy))?,
            _ = cut.changed() => Err("the node is silent".to_owned()),
        };
        match sent {
            Ok(response) if response.status() == hyper::StatusCode::SERVICE_UNAVAILABLE && !last => {
                proxy.counts.retried.fetch_add(1, Ordering::Relaxed);
                tried.push(ticket.decode_on);
            }
            Ok(response) => {
                proxy.state().answered(Instant::now(), ticket.id);
                proxy.counts.forwarded.fetch_add(1, Ordering::Relaxed);
                return Ok(pass_on(response, live, cut, held));
            }
            Err(error) => {
                tracing::warn!(node = member.address, "a request got no answer: {error}");
                proxy.state().broken(ticket.decode_on);
                if last {
                    return Err(lost(tried.len() + 1));
                }
                proxy.counts.retried.fetch_add(1, Ordering::Relaxed);
                tried.push(ticket.decode_on);
            }
        }
    }
}

/// Reads what decides where the request goes.
async fn read(kind: ApiKind, proxy: &Arc<FleetProxy>, bytes: Bytes) -> Result<RoutedPrompt, ApiError> {
    let is_long = bytes.len() > body::READ_HERE_BYTES_MAX;
    let (model, memory) = (Arc::clone(&proxy.model), proxy.memory.clone());
    let work = move || {
        let reader = Reader { model: &model, memory: &memory, is_long };
        openai::routed_prompt(kind, &bytes, reader)
    };
    if is_long { proxy.memory.run_long(work).await? } else { work() }
}

async fn send(
    proxy: &FleetProxy,
    http: &HttpRequest,
    address: &str,
    ticket: &FleetTicket,
    body: Bytes,
) -> Result<Response<Incoming>, String> {
    let mut headers = client::headers(proxy.api_key.as_deref());
    if let Some(id) = http.headers().get("x-request-id") {
        client::set(&mut headers, "x-request-id", id.as_bytes());
    }
    if let Some(prefiller) = ticket.prefill_on {
        client::set(&mut headers, "x-prefiller-host-port", prefiller.to_string().as_bytes());
    }
    let path = http.uri().path();
    proxy.client.send(ToNode { method: Method::POST, address, path, headers, body }).await
}

/// The answer for the client: that of the node. If the node is lost, the client's connection breaks.
fn pass_on(
    answer: Response<Incoming>,
    live: Live,
    cut: watch::Receiver<u64>,
    held: impl Send + 'static,
) -> HttpResponse {
    let status = StatusCode::from_u16(answer.status().as_u16()).unwrap_or(StatusCode::BAD_GATEWAY);
    let mut response = HttpResponse::build(status);
    let text = |name: &str| answer.headers().get(name)?.to_str().ok();
    for name in PASSED {
        if let Some(value) = text(name) {
            response.insert_header((*name, value));
        }
    }
    if let Some(length) = text("content-length").and_then(|length| length.parse().ok()) {
        response.no_chunking(length);
    }
    let state = Some((BodyStream::new(answer.into_body()), live, cut, held));
    response.streaming(unfold(state, async |state| {
        let (mut body, live, mut cut, held) = state?;
        let frame = tokio::select! {
            frame = body.next() => frame?.map_err(|error| client::with_causes(&error)),
            _ = cut.changed() => Err("the node is silent".to_owned()),
        };
        match frame {
            // A frame without data has trailers.
            Ok(frame) => Some((Ok(frame.into_data().unwrap_or_default()), Some((body, live, cut, held)))),
            Err(error) => {
                live.proxy.counts.broken.fetch_add(1, Ordering::Relaxed);
                tracing::warn!("an answer broke off: {error}");
                Some((Err(io::Error::other(error)), None))
            }
        }
    }))
}

fn unplaced(refusal: FleetRefusal, model: Option<&str>, tried: &[NodeId]) -> ApiError {
    match (refusal, model) {
        (FleetRefusal::NoModel, Some(model)) => {
            let message = format!("model {model:?} does not exist in this fleet");
            ApiError { param: Some("model".to_owned()), ..ApiError::new(StatusCode::NOT_FOUND, message) }
        }
        _ if !tried.is_empty() => lost(tried.len()),
        _ => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, FleetRefusal::NoNode.to_string()),
    }
}

/// Status 502: the nodes that got the request did not answer.
fn lost(nodes: usize) -> ApiError {
    ApiError::new(
        StatusCode::BAD_GATEWAY,
        format!("{nodes} nodes got the request and none answered; retry later"),
    )
}

/// Status 504: no answer began before the deadline.
fn late(proxy: &FleetProxy) -> ApiError {
    let message = format!("no node answered within {:?}", proxy.deadline);
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, message)
}
