//! A streamed answer: server-sent events in the format and order of vLLM.
//!
//! Each token is one event. The event of the last token has `finish_reason`. After it come the usage, if the request asked for it, and
//! `[DONE]`. Tokens that are ready at the same time are sent in one write. A silent stream sends blank lines, which clients skip. They keep
//! proxies from closing the connection, and let the system notice that the client's host is gone.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use actix_web::web::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::time::timeout;

use super::answer_parser::{AnswerParser, AnswerPart};
use super::api_error::ApiError;
use super::choices::{Choices, Failure};
use super::logprobs::report;
use super::memory::InputMemory;
use super::observed::Observed;
use super::openai::{ApiKind, Ask, StreamOptions};
use super::reply::{Finish, Piece};
use super::response::{Addition, Delta, Head, TimingsReport, Usage, finish_word};
use super::responses_api::{Output, ResponseStart, ResponseWriter};
use super::tokenizer::Tokenizer;

/// The last event of every stream.
const DONE: &str = "[DONE]";

/// A blank line keeps a silent stream alive. Clients ignore it between events. Some, such as the bench client of vLLM 0.9, fail at a comment.
pub(super) const KEEP_ALIVE: &str = "\n";

/// No further token is added to a write of at least this size. For a slow client, a whole answer may be ready; its tokens take less memory than
/// its events.
const WRITE_BYTES: usize = 16 << 10;

/// The parts of a streamed response that do not change.
pub(super) struct EventShape {
    pub(super) head: Head,
    pub(super) ask: Arc<Ask>,
    pub(super) options: StreamOptions,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) observed: Arc<Observed>,
    pub(super) memory: InputMemory,
}

/// Progress of a choice.
#[derive(Default)]
struct ChoiceProgress {
    started: bool,
    /// Divides the answer; `None` if all its text is content.
    parser: Option<AnswerParser>,
    tokens: u32,
    /// Cached tokens of its prompt; known at its end.
    cached: u32,
    /// Characters of its tokens, for the offsets of log probabilities.
    characters: usize,
}

/// The source of the events.
pub(super) enum Answers {
    /// The request waits for permits.
    Waiting(Pin<Box<dyn Future<Output = Result<Choices, ApiError>>>>),
    /// The answers are computed.
    Running(Choices),
}

/// The state of a stream between two writes.
struct Events {
    answers: Answers,
    writer: EventWriter,
}

/// Writes the events of an answer.
struct EventWriter {
    shape: EventShape,
    progress: Vec<ChoiceProgress>,
    /// Writes the events of a response. `None` for completions and chats.
    response: Option<ResponseWriter>,
    ended: bool,
}

/// A piece of an answer that has arrived.
struct Arrived {
    /// The choice and its piece, or the error that ends the stream.
    piece: Result<(usize, Piece), ApiError>,
    /// See [`Choices::waited`].
    waited: Duration,
    /// No other piece follows.
    is_last: bool,
}

/// The body of a streamed answer. It sends a blank line if it is silent for `keep_alive`. Dropping it aborts the request.
pub(super) fn events(
    shape: EventShape,
    answers: Answers,
    keep_alive: Duration,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let format = &shape.ask.format;
    let parser = || (!format.is_plain()).then(|| format.parser());
    let progress = |_| ChoiceProgress { parser: parser(), ..ChoiceProgress::default() };
    let progress = (0..shape.ask.choices()).map(progress).collect();
    let is_response = shape.head.kind == ApiKind::Response;
    let response = is_response.then(|| response_writer(&shape.head, &shape.ask));
    let writer = EventWriter { shape, progress, response, ended: false };
    unfold(Events { answers, writer }, move |mut events| async move {
        if events.writer.ended {
            return None;
        }
        let Ok(first) = timeout(keep_alive, events.next()).await else {
            return Some((Ok(Bytes::from_static(KEEP_ALIVE.as_bytes())), events));
        };
        let mut out = String::new();
        let mut next = Some(first);
        while let Some(arrived) = next {
            (events, out) = events.write(arrived, out).await?;
            let full = events.writer.ended || out.len() >= WRITE_BYTES;
            next = if full { None } else { events.next_now() };
        }
        Some((Ok(Bytes::from(out)), events))
    })
}

