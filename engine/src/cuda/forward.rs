//! One step through the model: what is submitted to the stream, in order.

use std::ffi::c_void;
use std::sync::Arc;

use super::attention::{Attention, Heads, PrefillPlan};
use super::device::{Buffer, Device, Result, Stream};
use super::gemm::{Gemm, Matrix, Output, ROWS_SPARE};
use super::kernels::{
    baton_add_rms_norm, baton_embed, baton_rope_append, baton_row_products, baton_row_products_most,
    baton_sample, baton_silu_mul, baton_take_rows, launched,
};
use super::plan::{Plan, settings_of};
use super::weights::{Layer, Weights};
use crate::kv::{KeyOrValue, KvPool};
use crate::model::Shape;
use crate::sampling::Sampling;

const HALF: usize = 2;

/// Most rows that one step samples after.
pub(super) const SAMPLED_MOST: usize = 1024;

/// Memory of one row for each token of a step.
struct Activations {
    /// The residual stream.
    hidden: Buffer,
    normed: Buffer,
    query_key_value: Buffer,
    query: Buffer,
    attended: Buffer,
    /// What a block adds to the residual stream.
    delta: Buffer,
    gate_up: Buffer,
    feed: Buffer,
    /// Rows that are sampled after.
    last: Buffer,
}

/// The sizes of the model's matrices.
struct Matrices {
    query_key_value: Matrix,
    attention_output: Matrix,
    gate_up: Matrix,
    down: Matrix,
    /// Makes logits.
    output: Matrix,
}

impl Matrices {
    fn of(shape: &Shape) -> Self {
        let (query, key) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let (hidden, feed) = (shape.hidden, shape.feed_forward);
        let half = |outputs, inputs| Matrix { outputs, inputs, output: Output::Bf16 };
        Self {
            query_key_value: half(query + 2 * key, hidden),
            attention_output: half(hidden, query),
            gate_up: half(2 * feed, hidden),
            down: half(hidden, feed),
            output: Matrix { outputs: shape.vocabulary, inputs: hidden, output: Output::F32 },
        }
    }
}

/// The model with the memory that a step needs.
pub(super) struct Forward {
    shape: Shape,
    weights: Weights,
    matrices: Matrices,
    gemm: Gemm,
    pub(super) attention: Attention,
    activations: Activations,
    inverse_frequencies: Buffer,
    /// `[sampled][vocabulary]`, f32.
    pub(super) logits: Buffer,
    /// What each row's settings choose from its logits; for a row that the host samples, the largest logit.
    pub(super) chosen: Buffer,
    pool: Arc<KvPool>,
    page_tokens: usize,
    page_stride: i64,
}

/// As [`CudaEngine::draw`](super::CudaEngine::draw).
pub(super) fn draw(
    device: &Arc<Device>,
    stream: &Stream,
    logits: &[f32],
    samples: &[(&Sampling, u32)],
) -> Result<Vec<u32>> {
    let rows = samples.len();
    let settings: Vec<_> = samples.iter().map(|(how, end)| settings_of(Some((how, *end as usize)))).collect();
    let (values, settings) = (Buffer::of(device, logits)?, Buffer::of(device, &settings)?);
    let chosen = Buffer::new(device, rows * size_of::<u32>())?;
    let vocabulary = (logits.len() / rows) as i32;
    // SAFETY: all three have as many rows.
    let status = unsafe {
        baton_sample(values.start(), settings.start(), chosen.start(), rows as i32, vocabulary, stream.raw())
    };
    launched("baton_sample", status)?;
    stream.wait()?;
    chosen.read_at(0, rows)
}

