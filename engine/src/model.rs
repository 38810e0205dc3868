//! The engine's configuration, the description of a model, the checksum of its file, and its sizes.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::dequantise::floats;
use crate::error::OpenError;
use crate::gguf::{Gguf, GgufError};

// These limits are above the sizes of any model. They are small enough that no product of sizes overflows and a corrupt
// file causes no large allocation.
pub(crate) const LAYERS_MAX: u64 = 1024;
pub(crate) const HEADS_MAX: u64 = 4096;
pub(crate) const SIZE_MAX: u64 = 1 << 24;
/// Maximum size of the vocabulary. The fixed-point sums of `sampling` rely on this limit.
pub(crate) const VOCABULARY_MAX: u64 = 1 << 20;

const THREADS_MAX: usize = 256;
const PAGE_TOKENS_MAX: u32 = 4096;
const STEP_TOKENS_MAX: u32 = 65_536;
/// Minimum size of the pool, in tokens. A chat template alone takes about as many.
pub(crate) const POOL_TOKENS_MIN: u64 = 32;

/// The model to open and the resources to use.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// A GGUF file, or a folder in Hugging Face format. If the file `<model>.sha256` exists, the GGUF file must have that
    /// checksum.
    pub model: PathBuf,
    /// Threads that compute, including the calling thread. 1 to 256.
    pub threads: usize,
    /// Bytes for keys and values, rounded down to whole pages. Must hold at least 32 tokens. On a GPU, 0 takes the memory
    /// that remains of the engine's share.
    pub kv_bytes: u64,
    /// Positions in a page, 1 to 4096. Peers that exchange pages must have the same value.
    pub page_tokens: u32,
    /// Maximum number of tokens in one step, 1 to 65536. Activations take about 30 × hidden size bytes per token.
    pub step_tokens: u32,
    /// The device that computes.
    pub device: ComputeDevice,
    /// Where the weights come from.
    pub load_format: LoadFormat,
}

/// The device that an engine computes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ComputeDevice {
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU. Needs the feature `cuda`.
    Cuda {
        /// The CUDA ordinal of the device.
        ordinal: u32,
        /// The fraction of device memory for weights, activations and pages together, above 0 and up to 1.
        memory_utilization: f32,
    },
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFormat {
    /// Loads the weights from the model's files.
    Auto,
    /// Makes random weights with the sizes in a folder's `config.json`. On a GPU only.
    Dummy {
        /// Equal seeds make equal weights on every machine.
        seed: u64,
    },
}

/// Refuses limits that are out of range.
pub(crate) fn check_limits(config: &EngineConfig) -> Result<(), OpenError> {
    let EngineConfig { threads, page_tokens, step_tokens, .. } = *config;
    if !(1..=PAGE_TOKENS_MAX).contains(&page_tokens) {
        return Err(OpenError::BadPageTokens { page_tokens, max: PAGE_TOKENS_MAX });
    }
    if !(1..=THREADS_MAX).contains(&threads) {
        return Err(OpenError::BadThreads { threads, max: THREADS_MAX });
    }
    if !(1..=STEP_TOKENS_MAX).contains(&step_tokens) {
        return Err(OpenError::BadStepTokens { step_tokens, max: STEP_TOKENS_MAX });
    }
    Ok(())
}

/// The loaded model.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// `general.name` of the GGUF file, or the stem of the file's name.
    pub name: String,
    /// The path of the file or folder.
    pub path: PathBuf,
    /// The sha256 of the model's files. Two engines with equal fingerprints have the same weights.
    pub fingerprint: [u8; 32],
    /// Maximum number of tokens in a sequence.
    pub context_tokens: u32,
    /// The size of the vocabulary. Token ids are below this.
    pub vocabulary: u32,
    /// Tokens that end a sequence. May be empty.
    pub eos_tokens: Vec<u32>,
    /// Parameters in all tensors. A tied output counts once.
    pub parameters: u64,
}

/// The sizes of a Llama.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelShape {
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) feed_forward: usize,
    pub(crate) vocabulary: usize,
    pub(crate) context_tokens: u32,
    pub(crate) norm_epsilon: f32,
    /// RoPE's inverse frequencies, one for each pair of a head: `head_dim / 2` numbers.
    pub(crate) inverse_frequencies: Vec<f32>,
}

/// Opens a GGUF file. A missing file has an error variant of its own.
pub(crate) fn open_file(path: &Path) -> Result<Gguf, OpenError> {
    Gguf::open(path).map_err(|error| match error {
        GgufError::Io(error) if error.kind() == ErrorKind::NotFound => {
            OpenError::ModelMissing { path: path.to_owned() }
        }
        GgufError::Io(error) => OpenError::Read { path: path.to_owned(), error },
        error => OpenError::Gguf { path: path.to_owned(), error },
    })
}

