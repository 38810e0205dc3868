//! The results of a benchmark: the figures, the printed block and the JSON file.

use std::fmt::Write as _;

use anyhow::ensure;
use common::statistics::{deviation, mean, median, quantile};
use serde_json::{Map, Value, json};

use super::ServeOptions;
use super::client::{BenchClient, RequestOutcome};

const WIDTH: usize = 50;

/// One latency of all requests, in milliseconds.
struct MetricTimes {
    name: &'static str,
    title: &'static str,
    short: &'static str,
    ms: Vec<f64>,
}

/// The figures of a measurement.
pub(super) struct Results<'a> {
    options: &'a ServeOptions,
    outputs: &'a [RequestOutcome],
    /// Seconds.
    duration: f64,
    times: [MetricTimes; 4],
}

impl<'a> Results<'a> {
    pub(super) fn new(options: &'a ServeOptions, outputs: &'a [RequestOutcome], duration: f64) -> Self {
        let good = || outputs.iter().filter(|output| output.is_good());
        let times = [
            MetricTimes {
                name: "ttft",
                title: "Time to First Token",
                short: "TTFT",
                ms: good().map(|output| output.ttft * 1e3).collect(),
            },
            MetricTimes {
                name: "tpot",
                title: "Time per Output Token (excl. 1st token)",
                short: "TPOT",
                ms: good().filter_map(tpot).map(|seconds| seconds * 1e3).collect(),
            },
            MetricTimes {
                name: "itl",
                title: "Inter-token Latency",
                short: "ITL",
                ms: good().flat_map(|output| &output.itls).map(|seconds| seconds * 1e3).collect(),
            },
            MetricTimes {
                name: "e2el",
                title: "End-to-end Latency",
                short: "E2EL",
                ms: good().map(|output| output.latency * 1e3).collect(),
            },
        ];
        Self { options, outputs, duration, times }
    }

