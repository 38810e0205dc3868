//! Sends requests to a server: what `bench serve` and `bench sweep` have in common.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::client::{BenchClient, RequestOutcome, first_model};
use super::dataset::{BenchRequest, Part, requests};
use super::{DatasetName, LoadOptions};
use crate::frontend::ServedModel;
use crate::open_files;

/// Stack of the thread of a request. There may be a thousand of these threads.
const STACK_BYTES: usize = 256 << 10;

/// Checks options that all loads have.
///
/// # Errors
/// An option has an impossible value.
pub(super) fn check(options: &LoadOptions) -> Result<()> {
    ensure!(options.burstiness > 0.0, "--burstiness is {}; set it to a number above 0", options.burstiness);
    ensure!(
        options.max_concurrency != Some(0),
        "--max-concurrency is 0; leave it out or set it to at least 1"
    );
    let is_custom = options.dataset_name == DatasetName::Custom;
    ensure!(
        is_custom == options.dataset_path.is_some(),
        "--dataset-name custom and --dataset-path need each other; set both or neither"
    );
    ensure!(
        options
            .custom_output_len
            .is_none_or(|tokens| tokens == -1 || (1..=i64::from(u32::MAX)).contains(&tokens)),
        "--custom-output-len is {}; set it to -1 or to at least 1",
        options.custom_output_len.unwrap_or_default()
    );
    Ok(())
}

/// The client of the server at `base`, and the path of the server's model. `patience` is the maximum time for a request.
///
/// # Errors
/// The server does not answer or lists no model.
pub(super) fn connect(
    options: &LoadOptions,
    base: String,
    key: Option<String>,
    patience: Duration,
) -> Result<(BenchClient<'_>, String)> {
    let (listed, root) = match (&options.model, &options.tokenizer) {
        (Some(model), Some(_)) => (model.clone(), String::new()),
        _ => first_model(&base, key.as_deref(), patience).map_err(|reason| anyhow!(reason))?,
    };
    // Each request in flight has a connection.
    open_files::raise();
    let model = options.model.clone().unwrap_or(listed);
    let client = BenchClient::new(options, base, model, key, patience).map_err(|reason| anyhow!(reason))?;
    Ok((client, root))
}

/// The model that turns prompts into tokens: that of `--tokenizer`, or that of the server, if it is on this machine. `None` if the
/// prompts can be sent without it.
///
/// # Errors
/// The model is not on this machine or cannot be opened.
pub(super) fn text_model(options: &LoadOptions, root: &str) -> Result<Option<ServedModel>> {
    let path = options.tokenizer.as_deref().unwrap_or(Path::new(root));
    if !path.exists() {
        if options.dataset_name == DatasetName::Custom && !options.needs_template() {
            return Ok(None);
        }
        let other = match options.dataset_name {
            DatasetName::Random => "",
            DatasetName::Custom => ", or --skip-chat-template or --backend openai-chat",
        };
        let path = path.display();
        anyhow::bail!(
            "the model of the server is \"{path}\", which is not on this machine; set --tokenizer to a GGUF file or folder{other}"
        );
    }
    let model = ServedModel::open(path, path, None)
        .with_context(|| format!("cannot open --tokenizer {}", path.display()))?;
    Ok(Some(model))
}

/// The requests before the measurement: the first ones of the dataset. The measured requests begin behind them, because a server may have
/// cached their prompts.
///
/// # Errors
/// As [`requests()`].
pub(super) fn warm_ups(options: &LoadOptions, model: Option<&ServedModel>) -> Result<Vec<BenchRequest>> {
    let is_checked = options.ready_check_timeout_sec > 0;
    let part = Part { first: 0, count: options.num_warmups.max(usize::from(is_checked)) };
    requests(options, model, part).map_err(|reason| anyhow!(reason))
}

/// The prompts that were sent, as hashes.
#[derive(Default)]
pub(super) struct SentPrompts(HashSet<u64>);

impl SentPrompts {
    /// Adds the prompts of requests. Returns the number of those that were there before.
    pub(super) fn add(&mut self, asked: &[BenchRequest]) -> usize {
        let is_old = |request: &&BenchRequest| {
            let mut hasher = DefaultHasher::new();
            request.prompt.hash(&mut hasher);
            !self.0.insert(hasher.finish())
        };
        asked.iter().filter(is_old).count()
    }

    /// As `add`, and says how many prompts the server may have cached.
    pub(super) fn show(&mut self, asked: &[BenchRequest]) {
        let count = self.add(asked);
        if count > 0 {
            println!(
                "{count} of the next {} prompts are sent again; the server may have them in a cache",
                asked.len()
            );
        }
    }
}

/// Waits until the server answers a first request, if `--ready-check-timeout-sec` is set, and sends the requests of `--num-warmups`. `asked`
/// are those of [`warm_ups`].
pub(super) fn ready(client: &BenchClient<'_>, asked: &[BenchRequest]) -> Result<()> {
    let wait = Duration::from_secs(client.options.ready_check_timeout_sec);
    let began = Instant::now();
    while let Some(first) = asked.first().filter(|_| !wait.is_zero()) {
        let output = client.ask(first, "ready", began);
        if output.is_good() {
            break;
        }
        ensure!(began.elapsed() < wait, "server is not ready after {} s: {}", wait.as_secs(), output.error);
        std::thread::sleep(Duration::from_secs(1));
    }
    for asked in asked.iter().cycle().take(client.options.num_warmups) {
        client.ask(asked, "warm-up", Instant::now());
    }
    Ok(())
}

/// Sends each request at its time in seconds from now, from a thread of its own. Returns the results and the duration in seconds. The
/// results count their starts from `clock`. The ids of the requests count from `first`.
pub(super) fn measure(
    client: &BenchClient<'_>,
    asked: &[BenchRequest],
    times: &[f64],
    clock: Instant,
    first: usize,
) -> (Vec<RequestOutcome>, f64) {
    let options = client.options;
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
            let at = Duration::try_from_secs_f64(*at).unwrap_or_default();
            let planned = (began - clock + at).as_secs_f64();
            let wait = at.saturating_sub(began.elapsed());
            if !wait.is_zero() {
                std::thread::sleep(wait);
            }
            let (places, outputs, done, id) = (&places, &outputs, &done, format!("{prefix}{}", first + n));
            let keep = move |output: RequestOutcome| {
                outputs.lock().unwrap_or_else(PoisonError::into_inner)[n] = output;
                done.fetch_add(1, Ordering::Relaxed);
            };
            let ask = move || {
                let _place = places.take();
                let mut output = client.ask(asked, &id, clock);
                output.queued = (output.start - planned).max(0.0);
                keep(output);
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
