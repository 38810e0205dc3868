//! `y = W · x` for all rows of a step: the units of work, and the epilogue of each product.

use super::kernels::{BLOCK, FUSED_ROWS, Kernels, PANEL, Product, Q4_BYTES, Q8_BYTES, QuantisedProduct};
use super::matrix::Matrix;
use super::scratch::{Scratch, take};
use super::threads::{Claim, Threads, WorkerPanicked};
use super::weights::{Linear, Panels};

/// Rows of a unit. They are enough to amortise unpacking a panel, and few enough to stay in the L2 cache.
const UNIT_ROWS: usize = 120;

/// The operation on the products of one matrix.
#[derive(Clone, Copy)]
pub(super) enum Epilogue<'a> {
    /// Stores the products in the matrix.
    Store(&'a Matrix),
    /// Adds the products to the matrix.
    Add(&'a Matrix),
    /// Uses the products as the gate of SwiGLU. `up` computes the other factor, and `y` receives the result.
    SwiGlu { up: &'a Linear, y: &'a Matrix },
}

impl<'a> Epilogue<'a> {
    fn y(self) -> &'a Matrix {
        match self {
            Self::Store(y) | Self::Add(y) | Self::SwiGlu { y, .. } => y,
        }
    }
}

/// One product: a weight matrix applied to the rows.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub(super) weights: &'a Linear,
    pub(super) epilogue: Epilogue<'a>,
}

/// Applies the matrices to the first `rows` rows of `x`, on all threads.
///
/// Every output is one sum over the inputs in ascending order, for any number of rows, threads or lanes. With few rows the
/// kernel unpacks the weights in registers. With more rows it first unpacks a panel into the thread's scratch memory. Both
/// give the same bits.
///
/// # Errors
/// [`WorkerPanicked`].
pub(super) fn apply(
    threads: &mut Threads<Scratch>,
    kernels: &Kernels,
    x: &Matrix,
    rows: usize,
    tasks: &[Task<'_>],
) -> Result<(), WorkerPanicked> {
    assert!(
        tasks.iter().all(|task| !std::ptr::eq(x, task.epilogue.y())),
        "a product must not overwrite its input"
    );
    let panels: usize = tasks.iter().map(|task| task.weights.panel_count()).sum();
    threads.run(panels * rows.div_ceil(UNIT_ROWS), Claim::Part, &|unit, scratch| {
        let first = unit / panels * UNIT_ROWS;
        let count = UNIT_ROWS.min(rows - first);
        let mut panel = unit % panels;
        for task in tasks {
            if panel < task.weights.panel_count() {
                return task.compute(kernels, x, first, count, panel, scratch);
            }
            panel -= task.weights.panel_count();
        }
    })
}

impl Task<'_> {
    fn compute(
        &self,
        kernels: &Kernels,
        x: &Matrix,
        first: usize,
        count: usize,
        panel: usize,
        scratch: &mut Scratch,
    ) {
        let out = take(&mut scratch.out, count * PANEL);
        self.weights.multiply(kernels, panel, x, first, out, &mut scratch.panel);
        self.weights.add_bias(panel, out);
        if let Epilogue::SwiGlu { up, .. } = self.epilogue {
            let out_2 = take(&mut scratch.out_2, count * PANEL);
            up.multiply(kernels, panel, x, first, out_2, &mut scratch.panel);
            // SAFETY: this machine supports the kernels.
            unsafe { (kernels.swiglu)(out, out_2) };
        }
        let column = panel * PANEL;
        let width = PANEL.min(self.weights.outputs - column);
        let y = self.epilogue.y();
        for (row, out) in out.chunks_exact(PANEL).enumerate() {
            // SAFETY: only this unit writes these rows and columns of `y`. No task reads them in this phase, because `x` is
            // another matrix.
            let to = unsafe { y.part_mut(first + row, column, width) };
            match self.epilogue {
                Epilogue::Add(_) => to.iter_mut().zip(out).for_each(|(to, out)| *to += out),
                Epilogue::Store(_) | Epilogue::SwiGlu { .. } => to.copy_from_slice(&out[..width]),
            }
        }
    }
}

