//! The life of a request in this process: the decisions of the decoder, without actix, clock or I/O.
//!
//! ```text
//! Reserving ──► Landing (a sender prefills) ──► Running ──► ended
//!     │                 │ sender lost or failed     ▲ ▲  │ abort, deadline
//!     │                 └──► Replacing ─────────────┘ │  ▼
//!     └──────────── prefilled here ───────────────────┘ Stopping ──► ended
//! ```
//!
//! Some requests may not be prefilled here (`frontend.local` is `never`). If the sender of such a request is lost or fails, the request
//! releases its pages and asks the proxy for another sender (Placing). It then reserves pages again. A token that was delivered or is held stays: the
//! first token of the next sender is ignored. If there is no other sender, but one of them only had no room, the request waits (Waiting) and asks
//! again, until its deadline. Each wait is twice as long as the one before, up to a bound.
//!
//! A running sequence asks for more pages before it needs them. When the pool is short of pages, the youngest request is preempted: it
//! releases its pages and is recomputed later from its prompt and its tokens so far. A request whose sender is lost or fails keeps its pages,
//! gets others in place of those that will not land, and is computed here.
//!
//! Every request gets exactly one final event. Its pages are released exactly once, after the engine has stopped using them. Delivered
//! tokens are never retracted: a recompute starts from prompt + tokens.

mod asking;
mod counts;
mod ending;
mod entry;
mod growing;
mod placing;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::effect::{Effect, ToDecoder, to};
use crate::finish::FinishRule;
use crate::first_token;
use crate::messages::{
    Decode, HandOverEnded, PagesAdopted, PagesComputed, PagesReserved, PeerReady, PrefillFinished,
    PrefillOutcome, PromptLogprobs, ReleasePages, ReservePages, ReservePriority, SequenceAdvanced,
    SequenceEnd, SequenceId, SessionId,
};
use crate::request::{AbortOutcome, AbortRequest, Generate, RequestError, RequestId, Timings};
use asking::Peer;
pub(crate) use asking::fits_frames;
pub use counts::DecoderCounts;
use entry::{Entry, Phase, ProxyCount, RunState, cancel, ms};

/// The decoder's configuration.
#[derive(Clone, Debug)]
pub struct DecoderConfig {
    /// Tokens in a page.
    pub page_tokens: u32,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// The rule that decides whether an answer is complete after its first token.
    pub finish: FinishRule,
    /// Token ids are below this.
    pub vocabulary: u32,
    /// This process's id.
    pub pid: u32,
    /// Pages are reserved for the request's tokens so far and for this many further tokens. 0 counts as 1.
    pub growth_tokens: u32,
    /// Maximum number of grammars that a sender keeps for one session; at most
    /// [`GRAMMARS_MAX`](connector::frame::GRAMMARS_MAX).
    pub grammars_per_session: u32,
    /// The first token of a sender is delivered when its sequence joins a step, if this process computes prompts. Without this, the
    /// client would wait up to two long steps between the first and the second token.
    pub holds_first_token: bool,
}

/// All live requests.
#[derive(Debug)]
pub struct DecoderState {
    config: DecoderConfig,
    requests: BTreeMap<RequestId, Entry>,
    counts: DecoderCounts,
    /// Requests that hold pages, the youngest last.
    holders: BTreeSet<(Instant, RequestId)>,
    /// Requests that release their pages when the engine has stopped them.
    stopping: BTreeSet<RequestId>,
    /// `ReleasePages` sent so far.
    releases: u64,
    /// Sessions whose senders can prefill.
    peers: BTreeMap<SessionId, Peer>,
    /// The engine of this process computes prompts.
    computes_prompts: bool,
}

impl DecoderState {
    /// No requests and no peers.
    pub fn new(config: DecoderConfig) -> Self {
        Self {
            config,
            requests: BTreeMap::new(),
            counts: DecoderCounts::default(),
            holders: BTreeSet::new(),
            stopping: BTreeSet::new(),
            releases: 0,
            peers: BTreeMap::new(),
            computes_prompts: false,
        }
    }

