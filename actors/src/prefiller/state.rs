//! The life of a peer's prompt in this process: the decisions of the prefiller, without actix, clock or I/O.
//!
//! ```text
//! Compiling ──► Reserving ──► Running ──► Sending ──► Draining ──► gone
//!     │ cancel      │ cancel     │ cancel     │ cancel    ▲
//!     ▼             ▼            ▼            └───────────┤
//!    gone          gone       Stopping ───────────────────┘
//! ```
//!
//! Only a prompt whose grammar is not compiled yet begins in Compiling. It gets pages after its grammar was compiled.
//!
//! A page is handed to the transfer actor as soon as no later token can change it. The prompt's pages are released when neither the engine
//! nor a put uses them.

mod ending;
mod entry;
mod grammars;

use std::collections::{BTreeMap, HashMap, hash_map};
use std::sync::Arc;
use std::time::{Duration, Instant};

use connector::frame::{Frame, PrefillFault};

use crate::effect::{Effect, ToPrefiller, to};
use crate::first_token;
use crate::grammar::{CompiledGrammar, GrammarError};
use crate::log::LogLine;
use crate::messages::{
    GrammarCompiled, PagesComputed, PagesDenied, PagesReserved, PagesSent, PrefillTraced, ReleasePages,
    SendFrame, SequenceAdvanced, SequenceEnd, SequenceId, SessionId, StartPrefill, StartSequence, TRACED_MAX,
};
use crate::request::RequestId;
use entry::{Entry, HandOver, Phase, cancel_puts, failed, turned_away};
use grammars::{Grammars, Wanted, refused};

/// A request of a peer.
pub type Key = (SessionId, RequestId);

/// The prefiller's configuration.
#[derive(Clone, Debug)]
pub struct PrefillerConfig {
    /// Tokens in a page.
    pub page_tokens: u32,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Pages in the pool.
    pub pool_pages: u32,
    /// Token ids are below this.
    pub vocabulary: u32,
    /// Maximum number of tokens in a sequence of the model.
    pub context_tokens: u32,
    /// Whether there is a grammar thread. Without one, prefills with a grammar are refused.
    pub compiles_grammars: bool,
    /// Whether prefills of traces are recorded.
    pub records_traces: bool,
}

/// Maximum number of prefills per session at a time. There is no room for further ones.
const PREFILLS_MAX: usize = 1024;
/// Maximum time until the deadline of a peer's request.
const REMAINING_MS_MAX: u64 = 24 * 3600 * 1000;

/// Maximum time that a prefill waits for its grammar. Then the receiver computes it itself.
const COMPILING_MAX: Duration = Duration::from_secs(10);

/// All live prefills.
#[derive(Debug)]
pub struct PrefillerState {
    config: PrefillerConfig,
    draining: bool,
    next_serial: u64,
    entries: BTreeMap<Key, Entry>,
    /// The entry of each serial.
    serials: HashMap<u64, Key>,
    /// Number of entries of each session. A session without entries is absent.
    of_session: HashMap<SessionId, usize>,
    /// The sessions that had pages to send at the last tick, and the first tick since which none was sent.
    waiting_since: BTreeMap<SessionId, Instant>,
    grammars: Grammars,
}

impl PrefillerState {
    /// No prefills.
    pub fn new(config: PrefillerConfig) -> Self {
        Self {
            grammars: Grammars::new(config.compiles_grammars),
            config,
            draining: false,
            next_serial: 0,
            entries: BTreeMap::new(),
            serials: HashMap::new(),
            of_session: HashMap::new(),
            waiting_since: BTreeMap::new(),
        }
    }

    /// Prefills that have not ended.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The receiver's request that this sequence computes; `None` if it has ended. For checks.
    pub fn request_of(&self, sequence: SequenceId) -> Option<RequestId> {
        let SequenceId::Peer(serial) = sequence else { return None };
        self.serials.get(&serial).map(|key| key.1)
    }

    /// Prompts of this session that wait for their grammar. For checks.
    pub fn compiling(&self, session: SessionId) -> usize {
        let of_session = self.entries.iter().filter(|(key, _)| key.0 == session);
        of_session.filter(|(_, entry)| matches!(entry.phase, Phase::Compiling(..))).count()
    }

