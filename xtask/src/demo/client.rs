//! The HTTP client of the demo: `/health`, `/metrics` and other reports, and a streamed chat.

use std::fmt;
use std::io::BufReader;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use ureq::Agent;

use super::sse;

/// Deadline for a whole answer. 128 tokens take seconds, and minutes on a busy machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(300);
const HEALTH_WITHIN: Duration = Duration::from_secs(2);

/// The result of a GET of `/health`.
pub(super) enum Health {
    /// The status and the body; `null` if the body is not JSON.
    Answer(u16, Value),
    /// There was no answer.
    Silent(String),
}

impl Health {
    /// Whether the receiver is up and at least one sender is connected.
    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::Answer(200, body) => {
                body["status"] == "ok" && body["peers"].as_u64().is_some_and(|peers| peers >= 1)
            }
            _ => false,
        }
    }
}

/// The rest of a sentence that starts with the address.
impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(status, body) => write!(f, "answers {status} with {body}"),
            Self::Silent(error) => write!(f, "does not answer: {error}"),
        }
    }
}

/// The answer to a chat request has another status than 200.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: u16,
    text: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refused {}

/// A whole answer.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub(super) text: String,
    /// The last `timings` object of the stream.
    pub(super) timings: Option<Value>,
}

fn agent(within: Duration) -> Agent {
    // The proxy that the environment names must not be used for loopback.
    let config = Agent::config_builder().proxy(None).http_status_as_error(false);
    config.timeout_global(Some(within)).build().into()
}

/// GETs `/health` of the frontend.
pub(super) fn health(port: u16) -> Health {
    match agent(HEALTH_WITHIN).get(format!("http://127.0.0.1:{port}/health")).call() {
        Ok(mut response) => {
            let body = response.body_mut().read_json().unwrap_or(Value::Null);
            Health::Answer(response.status().as_u16(), body)
        }
        Err(error) => Health::Silent(error.to_string()),
    }
}

fn get(port: u16, path: &str) -> Result<String> {
    let url = format!("http://127.0.0.1:{port}{path}");
    let mut response = agent(HEALTH_WITHIN).get(&url).call().with_context(|| format!("cannot get {url}"))?;
    let text = response.body_mut().read_to_string().with_context(|| format!("cannot read {url}"))?;
    ensure!(response.status() == 200, "{url} answers {}: {}", response.status(), text.trim());
    Ok(text)
}

/// GETs a report in JSON.
pub(super) fn report(port: u16, path: &str) -> Result<Value> {
    let text = get(port, path)?;
    serde_json::from_str(&text).with_context(|| format!("{path} of port {port} is not JSON: {text}"))
}

/// The metrics of a process.
pub(super) struct Metrics(String);

impl Metrics {
    /// GETs `/metrics`.
    pub(super) fn get(port: u16) -> Result<Self> {
        get(port, "/metrics").map(Self)
    }

    /// The value of a metric without labels.
    pub(super) fn value(&self, name: &str) -> Result<u64> {
        let mut values = self.0.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = values.next().with_context(|| format!("there is no metric {name}"))?;
        value.parse().with_context(|| format!("the metric {name} is {value}"))
    }
}

/// Sends a streaming chat request and calls `piece` with every piece of text as it arrives.
///
/// # Errors
/// There is no complete answer. [`Refused`] and [`sse::Broken`] tell why.
pub(super) fn chat(port: u16, body: &Value, mut piece: impl FnMut(&str)) -> Result<Answer> {
    let url = format!("http://127.0.0.1:{port}/v1/chat/completions");
    let mut response = agent(ANSWER_WITHIN)
        .post(&url)
        .send_json(body)
        .with_context(|| format!("cannot send a request to {url}"))?;
    if response.status() != 200 {
        let body = response.body_mut().read_to_string().unwrap_or_default();
        let status = response.status().as_u16();
        bail!(Refused { status, text: format!("{url} answers {status}: {}", body.trim()) });
    }
    let mut answer = Answer::default();
    sse::for_each(BufReader::new(response.into_body().into_reader()), |data| {
        let chunk: Value =
            serde_json::from_str(data).with_context(|| format!("the event is not JSON: {data}"))?;
        take(&mut answer, &chunk, &mut piece)
    })?;
    Ok(answer)
}

/// Adds one chunk to the answer.
fn take(answer: &mut Answer, chunk: &Value, piece: &mut impl FnMut(&str)) -> Result<()> {
    if let Some(error) = chunk.get("error") {
        bail!("the request failed: {}", error["message"].as_str().unwrap_or("no message"));
    }
    if let Some(text) = chunk["choices"][0]["delta"]["content"].as_str() {
        piece(text);
        answer.text.push_str(text);
    }
    if let Some(timings) = chunk.get("timings").filter(|timings| timings.is_object()) {
        answer.timings = Some(timings.clone());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn chunks_add_up_to_the_answer() {
        let mut answer = Answer::default();
        let mut pieces = Vec::new();
        for chunk in [
            json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}),
            json!({"choices": [{"index": 0, "delta": {"content": "The"}}], "timings": null}),
            json!({"choices": [{"index": 0, "delta": {"content": " end"}, "finish_reason": "stop"}]}),
            json!({"choices": [], "usage": {"prompt_tokens": 3}, "timings": {"pages": 1}}),
        ] {
            take(&mut answer, &chunk, &mut |text: &str| pieces.push(text.to_owned())).unwrap();
        }
        assert_eq!(answer, Answer { text: "The end".into(), timings: Some(json!({"pages": 1})) });
        assert_eq!(pieces, ["", "The", " end"]);
    }

    #[test]
    fn an_error_event_is_an_error() {
        let chunk = json!({"error": {"message": "deadline passed", "type": "InternalServerError"}});
        let error = take(&mut Answer::default(), &chunk, &mut |_: &str| ()).unwrap_err().to_string();
        assert!(error.contains("deadline passed"), "{error}");
    }

    #[test]
    fn a_receiver_is_ready_when_ok_with_a_peer() {
        for (status, body, expect) in [
            (200, json!({"status": "ok", "role": "receiver", "pid": 7, "peers": 1}), true),
            (200, json!({"status": "ok", "peers": 0}), false),
            (200, json!({"status": "degraded", "peers": 1}), false),
            (200, Value::Null, false),
            (503, json!({"status": "ok", "peers": 1}), false),
        ] {
            assert_eq!(Health::Answer(status, body.clone()).is_ready(), expect, "{status} {body}");
        }
    }

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let text =
            "# HELP pages_total Pages.\n# TYPE pages_total counter\npages_total 3\npages 7\npages_live x\n";
        let metrics = Metrics(text.into());
        assert_eq!((metrics.value("pages").unwrap(), metrics.value("pages_total").unwrap()), (7, 3));
        assert!(metrics.value("page").unwrap_err().to_string().contains("no metric page"));
        assert!(metrics.value("pages_live").unwrap_err().to_string().contains("is x"));
    }
}
