//! A peer's prompt on its way through this process: the decisions of the prefiller, without actix, clock or I/O.
//!
//! ```text
//! Reserving ──► Running ──► Sending ──► Draining ──► gone
//!     │ cancel     │ cancel     │ cancel    ▲
//!     ▼            ▼            └───────────┤
//!    gone       Stopping ───────────────────┘
//! ```
//!
//! A page goes to transfer as soon as no later token can change it. The pages go back when neither the engine nor a put
//! touches them any more.

use std::collections::{BTreeMap, HashMap, hash_map};
use std::sync::Arc;
use std::time::{Duration, Instant};

use connector::frame::{Frame, PrefillFault};
use engine::{PageId, Sampling};

use crate::effect::{Effect, ToPrefiller, to};
use crate::first_token;
use crate::log::LogLine;
use crate::messages::{
    CancelPuts, PagesComputed, PagesDenied, PagesReserved, PagesSent, ReleasePages, ReservePages,
    SchedulePut, SendFrame, SequenceAdvanced, SequenceEnd, SequenceId, SessionId, StartPrefill,
    StartSequence, StopSequence,
};
use crate::request::RequestId;

/// A request of a peer.
pub type Key = (SessionId, RequestId);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Reserving,
    Running,
    Stopping,
    Sending,
    Draining,
}

#[derive(Debug)]
struct Entry {
    /// Ours, never used twice.
    serial: u64,
    prompt: Arc<[u32]>,
    sampling: Arc<Sampling>,
    pages: Vec<PageId>,
    /// Pages that are with transfer, or that the receiver has anyway.
    scheduled: u32,
    /// Leading tokens that the receiver had before.
    resident: u32,
    /// Pages that the receiver has.
    sent: u32,
    /// How long the lane had those that were put.
    put_micros: u64,
    deadline: Instant,
    phase: Phase,
}

/// What the prefiller knows of its node.
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
    /// Longest sequence of the model.
    pub context_tokens: u32,
}

/// Most prefills that wait or run in one session; what a receiver asks for beyond it computes itself.
const PREFILLS_MAX: usize = 1024;
/// Longest time that a peer's request is kept, whatever it asks for.
const REMAINING_MS_MAX: u64 = 24 * 3600 * 1000;

/// All live prefills.
#[derive(Debug)]
pub struct PrefillerState {
    config: PrefillerConfig,
    draining: bool,
    next_serial: u64,
    entries: BTreeMap<Key, Entry>,
    /// Which entry has this serial.
    serials: HashMap<u64, Key>,
    /// Entries of each session that has any.
    of_session: HashMap<SessionId, usize>,
}

