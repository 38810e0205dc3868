//! Posts puts and flushes.

use connector::ring::PageIndex;
use connector::shards::{Lanes, Piece};
use connector::transport::{Command, Ticket, TransportSession};
use engine::PageId;

use super::session::{Flush, PageHash, Put, Ready, Tickets};
use super::{FLUSH_PAGES, TransferState};
use crate::effect::{Effect, ToTransport, to};
use crate::messages::{PageToHash, SessionId};

impl TransferState {
    /// New tickets, one for each lane.
    fn tickets(&mut self, lanes: Lanes) -> Tickets {
        let first = Ticket(self.next_ticket + 1);
        self.next_ticket += u64::from(lanes.count());
        Tickets { first, count: lanes.count() }
    }

    /// Posts all puts that credits and the limit of pages in flight allow, and the flushes that are due.
    pub(super) fn pump(&mut self, now_micros: u64, session: SessionId) -> Vec<Effect> {
        let mut effects: Vec<Effect> = Vec::new();
        let Some(lanes) = self.sessions.get(&session).and_then(|live| live.lanes) else { return effects };
        loop {
            let next = self.tickets(lanes);
            let Some(live) = self.sessions.get_mut(&session) else { return effects };
            // Twice the flushes that the pages in flight need, because the last flush of a request may cover few pages. Many lanes have fewer flushes each, so
            // that no peer's number of shards makes a session take more of the transport's queue.
            let most =
                (2 * self.config.pages_in_flight.div_ceil(FLUSH_PAGES) / lanes.count() as usize).max(1);
            // At least `run_pages`, so that a flush does not divide a run.
            if let Some(below) = live.flush_below(self.run_pages.max(FLUSH_PAGES), most) {
                live.flushes.push_back(Flush { tickets: next, left: lanes.count(), below });
                let session = TransportSession(session.0);
                let flush = |lane| to::transport(Command::Flush { session, ticket: next.of(lane), lane });
                effects.extend((0..lanes.count()).map(flush));
                continue;
            }
            // In pieces, for the same reason. One page may always be in flight.
            let in_flight: usize = live.puts.iter().map(|put| put.left as usize).sum();
            let is_full = in_flight > 0 && in_flight + lanes.count() as usize > self.config.pages_in_flight;
            if !live.may_post() || is_full || live.ready.is_empty() {
                break;
            }
            let Some(credit) = live.ring.spend() else { break };
            let Ready { load, page } = live.next().expect("`ready` is not empty");
            let seed = live.seed_of(load, credit.number, now_micros);
            let tickets = self.post(&mut effects, session, (lanes, next), (page, credit.page));
            let seed = seed.filter(|_| self.config.hashed);
            self.to_hash.extend(seed.map(|seed| PageToHash { session, page, seed }));
            let Some(live) = self.sessions.get_mut(&session) else { return effects };
            live.puts.push_back(Put {
                tickets,
                credit: credit.number,
                load,
                posted_micros: now_micros,
                left: lanes.count(),
                hash: if seed.is_some() { PageHash::Pending } else { PageHash::NotNeeded },
            });
        }
        effects
    }

    /// Posts the puts of one page, or adds the page to the last puts of `effects`. Returns the puts' tickets.
    fn post(
        &self,
        effects: &mut Vec<Effect>,
        session: SessionId,
        (lanes, tickets): (Lanes, Tickets),
        (page, into): (PageId, PageIndex),
    ) -> Tickets {
        let pieces: Vec<Piece> = lanes.pieces(self.config.page_bytes, page.0, into.0).collect();
        let last = effects.len().saturating_sub(pieces.len());
        // Neighbours in one pool of a node are neighbours in all of them.
        let neighbours: Option<Vec<_>> = effects[last..]
            .iter_mut()
            .zip(&pieces)
            .map(|(effect, piece)| neighbour(effect, piece, self.run_pages as u64))
            .collect();
        match neighbours {
            Some(neighbours) if neighbours.len() == pieces.len() => {
                let first = neighbours[0].0;
                neighbours.into_iter().zip(&pieces).for_each(|((_, bytes), piece)| *bytes += piece.bytes);
                Tickets { first, ..tickets }
            }
            _ => {
                effects.extend(pieces.into_iter().map(|piece| {
                    let Piece { lane, local_offset, remote_offset, bytes } = piece;
                    let (session, ticket) = (TransportSession(session.0), tickets.of(lane));
                    to::transport(Command::Put { session, ticket, lane, local_offset, remote_offset, bytes })
                }));
                tickets
            }
        }
    }
}

/// The ticket and the length of the put in `effect`, if the piece follows this put directly on both sides and the put has room for it.
fn neighbour<'a>(effect: &'a mut Effect, piece: &Piece, pieces_max: u64) -> Option<(Ticket, &'a mut u64)> {
    let Effect::Transport(ToTransport::Command(Command::Put {
        ticket,
        lane,
        local_offset,
        remote_offset,
        bytes,
        ..
    })) = effect
    else {
        return None;
    };
    let follows = *lane == piece.lane
        && *bytes < pieces_max * piece.bytes
        && *local_offset + *bytes == piece.local_offset
        && *remote_offset + *bytes == piece.remote_offset;
    follows.then_some((*ticket, bytes))
}
