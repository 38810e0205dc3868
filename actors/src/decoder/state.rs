//! A request's way through this process: the decisions of the decoder, without actix, clock or I/O.
//!
//! ```text
//! Reserving ──► Landing (a sender prefills) ──► Running ──► ended
//!     │  ▲            │ sender lost or failed      ▲   │ abort, deadline
//!     │  └────────────┘ recompute here             │   ▼
//!     └──────────── prefilled here ────────────────┘ Stopping ──► ended
//! ```
//!
//! A running sequence asks for more pages before it needs them. When there are none, the youngest request gives its pages back
//! and is computed again later, from its prompt and the tokens that it has; so is one whose sender is lost or fails.
//!
//! Every request taken gets exactly one [`Action::End`], and its pages are released exactly once, after the engine
//! has let go of them. Tokens that were delivered are never taken back: a recompute starts from prompt + tokens.

mod ending;
mod entry;

use std::collections::BTreeMap;
use std::time::Instant;

use connector::frame::{Frame, PROMPT_TOKENS_MAX};
use engine::Token;

use crate::first_token;
use crate::messages::{
    Decode, ExtendSequence, GrowPages, PagesAdopted, PagesComputed, PagesGrown, PagesReserved, PagesShort,
    PrefillFinished, PrefillOutcome, PrefillOver, ReservePages, SendFrame, SequenceAdvanced, SequenceEnd,
    SequenceId, SessionId, StartSequence,
};
use crate::request::{FinishReason, Generate, RequestError, RequestId, StreamEvent, Timings};
use entry::{Entry, Phase, cancel, ms};

/// What the shell has to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Ask the buffer manager for pages.
    Reserve(ReservePages),
    /// Give them back.
    Release(SequenceId),
    /// Ask for more.
    Grow(GrowPages),
    /// Say what stands in pages.
    Computed(PagesComputed),
    /// Run on the engine.
    Start(StartSequence),
    /// Give the engine more pages for a sequence.
    Extend(ExtendSequence),
    /// Stop there.
    Stop(SequenceId),
    /// Tell a sender.
    Frame(SendFrame),
    /// Tell the proxy that a prompt does not wait for its prefill any more.
    Over(PrefillOver),
    /// Stream a token to the client.
    Token(RequestId, Token),
    /// Tell the client that this was all.
    End(RequestId, StreamEvent),
}

/// What the decoder knows of its node.
#[derive(Clone, Debug)]
pub struct DecoderConfig {
    /// Tokens in a page.
    pub page_tokens: u32,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Tokens that end a sequence.
    pub eos_tokens: Vec<u32>,
    /// Token ids are below this.
    pub vocabulary: u32,
    /// This process.
    pub pid: u32,
    /// How many tokens ahead of those it has a request's pages are reserved; at least one.
    pub growth_tokens: u32,
}

/// All live requests. Every `on_…` returns what has to be done, in order.
#[derive(Debug)]
pub struct DecoderState {
    config: DecoderConfig,
    requests: BTreeMap<RequestId, Entry>,
    taken: u64,
    recomputes: u64,
    preemptions: u64,
    /// Releases asked for.
    releases: u64,
    /// Sessions that can prefill, and their processes.
    peers: BTreeMap<SessionId, u32>,
}

