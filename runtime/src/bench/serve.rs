//! `runtime bench serve`: makes prompts, sends them at their times and prints the results.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use jiff::Timestamp;

use super::ServeOptions;
use super::client::{BenchClient, RequestOutcome, first_model};
use super::dataset::{BenchRequest, arrivals, random};
use super::results::Results;
use crate::frontend::ServedModel;
use crate::open_files;

/// Stack of the thread of a request. There may be a thousand of these threads.
const STACK_BYTES: usize = 256 << 10;

/// Measures, prints the results, and writes the result file. `key` is the API key.
///
/// # Errors
/// There is no server or no tokenizer, the file cannot be written, or all requests failed. Other failed requests are counted.
pub(super) fn run(options: &ServeOptions, key: Option<String>) -> Result<()> {
    ensure!(
        options.request_rate > 0.0,
        "--request-rate is {}; set it to a number above 0",
        options.request_rate
    );
    ensure!(options.burstiness > 0.0, "--burstiness is {}; set it to a number above 0", options.burstiness);
    ensure!(
        options.max_concurrency != Some(0),
        "--max-concurrency is 0; leave it out or set it to at least 1"
    );
    let (listed, root) = match (&options.model, &options.tokenizer) {
        (Some(model), Some(tokenizer)) => (model.clone(), tokenizer.display().to_string()),
        _ => first_model(&options.base(), key.as_deref()).map_err(|reason| anyhow!(reason))?,
    };
    let model = options.model.clone().unwrap_or(listed);
    let tokenizer = tokenizer(options, &root)?;
    let asked = random(options, &tokenizer).map_err(|reason| anyhow!(reason))?;
    let client = BenchClient::new(options, &model, key);
    ready(&client, &asked)?;
    for asked in asked.iter().cycle().take(options.num_warmups) {
        client.ask(asked, "warm-up", Instant::now());
    }
    println!("Starting {} requests to {}{} ({model})", asked.len(), options.base(), options.endpoint());
    // Each request in flight has a connection.
    open_files::raise();
    let (outputs, duration) = measure(&client, &asked);
    let results = Results::new(options, &outputs, duration);
    print!("{}", results.block());
    let mut failed = outputs.iter().filter(|output| !output.is_good()).peekable();
    if let Some(first) = failed.peek() {
        eprintln!("first failed request: {}", first.error);
    }
    if options.save_result || options.save_detailed {
        let date = Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
        let path = path(options, &model, &date);
        let text = serde_json::to_string(&results.json(&date, &model))?;
        std::fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote the results to {}", path.display());
    }
    ensure!(outputs.is_empty() || outputs.iter().any(RequestOutcome::is_good), "all requests failed");
    Ok(())
}

fn tokenizer(options: &ServeOptions, root: &str) -> Result<std::sync::Arc<crate::frontend::Tokenizer>> {
    let path = options.tokenizer.as_deref().unwrap_or(Path::new(root));
    if !path.exists() {
        bail!(
            "the model of the server is {root:?}, which is not on this machine; set --tokenizer to a GGUF file or folder"
        );
    }
    let model = ServedModel::open(path, path, None)
        .with_context(|| format!("cannot open --tokenizer {}", path.display()))?;
    Ok(model.tokenizer)
}

