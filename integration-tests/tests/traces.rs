//! Traces of requests through a pair, and through a proxy and two nodes, as a collector gets them.

#[path = "traces/collector.rs"]
mod collector;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use collector::{Collector, Found};
use integration_tests::client::{complete, get, post_with};
use integration_tests::deadline::STATE_WITHIN;
use integration_tests::process::{Nodes, Pair, start_local, start_proxy, until};
use integration_tests::statistics::median;
use serde_json::{Value, json};

/// The sender of the spans of a batch waits this long at most.
const QUICKLY: [(&str, &str); 1] = [("OTEL_BSP_SCHEDULE_DELAY", "100")];

/// A client's trace and span, from the W3C's example.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENT: [u8; 8] = [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7];

fn prompt(number: u32) -> Value {
    json!((0..400).map(|token| 1000 + (number * 97 + token * 7) % 20_000).collect::<Vec<u32>>())
}

/// The span of the request at the process that the client asked.
fn root<'a>(spans: &'a [Found], role: &str) -> Result<&'a Found> {
    let is_root = |found: &&Found| found.role == role && found.span.name == "POST /v1/completions";
    let mut roots = spans.iter().filter(is_root);
    let root = roots.next().context("the trace has no root")?;
    ensure!(roots.next().is_none(), "the trace has several roots");
    Ok(root)
}

/// The direct children of a span, by their start.
fn children<'a>(spans: &'a [Found], of: &Found) -> Vec<&'a Found> {
    let is_child = |found: &&Found| found.span.parent_span_id == of.span.span_id;
    let mut children: Vec<&Found> = spans.iter().filter(is_child).collect();
    children.sort_by_key(|found| (found.span.start_time_unix_nano, found.span.end_time_unix_nano));
    children
}

fn names<'a>(spans: impl IntoIterator<Item = &'a Found>) -> Vec<&'a str> {
    spans.into_iter().map(|found| &*found.span.name).collect()
}

/// Each span but the roots has a parent in its trace.
fn has_no_orphan(spans: &[Found]) -> Result<()> {
    let ids: BTreeSet<&Vec<u8>> = spans.iter().map(|found| &found.span.span_id).collect();
    ensure!(ids.len() == spans.len(), "two spans have the same id");
    for found in spans {
        let parent = &found.span.parent_span_id;
        let is_known = parent.is_empty() || ids.contains(parent) || **parent == CLIENT;
        ensure!(is_known, "{} of {} has no parent in {:?}", found.span.name, found.role, names(spans));
    }
    Ok(())
}

/// The share of the span that its children cover. They do not overlap.
fn coverage(whole: &Found, children: &[&Found]) -> Result<f64> {
    for pair in children.windows(2) {
        let [one, two] = pair else { continue };
        let (end, start) = (one.span.end_time_unix_nano, two.span.start_time_unix_nano);
        // Each time was converted from one clock to another by itself.
        ensure!(end <= start + 1000, "{} overlaps {} by {} ns", one.span.name, two.span.name, end - start);
    }
    let covered: u64 = children.iter().map(|child| child.duration()).sum();
    Ok(covered as f64 / whole.duration().max(1) as f64)
}

#[test]
fn a_trace_follows_a_request_through_a_pair() -> Result<()> {
    let collector = Collector::start()?;
    let endpoint = collector.setting();
    let pair = Pair::start_with(&[&endpoint], &QUICKLY)?;
    let header = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let body = json!({ "prompt": prompt(0), "max_tokens": 24, "ignore_eos": true, "temperature": 0 });
    let (status, answer) = post_with(&pair.frontend, "/v1/completions", &[("traceparent", &header)], &body)?;
    ensure!(status == 200, "{answer}");
    for number in 1..10 {
        complete(&pair.frontend, &prompt(number), 24)?;
    }
    let is_whole = |spans: &[Found]| {
        let of = |role, name| spans.iter().any(|found| found.role == role && found.span.name == name);
        of("receiver", "POST /v1/completions") && of("sender", "prefill")
    };
    until("all traces have come", STATE_WITHIN, || {
        let traces = collector.traces();
        Ok(traces.len() == 10 && traces.values().all(|spans| is_whole(spans)))
    })?;
    let mut covered = Vec::new();
    for (id, spans) in collector.traces() {
        has_no_orphan(&spans)?;
        let request = root(&spans, "receiver")?;
        let is_clients = id[0] == 0x4b && request.span.parent_span_id == CLIENT;
        ensure!(is_clients || request.span.parent_span_id.is_empty(), "{request:?}");
        let parts = children(&spans, request);
        let expect = ["read", "queue", "route", "wait for pages", "prefill", "exposed hand-over", "decode"];
        ensure!(names(parts.iter().copied()) == expect, "{:?}", names(parts.iter().copied()));
        covered.push(coverage(request, &parts)?);
        ensure!(request.text("gen_ai.usage.input_tokens") == "400", "{request:?}");
        ensure!(request.text("http.response.status_code") == "200", "{request:?}");

        let asked = parts.iter().find(|found| found.span.name == "prefill").context("no prefill")?;
        let [prefill] = children(&spans, asked)[..] else { anyhow::bail!("{:?}", names(&spans)) };
        ensure!(prefill.pid == i64::from(pair.sender.pid()) && asked.pid == i64::from(pair.receiver.pid()));
        let there = children(&spans, prefill);
        ensure!(
            names(there.iter().copied()).into_iter().collect::<BTreeSet<_>>()
                == BTreeSet::from(["wait for pages", "compute", "put"]),
            "{there:?}"
        );
        let events = |name: &str| {
            there.iter().find(|found| found.span.name == name).map(|found| found.span.events.len())
        };
        // Chunks have 128 tokens.
        ensure!(events("compute") == Some(4) && events("put") >= Some(1), "{there:?}");
    }
    // A process that was not scheduled for a moment leaves a gap in one trace, so the median counts.
    let covered = median(covered);
    println!("the parts of a request cover {:.2} % of it (median of 10)", covered * 100.0);
    ensure!(covered >= 0.98, "the parts of a request cover {covered} of it");
    Ok(())
}

