//! The CUDA backend: a Llama in bf16 on one GPU, keys and values in pages of one plain allocation.
//!
//! # What is guaranteed
//! Sums are in f32, what travels between kernels is bf16. **A row's result depends on its sequence alone**, to the bit: not on who is beside it in a
//! step, nor on where its prompt was cut into chunks. No product and no attention shares out a row's sum by how many rows there are.
//! Prompts and decode rows are attended to by kernels that round otherwise, so a sampled token that is computed again as part of a prompt may
//! differ in the last bits.
//!
//! # Threads
//! The engine's owner submits to one stream and polls an event; nothing blocks but the reading of logits that the host samples from.
//! Two steps may be in flight: what the host writes for a step and reads of it exists twice, and steps take the two in turns.
//! Page hashes run on a stream of their own, from whatever thread asks.
//!
//! Everything is loaded at run time: a binary with this backend starts on a machine without a driver.

mod attention;
mod device;
mod fits;
mod forward;
mod gemm;
mod graph;
mod kernels;
mod lists;
mod pool;
mod weights;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::Progress;
use crate::batch;
use crate::checkpoint::Checkpoint;
use crate::error::{CudaError, EngineError, OpenError};
use crate::gpu::plan::{Plan, Room, pieces_most};
use crate::kv::{KvDtype, KvLayout, KvPool, PageId};
use crate::model::{EngineConfig, LoadFormat, ModelInfo};
use crate::sampling::{Sampling, choose};
use crate::step::{Chunk, Engine, SampledToken, Step, StepLimits, StepOutput};

use attention::Attention;
use device::{CudaDevice, Event, Pinned, Stream};
use forward::{Forward, SAMPLED_MOST};
use graph::{GRAPH_PAGES, GRAPH_ROWS_MOST, Graph, graph_rows};
use lists::Lists;
use pool::DevicePool;
use weights::Weights;

/// Page table entries that any step may have in all: sequences that share pages name them each.
const TABLES_MOST: usize = 16 << 20;
/// The number of CUDA devices the driver shows.
///
/// # Errors
/// One sentence when there is no driver library on this machine or it refuses to start.
pub fn cuda_devices() -> Result<u32, CudaError> {
    CudaDevice::count()
}

/// A pool of `pages` pages on device `ordinal`, filled with random bytes: for measurements without a model.
///
/// # Errors
/// [`OpenError::Cuda`].
pub fn cuda_pool(layout: KvLayout, pages: u32, ordinal: u32) -> Result<KvPool, OpenError> {
    let device = CudaDevice::open(ordinal).map_err(OpenError::Cuda)?;
    let pool = DevicePool::allocate(&device, layout, pages)?;
    let stream = Stream::new(&device).map_err(OpenError::Cuda)?;
    // SAFETY: the pool has as many bytes, and is not freed before the stream is waited for.
    unsafe { weights::fill(pool.base().as_ptr().cast(), pool.bytes() / 2, u64::from(ordinal), &stream) }
        .map_err(OpenError::Cuda)?;
    stream.wait().map_err(OpenError::Cuda)?;
    Ok(pool)
}

/// Seconds that each of `times` copies of `bytes` contiguous bytes from device 0 to device 1 takes: what the link between them can do.
///
/// # Errors
/// The driver's; there may be no second device, or no way from one to the other.
pub fn peer_copy_seconds(bytes: usize, times: usize) -> Result<Vec<f64>, CudaError> {
    device::peer_copies(bytes, times)
}

/// A Llama on a GPU.
pub struct CudaEngine {
    model: ModelInfo,
    kv: Arc<KvPool>,
    limits: StepLimits,
    device: Arc<CudaDevice>,
    forward: Forward,
    /// Any step's lists, and those of a step that a graph replays.
    any: Lists,
    small: Lists,
    /// By their rows, and the pieces that they have room for.
    graphs: HashMap<(usize, usize), Graph>,
    stream: Stream,
    returns: [Return; 2],
    /// Steps in flight, the oldest first.
    flights: VecDeque<Flight>,
    /// Rows of the last submitted step by their sequences, where the device has sampled: what is sampled there stays until the next step
    /// samples, whether or not the host has seen it.
    followed: HashMap<u64, usize>,
    /// Which of each two the next step takes.
    turn: usize,
    bound: bool,
}

/// How a step comes back to the host.
struct Return {
    done: Event,
    chosen: Pinned<i32>,
}