/// Waits until the server answers a first request, if `--ready-check-timeout-sec` is set.
fn ready(client: &BenchClient<'_>, asked: &[BenchRequest]) -> Result<()> {
    let wait = Duration::from_secs(client.options.ready_check_timeout_sec);
    let Some(first) = asked.first().filter(|_| !wait.is_zero()) else { return Ok(()) };
    let began = Instant::now();
    loop {
        let output = client.ask(first, "ready", began);
        if output.is_good() {
            return Ok(());
        }
        ensure!(began.elapsed() < wait, "server is not ready after {} s: {}", wait.as_secs(), output.error);
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Sends each request at its time, from a thread of its own. Returns the results and the duration in seconds.
fn measure(client: &BenchClient<'_>, asked: &[BenchRequest]) -> (Vec<RequestOutcome>, f64) {
    let options = client.options;
    let times = arrivals(asked.len(), options.request_rate, options.burstiness, options.seed);
    let prefix =
        options.request_id_prefix.clone().unwrap_or_else(|| format!("bench-{:08x}-", std::process::id()));
    let places = ConcurrencyLimit::new(options.max_concurrency.unwrap_or(usize::MAX));
    let outputs: Mutex<Vec<RequestOutcome>> = Mutex::new(vec![RequestOutcome::default(); asked.len()]);
    let done = AtomicUsize::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let progress = !options.disable_tqdm && std::io::stderr().is_terminal();
        if progress {
            scope.spawn(|| show(&done, asked.len(), began));
        }
        for (n, (asked, at)) in asked.iter().zip(times).enumerate() {
            let at = Duration::try_from_secs_f64(at).unwrap_or_default();
            let wait = at.saturating_sub(began.elapsed());
            if !wait.is_zero() {
                std::thread::sleep(wait);
            }
            let (places, outputs, done, id) = (&places, &outputs, &done, format!("{prefix}{n}"));
            let keep = move |output: RequestOutcome| {
                outputs.lock().unwrap_or_else(PoisonError::into_inner)[n] = output;
                done.fetch_add(1, Ordering::Relaxed);
            };
            let ask = move || {
                let _place = places.take();
                keep(client.ask(asked, &id, began));
            };
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, ask);
            if let Err(error) = thread {
                let error = format!("cannot start a thread for the request: {error}");
                outputs.lock().unwrap_or_else(PoisonError::into_inner)[n] =
                    RequestOutcome { error, ..RequestOutcome::default() };
                done.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let duration = began.elapsed().as_secs_f64();
    (outputs.into_inner().unwrap_or_else(PoisonError::into_inner), duration)
}

/// Shows the progress until all requests are done.
fn show(done: &AtomicUsize, all: usize, began: Instant) {
    loop {
        let count = done.load(Ordering::Relaxed);
        let seconds = began.elapsed().as_secs_f64();
        let filled = (count * 30).checked_div(all).unwrap_or(30);
        let rate = count as f64 / seconds.max(1e-3);
        eprint!(
            "\r{:3}%|{}{}| {count}/{all} [{seconds:.0}s, {rate:.2}it/s]",
            count * 100 / all.max(1),
            "█".repeat(filled),
            " ".repeat(30 - filled)
        );
        let _ = std::io::stderr().flush();
        if count >= all {
            return eprintln!();
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Limits the requests in flight.
struct ConcurrencyLimit {
    free: Mutex<usize>,
    freed: Condvar,
}

struct InFlight<'a>(&'a ConcurrencyLimit);

impl ConcurrencyLimit {
    fn new(count: usize) -> Self {
        Self { free: Mutex::new(count), freed: Condvar::new() }
    }

    fn take(&self) -> InFlight<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.freed.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        InFlight(self)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

/// Path of the result file: `{label|backend}-{rate}qps[-concurrencyN]-{model}-{time}.json`.
fn path(options: &ServeOptions, model: &str, date: &str) -> PathBuf {
    let folder = options.result_dir.clone().unwrap_or_default();
    if let Some(name) = &options.result_filename {
        return folder.join(name);
    }
    let label = options.label.as_deref().unwrap_or(options.backend.name());
    let rate =
        if options.request_rate.is_finite() { options.request_rate.to_string() } else { "inf".to_owned() };
    let concurrency = options.max_concurrency.map(|most| format!("-concurrency{most}")).unwrap_or_default();
    let model = model.rsplit('/').next().unwrap_or(model);
    folder.join(format!("{label}-{rate}qps{concurrency}-{model}-{date}.json"))
}
