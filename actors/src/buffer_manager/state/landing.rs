//! Sessions and the pages that land in them: checks announcements and quarantines the pages of lost sessions.

use std::num::NonZeroU32;
use std::time::Instant;

use connector::frame::Frame;
use connector::page_hash::PageSeed;
use connector::ring::PageIndex;
use engine::PageId;

use super::rings::Ring;
use super::{Hasher, PoolState};
use crate::effect::{Effect, to};
use crate::log::LogLine;
use crate::messages::{
    BreakSession, NothingOutstanding, PageFilled, PageRejected, PagesAdopted, SendFrame, SequenceId,
    SessionDrained, SessionId, SessionOpened,
};
use crate::request::RequestId;

impl PoolState {
    /// A session began. Its peer may hold up to `ring_pages` credits, and `seed` is part of the seed of its page hashes.
    pub(super) fn on_session_opened(&mut self, opened: SessionOpened) -> Vec<Effect> {
        if let Some(capacity) = NonZeroU32::new(opened.ring_pages) {
            self.rings.open(opened.session, capacity, opened.seed);
        }
        Vec::new()
    }

    /// The session's start-up measurement has ended.
    pub(super) fn on_measured(&mut self, session: SessionId) -> Vec<Effect> {
        self.rings.measured(session);
        Vec::new()
    }

    /// The session's peer is shutting down. When no more pages will land, its credits are called back at once.
    pub(super) fn on_peer_leaving(&mut self, session: SessionId) -> Vec<Effect> {
        self.rings.leave(session);
        Vec::new()
    }

    /// A session ended. Puts into its outstanding pages may still land. If it held no credit, the peer link needs no proof.
    pub(super) fn on_session_lost(&mut self, now: Instant, session: SessionId) -> Vec<Effect> {
        self.lose(now, session, Vec::new());
        let mut effects = self.quarantine_changed();
        if !self.rings.is_quarantined(session) {
            effects.push(to::peer_link(NothingOutstanding { session }));
        }
        effects
    }

    /// A session ended: its outstanding pages and the `damaged` ones are quarantined.
    fn lose(&mut self, now: Instant, session: SessionId, damaged: Vec<PageIndex>) {
        self.counts.lost += u64::from(self.rings.lose(now, session, damaged));
    }

    /// There is proof that no write of this lost session can land any more: its quarantined pages become free.
    pub(super) fn on_session_drained(&mut self, now: Instant, drained: SessionDrained) -> Vec<Effect> {
        if let Some((pages, began)) = self.rings.drain(drained.session) {
            self.counts.quarantine_micros += now.saturating_duration_since(began).as_micros() as u64;
            self.free.extend(pages.into_iter().map(|page| page.0));
        }
        self.quarantine_changed()
    }

    /// A sender announces that pages are complete and visible. They are adopted only if their hashes match. `hasher` computes the
    /// hashes; it is `None` if page hashes are off.
    pub(super) fn on_page_filled(
        &mut self,
        now: Instant,
        filled: PageFilled,
        hasher: Option<Hasher<'_>>,
    ) -> Vec<Effect> {
        let session = filled.session;
        let Some(seed) = self.rings.get(session).map(Ring::seed) else { return Vec::new() };
        let pages = match self.rings.fill(session, filled.first, filled.count) {
            None => return Vec::new(),
            Some(Ok(pages)) => pages,
            Some(Err(error)) => return vec![broken(session, error.to_string())],
        };
        let lands = filled.owner.and_then(|owner| {
            let request = RequestId(owner.request);
            let holding = self.holdings.get(&SequenceId::Own(request))?;
            (holding.from == Some(session)).then_some((request, owner, holding.landing))
        });
        let Some((request, owner, landing)) = lands else {
            // No request waits for these pages: they belong to a measurement, or their request ended or is prefilled elsewhere
            // now.
            self.free.extend(pages.iter().map(|page| page.0));
            return Vec::new();
        };
        if filled.count > landing {
            // The peer broke a rule, so its word that these pages are complete does not count: they wait for proof.
            self.lose(now, session, pages);
            let reason =
                format!("peer announced {} pages of {request}, but {landing} were expected", filled.count);
            let mut effects = vec![broken(session, reason)];
            effects.extend(self.quarantine_changed());
            return effects;
        }
        let seed_of = |n: u32| PageSeed {
            session: seed,
            credit: filled.first.0 + u64::from(n),
            request: request.0,
            place: owner.first_page.wrapping_add(n),
        };
        let is_whole = |hasher: Hasher<'_>| {
            let seeded = (0..).zip(&pages).map(|(n, page)| (PageId(page.0), seed_of(n)));
            hasher(&seeded.collect::<Vec<_>>()) == filled.hashes
        };
        if !hasher.is_none_or(is_whole) {
            return self.on_damaged(now, session, request, pages);
        }
        self.landing -= filled.count;
        self.rings.expect_less(session, filled.count);
        let pages: Vec<PageId> = pages.iter().map(|page| PageId(page.0)).collect();
        self.hold(SequenceId::Own(request), &pages);
        self.holdings.entry(SequenceId::Own(request)).or_default().landing -= filled.count;
        self.counts.adopted += pages.len() as u64;
        let (first_page, transfer_micros) = (owner.first_page, filled.transfer_micros);
        vec![to::decoder(PagesAdopted { request, first_page, pages, transfer_micros })]
    }

    /// A page hash does not match. Either a bit flipped, or the flush did not cover all puts that the sender announced. In the
    /// second case more bytes may land in these pages and under all other credits of the session. Therefore the session ends and
    /// all these pages are quarantined until there is proof.
    pub(super) fn on_damaged(
        &mut self,
        now: Instant,
        session: SessionId,
        request: RequestId,
        damaged: Vec<PageIndex>,
    ) -> Vec<Effect> {
        self.lose(now, session, damaged);
        self.counts.mismatches += 1;
        let reason = format!("the hash of a page of {request} does not match");
        let mut effects = vec![
            to::log(LogLine::PageDamaged { request }),
            to::decoder(PageRejected { request }),
            broken(session, reason),
        ];
        effects.extend(self.quarantine_changed());
        effects
    }
}

pub(super) fn frame(session: SessionId, frame: Frame) -> Effect {
    to::peer_link(SendFrame { session, frame })
}

pub(super) fn broken(session: SessionId, reason: String) -> Effect {
    to::peer_link(BreakSession { session, reason })
}
