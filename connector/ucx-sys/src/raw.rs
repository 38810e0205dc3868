//! Types, constants and the table of functions, named as in C.
//!
//! `ucp/api/ucp.h` of UCX 1.22 documents their meaning, units and threading.
#![allow(non_camel_case_types, missing_docs)] // UCX's names, documented in its headers

mod layout;

use std::ffi::{c_char, c_int, c_uint, c_void};

/// A *packed* enum in C: one byte, not an `int`. The upper bits of the return register are undefined.
pub type ucs_status_t = i8;
/// NULL (complete), a negative status as a pointer, or a pointer to a request.
pub type ucs_status_ptr_t = *mut c_void;
pub type ucs_memory_type_t = c_uint;

macro_rules! opaque {
    ($($name:ident => $handle:ident;)*) => {$(
        #[repr(C)]
        pub struct $name { _opaque: [u8; 0] }
        pub type $handle = *mut $name;
    )*};
}
opaque! {
    ucp_context => ucp_context_h;
    ucp_worker => ucp_worker_h;
    ucp_ep => ucp_ep_h;
    ucp_mem => ucp_mem_h;
    ucp_rkey => ucp_rkey_h;
    ucp_config => ucp_config_p;
    ucp_address => ucp_address_p;
}

pub const UCS_OK: ucs_status_t = 0;
pub const UCS_INPROGRESS: ucs_status_t = 1;
pub const UCS_ERR_UNREACHABLE: ucs_status_t = -6;
pub const UCS_ERR_BUFFER_TOO_SMALL: ucs_status_t = -11;
pub const UCS_ERR_BUSY: ucs_status_t = -15;
pub const UCS_ERR_LAST: ucs_status_t = -100;

pub const UCP_API_MAJOR: c_uint = 1;
/// The oldest minor version accepted. The definitions below are the same in 1.21 and in 1.22.
pub const UCP_API_MINOR: c_uint = 21;

pub const UCP_PARAM_FIELD_FEATURES: u64 = 1 << 0;
pub const UCP_FEATURE_RMA: u64 = 1 << 1;
pub const UCP_FEATURE_WAKEUP: u64 = 1 << 4;

pub const UCP_WORKER_PARAM_FIELD_THREAD_MODE: u64 = 1 << 0;
pub const UCS_THREAD_MODE_SINGLE: c_uint = 0;

pub const UCP_EP_PARAM_FIELD_REMOTE_ADDRESS: u64 = 1 << 0;
pub const UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE: u64 = 1 << 1;
pub const UCP_EP_PARAM_FIELD_ERR_HANDLER: u64 = 1 << 2;
pub const UCP_ERR_HANDLING_MODE_PEER: c_uint = 1;
pub const UCP_EP_ATTR_FIELD_TRANSPORTS: u64 = 1 << 3;
pub const UCP_EP_CLOSE_FLAG_FORCE: u32 = 1 << 0;

pub const UCP_MEM_MAP_PARAM_FIELD_ADDRESS: u64 = 1 << 0;
pub const UCP_MEM_MAP_PARAM_FIELD_LENGTH: u64 = 1 << 1;
pub const UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE: u64 = 1 << 4;
pub const UCS_MEMORY_TYPE_HOST: ucs_memory_type_t = 0;
pub const UCS_MEMORY_TYPE_CUDA: ucs_memory_type_t = 1;

pub const UCP_OP_ATTR_FIELD_FLAGS: u32 = 1 << 4;
pub const UCP_OP_ATTR_FIELD_MEMORY_TYPE: u32 = 1 << 6;
pub const UCP_OP_ATTR_FIELD_MEMH: u32 = 1 << 8;

pub type ucp_err_handler_cb_t = unsafe extern "C" fn(arg: *mut c_void, ep: ucp_ep_h, status: ucs_status_t);

