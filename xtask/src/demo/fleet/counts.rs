//! What the processes of the fleet have counted, from their `/metrics`.

use anyhow::Result;

use crate::demo::client::Metrics;

/// The counts of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    /// Prompt tokens that it computed.
    pub(super) tokens: u64,
    /// Prompts that it computed again because the process that prefilled them was lost.
    pub(super) recomputes: u64,
}

impl Counts {
    /// Asks the process with this HTTP port.
    pub(super) fn get(port: u16) -> Result<Self> {
        let metrics = Metrics::get(port)?;
        let tokens = metrics.value("baton_prompt_tokens_computed_total")?;
        Ok(Self { tokens, recomputes: metrics.value("baton_recomputes_total")? })
    }
}

/// The differences of the counts of all processes; `None` for a process without counts.
pub(super) fn since(after: &[Option<Counts>], before: &[Option<Counts>]) -> Vec<Option<Counts>> {
    let difference = |(after, before): (&Option<Counts>, &Option<Counts>)| {
        let (after, before) = ((*after)?, (*before)?);
        let recomputes = after.recomputes - before.recomputes;
        Some(Counts { tokens: after.tokens - before.tokens, recomputes })
    };
    after.iter().zip(before).map(difference).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_killed_process_has_no_difference() {
        let counts = |tokens, recomputes| Some(Counts { tokens, recomputes });
        let before = [counts(10, 1), counts(20, 0)];
        assert_eq!(since(&[counts(15, 3), None], &before), [counts(5, 2), None]);
    }
}
