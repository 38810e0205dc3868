//! Safe handles over UCX: [`Context`] (with its registered region), [`Worker`], [`Endpoint`], [`Request`].
//!
//! A child holds its parent, so parents are released last. They hold it by `Rc`, not `Arc`: every handle stays on the
//! thread that made it, and `Rc` makes the compiler say so. No `Drop` waits: whoever wants an orderly end closes
//! the endpoint and polls the request first.

use super::blob::{self, Kind};
use crate::memory::{MemoryKind, Region};
use crate::transport::{Descriptor, TransportError};
use std::cell::Cell;
use std::ffi::{CStr, c_void};
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::rc::Rc;
use ucx_sys::raw::*;
use ucx_sys::{CallError, Posted, Ucx};

impl From<CallError> for TransportError {
    fn from(error: CallError) -> Self {
        Self::Call { call: error.call, status: error.text }
    }
}

/// A UCP context and the one region registered with it. The region outlives every worker, hence every operation.
pub(super) struct Context {
    ucx: &'static Ucx,
    handle: ucp_context_h,
    memh: ucp_mem_h,
    region: Region,
    /// The sealed key to the region, the same for every session.
    key: Vec<u8>,
}

impl Context {
    pub(super) fn new(
        ucx: &'static Ucx,
        settings: &[(&CStr, &CStr)],
        region: Region,
    ) -> Result<Rc<Self>, TransportError> {
        // SAFETY: released in `Drop`, which runs after every worker's because workers hold the context.
        let handle = unsafe { ucx.init(UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP, settings) }?;
        let (base, bytes) = (region.base().as_ptr(), region.bytes());
        // SAFETY: the region owns the memory, and `Drop` unmaps before it lets go of the region.
        let memh = unsafe { ucx.mem_map(handle, base.cast(), bytes, memory_type(&region)) };
        let memh = memh.inspect_err(|_| {
            // SAFETY: made above, nothing was made from it.
            unsafe { (ucx.raw.ucp_cleanup)(handle) }
        })?;
        let mut context = Self { ucx, handle, memh, region, key: Vec::new() };
        // SAFETY: both handles are live.
        let packed = unsafe { ucx.rkey_pack(handle, memh) }?;
        context.key = blob::seal(Kind::Key, base.addr() as u64, bytes as u64, &packed).ok_or_else(|| {
            TransportError::Descriptor(format!("key of {} bytes is too long", packed.len()))
        })?;
        Ok(Rc::new(context))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: both are live and released once; no worker is left, because each holds this context.
        unsafe {
            (self.ucx.raw.ucp_mem_unmap)(self.handle, self.memh);
            (self.ucx.raw.ucp_cleanup)(self.handle);
        }
    }
}

fn memory_type(region: &Region) -> ucs_memory_type_t {
    match region.kind() {
        MemoryKind::Host => UCS_MEMORY_TYPE_HOST,
        MemoryKind::Cuda => UCS_MEMORY_TYPE_CUDA,
    }
}

/// A UCP worker: one a session. Destroying it ends everything that could move a byte of the session here.
pub(super) struct Worker {
    context: Rc<Context>,
    handle: ucp_worker_h,
    efd: RawFd,
    /// What the endpoint's error handler was told; the handler holds a pointer to it as long as the worker lives.
    failure: Rc<Cell<ucs_status_t>>,
}

impl Worker {
    pub(super) fn new(context: &Rc<Context>) -> Result<Rc<Self>, TransportError> {
        // SAFETY: the context is live and held until after the worker is destroyed.
        let handle = unsafe { context.ucx.worker_create(context.handle) }?;
        let mut worker =
            Self { context: Rc::clone(context), handle, efd: -1, failure: Rc::new(Cell::new(UCS_OK)) };
        // SAFETY: the worker is live; its descriptor is used no longer than it.
        worker.efd = unsafe { context.ucx.worker_efd(handle) }?;
        Ok(Rc::new(worker))
    }

    /// What a peer needs to reach this worker and write into the region.
    pub(super) fn descriptor(&self) -> Result<Descriptor, TransportError> {
        let context = &self.context;
        let (base, bytes) = (context.region.base().as_ptr().addr() as u64, context.region.bytes() as u64);
        // SAFETY: the worker is live.
        let address = unsafe { context.ucx.worker_address(self.handle) }?;
        let worker_address = blob::seal(Kind::Address, base, bytes, &address).ok_or_else(|| {
            TransportError::Descriptor(format!("worker address of {} bytes is too long", address.len()))
        })?;
        let rkey = context.key.clone();
        Ok(Descriptor { transport: super::NAME.into(), worker_address, rkey, base, bytes })
    }

