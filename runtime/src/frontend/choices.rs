//! The answers to one HTTP request: `n` for each of its prompts. They are computed concurrently.

use std::time::Duration;

use actors::request::{RequestError, RequestId};
use futures_util::future::select_all;

use super::begin::Begin;
use super::ended::Ended;
use super::observed::Observed;
use super::reply::{Piece, Reply};
use super::response::Head;

/// The live answers of a request. The next piece is from any answer that has one.
pub(super) struct Choices {
    /// Index of the choice and its reply.
    live: Vec<(usize, Reply)>,
    /// The first answer to look at, so that answers take turns.
    turn: usize,
    unread: Option<Box<(usize, Piece)>>,
    begin: Begin,
}

/// Why an answer failed. The whole request fails with it.
pub(super) struct Failure {
    choice: usize,
    request: RequestId,
    begin: Begin,
    pub(super) error: RequestError,
}

impl Failure {
    /// The failed choice of the request with this head, for the log.
    pub(super) fn of<'a>(&'a self, head: &'a Head) -> Ended<'a> {
        Ended { head, choice: self.choice, request: self.request, begin: &self.begin }
    }
}

impl Choices {
    /// The answers in the order of their choices.
    pub(super) fn new(replies: Vec<Reply>, begin: Begin) -> Self {
        Self { live: replies.into_iter().enumerate().collect(), turn: 0, unread: None, begin }
    }

    /// When the parts of the request before its answers took place.
    pub(super) fn begin(&self) -> &Begin {
        &self.begin
    }

    /// The time from the arrival of the request until its answers began.
    pub(super) fn waited(&self) -> Duration {
        self.begin.waited()
    }

    /// True once every answer has ended.
    pub(super) fn is_over(&self) -> bool {
        self.live.is_empty() && self.unread.is_none()
    }

    /// The request id of a choice that has not ended.
    fn request(&self, choice: usize) -> Option<RequestId> {
        self.live.iter().find(|(index, _)| *index == choice).map(|(_, reply)| reply.request())
    }

    /// Waits for the next piece of any answer. The future may be dropped and created again. Must not be called when all answers have
    /// ended.
    pub(super) async fn next(&mut self) -> Result<(usize, Piece), Failure> {
        if let Some(piece) = self.unread.take() {
            return Ok(*piece);
        }
        let (piece, place) = match &mut self.live[..] {
            [(_, reply)] => (reply.next().await, 0),
            several => {
                let waits = several.iter_mut().map(|(_, reply)| Box::pin(reply.next()));
                let (piece, place, _) = select_all(waits).await;
                (piece, place)
            }
        };
        self.take(place, piece)
    }

    /// The next piece of any answer, if one has arrived.
    pub(super) fn next_now(&mut self) -> Option<Result<(usize, Piece), Failure>> {
        if let Some(piece) = self.unread.take() {
            return Some(Ok(*piece));
        }
        let count = self.live.len();
        (0..count).find_map(|step| {
            let place = (self.turn + step) % count;
            let piece = self.live[place].1.next_now()?;
            self.turn = place + 1;
            Some(self.take(place, piece))
        })
    }

    /// Puts back a piece. It is returned next.
    pub(super) fn unread(&mut self, piece: (usize, Piece)) {
        self.unread = Some(Box::new(piece));
    }

    fn take(&mut self, place: usize, piece: Result<Piece, RequestError>) -> Result<(usize, Piece), Failure> {
        let (index, reply) = &self.live[place];
        let (index, request) = (*index, reply.request());
        let failure = |error| Failure { choice: index, request, begin: self.begin.clone(), error };
        let piece = piece.map_err(failure)?;
        Ok((index, piece))
    }

    /// If the piece is the last one of its choice, logs the end and drops the stream.
    pub(super) fn note_end(&mut self, choice: usize, piece: &Piece, head: &Head, observed: &Observed) {
        if let (Some(finish), Some(request)) = (&piece.finish, self.request(choice)) {
            let ended = Ended { head, choice, request, begin: &self.begin };
            observed.end(&ended, Ok((finish.reason, &finish.timings)));
            self.ended(choice);
        }
    }

    /// Drops the stream of a choice that has ended.
    fn ended(&mut self, choice: usize) {
        self.live.retain(|(index, _)| *index != choice);
    }
}