/// The writer of the response to a request with this head.
pub(super) fn response_writer(head: &Head, ask: &Ask) -> ResponseWriter {
    ResponseWriter::new(ResponseStart {
        id: head.id.clone(),
        created: head.created,
        model: head.model.clone(),
        repeated: ask.repeated.clone(),
        prompt_tokens: ask.prompt_tokens(),
        parser: ask.format.parser(),
    })
}

/// Logs the failure of an answer and returns the error for the client.
fn failed(shape: &EventShape, failure: &Failure) -> ApiError {
    shape.observed.end(&failure.of(&shape.head), Err(&failure.error));
    failure.error.clone().into()
}

fn frame(json: &str, out: &mut String) {
    out.push_str("data: ");
    out.push_str(json);
    out.push_str("\n\n");
}

/// Writes a chunk for each part but the last. Returns the delta of the last chunk: that of the last part, or an empty one if there is
/// none, or at the end of an answer with tool calls.
fn write_all_but_last<'a>(
    head: &Head,
    parts: &'a [AnswerPart],
    has_calls: bool,
    delta: Delta<'a>,
    out: &mut String,
) -> Delta<'a> {
    let (before, last) = match parts {
        [before @ .., last] if delta.finish.is_none() || !has_calls => (before, Addition::Part(last)),
        _ => (parts, Addition::Nothing),
    };
    for part in before {
        let adds = Addition::Part(part);
        frame(&head.chunk(Delta { index: delta.index, adds, usage: delta.usage, ..Delta::default() }), out);
    }
    Delta { adds: last, ..delta }
}

impl EventShape {
    /// Notes the end of an answer.
    fn arrived(&self, choices: &mut Choices, piece: Result<(usize, Piece), Failure>) -> Arrived {
        if let Ok((choice, piece)) = &piece {
            choices.note_end(*choice, piece, &self.head, &self.observed);
        }
        let is_last = piece.is_err() || choices.is_over();
        let piece = piece.map_err(|failure| failed(self, &failure));
        Arrived { piece, waited: choices.waited(), is_last }
    }
}

impl Events {
    /// Waits for the next piece of any answer. The future may be dropped and created again.
    async fn next(&mut self) -> Arrived {
        loop {
            match &mut self.answers {
                Answers::Waiting(started) => match started.await {
                    Ok(choices) => self.answers = Answers::Running(choices),
                    Err(error) => {
                        return Arrived { piece: Err(error), waited: Duration::ZERO, is_last: true };
                    }
                },
                Answers::Running(choices) => {
                    let piece = choices.next().await;
                    return self.writer.shape.arrived(choices, piece);
                }
            }
        }
    }

    /// The next piece, if one has arrived.
    fn next_now(&mut self) -> Option<Arrived> {
        let Answers::Running(choices) = &mut self.answers else { return None };
        let piece = choices.next_now()?;
        Some(self.writer.shape.arrived(choices, piece))
    }

    /// Writes a piece to `out`. The log probabilities of a prompt are written on a thread pool: 262,144 of them may take 80 ms. Returns
    /// `None` if the pool takes no more work.
    async fn write(self, arrived: Arrived, mut out: String) -> Option<(Self, String)> {
        let Self { answers, mut writer } = self;
        let is_scored = arrived.piece.as_ref().is_ok_and(|(_, piece)| piece.prompt.is_some());
        if !is_scored {
            writer.write(arrived, &mut out);
            return Some((Self { answers, writer }, out));
        }
        let memory = writer.shape.memory.clone();
        let write = move || {
            writer.write(arrived, &mut out);
            (writer, out)
        };
        let (writer, out) = memory.run_long(write).await.ok()?;
        Some((Self { answers, writer }, out))
    }
}