impl Forward {
    pub(super) fn new(
        device: &Arc<Device>,
        shape: Shape,
        weights: Weights,
        attention: Attention,
        pool: Arc<KvPool>,
        rows: usize,
    ) -> Result<Self> {
        let (query, key) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let matrices = Matrices::of(&shape);
        let Matrices { query_key_value, attention_output, gate_up, down, output } = matrices;
        let of_layer = [query_key_value, attention_output, gate_up, down].map(|matrix| (matrix, rows));
        let products = [&of_layer[..], &[(output, rows.min(SAMPLED_MOST))]].concat();
        let gemm = Gemm::new(device, baton_row_products_most() as usize, &products)?;
        let sampled = rows.min(SAMPLED_MOST) + ROWS_SPARE;
        let rows = rows + ROWS_SPARE;
        let matrix = |rows: usize, columns: usize| Buffer::new(device, rows * columns * HALF);
        let activations = Activations {
            hidden: matrix(rows, shape.hidden)?,
            normed: matrix(rows, shape.hidden)?,
            query_key_value: matrix(rows, query + 2 * key)?,
            query: matrix(rows, query)?,
            attended: matrix(rows, query)?,
            delta: matrix(rows, shape.hidden)?,
            gate_up: matrix(rows, 2 * shape.feed_forward)?,
            feed: matrix(rows, shape.feed_forward)?,
            last: matrix(sampled, shape.hidden)?,
        };
        let layout = pool.layout();
        Ok(Self {
            gemm,
            matrices,
            inverse_frequencies: Buffer::of(device, &shape.inverse_frequencies)?,
            logits: Buffer::new(device, sampled * shape.vocabulary * size_of::<f32>())?,
            chosen: Buffer::new(device, sampled * size_of::<i32>())?,
            page_tokens: layout.page_tokens as usize,
            page_stride: (layout.page_bytes() / HALF as u64) as i64,
            shape,
            weights,
            attention,
            activations,
            pool,
        })
    }

    /// The `index`-th row of the last step's logits. The step is done.
    pub(super) fn logits_row(&self, index: usize) -> Result<Vec<f32>> {
        let vocabulary = self.shape.vocabulary;
        self.logits.read_at(index * vocabulary * size_of::<f32>(), vocabulary)
    }

    /// Bytes of weights that a decode step reads.
    pub(super) fn step_bytes(&self) -> u64 {
        self.weights.step_bytes()
    }

