//! How requests end: well, by error, at their deadline, or because somebody has had enough.

use std::time::Instant;

use super::entry::{Entry, Phase, cancel};
use super::{Action, DecoderState};
use crate::messages::SequenceId;
use crate::request::{FinishReason, RequestError, RequestId, StreamEvent};

impl DecoderState {
    /// This process is ending: every request ends.
    pub fn on_abort_all(&mut self) -> Vec<Action> {
        let all: Vec<RequestId> = self.requests.keys().copied().collect();
        let end = || StreamEvent::Failed(RequestError::ShuttingDown);
        all.into_iter().flat_map(|request| self.cut(request, |_| end())).collect()
    }

    /// The client is gone.
    pub fn on_abort(&mut self, request: RequestId) -> Vec<Action> {
        self.cut(request, |_| StreamEvent::Failed(RequestError::Aborted))
    }

    /// The client has what it wanted: the request ends well with the first `tokens` of those that it got.
    pub fn on_complete(&mut self, request: RequestId, tokens: u32) -> Vec<Action> {
        self.cut(request, |entry| {
            entry.emitted.truncate(tokens as usize);
            entry.finished(FinishReason::Stop)
        })
    }

    /// Time has passed: requests past their deadline fail.
    pub fn on_tick(&mut self, now: Instant) -> Vec<Action> {
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
        late.into_iter()
            .flat_map(|(request, deadline_ms)| {
                let end = StreamEvent::Failed(RequestError::Deadline { deadline_ms });
                self.cut(request, |_| end)
            })
            .collect()
    }

    /// Ends a request before its time, wherever it is.
    fn cut(&mut self, request: RequestId, end: impl FnOnce(&mut Entry) -> StreamEvent) -> Vec<Action> {
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        if matches!(entry.phase, Phase::Stopping) {
            return Vec::new();
        }
        let end = Action::End(request, end(entry));
        match entry.phase {
            Phase::Running(_) => {
                entry.phase = Phase::Stopping;
                vec![end, Action::Stop(SequenceId::Own(request))]
            }
            Phase::Landing { session, .. } => {
                [vec![cancel(session, request), end], self.forget(request)].concat()
            }
            Phase::Reserving { .. } | Phase::Stopping => [vec![end], self.forget(request)].concat(),
        }
    }

    pub(super) fn finish(&mut self, request: RequestId, reason: FinishReason) -> Vec<Action> {
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        let end = Action::End(request, entry.finished(reason));
        [vec![end], self.forget(request)].concat()
    }

    pub(super) fn fail(&mut self, request: RequestId, error: RequestError) -> Vec<Action> {
        [vec![Action::End(request, StreamEvent::Failed(error))], self.forget(request)].concat()
    }
}
