//! Causal attention over paged keys and values. Prefill chunks and decode rows use the same code.
//!
//! A unit of work is one KV head for up to 16 consecutive rows of a chunk. It multiplies the queries of all heads that
//! share the KV head with blocks of 32 keys, which it transposes while reading. Then it applies the softmax, and
//! multiplies the scores with the values in the pages. A score is a sum over the head's dimensions, and an output is a sum
//! over positions, both in ascending order. So a row's result depends neither on the other rows nor on how the sequence is
//! split into chunks and pages. The softmax covers whole rows, not single blocks.

use super::kernels::{Kernels, LINE, PANEL, Product, prefetch};
use super::matrix::Matrix;
use super::scratch::{Scratch, take};
use crate::kv::{KeyOrValue, KvDtype, KvPool, PageId};
use crate::model::spec::AttentionSpec;

/// Maximum number of rows of a unit.
const TILE_ROWS: usize = 16;
/// Up to this many rows, a unit waits for its keys and values longer than it computes.
const PREFETCH_ROWS: usize = 4;

/// The rows, positions and pages of a chunk, or of a part of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span<'a> {
    /// The first row in the step's matrices.
    pub(super) row: usize,
    pub(super) rows: usize,
    /// Position of the first row.
    pub(super) start: usize,
    pub(super) pages: &'a [PageId],
}

/// One unit of work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unit<'a> {
    span: Span<'a>,
    head: usize,
}

/// The units of a step. Those with the most work come first.
pub(super) fn units<'a>(heads: &AttentionSpec, spans: &[Span<'a>]) -> Vec<Unit<'a>> {
    let mut units = Vec::new();
    for span in spans {
        for first in (0..span.rows).step_by(TILE_ROWS) {
            let tile = Span {
                row: span.row + first,
                rows: TILE_ROWS.min(span.rows - first),
                start: span.start + first,
                pages: span.pages,
            };
            units.extend((0..heads.kv_heads).map(|head| Unit { span: tile, head }));
        }
    }
    units.sort_by_key(|unit| std::cmp::Reverse(unit.span.rows * (unit.span.start + unit.span.rows)));
    units
}

impl Unit<'_> {
    /// The number of positions that the unit's last row attends to.
    fn context(&self) -> usize {
        self.span.start + self.span.rows
    }
}

/// The attention of one layer of a step.
pub(super) struct Attention<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) heads: &'a AttentionSpec,
    pub(super) kv: &'a KvPool,
    pub(super) layer: usize,
    pub(super) queries: &'a Matrix,
    /// Receives the results.
    pub(super) out: &'a Matrix,
}

