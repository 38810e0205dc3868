//! The requests of a result of `bench serve`, read from its JSON.

use serde_json::Value;

use super::{PlotError, array};

/// One request. Times are in seconds.
pub(super) struct RunRequest {
    /// From the first request's start.
    pub(super) start: f64,
    pub(super) ttft: f64,
    /// To the last token, or to the failure. 0 in results of vLLM's client.
    latency: f64,
    /// Times from each token to the next.
    pub(super) itls: Vec<f64>,
    /// Empty if the request succeeded.
    pub(super) error: String,
}

impl RunRequest {
    /// To the first token, or to a failure before it.
    pub(super) fn waiting(&self) -> f64 {
        if self.error.is_empty() || self.ttft > 0.0 { self.ttft } else { self.latency }
    }

    /// From the first token to the last one that came.
    pub(super) fn decoding(&self) -> f64 {
        self.itls.iter().sum()
    }
}

/// The requests of one server, in the order of their start.
pub(super) struct Run<'a> {
    pub(super) json: &'a Value,
    pub(super) requests: Vec<RunRequest>,
}

impl<'a> Run<'a> {
    /// Reads a result of `bench serve` or `vllm bench serve`.
    pub(super) fn read(json: &'a Value) -> Result<Self, PlotError> {
        let list = |field| array(json, field);
        let (starts, ttfts, itls, errors) =
            (list("start_times")?, list("ttfts")?, list("itls")?, list("errors")?);
        let mut requests = Vec::with_capacity(starts.len());
        for (n, start) in starts.iter().enumerate() {
            let gaps = itls.get(n).and_then(Value::as_array).ok_or(PlotError::Missing { field: "itls" })?;
            requests.push(RunRequest {
                start: start.as_f64().ok_or(PlotError::Missing { field: "start_times" })?,
                ttft: ttfts.get(n).and_then(Value::as_f64).ok_or(PlotError::Missing { field: "ttfts" })?,
                latency: json["latencies"][n].as_f64().unwrap_or_default(),
                itls: gaps.iter().filter_map(Value::as_f64).collect(),
                error: errors.get(n).and_then(Value::as_str).unwrap_or_default().to_owned(),
            });
        }
        requests.sort_by(|a, b| a.start.total_cmp(&b.start));
        Ok(Self { json, requests })
    }

    fn good(&self) -> impl Iterator<Item = &RunRequest> {
        self.requests.iter().filter(|request| request.error.is_empty())
    }

    /// The times to the first token of the requests that succeeded, in milliseconds.
    pub(super) fn ttfts_ms(&self) -> Vec<f64> {
        self.good().map(|request| request.ttft * 1e3).collect()
    }

    /// All times between tokens of the requests that succeeded, in milliseconds.
    pub(super) fn itls_ms(&self) -> Vec<f64> {
        self.good().flat_map(|request| &request.itls).map(|gap| gap * 1e3).collect()
    }

    /// The name of the server in legends.
    pub(super) fn server(&self) -> &str {
        self.json["server"].as_str().unwrap_or_default().trim_start_matches("http://")
    }
}
