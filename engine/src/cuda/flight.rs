//! Steps in flight: submits a step, takes its samples on the device, and brings the results to the host.

use super::CudaEngine;
use super::adjustments::UploadedAdjustments;
use super::device::{Event, Pinned};
use super::graph::{Graph, graph_rows};
use super::masks::{RowMask, UploadedMasks};
use crate::error::CudaError;
use crate::gpu::adjustment_lists::AdjustedRow;
use crate::gpu::score::{SCORE_WORDS, logprobs_of};
use crate::pending::PendingSample;
use crate::sampling::Token;
use crate::step::{Chunk, SampledToken, ScoredChunk, StepOutput};

/// Brings the sampled tokens of a step back to the host.
pub(super) struct Readback {
    /// The logits are computed. Recorded for steps that wait for masks.
    pub(super) computed: Event,
    /// The tokens are on the host.
    pub(super) done: Event,
    pub(super) chosen: Pinned<i32>,
    /// The log probabilities of the scored rows, and then of the sampled tokens.
    pub(super) scores: Pinned<u32>,
}

/// A step in flight.
#[derive(Default)]
pub(super) struct Flight {
    pub(super) turn: usize,
    /// The sampled chunks, in row order.
    pub(super) samples: Vec<PendingSample>,
    /// The batch index of each of `samples`.
    pub(super) chunks: Vec<usize>,
    /// Some samples have biases or penalties.
    pub(super) is_adjusted: bool,
    /// A CUDA graph replayed the step.
    pub(super) is_graph: bool,
    /// The scored chunks, in row order: the batch index, the sequence, and the numbers of targets and of most probable tokens.
    pub(super) scored: Vec<(usize, u64, usize, u32)>,
    /// The samples have been taken; before, the step waits for masks.
    pub(super) is_sampled: bool,
}

