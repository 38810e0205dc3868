//! Log probabilities of prompt tokens.

use std::sync::Mutex;

use super::attention::Span;
use super::forward::Forward;
use super::threads::{Claim, WorkerPanicked};
use crate::sampling::logprobs;
use crate::step::{Chunk, Score, ScoredChunk};

/// Rows whose logits are computed at a time. The logits of a whole prompt could take gigabytes.
const SLICE_ROWS: usize = 128;

impl Forward {
    /// Computes the scores of a batch from the residual stream, after the last layer.
    pub(super) fn score(
        &mut self,
        batch: &[Chunk<'_>],
        spans: &[Span<'_>],
    ) -> Result<Vec<ScoredChunk>, WorkerPanicked> {
        let scored =
            batch.iter().zip(spans).filter_map(|(chunk, span)| Some((chunk, chunk.score?, span.row)));
        scored.map(|(chunk, score, row)| self.score_chunk(chunk.sequence, score, row)).collect()
    }

    fn score_chunk(
        &mut self,
        sequence: u64,
        score: Score<'_>,
        row: usize,
    ) -> Result<ScoredChunk, WorkerPanicked> {
        let mut targets = Vec::with_capacity(score.targets.len());
        for (slice, of_slice) in score.targets.chunks(SLICE_ROWS).enumerate() {
            let first = row + slice * SLICE_ROWS;
            self.logits_of(first..first + of_slice.len())?;
            let found: Mutex<Vec<_>> = Mutex::new(of_slice.iter().map(|_| None).collect());
            let (logits, threads) = self.logits_and_threads();
            threads.run(of_slice.len(), Claim::Part, &|unit, _| {
                // SAFETY: no phase writes the logits now.
                let row = unsafe { logits.row(unit) };
                let of_row = logprobs(row, of_slice[unit], score.top);
                found.lock().expect("no panic under this lock")[unit] = Some(of_row);
            })?;
            targets.extend(found.into_inner().expect("no panic under this lock").into_iter().flatten());
        }
        Ok(ScoredChunk { sequence, targets })
    }
}
