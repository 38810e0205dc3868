//! Whether the node has a fault: the decisions of the watchdog, without threads or clock.

use std::time::Duration;

/// Something that must make progress.
#[derive(Clone, Copy, Debug)]
pub struct Observation {
    /// Its name.
    pub name: &'static str,
    /// How long it has made no progress so far.
    pub age: Duration,
    /// Maximum time that it may make no progress.
    pub limit: Duration,
}

/// A fault of the node, as one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A part makes no progress. It may recover.
    Stalled(String),
    /// The engine cannot compute any more: the process must end.
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

/// The fault of a lost engine, or else of the first part that has exceeded its limit.
pub fn observe(engine_lost: Option<&str>, all: impl IntoIterator<Item = Observation>) -> Option<Fault> {
    if let Some(text) = engine_lost {
        return Some(Fault::EngineLost(text.to_owned()));
    }
    let mut late = all.into_iter().filter(|one| one.age > one.limit);
    let stalled =
        |Observation { name, age, .. }| format!("{name} has made no progress for {} s", age.as_secs());
    late.next().map(stalled).map(Fault::Stalled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent(name: &'static str, age: u64, limit: u64) -> Observation {
        Observation { name, age: Duration::from_secs(age), limit: Duration::from_secs(limit) }
    }

    #[test]
    fn a_part_that_exceeds_its_limit_has_stalled() {
        assert_eq!(observe(None, [silent("a", 5, 5), silent("engine", 9, 10)]), None);
        let late = [silent("a", 4, 5), silent("b", 6, 5), silent("c", 7, 5)];
        assert_eq!(observe(None, late), Some(Fault::Stalled("b has made no progress for 6 s".to_owned())));
    }

    #[test]
    fn a_lost_engine_is_reported_first() {
        let lost = Some(Fault::EngineLost("the GPU failed".to_owned()));
        assert_eq!(observe(Some("the GPU failed"), [silent("a", 4, 5)]), lost);
        assert_eq!(observe(Some("the GPU failed"), [silent("a", 6, 5)]), lost);
    }
}
