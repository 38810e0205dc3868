//! Looks at a model and at the GPUs as a start does, without reading weights and without allocating memory.
//!
//! `runtime doctor` reports what it finds here.

use std::path::PathBuf;

use crate::checkpoint::Checkpoint;
use crate::error::{CudaError, OpenError};
use crate::kv::KvLayout;
use crate::model::{ComputeDevice, EngineConfig, LoadFormat, ModelInfo};
use crate::survey::GpuSurvey;

/// A model of which only the headers were read.
pub struct InspectedModel {
    checkpoint: Checkpoint,
    config: EngineConfig,
    /// The layout of its KV pages.
    pub layout: KvLayout,
}

impl InspectedModel {
    /// Reads the headers of the model in `config`, and makes all checks of [`open`](crate::open) that need neither the weights nor the device.
    ///
    /// # Errors
    /// Those of [`open`](crate::open).
    pub fn open(config: &EngineConfig) -> Result<Self, OpenError> {
        crate::model::check_limits(config)?;
        let is_cpu = config.device == ComputeDevice::Cpu;
        if is_cpu && config.load_format != LoadFormat::Auto {
            return Err(OpenError::NoDummy);
        }
        let checkpoint = Checkpoint::open_headers(&config.model, config.load_format)?;
        if config.load_format == LoadFormat::Auto {
            checkpoint.tensors.iter().try_for_each(|row| checkpoint.require(row).map(drop))?;
        }
        #[cfg(feature = "cuda")]
        if !is_cpu {
            crate::cuda::check_spec(&checkpoint.spec, config.quantization)
                .map_err(|what| OpenError::UnsupportedModel { path: config.model.clone(), what })?;
        }
        let layout = checkpoint.spec.kv_layout(config);
        // On a GPU, 0 takes the memory that remains.
        if is_cpu || config.kv_bytes > 0 {
            crate::model::pool_pages(config.kv_bytes, &layout)?;
        }
        Ok(Self { checkpoint, config: config.clone(), layout })
    }

    /// The description of the model. Its fingerprint is zero.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        self.checkpoint.info()
    }

    /// The files that a start reads, except for the tokenizer.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        self.checkpoint.hashed()
    }

    /// Bytes of the weights in the memory of a GPU and, with pages in FP8, of the memory in which prompts read them in bf16.
    #[must_use]
    pub fn gpu_bytes(&self) -> u64 {
        let expanded = self.checkpoint.spec.expanded_pages(&self.config, &self.layout);
        self.weight_bytes() + u64::from(expanded) * self.layout.layer_numbers() * 2
    }

    fn weight_bytes(&self) -> u64 {
        let is_fp8 = self.config.quantization.rounds_weights();
        let rows = self.checkpoint.tensors.iter();
        rows.map(|row| row.elements() as u64 * if is_fp8 && row.is_quantised() { 1 } else { 2 }).sum()
    }

    /// The fingerprint that a start computes. Reads the files whose digests are not stored: about a second per gigabyte.
    ///
    /// # Errors
    /// A file cannot be read, or has another checksum than its `.sha256` file says.
    pub fn fingerprint(&self) -> Result<[u8; 32], OpenError> {
        let files = self.checkpoint.fingerprint(self.config.digests.as_deref(), &|| ())?;
        Ok(self.config.fingerprint(files, self.checkpoint.keeps_codes(self.config.quantization)))
    }
}

