//! Sends one request and measures the times of its events.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use common::sse::{SseMessage, SseReader};
use serde_json::{Map, Value, json};

use super::dataset::BenchRequest;
use super::{Backend, DatasetName, LoadOptions};
use crate::config::Surroundings;
use crate::tls;

/// The result of a request. Times are in seconds.
#[derive(Clone, Debug, Default)]
pub(super) struct RequestOutcome {
    /// From the start of the measurement to the sending of the request.
    pub(super) start: f64,
    /// From the time at which the request was to be sent to its sending.
    pub(super) queued: f64,
    pub(super) ttft: f64,
    /// Times from each token to the next.
    pub(super) itls: Vec<f64>,
    /// To the last token, or to the failure.
    pub(super) latency: f64,
    pub(super) prompt_tokens: u32,
    /// Number of tokens that the request asked for.
    pub(super) wanted_tokens: u32,
    pub(super) output_tokens: u32,
    pub(super) text: String,
    /// Empty if the request succeeded.
    pub(super) error: String,
}

impl RequestOutcome {
    pub(super) fn is_good(&self) -> bool {
        self.error.is_empty()
    }
}

/// The client of one server: its options and its connections.
pub(super) struct BenchClient<'a> {
    pub(super) options: &'a LoadOptions,
    /// URL of the server.
    pub(super) base: String,
    pub(super) model: String,
    agent: ureq::Agent,
    key: Option<String>,
}

impl<'a> BenchClient<'a> {
    /// `patience` is the maximum time for a request.
    ///
    /// # Errors
    /// The URL begins with `https`, and the certificate authorities of the machine cannot be read.
    pub(super) fn new(
        options: &'a LoadOptions,
        base: String,
        model: String,
        key: Option<String>,
        patience: Duration,
    ) -> Result<Self, String> {
        let agent = agent(&base, patience)?;
        Ok(Self { options, base, model, agent, key })
    }

    fn body(&self, asked: &BenchRequest) -> Value {
        let options = self.options;
        let mut body = match options.backend {
            Backend::Openai | Backend::Vllm => json!({
                "model": self.model, "prompt": asked.prompt, "repetition_penalty": 1.0,
                "max_tokens": asked.output_tokens, "logprobs": null, "stream": true,
                "stream_options": {"include_usage": true},
            }),
            Backend::OpenaiChat => json!({
                "model": self.model, "max_completion_tokens": asked.output_tokens, "stream": true,
                "messages": [{"role": "user", "content": [{"type": "text", "text": asked.prompt}]}],
                "stream_options": {"include_usage": true},
            }),
        };
        let mut more = Map::new();
        // The answers to random prompts must have the requested length.
        if options.ignore_eos || options.dataset_name == DatasetName::Random {
            more.insert("ignore_eos".to_owned(), json!(true));
        }
        for (name, value) in [
            ("temperature", options.temperature.map(Value::from)),
            ("top_p", options.top_p.map(Value::from)),
            ("top_k", options.top_k.map(Value::from)),
            ("min_p", options.min_p.map(Value::from)),
        ] {
            more.extend(value.map(|value| (name.to_owned(), value)));
        }
        more.extend(options.extra_body.clone().unwrap_or_default());
        if let Value::Object(fields) = &mut body {
            fields.extend(more);
        }
        body
    }

    /// Sends a request and waits for its end. `began` is the start of the measurement.
    pub(super) fn ask(&self, asked: &BenchRequest, id: &str, began: Instant) -> RequestOutcome {
        let url = format!("{}{}", self.base, self.options.endpoint());
        let mut request = self.agent.post(url).header("x-request-id", id);
        for (name, value) in &self.options.header {
            request = request.header(name, value);
        }
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let body = self.body(asked);
        let sent = Instant::now();
        let mut output = RequestOutcome {
            start: (sent - began).as_secs_f64(),
            prompt_tokens: asked.prompt_tokens,
            wanted_tokens: asked.output_tokens,
            ..RequestOutcome::default()
        };
        match request.send_json(&body) {
            Ok(response) if response.status() == 200 => {
                read(
                    BufReader::new(response.into_body().into_reader()),
                    self.options.backend,
                    sent,
                    &mut output,
                );
            }
            Ok(mut response) => {
                let text = response.body_mut().read_to_string().unwrap_or_default();
                output.error = format!("{}: {text}", response.status());
            }
            Err(error) => output.error = error.to_string(),
        }
        if !output.is_good() {
            output.latency = sent.elapsed().as_secs_f64();
        }
        output
    }
}

/// Connections to `base`. For `https`, the certificate authorities of the machine are trusted, or those in `SSL_CERT_FILE`.
fn agent(base: &str, patience: Duration) -> Result<ureq::Agent, String> {
    let config = ureq::Agent::config_builder().timeout_global(Some(patience)).http_status_as_error(false);
    let mut config = config.max_idle_connections(4096).max_idle_connections_per_host(4096);
    if base.starts_with("https:") {
        config = config.tls_config(tls::for_ureq(Surroundings::of_process().hub.certificates.as_deref())?);
    }
    Ok(config.build().into())
}

/// Id and root of the first model that the server lists.
pub(super) fn first_model(
    base: &str,
    key: Option<&str>,
    patience: Duration,
) -> Result<(String, String), String> {
    let mut request = agent(base, patience)?.get(format!("{base}/v1/models"));
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let mut response =
        request.call().map_err(|error| format!("cannot reach the server at {base}: {error}"))?;
    let listed: Value =
        response.body_mut().read_json().map_err(|error| format!("{base}/v1/models: {error}"))?;
    let field = |name: &str| listed["data"][0][name].as_str().map(str::to_owned);
    let id = field("id").ok_or_else(|| format!("{base}/v1/models lists no model; set --model"))?;
    Ok((id, field("root").unwrap_or_default()))
}

