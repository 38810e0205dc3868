//! Which answers run and which requests wait. Pure: no clock, no lock, no I/O.
//!
//! A request runs all of its answers at once, so it needs that many permits together. Requests start in the order in which they came:
//! one that needs many permits is not overtaken by later ones that need few. Nothing waits while the front of the queue fits.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How many of the last answers the mean time of an answer is made of.
const MEASURED: u32 = 32;

/// What may run and wait at once.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Answers that run: `request.concurrency`.
    pub concurrency: usize,
    /// Requests that wait: `request.queue`.
    pub queue: usize,
    /// Bytes of the requests that wait.
    pub queue_bytes: usize,
}

/// A waiting request; later ones have larger tickets.
pub(super) type Ticket = u64;

/// Requests that may run now: what each was entered with, and its permits.
pub(super) type Granted<W> = Vec<(W, usize)>;

/// Why a request neither runs nor waits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Refusal {
    /// It needs more permits than there are.
    TooMany,
    /// The queue is full. There is room for it after `retry`, if the pace stays.
    Full { retry: Duration },
    /// It would wait for `wait`, which is longer than it may. It would not after `retry`.
    TooLong { wait: Duration, retry: Duration },
    /// Nothing is taken any more.
    Closed,
}

struct Waiting<W> {
    answers: usize,
    bytes: usize,
    waker: W,
}

/// How long answers take.
#[derive(Default)]
struct Pace {
    /// Mean seconds of the last answers, and how many they are.
    mean: f64,
    samples: u32,
    /// When the last permit came back, or the first was taken.
    last: Option<Instant>,
}

/// Permits and the queue for them. `W` is what a waiting request is woken with.
pub(super) struct State<W> {
    bounds: Bounds,
    running: usize,
    waiting: BTreeMap<Ticket, Waiting<W>>,
    waiting_answers: usize,
    waiting_bytes: usize,
    next: Ticket,
    is_closed: bool,
    pace: Pace,
}

impl<W> State<W> {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            running: 0,
            waiting: BTreeMap::new(),
            waiting_answers: 0,
            waiting_bytes: 0,
            next: 0,
            is_closed: false,
            pace: Pace::default(),
        }
    }

    pub(super) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Answers that run.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// Answers of requests that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting_answers
    }

    /// Enters a request for `answers` answers, which takes `bytes` while it waits and may wait for `left`.
    pub(super) fn enter(
        &mut self,
        (answers, bytes): (usize, usize),
        left: Duration,
        now: Instant,
        waker: W,
    ) -> Result<(Ticket, Granted<W>), Refusal> {
        if self.is_closed {
            return Err(Refusal::Closed);
        }
        if answers > self.bounds.concurrency {
            return Err(Refusal::TooMany);
        }
        let runs = self.waiting.is_empty() && answers <= self.free();
        if !runs {
            if self.waiting.is_empty() {
                // Until now there was room, so that no answer ended says nothing about how long an answer takes.
                self.pace.last = Some(now);
            }
            self.check_room(answers, bytes, now)?;
            self.check_wait(answers, left, now)?;
        }
        let ticket = self.next;
        self.next += 1;
        self.waiting.insert(ticket, Waiting { answers, bytes, waker });
        self.waiting_answers += answers;
        self.waiting_bytes += bytes;
        Ok((ticket, self.grant(now)))
    }

    /// The request with this ticket is gone. Nothing happens if it does not wait any more.
    pub(super) fn leave(&mut self, ticket: Ticket, now: Instant) -> Granted<W> {
        match self.take(ticket) {
            Some(_) => self.grant(now),
            None => Vec::new(),
        }
    }

    /// A permit comes back, after an answer that took this long; `None` if there was no answer.
    pub(super) fn give_back(&mut self, took: Option<Duration>, now: Instant) -> Granted<W> {
        self.running -= 1;
        if let Some(took) = took {
            self.pace.samples = (self.pace.samples + 1).min(MEASURED);
            self.pace.mean += (took.as_secs_f64() - self.pace.mean) / f64::from(self.pace.samples);
            self.pace.last = Some(now);
        }
        self.grant(now)
    }

    /// Takes no more requests. Returns what the waiting ones would have been woken with.
    pub(super) fn close(&mut self) -> Vec<W> {
        self.is_closed = true;
        (self.waiting_answers, self.waiting_bytes) = (0, 0);
        std::mem::take(&mut self.waiting).into_values().map(|waiting| waiting.waker).collect()
    }

    fn free(&self) -> usize {
        self.bounds.concurrency - self.running
    }

    fn take(&mut self, ticket: Ticket) -> Option<Waiting<W>> {
        let waiting = self.waiting.remove(&ticket)?;
        self.waiting_answers -= waiting.answers;
        self.waiting_bytes -= waiting.bytes;
        Some(waiting)
    }

    /// Lets requests run from the front of the queue as long as they fit.
    fn grant(&mut self, now: Instant) -> Granted<W> {
        let mut granted = Vec::new();
        while let Some((&ticket, front)) = self.waiting.first_key_value()
            && front.answers <= self.free()
            && let Some(front) = self.take(ticket)
        {
            if self.running == 0 {
                // The time without requests says nothing about how long an answer takes.
                self.pace.last = Some(now);
            }
            self.running += front.answers;
            granted.push((front.waker, front.answers));
        }
        granted
    }

    fn check_room(&self, answers: usize, bytes: usize, now: Instant) -> Result<(), Refusal> {
        let Bounds { queue, queue_bytes, .. } = self.bounds;
        if self.waiting.len() < queue && bytes <= queue_bytes.saturating_sub(self.waiting_bytes) {
            return Ok(());
        }
        // How many permits have to come back before enough of the front has left.
        let (mut left, mut held, mut permits) = (self.waiting.len(), self.waiting_bytes, 0);
        let mut front = self.waiting.values();
        while left >= queue || held + bytes > queue_bytes {
            let Some(waiting) = front.next() else {
                // It never fits the queue: it has to run at once.
                permits += answers;
                break;
            };
            (left, held, permits) = (left - 1, held - waiting.bytes, permits + waiting.answers);
        }
        let retry = self.time_of(permits.saturating_sub(self.free()), now).unwrap_or_default();
        Err(Refusal::Full { retry })
    }

    fn check_wait(&self, answers: usize, left: Duration, now: Instant) -> Result<(), Refusal> {
        let permits = (self.waiting_answers + answers).saturating_sub(self.free());
        match self.time_of(permits, now) {
            Some(wait) if wait > left => Err(Refusal::TooLong { wait, retry: wait - left }),
            _ => Ok(()),
        }
    }

    /// How long it takes until so many permits have come back; `None` while no answer has been measured.
    ///
    /// Permits come back in bursts, since answers share steps; the mean time of an answer divided by how many run says how often they do.
    fn time_of(&self, permits: usize, now: Instant) -> Option<Duration> {
        if self.pace.samples == 0 {
            return None;
        }
        // If none has come back for longer than an answer takes, answers take longer now.
        let silent = self.pace.last.map_or(0.0, |last| now.saturating_duration_since(last).as_secs_f64());
        let between = self.pace.mean.max(silent) / self.running.max(1) as f64;
        Some(Duration::try_from_secs_f64(between * permits as f64).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests;
