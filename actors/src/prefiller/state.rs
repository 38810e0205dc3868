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

use std::collections::HashMap;
use std::time::{Duration, Instant};

use connector::frame::Frame;
use engine::PageId;

use crate::messages::{
    PagesReserved, ReservePages, SchedulePut, SequenceAdvanced, SequenceEnd, SequenceId, SessionId,
    StartPrefill, StartSequence,
};
use crate::request::RequestId;

/// A request of a peer.
pub type Key = (SessionId, RequestId);

/// What the shell has to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Ask the buffer manager for pages.
    Reserve(ReservePages),
    /// Give them back.
    Release(SequenceId),
    /// Run on the engine.
    Start(StartSequence),
    /// Stop there.
    Stop(SequenceId),
    /// Hand final pages over.
    Put(SchedulePut),
    /// Nothing more of this request is to be put.
    Cancel(Key),
    /// Tell the receiver.
    Frame(SessionId, Frame),
}

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
    prompt: Vec<u32>,
    pages: Vec<PageId>,
    scheduled: u32,
    sent: u32,
    deadline: Instant,
    phase: Phase,
}

/// All live prefills. Every `on_…` returns what has to be done, in order.
#[derive(Debug)]
pub struct PrefillerState {
    page_tokens: u32,
    pool_pages: u32,
    entries: HashMap<Key, Entry>,
}

impl PrefillerState {
    /// No prefills; pages hold `page_tokens` tokens and the pool has `pool_pages` of them.
    pub fn new(page_tokens: u32, pool_pages: u32) -> Self {
        Self { page_tokens, pool_pages, entries: HashMap::new() }
    }

    /// Prefills that have not ended.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A receiver wants a prompt's KV.
    pub fn on_prefill(&mut self, now: Instant, start: StartPrefill) -> Vec<Action> {
        let StartPrefill { session, request, prompt, remaining_ms } = start;
        let key = (session, request);
        let pages = (prompt.len() as u32).div_ceil(self.page_tokens);
        let refusal = if prompt.is_empty() {
            Some("the prompt is empty".to_owned())
        } else if self.entries.contains_key(&key) {
            Some("a request of this number is being prefilled".to_owned())
        } else if pages > self.pool_pages {
            Some(format!(
                "the prompt needs {pages} pages of KV and the sender's pool has {}",
                self.pool_pages
            ))
        } else {
            None
        };
        if let Some(reason) = refusal {
            return vec![failed(key, reason)];
        }
        let deadline = now + Duration::from_millis(remaining_ms);
        let entry =
            Entry { prompt, pages: Vec::new(), scheduled: 0, sent: 0, deadline, phase: Phase::Reserving };
        self.entries.insert(key, entry);
        vec![Action::Reserve(ReservePages { sequence: sequence(key), here: pages, landing: 0 })]
    }

    /// The pages are there.
    pub fn on_reserved(&mut self, reserved: PagesReserved) -> Vec<Action> {
        let SequenceId::Peer(session, request) = reserved.sequence else { return Vec::new() };
        let Some(entry) = self.entries.get_mut(&(session, request)) else { return Vec::new() };
        entry.phase = Phase::Running;
        entry.pages = reserved.pages;
        vec![Action::Start(StartSequence {
            sequence: reserved.sequence,
            tokens: entry.prompt.clone(),
            resident: 0,
            pages: entry.pages.clone(),
            sample: 1,
            ignore_eos: false,
        })]
    }