/// A step that runs: who is sampled, how, and after which position, in the order of rows.
struct Flight {
    turn: usize,
    samples: Vec<Sampled>,
    /// How many chunks the batch has sampled, by their places in it.
    places: Vec<usize>,
}

struct Sampled {
    sequence: u64,
    position: u32,
    how: Sampling,
    tokens: Vec<u32>,
    prompt: u32,
}

impl CudaEngine {
    /// As [`open_watched`](crate::open_watched), on device `ordinal`.
    ///
    /// # Errors
    /// As there, and [`OpenError::Cuda`].
    pub fn open(config: &EngineConfig, ordinal: u32, progress: Progress<'_>) -> Result<Self, OpenError> {
        crate::model::check_limits(config)?;
        let device = CudaDevice::open(ordinal).map_err(OpenError::Cuda)?;
        fits::check_device(&device)?;
        let checkpoint = Checkpoint::open_as(&config.model, config.load_format)?;
        let stream = Stream::new(&device).map_err(OpenError::Cuda)?;
        let weights = match config.load_format {
            LoadFormat::Auto => Weights::load(&device, &checkpoint, progress)?,
            LoadFormat::Dummy { seed } => {
                let tied = !checkpoint.has("output.weight");
                Weights::random(&device, &stream, &checkpoint.shape, seed, tied).map_err(OpenError::Cuda)?
            }
        };
        let mut model = checkpoint.info();
        if let LoadFormat::Dummy { seed } = config.load_format {
            // Other weights, another model.
            model.fingerprint = Sha256::new()
                .chain_update(model.fingerprint)
                .chain_update(seed.to_le_bytes())
                .finalize()
                .into();
        }
        let shape = checkpoint.shape;
        let layout = KvLayout {
            layers: shape.layers as u32,
            kv_heads: shape.kv_heads as u32,
            head_dim: shape.head_dim as u32,
            page_tokens: config.page_tokens,
            dtype: KvDtype::Bf16,
        };
        let cuda = OpenError::Cuda;
        let page_stride = (layout.page_bytes() / layout.dtype.bytes()) as i64;
        let unsupported = |what| OpenError::UnsupportedModel { path: config.model.clone(), what };
        fits::check_shape(&shape).map_err(unsupported)?;
        let rows = config.step_tokens as usize;
        let paged = (config.page_tokens, page_stride);
        let attention = Attention::new(&device, &shape, paged, decode_pieces(rows)).map_err(cuda)?;
        let attention = attention.ok_or_else(|| {
            let heads = shape.head_dim;
            unsupported(format!("its heads have {heads} numbers, and attention on a GPU takes 64 or 128"))
        })?;
        let pages = fits::pages(config, &device, &shape, &layout)?;
        let kv = Arc::new(DevicePool::allocate(&device, layout, pages)?);
        let longest = shape.context_tokens.div_ceil(config.page_tokens) as usize;
        let tables = (rows * longest).min(TABLES_MOST);
        let room = Room { rows, chunks: rows, pages: tables };
        let any = Lists::new(&device, room, config.page_tokens as usize).map_err(cuda)?;
        let most = GRAPH_ROWS_MOST;
        let room = Room { rows: most, chunks: most, pages: GRAPH_PAGES };
        let small = Lists::new(&device, room, config.page_tokens as usize).map_err(cuda)?;
        let forward = Forward::new(&device, shape, weights, attention, Arc::clone(&kv), rows.max(most))
            .map_err(cuda)?;
        tracing::info!(
            gpu = device.name().map_err(cuda)?,
            weights_gb = forward.step_bytes() as f64 / 1e9,
            pages,
            "model on the GPU"
        );
        let back = || -> Result<Return, CudaError> {
            let chosen = Pinned::new(&device, rows.max(most).min(SAMPLED_MOST))?;
            Ok(Return { done: Event::new(&device)?, chosen })
        };
        let returns = [back().map_err(cuda)?, back().map_err(cuda)?];
        let limits =
            StepLimits { tokens: config.step_tokens, rows: config.step_tokens.min(SAMPLED_MOST as u32) };
        Ok(Self {
            model,
            kv,
            limits,
            device,
            forward,
            any,
            small,
            graphs: HashMap::new(),
            stream,
            returns,
            flights: VecDeque::new(),
            followed: HashMap::new(),
            turn: 0,
            bound: false,
        })
    }

    /// Bytes of weights that a decode step reads: what its time is held against.
    #[doc(hidden)]
    #[must_use]
    pub fn step_bytes(&self) -> u64 {
        self.forward.step_bytes()
    }