#[test]
fn a_trace_follows_a_request_through_a_proxy_and_two_nodes() -> Result<()> {
    let collector = Collector::start()?;
    let endpoint = collector.setting();
    let Nodes { nodes: [first, second], .. } = Nodes::start(&[&endpoint])?;
    let ports = [first.address("http.port")?, second.address("http.port")?];
    let proxy = start_proxy(&ports, &[&endpoint])?;
    let address = proxy.address("frontend.port")?;
    proxy.until("both nodes report", || Ok(get(&address, "/health")?.1["nodes_ready"] == 2))?;
    for number in 0..12 {
        complete(&address, &prompt(number), 12)?;
    }
    let three = |spans: &[Found]| spans.iter().map(|found| found.pid).collect::<BTreeSet<_>>().len() == 3;
    until("a trace of three processes has come", STATE_WITHIN, || {
        let traces = collector.traces();
        Ok(traces.len() == 12 && traces.values().any(|spans| three(spans) && root(spans, "proxy").is_ok()))
    })?;
    // The spans of one request come from several processes at different times.
    until("all spans have come", STATE_WITHIN, || {
        let is_whole = |spans: &Vec<Found>| {
            has_no_orphan(spans).is_ok() && root(spans, "proxy").is_ok() && root(spans, "node").is_ok()
        };
        Ok(collector.traces().values().all(is_whole))
    })?;
    let traces = collector.traces();
    for spans in traces.values() {
        let request = root(spans, "proxy")?;
        let parts = children(spans, request);
        ensure!(names(parts.iter().copied()) == ["read", "attempt"], "{parts:?}");
        ensure!(request.span.parent_span_id.is_empty(), "{request:?}");
        coverage(request, &parts)?;
        let [node] = children(spans, parts[1])[..] else { anyhow::bail!("{:?}", names(spans)) };
        ensure!(node.role == "node" && node.span.name == "POST /v1/completions", "{node:?}");
        coverage(node, &children(spans, node))?;
    }
    let handed_over = traces.values().filter(|spans| three(spans)).count();
    println!("{handed_over} of 12 prompts were handed over");
    ensure!(handed_over > 0);
    Ok(())
}

#[test]
fn only_the_requests_that_are_sampled_are_recorded() -> Result<()> {
    let collector = Collector::start()?;
    let endpoint = collector.setting();
    let (_process, address) = start_local(&[&endpoint, "traces.sample=0"])?;
    let body = json!({ "prompt": [1, 2, 3], "max_tokens": 2, "ignore_eos": true });
    let ask = |header: &str| post_with(&address, "/v1/completions", &[("traceparent", header)], &body);
    for header in [
        "00-11111111111111111111111111111111-00f067aa0ba902b7-00",
        "no header",
        &format!("00-{TRACE}-00f067aa0ba902b7-01"),
    ] {
        let (status, answer) = ask(header)?;
        ensure!(status == 200, "{answer}");
    }
    until("the trace has come", STATE_WITHIN, || Ok(!collector.traces().is_empty()))?;
    let traces = collector.traces();
    let ids: Vec<u8> = traces.keys().map(|id| id[0]).collect();
    ensure!(ids == [0x4b], "{ids:x?}");

    // The list of requests has those that were not recorded too.
    let (status, list) = get(&address, "/debug/requests")?;
    ensure!(status == 200, "{list}");
    let listed = list["requests"].as_array().context("no list")?;
    ensure!(listed.len() == 3 && listed[0]["trace"] == TRACE && listed[1]["trace"].is_null(), "{list}");
    for request in listed {
        let ms = |name: &str| request[name].as_f64().with_context(|| format!("no {name} in {request}"));
        let parts = [ms("routed_ms")?, ms("placed_ms")?, ms("prefilled_ms")?, ms("first_token_ms")?];
        ensure!(parts.is_sorted() && parts[0] > 0.0, "{request}");
        ensure!(
            ms("read_ms")? + ms("queue_ms")? + parts[3] + ms("decode_ms")? <= ms("total_ms")?,
            "{request}"
        );
    }
    Ok(())
}

#[test]
fn a_collector_that_is_not_there_delays_no_request() -> Result<()> {
    // Nothing listens on the port of discard.
    let (mut process, address) = start_local(&["traces.otlp_endpoint=http://127.0.0.1:9"])?;
    for number in 0..3 {
        complete(&address, &json!([number + 1, 2, 3]), 2)?;
    }
    process.signal("-TERM")?;
    let status = process.wait()?;
    ensure!(status.success(), "{}", process.log());
    Ok(())
}