impl Linear {
    /// Writes the products of one panel with the rows of `x` from `first` on to `out`, 32 per row. The length of `out` sets
    /// the number of rows.
    fn multiply(
        &self,
        kernels: &Kernels,
        panel: usize,
        x: &Matrix,
        first: usize,
        out: &mut [f32],
        unpacked: &mut Vec<f32>,
    ) {
        let rows = out.len() / PANEL;
        let (Some(last), blocks) = (rows.checked_sub(1), self.inputs / BLOCK) else { return };
        assert!(x.columns() == self.inputs, "{} columns for {} inputs", x.columns(), self.inputs);
        // `at` checks the bounds of the first and the last element that the kernels read.
        let (from, _) = (x.at(first, 0), x.at(first + last, self.inputs - 1));
        let product = |w: *const f32, out: &mut [f32]| Product {
            rows,
            depth: self.inputs,
            x: from,
            x_stride: x.columns(),
            w,
            w_stride: PANEL,
            y: out.as_mut_ptr(),
            y_stride: PANEL,
            accumulate: false,
        };
        let (bytes, block_bytes, fused, unpack) = match &self.panels {
            Panels::F32(floats) => {
                let weights = &floats[panel * self.inputs * PANEL..][..self.inputs * PANEL];
                // SAFETY: this machine supports the kernels. All sizes are checked above. No code writes `x` in this phase.
                return unsafe { (kernels.product)(&product(weights.as_ptr(), out)) };
            }
            Panels::Q4(bytes) => (bytes, Q4_BYTES, kernels.product_q4, kernels.unpack_q4),
            Panels::Q8(bytes) => (bytes, Q8_BYTES, kernels.product_q8, kernels.unpack_q8),
        };
        let weights = &bytes[panel * blocks * block_bytes..][..blocks * block_bytes];
        if rows <= FUSED_ROWS {
            let job = QuantisedProduct {
                rows,
                blocks,
                panel: weights.as_ptr(),
                x: from,
                x_stride: x.columns(),
                y: out.as_mut_ptr(),
                y_stride: PANEL,
            };
            // SAFETY: as above.
            unsafe { fused(&job) };
        } else {
            let unpacked = take(unpacked, self.inputs * PANEL);
            // SAFETY: as above. `unpacked` has room for all blocks.
            unsafe {
                unpack(weights.as_ptr(), blocks, unpacked.as_mut_ptr());
                (kernels.product)(&product(unpacked.as_ptr(), out));
            }
        }
    }

    /// Adds the bias of a panel's outputs to every row of `out`.
    fn add_bias(&self, panel: usize, out: &mut [f32]) {
        let Some(bias) = &self.bias else { return };
        for row in out.chunks_exact_mut(PANEL) {
            row.iter_mut().zip(&bias[panel * PANEL..]).for_each(|(out, bias)| *out += bias);
        }
    }

    /// Copies the weights of one output as floats. For the embedding this is the vector of a token.
    pub(super) fn copy_output(&self, output: usize, to: &mut [f32]) {
        assert!(output < self.outputs && to.len() == self.inputs);
        let (panel, column) = (output / PANEL, output % PANEL);
        let half =
            |bytes: &[u8]| half::f16::from_le_bytes([bytes[2 * column], bytes[2 * column + 1]]).to_f32();
        let blocks = self.inputs / BLOCK;
        match &self.panels {
            Panels::F32(floats) => {
                let rows = floats[panel * self.inputs * PANEL..].chunks_exact(PANEL);
                to.iter_mut().zip(rows).for_each(|(to, row)| *to = row[column]);
            }
            Panels::Q4(bytes) => {
                let from = bytes[panel * blocks * Q4_BYTES..].chunks_exact(Q4_BYTES);
                for (to, block) in to.chunks_exact_mut(BLOCK).zip(from) {
                    let (scale, min) = (half(block), half(&block[2 * PANEL..]));
                    for (k, to) in to.iter_mut().enumerate() {
                        let byte = block[4 * PANEL + k / 2 * PANEL + column];
                        let nibble = if k % 2 == 0 { byte & 15 } else { byte >> 4 };
                        *to = f32::from(nibble) * scale + min;
                    }
                }
            }
            Panels::Q8(bytes) => {
                let from = bytes[panel * blocks * Q8_BYTES..].chunks_exact(Q8_BYTES);
                for (to, block) in to.chunks_exact_mut(BLOCK).zip(from) {
                    let scale = half(block);
                    for (k, to) in to.iter_mut().enumerate() {
                        *to = f32::from(block[2 * PANEL + k * PANEL + column] as i8) * scale;
                    }
                }
            }
        }
    }
}
