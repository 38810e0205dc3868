//! `runtime bench serve`: makes prompts, sends them at their times and prints the results. With `--compare`, it sends them to two servers.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::client::{BenchClient, RequestOutcome};
use super::comparison::Block;
use super::dataset::{BenchRequest, Part, arrivals, requests};
use super::load::SentPrompts;
use super::results::Results;
use super::{ServeOptions, comparison, files, load, plot};

/// Maximum time for a request, as in vLLM's client.
const PATIENCE: Duration = Duration::from_secs(6 * 3600);

/// Measures, prints the results, and writes the files. `key` is the API key.
///
/// # Errors
/// There is no server or no tokenizer, a file cannot be written, or all requests to a server failed. Other failed requests are counted.
pub(super) fn run(options: &ServeOptions, key: Option<String>) -> Result<()> {
    ensure!(
        options.request_rate > 0.0,
        "--request-rate is {}; set it to a number above 0",
        options.request_rate
    );
    load::check(&options.load)?;
    files::check(&options.plot)?;
    let (client, root) = load::connect(&options.load, options.load.base(), key.clone(), PATIENCE)?;
    Results::check_metadata(options, &client)?;
    let model = load::text_model(&options.load, &root)?;
    let warm_ups = load::warm_ups(&options.load, model.as_ref())?;
    let part = Part { first: warm_ups.len(), count: options.num_prompts };
    let asked = requests(&options.load, model.as_ref(), part).map_err(|reason| anyhow!(reason))?;
    ensure!(
        !asked.is_empty() || part.count == 0,
        "the warm-ups take all prompts of the dataset; add prompts, or leave out --no-oversample"
    );
    let mut sent = SentPrompts::default();
    sent.add(&warm_ups);
    sent.show(&asked);
    match &options.compare {
        None => {
            load::ready(&client, &warm_ups)?;
            one(options, &client, &asked)
        }
        Some(base) => {
            let (other, _) = load::connect(&options.load, base.clone(), key, PATIENCE)?;
            let clients = [&client, &other];
            check_blocks(options, asked.len())?;
            clients.into_iter().try_for_each(|client| load::ready(client, &warm_ups))?;
            two(options, clients, &asked)
        }
    }
}

fn check_blocks(options: &ServeOptions, requests: usize) -> Result<()> {
    let count = options.compare_blocks;
    ensure!(
        (2..=requests).contains(&count),
        "--compare-blocks is {count}; set it to at least 2 and at most the number of requests, {requests}"
    );
    Ok(())
}

/// Measures one server.
fn one(options: &ServeOptions, client: &BenchClient<'_>, asked: &[BenchRequest]) -> Result<()> {
    println!(
        "Starting {} requests to {}{} ({})",
        asked.len(),
        client.base,
        options.load.endpoint(),
        client.model
    );
    let times = arrivals(asked.len(), options.request_rate, options.load.burstiness, options.load.seed);
    let (outputs, duration) = load::measure(client, asked, &times, Instant::now(), 0);
    let results = Results::new(options, &outputs, duration);
    print!("{}", results.block());
    show_first_failure(&outputs);
    let date = Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    write(options, client, &date, &results.json(&date, client))?;
    ensure!(outputs.is_empty() || outputs.iter().any(RequestOutcome::is_good), "all requests failed");
    Ok(())
}

/// Measures two servers: sends each block of the requests to one and then to the other, and the next block in the other order.
fn two(options: &ServeOptions, clients: [&BenchClient<'_>; 2], asked: &[BenchRequest]) -> Result<()> {
    let count = options.compare_blocks;
    println!("Starting {} requests to each of two servers, in {count} blocks that alternate", asked.len());
    let mut blocks = Vec::with_capacity(count);
    let clock = Instant::now();
    for n in 0..count {
        let first = asked.len() * n / count;
        let part = &asked[first..asked.len() * (n + 1) / count];
        let seed = options.load.seed.wrapping_add(n as u64);
        let times = arrivals(part.len(), options.request_rate, options.load.burstiness, seed);
        let mut block = Block::default();
        for server in if n % 2 == 0 { [0, 1] } else { [1, 0] } {
            let (outputs, duration) = load::measure(clients[server], part, &times, clock, first);
            (block.outputs[server], block.duration[server]) = (outputs, duration);
        }
        blocks.push(block);
    }
    let outputs = [0, 1].map(|server| {
        blocks.iter().flat_map(|block| block.outputs[server].iter().cloned()).collect::<Vec<_>>()
    });
    for (n, outputs) in outputs.iter().enumerate() {
        let good = outputs.iter().filter(|output| output.is_good()).count();
        let (letter, base, all) = (["A", "B"][n], &clients[n].base, outputs.len());
        println!("{letter}: {base} ({}): {good} of {all} requests succeeded", clients[n].model);
        show_first_failure(outputs);
    }
    let rows = comparison::compare(&blocks, options.load.seed);
    let totals = comparison::Totals::new(&blocks);
    print!("{}", comparison::table(&rows, &totals));
    let date = Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    let servers: Vec<Value> = (0..2)
        .map(|n| {
            let duration = blocks.iter().map(|block| block.duration[n]).sum();
            Results::new(options, &outputs[n], duration).json(&date, clients[n])
        })
        .collect();
    let sizes: Vec<usize> = blocks.iter().map(|block| block.outputs[0].len()).collect();
    let rows: Vec<Value> = rows.iter().map(comparison::Comparison::json).collect();
    let results = json!({
        "kind": "compare", "date": date, "servers": servers, "block_sizes": sizes, "comparison": rows,
        "totals": totals.json(),
    });
    write(options, clients[0], &date, &results)?;
    for (outputs, client) in outputs.iter().zip(clients) {
        ensure!(outputs.iter().any(RequestOutcome::is_good), "all requests to {} failed", client.base);
    }
    Ok(())
}

fn show_first_failure(outputs: &[RequestOutcome]) {
    if let Some(first) = outputs.iter().find(|output| !output.is_good()) {
        eprintln!("first failed request: {}", first.error);
    }
}

/// Writes the files that the options ask for.
fn write(options: &ServeOptions, client: &BenchClient<'_>, date: &str, results: &Value) -> Result<()> {
    if options.save_result || options.save_detailed {
        let path = path(options, &client.model, date);
        let text = serde_json::to_string(results)?;
        std::fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote the results to {}", path.display());
    }
    options.plot.as_ref().map_or(Ok(()), |path| plot::write(results, path))
}

/// Path of the result file: `{label|backend}-{rate}qps[-concurrencyN]-{model}-{time}.json`.
fn path(options: &ServeOptions, model: &str, date: &str) -> PathBuf {
    let folder = options.result_dir.clone().unwrap_or_default();
    if let Some(name) = &options.result_filename {
        return folder.join(name);
    }
    let label = options.load.label.as_deref().unwrap_or(options.load.backend.name());
    let rate =
        if options.request_rate.is_finite() { options.request_rate.to_string() } else { "inf".to_owned() };
    let concurrency =
        options.load.max_concurrency.map(|most| format!("-concurrency{most}")).unwrap_or_default();
    let model = model.rsplit('/').next().unwrap_or(model);
    folder.join(format!("{label}-{rate}qps{concurrency}-{model}-{date}.json"))
}
