//! How this process keeps a session with one receiver: when it dials, and what each Hello says of the sessions before it.
//!
//! Attempts count up from 1 and no number is used twice. A Hello names the last attempt that *came up*, and whether it has
//! drained; the attempts in between never came up and wrote nothing. So a receiver may take a Hello as proof, however late it
//! reads it.

use std::time::Duration;

/// Pause between attempts to reach a receiver, first and longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// What one Hello says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Which of its receivers the dialler means.
    pub line: u32,
    /// Number of this attempt.
    pub session: u64,
    /// The last attempt before this one that came up, or 0.
    pub previous: u64,
    /// Every put of that one had completed and was flushed.
    pub previous_drained: bool,
}

/// One receiver, its sessions one at a time.
#[derive(Debug)]
pub struct Dialler {
    address: String,
    next: Attempt,
    backoff: Duration,
    /// A failed attempt was logged since the last session that moved pages.
    told: bool,
}

impl Dialler {
    /// The receiver at `address`, the `line`th of this process; it was not dialled yet.
    pub fn new(line: u32, address: String) -> Self {
        let next = Attempt { line, session: 0, previous: 0, previous_drained: true };
        Self { address, next, backoff: BACKOFF.0, told: false }
    }

    /// Where the receiver listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The next attempt. The one before is over, or never came up.
    pub fn dial(&mut self) -> Attempt {
        self.next.session += 1;
        self.next
    }

    /// The last attempt failed: whether that is news.
    pub fn on_failed(&mut self) -> bool {
        !std::mem::replace(&mut self.told, true)
    }

    /// The last attempt came up, and its session is over. `drained` is the transport's word; `probed`: pages had moved over it.
    pub fn on_over(&mut self, drained: bool, probed: bool) {
        (self.next.previous, self.next.previous_drained) = (self.next.session, drained);
        if probed {
            (self.backoff, self.told) = (BACKOFF.0, false);
        }
    }

    /// How long to wait before the next attempt: each time twice as long, up to two seconds.
    pub fn pause(&mut self) -> Duration {
        let pause = self.backoff;
        self.backoff = (pause * 2).min(BACKOFF.1);
        pause
    }

    /// How long to wait while this process is unwell.
    pub fn pause_while_unwell(&self) -> Duration {
        BACKOFF.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(session: u64, previous: u64, previous_drained: bool) -> Attempt {
        Attempt { line: 3, session, previous, previous_drained }
    }

    #[test]
    fn a_hello_names_the_last_attempt_that_came_up() {
        let mut dialler = Dialler::new(3, String::new());
        assert_eq!(dialler.dial(), attempt(1, 0, true));
        dialler.on_over(false, false);
        assert_eq!(dialler.dial(), attempt(2, 1, false));
        assert_eq!(dialler.dial(), attempt(3, 1, false), "the second never came up");
        dialler.on_over(true, false);
        assert_eq!(dialler.dial(), attempt(4, 3, true));
    }

    #[test]
    fn pauses_grow_until_a_session_has_moved_pages() {
        let mut dialler = Dialler::new(0, String::new());
        let mut pauses = || -> Vec<u128> { (0..5).map(|_| dialler.pause().as_millis()).collect() };
        assert_eq!(pauses(), [200, 400, 800, 1600, 2000]);
        assert!(dialler.on_failed() && !dialler.on_failed(), "news once");
        dialler.on_over(true, false);
        assert_eq!(dialler.pause().as_millis(), 2000, "it moved nothing");
        dialler.on_over(true, true);
        assert_eq!(dialler.pause().as_millis(), 200);
        assert!(dialler.on_failed(), "news again");
    }
}
