//! Requests whose sender is gone, lost or fails: they are computed here or, if that is not allowed, placed again.

use connector::frame::PrefillFault;
use engine::PageId;

use super::DecoderState;
use super::entry::{Entry, Phase, ProxyCount};
use crate::effect::{Effect, to};
use crate::log::LogLine;
use crate::messages::{
    ComputeHere, PlacedAgain, Placement, PrefillFailed, PrefillOutcome, PrefillOver, ReservePriority,
    SequenceId, SessionId,
};
use crate::request::{Refused, RequestId, StreamEvent};

/// A request ends after this many failed prefills, so that a prompt that ends the processes that compute it does not end all of them.
const FAILED_PREFILLS_MAX: u32 = 3;

/// A request that waits for room asks again after at most this many ticks (2 s), a small part of a deadline. Each time it sends its whole prompt.
const WAIT_TICKS_MAX: u32 = 8;

/// At most this many requests that wait for room ask again at one tick, 32 in a second. A sender that has room prefills fewer long prompts.
const ASK_AGAIN_MAX: usize = 8;

impl DecoderState {
    /// A sender does not prefill this request. A request that waits for room asks the same senders again and again, so it logs no more lines.
    pub(super) fn on_prefill_failed(&mut self, failed: PrefillFailed) -> Vec<Effect> {
        let PrefillFailed { session, request, fault, reason } = failed;
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        if !matches!(entry.phase, Phase::Landing { session: on, .. } if on == session) {
            return Vec::new();
        }
        let is_news = !(entry.waited > 0 && fault == PrefillFault::Busy);
        let line = is_news.then(|| to::log(LogLine::PrefillFailed { request, session, reason }));
        let outcome = match fault {
            PrefillFault::Refused => PrefillOutcome::Withdrawn,
            PrefillFault::Busy => {
                entry.busy.push(session);
                PrefillOutcome::Withdrawn
            }
            PrefillFault::Failed => PrefillOutcome::Failed,
        };
        line.into_iter().chain(self.recover(request, outcome)).collect()
    }

    /// Asks again for a sender for the requests that have waited for room long enough. Those that are due longest ask first, the oldest of equal
    /// ones, so each of many gets its turn.
    pub(super) fn place_waiting(&mut self) -> Vec<Effect> {
        let due = self.requests.values_mut().filter_map(|entry| {
            let Phase::Waiting { ticks } = &mut entry.phase else { return None };
            *ticks -= 1;
            (*ticks <= 0).then_some((*ticks, entry))
        });
        let mut due: Vec<(i64, &mut Entry)> = due.collect();
        due.sort_by_key(|(ticks, entry)| (*ticks, entry.admitted));
        due.truncate(ASK_AGAIN_MAX);
        due.into_iter()
            .flat_map(|(_, entry)| {
                let busy = std::mem::take(&mut entry.busy);
                entry.tried.retain(|session| !busy.contains(session));
                entry.place_again(PrefillOutcome::Withdrawn)
            })
            .collect()
    }

    /// The proxy has chosen another sender, or has found none. The request may have ended meanwhile.
    pub(super) fn on_placed_again(&mut self, placed: PlacedAgain) -> Vec<Effect> {
        let PlacedAgain { request, placement } = placed;
        let waits = |entry: &&mut Entry| matches!(entry.phase, Phase::Placing);
        match (self.requests.get_mut(&request).filter(waits), placement) {
            (Some(entry), Some(placement)) => {
                // A request that waits for room at senders asks often, so it does not go before the requests that wait for pages here.
                let priority = if entry.waited > 0 { ReservePriority::New } else { ReservePriority::Resumed };
                self.begin(request, placement, priority)
            }
            (Some(entry), None) if !entry.busy.is_empty() => {
                let ticks = WAIT_TICKS_MAX.min(1 << entry.waited.min(31));
                entry.phase = Phase::Waiting { ticks: ticks.into() };
                entry.waited += 1;
                Vec::new()
            }
            (Some(_), None) => self.cut(request, |_| StreamEvent::Failed(Refused::NoPrefiller.into())),
            (None, Some(placement)) => {
                let outcome = PrefillOutcome::Withdrawn;
                vec![to::proxy(PrefillOver { placement, outcome })]
            }
            (None, None) => Vec::new(),
        }
    }