    /// Handles a message and returns the effects.
    pub fn on(&mut self, now: Instant, mail: ToDecoder) -> Vec<Effect> {
        match mail {
            ToDecoder::Decode(decode) => self.on_decode(now, *decode),
            ToDecoder::PlacedAgain(placed) => self.on_placed_again(placed),
            ToDecoder::AbortRequest(AbortRequest { request, outcome }) => match outcome {
                AbortOutcome::Cancelled => self.on_abort(request),
                AbortOutcome::Completed { tokens } => self.on_complete(request, tokens),
            },
            ToDecoder::AbortAll(_) => self.on_abort_all(),
            ToDecoder::PagesReserved(reserved) => self.on_reserved(now, reserved),
            ToDecoder::PagesDenied(denied) => self.on_denied(&denied),
            ToDecoder::PagesGrown(grown) => self.on_grown(grown),
            ToDecoder::PagesShort(short) => self.on_short(short),
            ToDecoder::PagesAdopted(adopted) => self.on_adopted(now, adopted),
            ToDecoder::PageRejected(rejected) => self.on_rejected(rejected.request),
            ToDecoder::SequenceBegun(begun) => self.on_begun(now, begun.sequence),
            ToDecoder::SequenceAdvanced(event) => self.on_advanced(now, event),
            ToDecoder::LoadReport(load) => {
                self.computes_prompts = load.waiting_tokens > 0;
                Vec::new()
            }
            ToDecoder::PeerReady(ready) => self.on_peer_ready(ready),
            ToDecoder::PeerLost(lost) => self.on_peer_lost(lost.session),
            ToDecoder::PromptLogprobs(reported) => self.on_prompt_logprobs(reported),
            ToDecoder::PrefillFinished(finished) => self.on_prefill_finished(now, finished),
            ToDecoder::PrefillFailed(failed) => self.on_prefill_failed(failed),
            ToDecoder::Tick(_) => self.on_tick(now),
        }
    }

    /// Requests that have not ended.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Requests that wait for pages from this sender.
    pub fn waiting_for(&self, session: SessionId) -> usize {
        let waits =
            |entry: &&Entry| matches!(entry.phase, Phase::Landing { session: on, .. } if on == session);
        self.requests.values().filter(waits).count()
    }

    /// The counters.
    pub fn counts(&self) -> DecoderCounts {
        self.counts
    }

    /// True if all requests have ended.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// A sender can prefill.
    fn on_peer_ready(&mut self, ready: PeerReady) -> Vec<Effect> {
        self.peers.insert(ready.session, Peer::new(ready.pid, self.config.grammars_per_session));
        Vec::new()
    }

    /// A sender is lost: its prompts are recomputed here or by another sender.
    fn on_peer_lost(&mut self, session: SessionId) -> Vec<Effect> {
        self.peers.remove(&session);
        let lost: Vec<RequestId> = self
            .requests
            .iter()
            .filter(|(_, entry)| matches!(&entry.phase, Phase::Landing { session: on, .. } if *on == session))
            .map(|(request, _)| *request)
            .collect();
        lost.into_iter().flat_map(|request| self.recover(request, PrefillOutcome::Failed)).collect()
    }

    /// A request arrives.
    fn on_decode(&mut self, now: Instant, decode: Decode) -> Vec<Effect> {
        let Decode { generate, placement } = decode;
        let request = generate.request;
        self.counts.taken += 1;
        let timings = Timings {
            decode_pid: self.config.pid,
            prompt_tokens: generate.prompt.len() as u32,
            ..Timings::default()
        };
        let entry = Entry {
            generate,
            admitted: now,
            placed: None,
            held: Vec::new(),
            prefilled: None,
            first_token: None,
            last_token: None,
            prompt_logprobs: Vec::new(),
            emitted: Vec::new(),
            phase: Phase::Placing,
            waits: ProxyCount::Reported,
            may_fall_back: placement.may_fall_back,
            tried: Vec::new(),
            busy: Vec::new(),
            waited: 0,
            failed_prefills: 0,
            reads_no_cache: false,
            timings,
        };
        self.requests.insert(request, entry);
        self.begin(request, placement, ReservePriority::New)
    }

