//! The CUDA backend: a model in bf16 or FP8 on one GPU. The KV pages, in bf16 or FP8, lie in one plain device allocation.
//!
//! # Guarantees
//! Kernels sum in f32 and store bf16; products in FP8 sum 128 inputs in fewer bits. **A row's result depends on its sequence alone**, to the bit. It depends neither
//! on the other rows of the step nor on how the prompt was split into chunks. GEMMs and attention kernels divide a row's sum into parts in
//! the same way for any number of rows in the step. Prefill and decode use different attention kernels, which round differently. So if a
//! sampled token is recomputed as part of a prompt, its keys, values and logits may differ in the last bits.
//!
//! # Threads
//! The engine's owner thread submits steps to one stream and polls an event. A step blocks in two cases: its prompts read FP8 pages in several
//! [groups](attention), or its biases and token histories need more memory than those of any step before. The device takes all samples, so a step may use tokens that the host has not read yet.
//! Two steps may be in flight. There are two sets of host buffers, and steps alternate between them.
//! Page hashes run on a separate stream, from any thread.
//!
//! The CUDA libraries are loaded at run time. A binary with this backend starts on a machine without a driver.

mod adjustments;
mod attention;
mod cublas;
mod device;
mod draw;
mod expanded;
mod fits;
mod flight;
mod forward;
mod gemm;
mod graph;
mod kernels;
mod lists;
mod masks;
mod open;
mod pool;
mod products;
mod stored_matrix;
mod stored_values;
mod survey;
mod weights;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::batch::{BatchCheck, check_pages};
use crate::error::{CudaError, EngineError, OpenError};
use crate::gpu::places::{LookingBack, Places};
use crate::kv::{KvLayout, KvPool, PageId};
use crate::model::ModelInfo;
use crate::pending::give_masks;
use crate::sampling::Sample;
use crate::step::{Chunk, Engine, Step, StepLimits, StepOutput, TokenMask};

use adjustments::Adjustments;
use device::{CudaDevice, Stream};
use flight::{Flight, Readback};
use forward::Forward;
use graph::Graph;
use lists::Lists;
use masks::Masks;
use pool::DevicePool;

pub(crate) use cublas::load as load_cublas;
pub(crate) use fits::check_spec;
pub(crate) use survey::survey;

/// Maximum number of page table entries in one step. A page that several sequences share counts once for each sequence.
const PAGE_ENTRIES_MAX: usize = 16 << 20;

/// The number of CUDA devices that the driver reports.
///
/// # Errors
/// The machine has no driver library, or the driver does not initialise.
pub fn cuda_devices() -> Result<u32, CudaError> {
    CudaDevice::count()
}

/// A pool of `pages` pages on device `ordinal`, filled with random bytes. For measurements without a model.
///
/// # Errors
/// [`OpenError::Cuda`].
pub fn cuda_pool(layout: KvLayout, pages: u32, ordinal: u32) -> Result<KvPool, OpenError> {
    let device = CudaDevice::open(ordinal).map_err(OpenError::Cuda)?;
    let pool = DevicePool::allocate(&device, layout, pages)?;
    let stream = Stream::new(&device).map_err(OpenError::Cuda)?;
    // SAFETY: the pool holds `bytes / 2` bf16 values, and it is not freed before the wait below.
    unsafe { weights::fill(pool.base().as_ptr().cast(), pool.bytes() / 2, u64::from(ordinal), &stream) }
        .map_err(OpenError::Cuda)?;
    stream.wait().map_err(OpenError::Cuda)?;
    Ok(pool)
}

/// Copies `bytes` contiguous bytes from device 0 to device 1, `times` times. Returns the seconds of each copy, which
/// measure the link between the two devices.
///
/// # Errors
/// The driver's errors. The second device may be absent, or the devices may have no peer access.
pub fn peer_copy_seconds(bytes: usize, times: usize) -> Result<Vec<f64>, CudaError> {
    device::peer_copies(bytes, times)
}

