//! Compile-time checks of sizes and offsets. The numbers are those of `cc` for the headers of UCX 1.22 on x86-64 Linux.

use super::*;
use std::mem::{align_of, offset_of, size_of};

macro_rules! layout {
    ($($ty:ident: $size:literal { $($field:ident @ $offset:literal),* $(,)? })*) => {$(
        const _: () = {
            assert!(size_of::<$ty>() == $size);
            assert!(align_of::<$ty>() == 8);
            $(assert!(offset_of!($ty, $field) == $offset);)*
        };
    )*};
}

const _: () = assert!(size_of::<ucs_status_t>() == 1);

layout! {
    ucp_params_t: 88 {
        field_mask @ 0, features @ 8, request_size @ 16, request_init @ 24, request_cleanup @ 32,
        tag_sender_mask @ 40, mt_workers_shared @ 48, estimated_num_eps @ 56, estimated_num_ppn @ 64, name @ 72,
    }
    ucs_cpu_set_t: 128 { ucs_bits @ 0 }
    ucp_worker_params_t: 200 {
        field_mask @ 0, thread_mode @ 8, cpu_mask @ 16, events @ 144, user_data @ 152, event_fd @ 160,
        flags @ 168, name @ 176, am_alignment @ 184, client_id @ 192,
    }
    ucp_err_handler_t: 16 { cb @ 0, arg @ 8 }
    ucs_sock_addr_t: 16 { addr @ 0, addrlen @ 8 }
    ucp_ep_params_t: 104 {
        field_mask @ 0, address @ 8, err_mode @ 16, err_handler @ 24, user_data @ 40, flags @ 48,
        sockaddr @ 56, conn_request @ 72, name @ 80, local_sockaddr @ 88,
    }
    ucp_mem_map_params_t: 48 {
        field_mask @ 0, address @ 8, length @ 16, flags @ 24, prot @ 28, memory_type @ 32,
        exported_memh_buffer @ 40,
    }
    ucp_request_param_t: 96 {
        op_attr_mask @ 0, flags @ 4, request @ 8, cb @ 16, datatype @ 24, user_data @ 32, reply_buffer @ 40,
        memory_type @ 48, recv_info @ 56, memh @ 64,
    }
    ucp_transport_entry_t: 16 { transport_name @ 0, device_name @ 8 }
    ucp_transports_t: 24 { entries @ 0, num_entries @ 8, entry_size @ 16 }
    ucp_ep_attr_t: 328 {
        field_mask @ 0, name @ 8, local_sockaddr @ 40, remote_sockaddr @ 168, transports @ 296, user_data @ 320,
    }
}
