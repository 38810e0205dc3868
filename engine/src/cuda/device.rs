//! A GPU as this process holds it: its primary context, one stream, and RAII over what the driver gives.
//!
//! Everything here belongs to one process and one device. The context is made current on a thread by [`CudaDevice::bind`]; whoever
//! calls the driver from a thread of its own binds first.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::sys as lt;
use cudarc::driver::{result, sys};

use crate::error::{CudaError, CudaStatus};

pub(super) type Result<T> = std::result::Result<T, CudaError>;

/// An error of CUDA's libraries, in numbers and in words.
pub(super) trait Status {
    fn status(&self) -> CudaStatus;
    fn text(&self) -> String;
}

impl Status for result::DriverError {
    fn status(&self) -> CudaStatus {
        CudaStatus::Cuda(self.0 as i32)
    }

    fn text(&self) -> String {
        let words = self.error_string().map(|words| words.to_string_lossy().into_owned());
        format!("{:?} ({}): {}", self.0, self.0 as i32, words.unwrap_or_default())
    }
}

impl Status for CublasError {
    fn status(&self) -> CudaStatus {
        CudaStatus::Cublas(self.0 as i32)
    }

    fn text(&self) -> String {
        format!("{:?}", self.0)
    }
}

/// Names the call of a result.
pub(super) trait Named<T> {
    fn named(self, call: &'static str) -> Result<T>;
}

impl<T, E: Status> Named<T> for std::result::Result<T, E> {
    fn named(self, call: &'static str) -> Result<T> {
        self.map_err(|error| CudaError { call, status: error.status(), text: error.text() })
    }
}

/// A device's primary context, retained.
pub(super) struct CudaDevice {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: both are names that the driver takes from any thread.
unsafe impl Send for CudaDevice {}
// SAFETY: as above.
unsafe impl Sync for CudaDevice {}

impl CudaDevice {
    /// How many devices the driver shows.
    pub(super) fn count() -> Result<u32> {
        Self::load()?;
        let count = result::device::get_count().named("cuDeviceGetCount")?;
        Ok(count.unsigned_abs())
    }

    /// Loads the driver.
    fn load() -> Result<()> {
        let text = "there is no CUDA driver on this machine (libcuda.so.1); set engine.device to cpu";
        // SAFETY: the probe only tries to load the library by name. It comes first because cudarc panics on the first use of a
        // missing library.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::without_status("loading CUDA", text));
        }
        result::init().named("cuInit")
    }

    /// Retains the primary context of device `ordinal` and binds it to this thread.
    ///
    /// # Errors
    /// No driver, no such device, or no cublasLt library: one sentence each.
    pub(super) fn open(ordinal: u32) -> Result<Arc<Self>> {
        Self::load()?;
        // SAFETY: as in `load`.
        if !unsafe { lt::is_culib_present() } {
            let text =
                "there is no libcublasLt.so.13; put the folder of CUDA 13's libraries on LD_LIBRARY_PATH";
            return Err(CudaError::without_status("loading CUDA", text));
        }
        let device = result::device::get(ordinal.cast_signed()).named("cuDeviceGet")?;
        // SAFETY: the device exists; released in `Drop`.
        let context = unsafe { result::primary_ctx::retain(device) }.named("cuDevicePrimaryCtxRetain")?;
        let device = Arc::new(Self { device, context });
        device.bind()?;
        Ok(device)
    }

    /// Makes the context current on the calling thread.
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained for as long as `self` lives.
        unsafe { result::ctx::set_current(self.context) }.named("cuCtxSetCurrent")
    }

    /// Its name, as the vendor has it.
    pub(super) fn name(&self) -> Result<String> {
        result::device::get_name(self.device).named("cuDeviceGetName")
    }

    /// Compute capability, major and minor.
    pub(super) fn capability(&self) -> Result<(i32, i32)> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        // SAFETY: the device exists.
        let of = |attribute| unsafe { result::device::get_attribute(self.device, attribute) };
        Ok((of(MAJOR).named("cuDeviceGetAttribute")?, of(MINOR).named("cuDeviceGetAttribute")?))
    }

    /// Bytes that are free, and bytes in all.
    pub(super) fn memory(&self) -> Result<(u64, u64)> {
        let (free, total) = result::mem_get_info().named("cuMemGetInfo")?;
        Ok((free as u64, total as u64))
    }
}

