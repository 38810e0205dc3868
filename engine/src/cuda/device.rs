//! RAII wrappers of the CUDA driver: the primary context, device buffers, streams, events and pinned host memory.
//!
//! Each object belongs to one device. [`CudaDevice::bind`] makes the device's context current on a thread. A thread must call
//! it before its first driver call.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::result::CublasError;
use cudarc::driver::{result, sys};

use super::cublas;
use crate::error::{CudaError, CudaStatus};

pub(super) type Result<T> = std::result::Result<T, CudaError>;

/// The status and the text of an error of a CUDA library.
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

/// Adds the name of the called function to an error.
pub(super) trait Named<T> {
    fn named(self, call: &'static str) -> Result<T>;
}

impl<T, E: Status> Named<T> for std::result::Result<T, E> {
    fn named(self, call: &'static str) -> Result<T> {
        self.map_err(|error| CudaError { call, status: error.status(), text: error.text() })
    }
}

/// A device and its retained primary context.
pub(super) struct CudaDevice {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: the driver accepts both handles from any thread.
unsafe impl Send for CudaDevice {}
// SAFETY: as above.
unsafe impl Sync for CudaDevice {}

impl CudaDevice {
    /// The number of devices that the driver reports.
    pub(super) fn count() -> Result<u32> {
        Self::load()?;
        let count = result::device::get_count().named("cuDeviceGetCount")?;
        Ok(count.unsigned_abs())
    }

    /// Loads and initialises the driver.
    fn load() -> Result<()> {
        let text = "there is no CUDA driver on this machine (libcuda.so.1); set engine.device to cpu";
        // SAFETY: the probe only tries to load the library by name. It must come first, because cudarc panics on the first
        // use of a missing library.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::without_status("loading CUDA", text));
        }
        result::init().named("cuInit")
    }

    /// Retains the primary context of device `ordinal` and binds it to this thread.
    ///
    /// # Errors
    /// The machine has no driver, no such device, or no cublasLt of its CUDA version.
    pub(super) fn open(ordinal: u32) -> Result<Arc<Self>> {
        Self::load()?;
        cublas::require().map_err(|text| CudaError::without_status("loading CUDA", &text))?;
        let device = result::device::get(ordinal.cast_signed()).named("cuDeviceGet")?;
        // SAFETY: the device exists. `Drop` releases the context.
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

    /// The device's name.
    pub(super) fn name(&self) -> Result<String> {
        result::device::get_name(self.device).named("cuDeviceGetName")
    }

    /// The compute capability: major and minor number.
    pub(super) fn capability(&self) -> Result<(i32, i32)> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        // SAFETY: the device exists.
        let of = |attribute| unsafe { result::device::get_attribute(self.device, attribute) };
        Ok((of(MAJOR).named("cuDeviceGetAttribute")?, of(MINOR).named("cuDeviceGetAttribute")?))
    }

    /// Free bytes and total bytes of device memory.
    pub(super) fn memory(&self) -> Result<(u64, u64)> {
        let (free, total) = result::mem_get_info().named("cuMemGetInfo")?;
        Ok((free as u64, total as u64))
    }
}

/// Measures sequential copies from device 0 to device 1. Returns the seconds of each copy.
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
        // SAFETY: both buffers have `bytes` bytes, each in its own context.
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

/// Device memory from plain `cuMemAlloc`. Another process can open it through CUDA IPC.
pub(super) struct Buffer {
    address: sys::CUdeviceptr,
    bytes: usize,
    device: Arc<CudaDevice>,
}

impl Buffer {
    /// Allocates `bytes` uninitialised bytes, at least one.
    pub(super) fn new(device: &Arc<CudaDevice>, bytes: usize) -> Result<Self> {
        // SAFETY: freed once, in `Drop`.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.named("cuMemAlloc")?;
        Ok(Self { address, bytes, device: Arc::clone(device) })
    }

    /// Allocates `bytes` zero bytes.
    pub(super) fn zeroed(device: &Arc<CudaDevice>, bytes: usize) -> Result<Self> {
        let buffer = Self::new(device, bytes)?;
        // SAFETY: the buffer has `bytes` bytes.
        unsafe { result::memset_d8_sync(buffer.address, 0, bytes) }.named("cuMemsetD8")?;
        // The memset is asynchronous for device memory, and our streams do not wait for the default stream.
        // SAFETY: the default stream always exists.
        unsafe { result::stream::synchronize(result::stream::null()) }.named("cuStreamSynchronize")?;
        Ok(buffer)
    }

