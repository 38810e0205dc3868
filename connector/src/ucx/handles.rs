//! Safe handles over UCX: [`Context`] (with its registered regions), [`Worker`], [`Endpoint`], [`Request`].
//!
//! A child holds its parent, so parents are released last. It holds the parent by `Rc` instead of `Arc`, so the compiler checks that
//! all handles stay on the thread that made them. No `Drop` waits. For an orderly end, close the endpoint and poll the request
//! first.

use super::blob::{self, Kind};
use crate::memory::{MemoryKind, Region};
use crate::transport::{Descriptor, ShardDescriptor, TransportError};
use std::cell::Cell;
use std::ffi::{CStr, c_void};
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::rc::Rc;
use ucx_sys::raw::*;
use ucx_sys::{CallError, Posted, Ucx};

/// What to do if no device of this process reaches a device of the peer.
const UNREACHABLE_HELP: &str = "set UCX_NET_DEVICES on both sides to a network device that reaches the other host \
                                (the default, lo, reaches only this host)";

impl From<CallError> for TransportError {
    fn from(error: CallError) -> Self {
        let status = match error.status {
            UCS_ERR_UNREACHABLE => format!("{}; {UNREACHABLE_HELP}", error.text),
            _ => error.text,
        };
        Self::Call { call: error.call, status }
    }
}

/// A UCP context and the regions registered with it. The regions outlive every worker and so every operation.
pub(super) struct Context {
    ucx: &'static Ucx,
    handle: ucp_context_h,
    regions: Vec<Registered>,
}

/// A region, and its registration with the context.
struct Registered {
    memh: ucp_mem_h,
    region: Region,
    /// The sealed rkey of the region; the same for all sessions.
    key: Vec<u8>,
}

impl Context {
    pub(super) fn new(
        ucx: &'static Ucx,
        settings: &[(&CStr, &CStr)],
        regions: Vec<Region>,
    ) -> Result<Rc<Self>, TransportError> {
        // SAFETY: the context is released in `Drop`, which runs after every worker was dropped, because workers hold the context.
        let handle = unsafe { ucx.init(UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP, settings) }?;
        let mut context = Self { ucx, handle, regions: Vec::new() };
        for region in regions {
            context.register(region)?;
        }
        Ok(Rc::new(context))
    }

    fn register(&mut self, region: Region) -> Result<(), TransportError> {
        let (base, bytes) = (region.base().as_ptr(), region.bytes());
        // SAFETY: the region keeps its memory mapped, and `Drop` unregisters it before the field `regions` is dropped.
        let memh = unsafe { self.ucx.mem_map(self.handle, base.cast(), bytes, memory_type(&region)) }?;
        self.regions.push(Registered { memh, region, key: Vec::new() });
        // SAFETY: `self` owns both handles, so they are live.
        let packed = unsafe { self.ucx.rkey_pack(self.handle, memh) }?;
        let key = blob::seal(Kind::Key, base.addr() as u64, bytes as u64, &packed).ok_or_else(|| {
            TransportError::Descriptor(format!("key of {} bytes is too long", packed.len()))
        })?;
        if let Some(registered) = self.regions.last_mut() {
            registered.key = key;
        }
        Ok(())
    }

