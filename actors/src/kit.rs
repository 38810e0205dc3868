//! Helpers that actix lacks: bounded sends that are counted, liveness marks, and timers that do not starve.
//!
//! In actix 0.13.5 a mailbox's capacity limits only `try_send` on an address that is kept and never cloned. `send`, `do_send` and the
//! first `try_send` of a clone ignore the capacity; `tests/actix_behaviour.rs` checks this. So an edge between two actors is one
//! [`Outbox`] that owns its one address, and memory is bounded by the admission permit, the credit or the session that each message is about.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use actix::prelude::*;

/// Messages that may wait at an actor before an [`Outbox::command`] is refused. Each actor's module doc names what bounds its messages; this
/// number leaves room for a burst of all of them.
pub const MAILBOX: usize = 1024;

/// How long a thread that serves a GPU busy-polls for the next step or the next pages: several times the time to plan a step or to put a
/// run of pages.
pub const AWAKE: Duration = Duration::from_micros(500);

/// One edge of the actor graph: the only owner of the recipient's address, with counters.
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

/// A command that was not accepted.
#[derive(Debug, PartialEq, Eq)]
pub enum Undelivered<M> {
    /// The mailbox is full.
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

    /// Sends a command. A full mailbox refuses it.
    ///
    /// # Errors
    /// [`Undelivered`], which contains the message.
    pub fn command(&self, message: M) -> Result<(), Undelivered<M>> {
        let result = self.recipient.try_send(message).map_err(|error| match error {
            SendError::Full(message) => Undelivered::Full(message),
            SendError::Closed(message) => Undelivered::Closed(message),
        });
        self.count(result.is_ok());
        result
    }

    /// Sends a message even if the mailbox is full; the sender must bound the number of such messages. A message to a stopped actor is
    /// counted and returned; the watchdog reports the stopped actor.
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

/// An actor's liveness mark: set in every handler, read by the watchdog. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct Vitals {
    name: &'static str,
    epoch: Instant,
    marked_ms: Arc<AtomicU64>,
}

impl Vitals {
    /// The mark of the actor or thread called `name`, set now.
    pub fn new(name: &'static str) -> Self {
        Self { name, epoch: Instant::now(), marked_ms: Arc::default() }
    }

    /// The name of the actor or thread.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Records that the actor is alive. One relaxed store.
    pub fn mark(&self) {
        self.marked_ms.store(self.epoch.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Time from the last mark to `now`.
    pub fn age(&self, now: Instant) -> Duration {
        let marked = self.epoch + Duration::from_millis(self.marked_ms.load(Ordering::Relaxed));
        now.saturating_duration_since(marked)
    }
}

/// Sends `message()` to `recipient` every `period` until the recipient stops. The timer is a task of the current arbiter, outside the actor's
/// context, so a busy mailbox delays a tick but does not starve it. A tick is skipped while the mailbox is full.
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

/// Makes the current arbiter's thread busy-poll between the pages of a hand-over, because a wake-up takes longer than the work for one page.
/// Other tasks of the thread still run.
#[derive(Debug)]
pub struct Awake {
    span: Duration,
    until: Rc<Cell<Instant>>,
    is_awake: Rc<Cell<bool>>,
}

impl Awake {
    /// Busy-polls for `span` after each [`stay`](Self::stay); never if `span` is zero.
    pub fn new(span: Duration) -> Self {
        Self { span, until: Rc::new(Cell::new(Instant::now())), is_awake: Rc::default() }
    }

    /// Busy-polls from now on, because more messages are expected.
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

    /// True from a [`stay`](Self::stay) until its span has passed.
    pub fn is_awake(&self) -> bool {
        self.is_awake.get()
    }
}

/// Asks the process to shut down because of a fault. The first fault is kept. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct KillSwitch {
    fault: Arc<std::sync::OnceLock<String>>,
    pulled: Arc<tokio::sync::Notify>,
}

impl KillSwitch {
    /// Reports that the process cannot continue, for this reason. Only the first reason is kept.
    pub fn pull(&self, fault: String) {
        if self.fault.set(fault).is_ok() {
            self.pulled.notify_one();
        }
    }

    /// The first fault, if there was one.
    pub fn fault(&self) -> Option<&str> {
        self.fault.get().map(String::as_str)
    }

    /// Waits for a fault. Only one task may wait: the process's main task.
    pub async fn wait(&self) -> String {
        loop {
            if let Some(fault) = self.fault() {
                return fault.to_owned();
            }
            self.pulled.notified().await;
        }
    }
}
