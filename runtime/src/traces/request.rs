//! The spans of a request at an HTTP port of this process.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actors::request::Timings;
use connector::frame::TraceContext;
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;

use super::header;
use super::{Exporter, SAMPLED, Span, Traces, attribute, new_span, new_trace};
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
    /// Answers that have ended.
    ended: usize,
    /// Answers of the request.
    answers: usize,
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

/// The parts of an answer: their names, and the times after its begin at which they end. Each part begins at the end of the one before it.
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
            Some(parent) => parent.flags & SAMPLED != 0,
            None => exporter.below == u64::MAX || random_word() < exporter.below,
        };
        is_recorded.then(|| {
            Arc::new(RequestTrace {
                exporter: Arc::clone(exporter),
                context: TraceContext {
                    trace: parent.map_or_else(new_trace, |parent| parent.trace),
                    span: new_span(),
                    flags: SAMPLED,
                },
                parent: parent.map(|parent| parent.span),
                path,
                arrived,
                facts: Mutex::default(),
            })
        })
    }

    /// The header for a node to which a request goes that is not recorded, so that the node does not record it either. `None` if it gets none.
    pub fn unrecorded(&self, parent: Option<&str>) -> Option<String> {
        let given = parent.map(str::to_owned);
        let own = || header::write(&TraceContext { trace: new_trace(), span: new_span(), flags: 0 });
        given.or_else(|| self.is_on().then(own))
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
        (facts.began, facts.answers) = (Some(at), answers);
    }

    /// The status of the response. `failure` is the reason in one word if the request failed.
    pub fn responded(&self, status: u16, failure: Option<&'static str>) {
        let mut facts = self.facts();
        facts.status = Some(status);
        facts.failure = facts.failure.or(failure);
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
        Span {
            context: TraceContext { span: new_span(), ..self.context },
            parent: Some(parent),
            is_remote: false,
            kind: SpanKind::Internal,
            name: name.into(),
            start,
            end,
            attributes: Vec::new(),
            events: Vec::new(),
            failure: None,
        }
    }

    /// An answer has ended. The parts of the only answer of a request are direct children of the request.
    pub fn answered(&self, AnswerTrace { choice, began, outcome }: AnswerTrace<'_>) {
        let mut facts = self.facts();
        facts.ended += 1;
        facts.failure = facts.failure.or(outcome.err());
        let is_only = facts.answers == 1;
        if let (Ok(timings), true) = (outcome, is_only) {
            facts.attributes.extend(attributes_of(timings));
        }
        drop(facts);
        let Ok(timings) = outcome else {
            let mut failed = self.span("answer", self.context.span, began, Instant::now());
            failed.failure = outcome.err().map(Into::into);
            return self.exporter.export(failed);
        };
        let parts = parts_of(timings);
        let after = |ms: f64| began + Duration::from_secs_f64(ms.max(0.0) / 1e3);
        let whole = (!is_only).then(|| {
            let end = after(parts.last().map_or(0.0, |(_, end)| *end));
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
            self.exporter.export(part);
            start = end;
        }
        if let Some(whole) = whole {
            self.exporter.export(whole);
        }
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

fn attributes_of(timings: &Timings) -> [KeyValue; 4] {
    [
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
        let Facts { status, failure, mut attributes, queued, began, ended, answers } = facts;
        // A request that waited in the queue until its end never began.
        let queued_until = began.or(queued.map(|_| end));
        let parts = [("read", Some(self.arrived), queued), ("queue", queued, queued_until)];
        for (name, start, end) in parts {
            if let (Some(start), Some(end)) = (start, end)
                && start < end
            {
                self.exporter.export(self.span(name, self.context.span, start, end));
            }
        }
        let has_left = status.is_none() || ended < answers;
        let failure = failure.or(has_left.then_some("client left"));
        attributes.push(attribute("http.request.method", "POST"));
        attributes.push(attribute("url.path", self.path));
        attributes.extend(status.map(|status| attribute("http.response.status_code", i64::from(status))));
        attributes.extend(failure.map(|failure| attribute("error.type", failure)));
        self.exporter.export(Span {
            context: self.context,
            parent: self.parent,
            is_remote: self.parent.is_some(),
            kind: SpanKind::Server,
            name: format!("POST {}", self.path).into(),
            start: self.arrived,
            end,
            attributes,
            events: Vec::new(),
            failure: failure.map(Into::into),
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
        span.failure = self.failure.map(Into::into);
        self.request.exporter.export(span);
    }
}
