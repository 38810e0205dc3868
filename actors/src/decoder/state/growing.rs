//! Running requests that need more pages, and the preemption of the youngest request when there are none.

use super::DecoderState;
use super::entry::{Phase, RunState, cancel};
use crate::effect::{Effect, to};
use crate::messages::{
    ExtendSequence, GrowPages, PagesGrown, PagesShort, PrefillOutcome, SequenceId, StopSequence,
};
use crate::request::RequestId;

impl DecoderState {
    /// A running request has more pages, or a request whose prefill has failed has all its pages.
    pub(super) fn on_grown(&mut self, grown: PagesGrown) -> Vec<Effect> {
        let PagesGrown { sequence: SequenceId::Own(request), mut pages } = grown else { return Vec::new() };
        let page_tokens = self.config.page_tokens;
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        let needed = (entry.generate.prompt.len() + entry.emitted.len()).div_ceil(page_tokens as usize);
        match &mut entry.phase {
            // The pages may be those of the prompt alone, and the sender may have sampled a token after it.
            Phase::Replacing { pages: all, .. } if all.len() + pages.len() < needed => {
                all.append(&mut pages);
                let missing = (needed - all.len()) as u32;
                let (sequence, least, most) = (SequenceId::Own(request), missing, missing);
                vec![to::buffer_manager(GrowPages { sequence, least, most })]
            }
            Phase::Replacing { resident, pages: all } => {
                all.append(&mut pages);
                let (resident, pages) = (*resident, std::mem::take(all));
                vec![entry.start(resident, pages)]
            }
            Phase::Running(running) => {
                if running.state == RunState::Growing {
                    running.state = RunState::Steady;
                }
                running.table.extend(&pages);
                vec![to::generator(ExtendSequence { sequence: SequenceId::Own(request), pages })]
            }
            // The request has ended; its release covers these pages.
            _ => Vec::new(),
        }
    }

    /// A request cannot grow: the youngest request that holds pages is preempted. It may be the request that asked.
    pub(super) fn on_short(&mut self, short: PagesShort) -> Vec<Effect> {
        if short.releases < self.releases {
            // Pages were released after the buffer manager sent this. If they are too few, it sends another `PagesShort`.
            return Vec::new();
        }
        if !self.stopping.is_empty() {
            // A stopping request will release pages. If they are too few, the buffer manager sends another `PagesShort`.
            return Vec::new();
        }
        // A request that may not be prefilled here keeps its pages until it runs. It needs no others, and the request that asked can always be
        // preempted.
        let may_lose = |request: &RequestId| {
            let entry = self.requests.get(request);
            entry.is_some_and(|entry| entry.may_fall_back || !matches!(entry.phase, Phase::Landing { .. }))
        };
        let youngest = self.holders.iter().rev().map(|(_, request)| *request).find(may_lose);
        youngest.map(|request| self.preempt(request)).unwrap_or_default()
    }

    fn preempt(&mut self, request: RequestId) -> Vec<Effect> {
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        self.counts.preemptions += 1;
        match &mut entry.phase {
            Phase::Running(running) => {
                running.state = RunState::Preempted;
                self.stopping.insert(request);
                vec![to::generator(StopSequence { sequence: SequenceId::Own(request) })]
            }
            Phase::Landing { session, .. } => {
                let cancel = cancel(*session, request);
                [vec![cancel], self.release_and_reserve(request, PrefillOutcome::Withdrawn)].concat()
            }
            Phase::Replacing { .. } => self.release_and_reserve(request, PrefillOutcome::Withdrawn),
            Phase::Placing | Phase::Waiting { .. } | Phase::Reserving { .. } | Phase::Stopping => Vec::new(),
        }
    }

    /// Asks for more pages when the request's tokens have reached its last page.
    pub(super) fn grow(&mut self, request: RequestId) -> Option<Effect> {
        let entry = self.requests.get(&request)?;
        let ahead = self.pages_ahead(entry);
        let begun = self.pages_for(entry.generate.prompt.len() + entry.emitted.len()) + 1;
        let wanted = begun.min(self.pages_at_most(&entry.generate));
        let entry = self.requests.get_mut(&request)?;
        let Phase::Running(running) = &mut entry.phase else { return None };
        let has = running.table.len() as u32;
        if running.state != RunState::Steady || has >= wanted {
            return None;
        }
        running.state = RunState::Growing;
        let (least, most) = (wanted - has, ahead.max(wanted) - has);
        Some(to::buffer_manager(GrowPages { sequence: SequenceId::Own(request), least, most }))
    }
}
