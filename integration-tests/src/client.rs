//! The HTTP client of all tests and programs of this crate.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsConfigBuilder};

use crate::certificates::Authority;
use crate::deadline::{ANSWER_WITHIN, STATE_WITHIN};

/// Keeps connections from one request to the next, as most clients do. It checks no certificates: tests of TLS have an agent of their own
/// ([`trusting`]).
static AGENT: LazyLock<ureq::Agent> = LazyLock::new(|| {
    let tls = TlsConfig::builder().disable_verification(true);
    let config = ureq::Agent::config_builder().http_status_as_error(false).tls_config(with_ring(tls));
    config.max_idle_connections(1024).max_idle_connections_per_host(256).build().into()
});

fn with_ring(tls: TlsConfigBuilder) -> TlsConfig {
    tls.unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider())).build()
}

/// A client that trusts this authority only.
pub fn trusting(authority: &Authority) -> ureq::Agent {
    let roots = RootCerts::from([Certificate::from_der(authority.der()).to_owned()]);
    let config =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(ANSWER_WITHIN));
    config.tls_config(with_ring(TlsConfig::builder().root_certs(roots))).build().into()
}

/// The URL of a path. An address without a scheme is one of plain HTTP.
fn url(address: &str, path: &str) -> String {
    if address.contains("://") { format!("{address}{path}") } else { format!("http://{address}{path}") }
}

/// POSTs JSON. Returns the status and the body.
///
/// # Errors
/// No answer within [`ANSWER_WITHIN`], or an answer that is not JSON.
pub fn post(address: &str, path: &str, body: &Value) -> Result<(u16, Value)> {
    post_with(address, path, &[], body)
}

/// As [`post`], with further headers.
///
/// # Errors
/// As [`post`].
pub fn post_with(address: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Result<(u16, Value)> {
    let request = AGENT.post(url(address, path));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let mut response = request.config().timeout_global(Some(ANSWER_WITHIN)).build().send_json(body)?;
    let status = response.status().as_u16();
    Ok((status, response.body_mut().read_json()?))
}

/// GETs text. Returns the status and the body.
fn get_body(address: &str, path: &str) -> Result<(u16, String)> {
    let request = AGENT.get(url(address, path));
    let mut response = request.config().timeout_global(Some(STATE_WITHIN)).build().call()?;
    let status = response.status().as_u16();
    Ok((status, response.body_mut().read_to_string()?))
}

/// GETs JSON. Returns the status and the body.
///
/// # Errors
/// No answer within [`STATE_WITHIN`], or an answer that is not JSON.
pub fn get(address: &str, path: &str) -> Result<(u16, Value)> {
    let (status, body) = get_body(address, path)?;
    Ok((status, serde_json::from_str(&body).with_context(|| format!("{path} answered {status}: {body}"))?))
}

/// GETs text.
///
/// # Errors
/// No answer within [`STATE_WITHIN`].
pub fn get_text(address: &str, path: &str) -> Result<String> {
    Ok(get_body(address, path)?.1)
}

/// A connection that sends exactly the given bytes. Tests use it to send large bodies, to disconnect early, and to open many connections.
#[derive(Debug)]
pub struct Connection(TcpStream);

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// The connection is refused.
    pub fn open(address: impl ToSocketAddrs) -> Result<Self> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(ANSWER_WITHIN))?;
        Ok(Self(socket))
    }

    /// Connects and sends a POST of JSON. Does not wait for the answer.
    ///
    /// # Errors
    /// The connection is refused or breaks.
    pub fn post(address: &str, path: &str, body: &str) -> Result<Self> {
        let mut connection = Self::open(address)?;
        connection.send(&post_request(path, body))?;
        Ok(connection)
    }

    /// Sends a request, as [`post_request`] makes it.
    ///
    /// # Errors
    /// The connection breaks.
    pub fn send(&mut self, request: &[u8]) -> Result<()> {
        Ok(self.0.write_all(request)?)
    }

    /// Reads an answer that has a `content-length`. Returns the status and the body. If the server resets the connection, the body is
    /// the part that arrived before the reset.
    ///
    /// # Errors
    /// The connection breaks before the status, or no bytes come within [`ANSWER_WITHIN`].
    pub fn answer(&mut self) -> Result<(u16, String)> {
        let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            let text = std::str::from_utf8(&bytes).unwrap_or_default();
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && body.len() >= content_length(head).unwrap_or(usize::MAX)
            {
                return Ok((status(head)?, body.to_owned()));
            }
            let count = match self.0.read(&mut chunk) {
                Err(error) if error.kind() != ErrorKind::ConnectionReset => return Err(error.into()),
                read => read.unwrap_or_default(),
            };
            if count == 0 {
                let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
                return Ok((status(text)?, body.to_owned()));
            }
            bytes.extend_from_slice(&chunk[..count]);
        }
    }

    /// Reads until the answer contains `text`, and returns the bytes read so far.
    ///
    /// # Errors
    /// The connection ends before that.
    pub fn read_until(&mut self, text: &str) -> Result<String> {
        let (mut seen, mut chunk) = (String::new(), [0; 4096]);
        while !seen.contains(text) {
            let count = self.0.read(&mut chunk)?;
            ensure!(count > 0, "the stream ended after {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&chunk[..count]));
        }
        Ok(seen)
    }

    /// True if no unread bytes from the server wait.
    ///
    /// # Errors
    /// The server has closed the connection, or it broke.
    pub fn is_empty(&self) -> Result<bool> {
        self.0.set_nonblocking(true)?;
        let peeked = self.0.peek(&mut [0]);
        self.0.set_nonblocking(false)?;
        match peeked {
            Ok(bytes) => {
                ensure!(bytes > 0, "the server has closed the connection");
                Ok(false)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error).context("cannot read from a client's socket"),
        }
    }
}

