//! GEMMs with the weights through cublasLt, in bf16 or in FP8 with scales of rows and outputs. They are planned when the engine opens.
//!
//! Only algorithms without split-K are used. They sum a row's products in the same order for any number of rows and any
//! tile, so a row's result does not depend on the other rows, to the bit. For few rows, where split-K would be faster, our
//! own kernels are used instead.
//!
//! [`rows`] defines the row counts that have plans. The number of plans depends only on the model and on the largest step.

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;

use cudarc::cublaslt::sys::cublasLtMatmulDescAttributes_t::{
    CUBLASLT_MATMUL_DESC_A_SCALE_POINTER as WEIGHTS_SCALES,
    CUBLASLT_MATMUL_DESC_B_SCALE_POINTER as ROWS_SCALES,
};
use cudarc::cublaslt::{result, sys};
use half::bf16;

use super::device::{Buffer, CudaDevice, Named, Result, Stream};
use crate::gpu::rows;

/// The workspace size that cublasLt recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Maximum number of padding rows of a GEMM.
pub(super) const ROWS_SPARE: usize = rows::SPARE;
/// The algorithm id of cublasLt's kernels for Hopper. The older kernels take seven times as long.
const HOPPER_KERNELS: i32 = 66;

/// Maximum number of algorithms that cublasLt is asked for. The first one is not always for Hopper.
const CANDIDATES: usize = 16;

/// cublasLt's kernels for Hopper need the outputs to be a multiple of this. Its other kernels sum in another order.
const OUTPUTS_ALIGN: usize = 8;

/// The number format of a GEMM's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Output {
    Bf16,
    F32,
}

impl Output {
    /// The size of a number.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Bf16 => size_of::<bf16>(),
            Self::F32 => size_of::<f32>(),
        }
    }

    /// The address of `count` numbers of this format from number `first` of a buffer.
    ///
    /// # Panics
    /// If the buffer is too short.
    pub(super) fn numbers(self, buffer: &Buffer, first: usize, count: usize) -> *mut c_void {
        match self {
            Self::Bf16 => buffer.numbers::<bf16>(first, count).cast(),
            Self::F32 => buffer.numbers::<f32>(first, count).cast(),
        }
    }
}

/// The number format of a GEMM's weights and rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Input {
    Bf16,
    /// E4m3 codes.
    Fp8,
}

/// The sizes of a weight matrix, and the formats of its numbers and products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Matrix {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) input: Input,
    pub(super) output: Output,
}

/// The rows or the weights of a GEMM.
#[derive(Clone, Copy)]
pub(super) struct Factor {
    pub(super) numbers: *const c_void,
    /// In FP8 a scale for each row, or for each output. Else null.
    pub(super) scales: *const f32,
}

/// An owned object of cublasLt, and the function that destroys it.
struct CublasHandle<T: Copy> {
    raw: T,
    destroy: unsafe fn(T) -> std::result::Result<(), result::CublasError>,
}

impl<T: Copy> Drop for CublasHandle<T> {
    fn drop(&mut self) {
        // SAFETY: the library created the object once, and this value is its only owner.
        let _ = unsafe { (self.destroy)(self.raw) };
    }
}

/// The description of a product with one matrix and row count.
struct Operands {
    rows: usize,
    description: Description,
    weights: CublasHandle<sys::cublasLtMatrixLayout_t>,
    x: CublasHandle<sys::cublasLtMatrixLayout_t>,
    y: CublasHandle<sys::cublasLtMatrixLayout_t>,
}

impl Operands {
    /// The plan with an algorithm.
    fn with(self, algorithm: sys::cublasLtMatmulAlgo_t) -> Prepared {
        Prepared { of: self, algorithm }
    }
}

/// The plan of one matrix and row count.
struct Prepared {
    of: Operands,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Prepared {
    fn is_for_hopper(&self) -> bool {
        is_for_hopper(&self.algorithm)
    }

    /// Sets an attribute of the description.
    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        set(&self.of.description, attribute, value)
    }
}