    /// Allocates a copy of `values`.
    pub(super) fn of<T: Copy>(device: &Arc<CudaDevice>, values: &[T]) -> Result<Self> {
        let buffer = Self::new(device, size_of_val(values))?;
        // SAFETY: the buffer has the same size, and the call returns after it has read `values`.
        unsafe { result::memcpy_htod_sync(buffer.address, values) }.named("cuMemcpyHtoD")?;
        // The last bytes may still be on their way to the device, and our streams do not wait for the default stream.
        // SAFETY: the default stream always exists.
        unsafe { result::stream::synchronize(result::stream::null()) }.named("cuStreamSynchronize")?;
        Ok(buffer)
    }

    /// The length in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The device address of `count` numbers, starting with number `first`.
    ///
    /// # Panics
    /// If the numbers do not lie inside the buffer.
    pub(super) fn numbers<T>(&self, first: usize, count: usize) -> *mut T {
        let end = (first + count) * size_of::<T>();
        assert!(end <= self.bytes, "{count} numbers from {first} on end at byte {end} of {}", self.bytes);
        (self.address as usize + first * size_of::<T>()) as *mut T
    }

    /// Copies `count` values at byte `offset` to the host. The work that writes them must be finished.
    ///
    /// # Panics
    /// If the values do not lie inside the buffer.
    pub(super) fn read_at<T: Copy + Default>(&self, offset: usize, count: usize) -> Result<Vec<T>> {
        assert!(
            offset + count * size_of::<T>() <= self.bytes,
            "{count} values at byte {offset} exceed the buffer"
        );
        let mut values = vec![T::default(); count];
        // SAFETY: the values lie inside the buffer, and the call returns after the copy.
        unsafe { result::memcpy_dtoh_sync(&mut values, self.address + offset as u64) }
            .named("cuMemcpyDtoH")?;
        Ok(values)
    }
}

/// Copies `bytes` bytes at `address` on the current device to the host.
pub(super) fn read(address: u64, bytes: usize) -> Result<Vec<u8>> {
    let mut values = vec![0; bytes];
    // SAFETY: the driver refuses an invalid device address, and the call returns after the copy.
    unsafe { result::memcpy_dtoh_sync(&mut values, address) }.named("cuMemcpyDtoH")?;
    Ok(values)
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Another thread than the one that created the buffer may drop it.
        let _ = self.device.bind();
        // SAFETY: allocated once, in `new`. The driver waits for kernels that use the memory.
        let _ = unsafe { result::free_sync(self.address) };
    }
}

// SAFETY: the host accesses the device address only through the driver.
unsafe impl Send for Buffer {}
// SAFETY: as above. The code that submits work orders the accesses to the contents.
unsafe impl Sync for Buffer {}

/// A stream that does not wait for the default stream.
pub(super) struct Stream {
    stream: sys::CUstream,
    device: Arc<CudaDevice>,
}

// SAFETY: the driver accepts the handle from any thread.
unsafe impl Send for Stream {}

impl Stream {
    pub(super) fn new(device: &Arc<CudaDevice>) -> Result<Self> {
        Self::with_priority(device, 0)
    }

    /// A stream with the highest priority. Its pending blocks are scheduled before those of other streams.
    pub(super) fn urgent(device: &Arc<CudaDevice>) -> Result<Self> {
        let (_, greatest) = result::stream::get_priority_range().named("cuCtxGetStreamPriorityRange")?;
        Self::with_priority(device, greatest)
    }

    fn with_priority(device: &Arc<CudaDevice>, priority: i32) -> Result<Self> {
        let stream = result::stream::create_with_priority(result::stream::StreamKind::NonBlocking, priority)
            .named("cuStreamCreateWithPriority")?;
        Ok(Self { stream, device: Arc::clone(device) })
    }

    /// The device of the stream.
    pub(super) fn device(&self) -> &Arc<CudaDevice> {
        &self.device
    }

    /// The handle for kernel launches.
    pub(super) fn raw(&self) -> *mut c_void {
        self.stream.cast()
    }

    /// The handle for driver calls.
    pub(super) fn handle(&self) -> sys::CUstream {
        self.stream
    }