/// The sha256 of the file. If the file `<path>.sha256` exists, its first word must be the same checksum in hex.
pub(crate) fn fingerprint(path: &Path) -> Result<[u8; 32], OpenError> {
    let actual = sha256(&[path.to_owned()]).map_err(|(path, error)| OpenError::Read { path, error })?;
    let checksum_file = PathBuf::from({
        let mut name = path.as_os_str().to_owned();
        name.push(".sha256");
        name
    });
    let text = match std::fs::read(&checksum_file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(actual),
        Err(error) => return Err(OpenError::Read { path: checksum_file, error }),
    };
    let expected = text.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
    if expected.len() != 64 || !expected.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(OpenError::BadChecksumFile { path: checksum_file });
    }
    let actual_hex: String = actual.iter().map(|byte| format!("{byte:02x}")).collect();
    if actual_hex != expected {
        return Err(OpenError::WrongChecksum {
            path: path.to_owned(),
            expected: expected[..12].to_owned(),
            actual: actual_hex[..12].to_owned(),
        });
    }
    Ok(actual)
}

/// The sha256 of the concatenated files.
///
/// # Errors
/// The path of the file that cannot be read, and the error.
pub(crate) fn sha256(paths: &[PathBuf]) -> Result<[u8; 32], (PathBuf, std::io::Error)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    for path in paths {
        let failed = |error| (path.clone(), error);
        let mut file = File::open(path).map_err(failed)?;
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => break,
                count => hasher.update(&buffer[..count]),
            }
        }
    }
    Ok(hasher.finalize().into())
}

/// RoPE's inverse frequencies `theta^(-2i/d)`, computed in f32 with the same operations as transformers.
pub(crate) fn inverse_frequencies(theta: f32, head_dim: usize) -> Vec<f32> {
    (0..head_dim).step_by(2).map(|i| 1.0 / theta.powf(i as f32 / head_dim as f32)).collect()
}

/// Describes the model in a GGUF file. `fingerprint` is the file's sha256.
pub(crate) fn describe(gguf: &Gguf, path: &Path, shape: &ModelShape, fingerprint: [u8; 32]) -> ModelInfo {
    let stem =
        || path.file_stem().map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned());
    let mut eos_tokens: Vec<u32> = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"]
        .iter()
        .filter_map(|key| u32::try_from(gguf.u64(key)?).ok())
        .filter(|&token| (token as usize) < shape.vocabulary)
        .collect();
    eos_tokens.dedup();
    ModelInfo {
        name: gguf.str("general.name").map_or_else(stem, str::to_owned),
        path: path.to_owned(),
        fingerprint,
        context_tokens: shape.context_tokens,
        vocabulary: shape.vocabulary as u32,
        eos_tokens,
        parameters: gguf.tensors().values().map(crate::gguf::Tensor::elements).sum(),
    }
}

impl ModelShape {
    /// Reads the sizes from a GGUF file. Refuses a model that the forward pass does not support.
    pub(crate) fn of_gguf(gguf: &Gguf, path: &Path) -> Result<Self, OpenError> {
        let unsupported = |what: String| OpenError::UnsupportedModel { path: path.to_owned(), what };
        let architecture = gguf.str("general.architecture").unwrap_or("none");
        if architecture != "llama" {
            return Err(OpenError::UnsupportedArchitecture {
                path: path.to_owned(),
                architecture: architecture.to_owned(),
            });
        }
        let size_up_to = |key: &str, max: u64| {
            gguf.u64(key)
                .filter(|value| (1..=max).contains(value))
                .map(|value| value as usize)
                .ok_or_else(|| unsupported(format!("{key} is missing or not between 1 and {max}")))
        };
        let size = |key: &str| size_up_to(key, SIZE_MAX);
        let heads_or_dimensions = |key: &str| size_up_to(key, HEADS_MAX);
        let (hidden, heads) =
            (size("llama.embedding_length")?, heads_or_dimensions("llama.attention.head_count")?);
        let kv_heads = match gguf.u64("llama.attention.head_count_kv") {
            None => heads,
            Some(_) => heads_or_dimensions("llama.attention.head_count_kv")?,
        };
        let head_dim = match gguf.u64("llama.attention.key_length") {
            None => hidden / heads,
            Some(_) => heads_or_dimensions("llama.attention.key_length")?,
        };
        let vocabulary = gguf
            .tensors()
            .get("token_embd.weight")
            .and_then(|tensor| tensor.dimensions.get(1))
            .filter(|rows| (1..=VOCABULARY_MAX).contains(*rows))
            .map(|&rows| rows as usize)
            .ok_or_else(|| {
                unsupported(format!(
                    "token_embd.weight is missing or does not have between 1 and {VOCABULARY_MAX} rows"
                ))
            })?;
        let float = |key: &str, fallback: Option<f32>| {
            gguf.f32(key)
                .or(fallback)
                .filter(|value| value.is_finite() && *value > 0.0)
                .ok_or_else(|| unsupported(format!("{key} is missing or not positive")))
        };
        let theta = float("llama.rope.freq_base", Some(10_000.0))?;
        let mut frequencies = inverse_frequencies(theta, head_dim);
        // Llama 3.1's RoPE scaling. The GGUF file stores the computed factors.
        if let Some(factors) = rope_factors(gguf, head_dim).map_err(unsupported)? {
            frequencies.iter_mut().zip(factors).for_each(|(frequency, factor)| *frequency /= factor);
        }
        let shape = Self {
            layers: size_up_to("llama.block_count", LAYERS_MAX)?,
            hidden,
            heads,
            kv_heads,
            head_dim,
            feed_forward: size("llama.feed_forward_length")?,
            vocabulary,
            context_tokens: size("llama.context_length")? as u32,
            norm_epsilon: float("llama.attention.layer_norm_rms_epsilon", None)?,
            inverse_frequencies: frequencies,
        };
        shape.check().map_err(unsupported)?;
        shape.check_gguf(gguf).map_err(unsupported)?;
        Ok(shape)
    }

