//! `runtime bench sweep`: sends requests at rising rates until fewer than a target share of them are good, and measures rates in between.
//!
//! A request is good if its first token comes within `--ttft` after the time at which it was to be sent, and the 99th percentile of its own
//! inter-token latencies is at most `--gap`.
//! The *goodput* is the rate at which exactly the target share would be good, interpolated between the two nearest measured rates.

mod figures;
mod plan;

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::client::BenchClient;
use super::dataset::{Part, arrivals, requests};
use super::load::SentPrompts;
use super::{LoadOptions, SweepOptions, files, load, plot};
use crate::frontend::ServedModel;
use figures::RateFigures;
use plan::{Rising, SweepPlan, goodput};

/// Maximum time for a request, as in `integration-tests/peers/goodput.py`.
const PATIENCE: Duration = Duration::from_secs(600);
/// Smallest number of requests at a rate. With fewer, one slow request decides.
const REQUESTS_MIN: usize = 30;
/// Largest number of rates, and of bisections.
const RATES_MAX: usize = 100;

/// Measures, prints a table, and writes the files. `key` is the API key.
///
/// # Errors
/// An option has an impossible value, there is no server or no tokenizer, or a file cannot be written.
pub(super) fn run(options: &SweepOptions, key: Option<String>) -> Result<()> {
    check(options)?;
    let load = &options.load;
    files::check(options.json.iter().chain(&options.plot))?;
    let (client, root) = load::connect(load, load.base(), key, PATIENCE)?;
    let model = load::text_model(load, &root)?;
    let warm_ups = load::warm_ups(load, model.as_ref())?;
    println!(
        "Sweep of {}{} ({}), {} s and at least {REQUESTS_MIN} requests at each rate. A request is good if its first token comes within {} ms \
         of its planned time and the p99 of its gaps is at most {} ms.",
        client.base,
        load.endpoint(),
        client.model,
        options.seconds,
        options.ttft,
        options.gap
    );
    load::ready(&client, &warm_ups)?;
    println!("{}", RateFigures::HEAD);
    let mut sweep = Sweep { options, client, model, sent: SentPrompts::default(), next: warm_ups.len() };
    sweep.sent.add(&warm_ups);
    let mut plan = SweepPlan::new(rising(options), options.good, options.bisect);
    let mut rates: Vec<RateFigures> = Vec::new();
    let mut end = Ok(());
    while let Some(rate) = plan.next() {
        let figures = match sweep.measure(rate) {
            Ok(figures) => figures,
            Err(error) => {
                end = Err(error);
                break;
            }
        };
        match rates.last_mut().filter(|last| last.rate() == rate) {
            Some(last) => last.add(figures),
            None => rates.push(figures),
        }
        let Some(last) = rates.last() else { continue };
        println!("{}", last.row());
        plan.measured(rate, last.good_percent());
        if plan.repeats(rate) {
            println!(
                "  fewer than {} % are good; measuring this rate once more, next row for both",
                options.good
            );
        }
        if let Some(path) = &options.json {
            files::write(path, &sweep.results(&rates))?;
        }
    }
    println!("{}", verdict(&points(&rates), options.good));
    if let Some(path) = options.json.as_ref().filter(|_| !rates.is_empty()) {
        println!("wrote the results to {}", path.display());
    }
    options.plot.as_ref().map_or(Ok(()), |path| plot::write(&sweep.results(&rates), path))?;
    end
}

fn rising(options: &SweepOptions) -> Rising {
    if options.rates.is_empty() {
        Rising::by_factor(options.from, options.factor, options.max_rate)
    } else {
        Rising::list(&options.rates)
    }
}

/// Rates that arrived, and percentages of good requests.
fn points(rates: &[RateFigures]) -> Vec<(f64, f64)> {
    rates.iter().map(|rate| (rate.arrived(), rate.good_percent())).collect()
}

/// A sweep of one server.
struct Sweep<'a> {
    options: &'a SweepOptions,
    client: BenchClient<'a>,
    model: Option<ServedModel>,
    sent: SentPrompts,
    /// Number of the next request.
    next: usize,
}

