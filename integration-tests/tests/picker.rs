//! A client that routes as the endpoint picker of llm-d does. It reads the gauges of each sender every 50 ms, rebuilds what each has cached from the tokens
//! in its KV events, and names the prefiller of each request in the header.

#[path = "picker/subscriber.rs"]
mod subscriber;

use std::cmp::Reverse;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::client::{metrics, post_with};
use integration_tests::deadline::STATE_WITHIN;
use integration_tests::process::{Event, Process, field, start_receiver, start_sender, until};
use serde_json::{Value, json};
use subscriber::Subscriber;

const PAGE_TOKENS: usize = 16;
const SCRAPE_EVERY: Duration = Duration::from_millis(50);
const ANNOUNCES: [&str; 4] =
    ["engine.prefix_cache=true", "kv_events.enabled=true", "kv_events.port=0", "kv_events.replay_port=0"];

/// A sender as the picker sees it.
struct Candidate {
    process: Process,
    address: String,
    events: Subscriber,
    /// `num_requests_waiting`, `num_requests_running` and `kv_cache_usage_perc`.
    gauges: Mutex<[f64; 3]>,
    picked: AtomicUsize,
}

impl Candidate {
    fn start(receiver: &Process) -> Result<Self> {
        let process = start_sender(receiver, &ANNOUNCES)?;
        let address = process.address("http.port")?;
        let line = process.wait_event(Event::Listening, &["key=\"kv_events.port\""])?;
        let topic = field(&line, "topic").with_context(|| line.clone())?;
        let events = Subscriber::connect(&process.address("kv_events.port")?, topic, PAGE_TOKENS)?;
        Ok(Self { process, address, events, gauges: Mutex::default(), picked: AtomicUsize::new(0) })
    }

    fn scrape(&self) -> Result<()> {
        let text = metrics(&self.address)?.to_string();
        let gauge = |name: &str| -> Result<f64> {
            let name = format!("vllm:{name}{{");
            let line = text.lines().find(|line| line.starts_with(&name));
            let value = line.and_then(|line| line.rsplit(' ').next());
            Ok(value.with_context(|| format!("no {name} in {text}"))?.parse()?)
        };
        let [waiting, running, usage] =
            ["num_requests_waiting", "num_requests_running", "kv_cache_usage_perc"];
        let gauges = [gauge(waiting)?, gauge(running)?, gauge(usage)?];
        *self.gauges.lock().unwrap_or_else(PoisonError::into_inner) = gauges;
        Ok(())
    }

    fn gauges(&self) -> [f64; 3] {
        *self.gauges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its requests that wait or run.
    fn load(&self) -> u64 {
        (self.gauges()[0] + self.gauges()[1]) as u64
    }
}

/// The sender with the longest cached part of the prompt; of several, the one with the least load, and then the one with fewer picks.
fn pick<'a>(senders: &'a [Candidate; 2], prompt: &[u32]) -> &'a Candidate {
    let rank = |sender: &&Candidate| {
        let picked = sender.picked.load(Ordering::Relaxed);
        (Reverse(sender.events.cached_pages(prompt)), sender.load(), picked)
    };
    let best = if rank(&&senders[1]) < rank(&&senders[0]) { &senders[1] } else { &senders[0] };
    best.picked.fetch_add(1, Ordering::Relaxed);
    best
}

/// The tokens of an answer, its timings, and the process id of its prefiller.
fn ask(receiver: &str, prefiller: &Candidate, prompt: &[u32]) -> Result<(Vec<u32>, Value)> {
    let body = json!({
        "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": true, "return_token_ids": true,
        "return_timings": true,
    });
    let header = [("x-prefiller-host-port", &*prefiller.address)];
    let (status, answer) = post_with(receiver, "/v1/completions", &header, &body)?;
    ensure!(status == 200, "{status}: {answer}");
    let by = answer["timings"]["prefill_pid"].as_u64();
    ensure!(by == Some(u64::from(prefiller.process.pid())), "{:?} prefilled: {answer}", by);
    Ok((serde_json::from_value(answer["choices"][0]["token_ids"].clone())?, answer["timings"].clone()))
}

