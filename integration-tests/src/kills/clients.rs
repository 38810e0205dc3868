//! The clients of a round: clients that wait for their answers, and clients that leave.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use serde_json::json;

use crate::client::{Answer, Connection, complete};
use crate::fixtures::Prompt;

/// `request.deadline`. All requests of these tests are much faster.
pub(super) const DEADLINE: Duration = Duration::from_secs(100);

/// A client that waits for its answer.
pub(super) struct Waiting {
    prompt: Prompt,
    thread: JoinHandle<(Result<Answer>, Duration)>,
}

impl Waiting {
    /// Asks for as many tokens as the reference has.
    pub(super) fn ask(address: &str, prompt: Prompt) -> Self {
        let (address, input, tokens) = (address.to_owned(), prompt.input(), prompt.ids.len() as u32);
        let thread = std::thread::spawn(move || {
            let asked = Instant::now();
            (complete(&address, &input, tokens), asked.elapsed())
        });
        Self { prompt, thread }
    }

    /// Waits for the end of the request. The inner result is `Ok` for an answer with the right tokens, and the reason for a failed request.
    ///
    /// # Errors
    /// Outcomes that are never allowed: wrong tokens with status 200, or an end after the request's deadline.
    pub(super) fn end(self) -> Result<Result<()>> {
        let Self { prompt, thread } = self;
        let (answer, took) = thread.join().map_err(|_| anyhow!("a client panicked"))?;
        // The deadline does not include the way to the server and back.
        let allowed = DEADLINE + Duration::from_secs(2);
        ensure!(took <= allowed, "{} ended {took:?} after it was asked", prompt.name);
        match answer {
            Ok(answer) => {
                let right = answer.ids == prompt.ids;
                ensure!(right, "{}: wrong tokens with status 200: {:?}", prompt.name, answer.text);
                Ok(Ok(()))
            }
            Err(error) => Ok(Err(error.context(prompt.name))),
        }
    }
}

/// A client that reads part of its stream and leaves when it is dropped.
pub(super) struct Leaving(Connection);

impl Leaving {
    /// Asks for a stream.
    pub(super) fn ask(address: &str, prompt: &[u32], tokens: u32) -> Result<Self> {
        let body = json!({"prompt": prompt, "max_tokens": tokens, "ignore_eos": true, "stream": true});
        Ok(Self(Connection::post(address, "/v1/completions", &body.to_string())?))
    }

    /// Reads up to the first token.
    pub(super) fn read_a_token(&mut self) -> Result<()> {
        let seen = self.0.read_until("data: ")?;
        ensure!(seen.starts_with("HTTP/1.1 200"), "{seen}");
        Ok(())
    }

    /// True if no byte of the answer has arrived.
    pub(super) fn has_nothing(&self) -> Result<bool> {
        self.0.is_empty()
    }
}
