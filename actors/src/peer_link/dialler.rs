//! How this process keeps sessions with its receivers: when it dials an address, and what each Hello says of the sessions before it.
//!
//! Attempts are numbered by the whole process, so numbers grow for each receiver and none is used twice. A Hello names the last
//! attempt with that receiver that *came up*, and whether it has drained; the attempts in between never came up and wrote nothing.
//! So a receiver may take a Hello as proof, however late it reads it. A session that ended without proof stays
//! without proof: no later Hello covers it, even if the sessions after it have drained.
//!
//! The books are kept by the receiver's incarnation, not by its address: two addresses may lead to one process, and a process
//! that was restarted at the same address is another one. They are kept as long as a session lives or is without proof.

use std::collections::HashMap;
use std::time::Duration;

use connector::frame::Incarnation;

use crate::messages::Attempt;

/// Pause between attempts to reach a receiver, first and longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// Pause after a refusal that only a changed setting can lift, or at an address whose process is connected already.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// Most receivers whose sessions are remembered.
const LINES_MAX: usize = 1024;

/// The sessions with one receiver's process, one at a time.
#[derive(Debug)]
struct Line {
    /// The attempt under way, or the session that lives.
    live: Option<u64>,
    previous: u64,
    previous_drained: bool,
    /// A session before the previous one ended without proof.
    has_unproved: bool,
}

/// The numbers of all attempts of this process.
#[derive(Debug, Default)]
pub struct Attempts {
    next: u64,
    lines: HashMap<Incarnation, Line>,
    /// Lines without proof were forgotten: what is not remembered may have written.
    forgot: bool,
}

impl Attempts {
    /// Begins an attempt with this process; `None` if one lives already.
    pub fn begin(&mut self, receiver: Incarnation) -> Option<Attempt> {
        if self.lines.get(&receiver).is_some_and(|line| line.live.is_some()) {
            return None;
        }
        self.next += 1;
        let session = self.next;
        if self.lines.len() >= LINES_MAX && !self.lines.contains_key(&receiver) {
            self.forget_one();
        }
        // Of a receiver that is not remembered nothing is claimed, unless all that was forgotten had drained.
        let previous = if self.forgot { session - 1 } else { 0 };
        let line = self.lines.entry(receiver).or_insert(Line {
            live: None,
            previous,
            previous_drained: !self.forgot,
            has_unproved: false,
        });
        line.live = Some(session);
        Some(Attempt { session, previous: line.previous, previous_drained: line.previous_drained })
    }

    /// The attempt with this process never came up.
    pub fn failed(&mut self, receiver: Incarnation) {
        if let Some(line) = self.lines.get_mut(&receiver) {
            line.live = None;
            self.forget_if_drained(receiver);
        }
    }

    /// The session with this process is over. `drained` is the transport's word.
    pub fn over(&mut self, receiver: Incarnation, drained: bool) {
        if let Some(line) = self.lines.get_mut(&receiver)
            && let Some(session) = line.live.take()
        {
            line.has_unproved |= !line.previous_drained;
            (line.previous, line.previous_drained) = (session, drained);
            self.forget_if_drained(receiver);
        }
    }

    fn forget_if_drained(&mut self, receiver: Incarnation) {
        let is_proved = |line: &Line| line.live.is_none() && line.previous_drained && !line.has_unproved;
        if self.lines.get(&receiver).is_some_and(is_proved) {
            self.lines.remove(&receiver);
        }
    }

    /// Makes room for another line: the oldest one without a session goes.
    fn forget_one(&mut self) {
        let idle = self.lines.iter().filter(|(_, line)| line.live.is_none());
        if let Some(receiver) = idle.min_by_key(|(_, line)| line.previous).map(|(receiver, _)| *receiver) {
            self.lines.remove(&receiver);
            self.forgot = true;
        }
    }
}

/// One address that this process dials.
#[derive(Debug)]
pub struct Dialler {
    address: String,
    backoff: Duration,
    /// Why it cannot be reached, as the log says.
    told: Option<String>,
    /// A session over it has moved pages.
    has_worked: bool,
}

impl Dialler {
    /// An address that was not dialled yet.
    pub fn new(address: String) -> Self {
        Self { address, backoff: BACKOFF.0, told: None, has_worked: false }
    }