impl Sweep<'_> {
    /// Measures one rate.
    fn measure(&mut self, rate: f64) -> Result<RateFigures> {
        let (options, load) = (self.options, &self.options.load);
        let count = ((rate * options.seconds).round() as usize).max(REQUESTS_MIN);
        let part = Part { first: self.next, count };
        let asked = requests(load, self.model.as_ref(), part).map_err(|reason| anyhow!(reason))?;
        ensure!(
            asked.len() == count,
            "the dataset has {} unsent prompts and {rate} requests/s need {count}; add prompts or leave out --no-oversample",
            asked.len()
        );
        self.sent.show(&asked);
        // The same seed: up to a common factor, the gaps between arrivals are the same at each rate.
        let times = arrivals(count, rate, load.burstiness, load.seed);
        let (outputs, duration) = load::measure(&self.client, &asked, &times, Instant::now(), self.next);
        self.next += count;
        if let Some(failed) = outputs.iter().find(|output| !output.is_good()) {
            println!("  first failed request: {}", failed.error);
        }
        Ok(RateFigures::new(rate, &outputs, duration, (options.ttft, options.gap)))
    }

    /// The result file. It contains all that the plot shows.
    fn results(&self, rates: &[RateFigures]) -> Value {
        let (options, load) = (self.options, &self.options.load);
        let goodput = goodput(&points(rates), options.good);
        let rates: Vec<Value> = rates.iter().map(RateFigures::json).collect();
        json!({
            "kind": "sweep", "date": Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string(),
            "server": self.client.base, "model_id": self.client.model, "backend": load.backend.name(),
            "load": described(load), "label": load.label, "seed": load.seed, "burstiness": load.burstiness,
            "seconds": options.seconds, "ttft_limit_ms": options.ttft, "gap_limit_ms": options.gap,
            "good_percent": options.good, "goodput": goodput, "rates": rates,
        })
    }
}

fn check(options: &SweepOptions) -> Result<()> {
    load::check(&options.load)?;
    ensure!(
        options.load.max_concurrency.is_none(),
        "bench sweep does not take --max-concurrency, because requests that wait in the client would lower the rate; leave it out"
    );
    for (name, limit) in [("ttft", options.ttft), ("gap", options.gap)] {
        ensure!(is_rate(limit), "--{name} is {limit}; set it to a number of ms above 0");
    }
    let rising = options.rates.windows(2).all(|two| two[0] < two[1]);
    ensure!(
        rising && options.rates.iter().all(|rate| is_rate(*rate)),
        "--rates must be numbers above 0 in rising order"
    );
    ensure!(is_rate(options.from), "--from is {}; set it to a number above 0", options.from);
    ensure!(
        options.factor > 1.0 && options.factor.is_finite(),
        "--factor is {}; set it to a number above 1",
        options.factor
    );
    ensure!(
        options.max_rate >= options.from && is_rate(options.max_rate),
        "--max-rate is {}; set it to at least --from, which is {}",
        options.max_rate,
        options.from
    );
    let count = (options.max_rate / options.from).ln() / options.factor.ln();
    ensure!(
        options.rates.len() <= RATES_MAX && (!options.rates.is_empty() || count < RATES_MAX as f64),
        "the sweep has more than {RATES_MAX} rates; set fewer --rates, or a larger --factor"
    );
    ensure!(
        options.bisect as usize <= RATES_MAX,
        "--bisect is {}; set it to at most {RATES_MAX}",
        options.bisect
    );
    ensure!(is_rate(options.seconds), "--seconds is {}; set it to a number above 0", options.seconds);
    ensure!(
        options.good > 0.0 && options.good <= 100.0,
        "--good is {}; set it to a percentage above 0 and at most 100",
        options.good
    );
    Ok(())
}

fn is_rate(rate: f64) -> bool {
    rate > 0.0 && rate.is_finite()
}

/// The goodput in a sentence.
fn verdict(points: &[(f64, f64)], wanted: f64) -> String {
    let rates = || points.iter().map(|point| point.0);
    match goodput(points, wanted) {
        _ if points.is_empty() => "No rate was measured.".to_owned(),
        Some(rate) => format!(
            "Goodput: {rate:.2} requests/s, at which {wanted} % of the requests are good (interpolated)."
        ),
        None if points.iter().all(|point| point.1 >= wanted) => format!(
            "The goodput is above {:.2} requests/s, the highest rate that arrived; set higher rates.",
            rates().fold(0.0, f64::max)
        ),
        None if points.iter().any(|point| point.1 >= wanted) => {
            "The goodput is unknown: the lowest rate that arrived missed the target and a higher one met it; set a larger --seconds."
                .to_owned()
        }
        None => format!(
            "The goodput is below {:.2} requests/s, the lowest rate that arrived; set lower rates.",
            rates().fold(f64::INFINITY, f64::min)
        ),
    }
}

/// The load in a few words.
fn described(load: &LoadOptions) -> String {
    match &load.dataset_path {
        Some(path) => format!("prompts of {}", path.file_name().unwrap_or_default().display()),
        None => {
            format!("random prompts, {} tokens in, {} out", load.random_input_len, load.random_output_len)
        }
    }
}

#[cfg(test)]
mod tests;
