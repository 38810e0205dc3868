//! The weights in memory: quantised matrices in panels of 32 outputs, and the norms.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use half::f16;

use super::arena::{Arena, Block};
use super::kernels::{BLOCK, PANEL, Q4_BYTES, Q8_BYTES};
use super::scratch::Scratch;
use super::threads::{Claim, Threads};
use crate::Progress;
use crate::checkpoint::Checkpoint;
use crate::dequantise::{floats, q5_0_number};
use crate::error::OpenError;
use crate::fp8_rounding::round_output;
use crate::gguf::TensorType;
use crate::model::Quantization;
use crate::model::tensors::TensorRole::{
    self, AttentionNorm, AttentionOutput, Down, Embedding, FeedNorm, FinalNorm, Gate, Key, KeyBias, KeyNorm,
    Output, Query, QueryBias, QueryNorm, Up, Value, ValueBias,
};
use crate::model::tensors::TensorRow;

/// A weight matrix of `outputs × inputs`. A panel interleaves 32 outputs, so a kernel computes them in the lanes of its
/// registers without a sum across lanes. Zeros pad the last panel.
pub(super) struct Linear {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) panels: Panels,
    /// A number for each output, which is added to the product.
    pub(super) bias: Option<Vec<f32>>,
}

/// The concatenated panels.
pub(super) enum Panels {
    /// `[inputs][32]` floats per panel.
    F32(Block<f32>),
    /// [`Q4_BYTES`] per block of 32 inputs.
    Q4(Block<u8>),
    /// [`Q8_BYTES`] per block of 32 inputs.
    Q8(Block<u8>),
}

/// The bytes of the panels of a tensor.
fn panel_bytes(kind: TensorType, rounded: bool, outputs: usize, inputs: usize) -> usize {
    let panels = outputs.div_ceil(PANEL);
    match kind {
        TensorType::Q4_0 | TensorType::Q4_1 if !rounded => panels * (inputs / BLOCK) * Q4_BYTES,
        TensorType::Q5_0 | TensorType::Q8_0 if !rounded => panels * (inputs / BLOCK) * Q8_BYTES,
        _ => panels * PANEL * inputs * size_of::<f32>(),
    }
}

