//! Sessions and the pages that land in them: announcements are checked, and pages of lost sessions are quarantined.

use std::num::NonZeroU32;

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
    /// A session began: its peer may write up to `ring_pages` pages of ours, whose hashes have this seed.
    pub(super) fn on_session_opened(&mut self, opened: SessionOpened) -> Vec<Effect> {
        if let Some(capacity) = NonZeroU32::new(opened.ring_pages) {
            self.rings.open(opened.session, capacity, opened.seed);
        }
        Vec::new()
    }

    /// The session's start-up measurement is over.
    pub(super) fn on_measured(&mut self, session: SessionId) -> Vec<Effect> {
        self.rings.measured(session);
        Vec::new()
    }

    /// The session's peer is about to end: once no page is to land, its credits are called back at once.
    pub(super) fn on_peer_leaving(&mut self, session: SessionId) -> Vec<Effect> {
        self.rings.leave(session);
        Vec::new()
    }

    /// A session ended: puts into its outstanding pages may still land.
    pub(super) fn on_session_lost(&mut self, session: SessionId) -> Vec<Effect> {
        self.rings.lose(session, Vec::new());
        let mut effects = self.quarantine_changed();
        if !self.rings.is_quarantined(session) {
            effects.push(to::peer_link(NothingOutstanding { session }));
        }
        effects
    }

    /// Proof: no byte of this lost session can land any more.
    pub(super) fn on_session_drained(&mut self, drained: SessionDrained) -> Vec<Effect> {
        self.free.extend(self.rings.drain(drained.session).into_iter().map(|page| page.0));
        self.quarantine_changed()
    }

    /// A sender says that pages are whole and visible. They are adopted only if they are what it put: `hasher` computes
    /// what is there; without one, both sides have agreed to do without.
    pub(super) fn on_page_filled(&mut self, filled: PageFilled, hasher: Option<Hasher<'_>>) -> Vec<Effect> {
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
            // No request waits for them: they are a measurement's, or their request has ended, or it is prefilled elsewhere now.
            self.free.extend(pages.iter().map(|page| page.0));
            return Vec::new();
        };
        if filled.count > landing {
            self.free.extend(pages.iter().map(|page| page.0));
            let reason =
                format!("{} pages of {request} were announced, and {landing} are to land", filled.count);
            return vec![broken(session, reason)];
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
            return self.on_damaged(session, request, pages);
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

    /// A hash does not match: a bit flipped, or the flush did not cover what its sender says. More may land in these pages, and
    /// under every credit of the session. So the session is over here, its pages wait for proof, and the link hears of it.
    pub(super) fn on_damaged(
        &mut self,
        session: SessionId,
        request: RequestId,
        damaged: Vec<PageIndex>,
    ) -> Vec<Effect> {
        self.rings.lose(session, damaged);
        self.counts.mismatches += 1;
        let reason = format!("a page of {request} is not what was put");
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
