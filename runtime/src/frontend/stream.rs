//! A streamed answer: server-sent events, framed and ordered as vLLM's.
//!
//! Each token is an event of its own. `finish_reason` rides on the last token's event; then comes the usage if it was asked
//! for, and `[DONE]`. Tokens that are ready together go out in one write. Where nothing came for a while, a comment does, which
//! clients skip: it shows proxies on the way that the stream lives, and the system whether the client's host does.

use std::convert::Infallible;
use std::time::Duration;

use actix_web::web::Bytes;
use actors::request::RequestError;
use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::time::timeout;

use super::access_log::log_end;
use super::api_error::ApiError;
use super::openai::{Kind, StreamOptions};
use super::reply::{Piece, Reply};
use super::response::{Delta, Head, TimingsReport, Usage};

/// The last event of every stream.
const DONE: &str = "[DONE]";

/// A comment, as events are framed.
const KEEP_ALIVE: &str = ": keep-alive\n\n";

/// A write takes no further token beyond this. What is ready at once for a client that was slow may be a whole answer, and it
/// is still there as tokens, which are smaller.
const WRITE_BYTES: usize = 16 << 10;

/// How a request wants its events.
pub(super) struct EventShape {
    pub(super) head: Head,
    pub(super) prompt: Vec<u32>,
    pub(super) options: StreamOptions,
    pub(super) return_token_ids: bool,
    pub(super) return_timings: bool,
}

/// The state between two writes.
struct Events {
    shape: EventShape,
    reply: Reply,
    started: bool,
    tokens: u32,
    ended: bool,
}

/// The body of a streamed answer, silent for at most `keep_alive`. Dropping it drops the request.
pub(super) fn events(
    shape: EventShape,
    reply: Reply,
    keep_alive: Duration,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let events = Events { shape, reply, started: false, tokens: 0, ended: false };
    unfold(events, move |mut events| async move {
        if events.ended {
            return None;
        }
        let Ok(piece) = timeout(keep_alive, events.reply.next()).await else {
            return Some((Ok(Bytes::from_static(KEEP_ALIVE.as_bytes())), events));
        };
        let mut out = String::new();
        let mut next = Some(piece);
        while let Some(piece) = next {
            events.write(piece, &mut out);
            let full = events.ended || out.len() >= WRITE_BYTES;
            next = if full { None } else { events.reply.next_now() };
        }
        Some((Ok(Bytes::from(out)), events))
    })
}

fn frame(json: &str, out: &mut String) {
    out.push_str("data: ");
    out.push_str(json);
    out.push_str("\n\n");
}

impl Events {
    fn write(&mut self, piece: Result<Piece, RequestError>, out: &mut String) {
        match piece {
            Ok(piece) => self.write_piece(piece, out),
            Err(error) => {
                log_end(&self.shape.head, self.reply.request(), &Err(error.clone()));
                frame(&ApiError::from(error).body(), out);
                frame(DONE, out);
                self.ended = true;
            }
        }
    }

    fn write_piece(&mut self, piece: Piece, out: &mut String) {
        let shape = &self.shape;
        let mut prompt_token_ids = (shape.return_token_ids && !self.started).then_some(&*shape.prompt);
        if !self.started && shape.head.kind == Kind::Chat {
            frame(&shape.head.role_chunk(prompt_token_ids.take()), out);
        }
        self.started = true;
        self.tokens += u32::from(piece.token.is_some());
        let usage = Usage::new(shape.prompt.len() as u32, self.tokens);
        let (finish, timings) = piece.finish.unzip();
        if let (Some(reason), Some(timings)) = (finish, &timings) {
            log_end(&shape.head, self.reply.request(), &Ok((reason, timings)));
        }
        let mut timings = timings.filter(|_| shape.return_timings).map(TimingsReport::from);
        let delta = Delta {
            text: &piece.text,
            finish,
            token_ids: piece.token.as_slice().get(..).filter(|_| shape.return_token_ids),
            prompt_token_ids,
            usage: shape.options.continuous_usage_stats.then_some(usage),
            timings: if shape.options.include_usage { None } else { timings.take() },
        };
        frame(&shape.head.chunk(delta), out);
        if finish.is_some() {
            if shape.options.include_usage {
                frame(&shape.head.usage_chunk(usage, timings), out);
            }
            frame(DONE, out);
            self.ended = true;
        }
    }
}
