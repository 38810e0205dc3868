//! Converts the event stream of one choice into pieces of text.

use std::time::{Duration, Instant};

use actix::Recipient;
use actors::finish::FinishRule;
use actors::request::{
    AbortOutcome, AbortRequest, FinishReason, RequestError, RequestId, StreamEvent, Timings,
};
use actors::streams::{AnswerEvents, StreamReader, Streams};
use engine::{Logprobs, Token};
use tokio::time::timeout_at;

use super::admission::Permit;
use super::stop::{StopReason, StopRule, StopWatch};
use super::tokenizer::Detokenizer;

/// The guard of a live request. Its source owns an entry in the table of live streams, and the entry holds the admission permit. If the guard is
/// dropped before the request has ended (the client has disconnected, or the frontend gave up), it sends [`AbortRequest`].
pub(super) struct LiveRequest {
    request: RequestId,
    source: AnswerEvents,
    abort: Recipient<AbortRequest>,
    ended: bool,
}

impl LiveRequest {
    /// Opens the request's stream.
    pub(super) fn open(
        request: RequestId,
        max_tokens: u32,
        reader: &StreamReader,
        abort: &Recipient<AbortRequest>,
        permit: Permit,
    ) -> Self {
        let source = reader.open(request, max_tokens, permit);
        Self { request, source, abort: abort.clone(), ended: false }
    }

    /// Tells the decoder to produce no more tokens.
    fn end(&self, outcome: AbortOutcome) {
        // `do_send`, not `send`: dropping the future that `send` returns would withdraw the message.
        self.abort.do_send(AbortRequest { request: self.request, outcome });
    }
}

impl Drop for LiveRequest {
    fn drop(&mut self) {
        if !self.ended {
            tracing::info!(request = %self.request, "request dropped before its end; aborting it");
            self.end(AbortOutcome::Cancelled);
        }
    }
}

/// One part of an answer: a token, the text that it completes, and the end of the answer if it is the last part.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    /// `None` if the answer ends without another token.
    pub(super) token: Option<Token>,
    pub(super) text: String,
    pub(super) finish: Option<Finish>,
    /// In the first part, if the request asks for them: the log probabilities of the prompt's tokens except the first.
    pub(super) prompt: Option<Vec<Logprobs>>,
}

/// How an answer finished.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Finish {
    pub(super) reason: FinishReason,
    /// The stop string or token that ended the answer.
    pub(super) stop: Option<StopReason>,
    pub(super) timings: Timings,
}

/// The rule by which the decoder ends an answer. [`Pieces`] uses it to guess the last token.
#[derive(Clone, Debug)]
pub(super) struct EndRule {
    /// If 0, the answer has no tokens, although the decoder samples one.
    pub(super) max_tokens: u32,
    pub(super) ignore_eos: bool,
    pub(super) finish: FinishRule,
}

/// Converts events into pieces. If the [`EndRule`] says that a token is the last one, the token is held until the final event arrives,
/// because the client gets the last token and the finish reason in one chunk. No other token is held.
struct Pieces {
    rule: EndRule,
    detokenizer: Detokenizer,
    stop: StopWatch,
    tokens: u32,
    held: Option<Piece>,
    /// The log probabilities of the prompt until the first piece takes them.
    prompt: Option<Vec<Logprobs>>,
}

impl Pieces {
    fn token(&mut self, token: Token) -> Option<Piece> {
        if self.stop.reason().is_some() || self.rule.max_tokens == 0 {
            // The decoder sampled it before the abort arrived, or the request asks for no tokens.
            return None;
        }
        self.tokens += 1;
        let text = self.stop.token(token.id, self.detokenizer.push(token.id));
        let EndRule { max_tokens, ignore_eos, finish } = &self.rule;
        let left = max_tokens.saturating_sub(self.tokens);
        let ends = finish.reason(token.id, *ignore_eos, left).is_some() || self.stop.reason().is_some();
        let piece = Piece { token: Some(token), text, finish: None, prompt: self.prompt.take() };
        match self.held.take() {
            // The held token was not the last one.
            Some(held) => {
                self.held = Some(piece);
                Some(held)
            }
            None if ends => {
                self.held = Some(piece);
                None
            }
            None => Some(piece),
        }
    }

