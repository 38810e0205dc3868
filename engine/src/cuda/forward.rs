//! The forward pass of one step: the kernels that are submitted to the stream, in order.
//!
//! # Safety of the launches
//! - Sizes: [`Buffer::numbers`] and [`Uploaded::list`] check that the memory covers what a kernel reads or writes by the sizes
//!   in its arguments.
//! - Contents: token ids, positions and pages in the lists are within the vocabulary, the context and the pool, by the
//!   contract of [`Lists::lay_out`](super::lists::Lists::lay_out).
//! - Lifetime: a step is submitted to one stream, and [`CudaEngine`](super::CudaEngine) waits for the stream before it frees
//!   memory.

use std::ops::Range;
use std::sync::Arc;

use half::bf16;

use super::adjustments::UploadedAdjustments;
use super::attention::{Attention, Heads, PrefillPlan};
use super::device::{Buffer, CudaDevice, Result};
use super::draw::sample_rows;
use super::gemm::{Input, Matrix, Output, ROWS_SPARE};
use super::kernels::{
    baton_add_rms_norm, baton_embed, baton_rope_append, baton_score_rows, baton_silu_mul, baton_take_rows,
    launch,
};
use super::lists::Uploaded;
use super::masks::UploadedMasks;
use super::products::{Products, Rows};
use super::weights::{Layer, Weights};
use crate::gpu::arguments::{AddRmsNorm, Embed, RopeAppend, ScoreRows, SiluMul, TakeRows};
use crate::gpu::score::SCORE_WORDS;
use crate::kv::{KeyOrValue, KvDtype, KvPool, KvStrides};
use crate::model::Quantization;
use crate::model::spec::{AttentionSpec, ModelSpec};
use crate::sampling::Sampling;

/// Bytes of a bf16 number.
const HALF: usize = 2;

/// The addresses of codes and scales for a kernel that does not round its results.
const NOT_ROUNDED: (*mut u8, *mut f32) = (std::ptr::null_mut(), std::ptr::null_mut());

/// Rows whose logits are computed at a time for their scores.
const SLICE_ROWS: usize = 128;

/// Maximum number of rows whose logits one step computes.
pub(super) const SAMPLED_MAX: usize = 1024;

/// Matrices with one row for each token of a step.
struct Activations {
    /// The residual stream.
    hidden: Buffer,
    normed: Buffer,
    query_key_value: Buffer,
    query: Buffer,
    attended: Buffer,
    /// The output of attention or feed-forward, which is added to the residual stream.
    delta: Buffer,
    gate_up: Buffer,
    feed: Buffer,
    /// The rows that are sampled.
    last: Buffer,
}

/// The sizes of the model's matrices.
struct Matrices {
    query_key_value: Matrix,
    attention_output: Matrix,
    gate_up: Matrix,
    down: Matrix,
    /// Computes the logits.
    output: Matrix,
}

impl Matrices {
    /// The sizes of a model whose layers have matrices in the format `input`.
    fn of(shape: &ModelSpec, input: Input) -> Self {
        let (query, key) = (shape.attention.query(), shape.attention.key());
        let (hidden, feed) = (shape.hidden, shape.feed_forward);
        let half = |outputs, inputs| Matrix { outputs, inputs, input, output: Output::Bf16 };
        // The bias is added before the sum is rounded.
        let before_bias = if shape.attention.bias { Output::F32 } else { Output::Bf16 };
        Self {
            query_key_value: Matrix { output: before_bias, ..half(query + 2 * key, hidden) },
            attention_output: half(hidden, query),
            gate_up: half(2 * feed, hidden),
            down: half(hidden, feed),
            output: Matrix {
                outputs: shape.vocabulary,
                inputs: hidden,
                input: Input::Bf16,
                output: Output::F32,
            },
        }
    }
}

/// The model and the memory for a step.
pub(super) struct Forward {
    shape: ModelSpec,
    weights: Weights,
    matrices: Matrices,
    products: Products,
    pub(super) attention: Attention,
    activations: Activations,
    inverse_frequencies: Buffer,
    /// `[sampled][vocabulary]`, f32.
    pub(super) logits: Buffer,
    /// The log probabilities of the scored rows and then of the sampled tokens, [`SCORE_WORDS`] words each.
    pub(super) scores: Buffer,
    /// The sampled token of each row.
    pub(super) chosen: Buffer,
    pool: Arc<KvPool>,
    page_tokens: usize,
    kv_strides: KvStrides,
}

