//! The clients of a round: those that wait for their answers, and those that leave.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;

use crate::client::{Answer, complete};
use crate::fixtures::Prompt;
use crate::process::PATIENCE;

/// `request.deadline`: nothing here takes nearly as long, on any machine.
pub(super) const DEADLINE: Duration = Duration::from_secs(100);

/// A client that waits for its answer.
pub(super) struct Waiting {
    prompt: Prompt,
    thread: JoinHandle<(Result<Answer>, Duration)>,
}

impl Waiting {
    /// Asks for all the tokens that the reference has.
    pub(super) fn ask(address: &str, prompt: Prompt) -> Self {
        let (address, input, tokens) = (address.to_owned(), prompt.input(), prompt.ids.len() as u32);
        let thread = std::thread::spawn(move || {
            let asked = Instant::now();
            (complete(&address, &input, tokens), asked.elapsed())
        });
        Self { prompt, thread }
    }

    /// Waits for the end: `Ok` if all words are right, and `Err` with the reason if there was no answer.
    ///
    /// # Errors
    /// What may never happen: wrong words with status 200, or an end after the request's deadline.
    pub(super) fn end(self) -> Result<Result<()>> {
        let Self { prompt, thread } = self;
        let (answer, took) = thread.join().map_err(|_| anyhow!("a client panicked"))?;
        // What the deadline does not cover: the way to the server and back.
        let allowed = DEADLINE + Duration::from_secs(2);
        ensure!(took <= allowed, "{} ended {took:?} after it was asked", prompt.name);
        match answer {
            Ok(answer) => {
                let right = answer.ids == prompt.ids;
                ensure!(right, "{}: wrong words with status 200: {:?}", prompt.name, answer.text);
                Ok(Ok(()))
            }
            Err(error) => Ok(Err(error.context(prompt.name))),
        }
    }
}

/// A client that reads as much of its stream as it is told to, and leaves when it is dropped.
pub(super) struct Leaving(TcpStream);

impl Leaving {
    /// Asks for a stream that nobody will read to its end.
    pub(super) fn ask(address: &str, prompt: &[u32], tokens: u32) -> Result<Self> {
        let body = json!({"prompt": prompt, "max_tokens": tokens, "ignore_eos": true, "stream": true});
        let body = body.to_string();
        let mut socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        write!(
            socket,
            "POST /v1/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        Ok(Self(socket))
    }

    /// Reads up to the first token.
    pub(super) fn read_a_token(&mut self) -> Result<()> {
        let (mut seen, mut buffer) = (String::new(), [0; 4096]);
        while !seen.contains("data: ") {
            let read = self.0.read(&mut buffer)?;
            ensure!(read > 0, "the stream ended after {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        ensure!(seen.starts_with("HTTP/1.1 200"), "{seen}");
        Ok(())
    }

    /// Whether not a single byte of the answer has come.
    pub(super) fn has_nothing(&self) -> Result<bool> {
        self.0.set_nonblocking(true)?;
        let peeked = self.0.peek(&mut [0]);
        self.0.set_nonblocking(false)?;
        match peeked {
            Ok(bytes) => {
                ensure!(bytes > 0, "the server hung up");
                Ok(false)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error).context("a client's socket"),
        }
    }
}
