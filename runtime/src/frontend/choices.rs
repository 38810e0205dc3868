//! The answers to one HTTP request: `n` for each of its prompts, computed side by side.

use std::time::Duration;

use actors::request::{RequestError, RequestId};
use futures_util::future::select_all;

use super::observed::Ended;
use super::reply::{Piece, Reply};
use super::response::Head;

/// Live answers, of which each next piece comes from whichever has one.
pub(super) struct Choices {
    /// By the index of their choice.
    live: Vec<(usize, Reply)>,
    /// Whose turn it is when several have a piece.
    turn: usize,
    unread: Option<(usize, Piece)>,
    waited: Duration,
}

/// Why an answer failed, and with it all.
pub(super) struct Failure {
    choice: usize,
    request: RequestId,
    waited: Duration,
    pub(super) error: RequestError,
}

impl Failure {
    /// Which choice of a request it was.
    pub(super) fn of<'a>(&self, head: &'a Head) -> Ended<'a> {
        Ended { head, choice: self.choice, request: self.request, waited: self.waited }
    }
}

impl Choices {
    /// Answers in the order of their choices, of a request that waited this long before they began.
    pub(super) fn new(replies: Vec<Reply>, waited: Duration) -> Self {
        Self { live: replies.into_iter().enumerate().collect(), turn: 0, unread: None, waited }
    }

    /// How long the request waited from the arrival of its head until its answers began.
    pub(super) fn waited(&self) -> Duration {
        self.waited
    }

    /// True once every answer has ended.
    pub(super) fn is_over(&self) -> bool {
        self.live.is_empty() && self.unread.is_none()
    }

    /// The request behind a choice that has not ended.
    pub(super) fn request(&self, choice: usize) -> Option<RequestId> {
        self.live.iter().find(|(index, _)| *index == choice).map(|(_, reply)| reply.request())
    }

    /// Waits for the next piece of any answer. May be dropped and called again, but not when all is over.
    pub(super) async fn next(&mut self) -> Result<(usize, Piece), Failure> {
        if let Some(piece) = self.unread.take() {
            return Ok(piece);
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

    /// The next piece of any answer if one is already here.
    pub(super) fn next_now(&mut self) -> Option<Result<(usize, Piece), Failure>> {
        if let Some(piece) = self.unread.take() {
            return Some(Ok(piece));
        }
        let count = self.live.len();
        (0..count).find_map(|step| {
            let place = (self.turn + step) % count;
            let piece = self.live[place].1.next_now()?;
            self.turn = place + 1;
            Some(self.take(place, piece))
        })
    }

    /// Puts the piece back that came last, to come first.
    pub(super) fn unread(&mut self, piece: (usize, Piece)) {
        self.unread = Some(piece);
    }

    fn take(&mut self, place: usize, piece: Result<Piece, RequestError>) -> Result<(usize, Piece), Failure> {
        let (index, reply) = &self.live[place];
        let (index, request, waited) = (*index, reply.request(), self.waited);
        let piece = piece.map_err(|error| Failure { choice: index, request, waited, error })?;
        Ok((index, piece))
    }

    /// A choice has ended: its stream is let go.
    pub(super) fn ended(&mut self, choice: usize) {
        self.live.retain(|(index, _)| *index != choice);
    }
}