impl EventWriter {
    fn write(&mut self, arrived: Arrived, out: &mut String) {
        let Arrived { piece, waited, is_last } = arrived;
        self.ended = is_last;
        match (piece, &mut self.response) {
            (Ok((_, piece)), Some(response)) => response.push(&piece, &mut Output::Events(out)),
            (Err(error), Some(response)) => response.fail(&error.message, &mut Output::Events(out)),
            (Ok((choice, piece)), None) => self.write_piece(choice, piece, waited, out),
            (Err(error), None) => {
                frame(&error.body(), out);
                frame(DONE, out);
            }
        }
    }

    fn write_piece(&mut self, index: usize, mut piece: Piece, waited: Duration, out: &mut String) {
        let EventShape { head, ask, options, tokenizer, .. } = &self.shape;
        let prompt = ask.prompt_of(index);
        let progress = &mut self.progress[index];
        let first = !std::mem::replace(&mut progress.started, true);
        let mut prompt_token_ids = (ask.return_token_ids && first).then_some(&*prompt.tokens);
        if first && head.kind == ApiKind::Chat {
            let content = progress.parser.is_none().then_some("");
            frame(&head.role_chunk(index, content, prompt_token_ids.take()), out);
        }
        progress.tokens += u32::from(piece.token.is_some());
        // The answer to a request with `prompt_logprobs` is not streamed. So these are for `echo`.
        let echoed = piece.prompt.take().map_or_else(Vec::new, |logprobs| prompt.scored(logprobs));
        let tokens = echoed.iter().chain(&piece.token);
        let logprobs =
            report(head.kind, tokenizer, ask.sampling.logprobs, tokens.clone(), progress.characters);
        if logprobs.is_some() {
            progress.characters += tokens.map(|token| tokenizer.characters_of(token.id)).sum::<usize>();
        }
        let finish = piece.finish.as_ref();
        progress.cached = finish.map_or(0, |finish| finish.timings.cached_tokens);
        let report_of = |finish: &Finish| TimingsReport::new(finish.timings.clone(), waited);
        let mut timings = finish.filter(|_| ask.return_timings).map(report_of);
        let usage = Usage::new(prompt.tokens.len() as u32, progress.tokens);
        let token = piece.token.as_ref().map(|token| token.id);
        let mut text = piece.text;
        if first && !prompt.echo.is_empty() {
            text.insert_str(0, &prompt.echo);
        }
        let mut calls = false;
        let parts = progress.parser.as_mut().map(|parser| {
            let parts = parser.push(&text, finish.is_some());
            calls = parser.finishes_with_calls();
            (parts, parser.has_calls())
        });
        let mut delta = Delta {
            index,
            adds: Addition::Text(&text),
            finish: finish.map(|finish| finish_word(finish.reason, calls)),
            stop: finish.and_then(|finish| finish.stop.as_ref()),
            logprobs,
            token_ids: Some(token.as_slice()).filter(|_| ask.return_token_ids),
            prompt_token_ids,
            usage: options.continuous_usage_stats.then_some(usage),
            timings: if options.include_usage { None } else { timings.take() },
        };
        if let Some((parts, has_calls)) = &parts {
            delta = write_all_but_last(head, parts, *has_calls, delta, out);
        }
        if delta.is_needed() {
            frame(&head.chunk(delta), out);
        }
        if self.ended {
            if options.include_usage {
                let tokens = self.progress.iter().map(|progress| progress.tokens).sum();
                let cached = self.progress.iter().map(|progress| progress.cached);
                let usage = Usage::new(ask.prompt_tokens(), tokens).with_cached(cached, ask.n);
                frame(&head.usage_chunk(usage, timings), out);
            }
            frame(DONE, out);
        }
    }
}
