//! The result layer: statuses become [`CallError`], request pointers become [`Posted`]. The functions stay unsafe.
//!
//! Each function here wraps one UCX function. Its caller must obey the rules of that UCX function (`ucp/api/ucp.h`): handles are live,
//! belong to this library, and are used by one thread.

use crate::load::Ucx;
use crate::raw::*;
use std::ffi::{CStr, c_void};
use std::mem::zeroed;
use std::os::fd::RawFd;
use std::ptr::{self, NonNull};

/// A UCX function returned an error status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed: {text} ({status})")]
pub struct CallError {
    /// The function's name in C.
    pub call: &'static str,
    /// The status that it returned.
    pub status: ucs_status_t,
    /// The library's text for the status.
    pub text: String,
}

/// At least the number of lanes that an endpoint can have (`UCP_MAX_LANES` is 64 in UCX 1.21 and 1.22).
const LANES_MAX: usize = 128;

/// The result of a non-blocking call.
#[derive(Debug)]
pub enum Posted {
    /// The operation is complete.
    Done,
    /// The operation is in progress. The request must be released with `ucp_request_free`.
    Pending(NonNull<c_void>),
}

impl Ucx {
    /// Converts a status into a result.
    pub fn check(&self, call: &'static str, status: ucs_status_t) -> Result<(), CallError> {
        if status == UCS_OK { Ok(()) } else { Err(self.error(call, status)) }
    }

    /// The error for a status that `call` returned.
    pub fn error(&self, call: &'static str, status: ucs_status_t) -> CallError {
        // SAFETY: `ucs_status_string` accepts any value and returns a terminated string that is never freed.
        let text = unsafe { CStr::from_ptr((self.raw.ucs_status_string)(status)) };
        CallError { call, status, text: text.to_string_lossy().into_owned() }
    }

    /// Interprets a request pointer, like `UCS_PTR_IS_ERR` and `UCS_PTR_IS_PTR` in C.
    pub fn posted(&self, call: &'static str, request: ucs_status_ptr_t) -> Result<Posted, CallError> {
        let value = request as isize;
        if (UCS_ERR_LAST as isize..0).contains(&value) {
            return Err(self.error(call, value as ucs_status_t));
        }
        Ok(NonNull::new(request).map_or(Posted::Done, Posted::Pending))
    }

    /// Reads the configuration from the environment (`ucp_config_read`), applies `settings` and calls `ucp_init_version`.
    ///
    /// # Safety
    /// The caller first releases everything that was made from the context, and then the context itself with `ucp_cleanup`.
    pub unsafe fn init(
        &self,
        features: u64,
        settings: &[(&CStr, &CStr)],
    ) -> Result<ucp_context_h, CallError> {
        let mut config = ptr::null_mut();
        // SAFETY: null for prefix and file name selects the defaults; the call sets `config` on success.
        self.check("ucp_config_read", unsafe {
            (self.raw.ucp_config_read)(ptr::null(), ptr::null(), &mut config)
        })?;
        // SAFETY: all-zero is a valid value of this plain C struct; UCX reads only the fields in the mask.
        let mut params: ucp_params_t = unsafe { zeroed() };
        params.field_mask = UCP_PARAM_FIELD_FEATURES;
        params.features = features;
        let mut context = ptr::null_mut();
        let result = settings
            .iter()
            .try_for_each(|(name, value)| {
                // SAFETY: `config` was read above; `CStr` terminates both strings, and UCX copies them.
                self.check("ucp_config_modify", unsafe {
                    (self.raw.ucp_config_modify)(config, name.as_ptr(), value.as_ptr())
                })
            })
            .and_then(|()| {
                // SAFETY: `params` and `config` are valid during the call; it sets `context` on success.
                self.check("ucp_init_version", unsafe {
                    (self.raw.ucp_init_version)(UCP_API_MAJOR, UCP_API_MINOR, &params, config, &mut context)
                })
            });
        // SAFETY: `config` was read above and is released only here; the context has a copy.
        unsafe { (self.raw.ucp_config_release)(config) };
        result.map(|()| context)
    }

    /// `ucp_mem_map` of existing memory.
    ///
    /// # Safety
    /// The memory stays mapped until `ucp_mem_unmap`.
    pub unsafe fn mem_map(
        &self,
        context: ucp_context_h,
        address: *mut c_void,
        length: usize,
        memory_type: ucs_memory_type_t,
    ) -> Result<ucp_mem_h, CallError> {
        // SAFETY: all-zero is a valid value of this plain C struct; UCX reads only the fields in the mask.
        let mut params: ucp_mem_map_params_t = unsafe { zeroed() };
        params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS
            | UCP_MEM_MAP_PARAM_FIELD_LENGTH
            | UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE;
        params.address = address;
        params.length = length;
        params.memory_type = memory_type;
        let mut memh = ptr::null_mut();
        // SAFETY: the caller promises a live handle and mapped memory; the call sets `memh` on success.
        self.check("ucp_mem_map", unsafe { (self.raw.ucp_mem_map)(context, &params, &mut memh) })?;
        Ok(memh)
    }

