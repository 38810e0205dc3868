//! The rings of all sessions. A credit is the permission to write one page once. This module decides how many credits each session may
//! hold, and keeps the pages that the peer of a lost session could still write: they are quarantined.
//!
//! A session **wants** one credit for each page that its peer will send, plus the credits of its start-up measurement while that runs. An
//! idle session wants none. All sessions together never hold more credits than the ring has pages. If they want more, the allotments are
//! max-min fair: a session that wants less than an equal share gets what it wants, and the others divide the rest equally. A session that
//! holds more than its allotment is told to return unspent credits in three cases only: another session lacks credits; the session has been
//! idle for [`IDLE`]; the session is idle and its peer is leaving.
//!
//! **Invariant**: a session with landing pages or a running measurement has a credit.
//!
//! Quarantined pages are not part of the ring, so a lost session does not reduce the credits of the others.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use connector::ring::{CreditNumber, GrantLedger, PageIndex, RingError};

use crate::messages::SessionId;

/// Time for which an idle session keeps its credits.
const IDLE: Duration = Duration::from_secs(5);
/// If a session holds more credits than its announced share, it must return at least one in this time. It is much longer than a put takes.
pub(super) const RETURN_LIMIT: Duration = Duration::from_secs(30);
/// A quarantine usually ends within milliseconds, when the session's transport has closed. One that has not ended after this time may last
/// until the peer's process is known to have ended.
const LASTING: Duration = Duration::from_secs(2);
/// Upper bound of the sessions measured at once. Measurements that run together compete for the same lane.
const MEASUREMENTS: usize = 4;

#[derive(Debug, PartialEq, Eq)]
enum Measurement {
    /// The session waits until other sessions have been measured, and for its first credit.
    Waiting,
    Running,
    Over,
}

#[derive(Debug)]
pub(super) struct Ring {
    ledger: GrantLedger,
    seed: u64,
    measurement: Measurement,
    /// The measurement begins as soon as a credit is available.
    is_next: bool,
    /// Number of pages that will land in the session.
    landing: u32,
    /// The time since which the session has wanted no credits.
    idle_since: Option<Instant>,
    /// The last share that was sent to the peer when the peer held more credits than that share, or was leaving.
    called_back: Option<CalledBack>,
    /// The peer is shutting down, so it keeps no credits while idle.
    is_leaving: bool,
}

/// A `RingShare` sent to a peer that held more credits than its share, or that was leaving.
#[derive(Debug)]
struct CalledBack {
    share: u32,
    /// The time at which the share was sent, or at which the peer last returned a credit.
    since: Instant,
    /// Credits outstanding at that time.
    outstanding: u32,
    /// The peer exceeded [`RETURN_LIMIT`], and the end of the session was requested.
    is_broken: bool,
}

/// The pages of a lost session that its peer could still write.
#[derive(Debug)]
struct Quarantine {
    pages: Vec<PageIndex>,
    /// The time of the loss.
    began: Instant,
    /// The first tick after the loss. If this process stalls, the time until that tick does not count towards [`LASTING`].
    since: Option<Instant>,
    /// It is older than [`LASTING`].
    is_lasting: bool,
}

/// The rings of all sessions.
#[derive(Debug)]
pub(super) struct Rings {
    /// Upper bound of the credits outstanding in all sessions.
    budget: u32,
    /// Number of credits that a measurement wants.
    measured_pages: u32,
    sessions: BTreeMap<SessionId, Ring>,
    outstanding: u32,
    quarantine: BTreeMap<SessionId, Quarantine>,
    quarantined: u32,
    /// Pages of lasting quarantines.
    lasting: u32,
}

/// A change of a session's credits.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Grant this number of credits to the session.
    Grant(SessionId, u32),
    /// Tell the session's peer to hold at most this number of credits.
    Share(SessionId, u32),
    /// End the session: its peer was told to hold at most this number of credits and returned none for [`RETURN_LIMIT`].
    Break(SessionId, u32),
}