/// Times copies from device 0 to device 1, one after the other.
pub(super) fn peer_copies(bytes: usize, times: usize) -> Result<Vec<f64>> {
    let (from, to) = (CudaDevice::open(0)?, CudaDevice::open(1)?);
    let target = Buffer::zeroed(&to, bytes)?;
    // SAFETY: both contexts are retained.
    unsafe { sys::cuCtxEnablePeerAccess(from.context, 0) }.result().named("cuCtxEnablePeerAccess")?;
    from.bind()?;
    // SAFETY: as above.
    unsafe { sys::cuCtxEnablePeerAccess(to.context, 0) }.result().named("cuCtxEnablePeerAccess")?;
    let (source, stream) = (Buffer::zeroed(&from, bytes)?, Stream::new(&from)?);
    let mut seconds = Vec::with_capacity(times);
    for _ in 0..times {
        let began = std::time::Instant::now();
        // SAFETY: both buffers are as long, each in its context.
        unsafe {
            result::memcpy_peer_async(
                to.context,
                target.address,
                from.context,
                source.address,
                bytes,
                stream.stream,
            )
        }
        .named("cuMemcpyPeerAsync")?;
        stream.wait()?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // SAFETY: retained once by `open`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Device memory from plain `cuMemAlloc`, which can be opened by another process.
pub(super) struct Buffer {
    address: sys::CUdeviceptr,
    bytes: usize,
    device: Arc<CudaDevice>,
}

impl Buffer {
    /// `bytes` bytes, at least one; what is in them is not known.
    pub(super) fn new(device: &Arc<CudaDevice>, bytes: usize) -> Result<Self> {
        // SAFETY: freed once, in `Drop`.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.named("cuMemAlloc")?;
        Ok(Self { address, bytes, device: Arc::clone(device) })
    }

    /// As many zeros.
    pub(super) fn zeroed(device: &Arc<CudaDevice>, bytes: usize) -> Result<Self> {
        let buffer = Self::new(device, bytes)?;
        // SAFETY: the buffer is as long.
        unsafe { result::memset_d8_sync(buffer.address, 0, bytes) }.named("cuMemsetD8")?;
        // It only waits for itself on the host's memory; streams of ours do not wait for the default one.
        // SAFETY: the default stream is always there.
        unsafe { result::stream::synchronize(result::stream::null()) }.named("cuStreamSynchronize")?;
        Ok(buffer)
    }

    /// A copy of `values`.
    pub(super) fn of<T: Copy>(device: &Arc<CudaDevice>, values: &[T]) -> Result<Self> {
        let buffer = Self::new(device, size_of_val(values))?;
        // SAFETY: the buffer is as long, and the call returns when the copy is made.
        unsafe { result::memcpy_htod_sync(buffer.address, values) }.named("cuMemcpyHtoD")?;
        Ok(buffer)
    }

    /// Length.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of `count` numbers from number `first` on, as kernels take it.
    ///
    /// # Panics
    /// If the buffer ends before they do.
    pub(super) fn numbers<T>(&self, first: usize, count: usize) -> *mut T {
        let end = (first + count) * size_of::<T>();
        assert!(end <= self.bytes, "{count} numbers from {first} on end at byte {end} of {}", self.bytes);
        (self.address as usize + first * size_of::<T>()) as *mut T
    }

    /// Copies `count` values at byte `offset` to the host. What was submitted that writes them is done.
    pub(super) fn read_at<T: Copy + Default>(&self, offset: usize, count: usize) -> Result<Vec<T>> {
        assert!(offset + count * size_of::<T>() <= self.bytes, "it is not as long");
        let mut values = vec![T::default(); count];
        // SAFETY: the buffer is as long, and the call returns when the copy is made.
        unsafe { result::memcpy_dtoh_sync(&mut values, self.address + offset as u64) }
            .named("cuMemcpyDtoH")?;
        Ok(values)
    }
}

/// Copies `bytes` bytes at `address` on the current device to the host.
pub(super) fn read(address: u64, bytes: usize) -> Result<Vec<u8>> {
    let mut values = vec![0; bytes];
    // SAFETY: the driver refuses what is not the device's memory; the call returns when the copy is made.
    unsafe { result::memcpy_dtoh_sync(&mut values, address) }.named("cuMemcpyDtoH")?;
    Ok(values)
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Its thread may be another one than the one that made it.
        let _ = self.device.bind();
        // SAFETY: allocated once in `new`. The driver waits for kernels that use it.
        let _ = unsafe { result::free_sync(self.address) };
    }
}

// SAFETY: an address on the device, used through the driver alone.
unsafe impl Send for Buffer {}
// SAFETY: as above; what is in it is ordered by whoever submits work.
unsafe impl Sync for Buffer {}

/// A stream that does not wait for the default one.
pub(super) struct Stream {
    stream: sys::CUstream,
    device: Arc<CudaDevice>,
}

// SAFETY: a name that the driver takes from any thread.
unsafe impl Send for Stream {}

impl Stream {
    pub(super) fn new(device: &Arc<CudaDevice>) -> Result<Self> {
        Self::with_priority(device, 0)
    }

    /// A stream whose work goes before that of others as soon as there is room.
    pub(super) fn urgent(device: &Arc<CudaDevice>) -> Result<Self> {
        let (_, greatest) = result::stream::get_priority_range().named("cuCtxGetStreamPriorityRange")?;
        Self::with_priority(device, greatest)
    }

    fn with_priority(device: &Arc<CudaDevice>, priority: i32) -> Result<Self> {
        let stream = result::stream::create_with_priority(result::stream::StreamKind::NonBlocking, priority)
            .named("cuStreamCreateWithPriority")?;
        Ok(Self { stream, device: Arc::clone(device) })
    }

    /// As kernels take it.
    pub(super) fn raw(&self) -> *mut c_void {
        self.stream.cast()
    }

    /// As the driver takes it.
    pub(super) fn handle(&self) -> sys::CUstream {
        self.stream
    }

    /// Blocks until everything submitted is done.
    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: the stream is live.
        unsafe { result::stream::synchronize(self.stream) }.named("cuStreamSynchronize")
    }

    /// Copies to the device, in the stream's order.
    ///
    /// # Safety
    /// `from` is not changed or freed before the copy has run.
    pub(super) unsafe fn upload<T: Copy>(&self, to: &Buffer, from: &Pinned<T>, count: usize) -> Result<()> {
        assert!(count * size_of::<T>() <= to.bytes && count <= from.count, "it is not as long");
        // SAFETY: both are as long; nothing changes `from`, by the caller's contract.
        let values = unsafe { std::slice::from_raw_parts(from.values, count) };
        // SAFETY: as above.
        unsafe { result::memcpy_htod_async(to.address, values, self.stream) }.named("cuMemcpyHtoDAsync")
    }

    /// Copies to the host, in the stream's order: `to` holds it when an event recorded after this has come.
    ///
    /// # Safety
    /// `to` is not read, changed or freed before the copy has run.
    pub(super) unsafe fn download<T: Copy>(&self, to: &Pinned<T>, from: &Buffer, count: usize) -> Result<()> {
        assert!(count * size_of::<T>() <= from.bytes && count <= to.count, "it is not as long");
        // SAFETY: both are as long; nothing else touches `to`, by the caller's contract.
        let values = unsafe { std::slice::from_raw_parts_mut(to.values, count) };
        // SAFETY: as above.
        unsafe { result::memcpy_dtoh_async(values, from.address, self.stream) }.named("cuMemcpyDtoHAsync")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: made once in `new`.
        let _ = unsafe { result::stream::destroy(self.stream) };
    }
}

