//! The spans of a request at an HTTP port of this process.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actors::request::Timings;
use connector::frame::TraceContext;
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;

use super::header;
use super::{ClockPair, Exporter, Span, Traces, attribute, new_span, new_trace};
use common::splitmix::random_word;

/// The record of a request. The span of the request is exported when the record is dropped, which is at the end of the response.
pub struct RequestTrace {
    exporter: Arc<Exporter>,
    /// The trace, and the span of the request.
    context: TraceContext,
    /// The client's span.
    parent: Option<[u8; 8]>,
    path: &'static str,
    arrived: Instant,
    clock: ClockPair,
    facts: Mutex<Facts>,
}

/// What is known of a request so far.
#[derive(Default)]
struct Facts {
    /// The status of the response, once it has begun.
    status: Option<u16>,
    /// The reason in one word if the request failed.
    failure: Option<&'static str>,
    attributes: Vec<KeyValue>,
    /// When the request was read and its wait in the queue began.
    queued: Option<Instant>,
    /// When its answers began.
    began: Option<Instant>,
    /// The answers of the request that have not ended, by their index.
    running: BTreeSet<usize>,
    /// The request has several answers.
    is_divided: bool,
    /// The client has got all that it was to get.
    is_done: bool,
}

/// The failure of a request whose client did not wait for its end.
const CLIENT_LEFT: &str = "client_left";

/// The failure that a status of HTTP means, in one word.
fn status_word(status: u16) -> &'static str {
    match status {
        401 => "unauthorized",
        429 => "busy",
        502 => "bad_gateway",
        503 => "unavailable",
        504 => "deadline",
        500.. => "server_error",
        _ => "refused",
    }
}

/// An answer that has ended.
pub struct AnswerTrace<'a> {
    /// Index of the answer in its request.
    pub choice: usize,
    /// When the answer began.
    pub began: Instant,
    /// How long its parts took, or the reason in one word if it failed.
    pub outcome: Result<&'a Timings, &'static str>,
}

/// The parts of an answer: their names and their ends, in milliseconds after the answer began. Each part begins where the one before it ends.
fn parts_of(timings: &Timings) -> Vec<(&'static str, f64)> {
    let Timings { routed_ms, placed_ms, prefilled_ms, exposed_ms, first_token_ms, decode_ms, .. } = *timings;
    let mut parts = vec![("route", routed_ms), ("wait for pages", placed_ms), ("prefill", prefilled_ms)];
    if timings.disaggregated {
        parts.push(("exposed hand-over", prefilled_ms + exposed_ms));
    }
    parts.push(("decode", first_token_ms + decode_ms));
    parts
}

impl Traces {
    /// Begins the record of a request whose head has arrived. `parent` returns its header [`TRACEPARENT`](super::TRACEPARENT). `None` if the
    /// request is not recorded: a parent decides, or else chance.
    pub fn begin<'a>(
        &self,
        path: &'static str,
        arrived: Instant,
        parent: impl FnOnce() -> Option<&'a str>,
    ) -> Option<Arc<RequestTrace>> {
        let exporter = self.0.as_ref()?;
        let parent = parent().and_then(header::read);
        let is_recorded = match &parent {
            Some(parent) => parent.flags & TraceContext::RECORDED != 0,
            None => exporter.below == u64::MAX || random_word() < exporter.below,
        };
        is_recorded.then(|| {
            Arc::new(RequestTrace {
                exporter: Arc::clone(exporter),
                context: TraceContext {
                    trace: parent.map_or_else(new_trace, |parent| parent.trace),
                    span: new_span(),
                    flags: TraceContext::RECORDED,
                },
                parent: parent.map(|parent| parent.span),
                path,
                arrived,
                clock: ClockPair::now(),
                facts: Mutex::default(),
            })
        })
    }

    /// The header for a node to which a request goes that is not recorded, so that the node does not record it either. `None` if it gets none.
    pub fn unrecorded(&self, parent: Option<&str>) -> Option<String> {
        let given = parent.and_then(header::read);
        let own = || TraceContext { trace: new_trace(), span: new_span(), flags: 0 };
        given.or_else(|| self.is_on().then(own)).map(|context| header::write(&context))
    }
}

