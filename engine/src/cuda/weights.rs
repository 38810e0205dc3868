//! The weights on the device in bf16. Matrices with the same input are stacked, so one GEMM computes them all.

use std::sync::Arc;

use half::bf16;

use super::device::{Buffer, CudaDevice, Result, Stream};
use super::kernels::{baton_fill, launch};
use crate::Progress;
use crate::checkpoint::Checkpoint;
use crate::dequantise::floats;
use crate::error::{CudaError, OpenError};
use crate::gguf::TensorType;
use crate::gpu::arguments::Fill;
use crate::model::ModelShape;

/// Half the width of the uniform distribution of random weights. Its standard deviation is 0.02.
const RANDOM_SCALE: f32 = 0.034_641_016;

/// One transformer layer. Matrices are `[outputs][inputs]`.
pub(super) struct Layer {
    pub(super) attention_norm: Buffer,
    /// The stacked query, key and value matrices.
    pub(super) query_key_value: Buffer,
    pub(super) attention_output: Buffer,
    pub(super) feed_norm: Buffer,
    /// The stacked gate and up matrices.
    pub(super) gate_up: Buffer,
    pub(super) down: Buffer,
}

/// The whole model.
pub(super) struct Weights {
    pub(super) embedding: Buffer,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Buffer,
    output: Option<Buffer>,
}

impl Weights {
    /// The matrix that computes the logits.
    pub(super) fn output(&self) -> &Buffer {
        self.output.as_ref().unwrap_or(&self.embedding)
    }

    /// Bytes of the matrices that a decode step reads.
    pub(super) fn step_bytes(&self) -> u64 {
        let layer = |layer: &Layer| {
            [&layer.query_key_value, &layer.attention_output, &layer.gate_up, &layer.down].map(Buffer::bytes)
        };
        let layers: usize = self.layers.iter().flat_map(layer).sum();
        (layers + self.output().bytes()) as u64
    }

    /// Loads all tensors of a checkpoint.
    pub(super) fn load(
        device: &Arc<CudaDevice>,
        checkpoint: &Checkpoint,
        progress: Progress<'_>,
    ) -> std::result::Result<Self, OpenError> {
        let shape = &checkpoint.shape;
        let (hidden, feed) = (shape.hidden, shape.feed_forward);
        let (query, key) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let has_output = checkpoint.has("output.weight");
        let matrices = shape.layers * (hidden * (query + 2 * key) + query * hidden + 3 * hidden * feed);
        let total = (matrices + shape.vocabulary * hidden * (1 + usize::from(has_output))) as u64;
        let mut done = 0;
        // Loads and stacks tensors, given by name and outputs.
        let mut stack = |parts: &[(String, usize)], inputs: usize| {
            let mut numbers: Vec<bf16> = Vec::new();
            for (name, outputs) in parts {
                let dimensions: &[usize] = if *outputs == 0 { &[inputs] } else { &[inputs, *outputs] };
                let kind = checkpoint.require(name, dimensions)?;
                numbers.extend(halves(kind, &checkpoint.read(name)?));
            }
            done += numbers.len() as u64;
            progress(done.min(total), total);
            Buffer::of(device, &numbers).map_err(OpenError::Cuda)
        };
        let whole = |name: &str, outputs: usize| [(format!("{name}.weight"), outputs)];
        let embedding = stack(&whole("token_embd", shape.vocabulary), hidden)?;
        let output = has_output.then(|| stack(&whole("output", shape.vocabulary), hidden)).transpose()?;
        let mut layers = Vec::with_capacity(shape.layers);
        for layer in 0..shape.layers {
            let named = |name: &str, outputs: usize| (format!("blk.{layer}.{name}.weight"), outputs);
            layers.push(Layer {
                attention_norm: stack(&[named("attn_norm", 0)], hidden)?,
                query_key_value: stack(
                    &[named("attn_q", query), named("attn_k", key), named("attn_v", key)],
                    hidden,
                )?,
                attention_output: stack(&[named("attn_output", hidden)], query)?,
                feed_norm: stack(&[named("ffn_norm", 0)], hidden)?,
                gate_up: stack(&[named("ffn_gate", feed), named("ffn_up", feed)], hidden)?,
                down: stack(&[named("ffn_down", hidden)], feed)?,
            });
        }
        Ok(Self { embedding, layers, norm: stack(&whole("output_norm", 0), hidden)?, output })
    }

    /// Random weights for the sizes in `shape`, a pure function of `seed`. Matrix n, in the order of the struct's fields, is
    /// filled by `baton_fill` with seed `seed + n`. Norms are ones.
    pub(super) fn random(
        device: &Arc<CudaDevice>,
        stream: &Stream,
        shape: &ModelShape,
        seed: u64,
        tied: bool,
    ) -> Result<Self> {
        let (hidden, feed) = (shape.hidden, shape.feed_forward);
        let (query, key) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let mut next = seed;
        let mut matrix = |outputs: usize, inputs: usize| {
            let count = outputs * inputs;
            let buffer = Buffer::new(device, count * size_of::<bf16>())?;
            // SAFETY: the buffer has `count` numbers, as checked. It is not freed before the wait below.
            unsafe { fill(buffer.numbers(0, count), count, next, stream)? };
            next += 1;
            Ok::<_, CudaError>(buffer)
        };
        let ones = || Buffer::of(device, &vec![bf16::ONE; hidden]);
        let embedding = matrix(shape.vocabulary, hidden)?;
        let output = if tied { None } else { Some(matrix(shape.vocabulary, hidden)?) };
        let mut layers = Vec::with_capacity(shape.layers);
        for _ in 0..shape.layers {
            layers.push(Layer {
                attention_norm: ones()?,
                query_key_value: matrix(query + 2 * key, hidden)?,
                attention_output: matrix(hidden, query)?,
                feed_norm: ones()?,
                gate_up: matrix(2 * feed, hidden)?,
                down: matrix(hidden, feed)?,
            });
        }
        let norm = ones()?;
        stream.wait()?;
        Ok(Self { embedding, layers, norm, output })
    }
}

/// Fills `count` numbers of device memory with random numbers, in stream order.
///
/// # Safety
/// The memory is valid until the kernel has finished.
pub(super) unsafe fn fill(out: *mut bf16, count: usize, seed: u64, stream: &Stream) -> Result<()> {
    let arguments = Fill { out, count: count as u64, seed, scale: RANDOM_SCALE };
    // SAFETY: the caller's contract.
    unsafe { launch("baton_fill", baton_fill, &arguments, stream) }
}

/// The numbers of a tensor, rounded to bf16.
fn halves(kind: TensorType, bytes: &[u8]) -> Vec<bf16> {
    match kind {
        TensorType::BF16 => bytes.as_chunks().0.iter().map(|pair| bf16::from_le_bytes(*pair)).collect(),
        kind => floats(kind, bytes).into_iter().map(bf16::from_f32).collect(),
    }
}