impl Flight {
    /// Records the samples and scores of a batch. `order` has the batch indices in row order. The flight must be empty.
    fn fill(&mut self, batch: &[Chunk<'_>], order: &[usize]) {
        self.chunks.extend(order.iter().copied().filter(|index| batch[*index].sample.is_some()));
        self.samples.extend(self.chunks.iter().filter_map(|index| PendingSample::of(&batch[*index])));
        let of_chunk = |index: &usize| {
            let (chunk, score) = (&batch[*index], batch[*index].score?);
            Some((*index, chunk.sequence, score.targets.len(), score.top))
        };
        self.scored.extend(order.iter().filter_map(of_chunk));
    }

    /// An empty flight with the memory of this one.
    pub(super) fn emptied(self) -> Self {
        let Self { mut samples, mut chunks, mut scored, .. } = self;
        samples.clear();
        chunks.clear();
        scored.clear();
        Self { samples, chunks, scored, ..Self::default() }
    }
}

impl CudaEngine {
    /// Submits a step. Takes its samples too, unless some of them wait for masks.
    ///
    /// # Safety
    /// [`BatchCheck`](crate::batch::BatchCheck) has accepted the batch. At most one other step is in flight, and its samples have been taken. `previous` has
    /// the row of each sample of the previous step. `places` has assigned places to the batch.
    pub(super) unsafe fn start(&mut self, batch: &[Chunk<'_>]) -> Result<Flight, CudaError> {
        if !self.bound {
            // The engine may have moved to another thread since it was opened.
            self.device.bind()?;
            self.bound = true;
        }
        let rows = graph_rows(batch);
        let lists = if rows.is_some() { &mut self.graph_lists } else { &mut self.step_lists };
        let previous = &self.previous;
        let followed = |index: usize| previous.get(&batch[index].sequence).copied().unwrap_or(0);
        // SAFETY: the caller's contract. The last step that used these host buffers has finished, and so has the
        // copy of its lists.
        unsafe { lists.lay_out(batch, followed, self.turn, rows.unwrap_or(0)) };
        let mut flight = self.idle.pop().unwrap_or_default();
        flight.fill(batch, &lists.plan().order);
        (flight.turn, flight.is_graph) = (self.turn, rows.is_some());
        let sampled = lists.plan().sampled;
        // SAFETY: as above.
        flight.is_adjusted = unsafe { self.adjust(batch, &flight.chunks, sampled)? };
        if let Some(rows) = rows {
            self.replay(rows)?;
        } else {
            let prefill = if self.step_lists.plan().prefill.rows.is_empty() {
                None
            } else {
                // SAFETY: as above.
                Some(unsafe { self.forward.attention.plan_prefill(&self.step_lists, &self.stream)? })
            };
            self.forward.submit(&self.step_lists.upload(&self.stream)?, prefill.as_ref())?;
        }
        if flight.samples.iter().any(PendingSample::waits) {
            self.readbacks[self.turn].computed.record(&self.stream)?;
        } else {
            // SAFETY: the step was submitted just now.
            unsafe { self.take_samples(&mut flight)? };
        }
        Ok(flight)
    }

    /// Brings the biases and penalties of a step with `rows` sampled rows to the device. `chunks` are the batch indices of the first of these rows; the
    /// others are padding. False if there are no biases or penalties.
    ///
    /// # Safety
    /// The last step with the same turn has finished.
    unsafe fn adjust(
        &mut self,
        batch: &[Chunk<'_>],
        chunks: &[usize],
        rows: usize,
    ) -> Result<bool, CudaError> {
        let places = &self.places;
        let sampled = chunks.iter().filter_map(|index| {
            let (chunk, place) = (&batch[*index], places.assigned(*index));
            Some(AdjustedRow { sample: chunk.sample?, position: chunk.end(), place })
        });
        if !sampled.clone().any(|row| row.place.is_some() || !row.sample.how.logit_bias.is_empty()) {
            return Ok(false);
        }
        // SAFETY: the caller's contract. `Drop` waits for the stream.
        unsafe { self.adjustments.upload(sampled, rows, self.turn, &self.stream)? };
        for index in chunks {
            self.places.set_counted(batch[*index].sequence, batch[*index].end());
        }
        Ok(true)
    }

    /// Samples the tokens of a step on the device and brings them to the host.
    ///
    /// # Safety
    /// The step is the last one that was submitted, and no sample of it waits.
    pub(super) unsafe fn take_samples(&mut self, flight: &mut Flight) -> Result<(), CudaError> {
        let lists = if flight.is_graph { &self.graph_lists } else { &self.step_lists };
        let (step, back) = (lists.uploaded(&self.stream), &self.readbacks[flight.turn]);
        let (sampled, reported) = (step.plan().sampled, step.plan().reported);
        if sampled > 0 {
            let of_rows = || flight.samples.iter().map(row_mask);
            let masks = if of_rows().any(|mask| !matches!(mask, RowMask::All)) {
                // SAFETY: the last step that used this host buffer has finished. `Drop` waits for the stream.
                unsafe { self.masks.upload(of_rows(), flight.turn, &self.stream)? }
            } else {
                UploadedMasks::NONE
            };
            let adjustments =
                if flight.is_adjusted { self.adjustments.uploaded() } else { UploadedAdjustments::NONE };
            // SAFETY: the masks and adjustments are those of the step's samples, in row order. Padding rows come last and have none.
            unsafe { self.forward.sample(&step, masks, adjustments)? };
            // SAFETY: `collect` reads the buffer after the event below is complete. The next step that uses this buffer
            // is submitted after that.
            unsafe { self.stream.download(&back.chosen, &self.forward.chosen, sampled)? };
        }
        if let Some(top) = flight.samples.iter().filter_map(|sample| sample.logprobs).max() {
            self.forward.report(&step, top)?;
        }
        let scored = step.plan().scored + reported;
        if scored > 0 {
            // SAFETY: as above.
            unsafe { self.stream.download(&back.scores, &self.forward.scores, scored * SCORE_WORDS)? };
        }
        back.done.record(&self.stream)?;
        flight.is_sampled = true;
        self.followed.clear();
        for (row, sample) in flight.samples.iter().enumerate().filter(|(_, sample)| !sample.is_late()) {
            self.followed.insert(sample.sequence, row);
            self.places.set_counted(sample.sequence, sample.position as usize + 1);
        }
        Ok(())
    }

    /// Submits the decode step in `graph_lists`, padded to `rows` rows, through its graph. The first step of each size
    /// runs without a graph and captures one.
    fn replay(&mut self, rows: usize) -> Result<(), CudaError> {
        let (forward, stream) = (&self.forward, &self.stream);
        let step = self.graph_lists.upload(stream)?;
        let size = (rows, step.plan().pieces());
        if let Some(graph) = self.graphs.get(&size) {
            return graph.launch(stream);
        }
        // Libraries load modules at their first call, which a capture does not allow. So this step runs directly first.
        forward.submit(&step, None)?;
        self.graphs.insert(size, Graph::capture(stream, || forward.submit(&step, None))?);
        Ok(())
    }

    /// The output of a step that is complete.
    pub(super) fn collect(&self, flight: &Flight) -> StepOutput {
        // SAFETY: the copy to this buffer was submitted before the event, which is complete.
        let chosen = unsafe { self.readbacks[flight.turn].chosen.values() };
        // SAFETY: as above.
        let scores = unsafe { self.readbacks[flight.turn].scores.values() };
        let most = self.model.vocabulary;
        let rows_scored: usize = flight.scored.iter().map(|(_, _, count, _)| count).sum();
        let (of_prompts, of_samples) = scores.split_at(rows_scored * SCORE_WORDS);
        let mut of_samples = of_samples.chunks_exact(SCORE_WORDS);
        let mut by_chunk: Vec<(usize, SampledToken)> = Vec::with_capacity(flight.samples.len());
        for (row, (sample, index)) in flight.samples.iter().zip(&flight.chunks).enumerate() {
            let reported = sample.logprobs.and_then(|top| Some((of_samples.next()?, top.min(most))));
            if sample.is_late() {
                continue;
            }
            let logprobs = reported.map(|(words, top)| Box::new(logprobs_of(words, top)));
            by_chunk.push((*index, sample.sampled(Token { id: chosen[row].cast_unsigned(), logprobs })));
        }
        by_chunk.sort_by_key(|(index, _)| *index);
        let tokens = by_chunk.into_iter().map(|(_, token)| token).collect();
        let mut words = of_prompts.chunks_exact(SCORE_WORDS);
        let mut scores: Vec<(usize, ScoredChunk)> = Vec::with_capacity(flight.scored.len());
        for (index, sequence, count, top) in flight.scored.iter().copied() {
            let of_row = |words| logprobs_of(words, top.min(most));
            scores.push((
                index,
                ScoredChunk { sequence, targets: words.by_ref().take(count).map(of_row).collect() },
            ));
        }
        scores.sort_by_key(|(index, _)| *index);
        StepOutput { tokens, scores: scores.into_iter().map(|(_, chunk)| chunk).collect() }
    }
}

/// The mask of a sample that does not wait for one.
fn row_mask(sample: &PendingSample) -> RowMask<'_> {
    match sample.mask() {
        Some(words) => RowMask::Words(words),
        None if sample.is_late() => RowMask::Late,
        None => RowMask::All,
    }
}
