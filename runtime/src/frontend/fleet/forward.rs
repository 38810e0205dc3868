//! Forwards one request to a node, and its answer to the client.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix_web::http::header::{self, HeaderName};
use actix_web::http::{Method, StatusCode};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, web};
use actors::fleet::{FleetAsk, FleetRefusal, NodeId, Ticket, TicketId};
use awc::error::SendRequestError;
use futures_util::StreamExt;
use futures_util::stream::unfold;
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::{ATTEMPTS, FleetProxy, refused};
use crate::frontend::api_error::ApiError;
use crate::frontend::body::{self, Body};
use crate::frontend::connection::Connection;
use crate::frontend::openai::{self, ApiKind, RoutedPrompt};
use crate::frontend::prompts::Reader;

/// Maximum time for a connection to a node.
const CONNECT: Duration = Duration::from_secs(1);

/// Headers of a node's answer that do not concern one connection only.
const PASSED: &[HeaderName] =
    &[header::CONTENT_TYPE, header::CACHE_CONTROL, header::RETRY_AFTER, header::ALLOW];

/// A client for the nodes. The deadline of a request limits its time.
pub(super) fn client() -> awc::Client {
    let connector = awc::Connector::new().limit(0).timeout(CONNECT);
    awc::Client::builder().connector(connector).disable_timeout().disable_redirects().finish()
}

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
    client: &awc::Client,
    http: HttpRequest,
    payload: web::Payload,
) -> HttpResponse {
    match answer(kind, &proxy, client, &http, payload).await {
        Ok(response) => response,
        Err(error) => refused(&proxy, error),
    }
}

async fn answer(
    kind: ApiKind,
    proxy: &Arc<FleetProxy>,
    client: &awc::Client,
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
        let send = send(client, http, &member.address, &ticket, proxy.api_key.as_deref(), bytes.clone());
        let sent = tokio::select! {
            sent = timeout_at(deadline.into(), send) => sent.map_err(|_| late(proxy))?,
            _ = cut.changed() => Err(SendRequestError::Timeout),
        };
        match sent {
            Ok(response) if response.status() == StatusCode::SERVICE_UNAVAILABLE && !last => {
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
    client: &awc::Client,
    http: &HttpRequest,
    address: &str,
    ticket: &Ticket,
    key: Option<&str>,
    body: Bytes,
) -> Result<Answer, SendRequestError> {
    let mut request = client
        .request(Method::POST, format!("http://{address}{}", http.uri().path()))
        .insert_header((header::CONTENT_TYPE, "application/json"));
    if let Some(id) = http.headers().get("x-request-id") {
        request = request.insert_header(("x-request-id", id.clone()));
    }
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    if let Some(prefiller) = ticket.prefill_on {
        request = request.insert_header(("x-prefiller-host-port", prefiller.to_string()));
    }
    request.send_body(body).await
}

type Answer = awc::ClientResponse;

/// The answer for the client: that of the node. If the node is lost, the client's connection breaks.
fn pass_on(answer: Answer, live: Live, cut: watch::Receiver<u64>, held: impl Send + 'static) -> HttpResponse {
    let mut response = HttpResponse::build(answer.status());
    for name in PASSED {
        if let Some(value) = answer.headers().get(name) {
            response.insert_header((name.clone(), value.clone()));
        }
    }
    let length = answer.headers().get(header::CONTENT_LENGTH);
    if let Some(length) = length.and_then(|length| length.to_str().ok()?.parse().ok()) {
        response.no_chunking(length);
    }
    let state = (answer, live, cut, held);
    response.streaming(unfold(state, async |(mut answer, live, mut cut, held)| {
        let chunk = tokio::select! {
            chunk = answer.next() => chunk?.map_err(io::Error::other),
            _ = cut.changed() => Err(io::Error::other("the node is silent")),
        };
        if let Err(error) = &chunk {
            live.proxy.counts.broken.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("an answer broke off: {error}");
        }
        Some((chunk, (answer, live, cut, held)))
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
