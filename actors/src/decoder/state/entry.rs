//! One live request: where it is on its way, and what it says when it moves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use connector::frame::Frame;
use engine::{PageId, Token};

use crate::effect::{Effect, to};
use crate::messages::{
    PagesComputed, PrefillOutcome, PrefillOver, SendFrame, SequenceId, SessionId, StartSequence, StreamToken,
};
use crate::request::{FinishReason, Generate, RequestId, StreamEvent, Timings};

/// Where a request is.
#[derive(Debug)]
pub(super) enum Phase {
    Reserving { on: Option<SessionId> },
    Landing { session: SessionId, table: Vec<Option<PageId>>, own: Vec<PageId> },
    Running(Running),
    Stopping,
}

#[derive(Debug)]
pub(super) struct Running {
    pub(super) table: Vec<PageId>,
    /// Leading tokens whose KV stands in it.
    pub(super) resident: u32,
    /// More pages were asked for.
    pub(super) growing: bool,
    /// Others want its pages: it is being stopped, and goes on later.
    pub(super) yields: bool,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) generate: Generate,
    pub(super) admitted: Instant,
    pub(super) first_token: Option<Instant>,
    pub(super) last_token: Option<Instant>,
    /// Tokens sampled and delivered.
    pub(super) emitted: Vec<u32>,
    pub(super) phase: Phase,
    /// Where the proxy counts its prompt, until it is told.
    pub(super) counted: Option<Option<SessionId>>,
    pub(super) timings: Timings,
}

pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Tells the sender that nobody wants this prompt any more.
pub(super) fn cancel(session: SessionId, request: RequestId) -> Effect {
    to::peer_link(SendFrame { session, frame: Frame::CancelPrefill { request: request.0 } })
}

impl Entry {
    /// All tokens so far.
    pub(super) fn tokens(&self) -> Arc<[u32]> {
        if self.emitted.is_empty() {
            return self.generate.prompt.clone();
        }
        self.generate.prompt.iter().chain(&self.emitted).copied().collect()
    }

    /// Delivers a token.
    pub(super) fn emit(&mut self, now: Instant, token: Token) -> Effect {
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        self.emitted.push(token.id);
        to::streams(StreamToken { request: self.generate.request, token })
    }

    /// Tells the proxy, once, that its prompt does not wait any more.
    pub(super) fn over(&mut self, outcome: PrefillOutcome) -> Option<Effect> {
        let on = self.counted.take()?;
        Some(to::proxy(PrefillOver { on, tokens: self.timings.prompt_tokens, outcome }))
    }

    /// Its prompt was prefilled in so many microseconds.
    pub(super) fn computed(&self, micros: u64) -> PrefillOutcome {
        let tokens = self.timings.prompt_tokens.saturating_sub(self.timings.resident_tokens);
        PrefillOutcome::Computed { tokens, micros }
    }

    /// How it ended well.
    pub(super) fn finished(&mut self, reason: FinishReason) -> StreamEvent {
        self.timings.completion_tokens = self.emitted.len() as u32;
        if let (Some(first), Some(last)) = (self.first_token, self.last_token) {
            self.timings.first_token_ms = ms(first - self.admitted);
            self.timings.decode_ms = ms(last - first);
        }
        StreamEvent::Finished { reason, timings: Box::new(self.timings.clone()) }
    }

    /// Starts a landing request once its first token and all its pages are there.
    pub(super) fn join(&mut self) -> Vec<Effect> {
        let Phase::Landing { table, own, .. } = &mut self.phase else { return Vec::new() };
        if self.emitted.is_empty() || table.iter().any(Option::is_none) {
            return Vec::new();
        }
        let mut pages: Vec<PageId> = table.iter().flatten().copied().collect();
        pages.append(own);
        let sequence = SequenceId::Own(self.generate.request);
        let (tokens, resident) = (self.generate.prompt.clone(), self.generate.prompt.len() as u32);
        let computed = PagesComputed { sequence, tokens, pages: pages.clone() };
        vec![to::buffer_manager(computed), self.start(resident, pages)]
    }

    /// Runs it on the engine, which has `resident` of its tokens in `pages`.
    pub(super) fn start(&mut self, resident: u32, pages: Vec<PageId>) -> Effect {
        self.phase =
            Phase::Running(Running { table: pages.clone(), resident, growing: false, yields: false });
        to::generator(StartSequence {
            sequence: SequenceId::Own(self.generate.request),
            tokens: self.tokens().to_vec(),
            resident,
            pages,
            prompt: self.generate.prompt.len() as u32,
            sample: self.generate.max_tokens - self.emitted.len() as u32,
            sampling: self.generate.sampling.clone(),
            ignore_eos: self.generate.ignore_eos,
        })
    }
}
