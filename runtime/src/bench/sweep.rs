//! `runtime bench sweep`: sends requests at rising rates until fewer than a target share of them are good, and measures rates in between.
//!
//! A request is good if its first token comes within `--ttft` and the 99th percentile of its own inter-token latencies is at most `--gap`.
//! The *goodput* is the rate at which exactly the target share would be good, interpolated between the two nearest measured rates.

mod figures;
mod plan;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::dataset::{Part, arrivals, requests};
use super::{LoadOptions, SweepOptions, load, plot};
use figures::RateFigures;
use plan::{Rising, SweepPlan, goodput};

/// Measures, prints a table, and writes the files. `key` is the API key.
///
/// # Errors
/// An option has an impossible value, there is no server or no tokenizer, or a file cannot be written.
pub(super) fn run(options: &SweepOptions, key: Option<String>) -> Result<()> {
    check(options)?;
    let load = &options.load;
    let (client, root) = load::connect(load, load.base(), key)?;
    let model = load::text_model(load, &root)?;
    println!(
        "Sweep of {}{} ({}), {} s at each rate. A request is good if its first token comes within {} ms and the p99 of its gaps is at most {} ms.",
        client.base,
        load.endpoint(),
        client.model,
        options.seconds,
        options.ttft,
        options.gap
    );
    println!("{}", RateFigures::HEAD);
    let rising = if options.rates.is_empty() {
        Rising::by_factor(options.from, options.factor, options.max_rate)
    } else {
        Rising::list(&options.rates)
    };
    let mut plan = SweepPlan::new(rising, options.good, options.bisect);
    let (mut rates, mut sent) = (Vec::new(), 0);
    while let Some(rate) = plan.next() {
        let count = ((rate * options.seconds).round() as usize).max(1);
        let part = Part { first: sent, count };
        let asked = requests(load, model.as_ref(), part).map_err(|reason| anyhow!(reason))?;
        if sent == 0 {
            load::ready(&client, &asked)?;
        }
        sent += asked.len();
        // The same seed: of two rates, the higher one has the same gaps between arrivals, made shorter.
        let times = arrivals(asked.len(), rate, load.burstiness, load.seed);
        let (outputs, duration) = load::measure(&client, &asked, &times, Instant::now());
        let figures = RateFigures::new(rate, &outputs, duration, (options.ttft, options.gap));
        println!("{}", figures.row());
        if let Some(failed) = outputs.iter().find(|output| !output.is_good()) {
            println!("  first failed request: {}", failed.error);
        }
        plan.measured(rate, figures.good_percent());
        rates.push(figures);
    }
    let points: Vec<(f64, f64)> = rates.iter().map(|rate| (rate.arrived, rate.good_percent())).collect();
    let goodput = goodput(&points, options.good);
    println!("{}", verdict(&points, options.good, goodput));
    let results = results(options, (&client.base, &client.model), &rates, goodput);
    if let Some(path) = &options.json {
        write(path, &results)?;
    }
    options.plot.as_ref().map_or(Ok(()), |path| plot::write(&results, path))
}

fn check(options: &SweepOptions) -> Result<()> {
    load::check(&options.load)?;
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
fn verdict(points: &[(f64, f64)], wanted: f64, goodput: Option<f64>) -> String {
    let rates = || points.iter().map(|point| point.0);
    match goodput {
        Some(rate) => format!(
            "Goodput: {rate:.2} requests/s, at which {wanted} % of the requests are good (interpolated)."
        ),
        None if points.iter().all(|point| point.1 >= wanted) => format!(
            "The goodput is above {:.2} requests/s, the highest rate that arrived; set higher rates.",
            rates().fold(0.0, f64::max)
        ),
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

/// The result file. It contains all that the plot shows.
fn results(
    options: &SweepOptions,
    (base, model): (&str, &str),
    rates: &[RateFigures],
    goodput: Option<f64>,
) -> Value {
    let rates: Vec<Value> = rates.iter().map(RateFigures::json).collect();
    json!({
        "kind": "sweep", "date": Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string(),
        "server": base, "model_id": model, "backend": options.load.backend.name(),
        "load": described(&options.load), "label": options.load.label, "seed": options.load.seed,
        "burstiness": options.load.burstiness, "max_concurrency": options.load.max_concurrency,
        "seconds": options.seconds, "ttft_limit_ms": options.ttft, "gap_limit_ms": options.gap,
        "good_percent": options.good, "goodput": goodput, "rates": rates,
    })
}

fn write(path: &Path, results: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(results)?;
    std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    println!("wrote the results to {}", path.display());
    Ok(())
}
