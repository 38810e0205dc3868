//! Who has stopped making progress: the decisions of the watchdog, without threads or clock.

use std::time::Duration;

/// What is watched: `None` means that it is idle and owes nothing.
pub type Observation = (&'static str, Option<Duration>);

/// How long each kind of thing may go without a mark.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// An actor, which is ticked four times a second.
    pub actor: Duration,
    /// One step of the engine.
    pub engine_step: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        // A step of 512 tokens on one contended core stays far below this.
        Self { actor: Duration::from_secs(5), engine_step: Duration::from_secs(60) }
    }
}

/// The verdict, and what changed since the last one.
#[derive(Debug, Default)]
pub struct WatchdogState {
    stalled: Option<String>,
}

impl WatchdogState {
    /// Looks at everything once: the first thing that has been silent past its limit, as a sentence.
    pub fn observe(&mut self, all: impl IntoIterator<Item = (Observation, Duration)>) -> Option<&str> {
        let late = all.into_iter().find(|((_, age), limit)| age.is_some_and(|age| age > *limit)).map(
            |((name, age), _)| {
                format!("{name} has made no progress for {} s", age.unwrap_or_default().as_secs())
            },
        );
        self.stalled = late;
        self.stalled.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_owes_progress_can_stall() {
        let limit = Duration::from_secs(5);
        let mut state = WatchdogState::default();
        let fine = [(("a", Some(Duration::from_secs(4))), limit), (("engine", None), limit)];
        assert_eq!(state.observe(fine), None);
        let late =
            [(("a", Some(Duration::from_secs(4))), limit), (("b", Some(Duration::from_secs(6))), limit)];
        assert_eq!(state.observe(late), Some("b has made no progress for 6 s"));
        assert_eq!(state.observe(fine), None, "it may recover");
    }
}
