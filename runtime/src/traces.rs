//! Traces: what happened to a request, and when, in all processes. They are sent to a collector by OTLP over HTTP.
//!
//! - [`RequestTrace`] records a request at an HTTP port of this process, from the arrival of its head to the end of its answer.
//! - [`record_prefills`] records prompts that this process prefills for peers.
//!
//! A span is made when its request has ended, from times that are noted anyway. So a request that is not recorded costs one comparison,
//! and nothing is recorded without `traces.otlp_endpoint`. No span has text of a prompt or of an answer.

mod collector;
mod header;
mod prefill;
mod request;

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use connector::frame::TraceContext;
use opentelemetry::trace::{Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor as _};

use common::splitmix::random_word;

pub use collector::CollectorError;

pub use header::TRACEPARENT;
pub use prefill::record_prefills;
pub use request::{AnswerTrace, AttemptTrace, RequestTrace};

/// Maximum time in which the last spans are sent when the process ends.
const LAST_SPANS: Duration = Duration::from_secs(3);

/// Where traces go, and which requests are recorded. Cheap to clone.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<Exporter>>);

/// Sends spans to a collector. A full queue drops spans, so a slow collector delays no request.
struct Exporter {
    spans: BatchSpanProcessor,
    scope: InstrumentationScope,
    /// A request without a parent is recorded if a random number is below this.
    below: u64,
}

/// The same moment on the clock of the process and on that of the system. One pair converts all times of a request, so that its spans fit together
/// even if the system's clock is set meanwhile.
#[derive(Clone, Copy)]
struct ClockPair {
    process: Instant,
    system: SystemTime,
}

impl ClockPair {
    fn now() -> Self {
        Self { process: Instant::now(), system: SystemTime::now() }
    }

    fn at(&self, time: Instant) -> SystemTime {
        let since = self.system + time.saturating_duration_since(self.process);
        since - self.process.saturating_duration_since(time)
    }
}

/// A part of a request.
struct Span {
    context: TraceContext,
    parent: Option<[u8; 8]>,
    /// The parent is a span of another process.
    is_remote: bool,
    kind: SpanKind,
    name: Cow<'static, str>,
    start: Instant,
    end: Instant,
    attributes: Vec<KeyValue>,
    events: Vec<(Instant, &'static str, KeyValue)>,
    /// The reason in one word if it failed.
    failure: Option<&'static str>,
}

impl Span {
    /// A part of the span `parent` in this process, without attributes and events.
    fn part(
        of: TraceContext,
        parent: [u8; 8],
        name: impl Into<Cow<'static, str>>,
        start: Instant,
        end: Instant,
    ) -> Self {
        Self {
            context: TraceContext { span: new_span(), ..of },
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
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Traces(on)" } else { "Traces(off)" })
    }
}

impl Traces {
    /// Sends spans to the collector at `endpoint`. `role` is an attribute of the process. Of the requests without a parent, this share is recorded.
    /// `certificates` is a file with the authorities for `https`, instead of the system's.
    ///
    /// # Errors
    /// The endpoint is no URL of a collector, or the file cannot be read.
    pub fn start(
        endpoint: &str,
        share: f64,
        role: &'static str,
        certificates: Option<&Path>,
    ) -> Result<Self, CollectorError> {
        let spans = collector::start(endpoint, role, certificates)?;
        let scope = InstrumentationScope::builder("baton").with_version(env!("CARGO_PKG_VERSION")).build();
        // The conversion saturates, so a share of 1 records all.
        let below = (share.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
        Ok(Self(Some(Arc::new(Exporter { spans, scope, below }))))
    }

    /// True if requests may be recorded.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Sends the spans that wait. Blocks for a few seconds if the collector is slow.
    pub fn end(&self) {
        if let Some(exporter) = &self.0
            && let Err(error) = exporter.spans.shutdown_with_timeout(LAST_SPANS)
        {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

impl Exporter {
    fn export(&self, clock: ClockPair, span: Span) {
        let at = |time| clock.at(time);
        let Span { context, parent, is_remote, kind, name, start, end, mut attributes, events, .. } = span;
        let failure = span.failure;
        attributes.extend(failure.map(|failure| attribute("error.type", failure)));
        let mut listed = SpanEvents::default();
        let event = |(time, name, attribute)| Event::new(name, at(time), vec![attribute], 0);
        listed.events = events.into_iter().map(event).collect();
        self.spans.on_end(SpanData {
            span_context: SpanContext::new(
                TraceId::from_bytes(context.trace),
                SpanId::from_bytes(context.span),
                TraceFlags::new(context.flags),
                false,
                TraceState::NONE,
            ),
            parent_span_id: parent.map_or(SpanId::INVALID, SpanId::from_bytes),
            parent_span_is_remote: is_remote,
            span_kind: kind,
            name,
            start_time: at(start),
            end_time: at(end.max(start)),
            attributes,
            dropped_attributes_count: 0,
            events: listed,
            links: SpanLinks::default(),
            status: failure.map_or(Status::Unset, Status::error),
            instrumentation_scope: self.scope.clone(),
        });
    }
}

/// An id for a span that is not all zero.
fn new_span() -> [u8; 8] {
    random_word().max(1).to_le_bytes()
}

/// An id for a trace that is not all zero.
fn new_trace() -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&new_span());
    id[8..].copy_from_slice(&random_word().to_le_bytes());
    id
}

fn attribute(name: &'static str, value: impl Into<Value>) -> KeyValue {
    KeyValue::new(name, value)
}
