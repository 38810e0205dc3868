//! The cost of idle connections, and whether streams beside them lose tokens.
//!
//! ```text
//! cargo build --release -p runtime
//! cargo run --release -p integration-tests --example connections -- [CONNECTIONS] [STREAMS] [KEY=VALUE]...
//! ```
//! A process of role `local` serves, with these settings. The program opens the connections, asks for `/health` on each, and prints how much the resident memory of
//! the process has grown. Then all streams run at once. A thread asks on each idle connection every few seconds, because the server closes
//! connections that are idle for 20 s. At the end, each prompt is asked again without streaming, a few at a time.
//!
//! The program ends with an error if an idle connection was closed, if a stream has other tokens than the second answer to its prompt, or if
//! the growth is more than 32 KiB for each connection. As root it raises its limit of open files where that is too low.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration_tests::client::{Connection, ask_all, complete, post_request};
use integration_tests::deadline::STATE_WITHIN;
use integration_tests::process::{Process, start_local};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

const TOKENS: u32 = 16;

/// Most KiB of resident memory for each idle connection.
const KIB_MAX: f64 = 32.0;

/// Period of the requests on an idle connection. The server closes it after 20 s.
const PERIOD: Duration = Duration::from_secs(8);

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";

/// Allows this process and its children this many open files.
fn allow_files(files: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.map(|maximum| maximum.max(files));
    let raised = Rlimit { current: maximum, maximum };
    setrlimit(Resource::Nofile, raised).with_context(|| {
        format!("{files} open files are needed; raise the hard limit with ulimit -Hn {files}")
    })
}

/// Asks for `/health` on each connection, with many requests under way at once.
fn ask_health(connections: &mut [Connection]) -> Result<()> {
    for some in connections.chunks_mut(100) {
        some.iter_mut().try_for_each(|connection| connection.send(HEALTH))?;
        for connection in some {
            let (status, body) = connection.answer().context("an idle connection was closed")?;
            ensure!(status == 200, "/health answered {status}: {body}");
        }
    }
    Ok(())
}

/// Waits until the resident memory of the process stays the same for two seconds: a process goes on to touch its memory after its first answer.
fn settled_mib(process: &Process) -> Result<f64> {
    let (mut last, mut since) = (process.resident_mib()?, Instant::now());
    let began = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        ensure!(began.elapsed() < STATE_WITHIN, "the resident memory of the process does not settle");
        std::thread::sleep(Duration::from_millis(100));
        let now = process.resident_mib()?;
        if (now - last).abs() > 0.5 {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

/// Opens the connections. Prints the memory that each takes. Returns them.
fn open(process: &Process, address: &str, count: usize) -> Result<Vec<Connection>> {
    let before = settled_mib(process)?;
    let mut connections = Vec::with_capacity(count);
    let began = Instant::now();
    while connections.len() < count {
        let more = (count - connections.len()).min(100);
        let opened: Vec<_> = (0..more).map(|_| Connection::open(address)).collect::<Result<_>>()?;
        connections.extend(opened);
        let first = connections.len() - more;
        ask_health(&mut connections[first..])?;
    }
    let after = process.resident_mib()?;
    let each = (after - before) * 1024.0 / count as f64;
    println!(
        "{count} connections opened in {:.1} s; resident memory {before:.1} MiB before and {after:.1} MiB after: {each:.1} KiB for each",
        began.elapsed().as_secs_f64()
    );
    ensure!(each <= KIB_MAX, "each idle connection takes more than {KIB_MAX} KiB");
    Ok(connections)
}

/// The prompt of a stream. Prompts have different lengths, and no page in common.
fn prompt(stream: u32) -> Value {
    let tokens: Vec<u32> =
        (0..16 + stream % 48).map(|place| 1000 + (stream * 97 + place * 7) % 40_000).collect();
    json!(tokens)
}

/// Streams an answer. Returns the ids of its tokens, and the number of events that had tokens.
fn stream(address: &str, prompt: &Value) -> Result<(Vec<u32>, usize)> {
    let body = json!({
        "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": true, "stream": true, "return_token_ids": true,
    });
    let mut connection = Connection::open(address)?;
    connection.send(&post_request("/v1/completions", &body.to_string()))?;
    let text = connection.read_until("data: [DONE]")?;
    let (mut ids, mut events) = (Vec::new(), 0);
    for data in text.lines().filter_map(|line| line.strip_prefix("data: {")) {
        let event: Value = serde_json::from_str(&format!("{{{data}"))?;
        let Some(more) = event["choices"][0]["token_ids"].as_array() else {
            bail!("an event has no token_ids: {event}");
        };
        events += usize::from(!more.is_empty());
        ids.extend(more.iter().filter_map(Value::as_u64).map(|id| id as u32));
    }
    Ok((ids, events))
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut numbers = arguments.iter().take(2).map(|text| text.parse::<u32>());
    let connections = numbers.next().unwrap_or(Ok(10_000)).context("CONNECTIONS is not a number")? as usize;
    let streams = numbers.next().unwrap_or(Ok(200)).context("STREAMS is not a number")?;
    let sets: Vec<&str> = arguments.iter().skip(2).map(String::as_str).collect();
    // One for each connection, and some for the rest of the process.
    allow_files(connections as u64 + u64::from(streams) + 1000)?;
    let (process, address) = start_local(&sets)?;
    complete(&address, &json!([1, 2, 3]), TOKENS)?;
    let mut idle = open(&process, &address, connections)?;
    let prompts: Vec<Value> = (0..streams).map(prompt).collect();
    let over = AtomicBool::new(false);
    let began = Instant::now();
    let streamed = std::thread::scope(|scope| -> Result<_> {
        let keeper = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                let asked = Instant::now();
                ask_health(&mut idle)?;
                while asked.elapsed() < PERIOD && !over.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            ask_health(&mut idle)
        });
        let streamed = ask_all(&prompts, prompts.len(), |prompt| stream(&address, prompt));
        over.store(true, Ordering::Relaxed);
        keeper.join().map_err(|_| anyhow::anyhow!("the thread of the idle connections panicked"))??;
        streamed
    })?;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{streams} streams of {TOKENS} tokens at once: {seconds:.1} s; all {connections} connections are still open"
    );
    let whole = ask_all(&prompts, 8, |prompt| complete(&address, prompt, TOKENS))?;
    let differ = streamed.iter().zip(&whole).filter(|((ids, _), whole)| *ids != whole.ids).count();
    let events: usize = streamed.iter().map(|(_, events)| events).sum();
    println!(
        "{} of {streams} streams have the tokens of the second answer; {events} events",
        streams as usize - differ
    );
    ensure!(differ == 0, "{differ} streams have other tokens");
    Ok(())
}
