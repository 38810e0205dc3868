//! The permits and the queue of admission, as a pure state without clock, lock or I/O.
//!
//! A request runs all of its answers at once, so it needs one permit per answer at the same time. Requests start in the order of
//! their arrival: a request that needs many permits is not overtaken by later requests that need few. The first waiting request
//! starts as soon as enough permits are free.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Number of recent answers over which the duration of an answer is averaged.
const MEASURED: u32 = 32;

/// Upper bounds of what runs and waits.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Answers that run at once: `request.concurrency`.
    pub concurrency: usize,
    /// Requests that wait: `request.queue`.
    pub queue: usize,
    /// Total bytes of the waiting requests.
    pub queue_bytes: usize,
}

/// The number of a request in the queue. Later requests have larger tickets.
pub(super) type Ticket = u64;

/// Requests that may run now: the waker and the number of permits of each.
pub(super) type Granted<W> = Vec<(W, usize)>;

/// The reason why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Refusal {
    /// The request needs more permits than the process has.
    TooMany,
    /// The queue is full. At the present rate there is room after `retry`.
    Full { retry: Duration },
    /// The request would wait for `wait`, which is past its deadline. If it is sent again after `retry`, the expected wait is short enough
    /// for its deadline.
    TooLong { wait: Duration, retry: Duration },
    /// No requests are admitted any more.
    Closed,
}

struct Waiting<W> {
    answers: usize,
    bytes: usize,
    waker: W,
}

/// The measured duration of answers.
#[derive(Default)]
struct Pace {
    /// Mean duration of the last answers, in seconds.
    mean: f64,
    /// Number of answers in the mean, at most [`MEASURED`].
    samples: u32,
    /// No answer has ended since this time. It is the latest of: the end of an answer, the start of a request when no other ran, and the
    /// moment at which the queue became non-empty.
    last: Option<Instant>,
}

/// The permits and the queue of requests that wait for them. `W` is the type of the waker of a waiting request.
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

    /// Number of answers that run.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// Number of answers of waiting requests.
    pub(super) fn waiting(&self) -> usize {
        self.waiting_answers
    }

    /// Enters a request for `answers` answers, which takes `bytes` of memory while it waits and may wait for `left`.
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
                // Permits were free until now, so the time since the last answer does not show how long answers take.
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

    /// Removes the request with this ticket from the queue. Does nothing if the request is not in the queue.
    pub(super) fn leave(&mut self, ticket: Ticket, now: Instant) -> Granted<W> {
        match self.take(ticket) {
            Some(_) => self.grant(now),
            None => Vec::new(),
        }
    }

    /// Returns one permit. `took` is the duration of its answer; `None` if the answer is not measured.
    pub(super) fn give_back(&mut self, took: Option<Duration>, now: Instant) -> Granted<W> {
        self.running -= 1;
        if let Some(took) = took {
            self.pace.samples = (self.pace.samples + 1).min(MEASURED);
            self.pace.mean += (took.as_secs_f64() - self.pace.mean) / f64::from(self.pace.samples);
            self.pace.last = Some(now);
        }
        self.grant(now)
    }

    /// Refuses all further requests and empties the queue. Returns the wakers of the requests that waited.
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

    /// Starts requests from the front of the queue while enough permits are free.
    fn grant(&mut self, now: Instant) -> Granted<W> {
        let mut granted = Vec::new();
        while let Some((&ticket, front)) = self.waiting.first_key_value()
            && front.answers <= self.free()
            && let Some(front) = self.take(ticket)
        {
            if self.running == 0 {
                // No request ran until now, so the time since the last answer does not show how long answers take.
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
        // Count the permits that must be returned before enough requests at the front have started.
        let (mut left, mut held, mut permits) = (self.waiting.len(), self.waiting_bytes, 0);
        let mut front = self.waiting.values();
        while left >= queue || held + bytes > queue_bytes {
            let Some(waiting) = front.next() else {
                // The request never fits the queue, so it can only run at once, without waiting.
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

    /// The expected time until `permits` permits have been returned; `None` if no answer has been measured yet.
    ///
    /// The mean time between two returns is the mean duration of an answer divided by the number of running answers. The time between
    /// single returns is not used, because answers that share a batch often end together.
    fn time_of(&self, permits: usize, now: Instant) -> Option<Duration> {
        if self.pace.samples == 0 {
            return None;
        }
        // If no answer has ended for longer than the mean duration, answers take longer now.
        let silent = self.pace.last.map_or(0.0, |last| now.saturating_duration_since(last).as_secs_f64());
        let between = self.pace.mean.max(silent) / self.running.max(1) as f64;
        Some(Duration::try_from_secs_f64(between * permits as f64).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests;
