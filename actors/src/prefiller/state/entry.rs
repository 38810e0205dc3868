//! One live prefill: its phase, its pages, and the effects about it.

use std::sync::Arc;
use std::time::Instant;

use connector::frame::{Frame, PROMPT_LOGPROBS_MAX, PrefillFault};
use engine::{Logprobs, PageId, Sampling};

use super::Key;
use crate::effect::{Effect, to};
use crate::first_token;
use crate::grammar::{CompiledGrammar, GrammarHash};
use crate::messages::{
    CancelPuts, PrefillTraced, ReservePages, ReservePriority, SchedulePut, SendFrame, SequenceId,
};
use crate::request::CacheSalt;

#[derive(Debug)]
pub(super) enum Phase {
    /// The request waits until this time for the compilation of this grammar.
    Compiling(GrammarHash, Instant),
    /// The request waits for pages.
    Reserving,
    /// The engine computes the request; final pages are being put.
    Running(HandOver),
    /// The request was cancelled, but the engine has not stopped it yet.
    Stopping,
    /// The prompt is computed; the last pages are being put.
    Sending(HandOver),
    /// The request has ended, but puts may still read its pages.
    Draining,
}

/// The pages of a prompt, and how many of them the receiver has.
#[derive(Debug)]
pub(super) struct HandOver {
    pub(super) pages: Vec<PageId>,
    /// Leading tokens whose KV this process had in its prefix cache.
    pub(super) cached: u32,
    /// Leading pages that were handed to the transfer actor, or that the receiver had before.
    pub(super) scheduled: u32,
    /// Pages that the receiver has.
    pub(super) sent: u32,
    /// The time for which the lane carried the pages that were put.
    pub(super) put_micros: u64,
}

#[derive(Debug)]
pub(super) struct Entry {
    /// This process's number for the request, never reused.
    pub(super) serial: u64,
    pub(super) prompt: Arc<[u32]>,
    pub(super) sampling: Arc<Sampling>,
    pub(super) salt: Option<CacheSalt>,
    /// Its grammar, once it is compiled.
    pub(super) grammar: Option<CompiledGrammar>,
    /// See [`StartPrefill`](crate::messages::StartPrefill).
    pub(super) prompt_logprobs: Option<u32>,
    /// Tokens whose log probabilities were sent.
    pub(super) reported: u32,
    /// Leading tokens whose KV the receiver had before.
    pub(super) resident: u32,
    pub(super) deadline: Instant,
    /// What has happened so far, if the prefill belongs to a trace.
    pub(super) trace: Option<Box<PrefillTraced>>,
    pub(super) phase: Phase,
}

impl Entry {
    pub(super) fn sequence(&self) -> SequenceId {
        SequenceId::Peer(self.serial)
    }

    /// True if the transfer actor has pages of this prompt that are not visible at the receiver.
    pub(super) fn has_pages_to_send(&self) -> bool {
        match &self.phase {
            Phase::Running(hand_over) | Phase::Sending(hand_over) => hand_over.sent < hand_over.scheduled,
            Phase::Compiling(..) | Phase::Reserving | Phase::Stopping | Phase::Draining => false,
        }
    }

    /// Asks for the prompt's pages, unless its grammar is not compiled yet.
    pub(super) fn reserve(&self, page_tokens: u32) -> Option<Effect> {
        let reserve = ReservePages {
            sequence: self.sequence(),
            tokens: self.prompt.clone(),
            salt: self.salt,
            reads_cache: self.prompt_logprobs.is_none(),
            pages: (self.prompt.len() as u32).div_ceil(page_tokens),
            landing: None,
            priority: ReservePriority::New,
        };
        matches!(self.phase, Phase::Reserving).then(|| to::buffer_manager(reserve))
    }

    /// Notes something in the trace, if there is one.
    pub(super) fn note(&mut self, note: impl FnOnce(&mut PrefillTraced)) {
        if let Some(trace) = &mut self.trace {
            note(trace);
        }
    }

    /// Notes in the trace why the prefill does not succeed, in one word. Only the first reason counts.
    pub(super) fn note_failure(&mut self, reason: &'static str) {
        self.note(|trace| trace.failure = trace.failure.or(Some(reason)));
    }

    /// The effect that records the trace of a prefill that has ended.
    pub(super) fn end_trace(&mut self, now: Instant) -> Option<Effect> {
        let mut trace = self.trace.take()?;
        trace.ended = now;
        Some(to::traces(*trace))
    }

    /// Sends the log probabilities of the prompt's next tokens.
    pub(super) fn report(&mut self, (session, request): Key, logprobs: Vec<Logprobs>) -> Vec<Effect> {
        let mut logprobs = logprobs.into_iter().map(first_token::logprobs_to_frame).peekable();
        let mut effects = Vec::new();
        while logprobs.peek().is_some() {
            let tokens: Vec<_> = logprobs.by_ref().take(PROMPT_LOGPROBS_MAX).collect();
            let first = self.reported;
            self.reported += tokens.len() as u32;
            let frame = Frame::PromptLogprobs { request: request.0, first, tokens };
            effects.push(to::peer_link(SendFrame { session, frame }));
        }
        effects
    }
}

impl HandOver {
    /// Hands the pages before `last` that were not scheduled yet to the transfer actor.
    pub(super) fn put(&mut self, (session, request): Key, last: u32) -> Option<Effect> {
        let pages = self.pages.get(self.scheduled as usize..last as usize);
        let pages = pages.filter(|pages| !pages.is_empty())?.to_vec();
        let first_page = std::mem::replace(&mut self.scheduled, last);
        Some(to::transfer(SchedulePut { session, request, first_page, pages }))
    }
}

/// Tells the transfer actor that no more pages of this request are to be put.
pub(super) fn cancel_puts((session, request): Key) -> Effect {
    to::transfer(CancelPuts { session, request })
}

/// The effects for a prompt that is refused on arrival: `answer` for the receiver, and the record of a trace with the reason in one word.
pub(super) fn turned_away(trace: Option<PrefillTraced>, reason: &'static str, answer: Effect) -> Vec<Effect> {
    let trace = trace.map(|trace| to::traces(PrefillTraced { failure: Some(reason), ..trace }));
    [answer].into_iter().chain(trace).collect()
}

pub(super) fn failed((session, request): Key, fault: PrefillFault, reason: String) -> Effect {
    to::peer_link(SendFrame { session, frame: Frame::PrefillFailed { request: request.0, fault, reason } })
}
