//! Forwards one request to a node, and its answer to the client.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, web};
use actors::fleet::{Failure, FleetAsk, FleetRefusal, FleetTicket, NodeId, TicketId};
use actors::routing::PromptHashes;
use futures_util::stream::unfold;
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::{Body as _, Incoming};
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::client::{self, SendError, ToNode};
use super::counts::{AnswerSource, AttemptOutcome};
use super::record::ForwardNotes;
use super::{FleetMember, FleetProxy, refused};
use crate::frontend::api_error::{ApiError, DRAINING};
use crate::frontend::body::{self, Body};
use crate::frontend::connection::Connection;
use crate::frontend::deadline_header;
use crate::frontend::generate::traceparent;
use crate::frontend::names::request_name;
use crate::frontend::openai::{self, ApiKind, RoutedPrompt};
use crate::frontend::prompts::Reader;
use crate::frontend::server_timing::SERVER_TIMING;
use crate::frontend::stream::KEEP_ALIVE;
use crate::traces::{AttemptTrace, RequestTrace, TRACEPARENT};

/// The header that names a request.
const REQUEST_ID: &str = "x-request-id";

/// The header with what other systems have added to a trace.
const TRACESTATE: &str = "tracestate";

/// Headers of a node's answer that the client gets.
const PASSED: &[&str] = &["content-type", "cache-control", "retry-after", SERVER_TIMING];

/// A live request. Dropping it tells the state that the request has ended.
struct Live {
    proxy: Arc<FleetProxy>,
    ticket: TicketId,
    /// The name of the request in logs.
    name: String,
    /// When the head of the request arrived.
    arrived: Instant,
    notes: ForwardNotes,
    /// How far a successful answer has come; `None` before its head, and for errors.
    progress: Option<AnswerProgress>,
    trace: Option<Arc<RequestTrace>>,
    /// The header `traceparent` for nodes, if the request is not recorded.
    unrecorded: Option<String>,
    /// The client's header `tracestate`.
    trace_state: Option<String>,
}

/// How far an answer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AnswerProgress {
    Head,
    Bytes,
    Complete,
}

impl Live {
    /// A request that was read and goes to nodes.
    fn new(
        proxy: &Arc<FleetProxy>,
        http: &HttpRequest,
        ticket: TicketId,
        name: String,
        (arrived, trace): (Instant, Option<Arc<RequestTrace>>),
    ) -> Self {
        if let Some(trace) = &trace {
            trace.read(&name);
        }
        let unrecorded = if trace.is_none() { proxy.traces.unrecorded(traceparent(http)) } else { None };
        let trace_state = http.headers().get(TRACESTATE).and_then(|state| state.to_str().ok());
        let trace_state = trace_state.map(str::to_owned);
        Self {
            proxy: Arc::clone(proxy),
            ticket,
            name,
            arrived,
            notes: ForwardNotes::new(arrived),
            progress: None,
            trace,
            unrecorded,
            trace_state,
        }
    }

    /// A part of the answer has come.
    fn came(&mut self, part: &[u8]) {
        let is_data = part.iter().any(|byte| !KEEP_ALIVE.as_bytes().contains(byte));
        if is_data && self.progress == Some(AnswerProgress::Head) {
            self.progress = Some(AnswerProgress::Bytes);
            let first_byte = self.arrived.elapsed();
            self.notes.first_byte = Some(first_byte);
            self.proxy.counts.first_byte(first_byte);
        }
    }

