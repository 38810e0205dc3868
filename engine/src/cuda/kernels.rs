//! The C ABI of the static library that `build.rs` makes from `kernels/*.cu`.
//!
//! All pointers are the device's unless a name says host; each call submits work to a stream and returns.

use std::ffi::c_void;

use super::device::Result;
use crate::error::CudaError;

type Ptr = *mut c_void;

unsafe extern "C" {
    pub(super) fn baton_embed(
        tokens: Ptr,
        chosen: Ptr,
        table: Ptr,
        out: Ptr,
        rows: i32,
        hidden: i32,
        stream: Ptr,
    ) -> i32;
    pub(super) fn baton_add_rms_norm(
        x: Ptr,
        delta: Ptr,
        weight: Ptr,
        out: Ptr,
        rows: i32,
        hidden: i32,
        epsilon: f32,
        stream: Ptr,
    ) -> i32;
    pub(super) fn baton_rope_append(
        qkv: Ptr,
        q_out: Ptr,
        pool: Ptr,
        positions: Ptr,
        places: Ptr,
        inverse_frequencies: Ptr,
        rows: i32,
        heads: i32,
        kv_heads: i32,
        head_dim: i32,
        page_tokens: i32,
        page_stride: i64,
        layer_offset: i64,
        stream: Ptr,
    ) -> i32;
    pub(super) fn baton_silu_mul(gate_up: Ptr, out: Ptr, rows: i32, feed: i32, stream: Ptr) -> i32;
    pub(super) fn baton_take_rows(x: Ptr, which: Ptr, out: Ptr, count: i32, hidden: i32, stream: Ptr) -> i32;
    pub(super) safe fn baton_vocabulary_most() -> i32;
    pub(super) fn baton_sample(
        logits: Ptr,
        settings: Ptr,
        out: Ptr,
        rows: i32,
        vocabulary: i32,
        stream: Ptr,
    ) -> i32;
    pub(super) fn baton_fill(out: Ptr, count: u64, seed: u64, scale: f32, stream: Ptr) -> i32;
    pub(super) safe fn baton_page_totals_bytes() -> u64;
    pub(super) safe fn baton_pages_most() -> i32;
    pub(super) fn baton_page_contents(
        base: Ptr,
        page_bytes: u64,
        host_pages: *const u32,
        count: i32,
        totals: Ptr,
        host_out: Ptr,
        stream: Ptr,
    ) -> i32;
    pub(super) safe fn baton_row_products_most() -> i32;
    pub(super) fn baton_row_products(
        x: Ptr,
        weights: Ptr,
        y: Ptr,
        wide: i32,
        rows: i32,
        outputs: i32,
        inputs: i32,
        stream: Ptr,
    ) -> i32;
}

/// FlashInfer's kernels have one instance a head size: their prototypes, and the type that these share.
macro_rules! by_head_size {
    ($shared:ident: $of_64:ident, $of_128:ident, $arguments:tt) => {
        by_head_size!(type $shared $arguments);
        unsafe extern "C" {
            by_head_size!(fn $of_64 $arguments);
            by_head_size!(fn $of_128 $arguments);
        }
    };
    (type $shared:ident ($($name:ident: $kind:ty),+ $(,)?)) => {
        pub(super) type $shared = unsafe extern "C" fn($($name: $kind),+) -> i32;
    };
    (fn $function:ident ($($name:ident: $kind:ty),+ $(,)?)) => {
        fn $function($($name: $kind),+) -> i32;
    };
}

by_head_size!(
    Fa3Plan: baton_fa3_plan_64, baton_fa3_plan_128,
    (
        int_workspace: Ptr,
        host_pinned: Ptr,
        int_bytes: usize,
        host_plan: *mut i64,
        host_qo_indptr: *mut i32,
        host_kv_indptr: *mut i32,
        host_kv_len: *mut i32,
        rows: u32,
        batch: u32,
        heads: u32,
        kv_heads: u32,
        page_tokens: u32,
        stream: Ptr,
    )
);
by_head_size!(
    Fa3Run: baton_fa3_run_64, baton_fa3_run_128,
    (
        int_workspace: Ptr,
        host_plan: *const i64,
        q: Ptr,
        k_pool: Ptr,
        v_pool: Ptr,
        page_stride: i64,
        page_tokens: i32,
        heads: i32,
        kv_heads: i32,
        rows: i64,
        kv_indices: Ptr,
        out: Ptr,
        scale: f32,
        stream: Ptr,
    )
);
by_head_size!(
    Fa2Run: baton_fa2_run_64, baton_fa2_run_128,
    (
        partial_out: Ptr,
        partial_sums: Ptr,
        pieces: u32,
        piece_row: Ptr,
        piece_place: Ptr,
        piece_tokens: Ptr,
        piece_is: Ptr,
        zeros: Ptr,
        row_pieces: Ptr,
        q: Ptr,
        k_pool: Ptr,
        v_pool: Ptr,
        page_stride: i64,
        page_tokens: u32,
        heads: u32,
        kv_heads: u32,
        rows: u32,
        qo_indptr: Ptr,
        kv_indptr: Ptr,
        kv_indices: Ptr,
        last_page_len: Ptr,
        out: Ptr,
        scale: f32,
        stream: Ptr,
    )
);

/// FlashInfer's kernels for one head size.
#[derive(Clone, Copy)]
pub(super) struct Flash {
    pub(super) fa3_plan: Fa3Plan,
    pub(super) fa3_run: Fa3Run,
    pub(super) fa2_run: Fa2Run,
}

impl Flash {
    /// `None` if there are none for heads of so many numbers.
    pub(super) fn of(head_dim: usize) -> Option<Self> {
        match head_dim {
            64 => Some(Self {
                fa3_plan: baton_fa3_plan_64,
                fa3_run: baton_fa3_run_64,
                fa2_run: baton_fa2_run_64,
            }),
            128 => Some(Self {
                fa3_plan: baton_fa3_plan_128,
                fa3_run: baton_fa3_run_128,
                fa2_run: baton_fa2_run_128,
            }),
            _ => None,
        }
    }
}

/// Turns what a kernel's call returned into a result.
pub(super) fn launched(call: &'static str, status: i32) -> Result<()> {
    match status {
        0 => Ok(()),
        -1 => Err(CudaError::without_status(call, "it threw an exception")),
        status => Err(CudaError::of_status(call, status)),
    }
}
