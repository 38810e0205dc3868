//! The rings of all sessions: who may hold how many credits, and which pages of lost sessions are quarantined.
//!
//! A session **wants** a credit for each page that is to land in it, or what its start-up measurement needs, and nothing when it is
//! idle. What all sessions hold never exceeds the ring. If they want more, the allotments are max-min fair: a session that wants
//! less than an equal part gets what it wants, and the others share the rest. A session that holds more than its allotment is
//! told to give unspent credits back only when another one lacks them, or after it has been idle for [`IDLE`].
//!
//! **Invariant**: a session with landing pages or a running measurement has a credit.
//!
//! Quarantined pages are not part of the ring: a lost session takes nothing from the others.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use connector::ring::{CreditNumber, GrantLedger, PageIndex, RingError};

use crate::messages::SessionId;

/// How long an idle session keeps its credits.
const IDLE: Duration = Duration::from_secs(5);
/// A session that holds more credits than it was told to has to return at least one in this time. Much longer than a put takes.
pub(super) const RETURN_LIMIT: Duration = Duration::from_secs(30);
/// Most sessions that are measured at once: they compete for the lane that they measure.
const MEASUREMENTS: usize = 4;

#[derive(Debug, PartialEq, Eq)]
enum Measurement {
    /// It waits for its turn and for its first credit.
    Waiting,
    Running,
    Over,
}

#[derive(Debug)]
pub(super) struct Ring {
    ledger: GrantLedger,
    seed: u64,
    measurement: Measurement,
    /// Its measurement begins with the first credit that can be had.
    is_next: bool,
    /// Pages that are to land in it.
    landing: u32,
    /// Since when it wants nothing.
    idle_since: Option<Instant>,
    /// The share that its peer was told while it held more.
    told: Option<Told>,
    /// Its peer is about to end: it keeps no credits for later.
    is_leaving: bool,
}

/// A share that a session's peer was told while it held more.
#[derive(Debug)]
struct Told {
    share: u32,
    /// When it was told, or last returned a credit.
    since: Instant,
    /// What it held then.
    outstanding: u32,
    /// It took too long, and the session's end was asked for.
    is_broken: bool,
}

/// Every session's ring.
#[derive(Debug)]
pub(super) struct Rings {
    /// Most credits outstanding in all sessions.
    budget: u32,
    /// What a measurement wants.
    measured_pages: u32,
    sessions: BTreeMap<SessionId, Ring>,
    outstanding: u32,
    quarantine: BTreeMap<SessionId, Vec<PageIndex>>,
    quarantined: u32,
}

/// What a session is to get, or to give back.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// So many more credits.
    Grant(SessionId, u32),
    /// It is told to hold at most so many.
    Share(SessionId, u32),
    /// It was told to hold at most so many, and returned none for [`RETURN_LIMIT`].
    Break(SessionId, u32),
}

/// The session of the reservation that is served next, whose pages land in it. Without a credit it waits for its first one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Next {
    pub(super) session: SessionId,
    /// The reservation is served at once: the credit is kept for it, and granted then.
    pub(super) is_served: bool,
}

impl Ring {
    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    pub(super) fn outstanding(&self) -> u32 {
        self.ledger.outstanding()
    }

    fn is_busy(&self) -> bool {
        self.landing > 0 || self.measurement == Measurement::Running
    }

    /// Tells the session's peer its share if it holds more and `must` return some; asks for the session's end if it returns none.
    fn call_back(&mut self, session: SessionId, share: u32, must: bool, now: Instant) -> Option<Change> {
        let outstanding = self.outstanding();
        if let Some(told) = self.told.as_mut() {
            if outstanding <= told.share || outstanding < told.outstanding {
                (told.since, told.outstanding) = (now, outstanding);
            } else if now.saturating_duration_since(told.since) >= RETURN_LIMIT && !told.is_broken {
                told.is_broken = true;
                return Some(Change::Break(session, told.share));
            }
        }
        let is_told = self.told.as_ref().is_some_and(|told| told.share == share);
        if outstanding <= share || !must || is_told {
            return None;
        }
        let (since, is_broken) = self.told.as_ref().map_or((now, false), |told| (told.since, told.is_broken));
        self.told = Some(Told { share, since, outstanding, is_broken });
        Some(Change::Share(session, share))
    }