/// A model on a GPU.
pub struct CudaEngine {
    model: ModelInfo,
    kv: Arc<KvPool>,
    limits: StepLimits,
    batch_check: BatchCheck,
    device: Arc<CudaDevice>,
    forward: Forward,
    /// The kernels' input lists (tokens, positions, page tables) for a step that runs without a CUDA graph.
    step_lists: Lists,
    /// The same lists for a step that a CUDA graph replays.
    graph_lists: Lists,
    /// Captured graphs. The key is the number of rows and the number of split-KV pieces that the graph has room for.
    graphs: HashMap<(usize, usize), Graph>,
    stream: Stream,
    masks: Masks,
    /// Biases and penalties.
    adjustments: Adjustments,
    /// The sequences whose tokens `adjustments` counts.
    places: Places,
    readbacks: [Readback; 2],
    /// Steps in flight, the oldest first.
    flights: VecDeque<Flight>,
    /// Empty flights. New steps use their memory.
    idle: Vec<Flight>,
    /// For each sequence that the device samples in the last submitted step: the row of its sample. The sampled token stays on the device
    /// until the next step samples, whether or not the host has read it.
    followed: HashMap<u64, usize>,
    /// While a step is being submitted: what `followed` was before.
    previous: HashMap<u64, usize>,
    /// Index of the host buffers (0 or 1) that the next step uses.
    turn: usize,
    /// True once the device's context is current on the owner thread.
    bound: bool,
}

impl CudaEngine {
    /// Bytes of weights that a decode step reads. Benchmarks compare the step's time with it.
    #[doc(hidden)]
    #[must_use]
    pub fn step_bytes(&self) -> u64 {
        self.forward.step_bytes()
    }

    /// Parameters of the embedding. An output matrix has as many. For benchmarks.
    #[doc(hidden)]
    #[must_use]
    pub fn embedding_parameters(&self) -> u64 {
        self.forward.embedding_parameters()
    }

    /// The logits of the last step: `vocabulary` floats for the `index`-th sampled chunk in row order. For tests.
    ///
    /// # Errors
    /// The device's errors.
    #[doc(hidden)]
    pub fn logits(&self, index: usize) -> Result<Vec<f32>, CudaError> {
        self.stream.wait()?;
        self.forward.logits_row(index)
    }