/// Reads a stream and measures the times of its events.
fn read(events: impl BufRead, backend: Backend, sent: Instant, output: &mut RequestOutcome) {
    let (mut last, mut tokens) = (None::<Instant>, 0);
    for message in SseReader::new(events) {
        let now = Instant::now();
        let data = match message {
            Ok(SseMessage::Data(data)) => data,
            Ok(SseMessage::Comment(_)) => continue,
            Err(error) => {
                output.error = error.to_string();
                return;
            }
        };
        if data == "[DONE]" {
            // Read to the end of the body, so that the connection can be reused, as in vLLM's client.
            continue;
        }
        let Ok(event) = serde_json::from_str::<Value>(&data) else { continue };
        if let Some(error) = event.get("error") {
            output.error = error["message"].as_str().unwrap_or("the stream failed").to_owned();
            return;
        }
        match token(&event, backend) {
            Some(text) => {
                match last {
                    None => output.ttft = (now - sent).as_secs_f64(),
                    Some(last) => output.itls.push((now - last).as_secs_f64()),
                }
                last = Some(now);
                tokens += 1;
                output.text += text;
            }
            None => {
                let count = |name: &str| event["usage"][name].as_u64().map(|count| count as u32);
                output.output_tokens = count("completion_tokens").unwrap_or(output.output_tokens);
                output.prompt_tokens = count("prompt_tokens").unwrap_or(output.prompt_tokens);
            }
        }
    }
    match last {
        Some(last) => output.latency = (last - sent).as_secs_f64(),
        None => output.error = "the server sent no token".to_owned(),
    }
    if output.output_tokens == 0 {
        output.output_tokens = tokens;
    }
}

/// The text of an event that counts as a token; `None` for other events. For completions, an event with a choice counts. For chats, an
/// event with content counts, except for the empty content beside the role.
fn token(event: &Value, backend: Backend) -> Option<&str> {
    let choice = event["choices"].get(0)?;
    match backend {
        Backend::Openai | Backend::Vllm => Some(choice["text"].as_str().unwrap_or_default()),
        Backend::OpenaiChat => {
            let delta = &choice["delta"];
            delta["content"].as_str().filter(|text| !text.is_empty() || delta.get("role").is_none())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn check(backend: Backend, body: &str, tokens: usize, text: &str, error: &str) -> RequestOutcome {
        let mut output = RequestOutcome::default();
        read(body.as_bytes(), backend, Instant::now(), &mut output);
        let found = (output.itls.len() + usize::from(output.latency > 0.0), &*output.text, &*output.error);
        assert_eq!(found, (tokens, text, error), "{body}");
        output
    }

    #[test]
    fn events_are_counted_as_vllms_client_does() {
        let token = |text: &str| format!("data: {{\"choices\":[{{\"text\":\"{text}\"}}]}}\n\n");
        let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":4}}\n\n";
        let done = "data: [DONE]\n\n";
        let body = format!("\n: keep-alive\n\n{}{}{}{usage}{done}", token("a"), token(""), token("b"));
        let output = check(Backend::Openai, &body, 3, "ab", "");
        assert_eq!((output.prompt_tokens, output.output_tokens), (9, 4), "the server's usage counts");
        let output = check(Backend::Vllm, &format!("{}{}{done}", token("a"), token("b")), 2, "ab", "");
        assert_eq!(output.output_tokens, 2);
        check(Backend::Openai, &format!("{usage}{done}"), 0, "", "the server sent no token");
        let failed = format!("{}data: {{\"error\":{{\"message\":\"x\"}}}}\n\n{done}", token("a"));
        check(Backend::Openai, &failed, 0, "a", "x");

        let delta = |fields: &str| format!("data: {{\"choices\":[{{\"delta\":{{{fields}}}}}]}}\n\n");
        let role = delta("\"role\":\"assistant\",\"content\":\"\"");
        let body = format!("{role}{}{}{done}", delta("\"content\":\"\""), delta("\"content\":\"é\""));
        check(Backend::OpenaiChat, &body, 2, "é", "");
    }

    /// Starts a server that answers every request with one token. Returns its port and the number of accepted connections.
    fn server() -> (u16, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || answer_all(stream.unwrap()));
            }
        });
        (port, accepted)
    }

    fn answer_all(mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        loop {
            let mut length = 0;
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap() == 0 {
                    return;
                }
                let line = line.trim().to_ascii_lowercase();
                length = line.strip_prefix("content-length: ").map_or(length, |text| text.parse().unwrap());
                if line.is_empty() {
                    break;
                }
            }
            std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink()).unwrap();
            let events = "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: [DONE]\n\n";
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            write!(stream, "{head}{:x}\r\n{events}\r\n0\r\n\r\n", events.len()).unwrap();
        }
    }

    #[test]
    fn requests_reuse_the_connection() {
        let (port, accepted) = server();
        let port = port.to_string();
        let options = crate::bench::testing::options(&["--port", &port]).load;
        let client =
            BenchClient::new(&options, options.base(), "m".to_owned(), None, Duration::from_secs(600))
                .unwrap();
        for n in 0..3 {
            let asked = BenchRequest { prompt: "a".to_owned(), prompt_tokens: 1, output_tokens: 1 };
            let output = client.ask(&asked, &n.to_string(), Instant::now());
            assert_eq!((&*output.error, &*output.text), ("", "a"));
        }
        assert_eq!(accepted.load(Ordering::SeqCst), 1);
    }
}