#[repr(C)]
pub struct ucp_params_t {
    pub field_mask: u64,
    pub features: u64,
    pub request_size: usize,
    pub request_init: *mut c_void,
    pub request_cleanup: *mut c_void,
    pub tag_sender_mask: u64,
    pub mt_workers_shared: c_int,
    pub estimated_num_eps: usize,
    pub estimated_num_ppn: usize,
    pub name: *const c_char,
    pub node_local_id: usize,
}

#[repr(C)]
pub struct ucs_cpu_set_t {
    pub ucs_bits: [u64; 16],
}

#[repr(C)]
pub struct ucp_worker_params_t {
    pub field_mask: u64,
    pub thread_mode: c_uint,
    pub cpu_mask: ucs_cpu_set_t,
    pub events: c_uint,
    pub user_data: *mut c_void,
    pub event_fd: c_int,
    pub flags: u64,
    pub name: *const c_char,
    pub am_alignment: usize,
    pub client_id: u64,
}

#[repr(C)]
pub struct ucp_err_handler_t {
    pub cb: Option<ucp_err_handler_cb_t>,
    pub arg: *mut c_void,
}

#[repr(C)]
pub struct ucs_sock_addr_t {
    pub addr: *const c_void,
    pub addrlen: u32,
}

#[repr(C)]
pub struct ucp_ep_params_t {
    pub field_mask: u64,
    pub address: *const ucp_address,
    pub err_mode: c_uint,
    pub err_handler: ucp_err_handler_t,
    pub user_data: *mut c_void,
    pub flags: c_uint,
    pub sockaddr: ucs_sock_addr_t,
    pub conn_request: *mut c_void,
    pub name: *const c_char,
    pub local_sockaddr: ucs_sock_addr_t,
}

#[repr(C)]
pub struct ucp_mem_map_params_t {
    pub field_mask: u64,
    pub address: *mut c_void,
    pub length: usize,
    pub flags: c_uint,
    pub prot: c_uint,
    pub memory_type: ucs_memory_type_t,
    pub exported_memh_buffer: *const c_void,
}

