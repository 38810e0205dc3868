//! The compute kernels, one table for each instruction set. The engine selects a table when it opens.
//!
//! Every kernel is written once over [`Lanes`](lanes::Lanes), vectors of 16 floats, and compiled for AVX-512, AVX2 and
//! plain Rust. All three perform the same IEEE operations in the same order, including fused multiply-adds, so their results
//! are bit-identical. The order of operations of an output depends only on that output's own inputs, not on the number of
//! other rows or columns.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod lanes;
mod matrix;
mod pointwise;
mod scalar;
#[cfg(test)]
mod tests;

/// The outputs in a panel of weights. A product computes one panel.
pub(super) const PANEL: usize = 32;
/// Inputs that share a scale in Q4_1 and Q8_0.
pub(super) const BLOCK: usize = 32;
/// Maximum number of rows of [`Kernels::product_q4`] and `product_q8`.
pub(super) const FUSED_ROWS: usize = 4;

/// Bytes of one Q4_1 block of a panel: 32 f16 scales, 32 f16 minimums, and 32 bytes for each pair of inputs. The even input
/// is in the low nibble and the odd input in the high nibble.
pub(super) const Q4_BYTES: usize = 4 * PANEL + BLOCK * PANEL / 2;
/// Bytes of one Q8_0 block of a panel: 32 f16 scales, and 32 signed bytes for each input.
pub(super) const Q8_BYTES: usize = 2 * PANEL + BLOCK * PANEL;

/// `y[r][c] (+)= Σ_k x[r][k] · w[k][c]` for 32 columns. `k` is ascending. Each output has one accumulator.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    /// Rows of `x` and `y`.
    pub(super) rows: usize,
    /// Terms of each sum.
    pub(super) depth: usize,
    /// `rows × depth` floats. Rows are `x_stride` floats apart.
    pub(super) x: *const f32,
    pub(super) x_stride: usize,
    /// `depth × 32` floats. Rows are `w_stride` floats apart.
    pub(super) w: *const f32,
    pub(super) w_stride: usize,
    /// `rows × 32` floats. Rows are `y_stride` floats apart.
    pub(super) y: *mut f32,
    pub(super) y_stride: usize,
    /// Adds to the contents of `y`.
    pub(super) accumulate: bool,
}

/// `y[r][c] = Σ_k x[r][k] · w[k][c]` for the 32 columns of one quantised panel of `blocks` blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct QuantisedProduct {
    /// At most [`FUSED_ROWS`].
    pub(super) rows: usize,
    pub(super) blocks: usize,
    pub(super) panel: *const u8,
    pub(super) x: *const f32,
    pub(super) x_stride: usize,
    pub(super) y: *mut f32,
    pub(super) y_stride: usize,
}

/// Bytes that [`prefetch`] requests.
pub(super) const LINE: usize = 64;

/// Prefetches the cache line at this address into the L2 cache, which can wait for more lines at once than the L1 cache. The address may be invalid.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "only x86-64 has the instruction"))]
pub(super) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 machine has the instruction, and it never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(address.cast());
    }
}

/// The kernels of one instruction set.
///
/// # Safety of the functions
/// The machine must support the instruction set. [`Kernels::choose`] and [`Kernels::all`] ensure this. Every pointer must be
/// valid for the sizes in the argument's documentation. No other thread may write the inputs, or access the outputs.
#[derive(Debug)]
pub(super) struct Kernels {
    /// The name for the log: `avx512`, `avx2` or `scalar`.
    pub(super) name: &'static str,
    /// [`Product`].
    pub(super) product: unsafe fn(&Product),
    /// [`QuantisedProduct`] of Q4_1 panels. Bit-identical to `unpack_q4` followed by `product`.
    pub(super) product_q4: unsafe fn(&QuantisedProduct),
    /// The same for Q8_0.
    pub(super) product_q8: unsafe fn(&QuantisedProduct),
    /// Writes `blocks` Q4_1 blocks of a panel as `[blocks * 32][32]` floats.
    pub(super) unpack_q4: unsafe fn(panel: *const u8, blocks: usize, out: *mut f32),
    /// The same for Q8_0.
    pub(super) unpack_q8: unsafe fn(panel: *const u8, blocks: usize, out: *mut f32),
    /// Writes 32 rows of `depth` floats as `[depth][32]`.
    pub(super) transpose: unsafe fn(rows: &[*const f32; PANEL], depth: usize, out: *mut f32),
    /// Replaces the first `valid` scores of `row` by `exp((score - max) · scale)` and the rest by zero. Returns the sum.
    /// `valid` is at least 1.
    pub(super) exponentials: unsafe fn(row: &mut [f32], valid: usize, scale: f32) -> f32,
    /// `gate[i] = gate[i] / (1 + exp(-gate[i])) · up[i]`.
    pub(super) swiglu: unsafe fn(gate: &mut [f32], up: &[f32]),
    /// RMSNorm: `out = x / sqrt(mean(x²) + epsilon) · weight`. All lengths are equal.
    pub(super) rms_norm: unsafe fn(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]),
}