/// The session in which the pages of the first waiting reservation will land. If the session has no credit, it waits for its
/// first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Next {
    pub(super) session: SessionId,
    /// The reservation fits now. One page is kept for the session's first credit, which is granted after the reservation.
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

    /// If `must` is true, tells the peer its share when the peer holds more credits than that share, or when the peer is leaving and its
    /// share is 0. Requests the end of the session if the peer has returned no credit for [`RETURN_LIMIT`].
    fn call_back(&mut self, session: SessionId, share: u32, must: bool, now: Instant) -> Option<Change> {
        let outstanding = self.outstanding();
        if let Some(last) = self.called_back.as_mut() {
            if outstanding <= last.share || outstanding < last.outstanding {
                (last.since, last.outstanding) = (now, outstanding);
            } else if now.saturating_duration_since(last.since) >= RETURN_LIMIT && !last.is_broken {
                last.is_broken = true;
                return Some(Change::Break(session, last.share));
            }
        }
        let is_sent = self.called_back.as_ref().is_some_and(|last| last.share == share);
        // A leaving peer waits for a share of 0 before it ends, even if it holds no credit.
        let is_released = self.is_leaving && share == 0;
        if (outstanding <= share && !is_released) || !must || is_sent {
            return None;
        }
        let (since, is_broken) =
            self.called_back.as_ref().map_or((now, false), |last| (last.since, last.is_broken));
        self.called_back = Some(CalledBack { share, since, outstanding, is_broken });
        Some(Change::Share(session, share))
    }

    /// True if no page will land in the session and its measurement has not begun. Such a session gets its first credit only from
    /// `begin_measurements`.
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
            lasting: 0,
        }
    }

    pub(super) fn outstanding(&self) -> u32 {
        self.outstanding
    }

    pub(super) fn quarantined(&self) -> u32 {
        self.quarantined
    }

    /// Number of pages in quarantines older than [`LASTING`].
    pub(super) fn lasting(&self) -> u32 {
        self.lasting
    }

    /// Time has passed.
    pub(super) fn on_tick(&mut self, now: Instant) {
        for quarantine in self.quarantine.values_mut().filter(|quarantine| !quarantine.is_lasting) {
            let since = *quarantine.since.get_or_insert(now);
            if now.saturating_duration_since(since) >= LASTING {
                quarantine.is_lasting = true;
                self.lasting += quarantine.pages.len() as u32;
            }
        }
    }

    pub(super) fn get(&self, session: SessionId) -> Option<&Ring> {
        self.sessions.get(&session)
    }

    /// The session whose peer may write `page`, and whether that session has ended.
    pub(super) fn writer(&self, page: PageIndex) -> Option<(SessionId, bool)> {
        let granted = self.sessions.iter().find(|(_, ring)| ring.ledger.covers(page));
        let quarantined = || self.quarantine.iter().find(|(_, quarantine)| quarantine.pages.contains(&page));
        granted
            .map(|(session, _)| (*session, false))
            .or_else(|| quarantined().map(|(session, _)| (*session, true)))
    }

    /// Adds a session whose peer may hold up to `capacity` credits. Its measurement comes first.
    pub(super) fn open(&mut self, session: SessionId, capacity: NonZeroU32, seed: u64) {
        let (ledger, measurement) = (GrantLedger::new(capacity), Measurement::Waiting);
        let ring = Ring {
            ledger,
            seed,
            measurement,
            is_next: false,
            landing: 0,
            idle_since: None,
            called_back: None,
            is_leaving: false,
        };
        self.sessions.insert(session, ring);
    }

    /// The session's peer is shutting down.
    pub(super) fn leave(&mut self, session: SessionId) {
        if let Some(ring) = self.sessions.get_mut(&session) {
            ring.is_leaving = true;
        }
    }

    /// True if this session is lost and its peer may still write pages of ours.
    pub(super) fn is_quarantined(&self, session: SessionId) -> bool {
        self.quarantine.contains_key(&session)
    }

    /// The session's measurement has ended.
    pub(super) fn measured(&mut self, session: SessionId) {
        if let Some(ring) = self.sessions.get_mut(&session) {
            (ring.measurement, ring.is_next) = (Measurement::Over, false);
        }
    }

    /// `pages` more pages will land in the session.
    pub(super) fn expect(&mut self, session: SessionId, pages: u32) {
        if let Some(ring) = self.sessions.get_mut(&session) {
            ring.landing += pages;
        }
    }

    /// `pages` pages have landed in the session, or will no longer land.
    pub(super) fn expect_less(&mut self, session: SessionId, pages: u32) {
        if let Some(ring) = self.sessions.get_mut(&session) {
            ring.landing = ring.landing.saturating_sub(pages);
        }
    }

    /// Spends the credits of pages that the session's peer announced as filled, and returns the pages. `None` if there is no such
    /// session.
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

    /// Removes an ended session. Its outstanding pages and the `damaged` ones may still be written, so they are quarantined. Returns their
    /// number.
    pub(super) fn lose(&mut self, now: Instant, session: SessionId, damaged: Vec<PageIndex>) -> u32 {
        let Some(ring) = self.sessions.remove(&session) else { return 0 };
        self.outstanding -= ring.ledger.outstanding();
        let pages = [damaged, ring.ledger.close()].concat();
        let count = pages.len() as u32;
        self.quarantined += count;
        if count > 0 {
            self.quarantine.insert(session, Quarantine { pages, began: now, since: None, is_lasting: false });
        }
        count
    }

    /// Ends the quarantine of a lost session, after proof that its peer can no longer write. Returns its pages and when it began; `None` if the
    /// session had no such pages.
    pub(super) fn drain(&mut self, session: SessionId) -> Option<(Vec<PageIndex>, Instant)> {
        let Quarantine { pages, began, is_lasting, .. } = self.quarantine.remove(&session)?;
        self.quarantined -= pages.len() as u32;
        if is_lasting {
            self.lasting -= pages.len() as u32;
        }
        Some((pages, began))
    }

    /// Grants one credit per page and returns the number of the first.
    pub(super) fn grant(&mut self, session: SessionId, pages: &[PageIndex]) -> CreditNumber {
        let Some(ring) = self.sessions.get_mut(&session) else { return CreditNumber(0) };
        let first = CreditNumber(ring.ledger.head());
        for &page in pages {
            ring.ledger.grant(page).expect("a change never grants more than the ring's room");
        }
        self.outstanding += pages.len() as u32;
        first
    }

    /// Number of credits that can be granted before the budget is reached.
    pub(super) fn room(&self) -> u32 {
        self.budget - self.outstanding
    }

    fn may_get_first(&self, session: SessionId, next: Option<Next>) -> bool {
        let is_next = next.is_some_and(|next| next.session == session);
        let may = |ring: &Ring| ring.outstanding() == 0 && (is_next || !ring.only_waits());
        self.sessions.get(&session).is_some_and(may)
    }

    /// The changes that are due now: grants of at most `room` credits, and shares.
    ///
    /// Sessions that need a credit and have none come first: a returned page goes to one of them before any other session gets more.
    pub(super) fn changes(&mut self, now: Instant, room: u32, next: Option<Next>) -> Vec<Change> {
        let mut room = room.min(self.room());
        let mut changes = Vec::new();
        self.begin_measurements(room, next);
        let mut order = self.allotments(next);
        // Sessions without a credit first, then busy sessions, then those with the fewest credits.
        order.sort_by_key(|(session, _)| {
            let ring = &self.sessions[session];
            (ring.outstanding() > 0, !ring.is_busy(), ring.outstanding())
        });
        // Each session without a credit gets one before any session gets its second.
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
                ring.called_back = None;
                changes.push(Change::Grant(*session, granted));
            }
        }
        for (session, share) in order {
            let Some(ring) = self.sessions.get_mut(&session) else { continue };
            ring.idle_since = if ring.is_busy() { None } else { ring.idle_since.or(Some(now)) };
            let limit = if ring.is_leaving { Duration::ZERO } else { IDLE };
            let is_idle = ring.idle_since.is_some_and(|since| now.saturating_duration_since(since) >= limit);
            changes.extend(ring.call_back(session, share, lacks || is_idle, now));
        }
        changes
    }

    /// True if the invariant holds and the outstanding credits are within the budget.
    pub(super) fn holds(&self) -> bool {
        let served = self.sessions.values().all(|ring| !ring.is_busy() || ring.outstanding() > 0);
        served && self.outstanding <= self.budget
    }

    /// Begins measurements in the order of session ids, each together with the session's first credit.
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

    /// The allotment of each session. A busy session must have a credit, so each busy session is allotted one before the rest is
    /// divided.
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

/// Divides `budget` max-min fairly: no session gets more than it wants, and sessions that want more divide the rest equally. The
/// remainder goes to the first of them.
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
        fn allotments_use_the_budget_and_are_fair(budget in 0..50u32, wants in vec(0..30u32, 0..8)) {
            let shares = allot(budget, &wants);
            prop_assert_eq!(shares.iter().sum::<u32>(), budget.min(wants.iter().sum()));
            for (share, want) in shares.iter().zip(&wants) {
                prop_assert!(share <= want);
                // A session with less than it wants has at most one page less than any other session.
                prop_assert!(share == want || shares.iter().all(|other| *other <= share + 1));
            }
        }
    }
}