#[repr(C)]
pub struct ucp_request_param_t {
    pub op_attr_mask: u32,
    pub flags: u32,
    pub request: *mut c_void,
    /// A union of callbacks in C. Never set, because completion is polled.
    pub cb: *mut c_void,
    pub datatype: u64,
    pub user_data: *mut c_void,
    pub reply_buffer: *mut c_void,
    pub memory_type: ucs_memory_type_t,
    /// A union of pointers in C.
    pub recv_info: *mut c_void,
    pub memh: ucp_mem_h,
    /// Fields after `memh` in UCX 1.22. We never set their mask bits.
    pub tail: [u64; 3],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ucp_transport_entry_t {
    pub transport_name: *const c_char,
    pub device_name: *const c_char,
}

#[repr(C)]
pub struct ucp_transports_t {
    pub entries: *mut ucp_transport_entry_t,
    pub num_entries: c_uint,
    pub entry_size: usize,
}

#[repr(C)]
pub struct ucp_ep_attr_t {
    pub field_mask: u64,
    pub name: [c_char; 32],
    /// `struct sockaddr_storage` in C.
    pub local_sockaddr: [u64; 16],
    /// `struct sockaddr_storage` in C.
    pub remote_sockaddr: [u64; 16],
    pub transports: ucp_transports_t,
    pub user_data: *mut c_void,
}

macro_rules! functions {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?;)*) => {
        /// The functions that Baton uses. Each call is `unsafe` and must obey the rules in UCX's headers.
        pub struct Functions {
            $(pub $name: unsafe extern "C" fn($($arg: $ty),*) $(-> $ret)?,)*
        }

        impl Functions {
            /// Resolves all functions. The error is the name of a missing one.
            ///
            /// # Safety
            /// `library` is UCX 1.21 or newer, so the functions have the types above. It is never unloaded.
            pub(crate) unsafe fn resolve(library: &libloading::os::unix::Library) -> Result<Self, &'static str> {
                Ok(Self {
                    // SAFETY: the caller promises the library's version, and the types are those of its headers.
                    $($name: *unsafe { library.get(stringify!($name)) }.map_err(|_| stringify!($name))?,)*
                })
            }
        }
    };
}
functions! {
    fn ucp_get_version_string() -> *const c_char;
    fn ucs_status_string(status: ucs_status_t) -> *const c_char;
    fn ucp_config_read(env_prefix: *const c_char, filename: *const c_char, config: *mut ucp_config_p) -> ucs_status_t;
    fn ucp_config_modify(config: ucp_config_p, name: *const c_char, value: *const c_char) -> ucs_status_t;
    fn ucp_config_release(config: ucp_config_p);
    fn ucp_init_version(
        api_major_version: c_uint,
        api_minor_version: c_uint,
        params: *const ucp_params_t,
        config: ucp_config_p,
        context: *mut ucp_context_h,
    ) -> ucs_status_t;
    fn ucp_cleanup(context: ucp_context_h);
    fn ucp_worker_create(
        context: ucp_context_h,
        params: *const ucp_worker_params_t,
        worker: *mut ucp_worker_h,
    ) -> ucs_status_t;
    fn ucp_worker_destroy(worker: ucp_worker_h);
    fn ucp_worker_progress(worker: ucp_worker_h) -> c_uint;
    fn ucp_worker_arm(worker: ucp_worker_h) -> ucs_status_t;
    fn ucp_worker_signal(worker: ucp_worker_h) -> ucs_status_t;
    fn ucp_worker_get_efd(worker: ucp_worker_h, fd: *mut c_int) -> ucs_status_t;
    fn ucp_worker_get_address(
        worker: ucp_worker_h,
        address: *mut ucp_address_p,
        address_length: *mut usize,
    ) -> ucs_status_t;
    fn ucp_worker_release_address(worker: ucp_worker_h, address: ucp_address_p);
    fn ucp_mem_map(
        context: ucp_context_h,
        params: *const ucp_mem_map_params_t,
        memh: *mut ucp_mem_h,
    ) -> ucs_status_t;
    fn ucp_mem_unmap(context: ucp_context_h, memh: ucp_mem_h) -> ucs_status_t;
    fn ucp_rkey_pack(
        context: ucp_context_h,
        memh: ucp_mem_h,
        rkey_buffer: *mut *mut c_void,
        size: *mut usize,
    ) -> ucs_status_t;
    fn ucp_rkey_buffer_release(rkey_buffer: *mut c_void);
    fn ucp_ep_create(worker: ucp_worker_h, params: *const ucp_ep_params_t, ep: *mut ucp_ep_h) -> ucs_status_t;
    fn ucp_ep_query(ep: ucp_ep_h, attr: *mut ucp_ep_attr_t) -> ucs_status_t;
    fn ucp_ep_close_nbx(ep: ucp_ep_h, param: *const ucp_request_param_t) -> ucs_status_ptr_t;
    fn ucp_ep_flush_nbx(ep: ucp_ep_h, param: *const ucp_request_param_t) -> ucs_status_ptr_t;
    fn ucp_ep_rkey_unpack(ep: ucp_ep_h, rkey_buffer: *const c_void, rkey: *mut ucp_rkey_h) -> ucs_status_t;
    fn ucp_rkey_destroy(rkey: ucp_rkey_h);
    fn ucp_put_nbx(
        ep: ucp_ep_h,
        buffer: *const c_void,
        count: usize,
        remote_addr: u64,
        rkey: ucp_rkey_h,
        param: *const ucp_request_param_t,
    ) -> ucs_status_ptr_t;
    fn ucp_request_check_status(request: *mut c_void) -> ucs_status_t;
    fn ucp_request_cancel(worker: ucp_worker_h, request: *mut c_void);
    fn ucp_request_free(request: *mut c_void);
}