    /// Handles a message and returns the effects.
    pub fn on(&mut self, now: Instant, mail: ToPrefiller) -> Vec<Effect> {
        match mail {
            ToPrefiller::StoreGrammar(store) => {
                self.grammars.store(store);
                Vec::new()
            }
            ToPrefiller::StartPrefill(start) => self.on_prefill(now, *start),
            ToPrefiller::CancelPrefill(cancel) => self.on_cancel(now, (cancel.session, cancel.request)),
            ToPrefiller::GrammarCompiled(compiled) => self.on_compiled(now, &compiled),
            ToPrefiller::PagesReserved(reserved) => self.on_reserved(now, reserved),
            ToPrefiller::PagesDenied(denied) => self.on_denied(now, &denied),
            ToPrefiller::SequenceAdvanced(event) => self.on_advanced(now, event),
            ToPrefiller::PagesSent(sent) => self.on_sent(now, &sent),
            ToPrefiller::PutsDrained(drained) => self.on_drained(now, (drained.session, drained.request)),
            ToPrefiller::PeerLost(lost) => self.on_peer_lost(now, lost.session),
            ToPrefiller::BeginDrain(_) => self.on_drain(),
            ToPrefiller::Tick(_) => self.on_tick(now),
        }
    }

    /// This process is ending: new prefills are refused, accepted ones continue.
    fn on_drain(&mut self) -> Vec<Effect> {
        self.draining = true;
        Vec::new()
    }

    /// A receiver wants a prompt's KV.
    fn on_prefill(&mut self, now: Instant, start: StartPrefill) -> Vec<Effect> {
        let StartPrefill {
            session,
            request,
            prompt,
            resident,
            sampling,
            salt,
            grammar,
            prompt_logprobs,
            remaining_ms,
            trace,
        } = start;
        let key = (session, request);
        let trace = trace
            .filter(|_| self.config.records_traces)
            .map(|context| PrefillTraced::new(now, context, key, prompt.len() as u32, resident));
        if let Some(reason) = self.refusal(key, &prompt, resident, prompt_logprobs) {
            return turned_away(trace, "refused", failed(key, PrefillFault::Refused, reason));
        }
        if self.of_session.get(&session).is_some_and(|count| *count >= PREFILLS_MAX) {
            let reason = format!("the session already has {PREFILLS_MAX} prefills on this sender");
            return turned_away(trace, "busy", failed(key, PrefillFault::Busy, reason));
        }
        let deadline = now + Duration::from_millis(remaining_ms.min(REMAINING_MS_MAX));
        let compiling = |hash| Phase::Compiling(hash, deadline.min(now + COMPILING_MAX));
        let wanted = grammar.map(|hash| Ok((hash, self.grammars.want(session, hash)?))).transpose();
        let (grammar, phase, compile) = match wanted {
            Ok(None) => (None, Phase::Reserving, None),
            Ok(Some((_, Wanted::Compiled(grammar)))) => (Some(grammar), Phase::Reserving, None),
            Ok(Some((hash, Wanted::Compiling))) => (None, compiling(hash), None),
            Ok(Some((hash, Wanted::New(new)))) => (None, compiling(hash), Some(to::grammar_thread(new))),
            Err(reason) => {
                return turned_away(trace, "grammar", failed(key, PrefillFault::Refused, reason));
            }
        };
        self.next_serial += 1;
        let serial = self.next_serial;
        self.serials.insert(serial, key);
        *self.of_session.entry(session).or_default() += 1;
        let prompt: Arc<[u32]> = prompt.into();
        let entry = Entry {
            serial,
            prompt,
            sampling,
            salt,
            grammar,
            prompt_logprobs,
            reported: 0,
            resident,
            deadline,
            trace: trace.map(Box::new),
            phase,
        };
        let reserve = entry.reserve(self.config.page_tokens);
        self.entries.insert(key, entry);
        reserve.or(compile).into_iter().collect()
    }

    /// The grammar thread has answered: the prompts that wait for this grammar get pages, or are refused.
    fn on_compiled(&mut self, now: Instant, compiled: &GrammarCompiled) -> Vec<Effect> {
        self.grammars.on_compiled(compiled);
        let GrammarCompiled { session, hash, outcome } = compiled;
        let of_session = (*session, RequestId(0))..=(*session, RequestId(u64::MAX));
        let waits = |entry: &Entry| matches!(entry.phase, Phase::Compiling(on, _) if on == *hash);
        let waiting = self.entries.range(of_session).filter(|(_, entry)| waits(entry));
        let waiting: Vec<Key> = waiting.map(|(key, _)| *key).collect();
        waiting.into_iter().flat_map(|key| self.on_grammar(now, key, outcome)).collect()
    }

    /// Refuses a prefill that was accepted, because of its grammar.
    fn refuse(&mut self, now: Instant, key: Key, reason: String) -> Vec<Effect> {
        self.note_failure(key, "grammar");
        [vec![failed(key, PrefillFault::Refused, reason)], self.forget(now, key)].concat()
    }

