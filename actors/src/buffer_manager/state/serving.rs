//! Gives out free pages: credits first, then growth of running sequences, then reservations.

use std::mem;
use std::time::Instant;

use connector::frame::{Frame, GRANT_PAGES_MAX};
use connector::ring::PageIndex;
use engine::PageId;

use super::landing::{broken, frame};
use super::rings::{Change, Next, RETURN_LIMIT};
use super::{PoolState, denied};
use crate::effect::{Effect, to};
use crate::messages::{
    GrowPages, PagesDenied, PagesGrown, PagesReserved, PagesShort, ReservePages, SequenceId,
};

impl PoolState {
    /// Grants credits, then grows sequences, then serves reservations, until the free pages are used up.
    pub(super) fn settle(&mut self, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        loop {
            effects.extend(self.settle_rings(now));
            let is_next =
                self.settle_growth(&mut effects) && self.waiting.front().is_some_and(|next| self.fits(next));
            let Some(next) = self.waiting.pop_front_if(|_| is_next) else { break };
            effects.push(reserved(self.serve(next)));
        }
        self.check();
        effects
    }

    fn settle_rings(&mut self, now: Instant) -> Vec<Effect> {
        let next = self.waiting.front().and_then(|next| {
            // A reservation that fits now gets its pages before its credits, so that its pages are adjacent.
            next.landing.map(|session| Next { session, is_served: self.fits(next) })
        });
        let changes = self.rings.changes(now, self.unclaimed_here(), next);
        let mut effects = Vec::with_capacity(changes.len());
        for change in changes {
            match change {
                Change::Share(session, pages) => effects.push(frame(session, Frame::RingShare { pages })),
                Change::Break(session, share) => {
                    let seconds = RETURN_LIMIT.as_secs();
                    let reason = format!(
                        "peer was told to hold at most {share} credits and returned none for {seconds} s"
                    );
                    effects.push(broken(session, reason));
                }
                Change::Grant(session, count) => {
                    let pages: Vec<PageIndex> = self.take(count).into_iter().map(PageIndex).collect();
                    let mut first = self.rings.grant(session, &pages);
                    for pages in pages.chunks(GRANT_PAGES_MAX) {
                        effects.push(frame(session, Frame::Grant { first, pages: pages.to_vec() }));
                        first.0 += pages.len() as u64;
                    }
                }
            }
        }
        effects
    }

    /// Gives pages to growing sequences. Returns false if the first of them must wait.
    fn settle_growth(&mut self, effects: &mut Vec<Effect>) -> bool {
        while let Some(&GrowPages { sequence, least, most }) = self.growing.front() {
            let pages = most.min(self.unclaimed_here());
            if pages < least {
                if !mem::replace(&mut self.sent_short, true) {
                    effects.push(to::decoder(PagesShort { releases: self.releases }));
                }
                return false;
            }
            self.growing.pop_front();
            let pages: Vec<PageId> = self.take(pages).into_iter().map(PageId).collect();
            self.hold(sequence, &pages);
            self.holdings.entry(sequence).or_default().grows -= 1;
            effects.push(to::decoder(PagesGrown { sequence, pages }));
        }
        true
    }

    /// True if a reservation can be served now. If its pages will land in a session that has no credit, it also needs one page
    /// for that credit. If the session has ended, no pages land and no credit is needed.
    fn fits(&self, reserve: &ReservePages) -> bool {
        let (cost, unclaimed) = (self.cost(reserve), self.unclaimed_here());
        let credit = match reserve.landing.and_then(|session| self.rings.get(session)) {
            Some(ring) if ring.outstanding() == 0 => 1,
            _ => 0,
        };
        cost + credit <= unclaimed && credit <= self.rings.room()
    }

    /// The cached pages that a reservation shares.
    fn cached(&self, reserve: &ReservePages) -> Vec<PageId> {
        match reserve.reads_cache {
            true => self.cache.lookup(reserve.salt, &reserve.tokens),
            false => Vec::new(),
        }
    }

    /// Number of unclaimed pages that a reservation takes: its own pages, landing pages, and shared pages that no sequence holds
    /// yet. With a quota, an own reservation also pays for shared pages that only prompts of peers hold: the quota gets other pages for them.
    fn cost(&self, reserve: &ReservePages) -> u32 {
        let pays_for_peers =
            matches!(reserve.sequence, SequenceId::Own(_)) && self.config.prefill_pages.is_some();
        let is_paid =
            |page: PageId| if pays_for_peers { self.holders.is_own(page) } else { self.holders.holds(page) };
        let paid = self.cached(reserve).into_iter().filter(|page| is_paid(*page)).count() as u32;
        self.wanted(reserve) - paid
    }

    /// Number of pages that a reservation gets. A request for more pages than one request may use is cut to that limit. It waits for quarantined
    /// pages only if it needs them.
    fn wanted(&self, reserve: &ReservePages) -> u32 {
        match (reserve.sequence, self.config.prefill_pages) {
            (SequenceId::Peer(_), Some(_)) => reserve.pages,
            _ => {
                let fresh = self.rings.quarantined() - self.rings.lasting();
                reserve.pages.min(self.usable().saturating_sub(fresh).max(self.needed(reserve)))
            }
        }
    }

    /// Gives a peer's reservation its pages from the quota, or denies it.
    pub(super) fn serve_peer(&mut self, reserve: ReservePages) -> Effect {
        let (sequence, needed, usable) = (reserve.sequence, self.cost(&reserve), self.quota());
        if needed > usable {
            return denied(PagesDenied { sequence, needed, usable });
        }
        reserved(self.serve(reserve))
    }

    fn serve(&mut self, reserve: ReservePages) -> PagesReserved {
        let pages = self.wanted(&reserve);
        let mut table = self.cached(&reserve);
        let ReservePages { sequence, tokens, landing, .. } = reserve;
        let (tokens, shared) = (tokens.len() as u32, table.len() as u32);
        let resident = shared * self.config.page_tokens;
        // If at most one page is missing, computing it here takes about as long as sending it.
        let little = shared > 0 && tokens - resident <= self.config.page_tokens;
        let from = landing.filter(|session| !little && self.rings.get(*session).is_some());
        let landing = from.map_or(0, |_| tokens.div_ceil(self.config.page_tokens) - shared);
        self.counts.resident += u64::from(shared);
        // Hold the shared pages first, so that they are not evicted to make room for the others.
        self.hold(sequence, &table);
        let own: Vec<PageId> = self.take(pages - shared - landing).into_iter().map(PageId).collect();
        self.hold(sequence, &own);
        let holding = self.holdings.entry(sequence).or_default();
        (holding.landing, holding.from) = (landing, from);
        self.landing += landing;
        if let Some(session) = from {
            self.rings.expect(session, landing);
        }
        table.extend(own);
        PagesReserved { sequence, resident, landing, pages: table }
    }
}

/// Sends the reservation to its owner.
fn reserved(reserved: PagesReserved) -> Effect {
    match reserved.sequence {
        SequenceId::Own(_) => to::decoder(reserved),
        SequenceId::Peer(_) => to::prefiller(reserved),
    }
}
