//! The forward pass of one step: from token ids to keys, values and the next tokens.

use super::attention::{self, Attention, Span};
use super::kernels::Kernels;
use super::linear::{Epilogue, Task, apply};
use super::matrix::Matrix;
use super::rope::Rope;
use super::scratch::{Scratch, take};
use super::threads::{Claim, Threads, WorkerPanicked};
use super::weights::{Layer, Weights};
use crate::fp8_rounding::round_row;
use crate::kv::{KeyOrValue, KvPool};
use crate::model::Quantization;
use crate::model::spec::ModelSpec;
use crate::pending::{HostSample, PendingSample};
use crate::sampling::choose;
use crate::step::{Chunk, SampledToken, ScoredChunk};

/// Rows of a unit in the phases that process single rows. A small decode batch is one unit and wakes no worker.
const UNIT_ROWS: usize = 16;

/// The model and the memory for a step.
pub(super) struct Forward {
    shape: ModelSpec,
    weights: Weights,
    /// Whether the rows that the matrices of the layers multiply are rounded to FP8.
    rounds_rows: bool,
    threads: Threads<Scratch>,
    kernels: &'static Kernels,
    rope: Rope,
    activations: Activations,
    /// One row for each sampled chunk of the last step.
    logits: Matrix,
    sampled: usize,
    scores: Vec<ScoredChunk>,
}

/// Matrices with one row for each token of a step. The system commits their memory on first access.
struct Activations {
    /// The residual stream.
    hidden: Matrix,
    normed: Matrix,
    query: Matrix,
    key: Matrix,
    value: Matrix,
    attended: Matrix,
    feed: Matrix,
}

impl Forward {
    pub(super) fn new(
        shape: ModelSpec,
        (weights, quantization): (Weights, Quantization),
        threads: Threads<Scratch>,
        kernels: &'static Kernels,
        step_tokens: usize,
    ) -> Self {
        let matrix = |columns| Matrix::new(step_tokens, columns);
        let (query, key) = (shape.attention.query(), shape.attention.key());
        let activations = Activations {
            hidden: matrix(shape.hidden),
            normed: matrix(shape.hidden),
            query: matrix(query),
            key: matrix(key),
            value: matrix(key),
            attended: matrix(query),
            feed: matrix(shape.feed_forward),
        };
        let rope = Rope::new(shape.inverse_frequencies.clone());
        let logits = Matrix::new(1, shape.vocabulary);
        Self {
            shape,
            weights,
            rounds_rows: quantization.rounds_rows(),
            threads,
            kernels,
            rope,
            activations,
            logits,
            sampled: 0,
            scores: Vec::new(),
        }
    }

    /// The logits of the `index`-th sampled chunk of the last step.
    pub(super) fn logits(&self, index: usize) -> Option<&[f32]> {
        // SAFETY: no phase runs while this borrow of `self` lives.
        (index < self.sampled).then(|| unsafe { self.logits.row(index) })
    }

