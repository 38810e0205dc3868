//! One live request: its phase, its tokens, and the effects of each change.

use std::sync::Arc;
use std::time::{Duration, Instant};

use connector::frame::Frame;
use engine::{Logprobs, PageId, Token};

use crate::effect::{Effect, to};
use crate::messages::{
    PagesComputed, PlaceAgain, Placement, PrefillOutcome, PrefillOver, SendFrame, SequenceId, SessionId,
    StartSequence, StreamPrompt, StreamToken,
};
use crate::request::{FinishReason, Generate, RequestId, StreamEvent, Timings};

/// The phase of a request.
#[derive(Debug)]
pub(super) enum Phase {
    /// The request waits for the proxy to choose another sender. It has no pages and no reservation.
    Placing,
    /// No sender has room for the prompt. The request has no pages and no reservation. It is placed again after `ticks` ticks, or
    /// later if many requests wait. `ticks` goes on below 0.
    Waiting { ticks: i64 },
    /// The request waits for pages. `on` is the sender that will prefill it, if a sender will.
    Reserving { on: Option<SessionId> },
    /// A sender prefills the request. `table` has a place for each page of the prompt. Its first pages are shared and have the KV of the
    /// first `resident` tokens. `own` has the pages for the tokens after the prompt.
    Landing { session: SessionId, resident: u32, table: Vec<Option<PageId>>, own: Vec<PageId> },
    /// The sender's prefill has failed. The request has `pages`, the shared ones first, and waits for pages in place of those that will not land.
    Replacing { resident: u32, pages: Vec<PageId> },
    /// The engine computes the request.
    Running(Running),
    /// The request has ended for the client, but the engine has not stopped it yet.
    Stopping,
}

#[derive(Debug)]
pub(super) struct Running {
    pub(super) table: Vec<PageId>,
    /// Leading tokens whose KV is in `table`.
    pub(super) resident: u32,
    pub(super) state: RunState,
}

/// Whether a running request waits for pages or releases them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunState {
    Steady,
    /// `GrowPages` was sent.
    Growing,
    /// The request is being stopped to release its pages. It resumes later.
    Preempted,
}

/// Whether the proxy counts a request's prompt as waiting for its prefill.
#[derive(Clone, Copy, Debug)]
pub(super) enum ProxyCount {
    /// Yes, there.
    Counted(Placement),
    /// No: `PrefillOver` was sent.
    Reported,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) generate: Generate,
    pub(super) admitted: Instant,
    /// When it had its pages.
    pub(super) placed: Option<Instant>,
    /// The delivery of the first token, while it waits for its sequence to join a step.
    pub(super) held: Vec<Effect>,
    /// When the sender's first token arrived.
    pub(super) prefilled: Option<Instant>,
    pub(super) first_token: Option<Instant>,
    pub(super) last_token: Option<Instant>,
    /// Log probabilities of the prompt's tokens, until they are delivered with the first token.
    pub(super) prompt_logprobs: Vec<Logprobs>,
    /// Tokens sampled, and delivered or held.
    pub(super) emitted: Vec<u32>,
    pub(super) phase: Phase,
    pub(super) waits: ProxyCount,
    /// Whether this process may prefill the prompt if the sender does not.
    pub(super) may_fall_back: bool,
    /// The senders that were chosen and have not prefilled the prompt: they refused it, failed, or were lost.
    pub(super) tried: Vec<SessionId>,
    /// Those of them that only had no room.
    pub(super) busy: Vec<SessionId>,
    /// How many times the request has been in [`Phase::Waiting`].
    pub(super) waited: u32,
    /// Prefills of the prompt that failed, or whose sender was lost.
    pub(super) failed_prefills: u32,
    /// The sender sends all pages, also those that are cached here.
    pub(super) reads_no_cache: bool,
    pub(super) timings: Timings,
}

pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Tells the sender that this prompt is no longer wanted.
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

    /// Delivers a token. The log probabilities of the prompt come before the first one.
    pub(super) fn emit(&mut self, now: Instant, token: Token) -> Vec<Effect> {
        self.delivered(now);
        self.delivery(token)
    }

    /// Holds the first token. It counts as sampled; [`deliver_held`](Self::deliver_held) delivers it.
    pub(super) fn hold(&mut self, token: Token) {
        self.held = self.delivery(token);
    }

    /// Delivers the held token, if there is one.
    pub(super) fn deliver_held(&mut self, now: Instant) -> Vec<Effect> {
        if !self.held.is_empty() {
            self.delivered(now);
        }
        std::mem::take(&mut self.held)
    }

    fn delivered(&mut self, now: Instant) {
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
    }

    /// Adds a token to the answer. Returns its delivery, for which the log probabilities of the prompt come first.
    fn delivery(&mut self, token: Token) -> Vec<Effect> {
        let request = self.generate.request;
        let has_prompt = self.emitted.is_empty() && self.generate.prompt_logprobs.is_some();
        let prompt = has_prompt.then(|| {
            let logprobs = std::mem::take(&mut self.prompt_logprobs);
            to::streams(StreamPrompt { request, logprobs })
        });
        self.emitted.push(token.id);
        prompt.into_iter().chain([to::streams(StreamToken { request, token })]).collect()
    }

    /// The log probabilities that the prompt still needs: the number of most probable tokens at each place. `None` once the
    /// first token is sampled.
    pub(super) fn wanted_logprobs(&self) -> Option<u32> {
        self.generate.prompt_logprobs.filter(|_| self.emitted.is_empty())
    }

    /// Takes log probabilities from a sender. Returns false if they are not the next ones, or too many.
    pub(super) fn take_logprobs(&mut self, first: u32, logprobs: Vec<Logprobs>) -> bool {
        let most = self.generate.prompt.len() - 1;
        let is_next = self.wanted_logprobs().is_some() && first as usize == self.prompt_logprobs.len();
        if !is_next || self.prompt_logprobs.len() + logprobs.len() > most {
            return false;
        }
        self.prompt_logprobs.extend(logprobs);
        true
    }

    /// True unless log probabilities of the prompt are missing.
    pub(super) fn has_logprobs(&self) -> bool {
        self.wanted_logprobs().is_none() || self.prompt_logprobs.len() == self.generate.prompt.len() - 1
    }

    /// Forgets what a sender did for the request. Shared pages stay.
    pub(super) fn discard(&mut self) {
        self.prompt_logprobs.clear();
        self.prefilled = None;
        let Timings { decode_pid, prompt_tokens, resident_tokens, .. } = self.timings;
        self.timings = Timings {
            prefill_pid: decode_pid,
            decode_pid,
            prompt_tokens,
            resident_tokens,
            cached_tokens: resident_tokens,
            ..Timings::default()
        };
    }

    /// Tells the proxy, once, that the prompt no longer waits for its prefill.
    pub(super) fn prefill_over(&mut self, outcome: PrefillOutcome) -> Option<Effect> {
        match std::mem::replace(&mut self.waits, ProxyCount::Reported) {
            ProxyCount::Counted(placement) => Some(to::proxy(PrefillOver { placement, outcome })),
            ProxyCount::Reported => None,
        }
    }

    /// Asks the proxy for another sender. `outcome` is how the wait for the last one ended. The request has no pages.
    pub(super) fn place_again(&mut self, outcome: PrefillOutcome) -> Vec<Effect> {
        self.phase = Phase::Placing;
        let again = PlaceAgain { generate: self.generate.clone(), tried: self.tried.clone() };
        self.prefill_over(outcome).into_iter().chain([to::proxy(again)]).collect()
    }

    /// The outcome of a prefill that took `micros` microseconds.
    pub(super) fn computed(&self, micros: u64) -> PrefillOutcome {
        let tokens = self.timings.prompt_tokens.saturating_sub(self.timings.cached_tokens);
        PrefillOutcome::Computed { tokens, micros }
    }

    /// The final event of a request that finished.
    pub(super) fn finished(&mut self, reason: FinishReason) -> StreamEvent {
        self.timings.completion_tokens = self.emitted.len() as u32;
        let since = |time: Instant| ms(time.saturating_duration_since(self.generate.sent));
        self.timings.routed_ms = since(self.admitted);
        self.timings.placed_ms = since(self.placed.unwrap_or(self.admitted));
        if let (Some(first), Some(last)) = (self.first_token, self.last_token) {
            self.timings.prefilled_ms = since(self.prefilled.unwrap_or(first).min(first));
            self.timings.first_token_ms = since(first);
            self.timings.decode_ms = ms(last - first);
        }
        StreamEvent::Finished { reason, timings: Box::new(self.timings.clone()) }
    }

    /// Starts a landing request once its sender has sampled its first token and all its pages have landed.
    pub(super) fn join(&mut self) -> Vec<Effect> {
        let is_prefilled = matches!(self.waits, ProxyCount::Reported);
        let Phase::Landing { table, own, .. } = &mut self.phase else { return Vec::new() };
        if !is_prefilled || table.iter().any(Option::is_none) {
            return Vec::new();
        }
        let mut pages: Vec<PageId> = table.iter().flatten().copied().collect();
        pages.append(own);
        let sequence = SequenceId::Own(self.generate.request);
        let (tokens, resident) = (self.generate.prompt.clone(), self.generate.prompt.len() as u32);
        let salt = self.generate.salt;
        let computed = PagesComputed { sequence, tokens, salt, pages: pages.clone() };
        vec![to::buffer_manager(computed), self.start(resident, pages)]
    }

    /// Runs the request on the engine. `pages` hold the KV of its first `resident` tokens.
    pub(super) fn start(&mut self, resident: u32, pages: Vec<PageId>) -> Effect {
        self.prompt_logprobs.clear();
        self.phase = Phase::Running(Running { table: pages.clone(), resident, state: RunState::Steady });
        to::generator(StartSequence {
            sequence: SequenceId::Own(self.generate.request),
            tokens: self.tokens().to_vec(),
            resident,
            pages,
            prompt: self.generate.prompt.len() as u32,
            sample: self.generate.max_tokens - self.emitted.len() as u32,
            sampling: self.generate.sampling.clone(),
            grammar: self.generate.grammar.clone(),
            ignore_eos: self.generate.ignore_eos,
            prompt_logprobs: self.wanted_logprobs(),
            announce: !self.held.is_empty(),
        })
    }
}