    /// The prompt's grammar is compiled, or was refused.
    fn on_grammar(
        &mut self,
        now: Instant,
        key: Key,
        outcome: &Result<CompiledGrammar, GrammarError>,
    ) -> Vec<Effect> {
        let Some(entry) = self.entries.get_mut(&key) else { return Vec::new() };
        match outcome {
            Ok(grammar) => {
                (entry.grammar, entry.phase) = (Some(grammar.clone()), Phase::Reserving);
                entry.reserve(self.config.page_tokens).into_iter().collect()
            }
            Err(error) => self.refuse(now, key, refused(error)),
        }
    }

    fn pages_for(&self, prompt: &[u32]) -> u32 {
        (prompt.len() as u32).div_ceil(self.config.page_tokens)
    }

    /// Why a prompt is refused, or `None` if it is accepted. Every number from the peer is checked here.
    fn refusal(
        &self,
        key: Key,
        prompt: &[u32],
        resident: u32,
        prompt_logprobs: Option<u32>,
    ) -> Option<String> {
        let PrefillerConfig { pool_pages, vocabulary, context_tokens, page_tokens, .. } = self.config;
        let pages = self.pages_for(prompt);
        if self.draining {
            Some("this sender is draining".to_owned())
        } else if prompt.is_empty() {
            Some("the prompt is empty".to_owned())
        } else if prompt.len() > context_tokens as usize {
            Some(format!(
                "the prompt has {} tokens and the model's context has {context_tokens}",
                prompt.len()
            ))
        } else if resident as usize >= prompt.len() || !resident.is_multiple_of(page_tokens) {
            Some(format!("{resident} of {} tokens cannot be resident", prompt.len()))
        } else if resident > 0 && prompt_logprobs.is_some() {
            Some(format!("{resident} resident tokens have no log probabilities"))
        } else if let Some(token) = prompt.iter().find(|token| **token >= vocabulary) {
            Some(format!("token {token} is not in the vocabulary of {vocabulary}"))
        } else if self.entries.contains_key(&key) {
            Some("a request with this number is being prefilled".to_owned())
        } else if pages > pool_pages {
            Some(format!("the prompt needs {pages} pages of KV and the sender's pool has {pool_pages}"))
        } else {
            None
        }
    }

    /// The entry of a sequence.
    fn find(&mut self, sequence: SequenceId) -> Option<(Key, &mut Entry)> {
        let SequenceId::Peer(serial) = sequence else { return None };
        let key = *self.serials.get(&serial)?;
        Some((key, self.entries.get_mut(&key)?))
    }

