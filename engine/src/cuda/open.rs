//! Opens a [`CudaEngine`]: checks the GPU and the model, loads the weights, and allocates device memory.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::adjustments::Adjustments;
use super::attention::Attention;
use super::device::{CudaDevice, Event, Pinned, Stream};
use super::fits;
use super::flight::Readback;
use super::forward::{Forward, SAMPLED_MAX};
use super::graph::{GRAPH_PAGES, GRAPH_ROWS_MAX};
use super::lists::Lists;
use super::masks::Masks;
use super::pool::DevicePool;
use super::weights::{Loader, Weights};
use super::{CudaEngine, PAGE_ENTRIES_MAX};
use crate::Progress;
use crate::batch::BatchCheck;
use crate::checkpoint::Checkpoint;
use crate::error::{CudaError, OpenError};
use crate::gpu::places::Places;
use crate::gpu::plan::{StepCapacity, pieces_max};
use crate::gpu::score::SCORE_WORDS;
use crate::kv::KvLayout;
use crate::model::spec::ModelSpec;
use crate::model::{EngineConfig, LoadFormat};
use crate::step::StepLimits;

impl CudaEngine {
    /// Does the same as [`open_watched`](crate::open_watched), on device `ordinal`.
    ///
    /// # Errors
    /// Those of [`open_watched`](crate::open_watched), and [`OpenError::Cuda`].
    pub fn open(config: &EngineConfig, ordinal: u32, progress: Progress<'_>) -> Result<Self, OpenError> {
        let cuda = OpenError::Cuda;
        crate::model::check_limits(config)?;
        let device = CudaDevice::open(ordinal).map_err(cuda)?;
        fits::check_device(&device)?;
        let checkpoint = Checkpoint::open(config, progress)?;
        fits::check_spec(&checkpoint.spec, config.quantization)
            .map_err(|what| OpenError::UnsupportedModel { path: config.model.clone(), what })?;
        let stream = Stream::new(&device).map_err(cuda)?;
        let weights = load_weights(config, &stream, &checkpoint, progress)?;
        let model = checkpoint.info().clone();
        let spec = checkpoint.spec;
        let layout = spec.kv_layout(config);
        let attention = open_attention(config, &device, &spec, &layout)?;
        let pages = fits::pages(config, &device, &spec, &layout)?;
        let page_tokens = layout.page_tokens;
        let kv = Arc::new(DevicePool::allocate(&device, layout, pages)?);
        let step_lists = step_lists(config, &device, &spec, page_tokens).map_err(cuda)?;
        let graph_lists = graph_lists(&device, page_tokens).map_err(cuda)?;
        let rows = (config.step_tokens as usize).max(GRAPH_ROWS_MAX);
        let vocabulary = spec.vocabulary;
        let weights = (weights, config.quantization);
        let forward = Forward::new(&device, spec, weights, attention, Arc::clone(&kv), rows).map_err(cuda)?;
        tracing::info!(
            gpu = device.name().map_err(cuda)?,
            weights_gb = forward.step_bytes() as f64 / 1e9,
            pages,
            "model loaded on the GPU"
        );
        let masks = Masks::new(&device, rows.min(SAMPLED_MAX), vocabulary).map_err(cuda)?;
        let limits =
            StepLimits { tokens: config.step_tokens, rows: config.step_tokens.min(SAMPLED_MAX as u32) };
        let places = limits.rows as usize;
        let adjustments = Adjustments::new(&device, places, vocabulary).map_err(cuda)?;
        let readback = || Readback::new(&device, rows.min(SAMPLED_MAX)).map_err(cuda);
        Ok(Self {
            model,
            kv,
            limits,
            batch_check: BatchCheck::default(),
            masks,
            adjustments,
            places: Places::new(places),
            readbacks: [readback()?, readback()?],
            device,
            forward,
            step_lists,
            graph_lists,
            graphs: HashMap::new(),
            stream,
            flights: VecDeque::new(),
            idle: Vec::new(),
            followed: HashMap::new(),
            previous: HashMap::new(),
            turn: 0,
            bound: false,
        })
    }
}

impl Readback {
    /// Memory for the sampled tokens of up to `rows` rows.
    fn new(device: &Arc<CudaDevice>, rows: usize) -> Result<Self, CudaError> {
        let (chosen, scores) = (Pinned::new(device, rows)?, Pinned::new(device, rows * SCORE_WORDS)?);
        Ok(Self { computed: Event::new(device)?, done: Event::new(device)?, chosen, scores })
    }
}

/// Loads the weights from the checkpoint, or makes random ones.
fn load_weights(
    config: &EngineConfig,
    stream: &Stream,
    checkpoint: &Checkpoint,
    progress: Progress<'_>,
) -> Result<Weights, OpenError> {
    let loader = Loader { stream, quantization: config.quantization };
    match config.load_format {
        LoadFormat::Auto => Weights::load(&loader, checkpoint, progress),
        LoadFormat::Dummy { seed } => Weights::random(&loader, checkpoint, seed).map_err(OpenError::Cuda),
    }
}

/// Allocates the workspaces of attention. Refuses a head size that has no kernel.
fn open_attention(
    config: &EngineConfig,
    device: &Arc<CudaDevice>,
    spec: &ModelSpec,
    layout: &KvLayout,
) -> Result<Attention, OpenError> {
    let unsupported = |what| OpenError::UnsupportedModel { path: config.model.clone(), what };
    let decode_rows = (config.step_tokens as usize).clamp(GRAPH_ROWS_MAX, SAMPLED_MAX);
    let expanded = spec.expanded_pages(config, layout);
    let attention = Attention::new(device, &spec.attention, layout, pieces_max(decode_rows), expanded)
        .map_err(OpenError::Cuda)?;
    attention.ok_or_else(|| {
        unsupported(format!(
            "its head size is {}, and GPU attention supports head sizes 64 and 128",
            spec.attention.head_dim
        ))
    })
}

/// Memory for the lists of the largest step.
fn step_lists(
    config: &EngineConfig,
    device: &Arc<CudaDevice>,
    spec: &ModelSpec,
    page_tokens: u32,
) -> Result<Lists, CudaError> {
    let rows = config.step_tokens as usize;
    let sequence_pages = spec.context_tokens.div_ceil(page_tokens) as usize;
    let pages = (rows * sequence_pages).min(PAGE_ENTRIES_MAX);
    Lists::new(device, StepCapacity { rows, chunks: rows, pages }, page_tokens as usize)
}

/// Memory for the lists of the largest decode step that a graph replays.
fn graph_lists(device: &Arc<CudaDevice>, page_tokens: u32) -> Result<Lists, CudaError> {
    let capacity = StepCapacity { rows: GRAPH_ROWS_MAX, chunks: GRAPH_ROWS_MAX, pages: GRAPH_PAGES };
    Lists::new(device, capacity, page_tokens as usize)
}
