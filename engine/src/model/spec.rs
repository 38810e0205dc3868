//! The specification of a model: its sizes and features. Files of both formats are described by one.

use crate::kv::{KvDtype, KvLayout};
use crate::model::{ComputeDevice, EngineConfig, KvCacheDtype};

// These limits are above the sizes of any model. They are small enough that no product of sizes overflows and a corrupt
// file causes no large allocation.
pub(crate) const LAYERS_MAX: u64 = 1024;
pub(crate) const HEADS_MAX: u64 = 4096;
pub(crate) const SIZE_MAX: u64 = 1 << 24;
/// Maximum size of the vocabulary. The fixed-point sums of `sampling` rely on this limit.
pub(crate) const VOCABULARY_MAX: u64 = 1 << 20;

/// The sizes and features of a decoder with RMS norms, RoPE and a gated SiLU feed-forward.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelSpec {
    pub(crate) layers: usize,
    /// The size of the residual stream.
    pub(crate) hidden: usize,
    pub(crate) attention: AttentionSpec,
    /// The size of the gate, which is also that of the other factor.
    pub(crate) feed_forward: usize,
    pub(crate) vocabulary: usize,
    pub(crate) context_tokens: u32,
    pub(crate) norm_epsilon: f32,
    /// RoPE's inverse frequencies, one for each pair of a head: `head_dim / 2` numbers.
    pub(crate) inverse_frequencies: Vec<f32>,
    /// True if the embedding is also the output matrix.
    pub(crate) tied: bool,
}

/// The attention of every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttentionSpec {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// True if queries, keys and values have biases.
    pub(crate) bias: bool,
    /// True if each head of the queries and keys has an RMS norm before RoPE.
    pub(crate) qk_norm: bool,
    /// A position attends to this many positions, itself included. `None` if it attends to all positions before it.
    pub(crate) window: Option<u64>,
}

impl AttentionSpec {
    /// The size of a row's queries.
    pub(crate) fn query(&self) -> usize {
        self.heads * self.head_dim
    }

    /// The size of a row's keys, which is also that of its values.
    pub(crate) fn key(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// Positions in a page on a CPU.
const CPU_PAGE_TOKENS: u32 = 16;

/// Bytes of a page on a GPU. Puts of this size between GPUs are nearly as fast as the largest ones.
const GPU_PAGE_BYTES: u64 = 8 << 20;

/// Positions of prompts whose FP8 keys and values of a layer are copied to bf16 at once, if no sequence is longer.
const EXPANDED_TOKENS: u32 = 128 << 10;

/// Positions in a page on a GPU, if one position takes `token_bytes`: the power of two that makes pages of about [`GPU_PAGE_BYTES`]. At least 16
/// and at most 256, because a prefix is shared in whole pages.
fn gpu_page_tokens(token_bytes: u64) -> u32 {
    let wanted = (GPU_PAGE_BYTES / token_bytes.max(1)).clamp(16, 256) as u32;
    let below = 1 << wanted.ilog2();
    if wanted * wanted > 2 * below * below { 2 * below } else { below }
}

impl ModelSpec {
    /// The layout of the pages of this model.
    pub(crate) fn kv_layout(&self, config: &EngineConfig) -> KvLayout {
        let (layers, kv_heads) = (self.layers as u32, self.attention.kv_heads as u32);
        let is_cpu = config.device == ComputeDevice::Cpu;
        let dtype = match config.kv_dtype {
            KvCacheDtype::Auto if is_cpu => KvDtype::F32,
            KvCacheDtype::Auto | KvCacheDtype::Bf16 => KvDtype::Bf16,
            KvCacheDtype::Fp8 => KvDtype::Fp8,
        };
        let of_tokens = |page_tokens| KvLayout {
            layers,
            kv_heads,
            head_dim: self.attention.head_dim as u32,
            page_tokens,
            dtype,
        };
        let usual = || if is_cpu { CPU_PAGE_TOKENS } else { gpu_page_tokens(of_tokens(1).page_bytes()) };
        of_tokens(config.page_tokens.unwrap_or_else(usual))
    }

    /// The most pages whose FP8 keys and values of a layer a GPU copies to bf16 at once, for attention of prompts. 0 if it copies none.
    pub(crate) fn expanded_pages(&self, config: &EngineConfig, layout: &KvLayout) -> u32 {
        if config.device == ComputeDevice::Cpu || layout.dtype != KvDtype::Fp8 {
            return 0;
        }
        let pages = self.context_tokens.max(EXPANDED_TOKENS).div_ceil(layout.page_tokens);
        let of_pool = match config.kv_bytes {
            0 => u32::MAX,
            bytes => u32::try_from(bytes / layout.page_bytes()).unwrap_or(u32::MAX),
        };
        pages.min(of_pool).max(1)
    }

    /// Refuses sizes that contradict each other, and a window that the forward pass does not compute.
    pub(crate) fn check(&self) -> Result<(), String> {
        let AttentionSpec { heads, kv_heads, head_dim, window, .. } = self.attention;
        if !heads.is_multiple_of(kv_heads) {
            return Err(format!("{heads} heads is not a multiple of {kv_heads} KV heads"));
        }
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(format!("the head size is {head_dim}, but RoPE needs an even head size"));
        }
        // Within a window as long as the context, attention is full attention.
        match window.filter(|window| *window < u64::from(self.context_tokens)) {
            Some(window) => Err(format!(
                "its sliding window has {window} tokens, fewer than its context of {}, and sliding-window attention is not supported",
                self.context_tokens
            )),
            None => Ok(()),
        }
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
}

/// RoPE's inverse frequencies `theta^(-2i/d)`, computed in f32 with the same operations as transformers.
pub(crate) fn inverse_frequencies(theta: f32, head_dim: usize) -> Vec<f32> {
    (0..head_dim).step_by(2).map(|i| 1.0 / theta.powf(i as f32 / head_dim as f32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_on_a_gpu_are_about_8_mib_and_not_longer_than_256_positions() {
        let check = |layers: u64, kv_heads: u64, head_dim: u64, expect| {
            assert_eq!(gpu_page_tokens(layers * 2 * kv_heads * head_dim * 2), expect, "{layers} {kv_heads}");
        };
        check(32, 8, 128, 64);
        // Qwen3-8B: 9 MiB are nearer than 4.5.
        check(36, 8, 128, 64);
        // Qwen2.5-7B.
        check(28, 4, 128, 128);
        check(80, 8, 128, 32);
        check(30, 3, 64, 256);
        check(1000, 1000, 128, 16);
        check(0, 0, 0, 256);
        // Llama-3.1-8B in FP8, with half the bytes for a position.
        assert_eq!(gpu_page_tokens(32 * 2 * 8 * 128), 128);
    }
}