/// The description of a GEMM.
type Description = CublasHandle<sys::cublasLtMatmulDesc_t>;

/// Sets an attribute of a description, which has the type `T`.
fn set<T>(
    description: &Description,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<()> {
    // SAFETY: the handle is live, and the library copies the value.
    unsafe {
        result::set_matmul_desc_attribute(
            description.raw,
            attribute,
            ptr::from_ref(value).cast(),
            size_of::<T>(),
        )
    }
    .named("cublasLtMatmulDescSetAttribute")
}

/// Describes `weightsᵀ · x`. In FP8 with scales of outputs and rows, whose addresses each call sets. Before, they are `scales`.
fn describe(input: Input, scales: *const f32) -> Result<Description> {
    use sys::cublasLtMatmulDescAttributes_t::{
        CUBLASLT_MATMUL_DESC_A_SCALE_MODE as WEIGHTS_MODE, CUBLASLT_MATMUL_DESC_B_SCALE_MODE as ROWS_MODE,
        CUBLASLT_MATMUL_DESC_TRANSA as TRANSPOSE_WEIGHTS,
    };
    use sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F as FOR_EACH;
    use sys::cudaDataType_t::CUDA_R_32F as F32;
    let raw = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, F32)
        .named("cublasLtMatmulDescCreate")?;
    let description = CublasHandle { raw, destroy: result::destroy_matmul_desc };
    set(&description, TRANSPOSE_WEIGHTS, &1i32)?;
    if input == Input::Fp8 {
        set(&description, WEIGHTS_MODE, &FOR_EACH)?;
        set(&description, ROWS_MODE, &FOR_EACH)?;
        set(&description, WEIGHTS_SCALES, &scales)?;
        set(&description, ROWS_SCALES, &scales)?;
    }
    Ok(description)
}

/// The library's handle, its workspace and the plans. Only one stream at a time may use them.
pub(super) struct Gemm {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer,
    plans: HashMap<(Matrix, usize), Prepared>,
}

// SAFETY: the library accepts its handles from any thread, and one thread at a time owns this value.
unsafe impl Send for Gemm {}

impl Gemm {
    /// Plans GEMMs. `matrices` has each matrix with its row counts: more than the first number, up to the second.
    pub(super) fn new(device: &Arc<CudaDevice>, matrices: &[(Matrix, usize, usize)]) -> Result<Self> {
        let workspace = Buffer::new(device, WORKSPACE_BYTES)?;
        let handle = result::create_handle().named("cublasLtCreate")?;
        let mut gemm = Self { handle, workspace, plans: HashMap::new() };
        for (matrix, few, max) in matrices {
            if matrix.outputs.is_multiple_of(OUTPUTS_ALIGN) {
                gemm.plan(*matrix, *few, *max);
            }
        }
        Ok(gemm)
    }

    fn plan(&mut self, matrix: Matrix, few: usize, max: usize) {
        let (mut slow, mut refused) = (Vec::new(), None);
        for rows in rows::all_planned(few, max) {
            let mut prepare =
                |rows, most| self.prepare(matrix, rows, most).map_err(|error| refused = Some(error)).ok();
            // A first suggestion for slightly more rows is faster than a later suggestion.
            let first = rows::choose(rows, |rows| prepare(rows, 1), Prepared::is_for_hopper);
            let plan = first.filter(Prepared::is_for_hopper).or_else(|| prepare(rows, CANDIDATES));
            let Some(plan) = plan else {
                slow.push(rows);
                continue;
            };
            if !plan.is_for_hopper() {
                slow.push(rows);
            }
            self.plans.insert((matrix, rows), plan);
        }
        if !slow.is_empty() {
            let Matrix { outputs, inputs, .. } = matrix;
            let refused = refused.map(|error| error.to_string());
            tracing::warn!(
                outputs,
                inputs,
                row_counts = ?slow,
                refused,
                "cublasLt has no Hopper kernel for these row counts: steps are slow, and results may depend on the batch"
            );
        }
    }

