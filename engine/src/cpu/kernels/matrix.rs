//! Matrix products of 32 columns, generic over [`Lanes`].

use super::lanes::Lanes;
use super::{BLOCK, PANEL, Product, Q4_BYTES, Q8_BYTES, QuantisedProduct};

/// The format of a quantised block of a panel.
pub(super) trait Format {
    /// Bytes of a block.
    const BYTES: usize;

    /// Passes the block's 32 weights of every input `k` to `to`, with `k` ascending.
    ///
    /// # Safety
    /// The contracts of [`Lanes`] and `to`. `block` points to [`BYTES`](Self::BYTES) readable bytes.
    unsafe fn each<L: Lanes>(block: *const u8, to: &mut impl Consumer<L>);
}

/// Consumes unpacked weights. This is a trait and not a closure: a closure that the compiler does not inline is compiled
/// without the instruction set, and then calls each vector operation as a function. That made products of four rows twenty
/// times slower.
pub(super) trait Consumer<L: Lanes> {
    /// Consumes the 32 weights of input `k`.
    ///
    /// # Safety
    /// The contract of [`Lanes`]. The implementation documents its memory accesses.
    unsafe fn take(&mut self, k: usize, w: [L::V; 2]);
}

pub(super) struct Q4;

impl Format for Q4 {
    const BYTES: usize = Q4_BYTES;

    #[inline(always)]
    unsafe fn each<L: Lanes>(block: *const u8, to: &mut impl Consumer<L>) {
        // SAFETY: all reads are inside the block; the rest is the caller's contract. A nibble times an f16 is exact in
        // f32, so the fused form rounds like the format's `d · q + m`.
        unsafe {
            let scale = [L::load_f16(block), L::load_f16(block.add(PANEL))];
            let min = [L::load_f16(block.add(2 * PANEL)), L::load_f16(block.add(3 * PANEL))];
            for pair in 0..BLOCK / 2 {
                let bytes = block.add(4 * PANEL + pair * PANEL);
                let (even0, odd0) = L::load_nibbles(bytes);
                let (even1, odd1) = L::load_nibbles(bytes.add(PANEL / 2));
                to.take(2 * pair, [L::fma(even0, scale[0], min[0]), L::fma(even1, scale[1], min[1])]);
                to.take(2 * pair + 1, [L::fma(odd0, scale[0], min[0]), L::fma(odd1, scale[1], min[1])]);
            }
        }
    }
}

pub(super) struct Q8;

impl Format for Q8 {
    const BYTES: usize = Q8_BYTES;

    #[inline(always)]
    unsafe fn each<L: Lanes>(block: *const u8, to: &mut impl Consumer<L>) {
        // SAFETY: all reads are inside the block; the rest is the caller's contract.
        unsafe {
            let scale = [L::load_f16(block), L::load_f16(block.add(PANEL))];
            for k in 0..BLOCK {
                let bytes = block.add(2 * PANEL + k * PANEL);
                let (q0, q1) = (L::load_i8(bytes), L::load_i8(bytes.add(PANEL / 2)));
                to.take(k, [L::mul(q0, scale[0]), L::mul(q1, scale[1])]);
            }
        }
    }
}

/// Stores the weights as floats.
struct Unpack(*mut f32);

impl<L: Lanes> Consumer<L> for Unpack {
    #[inline(always)]
    unsafe fn take(&mut self, k: usize, w: [L::V; 2]) {
        // SAFETY: the buffer has 32 floats for each of the block's inputs; the rest is the caller's contract.
        unsafe {
            let to = self.0.add(k * PANEL);
            L::store(to, w[0]);
            L::store(to.add(PANEL / 2), w[1]);
        }
    }
}

/// See [`Kernels::unpack_q4`](super::Kernels::unpack_q4).
///
/// # Safety
/// The contract of `Kernels`.
#[inline(always)]
pub(super) unsafe fn unpack<L: Lanes, F: Format>(panel: *const u8, blocks: usize, out: *mut f32) {
    for block in 0..blocks {
        // SAFETY: `panel` has `blocks` blocks and `out` 32 × 32 floats for each, by the caller's contract.
        unsafe { F::each::<L>(panel.add(block * F::BYTES), &mut Unpack(out.add(block * BLOCK * PANEL))) };
    }
}

/// See [`Kernels::product_q4`](super::Kernels::product_q4).
///
/// # Safety
/// The contract of `Kernels`.
#[inline(always)]
pub(super) unsafe fn product_quantised<L: Lanes, F: Format>(job: &QuantisedProduct) {
    // SAFETY: the caller's contract.
    unsafe {
        match job.rows {
            0 => {}
            1 => quantised_rows::<L, F, 1>(job),
            2 => quantised_rows::<L, F, 2>(job),
            3 => quantised_rows::<L, F, 3>(job),
            _ => quantised_rows::<L, F, 4>(job),
        }
    }
}

/// Multiplies the weights with the inputs of `R` rows and adds the products to the rows' sums.
struct Sum<L: Lanes, const R: usize> {
    /// The block's first input in each row.
    x: [*const f32; R],
    sums: [[L::V; 2]; R],
}