    fn pages_for(&self, tokens: usize) -> u32 {
        (tokens as u32).div_ceil(self.config.page_tokens)
    }

    /// Pages for every token that the request may get. The last sampled token needs no KV.
    fn pages_at_most(&self, generate: &Generate) -> u32 {
        self.pages_for(generate.prompt.len() + generate.max_tokens as usize - 1)
    }

    /// Pages for the request's tokens and `growth_tokens` more.
    fn pages_ahead(&self, entry: &Entry) -> u32 {
        let tokens =
            entry.generate.prompt.len() + entry.emitted.len() + self.config.growth_tokens.max(1) as usize;
        self.pages_for(tokens).min(self.pages_at_most(&entry.generate))
    }

    fn reservation(
        &self,
        request: RequestId,
        landing: Option<SessionId>,
        priority: ReservePriority,
    ) -> Option<Effect> {
        let entry = self.requests.get(&request)?;
        let reserve = ReservePages {
            sequence: SequenceId::Own(request),
            // A sender sends the pages of the prompt only.
            tokens: if landing.is_some() { entry.generate.prompt.clone() } else { entry.tokens() },
            reads_cache: entry.wanted_logprobs().is_none() && !(landing.is_some() && entry.reads_no_cache),
            salt: entry.generate.salt,
            pages: self.pages_ahead(entry),
            landing,
            priority,
        };
        Some(to::buffer_manager(reserve))
    }

    /// Releases all pages of the request and reserves new ones, to continue here from its tokens so far. `outcome` is how its wait for
    /// the prefill ended, if it was waiting.
    fn release_and_reserve(&mut self, request: RequestId, outcome: PrefillOutcome) -> Vec<Effect> {
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        if !matches!(entry.phase, Phase::Running(_)) {
            entry.discard();
        }
        entry.phase = Phase::Reserving { on: None };
        let over = entry.prefill_over(outcome);
        let release = self.release(request);
        [release]
            .into_iter()
            .chain(self.reservation(request, None, ReservePriority::Resumed))
            .chain(over)
            .collect()
    }

    /// The pages are reserved: run the request here, or ask its sender to prefill.
    fn on_reserved(&mut self, now: Instant, reserved: PagesReserved) -> Vec<Effect> {
        let PagesReserved { sequence: SequenceId::Own(request), resident, landing, mut pages } = reserved
        else {
            return Vec::new();
        };
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        let Phase::Reserving { on } = entry.phase else { return Vec::new() };
        self.holders.insert((entry.admitted, request));
        if entry.emitted.is_empty() {
            entry.placed = Some(now);
            (entry.timings.resident_tokens, entry.timings.cached_tokens) = (resident, resident);
        }
        let Some(session) = on else { return vec![entry.start(resident, pages)] };
        if landing == 0 {
            return self.lands_nothing(request, session, resident, pages);
        }
        let own = pages.split_off((resident / self.config.page_tokens) as usize);
        let shared = pages.into_iter().map(Some);
        let table = shared.chain(std::iter::repeat_n(None, landing as usize)).collect();
        entry.phase = Phase::Landing { session, resident, table, own };
        let Some(peer) = self.peers.get_mut(&session) else {
            return self.recover(request, PrefillOutcome::Failed);
        };
        peer.ask(now, session, &entry.generate, resident, entry.wanted_logprobs())
    }

