//! What is wrong with the node: the decisions of the watchdog, without threads or clock.

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

/// What is wrong, as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Something makes no progress. It may recover.
    Stalled(String),
    /// The engine can compute nothing any more: the process has to end.
    EngineLost(String),
}

impl Fault {
    /// The sentence.
    pub fn text(&self) -> &str {
        match self {
            Self::Stalled(text) | Self::EngineLost(text) => text,
        }
    }
}

/// Looks at everything once: a lost engine, or else the first thing that has been silent past its limit.
pub fn observe(
    engine_lost: Option<&str>,
    all: impl IntoIterator<Item = (Observation, Duration)>,
) -> Option<Fault> {
    if let Some(text) = engine_lost {
        return Some(Fault::EngineLost(text.to_owned()));
    }
    let mut late =
        all.into_iter().filter_map(|((name, age), limit)| Some((name, age.filter(|age| *age > limit)?)));
    late.next()
        .map(|(name, age)| Fault::Stalled(format!("{name} has made no progress for {} s", age.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn seconds(seconds: u64) -> Option<Duration> {
        Some(Duration::from_secs(seconds))
    }

    #[test]
    fn only_what_owes_progress_can_stall() {
        assert_eq!(observe(None, [(("a", seconds(4)), LIMIT), (("engine", None), LIMIT)]), None);
        let late = [(("a", seconds(4)), LIMIT), (("b", seconds(6)), LIMIT), (("c", seconds(7)), LIMIT)];
        assert_eq!(observe(None, late), Some(Fault::Stalled("b has made no progress for 6 s".to_owned())));
    }

    #[test]
    fn a_lost_engine_goes_before_all_else() {
        let lost = Some(Fault::EngineLost("the GPU failed".to_owned()));
        assert_eq!(observe(Some("the GPU failed"), [(("a", seconds(4)), LIMIT)]), lost);
        assert_eq!(observe(Some("the GPU failed"), [(("a", seconds(6)), LIMIT)]), lost);
    }
}
