//! Activations: row-major matrices that the threads of a phase write concurrently.

use std::ptr::NonNull;

/// A matrix of floats. Several threads may write disjoint parts of it at the same time.
///
/// It owns its memory through a raw pointer, because the threads of a phase hold pointers into disjoint parts, which Rust
/// references cannot express. A phase ends when [`Threads::run`](super::threads::Threads::run) returns.
#[derive(Debug)]
pub(super) struct Matrix {
    base: NonNull<f32>,
    rows: usize,
    columns: usize,
}

// SAFETY: the matrix owns plain floats through a pointer. Access goes through unsafe methods with their own contracts.
unsafe impl Send for Matrix {}
// SAFETY: as for `Send`.
unsafe impl Sync for Matrix {}

impl Matrix {
    /// A matrix of zeros.
    pub(super) fn new(rows: usize, columns: usize) -> Self {
        let memory = vec![0.0f32; rows * columns].into_boxed_slice();
        let base = NonNull::new(Box::into_raw(memory).cast()).expect("a box is never null");
        Self { base, rows, columns }
    }

    /// Columns: the floats from one row to the next.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// True if the matrix has at least `rows` rows.
    pub(super) fn has_rows(&self, rows: usize) -> bool {
        self.rows >= rows
    }

    /// The address of an element.
    ///
    /// # Panics
    /// If the element is outside the matrix.
    pub(super) fn at(&self, row: usize, column: usize) -> *mut f32 {
        assert!(
            row < self.rows && column < self.columns,
            "({row}, {column}) of {}x{}",
            self.rows,
            self.columns
        );
        // SAFETY: inside the allocation, as just checked.
        unsafe { self.base.as_ptr().add(row * self.columns + column) }
    }

    /// `count` elements of a row, for reading.
    ///
    /// # Safety
    /// No other code writes them while the slice lives.
    pub(super) unsafe fn part(&self, row: usize, column: usize, count: usize) -> &[f32] {
        assert!(column + count <= self.columns);
        // SAFETY: inside one row; the rest is the caller's contract.
        unsafe { std::slice::from_raw_parts(self.at(row, column), count) }
    }

    /// `count` elements of a row, for writing.
    ///
    /// # Safety
    /// No other code reads or writes them while the slice lives.
    #[expect(clippy::mut_from_ref, reason = "several threads write disjoint parts; see the type")]
    pub(super) unsafe fn part_mut(&self, row: usize, column: usize, count: usize) -> &mut [f32] {
        assert!(column + count <= self.columns);
        // SAFETY: inside one row; the rest is the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.at(row, column), count) }
    }

    /// One whole row, for reading.
    ///
    /// # Safety
    /// The contract of [`part`](Self::part).
    pub(super) unsafe fn row(&self, row: usize) -> &[f32] {
        // SAFETY: the caller's contract.
        unsafe { self.part(row, 0, self.columns) }
    }

    /// One whole row, for writing.
    ///
    /// # Safety
    /// The contract of [`part_mut`](Self::part_mut).
    #[expect(clippy::mut_from_ref, reason = "as for part_mut")]
    pub(super) unsafe fn row_mut(&self, row: usize) -> &mut [f32] {
        // SAFETY: the caller's contract.
        unsafe { self.part_mut(row, 0, self.columns) }
    }
}

impl Drop for Matrix {
    fn drop(&mut self) {
        let memory = std::ptr::slice_from_raw_parts_mut(self.base.as_ptr(), self.rows * self.columns);
        // SAFETY: this is the allocation of the box that `new` converted, and it is freed once.
        drop(unsafe { Box::from_raw(memory) });
    }
}
