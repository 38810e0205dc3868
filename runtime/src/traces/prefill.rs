//! The spans of a prompt that this process prefills for a peer.

use std::sync::Arc;

use actors::devices::RecordPrefill;
use actors::messages::PrefillTraced;
use connector::frame::TraceContext;
use opentelemetry::trace::SpanKind;

use super::{Exporter, Span, Traces, attribute, new_span};

/// Records the prefills of traces; `None` if nothing is recorded.
pub fn record_prefills(traces: &Traces) -> Option<RecordPrefill> {
    let exporter = traces.0.clone()?;
    Some(Arc::new(move |prefill| record(&exporter, prefill)))
}

fn record(exporter: &Exporter, prefill: PrefillTraced) {
    let PrefillTraced { context, session, request, prompt_tokens, resident_tokens, cached_tokens, .. } =
        prefill;
    let PrefillTraced { came, begun, chunks, sampled, flushed, ended, failure, .. } = prefill;
    let whole = TraceContext { span: new_span(), ..context };
    let part = |name: &'static str, start, end, events| Span {
        context: TraceContext { span: new_span(), ..context },
        parent: Some(whole.span),
        is_remote: false,
        kind: SpanKind::Internal,
        name: name.into(),
        start,
        end,
        attributes: Vec::new(),
        events,
        failure: None,
    };
    let began = begun.unwrap_or(ended);
    exporter.export(part("wait for pages", came, began, Vec::new()));
    if begun.is_some() {
        let computed = sampled.unwrap_or(ended);
        let event = |(at, tokens): &(_, u32)| (*at, "chunk", attribute("baton.tokens", i64::from(*tokens)));
        // Pages that were cached are put at once.
        let first_put =
            chunks.first().filter(|_| cached_tokens <= resident_tokens).map_or(began, |(at, _)| *at);
        exporter.export(part("compute", began, computed, chunks.iter().map(event).collect()));
        if let Some((last, _)) = flushed.last() {
            let event = |(at, pages): &(_, u32)| (*at, "flush", attribute("baton.pages", i64::from(*pages)));
            exporter.export(part("put", first_put, *last, flushed.iter().map(event).collect()));
        }
    }
    exporter.export(Span {
        context: whole,
        parent: Some(context.span),
        is_remote: true,
        kind: SpanKind::Server,
        name: "prefill".into(),
        start: came,
        end: ended,
        attributes: vec![
            attribute("baton.session", session.to_string()),
            attribute("baton.request", request.to_string()),
            attribute("baton.prompt_tokens", i64::from(prompt_tokens)),
            attribute("baton.resident_tokens", i64::from(resident_tokens)),
            attribute("baton.cached_tokens", i64::from(cached_tokens)),
        ],
        events: Vec::new(),
        failure: failure.map(Into::into),
    });
}