impl RequestTrace {
    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id of the trace, in hexadecimal digits.
    pub fn id(&self) -> String {
        header::trace_id(&self.context)
    }

    /// The request was read, and waits in the queue from now on.
    pub fn queued(&self, id: &str, model: &str) {
        let mut facts = self.facts();
        facts.queued = Some(Instant::now());
        facts.attributes.push(attribute("gen_ai.response.id", id.to_owned()));
        facts.attributes.push(attribute("gen_ai.response.model", model.to_owned()));
    }

    /// The request was read and goes to nodes from now on.
    pub fn read(&self, id: &str) {
        let mut facts = self.facts();
        let now = Some(Instant::now());
        (facts.queued, facts.began) = (now, now);
        facts.attributes.push(attribute("baton.request_id", id.to_owned()));
    }

    /// The answers began at this time.
    pub fn began(&self, at: Instant, answers: usize) {
        let mut facts = self.facts();
        (facts.began, facts.running, facts.is_divided) = (Some(at), (0..answers).collect(), answers != 1);
    }

    /// The status of the response. A fault of the server is a failure; that of a client is none.
    pub fn responded(&self, status: u16) {
        let mut facts = self.facts();
        facts.status = Some(status);
        facts.is_done |= status >= 400;
        if status >= 500 {
            facts.failure.get_or_insert(status_word(status));
        }
    }

    /// The request was refused with this status, maybe after its response has begun with another one.
    pub fn refused(&self, status: u16) {
        self.failed(status_word(status));
    }

    /// The request failed for this reason in one word, maybe after the response has begun.
    pub fn failed(&self, failure: &'static str) {
        let mut facts = self.facts();
        facts.failure.get_or_insert(failure);
        facts.is_done = true;
    }

    /// The client has got the whole answer.
    pub fn finished(&self) {
        self.facts().is_done = true;
    }

    /// The span of the prefill of an answer, for the process that prefills.
    pub fn prefill_of(&self, choice: usize) -> TraceContext {
        // Every answer has its own span, which can be computed again at its end.
        let own = u64::from_le_bytes(self.context.span);
        let span = common::splitmix::mix(own ^ (choice as u64 + 1)).max(1);
        TraceContext { span: span.to_le_bytes(), ..self.context }
    }

    fn span(
        &self,
        name: impl Into<Cow<'static, str>>,
        parent: [u8; 8],
        start: Instant,
        end: Instant,
    ) -> Span {
        Span::part(self.context, parent, name, start, end)
    }

    fn export(&self, span: Span) {
        self.exporter.export(self.clock, span);
    }

    /// An answer has ended. The parts of the only answer of a request are direct children of the request.
    pub fn answered(&self, AnswerTrace { choice, began, outcome }: AnswerTrace<'_>) {
        let mut facts = self.facts();
        facts.running.remove(&choice);
        facts.is_done |= facts.running.is_empty();
        if let Err(failure) = outcome {
            facts.failure.get_or_insert(failure);
        }
        let is_only = !facts.is_divided;
        // Without these, the client got a whole answer, but the decoder never reported its times.
        let timings = outcome.ok().filter(|timings| timings.prompt_tokens > 0);
        if let (Some(timings), true) = (timings, is_only) {
            facts.attributes.extend(attributes_of(timings));
        }
        drop(facts);
        let Some(timings) = timings else {
            return self.export(self.cut_answer(choice, began, outcome.err()));
        };
        let parts = parts_of(timings);
        let after = |ms: f64| began + Duration::from_secs_f64(ms.max(0.0) / 1e3);
        let whole = (!is_only).then(|| {
            let end = after(parts.iter().fold(0.0, |latest, (_, end)| latest.max(*end)));
            let mut whole = self.span(format!("answer {choice}"), self.context.span, began, end);
            whole.attributes = attributes_of(timings).into();
            whole
        });
        let parent = whole.as_ref().map_or(self.context.span, |whole| whole.context.span);
        let mut start = began;
        for (name, end) in parts {
            let end = after(end).max(start);
            let mut part = self.span(name, parent, start, end);
            if name == "prefill" {
                part.context = self.prefill_of(choice);
                part.kind = if timings.disaggregated { SpanKind::Client } else { SpanKind::Internal };
            }
            self.export(part);
            start = end;
        }
        if let Some(whole) = whole {
            self.export(whole);
        }
    }