    /// Nothing is to land, and its measurement has not begun: it begins with the first credit, not the other way round.
    fn only_waits(&self) -> bool {
        self.landing == 0 && self.measurement == Measurement::Waiting
    }
}

impl Rings {
    pub(super) fn new(budget: u32, measured_pages: u32) -> Self {
        Self {
            budget,
            measured_pages: measured_pages.max(1),
            sessions: BTreeMap::new(),
            outstanding: 0,
            quarantine: BTreeMap::new(),
            quarantined: 0,
        }
    }

    pub(super) fn outstanding(&self) -> u32 {
        self.outstanding
    }

    pub(super) fn quarantined(&self) -> u32 {
        self.quarantined
    }

    pub(super) fn get(&self, session: SessionId) -> Option<&Ring> {
        self.sessions.get(&session)
    }

    /// Which session's peer may write the page, and whether that session is over.
    pub(super) fn writer(&self, page: PageIndex) -> Option<(SessionId, bool)> {
        let granted = self.sessions.iter().find(|(_, ring)| ring.ledger.covers(page));
        let set_aside = || self.quarantine.iter().find(|(_, pages)| pages.contains(&page));
        granted
            .map(|(session, _)| (*session, false))
            .or_else(|| set_aside().map(|(session, _)| (*session, true)))
    }

    /// A session whose peer may hold up to `capacity` credits begins; it is measured first.
    pub(super) fn open(&mut self, session: SessionId, capacity: NonZeroU32, seed: u64) {
        let (ledger, measurement) = (GrantLedger::new(capacity), Measurement::Waiting);
        let ring = Ring {
            ledger,
            seed,
            measurement,
            is_next: false,
            landing: 0,
            idle_since: None,
            told: None,
            is_leaving: false,
        };
        self.sessions.insert(session, ring);
    }

    /// The session's peer is about to end.
    pub(super) fn leave(&mut self, session: SessionId) {
        if let Some(ring) = self.sessions.get_mut(&session) {
            ring.is_leaving = true;
        }
    }

    /// Pages of this lost session may still be written.
    pub(super) fn is_quarantined(&self, session: SessionId) -> bool {
        self.quarantine.contains_key(&session)
    }

    /// The session's measurement is over.
    pub(super) fn measured(&mut self, session: SessionId) {
        if let Some(ring) = self.sessions.get_mut(&session) {
            (ring.measurement, ring.is_next) = (Measurement::Over, false);
        }
    }

    /// So many more pages are to land.
    pub(super) fn expect(&mut self, session: SessionId, pages: u32) {
        if let Some(ring) = self.sessions.get_mut(&session) {
            ring.landing += pages;
        }
    }

    /// So many pages have landed, or are not to land any more.
    pub(super) fn expect_less(&mut self, session: SessionId, pages: u32) {
        if let Some(ring) = self.sessions.get_mut(&session) {
            ring.landing = ring.landing.saturating_sub(pages);
        }
    }

    /// The session's peer calls pages filled.
    pub(super) fn fill(
        &mut self,
        session: SessionId,
        first: CreditNumber,
        count: u32,
    ) -> Option<Result<Vec<PageIndex>, RingError>> {
        let filled = self.sessions.get_mut(&session)?.ledger.fill(first, count);
        self.outstanding -= filled.as_ref().map_or(0, |pages| pages.len() as u32);
        Some(filled)
    }