/// A point in a stream.
pub(super) struct Event {
    event: sys::CUevent,
    device: Arc<CudaDevice>,
}

// SAFETY: a name that the driver takes from any thread.
unsafe impl Send for Event {}

impl Event {
    pub(super) fn new(device: &Arc<CudaDevice>) -> Result<Self> {
        let event =
            result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).named("cuEventCreate")?;
        Ok(Self { event, device: Arc::clone(device) })
    }

    /// Marks the point that `stream` has been given so far.
    pub(super) fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are live.
        unsafe { result::event::record(self.event, stream.stream) }.named("cuEventRecord")
    }

    /// True once the stream has come to the point.
    ///
    /// # Errors
    /// The driver's: a step of the stream has failed, or the device.
    pub(super) fn is_complete(&self) -> Result<bool> {
        // SAFETY: the event is live.
        match unsafe { result::event::query(self.event) } {
            Ok(()) => Ok(true),
            Err(result::DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(error) => Err(error).named("cuEventQuery"),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: made once in `new`.
        let _ = unsafe { result::event::destroy(self.event) };
    }
}

/// Host memory that the device copies from and to by itself.
pub(super) struct Pinned<T> {
    values: *mut T,
    count: usize,
    device: Arc<CudaDevice>,
}

// SAFETY: memory of its own.
unsafe impl<T: Send> Send for Pinned<T> {}

impl<T: Copy + Default> Pinned<T> {
    /// `count` default values.
    pub(super) fn new(device: &Arc<CudaDevice>, count: usize) -> Result<Self> {
        let bytes = count.max(1) * size_of::<T>();
        // SAFETY: freed once, in `Drop`; aligned to a page.
        let values: *mut T = unsafe { result::malloc_host(bytes, 0) }.named("cuMemHostAlloc")?.cast();
        for place in 0..count {
            // SAFETY: inside the allocation.
            unsafe { values.add(place).write(T::default()) };
        }
        Ok(Self { values, count, device: Arc::clone(device) })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// All of them.
    ///
    /// # Safety
    /// No submitted work writes them before the slice is dropped.
    pub(super) unsafe fn values(&self) -> &[T] {
        // SAFETY: initialised in `new`; nothing writes them, by the caller's contract.
        unsafe { std::slice::from_raw_parts(self.values, self.count) }
    }

    /// All of them, to be changed.
    ///
    /// # Safety
    /// No submitted work reads or writes them before the slice is dropped.
    pub(super) unsafe fn values_mut(&mut self) -> &mut [T] {
        // SAFETY: initialised in `new`, borrowed mutably; the device does not touch them, by the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.values, self.count) }
    }

    /// As kernels take it.
    pub(super) fn raw(&self) -> *mut T {
        self.values
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: allocated once in `new`.
        let _ = unsafe { result::free_host(self.values.cast()) };
    }
}