    /// The address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// True if a session over this address has moved pages.
    pub fn has_worked(&self) -> bool {
        self.has_worked
    }

    /// The last attempt failed for this reason: whether that is news.
    pub fn on_failed(&mut self, reason: &str) -> bool {
        let is_news = self.told.as_deref() != Some(reason);
        self.told = Some(reason.to_owned());
        is_news
    }

    /// Pages have moved over a session: the next failure is news again.
    pub fn on_worked(&mut self) {
        (self.backoff, self.told, self.has_worked) = (BACKOFF.0, None, true);
    }

    /// How long to wait before the next attempt: each time twice as long, up to two seconds.
    pub fn pause(&mut self) -> Duration {
        let pause = self.backoff;
        self.backoff = (pause * 2).min(BACKOFF.1);
        pause
    }

    /// How long to wait after a refusal that a setting has to lift.
    pub fn long_pause(&self) -> Duration {
        REFUSED_PAUSE
    }

    /// How long to wait while this process is unwell.
    pub fn pause_while_unwell(&self) -> Duration {
        BACKOFF.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32) -> Incarnation {
        Incarnation { pid, start_ticks: 1, boot: 2, pid_namespace: 3, random: 4 }
    }

    fn attempt(session: u64, previous: u64, previous_drained: bool) -> Option<Attempt> {
        Some(Attempt { session, previous, previous_drained })
    }

    #[test]
    fn a_hello_names_the_last_attempt_that_came_up() {
        let (mut attempts, a) = (Attempts::default(), process(1));
        assert_eq!(attempts.begin(a), attempt(1, 0, true));
        attempts.over(a, false);
        assert_eq!(attempts.begin(a), attempt(2, 1, false));
        attempts.failed(a);
        assert_eq!(attempts.begin(a), attempt(3, 1, false), "the second never came up");
        attempts.over(a, true);
        assert_eq!(
            attempts.begin(a),
            attempt(4, 3, true),
            "nothing is said of the first, which has not drained"
        );
    }

    #[test]
    fn what_has_drained_needs_no_books() {
        let (mut attempts, a) = (Attempts::default(), process(1));
        assert_eq!(attempts.begin(a), attempt(1, 0, true));
        attempts.over(a, true);
        assert!(attempts.lines.is_empty());
        assert_eq!(attempts.begin(a), attempt(2, 0, true));
    }

    #[test]
    fn books_are_kept_by_process() {
        let (mut attempts, a, b) = (Attempts::default(), process(1), process(2));
        assert_eq!(attempts.begin(a), attempt(1, 0, true));
        assert_eq!(attempts.begin(a), None, "another address of the same process");
        attempts.over(a, false);
        // Another process at the same address: the books of the first are kept for when it is met again.
        assert_eq!(attempts.begin(b), attempt(2, 0, true));
        attempts.over(b, true);
        assert_eq!(attempts.begin(a), attempt(3, 1, false));
    }

    #[test]
    fn what_was_forgotten_is_not_called_drained() {
        let mut attempts = Attempts::default();
        for pid in 0..LINES_MAX as u32 + 1 {
            attempts.begin(process(pid));
            attempts.over(process(pid), false);
        }
        assert_eq!(attempts.lines.len(), LINES_MAX);
        let next = attempts.next + 1;
        assert_eq!(attempts.begin(process(0)), attempt(next, next - 1, false), "it claims nothing");
    }

    #[test]
    fn pauses_grow_until_a_session_has_moved_pages() {
        let mut dialler = Dialler::new(String::new());
        let mut pauses = || -> Vec<u128> { (0..5).map(|_| dialler.pause().as_millis()).collect() };
        assert_eq!(pauses(), [200, 400, 800, 1600, 2000]);
        assert!(dialler.on_failed("refused") && !dialler.on_failed("refused"), "news once");
        assert!(dialler.on_failed("another model"), "a new reason is news");
        assert_eq!(dialler.pause().as_millis(), 2000);
        dialler.on_worked();
        assert_eq!(dialler.pause().as_millis(), 200);
        assert!(dialler.on_failed("another model"), "news again");
    }
}