    /// The answer is complete.
    fn completed(&mut self) {
        self.proxy.state().completed(Instant::now(), self.ticket);
        if let Some(trace) = &self.trace {
            trace.finished();
        }
        let is_success = self.notes.status.is_some_and(|status| (200..300).contains(&status));
        let outcome = if is_success { "answered" } else { "rejected" };
        // An answer may be found complete twice.
        if std::mem::replace(&mut self.notes.outcome, outcome) != outcome && is_success {
            self.proxy.counts.finished.fetch_add(1, Ordering::Relaxed);
        }
        if self.progress.replace(AnswerProgress::Complete) == Some(AnswerProgress::Bytes) {
            self.proxy.counts.completed(self.arrived.elapsed());
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.proxy.state().ended(Instant::now(), self.ticket);
        let trace = || self.trace.as_ref().map(|trace| trace.id());
        self.proxy.recent.add(|| self.notes.ended(&self.name, trace()));
    }
}

/// The head of a node's answer.
struct Answer {
    response: Response<Incoming>,
    node: NodeId,
    /// Changes when the connections to the node are cut.
    cut: watch::Receiver<u64>,
    /// The record of the attempt.
    trace: Option<AttemptTrace>,
}

/// Answers a request whose head has just arrived.
pub(super) async fn forward(
    kind: ApiKind,
    proxy: Arc<FleetProxy>,
    http: HttpRequest,
    payload: web::Payload,
) -> HttpResponse {
    let arrived = Instant::now();
    let trace = proxy.traces.begin(kind.path(), arrived, || traceparent(&http));
    let result = answer(kind, &proxy, &http, payload, (arrived, trace.clone())).await;
    if let Some(trace) = trace {
        match &result {
            Ok(response) => trace.responded(response.status().as_u16()),
            Err(error) => trace.responded(error.status.as_u16()),
        }
    }
    result.unwrap_or_else(|error| refused(&proxy, error))
}

async fn answer(
    kind: ApiKind,
    proxy: &Arc<FleetProxy>,
    http: &HttpRequest,
    payload: web::Payload,
    (arrived, trace): (Instant, Option<Arc<RequestTrace>>),
) -> Result<HttpResponse, ApiError> {
    let deadline = arrived + proxy.deadline;
    // The share of the budget is free again when the answer has begun.
    let Body { bytes, held: _held } = body::read(http, payload, &proxy.memory, proxy.limits.body).await?;
    Connection::of(http).answers_until(deadline);
    let bytes = Bytes::from(bytes);
    let own = &*proxy.model.name;
    let default = proxy.state().serves(own).then_some(own);
    let read = timeout_at(deadline.into(), read(kind, proxy, default, bytes.clone())).await;
    let routed = read.map_err(|_| late(proxy))??;
    let model = routed.model.as_deref();
    let model_name = model.or(default);
    // The prompt is hashed while the state is not locked, and not at all if the state does not use the hashes.
    let page_tokens = proxy.state().page_tokens(model_name);
    let hashes = page_tokens.map(|tokens| PromptHashes::new(tokens, routed.salt, &routed.prompt));
    let ask = FleetAsk {
        model: model_name,
        prompt: &routed.prompt,
        salt: routed.salt,
        hashes: hashes.as_ref(),
        max_tokens: routed.max_tokens,
    };
    let placed = proxy.state().place(Instant::now(), &ask);
    let mut ticket = placed.map_err(|refusal| match (refusal, model) {
        (FleetRefusal::NoModel, Some(name)) if name != own && proxy.has_models() => no_model(name),
        _ => error(proxy, FleetRefusal::NoNode),
    })?;
    let wanted = http.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let name = request_name(wanted.or(routed.request_id.as_deref()));
    let mut live = Live::new(proxy, http, ticket.id, name, (arrived, trace));
    let mut key_refused = false;
    loop {
        let member = proxy.member(ticket.decode_on);
        let answer = match &member {
            Some(member) => attempt(&mut live, http.uri().path(), member, &ticket, deadline, &bytes).await,
            // The node has left the fleet a moment ago.
            None => Err(Failure::Unreachable),
        };
        let (failure, busy) = match answer {
            Ok(answer) => match answer.response.status() {
                hyper::StatusCode::SERVICE_UNAVAILABLE | hyper::StatusCode::TOO_MANY_REQUESTS => {
                    let drains = answer.response.headers().contains_key(DRAINING);
                    (if drains { Failure::Draining } else { Failure::Busy }, Some(answer))
                }
                hyper::StatusCode::UNAUTHORIZED => {
                    key_refused = true;
                    if let Some(member) = member {
                        member.warn("a request got no answer", &live.name, KEY_REFUSED);
                    }
                    (Failure::Unreachable, None)
                }
                status if status.is_success() => {
                    proxy.state().answered(Instant::now(), ticket.id);
                    return Ok(pass_on(answer, live));
                }
                _ => {
                    proxy.state().rejected(Instant::now(), ticket.id);
                    return Ok(pass_on(answer, live));
                }
            },
            Err(failure) => (failure, None),
        };
        let next = proxy.state().failed(Instant::now(), ticket.id, failure, &ask);
        ticket = match (next, busy) {
            (Ok(next), _) => next,
            (Err(FleetRefusal::Busy { .. }), Some(answer)) => return Ok(pass_on(answer, live)),
            (Err(refusal), _) => return Err(unanswered(&mut live, refusal, key_refused)),
        };
        proxy.counts.retried.fetch_add(1, Ordering::Relaxed);
    }
}

/// How a node has answered, for the metrics.
fn outcome(answer: &Result<Answer, Failure>) -> AttemptOutcome {
    use hyper::StatusCode as Status;
    match answer.as_ref().map(|answer| answer.response.status()) {
        Ok(status) if status.is_success() => AttemptOutcome::Answered,
        Ok(Status::SERVICE_UNAVAILABLE | Status::TOO_MANY_REQUESTS) => AttemptOutcome::Busy,
        Err(Failure::OutOfTime) => AttemptOutcome::OutOfTime,
        Ok(Status::UNAUTHORIZED) | Err(_) => AttemptOutcome::Failed,
        Ok(_) => AttemptOutcome::Rejected,
    }
}

/// What clients and the log are told of a node with another API key.
const KEY_REFUSED: &str = "the node refuses the proxy's API key; set the same request.api_key everywhere";

/// The error of a request that no node answers. `key_refused`: a node did not take the proxy's key.
fn unanswered(live: &mut Live, refusal: FleetRefusal, key_refused: bool) -> ApiError {
    live.notes.outcome = "no_answer";
    if key_refused {
        return ApiError::new(StatusCode::BAD_GATEWAY, KEY_REFUSED);
    }
    error(&live.proxy, refusal)
}

/// Sends a request to a node, waits for the head of the answer, and counts how the node answered.
async fn attempt(
    live: &mut Live,
    path: &str,
    member: &FleetMember,
    ticket: &FleetTicket,
    deadline: Instant,
    body: &Bytes,
) -> Result<Answer, Failure> {
    live.notes.attempt(&member.address, ticket.prefill_on);
    let attempt = member.counts.attempt();
    let answer = send(live, path, member, ticket, deadline, body).await;
    let outcome = outcome(&answer);
    match outcome {
        AttemptOutcome::Answered => drop(member.answered.fetch_add(1, Ordering::Relaxed)),
        AttemptOutcome::Failed => drop(member.failed.fetch_add(1, Ordering::Relaxed)),
        _ => (),
    }
    attempt.ended(outcome);
    answer
}

async fn send(
    live: &Live,
    path: &str,
    member: &FleetMember,
    ticket: &FleetTicket,
    deadline: Instant,
    body: &Bytes,
) -> Result<Answer, Failure> {
    let mut cut = member.cut.subscribe();
    let mut headers = client::headers(live.proxy.api_key.as_deref());
    let (mut trace, parent) = live.trace.as_ref().map(|trace| trace.attempt(&member.address)).unzip();
    if let Some(parent) = parent.as_ref().or(live.unrecorded.as_ref()) {
        client::set(&mut headers, TRACEPARENT, parent);
        // What systems of the client have added to the trace goes on unchanged.
        if let Some(state) = &live.trace_state {
            client::set(&mut headers, TRACESTATE, state);
        }
    }
    client::set(&mut headers, REQUEST_ID, &live.name);
    let left = deadline.saturating_duration_since(Instant::now());
    client::set(&mut headers, deadline_header::NAME, &allowed(left).as_millis().to_string());
    if let Some(prefiller) = ticket.prefill_on {
        client::set(&mut headers, "x-prefiller-host-port", &prefiller.to_string());
    }
    let to = ToNode { address: &member.address, path, headers, body: Some(body.clone()) };
    let (failure, reason) = tokio::select! {
        sent = timeout_at(deadline.into(), live.proxy.client.send(&to)) => match sent {
            Ok(Ok(response)) => {
                if let Some(trace) = &mut trace {
                    trace.responded(response.status().as_u16());
                }
                return Ok(Answer { response, node: member.id, cut, trace });
            }
            Ok(Err(SendError::Unreachable(reason))) => (Failure::Unreachable, reason),
            Ok(Err(SendError::Broke(reason))) => (Failure::Broke, reason),
            Err(_) => {
                // The client may have taken the time to send the body, or another node.
                let failure = if left >= live.proxy.deadline / 2 { Failure::Late } else { Failure::OutOfTime };
                (failure, "it was silent until the deadline of the request".to_owned())
            }
        },
        _ = cut.changed() => (Failure::Broke, "the node is silent".to_owned()),
    };
    if let Some(trace) = &mut trace {
        trace.failed("no_answer");
    }
    member.warn("a request got no answer", &live.name, &reason);
    Err(failure)
}

/// The time that a node gets for a request if this much is left. It is shorter, so that the node's own answer at the deadline, status 504,
/// arrives in time. A node that has not answered at all by then is at fault.
fn allowed(left: Duration) -> Duration {
    const SHORTER_MAX: Duration = Duration::from_secs(1);
    (left - (left / 16).min(SHORTER_MAX)).max(Duration::from_millis(1))
}

/// Reads what decides where the request goes. A request that names no model goes to `default`.
async fn read(
    kind: ApiKind,
    proxy: &Arc<FleetProxy>,
    default: Option<&str>,
    bytes: Bytes,
) -> Result<RoutedPrompt, ApiError> {
    let is_long = bytes.len() > body::READ_HERE_BYTES_MAX;
    let (model, memory) = (Arc::clone(&proxy.model), proxy.memory.clone());
    let context_tokens = proxy.state().context_tokens(default).unwrap_or(model.context_tokens);
    let work = move || {
        let reader = Reader { context_tokens, ..Reader::new(&model, &memory, is_long) };
        openai::routed_prompt(kind, &bytes, reader)
    };
    if is_long { proxy.memory.run_long(work).await? } else { work() }
}

/// The answer for the client: that of the node. If the node is lost, the client's connection breaks.
fn pass_on(Answer { response: answer, node, cut, trace }: Answer, mut live: Live) -> HttpResponse {
    live.proxy.counts.forwarded.fetch_add(1, Ordering::Relaxed);
    let status = StatusCode::from_u16(answer.status().as_u16()).unwrap_or(StatusCode::BAD_GATEWAY);
    live.proxy.counts.responded(AnswerSource::Node, status.as_u16());
    (live.notes.outcome, live.notes.status) = ("client_left", Some(status.as_u16()));
    live.progress = status.is_success().then_some(AnswerProgress::Head);
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
    // The attempt ends before the request.
    let state = Some((trace, answer.into_body(), node, live, cut));
    response.streaming(unfold(state, async |state| {
        let (mut trace, mut body, node, mut live, mut cut) = state?;
        let frame = tokio::select! {
            frame = body.frame() => frame.map(|frame| frame.map_err(|error| client::with_causes(&error))),
            _ = cut.changed() => Some(Err("the node is silent".to_owned())),
        };
        match frame {
            Some(Ok(frame)) => {
                // A frame without data has trailers.
                let part = frame.into_data().unwrap_or_default();
                live.came(&part);
                if body.is_end_stream() {
                    live.completed();
                }
                Some((Ok(part), Some((trace, body, node, live, cut))))
            }
            Some(Err(error)) => {
                live.notes.outcome = "broke_off";
                live.proxy.counts.broken.fetch_add(1, Ordering::Relaxed);
                if let Some(trace) = &mut trace {
                    trace.failed("broke_off");
                }
                if let Some(request) = &live.trace {
                    request.failed("broke_off");
                }
                live.proxy.state().broke_off(Instant::now(), live.ticket);
                if let Some(member) = live.proxy.member(node) {
                    member.warn("an answer broke off", &live.name, &error);
                }
                Some((Err(io::Error::other(error)), None))
            }
            None => {
                live.completed();
                None
            }
        }
    }))
}

pub(super) fn no_model(name: &str) -> ApiError {
    let error = ApiError::new(StatusCode::NOT_FOUND, format!("model {name:?} does not exist in this fleet"));
    ApiError { param: Some("model".to_owned()), ..error }
}

/// The error that a client gets for a refusal of the state.
fn error(proxy: &FleetProxy, refusal: FleetRefusal) -> ApiError {
    let status = match refusal {
        FleetRefusal::Late => return late(proxy),
        FleetRefusal::Lost { .. } => StatusCode::BAD_GATEWAY,
        FleetRefusal::NoModel | FleetRefusal::NoNode | FleetRefusal::Busy { .. } => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    ApiError::new(status, refusal.to_string())
}

/// Status 504: no answer began before the deadline.
fn late(proxy: &FleetProxy) -> ApiError {
    let message = format!("no node answered within {:?}", proxy.deadline);
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_gets_a_little_less_time_than_is_left() {
        let check = |left, expect| assert_eq!(allowed(Duration::from_millis(left)).as_millis(), expect);
        check(600_000, 599_000);
        check(16_000, 15_000);
        check(1600, 1500);
        check(1, 1);
        check(0, 1);
    }
}
