//! `POST /admin/drain`, SIGTERM and rolling restarts.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};
use integration_tests::client::{Connection, complete, get, metrics, post, post_with};
use integration_tests::deadline::STATE_WITHIN;
use integration_tests::process::{Nodes, Process, free_port, start_node, start_proxy, until};
use serde_json::{Value, json};

const DRAIN: &str = "/admin/drain";

/// A prompt of token ids that shares no page with a prompt of another number.
fn prompt(number: usize, tokens: usize) -> Value {
    json!((0..tokens).map(|token| 1000 + (number * 97 + token * 7) % 20_000).collect::<Vec<usize>>())
}

/// A request whose prompt the other node prefills, answered on another thread.
fn ask(address: &str, prompt: Value, max_tokens: u32) -> JoinHandle<Result<(u16, Value)>> {
    let body = json!({ "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true, "return_timings": true });
    let address = address.to_owned();
    std::thread::spawn(move || post(&address, "/v1/completions", &body))
}

/// The number of tokens and the prefiller of an answer.
fn answer(asked: JoinHandle<Result<(u16, Value)>>) -> Result<(u64, u64)> {
    let (status, answer) = asked.join().expect("the thread did not panic")?;
    ensure!(status == 200, "{status}: {answer}");
    let tokens = answer["usage"]["completion_tokens"].as_u64().context("no completion_tokens")?;
    Ok((tokens, answer["timings"]["prefill_pid"].as_u64().context("no prefill_pid")?))
}

/// The state that `/admin/drain` reports.
fn state(address: &str) -> Result<String> {
    let (_, report) = get(address, DRAIN)?;
    Ok(report["state"].as_str().with_context(|| report.to_string())?.to_owned())
}

#[test]
fn a_drained_node_finishes_its_work_and_stays_up() -> Result<()> {
    let Nodes { nodes: [mut first, second], frontends } = Nodes::start(&[])?;
    let (http, other) = (first.address("http.port")?, second.address("http.port")?);
    assert_eq!(state(&http)?, "serving");
    // The first node decodes one answer, and prefills the prompt of another one for the second node.
    let own = ask(&http, prompt(1, 8), 400);
    let of_peer = ask(&frontends[1], prompt(2, 1500), 4);
    first.until("it works for itself and for its peer", || {
        let report = get(&http, DRAIN)?.1;
        Ok(report["running"] == 1 && report["prefills"] == 1)
    })?;
    let (status, report) = post(&http, DRAIN, &Value::Null)?;
    assert_eq!(
        (status, &report["state"], &report["running"]),
        (202, &json!("draining"), &json!(1)),
        "{report}"
    );

    // Routers, probes and clients see it, and it is alive.
    first.until("new requests are refused", || {
        Ok(post(&http, "/v1/completions", &json!({ "prompt": "a", "max_tokens": 1 }))?.0 == 503)
    })?;
    for port in [&http, &frontends[0]] {
        let (status, health) = get(port, "/health")?;
        assert_eq!((status, &health["status"]), (503, &json!("draining")), "{health}");
        let mut client = Connection::open(port)?;
        client.send(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 15\r\n\r\n{\"prompt\": \"a\"}",
        )?;
        let refusal = client.read_until("\r\n\r\n")?.to_ascii_lowercase();
        assert!(refusal.starts_with("http/1.1 503") && refusal.contains("retry-after: "), "{refusal}");
    }
    assert_eq!(get(&http, "/node")?.1["state"], "draining");

    // What it had to do is done, in both directions.
    assert_eq!(answer(own)?.0, 400);
    let prefilled_by = answer(of_peer)?.1;
    assert_eq!(prefilled_by, u64::from(first.pid()), "the prefill that had begun is handed over");
    first.until("it is drained", || Ok(state(&http)? == "drained"))?;
    assert_eq!(post(&http, DRAIN, &Value::Null)?.0, 200, "a second request changes nothing");
    let mut probe = Connection::open(&http)?;
    probe.send(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n")?;
    assert_eq!(probe.answer()?.0, 200, "it is alive");
    let counters = metrics(&http)?;
    for gauge in ["baton_prefills_live", "baton_pages_reserved", "baton_pages_quarantined"] {
        assert_eq!(counters.get(gauge)?, 0, "{gauge}");
    }

    // Its peer does not choose it any more, and serves.
    assert_eq!(get(&other, "/node")?.1["prefillers"], json!([]));
    let alone = complete(&frontends[1], &prompt(3, 600), 4)?;
    assert_eq!(alone.timings["prefill_pid"], u64::from(second.pid()), "{}", alone.timings);
    first.signal("-TERM")?;
    assert_eq!(first.wait()?.code(), Some(0), "{}", first.log());
    assert_eq!(metrics(&other)?.get("baton_pages_quarantined")?, 0);
    Ok(())
}

#[test]
fn requests_are_accepted_until_the_delay_of_a_drain_is_over() -> Result<()> {
    let port = free_port()?;
    let mut node = start_node(port, &[format!("127.0.0.1:{port}")], &["shutdown.delay=1h"], &[])?;
    let (http, frontend) = (node.address("http.port")?, node.address("frontend.port")?);
    node.signal("-TERM")?;
    node.until("the drain is reported", || Ok(get(&http, "/node")?.1["state"] == "draining"))?;
    for port in [&http, &frontend] {
        assert_eq!(get(port, "/health")?.0, 503);
        assert_eq!(complete(port, &prompt(1, 20), 4)?.ids.len(), 4, "{port}");
    }
    // The second signal does not wait.
    node.signal("-TERM")?;
    assert_eq!(node.wait()?.code(), Some(1));
    Ok(())
}

#[test]
fn a_drain_needs_the_key_if_there_is_one() -> Result<()> {
    let port = free_port()?;
    let node = start_node(port, &[format!("127.0.0.1:{port}")], &["request.api_key=k1"], &[])?;
    let http = node.address("http.port")?;
    assert_eq!(post(&http, DRAIN, &Value::Null)?.0, 401);
    assert_eq!(get(&http, "/node")?.1["state"], "ok");
    assert_eq!(post_with(&http, DRAIN, &[("authorization", "Bearer k1")], &Value::Null)?.0, 202);
    node.until("it is drained", || Ok(get(&http, "/health")?.1["status"] == "draining"))
}

/// More requests wait on the node than the proxy may retry at a time.
#[test]
fn the_queue_of_a_node_that_drains_moves_to_another_node() -> Result<()> {
    const REQUESTS: usize = 24;
    let ports = [free_port()?, free_port()?];
    let peers = ports.map(|port| format!("127.0.0.1:{port}"));
    let start = |port| start_node(port, &peers, &["request.concurrency=1"], &[]);
    let nodes = [start(ports[0])?, start(ports[1])?];
    let https = [nodes[0].address("http.port")?, nodes[1].address("http.port")?];
    let proxy = start_proxy(&https, &[])?;
    let address = proxy.address("frontend.port")?;
    proxy.until("both nodes report", || Ok(get(&address, "/health")?.1["nodes_ready"] == 2))?;
    let asked: Vec<_> = (0..REQUESTS).map(|number| ask(&address, prompt(number, 20), 40)).collect();
    let waiting = || get(&https[0], "/node")?.1["waiting"].as_u64().context("no `waiting`");
    nodes[0].until("a queue is longer than three retries", || Ok(waiting()? > 4))?;
    post(&https[0], DRAIN, &Value::Null)?;
    for asked in asked {
        assert_eq!(answer(asked)?.0, 40);
    }
    assert!(metrics(&address)?.get("baton_proxy_retries_total")? > 3);
    Ok(())
}

/// Two nodes that restart one after the other, on the same ports, behind a proxy with clients. No request fails.
#[test]
fn a_rolling_restart_fails_no_request() -> Result<()> {
    let (links, https) = ([free_port()?, free_port()?], [free_port()?, free_port()?]);
    let peers = links.map(|port| format!("127.0.0.1:{port}"));
    let start = |node: usize| {
        let port = format!("http.port={}", https[node]);
        start_node(links[node], &peers, &[&*port, "shutdown.delay=2s", "shutdown.drain=2m"], &[])
    };
    let mut nodes = [start(0)?, start(1)?];
    let proxy = start_proxy(&https.map(|port| format!("127.0.0.1:{port}")), &[])?;
    let address = proxy.address("frontend.port")?;
    let until_ready =
        || proxy.until("both nodes report", || Ok(get(&address, "/health")?.1["nodes_ready"] == 2));
    until_ready()?;
    let (ends, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while !ends.load(Ordering::Relaxed) {
                        let number = asked.fetch_add(1, Ordering::Relaxed);
                        complete(&address, &prompt(number, 96), 8)
                            .with_context(|| format!("request {number}"))?;
                    }
                    Ok(())
                })
            })
            .collect();
        let restarted = (0..2).try_for_each(|node| {
            restart(&mut nodes[node], || start(node), &asked).and_then(|()| until_ready())
        });
        ends.store(true, Ordering::Relaxed);
        clients.into_iter().try_for_each(|client| client.join().expect("the thread did not panic"))?;
        restarted
    })?;
    let counters = metrics(&address)?;
    assert_eq!(counters.get("baton_proxy_answers_broken_total")?, 0);
    assert_eq!(counters.get("baton_proxy_requests_refused_total")?, 0);
    Ok(())
}

/// Restarts a node in order while clients are served.
fn restart(node: &mut Process, start: impl FnOnce() -> Result<Process>, asked: &AtomicUsize) -> Result<()> {
    let served = |more: usize| {
        let goal = asked.load(Ordering::Relaxed) + more;
        until("requests are answered", STATE_WITHIN, || Ok(asked.load(Ordering::Relaxed) >= goal))
    };
    served(8)?;
    node.signal("-TERM")?;
    if node.wait()?.code() != Some(0) {
        bail!("{}", node.log());
    }
    served(8)?;
    *node = start()?;
    Ok(())
}