    /// The engine has moved a prefill.
    pub fn on_advanced(&mut self, event: SequenceAdvanced) -> Vec<Action> {
        let SequenceId::Peer(session, request) = event.sequence else { return Vec::new() };
        let key = (session, request);
        let Some(entry) = self.entries.get_mut(&key) else { return Vec::new() };
        let mut actions = Vec::new();
        if entry.phase == Phase::Running {
            let prompt_tokens = entry.prompt.len() as u32;
            let last = if event.resident == prompt_tokens {
                entry.pages.len() as u32
            } else {
                event.resident / self.page_tokens
            };
            if let Some(pages) = entry.pages.get(entry.scheduled as usize..last as usize)
                && !pages.is_empty()
            {
                let pages = pages.to_vec();
                actions.push(Action::Put(SchedulePut {
                    session,
                    request,
                    first_page: entry.scheduled,
                    pages,
                }));
                entry.scheduled = last;
            }
            if let Some(token) = event.token {
                let prefill_micros = event.running_micros;
                let frame = Frame::PrefillFinished { request: request.0, token, prefill_micros };
                actions.push(Action::Frame(session, frame));
            }
        }
        match event.ended {
            None => return actions,
            Some(SequenceEnd::Finished(_)) if entry.phase == Phase::Running => {
                entry.phase = Phase::Sending;
                actions.extend(self.drain_if_sent(key));
                return actions;
            }
            Some(SequenceEnd::Failed(reason)) => actions.push(failed(key, reason)),
            Some(_) => {}
        }
        entry.phase = Phase::Draining;
        actions.push(Action::Cancel(key));
        actions
    }

    /// More of its pages are visible at the receiver.
    pub fn on_sent(&mut self, key: Key, count: u32) -> Vec<Action> {
        let Some(entry) = self.entries.get_mut(&key) else { return Vec::new() };
        entry.sent += count;
        self.drain_if_sent(key)
    }

    fn drain_if_sent(&mut self, key: Key) -> Vec<Action> {
        let Some(entry) = self.entries.get_mut(&key) else { return Vec::new() };
        if entry.phase != Phase::Sending || (entry.sent as usize) < entry.pages.len() {
            return Vec::new();
        }
        entry.phase = Phase::Draining;
        vec![Action::Cancel(key)]
    }

    /// No put touches its pages any more.
    pub fn on_drained(&mut self, key: Key) -> Vec<Action> {
        match self.entries.get(&key) {
            Some(entry) if entry.phase == Phase::Draining => {
                self.entries.remove(&key);
                vec![Action::Release(sequence(key))]
            }
            _ => Vec::new(),
        }
    }

    /// The receiver no longer wants it.
    pub fn on_cancel(&mut self, key: Key) -> Vec<Action> {
        let Some(entry) = self.entries.get_mut(&key) else { return Vec::new() };
        match entry.phase {
            Phase::Reserving => {
                self.entries.remove(&key);
                vec![Action::Release(sequence(key))]
            }
            Phase::Running => {
                entry.phase = Phase::Stopping;
                vec![Action::Stop(sequence(key))]
            }
            Phase::Sending => {
                entry.phase = Phase::Draining;
                vec![Action::Cancel(key)]
            }
            Phase::Stopping | Phase::Draining => Vec::new(),
        }
    }

    /// The receiver is gone: so are its requests.
    pub fn on_peer_lost(&mut self, session: SessionId) -> Vec<Action> {
        let keys: Vec<Key> = self.entries.keys().filter(|key| key.0 == session).copied().collect();
        keys.into_iter().flat_map(|key| self.on_cancel(key)).collect()
    }

    /// Time has passed: prefills past their deadline fail.
    pub fn on_tick(&mut self, now: Instant) -> Vec<Action> {
        let late = |(key, entry): (&Key, &Entry)| {
            (now >= entry.deadline && !matches!(entry.phase, Phase::Stopping | Phase::Draining))
                .then_some(*key)
        };
        let keys: Vec<Key> = self.entries.iter().filter_map(late).collect();
        let mut actions = Vec::new();
        for key in keys {
            actions.push(failed(key, "its deadline passed on the sender".to_owned()));
            actions.extend(self.on_cancel(key));
        }
        actions
    }
}

fn sequence((session, request): Key) -> SequenceId {
    SequenceId::Peer(session, request)
}

fn failed((session, request): Key, reason: String) -> Action {
    Action::Frame(session, Frame::PrefillFailed { request: request.0, reason })
}

#[cfg(test)]
mod tests;
