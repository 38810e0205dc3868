//! How prefills end early: the receiver cancels them or is lost, their deadline passes, or they get no grammar or no credits.

use std::time::{Duration, Instant};

use connector::frame::PrefillFault;

use super::entry::{Phase, cancel_puts, failed};
use super::{Key, PrefillerState};
use crate::effect::{Effect, to};
use crate::messages::{SessionId, StopSequence};

/// Maximum time for which a session sends no page although pages of prompts are ready. Then the receiver computes these prompts itself. A page
/// that has a credit takes much less, so the session gets no credits.
const NO_CREDIT_MAX: Duration = Duration::from_secs(30);
impl PrefillerState {
    /// The receiver no longer wants the prompt.
    pub(super) fn on_cancel(&mut self, now: Instant, key: Key) -> Vec<Effect> {
        let Some(entry) = self.entries.get_mut(&key) else { return Vec::new() };
        // A receiver that has its first token may need no more.
        if entry.trace.as_ref().is_some_and(|trace| trace.sampled.is_none()) {
            entry.note_failure("cancelled");
        }
        match entry.phase {
            Phase::Compiling(..) | Phase::Reserving => self.forget(now, key),
            Phase::Running(_) => {
                entry.phase = Phase::Stopping;
                vec![to::generator(StopSequence { sequence: entry.sequence() })]
            }
            Phase::Sending(_) => {
                entry.phase = Phase::Draining;
                vec![cancel_puts(key)]
            }
            Phase::Stopping | Phase::Draining => Vec::new(),
        }
    }

    /// The receiver is lost: its requests end.
    pub(super) fn on_peer_lost(&mut self, now: Instant, session: SessionId) -> Vec<Effect> {
        let keys: Vec<Key> = self.entries.keys().filter(|key| key.0 == session).copied().collect();
        self.grammars.forget(session);
        let lost = |key: Key| {
            self.note_failure(key, "receiver_lost");
            self.on_cancel(now, key)
        };
        keys.into_iter().flat_map(lost).collect()
    }

    /// Time has passed: prefills past their deadline and those without credits fail, and those that have waited too long for their grammar
    /// are refused.
    pub(super) fn on_tick(&mut self, now: Instant) -> Vec<Effect> {
        let [late, unready] = self.late(now);
        let mut effects = Vec::new();
        for key in late {
            let reason = "the request's deadline passed on the sender".to_owned();
            effects.extend(self.give_up(now, key, "deadline", reason));
        }
        for key in unready {
            effects.extend(self.refuse(
                now,
                key,
                "the grammar was not compiled in time on the sender".to_owned(),
            ));
        }
        for key in self.without_credits(now) {
            let seconds = NO_CREDIT_MAX.as_secs();
            effects.extend(self.give_up(
                now,
                key,
                "no_credits",
                format!("the receiver granted no credit for {seconds} s"),
            ));
        }
        effects
    }

    /// Ends a prefill that has begun. `kind` is the reason in one word.
    fn give_up(&mut self, now: Instant, key: Key, kind: &'static str, reason: String) -> Vec<Effect> {
        self.note_failure(key, kind);
        [vec![failed(key, PrefillFault::Failed, reason)], self.on_cancel(now, key)].concat()
    }

    /// The prefills with pages to send whose sessions have sent no page for [`NO_CREDIT_MAX`].
    fn without_credits(&mut self, now: Instant) -> Vec<Key> {
        let waiting = self.entries.iter().filter(|(_, entry)| entry.has_pages_to_send());
        let waiting: Vec<Key> = waiting.map(|(key, _)| *key).collect();
        let before = std::mem::take(&mut self.waiting_since);
        let since = |session: SessionId| before.get(&session).copied().unwrap_or(now);
        self.waiting_since = waiting.iter().map(|(session, _)| (*session, since(*session))).collect();
        let is_over = |(session, _): &Key| now.saturating_duration_since(since(*session)) >= NO_CREDIT_MAX;
        waiting.into_iter().filter(is_over).collect()
    }

    /// The prefills past their deadline, and those whose grammar is late.
    fn late(&self, now: Instant) -> [Vec<Key>; 2] {
        let mut found = [Vec::new(), Vec::new()];
        for (key, entry) in &self.entries {
            match entry.phase {
                Phase::Stopping | Phase::Draining => {}
                Phase::Compiling(_, until) if now >= until => found[1].push(*key),
                _ if now >= entry.deadline => found[0].push(*key),
                _ => {}
            }
        }
        found
    }
}
