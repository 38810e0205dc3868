//! A client of the HTTP ports.

use std::fmt;
use std::sync::LazyLock;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::process::PATIENCE;

/// Keeps connections from one request to the next, as most clients do.
static AGENT: LazyLock<ureq::Agent> = LazyLock::new(|| {
    let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false);
    config.max_idle_connections(1024).max_idle_connections_per_host(256).build().into()
});

/// POSTs JSON; status and body.
///
/// # Errors
/// No answer in time, or one that is no JSON.
pub fn post(address: &str, path: &str, body: &Value) -> Result<(u16, Value)> {
    let mut response = AGENT.post(format!("http://{address}{path}")).send_json(body)?;
    let status = response.status().as_u16();
    Ok((status, response.body_mut().read_json()?))
}

/// GETs JSON; status and body.
///
/// # Errors
/// No answer in time, or one that is no JSON.
pub fn get(address: &str, path: &str) -> Result<(u16, Value)> {
    let mut response = AGENT.get(format!("http://{address}{path}")).call()?;
    let status = response.status().as_u16();
    Ok((status, response.body_mut().read_json()?))
}

/// GETs text.
///
/// # Errors
/// No answer in time.
pub fn get_text(address: &str, path: &str) -> Result<String> {
    Ok(AGENT.get(format!("http://{address}{path}")).call()?.body_mut().read_to_string()?)
}

/// What a process counts, at one moment.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    /// The value under this name.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, name: &str) -> Result<u64> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("{name} in {}", self.0))?.parse()?)
    }

    /// Whether the value under each of these names is 0.
    ///
    /// # Errors
    /// There is no such name.
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
/// No answer in time.
pub fn metrics(address: &str) -> Result<Metrics> {
    get_text(address, "/metrics").map(Metrics)
}

/// What a completion gave.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Ids of the prompt as the server saw it.
    pub prompt_ids: Vec<u32>,
    /// Ids sampled.
    pub ids: Vec<u32>,
    /// Their text.
    pub text: String,
    /// The `timings` object.
    pub timings: Value,
}

/// Asks for `tokens` greedy tokens, end-of-sequence ignored, for a prompt or for messages.
///
/// # Errors
/// Anything but an answer with status 200.
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
        serde_json::from_value(value.clone()).with_context(|| format!("token ids in {answer}"))
    };
    // Completions carry the prompt's ids in the choice, chats beside the choices.
    let prompt = [&choice["prompt_token_ids"], &answer["prompt_token_ids"]];
    let prompt = prompt.into_iter().find(|ids| ids.is_array()).context("the prompt's ids")?;
    let text = choice["text"].as_str().or(choice["message"]["content"].as_str()).context("the text")?;
    Ok(Answer {
        prompt_ids: ids(prompt)?,
        ids: ids(&choice["token_ids"])?,
        text: text.to_owned(),
        timings: answer["timings"].clone(),
    })
}