    /// Computes a step up to the logits of its sampled chunks. The batch has been checked.
    pub(super) fn run(&mut self, batch: &[Chunk<'_>], kv: &KvPool) -> Result<(), WorkerPanicked> {
        self.sampled = 0;
        let mut spans = Vec::with_capacity(batch.len());
        let mut rows = 0;
        for chunk in batch {
            let (count, start) = (chunk.tokens.len(), chunk.start as usize);
            spans.push(Span { row: rows, rows: count, start, pages: chunk.pages });
            rows += count;
        }
        self.rope
            .prepare(batch.iter().flat_map(|chunk| chunk.start..chunk.start + chunk.tokens.len() as u32));
        for (row, &token) in batch.iter().flat_map(|chunk| chunk.tokens).enumerate() {
            // SAFETY: no phase runs.
            let to = unsafe { self.activations.hidden.row_mut(row) };
            self.weights.embedding.copy_output(token as usize, to);
        }
        let mut pass = Pass {
            shape: &self.shape,
            rounds_rows: self.rounds_rows,
            threads: &mut self.threads,
            kernels: self.kernels,
            rope: &self.rope,
            activations: &self.activations,
            kv,
            spans: &spans,
            rows,
        };
        for (index, layer) in self.weights.layers.iter().enumerate() {
            pass.attend(index, layer)?;
            pass.feed(layer)?;
        }
        self.output(batch, &spans)
    }

    /// Computes the scores, and then the logits of the sampled chunks.
    fn output(&mut self, batch: &[Chunk<'_>], spans: &[Span<'_>]) -> Result<(), WorkerPanicked> {
        self.scores = self.score(batch, spans)?;
        let sampled: Vec<usize> = batch
            .iter()
            .zip(spans)
            .filter(|(chunk, _)| chunk.sample.is_some())
            .map(|(_, span)| span.row + span.rows - 1)
            .collect();
        self.logits_of(sampled.iter().copied())?;
        self.sampled = sampled.len();
        Ok(())
    }

    /// Computes the logits of these rows of the residual stream, as the first rows of `logits`.
    pub(super) fn logits_of(
        &mut self,
        of_rows: impl ExactSizeIterator<Item = usize>,
    ) -> Result<(), WorkerPanicked> {
        let Self { shape, weights, threads, kernels, activations, logits, .. } = self;
        let count = of_rows.len();
        for (index, row) in of_rows.enumerate() {
            // SAFETY: no phase runs. The two matrices are distinct. This machine supports the kernels.
            unsafe {
                let (from, to) = (activations.hidden.row(row), activations.normed.row_mut(index));
                (kernels.rms_norm)(from, &weights.norm, shape.norm_epsilon, to);
            }
        }
        if !logits.has_rows(count) {
            *logits = Matrix::new(count.next_power_of_two(), shape.vocabulary);
        }
        let task = Task { weights: weights.output(), epilogue: Epilogue::Store(logits) };
        apply(threads, kernels, &activations.normed, count, &[task])
    }

    /// The logits, and the threads that may read them.
    pub(super) fn logits_and_threads(&mut self) -> (&Matrix, &mut Threads<Scratch>) {
        (&self.logits, &mut self.threads)
    }

    /// The scores of the last step.
    pub(super) fn take_scores(&mut self) -> Vec<ScoredChunk> {
        std::mem::take(&mut self.scores)
    }

    /// Takes the samples of a batch without constrained samples, from the logits of the last step.
    pub(super) fn sample(&mut self, batch: &[Chunk<'_>]) -> Vec<SampledToken> {
        let sampled = batch.iter().filter_map(|chunk| Some((chunk, chunk.sample?)));
        let chosen = sampled.enumerate().map(|(index, (chunk, sample))| {
            // SAFETY: no phase runs.
            let logits = unsafe { self.logits.row_mut(index) };
            SampledToken { sequence: chunk.sequence, token: choose(logits, sample, None, chunk.end() as u32) }
        });
        chosen.collect()
    }

    /// Takes the samples that are not late from the logits of the last step, which sampled these chunks in this order.
    pub(super) fn sample_pending(
        &mut self,
        samples: &[PendingSample],
        of_host: &[HostSample],
    ) -> Vec<SampledToken> {
        let taken = samples.iter().zip(of_host).enumerate().filter(|(_, (sample, _))| !sample.is_late());
        let chosen = taken.map(|(index, (sample, of_host))| {
            // SAFETY: no phase runs.
            let logits = unsafe { self.logits.row_mut(index) };
            sample.sampled(of_host.choose(sample, logits))
        });
        chosen.collect()
    }
}

/// The data of one step that all layers use.
struct Pass<'a> {
    shape: &'a ModelSpec,
    rounds_rows: bool,
    threads: &'a mut Threads<Scratch>,
    kernels: &'static Kernels,
    rope: &'a Rope,
    activations: &'a Activations,
    kv: &'a KvPool,
    spans: &'a [Span<'a>],
    rows: usize,
}