    /// Notes why a prefill does not succeed.
    fn note_failure(&mut self, key: Key, reason: &'static str) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.note_failure(reason);
        }
    }

    /// Removes an entry and releases the pages that it holds or waits for.
    fn forget(&mut self, now: Instant, key: Key) -> Vec<Effect> {
        let Some(mut entry) = self.entries.remove(&key) else { return Vec::new() };
        self.serials.remove(&entry.serial);
        if let hash_map::Entry::Occupied(mut count) = self.of_session.entry(key.0) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        let release = to::buffer_manager(ReleasePages { sequence: entry.sequence() });
        let has_none = matches!(entry.phase, Phase::Compiling(..));
        (!has_none).then_some(release).into_iter().chain(entry.end_trace(now)).collect()
    }

    /// The pages are reserved: run the prompt on the engine.
    fn on_reserved(&mut self, now: Instant, reserved: PagesReserved) -> Vec<Effect> {
        let page_tokens = self.config.page_tokens;
        let PagesReserved { sequence, resident, pages, .. } = reserved;
        let Some((key, entry)) = self.find(sequence) else { return Vec::new() };
        let start = to::generator(StartSequence {
            sequence,
            tokens: entry.prompt.to_vec(),
            resident,
            pages: pages.clone(),
            prompt: entry.prompt.len() as u32,
            sample: 1,
            sampling: entry.sampling.clone(),
            grammar: entry.grammar.clone(),
            ignore_eos: false,
            prompt_logprobs: entry.prompt_logprobs,
            announce: false,
        });
        let sent = entry.resident / page_tokens;
        let mut hand_over = HandOver { pages, cached: resident, scheduled: sent, sent, put_micros: 0 };
        // Pages that the prefix cache has can be put at once.
        let cached = hand_over.put(key, resident / page_tokens);
        entry.phase = Phase::Running(hand_over);
        entry.note(|trace| (trace.begun, trace.cached_tokens) = (Some(now), resident));
        [start].into_iter().chain(cached).collect()
    }

    /// The prompt cannot get the pages that it needs now. It fits the pages for prompts of peers, so it gets them later.
    fn on_denied(&mut self, now: Instant, denied: &PagesDenied) -> Vec<Effect> {
        let Some((key, _)) = self.find(denied.sequence) else { return Vec::new() };
        let PagesDenied { needed, usable, .. } = denied;
        let reason = format!("the prompt needs {needed} pages of KV and {usable} are usable now");
        self.note_failure(key, "no_pages");
        [vec![failed(key, PrefillFault::Busy, reason)], self.on_cancel(now, key)].concat()
    }

    /// The engine has advanced or ended a prefill.
    fn on_advanced(&mut self, now: Instant, event: SequenceAdvanced) -> Vec<Effect> {
        let page_tokens = self.config.page_tokens;
        let Some((key, entry)) = self.find(event.sequence) else { return Vec::new() };
        let (session, request) = key;
        let mut effects = match entry.phase {
            Phase::Running(_) => entry.report(key, event.prompt_logprobs),
            _ => Vec::new(),
        };
        let (resident, sampled, running_micros) =
            (event.resident, event.token.is_some(), event.running_micros);
        entry.note(|trace| {
            let before = trace.chunks.last().map_or(trace.cached_tokens, |(_, tokens)| *tokens);
            if resident > before && trace.chunks.len() < TRACED_MAX {
                trace.chunks.push((now, resident));
            }
            if sampled && trace.sampled.is_none() {
                (trace.sampled, trace.running_micros) = (Some(now), running_micros);
            }
        });
        if let Phase::Running(hand_over) = &mut entry.phase {
            let prompt_tokens = entry.prompt.len() as u32;
            let last = if event.resident == prompt_tokens {
                hand_over.pages.len() as u32
            } else {
                event.resident / page_tokens
            };
            effects.extend(hand_over.put(key, last));
            if let Some(token) = event.token {
                let prefill_micros = event.running_micros;
                let (token, logprobs) = first_token::split(token);
                let (request, cached) = (request.0, hand_over.cached);
                let frame = Frame::PrefillFinished { request, token, logprobs, cached, prefill_micros };
                effects.push(to::peer_link(SendFrame { session, frame }));
                let (sequence, tokens, pages) =
                    (event.sequence, entry.prompt.clone(), hand_over.pages.clone());
                let computed = PagesComputed { sequence, tokens, salt: entry.salt, pages };
                effects.push(to::buffer_manager(computed));
            }
        }
        let Some(end) = event.ended else { return effects };
        match (std::mem::replace(&mut entry.phase, Phase::Draining), end) {
            (Phase::Running(hand_over), SequenceEnd::Finished(_)) => {
                entry.phase = Phase::Sending(hand_over);
                effects.extend(self.drain_if_sent(key));
            }
            (_, SequenceEnd::Failed(reason)) => {
                entry.note_failure("engine");
                effects.extend([failed(key, PrefillFault::Failed, reason), cancel_puts(key)]);
            }
            (_, SequenceEnd::GrammarFailed(reason)) => {
                entry.note_failure("grammar");
                effects.extend([failed(key, PrefillFault::Refused, reason), cancel_puts(key)]);
            }
            (_, SequenceEnd::Finished(_) | SequenceEnd::Stopped) => effects.push(cancel_puts(key)),
        }
        effects
    }

    /// More of the prompt's pages are visible at the receiver.
    fn on_sent(&mut self, now: Instant, sent: &PagesSent) -> Vec<Effect> {
        let key = (sent.session, sent.request);
        self.waiting_since.remove(&sent.session);
        let Some(entry) = self.entries.get_mut(&key) else { return Vec::new() };
        if let Phase::Running(hand_over) | Phase::Sending(hand_over) = &mut entry.phase {
            hand_over.sent += sent.count;
            hand_over.put_micros += sent.put_micros;
            let visible = hand_over.sent;
            entry.note(|trace| {
                trace.last_flush = Some(now);
                if trace.flushed.len() < TRACED_MAX {
                    trace.flushed.push((now, visible));
                }
            });
        }
        self.drain_if_sent(key)
    }

    /// Ends a prompt that is computed and whose pages the receiver has.
    fn drain_if_sent(&mut self, key: Key) -> Vec<Effect> {
        let Some(entry) = self.entries.get_mut(&key) else { return Vec::new() };
        let Phase::Sending(hand_over) = &entry.phase else { return Vec::new() };
        let (all, put_micros) = (hand_over.pages.len() as u32, hand_over.put_micros);
        if hand_over.sent < all {
            return Vec::new();
        }
        entry.phase = Phase::Draining;
        let put_pages = all - entry.resident / self.config.page_tokens;
        let stored = LogLine::Stored {
            request: key.1,
            tokens: entry.prompt.len() as u32 - entry.resident,
            bytes: u64::from(put_pages) * self.config.page_bytes,
            put_micros,
        };
        vec![to::log(stored), cancel_puts(key)]
    }

    /// No put reads the prompt's pages any more.
    fn on_drained(&mut self, now: Instant, key: Key) -> Vec<Effect> {
        match self.entries.get(&key) {
            Some(Entry { phase: Phase::Draining, .. }) => self.forget(now, key),
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