    /// Samples one token on the device from each row of `logits`, with that row's settings and tokens, mask and position. The vocabulary
    /// need not be the model's. For tests.
    ///
    /// # Errors
    /// The device's errors.
    #[doc(hidden)]
    pub fn draw(
        &self,
        logits: &[f32],
        samples: &[(Sample<'_>, Option<&[u32]>, u32)],
    ) -> Result<Vec<u32>, CudaError> {
        draw::draw(&self.device, &self.stream, logits, samples)
    }

    /// The bytes of a page. For tests.
    ///
    /// # Errors
    /// The device's errors.
    #[doc(hidden)]
    pub fn read_page(&self, page: PageId) -> Result<Vec<u8>, CudaError> {
        self.stream.wait()?;
        let bytes = self.kv.layout().page_bytes();
        device::read(self.kv.base().as_ptr() as u64 + u64::from(page.0) * bytes, bytes as usize)
    }

    /// Rounds numbers as the values of FP8 pages are rounded, and makes bf16 numbers of the codes as for prompts. Returns both. The count is a multiple of
    /// 64. For tests.
    ///
    /// # Errors
    /// The device's errors.
    #[doc(hidden)]
    pub fn stored_values(&self, numbers: &[f32]) -> Result<(Vec<u8>, Vec<f32>), CudaError> {
        stored_values::stored(&self.device, &self.stream, numbers)
    }

    /// Breaks the device for this process by a kernel that writes to an invalid address. For tests.
    ///
    /// # Errors
    /// The device's error, if it has failed before.
    #[doc(hidden)]
    pub fn fail_device(&self) -> Result<(), CudaError> {
        // SAFETY: the address belongs to no allocation, so the driver aborts the kernel and no memory is written.
        unsafe { weights::fill(std::ptr::without_provenance_mut(4096), 1, 0, &self.stream) }
    }

    /// The error of a step that could not be submitted or sampled.
    fn failed(&mut self, error: CudaError) -> EngineError {
        // The device may or may not have counted the tokens of the failed step.
        self.places.forget();
        // Kernels of the failed step may still read the lists that the next step overwrites, so wait for them.
        // A library such as cuBLAS may have returned its own status instead of the driver's sticky error. After a sticky error,
        // every driver call returns that error.
        let sticky = self.stream.wait().err().filter(CudaError::is_sticky);
        EngineError::Device(sticky.unwrap_or(error))
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
        // Taken out first: if this step is refused, the next step must not take tokens from the step before it.
        std::mem::swap(&mut self.followed, &mut self.previous);
        self.followed.clear();
        let samples = |sequence| self.previous.contains_key(&sequence);
        self.batch_check.check(batch, &self.model, &self.kv, self.limits, samples)?;
        if batch.is_empty() {
            return Ok(Step::finished(StepOutput::default()));
        }
        if self.flights.len() == self.readbacks.len() {
            return Err(EngineError::NotReady("two steps are already in flight"));
        }
        if self.flights.iter().any(|flight| !flight.is_sampled) {
            return Err(EngineError::NotReady("the previous step waits for its masks"));
        }
        let entries = batch.iter().map(|chunk| chunk.pages.len()).sum();
        if !self.step_lists.plan().has_room(entries) {
            return Err(EngineError::TooManyPages { entries, limit: PAGE_ENTRIES_MAX });
        }
        let assigned = self.places.assign(batch.iter().map(LookingBack::of));
        assigned.map_err(|sequence| EngineError::FollowsNothing { sequence })?;
        // SAFETY: the checks above establish the contract of `start`.
        let flight = unsafe { self.start(batch) }.map_err(|error| self.failed(error))?;
        self.flights.push_back(flight);
        self.turn = (self.turn + 1) % self.readbacks.len();
        Ok(Step::unfinished())
    }

    fn is_computed(&mut self, _: &Step) -> Result<bool, EngineError> {
        match self.flights.back() {
            Some(flight) if !flight.is_sampled => {
                self.readbacks[flight.turn].computed.is_complete().map_err(EngineError::Device)
            }
            _ => Ok(true),
        }
    }

    fn sample(&mut self, _: &mut Step, masks: &[Option<TokenMask>]) -> Result<(), EngineError> {
        let Some(mut flight) = self.flights.pop_back_if(|flight| !flight.is_sampled) else {
            return Err(EngineError::NotReady("the step does not wait for masks"));
        };
        // The masks come in the batch's order, the samples in row order.
        let mut waiting: Vec<(usize, usize)> = (flight.chunks.iter().copied().zip(0..))
            .filter(|(_, row)| flight.samples[*row].waits())
            .collect();
        waiting.sort_unstable();
        let mut of_rows: Vec<(usize, Option<TokenMask>)> =
            waiting.iter().map(|(_, row)| *row).zip(masks.iter().cloned()).collect();
        of_rows.sort_unstable_by_key(|(row, _)| *row);
        let by_row: Vec<Option<TokenMask>> = of_rows.into_iter().map(|(_, mask)| mask).collect();
        let given = if masks.len() == waiting.len() { &by_row[..] } else { masks };
        if let Err(error) = give_masks(&mut flight.samples, given, self.model.vocabulary) {
            self.flights.push_back(flight);
            return Err(error);
        }
        // SAFETY: only the last submitted step may wait for masks, and all its masks were given.
        let taken = unsafe { self.take_samples(&mut flight) };
        taken.map_err(|error| self.failed(error))?;
        self.flights.push_back(flight);
        Ok(())
    }

    fn poll(&mut self, step: &mut Step) -> Result<Option<StepOutput>, EngineError> {
        if let Some(output) = step.output.take() {
            return Ok(Some(output));
        }
        // A failed step is not put back, so that the next poll looks at the next step.
        let flight = self.flights.pop_front().ok_or(EngineError::StepSpent)?;
        if flight.is_sampled && self.readbacks[flight.turn].done.is_complete().map_err(EngineError::Device)? {
            let output = self.collect(&flight);
            self.idle.push(flight.emptied());
            return Ok(Some(output));
        }
        self.flights.push_front(flight);
        Ok(None)
    }

    /// Needs no fence: the host knows that the peer's write is complete, and kernels submitted from now on run after it.
    fn acquire(&mut self, pages: &[PageId]) -> Result<(), EngineError> {
        check_pages(pages, &self.kv).inspect_err(|_| self.followed.clear())
    }
}

impl Drop for CudaEngine {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // Device memory must not be freed while a step runs.
        let _ = self.stream.wait();
    }
}
