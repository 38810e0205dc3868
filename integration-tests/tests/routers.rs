//! What a router of a fleet uses: the header that names the prefiller, and the report of a process.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use integration_tests::client::{Connection, complete, get, metrics, post, post_with};
use integration_tests::deadline::STATE_WITHIN;
use integration_tests::process::{Event, Pair, Process, start_receiver, start_sender, until};
use runtime::frontend::{NodeReport, NodeState};
use serde_json::{Value, json};

fn prompt() -> Value {
    json!("The lighthouse keeper counted the ships that passed in the night and wrote their names in a book")
}

/// The token ids of an answer, and the process that prefilled its prompt. The header names the prefiller.
fn ask(address: &str, header: Option<&str>) -> Result<(Value, u64)> {
    let headers: Vec<(&str, &str)> = header.iter().map(|value| ("x-prefiller-host-port", *value)).collect();
    let body = json!({
        "prompt": prompt(), "max_tokens": 4, "temperature": 0, "ignore_eos": true,
        "return_token_ids": true, "return_timings": true,
    });
    let (status, answer) = post_with(address, "/v1/completions", &headers, &body)?;
    ensure!(status == 200, "{status}: {answer}");
    let pid = answer["timings"]["prefill_pid"].as_u64().context("the timings have no prefill_pid")?;
    Ok((answer["choices"][0]["token_ids"].clone(), pid))
}

fn pid(process: &Process) -> u64 {
    u64::from(process.pid())
}

fn report(address: &str) -> Result<NodeReport> {
    let (status, body) = get(address, "/node")?;
    ensure!(status == 200, "{status}: {body}");
    Ok(serde_json::from_value(body)?)
}

/// Waits until the process knows these prefillers.
fn until_prefillers(address: &str, expect: &[String]) -> Result<()> {
    let expect: BTreeSet<&str> = expect.iter().map(|address| &**address).collect();
    until("the report has the prefillers", STATE_WITHIN, || {
        let found: Vec<String> = report(address)?.prefillers.iter().map(ToString::to_string).collect();
        Ok(found.iter().map(|address| &**address).collect::<BTreeSet<_>>() == expect)
    })
}

#[test]
fn a_header_names_the_sender_that_prefills() -> Result<()> {
    let receiver = start_receiver(&["ring.bytes=12MiB"])?;
    let senders = [start_sender(&receiver, &[])?, start_sender(&receiver, &[])?];
    let (http, frontend) = (receiver.address("http.port")?, receiver.address("frontend.port")?);
    let addresses = [senders[0].address("http.port")?, senders[1].address("http.port")?];
    until_prefillers(&http, &addresses)?;
    let unknown = || metrics(&http)?.get("baton_prefiller_header_unknown_total");

    let (expect, here) = ask(&http, None)?;
    assert_eq!(here, pid(&receiver), "http.port prefills here without the header");
    for (sender, address) in senders.iter().zip(&addresses) {
        for header in [address.clone(), format!("10.255.0.1:1, {address},{}", addresses[0])] {
            for _ in 0..3 {
                assert_eq!(ask(&http, Some(&header))?, (expect.clone(), pid(sender)), "{header}");
            }
        }
    }
    assert_eq!(ask(&http, Some(&http))?, (expect.clone(), pid(&receiver)), "its own address");
    assert_eq!(unknown()?, 0);

    let both: BTreeSet<u64> = senders.iter().map(pid).collect();
    for (count, header) in [(1, "10.255.0.1:1"), (2, "nonsense"), (3, "")] {
        let (ids, by) = ask(&http, Some(header))?;
        assert_eq!((ids, unknown()?), (expect.clone(), count), "{header}");
        assert!(both.contains(&by), "the receiver chooses a sender, as on its frontend: {by}");
    }

    // The frontend does not trust its clients.
    let named = |address: &String| {
        (0..8).map(|_| Ok(ask(&frontend, Some(address))?.1)).collect::<Result<BTreeSet<u64>>>()
    };
    let by = [named(&addresses[0])?, named(&addresses[1])?];
    let trusted = senders.each_ref().map(|sender| BTreeSet::from([pid(sender)]));
    assert_ne!(by, trusted, "the receiver chooses a sender");
    ask(&frontend, Some("10.255.0.1:1"))?;
    assert_eq!(unknown()?, 3);
    assert_eq!(get(&frontend, "/node")?.0, 404);
    Ok(())
}

#[test]
fn forged_headers_are_logged_once_and_nothing_connects_to_their_addresses() -> Result<()> {
    let pair = Pair::start(&[])?;
    let http = pair.receiver.address("http.port")?;
    let (expect, _) = ask(&http, None)?;
    let trap = TcpListener::bind("127.0.0.1:0")?;
    trap.set_nonblocking(true)?;
    let began = Instant::now();
    let own = trap.local_addr()?.to_string();
    let forged =
        [own.clone(), format!("[::ffff:{own}"), "\"".into(), ",,,".into(), vec![&*own; 200].join(",")];
    for header in &forged {
        assert_eq!(ask(&http, Some(header))?.0, expect, "{header}");
    }
    let port = pair.sender.address("http.port")?;
    assert_eq!(ask(&http, Some(&port))?, (expect, pid(&pair.sender)), "a true header counts");
    let unknown = metrics(&http)?.get("baton_prefiller_header_unknown_total")?;
    assert_eq!(unknown, forged.len() as u64);
    // At most one line a minute.
    let lines = pair.receiver.count_events(Event::HeaderUnknown) as u64;
    assert!((1..=1 + began.elapsed().as_secs() / 60).contains(&lines), "{}", pair.receiver.log());
    let connected = trap.accept().map(drop).map_err(|error| error.kind());
    assert_eq!(connected, Err(ErrorKind::WouldBlock), "an address of the header was connected to");
    Ok(())
}