    /// One round of progress; false says that nothing happened.
    pub(super) fn progress(&self) -> bool {
        // SAFETY: the worker is live and this is its thread; callbacks do not call back into UCX.
        unsafe { (self.context.ucx.raw.ucp_worker_progress)(self.handle) != 0 }
    }

    /// Asks for the event descriptor to wake on the next event.
    pub(super) fn arm(&self) -> Arm {
        // SAFETY: the worker is live and was made with wake-ups.
        match unsafe { (self.context.ucx.raw.ucp_worker_arm)(self.handle) } {
            UCS_OK => Arm::Armed,
            UCS_ERR_BUSY => Arm::Busy,
            _ => Arm::Failed,
        }
    }

    /// The descriptor to poll after [`Worker::arm`].
    pub(super) fn efd(&self) -> BorrowedFd<'_> {
        // SAFETY: UCX keeps the descriptor open as long as the worker, and `new` has set it.
        unsafe { BorrowedFd::borrow_raw(self.efd) }
    }

    /// What the error handler of the worker's endpoint was told.
    pub(super) fn failure(&self) -> Option<TransportError> {
        match self.failure.get() {
            UCS_OK => None,
            status => Some(self.context.ucx.error("ucp_ep", status).into()),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // SAFETY: live, released once, and no endpoint or request is left, because each holds this worker. The
        // context and the cell of the error handler are fields and so outlive this call.
        unsafe { (self.context.ucx.raw.ucp_worker_destroy)(self.handle) }
    }
}

/// What came of arming a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arm {
    /// Its descriptor wakes on the next event.
    Armed,
    /// Events wait: progress first.
    Busy,
    /// It cannot be armed; only a timeout wakes.
    Failed,
}

/// Remembers that the peer is gone. Runs inside `ucp_worker_progress` on the transport's thread.
unsafe extern "C" fn on_error(arg: *mut c_void, _ep: ucp_ep_h, status: ucs_status_t) {
    // SAFETY: `arg` is the cell that the worker owns, and only a live worker calls this, on its own thread.
    unsafe { &*arg.cast::<Cell<ucs_status_t>>() }.set(status);
}

/// An operation that UCX has accepted; polled, never cancelled by being dropped.
pub(super) struct Request {
    worker: Rc<Worker>,
    /// None: it was done at once.
    handle: Option<NonNull<c_void>>,
    call: &'static str,
}

impl Request {
    fn new(worker: &Rc<Worker>, call: &'static str, posted: Posted) -> Self {
        let handle = match posted {
            Posted::Done => None,
            Posted::Pending(handle) => Some(handle),
        };
        Self { worker: Rc::clone(worker), handle, call }
    }