impl Linear {
    /// The number of panels.
    pub(super) fn panel_count(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// Converts a tensor of `outputs` rows to panels.
    fn repack(arena: &Arc<Arena>, kind: TensorType, bytes: &[u8], outputs: usize, inputs: usize) -> Self {
        let blocks = inputs / BLOCK;
        let panels = match kind {
            TensorType::Q4_1 => Panels::Q4(repack_q4(arena, bytes, outputs, blocks)),
            TensorType::Q8_0 => Panels::Q8(repack_q8(arena, bytes, outputs, blocks)),
            TensorType::Q4_0 => Panels::Q4(repack_q4(arena, &q4_0_as_q4_1(bytes), outputs, blocks)),
            TensorType::Q5_0 => Panels::Q8(repack_q8(arena, &q5_0_as_q8_0(bytes), outputs, blocks)),
            // Other types have no kernel, so they are stored as floats.
            kind => Panels::F32(repack_f32(arena, &floats(kind, bytes), outputs, inputs)),
        };
        Self { outputs, inputs, panels, bias: None }
    }

    /// Stores weights as floats.
    fn of_floats(arena: &Arc<Arena>, floats: &[f32], outputs: usize, inputs: usize) -> Self {
        Self { outputs, inputs, panels: Panels::F32(repack_f32(arena, floats, outputs, inputs)), bias: None }
    }
}

fn repack_f32(arena: &Arc<Arena>, floats: &[f32], outputs: usize, inputs: usize) -> Block<f32> {
    let mut panels = arena.take(outputs.next_multiple_of(PANEL) * inputs);
    for (index, float) in floats.iter().enumerate() {
        let (output, input) = (index / inputs, index % inputs);
        panels[(output / PANEL * inputs + input) * PANEL + output % PANEL] = *float;
    }
    panels
}

/// Converts Q4_0 blocks to Q4_1: `d·(q - 8)` is `d·q + m` with `m = -8·d`. The conversion is exact if `m` is a finite f16.
/// No file has a larger `d`, because its weights would be above 65,504.
fn q4_0_as_q4_1(bytes: &[u8]) -> Vec<u8> {
    let block = |block: &[u8; 18]| {
        let min = f16::from_f32(f16::from_le_bytes([block[0], block[1]]).to_f32() * -8.0);
        [&block[..2], &min.to_le_bytes(), &block[2..]].concat()
    };
    bytes.as_chunks().0.iter().flat_map(block).collect()
}

/// Converts Q5_0 blocks to Q8_0: both are a scale times a whole number.
fn q5_0_as_q8_0(bytes: &[u8]) -> Vec<u8> {
    let block = |block: &[u8; 22]| {
        let numbers: [u8; 32] = std::array::from_fn(|n| (q5_0_number(block, n) - 16) as u8);
        [&block[..2], &numbers].concat()
    };
    bytes.as_chunks().0.iter().flat_map(block).collect()
}

/// Converts Q4_1 blocks to panels. A file's block is `d m q[16]`: byte `i` has input `i` in its low nibble and input `i + 16`
/// in its high nibble.
fn repack_q4(arena: &Arc<Arena>, bytes: &[u8], outputs: usize, blocks: usize) -> Block<u8> {
    let mut panels = arena.take(outputs.div_ceil(PANEL) * blocks * Q4_BYTES);
    for (index, from) in bytes.as_chunks::<20>().0.iter().enumerate() {
        let (output, block) = (index / blocks, index % blocks);
        let column = output % PANEL;
        let to = &mut panels[(output / PANEL * blocks + block) * Q4_BYTES..][..Q4_BYTES];
        to[2 * column..][..2].copy_from_slice(&from[..2]);
        to[2 * PANEL + 2 * column..][..2].copy_from_slice(&from[2..4]);
        let nibbles = &from[4..];
        for pair in 0..8 {
            let (first, second) = (nibbles[2 * pair], nibbles[2 * pair + 1]);
            to[4 * PANEL + pair * PANEL + column] = first & 15 | second << 4;
            to[4 * PANEL + (pair + 8) * PANEL + column] = first >> 4 | second & 0xf0;
        }
    }
    panels
}

/// Converts Q8_0 blocks to panels. A file's block is `d q[32]`.
fn repack_q8(arena: &Arc<Arena>, bytes: &[u8], outputs: usize, blocks: usize) -> Block<u8> {
    let mut panels = arena.take(outputs.div_ceil(PANEL) * blocks * Q8_BYTES);
    for (index, from) in bytes.as_chunks::<34>().0.iter().enumerate() {
        let (output, block) = (index / blocks, index % blocks);
        let column = output % PANEL;
        let to = &mut panels[(output / PANEL * blocks + block) * Q8_BYTES..][..Q8_BYTES];
        to[2 * column..][..2].copy_from_slice(&from[..2]);
        for (input, &q) in from[2..].iter().enumerate() {
            to[2 * PANEL + input * PANEL + column] = q;
        }
    }
    panels
}

/// One transformer layer.
pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    /// The factors of the norms of each query head and each key head, if the model has such norms.
    pub(super) head_norms: Option<[Vec<f32>; 2]>,
    pub(super) attention_output: Linear,
    pub(super) feed_norm: Vec<f32>,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// The whole model.
pub(super) struct Weights {
    /// The token embedding. It is also the output matrix if the checkpoint ties them.
    pub(super) embedding: Linear,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Vec<f32>,
    output: Option<Linear>,
}

impl Weights {
    /// The matrix that computes the logits.
    pub(super) fn output(&self) -> &Linear {
        self.output.as_ref().unwrap_or(&self.embedding)
    }

    /// Reads and repacks all tensors, on all threads.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        quantization: Quantization,
        threads: &mut Threads<Scratch>,
        progress: Progress<'_>,
    ) -> Result<Self, OpenError> {
        let mut loaded = Loaded::read(checkpoint, quantization, threads, progress)?;
        Ok(Self {
            embedding: loaded.matrix(None, Embedding),
            output: loaded.matrices.remove(&(None, Output)),
            norm: loaded.vector(None, FinalNorm),
            layers: (0..checkpoint.spec.layers).map(|layer| loaded.layer(Some(layer))).collect(),
        })
    }
}

