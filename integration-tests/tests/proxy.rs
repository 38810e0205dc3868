//! A proxy in front of two nodes.

#[path = "proxy/fake.rs"]
mod fake;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fake::{FakeNode, Manner};
use integration_tests::client::{Connection, ask_all, complete, get, metrics, post, post_request};
use integration_tests::process::{Event, Nodes, Process, start_proxy};
use serde_json::{Value, json};

/// A prompt of token ids that shares no page with a prompt of another number.
fn prompt(number: u32) -> Value {
    json!((0..96).map(|token| 1000 + (number * 97 + token * 7) % 20_000).collect::<Vec<u32>>())
}

#[test]
fn a_proxy_gives_the_answers_of_its_nodes_and_survives_the_loss_of_one() -> Result<()> {
    // On a slow machine, a node that has a prompt's beginning is chosen only with a long target.
    const PATIENT: &str = "routing.ttft_target=10m";
    let settings = ["engine.prefix_cache=true", "request.context_tokens=400", PATIENT];
    let Nodes { nodes: [mut first, second], .. } = Nodes::start(&settings)?;
    let ports = [first.address("http.port")?, second.address("http.port")?];
    let proxy = start_proxy(&ports, &[PATIENT])?;
    let address = proxy.address("frontend.port")?;
    proxy.until("both nodes report", || Ok(get(&address, "/health")?.1["nodes_ready"] == 2))?;
    let list = get(&address, "/v1/models")?.1["data"].take();
    assert_eq!(list.as_array().map(Vec::len), Some(1));
    assert_eq!((&list[0]["max_model_len"], &list[0]["parent"]), (&json!(400), &Value::Null), "{list}");
    assert!(list[0]["root"].as_str().is_some_and(|path| path.ends_with(".gguf")), "{list}");
    let path = format!("/v1/models/{}", list[0]["id"].as_str().context("no id")?);
    assert_eq!(get(&address, &path)?, (200, list[0].clone()));
    assert_eq!(get(&address, "/v1/models/other")?.0, 404);

    let prompts: Vec<Value> = (0..24).map(prompt).collect();
    let answers = ask_all(&prompts, 8, |prompt| complete(&address, prompt, 6))?;
    let pids = |name: &str| -> Result<std::collections::BTreeSet<u64>> {
        answers.iter().map(|answer| answer.timings[name].as_u64().context("no pid")).collect()
    };
    assert_eq!(pids("decode_pid")?.len(), 2, "both nodes answer");

    // A continuation goes to a node that has the beginning: the one that prefilled it or the one that decoded it.
    for (turn, answer) in answers.iter().enumerate().take(6) {
        let longer: Vec<u32> = answer.prompt_ids.iter().chain(&answer.ids).copied().chain(5..40).collect();
        let next = complete(&address, &json!(longer), 4)?;
        let cached = next.timings["cached_tokens"].as_u64().context("no cached_tokens")?;
        assert!(cached >= 80, "conversation {turn}: {cached} of {} tokens were cached", longer.len());
    }
    // The nodes' caches have nothing that the proxy does not know, until now.
    let expect = ask_all(&prompts, 4, |prompt| complete(&ports[1], prompt, 6))?;
    for (answer, expect) in answers.iter().zip(&expect) {
        ensure!(answer.ids == expect.ids, "{:?} instead of {:?}", answer.ids, expect.ids);
    }
    // The node's own words: the proxy passes its errors on.
    let (status, error) = post(&address, "/v1/completions", &json!({ "prompt": "a", "temperature": -1 }))?;
    assert_eq!(status, 400, "{error}");
    assert!(error["error"]["message"].as_str().is_some_and(|text| text.contains("temperature")), "{error}");
    let (status, _) = post(&address, "/v1/completions", &json!({ "prompt": "a", "model": "other" }))?;
    assert_eq!(status, 404);

    // The proxy refuses a prompt that is too long for its nodes as a node does.
    let long = |tokens: u32| (0..tokens).map(|token| token % 100).collect::<Vec<u32>>();
    for body in [
        json!({ "prompt": long(400) }),
        json!({ "prompt": long(401) }),
        json!({ "prompt": "a ".repeat(100_000) }),
        json!({ "prompt": ["long ".repeat(900), "b"] }),
    ] {
        let refused = post(&address, "/v1/completions", &body)?;
        assert_eq!(refused.0, 400, "{}", refused.1);
        assert_eq!(refused, post(&ports[1], "/v1/completions", &body)?);
    }

    // A node is killed: the requests that come then are all answered by the other one.
    first.signal("-KILL")?;
    first.wait()?;
    let after = ask_all(&prompts, 8, |prompt| complete(&address, prompt, 6))?;
    for (answer, expect) in after.iter().zip(&expect) {
        ensure!(answer.ids == expect.ids, "{:?} instead of {:?}", answer.ids, expect.ids);
        ensure!(answer.timings["decode_pid"] == u64::from(second.pid()), "{:?}", answer.timings);
    }
    // A client has its last byte a moment before its request has ended.
    proxy.until("the requests have ended", || Ok(metrics(&address)?.get("baton_proxy_requests_live")? == 0))
}

