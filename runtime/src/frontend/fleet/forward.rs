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
use super::{ATTEMPTS, FleetMember, FleetProxy, refused};
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
    // The share of the budget is free again when the answer has begun.
    let Body { bytes, held: _held } = body::read(http, payload, &proxy.memory, proxy.limits.body).await?;
    if let Some(connection) = Connection::of(http) {
        connection.answers_until(deadline);
    }
    let bytes = Bytes::from(bytes);
    let routed = read(kind, proxy, bytes.clone()).await?;
    let own = &*proxy.model.name;
    let (mut tried, mut are_busy): (Vec<NodeId>, bool) = (Vec::new(), true);
    loop {
        let ask = FleetAsk {
            model: routed.model.as_deref().or_else(|| proxy.state().serves(own).then_some(own)),
            prompt: &routed.prompt,
            salt: routed.salt,
            max_tokens: routed.max_tokens,
            tried: &tried,
        };
        let placed = proxy.state().place(Instant::now(), &ask);
        let ticket = placed.map_err(|refusal| match (refusal, routed.model.as_deref()) {
            _ if !tried.is_empty() => gave_up(tried.len(), are_busy),
            (FleetRefusal::NoModel, Some(name)) if name != own && proxy.has_models() => no_model(name),
            _ => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, FleetRefusal::NoNode.to_string()),
        })?;
        let live = Live { proxy: Arc::clone(proxy), ticket: ticket.id };
        let last = tried.len() + 1 >= ATTEMPTS;
        let gone = || ApiError::new(StatusCode::SERVICE_UNAVAILABLE, FleetRefusal::NoNode.to_string());
        let member = proxy.member(ticket.decode_on).ok_or_else(gone)?;
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
            Ok(response) if response.status() == hyper::StatusCode::UNAUTHORIZED => {
                let message = "the node refuses the proxy's API key; set the same request.api_key everywhere";
                return Err(ApiError::new(StatusCode::BAD_GATEWAY, message));
            }
            Ok(response) => {
                if response.status().is_success() {
                    proxy.state().answered(Instant::now(), ticket.id);
                }
                proxy.counts.forwarded.fetch_add(1, Ordering::Relaxed);
                return Ok(pass_on(response, &member, live, cut));
            }
            Err(error) => {
                member.warn("a request got no answer", &error);
                proxy.state().broken(Instant::now(), ticket.decode_on);
                are_busy = false;
                if last {
                    return Err(gave_up(tried.len() + 1, are_busy));
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
    member: &FleetMember,
    live: Live,
    cut: watch::Receiver<u64>,
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
    let state = Some((BodyStream::new(answer.into_body()), member.id, live, cut));
    response.streaming(unfold(state, async |state| {
        let (mut body, id, live, mut cut) = state?;
        let frame = tokio::select! {
            frame = body.next() => frame?.map_err(|error| client::with_causes(&error)),
            _ = cut.changed() => Err("the node is silent".to_owned()),
        };
        match frame {
            // A frame without data has trailers.
            Ok(frame) => Some((Ok(frame.into_data().unwrap_or_default()), Some((body, id, live, cut)))),
            Err(error) => {
                live.proxy.counts.broken.fetch_add(1, Ordering::Relaxed);
                if let Some(member) = live.proxy.member(id) {
                    member.warn("an answer broke off", &error);
                }
                Some((Err(io::Error::other(error)), None))
            }
        }
    }))
}

fn no_model(name: &str) -> ApiError {
    let error = ApiError::new(StatusCode::NOT_FOUND, format!("model {name:?} does not exist in this fleet"));
    ApiError { param: Some("model".to_owned()), ..error }
}

/// Status 503 if all nodes that got the request were busy, else 502.
fn gave_up(nodes: usize, are_busy: bool) -> ApiError {
    if are_busy {
        let message = format!("{nodes} nodes got the request and have no room for it now; retry later");
        return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message);
    }
    ApiError::new(
        StatusCode::BAD_GATEWAY,
        format!("{nodes} nodes got the request and did not answer; retry later"),
    )
}

/// Status 504: no answer began before the deadline.
fn late(proxy: &FleetProxy) -> ApiError {
    let message = format!("no node answered within {:?}", proxy.deadline);
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, message)
}