    fn finish(&mut self, reason: FinishReason, timings: Timings) -> Piece {
        let mut piece = self.held.take().unwrap_or_else(|| Piece {
            token: None,
            text: String::new(),
            finish: None,
            prompt: self.prompt.take(),
        });
        piece.text += &self.stop.text(self.detokenizer.finish());
        piece.text += &self.stop.finish();
        let stop = self.stop.reason().cloned();
        let reason = match stop {
            Some(_) => FinishReason::Stop,
            None if self.rule.max_tokens == 0 => FinishReason::Length,
            None => reason,
        };
        piece.finish = Some(Finish { reason, stop, timings });
        piece
    }
}

/// The answer for one choice.
pub(super) struct Reply {
    live: LiveRequest,
    pieces: Pieces,
    /// A stop string or token has completed the answer, and the decoder has been told.
    complete: bool,
    give_up: Instant,
    deadline_ms: u64,
}

impl Reply {
    /// A reply that waits for events until `give_up`. That is later than the deadline that the decoder enforces. `allowed` is the time
    /// from the arrival of the request to the deadline.
    pub(super) fn new(
        live: LiveRequest,
        rule: EndRule,
        detokenizer: Detokenizer,
        stop: StopRule,
        allowed: Duration,
        give_up: Instant,
    ) -> Self {
        let stop = StopWatch::new(stop);
        let pieces = Pieces { rule, detokenizer, stop, tokens: 0, held: None, prompt: None };
        let deadline_ms = allowed.as_millis() as u64;
        Self { live, pieces, complete: false, give_up, deadline_ms }
    }

    /// The request id.
    pub(super) fn request(&self) -> RequestId {
        self.live.request
    }

    /// Drops the reply after the proxy has refused the request. There is nothing to abort.
    pub(super) fn refused(mut self, streams: &Streams) {
        streams.refuse(self.live.request);
        self.live.ended = true;
    }

    /// Waits for the next piece until `give_up`. The future may be dropped and created again. Must not be called after the end.
    pub(super) async fn next(&mut self) -> Result<Piece, RequestError> {
        loop {
            let event = match timeout_at(self.give_up.into(), self.live.source.recv()).await {
                Ok(Some(event)) => event,
                // The stream was closed without a final event.
                Ok(None) => return self.given_up(RequestError::Aborted),
                Err(_) => return self.given_up(RequestError::Deadline { deadline_ms: self.deadline_ms }),
            };
            if let Some(piece) = self.take(event)? {
                return Ok(piece);
            }
        }
    }

    /// The end without a final event: an error, unless a stop string or token has completed the answer.
    fn given_up(&mut self, error: RequestError) -> Result<Piece, RequestError> {
        let complete = self.complete.then(|| self.pieces.finish(FinishReason::Stop, Timings::default()));
        complete.ok_or(error)
    }

    /// The next piece, if it has arrived.
    pub(super) fn next_now(&mut self) -> Option<Result<Piece, RequestError>> {
        while let Some(event) = self.live.source.next_now() {
            if let Some(piece) = self.take(event).transpose() {
                return Some(piece);
            }
        }
        None
    }