    /// The number of rows that a product of `rows` rows computes, padding rows included. `None` if there is no plan.
    pub(super) fn rows(&self, matrix: Matrix, rows: usize) -> Option<usize> {
        self.plans.get(&(matrix, rows::planned(rows))).map(|plan| plan.of.rows)
    }

    /// `y[rows][outputs] = x[rows][inputs] · weights[outputs][inputs]ᵀ`, with f32 sums. Also computes up to [`ROWS_SPARE`] padding rows.
    ///
    /// # Panics
    /// If there is no [plan](Self::rows), or if `y` is too short.
    ///
    /// # Safety
    /// `weights` and `x` are in the matrix's format. `x` has as many [rows](Self::rows) as the product computes.
    pub(super) unsafe fn multiply(
        &self,
        stream: &Stream,
        x: Factor,
        weights: Factor,
        y: &Buffer,
        rows: usize,
        matrix: Matrix,
    ) -> Result<()> {
        let plan = &self.plans[&(matrix, rows::planned(rows))];
        let y = matrix.output.numbers(y, 0, plan.of.rows * matrix.outputs);
        // SAFETY: the caller's contract, and `y` has the plan's size, as just checked.
        unsafe { self.run(plan, x, weights, y, stream) }
    }

    /// Submits a product with a plan.
    ///
    /// # Safety
    /// `weights`, `x` and `y` are in the plan's formats and have its sizes.
    unsafe fn run(
        &self,
        plan: &Prepared,
        x: Factor,
        weights: Factor,
        y: *mut c_void,
        stream: &Stream,
    ) -> Result<()> {
        let (one, zero) = (1f32, 0f32);
        if !weights.scales.is_null() {
            plan.set(WEIGHTS_SCALES, &weights.scales)?;
            plan.set(ROWS_SCALES, &x.scales)?;
        }
        // SAFETY: the matrices have the sizes of the plan, by the caller's contract, and so has the workspace. GEMMs of one stream use
        // the workspace one after the other. In host pointer mode the call reads the scalars before it returns.
        unsafe {
            result::matmul(
                self.handle,
                plan.of.description.raw,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                weights.numbers,
                plan.of.weights.raw,
                x.numbers,
                plan.of.x.raw,
                y.cast_const(),
                plan.of.y.raw,
                y,
                plan.of.y.raw,
                &raw const plan.algorithm,
                self.workspace.numbers::<u8>(0, WORKSPACE_BYTES).cast(),
                WORKSPACE_BYTES,
                stream.handle().cast(),
            )
        }
        .named("cublasLtMatmul")
    }

    /// Prepares a plan with the first algorithm for Hopper among at most `most` suggestions, or with the first suggestion.
    fn prepare(&self, matrix: Matrix, rows: usize, most: usize) -> Result<Prepared> {
        let suggestions = self.suggestions(matrix, rows, most)?;
        let best = suggestions.iter().find(|algorithm| is_for_hopper(algorithm)).unwrap_or(&suggestions[0]);
        Ok(self.operands(matrix, rows)?.with(*best))
    }

