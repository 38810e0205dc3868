//! Which free page goes where: credits, growth and reservations, in this order.

use std::mem;
use std::time::Instant;

use connector::frame::{Frame, GRANT_PAGES_MAX};
use connector::ring::PageIndex;
use engine::PageId;

use super::PoolState;
use super::landing::{broken, frame};
use super::rings::{Change, Next, RETURN_LIMIT};
use crate::effect::{Effect, to};
use crate::messages::{GrowPages, PagesGrown, PagesReserved, PagesShort, ReservePages, SequenceId};

impl PoolState {
    /// Grants credits, then lets sequences grow, then serves reservations, as far as free pages go.
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
            // One that is served now gets its credits behind its pages, so that they are neighbours.
            next.landing.map(|session| Next { session, is_served: self.fits(next) })
        });
        let changes = self.rings.changes(now, self.unclaimed(), next);
        let mut effects = Vec::with_capacity(changes.len());
        for change in changes {
            match change {
                Change::Share(session, pages) => effects.push(frame(session, Frame::RingShare { pages })),
                Change::Break(session, share) => {
                    let seconds = RETURN_LIMIT.as_secs();
                    let reason =
                        format!("peer was told to hold {share} credits and returned none for {seconds} s");
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

    /// Lets sequences grow; false if one could not.
    fn settle_growth(&mut self, effects: &mut Vec<Effect>) -> bool {
        while let Some(&GrowPages { sequence, least, most }) = self.growing.front() {
            let pages = most.min(self.unclaimed());
            if pages < least {
                if !mem::replace(&mut self.told_short, true) {
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

    /// True if a reservation can be served now. One whose pages land needs a credit for its session as well, or a page for one; a
    /// session that is gone lands nothing.
    fn fits(&self, reserve: &ReservePages) -> bool {
        let (cost, unclaimed) = (self.cost(reserve), self.unclaimed());
        let credit = match reserve.landing.and_then(|session| self.rings.get(session)) {
            Some(ring) if ring.outstanding() == 0 => 1,
            _ => 0,
        };
        cost + credit <= unclaimed && credit <= self.rings.room()
    }

    /// Unclaimed pages that a reservation takes: its own, those that land, and those shared ones that nobody holds yet.
    fn cost(&self, reserve: &ReservePages) -> u32 {
        let shared = self.cache.lookup(&reserve.tokens);
        let held = shared.iter().filter(|page| self.holders.contains_key(page)).count() as u32;
        self.wanted(reserve) - held
    }

    /// What a reservation asks for ahead of its tokens is cut to what it may use.
    fn wanted(&self, reserve: &ReservePages) -> u32 {
        reserve.pages.min(self.usable())
    }

    fn serve(&mut self, reserve: ReservePages) -> PagesReserved {
        let pages = self.wanted(&reserve);
        let ReservePages { sequence, tokens, landing, .. } = reserve;
        let mut table = self.cache.lookup(&tokens);
        let (tokens, shared) = (tokens.len() as u32, table.len() as u32);
        let resident = shared * self.config.page_tokens;
        // The last page travels in the time that it takes to compute it.
        let little = shared > 0 && tokens - resident <= self.config.page_tokens;
        let from = landing.filter(|session| !little && self.rings.get(*session).is_some());
        let landing = from.map_or(0, |_| tokens.div_ceil(self.config.page_tokens) - shared);
        self.counts.resident += u64::from(shared);
        // The shared pages first: what is held is not evicted for the rest.
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

/// To the owner of the reservation.
fn reserved(reserved: PagesReserved) -> Effect {
    match reserved.sequence {
        SequenceId::Own(_) => to::decoder(reserved),
        SequenceId::Peer(_) => to::prefiller(reserved),
    }
}