    /// Number of registered regions.
    pub(super) fn regions(&self) -> usize {
        self.regions.len()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: this struct owns all handles and releases them only here. No worker is left, because each holds this context.
        unsafe {
            for registered in &self.regions {
                (self.ucx.raw.ucp_mem_unmap)(self.handle, registered.memh);
            }
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

/// A UCP worker; each session has its own. [`lane`](crate::transport::lane) says what its destruction proves.
pub(super) struct Worker {
    context: Rc<Context>,
    handle: ucp_worker_h,
    efd: RawFd,
    /// The status from the endpoint's error handler, which has a pointer to this cell as long as the worker exists.
    failure: Rc<Cell<ucs_status_t>>,
}

impl Worker {
    pub(super) fn new(context: &Rc<Context>) -> Result<Rc<Self>, TransportError> {
        // SAFETY: the context is live. The worker holds it until it is destroyed.
        let handle = unsafe { context.ucx.worker_create(context.handle) }?;
        let mut worker =
            Self { context: Rc::clone(context), handle, efd: -1, failure: Rc::new(Cell::new(UCS_OK)) };
        // SAFETY: the worker is live. `efd` lends the descriptor only for the worker's lifetime.
        worker.efd = unsafe { context.ucx.worker_efd(handle) }?;
        Ok(Rc::new(worker))
    }

    /// Number of regions that peers of this worker may write.
    pub(super) fn regions(&self) -> usize {
        self.context.regions()
    }

    /// The descriptor with which a peer connects to this worker and writes into the regions.
    pub(super) fn descriptor(&self) -> Result<Descriptor, TransportError> {
        // SAFETY: `self` owns the worker, so it is live.
        let address = unsafe { self.context.ucx.worker_address(self.handle) }?;
        let shard = |registered: &Registered| {
            let (base, bytes) =
                (registered.region.base().addr().get() as u64, registered.region.bytes() as u64);
            let worker_address = blob::seal(Kind::Address, base, bytes, &address).ok_or_else(|| {
                TransportError::Descriptor(format!("worker address of {} bytes is too long", address.len()))
            })?;
            Ok(ShardDescriptor { worker_address, rkey: registered.key.clone(), base, bytes })
        };
        let shards = self.context.regions.iter().map(shard).collect::<Result<_, TransportError>>()?;
        Ok(Descriptor { transport: super::NAME.into(), shards })
    }

    /// Lets UCX make progress once. False if nothing happened.
    pub(super) fn progress(&self) -> bool {
        // SAFETY: `self` owns the worker, so it is live. `Rc` keeps it on its thread. `on_error` does not call UCX.
        unsafe { (self.context.ucx.raw.ucp_worker_progress)(self.handle) != 0 }
    }

    /// Arms the event descriptor, so that the next event makes it readable.
    pub(super) fn arm(&self) -> Arm {
        // SAFETY: `self` owns the worker, so it is live. Its context has UCP_FEATURE_WAKEUP.
        match unsafe { (self.context.ucx.raw.ucp_worker_arm)(self.handle) } {
            UCS_OK => Arm::Armed,
            UCS_ERR_BUSY => Arm::Busy,
            _ => Arm::Failed,
        }
    }

    /// The descriptor to poll after [`Worker::arm`].
    pub(super) fn efd(&self) -> BorrowedFd<'_> {
        // SAFETY: `new` has set the descriptor, and UCX keeps it open as long as the worker exists, which `self` owns.
        unsafe { BorrowedFd::borrow_raw(self.efd) }
    }

    /// The error that the endpoint's error handler was called with, if it was called.
    pub(super) fn failure(&self) -> Option<TransportError> {
        match self.failure.get() {
            UCS_OK => None,
            status => Some(self.context.ucx.error("ucp_ep", status).into()),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // SAFETY: this struct owns the worker and releases it only here. No endpoint or request is left, because each holds this
        // worker. The context and the error handler's cell are fields, so they outlive this call.
        unsafe { (self.context.ucx.raw.ucp_worker_destroy)(self.handle) }
    }
}

/// The result of arming a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arm {
    /// The next event makes the descriptor readable.
    Armed,
    /// Events wait; the worker needs progress before it can be armed.
    Busy,
    /// Arming failed; the thread must not sleep longer than a timeout.
    Failed,
}

/// The endpoint's error handler: stores the status. Runs inside `ucp_worker_progress` on the transport's thread.
unsafe extern "C" fn on_error(arg: *mut c_void, _ep: ucp_ep_h, status: ucs_status_t) {
    // SAFETY: `Endpoint::connect` passed the worker's `failure` as `arg`. Only a live worker calls this handler, on its own thread.
    unsafe { &*arg.cast::<Cell<ucs_status_t>>() }.set(status);
}

/// An operation that UCX has accepted. Its owner polls it. Dropping it does not cancel it.
pub(super) struct Request {
    worker: Rc<Worker>,
    /// `None` if the operation was complete at once.
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

    /// The result, if the operation is complete.
    pub(super) fn poll(&self) -> Option<Result<(), TransportError>> {
        let Some(handle) = self.handle else { return Some(Ok(())) };
        let ucx = self.worker.context.ucx;
        // SAFETY: `self` owns the request, which is live until `Drop` frees it.
        match unsafe { (ucx.raw.ucp_request_check_status)(handle.as_ptr()) } {
            UCS_INPROGRESS => None,
            status => Some(ucx.check(self.call, status).map_err(TransportError::from)),
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(handle) = self.handle {
            // SAFETY: `self` owns the request and frees it only here. UCX keeps a request in progress until it completes. Its source
            // stays mapped, because the region outlives the worker.
            unsafe { (self.worker.context.ucx.raw.ucp_request_free)(handle.as_ptr()) }
        }
    }
}

/// An endpoint, from one of our regions into one of the peer's, and the rkey of that region. They are one object, so that an rkey of an earlier
/// session cannot be used.
pub(super) struct Endpoint {
    worker: Rc<Worker>,
    /// The index of our region.
    region: usize,
    /// `None` after the endpoint was closed.
    handle: Option<ucp_ep_h>,
    rkey: ucp_rkey_h,
    peer_base: u64,
    peer_bytes: u64,
}

impl Endpoint {
    /// Starts to connect our region `region` to the peer's. The descriptor is checked before it is passed to UCX.
    pub(super) fn connect(
        worker: &Rc<Worker>,
        region: usize,
        peer: &ShardDescriptor,
    ) -> Result<Self, TransportError> {
        if peer.base.checked_add(peer.bytes).is_none() {
            return Err(TransportError::Descriptor("the region exceeds the address space".into()));
        }
        let open =
            |kind, blob| blob::open(kind, peer.base, peer.bytes, blob).map_err(TransportError::Descriptor);
        let address = open(Kind::Address, &peer.worker_address)?;
        let key = open(Kind::Key, &peer.rkey)?;
        let ucx = worker.context.ucx;
        let cell = Rc::as_ptr(&worker.failure).cast_mut().cast();
        // SAFETY: the worker is live. `blob::open` has checked length and checksum, so the address is as UCX packed it. The worker owns
        // the cell and keeps it until it is destroyed.
        let handle = unsafe { ucx.ep_create(worker.handle, address, on_error, cell) }?;
        // SAFETY: the endpoint was made above. `blob::open` has checked length and checksum, so the key is as UCX packed it.
        let rkey = unsafe { ucx.ep_rkey_unpack(handle, key) }.inspect_err(|_| {
            // SAFETY: the endpoint was made above, is closed only here and not used again.
            let closing = unsafe { ucx.ep_close(handle, true) };
            drop(closing.map(|posted| Request::new(worker, "ucp_ep_close_nbx", posted)));
        })?;
        let (peer_base, peer_bytes) = (peer.base, peer.bytes);
        Ok(Self { worker: Rc::clone(worker), region, handle: Some(handle), rkey, peer_base, peer_bytes })
    }

    fn live(&self) -> Result<ucp_ep_h, TransportError> {
        self.handle.ok_or(TransportError::Closed)
    }

    /// Checks both ranges and posts the put. A put of 0 bytes completes without UCX.
    pub(super) fn put(&self, local: u64, remote: u64, bytes: u64) -> Result<Request, TransportError> {
        let context = &self.worker.context;
        let out_of = |offset, region_bytes| TransportError::OutOfRegion { offset, bytes, region_bytes };
        let Registered { memh, region, .. } = &context.regions[self.region];
        let source = region.address(local, bytes).ok_or_else(|| out_of(local, region.bytes() as u64))?;
        if remote.checked_add(bytes).is_none_or(|end| end > self.peer_bytes) {
            return Err(out_of(remote, self.peer_bytes));
        }
        if bytes == 0 {
            return Ok(Request::new(&self.worker, "ucp_put_nbx", Posted::Done));
        }
        let ep = self.live()?;
        // SAFETY: the endpoint and the rkey are live. `address` has checked that the source lies in the registered region, which
        // outlives the worker and so the operation. The remote range was checked against the region that the rkey was packed for.
        let posted = unsafe {
            context.ucx.put(
                ep,
                source.as_ptr().cast(),
                bytes as usize,
                self.peer_base + remote,
                self.rkey,
                *memh,
                memory_type(region),
            )
        }?;
        Ok(Request::new(&self.worker, "ucp_put_nbx", posted))
    }

    pub(super) fn flush(&self) -> Result<Request, TransportError> {
        let ep = self.live()?;
        // SAFETY: `live` returns only an endpoint that was not closed.
        let posted = unsafe { self.worker.context.ucx.ep_flush(ep) }?;
        Ok(Request::new(&self.worker, "ucp_ep_flush_nbx", posted))
    }

    /// Starts to close the endpoint. If `force` is true, operations in flight fail soon after that. `None` if the endpoint was closed before, or if
    /// UCX refused the call.
    pub(super) fn close(&mut self, force: bool) -> Option<Request> {
        let ep = self.handle.take()?;
        // SAFETY: the endpoint is live. Its handle was taken, so it is not used again.
        let posted = unsafe { self.worker.context.ucx.ep_close(ep, force) }.ok()?;
        Some(Request::new(&self.worker, "ucp_ep_close_nbx", posted))
    }

    /// The transport and device that carry the bytes, for example `tcp/lo`.
    pub(super) fn lane(&self) -> String {
        // SAFETY: the endpoint is live as long as `handle` is set.
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
        // SAFETY: this struct owns the rkey and releases it only here. `worker` is a field, so the worker still exists.
        unsafe { (self.worker.context.ucx.raw.ucp_rkey_destroy)(self.rkey) }
    }
}