impl PrefillerState {
    /// No prefills.
    pub fn new(config: PrefillerConfig) -> Self {
        Self {
            config,
            draining: false,
            next_serial: 0,
            entries: BTreeMap::new(),
            serials: HashMap::new(),
            of_session: HashMap::new(),
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

    /// Takes a message.
    pub fn on(&mut self, now: Instant, mail: ToPrefiller) -> Vec<Effect> {
        match mail {
            ToPrefiller::StartPrefill(start) => self.on_prefill(now, *start),
            ToPrefiller::CancelPrefill(cancel) => self.on_cancel((cancel.session, cancel.request)),
            ToPrefiller::PagesReserved(reserved) => self.on_reserved(reserved),
            ToPrefiller::PagesDenied(denied) => self.on_denied(&denied),
            ToPrefiller::SequenceAdvanced(event) => self.on_advanced(event),
            ToPrefiller::PagesSent(sent) => self.on_sent(&sent),
            ToPrefiller::PutsDrained(drained) => self.on_drained((drained.session, drained.request)),
            ToPrefiller::PeerLost(lost) => self.on_peer_lost(lost.session),
            ToPrefiller::BeginDrain(_) => self.on_drain(),
            ToPrefiller::Tick(_) => self.on_tick(now),
        }
    }

    /// This process is ending: no new prefills from now on; those taken continue.
    fn on_drain(&mut self) -> Vec<Effect> {
        self.draining = true;
        Vec::new()
    }

    /// A receiver wants a prompt's KV.
    fn on_prefill(&mut self, now: Instant, start: StartPrefill) -> Vec<Effect> {
        let StartPrefill { session, request, prompt, resident, sampling, remaining_ms } = start;
        let key = (session, request);
        if let Some(reason) = self.refusal(key, &prompt, resident) {
            return vec![failed(key, PrefillFault::Refused, reason)];
        }
        let (wanted, there) = (self.pages_for(&prompt), resident / self.config.page_tokens);
        let deadline = now + Duration::from_millis(remaining_ms.min(REMAINING_MS_MAX));
        self.next_serial += 1;
        let (serial, pages, phase) = (self.next_serial, Vec::new(), Phase::Reserving);
        let prompt: Arc<[u32]> = prompt.into();
        let tokens = prompt.clone();
        self.serials.insert(serial, key);
        *self.of_session.entry(session).or_default() += 1;
        self.entries.insert(
            key,
            Entry {
                serial,
                prompt,
                sampling,
                pages,
                scheduled: there,
                resident,
                sent: there,
                put_micros: 0,
                deadline,
                phase,
            },
        );
        let sequence = SequenceId::Peer(serial);
        vec![to::buffer_manager(ReservePages {
            sequence,
            tokens,
            pages: wanted,
            landing: None,
            again: false,
        })]
    }

    fn pages_for(&self, prompt: &[u32]) -> u32 {
        (prompt.len() as u32).div_ceil(self.config.page_tokens)
    }

    /// Why a prompt is not taken, if it is not. A peer's numbers are checked before anything trusts them.
    fn refusal(&self, key: Key, prompt: &[u32], resident: u32) -> Option<String> {
        let PrefillerConfig { pool_pages, vocabulary, context_tokens, page_tokens, .. } = self.config;
        let pages = self.pages_for(prompt);
        let of_session = self.of_session.get(&key.0).copied().unwrap_or_default();
        if self.draining {
            Some("this sender is ending".to_owned())
        } else if prompt.is_empty() {
            Some("the prompt is empty".to_owned())
        } else if prompt.len() > context_tokens as usize {
            Some(format!("the prompt has {} tokens and the model takes {context_tokens}", prompt.len()))
        } else if resident as usize >= prompt.len() || !resident.is_multiple_of(page_tokens) {
            Some(format!("{resident} of {} tokens cannot be resident", prompt.len()))
        } else if let Some(token) = prompt.iter().find(|token| **token >= vocabulary) {
            Some(format!("token {token} is not in the vocabulary of {vocabulary}"))
        } else if self.entries.contains_key(&key) {
            Some("a request of this number is being prefilled".to_owned())
        } else if pages > pool_pages {
            Some(format!("the prompt needs {pages} pages of KV and the sender's pool has {pool_pages}"))
        } else if of_session >= PREFILLS_MAX {
            Some(format!("{PREFILLS_MAX} prompts wait here already"))
        } else {
            None
        }
    }

    /// The live entry behind one of our sequences.
    fn find(&mut self, sequence: SequenceId) -> Option<(Key, &mut Entry)> {
        let SequenceId::Peer(serial) = sequence else { return None };
        let key = *self.serials.get(&serial)?;
        Some((key, self.entries.get_mut(&key)?))
    }

    /// Forgets an entry and gives its pages back.
    fn forget(&mut self, key: Key) -> Vec<Effect> {
        let Some(entry) = self.entries.remove(&key) else { return Vec::new() };
        self.serials.remove(&entry.serial);
        if let hash_map::Entry::Occupied(mut count) = self.of_session.entry(key.0) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        vec![to::buffer_manager(ReleasePages { sequence: entry.sequence() })]
    }

    /// The pages are there.
    fn on_reserved(&mut self, reserved: PagesReserved) -> Vec<Effect> {
        let page_tokens = self.config.page_tokens;
        let PagesReserved { sequence, resident, pages, .. } = reserved;
        let Some((key, entry)) = self.find(sequence) else { return Vec::new() };
        entry.phase = Phase::Running;
        entry.pages = pages;
        let start = to::generator(StartSequence {
            sequence,
            tokens: entry.prompt.to_vec(),
            resident,
            pages: entry.pages.clone(),
            prompt: entry.prompt.len() as u32,
            sample: 1,
            sampling: entry.sampling.clone(),
            ignore_eos: false,
        });
        // What an earlier prompt has left here travels at once.
        [start].into_iter().chain(put(key, entry, resident / page_tokens)).collect()
    }

    /// The pages cannot be had.
    fn on_denied(&mut self, denied: &PagesDenied) -> Vec<Effect> {
        let Some((key, _)) = self.find(denied.sequence) else { return Vec::new() };
        let PagesDenied { needed, usable, .. } = denied;
        let reason = format!("the prompt needs {needed} pages of KV and {usable} can be used now");
        [vec![failed(key, PrefillFault::Refused, reason)], self.on_cancel(key)].concat()
    }

    /// The engine has moved a prefill.
    fn on_advanced(&mut self, event: SequenceAdvanced) -> Vec<Effect> {
        let page_tokens = self.config.page_tokens;
        let Some((key, entry)) = self.find(event.sequence) else { return Vec::new() };
        let (session, request) = key;
        let mut effects = Vec::new();
        if entry.phase == Phase::Running {
            let prompt_tokens = entry.prompt.len() as u32;
            let last = if event.resident == prompt_tokens {
                entry.pages.len() as u32
            } else {
                event.resident / page_tokens
            };
            effects.extend(put(key, entry, last));
            if let Some(token) = event.token {
                let prefill_micros = event.running_micros;
                let (token, logprobs) = first_token::split(token);
                let frame = Frame::PrefillFinished { request: request.0, token, logprobs, prefill_micros };
                effects.push(to::peer_link(SendFrame { session, frame }));
                let (sequence, tokens, pages) = (event.sequence, entry.prompt.clone(), entry.pages.clone());
                effects.push(to::buffer_manager(PagesComputed { sequence, tokens, pages }));
            }
        }
        match event.ended {
            None => return effects,
            Some(SequenceEnd::Finished(_)) if entry.phase == Phase::Running => {
                entry.phase = Phase::Sending;
                effects.extend(self.drain_if_sent(key));
                return effects;
            }
            Some(SequenceEnd::Failed(reason)) => effects.push(failed(key, PrefillFault::Failed, reason)),
            Some(_) => {}
        }
        entry.phase = Phase::Draining;
        effects.push(cancel_puts(key));
        effects
    }

    /// More of its pages are visible at the receiver.
    fn on_sent(&mut self, sent: &PagesSent) -> Vec<Effect> {
        let key = (sent.session, sent.request);
        let Some(entry) = self.entries.get_mut(&key) else { return Vec::new() };
        entry.sent += sent.count;
        entry.put_micros += sent.put_micros;
        self.drain_if_sent(key)
    }

    fn drain_if_sent(&mut self, key: Key) -> Vec<Effect> {
        let Some(entry) = self.entries.get_mut(&key) else { return Vec::new() };
        if entry.phase != Phase::Sending || (entry.sent as usize) < entry.pages.len() {
            return Vec::new();
        }
        entry.phase = Phase::Draining;
        let travelled = entry.pages.len() as u32 - entry.resident / self.config.page_tokens;
        let stored = LogLine::Stored {
            request: key.1,
            tokens: entry.prompt.len() as u32 - entry.resident,
            bytes: u64::from(travelled) * self.config.page_bytes,
            put_micros: entry.put_micros,
        };
        vec![to::log(stored), cancel_puts(key)]
    }

    /// No put touches its pages any more.
    fn on_drained(&mut self, key: Key) -> Vec<Effect> {
        match self.entries.get(&key) {
            Some(entry) if entry.phase == Phase::Draining => self.forget(key),
            _ => Vec::new(),
        }
    }

    /// The receiver no longer wants it.
    fn on_cancel(&mut self, key: Key) -> Vec<Effect> {
        let Some(entry) = self.entries.get_mut(&key) else { return Vec::new() };
        match entry.phase {
            Phase::Reserving => self.forget(key),
            Phase::Running => {
                entry.phase = Phase::Stopping;
                vec![to::generator(StopSequence { sequence: entry.sequence() })]
            }
            Phase::Sending => {
                entry.phase = Phase::Draining;
                vec![cancel_puts(key)]
            }
            Phase::Stopping | Phase::Draining => Vec::new(),
        }
    }

    /// The receiver is gone: so are its requests.
    fn on_peer_lost(&mut self, session: SessionId) -> Vec<Effect> {
        let keys: Vec<Key> = self.entries.keys().filter(|key| key.0 == session).copied().collect();
        keys.into_iter().flat_map(|key| self.on_cancel(key)).collect()
    }

    /// Time has passed: prefills past their deadline fail.
    fn on_tick(&mut self, now: Instant) -> Vec<Effect> {
        let late = |(key, entry): (&Key, &Entry)| {
            (now >= entry.deadline && !matches!(entry.phase, Phase::Stopping | Phase::Draining))
                .then_some(*key)
        };
        let keys: Vec<Key> = self.entries.iter().filter_map(late).collect();
        let mut effects = Vec::new();
        for key in keys {
            effects.push(failed(key, PrefillFault::Failed, "its deadline passed on the sender".to_owned()));
            effects.extend(self.on_cancel(key));
        }
        effects
    }
}

impl Entry {
    fn sequence(&self) -> SequenceId {
        SequenceId::Peer(self.serial)
    }
}

/// Hands the pages before `last` over that are not with transfer yet.
fn put((session, request): Key, entry: &mut Entry, last: u32) -> Option<Effect> {
    let pages = entry.pages.get(entry.scheduled as usize..last as usize).filter(|pages| !pages.is_empty())?;
    let (first_page, pages) = (entry.scheduled, pages.to_vec());
    entry.scheduled = last;
    Some(to::transfer(SchedulePut { session, request, first_page, pages }))
}

/// Nothing more of this request is to be put.
fn cancel_puts((session, request): Key) -> Effect {
    to::transfer(CancelPuts { session, request })
}

fn failed((session, request): Key, fault: PrefillFault, reason: String) -> Effect {
    to::peer_link(SendFrame { session, frame: Frame::PrefillFailed { request: request.0, fault, reason } })
}

#[cfg(test)]
mod tests;
