//! Statistics on ended requests: a line in the log for each, the metrics, and the report on first-token times.
//!
//! The metrics here have the names of vLLM's metrics, so that dashboards for vLLM work. [`actors::counters`] and
//! [`actors::peer_metrics`] have Baton's own metrics.

mod written;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use actors::counters::Counters;
use actors::request::{FinishReason, RequestError, Timings};
use common::metrics::Histogram;
use common::statistics::{mean, median, quantile};
use tracing::{info, warn};

use super::api_error::ApiError;
use super::ended::Ended;
use super::recent::{RecentRequest, RecentRequests};
use crate::telemetry::REQUESTS;
use crate::traces::{AnswerTrace, RequestTrace};

/// Number of requests in the report on first-token times: the newest ones. The number bounds the memory.
const REPORTED_MAX: usize = 4096;

/// Statuses of answers to requests that never ran: 429 (the queue is full or too slow), 503 (no memory, or the process ends), 504 (too late).
const TURNED_AWAY: [u16; 3] = [429, 503, 504];

/// Statistics on the requests of both ports of a process. All threads share them.
pub struct Observed {
    model: String,
    cache: CacheInfo,
    waited: Histogram,
    first_token: Histogram,
    per_token: Histogram,
    whole: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
    prompt_lengths: Histogram,
    answer_lengths: Histogram,
    prompt_tokens: AtomicU64,
    resident_tokens: AtomicU64,
    sampled_tokens: AtomicU64,
    stopped: AtomicU64,
    at_length: AtomicU64,
    failed: AtomicU64,
    /// Requests that never ran, by [`TURNED_AWAY`].
    turned_away: [AtomicU64; TURNED_AWAY.len()],
    handed_over: Mutex<HandedOver>,
    /// The newest ended requests.
    pub(super) recent: RecentRequests<RecentRequest>,
}

/// Times to the first token of requests that a sender prefilled.
#[derive(Default)]
struct HandedOver {
    first_token_ms: VecDeque<f64>,
    count: u64,
    reported: u64,
}

/// The KV pages as `vllm:cache_config_info` describes them.
#[derive(Clone, Debug)]
pub struct CacheInfo {
    /// Tokens in a page.
    pub page_tokens: u32,
    /// Pages that requests of this process can use.
    pub request_pages: u32,
    /// Number type of keys and values, such as `bf16`.
    pub dtype: String,
    /// `engine.prefix_cache`.
    pub prefix_cache: bool,
    /// `engine.gpu_memory_utilization`.
    pub memory_utilization: f32,
}

/// Numbers of answers that have ended since the start.
pub(super) struct EndedTotals {
    /// Complete answers.
    pub(super) finished: u64,
    /// Answers that an error ended.
    pub(super) failed: u64,
    /// Requests that never ran.
    pub(super) turned_away: u64,
    /// Tokens of the prompts of complete answers.
    pub(super) prompt_tokens: u64,
}

/// Numbers of answers at one moment.
#[derive(Clone, Copy, Debug)]
pub struct AnswerCounts {
    /// Running answers, and prompts of peers.
    pub running: usize,
    /// Answers of waiting requests.
    pub waiting: usize,
}

impl Observed {
    /// No requests yet. `model` is the label of the metrics. `recent` is the number of ended requests that are kept.
    pub fn new(model: &str, cache: CacheInfo, recent: usize) -> Self {
        Self {
            model: model.to_owned(),
            cache,
            waited: Histogram::seconds(written::REQUEST_SECONDS),
            first_token: Histogram::seconds(written::FIRST_TOKEN_SECONDS),
            per_token: Histogram::seconds(written::TOKEN_SECONDS),
            whole: Histogram::seconds(written::REQUEST_SECONDS),
            prefill: Histogram::seconds(written::REQUEST_SECONDS),
            decode: Histogram::seconds(written::REQUEST_SECONDS),
            inference: Histogram::seconds(written::REQUEST_SECONDS),
            prompt_lengths: Histogram::whole(written::TOKENS),
            answer_lengths: Histogram::whole(written::TOKENS),
            prompt_tokens: AtomicU64::default(),
            resident_tokens: AtomicU64::default(),
            sampled_tokens: AtomicU64::default(),
            stopped: AtomicU64::default(),
            at_length: AtomicU64::default(),
            failed: AtomicU64::default(),
            turned_away: Default::default(),
            handed_over: Mutex::default(),
            recent: RecentRequests::new(recent),
        }
    }