impl Attention<'_> {
    /// Computes a unit: reads its part of the queries and writes the same part of the results.
    ///
    /// # Safety
    /// This machine supports the kernels. The page table covers the unit's context. No other code writes those positions or
    /// the queries during the call. No other thread computes the same unit.
    pub(super) unsafe fn compute(&self, unit: &Unit<'_>, scratch: &mut Scratch) {
        let (size, group) = (self.heads.head_dim, self.heads.heads / self.heads.kv_heads);
        let (context, span) = (unit.context(), unit.span);
        let vectors = span.rows * group;
        let first_column = unit.head * group * size;
        let Scratch { panel, out: sums, queries: packed, scores, factors, values, .. } = scratch;

        let packed = take(packed, vectors * size);
        for (row, to) in packed.chunks_exact_mut(group * size).enumerate() {
            // SAFETY: no other code writes the queries, by the caller's contract.
            to.copy_from_slice(unsafe { self.queries.part(span.row + row, first_column, group * size) });
        }

        let stride = context.next_multiple_of(PANEL);
        let scores = take(scores, vectors * stride);
        let keys = take(panel, size * PANEL);
        for block in (0..context).step_by(PANEL) {
            self.request(unit, KeyOrValue::Key, block + PANEL, PANEL);
            // SAFETY: the caller's contract.
            unsafe { self.transpose_keys(unit, block, keys) };
            let job = Product {
                rows: vectors,
                depth: size,
                x: packed.as_ptr(),
                x_stride: size,
                w: keys.as_ptr(),
                w_stride: PANEL,
                y: scores[block..].as_mut_ptr(),
                y_stride: stride,
                accumulate: false,
            };
            // SAFETY: `packed`, `keys` and `scores` have the sizes in `job`.
            unsafe { (self.kernels.product)(&job) };
        }

        let padded = size.next_multiple_of(PANEL);
        let sums = take(sums, vectors * padded);
        let scale = 1.0 / (size as f32).sqrt();
        // The last row attends to the whole context, and each earlier row to one position less than the next row.
        let factors = take(factors, vectors);
        for (vector, row) in scores.chunks_exact_mut(stride).enumerate() {
            let valid = span.start + vector / group + 1;
            // SAFETY: this machine supports the kernels. `valid` is at least 1 and at most the context.
            factors[vector] = 1.0 / unsafe { (self.kernels.exponentials)(&mut row[..context], valid, scale) };
        }
        // SAFETY: the caller's contract.
        unsafe { self.add_values(unit, scores, sums, values) };

        for (row, from) in sums.chunks_exact(group * padded).enumerate() {
            // SAFETY: only this unit accesses this part of `out`.
            let to = unsafe { self.out.part_mut(span.row + row, first_column, group * size) };
            for (head, (to, from)) in to.chunks_exact_mut(size).zip(from.chunks_exact(padded)).enumerate() {
                let factor = factors[row * group + head];
                to.iter_mut().zip(from).for_each(|(to, from)| *to = from * factor);
            }
        }
    }

    /// Writes the keys of the positions `first..first + 32` as `[head_dim][32]`. Positions past the context are zero.
    ///
    /// # Safety
    /// That of [`compute`](Self::compute).
    unsafe fn transpose_keys(&self, unit: &Unit<'_>, first: usize, to: &mut [f32]) {
        let count = PANEL.min(unit.context() - first);
        let (dtype, size) = (self.kv.layout().dtype, self.heads.head_dim);
        let key = |column: usize| self.address(unit, KeyOrValue::Key, first + column);
        if dtype == KvDtype::F32 && count == PANEL {
            let rows = std::array::from_fn(|column| key(column).cast::<f32>());
            // SAFETY: as below. This machine supports the kernels, and `to` has the size.
            return unsafe { (self.kernels.transpose)(&rows, size, to.as_mut_ptr()) };
        }
        for column in 0..count {
            // SAFETY: a head's key is `head_dim` contiguous numbers, which are initialised by the caller's contract.
            unsafe {
                dtype.read(key(column), size, |dimension, number| to[dimension * PANEL + column] = number)
            };
        }
        if count < PANEL {
            to.chunks_exact_mut(PANEL).for_each(|to| to[count..].fill(0.0));
        }
    }

    /// `sums[v] = Σ_t weights[v][t] · value[t]`, one page at a time. Reads the values in the pages, or a padded copy if they are
    /// not floats or the head size is not a multiple of the panel width. The width of a row of `sums` is a multiple of the panel width.
    ///
    /// # Safety
    /// That of [`compute`](Self::compute); `weights` is `vectors × stride`.
    unsafe fn add_values(&self, unit: &Unit<'_>, weights: &[f32], sums: &mut [f32], copy: &mut Vec<f32>) {
        let (size, context) = (self.heads.head_dim, unit.context());
        let (stride, padded) = (context.next_multiple_of(PANEL), size.next_multiple_of(PANEL));
        let (page_tokens, dtype) = (self.kv.layout().page_tokens as usize, self.kv.layout().dtype);
        for first in (0..context).step_by(page_tokens) {
            self.request(unit, KeyOrValue::Value, first + page_tokens, page_tokens);
            let depth = page_tokens.min(context - first);
            let in_page = self.address(unit, KeyOrValue::Value, first);
            let (values, width) = if dtype == KvDtype::F32 && padded == size {
                (in_page.cast::<f32>(), size)
            } else {
                let copy = take(copy, depth * padded);
                for (position, to) in copy.chunks_exact_mut(padded).enumerate() {
                    let (own, rest) = to.split_at_mut(size);
                    // SAFETY: the values of a head in a page are `depth * head_dim` contiguous, initialised numbers.
                    unsafe {
                        let value = in_page.add(position * size * dtype.bytes() as usize);
                        dtype.read(value, size, |dimension, number| own[dimension] = number);
                    }
                    rest.fill(0.0);
                }
                (copy.as_ptr(), padded)
            };
            for column in (0..size).step_by(PANEL) {
                let job = Product {
                    rows: sums.len() / padded,
                    depth,
                    x: weights[first..].as_ptr(),
                    x_stride: stride,
                    // SAFETY: inside the head's value or its copy.
                    w: unsafe { values.add(column) },
                    w_stride: width,
                    y: sums[column..].as_mut_ptr(),
                    y_stride: padded,
                    accumulate: first > 0,
                };
                // SAFETY: the positions are contiguous in one page and initialised. `weights` and `sums` have the sizes in
                // `job`.
                unsafe { (self.kernels.product)(&job) };
            }
        }
    }

    /// Prefetches the keys or values of up to `count` positions from `first` on, if the unit has so few rows that it waits for memory. The processor's own
    /// prefetcher stops at the end of each 4 KiB. With heads of 64 numbers in f32, a head's keys in a page of 16 tokens take 4 KiB.
    fn request(&self, unit: &Unit<'_>, part: KeyOrValue, first: usize, count: usize) {
        if unit.span.rows > PREFETCH_ROWS {
            return;
        }
        let layout = self.kv.layout();
        let bytes = self.heads.head_dim * layout.dtype.bytes() as usize;
        for position in first..unit.context().min(first + count) {
            let address = self.address(unit, part, position);
            (0..bytes).step_by(LINE).for_each(|offset| prefetch(address.wrapping_add(offset)));
        }
    }

    /// The address of the key or value of a position, for the unit's head.
    fn address(&self, unit: &Unit<'_>, part: KeyOrValue, position: usize) -> *const u8 {
        let page_tokens = self.kv.layout().page_tokens as usize;
        let page = unit.span.pages[position / page_tokens];
        let place = (position % page_tokens) as u32;
        self.kv.address(page, unit.head as u32, self.layer as u32, part, place).as_ptr()
    }
}
