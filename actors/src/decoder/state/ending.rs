//! How requests end: they finish, fail, miss their deadline, or are aborted.

use std::time::Instant;

use super::DecoderState;
use super::entry::{Entry, Phase, cancel};
use crate::effect::{Effect, to};
use crate::messages::{PagesDenied, SequenceId, StopSequence, StreamEnd};
use crate::request::{FinishReason, Refused, RequestError, RequestId, StreamEvent};

impl DecoderState {
    /// This process is ending: every request fails.
    pub(super) fn on_abort_all(&mut self) -> Vec<Effect> {
        let all: Vec<RequestId> = self.requests.keys().copied().collect();
        let end = || StreamEvent::Failed(RequestError::ShuttingDown);
        all.into_iter().flat_map(|request| self.cut(request, |_| end())).collect()
    }

    /// The client is gone.
    pub(super) fn on_abort(&mut self, request: RequestId) -> Vec<Effect> {
        self.cut(request, |_| StreamEvent::Failed(RequestError::Aborted))
    }

    /// The client needs no more tokens: the request finishes with the first `tokens` of its tokens.
    pub(super) fn on_complete(&mut self, request: RequestId, tokens: u32) -> Vec<Effect> {
        self.cut(request, |entry| {
            entry.emitted.truncate(tokens as usize);
            entry.finished(FinishReason::Stop)
        })
    }

    /// Time has passed: requests past their deadline fail, and those that wait for room are placed again.
    pub(super) fn on_tick(&mut self, now: Instant) -> Vec<Effect> {
        let late: Vec<(RequestId, u64)> = self
            .requests
            .iter()
            .filter(|(_, entry)| now >= entry.generate.deadline && !matches!(entry.phase, Phase::Stopping))
            .map(|(request, entry)| {
                (
                    *request,
                    (entry.generate.deadline.saturating_duration_since(entry.admitted)).as_millis() as u64,
                )
            })
            .collect();
        let mut effects = Vec::new();
        for (request, deadline_ms) in late {
            let end = StreamEvent::Failed(RequestError::Deadline { deadline_ms });
            effects.extend(self.cut(request, |_| end));
        }
        effects.extend(self.place_waiting());
        effects
    }

    /// The request cannot get the pages that it needs.
    pub(super) fn on_denied(&mut self, denied: &PagesDenied) -> Vec<Effect> {
        let PagesDenied { sequence: SequenceId::Own(request), needed, usable } = *denied else {
            return Vec::new();
        };
        self.cut(request, |_| StreamEvent::Failed(Refused::NoRoom { needed, usable }.into()))
    }

    /// Ends a request early, in any phase.
    pub(super) fn cut(
        &mut self,
        request: RequestId,
        end: impl FnOnce(&mut Entry) -> StreamEvent,
    ) -> Vec<Effect> {
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        if matches!(entry.phase, Phase::Stopping) {
            return Vec::new();
        }
        let event = end(entry);
        // Nothing is delivered after the end.
        entry.held.clear();
        let landing_on = match &mut entry.phase {
            Phase::Running(_) => {
                entry.phase = Phase::Stopping;
                self.holders.remove(&(entry.admitted, request));
                self.stopping.insert(request);
                let stop = to::generator(StopSequence { sequence: SequenceId::Own(request) });
                return vec![self.ended(request, event), stop];
            }
            Phase::Landing { session, .. } => Some(*session),
            Phase::Placing
            | Phase::Waiting { .. }
            | Phase::Reserving { .. }
            | Phase::Replacing { .. }
            | Phase::Stopping => None,
        };
        let end = self.ended(request, event);
        let cancelled = landing_on.map(|session| cancel(session, request));
        cancelled.into_iter().chain([end]).chain(self.forget(request)).collect()
    }

    pub(super) fn finish(&mut self, request: RequestId, reason: FinishReason) -> Vec<Effect> {
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        let event = entry.finished(reason);
        [vec![self.ended(request, event)], self.forget(request)].concat()
    }

    pub(super) fn fail(&mut self, request: RequestId, error: RequestError) -> Vec<Effect> {
        [vec![self.ended(request, StreamEvent::Failed(error))], self.forget(request)].concat()
    }

    /// Sends the final event to the client.
    fn ended(&mut self, request: RequestId, event: StreamEvent) -> Effect {
        self.counts.end(&event);
        to::streams(StreamEnd { request, event })
    }
}
