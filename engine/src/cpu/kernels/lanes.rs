//! Vectors of sixteen floats: the operations that the kernels use.

/// The vector operations of one instruction set.
///
/// # Safety
/// Every method needs the instruction set of its implementation. Pointers must be valid for the read or write, but need no
/// alignment. The methods are inlined into functions that enable the instruction set.
pub(super) trait Lanes {
    /// 16 floats.
    type V: Copy;
    /// Rows that [`product`](super::matrix::product) computes together. Each row takes two `V`; the number of registers limits
    /// the rows.
    const ROWS: usize;

    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, value: Self::V);
    /// `a · b + c`, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// Loads 16 f16 numbers.
    unsafe fn load_f16(from: *const u8) -> Self::V;
    /// Loads 16 signed bytes.
    unsafe fn load_i8(from: *const u8) -> Self::V;
    /// Loads the low nibbles and the high nibbles of 16 bytes.
    unsafe fn load_nibbles(from: *const u8) -> (Self::V, Self::V);
    /// Column `i` of the 16 rows becomes row `i`.
    unsafe fn transpose(rows: [Self::V; 16]) -> [Self::V; 16];
}