/// A proxy for two fake nodes, and its address.
fn fakes() -> Result<([FakeNode; 2], Process, String)> {
    let nodes = [FakeNode::start()?, FakeNode::start()?];
    let (proxy, address) = proxy_of(&nodes, &[])?;
    Ok((nodes, proxy, address))
}

/// A proxy with these settings for these nodes, and its address.
fn proxy_of(nodes: &[FakeNode], settings: &[&str]) -> Result<(Process, String)> {
    let ports: Vec<String> = nodes.iter().map(|node| node.address.clone()).collect();
    let proxy = start_proxy(&ports, settings)?;
    let address = proxy.address("frontend.port")?;
    proxy.until("all nodes report", || Ok(get(&address, "/health")?.1["nodes_ready"] == nodes.len()))?;
    Ok((proxy, address))
}

/// Asks with a prompt of its own. Returns the status and the body.
fn ask(address: &str, number: u32) -> Result<(u16, String)> {
    let body = json!({ "prompt": prompt(number), "stream": true }).to_string();
    let mut connection = Connection::post(address, "/v1/completions", &body)?;
    let text = connection.read_until("\r\n\r\n")?;
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    // The end may have come with the head.
    let is_whole = text.split_once("\r\n\r\n").is_some_and(|(_, body)| body.contains("0\r\n\r\n"));
    let rest = if status == 200 && !is_whole { connection.read_until("0\r\n\r\n")? } else { String::new() };
    Ok((status, text + &rest))
}

#[test]
fn a_request_that_no_node_has_begun_to_answer_goes_to_another_one() -> Result<()> {
    let (nodes, proxy, address) = fakes()?;
    // On a machine without a free core, a report may come after more than 1 s. Then the other node is unknown for a moment, and the request
    // gets no answer.
    let (mut asked, mut answered) = (0, 0);
    for manner in [Manner::IsBusy, Manner::Breaks] {
        for bad in 0..2 {
            nodes[bad].set(manner);
            nodes[1 - bad].set(Manner::Answers);
            for number in 0..6 {
                proxy.until("the other node answers", || {
                    let (status, body) = ask(&address, number)?;
                    asked += 1;
                    ensure!(status != 200 || body.contains(&nodes[1 - bad].address), "{manner:?}: {body}");
                    Ok(status == 200)
                })?;
                answered += 1;
            }
        }
    }
    ensure!(asked <= 2 * answered, "{answered} of {asked} requests were answered");
    assert!(metrics(&address)?.get("baton_proxy_retries_total")? > 0, "both nodes got requests");
    // The retries end.
    nodes.iter().for_each(|node| node.set(Manner::IsBusy));
    assert_eq!(ask(&address, 1)?.0, 503);
    nodes.iter().for_each(|node| node.set(Manner::Breaks));
    let status = ask(&address, 2)?.0;
    assert!([502, 503].contains(&status), "{status}");
    Ok(())
}

