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
//! Every request taken gets exactly one terminal event, and its pages are released exactly once, after the engine
//! has let go of them. Tokens that were delivered are never taken back: a recompute starts from prompt + tokens.

mod ending;
mod entry;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use connector::frame::{Frame, PROMPT_TOKENS_MAX, PrefillFault};

use crate::effect::{Effect, ToDecoder, to};
use crate::first_token;
use crate::log::LogLine;
use crate::messages::{
    Decode, ExtendSequence, GrowPages, PagesAdopted, PagesComputed, PagesGrown, PagesReserved, PagesShort,
    PeerReady, PrefillFailed, PrefillFinished, PrefillOutcome, ReleasePages, ReservePages, SendFrame,
    SequenceAdvanced, SequenceEnd, SequenceId, SessionId, StopSequence,
};
use crate::request::{
    AbortRequest, FinishReason, Generate, Refused, RequestError, RequestId, StreamEvent, Timings,
};
use entry::{Entry, Phase, cancel, ms};

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

/// What the decoder has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecoderCounts {
    /// Requests that came in.
    pub taken: u64,
    /// Prompts computed again here because of their sender.
    pub recomputes: u64,
    /// Requests that gave their pages back to others.
    pub preemptions: u64,
    /// Requests that ended well.
    pub finished: u64,
    /// Requests that their client ended, or that were refused.
    pub aborted: u64,
    /// Requests that missed their deadline.
    pub deadlines_missed: u64,
    /// Requests that could not get their pages because of lost sessions.
    pub denied: u64,
    /// Requests that an engine error ended.
    pub engine_failures: u64,
    /// Requests that the end of the process ended.
    pub cut_at_the_end: u64,
}

impl DecoderCounts {
    fn end(&mut self, event: &StreamEvent) {
        let count = match event {
            StreamEvent::Finished { .. } | StreamEvent::Token(_) => &mut self.finished,
            StreamEvent::Failed(RequestError::Deadline { .. }) => &mut self.deadlines_missed,
            StreamEvent::Failed(RequestError::Engine(_)) => &mut self.engine_failures,
            StreamEvent::Failed(RequestError::ShuttingDown) => &mut self.cut_at_the_end,
            StreamEvent::Failed(RequestError::Refused(Refused::NoRoom { .. })) => &mut self.denied,
            StreamEvent::Failed(RequestError::Aborted | RequestError::Refused(_)) => &mut self.aborted,
        };
        *count += 1;
    }
}

