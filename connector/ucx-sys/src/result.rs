//! Thin result layer: statuses become [`CallError`], request pointers become [`Posted`]. Nothing here is safer than C.
//!
//! Each function is unsafe under the rules of the call it is named after (`ucp/api/ucp.h`): handles are live, belong
//! to this library, and are used by one thread.

use crate::load::Ucx;
use crate::raw::*;
use std::ffi::{CStr, c_void};
use std::mem::zeroed;
use std::os::fd::RawFd;
use std::ptr::{self, NonNull};

/// A call of UCX returned an error status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed: {text} ({status})")]
pub struct CallError {
    /// The function, as in C.
    pub call: &'static str,
    /// The status it returned.
    pub status: ucs_status_t,
    /// The library's text for the status.
    pub text: String,
}

/// What became of a non-blocking call.
#[derive(Debug)]
pub enum Posted {
    /// It finished at once.
    Done,
    /// It goes on; the request is released with `ucp_request_free`.
    Pending(NonNull<c_void>),
}

impl Ucx {
    /// Turns a status into a result.
    pub fn check(&self, call: &'static str, status: ucs_status_t) -> Result<(), CallError> {
        if status == UCS_OK { Ok(()) } else { Err(self.error(call, status)) }
    }

    /// The error that a status of `call` stands for.
    pub fn error(&self, call: &'static str, status: ucs_status_t) -> CallError {
        // SAFETY: takes any value; the text is static, or a static buffer that is always terminated.
        let text = unsafe { CStr::from_ptr((self.raw.ucs_status_string)(status)) };
        CallError { call, status, text: text.to_string_lossy().into_owned() }
    }

    /// `UCS_PTR_IS_ERR` and friends.
    pub fn posted(&self, call: &'static str, request: ucs_status_ptr_t) -> Result<Posted, CallError> {
        let value = request as isize;
        if (UCS_ERR_LAST as isize..0).contains(&value) {
            return Err(self.error(call, value as ucs_status_t));
        }
        Ok(NonNull::new(request).map_or(Posted::Done, Posted::Pending))
    }

    /// `ucp_config_read` from the process environment, `settings` on top of it, `ucp_init_version`.
    ///
    /// # Safety
    /// The context is released with `ucp_cleanup` after everything made from it.
    pub unsafe fn init(
        &self,
        features: u64,
        settings: &[(&CStr, &CStr)],
    ) -> Result<ucp_context_h, CallError> {
        let mut config = ptr::null_mut();
        // SAFETY: null prefix and file name mean the defaults; `config` is filled on success.
        self.check("ucp_config_read", unsafe {
            (self.raw.ucp_config_read)(ptr::null(), ptr::null(), &mut config)
        })?;
        // SAFETY: all-zero is a valid value of this plain C struct; the mask says which fields count.
        let mut params: ucp_params_t = unsafe { zeroed() };
        params.field_mask = UCP_PARAM_FIELD_FEATURES;
        params.features = features;
        let mut context = ptr::null_mut();
        let result = settings
            .iter()
            .try_for_each(|(name, value)| {
                // SAFETY: the configuration is live and both strings are terminated; UCX copies them.
                self.check("ucp_config_modify", unsafe {
                    (self.raw.ucp_config_modify)(config, name.as_ptr(), value.as_ptr())
                })
            })
            .and_then(|()| {
                // SAFETY: parameters and configuration are valid for the call; `context` is filled on success.
                self.check("ucp_init_version", unsafe {
                    (self.raw.ucp_init_version)(UCP_API_MAJOR, UCP_API_MINOR, &params, config, &mut context)
                })
            });
        // SAFETY: read above, released once; the context keeps its own copy.
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
        // SAFETY: all-zero is a valid value of this plain C struct; the mask says which fields count.
        let mut params: ucp_mem_map_params_t = unsafe { zeroed() };
        params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS
            | UCP_MEM_MAP_PARAM_FIELD_LENGTH
            | UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE;
        params.address = address;
        params.length = length;
        params.memory_type = memory_type;
        let mut memh = ptr::null_mut();
        // SAFETY: the caller's handle and memory; `memh` is filled on success.
        self.check("ucp_mem_map", unsafe { (self.raw.ucp_mem_map)(context, &params, &mut memh) })?;
        Ok(memh)
    }

