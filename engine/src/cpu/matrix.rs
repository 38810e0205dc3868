//! Activations: row-major matrices that the threads of one phase fill side by side.

use std::ptr::NonNull;

/// A matrix of floats whose parts may be written from several threads at once, each part by one.
///
/// It owns its memory through a raw pointer, because a phase's threads hold pointers into disjoint parts of it,
/// which Rust references could not express. Phases are separated by [`Threads::run`](super::threads::Threads::run)
/// returning.
#[derive(Debug)]
pub(super) struct Matrix {
    base: NonNull<f32>,
    rows: usize,
    columns: usize,
}

// SAFETY: plain floats owned through a pointer; access goes through unsafe methods with their own contract.
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

    /// Floats from one row to the next.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Whether it has that many rows.
    pub(super) fn has_rows(&self, rows: usize) -> bool {
        self.rows >= rows
    }

    /// The address of an element.
    ///
    /// # Panics
    /// When it is outside the matrix.
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

    /// `count` elements of a row, to read.
    ///
    /// # Safety
    /// Nobody writes them while the slice lives.
    pub(super) unsafe fn part(&self, row: usize, column: usize, count: usize) -> &[f32] {
        assert!(column + count <= self.columns);
        // SAFETY: inside one row; the rest is the caller's contract.
        unsafe { std::slice::from_raw_parts(self.at(row, column), count) }
    }

    /// `count` elements of a row, to write.
    ///
    /// # Safety
    /// Nobody else reads or writes them while the slice lives.
    #[expect(clippy::mut_from_ref, reason = "disjoint parts are written from several threads; see the type")]
    pub(super) unsafe fn part_mut(&self, row: usize, column: usize, count: usize) -> &mut [f32] {
        assert!(column + count <= self.columns);
        // SAFETY: inside one row; the rest is the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.at(row, column), count) }
    }

    /// One whole row, to read.
    ///
    /// # Safety
    /// That of [`part`](Self::part).
    pub(super) unsafe fn row(&self, row: usize) -> &[f32] {
        // SAFETY: the caller's contract.
        unsafe { self.part(row, 0, self.columns) }
    }

    /// One whole row, to write.
    ///
    /// # Safety
    /// That of [`part_mut`](Self::part_mut).
    #[expect(clippy::mut_from_ref, reason = "as for part_mut")]
    pub(super) unsafe fn row_mut(&self, row: usize) -> &mut [f32] {
        // SAFETY: the caller's contract.
        unsafe { self.part_mut(row, 0, self.columns) }
    }
}

impl Drop for Matrix {
    fn drop(&mut self) {
        let memory = std::ptr::slice_from_raw_parts_mut(self.base.as_ptr(), self.rows * self.columns);
        // SAFETY: the box that `new` took apart, put together once.
        drop(unsafe { Box::from_raw(memory) });
    }
}
