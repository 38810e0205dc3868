//! The spans of a prompt that this process prefills for a peer.

use std::sync::Arc;

use actors::devices::RecordPrefill;
use actors::messages::PrefillTraced;
use connector::frame::TraceContext;
use opentelemetry::trace::SpanKind;

use super::{ClockPair, Exporter, Span, Traces, attribute, new_span};

/// Records the prefills of traces; `None` if nothing is recorded.
pub fn record_prefills(traces: &Traces) -> Option<RecordPrefill> {
    let exporter = traces.0.clone()?;
    Some(Arc::new(move |prefill| record(&exporter, prefill)))
}

fn record(exporter: &Exporter, prefill: PrefillTraced) {
    let PrefillTraced { context, session, request, prompt_tokens, resident_tokens, cached_tokens, .. } =
        prefill;
    let PrefillTraced { came, begun, chunks, sampled, running_micros, flushed, last_flush, ended, .. } =
        prefill;
    let clock = ClockPair::now();
    let whole = TraceContext { span: new_span(), ..context };
    let part = |name: &'static str, start, end, events| Span {
        events,
        ..Span::part(context, whole.span, name, start, end)
    };
    let began = begun.unwrap_or(ended);
    // A prompt that is refused on arrival does not wait.
    if came < began {
        exporter.export(clock, part("wait for pages", came, began, Vec::new()));
    }
    if begun.is_some() {
        let computed = sampled.unwrap_or(ended);
        let event = |(at, tokens): &(_, u32)| (*at, "chunk", attribute("baton.tokens", i64::from(*tokens)));
        // Pages that were cached are put at once.
        let put_first = chunks.iter().find(|(_, tokens)| *tokens > resident_tokens);
        let put_since = put_first.filter(|_| cached_tokens <= resident_tokens).map_or(began, |(at, _)| *at);
        let mut compute = part("compute", began, computed, chunks.iter().map(event).collect());
        compute.attributes.push(attribute("baton.running_ms", running_micros as f64 / 1e3));
        exporter.export(clock, compute);
        if let Some(last) = last_flush {
            let event = |(at, pages): &(_, u32)| (*at, "flush", attribute("baton.pages", i64::from(*pages)));
            let put = part("put", put_since.min(last), last, flushed.iter().map(event).collect());
            exporter.export(clock, put);
        }
    }
    exporter.export(
        clock,
        Span {
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
            failure: prefill.failure,
        },
    );
}
