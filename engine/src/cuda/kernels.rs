//! The C ABI of the kernels: the static library that `build.rs` builds from `kernels/*.cu`.

use std::ffi::c_void;

use super::device::{Result, Stream};
use crate::error::CudaError;
use crate::gpu::arguments::{
    AddRmsNorm, CountTokens, DecodeRun, DequantiseRows, Embed, ExpandKv, Fa3Plan, Fa3Run, Fill, Fp8Products,
    PageContents, QuantiseRows, RopeAppend, RoundRows, RowProducts, SampleRows, ScoreRows, SiluMul, TakeRows,
};

/// A function that submits a kernel to a stream.
pub(super) type Call<Arguments> = unsafe extern "C" fn(*const Arguments, *mut c_void) -> i32;

/// Declares such functions, each after the type of its arguments.
macro_rules! calls {
    ($($arguments:ident: $($function:ident),+;)+) => {
        unsafe extern "C" {
            $($(pub(super) fn $function(arguments: *const $arguments, stream: *mut c_void) -> i32;)+)+
        }
    };
}

calls! {
    Embed: baton_embed;
    AddRmsNorm: baton_add_rms_norm;
    RopeAppend: baton_rope_append;
    SiluMul: baton_silu_mul;
    TakeRows: baton_take_rows;
    Fill: baton_fill;
    SampleRows: baton_sample_rows;
    CountTokens: baton_count_tokens;
    ScoreRows: baton_score_rows;
    RowProducts: baton_row_products;
    QuantiseRows: baton_quantise_rows;
    DequantiseRows: baton_dequantise_rows;
    RoundRows: baton_round_rows;
    Fp8Products: baton_fp8_products;
    PageContents: baton_page_contents;
    ExpandKv: baton_expand_kv;
    DecodeRun: baton_decode_run;
    // FlashInfer's kernels have one instance per head size.
    Fa3Plan: baton_fa3_plan_64, baton_fa3_plan_128;
    Fa3Run: baton_fa3_run_64, baton_fa3_run_128;
}

unsafe extern "C" {
    pub(super) safe fn baton_vocabulary_max() -> i32;
    pub(super) safe fn baton_page_totals_bytes() -> u64;
    pub(super) safe fn baton_pages_max() -> i32;
    pub(super) safe fn baton_row_products_max(is_fp8: i32) -> i32;
    pub(super) safe fn baton_fp8_products_max(outputs: i32) -> i32;
}

/// FlashInfer's kernels for one head size.
#[derive(Clone, Copy)]
pub(super) struct Flash {
    pub(super) fa3_plan: Call<Fa3Plan>,
    pub(super) fa3_run: Call<Fa3Run>,
}

impl Flash {
    /// The kernels for a head size. `None` if there are none.
    pub(super) fn of(head_dim: usize) -> Option<Self> {
        match head_dim {
            64 => Some(Self { fa3_plan: baton_fa3_plan_64, fa3_run: baton_fa3_run_64 }),
            128 => Some(Self { fa3_plan: baton_fa3_plan_128, fa3_run: baton_fa3_run_128 }),
            _ => None,
        }
    }
}

/// Submits a kernel to the stream. `name` is its name in errors.
///
/// # Safety
/// When the kernel runs, the pointers in the arguments are valid for the sizes in the arguments, and indices in the memory
/// are within bounds. Host memory is valid until the call returns, or until the stream has finished if the kernel writes it.
pub(super) unsafe fn launch<Arguments>(
    name: &'static str,
    call: Call<Arguments>,
    arguments: &Arguments,
    stream: &Stream,
) -> Result<()> {
    // SAFETY: the caller's contract. The call reads the arguments before it returns.
    launched(name, unsafe { call(arguments, stream.raw()) })
}

/// Converts the status of a kernel call to a result.
fn launched(call: &'static str, status: i32) -> Result<()> {
    match status {
        0 => Ok(()),
        -1 => Err(CudaError::without_status(call, "it threw a C++ exception")),
        status => Err(CudaError::of_status(call, status)),
    }
}