    /// The session is over. Its outstanding pages, and these `damaged` ones, may still be written.
    pub(super) fn lose(&mut self, session: SessionId, damaged: Vec<PageIndex>) {
        let Some(ring) = self.sessions.remove(&session) else { return };
        self.outstanding -= ring.ledger.outstanding();
        let pages = [damaged, ring.ledger.close()].concat();
        self.quarantined += pages.len() as u32;
        if !pages.is_empty() {
            self.quarantine.insert(session, pages);
        }
    }

    /// Proof: nothing of this lost session can land any more. Its pages.
    pub(super) fn drain(&mut self, session: SessionId) -> Vec<PageIndex> {
        let pages = self.quarantine.remove(&session).unwrap_or_default();
        self.quarantined -= pages.len() as u32;
        pages
    }

    /// Grants a credit for each page; the number of the first.
    pub(super) fn grant(&mut self, session: SessionId, pages: &[PageIndex]) -> CreditNumber {
        let Some(ring) = self.sessions.get_mut(&session) else { return CreditNumber(0) };
        let first = CreditNumber(ring.ledger.head());
        for &page in pages {
            ring.ledger.grant(page).expect("a change never grants more than the ring's room");
        }
        self.outstanding += pages.len() as u32;
        first
    }

    /// How many more credits may be outstanding.
    pub(super) fn room(&self) -> u32 {
        self.budget - self.outstanding
    }

    fn may_get_first(&self, session: SessionId, next: Option<Next>) -> bool {
        let is_next = next.is_some_and(|next| next.session == session);
        let may = |ring: &Ring| ring.outstanding() == 0 && (is_next || !ring.only_waits());
        self.sessions.get(&session).is_some_and(may)
    }

    /// What is to change now: grants as far as `room` pages go, and shares.
    ///
    /// Sessions without a credit that need one come first, so that each page that comes back serves the one that waits longest.
    pub(super) fn changes(&mut self, now: Instant, room: u32, next: Option<Next>) -> Vec<Change> {
        let mut room = room.min(self.room());
        let mut changes = Vec::new();
        self.begin_measurements(room, next);
        let mut order = self.allotments(next);
        // Whose pages may be landing first, then those that hold least.
        order.sort_by_key(|(session, _)| {
            let ring = &self.sessions[session];
            (ring.outstanding() > 0, !ring.is_busy(), ring.outstanding())
        });
        // One credit for each that has none, before any session gets its second.
        let firsts =
            order.iter().filter(|(session, share)| *share > 0 && self.may_get_first(*session, next)).count()
                as u32;
        let mut others = room.saturating_sub(firsts);
        let mut lacks = false;
        for (session, share) in &order {
            let Some(ring) = self.sessions.get_mut(session) else { continue };
            let outstanding = ring.outstanding();
            if ring.only_waits() && next.is_none_or(|next| next.session != *session) {
                lacks |= *share > outstanding;
                continue;
            }
            let more = share.saturating_sub(outstanding).min(ring.ledger.room());
            let first = u32::from(outstanding == 0 && more > 0).min(room);
            let rest = (more - first.min(more)).min(others);
            let granted = first + rest;
            lacks |= granted < more;
            (room, others) = (room - granted, others - rest);
            let is_kept = outstanding == 0
                && !ring.is_busy()
                && next.is_some_and(|next| next.is_served && next.session == *session);
            if granted > 0 && !is_kept {
                ring.told = None;
                changes.push(Change::Grant(*session, granted));
            }
        }
        for (session, share) in order {
            let Some(ring) = self.sessions.get_mut(&session) else { continue };
            ring.idle_since = if ring.is_busy() { None } else { ring.idle_since.or(Some(now)) };
            let keeps = if ring.is_leaving { Duration::ZERO } else { IDLE };
            let is_idle = ring.idle_since.is_some_and(|since| now.saturating_duration_since(since) >= keeps);
            changes.extend(ring.call_back(session, share, lacks || is_idle, now));
        }
        changes
    }