/// A prompt that shares no page with a prompt of another number.
fn prompt(number: usize, tokens: usize) -> Vec<u32> {
    (0..tokens).map(|token| (1000 + (number * 97 + token * 7) % 20_000) as u32).collect()
}

#[test]
fn a_picker_routes_by_its_metrics_and_by_the_index_of_kv_events() -> Result<()> {
    let receiver = start_receiver(&["ring.bytes=12MiB"])?;
    let senders = [Candidate::start(&receiver)?, Candidate::start(&receiver)?];
    let http = receiver.address("http.port")?;
    receiver.wait_peers(2)?;
    let (ends, scrapes) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let scraping = scope.spawn(|| -> Result<()> {
            while !ends.load(Ordering::Relaxed) {
                senders.iter().try_for_each(Candidate::scrape)?;
                scrapes.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(SCRAPE_EVERY);
            }
            Ok(())
        });
        let routed = conversations(&http, &senders).and_then(|()| load(&http, &senders));
        ends.store(true, Ordering::Relaxed);
        scraping.join().expect("the thread did not panic")?;
        routed
    })?;
    assert!(scrapes.load(Ordering::Relaxed) >= 10, "{scrapes:?}");
    assert_eq!(metrics(&http)?.get("baton_prefiller_header_unknown_total")?, 0);
    senders.iter().try_for_each(|sender| sender.events.check())
}

/// The second turn of each conversation goes to the sender that has computed the first one.
fn conversations(receiver: &str, senders: &[Candidate; 2]) -> Result<()> {
    const FIRST: usize = 6 * PAGE_TOKENS;
    let mut turns = Vec::new();
    for number in 0..8 {
        let first = prompt(number, FIRST);
        let sender = pick(senders, &first);
        let answer = ask(receiver, sender, &first)?.0;
        until("the prompt is announced", STATE_WITHIN, || {
            Ok(sender.events.cached_pages(&first) * PAGE_TOKENS == FIRST)
        })?;
        turns.push((sender, [first, answer, prompt(100 + number, 40)].concat()));
    }
    let by: Vec<usize> = senders.iter().map(|sender| sender.picked.load(Ordering::Relaxed)).collect();
    assert!(by.iter().all(|picked| *picked > 0), "both senders are used: {by:?}");
    // In another order, so that the places in turn do not explain the choice.
    for (before, second) in turns.iter().rev() {
        let sender = pick(senders, second);
        assert_eq!(sender.address, before.address, "the index knows who has the first turn");
        let (_, timings) = ask(receiver, sender, second)?;
        let cached = timings["cached_tokens"].as_u64().context("no cached_tokens")?;
        assert!(cached >= FIRST as u64, "{cached} tokens were cached: {timings}");
    }
    Ok(())
}

/// A new prompt does not go to the sender that is busy.
fn load(receiver: &str, senders: &[Candidate; 2]) -> Result<()> {
    std::thread::scope(|scope| {
        let busy = &senders[0];
        let long: Vec<_> = (0..3)
            .map(|number| scope.spawn(move || ask(receiver, busy, &prompt(200 + number, 800))))
            .collect();
        until("the gauges show the load", STATE_WITHIN, || {
            Ok(busy.load() > 0 && senders[1].load() == 0 && busy.gauges()[2] > 0.0)
        })?;
        let fresh = prompt(300, 5 * PAGE_TOKENS);
        let sender = pick(senders, &fresh);
        assert_eq!(sender.address, senders[1].address, "the other sender is busy");
        ask(receiver, sender, &fresh)?;
        long.into_iter().try_for_each(|asked| asked.join().expect("the thread did not panic").map(drop))?;
        until("the load is gone", STATE_WITHIN, || Ok(senders.iter().all(|sender| sender.load() == 0)))
    })
}