    fn take(&mut self, event: StreamEvent) -> Result<Option<Piece>, RequestError> {
        match event {
            StreamEvent::Prompt(logprobs) => {
                self.pieces.prompt = Some(logprobs);
                Ok(None)
            }
            StreamEvent::Token(token) => {
                let piece = self.pieces.token(token);
                if self.pieces.stop.reason().is_some() && !std::mem::replace(&mut self.complete, true) {
                    self.live.end(AbortOutcome::Completed { tokens: self.pieces.tokens });
                }
                Ok(piece)
            }
            StreamEvent::Finished { reason, timings } => {
                self.live.ended = true;
                Ok(Some(self.pieces.finish(reason, *timings)))
            }
            // The answer was complete before the failure.
            StreamEvent::Failed(_) if self.complete => {
                self.live.ended = true;
                Ok(Some(self.pieces.finish(FinishReason::Stop, Timings::default())))
            }
            StreamEvent::Failed(RequestError::Deadline { .. }) => {
                self.live.ended = true;
                // The decoder's `deadline_ms` is measured from the start of the request. The client's deadline is measured from the
                // arrival of the HTTP head, so report that one.
                Err(RequestError::Deadline { deadline_ms: self.deadline_ms })
            }
            StreamEvent::Failed(error) => {
                self.live.ended = true;
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::model_text::testing::{EOS, bytes_model};
    use super::super::tokenizer::{SpecialTokens, Tokenizer};
    use super::*;

    fn pieces(max_tokens: u32, ignore_eos: bool) -> Pieces {
        let tokenizer = Arc::new(Tokenizer::new(&bytes_model()).unwrap());
        let rule = EndRule { max_tokens, ignore_eos, finish: FinishRule::new(vec![EOS]) };
        let stop = StopWatch::new(StopRule::default());
        Pieces {
            rule,
            detokenizer: Detokenizer::new(tokenizer, SpecialTokens::Skip),
            stop,
            tokens: 0,
            held: None,
            prompt: None,
        }
    }

    fn piece(token: u32, text: &str) -> Piece {
        Piece { token: Some(token.into()), text: text.to_owned(), finish: None, prompt: None }
    }

    #[test]
    fn only_the_expected_last_token_waits() {
        let mut by_length = pieces(2, false);
        assert_eq!(by_length.token(97.into()), Some(piece(97, "a")));
        assert_eq!(by_length.token(98.into()), None);
        let last = by_length.finish(FinishReason::Length, Timings::default());
        let (reason, timings) = (FinishReason::Length, Timings::default());
        let finish = Some(Finish { reason, stop: None, timings });
        assert_eq!(last, Piece { finish, ..piece(98, "b") });

        let mut by_eos = pieces(9, false);
        assert_eq!(by_eos.token(EOS.into()), None);
        assert_eq!(by_eos.finish(FinishReason::Stop, Timings::default()).token, Some(EOS.into()));

        let mut past_eos = pieces(9, true);
        assert_eq!(past_eos.token(EOS.into()), Some(piece(EOS, "")));
    }

    #[test]
    fn no_token_is_lost_if_the_decoder_ends_elsewhere() {
        let mut goes_on = pieces(9, false);
        assert_eq!(goes_on.token(EOS.into()), None);
        assert_eq!(goes_on.token(97.into()), Some(piece(EOS, "")));
        assert_eq!(goes_on.finish(FinishReason::Stop, Timings::default()).token, Some(97.into()));

        let mut ends_early = pieces(9, false);
        assert_eq!(ends_early.token(97.into()), Some(piece(97, "a")));
        let end = ends_early.finish(FinishReason::Stop, Timings::default());
        assert_eq!((end.token, &*end.text, end.finish.is_some()), (None, "", true));
    }

    #[test]
    fn the_first_piece_has_the_log_probabilities_of_the_prompt() {
        let logprobs = || Some(vec![Logprobs { sampled: -1.0, rank: 2, top: Vec::new() }]);
        let mut two = pieces(2, false);
        two.prompt = logprobs();
        assert_eq!(two.token(97.into()).unwrap().prompt, logprobs());
        assert_eq!(two.token(98.into()), None);
        assert_eq!(two.finish(FinishReason::Length, Timings::default()).prompt, None);

        let mut one = pieces(1, false);
        one.prompt = logprobs();
        assert_eq!(one.token(97.into()), None);
        assert_eq!(one.finish(FinishReason::Length, Timings::default()).prompt, logprobs());
    }

    #[test]
    fn without_max_tokens_the_sampled_token_is_dropped() {
        for token in [97, EOS, 0xC3] {
            let mut none = pieces(0, false);
            none.prompt = Some(Vec::new());
            assert_eq!(none.token(token.into()), None);
            let end = none.finish(FinishReason::Stop, Timings::default());
            assert_eq!((end.token, &*end.text, end.prompt), (None, "", Some(Vec::new())));
            assert_eq!(end.finish.unwrap().reason, FinishReason::Length);
        }
    }

    #[test]
    fn an_incomplete_character_becomes_a_replacement_character() {
        let mut pieces = pieces(1, false);
        assert_eq!(pieces.token(0xC3.into()), None);
        assert_eq!(pieces.finish(FinishReason::Length, Timings::default()).text, "\u{FFFD}");
    }
}
