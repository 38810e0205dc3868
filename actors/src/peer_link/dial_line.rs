//! How a dialer numbers its sessions with one receiver: what each Hello says of those before it.
//!
//! Attempts count up from 1 and are never numbered twice. A Hello names the last attempt that *came up*, and whether it has
//! drained; those in between never did, and wrote nothing. That is what lets a receiver take it as proof, however late it
//! is read.

/// What one Hello says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Which of its receivers the dialer means.
    pub line: u32,
    /// Number of this attempt.
    pub session: u64,
    /// The last attempt before this one that came up, or 0.
    pub previous: u64,
    /// Every put of that one had completed and was flushed.
    pub previous_drained: bool,
}

/// A dialer's sessions with one receiver, one at a time.
#[derive(Debug)]
pub struct DialLine {
    next: Attempt,
}

impl DialLine {
    /// The `line`th receiver of this process; nothing was dialled yet.
    pub fn new(line: u32) -> Self {
        Self { next: Attempt { line, session: 0, previous: 0, previous_drained: true } }
    }

    /// The next attempt. The one before is over, or never came up.
    pub fn dial(&mut self) -> Attempt {
        self.next.session += 1;
        self.next
    }

    /// The last attempt had come up, and is over; `drained` is the transport's word.
    pub fn on_over(&mut self, drained: bool) {
        (self.next.previous, self.next.previous_drained) = (self.next.session, drained);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_that_never_came_up_are_passed_over() {
        let mut line = DialLine::new(3);
        assert_eq!(line.dial(), Attempt { line: 3, session: 1, previous: 0, previous_drained: true });
        line.on_over(false);
        assert_eq!(line.dial(), Attempt { line: 3, session: 2, previous: 1, previous_drained: false });
        let third = Attempt { line: 3, session: 3, previous: 1, previous_drained: false };
        assert_eq!(line.dial(), third, "the second never came up");
        line.on_over(true);
        assert_eq!(line.dial(), Attempt { line: 3, session: 4, previous: 3, previous_drained: true });
    }
}