    /// `ucp_rkey_pack`. The result is a copy of the library's buffer.
    ///
    /// # Safety
    /// As for the UCX function.
    pub unsafe fn rkey_pack(&self, context: ucp_context_h, memh: ucp_mem_h) -> Result<Vec<u8>, CallError> {
        let (mut buffer, mut bytes) = (ptr::null_mut(), 0);
        // SAFETY: the caller promises live handles; the call sets `buffer` and `bytes` on success.
        self.check("ucp_rkey_pack", unsafe {
            (self.raw.ucp_rkey_pack)(context, memh, &mut buffer, &mut bytes)
        })?;
        // SAFETY: the call succeeded, so `bytes` bytes at `buffer` are readable.
        let copy = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), bytes) }.to_vec();
        // SAFETY: `buffer` was packed above and is released only here.
        unsafe { (self.raw.ucp_rkey_buffer_release)(buffer) };
        Ok(copy)
    }

    /// `ucp_worker_create`, for use by one thread.
    ///
    /// # Safety
    /// As for the UCX function.
    pub unsafe fn worker_create(&self, context: ucp_context_h) -> Result<ucp_worker_h, CallError> {
        // SAFETY: all-zero is a valid value of this plain C struct; UCX reads only the fields in the mask.
        let mut params: ucp_worker_params_t = unsafe { zeroed() };
        params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
        params.thread_mode = UCS_THREAD_MODE_SINGLE;
        let mut worker = ptr::null_mut();
        // SAFETY: the caller promises a live handle; the call sets `worker` on success.
        self.check("ucp_worker_create", unsafe {
            (self.raw.ucp_worker_create)(context, &params, &mut worker)
        })?;
        Ok(worker)
    }

    /// `ucp_worker_get_efd`.
    ///
    /// # Safety
    /// As for the UCX function. The worker owns the descriptor.
    pub unsafe fn worker_efd(&self, worker: ucp_worker_h) -> Result<RawFd, CallError> {
        let mut fd = -1;
        // SAFETY: the caller promises a live handle; the call sets `fd` on success.
        self.check("ucp_worker_get_efd", unsafe { (self.raw.ucp_worker_get_efd)(worker, &mut fd) })?;
        Ok(fd)
    }

    /// `ucp_worker_get_address`. The result is a copy of the library's buffer.
    ///
    /// # Safety
    /// As for the UCX function.
    pub unsafe fn worker_address(&self, worker: ucp_worker_h) -> Result<Vec<u8>, CallError> {
        let (mut address, mut bytes) = (ptr::null_mut(), 0);
        // SAFETY: the caller promises a live handle; the call sets `address` and `bytes` on success.
        self.check("ucp_worker_get_address", unsafe {
            (self.raw.ucp_worker_get_address)(worker, &mut address, &mut bytes)
        })?;
        // SAFETY: the call succeeded, so `bytes` bytes at `address` are readable.
        let copy = unsafe { std::slice::from_raw_parts(address.cast::<u8>(), bytes) }.to_vec();
        // SAFETY: `address` was returned above and is released only here.
        unsafe { (self.raw.ucp_worker_release_address)(worker, address) };
        Ok(copy)
    }

    /// `ucp_ep_create` to a worker address, with peer error handling.
    ///
    /// # Safety
    /// `address` is a complete address that UCX packed. `on_error` and `arg` stay valid until the worker is destroyed.
    pub unsafe fn ep_create(
        &self,
        worker: ucp_worker_h,
        address: &[u8],
        on_error: ucp_err_handler_cb_t,
        arg: *mut c_void,
    ) -> Result<ucp_ep_h, CallError> {
        // SAFETY: all-zero is a valid value of this plain C struct (a null callback is `None`); UCX reads only the fields in the mask.
        let mut params: ucp_ep_params_t = unsafe { zeroed() };
        params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS
            | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE
            | UCP_EP_PARAM_FIELD_ERR_HANDLER;
        params.address = address.as_ptr().cast();
        params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
        params.err_handler = ucp_err_handler_t { cb: Some(on_error), arg };
        let mut ep = ptr::null_mut();
        // SAFETY: the caller promises a live handle and a complete address, which UCX copies; the call sets `ep` on success.
        self.check("ucp_ep_create", unsafe { (self.raw.ucp_ep_create)(worker, &params, &mut ep) })?;
        Ok(ep)
    }

    /// `ucp_ep_rkey_unpack`.
    ///
    /// # Safety
    /// `rkey` is a complete key that UCX packed.
    pub unsafe fn ep_rkey_unpack(&self, ep: ucp_ep_h, rkey: &[u8]) -> Result<ucp_rkey_h, CallError> {
        let mut handle = ptr::null_mut();
        // SAFETY: the caller promises a live handle and a complete key; the call sets `handle` on success.
        self.check("ucp_ep_rkey_unpack", unsafe {
            (self.raw.ucp_ep_rkey_unpack)(ep, rkey.as_ptr().cast(), &mut handle)
        })?;
        Ok(handle)
    }

    /// `ucp_ep_query` for all transports and devices that the endpoint uses, in UCX's order.
    ///
    /// # Safety
    /// As for the UCX function.
    pub unsafe fn ep_transports(&self, ep: ucp_ep_h) -> Result<Vec<(String, String)>, CallError> {
        let mut entries =
            [ucp_transport_entry_t { transport_name: ptr::null(), device_name: ptr::null() }; LANES_MAX];
        // SAFETY: all-zero is a valid value of this plain C struct; UCX reads only the fields in the mask.
        let mut attr: ucp_ep_attr_t = unsafe { zeroed() };
        attr.field_mask = UCP_EP_ATTR_FIELD_TRANSPORTS;
        attr.transports.entries = entries.as_mut_ptr();
        attr.transports.num_entries = entries.len() as u32;
        attr.transports.entry_size = size_of::<ucp_transport_entry_t>();
        // SAFETY: the caller promises a live handle; the call sets at most `num_entries` entries.
        self.check("ucp_ep_query", unsafe { (self.raw.ucp_ep_query)(ep, &mut attr) })?;
        let filled = (attr.transports.num_entries as usize).min(entries.len());
        let text = |name: *const std::ffi::c_char| match name.is_null() {
            true => String::new(),
            // SAFETY: UCX sets terminated strings, which stay valid as long as the endpoint.
            false => unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(),
        };
        Ok(entries[..filled].iter().map(|e| (text(e.transport_name), text(e.device_name))).collect())
    }

    /// `ucp_ep_close_nbx`: with `force`, operations in flight fail; otherwise the endpoint is flushed first.
    ///
    /// # Safety
    /// The endpoint is not used again, even if the call fails.
    pub unsafe fn ep_close(&self, ep: ucp_ep_h, force: bool) -> Result<Posted, CallError> {
        // SAFETY: all-zero is a valid value of this plain C struct; UCX reads only the fields in the mask.
        let mut param: ucp_request_param_t = unsafe { zeroed() };
        param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
        param.flags = if force { UCP_EP_CLOSE_FLAG_FORCE } else { 0 };
        // SAFETY: the caller promises a live handle and does not use it again.
        self.posted("ucp_ep_close_nbx", unsafe { (self.raw.ucp_ep_close_nbx)(ep, &param) })
    }

    /// `ucp_ep_flush_nbx`.
    ///
    /// # Safety
    /// As for the UCX function.
    pub unsafe fn ep_flush(&self, ep: ucp_ep_h) -> Result<Posted, CallError> {
        // SAFETY: all-zero is a valid value of this plain C struct; an empty mask selects the defaults.
        let param: ucp_request_param_t = unsafe { zeroed() };
        // SAFETY: the caller promises a live handle.
        self.posted("ucp_ep_flush_nbx", unsafe { (self.raw.ucp_ep_flush_nbx)(ep, &param) })
    }

    /// `ucp_put_nbx` from registered memory.
    ///
    /// # Safety
    /// `source..source + bytes` lies in the memory of `memh` and stays mapped until the request is complete or the worker is destroyed.
    /// The remote range lies in the memory of `rkey`.
    #[allow(clippy::too_many_arguments)] // the UCX function has the same arguments
    pub unsafe fn put(
        &self,
        ep: ucp_ep_h,
        source: *const c_void,
        bytes: usize,
        remote_addr: u64,
        rkey: ucp_rkey_h,
        memh: ucp_mem_h,
        memory_type: ucs_memory_type_t,
    ) -> Result<Posted, CallError> {
        // SAFETY: all-zero is a valid value of this plain C struct; UCX reads only the fields in the mask.
        let mut param: ucp_request_param_t = unsafe { zeroed() };
        param.op_attr_mask = UCP_OP_ATTR_FIELD_MEMH | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
        param.memh = memh;
        param.memory_type = memory_type;
        // SAFETY: the caller promises live handles and valid ranges.
        self.posted("ucp_put_nbx", unsafe {
            (self.raw.ucp_put_nbx)(ep, source, bytes, remote_addr, rkey, &param)
        })
    }
}