impl Pass<'_> {
    /// `hidden += W_o · attention(norm(hidden))`. Also writes the step's keys and values.
    fn attend(&mut self, index: usize, layer: &Layer) -> Result<(), WorkerPanicked> {
        let Activations { query, key, value, attended, .. } = self.activations;
        self.norm(&layer.attention_norm)?;
        self.linear(&[
            Task { weights: &layer.query, epilogue: Epilogue::Store(query) },
            Task { weights: &layer.key, epilogue: Epilogue::Store(key) },
            Task { weights: &layer.value, epilogue: Epilogue::Store(value) },
        ])?;
        self.write_kv(index, layer)?;
        let attention = Attention {
            kernels: self.kernels,
            heads: &self.shape.attention,
            kv: self.kv,
            layer: index,
            queries: query,
            out: attended,
        };
        let units = attention::units(&self.shape.attention, self.spans);
        self.threads.run(units.len(), Claim::One, &|unit, scratch| {
            // SAFETY: this machine supports the kernels. The page tables are checked. The previous phase wrote this step's
            // positions, and no code writes them now. Units are distinct.
            unsafe { attention.compute(&units[unit], scratch) };
        })?;
        self.round(attended)?;
        let task =
            Task { weights: &layer.attention_output, epilogue: Epilogue::Add(&self.activations.hidden) };
        apply(self.threads, self.kernels, attended, self.rows, &[task])
    }

    /// `hidden += W_down · (silu(W_gate · n) ∘ W_up · n)` with `n = norm(hidden)`.
    fn feed(&mut self, layer: &Layer) -> Result<(), WorkerPanicked> {
        let Activations { hidden, feed, .. } = self.activations;
        self.norm(&layer.feed_norm)?;
        self.linear(&[Task { weights: &layer.gate, epilogue: Epilogue::SwiGlu { up: &layer.up, y: feed } }])?;
        self.round(feed)?;
        let task = Task { weights: &layer.down, epilogue: Epilogue::Add(hidden) };
        apply(self.threads, self.kernels, feed, self.rows, &[task])
    }

    fn linear(&mut self, tasks: &[Task<'_>]) -> Result<(), WorkerPanicked> {
        apply(self.threads, self.kernels, &self.activations.normed, self.rows, tasks)
    }

    fn norm(&mut self, weight: &[f32]) -> Result<(), WorkerPanicked> {
        let (Activations { hidden, normed, .. }, kernels) = (self.activations, self.kernels);
        let (epsilon, rounds) = (self.shape.norm_epsilon, self.rounds_rows);
        self.each_row(&|row, _| {
            // SAFETY: only this unit accesses the row. The two matrices are distinct.
            let (from, to) = unsafe { (hidden.row(row), normed.row_mut(row)) };
            // SAFETY: this machine supports the kernels.
            unsafe { (kernels.rms_norm)(from, weight, epsilon, to) };
            if rounds {
                round_row(to);
            }
        })
    }

    /// Rounds the rows that a matrix of a layer multiplies next, if the engine rounds rows.
    fn round(&mut self, rows: &Matrix) -> Result<(), WorkerPanicked> {
        if !self.rounds_rows {
            return Ok(());
        }
        self.each_row(&|row, _| {
            // SAFETY: only this unit accesses the row.
            round_row(unsafe { rows.row_mut(row) });
        })
    }

    /// Applies the head norms and RoPE to queries and keys, and writes keys and values to their pages.
    fn write_kv(&mut self, index: usize, layer: &Layer) -> Result<(), WorkerPanicked> {
        let Activations { query, key, value, .. } = self.activations;
        let (rope, kv, spans, kernels) = (self.rope, self.kv, self.spans, self.kernels);
        let (page_tokens, epsilon) = (kv.layout().page_tokens as usize, self.shape.norm_epsilon);
        self.each_row(&|row, scratch| {
            let span = &spans[spans.partition_point(|span| span.row <= row) - 1];
            let position = span.start + row - span.row;
            let page = span.pages[position / page_tokens];
            // SAFETY: only this unit accesses the row.
            let (query, key, value) = unsafe { (query.row_mut(row), key.row_mut(row), value.row(row)) };
            if let Some([of_query, of_key]) = &layer.head_norms {
                for (heads, weight) in [(&mut *query, of_query), (&mut *key, of_key)] {
                    for head in heads.chunks_exact_mut(weight.len()) {
                        let normed = take(&mut scratch.values, head.len());
                        // SAFETY: this machine supports the kernels.
                        unsafe { (kernels.rms_norm)(head, weight, epsilon, normed) };
                        head.copy_from_slice(normed);
                    }
                }
            }
            rope.rotate(row, query);
            rope.rotate(row, key);
            for (part, from) in [(KeyOrValue::Key, &*key), (KeyOrValue::Value, value)] {
                for (head, from) in from.chunks_exact(kv.layout().head_dim as usize).enumerate() {
                    let place = (position % page_tokens) as u32;
                    let to = kv.address(page, head as u32, index as u32, part, place);
                    // SAFETY: the page has `head_dim` numbers here. In a checked batch only one chunk writes a page, so no
                    // other thread accesses this position.
                    unsafe { kv.layout().dtype.write(from, to.as_ptr()) };
                }
            }
        })
    }

    /// Calls `work` for every row of the step. Uses several threads if there is more than one unit of rows.
    fn each_row(&mut self, work: &(dyn Fn(usize, &mut Scratch) + Sync)) -> Result<(), WorkerPanicked> {
        let rows = self.rows;
        self.threads.run(rows.div_ceil(UNIT_ROWS), Claim::Part, &|unit, scratch| {
            (unit * UNIT_ROWS..rows.min((unit + 1) * UNIT_ROWS)).for_each(|row| work(row, scratch));
        })
    }
}