    /// The invariant, and the bound.
    pub(super) fn holds(&self) -> bool {
        let served = self.sessions.values().all(|ring| !ring.is_busy() || ring.outstanding() > 0);
        served && self.outstanding <= self.budget
    }

    /// Measurements begin in the order of sessions, each with its first credit.
    fn begin_measurements(&mut self, room: u32, next: Option<Next>) {
        let running = |ring: &&Ring| ring.measurement == Measurement::Running;
        let waits = |session: &SessionId, ring: &Ring| {
            ring.outstanding() == 0 && (ring.is_busy() || next.is_some_and(|next| next.session == *session))
        };
        let claimed = self.sessions.iter().filter(|(session, ring)| waits(session, ring)).count() as u32;
        let mut room = room.saturating_sub(claimed);
        let turns = MEASUREMENTS.saturating_sub(self.sessions.values().filter(running).count());
        let waiting = self.sessions.values_mut().filter(|ring| ring.measurement == Measurement::Waiting);
        for ring in waiting.take(turns) {
            ring.is_next = true;
            if room > 0 {
                (ring.measurement, ring.is_next) = (Measurement::Running, false);
                room -= 1;
            }
        }
    }

    /// Each session's allotment. A busy session has a credit, so it is allotted one before the rest is divided.
    fn allotments(&self, next: Option<Next>) -> Vec<(SessionId, u32)> {
        let busy = self.sessions.values().filter(|ring| ring.is_busy()).count() as u32;
        let least = |ring: &Ring| u32::from(ring.is_busy());
        let wants: Vec<u32> =
            self.sessions.iter().map(|(name, ring)| self.want(*name, ring, next) - least(ring)).collect();
        let shares = allot(self.budget.saturating_sub(busy), &wants);
        self.sessions.iter().zip(shares).map(|((name, ring), share)| (*name, share + least(ring))).collect()
    }

    fn want(&self, session: SessionId, ring: &Ring, next: Option<Next>) -> u32 {
        let measurement = if ring.measurement == Measurement::Running { self.measured_pages } else { 0 };
        let first = u32::from(ring.is_next || next.is_some_and(|next| next.session == session));
        (ring.landing + measurement).max(first)
    }
}

/// Divides `budget` max-min fairly: no session gets more than it wants, and those that want more share the rest equally. The first
/// ones get what cannot be divided.
fn allot(budget: u32, wants: &[u32]) -> Vec<u32> {
    let mut order: Vec<usize> = (0..wants.len()).collect();
    order.sort_by_key(|index| wants[*index]);
    let (mut left, mut shares) = (budget, vec![0; wants.len()]);
    for (place, index) in order.iter().enumerate() {
        let sharers = (order.len() - place) as u32;
        let share = wants[*index].min(left.div_ceil(sharers));
        shares[*index] = share;
        left -= share;
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn allotments_are_max_min_fair() {
        let check = |budget, wants: &[u32], expect: &[u32]| assert_eq!(allot(budget, wants), expect);
        check(8, &[3, 2], &[3, 2]);
        check(8, &[20, 2], &[6, 2]);
        check(8, &[20, 20], &[4, 4]);
        check(9, &[20, 0, 20], &[5, 0, 4]);
        check(2, &[5, 5, 5], &[1, 1, 0]);
        check(0, &[5], &[0]);
    }

    proptest! {
        #[test]
        fn an_allotment_wastes_nothing_and_favours_no_one(budget in 0..50u32, wants in vec(0..30u32, 0..8)) {
            let shares = allot(budget, &wants);
            prop_assert_eq!(shares.iter().sum::<u32>(), budget.min(wants.iter().sum()));
            for (share, want) in shares.iter().zip(&wants) {
                prop_assert!(share <= want);
                // One that gets less than it wants gets no less, up to one page, than any other.
                prop_assert!(share == want || shares.iter().all(|other| *other <= share + 1));
            }
        }
    }
}
