//! Sixteen floats side by side: the few operations that the kernels are written in.

/// An instruction set's way to hold and combine 16 floats.
///
/// # Safety
/// Every method needs the instruction set of its implementation, and pointers valid for what it reads or writes;
/// none needs alignment. They are inlined into functions that enable the set.
pub(super) trait Lanes {
    /// 16 floats.
    type V: Copy;
    /// Rows that [`product`](super::matrix::product) computes together, as the registers allow: two `V` each.
    const ROWS: usize;

    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, value: Self::V);
    /// `a · b + c`, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// 16 halves.
    unsafe fn load_f16(from: *const u8) -> Self::V;
    /// 16 signed bytes.
    unsafe fn load_i8(from: *const u8) -> Self::V;
    /// The low and the high nibbles of 16 bytes.
    unsafe fn load_nibbles(from: *const u8) -> (Self::V, Self::V);
}
