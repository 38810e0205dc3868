//! What fits on a device: which GPUs, which models, and how many pages.

use super::attention::GROUP_MAX;
use super::device::CudaDevice;
use super::forward::SAMPLED_MAX;
use super::gemm::ROWS_SPARE;
use super::graph::GRAPH_ROWS_MAX;
use super::kernels::baton_vocabulary_most;
use crate::error::OpenError;
use crate::kv::KvLayout;
use crate::model::{EngineConfig, ModelShape, POOL_TOKENS_MIN};

/// Compute capability of the GPUs that the kernels are compiled for: Hopper's.
const KERNELS_FOR: (i32, i32) = (9, 0);
/// The kernels are tested with hidden and feed-forward sizes that are multiples of this.
const SIZES_ALIGN: usize = 32;
/// What one block of threads normalises.
const HIDDEN_MAX: usize = 16_384;
/// Device memory kept for what libraries allocate by themselves.
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

/// Refuses a model that the kernels do not compute, in words.
pub(super) fn check_shape(shape: &ModelShape) -> Result<(), String> {
    if shape.heads > GROUP_MAX * shape.kv_heads {
        let each = shape.heads / shape.kv_heads;
        let what = format!("{each} of its heads share a key head, and attention on a GPU takes {GROUP_MAX}");
        return Err(what);
    }
    shape.check_multiples(SIZES_ALIGN)?;
    if shape.hidden > HIDDEN_MAX {
        let what = format!("its embedding has {} numbers, and a GPU takes up to {HIDDEN_MAX}", shape.hidden);
        return Err(what);
    }
    let (vocabulary, max) = (shape.vocabulary, baton_vocabulary_most() as usize);
    if vocabulary > max {
        let what = format!("its vocabulary has {vocabulary} tokens, and a GPU samples from up to {max}");
        return Err(what);
    }
    Ok(())
}

/// How many pages there is room for: as many as `kv_bytes` says, or what the device has left of its share.
pub(super) fn pages(
    config: &EngineConfig,
    device: &CudaDevice,
    shape: &ModelShape,
    layout: &KvLayout,
) -> Result<u32, OpenError> {
    let page_bytes = layout.page_bytes();
    let min_bytes = POOL_TOKENS_MIN.div_ceil(u64::from(config.page_tokens)) * page_bytes;
    let kv_bytes = match config.device {
        crate::model::ComputeDevice::Cuda { memory_utilization, .. } if config.kv_bytes == 0 => {
            let (free, total) = device.memory().map_err(OpenError::Cuda)?;
            let may = (total as f64 * f64::from(memory_utilization)) as u64;
            let used = (total - free) + forward_bytes(config, shape) + SPARE_BYTES;
            let left = may.saturating_sub(used);
            if left < min_bytes {
                return Err(OpenError::GpuFull { free_mib: free >> 20, total_mib: total >> 20 });
            }
            left
        }
        _ => config.kv_bytes,
    };
    let pages = kv_bytes / page_bytes;
    if kv_bytes < min_bytes {
        return Err(OpenError::KvTooSmall { kv_bytes, pages, page_bytes, min_bytes });
    }
    Ok(u32::try_from(pages).unwrap_or(u32::MAX))
}

/// What activations, logits and workspaces will take.
fn forward_bytes(config: &EngineConfig, shape: &ModelShape) -> u64 {
    let rows = u64::from(config.step_tokens).max(GRAPH_ROWS_MAX as u64) + ROWS_SPARE as u64;
    let (query, key) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let row = 3 * shape.hidden + 3 * query + 2 * key + 3 * shape.feed_forward;
    let sampled = rows.min((SAMPLED_MAX + ROWS_SPARE) as u64);
    rows * row as u64 * 2 + sampled * (shape.vocabulary * 4 + shape.hidden * 2) as u64 + (128 << 20)
}
