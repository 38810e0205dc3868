//! The weights on the device. Matrices with the same input are stacked, so one GEMM computes them all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use half::bf16;

use super::device::{Buffer, Result, Stream};
use super::kernels::{baton_fill, launch};
use super::stored_matrix::{RoundedMatrix, StoredMatrix};
use crate::Progress;
use crate::checkpoint::Checkpoint;
use crate::dequantise::floats;
use crate::error::OpenError;
use crate::gguf::TensorType;
use crate::gpu::arguments::Fill;
use crate::model::Quantization;
use crate::model::tensors::TensorRole::{
    self, AttentionNorm, AttentionOutput, Down, Embedding, FeedNorm, FinalNorm, Gate, Output, Query,
    QueryBias, QueryNorm,
};
use crate::model::tensors::TensorRow;
use crate::quantised::OutputCodes;

/// Half the width of the uniform distribution of random weights. Its standard deviation is 0.02.
const RANDOM_SCALE: f32 = 0.034_641_016;

/// Most threads that convert weights.
const CONVERTERS_MAX: usize = 8;

/// Most bytes of host memory for a weight while it is converted: as stored, as a float and in bf16.
const CONVERTING_BYTES: usize = 8;

/// Most bytes of host memory for the matrices of layers that are converted at once. Embedding and output matrix come in addition.
const CONVERTING_BYTES_MAX: usize = 8 << 30;

/// One transformer layer. Matrices are `[outputs][inputs]`.
pub(super) struct Layer {
    pub(super) attention_norm: Buffer,
    /// The stacked query, key and value matrices.
    pub(super) query_key_value: StoredMatrix,
    /// The stacked biases of queries, keys and values.
    pub(super) bias: Option<Buffer>,
    /// The factors of the query heads' norms, then those of the key heads' norms.
    pub(super) head_norms: Option<Buffer>,
    pub(super) attention_output: StoredMatrix,
    pub(super) feed_norm: Buffer,
    /// The stacked gate and up matrices.
    pub(super) gate_up: StoredMatrix,
    pub(super) down: StoredMatrix,
}

/// The whole model.
pub(super) struct Weights {
    pub(super) embedding: StoredMatrix,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Buffer,
    output: Option<StoredMatrix>,
}

impl Weights {
    /// The matrix that computes the logits.
    pub(super) fn output(&self) -> &StoredMatrix {
        self.output.as_ref().unwrap_or(&self.embedding)
    }

    /// Bytes of the matrices that a decode step reads.
    pub(super) fn step_bytes(&self) -> u64 {
        let layer = |layer: &Layer| {
            [&layer.query_key_value, &layer.attention_output, &layer.gate_up, &layer.down]
                .map(StoredMatrix::bytes)
        };
        let layers: usize = self.layers.iter().flat_map(layer).sum();
        (layers + self.output().bytes()) as u64
    }

