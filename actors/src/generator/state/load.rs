//! The load of the engine, as it is reported to proxies.

use super::GeneratorState;
use crate::effect::{Effect, to};
use crate::messages::LoadReport;

impl GeneratorState {
    /// The prompt tokens that are not computed yet, and the speed of prompts.
    pub fn load(&self) -> LoadReport {
        let waits =
            |sequence: &super::Sequence| u64::from(sequence.sampled_from.saturating_sub(sequence.resident));
        LoadReport {
            waiting_tokens: self.sequences.values().map(waits).sum(),
            nanos_per_token: self.pace.nanos_per_token(),
        }
    }

    /// Reports the load if it differs from the last report.
    pub(super) fn report(&mut self) -> Vec<Effect> {
        let load = self.load();
        if self.reported.replace(load) == Some(load) {
            return Vec::new();
        }
        vec![to::proxy(load), to::peer_link(load)]
    }
}