    /// Parameters in all tensors of a model with these sizes.
    pub(crate) fn parameters(&self, tied: bool) -> u64 {
        let (query, key) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let attention = self.hidden * (2 * query + 2 * key);
        let layer = attention + 3 * self.hidden * self.feed_forward + 2 * self.hidden;
        let ends = self.vocabulary * self.hidden * if tied { 1 } else { 2 } + self.hidden;
        (self.layers * layer + ends) as u64
    }

    /// Refuses sizes that contradict each other.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!("{} heads is not a multiple of {} KV heads", self.heads, self.kv_heads));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return Err(format!("the head size is {}, but RoPE needs an even head size", self.head_dim));
        }
        Ok(())
    }

    /// Refuses a hidden or feed-forward size that is not a multiple of `of`. The GPU kernels need this.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn check_multiples(&self, of: usize) -> Result<(), String> {
        for (name, size) in [("hidden", self.hidden), ("feed-forward", self.feed_forward)] {
            if !size.is_multiple_of(of) {
                return Err(format!(
                    "its {name} size is {size}, but a GPU needs a multiple of {of}; set engine.device to cpu"
                ));
            }
        }
        Ok(())
    }

    fn check_gguf(&self, gguf: &Gguf) -> Result<(), String> {
        for key in ["llama.rope.dimension_count", "llama.attention.value_length"] {
            if let Some(value) = gguf.u64(key).filter(|&value| value != self.head_dim as u64) {
                return Err(format!("{key} is {value}, but it must be the head size, {}", self.head_dim));
            }
        }
        if let Some(scaling) = gguf.str("llama.rope.scaling.type").filter(|&scaling| scaling != "none") {
            return Err(format!("it uses RoPE scaling {scaling}, which is not supported"));
        }
        let known = self.tensor_names();
        match gguf.tensors().keys().find(|name| !known.contains(*name) && *name != ROPE_FACTORS) {
            Some(name) => Err(format!("it has a tensor {name}, which the forward pass does not use")),
            None => Ok(()),
        }
    }

    /// The GGUF names of all tensors that the forward pass uses.
    pub(crate) fn tensor_names(&self) -> std::collections::HashSet<String> {
        let whole = ["token_embd", "output_norm", "output"].map(|name| format!("{name}.weight"));
        let of_layer = [
            "attn_norm",
            "attn_q",
            "attn_k",
            "attn_v",
            "attn_output",
            "ffn_norm",
            "ffn_gate",
            "ffn_up",
            "ffn_down",
        ];
        let layers =
            (0..self.layers).flat_map(|layer| of_layer.map(|name| format!("blk.{layer}.{name}.weight")));
        whole.into_iter().chain(layers).collect()
    }
}

/// The tensor of factors that divide RoPE's inverse frequencies.
const ROPE_FACTORS: &str = "rope_freqs.weight";

fn rope_factors(gguf: &Gguf, head_dim: usize) -> Result<Option<Vec<f32>>, String> {
    let Some(tensor) = gguf.tensors().get(ROPE_FACTORS) else { return Ok(None) };
    let bytes = gguf.read(ROPE_FACTORS).map_err(|error| error.to_string())?;
    let factors = floats(tensor.kind, &bytes);
    if factors.len() != head_dim / 2 || factors.iter().any(|factor| !(factor.is_finite() && *factor > 0.0)) {
        return Err(format!("{ROPE_FACTORS} does not have {} positive numbers", head_dim / 2));
    }
    Ok(Some(factors))
}

#[cfg(test)]
mod tests {
    use crate::checkpoint::Checkpoint;
    use crate::testing::Tiny;

    use super::*;

    #[test]
    fn a_gpu_refuses_sizes_that_only_the_cpu_computes() {
        let check = |hidden, feed, expect: Result<(), &str>| {
            let (file, _) = Tiny { heads: 2, kv_heads: 1, kind: 0, tied: true, hidden, feed }.file();
            let shape = Checkpoint::open_as(file.path(), LoadFormat::Auto).unwrap().shape;
            match (shape.check_multiples(32), expect) {
                (Ok(()), Ok(())) => {}
                (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
                (found, expect) => panic!("{hidden} {feed}: {found:?}, not {expect:?}"),
            }
        };
        check(64, 96, Ok(()));
        check(48, 96, Err("hidden size is 48"));
        check(64, 176, Err("feed-forward size is 176"));
    }
}