    /// `ucp_rkey_pack`, copied out of the library's buffer.
    ///
    /// # Safety
    /// As for the call.
    pub unsafe fn rkey_pack(&self, context: ucp_context_h, memh: ucp_mem_h) -> Result<Vec<u8>, CallError> {
        let (mut buffer, mut bytes) = (ptr::null_mut(), 0);
        // SAFETY: the caller's handles; buffer and length are filled on success.
        self.check("ucp_rkey_pack", unsafe {
            (self.raw.ucp_rkey_pack)(context, memh, &mut buffer, &mut bytes)
        })?;
        // SAFETY: the call reported `bytes` readable bytes at `buffer`.
        let copy = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), bytes) }.to_vec();
        // SAFETY: packed above, released once.
        unsafe { (self.raw.ucp_rkey_buffer_release)(buffer) };
        Ok(copy)
    }

    /// `ucp_worker_create` for one thread.
    ///
    /// # Safety
    /// As for the call.
    pub unsafe fn worker_create(&self, context: ucp_context_h) -> Result<ucp_worker_h, CallError> {
        // SAFETY: all-zero is a valid value of this plain C struct; the mask says which fields count.
        let mut params: ucp_worker_params_t = unsafe { zeroed() };
        params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
        params.thread_mode = UCS_THREAD_MODE_SINGLE;
        let mut worker = ptr::null_mut();
        // SAFETY: the caller's handle; `worker` is filled on success.
        self.check("ucp_worker_create", unsafe {
            (self.raw.ucp_worker_create)(context, &params, &mut worker)
        })?;
        Ok(worker)
    }

    /// `ucp_worker_get_efd`.
    ///
    /// # Safety
    /// As for the call; the descriptor belongs to the worker.
    pub unsafe fn worker_efd(&self, worker: ucp_worker_h) -> Result<RawFd, CallError> {
        let mut fd = -1;
        // SAFETY: the caller's handle; `fd` is filled on success.
        self.check("ucp_worker_get_efd", unsafe { (self.raw.ucp_worker_get_efd)(worker, &mut fd) })?;
        Ok(fd)
    }

    /// `ucp_worker_get_address`, copied out of the library's buffer.
    ///
    /// # Safety
    /// As for the call.
    pub unsafe fn worker_address(&self, worker: ucp_worker_h) -> Result<Vec<u8>, CallError> {
        let (mut address, mut bytes) = (ptr::null_mut(), 0);
        // SAFETY: the caller's handle; address and length are filled on success.
        self.check("ucp_worker_get_address", unsafe {
            (self.raw.ucp_worker_get_address)(worker, &mut address, &mut bytes)
        })?;
        // SAFETY: the call reported `bytes` readable bytes at `address`.
        let copy = unsafe { std::slice::from_raw_parts(address.cast::<u8>(), bytes) }.to_vec();
        // SAFETY: got above, released once.
        unsafe { (self.raw.ucp_worker_release_address)(worker, address) };
        Ok(copy)
    }

    /// `ucp_ep_create` to a worker address, with peer error handling.
    ///
    /// # Safety
    /// `address` is a whole address packed by UCX; `on_error` and `arg` stay valid until the worker is destroyed.
    pub unsafe fn ep_create(
        &self,
        worker: ucp_worker_h,
        address: &[u8],
        on_error: ucp_err_handler_cb_t,
        arg: *mut c_void,
    ) -> Result<ucp_ep_h, CallError> {
        // SAFETY: all-zero is a valid value of this plain C struct (null callback is `None`); the mask counts.
        let mut params: ucp_ep_params_t = unsafe { zeroed() };
        params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS
            | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE
            | UCP_EP_PARAM_FIELD_ERR_HANDLER;
        params.address = address.as_ptr().cast();
        params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
        params.err_handler = ucp_err_handler_t { cb: Some(on_error), arg };
        let mut ep = ptr::null_mut();
        // SAFETY: the caller's handle and address, which UCX copies; `ep` is filled on success.
        self.check("ucp_ep_create", unsafe { (self.raw.ucp_ep_create)(worker, &params, &mut ep) })?;
        Ok(ep)
    }

    /// `ucp_ep_rkey_unpack`.
    ///
    /// # Safety
    /// `rkey` is a whole key packed by UCX.
    pub unsafe fn ep_rkey_unpack(&self, ep: ucp_ep_h, rkey: &[u8]) -> Result<ucp_rkey_h, CallError> {
        let mut handle = ptr::null_mut();
        // SAFETY: the caller's handle and key; `handle` is filled on success.
        self.check("ucp_ep_rkey_unpack", unsafe {
            (self.raw.ucp_ep_rkey_unpack)(ep, rkey.as_ptr().cast(), &mut handle)
        })?;
        Ok(handle)
    }

    /// `ucp_ep_query` for the transports and devices the endpoint uses, at most 8, in UCX's order.
    ///
    /// # Safety
    /// As for the call.
    pub unsafe fn ep_transports(&self, ep: ucp_ep_h) -> Result<Vec<(String, String)>, CallError> {
        let mut entries =
            [ucp_transport_entry_t { transport_name: ptr::null(), device_name: ptr::null() }; 8];
        // SAFETY: all-zero is a valid value of this plain C struct; the mask says which fields count.
        let mut attr: ucp_ep_attr_t = unsafe { zeroed() };
        attr.field_mask = UCP_EP_ATTR_FIELD_TRANSPORTS;
        attr.transports.entries = entries.as_mut_ptr();
        attr.transports.num_entries = entries.len() as u32;
        attr.transports.entry_size = size_of::<ucp_transport_entry_t>();
        // SAFETY: the caller's handle; at most `num_entries` entries are filled.
        self.check("ucp_ep_query", unsafe { (self.raw.ucp_ep_query)(ep, &mut attr) })?;
        let filled = (attr.transports.num_entries as usize).min(entries.len());
        let text = |name: *const std::ffi::c_char| match name.is_null() {
            true => String::new(),
            // SAFETY: UCX fills terminated strings that live as long as the endpoint's transports.
            false => unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(),
        };
        Ok(entries[..filled].iter().map(|e| (text(e.transport_name), text(e.device_name))).collect())
    }

    /// `ucp_ep_close_nbx`, by force (what is in flight fails) or after flushing.
    ///
    /// # Safety
    /// The endpoint is not used again, whatever the result.
    pub unsafe fn ep_close(&self, ep: ucp_ep_h, force: bool) -> Result<Posted, CallError> {
        // SAFETY: all-zero is a valid value of this plain C struct; the mask says which fields count.
        let mut param: ucp_request_param_t = unsafe { zeroed() };
        param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
        param.flags = if force { UCP_EP_CLOSE_FLAG_FORCE } else { 0 };
        // SAFETY: the caller's handle.
        self.posted("ucp_ep_close_nbx", unsafe { (self.raw.ucp_ep_close_nbx)(ep, &param) })
    }

    /// `ucp_ep_flush_nbx`.
    ///
    /// # Safety
    /// As for the call.
    pub unsafe fn ep_flush(&self, ep: ucp_ep_h) -> Result<Posted, CallError> {
        // SAFETY: all-zero is a valid value of this plain C struct and asks for nothing special.
        let param: ucp_request_param_t = unsafe { zeroed() };
        // SAFETY: the caller's handle.
        self.posted("ucp_ep_flush_nbx", unsafe { (self.raw.ucp_ep_flush_nbx)(ep, &param) })
    }

    /// `ucp_put_nbx` from registered memory.
    ///
    /// # Safety
    /// `source..source + bytes` lies in `memh` and stays valid until the request is done or the worker destroyed;
    /// the remote range lies in the memory of `rkey`.
    #[allow(clippy::too_many_arguments)] // the call's own
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
        // SAFETY: all-zero is a valid value of this plain C struct; the mask says which fields count.
        let mut param: ucp_request_param_t = unsafe { zeroed() };
        param.op_attr_mask = UCP_OP_ATTR_FIELD_MEMH | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
        param.memh = memh;
        param.memory_type = memory_type;
        // SAFETY: the caller's handles and ranges.
        self.posted("ucp_put_nbx", unsafe {
            (self.raw.ucp_put_nbx)(ep, source, bytes, remote_addr, rkey, &param)
        })
    }
}
