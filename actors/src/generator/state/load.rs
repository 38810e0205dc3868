//! The load of the engine, as it is reported to proxies.

use std::time::Duration;

use super::GeneratorState;
use crate::effect::{Effect, to};
use crate::messages::LoadReport;

/// Minimum time between two reports, not counting those at ticks. Proxies that place prompts on the same process should see each other's, and a
/// prompt of a few thousand tokens takes a GPU about 100 ms.
const REPORT_EVERY: Duration = Duration::from_millis(50);

impl GeneratorState {
    /// The prompt tokens that are not computed yet, the computed tokens of the same prompts, and the speed of prompts.
    pub fn load(&self) -> LoadReport {
        let prompts = self.sequences.values().filter(|sequence| sequence.resident < sequence.sampled_from);
        let (waiting_tokens, begun_tokens) = prompts.fold((0, 0), |(waiting, begun), sequence| {
            let waits = sequence.sampled_from - sequence.resident;
            (waiting + u64::from(waits), begun + u64::from(sequence.resident - sequence.cached))
        });
        let decoding = self.sequences.values().filter(|sequence| sequence.missing() == 1).count() as u32;
        LoadReport {
            waiting_tokens,
            begun_tokens,
            nanos_per_token: self.pace.nanos_per_token(decoding > 0),
            decoding,
            decode: self.pace.decode_steps(),
        }
    }

    /// Prompt tokens of all steps so far.
    pub fn prompt_tokens_computed(&self) -> u64 {
        self.prefilled
    }

    /// Reports the load if the last report is old enough.
    pub(super) fn report_in_time(&mut self, now_micros: u64) -> Vec<Effect> {
        let next = self.reported_micros.map_or(0, |at| at + REPORT_EVERY.as_micros() as u64);
        if now_micros < next { Vec::new() } else { self.report(now_micros) }
    }

    /// Reports the load if it differs from the last report.
    pub(super) fn report(&mut self, now_micros: u64) -> Vec<Effect> {
        let load = self.load();
        self.reported_micros = Some(now_micros);
        if self.reported.is_some_and(|reported| is_alike(reported, load)) {
            return Vec::new();
        }
        self.reported = Some(load);
        vec![to::proxy(load), to::decoder(load), to::peer_link(load)]
    }
}

/// True if the tokens of prompts are the same, and the speed and the steps without prompts differ by less than an eighth.
fn is_alike(a: LoadReport, b: LoadReport) -> bool {
    let near = |a: u32, b: u32| a == b || a.abs_diff(b) < a.min(b) / 8;
    let speeds_alike = match (a.nanos_per_token, b.nanos_per_token) {
        (Some(a), Some(b)) => near(a, b),
        (a, b) => a == b,
    };
    let steps_alike = match (a.decode, b.decode) {
        (Some(a), Some(b)) => near(a.rows, b.rows) && near(a.micros, b.micros),
        (a, b) => a == b,
    };
    (a.waiting_tokens, a.begun_tokens) == (b.waiting_tokens, b.begun_tokens)
        && speeds_alike
        && steps_alike
        && near(a.decoding, b.decoding)
}
