//! Checks that the GPU and the model are supported, and computes the number of pages that fit in device memory.

use super::attention::GROUP_MAX;
use super::device::CudaDevice;
use super::forward::SAMPLED_MAX;
use super::gemm::ROWS_SPARE;
use super::graph::GRAPH_ROWS_MAX;
use super::kernels::baton_vocabulary_max;
use crate::error::OpenError;
use crate::gpu::adjustment_lists::counts_bytes;
use crate::gpu_room::GpuRoom;
use crate::kv::KvLayout;
use crate::model::spec::{AttentionSpec, ModelSpec};
use crate::model::{EngineConfig, POOL_TOKENS_MIN, Quantization};
use crate::survey::KERNELS_FOR;

/// Hidden and feed-forward sizes must be multiples of this. The kernels are tested only with such sizes.
const SIZES_ALIGN: usize = 32;
/// Maximum hidden size that one thread block normalises.
const HIDDEN_MAX: usize = 16_384;
/// Maximum number of numbers in a row of queries: one thread block joins the pieces of a row.
const QUERY_MAX: usize = 16_384;
/// Maximum feed-forward size with rows in FP8: one thread block rounds a row.
const ROUNDED_FEED_MAX: usize = 65_536;
/// Lines of the pool, which attention of decode rows counts in 32 bits. A line has the numbers of a head at a position.
const POOL_LINES_MAX: u64 = i32::MAX as u64;
/// Device memory reserved for allocations of the CUDA libraries.
const SPARE_BYTES: u64 = 1 << 30;

/// Refuses a GPU that the kernels are not compiled for.
pub(super) fn check_device(device: &CudaDevice) -> Result<(), OpenError> {
    match device.capability().map_err(OpenError::Cuda)? {
        KERNELS_FOR => Ok(()),
        (major, minor) => {
            let name = device.name().map_err(OpenError::Cuda)?;
            Err(OpenError::GpuUnsupported { name, major, minor })
        }
    }
}

/// Refuses a model whose sizes the kernels do not support. The error is the reason.
pub(crate) fn check_spec(spec: &ModelSpec, quantization: Quantization) -> Result<(), String> {
    let AttentionSpec { heads, kv_heads, .. } = spec.attention;
    if heads > GROUP_MAX * kv_heads {
        let each = heads / kv_heads;
        let what =
            format!("{each} of its heads share a KV head, but GPU attention supports at most {GROUP_MAX}");
        return Err(what);
    }
    spec.check_multiples(SIZES_ALIGN)?;
    if spec.hidden > HIDDEN_MAX {
        let what = format!("its hidden size is {}, but a GPU supports at most {HIDDEN_MAX}", spec.hidden);
        return Err(what);
    }
    let query = spec.attention.query();
    if query > QUERY_MAX {
        let what =
            format!("its queries have {query} numbers per token, but a GPU supports at most {QUERY_MAX}");
        return Err(what);
    }
    if quantization.rounds_rows() && spec.feed_forward > ROUNDED_FEED_MAX {
        let what = format!(
            "its feed-forward size is {}, but a GPU supports at most {ROUNDED_FEED_MAX} with engine.quantization=fp8",
            spec.feed_forward
        );
        return Err(what);
    }
    let (vocabulary, max) = (spec.vocabulary, baton_vocabulary_max() as usize);
    if vocabulary > max {
        let what = format!("its vocabulary has {vocabulary} tokens, but a GPU supports at most {max}");
        return Err(what);
    }
    Ok(())
}

/// The number of pages that fit in `kv_bytes`. If `kv_bytes` is 0: in the device memory that remains of the engine's share.
pub(super) fn pages(
    config: &EngineConfig,
    device: &CudaDevice,
    spec: &ModelSpec,
    layout: &KvLayout,
) -> Result<u32, OpenError> {
    let page_bytes = layout.page_bytes();
    let min_bytes = POOL_TOKENS_MIN.div_ceil(u64::from(layout.page_tokens)) * page_bytes;
    let kv_bytes = match config.device {
        crate::model::ComputeDevice::Cuda { memory_utilization, .. } if config.kv_bytes == 0 => {
            let (free_bytes, total_bytes) = device.memory().map_err(OpenError::Cuda)?;
            let memory = GpuRoom { free_bytes, total_bytes };
            let left = memory.left_of_share(memory_utilization, forward_bytes(config, spec) + SPARE_BYTES);
            if left < min_bytes {
                return Err(OpenError::GpuFull { free_mib: free_bytes >> 20, total_mib: total_bytes >> 20 });
            }
            left
        }
        _ => config.kv_bytes,
    };
    let pages = kv_bytes / page_bytes;
    if kv_bytes < min_bytes {
        return Err(OpenError::KvTooSmall { kv_bytes, pages, page_bytes, min_bytes });
    }
    let lines_of_page = page_bytes / (u64::from(layout.head_dim) * layout.dtype.bytes());
    let most = POOL_LINES_MAX / lines_of_page;
    if pages > most {
        tracing::warn!(
            pages,
            most,
            "the pool of KV pages is as large as attention can address, and the rest of the memory is not used"
        );
    }
    Ok(pages.min(most) as u32)
}

/// The bytes that activations, logits and workspaces will take.
fn forward_bytes(config: &EngineConfig, spec: &ModelSpec) -> u64 {
    let rows = u64::from(config.step_tokens).max(GRAPH_ROWS_MAX as u64) + ROWS_SPARE as u64;
    let (query, key) = (spec.attention.query(), spec.attention.key());
    let products = (query + 2 * key) * if spec.attention.bias { 2 } else { 1 };
    let row = 3 * spec.hidden + 2 * query + products + 3 * spec.feed_forward;
    let sampled = rows.min((SAMPLED_MAX + ROWS_SPARE) as u64);
    let rounded = match config.quantization {
        Quantization::None => 0,
        // A matrix of a layer in bf16, for products of many rows.
        Quantization::Fp8Weights => 2 * spec.hidden * (2 * spec.feed_forward).max(query + 2 * key),
        // The rows in FP8.
        Quantization::Fp8 => rows as usize * spec.hidden.max(query).max(spec.feed_forward),
    };
    let places = (config.step_tokens as usize).min(SAMPLED_MAX);
    rounded as u64
        + counts_bytes(places, spec.vocabulary) as u64
        + rows * row as u64 * 2
        + sampled * (spec.vocabulary * 4 + spec.hidden * 2) as u64
        + (128 << 20)
}
