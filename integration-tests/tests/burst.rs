//! A thousand requests at once with default settings, and more connections than a process may have open.

use std::net::TcpStream;

use anyhow::{Context, Result};
use integration_tests::client::{Connection, get, get_text};
use integration_tests::folders::small_models;
use integration_tests::process::{Event, Process, start_sender};
use serde_json::{Value, json};

const REQUESTS: usize = 1000;
const PROMPT_TOKENS: usize = 16;
const TOKENS: usize = 8;

/// Sends a request and does not wait for its answer.
fn ask(address: &str, n: usize) -> Result<Connection> {
    let prompt: Vec<usize> = (0..PROMPT_TOKENS).map(|place| 4 + (n * 31 + place * 7) % 70).collect();
    let body = json!({"prompt": prompt, "max_tokens": TOKENS, "ignore_eos": true}).to_string();
    Connection::post(address, "/v1/completions", &body)
}

#[test]
fn a_thousand_requests_at_once_are_answered() -> Result<()> {
    // Each client of this test is a socket.
    runtime::open_files::raise();
    let folder = small_models()?.first().context("there is no test model")?.write("burst")?;
    let model = folder.path().display().to_string();
    let process = Process::start(&["--set", "frontend.port=0", "--model", &model], &[])?;
    let address = process.wait_healthy("frontend.port")?;
    let clients: Vec<Connection> = (0..REQUESTS).map(|n| ask(&address, n)).collect::<Result<_>>()?;
    for (n, mut client) in clients.into_iter().enumerate() {
        let (status, body) = client.answer().with_context(|| format!("request {n} failed"))?;
        assert_eq!(status, 200, "request {n}: {body}");
        let usage = &serde_json::from_str::<Value>(&body)?["usage"];
        assert_eq!(
            (&usage["prompt_tokens"], &usage["completion_tokens"]),
            (&json!(PROMPT_TOKENS), &json!(TOKENS))
        );
    }
    assert_eq!(get(&address, "/load")?, (200, json!({"server_load": 0, "running": 0, "waiting": 0})));
    let metrics = get_text(&address, "/metrics")?;
    let has =
        |name: &str, end: &str| metrics.lines().any(|line| line.starts_with(name) && line.ends_with(end));
    assert!(has("vllm:num_requests_waiting{", "} 0"), "{metrics}");
    assert!(has("vllm:request_queue_time_seconds_count{", &format!("}} {REQUESTS}")), "{metrics}");
    // 1 GiB in pages of 16 tokens, each with 2 layers of 64 keys and values in f32.
    let pages = (1 << 30) / (16 * 2 * 2 * 64 * 4);
    assert!(
        metrics.contains(r#",block_size="16","#)
            && metrics.contains(&format!(r#",num_gpu_blocks="{pages}""#)),
        "{metrics}"
    );
    Ok(())
}

/// The process may open 560 files and keeps 512 of them for other uses than HTTP.
#[test]
fn http_connections_leave_open_files_to_the_link() -> Result<()> {
    let ports = ["http.port=0", "frontend.port=0", "link.port=0"];
    let arguments = ports.into_iter().flat_map(|port| ["--set", port]);
    let arguments: Vec<&str> = ["--role", "receiver"].into_iter().chain(arguments).collect();
    let receiver = Process::start_with_open_files(560, &arguments)?;
    receiver.wait_event(Event::FewConnections, &["connections=24"])?;
    let frontend = receiver.wait_healthy("frontend.port")?;
    let _crowd: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(&frontend)).collect::<Result<_, _>>()?;
    let sender = start_sender(&receiver, &[])?;
    sender.wait_peers(1)?;
    receiver.wait_peers(1)
}