    /// The answers that have ended since the start.
    pub(super) fn totals(&self) -> EndedTotals {
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        EndedTotals {
            finished: load(&self.stopped) + load(&self.at_length),
            failed: load(&self.failed),
            turned_away: self.turned_away.iter().map(load).sum(),
            prompt_tokens: load(&self.prompt_tokens),
        }
    }

    /// Logs and counts a choice that has ended.
    pub(super) fn end(&self, ended: &Ended<'_>, how: Result<(FinishReason, &Timings), &RequestError>) {
        let Ended { head, choice, request, begin } = ended;
        let (id, waited) = (format_args!("{}-{choice}", head.id), begin.waited());
        let trace = begin.trace.as_deref();
        if let Some(trace) = trace {
            let outcome = how.map(|(_, timings)| timings).map_err(RequestError::kind);
            trace.answered(AnswerTrace { choice: *choice, began: begin.began, outcome });
        }
        let trace_id = trace.map(RequestTrace::id);
        let trace_id = trace_id.as_deref();
        self.recent.add(|| RecentRequest::new(ended, how));
        match how {
            Ok((reason, timings)) => {
                self.count(reason, timings, waited.as_secs_f64());
                let computed_elsewhere = timings.prompt_tokens.saturating_sub(timings.resident_tokens);
                let landed = if timings.disaggregated { computed_elsewhere } else { 0 };
                info!(
                    target: REQUESTS,
                    %request,
                    %id,
                    trace_id,
                    prompt_tokens = timings.prompt_tokens,
                    completion_tokens = timings.completion_tokens,
                    finish = if reason == FinishReason::Stop { "stop" } else { "length" },
                    disaggregated = timings.disaggregated,
                    queue_ms = waited.as_millis() as u64,
                    first_token_ms = timings.first_token_ms.round(),
                    decode_ms = timings.decode_ms.round(),
                    "request finished"
                );
                info!(
                    "Reqid: {id}, Total tokens {}, KV hit tokens: {}, need to load: {landed}",
                    timings.prompt_tokens,
                    timings.resident_tokens + landed
                );
            }
            Err(error) => {
                let never_ran = match error {
                    RequestError::Refused(refused) => {
                        self.count_turned_away(ApiError::from(refused.clone()).status.as_u16())
                    }
                    _ => false,
                };
                self.failed.fetch_add(u64::from(!never_ran), Ordering::Relaxed);
                warn!(%request, %id, trace_id, kind = error.kind(), %error, "request failed");
            }
        }
    }

    /// A request gets this answer and never ran. Counted and logged if the client can only retry later.
    pub(super) fn turned_away(&self, error: ApiError) -> ApiError {
        let status = error.status.as_u16();
        if self.count_turned_away(status) {
            warn!(target: REQUESTS, status, error = error.message, "request turned away");
        }
        error
    }

    /// Counts a request that never ran. Returns whether the status is one of [`TURNED_AWAY`].
    fn count_turned_away(&self, status: u16) -> bool {
        let place = TURNED_AWAY.iter().position(|known| *known == status);
        if let Some(place) = place {
            self.turned_away[place].fetch_add(1, Ordering::Relaxed);
        }
        place.is_some()
    }

    fn count(&self, reason: FinishReason, timings: &Timings, waited: f64) {
        let add = |cell: &AtomicU64, count: u32| cell.fetch_add(u64::from(count), Ordering::Relaxed);
        add(&self.prompt_tokens, timings.prompt_tokens);
        add(&self.resident_tokens, timings.resident_tokens);
        add(&self.sampled_tokens, timings.completion_tokens);
        add(if reason == FinishReason::Stop { &self.stopped } else { &self.at_length }, 1);
        if timings.prompt_tokens == 0 {
            // The answer was complete, but the decoder never reported its timings.
            return;
        }
        let later = timings.completion_tokens.saturating_sub(1);
        self.waited.add(waited);
        self.first_token.add(waited + timings.first_token_ms / 1e3);
        self.whole.add(waited + (timings.first_token_ms + timings.decode_ms) / 1e3);
        // It is 0 if the sender was lost before it reported the time.
        if timings.prefill_ms > 0.0 {
            self.inference.add((timings.prefill_ms + timings.decode_ms) / 1e3);
            self.prefill.add(timings.prefill_ms / 1e3);
        }
        self.decode.add(timings.decode_ms / 1e3);
        self.prompt_lengths.add(f64::from(timings.prompt_tokens));
        self.answer_lengths.add(f64::from(timings.completion_tokens));
        if later > 0 {
            self.per_token.add(timings.decode_ms / 1e3 / f64::from(later));
        }
        if timings.disaggregated {
            let mut handed_over = self.handed_over.lock().unwrap_or_else(PoisonError::into_inner);
            handed_over.count += 1;
            handed_over.first_token_ms.push_back(timings.first_token_ms);
            if handed_over.first_token_ms.len() > REPORTED_MAX {
                handed_over.first_token_ms.pop_front();
            }
        }
    }

