//! The metrics of ended requests: their names, their buckets, and how they are written.

use std::sync::atomic::{AtomicU64, Ordering};

use actors::counters::Counters;
use common::metrics::{Metric, MetricsText};

use super::{AnswerCounts, CacheInfo, Observed, TURNED_AWAY, used_pages};

/// vLLM's buckets for the time to the first token.
pub(super) const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// vLLM's buckets for the mean time per token, and finer ones below 25 ms.
pub(super) const TOKEN_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// vLLM's buckets for a whole request and its parts, and finer ones below 0.3 s.
pub(super) const REQUEST_SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0,
    60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];
/// vLLM's buckets for numbers of tokens, up to a context of 200,000.
pub(super) const TOKENS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5];

const MODEL: &[&str] = &["model_name"];

const RUNNING: Metric =
    Metric::gauge("vllm:num_requests_running", "Running answers, and prompts of peers.").by(MODEL);
const WAITING: Metric = Metric::gauge("vllm:num_requests_waiting", "Answers of waiting requests.").by(MODEL);
const CACHE: Metric = Metric::gauge("vllm:cache_config_info", "Configuration of the KV pages, as labels.")
    .by(&[
        "model_name",
        "block_size",
        "cache_dtype",
        "enable_prefix_caching",
        "engine",
        "gpu_memory_utilization",
        "num_gpu_blocks",
    ]);
const USAGE: [Metric; 2] = [
    Metric::gauge("vllm:kv_cache_usage_perc", "Share of the KV pages for requests that is in use; 1 is all.")
        .by(MODEL),
    Metric::gauge("vllm:gpu_cache_usage_perc", "The same as vllm:kv_cache_usage_perc: its older name.")
        .by(MODEL),
];
const PROMPT_TOKENS: Metric =
    Metric::counter("vllm:prompt_tokens_total", "Prompt tokens of finished requests.").by(MODEL);
const SAMPLED_TOKENS: Metric =
    Metric::counter("vllm:generation_tokens_total", "Sampled tokens of finished requests.").by(MODEL);
const CACHE_QUERIES: Metric =
    Metric::counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.")
        .by(MODEL);
const CACHE_HITS: Metric =
    Metric::counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache.").by(MODEL);
const PREEMPTIONS: Metric =
    Metric::counter("vllm:num_preemptions_total", "Preemptions of requests because the page pool was full.")
        .by(MODEL);
const ENDS: Metric = Metric::counter("vllm:request_success_total", "Requests by finish reason.")
    .by(&["model_name", "finished_reason"]);
const WAITED: Metric = Metric::histogram(
    "vllm:request_queue_time_seconds",
    "Time from the arrival of a request to the start of its answers.",
)
.by(MODEL);
const FIRST_TOKEN: Metric = Metric::histogram(
    "vllm:time_to_first_token_seconds",
    "Time from the arrival of a request to its first token.",
)
.by(MODEL);
const PER_TOKEN: [Metric; 2] = [
    Metric::histogram(
        "vllm:request_time_per_output_token_seconds",
        "Mean time per token of a request, after the first token.",
    )
    .by(MODEL),
    Metric::histogram(
        "vllm:time_per_output_token_seconds",
        "The same as vllm:request_time_per_output_token_seconds: its older name.",
    )
    .by(MODEL),
];
const WHOLE: Metric = Metric::histogram(
    "vllm:e2e_request_latency_seconds",
    "Time from the arrival of a request to its last token.",
)
.by(MODEL);
const PREFILL: Metric = Metric::histogram(
    "vllm:request_prefill_time_seconds",
    "Time from the start of the first prefill step to the first token, in the process that prefilled. Requests without a known time are left out.",
)
.by(MODEL);
const DECODE: Metric = Metric::histogram(
    "vllm:request_decode_time_seconds",
    "Time from the first token of an answer to its last token.",
)
.by(MODEL);
const INFERENCE: Metric = Metric::histogram(
    "vllm:request_inference_time_seconds",
    "Sum of vllm:request_prefill_time_seconds and vllm:request_decode_time_seconds of a request, if both are known.",
)
.by(MODEL);
const PROMPT_LENGTHS: Metric =
    Metric::histogram("vllm:request_prompt_tokens", "Tokens in the prompt of a request.").by(MODEL);
const ANSWER_LENGTHS: Metric =
    Metric::histogram("vllm:request_generation_tokens", "Tokens in an answer.").by(MODEL);
const NEVER_RAN: Metric = Metric::counter(
    "baton_requests_turned_away_total",
    "Requests that never ran, by the status of their answer.",
)
.by(&["status"]);

impl Observed {
    /// Writes the metrics. `counters` are those of the node.
    pub fn write(&self, page: &mut MetricsText, counters: &Counters, load_now: AnswerCounts) {
        let model = &*self.model;
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        page.family(&RUNNING).sample(&[model], load_now.running);
        page.family(&WAITING).sample(&[model], load_now.waiting);
        let CacheInfo { page_tokens, dtype, prefix_cache, memory_utilization, .. } = &self.cache;
        page.family(&CACHE).sample(
            &[
                model,
                &page_tokens.to_string(),
                dtype,
                if *prefix_cache { "True" } else { "False" },
                "0",
                &memory_utilization.to_string(),
                &load(counters.pages()).to_string(),
            ],
            1,
        );
        // The counters change one after the other, so the share may be above 1 for a moment.
        let used = f64::from(used_pages(counters)) / f64::from(self.cache.request_pages.max(1));
        USAGE.iter().for_each(|metric| page.family(metric).sample(&[model], used.min(1.0)));
        for (metric, value) in [
            (&PROMPT_TOKENS, load(&self.prompt_tokens)),
            (&SAMPLED_TOKENS, load(&self.sampled_tokens)),
            (&CACHE_QUERIES, load(&self.prompt_tokens)),
            (&CACHE_HITS, load(&self.resident_tokens)),
            (&PREEMPTIONS, load(counters.preemptions())),
        ] {
            page.family(metric).sample(&[model], value);
        }
        let mut ends = page.family(&ENDS);
        for (reason, count) in [
            ("stop", load(&self.stopped)),
            ("length", load(&self.at_length)),
            ("abort", load(counters.aborts())),
        ] {
            ends.sample(&[model, reason], count);
        }
        for (metric, histogram) in [
            (&WAITED, &self.waited),
            (&FIRST_TOKEN, &self.first_token),
            (&PER_TOKEN[0], &self.per_token),
            (&PER_TOKEN[1], &self.per_token),
            (&WHOLE, &self.whole),
            (&PREFILL, &self.prefill),
            (&DECODE, &self.decode),
            (&INFERENCE, &self.inference),
            (&PROMPT_LENGTHS, &self.prompt_lengths),
            (&ANSWER_LENGTHS, &self.answer_lengths),
        ] {
            page.family(metric).histogram(&[model], histogram);
        }
        let mut turned_away = page.family(&NEVER_RAN);
        for (status, count) in TURNED_AWAY.iter().zip(&self.turned_away) {
            turned_away.sample(&[&status.to_string()], load(count));
        }
    }
}