#[test]
fn a_trusted_header_counts_on_the_frontend_and_senders_advertise_addresses() -> Result<()> {
    let pair =
        Pair::start(&["frontend.trust_header=true", "http.host=0.0.0.0", "http.advertise=127.0.0.1:7"])?;
    let advertises = start_sender(&pair.receiver, &["http.advertise=10.9.8.7:8100"])?;
    let listens_everywhere = start_sender(&pair.receiver, &["http.host=0.0.0.0"])?;
    let port = listens_everywhere.address("http.port")?;
    let completed = port.replace("0.0.0.0", "127.0.0.1");
    let http = pair.receiver.address("http.port")?.replace("0.0.0.0", "127.0.0.1");
    let all = ["127.0.0.1:7".to_owned(), "10.9.8.7:8100".to_owned(), completed.clone()];
    until_prefillers(&http, &all)?;
    for _ in 0..3 {
        assert_eq!(ask(&pair.frontend, Some("10.9.8.7:8100"))?.1, pid(&advertises));
        assert_eq!(ask(&pair.frontend, Some(&completed))?.1, pid(&listens_everywhere));
        // The receiver and the first sender advertise the same address. The receiver knows it as its own.
        assert_eq!(ask(&pair.frontend, Some("127.0.0.1:7"))?.1, pid(&pair.receiver));
    }
    Ok(())
}

/// The endpoint picker of the Gateway API Inference Extension reads these gauges from the port that it sends requests to.
#[test]
fn every_process_has_the_gauges_of_a_picker() -> Result<()> {
    let pair = Pair::start(&["engine.page_tokens=32"])?;
    for process in [&pair.receiver, &pair.sender] {
        let text = metrics(&process.address("http.port")?)?.to_string();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("vllm:{name}{{model_name=")));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        };
        for name in ["num_requests_waiting", "num_requests_running", "kv_cache_usage_perc"] {
            assert_eq!(value(name), Some(0.0), "{name} in {text}");
        }
        assert_eq!(value("cache_config_info"), Some(1.0), "{text}");
        let pages = metrics(&process.address("http.port")?)?.get("baton_pages")?;
        for label in [",block_size=\"32\",".to_owned(), format!(",num_gpu_blocks=\"{pages}\"")] {
            assert!(text.contains(&label), "{label} in {text}");
        }
    }
    Ok(())
}

#[test]
fn a_report_shows_a_request_and_the_drain() -> Result<()> {
    let mut receiver = start_receiver(&["served_model_name=m", "shutdown.drain=2m"])?;
    let http = receiver.address("http.port")?;
    let idle = report(&http)?;
    assert_eq!(
        (&*idle.role, idle.prefills, idle.decodes, idle.state),
        ("receiver", false, true, NodeState::Ok)
    );
    assert_eq!((&*idle.model, idle.page_tokens, idle.cache_pages), ("m", 16, 0));
    assert_eq!((idle.used_pages, idle.running, idle.waiting, &*idle.prefillers), (0, 0, 0, &[][..]));
    assert_eq!((idle.incarnation.len(), idle.fingerprint.len()), (16, 64), "{idle:?}");
    assert_eq!(idle.http.map(|address| address.to_string()), Some(http.clone()));
    // The actors set their counters a moment after the start.
    receiver.until("the ring is not counted", || {
        Ok(u64::from(idle.pool_pages) < metrics(&http)?.get("baton_pages")?)
    })?;

    // A short prompt does not show the speed.
    complete(&http, &json!((0..96).collect::<Vec<u32>>()), 4)?;
    until("the speed of prompts is measured", STATE_WITHIN, || Ok(report(&http)?.nanos_per_token.is_some()))?;

    let body = json!({"prompt": prompt(), "max_tokens": 400, "temperature": 0, "ignore_eos": true});
    let client = std::thread::spawn({
        let http = http.clone();
        move || post(&http, "/v1/completions", &body)
    });
    until("the report shows the request", STATE_WITHIN, || {
        let busy = report(&http)?;
        Ok(busy.running == 1 && busy.used_pages > 0)
    })?;
    receiver.signal("-TERM")?;
    // A router may connect only now.
    until("the report shows the drain", STATE_WITHIN, || {
        let mut router = Connection::open(&http)?;
        router.send(b"GET /node HTTP/1.1\r\nhost: x\r\n\r\n")?;
        let (status, body) = router.answer()?;
        ensure!(status == 200, "{status}: {body}");
        Ok(serde_json::from_str::<NodeReport>(&body)?.state == NodeState::Draining)
    })?;
    // The drain is reported first. Requests that arrive before the process refuses them are answered.
    until("requests are refused", STATE_WITHIN, || {
        let (status, body) = post(&http, "/v1/completions", &json!({"prompt": "a", "max_tokens": 1}))?;
        ensure!([200, 503].contains(&status), "{status}: {body}");
        Ok(status == 503)
    })?;
    let (status, answer) = client.join().expect("the thread did not panic")?;
    assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(400)), "{answer}");
    assert_eq!(receiver.wait()?.code(), Some(0), "{}", receiver.log());
    Ok(())
}