/// The bytes of a POST of JSON.
pub fn post_request(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

fn status(head: &str) -> Result<u16> {
    let code = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    code.with_context(|| format!("the answer has no status: {head:?}"))
}

fn content_length(head: &str) -> Option<usize> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    lines
        .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .find_map(|(_, value)| value.parse().ok())
}

/// The metrics of a process at one moment.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    /// The value of the metric `name`.
    ///
    /// # Errors
    /// There is no such metric.
    pub fn get(&self, name: &str) -> Result<u64> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("there is no metric {name} in:\n{}", self.0))?.parse()?)
    }

    /// True if all these metrics are 0.
    ///
    /// # Errors
    /// There is no such metric.
    pub fn are_all_zero(&self, names: &[&str]) -> Result<bool> {
        names.iter().try_fold(true, |all, name| Ok(all && self.get(name)? == 0))
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.lines().filter(|line| !line.starts_with('#')).try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// GETs `/metrics`.
///
/// # Errors
/// No answer within [`STATE_WITHIN`].
pub fn metrics(address: &str) -> Result<Metrics> {
    get_text(address, "/metrics").map(Metrics)
}

/// The answer to a completion or chat.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Token ids of the prompt as the server tokenised it.
    pub prompt_ids: Vec<u32>,
    /// Token ids of the answer.
    pub ids: Vec<u32>,
    /// Text of the answer.
    pub text: String,
    /// The `timings` object.
    pub timings: Value,
}

/// Calls `ask` with every item, `most` at a time, and returns the results in the order of the items.
///
/// # Errors
/// The first error of `ask`.
pub fn ask_all<T: Sync, A: Send>(
    items: &[T],
    most: usize,
    ask: impl Fn(&T) -> Result<A> + Sync,
) -> Result<Vec<A>> {
    let (next, answers) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((place, item)) = {
            let place = next.fetch_add(1, Ordering::Relaxed);
            items.get(place).map(|item| (place, item))
        } {
            let answer = ask(item);
            answers.lock().unwrap_or_else(PoisonError::into_inner).push((place, answer));
        }
    };
    std::thread::scope(|scope| (0..most).for_each(|_| drop(scope.spawn(work))));
    let mut answers = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
    answers.sort_by_key(|(place, _)| *place);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// Asks for `tokens` greedy tokens. `input` is the messages of a chat, or a prompt as text or token ids. End-of-sequence tokens are ignored.
///
/// # Errors
/// There is no answer, or its status is not 200.
pub fn complete(address: &str, input: &Value, tokens: u32) -> Result<Answer> {
    let (path, key) = match input {
        Value::Array(items) if items.iter().any(Value::is_object) => ("/v1/chat/completions", "messages"),
        _ => ("/v1/completions", "prompt"),
    };
    let body = json!({
        key: input, "max_tokens": tokens, "temperature": 0, "ignore_eos": true,
        "return_token_ids": true, "return_timings": true,
    });
    let (status, answer) = post(address, path, &body)?;
    if status != 200 {
        bail!("{path} answered {status}: {answer}");
    }
    let choice = &answer["choices"][0];
    let ids = |value: &Value| -> Result<Vec<u32>> {
        serde_json::from_value(value.clone())
            .with_context(|| format!("cannot read the token ids in {answer}"))
    };
    // A completion has the prompt's ids in the choice, and a chat has them beside the choices.
    let prompt = [&choice["prompt_token_ids"], &answer["prompt_token_ids"]];
    let prompt = prompt
        .into_iter()
        .find(|ids| ids.is_array())
        .with_context(|| format!("the answer has no prompt_token_ids: {answer}"))?;
    let text = choice["text"].as_str().or(choice["message"]["content"].as_str());
    let text = text.with_context(|| format!("the answer has neither text nor message.content: {answer}"))?;
    Ok(Answer {
        prompt_ids: ids(prompt)?,
        ids: ids(&choice["token_ids"])?,
        text: text.to_owned(),
        timings: answer["timings"].clone(),
    })
}