impl Forward {
    pub(super) fn new(
        device: &Arc<CudaDevice>,
        shape: ModelSpec,
        (weights, quantization): (Weights, Quantization),
        attention: Attention,
        pool: Arc<KvPool>,
        rows: usize,
    ) -> Result<Self> {
        let query = shape.attention.query();
        let input = if quantization.rounds_rows() { Input::Fp8 } else { Input::Bf16 };
        let matrices = Matrices::of(&shape, input);
        let Matrices { query_key_value, attention_output, gate_up, down, output } = matrices;
        let of_layer = [query_key_value, attention_output, gate_up, down];
        let products = Products::new(device, quantization, &of_layer, (output, rows.min(SAMPLED_MAX)), rows)?;
        let sampled = rows.min(SAMPLED_MAX) + ROWS_SPARE;
        let rows = rows + ROWS_SPARE;
        let matrix = |rows: usize, columns: usize| Buffer::new(device, rows * columns * HALF);
        let activations = Activations {
            hidden: matrix(rows, shape.hidden)?,
            normed: matrix(rows, shape.hidden)?,
            query_key_value: Buffer::new(
                device,
                rows * query_key_value.outputs * query_key_value.output.bytes(),
            )?,
            query: matrix(rows, query)?,
            attended: matrix(rows, query)?,
            delta: matrix(rows, shape.hidden)?,
            gate_up: matrix(rows, 2 * shape.feed_forward)?,
            feed: matrix(rows, shape.feed_forward)?,
            last: matrix(sampled, shape.hidden)?,
        };
        let layout = pool.layout();
        Ok(Self {
            products,
            matrices,
            inverse_frequencies: Buffer::of(device, &shape.inverse_frequencies)?,
            logits: Buffer::new(device, sampled * shape.vocabulary * size_of::<f32>())?,
            scores: Buffer::new(device, sampled * SCORE_WORDS * size_of::<u32>())?,
            chosen: Buffer::new(device, sampled * size_of::<i32>())?,
            page_tokens: layout.page_tokens as usize,
            kv_strides: layout.strides(),
            shape,
            weights,
            attention,
            activations,
            pool,
        })
    }

    /// The `index`-th row of the last step's logits. The step must be finished.
    pub(super) fn logits_row(&self, index: usize) -> Result<Vec<f32>> {
        let vocabulary = self.shape.vocabulary;
        self.logits.read_at(index * vocabulary * size_of::<f32>(), vocabulary)
    }

    /// Parameters of the embedding.
    pub(super) fn embedding_parameters(&self) -> u64 {
        (self.shape.vocabulary * self.shape.hidden) as u64
    }

    /// Bytes of weights that a decode step reads.
    pub(super) fn step_bytes(&self) -> u64 {
        self.weights.step_bytes()
    }