/// All live requests.
#[derive(Debug)]
pub struct DecoderState {
    config: DecoderConfig,
    requests: BTreeMap<RequestId, Entry>,
    counts: DecoderCounts,
    /// Requests that hold pages, the youngest last.
    holders: BTreeSet<(Instant, RequestId)>,
    /// Requests whose pages come back once the engine has stopped them.
    stopping: BTreeSet<RequestId>,
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
            counts: DecoderCounts::default(),
            holders: BTreeSet::new(),
            stopping: BTreeSet::new(),
            releases: 0,
            peers: BTreeMap::new(),
        }
    }

    /// Takes a message.
    pub fn on(&mut self, now: Instant, mail: ToDecoder) -> Vec<Effect> {
        match mail {
            ToDecoder::Decode(decode) => self.on_decode(now, *decode),
            ToDecoder::AbortRequest(AbortRequest { request, complete_with: None }) => self.on_abort(request),
            ToDecoder::AbortRequest(AbortRequest { request, complete_with: Some(tokens) }) => {
                self.on_complete(request, tokens)
            }
            ToDecoder::AbortAll(_) => self.on_abort_all(),
            ToDecoder::PagesReserved(reserved) => self.on_reserved(now, reserved),
            ToDecoder::PagesDenied(denied) => self.on_denied(&denied),
            ToDecoder::PagesGrown(grown) => self.on_grown(grown),
            ToDecoder::PagesShort(short) => self.on_short(short),
            ToDecoder::PagesAdopted(adopted) => self.on_adopted(now, adopted),
            ToDecoder::PageRejected(rejected) => self.on_rejected(rejected.request),
            ToDecoder::SequenceAdvanced(event) => self.on_advanced(now, event),
            ToDecoder::PeerReady(ready) => self.on_peer_ready(ready),
            ToDecoder::PeerLost(lost) => self.on_peer_lost(lost.session),
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

    /// What was counted so far.
    pub fn counts(&self) -> DecoderCounts {
        self.counts
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// A sender can prefill.
    fn on_peer_ready(&mut self, ready: PeerReady) -> Vec<Effect> {
        self.peers.insert(ready.session, ready.pid);
        Vec::new()
    }

    /// A sender is gone: what it was prefilling is computed here.
    fn on_peer_lost(&mut self, session: SessionId) -> Vec<Effect> {
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
    fn on_prefill_failed(&mut self, failed: PrefillFailed) -> Vec<Effect> {
        let PrefillFailed { session, request, fault, reason } = failed;
        match self.requests.get(&request).map(|entry| &entry.phase) {
            Some(Phase::Landing { session: on, .. }) if *on == session => {
                let told = to::log(LogLine::PrefillFailed { request, session, reason });
                let outcome = match fault {
                    PrefillFault::Refused => PrefillOutcome::Withdrawn,
                    PrefillFault::Failed => PrefillOutcome::Failed,
                };
                self.counts.recomputes += 1;
                [vec![told], self.begin_again(request, outcome)].concat()
            }
            _ => Vec::new(),
        }
    }

    /// A request comes in. It runs here if its sender is gone by now.
    fn on_decode(&mut self, now: Instant, decode: Decode) -> Vec<Effect> {
        let Decode { generate, prefill_on } = decode;
        let request = generate.request;
        self.counts.taken += 1;
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
        self.reservation(request, on, false).into_iter().chain(elsewhere).collect()
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

    fn reservation(&self, request: RequestId, landing: Option<SessionId>, again: bool) -> Option<Effect> {
        let entry = self.requests.get(&request)?;
        let reserve = ReservePages {
            sequence: SequenceId::Own(request),
            tokens: entry.tokens(),
            pages: self.pages_ahead(entry),
            landing,
            again,
        };
        Some(to::buffer_manager(reserve))
    }

    /// The prompt's sender cannot be relied upon: it is computed here.
    fn recompute(&mut self, request: RequestId) -> Vec<Effect> {
        self.counts.recomputes += 1;
        self.begin_again(request, PrefillOutcome::Failed)
    }

    /// Gives all pages back and asks for new ones, to continue here from the tokens that the request has. `outcome` is its sender's,
    /// if a sender was prefilling.
    fn begin_again(&mut self, request: RequestId, outcome: PrefillOutcome) -> Vec<Effect> {
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
        [release].into_iter().chain(self.reservation(request, None, true)).chain(over).collect()
    }

    /// The pages are there: run here, or ask the sender.
    fn on_reserved(&mut self, now: Instant, reserved: PagesReserved) -> Vec<Effect> {
        let PagesReserved { sequence: SequenceId::Own(request), resident, landing, mut pages } = reserved
        else {
            return Vec::new();
        };
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        let Phase::Reserving { on } = entry.phase else { return Vec::new() };
        self.holders.insert((entry.admitted, request));
        if entry.emitted.is_empty() {
            entry.timings.resident_tokens = resident;
        }
        let Some(session) = on.filter(|_| landing > 0) else {
            let is_lost = on.is_some_and(|session| !self.peers.contains_key(&session));
            self.counts.recomputes += u64::from(is_lost);
            let outcome = if is_lost { PrefillOutcome::Failed } else { PrefillOutcome::Withdrawn };
            let elsewhere = on.and_then(|_| entry.over(outcome));
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
        vec![to::peer_link(SendFrame { session, frame })]
    }

    /// A running request has more pages.
    fn on_grown(&mut self, grown: PagesGrown) -> Vec<Effect> {
        let PagesGrown { sequence: SequenceId::Own(request), pages } = grown else { return Vec::new() };
        match self.requests.get_mut(&request).map(|entry| &mut entry.phase) {
            Some(Phase::Running(running)) => {
                running.growing = false;
                running.table.extend(&pages);
                vec![to::generator(ExtendSequence { sequence: SequenceId::Own(request), pages })]
            }
            // It has ended, and gives them back.
            _ => Vec::new(),
        }
    }

    /// There is no room for a request to grow: the youngest one that holds pages gives them back, be it that one itself.
    fn on_short(&mut self, short: PagesShort) -> Vec<Effect> {
        if short.releases < self.releases {
            // Pages have gone back since: if they are not enough, we are told again.
            return Vec::new();
        }
        if !self.stopping.is_empty() {
            // Pages are coming back already; if they are not enough, we are told again.
            return Vec::new();
        }
        let Some(&(_, request)) = self.holders.last() else { return Vec::new() };
        self.preempt(request)
    }

    fn preempt(&mut self, request: RequestId) -> Vec<Effect> {
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        self.counts.preemptions += 1;
        match &mut entry.phase {
            Phase::Running(running) => {
                running.yields = true;
                self.stopping.insert(request);
                vec![to::generator(StopSequence { sequence: SequenceId::Own(request) })]
            }
            Phase::Landing { session, .. } => {
                let cancel = cancel(*session, request);
                [vec![cancel], self.begin_again(request, PrefillOutcome::Withdrawn)].concat()
            }
            Phase::Reserving { .. } | Phase::Stopping => Vec::new(),
        }
    }

    /// Asks for more pages once the last one is begun.
    fn grow(&mut self, request: RequestId) -> Option<Effect> {
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
        Some(to::buffer_manager(GrowPages { sequence: SequenceId::Own(request), least, most }))
    }

    /// Pages landed and are the request's now. A place that does not exist or is taken means that the sender is confused:
    /// nothing it sent for this request is used.
    fn on_adopted(&mut self, now: Instant, adopted: PagesAdopted) -> Vec<Effect> {
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
    fn on_rejected(&mut self, request: RequestId) -> Vec<Effect> {
        match self.requests.get(&request).map(|entry| &entry.phase) {
            Some(Phase::Landing { session, .. }) => {
                let cancel = cancel(*session, request);
                [vec![cancel], self.recompute(request)].concat()
            }
            _ => Vec::new(),
        }
    }

    /// The sender has sampled the first token: it streams at once.
    fn on_prefill_finished(&mut self, now: Instant, finished: PrefillFinished) -> Vec<Effect> {
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
        let mut effects: Vec<Effect> = over.into_iter().chain([entry.emit(now, finished.token)]).collect();
        if stop || entry.generate.max_tokens == 1 {
            // Pages still under way find nobody and go back.
            effects.push(cancel(session, request));
            let reason = if stop { FinishReason::Stop } else { FinishReason::Length };
            effects.extend(self.finish(request, reason));
        } else {
            effects.extend(entry.join());
        }
        effects
    }

    /// The engine has moved a sequence of ours.
    fn on_advanced(&mut self, now: Instant, event: SequenceAdvanced) -> Vec<Effect> {
        let SequenceId::Own(request) = event.sequence else { return Vec::new() };
        let Some(entry) = self.requests.get_mut(&request) else { return Vec::new() };
        if matches!(entry.phase, Phase::Stopping) {
            return match event.ended {
                Some(_) => self.forget(request),
                None => Vec::new(),
            };
        }
        let mut effects = Vec::new();
        let sampled = event.token.is_some();
        if let Some(token) = event.token {
            if entry.emitted.is_empty() {
                entry.timings.prefill_pid = self.config.pid;
                entry.timings.prefill_ms = event.running_micros as f64 / 1e3;
                effects.extend(entry.over(entry.computed(event.running_micros)));
            }
            effects.push(entry.emit(now, token));
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
                effects.push(to::buffer_manager(PagesComputed { sequence, tokens, pages }));
            }
        }
        match event.ended {
            None => effects.extend(self.grow(request)),
            Some(SequenceEnd::Finished(reason)) => effects.extend(self.finish(request, reason)),
            Some(SequenceEnd::Stopped) if yields => {
                effects.extend(self.begin_again(request, PrefillOutcome::Withdrawn));
            }
            Some(SequenceEnd::Stopped) => effects.extend(self.fail(request, RequestError::Aborted)),
            Some(SequenceEnd::Failed(error)) => {
                effects.extend(self.fail(request, RequestError::Engine(error)))
            }
        }
        effects
    }

    fn forget(&mut self, request: RequestId) -> Vec<Effect> {
        let release = self.release(request);
        let over = self.requests.remove(&request).and_then(|mut entry| entry.over(PrefillOutcome::Withdrawn));
        over.into_iter().chain([release]).collect()
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
