//! Sends many small requests through a pair or two nodes. Checks that all are answered, that all pages are freed, and that memory does not grow.
//!
//! ```text
//! cargo build --release -p runtime
//! cargo run --release -p integration-tests --example soak -- [--nodes] [REQUESTS] [CONCURRENCY]
//! ```
//! With `--nodes` two nodes that prefill for each other take the requests in turn.
//!
//! Each request has a new prompt of 16 tokens and asks for 8. The program reads resident memory after half of the requests and after all. Pages
//! stay in the cache, so the first half touches the whole page pool. The program ends with an error if an answer does not have status 200, if a
//! page, permit or stream is not released, or if memory grows by 2 % in the second half.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration_tests::client::{get, metrics, post};
use integration_tests::deadline::STATE_WITHIN;
use integration_tests::process::{Nodes, Pair, Process, until};
use serde_json::json;

const PROMPT_TOKENS: u32 = 16;
const TOKENS: u32 = 8;

/// A process and its name.
type Named = (&'static str, Process);

/// Starts a pair or two nodes. Returns the processes with their names, and the addresses to which requests go.
fn start(are_nodes: bool) -> Result<([Named; 2], Vec<String>)> {
    let sets = ["engine.kv_bytes=256MiB", "engine.prefix_cache=true"];
    if are_nodes {
        let Nodes { nodes: [first, second], frontends } = Nodes::start(&sets)?;
        return Ok(([("first", first), ("second", second)], frontends.into()));
    }
    let Pair { receiver, sender, frontend } = Pair::start(&sets)?;
    Ok(([("receiver", receiver), ("sender", sender)], vec![frontend]))
}

/// True if the processes have no request, and hold no page for one.
fn is_empty(processes: &[Named]) -> Result<bool> {
    for (_, process) in processes {
        let address = process.address("http.port")?;
        let names =
            ["baton_pages_live", "baton_pages_reserved", "baton_pages_quarantined", "baton_prefills_live"];
        let (_, load) = get(&address, "/load")?;
        let (_, health) = get(&address, "/health")?;
        let is_idle = load["server_load"] == 0 && health["live_requests"] == 0;
        if !is_idle || !metrics(&address)?.are_all_zero(&names)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    let are_nodes = arguments.next_if_eq("--nodes").is_some();
    let mut arguments = arguments.map(|text| text.parse::<usize>());
    let requests = arguments.next().unwrap_or(Ok(5000)).context("REQUESTS is not a number")?;
    let concurrency = arguments.next().unwrap_or(Ok(64)).context("CONCURRENCY is not a number")?;
    let (processes, frontends) = start(are_nodes)?;
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::<String>::new()));
    let mut half = Vec::new();
    let began = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let load = || {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed) as u32;
                if n as usize >= requests {
                    return;
                }
                let prompt: Vec<u32> =
                    (0..PROMPT_TOKENS).map(|place| 1000 + (n * 31 + place * 7) % 40_000).collect();
                let body =
                    json!({"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": true});
                let problem = match post(&frontends[n as usize % frontends.len()], "/v1/completions", &body) {
                    Ok((200, answer)) if answer["usage"]["completion_tokens"] == TOKENS => continue,
                    Ok((status, answer)) => format!("{status}: {answer}"),
                    Err(error) => error.to_string(),
                };
                failed.lock().expect("no thread panics while it holds the lock").push(problem);
            }
        };
        let loads: Vec<_> = (0..concurrency).map(|_| scope.spawn(load)).collect();
        while loads.iter().any(|load| !load.is_finished()) {
            if half.is_empty() && next.load(Ordering::Relaxed) >= requests / 2 {
                half = processes.iter().map(|(_, process)| process.resident_mib()).collect::<Result<_>>()?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    })?;
    let seconds = began.elapsed().as_secs_f64();
    let failed = failed.into_inner().expect("no thread panics while it holds the lock");
    println!(
        "{requests} requests of {PROMPT_TOKENS} tokens in and {TOKENS} out, {concurrency} at once: {seconds:.0} s, {:.1} requests/s, {} failed",
        requests as f64 / seconds,
        failed.len()
    );
    if let Some(first) = failed.first() {
        println!("the first failure: {first}");
    }
    // Pages, permits and streams are released shortly after the last answer.
    let empty = || is_empty(&processes);
    let released = until("pages, permits and streams are released", STATE_WITHIN, empty).is_ok();
    println!("pages, permits and streams released: {}", if released { "all" } else { "NOT all" });
    let mut grown: f64 = 0.0;
    for ((name, process), half) in processes.iter().zip(&half) {
        let end = process.resident_mib()?;
        let growth = (end / half - 1.0) * 100.0;
        println!("{name:<8} resident after half {:.1} MiB, after all {:.1} MiB: {growth:+.2} %", half, end);
        grown = grown.max(growth);
    }
    ensure!(
        failed.is_empty() && released && !half.is_empty() && grown < 2.0,
        "a request failed, something was not released, or memory grew"
    );
    Ok(())
}