    /// Describes a product. cublasLt is column-major: `y` is `outputs × rows`, and the weights are `inputs × outputs`, transposed.
    fn operands(&self, Matrix { outputs, inputs, input, output }: Matrix, rows: usize) -> Result<Operands> {
        use sys::cudaDataType_t::{CUDA_R_8F_E4M3 as FP8, CUDA_R_16BF as BF16, CUDA_R_32F as F32};
        let layout = |kind, rows: usize, columns: usize| {
            let raw = result::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64)
                .named("cublasLtMatrixLayoutCreate")?;
            Ok(CublasHandle { raw, destroy: result::destroy_matrix_layout })
        };
        let kind = if input == Input::Fp8 { FP8 } else { BF16 };
        Ok(Operands {
            rows,
            description: describe(input, self.workspace.numbers::<f32>(0, 1))?,
            weights: layout(kind, inputs, outputs)?,
            x: layout(kind, inputs, rows)?,
            y: layout(if output == Output::F32 { F32 } else { BF16 }, outputs, rows)?,
        })
    }

    /// Between one and `most` algorithms that cublasLt suggests, the best first. `most` is at most [`CANDIDATES`].
    fn suggestions(
        &self,
        matrix: Matrix,
        rows: usize,
        most: usize,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        use sys::cublasLtMatmulPreferenceAttributes_t::{
            CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as WORKSPACE,
            CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK as REDUCTIONS,
        };
        let Operands { description, weights, x, y, .. } = self.operands(matrix, rows)?;
        let preference = result::create_matmul_pref().named("cublasLtMatmulPreferenceCreate")?;
        let preference = CublasHandle { raw: preference, destroy: result::destroy_matmul_pref };
        let (max, whole) = (WORKSPACE_BYTES, 0u32);
        // SAFETY: the attributes are a u64 and a u32, and all handles are live.
        unsafe {
            let (description, preference) = (description.raw, preference.raw);
            result::set_matmul_pref_attribute(preference, WORKSPACE, (&raw const max).cast(), 8)
                .and_then(|()| {
                    result::set_matmul_pref_attribute(preference, REDUCTIONS, (&raw const whole).cast(), 4)
                })
                .named("cublasLtMatmulPreferenceSetAttribute")?;
            candidates(self.handle, description, [&weights, &x, &y], preference, most)
                .named("cublasLtMatmulAlgoGetHeuristic")
        }
    }
}

/// Between one and `most` algorithms that cublasLt suggests, the best first. `most` is at most [`CANDIDATES`].
///
/// # Safety
/// All handles are live.
unsafe fn candidates(
    handle: sys::cublasLtHandle_t,
    description: sys::cublasLtMatmulDesc_t,
    [weights, x, y]: [&CublasHandle<sys::cublasLtMatrixLayout_t>; 3],
    preference: sys::cublasLtMatmulPreference_t,
    most: usize,
) -> std::result::Result<Vec<sys::cublasLtMatmulAlgo_t>, result::CublasError> {
    let mut found = [const { MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit() }; CANDIDATES];
    let mut count = 0;
    // SAFETY: the array has room for the results, and the caller's contract covers the handles.
    let status = unsafe {
        let (weights, x, y) = (weights.raw, x.raw, y.raw);
        let (most, to) = (most.min(CANDIDATES) as i32, found[0].as_mut_ptr());
        sys::cublasLtMatmulAlgoGetHeuristic(
            handle,
            description,
            weights,
            x,
            y,
            y,
            preference,
            most,
            to,
            &raw mut count,
        )
    };
    status.result()?;
    // SAFETY: the library has written the first `count` results.
    let results = found[..count as usize].iter().map(|result| unsafe { result.assume_init_ref() });
    let usable = results.filter(|result| result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
    let algorithms: Vec<_> = usable.map(|result| result.algo).collect();
    if algorithms.is_empty() {
        return Err(result::CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
    }
    Ok(algorithms)
}

fn is_for_hopper(algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
    use sys::cublasLtMatmulAlgoConfigAttributes_t::CUBLASLT_ALGO_CONFIG_ID as ID;
    let (mut id, mut written) = (0i32, 0);
    // SAFETY: the attribute is an i32, and the algorithm is from the library.
    let status = unsafe {
        let to = (&raw mut id).cast();
        sys::cublasLtMatmulAlgoConfigGetAttribute(algorithm, ID, to, 4, &raw mut written)
    };
    status.result().is_ok() && id == HOPPER_KERNELS
}

impl Drop for Gemm {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: created once, in `new`.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}