    /// Reserves pages for a request where the proxy has placed it, or elsewhere if the sender is gone.
    pub(super) fn begin(
        &mut self,
        request: RequestId,
        placement: Placement,
        priority: ReservePriority,
    ) -> Vec<Effect> {
        let on = placement.on.filter(|session| self.peers.contains_key(session));
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        entry.waits = ProxyCount::Counted(placement);
        if on == placement.on {
            entry.phase = Phase::Reserving { on };
            return self.reservation(request, on, priority).into_iter().collect();
        }
        if !entry.may_fall_back {
            entry.tried.extend(placement.on);
            return entry.place_again(PrefillOutcome::Withdrawn);
        }
        entry.phase = Phase::Reserving { on };
        let elsewhere = entry.prefill_over(PrefillOutcome::Withdrawn);
        self.reservation(request, on, priority).into_iter().chain(elsewhere).collect()
    }

    /// The request's sender was lost, failed or sent something wrong: nothing that it sent for this request is used. The prompt is computed
    /// here or, if that is not allowed, by another sender. `outcome` is how the wait for the prefill ended.
    pub(super) fn recover(&mut self, request: RequestId, outcome: PrefillOutcome) -> Vec<Effect> {
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        let Phase::Landing { session, resident, table, own } = &entry.phase else { return Vec::new() };
        if !entry.may_fall_back {
            let session = *session;
            return self.release_and_place(request, session, outcome);
        }
        self.counts.recomputes += 1;
        let pages = table.iter().flatten().chain(own).copied().collect();
        entry.phase = Phase::Replacing { resident: *resident, pages };
        entry.discard();
        let here = to::buffer_manager(ComputeHere { sequence: SequenceId::Own(request) });
        [here].into_iter().chain(entry.prefill_over(outcome)).collect()
    }

    /// Releases all pages of the request and asks the proxy for another sender than this one.
    fn release_and_place(
        &mut self,
        request: RequestId,
        session: SessionId,
        outcome: PrefillOutcome,
    ) -> Vec<Effect> {
        let release = self.release(request);
        let Some(entry) = self.requests.get_mut(&request) else { return vec![release] };
        entry.tried.push(session);
        entry.discard();
        entry.failed_prefills += u32::from(outcome == PrefillOutcome::Failed);
        if entry.failed_prefills >= FAILED_PREFILLS_MAX {
            entry.phase = Phase::Placing;
            let over = entry.prefill_over(outcome);
            let end = self.cut(request, |_| StreamEvent::Failed(Refused::NoPrefiller.into()));
            return [release].into_iter().chain(over).chain(end).collect();
        }
        [vec![release], entry.place_again(outcome)].concat()
    }

    /// No page of a reservation is to land, because at most one is missing here or because the session is over. A request that may be
    /// prefilled here runs here. Another one is sent as a whole, or placed again.
    pub(super) fn lands_nothing(
        &mut self,
        request: RequestId,
        on: SessionId,
        resident: u32,
        pages: Vec<PageId>,
    ) -> Vec<Effect> {
        let is_lost = !self.peers.contains_key(&on);
        let outcome = if is_lost { PrefillOutcome::Failed } else { PrefillOutcome::Withdrawn };
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        if entry.may_fall_back {
            self.counts.recomputes += u64::from(is_lost);
            let elsewhere = entry.prefill_over(outcome);
            return [entry.start(resident, pages)].into_iter().chain(elsewhere).collect();
        }
        if is_lost || resident == 0 {
            return self.release_and_place(request, on, outcome);
        }
        entry.reads_no_cache = true;
        entry.phase = Phase::Reserving { on: Some(on) };
        let release = self.release(request);
        [release].into_iter().chain(self.reservation(request, Some(on), ReservePriority::Resumed)).collect()
    }
}