/// Whether a tensor becomes FP8.
fn rounds(row: &TensorRow, quantization: Quantization) -> bool {
    quantization.rounds_weights() && row.is_quantised()
}

/// The numbers of a tensor.
enum Contents {
    /// As a checkpoint stores them.
    Stored(TensorType, Vec<u8>),
    Floats(Vec<f32>),
}

impl Contents {
    /// The numbers that the engine computes with.
    fn of(
        checkpoint: &Checkpoint,
        row: &TensorRow,
        kind: TensorType,
        quantization: Quantization,
    ) -> Result<Self, OpenError> {
        if let Some(kept) = checkpoint.kept_codes(row, quantization)? {
            return Ok(Self::Floats(kept.to_floats()));
        }
        let bytes = checkpoint.read(row)?;
        if !rounds(row, quantization) {
            return Ok(Self::Stored(kind, bytes));
        }
        let mut floats = floats(kind, &bytes);
        floats.chunks_exact_mut(row.dimensions[0]).for_each(round_output);
        Ok(Self::Floats(floats))
    }

    fn into_floats(self) -> Vec<f32> {
        match self {
            Self::Stored(kind, bytes) => floats(kind, &bytes),
            Self::Floats(floats) => floats,
        }
    }
}

/// The tensors that are loaded and not yet taken, by layer and role.
#[derive(Default)]
struct Loaded {
    matrices: HashMap<(Option<usize>, TensorRole), Linear>,
    vectors: HashMap<(Option<usize>, TensorRole), Vec<f32>>,
}

impl Loaded {
    fn read(
        checkpoint: &Checkpoint,
        quantization: Quantization,
        threads: &mut Threads<Scratch>,
        progress: Progress<'_>,
    ) -> Result<Self, OpenError> {
        let rows = &checkpoint.tensors;
        let kinds = rows.iter().map(|row| checkpoint.require(row)).collect::<Result<Vec<_>, _>>()?;
        let rounds = |row: &TensorRow| rounds(row, quantization);
        let arena = Arena::new(rows.iter().zip(&kinds).filter_map(|(row, kind)| {
            let [inputs, outputs] = row.dimensions[..] else { return None };
            Some(panel_bytes(*kind, rounds(row), outputs, inputs))
        }))?;
        let (loaded, failed) = (Mutex::new(Self::default()), Mutex::new(None));
        let (total, done) = (checkpoint.info().parameters, AtomicU64::new(0));
        threads
            .run(rows.len(), Claim::One, &|unit, _| {
                let row = &rows[unit];
                match Contents::of(checkpoint, row, kinds[unit], quantization) {
                    Ok(contents) => {
                        Self::add(&loaded, &arena, row, contents);
                        let numbers = row.elements() as u64;
                        progress(done.fetch_add(numbers, Ordering::Relaxed) + numbers, total);
                    }
                    Err(error) => *failed.lock().expect("no panic under this lock") = Some(error),
                }
            })
            .map_err(|_| OpenError::WorkerPanicked)?;
        match failed.into_inner().expect("no panic under this lock") {
            Some(error) => Err(error),
            None => Ok(loaded.into_inner().expect("no panic under this lock")),
        }
    }

    fn add(loaded: &Mutex<Self>, arena: &Arc<Arena>, row: &TensorRow, contents: Contents) {
        let key = (row.layer, row.role);
        // The conversion runs without the lock.
        if let [inputs, outputs] = row.dimensions[..] {
            let matrix = match contents {
                Contents::Floats(floats) => Linear::of_floats(arena, &floats, outputs, inputs),
                Contents::Stored(kind, bytes) => Linear::repack(arena, kind, &bytes, outputs, inputs),
            };
            loaded.lock().expect("no panic under this lock").matrices.insert(key, matrix);
        } else {
            let vector = contents.into_floats();
            loaded.lock().expect("no panic under this lock").vectors.insert(key, vector);
        }
    }

    fn matrix(&mut self, layer: Option<usize>, role: TensorRole) -> Linear {
        self.matrices.remove(&(layer, role)).expect("the tensor table has every matrix of a layer")
    }

    fn vector(&mut self, layer: Option<usize>, role: TensorRole) -> Vec<f32> {
        self.vectors.remove(&(layer, role)).expect("the tensor table has every norm of a layer")
    }