impl DecoderState {
    /// No requests and no peers.
    pub fn new(config: DecoderConfig) -> Self {
        Self {
            config,
            requests: BTreeMap::new(),
            taken: 0,
            recomputes: 0,
            preemptions: 0,
            releases: 0,
            peers: BTreeMap::new(),
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

    /// Requests that have come in.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Prompts computed again here because of their sender.
    pub fn recomputes(&self) -> u64 {
        self.recomputes
    }

    /// Requests that gave their pages back for others.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// A sender can prefill.
    pub fn on_peer_ready(&mut self, session: SessionId, pid: u32) {
        self.peers.insert(session, pid);
    }

    /// A sender is gone: what it was prefilling is computed here.
    pub fn on_peer_lost(&mut self, session: SessionId) -> Vec<Action> {
        self.peers.remove(&session);
        // The oldest last: each goes before all that wait.
        let lost: Vec<RequestId> = self
            .requests
            .iter()
            .rev()
            .filter(|(_, entry)| matches!(&entry.phase, Phase::Landing { session: on, .. } if *on == session))
            .map(|(request, _)| *request)
            .collect();
        lost.into_iter().flat_map(|request| self.recompute(request)).collect()
    }

    /// A sender will not prefill this request after all.
    pub fn on_prefill_failed(&mut self, session: SessionId, request: RequestId) -> Vec<Action> {
        match self.requests.get(&request).map(|entry| &entry.phase) {
            Some(Phase::Landing { session: on, .. }) if *on == session => self.recompute(request),
            _ => Vec::new(),
        }
    }

    /// A request comes in. One whose sender has gone meanwhile runs here. One whose client has left meanwhile does not run at
    /// all: its abort takes a shorter way and may have been first.
    pub fn on_decode(&mut self, now: Instant, decode: Decode, client_waits: bool) -> Vec<Action> {
        let Decode { generate, prefill_on } = decode;
        let request = generate.request;
        self.taken += 1;
        if !client_waits {
            let tokens = generate.prompt.len() as u32;
            let outcome = PrefillOutcome::Withdrawn;
            let over = Action::Over(PrefillOver { on: prefill_on, tokens, outcome });
            return vec![over, Action::End(request, StreamEvent::Failed(RequestError::Aborted))];
        }
        let travels = generate.prompt.len() <= PROMPT_TOKENS_MAX;
        let on = prefill_on.filter(|session| travels && self.peers.contains_key(session));
        let timings = Timings {
            decode_pid: self.config.pid,
            prompt_tokens: generate.prompt.len() as u32,
            ..Timings::default()
        };
        let mut entry = Entry {
            generate,
            admitted: now,
            first_token: None,
            last_token: None,
            emitted: Vec::new(),
            phase: Phase::Reserving { on },
            counted: Some(prefill_on),
            timings,
        };
        let elsewhere = (on != prefill_on).then(|| entry.over(PrefillOutcome::Withdrawn)).flatten();
        self.requests.insert(request, entry);
        self.reservation(request, on.is_some(), false).into_iter().chain(elsewhere).collect()
    }

    fn pages_for(&self, tokens: usize) -> u32 {
        (tokens as u32).div_ceil(self.config.page_tokens)
    }

    /// Pages for every token that the request may get; the last sampled one needs no KV.
    fn pages_at_most(&self, generate: &Generate) -> u32 {
        self.pages_for(generate.prompt.len() + generate.max_tokens as usize - 1)
    }

    /// Pages for the request's tokens and some more.
    fn pages_ahead(&self, entry: &Entry) -> u32 {
        let tokens =
            entry.generate.prompt.len() + entry.emitted.len() + self.config.growth_tokens.max(1) as usize;
        self.pages_for(tokens).min(self.pages_at_most(&entry.generate))
    }

    fn reservation(&self, request: RequestId, landing: bool, again: bool) -> Option<Action> {
        let entry = self.requests.get(&request)?;
        let reserve = ReservePages {
            sequence: SequenceId::Own(request),
            tokens: entry.tokens(),
            pages: self.pages_ahead(entry),
            landing,
            again,
        };
        Some(Action::Reserve(reserve))
    }

    /// The prompt's sender cannot be relied upon: it is computed here.
    fn recompute(&mut self, request: RequestId) -> Vec<Action> {
        self.recomputes += 1;
        self.begin_again(request, PrefillOutcome::Failed)
    }

    /// Gives all pages back and asks for new ones, to go on here from the tokens that the request has. `outcome` is its sender's, if a sender
    /// was prefilling.
    fn begin_again(&mut self, request: RequestId, outcome: PrefillOutcome) -> Vec<Action> {
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        if !matches!(entry.phase, Phase::Running(_)) {
            // Whatever a sender has done for it is of no use any more.
            let (decode_pid, prompt_tokens) = (entry.timings.decode_pid, entry.timings.prompt_tokens);
            entry.timings =
                Timings { prefill_pid: decode_pid, decode_pid, prompt_tokens, ..Timings::default() };
        }
        entry.phase = Phase::Reserving { on: None };
        let over = entry.over(outcome);
        let release = self.release(request);
        [release].into_iter().chain(self.reservation(request, false, true)).chain(over).collect()
    }

    /// The pages are there: run here, or ask the sender.
    pub fn on_reserved(&mut self, now: Instant, reserved: PagesReserved) -> Vec<Action> {
        let PagesReserved { sequence: SequenceId::Own(request), resident, landing, mut pages } = reserved
        else {
            return Vec::new();
        };
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        let Phase::Reserving { on } = entry.phase else { return Vec::new() };
        if entry.emitted.is_empty() {
            entry.timings.resident_tokens = resident;
        }
        let Some(session) = on.filter(|_| landing > 0) else {
            let elsewhere = on.and_then(|_| entry.over(PrefillOutcome::Withdrawn));
            return [entry.start(resident, pages)].into_iter().chain(elsewhere).collect();
        };
        if !self.peers.contains_key(&session) {
            return self.recompute(request);
        }
        let own = pages.split_off((resident / self.config.page_tokens) as usize);
        let shared = pages.into_iter().map(Some);
        let table = shared.chain(std::iter::repeat_n(None, landing as usize)).collect();
        entry.phase = Phase::Landing { session, table, own };
        let frame = Frame::Prefill {
            request: request.0,
            prompt: entry.generate.prompt.to_vec(),
            resident,
            sampling: first_token::to_frame(&entry.generate.sampling),
            remaining_ms: entry.generate.deadline.saturating_duration_since(now).as_millis() as u64,
        };
        vec![Action::Frame(SendFrame { session, frame })]
    }

    /// A running request has more pages.
    pub fn on_grown(&mut self, grown: PagesGrown) -> Vec<Action> {
        let PagesGrown { sequence: SequenceId::Own(request), pages } = grown else { return Vec::new() };
        match self.requests.get_mut(&request).map(|entry| &mut entry.phase) {
            Some(Phase::Running(running)) => {
                running.growing = false;
                running.table.extend(&pages);
                vec![Action::Extend(ExtendSequence { sequence: SequenceId::Own(request), pages })]
            }
            // It has ended, and gives them back.
            _ => Vec::new(),
        }
    }

    /// There is no room for a request to grow: the youngest one that holds pages gives them back, be it that one itself.
    pub fn on_short(&mut self, short: PagesShort) -> Vec<Action> {
        if short.releases < self.releases {
            // Pages have gone back since: if they are not enough, we are told again.
            return Vec::new();
        }
        let yields = |entry: &Entry| match &entry.phase {
            Phase::Running(running) => running.yields,
            phase => matches!(phase, Phase::Stopping),
        };
        if self.requests.values().any(yields) {
            // Pages are coming back already; if they are not enough, we are told again.
            return Vec::new();
        }
        let holds = |entry: &Entry| matches!(entry.phase, Phase::Running(_) | Phase::Landing { .. });
        let holders = self.requests.iter().filter(|(_, entry)| holds(entry));
        let youngest = holders.max_by_key(|(request, entry)| (entry.admitted, **request));
        let Some(request) = youngest.map(|(request, _)| *request) else { return Vec::new() };
        self.preempt(request)
    }

    fn preempt(&mut self, request: RequestId) -> Vec<Action> {
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        self.preemptions += 1;
        match &mut entry.phase {
            Phase::Running(running) => {
                running.yields = true;
                vec![Action::Stop(SequenceId::Own(request))]
            }
            Phase::Landing { session, .. } => {
                let cancel = cancel(*session, request);
                [vec![cancel], self.begin_again(request, PrefillOutcome::Withdrawn)].concat()
            }
            Phase::Reserving { .. } | Phase::Stopping => Vec::new(),
        }
    }

    /// Asks for more pages once the last one is begun.
    fn grow(&mut self, request: RequestId) -> Option<Action> {
        let entry = self.requests.get(&request)?;
        let ahead = self.pages_ahead(entry);
        let begun = self.pages_for(entry.generate.prompt.len() + entry.emitted.len()) + 1;
        let wanted = begun.min(self.pages_at_most(&entry.generate));
        let entry = self.requests.get_mut(&request)?;
        let Phase::Running(running) = &mut entry.phase else { return None };
        let has = running.table.len() as u32;
        if running.growing || running.yields || has >= wanted {
            return None;
        }
        running.growing = true;
        let (least, most) = (wanted - has, ahead.max(wanted) - has);
        Some(Action::Grow(GrowPages { sequence: SequenceId::Own(request), least, most }))
    }

    /// Pages landed and are the request's now. A place that does not exist or is taken means that the sender is confused:
    /// nothing it sent for this request is used.
    pub fn on_adopted(&mut self, now: Instant, adopted: PagesAdopted) -> Vec<Action> {
        let Some(entry) = self.requests.get_mut(&adopted.request) else { return Vec::new() };
        let Phase::Landing { table, .. } = &mut entry.phase else { return Vec::new() };
        let first = adopted.first_page as usize;
        let places = table.get_mut(first..).and_then(|rest| rest.get_mut(..adopted.pages.len()));
        match places {
            Some(places) if places.iter().all(Option::is_none) => {
                places.iter_mut().zip(&adopted.pages).for_each(|(place, page)| *place = Some(*page));
            }
            _ => return self.on_rejected(adopted.request),
        }
        entry.timings.pages += adopted.pages.len() as u32;
        entry.timings.bytes += adopted.pages.len() as u64 * self.config.page_bytes;
        entry.timings.transfer_ms = adopted.transfer_micros as f64 / 1e3;
        if let Some(prefilled) = entry.first_token {
            entry.timings.exposed_ms = ms(now - prefilled);
        }
        entry.join()
    }

    /// A page that landed is not what the sender put: nothing it sent for this request is used.
    pub fn on_rejected(&mut self, request: RequestId) -> Vec<Action> {
        match self.requests.get(&request).map(|entry| &entry.phase) {
            Some(Phase::Landing { session, .. }) => {
                let cancel = cancel(*session, request);
                [vec![cancel], self.recompute(request)].concat()
            }
            _ => Vec::new(),
        }
    }

    /// The sender has sampled the first token: it streams at once.
    pub fn on_prefill_finished(&mut self, now: Instant, finished: PrefillFinished) -> Vec<Action> {
        let request = finished.request;
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        let Phase::Landing { session, .. } = entry.phase else { return Vec::new() };
        if session != finished.session || !entry.emitted.is_empty() {
            return Vec::new();
        }
        if !first_token::is_known(&finished.token, self.config.vocabulary) {
            return self.on_rejected(request);
        }
        entry.timings.disaggregated = true;
        entry.timings.prefill_pid = self.peers.get(&session).copied().unwrap_or_default();
        entry.timings.prefill_ms = finished.prefill_micros as f64 / 1e3;
        let stop = !entry.generate.ignore_eos && self.config.eos_tokens.contains(&finished.token.id);
        let over = entry.over(entry.computed(finished.prefill_micros));
        let mut actions: Vec<Action> = over.into_iter().chain([entry.emit(now, finished.token)]).collect();
        if stop || entry.generate.max_tokens == 1 {
            // Pages still under way find nobody and go back.
            actions.push(cancel(session, request));
            let reason = if stop { FinishReason::Stop } else { FinishReason::Length };
            actions.extend(self.finish(request, reason));
        } else {
            actions.extend(entry.join());
        }
        actions
    }

    /// The engine has moved a sequence of ours.
    pub fn on_advanced(&mut self, now: Instant, event: SequenceAdvanced) -> Vec<Action> {
        let SequenceId::Own(request) = event.sequence else { return Vec::new() };
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        if matches!(entry.phase, Phase::Stopping) {
            return match event.ended {
                Some(_) => self.forget(request),
                None => Vec::new(),
            };
        }
        let mut actions = Vec::new();
        let sampled = event.token.is_some();
        if let Some(token) = event.token {
            if entry.emitted.is_empty() {
                entry.timings.prefill_pid = self.config.pid;
                entry.timings.prefill_ms = event.running_micros as f64 / 1e3;
                actions.extend(entry.over(entry.computed(event.running_micros)));
            }
            actions.push(entry.emit(now, token));
        }
        let mut yields = false;
        if let Phase::Running(running) = &mut entry.phase {
            yields = running.yields;
            let before = std::mem::replace(&mut running.resident, event.resident);
            // A prompt is worth knowing as soon as it is computed; the rest when the sequence lets go of it.
            let computed = before < entry.generate.prompt.len() as u32 && sampled;
            if computed || event.ended.is_some() {
                let (sequence, pages) = (event.sequence, running.table.clone());
                let tokens = entry.tokens()[..event.resident as usize].into();
                actions.push(Action::Computed(PagesComputed { sequence, tokens, pages }));
            }
        }
        match event.ended {
            None => actions.extend(self.grow(request)),
            Some(SequenceEnd::Finished(reason)) => actions.extend(self.finish(request, reason)),
            Some(SequenceEnd::Stopped) if yields => {
                actions.extend(self.begin_again(request, PrefillOutcome::Withdrawn));
            }
            Some(SequenceEnd::Stopped) => actions.extend(self.fail(request, RequestError::Aborted)),
            Some(SequenceEnd::Failed(error)) => {
                actions.extend(self.fail(request, RequestError::Engine(error)))
            }
        }
        actions
    }

    fn forget(&mut self, request: RequestId) -> Vec<Action> {
        let over = self.requests.remove(&request).and_then(|mut entry| entry.over(PrefillOutcome::Withdrawn));
        over.into_iter().chain([self.release(request)]).collect()
    }

    fn release(&mut self, request: RequestId) -> Action {
        self.releases += 1;
        Action::Release(SequenceId::Own(request))
    }
}

#[cfg(test)]
mod tests;