    /// The report on first-token times, in the format of LMCache's proxy; `None` if a sender has prefilled no request since the last report.
    pub fn report(&self) -> Option<String> {
        let mut handed_over = self.handed_over.lock().unwrap_or_else(PoisonError::into_inner);
        if handed_over.reported == handed_over.count {
            return None;
        }
        handed_over.reported = handed_over.count;
        let times: Vec<f64> = handed_over.first_token_ms.iter().copied().collect();
        let count = handed_over.count;
        drop(handed_over);
        let rule = "=".repeat(31);
        Some(format!(
            "{rule}\nNum requests: {count}\nPrefill node TTFT stats:\n - Average (ms): {:.2}\n \
             - Median (ms): {:.2}\n - 99th Percentile (ms): {:.2}\n{rule}",
            mean(&times),
            median(times.iter().copied()),
            quantile(times.iter().copied(), 0.99)
        ))
    }
}

/// Pages that requests of this process hold, or that are reserved for KV in transit. Pages that prompts of peers have from `node.prefill_pages` are
/// not among them. The actors update the counters one after the other, so that the number may be too small for a moment.
pub fn used_pages(counters: &Counters) -> u32 {
    let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
    let held = load(counters.pages_live()) + load(counters.pages_reserved());
    held.saturating_sub(load(counters.prefill_pages_used())) as u32
}

#[cfg(test)]
mod tests {
    use actix_web::http::StatusCode;
    use common::metrics::MetricsText;

    use super::*;

    fn seen(first_token_ms: &[f64]) -> Observed {
        let cache = CacheInfo {
            page_tokens: 16,
            request_pages: 40,
            dtype: "bf16".to_owned(),
            prefix_cache: true,
            memory_utilization: 0.5,
        };
        let observed = Observed::new("a\"b", cache, 0);
        for first_token_ms in first_token_ms {
            let timings = Timings {
                disaggregated: true,
                prompt_tokens: 10,
                resident_tokens: 4,
                completion_tokens: 3,
                first_token_ms: *first_token_ms,
                prefill_ms: 7.0,
                decode_ms: 40.0,
                ..Timings::default()
            };
            observed.count(FinishReason::Length, &timings, 0.25);
        }
        observed
    }

    fn written(observed: &Observed, counters: &Counters, load: AnswerCounts) -> String {
        let mut page = MetricsText::default();
        observed.write(&mut page, counters, load);
        page.into_string()
    }

    fn rendered(observed: &Observed) -> String {
        written(observed, &Counters::default(), AnswerCounts { running: 0, waiting: 0 })
    }

    #[test]
    fn requests_that_never_ran_are_counted_by_status() {
        let observed = seen(&[]);
        for status in [StatusCode::TOO_MANY_REQUESTS, StatusCode::GATEWAY_TIMEOUT, StatusCode::BAD_REQUEST] {
            assert_eq!(observed.turned_away(ApiError::new(status, "no")).status, status);
        }
        let text = rendered(&observed);
        for (status, count) in [(429, 1), (503, 0), (504, 1)] {
            let line = format!("\nbaton_requests_turned_away_total{{status=\"{status}\"}} {count}\n");
            assert!(text.contains(&line), "{text}");
        }
        assert!(!text.contains("status=\"400\""), "{text}");
    }

    #[test]
    fn an_answer_without_timings_is_in_no_histogram() {
        let observed = seen(&[]);
        observed.count(FinishReason::Stop, &Timings::default(), 0.25);
        let text = rendered(&observed);
        assert!(text.contains("finished_reason=\"stop\"} 1\n"), "{text}");
        for name in ["time_to_first_token", "e2e_request_latency"] {
            assert!(
                text.contains(&format!("vllm:{name}_seconds_count{{model_name=\"a\\\"b\"}} 0\n")),
                "{text}"
            );
        }
    }

