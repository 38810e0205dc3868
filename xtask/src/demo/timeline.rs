//! Where the time of a request went, from the `timings` object at the end of its stream.

use std::fmt;

use anyhow::{Context, Result};
use serde_json::Value;

/// The `timings` object. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Timeline {
    /// Whether two processes shared the request.
    pub(super) disaggregated: bool,
    pub(super) prefill_pid: u64,
    pub(super) decode_pid: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    prefill_ms: f64,
    pages: u64,
    bytes: u64,
    transfer_ms: f64,
    /// The part of the transfer after the end of the prefill.
    exposed_ms: f64,
    first_token_ms: f64,
    decode_ms: f64,
}

impl Timeline {
    /// Reads the object.
    ///
    /// # Errors
    /// A field is missing or has a wrong type. The error names it.
    pub(super) fn from_json(timings: Option<&Value>) -> Result<Self> {
        let timings = timings.context("the answer has no `timings`")?;
        let missing = |name: &str| format!("`timings.{name}` is missing or has a wrong type in {timings}");
        let count = |name: &str| timings[name].as_u64().with_context(|| missing(name));
        let ms = |name: &str| timings[name].as_f64().with_context(|| missing(name));
        Ok(Self {
            disaggregated: timings["disaggregated"].as_bool().with_context(|| missing("disaggregated"))?,
            prefill_pid: count("prefill_pid")?,
            decode_pid: count("decode_pid")?,
            prompt_tokens: count("prompt_tokens")?,
            completion_tokens: count("completion_tokens")?,
            prefill_ms: ms("prefill_ms")?,
            pages: count("pages")?,
            bytes: count("bytes")?,
            transfer_ms: ms("transfer_ms")?,
            exposed_ms: ms("exposed_ms")?,
            first_token_ms: ms("first_token_ms")?,
            decode_ms: ms("decode_ms")?,
        })
    }

    /// GB (10⁹ bytes) per second; `None` if nothing was measured.
    fn gigabytes_per_second(&self) -> Option<f64> {
        ratio(self.bytes as f64 / 1e6, self.transfer_ms)
    }

    /// Tokens per second, without the first token, which the prefill has sampled.
    fn tokens_per_s(&self) -> Option<f64> {
        ratio(self.completion_tokens.saturating_sub(1) as f64 * 1e3, self.decode_ms)
    }
}

fn ratio(amount: f64, time: f64) -> Option<f64> {
    (amount > 0.0 && time > 0.0).then(|| amount / time)
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let speed = |value: Option<f64>, digits: usize, unit: &str| {
            value.map(|value| format!(", {value:.digits$} {unit}")).unwrap_or_default()
        };
        let mut row = |name: &str, pid: Option<u64>, ms: f64, detail: String| {
            let pid = pid.map(|pid| format!("pid {pid}")).unwrap_or_default();
            writeln!(f, "  {name:<12} {pid:<12} {ms:>9.1} ms   {detail}")
        };
        let (prompt, completion) = (self.prompt_tokens, self.completion_tokens);
        row("prefill", Some(self.prefill_pid), self.prefill_ms, plural(prompt, "prompt token"))?;
        let put = format!(
            "{} put, {}{}, {:.1} ms of it not hidden by the prefill",
            plural(self.pages, "page"),
            bytes(self.bytes),
            speed(self.gigabytes_per_second(), 2, "GB/s"),
            self.exposed_ms
        );
        row("hand-over", None, self.transfer_ms, put)?;
        row("first token", None, self.first_token_ms, "after the request came in".into())?;
        let decoded = format!("{}{}", plural(completion, "token"), speed(self.tokens_per_s(), 1, "tokens/s"));
        row("decode", Some(self.decode_pid), self.decode_ms, decoded)?;
        match self.disaggregated {
            true => write!(f, "  prefilled in one process, decoded in another"),
            false => write!(f, "  not disaggregated"),
        }
    }
}

fn plural(count: u64, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

fn bytes(count: u64) -> String {
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.2} GB", count as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn timings() -> Value {
        json!({
            "disaggregated": true, "prefill_pid": 4102, "decode_pid": 4101, "prompt_tokens": 43,
            "completion_tokens": 64, "prefill_ms": 212.25, "pages": 3, "bytes": 2_211_840,
            "transfer_ms": 1.5, "exposed_ms": 0.4, "first_token_ms": 216.0, "decode_ms": 1200.0,
        })
    }

    #[test]
    fn a_timeline_is_a_table() {
        let timeline = Timeline::from_json(Some(&timings())).unwrap();
        assert_eq!(
            timeline.to_string(),
            "  prefill      pid 4102         212.2 ms   43 prompt tokens\n  \
             hand-over                       1.5 ms   3 pages put, 2.2 MB, 1.47 GB/s, 0.4 ms of it not hidden by the prefill\n  \
             first token                   216.0 ms   after the request came in\n  \
             decode       pid 4101        1200.0 ms   64 tokens, 52.5 tokens/s\n  \
             prefilled in one process, decoded in another"
        );
    }

    #[test]
    fn rates_without_time_are_left_out() {
        let mut object = timings();
        object["transfer_ms"] = json!(0.0);
        object["decode_ms"] = json!(0);
        object["completion_tokens"] = json!(0);
        let timeline = Timeline::from_json(Some(&object)).unwrap();
        assert_eq!((timeline.gigabytes_per_second(), timeline.tokens_per_s()), (None, None));
        assert!(!timeline.to_string().contains("/s"), "{timeline}");
    }

    #[test]
    fn a_missing_field_is_named() {
        for name in timings().as_object().unwrap().keys() {
            let mut object = timings();
            object[name] = json!("x");
            let error = Timeline::from_json(Some(&object)).unwrap_err().to_string();
            assert!(error.contains(&format!("timings.{name}`")), "{error}");
        }
        assert!(Timeline::from_json(None).unwrap_err().to_string().contains("no `timings`"));
    }

    #[test]
    fn amounts_have_units() {
        for (count, expect) in
            [(0, "0 B"), (999, "999 B"), (737_280, "737.3 kB"), (2_211_840, "2.2 MB"), (1 << 30, "1.07 GB")]
        {
            assert_eq!(bytes(count), expect);
        }
        assert_eq!((plural(1, "page"), plural(0, "page")), ("1 page".into(), "0 pages".into()));
    }
}
