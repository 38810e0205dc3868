//! Steps in flight: submits a step, takes its samples on the device, and brings the results to the host.

use super::CudaEngine;
use super::adjustments::UploadedAdjustments;
use super::device::{Event, Pinned};
use super::graph::{Graph, graph_rows};
use super::masks::{RowMask, UploadedMasks};
use crate::error::{CudaError, EngineError};
use crate::gpu::adjustment_lists::AdjustedRow;
use crate::gpu::places::{LookingBack, Place};
use crate::gpu::score::{SCORE_WORDS, logprobs_of};
use crate::pending::PendingSample;
use crate::sampling::Token;
use crate::step::{Chunk, SampledToken, ScoredChunk, StepOutput, TokenSource};

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

impl CudaEngine {
    /// Submits a step. Takes its samples too, unless some of them wait for masks.
    ///
    /// # Safety
    /// [`batch::check`] has accepted the batch. At most one other step is in flight, and its samples have been taken. If chunk `i`
    /// takes its token from the previous step, `followed[i]` is the row that samples the token there. `assigned[i]` is the place of chunk `i`.
    pub(super) unsafe fn start(
        &mut self,
        batch: &[Chunk<'_>],
        followed: &[usize],
        assigned: &[Option<Place>],
    ) -> Result<Flight, CudaError> {
        if !self.bound {
            // The engine may have moved to another thread since it was opened.
            self.device.bind()?;
            self.bound = true;
        }
        let rows = graph_rows(batch);
        let lists = if rows.is_some() { &mut self.graph_lists } else { &mut self.step_lists };
        // SAFETY: the caller's contract. The last step that used these host buffers has finished, and so has the
        // copy of its lists.
        unsafe { lists.lay_out(batch, followed, self.turn, rows.unwrap_or(0)) };
        let (order, sampled) = (lists.plan().order.clone(), lists.plan().sampled);
        let chunks: Vec<usize> =
            order.iter().copied().filter(|index| batch[*index].sample.is_some()).collect();
        // SAFETY: as above.
        let is_adjusted = unsafe { self.adjust(batch, &chunks, assigned, sampled)? };
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
        let samples: Vec<PendingSample> =
            chunks.iter().filter_map(|index| PendingSample::of(&batch[*index])).collect();
        let of_chunk = |index: &usize| {
            let (chunk, score) = (&batch[*index], batch[*index].score?);
            Some((*index, chunk.sequence, score.targets.len(), score.top))
        };
        let scored = order.iter().filter_map(of_chunk).collect();
        let waits = samples.iter().any(PendingSample::waits);
        let (turn, is_graph) = (self.turn, rows.is_some());
        let mut flight = Flight { turn, samples, chunks, is_adjusted, is_graph, scored, is_sampled: false };
        if waits {
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
        assigned: &[Option<Place>],
        rows: usize,
    ) -> Result<bool, CudaError> {
        let sampled = chunks.iter().filter_map(|index| {
            let (chunk, place) = (&batch[*index], assigned[*index]);
            Some(AdjustedRow { sample: chunk.sample?, position: chunk.end(), place })
        });
        let sampled: Vec<AdjustedRow<'_>> = sampled.collect();
        if !sampled.iter().any(|row| row.place.is_some() || !row.sample.how.logit_bias.is_empty()) {
            return Ok(false);
        }
        // SAFETY: the caller's contract. `Drop` waits for the stream.
        unsafe { self.adjustments.upload(&sampled, rows, self.turn, &self.stream)? };
        for index in chunks.iter().filter(|index| assigned[**index].is_some()) {
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

    /// The places of a batch's samples that look back.
    ///
    /// # Errors
    /// [`EngineError::FollowsNothing`] if a chunk follows a token that the device has not counted.
    pub(super) fn assign(&mut self, batch: &[Chunk<'_>]) -> Result<Vec<Option<Place>>, EngineError> {
        let looking = |chunk: &Chunk<'_>| {
            chunk.sample.filter(|sample| sample.how.looks_back()).map(|_| LookingBack {
                sequence: chunk.sequence,
                position: chunk.end(),
                follows: chunk.source == TokenSource::Follows,
            })
        };
        let rows: Vec<Option<LookingBack>> = batch.iter().map(looking).collect();
        let of_rows: Vec<LookingBack> = rows.iter().copied().flatten().collect();
        let places = self.places.assign(&of_rows);
        let mut places = places.map_err(|sequence| EngineError::FollowsNothing { sequence })?.into_iter();
        Ok(rows.iter().map(|row| row.and_then(|_| places.next())).collect())
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

    pub(super) fn collect(&self, flight: Flight) -> StepOutput {
        // SAFETY: the copy to this buffer was submitted before the event, which is complete.
        let chosen = unsafe { self.readbacks[flight.turn].chosen.values() };
        // SAFETY: as above.
        let scores = unsafe { self.readbacks[flight.turn].scores.values() };
        let most = self.model.vocabulary;
        let rows_scored: usize = flight.scored.iter().map(|(_, _, count, _)| count).sum();
        let (of_prompts, of_samples) = scores.split_at(rows_scored * SCORE_WORDS);
        let mut of_samples = of_samples.chunks_exact(SCORE_WORDS);
        let mut placed: Vec<(usize, SampledToken)> = Vec::with_capacity(flight.samples.len());
        for (row, (sample, index)) in flight.samples.iter().zip(flight.chunks).enumerate() {
            let reported = sample.logprobs.and_then(|top| Some((of_samples.next()?, top.min(most))));
            if sample.is_late() {
                continue;
            }
            let logprobs = reported.map(|(words, top)| Box::new(logprobs_of(words, top)));
            placed.push((index, sample.sampled(Token { id: chosen[row].cast_unsigned(), logprobs })));
        }
        placed.sort_by_key(|(index, _)| *index);
        let tokens = placed.into_iter().map(|(_, token)| token).collect();
        let mut words = of_prompts.chunks_exact(SCORE_WORDS);
        let mut scores: Vec<(usize, ScoredChunk)> = Vec::with_capacity(flight.scored.len());
        for (index, sequence, count, top) in flight.scored {
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