    /// Loads all tensors of a checkpoint.
    pub(super) fn load(
        loader: &Loader<'_>,
        checkpoint: &Checkpoint,
        progress: Progress<'_>,
    ) -> std::result::Result<Self, OpenError> {
        let stacks: Vec<Stack<'_>> = stacks(checkpoint).collect();
        let (total, mut done) = (checkpoint.info().parameters, 0);
        let (next, mut made) = (AtomicUsize::new(0), Made::new());
        let (converters, quantization) = (converters(&stacks), loader.quantization);
        thread::scope(|scope| {
            // A converter waits until its stack is taken.
            let (sender, converted) = mpsc::sync_channel(0);
            for _ in 0..converters {
                let (sender, stacks, next) = (sender.clone(), &stacks, &next);
                scope.spawn(move || {
                    while let Some(stack) = stacks.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let contents = Contents::of(checkpoint, stack, quantization);
                        // After an error, the receiver is gone.
                        if sender.send((*stack, contents)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            for (stack, contents) in converted {
                let stored = loader.store_contents(stack, &contents?);
                made.insert(name(stack), stored.map_err(OpenError::Cuda)?);
                done += elements(stack) as u64;
                progress(done, total);
            }
            Ok::<(), OpenError>(())
        })?;
        Ok(Self::of(checkpoint, made))
    }

    /// Random weights for the sizes of a checkpoint, a pure function of `seed`. Stack n of the tensor table is filled by
    /// `baton_fill` with seed `seed + n`, norms not counted. Norms are ones.
    pub(super) fn random(loader: &Loader<'_>, checkpoint: &Checkpoint, seed: u64) -> Result<Self> {
        let (stream, device) = (loader.stream, loader.stream.device());
        let (mut next, mut made) = (seed, Made::new());
        for stack in stacks(checkpoint) {
            let count = elements(stack);
            let buffer = if stack[0].is_norm() {
                Buffer::of(device, &vec![bf16::ONE; count])?
            } else {
                let buffer = Buffer::new(device, count * size_of::<bf16>())?;
                // SAFETY: the buffer has `count` numbers, as checked. It is not freed before the wait below.
                unsafe { fill(buffer.numbers(0, count), count, next, stream)? };
                next += 1;
                buffer
            };
            made.insert(name(stack), loader.store(stack, buffer)?);
        }
        stream.wait()?;
        Ok(Self::of(checkpoint, made))
    }

    /// The weights of a checkpoint from all its stacks.
    fn of(checkpoint: &Checkpoint, mut made: Made) -> Self {
        let mut given = |layer, role| made.remove(&(layer, role));
        let layers = 0..checkpoint.spec.layers;
        let layers = layers.map(|layer| Layer::of(|role| given(Some(layer), role))).collect();
        let mut outside = |role| given(None, role);
        Self {
            layers,
            embedding: outside(Embedding).expect(COMPLETE),
            norm: outside(FinalNorm).expect(COMPLETE).into_bf16(),
            output: outside(Output),
        }
    }
}

/// Where and how weights are stored.
pub(super) struct Loader<'a> {
    pub(super) stream: &'a Stream,
    pub(super) quantization: Quantization,
}

impl Loader<'_> {
    /// Stores a stack.
    fn store_contents(&self, stack: Stack<'_>, contents: &Contents) -> Result<StoredMatrix> {
        match contents {
            Contents::Bf16(numbers) => self.store(stack, Buffer::of(self.stream.device(), numbers)?),
            Contents::Codes(kept) => {
                Ok(StoredMatrix::Fp8(RoundedMatrix::plain(self.stream.device(), &kept.codes, &kept.scales)?))
            }
        }
    }

    /// Stores a stack whose numbers are on the device. At most one matrix is in device memory in both formats.
    fn store(&self, stack: Stack<'_>, numbers: Buffer) -> Result<StoredMatrix> {
        let [inputs, _] = stack[0].dimensions[..] else { return Ok(StoredMatrix::Bf16(numbers)) };
        if !(self.quantization.rounds_weights() && stack[0].is_quantised()) {
            return Ok(StoredMatrix::Bf16(numbers));
        }
        let outputs = elements(stack) / inputs;
        let is_plain = self.quantization.rounds_rows();
        let rounded = RoundedMatrix::of(&numbers, (outputs, inputs), is_plain, self.stream)?;
        Ok(if is_plain { StoredMatrix::Fp8(rounded) } else { StoredMatrix::Fp8Weights(rounded) })
    }
}

/// Tensors that are one after the other in one buffer.
type Stack<'a> = &'a [TensorRow];

/// A layer, or none, and a role in it: the name of a stack.
type StackName = (Option<usize>, TensorRole);

/// Stacks on the device.
type Made = HashMap<StackName, StoredMatrix>;

/// How many threads convert weights.
fn converters(stacks: &[Stack<'_>]) -> usize {
    let of_layers = stacks.iter().filter(|stack| stack[0].layer.is_some());
    let largest = of_layers.map(|stack| elements(stack)).max().unwrap_or(1);
    let fit = CONVERTING_BYTES_MAX / (CONVERTING_BYTES * largest);
    thread::available_parallelism().map_or(1, usize::from).min(CONVERTERS_MAX).min(fit).max(1)
}

/// The stacks of a model, in the order of its tensor table.
fn stacks(checkpoint: &Checkpoint) -> impl Iterator<Item = Stack<'_>> {
    checkpoint.tensors.chunk_by(|a, b| (a.layer, a.stack) == (b.layer, b.stack))
}

fn name(stack: Stack<'_>) -> StackName {
    (stack[0].layer, stack[0].stack)
}

/// The numbers in a stack.
fn elements(stack: Stack<'_>) -> usize {
    stack.iter().map(TensorRow::elements).sum()
}

/// The numbers of a stack, on the host.
enum Contents {
    /// Rounded to bf16.
    Bf16(Vec<bf16>),
    /// FP8 weights for products with rows in FP8.
    Codes(OutputCodes),
}

impl Contents {
    fn of(
        checkpoint: &Checkpoint,
        stack: Stack<'_>,
        quantization: Quantization,
    ) -> std::result::Result<Self, OpenError> {
        let kinds =
            stack.iter().map(|row| checkpoint.require(row)).collect::<std::result::Result<Vec<_>, _>>()?;
        if let Some(codes) = checkpoint.stacked_codes(stack, quantization)? {
            return Ok(Self::Codes(codes));
        }
        let mut numbers = Vec::with_capacity(elements(stack));
        for (row, kind) in stack.iter().zip(kinds) {
            extend(&mut numbers, kind, &checkpoint.read(row)?);
        }
        Ok(Self::Bf16(numbers))
    }
}

/// Why a stack that every model has exists.
const COMPLETE: &str = "the tensor table has every stack";

impl Layer {
    /// A layer of these stacks.
    fn of(mut given: impl FnMut(TensorRole) -> Option<StoredMatrix>) -> Self {
        let mut stack = |role| given(role).expect(COMPLETE);
        Self {
            attention_norm: stack(AttentionNorm).into_bf16(),
            query_key_value: stack(Query),
            attention_output: stack(AttentionOutput),
            feed_norm: stack(FeedNorm).into_bf16(),
            gate_up: stack(Gate),
            down: stack(Down),
            bias: given(QueryBias).map(StoredMatrix::into_bf16),
            head_norms: given(QueryNorm).map(StoredMatrix::into_bf16),
        }
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

/// Adds the numbers of a tensor, rounded to bf16.
fn extend(numbers: &mut Vec<bf16>, kind: TensorType, bytes: &[u8]) {
    match kind {
        TensorType::BF16 => {
            numbers.extend(bytes.as_chunks().0.iter().map(|pair| bf16::from_le_bytes(*pair)));
        }
        kind => numbers.extend(floats(kind, bytes).into_iter().map(bf16::from_f32)),
    }
}