/// Asks the driver for its version and the GPUs. With `opens`, opens each GPU for a moment, to learn its free memory. `None` in a build without
/// CUDA.
///
/// # Errors
/// There is no driver, or it does not initialise.
pub fn gpu_survey(opens: bool) -> Result<Option<GpuSurvey>, CudaError> {
    #[cfg(feature = "cuda")]
    return crate::cuda::survey(opens).map(Some);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = opens;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Quantization;
    use crate::model::tensors::TensorRow;
    use crate::testing::Tiny;

    fn config(model: PathBuf) -> EngineConfig {
        EngineConfig {
            model,
            threads: 1,
            kv_bytes: 1 << 20,
            page_tokens: Some(16),
            step_tokens: 64,
            device: ComputeDevice::Cpu,
            load_format: LoadFormat::Auto,
            quantization: Quantization::None,
            kv_dtype: crate::KvCacheDtype::Auto,
            digests: None,
        }
    }

    #[test]
    fn headers_and_the_engine_describe_the_same_model() {
        let (file, _) = Tiny { kind: 0, ..Tiny::USUAL }.file();
        let config = config(file.path().to_owned());
        let (inspected, engine) = (InspectedModel::open(&config).unwrap(), crate::open(&config).unwrap());
        let (ours, theirs) = (inspected.info(), engine.model());
        assert_eq!((&ours.name, ours.parameters), (&theirs.name, theirs.parameters));
        assert_eq!(&inspected.layout, engine.kv().layout());
        assert_eq!((ours.fingerprint, inspected.fingerprint().unwrap()), ([0; 32], theirs.fingerprint));
        assert_eq!(inspected.files(), [file.path()]);
    }

    #[test]
    fn weights_in_fp8_take_half_the_memory_of_a_gpu() {
        let (file, _) = Tiny { kind: 0, ..Tiny::USUAL }.file();
        let config = config(file.path().to_owned());
        let plain = InspectedModel::open(&config).unwrap();
        let fp8 =
            InspectedModel::open(&EngineConfig { quantization: Quantization::Fp8Weights, ..config }).unwrap();
        assert_eq!(plain.gpu_bytes(), 2 * plain.info().parameters);
        let of_layers: usize =
            fp8.checkpoint.tensors.iter().filter(|row| row.is_quantised()).map(TensorRow::elements).sum();
        assert!(of_layers > 0);
        assert_eq!(fp8.gpu_bytes(), plain.gpu_bytes() - of_layers as u64);
        let [ours, theirs] = [&plain, &fp8].map(|model| model.fingerprint().unwrap());
        assert_ne!(ours, theirs, "peers with other weights refuse each other");
    }

    #[test]
    fn pages_in_fp8_need_memory_for_prompts_on_a_gpu() {
        let (file, _) = Tiny { kind: 0, ..Tiny::USUAL }.file();
        let gpu = ComputeDevice::Cuda { ordinal: 0, memory_utilization: 0.9 };
        let of = |device, kv_dtype, kv_bytes| {
            let config = EngineConfig { device, kv_dtype, kv_bytes, ..config(file.path().to_owned()) };
            let checkpoint = Checkpoint::open_headers(&config.model, config.load_format).unwrap();
            let layout = checkpoint.spec.kv_layout(&config);
            let model = InspectedModel { checkpoint, config, layout };
            model.gpu_bytes() - model.weight_bytes()
        };
        let (fp8, auto) = (crate::KvCacheDtype::Fp8, crate::KvCacheDtype::Auto);
        // One layer's keys and values of a position take as many bytes in bf16 as all layers' in FP8, because there are two layers.
        assert_eq!(of(gpu, fp8, 0), (128 << 10) * Tiny::USUAL.kv_bytes() / 4);
        assert_eq!(of(gpu, fp8, 1 << 20), 1 << 20, "not more than the pages of the pool");
        assert_eq!(of(gpu, auto, 0), 0);
        assert_eq!(of(ComputeDevice::Cpu, fp8, 1 << 20), 0);
    }

    #[test]
    fn a_truncated_model_and_a_bad_limit_are_refused_by_the_headers() {
        let (file, _) = Tiny { kind: 0, ..Tiny::USUAL }.file();
        let whole = std::fs::metadata(file.path()).unwrap().len();
        let no_threads = EngineConfig { threads: 0, ..config(file.path().to_owned()) };
        assert_eq!(InspectedModel::open(&no_threads).err().unwrap().kind(), "bad_threads");
        std::fs::File::options().write(true).open(file.path()).unwrap().set_len(whole - 64).unwrap();
        let error = InspectedModel::open(&config(file.path().to_owned())).err().unwrap();
        assert!(error.to_string().contains("truncated"), "{error}");
    }
}
