//! What actix leaves open, closed: bounded sends that are counted, liveness marks, timers that do not starve.
//!
//! Read off actix 0.13.5 and pinned by `tests/actix_behaviour.rs`: a mailbox bounds only `try_send` on an address that
//! is kept and never cloned; `send`, `do_send` and a clone's first `try_send` all pass it. So an edge between two
//! actors is one [`Outbox`] that owns its one address, and what really bounds memory is the admission permit, the
//! credit or the session that every message is about.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use actix::prelude::*;

/// How many messages may wait at an actor before a [`Outbox::command`] is refused. What really bounds them is said in
/// each actor's module doc; this is room for a burst of all of it.
pub const MAILBOX: usize = 1024;

/// How long a thread that serves a GPU waits awake for what is expected soon: several times what it takes to plan a step, or to put a run of
/// pages.
pub const AWAKE: Duration = Duration::from_micros(500);

/// One edge of the actor graph: the only holder of its address, with counters.
#[derive(Debug)]
pub struct Outbox<M>
where
    M: Message + Send,
    M::Result: Send,
{
    from: &'static str,
    to: &'static str,
    recipient: Recipient<M>,
    sent: AtomicU64,
    undelivered: AtomicU64,
}

/// A command was not taken; it comes back.
#[derive(Debug, PartialEq, Eq)]
pub enum Undelivered<M> {
    /// The mailbox is at its bound.
    Full(M),
    /// The actor has stopped.
    Closed(M),
}

impl<M> Outbox<M>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    /// The edge between two endpoints. It owns the recipient.
    pub fn new(from: &'static str, to: &'static str, recipient: Recipient<M>) -> Self {
        Self { from, to, recipient, sent: AtomicU64::new(0), undelivered: AtomicU64::new(0) }
    }

    /// Sends a command, which a full mailbox refuses.
    ///
    /// # Errors
    /// [`Undelivered`] with the message.
    pub fn command(&self, message: M) -> Result<(), Undelivered<M>> {
        let result = self.recipient.try_send(message).map_err(|error| match error {
            SendError::Full(message) => Undelivered::Full(message),
            SendError::Closed(message) => Undelivered::Closed(message),
        });
        self.count(result.is_ok());
        result
    }

    /// Sends a message whose number is bounded by what it is about, however full the mailbox is. A message to a stopped actor
    /// is counted and comes back; the watchdog has seen the actor stop.
    pub fn post(&self, message: M) -> Option<M> {
        let alive = self.recipient.connected();
        self.count(alive);
        if !alive {
            tracing::debug!(from = self.from, to = self.to, "message to a stopped actor");
            return Some(message);
        }
        self.recipient.do_send(message);
        None
    }

    /// Messages sent, and messages that could not be delivered.
    pub fn counts(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.undelivered.load(Ordering::Relaxed))
    }

    fn count(&self, delivered: bool) {
        let counter = if delivered { &self.sent } else { &self.undelivered };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// An actor's pulse: marked in every handler, read by the watchdog. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct Vitals {
    name: &'static str,
    epoch: Instant,
    marked_ms: Arc<AtomicU64>,
}

impl Vitals {
    /// The pulse of the actor or thread called `name`, marked now.
    pub fn new(name: &'static str) -> Self {
        Self { name, epoch: Instant::now(), marked_ms: Arc::default() }
    }

    /// Whose pulse this is.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// I am alive. One relaxed store.
    pub fn mark(&self) {
        self.marked_ms.store(self.epoch.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// How long ago the last mark was, seen from `now`.
    pub fn age(&self, now: Instant) -> Duration {
        let marked = self.epoch + Duration::from_millis(self.marked_ms.load(Ordering::Relaxed));
        now.saturating_duration_since(marked)
    }
}

/// Sends `message()` to `recipient` every `period` until it stops. Runs as a task of the current arbiter, outside the
/// actor's context, so a busy mailbox delays a tick but never starves it; a mailbox that is full skips one.
pub fn tick_every<M>(period: Duration, recipient: Recipient<M>, message: impl Fn() -> M + 'static)
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    actix::spawn(async move {
        let mut interval = tokio::time::interval(period);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            if let Err(SendError::Closed(_)) = recipient.try_send(message()) {
                return;
            }
        }
    });
}

/// Keeps the current arbiter's thread from going to sleep between the pages of a hand-over: to be woken takes it longer than all that it has
/// to do for one of them. The thread looks for work all the time instead, and does whatever there is.
#[derive(Debug)]
pub struct Awake {
    span: Duration,
    until: Rc<Cell<Instant>>,
    is_awake: Rc<Cell<bool>>,
}

impl Awake {
    /// Awake for `span` after each [`stay`](Self::stay); never, if that is nothing.
    pub fn new(span: Duration) -> Self {
        Self { span, until: Rc::new(Cell::new(Instant::now())), is_awake: Rc::default() }
    }

    /// Something moved, so more is expected.
    pub fn stay(&self) {
        if self.span.is_zero() {
            return;
        }
        self.until.set(Instant::now() + self.span);
        if self.is_awake.replace(true) {
            return;
        }
        let (until, is_awake) = (Rc::clone(&self.until), Rc::clone(&self.is_awake));
        actix::spawn(async move {
            while Instant::now() < until.get() {
                tokio::task::yield_now().await;
            }
            is_awake.set(false);
        });
    }

    /// True from a [`stay`](Self::stay) until its span is over.
    pub fn is_awake(&self) -> bool {
        self.is_awake.get()
    }
}

/// Ends the process in good order: the first fault is kept, everybody who waits is woken. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct KillSwitch {
    fault: Arc<std::sync::OnceLock<String>>,
    pulled: Arc<tokio::sync::Notify>,
}

impl KillSwitch {
    /// The process cannot go on, for this reason. Only the first one counts.
    pub fn pull(&self, fault: String) {
        if self.fault.set(fault).is_ok() {
            self.pulled.notify_one();
        }
    }

    /// The first fault, if there was one.
    pub fn fault(&self) -> Option<&str> {
        self.fault.get().map(String::as_str)
    }

    /// Waits for a fault. One waiter, the process's main task, is woken.
    pub async fn wait(&self) -> String {
        loop {
            if let Some(fault) = self.fault() {
                return fault.to_owned();
            }
            self.pulled.notified().await;
        }
    }
}
