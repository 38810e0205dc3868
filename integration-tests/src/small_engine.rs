//! Engines for the small models, on the CPU.

use std::path::Path;

use engine::{ComputeDevice, Engine, EngineConfig, KvCacheDtype, LoadFormat, OpenError, Quantization};

/// Opens a small model on the CPU, with these formats of weights and KV pages.
///
/// # Errors
/// Those of [`engine::open`].
pub fn open_small(
    model: &Path,
    quantization: Quantization,
    kv_dtype: KvCacheDtype,
) -> Result<Box<dyn Engine>, OpenError> {
    engine::open(&EngineConfig {
        model: model.to_owned(),
        threads: 2,
        kv_bytes: 8 << 20,
        page_tokens: Some(16),
        step_tokens: 64,
        device: ComputeDevice::Cpu,
        load_format: LoadFormat::Auto,
        quantization,
        kv_dtype,
        digests: None,
    })
}