    #[test]
    fn an_unknown_time_of_a_prefill_is_in_no_histogram() {
        let observed = seen(&[10.0]);
        let timings =
            Timings { prompt_tokens: 10, completion_tokens: 3, decode_ms: 40.0, ..Timings::default() };
        observed.count(FinishReason::Length, &timings, 0.25);
        let text = rendered(&observed);
        for (name, count) in [("prefill_time", 1), ("inference_time", 1), ("decode_time", 2)] {
            let line = format!("vllm:request_{name}_seconds_count{{model_name=\"a\\\"b\"}} {count}\n");
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_report_has_lmcaches_format() {
        let observed = seen(&[10.0, 30.0, 20.0]);
        let expect = "===============================\nNum requests: 3\nPrefill node TTFT stats:\n - Average (ms): 20.00\n \
                      - Median (ms): 20.00\n - 99th Percentile (ms): 29.80\n===============================";
        assert_eq!(observed.report().as_deref(), Some(expect));
        assert_eq!(observed.report(), None, "nothing new");
    }

    #[test]
    fn the_usage_is_the_share_of_the_pages_that_requests_can_use() {
        let counters = Counters::default();
        let usage = || {
            let text = written(&seen(&[]), &counters, AnswerCounts { running: 0, waiting: 0 });
            let line = text.lines().find_map(|line| line.strip_prefix("vllm:kv_cache_usage_perc{"));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        };
        assert_eq!(usage(), Some(0.0));
        for (pages, reserved, of_peers, expect) in [(20, 0, 0, 0.5), (25, 15, 20, 0.5), (40, 4, 0, 1.0)] {
            counters.pages().store(100, Ordering::Relaxed);
            counters.pages_live().store(pages, Ordering::Relaxed);
            counters.pages_reserved().store(reserved, Ordering::Relaxed);
            counters.prefill_pages_used().store(of_peers, Ordering::Relaxed);
            assert_eq!(usage(), Some(expect), "{pages} {reserved} {of_peers}");
        }
    }

    #[test]
    fn metrics_have_vllms_names() {
        let load = AnswerCounts { running: 5, waiting: 7 };
        let text = written(&seen(&[10.0, 30.0]), &Counters::default(), load);
        for line in [
            "vllm:num_requests_running{model_name=\"a\\\"b\"} 5",
            "vllm:num_requests_waiting{model_name=\"a\\\"b\"} 7",
            "vllm:cache_config_info{model_name=\"a\\\"b\",block_size=\"16\",cache_dtype=\"bf16\",enable_prefix_caching=\"True\",engine=\"0\",gpu_memory_utilization=\"0.5\",num_gpu_blocks=\"0\"} 1",
            "vllm:request_queue_time_seconds_sum{model_name=\"a\\\"b\"} 0.5",
            "vllm:prompt_tokens_total{model_name=\"a\\\"b\"} 20",
            "vllm:prefix_cache_hits_total{model_name=\"a\\\"b\"} 8",
            "vllm:request_success_total{model_name=\"a\\\"b\",finished_reason=\"length\"} 2",
            "vllm:time_to_first_token_seconds_bucket{model_name=\"a\\\"b\",le=\"0.25\"} 0",
            "vllm:time_to_first_token_seconds_bucket{model_name=\"a\\\"b\",le=\"0.5\"} 2",
            "vllm:time_to_first_token_seconds_bucket{model_name=\"a\\\"b\",le=\"+Inf\"} 2",
            "vllm:time_to_first_token_seconds_count{model_name=\"a\\\"b\"} 2",
            "vllm:time_per_output_token_seconds_sum{model_name=\"a\\\"b\"} 0.04",
            "vllm:e2e_request_latency_seconds_bucket{model_name=\"a\\\"b\",le=\"0.3\"} 1",
            "vllm:request_time_per_output_token_seconds_sum{model_name=\"a\\\"b\"} 0.04",
            "vllm:request_prefill_time_seconds_sum{model_name=\"a\\\"b\"} 0.014",
            "vllm:request_decode_time_seconds_bucket{model_name=\"a\\\"b\",le=\"0.05\"} 2",
            "vllm:request_inference_time_seconds_sum{model_name=\"a\\\"b\"} 0.094",
            "vllm:request_prompt_tokens_bucket{model_name=\"a\\\"b\",le=\"10\"} 2",
            "vllm:request_generation_tokens_sum{model_name=\"a\\\"b\"} 6",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