    /// Submits a step; `prefill` is how its prompts are planned, if it has any. The lists of `plan` are on their way to the device in the
    /// stream's order.
    pub(super) fn submit(&self, plan: &Plan, prefill: Option<&PrefillPlan>, stream: &Stream) -> Result<()> {
        let Activations { hidden, delta, normed, last, .. } = &self.activations;
        let (rows, width) = (plan.rows as i32, self.shape.hidden as i32);
        // SAFETY (of all kernel calls here): buffers are as long as the rows of a step times their columns.
        // SAFETY: see above.
        let status = unsafe {
            baton_embed(
                plan.tokens(),
                self.chosen.start(),
                self.weights.embedding.start(),
                hidden.start(),
                rows,
                width,
                stream.raw(),
            )
        };
        launched("baton_embed", status)?;
        let mut before: *mut c_void = std::ptr::null_mut();
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.attend(index, layer, before, plan, prefill, stream)?;
            before = delta.start();
            self.feed(layer, plan.rows, stream)?;
        }
        if plan.sampled == 0 {
            return Ok(());
        }
        // The last layer's sum is wanted for few rows, but costs little for all.
        self.norm(before, &self.weights.norm, plan.rows, stream)?;
        let sampled = plan.sampled as i32;
        // Rows are sampled in their order: all of them are the rows as they are.
        let all = plan.sampled == plan.rows;
        if !all {
            // SAFETY: see above.
            let status = unsafe {
                baton_take_rows(
                    normed.start(),
                    plan.sampled_rows(),
                    last.start(),
                    sampled,
                    width,
                    stream.raw(),
                )
            };
            launched("baton_take_rows", status)?;
        }
        let last = if all { normed } else { last };
        let weights = self.weights.output();
        self.multiply(last, weights, &self.logits, plan.sampled, self.matrices.output, stream)?;
        let vocabulary = self.shape.vocabulary as i32;
        // SAFETY: see above.
        let status = unsafe {
            baton_sample(
                self.logits.start(),
                plan.settings(),
                self.chosen.start(),
                sampled,
                vocabulary,
                stream.raw(),
            )
        };
        launched("baton_sample", status)
    }

    /// `hidden += before`; `delta = W_o · attention(norm(hidden))`; writes the step's keys and values.
    fn attend(
        &self,
        index: usize,
        layer: &Layer,
        before: *mut c_void,
        plan: &Plan,
        prefill: Option<&PrefillPlan>,
        stream: &Stream,
    ) -> Result<()> {
        let Activations { normed, query_key_value, query, attended, delta, .. } = &self.activations;
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        self.norm(before, &layer.attention_norm, plan.rows, stream)?;
        let matrix = self.matrices.query_key_value;
        self.multiply(normed, &layer.query_key_value, query_key_value, plan.rows, matrix, stream)?;
        let [keys, values] = [KeyOrValue::Key, KeyOrValue::Value]
            .map(|part| self.pool.layout().offset_bytes(index as u32, part, 0) as usize);
        let base: *mut c_void = self.pool.base().as_ptr().cast();
        // SAFETY: see `submit`; places lie in pages that the pool has.
        let status = unsafe {
            baton_rope_append(
                query_key_value.start(),
                query.start(),
                base,
                plan.positions(),
                plan.pool_places(),
                self.inverse_frequencies.start(),
                plan.rows as i32,
                heads as i32,
                kv_heads as i32,
                head_dim as i32,
                self.page_tokens as i32,
                self.page_stride,
                (keys / HALF) as i64,
                stream.raw(),
            )
        };
        launched("baton_rope_append", status)?;
        let of_layer = Heads {
            query: query.start(),
            keys: base.wrapping_byte_add(keys),
            values: base.wrapping_byte_add(values),
            out: attended.start(),
        };
        if let Some(words) = prefill {
            self.attention.run_prefill(words, plan, &of_layer, stream)?;
        }
        if !plan.decode.rows.is_empty() {
            self.attention.run_decode(plan, &of_layer, stream)?;
        }
        let matrix = self.matrices.attention_output;
        self.multiply(attended, &layer.attention_output, delta, plan.rows, matrix, stream)
    }

    /// `hidden += delta`; `delta = W_down · (silu(W_gate · n) ∘ W_up · n)` with `n = norm(hidden)`.
    fn feed(&self, layer: &Layer, rows: usize, stream: &Stream) -> Result<()> {
        let Activations { normed, delta, gate_up, feed, .. } = &self.activations;
        let feed_forward = self.shape.feed_forward;
        self.norm(delta.start(), &layer.feed_norm, rows, stream)?;
        self.multiply(normed, &layer.gate_up, gate_up, rows, self.matrices.gate_up, stream)?;
        // SAFETY: see `submit`.
        let status = unsafe {
            baton_silu_mul(gate_up.start(), feed.start(), rows as i32, feed_forward as i32, stream.raw())
        };
        launched("baton_silu_mul", status)?;
        self.multiply(feed, &layer.down, delta, rows, self.matrices.down, stream)
    }

    /// `hidden += delta`, if there is one; `normed = norm(hidden)`.
    fn norm(&self, delta: *mut c_void, weight: &Buffer, rows: usize, stream: &Stream) -> Result<()> {
        let Activations { hidden, normed, .. } = &self.activations;
        // SAFETY: see `submit`.
        let status = unsafe {
            baton_add_rms_norm(
                hidden.start(),
                delta,
                weight.start(),
                normed.start(),
                rows as i32,
                self.shape.hidden as i32,
                self.shape.norm_epsilon,
                stream.raw(),
            )
        };
        launched("baton_add_rms_norm", status)
    }

    fn multiply(
        &self,
        x: &Buffer,
        weights: &Buffer,
        y: &Buffer,
        rows: usize,
        matrix: Matrix,
        stream: &Stream,
    ) -> Result<()> {
        let Matrix { outputs, inputs, output } = matrix;
        debug_assert!(weights.bytes() == outputs * inputs * HALF);
        // Up to so many rows a product is bound by reading the weights, and goes without the library.
        let few = baton_row_products_most() as usize;
        if rows > few && self.gemm.has_plan(matrix, rows) {
            // SAFETY: see `submit`; the matrix has as many outputs and inputs.
            return unsafe {
                self.gemm.multiply(stream, x.start(), weights.start(), y.start(), rows, matrix)
            };
        }
        let wide = i32::from(output == Output::F32);
        let of_output = if output == Output::F32 { size_of::<f32>() } else { HALF };
        for first in (0..rows).step_by(few) {
            let (x, y) = (x.at(first * inputs * HALF), y.at(first * outputs * of_output));
            let rows = (rows - first).min(few) as i32;
            let (outputs, inputs) = (outputs as i32, inputs as i32);
            // SAFETY: see `submit`; the matrix has as many outputs and inputs.
            let status = unsafe {
                baton_row_products(x, weights.start(), y, wide, rows, outputs, inputs, stream.raw())
            };
            launched("baton_row_products", status)?;
        }
        Ok(())
    }
}