    /// Submits a step up to the logits of its sampled rows. `prefill` is the plan of its prompts, if it has any.
    pub(super) fn submit(&self, step: &Uploaded<'_>, prefill: Option<&PrefillPlan>) -> Result<()> {
        let Activations { hidden, delta, .. } = &self.activations;
        let (plan, width) = (step.plan(), self.shape.hidden);
        let arguments = Embed {
            tokens: step.list(plan.tokens()),
            chosen: self.chosen.numbers(0, 0),
            table: self.weights.embedding.bf16().numbers(0, self.shape.vocabulary * width),
            out: hidden.numbers(0, plan.rows * width),
            rows: plan.rows as i32,
            hidden: width as i32,
        };
        // SAFETY: see the module's documentation. Token -1 - n refers to a row of `chosen` that the previous step sampled.
        unsafe { launch("baton_embed", baton_embed, &arguments, step.stream)? };
        let mut before = None;
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.attend(index, layer, before, step, prefill)?;
            before = Some(delta);
            self.feed(layer, step)?;
        }
        if plan.sampled + plan.scored == 0 {
            return Ok(());
        }
        // Only some rows need this norm, but computing it for all rows costs little.
        self.norm(before, &self.weights.norm, false, step)?;
        self.score(step)?;
        // Rows are sampled in row order. So if all rows are sampled, no copy is needed.
        if plan.sampled == plan.rows {
            return self.output(&self.activations.normed, plan.sampled, step);
        }
        self.logits_of(plan.sampled_rows(), step)
    }

    /// Computes the logits of these rows, which a list of the step names, as the first rows of `logits`.
    fn logits_of(&self, which: Range<usize>, step: &Uploaded<'_>) -> Result<()> {
        let Activations { normed, last, .. } = &self.activations;
        let (count, width) = (which.len(), self.shape.hidden);
        if count == 0 {
            return Ok(());
        }
        let arguments = TakeRows {
            x: normed.numbers(0, step.plan().rows * width),
            which: step.list(which),
            out: last.numbers(0, count * width),
            count: count as i32,
            hidden: width as i32,
        };
        // SAFETY: see the module's documentation. `Plan` writes only rows of the step.
        unsafe { launch("baton_take_rows", baton_take_rows, &arguments, step.stream)? };
        self.output(last, count, step)
    }

    fn output(&self, last: &Buffer, rows: usize, step: &Uploaded<'_>) -> Result<()> {
        let weights = self.weights.output();
        self.products.multiply(
            Rows::Plain(last),
            weights,
            &self.logits,
            rows,
            self.matrices.output,
            step.stream,
        )
    }

    /// Computes the log probabilities of the scored rows' targets, a slice of rows at a time.
    fn score(&self, step: &Uploaded<'_>) -> Result<()> {
        let (plan, vocabulary) = (step.plan(), self.shape.vocabulary);
        let (all, targets) = (plan.scored_rows(), plan.targets());
        for first in (0..plan.scored).step_by(SLICE_ROWS) {
            let rows = SLICE_ROWS.min(plan.scored - first);
            self.logits_of(all.start + first..all.start + first + rows, step)?;
            let arguments = ScoreRows {
                logits: self.logits.numbers(0, rows * vocabulary),
                which: std::ptr::null(),
                targets: step.list(targets.start + first..targets.start + first + rows),
                out: self.scores.numbers(first * SCORE_WORDS, rows * SCORE_WORDS),
                rows: rows as i32,
                vocabulary: vocabulary as i32,
                top: (Sampling::LOGPROBS_MAX as usize).min(vocabulary) as i32,
            };
            // SAFETY: see the module's documentation. Targets are below the vocabulary.
            unsafe { launch("baton_score_rows", baton_score_rows, &arguments, step.stream)? };
        }
        Ok(())
    }

    /// Samples the tokens of the step that was submitted last. It has sampled rows.
    ///
    /// # Safety
    /// `masks` and `adjustments` cover the sampled rows and the vocabulary.
    pub(super) unsafe fn sample(
        &self,
        step: &Uploaded<'_>,
        masks: UploadedMasks,
        adjustments: UploadedAdjustments,
    ) -> Result<()> {
        let settings = step.list(step.plan().settings());
        let sizes = (step.plan().sampled, self.shape.vocabulary);
        // SAFETY: a plan has settings for each sampled row, and the caller's contract covers the rest.
        unsafe { sample_rows(&self.logits, settings, (masks, adjustments), &self.chosen, sizes, step.stream) }
    }

    /// Computes the log probabilities of the sampled tokens that are reported, and of the `top` most probable tokens. Writes them after those of the scored
    /// rows.
    pub(super) fn report(&self, step: &Uploaded<'_>, top: u32) -> Result<()> {
        let (plan, vocabulary) = (step.plan(), self.shape.vocabulary);
        let (rows, which) = (plan.reported, plan.reported_rows());
        let arguments = ScoreRows {
            logits: self.logits.numbers(0, plan.sampled * vocabulary),
            which: step.list(which),
            targets: self.chosen.numbers(0, plan.sampled),
            out: self.scores.numbers(plan.scored * SCORE_WORDS, rows * SCORE_WORDS),
            rows: rows as i32,
            vocabulary: vocabulary as i32,
            top: (top as usize).min(vocabulary) as i32,
        };
        // SAFETY: see the module's documentation. `Plan` writes only sampled rows, whose tokens are below the vocabulary.
        unsafe { launch("baton_score_rows", baton_score_rows, &arguments, step.stream) }
    }

    /// `hidden += before`, then `delta = W_o · attention(norm(hidden))`. Also writes the step's keys and values.
    fn attend(
        &self,
        index: usize,
        layer: &Layer,
        before: Option<&Buffer>,
        step: &Uploaded<'_>,
        prefill: Option<&PrefillPlan>,
    ) -> Result<()> {
        let Activations { normed, query_key_value, query, attended, delta, .. } = &self.activations;
        let rows = step.plan().rows;
        self.norm(before, &layer.attention_norm, true, step)?;
        let matrix = self.matrices.query_key_value;
        let x = self.products.rows(normed);
        self.products.multiply(x, &layer.query_key_value, query_key_value, rows, matrix, step.stream)?;
        let [keys, values] = [KeyOrValue::Key, KeyOrValue::Value]
            .map(|part| self.pool.layout().offset_bytes(0, index as u32, part, 0) as usize);
        self.rope_append(keys, layer, step)?;
        let of_layer = Heads { query, pool: &self.pool, keys, values, out: attended };
        if let Some(plan) = prefill {
            self.attention.run_prefill(plan, step, &of_layer)?;
        }
        let matrix = self.matrices.attention_output;
        let (rounded, x) = match prefill {
            // `multiply` rounds the rows of prompts and decode rows together.
            Some(_) => (NOT_ROUNDED, Rows::Plain(attended)),
            None => (self.products.rounded(rows, matrix.inputs), self.products.rows(attended)),
        };
        if !step.plan().decode.rows.is_empty() {
            // SAFETY: `rounded` has room for all rows of the step.
            unsafe { self.attention.run_decode(step, &of_layer, rounded)? };
        }
        self.products.multiply(x, &layer.attention_output, delta, rows, matrix, step.stream)
    }

    /// Adds the layer's biases, applies its head norms and RoPE to the step's queries and keys, and writes its keys and values
    /// to the pool. `layer_offset` is the offset of the layer's keys of KV head 0 in a page, in bytes.
    fn rope_append(&self, layer_offset: usize, layer: &Layer, step: &Uploaded<'_>) -> Result<()> {
        let Activations { query_key_value, query, .. } = &self.activations;
        let AttentionSpec { heads, kv_heads, head_dim, .. } = self.shape.attention;
        let (plan, rows) = (step.plan(), step.plan().rows);
        let (width, dtype) = ((heads + 2 * kv_heads) * head_dim, self.pool.layout().dtype);
        let given = |buffer: &Option<Buffer>, count: usize| {
            buffer.as_ref().map_or(std::ptr::null(), |buffer| buffer.numbers::<bf16>(0, count).cast_const())
        };
        let arguments = RopeAppend {
            qkv: self.matrices.query_key_value.output.numbers(query_key_value, 0, rows * width).cast_const(),
            bias: given(&layer.bias, width),
            head_norms: given(&layer.head_norms, 2 * head_dim),
            q_out: query.numbers(0, rows * heads * head_dim),
            pool: self.pool.base().as_ptr().cast(),
            positions: step.list(plan.positions()),
            pool_indices: step.list(plan.pool_indices()),
            inverse_frequencies: self.inverse_frequencies.numbers(0, head_dim / 2),
            page_stride: self.kv_strides.page,
            head_stride: self.kv_strides.head,
            layer_offset: layer_offset as i64 / dtype.bytes() as i64,
            rows: rows as i32,
            heads: heads as i32,
            kv_heads: kv_heads as i32,
            head_dim: head_dim as i32,
            page_tokens: self.page_tokens as i32,
            epsilon: self.shape.norm_epsilon,
            fp8: i32::from(dtype == KvDtype::Fp8),
        };
        // SAFETY: see the module's documentation. The pool indices lie in pages of the pool, and the other arguments come from the
        // pool's layout.
        unsafe { launch("baton_rope_append", baton_rope_append, &arguments, step.stream) }
    }

    /// `hidden += delta`, then `delta = W_down · (silu(W_gate · n) ∘ W_up · n)` with `n = norm(hidden)`.
    fn feed(&self, layer: &Layer, step: &Uploaded<'_>) -> Result<()> {
        let Activations { normed, delta, gate_up, feed, .. } = &self.activations;
        let (rows, feed_forward) = (step.plan().rows, self.shape.feed_forward);
        self.norm(Some(delta), &layer.feed_norm, true, step)?;
        let (products, of) = (&self.products, &self.matrices);
        products.multiply(products.rows(normed), &layer.gate_up, gate_up, rows, of.gate_up, step.stream)?;
        let (codes, scales) = products.rounded(rows, feed_forward);
        let arguments = SiluMul {
            gate_up: gate_up.numbers(0, rows * 2 * feed_forward),
            out: feed.numbers(0, rows * feed_forward),
            codes,
            scales,
            rows: rows as i32,
            feed: feed_forward as i32,
        };
        // SAFETY: see the module's documentation.
        unsafe { launch("baton_silu_mul", baton_silu_mul, &arguments, step.stream)? };
        products.multiply(products.rows(feed), &layer.down, delta, rows, of.down, step.stream)
    }

    /// `hidden += delta` if there is a delta, then `normed = norm(hidden)`. `is_for_layer` if a matrix of a layer multiplies the result, which then may be
    /// [rounded](Products::rounded) instead.
    fn norm(
        &self,
        delta: Option<&Buffer>,
        weight: &Buffer,
        is_for_layer: bool,
        step: &Uploaded<'_>,
    ) -> Result<()> {
        let Activations { hidden, normed, .. } = &self.activations;
        let (rows, width) = (step.plan().rows, self.shape.hidden);
        let numbers = rows * width;
        let (codes, scales) = if is_for_layer { self.products.rounded(rows, width) } else { NOT_ROUNDED };
        let arguments = AddRmsNorm {
            x: hidden.numbers(0, numbers),
            delta: delta.map_or(std::ptr::null(), |delta| delta.numbers::<bf16>(0, numbers).cast_const()),
            weight: weight.numbers(0, width),
            out: normed.numbers(0, numbers),
            codes,
            scales,
            rows: rows as i32,
            hidden: width as i32,
            epsilon: self.shape.norm_epsilon,
        };
        // SAFETY: see the module's documentation.
        unsafe { launch("baton_add_rms_norm", baton_add_rms_norm, &arguments, step.stream) }
    }
}