#[test]
fn an_answer_that_breaks_off_does_not_look_complete_and_is_not_asked_for_again() -> Result<()> {
    let (nodes, proxy, address) = fakes()?;
    nodes.iter().for_each(|node| node.set(Manner::BreaksLater));
    let error = ask(&address, 1).expect_err("the end is missing").to_string();
    assert!(error.contains("the stream ended"), "{error}");
    let asked: usize = nodes.iter().map(FakeNode::asked).sum();
    assert_eq!(asked, 1);
    proxy.until("the request has ended", || Ok(metrics(&address)?.get("baton_proxy_requests_live")? == 0))?;
    assert_eq!(metrics(&address)?.get("baton_proxy_answers_broken_total")?, 1);
    Ok(())
}

#[test]
fn a_blank_line_that_keeps_a_stream_alive_is_not_the_first_byte_of_an_answer() -> Result<()> {
    let (nodes, proxy, address) = fakes()?;
    for (manner, count) in [(Manner::BreaksAtBlankLine, 0), (Manner::BreaksLater, 1)] {
        nodes.iter().for_each(|node| node.set(manner));
        // A request that comes while no node has a fresh report is refused.
        proxy.until("an answer breaks off", || Ok(ask(&address, 1).is_err()))?;
        proxy.until("it has ended", || Ok(metrics(&address)?.get("baton_proxy_requests_live")? == 0))?;
        assert_eq!(metrics(&address)?.get("baton_proxy_first_byte_seconds_count")?, count, "{manner:?}");
        let newest = get(&address, "/debug/requests")?.1["requests"][0].take();
        assert_eq!((&newest["outcome"], &newest["status"]), (&json!("broke_off"), &json!(200)), "{newest}");
        assert_eq!(newest["first_byte_ms"].is_number(), count == 1, "{newest}");
    }
    Ok(())
}

#[test]
fn a_client_that_leaves_ends_the_request_at_the_node() -> Result<()> {
    let (nodes, proxy, address) = fakes()?;
    nodes.iter().for_each(|node| node.set(Manner::Hangs));
    let body = json!({ "prompt": prompt(1) }).to_string();
    let client = Connection::post(&address, "/v1/completions", &body)?;
    let count = |of: fn(&FakeNode) -> usize| nodes.iter().map(of).sum::<usize>();
    proxy.until("a node has the request", || Ok(count(FakeNode::asked) == 1))?;
    drop(client);
    proxy.until("the node's connection is closed", || Ok(count(FakeNode::left) == 1))?;
    proxy.until("the request has ended", || Ok(metrics(&address)?.get("baton_proxy_requests_live")? == 0))
}

/// The outcomes of the requests that the proxy lists, the newest first.
fn outcomes(address: &str) -> Result<Vec<String>> {
    let requests = get(address, "/debug/requests")?.1["requests"].take();
    let outcome = |request: &Value| request["outcome"].as_str().map(str::to_owned).context("no outcome");
    requests.as_array().context("no list")?.iter().map(outcome).collect()
}