    fn good(&self) -> impl Iterator<Item = &'a RequestOutcome> {
        self.outputs.iter().filter(|output| output.is_good())
    }

    fn completed(&self) -> usize {
        self.good().count()
    }

    fn tokens(&self) -> (u64, u64) {
        self.good().fold((0, 0), |(prompt, sampled), output| {
            (prompt + u64::from(output.prompt_tokens), sampled + u64::from(output.output_tokens))
        })
    }

    /// Requests per second within all limits of `--goodput`; `None` without limits.
    fn goodput(&self) -> Option<f64> {
        if self.options.goodput.is_empty() {
            return None;
        }
        let keeps = |output: &&RequestOutcome| {
            self.options.goodput.iter().all(|(name, ms)| {
                let seconds = match &**name {
                    "ttft" => output.ttft,
                    "tpot" => tpot(output).unwrap_or_default(),
                    _ => output.latency,
                };
                seconds * 1e3 <= *ms
            })
        };
        Some(self.good().filter(keeps).count() as f64 / self.duration)
    }

    /// Maximum number of tokens per second and of concurrent requests, counted by whole seconds.
    fn peaks(&self) -> (f64, f64) {
        // The blocks of a comparison end later than their duration.
        let end = self.good().map(|output| output.start + output.latency).fold(self.duration, f64::max);
        let seconds = end.ceil().max(1.0) as usize + 1;
        let (mut tokens, mut requests) = (vec![0u64; seconds], vec![0u64; seconds]);
        for output in self.good() {
            let bucket = |time: f64| (time as usize).min(seconds - 1);
            let mut at = output.start + output.ttft;
            tokens[bucket(at)] += 1;
            for itl in &output.itls {
                at += itl;
                tokens[bucket(at)] += 1;
            }
            let seconds = bucket(output.start)..=bucket(output.start + output.latency);
            requests[seconds].iter_mut().for_each(|count| *count += 1);
        }
        let most = |counts: &[u64]| counts.iter().copied().max().unwrap_or_default() as f64;
        (most(&tokens), most(&requests))
    }

    /// The block in the format of vLLM's client.
    pub(super) fn block(&self) -> String {
        let mut out = String::new();
        let (prompt, sampled) = self.tokens();
        let (peak_tokens, peak_requests) = self.peaks();
        let completed = self.completed();
        let rate = |amount: f64| amount / self.duration;
        // Writing to a string cannot fail.
        let mut whole = |name: &str, value: u64| writeln!(out, "{name:<40} {value:<10}").unwrap_or_default();
        let title = centred(" Serving Benchmark Result ", '=');
        whole("Successful requests:", completed as u64);
        whole("Failed requests:", (self.outputs.len() - completed) as u64);
        if let Some(most) = self.options.load.max_concurrency {
            whole("Maximum request concurrency:", most as u64);
        }
        let mut part = |name: &str, value: f64| writeln!(out, "{name:<40} {value:<10.2}").unwrap_or_default();
        if self.options.request_rate.is_finite() {
            part("Request rate configured (RPS):", self.options.request_rate);
        }
        part("Benchmark duration (s):", self.duration);
        let mut whole = |name: &str, value: u64| writeln!(out, "{name:<40} {value:<10}").unwrap_or_default();
        whole("Total input tokens:", prompt);
        whole("Total generated tokens:", sampled);
        let mut part = |name: &str, value: f64| writeln!(out, "{name:<40} {value:<10.2}").unwrap_or_default();
        part("Request throughput (req/s):", rate(completed as f64));
        if let Some(goodput) = self.goodput() {
            part("Request goodput (req/s):", goodput);
        }
        part("Output token throughput (tok/s):", rate(sampled as f64));
        part("Peak output token throughput (tok/s):", peak_tokens);
        part("Peak concurrent requests:", peak_requests);
        part("Total token throughput (tok/s):", rate((prompt + sampled) as f64));
        for times in self.times.iter().filter(|times| self.shows(times)) {
            let _ = writeln!(out, "{}", centred(times.title, '-'));
            let mut part =
                |name: String, value: f64| writeln!(out, "{name:<40} {value:<10.2}").unwrap_or_default();
            part(format!("Mean {} (ms):", times.short), mean(&times.ms));
            part(format!("Median {} (ms):", times.short), median(times.ms.iter().copied()));
            for p in &self.options.metric_percentiles {
                part(format!("P{p} {} (ms):", times.short), quantile(times.ms.iter().copied(), p / 100.0));
            }
        }
        format!("{title}\n{out}{}\n", "=".repeat(WIDTH))
    }

    fn shows(&self, times: &MetricTimes) -> bool {
        self.options.percentile_metrics.iter().any(|name| name == times.name)
    }

    /// Checks that no name of `--metadata` is that of a figure.
    ///
    /// # Errors
    /// The name of a figure.
    pub(super) fn check_metadata(options: &ServeOptions, client: &BenchClient<'_>) -> anyhow::Result<()> {
        let figures = Results::new(options, &[], 1.0).figures("", client);
        for (name, _) in &options.metadata {
            ensure!(
                name != "kind" && !figures.contains_key(name),
                "--metadata has the name {name:?}, which result files use; choose another name"
            );
        }
        Ok(())
    }

    /// The figures and the metadata.
    pub(super) fn json(&self, date: &str, client: &BenchClient<'_>) -> Value {
        let mut all = self.figures(date, client);
        all.extend(self.options.metadata.iter().map(|(name, value)| (name.clone(), json!(value))));
        Value::Object(all)
    }

    /// The figures with the names in vLLM's files, and the server, the dataset and the seed. A plot needs the figures of each request.
    fn figures(&self, date: &str, client: &BenchClient<'_>) -> Map<String, Value> {
        let (options, load, model) = (self.options, &self.options.load, &*client.model);
        let (prompt, sampled) = self.tokens();
        let (peak_tokens, peak_requests) = self.peaks();
        let rate = |amount: u64| amount as f64 / self.duration;
        let request_rate =
            if options.request_rate.is_finite() { json!(options.request_rate) } else { json!("inf") };
        let backend = load.backend.name();
        let mut all = Map::new();
        let mut put = |name: &str, value: Value| all.insert(name.to_owned(), value);
        put("date", json!(date));
        put("endpoint_type", json!(backend));
        put("backend", json!(backend));
        put("label", json!(load.label));
        put("model_id", json!(model));
        put(
            "tokenizer_id",
            json!(load.tokenizer.as_ref().map_or_else(|| model.to_owned(), |p| p.display().to_string())),
        );
        put("num_prompts", json!(self.outputs.len()));
        put("server", json!(client.base));
        put("dataset_name", json!(load.dataset_name.name()));
        put("seed", json!(load.seed));
        put("request_rate", request_rate);
        put("burstiness", json!(load.burstiness));
        put("max_concurrency", json!(load.max_concurrency));
        put("duration", json!(self.duration));
        put("completed", json!(self.completed()));
        put("failed", json!(self.outputs.len() - self.completed()));
        put("total_input_tokens", json!(prompt));
        put("total_output_tokens", json!(sampled));
        put("request_throughput", json!(rate(self.completed() as u64)));
        put("request_goodput", json!(self.goodput()));
        put("output_throughput", json!(rate(sampled)));
        put("total_token_throughput", json!(rate(prompt + sampled)));
        put("max_output_tokens_per_s", json!(peak_tokens));
        put("max_concurrent_requests", json!(peak_requests));
        let of = |field: fn(&RequestOutcome) -> Value| Value::Array(self.outputs.iter().map(field).collect());
        put("latencies", of(|output| json!(output.latency)));
        if options.save_detailed || options.plot.is_some() || options.compare.is_some() {
            put("input_lens", of(|output| json!(output.prompt_tokens)));
            put("output_lens", of(|output| json!(output.output_tokens)));
            put("start_times", of(|output| json!(output.start)));
            put("queue_times", of(|output| json!(output.queued)));
            put("ttfts", of(|output| json!(output.ttft)));
            put("itls", of(|output| json!(output.itls)));
            put("generated_texts", of(|output| json!(output.text)));
            put("errors", of(|output| json!(output.error)));
        }
        for times in self.times.iter().filter(|times| self.shows(times)) {
            put(&format!("mean_{}_ms", times.name), json!(mean(&times.ms)));
            put(&format!("median_{}_ms", times.name), json!(median(times.ms.iter().copied())));
            put(&format!("std_{}_ms", times.name), json!(deviation(&times.ms)));
            for p in &options.metric_percentiles {
                put(&format!("p{p}_{}_ms", times.name), json!(quantile(times.ms.iter().copied(), p / 100.0)));
            }
        }
        all
    }
}

/// Mean seconds per token after the first; `None` for an answer of one token.
pub(super) fn tpot(output: &RequestOutcome) -> Option<f64> {
    let later = output.output_tokens.checked_sub(1).filter(|later| *later > 0)?;
    Some((output.latency - output.ttft) / f64::from(later))
}

fn centred(title: &str, fill: char) -> String {
    let room = WIDTH.saturating_sub(title.chars().count());
    let left: String = std::iter::repeat_n(fill, room / 2).collect();
    let right: String = std::iter::repeat_n(fill, room - room / 2).collect();
    format!("{left}{title}{right}")
}

#[cfg(test)]
mod tests;
