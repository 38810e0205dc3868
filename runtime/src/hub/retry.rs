//! When a request is sent again. Pure: failures in, pauses out.

use std::time::Duration;

/// The pauses before the second and later attempts.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(250), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

/// Maximum time that Baton waits because the hub asks for it, in all attempts of one request together.
const ASKED_MAX: Duration = Duration::from_secs(60);

/// Maximum number of attempts for one file, however much of it arrives.
const ATTEMPTS_MAX: u32 = 1000;

/// The attempts of one request.
#[derive(Clone, Debug, Default)]
pub(super) struct Retries {
    /// Attempts since the last byte that was new.
    failed: usize,
    all: u32,
    asked: Duration,
    /// Whether only one attempt is made.
    is_single: bool,
}

impl Retries {
    /// One attempt only.
    pub(super) fn none() -> Self {
        Self { is_single: true, ..Self::default() }
    }

    /// The pause before the next attempt; `None` if there is none. `asked` is the pause that the hub asks for.
    pub(super) fn next(&mut self, asked: Option<Duration>) -> Option<Duration> {
        let pause = *PAUSES.get(self.failed)?;
        self.failed += 1;
        self.all += 1;
        let asked = asked.unwrap_or_default();
        self.asked = self.asked.saturating_add(asked);
        let is_left = !self.is_single && self.all < ATTEMPTS_MAX && self.asked <= ASKED_MAX;
        is_left.then(|| pause.max(asked))
    }

    /// Something new has arrived, so the next failure is a first one.
    pub(super) fn progressed(&mut self) {
        self.failed = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_end() {
        let mut retries = Retries::default();
        for pause in PAUSES {
            assert_eq!(retries.next(None), Some(pause));
        }
        assert_eq!(retries.next(None), None);
        assert_eq!(Retries::none().next(None), None);
    }

    #[test]
    fn progress_allows_more_attempts_but_not_forever() {
        let mut retries = Retries::default();
        let mut attempts = 0;
        while retries.next(None).is_some() {
            retries.progressed();
            attempts += 1;
        }
        assert_eq!(attempts, ATTEMPTS_MAX - 1);
    }

    #[test]
    fn the_hub_may_ask_for_a_minute() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let mut retries = Retries::default();
        assert_eq!(retries.next(seconds(30)), seconds(30));
        assert_eq!(retries.next(seconds(0)), Some(PAUSES[1]));
        assert_eq!(retries.next(seconds(30)), seconds(30));
        assert_eq!(retries.next(seconds(1)), None);
        assert_eq!(Retries::default().next(seconds(61)), None);
        let mut retries = Retries::default();
        for _ in 0..2 {
            assert_eq!(retries.next(seconds(u64::MAX)), None);
        }
    }
}