impl<L: Lanes, const R: usize> Consumer<L> for Sum<L, R> {
    #[inline(always)]
    unsafe fn take(&mut self, k: usize, w: [L::V; 2]) {
        for row in 0..R {
            // SAFETY: each row has the block's 32 inputs; the rest is the caller's contract.
            unsafe {
                let value = L::splat(*self.x[row].add(k));
                let sum = &mut self.sums[row];
                *sum = [L::fma(w[0], value, sum[0]), L::fma(w[1], value, sum[1])];
            }
        }
    }
}

/// # Safety
/// The contract of `Kernels`. `job` has `R` rows.
#[inline(always)]
unsafe fn quantised_rows<L: Lanes, F: Format, const R: usize>(job: &QuantisedProduct) {
    // SAFETY: reads `R` rows of `blocks * 32` floats of `x`, `blocks` blocks, and writes `R` rows of 32 floats.
    unsafe {
        let x: [*const f32; R] = std::array::from_fn(|row| job.x.add(row * job.x_stride));
        let mut sum = Sum::<L, R> { x, sums: [[L::splat(0.0); 2]; R] };
        for block in 0..job.blocks {
            F::each::<L>(job.panel.add(block * F::BYTES), &mut sum);
            sum.x = sum.x.map(|row| row.wrapping_add(BLOCK));
        }
        for (row, sum) in sum.sums.into_iter().enumerate() {
            let to = job.y.add(row * job.y_stride);
            L::store(to, sum[0]);
            L::store(to.add(PANEL / 2), sum[1]);
        }
    }
}

/// See [`Kernels::product`](super::Kernels::product).
///
/// # Safety
/// The contract of `Kernels`.
#[inline(always)]
pub(super) unsafe fn product<L: Lanes>(job: &Product) {
    let mut row = 0;
    while row < job.rows {
        let left = job.rows - row;
        // SAFETY: the rows that the call computes are below `job.rows`.
        row += unsafe {
            if L::ROWS >= 12 && left >= 12 {
                product_rows::<L, 12>(job, row)
            } else if L::ROWS >= 8 && left >= 8 {
                product_rows::<L, 8>(job, row)
            } else if L::ROWS >= 4 && left >= 4 {
                product_rows::<L, 4>(job, row)
            } else if left >= 3 {
                product_rows::<L, 3>(job, row)
            } else if left == 2 {
                product_rows::<L, 2>(job, row)
            } else {
                product_rows::<L, 1>(job, row)
            }
        };
    }
}

/// Computes rows `first..first + R` and returns `R`.
///
/// # Safety
/// The contract of `Kernels`. The rows are below `job.rows`.
#[inline(always)]
unsafe fn product_rows<L: Lanes, const R: usize>(job: &Product, first: usize) -> usize {
    // SAFETY: reads `R` rows of `depth` floats of `x` and `depth` rows of 32 floats of `w`; reads and writes `R`
    // rows of 32 floats of `y`.
    unsafe {
        let x = job.x.add(first * job.x_stride);
        let y = job.y.add(first * job.y_stride);
        let mut sums = [[L::splat(0.0); 2]; R];
        if job.accumulate {
            for (row, sum) in sums.iter_mut().enumerate() {
                let from = y.add(row * job.y_stride);
                *sum = [L::load(from), L::load(from.add(PANEL / 2))];
            }
        }
        for k in 0..job.depth {
            let w = job.w.add(k * job.w_stride);
            let (w0, w1) = (L::load(w), L::load(w.add(PANEL / 2)));
            for (row, sum) in sums.iter_mut().enumerate() {
                let value = L::splat(*x.add(row * job.x_stride + k));
                *sum = [L::fma(w0, value, sum[0]), L::fma(w1, value, sum[1])];
            }
        }
        for (row, sum) in sums.into_iter().enumerate() {
            let to = y.add(row * job.y_stride);
            L::store(to, sum[0]);
            L::store(to.add(PANEL / 2), sum[1]);
        }
    }
    R
}

/// See [`Kernels::transpose`](super::Kernels::transpose).
///
/// # Safety
/// The contract of `Kernels`.
#[inline(always)]
pub(super) unsafe fn transpose<L: Lanes>(rows: &[*const f32; PANEL], depth: usize, out: *mut f32) {
    // SAFETY: reads `depth` floats of each row, and writes `depth` rows of 32 floats.
    unsafe {
        for half in 0..2 {
            let rows: [*const f32; 16] = std::array::from_fn(|row| rows[16 * half + row]);
            let out = out.add(16 * half);
            for first in (0..depth - depth % 16).step_by(16) {
                // Loops instead of closures, for the reason that `Consumer` states.
                let mut block = [L::splat(0.0); 16];
                for (block, row) in block.iter_mut().zip(rows) {
                    *block = L::load(row.add(first));
                }
                for (column, values) in L::transpose(block).into_iter().enumerate() {
                    L::store(out.add((first + column) * PANEL), values);
                }
            }
            for column in depth - depth % 16..depth {
                for (at, row) in rows.into_iter().enumerate() {
                    *out.add(column * PANEL + at) = *row.add(column);
                }
            }
        }
    }
}