    /// The logits of the last step, `vocabulary` floats for its `index`-th sampled chunk in the order of rows. For tests.
    ///
    /// # Errors
    /// The device's.
    #[doc(hidden)]
    pub fn logits(&self, index: usize) -> Result<Vec<f32>, CudaError> {
        self.stream.wait()?;
        self.forward.logits_row(index)
    }

    /// What the device draws from rows of logits of any vocabulary, by settings and position of each. For tests.
    ///
    /// # Errors
    /// The device's.
    #[doc(hidden)]
    pub fn draw(&self, logits: &[f32], samples: &[(&Sampling, u32)]) -> Result<Vec<u32>, CudaError> {
        forward::draw(&self.device, &self.stream, logits, samples)
    }

    /// The bytes of a page as they are. For tests.
    ///
    /// # Errors
    /// The device's.
    #[doc(hidden)]
    pub fn read_page(&self, page: PageId) -> Result<Vec<u8>, CudaError> {
        self.stream.wait()?;
        let bytes = self.kv.layout().page_bytes();
        device::read(self.kv.base().as_ptr() as u64 + u64::from(page.0) * bytes, bytes as usize)
    }

    /// Makes the device fail for this process, as a kernel that writes to a wrong address does. For tests.
    ///
    /// # Errors
    /// The device's, if it has failed before.
    #[doc(hidden)]
    pub fn fail_device(&self) -> Result<(), CudaError> {
        // SAFETY: the address belongs to no allocation, so the driver ends the kernel, and no memory is written.
        unsafe { weights::fill(std::ptr::without_provenance_mut(4096), 1, 0, &self.stream) }
    }

    /// Submits a step; the plan that it was laid out in.
    ///
    /// # Safety
    /// [`batch::check`] has accepted the batch, and fewer steps are in flight than there are turns. `followed` names rows that the step before samples.
    unsafe fn start(&mut self, batch: &[Chunk<'_>], followed: &[usize]) -> Result<&Plan, CudaError> {
        if !self.bound {
            // The engine may have been sent to another thread since it was opened.
            self.device.bind()?;
            self.bound = true;
        }
        let lists = match graph_rows(batch) {
            Some(rows) => {
                // SAFETY: the caller's contract; the step that had this turn is over, and so is the copy of its lists.
                unsafe { self.small.lay_out(batch, followed, self.turn, rows) };
                self.replay(rows)?;
                &self.small
            }
            None => {
                // SAFETY: as above.
                unsafe { self.any.lay_out(batch, followed, self.turn, 0) };
                let prefill = if self.any.plan().prefill.rows.is_empty() {
                    None
                } else {
                    // SAFETY: as above.
                    Some(unsafe { self.forward.attention.plan_prefill(&self.any, &self.stream)? })
                };
                self.forward.submit(&self.any.upload(&self.stream)?, prefill.as_ref())?;
                &self.any
            }
        };
        let (plan, back) = (lists.plan(), &self.returns[self.turn]);
        if plan.sampled > 0 {
            // SAFETY: `collect` reads it when the event below has come, and the next step that has the turn is submitted after that.
            unsafe { self.stream.download(&back.chosen, &self.forward.chosen, plan.sampled)? };
        }
        back.done.record(&self.stream)?;
        Ok(plan)
    }

    /// Submits the decode step that is laid out in `small`, filled up to `rows` rows, by its graph, which is captured when such a step
    /// of its size first comes.
    fn replay(&mut self, rows: usize) -> Result<(), CudaError> {
        let (forward, stream) = (&self.forward, &self.stream);
        let step = self.small.upload(stream)?;
        let size = (rows, step.plan().pieces());
        if let Some(graph) = self.graphs.get(&size) {
            return graph.launch(stream);
        }
        // Once without a graph: libraries load what they need at their first call, which no capture may hold.
        forward.submit(&step, None)?;
        self.graphs.insert(size, Graph::capture(stream, || forward.submit(&step, None))?);
        Ok(())
    }

    fn collect(&self, flight: Flight) -> Result<StepOutput, CudaError> {
        // SAFETY: the copy to them was submitted before the event that has come, and is over.
        let chosen = unsafe { self.returns[flight.turn].chosen.values() };
        let mut tokens = Vec::with_capacity(flight.samples.len());
        for (row, sampled) in flight.samples.into_iter().enumerate() {
            let Sampled { sequence, position, how, tokens: before, prompt } = sampled;
            let token = if how.is_plain() {
                chosen[row].cast_unsigned().into()
            } else {
                let mut logits = self.forward.logits_row(row)?;
                let sample = crate::sampling::Sample { how: &how, tokens: &before, prompt };
                choose(&mut logits, sample, position)
            };
            tokens.push(SampledToken { sequence, token });
        }
        let mut placed: Vec<(usize, SampledToken)> = flight.places.into_iter().zip(tokens).collect();
        placed.sort_by_key(|(place, _)| *place);
        Ok(StepOutput { tokens: placed.into_iter().map(|(_, token)| token).collect() })
    }
}

impl Engine for CudaEngine {
    fn model(&self) -> &ModelInfo {
        &self.model
    }