    /// Landed pages now belong to the request. If a place in the page table does not exist or is taken, the sender has made an error, and
    /// nothing that it sent for this request is used.
    fn on_adopted(&mut self, now: Instant, adopted: PagesAdopted) -> Vec<Effect> {
        let request = adopted.request;
        let Some(entry) = self.requests.get_mut(&adopted.request) else { return Vec::new() };
        let (table, own) = match &mut entry.phase {
            Phase::Landing { table, own, .. } => (table, own),
            Phase::Replacing { pages, .. } => {
                pages.extend(&adopted.pages);
                return Vec::new();
            }
            _ => return Vec::new(),
        };
        let first = adopted.first_page as usize;
        let places = table.get_mut(first..).and_then(|rest| rest.get_mut(..adopted.pages.len()));
        match places {
            Some(places) if places.iter().all(Option::is_none) => {
                places.iter_mut().zip(&adopted.pages).for_each(|(place, page)| *place = Some(*page));
            }
            _ => {
                own.extend(&adopted.pages);
                return self.on_rejected(adopted.request);
            }
        }
        entry.timings.pages += adopted.pages.len() as u32;
        entry.timings.bytes += adopted.pages.len() as u64 * self.config.page_bytes;
        entry.timings.transfer_ms = adopted.transfer_micros as f64 / 1e3;
        if let Some(prefilled) = entry.prefilled {
            entry.timings.exposed_ms = ms(now - prefilled);
        }
        self.join(request)
    }

    /// Starts a landing request once it has its first token and all its pages. It may have no page for its next token yet.
    fn join(&mut self, request: RequestId) -> Vec<Effect> {
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        let Phase::Landing { session, .. } = entry.phase else { return Vec::new() };
        let exposed_micros = (entry.timings.exposed_ms * 1e3) as u64;
        let started = entry.join();
        if started.is_empty() {
            return Vec::new();
        }
        let ended = to::proxy(HandOverEnded { session, exposed_micros });
        started.into_iter().chain([ended]).chain(self.grow(request)).collect()
    }

    /// The hash of a landed page does not match: nothing that the sender sent for this request is used.
    fn on_rejected(&mut self, request: RequestId) -> Vec<Effect> {
        match self.requests.get(&request).map(|entry| &entry.phase) {
            Some(Phase::Landing { session, .. }) => {
                let cancel = cancel(*session, request);
                [vec![cancel], self.recover(request, PrefillOutcome::Failed)].concat()
            }
            _ => Vec::new(),
        }
    }

    /// The sender reports log probabilities of the prompt. Those that cannot be right are an error of the sender.
    fn on_prompt_logprobs(&mut self, reported: PromptLogprobs) -> Vec<Effect> {
        let PromptLogprobs { session, request, first, logprobs } = reported;
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        if !matches!(entry.phase, Phase::Landing { session: on, .. } if on == session) {
            return Vec::new();
        }
        let are_known =
            logprobs.iter().all(|logprobs| first_token::are_known(logprobs, self.config.vocabulary));
        if are_known && entry.take_logprobs(first, logprobs) { Vec::new() } else { self.on_rejected(request) }
    }

    /// The sender has sampled the first token: it is delivered at once, before all pages have landed, or held until its sequence joins a step.
    fn on_prefill_finished(&mut self, now: Instant, finished: PrefillFinished) -> Vec<Effect> {
        let request = finished.request;
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        let Phase::Landing { session, .. } = entry.phase else { return Vec::new() };
        if session != finished.session || matches!(entry.waits, ProxyCount::Reported) {
            return Vec::new();
        }
        let is_possible = finished.cached < entry.timings.prompt_tokens;
        let is_known = first_token::is_known(&finished.token, self.config.vocabulary);
        if !is_possible || !is_known || !entry.has_logprobs() {
            return self.on_rejected(request);
        }
        entry.timings.disaggregated = true;
        entry.timings.cached_tokens = finished.cached;
        entry.timings.prefill_pid = self.peers.get(&session).map_or(0, |peer| peer.pid);
        entry.timings.prefill_ms = finished.prefill_micros as f64 / 1e3;
        entry.prefilled = Some(now);
        let over = entry.prefill_over(entry.computed(finished.prefill_micros));
        if !entry.emitted.is_empty() {
            // An earlier sender's token was delivered, or is held.
            return over.into_iter().chain(self.join(request)).collect();
        }
        let (left, ignore_eos) = (entry.generate.max_tokens.saturating_sub(1), entry.generate.ignore_eos);
        let reason = self.config.finish.reason(finished.token.id, ignore_eos, left);
        let mut effects: Vec<Effect> = over.into_iter().collect();
        if reason.is_none() && self.config.holds_first_token && self.computes_prompts {
            entry.hold(finished.token);
        } else {
            effects.extend(entry.emit(now, finished.token));
        }
        match reason {
            Some(reason) => {
                // Pages that land later have no owner, so the buffer manager frees them.
                effects.push(cancel(session, request));
                effects.extend(self.finish(request, reason));
            }
            None => effects.extend(self.join(request)),
        }
        effects
    }