    /// The span of an answer whose times are not known. It is the parent of the sender's spans.
    fn cut_answer(&self, choice: usize, began: Instant, failure: Option<&'static str>) -> Span {
        let mut answer = self.span(format!("answer {choice}"), self.context.span, began, Instant::now());
        (answer.context, answer.failure) = (self.prefill_of(choice), failure);
        answer
    }

    /// Begins the record of an attempt to have a node answer the request. The node gets the header.
    pub fn attempt(self: &Arc<Self>, node: &str) -> (AttemptTrace, String) {
        let context = TraceContext { span: new_span(), ..self.context };
        let attempt = AttemptTrace {
            request: Arc::clone(self),
            context,
            node: node.to_owned(),
            began: Instant::now(),
            status: None,
            failure: None,
        };
        (attempt, header::write(&context))
    }
}

fn attributes_of(timings: &Timings) -> [KeyValue; 5] {
    [
        attribute("baton.prefill_pid", i64::from(timings.prefill_pid)),
        attribute("gen_ai.usage.input_tokens", i64::from(timings.prompt_tokens)),
        attribute("gen_ai.usage.output_tokens", i64::from(timings.completion_tokens)),
        attribute("baton.cached_tokens", i64::from(timings.cached_tokens)),
        attribute("baton.handed_over", timings.disaggregated),
    ]
}

impl Drop for RequestTrace {
    fn drop(&mut self) {
        let facts = std::mem::take(&mut *self.facts());
        let end = Instant::now();
        let Facts { status, failure, mut attributes, queued, began, running, is_done, .. } = facts;
        // A request that waited in the queue until its end never began.
        let queued_until = began.or(queued.map(|_| end));
        let parts = [("read", Some(self.arrived), queued), ("queue", queued, queued_until)];
        for (name, start, end) in parts {
            if let (Some(start), Some(end)) = (start, end)
                && start < end
            {
                self.export(self.span(name, self.context.span, start, end));
            }
        }
        let failure = failure.or((!is_done).then_some(CLIENT_LEFT));
        for choice in running {
            self.export(self.cut_answer(choice, began.unwrap_or(end), failure));
        }
        attributes.push(attribute("http.request.method", "POST"));
        attributes.push(attribute("url.path", self.path));
        attributes.extend(status.map(|status| attribute("http.response.status_code", i64::from(status))));
        self.export(Span {
            context: self.context,
            parent: self.parent,
            is_remote: self.parent.is_some(),
            kind: SpanKind::Server,
            name: format!("POST {}", self.path).into(),
            start: self.arrived,
            end,
            attributes,
            events: Vec::new(),
            failure,
        });
    }
}

/// The record of an attempt to have a node answer a request. The span is exported when the record is dropped, at the end of the node's answer.
pub struct AttemptTrace {
    request: Arc<RequestTrace>,
    context: TraceContext,
    node: String,
    began: Instant,
    status: Option<u16>,
    failure: Option<&'static str>,
}

impl AttemptTrace {
    /// The node's answer has begun.
    pub fn responded(&mut self, status: u16) {
        self.status = Some(status);
        self.failure = (status >= 400).then(|| status_word(status));
    }

    /// The attempt failed, for this reason in one word.
    pub fn failed(&mut self, reason: &'static str) {
        self.failure = Some(reason);
    }
}

impl Drop for AttemptTrace {
    fn drop(&mut self) {
        let status = self.status.map(|status| attribute("http.response.status_code", i64::from(status)));
        let mut span = self.request.span("attempt", self.request.context.span, self.began, Instant::now());
        (span.context, span.kind) = (self.context, SpanKind::Client);
        span.attributes.push(attribute("server.address", std::mem::take(&mut self.node)));
        span.attributes.extend(status);
        span.failure = self.failure;
        self.request.export(span);
    }
}