    fn kv(&self) -> &Arc<KvPool> {
        &self.kv
    }

    fn limits(&self) -> StepLimits {
        self.limits
    }

    fn runs_ahead(&self) -> bool {
        true
    }

    fn submit(&mut self, batch: &[Chunk<'_>]) -> Result<Step, EngineError> {
        // After a step that is refused nothing can follow.
        let followed = std::mem::take(&mut self.followed);
        let samples = |sequence| followed.contains_key(&sequence);
        batch::check(batch, &self.model, &self.kv, self.limits, samples)?;
        if batch.is_empty() {
            return Ok(Step::finished(StepOutput::default()));
        }
        if self.flights.len() == self.returns.len() {
            return Err(EngineError::NotReady("two steps are running already"));
        }
        if self.flights.iter().flat_map(|flight| &flight.samples).any(|sampled| !sampled.how.is_plain()) {
            return Err(EngineError::NotReady("the host has not sampled the step before yet"));
        }
        let entries = batch.iter().map(|chunk| chunk.pages.len()).sum();
        if !self.any.plan().has_room(entries) {
            return Err(EngineError::TooManyPages { entries, limit: TABLES_MOST });
        }
        let followed: Vec<usize> =
            batch.iter().map(|chunk| followed.get(&chunk.sequence).copied().unwrap_or(0)).collect();
        // SAFETY: all that is checked above.
        let order = match unsafe { self.start(batch, &followed) } {
            Ok(plan) => plan.order.clone(),
            Err(error) => {
                // What was submitted of it may still read the lists that the next step writes. A library's status may hide a sticky error,
                // which every call of the driver returns.
                let sticky = self.stream.wait().err().filter(CudaError::is_sticky);
                return Err(EngineError::Device(sticky.unwrap_or(error)));
            }
        };
        let of_place = |place: &usize| {
            let chunk = &batch[*place];
            let sample = chunk.sample?;
            Some(Sampled {
                sequence: chunk.sequence,
                position: chunk.end() as u32,
                how: sample.how.clone(),
                tokens: sample.tokens.to_vec(),
                prompt: sample.prompt,
            })
        };
        let places: Vec<usize> = order.into_iter().filter(|place| batch[*place].sample.is_some()).collect();
        let samples: Vec<Sampled> = places.iter().filter_map(of_place).collect();
        let rows = samples.iter().enumerate().filter(|(_, sampled)| sampled.how.is_plain());
        self.followed = rows.map(|(row, sampled)| (sampled.sequence, row)).collect();
        self.flights.push_back(Flight { turn: self.turn, samples, places });
        self.turn = (self.turn + 1) % self.returns.len();
        Ok(Step { output: None })
    }

    fn poll(&mut self, step: &mut Step) -> Result<Option<StepOutput>, EngineError> {
        if let Some(output) = step.output.take() {
            return Ok(Some(output));
        }
        // A step that fails is over too: the next poll is about the next one.
        let flight = self.flights.pop_front().ok_or(EngineError::StepSpent)?;
        if self.returns[flight.turn].done.has_come().map_err(EngineError::Device)? {
            return self.collect(flight).map(Some).map_err(EngineError::Device);
        }
        self.flights.push_front(flight);
        Ok(None)
    }

    /// Who has written the pages has said so to the host, and what is submitted after that comes after it.
    fn acquire(&mut self, pages: &[PageId]) -> Result<(), EngineError> {
        batch::check_pages(pages, &self.kv, None).inspect_err(|_| self.followed.clear())
    }
}

impl Drop for CudaEngine {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // Nothing may be freed under a running step.
        let _ = self.stream.wait();
    }
}

/// How many pieces of contexts a step may have, of so many rows.
fn decode_pieces(rows: usize) -> usize {
    pieces_most(rows.clamp(GRAPH_ROWS_MOST, SAMPLED_MOST))
}