    /// The sequence is in a step, so its next token follows soon: a held token is delivered.
    fn on_begun(&mut self, now: Instant, sequence: SequenceId) -> Vec<Effect> {
        let SequenceId::Own(request) = sequence else { return Vec::new() };
        self.requests.get_mut(&request).map(|entry| entry.deliver_held(now)).unwrap_or_default()
    }

    /// The engine has advanced or ended a sequence.
    fn on_advanced(&mut self, now: Instant, event: SequenceAdvanced) -> Vec<Effect> {
        let SequenceId::Own(request) = event.sequence else { return Vec::new() };
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        if matches!(entry.phase, Phase::Stopping) {
            return match event.ended {
                Some(_) => self.forget(request),
                None => Vec::new(),
            };
        }
        if entry.wanted_logprobs().is_some() {
            entry.prompt_logprobs.extend(event.prompt_logprobs);
        }
        let mut effects = Vec::new();
        let sampled = event.token.is_some();
        if let Some(token) = event.token {
            if entry.emitted.is_empty() {
                entry.timings.prefill_pid = self.config.pid;
                entry.timings.prefill_ms = event.running_micros as f64 / 1e3;
                effects.extend(entry.prefill_over(entry.computed(event.running_micros)));
            }
            effects.extend(entry.emit(now, token));
        }
        let mut preempted = false;
        if let Phase::Running(running) = &mut entry.phase {
            preempted = running.state == RunState::Preempted;
            let before = std::mem::replace(&mut running.resident, event.resident);
            // The prompt's pages can be shared as soon as the prompt is computed, the other pages when the sequence ends.
            let is_prompt_computed = before < entry.generate.prompt.len() as u32 && sampled;
            if is_prompt_computed || event.ended.is_some() {
                let (sequence, pages) = (event.sequence, running.table.clone());
                let tokens = entry.tokens()[..event.resident as usize].into();
                let salt = entry.generate.salt;
                effects.push(to::buffer_manager(PagesComputed { sequence, tokens, salt, pages }));
            }
        }
        match event.ended {
            None => effects.extend(self.grow(request)),
            Some(SequenceEnd::Finished(reason)) => effects.extend(self.finish(request, reason)),
            Some(SequenceEnd::Stopped) if preempted => {
                effects.extend(self.release_and_reserve(request, PrefillOutcome::Withdrawn));
            }
            Some(SequenceEnd::Stopped) => effects.extend(self.fail(request, RequestError::Aborted)),
            Some(SequenceEnd::Failed(error)) => {
                effects.extend(self.fail(request, RequestError::Engine(error)))
            }
            Some(SequenceEnd::GrammarFailed(error)) => {
                effects.extend(self.fail(request, RequestError::Grammar(error)))
            }
        }
        effects
    }

    fn forget(&mut self, request: RequestId) -> Vec<Effect> {
        let is_placing = |entry: &Entry| matches!(entry.phase, Phase::Placing | Phase::Waiting { .. });
        let has_none = self.requests.get(&request).is_some_and(is_placing);
        let release = (!has_none).then(|| self.release(request));
        let over = self
            .requests
            .remove(&request)
            .and_then(|mut entry| entry.prefill_over(PrefillOutcome::Withdrawn));
        over.into_iter().chain(release).collect()
    }

    fn release(&mut self, request: RequestId) -> Effect {
        self.releases += 1;
        if let Some(entry) = self.requests.get(&request) {
            self.holders.remove(&(entry.admitted, request));
        }
        self.stopping.remove(&request);
        to::buffer_manager(ReleasePages { sequence: SequenceId::Own(request) })
    }
}

#[cfg(test)]
mod tests;