    /// The result, once there is one.
    pub(super) fn poll(&self) -> Option<Result<(), TransportError>> {
        let Some(handle) = self.handle else { return Some(Ok(())) };
        let ucx = self.worker.context.ucx;
        // SAFETY: the request is live until `Drop` frees it.
        match unsafe { (ucx.raw.ucp_request_check_status)(handle.as_ptr()) } {
            UCS_INPROGRESS => None,
            status => Some(ucx.check(self.call, status).map_err(TransportError::from)),
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(handle) = self.handle {
            // SAFETY: live and freed once. UCX keeps a request that is still in progress until it is over; its
            // source stays valid, because the region outlives the worker.
            unsafe { (self.worker.context.ucx.raw.ucp_request_free)(handle.as_ptr()) }
        }
    }
}

/// An endpoint and the key to the peer's region: one object, so that a key of an earlier session cannot be used.
pub(super) struct Endpoint {
    worker: Rc<Worker>,
    /// None once closed.
    handle: Option<ucp_ep_h>,
    rkey: ucp_rkey_h,
    peer_base: u64,
    peer_bytes: u64,
}

impl Endpoint {
    /// Starts connecting; the descriptor is checked before UCX sees any of it.
    pub(super) fn connect(worker: &Rc<Worker>, peer: &Descriptor) -> Result<Self, TransportError> {
        if peer.transport != super::NAME {
            return Err(TransportError::Descriptor(format!(
                "transport is {:?}, not \"ucx\"",
                peer.transport
            )));
        }
        if peer.base.checked_add(peer.bytes).is_none() {
            return Err(TransportError::Descriptor("region wraps around the address space".into()));
        }
        let open =
            |kind, blob| blob::open(kind, peer.base, peer.bytes, blob).map_err(TransportError::Descriptor);
        let address = open(Kind::Address, &peer.worker_address)?;
        let key = open(Kind::Key, &peer.rkey)?;
        let ucx = worker.context.ucx;
        let cell = Rc::as_ptr(&worker.failure).cast_mut().cast();
        // SAFETY: the checksum says that the address is whole; the worker keeps the cell until it is destroyed.
        let handle = unsafe { ucx.ep_create(worker.handle, address, on_error, cell) }?;
        // SAFETY: the endpoint is live and the checksum says that the key is whole.
        let rkey = unsafe { ucx.ep_rkey_unpack(handle, key) }.inspect_err(|_| {
            // SAFETY: live, closed once, not used again.
            let closing = unsafe { ucx.ep_close(handle, true) };
            drop(closing.map(|posted| Request::new(worker, "ucp_ep_close_nbx", posted)));
        })?;
        let (peer_base, peer_bytes) = (peer.base, peer.bytes);
        Ok(Self { worker: Rc::clone(worker), handle: Some(handle), rkey, peer_base, peer_bytes })
    }

    fn live(&self) -> Result<ucp_ep_h, TransportError> {
        self.handle.ok_or(TransportError::Closed)
    }

    /// Checks both ranges and posts the put; an empty one is done without UCX.
    pub(super) fn put(&self, local: u64, remote: u64, bytes: u64) -> Result<Request, TransportError> {
        let context = &self.worker.context;
        let out_of = |offset, region_bytes| TransportError::OutOfRegion { offset, bytes, region_bytes };
        let source = context.region.address(local, bytes);
        let source = source.ok_or_else(|| out_of(local, context.region.bytes() as u64))?;
        if remote.checked_add(bytes).is_none_or(|end| end > self.peer_bytes) {
            return Err(out_of(remote, self.peer_bytes));
        }
        if bytes == 0 {
            return Ok(Request::new(&self.worker, "ucp_put_nbx", Posted::Done));
        }
        let ep = self.live()?;
        // SAFETY: the source lies in the registered region, which outlives the worker and so the operation; the
        // remote range lies in the region that the key was packed for.
        let posted = unsafe {
            context.ucx.put(
                ep,
                source.as_ptr().cast(),
                bytes as usize,
                self.peer_base + remote,
                self.rkey,
                context.memh,
                memory_type(&context.region),
            )
        }?;
        Ok(Request::new(&self.worker, "ucp_put_nbx", posted))
    }

    pub(super) fn flush(&self) -> Result<Request, TransportError> {
        let ep = self.live()?;
        // SAFETY: the endpoint is live.
        let posted = unsafe { self.worker.context.ucx.ep_flush(ep) }?;
        Ok(Request::new(&self.worker, "ucp_ep_flush_nbx", posted))
    }

    /// Starts closing; by force, what is in flight fails soon after. None if it was closed before or is closed now.
    pub(super) fn close(&mut self, force: bool) -> Option<Request> {
        let ep = self.handle.take()?;
        // SAFETY: live until here; the handle was taken, so it is not used again.
        let posted = unsafe { self.worker.context.ucx.ep_close(ep, force) }.ok()?;
        Some(Request::new(&self.worker, "ucp_ep_close_nbx", posted))
    }

    /// What carries the bytes, for example `tcp/lo`.
    pub(super) fn lane(&self) -> String {
        // SAFETY: the endpoint is live whenever there is a handle.
        let lanes = self.handle.map(|ep| unsafe { self.worker.context.ucx.ep_transports(ep) });
        let mut names: Vec<_> = match lanes {
            Some(Ok(lanes)) => lanes.into_iter().map(|(name, device)| format!("{name}/{device}")).collect(),
            _ => Vec::new(),
        };
        names.dedup();
        if names.is_empty() { "unknown".into() } else { names.join(",") }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        drop(self.close(true));
        // SAFETY: live, released once, while the worker still exists.
        unsafe { (self.worker.context.ucx.raw.ucp_rkey_destroy)(self.rkey) }
    }
}