    /// Blocks until all submitted work has finished.
    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: the stream is live.
        unsafe { result::stream::synchronize(self.stream) }.named("cuStreamSynchronize")
    }

    /// Copies `count` values to the device, in stream order.
    ///
    /// # Safety
    /// No code changes or frees `from` before the copy has finished.
    pub(super) unsafe fn upload<T: Copy>(&self, to: &Buffer, from: &Pinned<T>, count: usize) -> Result<()> {
        assert!(
            count * size_of::<T>() <= to.bytes && count <= from.count,
            "{count} values exceed a buffer of the copy"
        );
        // SAFETY: both have `count` values. No code changes `from`, by the caller's contract.
        let values = unsafe { std::slice::from_raw_parts(from.values, count) };
        // SAFETY: as above.
        unsafe { result::memcpy_htod_async(to.address, values, self.stream) }.named("cuMemcpyHtoDAsync")
    }

    /// Copies `count` values to the host, in stream order. An event that is recorded after this call is complete after the
    /// copy.
    ///
    /// # Safety
    /// No code reads, changes or frees `to` before the copy has finished.
    pub(super) unsafe fn download<T: Copy>(&self, to: &Pinned<T>, from: &Buffer, count: usize) -> Result<()> {
        assert!(
            count * size_of::<T>() <= from.bytes && count <= to.count,
            "{count} values exceed a buffer of the copy"
        );
        // SAFETY: both have `count` values. No other code accesses `to`, by the caller's contract.
        let values = unsafe { std::slice::from_raw_parts_mut(to.values, count) };
        // SAFETY: as above.
        unsafe { result::memcpy_dtoh_async(values, from.address, self.stream) }.named("cuMemcpyDtoHAsync")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: created once, in `new`.
        let _ = unsafe { result::stream::destroy(self.stream) };
    }
}

/// A point in a stream.
pub(super) struct Event {
    event: sys::CUevent,
    device: Arc<CudaDevice>,
}

// SAFETY: the driver accepts the handle from any thread.
unsafe impl Send for Event {}

impl Event {
    pub(super) fn new(device: &Arc<CudaDevice>) -> Result<Self> {
        let event =
            result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).named("cuEventCreate")?;
        Ok(Self { event, device: Arc::clone(device) })
    }

    /// Records the event after all work submitted to `stream` so far.
    pub(super) fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are live.
        unsafe { result::event::record(self.event, stream.stream) }.named("cuEventRecord")
    }

    /// True if the stream has finished the work before the event.
    ///
    /// # Errors
    /// The driver's error, if work of the stream or the device has failed.
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
        // SAFETY: created once, in `new`.
        let _ = unsafe { result::event::destroy(self.event) };
    }
}

/// Page-locked host memory. The device copies to and from it asynchronously.
pub(super) struct Pinned<T> {
    values: *mut T,
    count: usize,
    device: Arc<CudaDevice>,
}

// SAFETY: this value owns the memory.
unsafe impl<T: Send> Send for Pinned<T> {}

impl<T: Copy + Default> Pinned<T> {
    /// Allocates `count` default values.
    pub(super) fn new(device: &Arc<CudaDevice>, count: usize) -> Result<Self> {
        let bytes = count.max(1) * size_of::<T>();
        // SAFETY: freed once, in `Drop`. The allocation is aligned to a page.
        let values: *mut T = unsafe { result::malloc_host(bytes, 0) }.named("cuMemHostAlloc")?.cast();
        for index in 0..count {
            // SAFETY: inside the allocation.
            unsafe { values.add(index).write(T::default()) };
        }
        Ok(Self { values, count, device: Arc::clone(device) })
    }

    /// The number of values.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// All values, for reading.
    ///
    /// # Safety
    /// No submitted work writes them before the slice is dropped.
    pub(super) unsafe fn values(&self) -> &[T] {
        // SAFETY: `new` initialised the values. No work writes them, by the caller's contract.
        unsafe { std::slice::from_raw_parts(self.values, self.count) }
    }

    /// All values, for writing.
    ///
    /// # Safety
    /// No submitted work reads or writes them before the slice is dropped.
    pub(super) unsafe fn values_mut(&mut self) -> &mut [T] {
        // SAFETY: `new` initialised the values, and `self` is borrowed mutably. The device does not access them, by the
        // caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.values, self.count) }
    }

    /// The address for kernels and driver calls.
    pub(super) fn raw(&self) -> *mut T {
        self.values
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: allocated once, in `new`.
        let _ = unsafe { result::free_host(self.values.cast()) };
    }
}