    /// The matrix `role` with its bias, if the model has one.
    fn biased(&mut self, layer: Option<usize>, role: TensorRole, bias: TensorRole) -> Linear {
        Linear { bias: self.vectors.remove(&(layer, bias)), ..self.matrix(layer, role) }
    }

    fn layer(&mut self, layer: Option<usize>) -> Layer {
        let head_norms = [QueryNorm, KeyNorm].map(|role| self.vectors.remove(&(layer, role)));
        Layer {
            attention_norm: self.vector(layer, AttentionNorm),
            query: self.biased(layer, Query, QueryBias),
            key: self.biased(layer, Key, KeyBias),
            value: self.biased(layer, Value, ValueBias),
            head_norms: match head_norms {
                [Some(query), Some(key)] => Some([query, key]),
                _ => None,
            },
            attention_output: self.matrix(layer, AttentionOutput),
            feed_norm: self.vector(layer, FeedNorm),
            gate: self.matrix(layer, Gate),
            up: self.matrix(layer, Up),
            down: self.matrix(layer, Down),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, Tiny};

    /// The numbers of a matrix, output by output.
    fn numbers(matrix: &Linear) -> Vec<f32> {
        let mut found = vec![0.0; matrix.outputs * matrix.inputs];
        let outputs = found.chunks_exact_mut(matrix.inputs).enumerate();
        outputs.for_each(|(output, to)| matrix.copy_output(output, to));
        found
    }

    #[test]
    fn fp8_weights_round_the_matrices_of_layers_only() {
        let (file, _) = Tiny { kind: 0, ..Tiny::USUAL }.file();
        let checkpoint = Checkpoint::open_headers(file.path(), crate::LoadFormat::Auto).unwrap();
        let [plain, fp8] = [Quantization::None, Quantization::Fp8Weights].map(|quantization| {
            let mut threads = Threads::new(1).map_err(|(_, error)| error).unwrap();
            Weights::load(&checkpoint, quantization, &mut threads, &|_, _| ()).unwrap()
        });
        assert_eq!(numbers(&plain.embedding), numbers(&fp8.embedding));
        assert_eq!(numbers(plain.output()), numbers(fp8.output()));
        for (plain, fp8) in plain.layers.iter().zip(&fp8.layers) {
            assert_eq!((&plain.attention_norm, &plain.feed_norm), (&fp8.attention_norm, &fp8.feed_norm));
            let of = |layer: &Layer| {
                let Layer { query, key, value, attention_output, gate, up, down, .. } = layer;
                [query, key, value, attention_output, gate, up, down]
                    .map(|matrix| (numbers(matrix), matrix.inputs))
            };
            for ((mut plain, inputs), (fp8, _)) in of(plain).into_iter().zip(of(fp8)) {
                assert_ne!(plain, fp8);
                plain.chunks_exact_mut(inputs).for_each(round_output);
                assert_eq!(plain, fp8);
            }
        }
    }

    #[test]
    fn panels_hold_the_same_numbers_as_the_tensor_for_every_type() {
        let kinds = [
            (TensorType::F32, 4 * 32),
            (TensorType::BF16, 2 * 32),
            (TensorType::Q4_0, 18),
            (TensorType::Q4_1, 20),
            (TensorType::Q5_0, 22),
            (TensorType::Q8_0, 34),
        ];
        let (outputs, inputs) = (45, 64);
        let mut random = Random(3);
        for (kind, block_bytes) in kinds {
            let mut bytes: Vec<u8> =
                (0..outputs * inputs / 32 * block_bytes).map(|_| random.next() as u8).collect();
            // Keeps the exponents of f16 scales below infinity.
            bytes.chunks_exact_mut(2).for_each(|pair| pair[1] &= 0xb3);
            let arena = Arena::new([panel_bytes(kind, false, outputs, inputs)].into_iter()).unwrap();
            let matrix = Linear::repack(&arena, kind, &bytes, outputs, inputs);
            let mut found = vec![0.0; outputs * inputs];
            for (output, to) in found.chunks_exact_mut(inputs).enumerate() {
                matrix.copy_output(output, to);
            }
            assert_eq!(found, floats(kind, &bytes), "{kind}");
        }
    }
}