#[test]
fn a_proxy_shows_its_nodes_and_how_its_last_requests_ended() -> Result<()> {
    let (nodes, proxy, address) = fakes()?;
    let ends = |manner: Manner, outcome: &str, ask: &dyn Fn() -> Result<()>| -> Result<()> {
        nodes.iter().for_each(|node| node.set(manner));
        // A request that comes while no node has a fresh report is refused and not listed.
        let before = outcomes(&address)?.len();
        proxy.until("a request is listed", || {
            ask()?;
            let asked = std::time::Instant::now();
            while outcomes(&address)?.len() == before && asked.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(outcomes(&address)?.len() > before)
        })?;
        let newest = outcomes(&address)?.remove(0);
        ensure!(newest == outcome, "{newest} instead of {outcome}");
        Ok(())
    };
    ends(Manner::Answers, "answered", &|| ask(&address, 1).map(drop))?;
    ends(Manner::BreaksLater, "broke_off", &|| {
        ensure!(ask(&address, 2).is_err(), "the end is missing");
        Ok(())
    })?;
    ends(Manner::Hangs, "client_left", &|| {
        let body = json!({ "prompt": prompt(3) }).to_string();
        let asked = |nodes: &[FakeNode]| nodes.iter().map(FakeNode::asked).sum::<usize>();
        let before = asked(&nodes);
        let client = Connection::post(&address, "/v1/completions", &body)?;
        proxy.until("a node has the request", || Ok(asked(&nodes) > before))?;
        drop(client);
        Ok(())
    })?;
    ends(Manner::IsBusy, "rejected", &|| ask(&address, 4).map(drop))?;
    ends(Manner::Breaks, "no_answer", &|| ask(&address, 5).map(drop))?;

    let requests = get(&address, "/debug/requests")?.1["requests"].take();
    let listed = requests.as_array().context("no list")?;
    let answered = listed.last().context("no request")?;
    assert!(nodes.iter().any(|node| answered["node"] == *node.address), "{answered}");
    assert_eq!((&answered["status"], &answered["attempts"]), (&json!(200), &json!(1)));
    let times = ["read_ms", "first_byte_ms", "total_ms"].map(|name| answered[name].as_f64());
    assert!(times.is_sorted() && times[0].is_some(), "{answered}");

    let page = Connection::open(&address).and_then(|mut page| {
        page.send(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
        page.answer()
    })?;
    assert!(page.0 == 200 && page.1.starts_with("<!doctype html>"), "{page:?}");
    let mut live = Connection::open(&address)?;
    live.send(b"GET /debug/live HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
    let text = live.read_until("}\n\r\n")?;
    let line = text.lines().find(|line| line.starts_with('{')).context("no snapshot")?;
    let snapshot: Value = serde_json::from_str(line)?;
    assert_eq!((&snapshot["role"], &snapshot["totals"]["finished"]), (&json!("proxy"), &json!(1)), "{line}");
    let shown: Vec<_> = snapshot["nodes"].as_array().context("no nodes")?.iter().collect();
    assert_eq!(shown.len(), 2);
    for fake in &nodes {
        let node = shown.iter().find(|node| node["address"] == *fake.address).context("a node is missing")?;
        assert!(node["report"]["pool_pages"].is_u64(), "{node}");
    }
    assert_eq!(snapshot["requests"].as_array().map(Vec::len), Some(listed.len()));
    Ok(())
}

#[test]
fn requests_of_a_silent_node_go_to_another_one() -> Result<()> {
    let (nodes, _proxy, address) = fakes()?;
    // Both hang, so that the request certainly waits at one of them. That one falls silent, and the other one answers again.
    nodes.iter().for_each(|node| node.set(Manner::Hangs));
    let body = json!({ "prompt": prompt(3), "stream": true }).to_string();
    let mut client = Connection::post(&address, "/v1/completions", &body)?;
    let has_it = |node: &FakeNode| node.asked() == 1;
    integration_tests::process::until("a node has the request", Duration::from_secs(60), || {
        Ok(nodes.iter().any(has_it))
    })?;
    let (silent, other) = if has_it(&nodes[0]) { (&nodes[0], &nodes[1]) } else { (&nodes[1], &nodes[0]) };
    other.set(Manner::Answers);
    silent.set(Manner::IsSilent);
    let answer = client.read_until("0\r\n\r\n")?;
    assert!(answer.contains(&other.address), "{answer}");
    Ok(())
}

#[test]
fn a_node_learns_the_name_of_a_request_and_the_time_that_is_left() -> Result<()> {
    let node = [FakeNode::start()?];
    let (_proxy, address) = proxy_of(&node, &["request.deadline=100s"])?;
    let headers = |id: Option<&str>, body: &Value| -> Result<(String, u64)> {
        let id = id.map_or_else(String::new, |id| format!("x-request-id: {id}\r\n"));
        let request = String::from_utf8(post_request("/v1/completions", &body.to_string()))?;
        let headers = format!("\r\n{id}x-envoy-expected-rq-timeout-ms: 1\r\n");
        let mut connection = Connection::open(&address)?;
        connection.send(request.replacen("\r\n", &headers, 1).as_bytes())?;
        connection.read_until("0\r\n\r\n")?;
        let header = |name| node[0].header(name).with_context(|| format!("no {name}"));
        Ok((header("x-request-id")?, header("x-envoy-expected-rq-timeout-ms")?.parse()?))
    };
    let body = json!({ "prompt": prompt(1), "stream": true });
    let named = json!({ "prompt": prompt(1), "stream": true, "request_id": "n-2" });
    for (id, body, expect) in [(Some("n-1"), &named, "n-1"), (None, &named, "n-2")] {
        let (id, left) = headers(id, body)?;
        assert_eq!(id, expect);
        // A client of the proxy cannot shorten the deadline.
        assert!((30_000..100_000).contains(&left), "{left}");
    }
    let (first, second) = (headers(None, &body)?.0, headers(None, &body)?.0);
    assert!(first.len() == 32 && second.len() == 32 && first != second, "{first} {second}");
    Ok(())
}

#[test]
fn a_request_ends_at_its_deadline_if_a_node_reports_and_does_not_answer() -> Result<()> {
    let nodes = [FakeNode::start()?, FakeNode::start()?];
    let (proxy, address) = proxy_of(&nodes, &["request.deadline=1s"])?;
    nodes.iter().for_each(|node| node.set(Manner::Hangs));
    let mut late = 0;
    proxy.until("two requests end at their deadlines", || {
        let status = ask(&address, late)?.0;
        // On a machine without a free core, a report may come late. Then no node takes requests for a moment.
        ensure!([503, 504].contains(&status), "{status}");
        late += u32::from(status == 504);
        Ok(late == 2)
    })?;
    let count = |of: fn(&FakeNode) -> usize| nodes.iter().map(of).sum::<usize>();
    assert_eq!(count(FakeNode::asked), 2, "there is no time for another node");
    proxy.until("the nodes' connections are closed", || Ok(count(FakeNode::left) == 2))?;
    proxy.until("the requests have ended", || Ok(metrics(&address)?.get("baton_proxy_requests_live")? == 0))
}

#[test]
fn few_requests_go_to_another_node_at_once() -> Result<()> {
    const REQUESTS: u32 = 24;
    let (nodes, proxy, address) = fakes()?;
    nodes[0].set(Manner::IsBusy);
    nodes[1].set(Manner::Hangs);
    let post = |number| {
        let body = json!({ "prompt": prompt(number), "stream": true }).to_string();
        Connection::post(&address, "/v1/completions", &body)
    };
    let clients = (0..REQUESTS).map(post).collect::<Result<Vec<_>>>()?;
    // Each request is refused, or hangs at the second node.
    proxy.until("each request has an end or hangs", || {
        let metrics = metrics(&address)?;
        let refused = metrics.get("baton_proxy_requests_forwarded_total")?
            + metrics.get("baton_proxy_requests_refused_total")?;
        Ok(refused + nodes[1].asked() as u64 == u64::from(REQUESTS))
    })?;
    let retried = metrics(&address)?.get("baton_proxy_retries_total")?;
    assert!((1..=3).contains(&retried), "{retried} retries of {} requests", nodes[0].asked());
    assert!(nodes[0].asked() > 3, "{} requests failed", nodes[0].asked());
    drop(clients);
    Ok(())
}

#[test]
fn a_kept_connection_that_the_node_closes_is_no_failure() -> Result<()> {
    let node = [FakeNode::start()?];
    let (proxy, address) = proxy_of(&node, &[])?;
    node[0].set(Manner::ClosesKept);
    let mut number = 0;
    proxy.until("the node closes a connection at its second request", || {
        number += 1;
        let (status, body) = ask(&address, number)?;
        ensure!(status == 200 && body.contains(&node[0].address), "{status}: {body}");
        Ok(node[0].closed() > 0)
    })?;
    let metrics = metrics(&address)?;
    assert_eq!(metrics.get("baton_proxy_retries_total")?, 0);
    assert_eq!(metrics.get("baton_proxy_nodes_paused")?, 0);
    Ok(())
}

#[test]
fn a_prompt_that_is_too_long_for_the_nodes_reaches_none() -> Result<()> {
    let (nodes, _proxy, address) = fakes()?;
    // The context of the fake nodes is 4096 tokens. That of the proxy's model is longer.
    let body = json!({ "prompt": vec![7; 4096] });
    let (status, error) = post(&address, "/v1/completions", &body)?;
    assert_eq!(status, 400, "{error}");
    let message = "prompt has 4096 tokens, but this model's maximum context length is 4096 tokens";
    assert!(error["error"]["message"].as_str().is_some_and(|text| text.contains(message)), "{error}");
    assert_eq!(nodes.iter().map(FakeNode::asked).sum::<usize>(), 0);
    Ok(())
}

/// Waits until the node was asked for `more` further reports.
fn until_polled(proxy: &Process, node: &FakeNode, more: usize) -> Result<()> {
    let goal = node.polled() + more;
    proxy.until("the proxy asks for reports", || Ok(node.polled() >= goal))
}

#[test]
fn a_node_whose_report_is_wrong_is_logged_once_and_gets_no_requests() -> Result<()> {
    let (nodes, proxy, address) = fakes()?;
    let [liar, honest] = &nodes;
    let ready = |count: u64| -> Result<()> {
        proxy.until("the number of ready nodes is right", || {
            Ok(get(&address, "/health")?.1["nodes_ready"] == count)
        })
    };
    let lines = || proxy.count_events(Event::NodeLeftOut);
    let lies = [
        ("no report", "<html>".to_owned()),
        ("length limit exceeded", " ".repeat(300 << 10)),
        ("no hex number", liar.lie(&json!({ "incarnation": "own\nline" }))),
        ("page_tokens 0", liar.lie(&json!({ "page_tokens": 0 }))),
        ("pages of 32 tokens", liar.lie(&json!({ "page_tokens": 32 }))),
        ("other weights", liar.lie(&json!({ "fingerprint": "01" }))),
    ];
    for (number, (reason, lie)) in lies.iter().enumerate() {
        liar.report(lie.clone());
        proxy.wait_event(Event::NodeLeftOut, &[&liar.address, reason])?;
        ready(1)?;
        let asked = liar.asked();
        until_polled(&proxy, liar, 10)?;
        for request in 0..3 {
            let (status, body) = ask(&address, request)?;
            ensure!(status == 200 && body.contains(&honest.address), "{reason}: {status} {body}");
        }
        assert_eq!((lines(), liar.asked()), (number + 1, asked), "{reason}:\n{}", proxy.log());
        liar.report(liar.lie(&json!({})));
        ready(2)?;
    }
    // Numbers that no node has, and the name of the other node: both nodes stay in use.
    let most = json!({
        "context_tokens": u32::MAX, "pool_pages": u32::MAX, "used_pages": u32::MAX, "cache_pages": u32::MAX,
        "waiting_tokens": u64::MAX, "begun_tokens": u64::MAX, "nanos_per_token": u32::MAX, "decoding": u32::MAX,
        "decode": { "rows": u32::MAX, "micros": u32::MAX, "least_micros": u32::MAX },
        "running": u64::MAX, "waiting": u64::MAX,
    });
    let least = json!({ "context_tokens": 4096, "pool_pages": 0, "cache_pages": 0, "nanos_per_token": 0,
        "decode": { "rows": 0, "micros": 0, "least_micros": 0 } });
    let of_other = json!({ "incarnation": format!("{:0>16}", honest.address.rsplit(':').next().unwrap_or_default()),
        "http": honest.address, "prefillers": vec![&honest.address; 1000] });
    for lie in [most, least, of_other] {
        liar.report(liar.lie(&lie));
        until_polled(&proxy, liar, 10)?;
        for request in 0..6 {
            let (status, body) = ask(&address, request)?;
            ensure!(status == 200, "{lie}: {status} {body}");
        }
    }
    assert_eq!(lines(), lies.len(), "{}", proxy.log());
    Ok(())
}

#[test]
fn a_node_that_stalls_is_logged_once() -> Result<()> {
    let (nodes, proxy, address) = fakes()?;
    let [stalls, other] = &nodes;
    stalls.set(Manner::IsSilent);
    proxy.wait_event(Event::NodeLeftOut, &[&stalls.address, "no answer after 1s"])?;
    proxy.wait_event(Event::NodeSilent, &[&stalls.address])?;
    for request in 0..3 {
        let (status, body) = ask(&address, request)?;
        ensure!(status == 200 && body.contains(&other.address), "{status} {body}");
        // Each question has its time limit of 1 s.
        until_polled(&proxy, stalls, 1)?;
    }
    let counts = (proxy.count_events(Event::NodeLeftOut), proxy.count_events(Event::NodeSilent));
    assert_eq!(counts, (1, 1), "{}", proxy.log());
    Ok(())
}