impl Kernels {
    /// The widest table that this machine supports.
    pub(super) fn choose() -> &'static Self {
        Self::all()[0]
    }

    /// All tables that this machine supports, the widest first. Never empty.
    pub(super) fn all() -> Vec<&'static Self> {
        let mut tables = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            if avx2 && is_x86_feature_detected!("avx512f") {
                tables.push(&avx512::KERNELS);
            }
            if avx2 {
                tables.push(&avx2::KERNELS);
            }
        }
        tables.push(&scalar::KERNELS);
        tables
    }
}

/// Compiles the generic kernels for one implementation of `Lanes`, with the given target features, into a table.
macro_rules! kernels {
    ($name:literal, $lanes:ty $(, $feature:meta)?) => {
        pub(super) static KERNELS: Kernels = {
            $(#[$feature])?
            unsafe fn product(job: &Product) {
                // SAFETY: the caller's contract, that of `Kernels`.
                unsafe { matrix::product::<$lanes>(job) }
            }
            $(#[$feature])?
            unsafe fn product_q4(job: &QuantisedProduct) {
                // SAFETY: the caller's contract, that of `Kernels`.
                unsafe { matrix::product_quantised::<$lanes, matrix::Q4>(job) }
            }
            $(#[$feature])?
            unsafe fn product_q8(job: &QuantisedProduct) {
                // SAFETY: the caller's contract, that of `Kernels`.
                unsafe { matrix::product_quantised::<$lanes, matrix::Q8>(job) }
            }
            $(#[$feature])?
            unsafe fn unpack_q4(panel: *const u8, blocks: usize, out: *mut f32) {
                // SAFETY: the caller's contract, that of `Kernels`.
                unsafe { matrix::unpack::<$lanes, matrix::Q4>(panel, blocks, out) }
            }
            $(#[$feature])?
            unsafe fn unpack_q8(panel: *const u8, blocks: usize, out: *mut f32) {
                // SAFETY: the caller's contract, that of `Kernels`.
                unsafe { matrix::unpack::<$lanes, matrix::Q8>(panel, blocks, out) }
            }
            $(#[$feature])?
            unsafe fn transpose(rows: &[*const f32; PANEL], depth: usize, out: *mut f32) {
                // SAFETY: the caller's contract, that of `Kernels`.
                unsafe { matrix::transpose::<$lanes>(rows, depth, out) }
            }
            $(#[$feature])?
            unsafe fn exponentials(row: &mut [f32], valid: usize, scale: f32) -> f32 {
                pointwise::exponentials(row, valid, scale)
            }
            $(#[$feature])?
            unsafe fn swiglu(gate: &mut [f32], up: &[f32]) {
                pointwise::swiglu(gate, up);
            }
            $(#[$feature])?
            unsafe fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
                pointwise::rms_norm(x, weight, epsilon, out);
            }
            Kernels {
                name: $name,
                product,
                product_q4,
                product_q8,
                unpack_q4,
                unpack_q8,
                transpose,
                exponentials,
                swiglu,
                rms_norm,
            }
        };
    };
}
use kernels;
